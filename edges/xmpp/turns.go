package xmpp

import (
	"sync"
	"time"
)

// Logins take turns (admission control). When a node dies, thousands of clients come to the others at once. Each
// wants a TLS handshake and a login, which together cost a millisecond or two of a core; if all were served at once,
// all would be done only at the end, most after their clients had given up, and the sessions that exist would
// wait behind them. So only as many streams work towards a session at one time as there are cores for it. One
// that has finished its handshake goes before all that have not: what was begun is finished. A stream holds
// its turn only while there is something to do for it, never while its client or the cluster has the word, so that
// a slow client is in nobody's way.

// turns is the turnstile of a run.
type turns struct {
	mu      sync.Mutex
	busy    int        // turns that are taken
	begun   []*waiting // whose handshake has begun; they go first
	fresh   []*waiting // whose handshake has not begun, the longest waiting first
	queued  int        // of fresh: those that have not given up
	stopped bool
}

// waiting is a stream that waits for its turn.
type waiting struct {
	granted chan struct{}
	gone    bool // it has given up; guarded by mu
}

// turnLimits are the settings that the turnstile applies.
type turnLimits struct {
	turns int           // at once
	queue int           // streams that wait for their handshake
	wait  time.Duration // that such a stream waits
}

// turnOutcome is what comes of waiting for a turn.
type turnOutcome uint8

const (
	turnGranted turnOutcome = iota
	turnRefused             // too many wait
	turnExpired             // it waited for too long
	turnStopped             // the server stops
)

// enter takes a turn, or waits for one. The first turn of a stream is its handshake's; it waits in the bounded queue.
func (t *turns) enter(first bool, l turnLimits) turnOutcome {
	t.mu.Lock()
	switch {
	case t.stopped:
		t.mu.Unlock()
		return turnStopped
	case t.busy < l.turns && len(t.begun) == 0 && (!first || t.queued == 0):
		t.busy++
		t.mu.Unlock()
		return turnGranted
	case first && t.queued >= l.queue:
		t.mu.Unlock()
		return turnRefused
	}
	w := &waiting{granted: make(chan struct{})}
	if !first {
		t.begun = append(t.begun, w)
		t.mu.Unlock()
		return t.await(w, nil)
	}
	t.fresh = append(t.fresh, w)
	t.queued++
	t.mu.Unlock()
	patience := time.NewTimer(l.wait)
	defer patience.Stop()
	return t.await(w, patience.C)
}

func (t *turns) await(w *waiting, expired <-chan time.Time) turnOutcome {
	select {
	case <-w.granted:
	case <-expired:
		t.mu.Lock()
		defer t.mu.Unlock()
		select {
		case <-w.granted: // just now
		default:
			w.gone = true
			t.queued--
			return turnExpired
		}
		if t.stopped {
			return turnStopped
		}
		return turnGranted
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stopped {
		return turnStopped
	}
	return turnGranted
}

// leave gives a turn back; who waits gets it, if no more than most are taken.
func (t *turns) leave(most int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.busy--
	for t.busy < most {
		w := t.next()
		if w == nil {
			return
		}
		t.busy++
		close(w.granted)
	}
}

// next takes the stream whose turn it is out of its queue; nil if none waits. mu is held.
func (t *turns) next() (w *waiting) {
	if len(t.begun) > 0 {
		w, t.begun = t.begun[0], t.begun[1:]
		return w
	}
	for len(t.fresh) > 0 {
		if w, t.fresh = t.fresh[0], t.fresh[1:]; !w.gone {
			t.queued--
			return w
		}
	}
	return nil
}

// stop sends all away who wait, and all who come.
func (t *turns) stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopped = true
	for w := t.next(); w != nil; w = t.next() {
		close(w.granted)
	}
}

// waitingNow returns how many streams wait for their handshake.
func (t *turns) waitingNow() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.queued
}

// busyNow returns how many turns are taken.
func (t *turns) busyNow() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.busy
}

// full reports whether a stream that came now would be refused.
func (t *turns) full(l turnLimits) bool { return t.waitingNow() >= l.queue }

// turn is a stream's part in it, from the beginning of the TLS handshake until a session is bound. Only the
// goroutine that handles the stream's input uses it.
type turn struct {
	st    *stream
	held  bool
	begun bool
}

// limits returns what the settings say now.
func (r *run) turnLimits() turnLimits {
	live := r.srv.o.Live
	return turnLimits{turns: max(1, cores()*int(live.Int(setLoginShare))/100), queue: int(live.Int(setLoginQueue)), wait: live.Duration(setLoginWait)}
}

// take waits for the stream's turn now that its client has sent something. False: it gets none, and the connection is over.
func (t *turn) take() bool {
	if t.held {
		return true
	}
	st, limits, first := t.st, t.st.run.turnLimits(), !t.begun
	came := time.Now()
	if first {
		t.begun = true
		st.postpone(came.Add(limits.wait + st.run.srv.o.Live.Duration(setHeaderTimeout)))
	}
	switch st.run.turns.enter(first, limits) {
	case turnGranted:
	case turnRefused:
		st.run.srv.counters.refuse(refusedQueue)
		return false
	case turnExpired:
		st.run.srv.counters.refuse(refusedWait)
		return false
	default:
		return false
	}
	t.held = true
	if !first {
		return true
	}
	now := time.Now()
	if now.Sub(came) > hangUpAfter && st.wire.hungUp() {
		st.run.srv.counters.refuse(refusedGone)
		t.drop()
		return false
	}
	st.began = now // its time runs from here
	st.postpone(now.Add(st.run.srv.o.Live.Duration(setHeaderTimeout)))
	return true
}

// drop gives the turn back: the client or the cluster has the word.
func (t *turn) drop() {
	if t != nil && t.held {
		t.held = false
		t.st.run.turns.leave(t.st.run.turnLimits().turns)
	}
}

// postpone moves the deadline of a stream that is not ending.
func (st *stream) postpone(to time.Time) {
	if due := st.deadline.Load(); !st.ending.Load() {
		st.deadline.CompareAndSwap(due, to.UnixNano())
	}
}

// yield gives the stream's turn back before it waits for something; what its client sends next takes one again.
func (st *stream) yield() { st.wire.turn.drop() }

// graduate ends the stream's part in the turns: it has a session.
func (st *stream) graduate() {
	st.wire.turn.drop()
	st.wire.turn = nil
}
