package xmpp

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"sync"
	"time"

	"muster/edges/xmpp/sasl"
	"muster/fsm/token"
	"muster/internal/fault"
)

// Limits of tokens (XEP-0484, ADR 10).
const (
	tokenDay        = 24 * time.Hour
	tokenRemembered = 7      // days for which a token that has expired is told from one that never was
	maxVoids        = 10_000 // voids on their way to the log, about 1 MiB; beyond that a login waits for its own
	voidBatch       = 64     // voids in one proposal
	voidTimeout     = 10 * time.Second
	voidGather      = 200 * time.Millisecond // that they are gathered before: a herd makes few records
	voidRetry       = time.Second            // after the log took none
)

// VoidTokens commits that tokens are void. An error with code NoQuorum, Timeout, Unavailable or Overloaded says
// that they may not be; with any other code some were refused, and the others are committed.
type VoidTokens func(ctx context.Context, voids ...token.Void) error

// tokens gives clients tokens and knows them again. It keeps none: each derives
// from the cluster's secret, so that every node knows the tokens of all others.
type tokens struct {
	srv *Server
	key []byte
	now func() time.Time

	mu    sync.Mutex
	voids map[tokenClient]uint32 // on their way to the log: they count here already
	woken chan struct{}          // there are some
}

type tokenClient struct {
	user  string
	agent token.Agent
}

var _ sasl.Tokens = (*tokens)(nil)

func newTokens(s *Server) *tokens {
	m := hmac.New(sha256.New, s.o.Key)
	m.Write([]byte("muster tokens\x00"))
	return &tokens{srv: s, key: m.Sum(nil), now: time.Now, voids: map[tokenClient]uint32{}, woken: make(chan struct{}, 1)}
}

func (t *tokens) lifetime() time.Duration { return t.srv.o.Live.Duration(setTokenLifetime) }

// offered reports whether clients may have tokens now.
func (t *tokens) offered() bool { return t.srv.o.VoidTokens != nil && t.lifetime() > 0 }

// expiry returns until when tokens of a day are good.
func (t *tokens) expiry(day uint32) time.Time { return token.EndOf(day).Add(t.lifetime()) }

// standing returns what counts of a client's tokens, what is on its way to the log included.
func (t *tokens) standing(c tokenClient) token.Standing {
	s := token.StandingOf(t.srv.o.State, c.user, c.agent)
	t.mu.Lock()
	defer t.mu.Unlock()
	s.Before = max(s.Before, t.voids[c])
	return s
}

func (t *tokens) deriver(a sasl.Account, agent token.Agent, mechanism string, generation uint64) *token.Deriver {
	return token.NewDeriver(t.key, token.Owner{User: a.User.String(), Created: a.Created, Agent: agent, Mechanism: mechanism,
		Password: [2][]byte{a.SHA256.StoredKey, a.SHA1.StoredKey}, Generation: generation})
}

// Find implements sasl.Tokens. A client does not say which of its tokens it uses. Most use the one that they
// used before, whose day the log knows; the others are tried from the latest on. Where none fits all are tried.
func (t *tokens) Find(a sasl.Account, agent token.Agent, mechanism string, fits func([]byte) bool) (uint32, sasl.Validity) {
	s := t.standing(tokenClient{a.User.String(), agent})
	d := t.deriver(a, agent, mechanism, s.Generation)
	now := t.now()
	today := token.DayOf(now)
	span := uint32(t.lifetime()/tokenDay) + 1 + tokenRemembered
	validity := func(day uint32) sasl.Validity {
		if day < s.Before || !now.Before(t.expiry(day)) {
			return sasl.Void
		}
		return sasl.Good
	}
	if fits(d.Token(s.Before)) {
		return s.Before, validity(s.Before)
	}
	for day := max(today+1, s.Before); day+span > today && day > 0; day-- { // today+1: given by a node whose clock is ahead
		if fits(d.Token(day)) {
			return day, validity(day)
		}
	}
	return 0, sasl.Unknown
}

// issue returns a token for a client, and its day and expiry; false if it can have none. used is the day of the
// token that the client has, or 0: one of the same day would be the same token.
func (t *tokens) issue(a sasl.Account, agent token.Agent, mechanism string, used uint32) (text string, expires time.Time, ok bool) {
	s := t.standing(tokenClient{a.User.String(), agent})
	today := token.DayOf(t.now())
	day := max(today, s.Before)
	if day == used || day+2 > today+token.MaxAhead { // one day for clocks that differ, one for the void of this token
		return "", time.Time{}, false
	}
	t.srv.counters.tokensIssued.Add(1)
	return string(t.deriver(a, agent, mechanism, s.Generation).Token(day)), t.expiry(day), true
}

// due reports whether a token of that day is to be followed by a new one.
func (t *tokens) due(day uint32) bool {
	return t.expiry(day).Sub(t.now()) < t.srv.o.Live.Duration(setTokenRenewal)
}

// used makes the earlier tokens of a client void, now that it has used one of that day. It is written to the log
// soon, and only once for each token: a herd of clients that come back does not wait for it.
func (t *tokens) used(ctx context.Context, c tokenClient, day uint32) error {
	if t.standing(c).Before >= day {
		return nil
	}
	t.mu.Lock()
	full := len(t.voids) >= maxVoids
	if !full {
		t.voids[c] = max(t.voids[c], day)
	}
	t.mu.Unlock()
	if full {
		return t.commit(ctx, token.Void{User: c.user, Agent: c.agent, Before: day})
	}
	select {
	case t.woken <- struct{}{}:
	default:
	}
	return nil
}

// invalidate makes the tokens of a client up to a day void, on all nodes, before it returns without an error.
func (t *tokens) invalidate(ctx context.Context, c tokenClient, day uint32) error {
	return t.commit(ctx, token.Void{User: c.user, Agent: c.agent, Before: day + 1})
}

func (t *tokens) commit(ctx context.Context, voids ...token.Void) error {
	ctx, cancel := context.WithTimeout(ctx, voidTimeout)
	defer cancel()
	return t.srv.o.VoidTokens(ctx, voids...)
}

// write takes voids to the log until ctx ends.
func (t *tokens) write(ctx context.Context) {
	for {
		select {
		case <-t.woken:
			pause(ctx, voidGather)
		case <-ctx.Done():
			return
		}
		for batch := t.batch(); len(batch) > 0 && ctx.Err() == nil; batch = t.batch() {
			if err := t.commit(ctx, batch...); !t.settled(batch, err) {
				pause(ctx, voidRetry)
			}
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// batch returns some of the voids that are on their way, and forgets those that another node has brought there.
func (t *tokens) batch() (out []token.Void) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for c, day := range t.voids {
		if token.StandingOf(t.srv.o.State, c.user, c.agent).Before >= day {
			delete(t.voids, c)
			continue
		}
		if out = append(out, token.Void{User: c.user, Agent: c.agent, Before: day}); len(out) == voidBatch {
			break
		}
	}
	return out
}

// settled forgets the voids of a batch that the log has, or will never take; false if it may take them later.
func (t *tokens) settled(batch []token.Void, err error) bool {
	switch fault.CodeOf(err) {
	case fault.NoQuorum, fault.Timeout, fault.Unavailable, fault.Overloaded:
		return false
	}
	if err != nil {
		t.srv.o.Logger.Warn("token_void_refused", "error", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, v := range batch {
		if c := (tokenClient{v.User, v.Agent}); t.voids[c] == v.Before {
			delete(t.voids, c)
		}
	}
	return true
}
