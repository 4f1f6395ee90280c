package load

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"muster/cmd/musterbench/client"
	"muster/cmd/musterbench/proc"
	"muster/cmd/musterbench/stat"
	"muster/cmd/musterbench/wire"
	"muster/internal/fault"
)

// Bounds of a login run.
const (
	maxLogins   = 1_000_000
	maxInFlight = 2000 // logins under way in an open loop; a server that falls behind this far has failed
)

// logoutTimeout bounds the wait for a server's closing tag.
const logoutTimeout = 10 * time.Second

// Login is a series of logins, each with a full TLS handshake.
type Login struct {
	Count    int
	Rate     float64       // open loop: logins per second; 0: closed loop with the Env's workers
	Roster   bool          // fetch the contact list
	Presence bool          // become available
	Hold     bool          // keep the sessions: later logins see earlier contacts, and memory is measured
	Settle   time.Duration // with Hold: rest before memory is read
}

// logins is a running Login.
type logins struct {
	Login
	env     *Env
	fleet   *fleet
	latency *stat.Histogram
	done    atomic.Uint64
	errors  atomic.Uint64
	first   atomic.Pointer[error]
}

// Run logs in Count times and measures the server. One operation is a login
// and, without Hold, the logout. Some failed logins are counted; if all fail, that is the error.
func (l Login) Run(ctx context.Context, e *Env) (Result, error) {
	r := Result{Scenario: "login", Unit: "logins", Sessions: l.Count}
	if l.Count < 1 || l.Count > maxLogins {
		return r, fault.New(fault.BadRequest, "load.login", "count", fmt.Sprintf("the number of logins must be 1 to %d", maxLogins))
	}
	if l.Hold {
		r.Scenario = "idle"
		if _, err := e.users(l.Count); err != nil {
			return r, err
		}
	}
	if err := l.tokens(ctx, e); err != nil {
		return r, err
	}
	run := &logins{Login: l, env: e, fleet: &fleet{conns: make([]*client.Conn, l.Count)}, latency: new(stat.Histogram)}
	defer run.fleet.close()
	before, err := memory(e.Tree)
	if err != nil {
		return r, err
	}
	m, err := begin(e.Tree, &run.done)
	if err != nil {
		return r, err
	}
	run.all(ctx)
	if l.Hold {
		if err := run.fleet.quiet(ctx); err != nil {
			return r, err
		}
	}
	if err := m.end(&r); err != nil {
		return r, err
	}
	r.Latency = run.latency.Latency()
	if failure := run.first.Load(); failure != nil {
		e.Log.Warn("login_failed", "failed", run.errors.Load(), "first", *failure)
		if r.Operations == 0 {
			return r, *failure
		}
	}
	if l.Hold {
		r.Memory, err = run.rest(ctx, before, int(r.Operations))
	}
	r.Errors = run.errors.Load() + run.fleet.ended.Load()
	return r, errors.Join(err, ctx.Err())
}

// tokens gets the users their tokens, where they log in with one: that costs a login with the password, which is not measured.
func (l Login) tokens(ctx context.Context, e *Env) error {
	if e.Options.Flow != client.Token || e.isRelay() {
		return nil
	}
	users := e.Target.Users[:min(l.Count, len(e.Target.Users))]
	return parallel(e.Workers, len(users), func(i int) error {
		conn, err := client.Login(ctx, e.options(i, nil), users[i])
		if err != nil {
			return err
		}
		conn.Logout(logoutTimeout)
		if !e.Options.Wallet.Has(users[i]) {
			return fault.New(fault.NotSupported, "load.login", users[i].JID(), "the server gives no token; is FAST (XEP-0484) turned on?")
		}
		return nil
	})
}

// rest lets the server settle and returns what the sessions cost it.
func (run *logins) rest(ctx context.Context, before proc.Memory, sessions int) (*Footprint, error) {
	if err := pause(ctx, run.Settle); err != nil {
		return nil, err
	}
	after, err := memory(run.env.Tree)
	if err != nil || run.env.Tree.Empty() {
		return nil, err
	}
	return footprint(before, after, sessions), nil
}

func memory(tree *proc.Tree) (proc.Memory, error) {
	if tree.Empty() {
		return proc.Memory{}, nil
	}
	return tree.Memory()
}

// all makes the logins, in a closed or an open loop.
func (run *logins) all(ctx context.Context) {
	if run.Rate <= 0 {
		_ = parallel(run.env.Workers, run.Count, func(i int) error {
			run.count(run.one(ctx, i, time.Now()))
			return ctx.Err()
		})
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, maxInFlight)
	interval := time.Duration(float64(time.Second) / run.Rate)
	due := time.Now()
	for i := range run.Count {
		if pause(ctx, time.Until(due)) != nil {
			return
		}
		at := due
		slots <- struct{}{}
		wg.Go(func() {
			run.count(run.one(ctx, i, at))
			<-slots
		})
		due = due.Add(interval)
	}
}

// count books the outcome of one login.
func (run *logins) count(err error) {
	if err != nil {
		run.errors.Add(1)
		run.first.CompareAndSwap(nil, &err)
		return
	}
	run.done.Add(1)
}

// one logs user i in; latency counts from at to the moment when a client could show its window.
func (run *logins) one(ctx context.Context, i int, at time.Time) error {
	users := run.env.Target.Users
	conn, err := client.Login(ctx, run.env.options(i, nil), users[i%len(users)])
	if err != nil {
		return err
	}
	if err := run.arrive(conn); err != nil {
		_ = conn.Close()
		return err
	}
	run.latency.Record(time.Since(at))
	switch {
	case run.Hold:
		run.fleet.serve(i, conn, nil)
	case run.env.isRelay():
		return conn.Close()
	default:
		conn.Logout(logoutTimeout)
	}
	return nil
}

var rosterGet = []byte(`<iq type='get' id='roster'><query xmlns='jabber:iq:roster'/></iq>`)

// arrive fetches the contact list and sends presence.
func (run *logins) arrive(conn *client.Conn) error {
	if run.env.isRelay() {
		return nil
	}
	if run.Roster {
		if _, err := fetchRoster(conn, run.env.Options.Timeout); err != nil {
			return err
		}
	}
	if run.Presence {
		return conn.Send(available)
	}
	return nil
}

// fetchRoster returns the answer to a roster get.
func fetchRoster(conn *client.Conn, timeout time.Duration) ([]byte, error) {
	_ = conn.SetDeadline(time.Now().Add(timeout))
	defer func() { _ = conn.SetDeadline(time.Time{}) }()
	if err := conn.Send(rosterGet); err != nil {
		return nil, err
	}
	return conn.Await(func(frame []byte) bool {
		return wire.Named(frame, "iq") && string(wire.Attr(frame, "id")) == "roster"
	})
}
