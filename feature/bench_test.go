package feature_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"muster/internal/jid"
	"muster/router"
	"muster/router/stanza"
)

// counter is a client that only counts.
type counter struct {
	n   *atomic.Int64
	end func()
}

func (c *counter) Deliver(*stanza.Packet) error       { c.n.Add(1); return nil }
func (c *counter) End(stanza.StreamCondition, string) { c.end() }

// BenchmarkPresenceFanOut is one user's presence change told to 20 contacts
// who are online; "ns/delivered" is the whole server's work for each of them,
// without XML and TLS.
func BenchmarkPresenceFanOut(b *testing.B) {
	const contacts = 20
	w := newWorld(b)
	defer w.close()
	var n atomic.Int64
	bind := func(user string) *router.Session {
		sink := &counter{n: &n, end: func() {}}
		s, err := w.router.Bind(context.Background(), router.BindRequest{User: jid.MustParse(user + "@" + domain), Resource: "r", Sink: sink, Transport: "bench"})
		if err != nil {
			b.Fatal(err)
		}
		return s
	}
	available := func(s *router.Session, status string) {
		p, err := stanza.ParsePacket(fmt.Appendf(nil, "<presence><show>away</show><status>%s</status><c xmlns='http://jabber.org/protocol/caps' hash='sha-1' node='n' ver='v'/></presence>", status))
		if err != nil {
			b.Fatal(err)
		}
		p.From = s.JID()
		if err := s.Receive(context.Background(), p); err != nil {
			b.Fatal(err)
		}
	}
	subjects := make([]*router.Session, 0, 64)
	for i := range cap(subjects) { // several, so that no one's rate is held back too early
		w.addUser(fmt.Sprint("s", i), false)
	}
	for i := range contacts {
		name := fmt.Sprint("c", i)
		w.addUser(name, false)
		for s := range cap(subjects) {
			for _, e := range subscriptionEntries(name, fmt.Sprint("s", s)) {
				w.must(e)
			}
		}
		available(bind(name), "here")
	}
	for i := range cap(subjects) {
		subjects = append(subjects, bind(fmt.Sprint("s", i)))
	}
	delivered, before := int64(0), n.Load()
	b.ResetTimer()
	for i := range b.N {
		s := subjects[i%len(subjects)]
		if i/len(subjects) >= 10 && i%len(subjects) == 0 && i/len(subjects)%10 == 0 {
			waitQuiet(&n)
			b.StopTimer() // ten presences of each session: let the next window begin with fresh ones
			delivered += n.Load() - before
			for k := range subjects {
				subjects[k].End(true, nil)
			}
			waitFor(b, func() bool { return w.hot.Count() == contacts })
			for k := range subjects {
				subjects[k] = bind(fmt.Sprint("s", k))
			}
			s = subjects[0]
			waitQuiet(&n)
			before = n.Load()
			b.StartTimer()
		}
		available(s, "x")
	}
	waitQuiet(&n)
	b.StopTimer()
	delivered += n.Load() - before
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(delivered), "ns/delivered")
	b.ReportMetric(float64(delivered)/float64(b.N), "delivered/op")
}

func waitFor(b *testing.B, ok func() bool) {
	for deadline := time.Now().Add(5 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			b.Fatal("waited too long")
		}
		time.Sleep(time.Millisecond)
	}
}

// waitQuiet waits until nothing more is delivered.
func waitQuiet(n *atomic.Int64) {
	for last := int64(-1); last != n.Load(); {
		last = n.Load()
		time.Sleep(2 * time.Millisecond)
	}
}
