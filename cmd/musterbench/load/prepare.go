package load

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"muster/cmd/musterbench/client"
	"muster/cmd/musterbench/target"
	"muster/cmd/musterbench/wire"
	"muster/internal/fault"
)

// befriendDeadline bounds how long the subscriptions of one batch may take.
const befriendDeadline = 120 * time.Second

// Prepare makes accounts and contacts through XMPP itself, so that it works for any server.
type Prepare struct {
	Users    int
	Contacts int  // mutual, on a ring; 0: accounts only
	Register bool // by in-band registration; otherwise the accounts must exist
}

// preparation is a running Prepare.
type preparation struct {
	Prepare
	users   []target.User
	known   []sync.Map     // by user: JIDs of contacts that are subscribed both ways already
	wanted  []atomic.Int64 // by user: approvals that are still to come
	changed atomic.Uint64
	index   map[string]int
}

// Run prepares the target; it may be repeated, and then does only what is missing.
func (p Prepare) Run(ctx context.Context, e *Env) (Result, error) {
	r := Result{Scenario: "prepare", Unit: "subscriptions", Sessions: p.Users}
	users, err := e.users(p.Users)
	if err != nil {
		return r, err
	}
	if p.Register {
		err := parallel(e.Workers, len(users), func(i int) error { return client.Register(ctx, e.options(i, nil), users[i]) })
		if err != nil {
			return r, err
		}
		e.Log.Info("accounts_ready", "users", len(users))
	}
	if p.Contacts == 0 {
		return r, nil
	}
	started := time.Now()
	run := &preparation{Prepare: p, users: users, known: make([]sync.Map, len(users)), wanted: make([]atomic.Int64, len(users)), index: make(map[string]int, len(users))}
	for i, u := range users {
		run.index[u.JID()] = i
	}
	if err := run.survey(ctx, e); err != nil {
		return r, err
	}
	if err := run.befriend(ctx, e); err != nil {
		return r, err
	}
	r.Operations, r.Seconds = run.changed.Load(), time.Since(started).Seconds()
	r.Rate = float64(r.Operations) / r.Seconds
	return r, nil
}

// survey reads all rosters, to leave alone what is there.
func (run *preparation) survey(ctx context.Context, e *Env) error {
	return parallel(e.Workers, len(run.users), func(i int) error {
		conn, err := client.Login(ctx, e.options(i, nil), run.users[i])
		if err != nil {
			return err
		}
		defer conn.Logout(logoutTimeout)
		roster, err := fetchRoster(conn, e.Options.Timeout)
		if err != nil {
			return err
		}
		for _, jid := range mutual(roster) {
			run.known[i].Store(jid, true)
		}
		return nil
	})
}

// mutual returns the JIDs of a roster's items with subscription "both".
func mutual(roster []byte) []string {
	var jids []string
	for rest := roster; ; {
		i := bytes.Index(rest, []byte("<item"))
		if i < 0 {
			return jids
		}
		rest = rest[i:]
		if string(wire.Attr(rest, "subscription")) == "both" {
			jids = append(jids, string(wire.Attr(rest, "jid")))
		}
		rest = rest[len("<item"):]
	}
}

// befriend subscribes everyone to their missing contacts, and approves what comes.
func (run *preparation) befriend(ctx context.Context, e *Env) error {
	f, err := e.assemble(ctx, len(run.users), nil, run.receive)
	if err != nil {
		return err
	}
	defer f.close()
	err = parallel(e.Workers, len(run.users), func(i int) error {
		for _, j := range target.Contacts(i, len(run.users), run.Contacts) {
			jid := run.users[j].JID()
			if _, ok := run.known[i].Load(jid); ok {
				continue
			}
			run.wanted[i].Add(1)
			if err := f.conns[i].Send(fmt.Appendf(nil, `<presence type='subscribe' to='%s'/>`, jid)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if !waitFor(ctx, befriendDeadline, func() bool { return run.missing() == 0 }) {
		return fault.New(fault.Timeout, "load.prepare", "", fmt.Sprintf("%d subscriptions were not approved within two minutes", run.missing()))
	}
	return f.quiet(ctx)
}

// receive approves subscription requests and counts approvals.
func (run *preparation) receive(i int, conn *client.Conn, frame []byte) {
	if !wire.Named(frame, "presence") {
		return
	}
	from := bareOf(wire.Attr(frame, "from"))
	if _, ours := run.index[string(from)]; !ours {
		return
	}
	switch string(wire.Attr(frame, "type")) {
	case "subscribe":
		_ = conn.Send(fmt.Appendf(nil, `<presence type='subscribed' to='%s'/>`, from))
	case "subscribed":
		if _, twice := run.known[i].LoadOrStore(string(from), true); !twice {
			run.wanted[i].Add(-1)
			run.changed.Add(1)
		}
	}
}

func (run *preparation) missing() int64 {
	var sum int64
	for i := range run.wanted {
		sum += run.wanted[i].Load()
	}
	return sum
}

// bareOf cuts the resource off.
func bareOf(jid []byte) []byte {
	bare, _, _ := bytes.Cut(jid, []byte("/"))
	return bare
}
