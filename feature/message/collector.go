package message

import (
	"context"
	"sync"
	"time"

	"muster/feature/message/state"
	"muster/log"
	"muster/router"
)

// Bounds of the collector.
const (
	collectFor  = 50 * time.Millisecond // what nobody waits for gathers so long into one record
	collectSoon = 2 * time.Millisecond  // what a client waits for
	collectMost = 4096                  // messages, or sessions, of one record; of session records a sixteenth
	collectMax  = 1 << 16               // messages that wait; beyond it some are given up, and will be offered again
	collectTry  = 10 * time.Second      // for one record to be written
	collectRest = time.Second           // before the next try
)

// collector gathers what clients have confirmed, the state of sessions and
// which have ended into few records. What is lost with the process is offered
// again, with the same ids.
type collector struct {
	propose proposeFunc

	mu      sync.Mutex
	now     gathered
	timer   *time.Timer // nil: nothing is to be written
	due     time.Time
	writing bool
	stopped bool
}

// gathered is what is to be written.
type gathered struct {
	inboxes  map[inbox][]uint64
	arrivals []inbox // in order of arrival
	numbers  int
	steps    map[uint64]state.Step
	told     []func() // to be called when steps are written
	sessions map[uint64]*log.Entry
	order    []uint64 // of sessions
	ended    []state.Ended
}

// inbox is where messages are that a session's client has.
type inbox struct {
	owner           string
	session, claims uint64
}

func newGathered() gathered {
	return gathered{inboxes: map[inbox][]uint64{}, steps: map[uint64]state.Step{}, sessions: map[uint64]*log.Entry{}}
}

func (g *gathered) empty() bool {
	return len(g.arrivals) == 0 && len(g.steps) == 0 && len(g.order) == 0 && len(g.ended) == 0
}

func newCollector(propose proposeFunc) *collector {
	return &collector{propose: propose, now: newGathered()}
}

// gather lets fn add something, to be written after a while.
func (t *collector) gather(after time.Duration, fn func(g *gathered)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stopped {
		return
	}
	fn(&t.now)
	t.schedule(after)
}

// schedule has what is gathered written. The caller holds mu.
func (t *collector) schedule(after time.Duration) {
	due := time.Now().Add(after)
	switch {
	case t.writing: // writes on when it is done
	case t.timer == nil:
		t.timer, t.due = time.AfterFunc(after, t.write), due
	case due.Before(t.due):
		t.timer.Reset(after)
		t.due = due
	}
}

// add notes that messages wait no longer.
func (t *collector) add(taken router.Taken) {
	t.gather(collectFor, func(g *gathered) {
		if g.numbers+len(taken.Numbers) > collectMax && len(g.arrivals) > 0 {
			g.numbers -= len(g.inboxes[g.arrivals[0]])
			delete(g.inboxes, g.arrivals[0])
			g.arrivals = g.arrivals[1:]
		}
		g.take(inbox{taken.User.String(), taken.Session, taken.Claims}, taken.Numbers)
	})
}

// take adds messages that wait no longer.
func (g *gathered) take(in inbox, numbers []uint64) {
	if _, known := g.inboxes[in]; !known {
		g.arrivals = append(g.arrivals, in)
	}
	g.inboxes[in] = append(g.inboxes[in], numbers...)
	g.numbers += len(numbers)
}

// confirm has it written how far a session's input is handled, and calls done then.
func (t *collector) confirm(s state.Step, done func()) {
	t.gather(collectSoon, func(g *gathered) {
		g.steps[s.Session] = sum(g.steps[s.Session], s)
		g.told = append(g.told, done)
	})
}

// record has a session's state written in place of its earlier one.
func (t *collector) record(session uint64, e *log.Entry) {
	t.gather(collectSoon, func(g *gathered) {
		if g.sessions[session] == nil {
			g.order = append(g.order, session)
		}
		g.sessions[session] = e
	})
}

