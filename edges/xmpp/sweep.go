package xmpp

import (
	"sync"
	"time"

	"muster/router/stanza"
)

// Intervals of the sweeper, which keeps all time limits: connections hold no timers.
const (
	sweepEvery  = time.Second
	sweepFast   = 50 * time.Millisecond // where a time limit is set below a second
	forgetEvery = 30 * time.Second      // address and failure counts
)

// streamShards spreads the lock of the set of streams.
const streamShards = 16

// streamSet is the streams of a run.
type streamSet struct {
	shards [streamShards]struct {
		mu   sync.Mutex
		list []*stream
		gone traffic // of the streams that have been removed
	}
}

// traffic is bytes on the wire, TLS included.
type traffic struct{ in, out int64 }

func (t *traffic) add(w *wire) {
	t.in += int64(w.in.Load())
	t.out += int64(w.out.Load())
}

// carried returns the bytes of all streams, those that have been removed included.
func (s *streamSet) carried() (in, out int64) {
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		sum := sh.gone
		for _, st := range sh.list {
			sum.add(st.wire)
		}
		sh.mu.Unlock()
		in, out = in+sum.in, out+sum.out
	}
	return in, out
}

func newStreamSet() *streamSet { return &streamSet{} }

func (s *streamSet) add(st *stream) {
	sh := &s.shards[st.shard]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	st.index = len(sh.list)
	sh.list = append(sh.list, st)
}

func (s *streamSet) remove(st *stream) {
	sh := &s.shards[st.shard]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.gone.add(st.wire)
	last := len(sh.list) - 1
	sh.list[st.index] = sh.list[last]
	sh.list[st.index].index = st.index
	sh.list[last] = nil
	sh.list = sh.list[:last]
}

// each calls fn, which must not wait, for every stream.
func (s *streamSet) each(fn func(*stream)) {
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		for _, st := range sh.list {
			fn(st)
		}
		sh.mu.Unlock()
	}
}

func (s *streamSet) all() []*stream {
	var out []*stream
	s.each(func(st *stream) { out = append(out, st) })
	return out
}

func (s *streamSet) count() int {
	n := 0
	for i := range s.shards {
		sh := &s.shards[i]
		sh.mu.Lock()
		n += len(sh.list)
		sh.mu.Unlock()
	}
	return n
}

// sweep keeps the time limits until the run ends.
func (r *run) sweep() {
	tick := time.NewTicker(r.interval())
	defer tick.Stop()
	forgotten := time.Now()
	for {
		select {
		case <-r.ctx.Done():
			return
		case now := <-tick.C:
			r.sweepOnce(now)
			if now.Sub(forgotten) > forgetEvery {
				forgotten = now
				r.gate.sweep(now)
				r.srv.guard.sweep()
				r.srv.workers.sweep(now)
			}
			tick.Reset(r.interval())
		}
	}
}

// interval is shorter where time limits are.
func (r *run) interval() time.Duration {
	live := r.srv.o.Live
	if min(live.Duration(setHeaderTimeout), live.Duration(setLoginTimeout), live.Duration(setProbeTimeout), live.Duration(setIdleTimeout)) < 2*sweepEvery {
		return sweepFast
	}
	return sweepEvery
}

// patience are the time limits of one sweep.
type patience struct {
	now         time.Time
	idle, probe time.Duration
}

func (r *run) sweepOnce(now time.Time) {
	live := r.srv.o.Live
	p := patience{now: now, idle: live.Duration(setIdleTimeout), probe: live.Duration(setProbeTimeout)}
	r.streams.each(func(st *stream) { st.check(p) })
	for _, s := range r.resumable.all() {
		if s.expired(now) {
			go s.end(false)
		}
	}
}

func passed(at int64, d time.Duration, now time.Time) bool {
	return at != 0 && now.UnixNano()-at > int64(d)
}

// check applies the time limits to a stream. It does not wait.
func (st *stream) check(p patience) {
	switch {
	case passed(st.deadline.Load(), 0, p.now):
		if st.ending.Load() {
			st.kill()
			return
		}
		go st.end(stanza.StreamConnectionTimeout, "too slow", nil)
	case st.ending.Load():
	case passed(st.partial.Load(), partialTimeout, p.now):
		go st.end(stanza.StreamPolicyViolation, "a stanza took too long to arrive", nil)
	case passed(st.asked.Load(), p.probe, p.now):
		st.kill() // lost: its session may be resumed
	case st.sess.Load() != nil:
		st.sess.Load().probe(st, passed(st.heard.Load(), p.idle, p.now), p.now)
	}
}

// probe asks the client for an acknowledgement where one is due, or whether it is still there.
func (s *session) probe(st *stream, silent bool, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.st != st || s.over {
		return
	}
	switch {
	case s.sm != nil && (silent && st.asked.Load() == 0 || !s.sm.asked && len(s.sm.unacked) > 0):
		s.pending = append(s.pending, item{raw: s.sm.ask(st)})
	case silent && st.asked.Load() == 0:
		st.asked.Store(now.UnixNano())
		s.pending = append(s.pending, item{raw: s.ping()})
	default:
		return
	}
	s.kick()
}

// ping asks for a sign of life (XEP-0199).
func (s *session) ping() []byte {
	return []byte(`<iq from="` + s.full.Domain + `" type="get" id="alive"><ping xmlns="` + stanza.NSPing + `"/></iq>`)
}
