package router

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"muster/internal/jid"
	"muster/router/stanza"
)

// counting is a sink that counts.
type counting struct{ n *atomic.Int64 }

// Deliver implements Sink.
func (c counting) Deliver(*stanza.Packet) error { c.n.Add(1); return nil }

// End implements Sink.
func (c counting) End(stanza.StreamCondition, string) {}

func benchBind(b *testing.B, r *Router, name string, n *atomic.Int64) *Session {
	b.Helper()
	s, err := r.Bind(context.Background(), BindRequest{User: addr(name), Resource: "r", Sink: counting{n}})
	if err != nil {
		b.Fatal(err)
	}
	p := presence("", 0)
	p.From = s.JID()
	if err := s.Receive(context.Background(), p); err != nil {
		b.Fatal(err)
	}
	return s
}

func (g *rig) stopBench() {
	for _, n := range g.nodes {
		n.dead.Store(true)
		n.halt()
	}
}

func reached(b *testing.B, n *atomic.Int64, want int64) {
	b.Helper()
	for deadline := time.Now().Add(30 * time.Second); n.Load() < want; runtime.Gosched() {
		if time.Now().After(deadline) {
			b.Fatalf("%d of %d delivered", n.Load(), want)
		}
	}
}

func chat300(from, to jid.JID) *stanza.Packet {
	inner := stanza.NewBuilder("").TextElement("body", "", strings.Repeat("x", 220)).Bytes()
	return stanza.WithInner(stanza.KindMessage, stanza.TypeChat, "id", from, to, inner)
}

// BenchmarkRouteLocal is one 300-byte message from a session through both actors to a session of the same node.
func BenchmarkRouteLocal(b *testing.B) {
	g := newRig(b, 1)
	defer g.stopBench()
	g.users(1, "alice", "bob")
	var n atomic.Int64
	r := g.nodes[1].r
	alice, bob := benchBind(b, r, "alice", &n), benchBind(b, r, "bob", &n)
	for _, to := range []struct {
		name string
		jid  jid.JID
	}{{"full", bob.JID()}, {"bare", bob.JID().Bare()}} {
		b.Run(to.name, func(b *testing.B) {
			p := chat300(alice.JID(), to.jid)
			start := n.Load()
			b.ReportAllocs()
			sent := int64(0)
			for b.Loop() {
				if err := alice.Receive(context.Background(), p); err != nil {
					b.Fatal(err)
				}
				if sent++; sent%32 == 0 {
					reached(b, &n, start+sent) // a fast sender would only find the mailbox full
				}
			}
			reached(b, &n, start+sent)
		})
	}
}

// BenchmarkFallbackStep is what a step of a fallback costs a node that serves
// 1,000 users, each with a session, of whom none moves.
func BenchmarkFallbackStep(b *testing.B) {
	g := newRig(b, 2)
	defer g.stopBench()
	var n atomic.Int64
	for i := range 1000 {
		name := fmt.Sprint("u", i)
		g.users(2, name)
		benchBind(b, g.nodes[2].r, name, &n)
	}
	r := g.nodes[2].r
	b.ReportAllocs()
	for b.Loop() {
		r.rehome()
	}
}

// BenchmarkPresenceFanout is one presence change seen by 20 contacts' sessions; the cost per delivery is reported too.
func BenchmarkPresenceFanout(b *testing.B) {
	g := newRig(b, 1)
	defer g.stopBench()
	const contacts = 20
	g.users(1, "alice")
	var n atomic.Int64
	r := g.nodes[1].r
	for i := range contacts {
		name := fmt.Sprint("friend", i)
		g.users(1, name)
		g.befriend("alice", name)
		benchBind(b, r, name, &n)
	}
	alice := benchBind(b, r, "alice", new(atomic.Int64))
	time.Sleep(100 * time.Millisecond)
	p := presence("", 0)
	p.From = alice.JID()
	b.ReportAllocs()
	start, sent := n.Load(), int64(0)
	for b.Loop() {
		if err := alice.Receive(context.Background(), p); err != nil {
			b.Fatal(err)
		}
		sent++
		reached(b, &n, start+sent*contacts)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(sent*contacts), "ns/delivery")
}

// BenchmarkRouteAcross is a message to a user of another node, over a link in memory.
func BenchmarkRouteAcross(b *testing.B) {
	g := newRig(b, 2)
	defer g.stopBench()
	g.users(1, "alice")
	g.users(2, "bob")
	var n atomic.Int64
	time.Sleep(time.Second)
	alice, bob := benchBind(b, g.nodes[1].r, "alice", &n), benchBind(b, g.nodes[2].r, "bob", &n)
	p := chat300(alice.JID(), bob.JID())
	b.ReportAllocs()
	start, sent := n.Load(), int64(0)
	for b.Loop() {
		if err := alice.Receive(context.Background(), p); err != nil {
			b.Fatal(err)
		}
		if sent++; sent%32 == 0 {
			reached(b, &n, start+sent)
		}
	}
	reached(b, &n, start+sent)
}

// BenchmarkIdleSession reports what an idle session with presence costs in memory: session, actor and row.
func BenchmarkIdleSession(b *testing.B) {
	g := newRig(b, 1)
	defer g.stopBench()
	const sessions = 2000
	names := make([]string, sessions)
	for i := range names {
		names[i] = fmt.Sprint("user", i)
	}
	g.users(1, names...)
	var n atomic.Int64
	var before, after runtime.MemStats
	for b.Loop() {
		runtime.GC()
		runtime.ReadMemStats(&before)
		var wg sync.WaitGroup
		for _, name := range names {
			benchBind(b, g.nodes[1].r, name, &n)
		}
		wg.Wait()
		for g.nodes[1].hot.Count() < sessions {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(100 * time.Millisecond)
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/sessions, "B/session")
		for _, s := range g.nodes[1].r.sessions.all() {
			s.End(true, nil)
		}
		for g.nodes[1].r.sessions.count() > 0 {
			time.Sleep(time.Millisecond)
		}
	}
}