// sum is two steps of a session, one after the other, as one: input is numbered anew with each claim. Either may be none yet.
func sum(first, then state.Step) state.Step {
	switch {
	case then.Session == 0 || first.Claims > then.Claims:
		return first
	case first.Claims == then.Claims:
		then.Confirmed = max(first.Confirmed, then.Confirmed)
		if !then.Told {
			then.Told, then.Refusals = first.Told, first.Refusals
		}
	}
	return then
}

// forget notes that a session has ended.
func (t *collector) forget(session, claims uint64) {
	t.gather(collectFor, func(g *gathered) {
		if len(g.ended) < collectMax {
			g.ended = append(g.ended, state.Ended{Session: session, Claims: claims})
		}
	})
}

// write writes until nothing is left.
func (t *collector) write() {
	for t.writeOnce(collectTry) {
	}
}

// writeOnce writes one record; false: nothing is left, or the log does not take it now.
func (t *collector) writeOnce(most time.Duration) bool {
	t.mu.Lock()
	if t.writing || t.now.empty() {
		t.timer = nil
		t.mu.Unlock()
		return false
	}
	t.writing = true
	batch := t.now.part()
	t.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), most)
	defer cancel()
	_, err := t.propose(ctx, batch.entries()...)
	if err == nil {
		for _, done := range batch.told {
			done()
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.writing = false
	if err == nil {
		return true
	}
	t.now.putBack(&batch)
	if t.timer = nil; !t.stopped {
		t.schedule(collectRest)
	}
	return false
}

// part removes what one record may hold.
func (g *gathered) part() gathered {
	out := *g
	*g = newGathered()
	taken := 0
	for i, in := range out.arrivals {
		if taken += len(out.inboxes[in]); taken > collectMost && i > 0 {
			for _, later := range out.arrivals[i:] {
				g.take(later, out.inboxes[later])
			}
			out.arrivals = out.arrivals[:i]
			break
		}
	}
	if most := collectMost / 16; len(out.order) > most {
		for _, id := range out.order[most:] {
			g.sessions[id] = out.sessions[id]
		}
		g.order, out.order = out.order[most:], out.order[:most:most]
	}
	if len(out.ended) > collectMost {
		g.ended, out.ended = out.ended[collectMost:], out.ended[:collectMost:collectMost]
	}
	return out
}

// entries is what is gathered as a record: states of sessions first, since steps are only of sessions on record.
func (g *gathered) entries() (out []*log.Entry) {
	for _, id := range g.order {
		out = append(out, g.sessions[id])
	}
	if len(g.arrivals) > 0 || len(g.steps) > 0 {
		taken := make([]state.Taken, 0, len(g.arrivals))
		for _, in := range g.arrivals {
			taken = append(taken, state.Taken{Owner: in.owner, Session: in.session, Claims: in.claims, Numbers: g.inboxes[in]})
		}
		steps := make([]state.Step, 0, len(g.steps))
		for _, s := range g.steps {
			steps = append(steps, s)
		}
		out = append(out, state.TakenEntry(taken, steps))
	}
	if len(g.ended) > 0 {
		out = append(out, state.ForgetEntry(g.ended...))
	}
	return out
}

// putBack takes in again what could not be written; what came since is newer.
func (g *gathered) putBack(old *gathered) {
	for _, in := range old.arrivals {
		g.take(in, old.inboxes[in])
	}
	for id, step := range old.steps {
		g.steps[id] = sum(step, g.steps[id])
	}
	g.told = append(old.told, g.told...)
	for _, id := range old.order {
		if g.sessions[id] == nil {
			g.sessions[id] = old.sessions[id]
			g.order = append(g.order, id)
		}
	}
	g.ended = append(old.ended, g.ended...)
}

// stop writes what is left, as far as the time allows.
func (t *collector) stop(ctx context.Context) {
	until := time.Now().Add(flushTime)
	if end, ok := ctx.Deadline(); ok && end.Before(until) {
		until = end
	}
	for time.Now().Before(until) {
		t.mu.Lock()
		idle := t.now.empty() && !t.writing
		t.mu.Unlock()
		if idle || !t.writeOnce(time.Until(until)) && idle {
			break
		}
		time.Sleep(time.Millisecond) // a write that is under way
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopped = true
}
