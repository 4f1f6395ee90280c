package router

import (
	"context"
	"fmt"
	"time"

	"muster/fsm"
	"muster/internal/fault"
	"muster/internal/jid"
	"muster/log"
)

// Ctx is what a handler runs with: the actor, and the session that the event is about.
type Ctx struct {
	*Actor
	Session *Attached // the own session that sent, bound or ended; nil if the event is not from one
}

// Own reports whether the event is from one of the user's own sessions.
func (c *Ctx) Own() bool { return c.Session != nil }

// Propose writes entries to the control log and runs done in the actor with
// the result of the first failed entry, or else of the last. It fills Node,
// Actor, Surface, Time and Key where they are empty. The session's input waits
// until done has run; other events of the actor go on. An error of the proposal
// itself (NoQuorum, Timeout, …) is in res.Err. If the user's home moves
// meanwhile, done is not run: the new home handles the session's stanza again,
// with the same keys, so that the log knows the entries.
func (c *Ctx) Propose(done func(c *Ctx, res fsm.Result), entries ...*log.Entry) {
	a := c.Actor
	now := time.Now()
	for _, e := range entries {
		a.stamp(c.Session, e, now)
		if at := c.Session; e.Key == "" && at != nil {
			at.ordinal++
			e.Key = fmt.Sprintf("x%x.%d.%x.%d", at.ID, at.claims, at.current, at.ordinal)
		}
	}
	var res fsm.Result
	work := func(ctx context.Context) error {
		results, err := a.r.proposer.Propose(ctx, entries...)
		if err != nil {
			return err
		}
		for _, res = range results {
			if res.Err != nil {
				break
			}
		}
		return nil
	}
	if a.ReadOnly() {
		work = func(context.Context) error { return isolatedFault("log.propose", a.user) }
	}
	c.Async(work, func(c *Ctx, err error) {
		if err != nil {
			res = fsm.Result{Err: err}
		}
		done(c, res)
	})
}

func (a *Actor) stamp(at *Attached, e *log.Entry, now time.Time) {
	if e.Node == 0 {
		e.Node = a.r.node
	}
	if e.Actor == "" {
		e.Actor = a.user.String()
		if at == nil && !a.from.IsZero() {
			e.Actor = a.from.Bare().String()
		}
	}
	if e.Surface == "" {
		e.Surface = "xmpp"
	}
	if e.Time.IsZero() {
		e.Time = now
	}
}

// ProposeMessage is Propose for an entry of the message log, whose kinds need no
// key. A proposal of a session's input that may have been written is repeated
// until the log says what came of it: then res.Err is never in doubt.
func (c *Ctx) ProposeMessage(done func(c *Ctx, res fsm.Result), e *log.Entry) {
	a, at := c.Actor, c.Session
	a.stamp(at, e, time.Now())
	var input uint64
	if at != nil {
		input = at.current
	}
	doubt := input != 0 && input <= at.sent
	switch {
	case a.ReadOnly() && !doubt:
		done(c, fsm.Result{Err: isolatedFault("message.propose", a.user)})
	case a.crowded():
		done(c, fsm.Result{Err: errCrowded(a)})
	default:
		a.await(at)
		w := &write{c: c, from: a.from, entry: e, done: done, input: input}
		if doubt {
			w.doubted()
		}
		a.r.writes.add(w)
	}
}

// Async runs work outside the actor and then done in the actor. The session's
// input waits until done has run; done is not run if the user's home has moved
// meanwhile. work's context ends after ten seconds.
func (c *Ctx) Async(work func(ctx context.Context) error, done func(c *Ctx, err error)) {
	a := c.Actor
	if a.crowded() {
		done(c, errCrowded(a))
		return
	}
	a.await(c.Session)
	from := a.from
	go func() {
		ctx, cancel := context.WithTimeout(a.r.ctx, proposeTimeout)
		err := guarded(ctx, work)
		cancel()
		a.finish(func(a *Actor) { a.finished(c, from, done, err) })
	}()
}

// crowded reports whether the actor waits for as much as it may.
func (a *Actor) crowded() bool { return a.pending >= maxOutstanding }

func errCrowded(a *Actor) error {
	return fault.New(fault.Overloaded, "actor.async", a.user.String(), "too much is under way for this user; try again")
}

// await counts something that the actor waits for, and holds the session's input; finished ends it.
func (a *Actor) await(at *Attached) {
	a.pending++
	a.busy.Add(1)
	if at != nil {
		at.held++
	}
	a.r.count.async.Add(1)
}

// guarded turns a panic of work into an error.
func guarded(ctx context.Context, work func(context.Context) error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fault.New(fault.Internal, "actor.async", "", fmt.Sprint(v))
		}
	}()
	return work(ctx)
}

// finish posts the end of something that the actor waits for; it is never refused for a full mailbox.
func (a *Actor) finish(fn func(*Actor)) {
	if a.insist(event{call: fn}) {
		a.r.start(a)
	}
}

// insist queues an event although the mailbox is full, or the actor has moved and
// is still busy. start: the caller sees to it that the actor runs.
func (a *Actor) insist(e event) (start bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.dead && !a.running {
		return false
	}
	a.queue = append(a.queue, e)
	start = !a.running
	a.running = true
	return start
}

func (a *Actor) finished(c *Ctx, from jid.JID, done func(*Ctx, error), err error) {
	a.pending--
	a.busy.Add(-1)
	if a.moved {
		return
	}
	at := c.Session
	if at != nil {
		defer a.release(at)
		if at.detached || at.replaced {
			return // the input is handled again, and its outcome told then
		}
	}
	a.from, a.sender = from, at
	defer func() { a.sender = nil }()
	done(c, err)
}

func isolatedFault(op string, user jid.JID) error {
	return fault.New(fault.NoQuorum, op, user.String(), "this server is cut off from the cluster; try again later")
}
