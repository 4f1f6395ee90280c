package register

import (
	"context"
	"sync"
	"time"

	"muster/fsm"
	"muster/fsm/config"
	"muster/fsm/user"
	"muster/internal/fault"
	"muster/internal/jid"
	"muster/internal/scram"
	"muster/log"
)

// Limits of making accounts.
const (
	window        = time.Hour        // that PerAddress counts
	maxAddresses  = 65_536           // client addresses that are counted at once, about 16 MiB
	createTimeout = 10 * time.Second // for the log to take an account
)

// PerAddress is the setting that keeps one client address from filling the directory.
var PerAddress = config.Int("register.per_address_per_hour", 5, 1, 1000, config.Cluster,
	"Accounts that clients of one address may make in an hour, on each node, while register.enabled is on.")

// Proposer commits entries; *replication.Group is one.
type Proposer interface {
	Propose(ctx context.Context, entries ...*log.Entry) ([]fsm.Result, error)
}

// Registrar makes accounts for clients that have not logged in. The client edge asks it.
type Registrar struct {
	state    fsm.Reader
	live     *config.Live
	proposer Proposer
	hash     hasher
	quota    quota
}

// NewRegistrar returns a registrar that reads state, follows live and proposes to p.
func NewRegistrar(state fsm.Reader, live *config.Live, p Proposer) *Registrar {
	return &Registrar{state: state, live: live, proposer: p, hash: newHasher(), quota: quota{made: map[string][]time.Time{}}}
}

// Open reports whether accounts can be made now.
func (r *Registrar) Open() bool { return r.live.Bool(Enabled) }

// Register makes an account that may log in at once. remote is the client's
// address, whose accounts are counted; "" is free of that. Faults: NotAllowed
// while the setting is off, Conflict for a name that is taken, NotAcceptable
// for a name or password that cannot be, Overloaded beyond the limits, and those of the log.
func (r *Registrar) Register(ctx context.Context, account jid.JID, password, remote string) error {
	name := account.String()
	switch {
	case !r.Open():
		return fault.New(fault.NotAllowed, "register.create", name, "accounts are made by the administrator")
	case account.Local == "" || !account.IsBare() || !config.IsDomain(r.state, account.Domain):
		return fault.New(fault.NotAcceptable, "register.create", name, "this cannot be the name of an account")
	case user.Exists(r.state, name):
		return fault.New(fault.Conflict, "register.create", name, "the name is taken: choose another one")
	}
	if _, err := scram.Prepare(password); err != nil {
		return err
	}
	now := time.Now()
	if !r.quota.take(remote, int(r.live.Int(PerAddress)), now) {
		return fault.New(fault.Overloaded, "register.create", name, "too many accounts were made from your address: try again in an hour")
	}
	err := r.create(ctx, name, password)
	if err != nil && !fault.Is(err, fault.Timeout) { // the outcome of a timeout is unknown
		r.quota.giveBack(remote, now)
	}
	return err
}

func (r *Registrar) create(ctx context.Context, name, password string) error {
	u := user.User{Name: name, IM: true, Presence: true}
	var err error
	if u.SHA256, u.SHA1, err = r.hash.derive(ctx, name, password); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, createTimeout)
	defer cancel()
	e := user.CreateEntry(u)
	e.Actor, e.Surface, e.Time = name, "xmpp", time.Now()
	results, err := r.proposer.Propose(ctx, e)
	if err != nil {
		return err
	}
	return results[0].Err
}

// quota counts the accounts made from each address in the last window.
type quota struct {
	mu   sync.Mutex
	made map[string][]time.Time
}

// take counts one more for remote, unless that is beyond limit.
func (q *quota) take(remote string, limit int, now time.Time) bool {
	if remote == "" {
		return true
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	recent := within(q.made[remote], now)
	if len(recent) >= limit || len(recent) == 0 && !q.room(now) {
		return false
	}
	q.made[remote] = append(recent, now)
	return true
}

// giveBack takes back the one that was counted at a time.
func (q *quota) giveBack(remote string, at time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, t := range q.made[remote] {
		if t.Equal(at) {
			q.made[remote] = append(q.made[remote][:i], q.made[remote][i+1:]...)
			return
		}
	}
}

// room reports whether another address can be counted; it forgets those of the past when there is none.
func (q *quota) room(now time.Time) bool {
	if len(q.made) < maxAddresses {
		return true
	}
	for remote, times := range q.made {
		if len(within(times, now)) == 0 {
			delete(q.made, remote)
		}
	}
	return len(q.made) < maxAddresses
}

// within returns the times, oldest first, that the window still holds.
func within(times []time.Time, now time.Time) []time.Time {
	for len(times) > 0 && now.Sub(times[0]) >= window {
		times = times[1:]
	}
	return times
}
