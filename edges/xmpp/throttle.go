package xmpp

import (
	"time"

	"golang.org/x/time/rate"

	"muster/fsm/config"
)

// throttle holds a client to its rates: what is too much is not read yet.
type throttle struct {
	bytes   *rate.Limiter
	stanzas *rate.Limiter
	counted uint64 // bytes from the wire so far
}

func newThrottle(live *config.Live, counted uint64) *throttle {
	limiter := func(perSecond, burst *config.IntSetting) *rate.Limiter {
		return rate.NewLimiter(rate.Limit(live.Int(perSecond)), int(live.Int(burst)))
	}
	return &throttle{bytes: limiter(setByteRate, setByteBurst), stanzas: limiter(setStanzaRate, setStanzaBurst), counted: counted}
}

// pace counts what arrived on the wire and waits until it was due. TLS makes 23
// bytes of one, which cost as much to handle.
func (st *stream) pace(now time.Time) {
	t := st.throttle
	if t == nil {
		return
	}
	in := st.wire.in.Load()
	if n := min(in-t.counted, uint64(st.run.srv.o.Live.Int(setByteBurst))); n > 0 { // the rest counts next time
		t.counted += n
		st.waitFor(t.bytes, int(n), now, setByteRate, setByteBurst)
	}
}

// paceStanza counts a stanza and waits until it was due.
func (st *stream) paceStanza() {
	if t := st.throttle; t != nil {
		st.waitFor(t.stanzas, 1, time.Now(), setStanzaRate, setStanzaBurst)
	}
}

func (st *stream) waitFor(l *rate.Limiter, n int, now time.Time, perSecond, burst *config.IntSetting) {
	live := st.run.srv.o.Live
	limit, most := rate.Limit(live.Int(perSecond)), int(live.Int(burst))
	if l.Limit() != limit || l.Burst() != most {
		l.SetLimitAt(now, limit)
		l.SetBurstAt(now, most)
	}
	if d := l.ReserveN(now, min(n, most)).DelayFrom(now); d > 0 {
		st.run.srv.counters.throttled.Add(1)
		st.nap(d)
	}
}
