package xmpp

import (
	"crypto/sha256"
	"fmt"
	"sync"
	"time"

	"muster/edges/xmpp/sasl"
	"muster/internal/fault"
)

// The lock-out numbers (reliability-security section 3). An attacker locks out
// its own address for an account, never the account; the account is only slowed down.
const (
	pairFailures    = 5                // of an account from an address
	pairWindow      = 5 * time.Minute  // within
	pairLock        = 15 * time.Minute // lock that pair
	addressFailures = 20               // from an address, of any account
	addressWindow   = 10 * time.Minute // within
	addressLock     = time.Hour        // ban the address
	accountFailures = 50               // of an account, from anywhere
	accountWindow   = time.Hour        // within: each failure more is answered late,
	tarpitFirst     = time.Second      // at first by this,
	tarpitMost      = 30 * time.Second // doubling up to this
	maxTallies      = 100_000          // of each of the three maps, about 12 MiB; the oldest go first
)

// tally counts failures in a window that begins with the first.
type tally struct {
	count  int
	since  time.Time
	locked time.Time // until when
}

// ledger is a bounded set of tallies.
type ledger struct {
	limit          int
	window, lock   time.Duration
	tallies        map[tallyKey]*tally
	lastForgetting time.Time
}

func newLedger(limit int, window, lock time.Duration) *ledger {
	return &ledger{limit: limit, window: window, lock: lock, tallies: map[tallyKey]*tally{}}
}

// fail counts a failure and returns the failures in the window, and whether this one locked.
func (l *ledger) fail(key tallyKey, now time.Time) (count int, locked bool) {
	t := l.tallies[key]
	if t == nil {
		l.makeRoom(now)
		t = &tally{since: now}
		l.tallies[key] = t
	}
	if now.Sub(t.since) > l.window && now.After(t.locked) {
		*t = tally{since: now}
	}
	t.count++
	if t.count >= l.limit && l.lock > 0 && !now.Before(t.locked) {
		t.locked = now.Add(l.lock)
		return t.count, true
	}
	return t.count, false
}

func (l *ledger) lockedUntil(key tallyKey, now time.Time) (time.Time, bool) {
	t := l.tallies[key]
	if t == nil || !now.Before(t.locked) {
		return time.Time{}, false
	}
	return t.locked, true
}

// makeRoom forgets what is past, and if that is not enough one tally that is locked for nobody, or else any.
func (l *ledger) makeRoom(now time.Time) {
	if len(l.tallies) < maxTallies {
		return
	}
	if now.Sub(l.lastForgetting) > time.Second {
		l.forget(now)
		l.lastForgetting = now
	}
	if len(l.tallies) < maxTallies {
		return
	}
	var victim tallyKey
	for key, t := range l.tallies { // the first few that the map yields: random, and O(1)
		if victim = key; !now.Before(t.locked) {
			break
		}
	}
	delete(l.tallies, victim)
}

func (l *ledger) forget(now time.Time) {
	for key, t := range l.tallies {
		if now.Sub(t.since) > l.window && !now.Before(t.locked) {
			delete(l.tallies, key)
		}
	}
}

// guard keeps who guesses passwords away. It is of this node, and survives a restart of the service.
type guard struct {
	now func() time.Time

	mu        sync.Mutex
	pairs     *ledger
	addresses *ledger
	accounts  *ledger
}

func newGuard() *guard {
	return &guard{
		now:       time.Now,
		pairs:     newLedger(pairFailures, pairWindow, pairLock),
		addresses: newLedger(addressFailures, addressWindow, addressLock),
		accounts:  newLedger(accountFailures, accountWindow, 0),
	}
}

// tallyKey is a hash of what is counted, so that a long name costs no more memory than a short one.
type tallyKey [16]byte

func keyOf(account, peer string) (k tallyKey) {
	sum := sha256.Sum256([]byte(account + "\x00" + peer))
	copy(k[:], sum[:])
	return k
}

// check returns a fault while the pair is locked.
func (g *guard) check(account, peer string) error {
	if peer == "" {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	until, locked := g.pairs.lockedUntil(keyOf(account, peer), now)
	if u, banned := g.addresses.lockedUntil(keyOf("", peer), now); banned {
		until, locked = u, true
	}
	if !locked {
		return nil
	}
	minutes := int(until.Sub(now)/time.Minute) + 1
	return fault.New(fault.Overloaded, "sasl.lockout", account, fmt.Sprintf("too many failed logins: try again in %d minutes", minutes))
}

// banned reports whether an address is banned.
func (g *guard) banned(peer string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, yes := g.addresses.lockedUntil(keyOf("", peer), g.now())
	return yes
}

// failed counts a failure. It returns how long to let the client wait, and what was locked by it.
func (g *guard) failed(account, peer string) (wait time.Duration, pairLocked, addressLocked bool) {
	return g.count(account, peer, true)
}

// failedToken is failed for a token: it does not count against the address.
func (g *guard) failedToken(account, peer string) (wait time.Duration, pairLocked bool) {
	wait, pairLocked, _ = g.count(account, peer, false)
	return wait, pairLocked
}

func (g *guard) count(account, peer string, guess bool) (wait time.Duration, pairLocked, addressLocked bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	if peer != "" {
		_, pairLocked = g.pairs.fail(keyOf(account, peer), now)
	}
	if peer != "" && guess {
		_, addressLocked = g.addresses.fail(keyOf("", peer), now)
	}
	count, _ := g.accounts.fail(keyOf(account, ""), now)
	if over := count - accountFailures; over > 0 {
		wait = min(tarpitFirst<<min(over-1, 10), tarpitMost)
	}
	return wait, pairLocked, addressLocked
}

func (g *guard) succeeded(account, peer string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.pairs.tallies, keyOf(account, peer))
}

// sweep forgets what is past.
func (g *guard) sweep() {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	g.pairs.forget(now)
	g.addresses.forget(now)
	g.accounts.forget(now)
}

// guardLog is the guard as package sasl sees it: it counts and logs besides, a line that log watchers can match.
type guardLog struct{ srv *Server }

var _ sasl.Guard = guardLog{}

// Check implements sasl.Guard.
func (g guardLog) Check(account, peer string) error {
	err := g.srv.guard.check(account, peer)
	if err != nil {
		g.srv.counters.lockedOut.Add(1)
	}
	return err
}

// Failed implements sasl.Guard.
func (g guardLog) Failed(account, peer string) time.Duration {
	g.srv.counters.loginsFailed.Add(1)
	wait, pairLocked, addressLocked := g.srv.guard.failed(account, peer)
	g.srv.o.Logger.Warn("login_failed", "account", account, "address", peer, "locked", pairLocked, "banned", addressLocked)
	return wait
}

// FailedToken implements sasl.Guard.
func (g guardLog) FailedToken(account, peer string) time.Duration {
	g.srv.counters.loginsFailed.Add(1)
	wait, pairLocked := g.srv.guard.failedToken(account, peer)
	g.srv.o.Logger.Warn("login_by_token_failed", "account", account, "address", peer, "locked", pairLocked)
	return wait
}

// Succeeded implements sasl.Guard.
func (g guardLog) Succeeded(account, peer string) { g.srv.guard.succeeded(account, peer) }
