// Package load holds the scenarios of the load generator.
//
// Each scenario (login and idle, herd, chat, presence, prepare) takes an Env, which
// says what to connect to and what to measure, and returns a Result. The
// subcommands of musterbench are the only callers. Scenarios run in bounded
// time, count every stanza that they expect, and report a missing one as an
// error: a fast server that loses messages does not look fast.
package load

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"muster/cmd/musterbench/client"
	"muster/cmd/musterbench/proc"
	"muster/cmd/musterbench/target"
	"muster/cmd/musterbench/wire"
	"muster/internal/fault"
)

// Bounds on what a run may ask for.
const (
	maxWorkers = 1024
	maxSources = 250 // 127.0.0.2 to 127.0.0.251
)

// How long a scenario waits for the server to come to rest.
const (
	quietFor      = 400 * time.Millisecond // no stanza for so long is rest
	quietDeadline = 60 * time.Second
)

// pollEvery is how often rest and progress are looked at.
const pollEvery = 50 * time.Millisecond

// Env is what every scenario needs.
type Env struct {
	Target  *target.Target
	Options client.Options // Address is filled in for each connection
	Tree    *proc.Tree     // the server's processes; empty means that nothing of them is reported
	Workers int            // logins under way at once
	Sources int            // how many loopback addresses connections come from; 0: the kernel's choice
	Drain   time.Duration  // how long stanzas may be under way after the clock stops before they count as lost
	Log     *slog.Logger
}

// Check rejects settings that cannot work, with the remedy.
func (e *Env) Check() error {
	switch {
	case len(e.Target.Nodes) == 0 || len(e.Target.Users) == 0:
		return fault.New(fault.BadRequest, "load.check", "", "give a target: --cluster FILE, or --address with --users")
	case e.Workers < 1 || e.Workers > maxWorkers:
		return fault.New(fault.BadRequest, "load.check", "workers", fmt.Sprintf("the number of workers must be 1 to %d", maxWorkers))
	case e.Sources < 0 || e.Sources > maxSources:
		return fault.New(fault.BadRequest, "load.check", "sources", fmt.Sprintf("the number of source addresses must be 0 to %d", maxSources))
	}
	for _, n := range e.Target.Nodes {
		if e.address(n) == "" {
			return fault.New(fault.BadRequest, "load.check", n.Name, "the node has no address for the chosen transport")
		}
	}
	return nil
}

// address returns where the chosen transport is spoken.
func (e *Env) address(n target.Node) string {
	if e.Options.Transport == client.StartTLS {
		return n.StartTLS
	}
	return n.DirectTLS
}

// options returns how connection i logs in: nodes and source addresses take turns.
func (e *Env) options(i int, partners []string) client.Options {
	o := e.Options
	o.Address = e.address(e.Target.Nodes[i%len(e.Target.Nodes)])
	o.Partners = partners
	if e.Sources > 0 {
		o.Source = net.IPv4(127, 0, 0, byte(2+i%e.Sources))
	}
	return o
}

// isRelay reports whether the target speaks the relay's protocol, which has neither rosters nor presence.
func (e *Env) isRelay() bool { return e.Options.Transport == client.Relay }

// users returns the first n users of the target.
func (e *Env) users(n int) ([]target.User, error) {
	if n > len(e.Target.Users) {
		return nil, fault.New(fault.BadRequest, "load.users", "", fmt.Sprintf("the scenario needs %d users, the target has %d", n, len(e.Target.Users)))
	}
	return e.Target.Users[:n], nil
}

// fleet is a set of sessions that are logged in and read.
type fleet struct {
	conns  []*client.Conn
	frames atomic.Uint64 // received by all sessions
	ended  atomic.Uint64 // sessions that ended though nobody closed them
	closed atomic.Bool
	wg     sync.WaitGroup
}

// handler gets the frames of session i. It is called from that session's goroutine.
type handler func(i int, conn *client.Conn, frame []byte)

// assemble logs n users in, sends their presence and serves them with handle.
func (e *Env) assemble(ctx context.Context, n int, partners func(i int) []string, handle handler) (*fleet, error) {
	users, err := e.users(n)
	if err != nil {
		return nil, err
	}
	f := &fleet{conns: make([]*client.Conn, n)}
	err = parallel(e.Workers, n, func(i int) error {
		var names []string
		if partners != nil {
			names = partners(i)
		}
		conn, err := client.Login(ctx, e.options(i, names), users[i])
		if err != nil {
			return err
		}
		f.serve(i, conn, handle)
		if e.isRelay() {
			return nil
		}
		return conn.Send(available)
	})
	if err != nil {
		f.close()
		return nil, err
	}
	e.Log.Info("sessions_open", "sessions", n)
	return f, f.quiet(ctx)
}

var available = []byte(`<presence/>`)

// serve reads a session until it ends.
func (f *fleet) serve(i int, conn *client.Conn, handle handler) {
	f.conns[i] = conn
	f.wg.Go(func() {
		_ = conn.Serve(func(frame []byte) {
			f.frames.Add(1)
			if !pong(conn, frame) && handle != nil {
				handle(i, conn, frame)
			}
		})
		if !f.closed.Load() {
			f.ended.Add(1)
		}
	})
}

// pong answers a server's ping (XEP-0199), so that long runs are not cut off.
func pong(conn *client.Conn, frame []byte) bool {
	if !wire.Named(frame, "iq") || string(wire.Attr(frame, "type")) != "get" {
		return false
	}
	answer := fmt.Sprintf(`<iq type='result' id='%s' to='%s'/>`, wire.Attr(frame, "id"), wire.Attr(frame, "from"))
	_ = conn.Send([]byte(answer)) // a broken connection shows in its reader
	return true
}

// quiet waits until no session has received anything for a while.
func (f *fleet) quiet(ctx context.Context) error {
	deadline := time.Now().Add(quietDeadline)
	last, since := f.frames.Load(), time.Now()
	for time.Since(since) < quietFor {
		if err := pause(ctx, pollEvery); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fault.New(fault.Timeout, "load.quiet", "", "the server does not come to rest within a minute")
		}
		if now := f.frames.Load(); now != last {
			last, since = now, time.Now()
		}
	}
	return nil
}

// close ends all sessions and waits for their readers.
func (f *fleet) close() {
	f.closed.Store(true)
	for _, conn := range f.conns {
		if conn != nil {
			_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
			_ = conn.Send([]byte(`</stream:stream>`))
			_ = conn.Close()
		}
	}
	f.wg.Wait()
}

// parallel calls do(0..n-1) from a number of workers. It stops early at the first error and returns it.
func parallel(workers, n int, do func(i int) error) error {
	var next atomic.Int64
	var once sync.Once
	var failed atomic.Bool
	var first error
	var wg sync.WaitGroup
	for range min(workers, n) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && !failed.Load(); i = int(next.Add(1)) - 1 {
				if err := do(i); err != nil {
					once.Do(func() { first = err })
					failed.Store(true)
				}
			}
		})
	}
	wg.Wait()
	return first
}

// pause waits for d, or less if ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return fault.Wrap(ctx.Err(), fault.Timeout, "load.pause", "")
	}
}

// waitFor polls until done or the deadline, and reports which.
func waitFor(ctx context.Context, limit time.Duration, done func() bool) bool {
	deadline := time.Now().Add(limit)
	for !done() {
		if time.Now().After(deadline) || pause(ctx, pollEvery) != nil {
			return done()
		}
	}
	return true
}
