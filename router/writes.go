package router

import (
	"context"
	"slices"
	"sync"
	"time"

	"muster/fsm"
	"muster/internal/fault"
	"muster/internal/jid"
	"muster/log"
)

// Bounds of writing.
const (
	writesAtOnce = 4                      // records under way; meanwhile what is to be written gathers
	writeSlow    = 50 * time.Millisecond  // after which another one is begun all the same: nobody waits for the patience of others
	writeMost    = 64                     // entries of one record
	writePause   = 100 * time.Millisecond // before what is in doubt is written again

	doubtPatience = 10 * time.Second // of a client whose input is in doubt, with a node that is cut off
)

// write is an entry that an actor has to write to the message log.
type write struct {
	c     *Ctx
	from  jid.JID
	entry *log.Entry
	done  func(c *Ctx, res fsm.Result)
	input uint64 // of the session, so that a second one is known for a repeat; 0: it comes from no input
	doubt bool   // it may stand in the log, or come to stand there, whatever a proposal says
}

// writes gathers what actors have to write to the message log into records, and
// brings them the outcomes. What may have been written is written again until
// the log says what came of it: no sender is told that a message failed which
// is delivered later.
type writes struct {
	r     *Router
	wake  chan struct{} // buffered
	slots chan struct{}

	mu      sync.Mutex
	waiting []*write
}

func newWrites(r *Router) *writes {
	return &writes{r: r, wake: make(chan struct{}, 1), slots: make(chan struct{}, writesAtOnce)}
}

// add has an entry written; it never blocks. Each session has one under way at a time, so that sessions bound what waits.
func (ws *writes) add(w *write) {
	ws.mu.Lock()
	ws.waiting = append(ws.waiting, w)
	ws.mu.Unlock()
	select {
	case ws.wake <- struct{}{}:
	default:
	}
}

// take removes what one record may hold.
func (ws *writes) take() []*write {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	n := min(len(ws.waiting), writeMost)
	batch := slices.Clone(ws.waiting[:n])
	ws.waiting = slices.Delete(ws.waiting, 0, n)
	return batch
}

// run has what waits written until the router stops.
func (ws *writes) run() {
	for {
		select {
		case <-ws.wake:
		case <-ws.r.ctx.Done():
			return
		}
		for ws.next() {
		}
	}
}

// next begins a record; false: nothing waits, or the router stops.
func (ws *writes) next() bool {
	ws.mu.Lock()
	none := len(ws.waiting) == 0
	ws.mu.Unlock()
	if none {
		return false
	}
	free := func() {}
	slow := time.NewTimer(writeSlow)
	defer slow.Stop()
	select {
	case ws.slots <- struct{}{}:
		free = func() { <-ws.slots }
	case <-slow.C:
	case <-ws.r.ctx.Done():
		return false
	}
	batch := ws.take()
	go func() {
		left := ws.try(batch)
		free()
		for len(left) > 0 && ws.pause() {
			left = ws.try(left)
		}
	}()
	return true
}

func (ws *writes) pause() bool {
	t := time.NewTimer(writePause)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ws.r.ctx.Done():
		return false
	}
}

// try proposes a record and returns what is in doubt after it.
func (ws *writes) try(batch []*write) (left []*write) {
	entries := make([]*log.Entry, len(batch))
	for i, w := range batch {
		entries[i] = w.entry
	}
	var results []fsm.Result
	err := guarded(ws.r.ctx, func(ctx context.Context) (err error) {
		results, err = ws.r.keeper.Propose(ctx, entries...)
		return err
	})
	if err != nil && ws.r.ctx.Err() != nil {
		return nil // the process ends; whose session goes on elsewhere proposes there again
	}
	for i, w := range batch {
		switch {
		case err == nil:
			w.end(results[i])
		case w.undecided(err):
			left = append(left, w)
		default:
			w.end(fsm.Result{Err: err})
		}
	}
	return left
}

// undecided reports whether an entry whose proposal failed is to be proposed
// again: it may have been written, and its actor is still responsible for it.
func (w *write) undecided(err error) bool {
	if !w.doubt && fault.Is(err, fault.Timeout) {
		w.doubted()
	}
	if !w.doubt || w.input == 0 || !fault.CodeOf(err).Retryable() {
		return false
	}
	w.c.Actor.mu.Lock()
	defer w.c.Actor.mu.Unlock()
	return !w.c.Actor.dead // else the next home proposes it
}

// doubted notes that an entry may stand in the log, or come to stand there.
func (w *write) doubted() {
	w.doubt = true
	if w.input != 0 {
		w.c.Actor.limitDoubt(w.c.Session, w.input)
	}
}

// limitDoubt disconnects the client of an input that stays in doubt while this node is cut off: all that it sends
// waits behind that input, and other nodes may know the outcome. On a node that is not cut off nothing is gained
// by that: wherever the client went, the same home would be asked.
func (a *Actor) limitDoubt(at *Attached, input uint64) {
	time.AfterFunc(doubtPatience, func() {
		a.post(event{call: func(a *Actor) {
			if at.gone || at.current != input || a.r.ctx.Err() != nil {
				return
			}
			if a.ReadOnly() && at.session != nil {
				at.session.disconnect()
			}
			a.limitDoubt(at, input)
		}})
	})
}

// end brings the outcome to the actor.
func (w *write) end(res fsm.Result) {
	a := w.c.Actor
	done := func(c *Ctx, _ error) { w.done(c, res) }
	if a.insist(event{call: func(a *Actor) { a.finished(w.c, w.from, done, nil) }}) {
		a.runHere()
	}
}
