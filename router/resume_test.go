package router

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"muster/fsm/cluster"
	"muster/internal/fault"
	"muster/router/stanza"
)

// shelf is a recorder that has one session on record, whoever asks.
type shelf struct {
	rec    Recorded
	claims *atomic.Uint64
}

func (s shelf) Name() string            { return "shelf" }
func (s shelf) Setup(g *Registry) error { g.SetRecorder(s); return nil }
func (s shelf) Record(Recorded)         {}

func (s shelf) Confirm(_ Progress, done func()) { go done() }

func (s shelf) Claim(_ *Ctx, _ uint64, _ []byte, _ uint32, _ uint64, done func(Recorded, error)) {
	s.rec.Claims = s.claims.Add(1)
	done(s.rec, nil)
}

// TestWhatWasHandledIsTold: a session that cannot go on because its resource is taken says how far it had come, at its home and elsewhere.
func TestWhatWasHandledIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 3, shelf{Recorded{Record: Record{Base: 10}, Resource: "desk", Handled: 17}, new(atomic.Uint64)})
		defer g.close()
		g.users(1, "alice")
		time.Sleep(time.Second)
		g.online(1, "alice/desk")
		for _, node := range []uint32{1, 3} {
			s, at, err := g.nodes[node].r.Resume(context.Background(), ResumeRequest{User: addr("alice"), ID: 99, Key: []byte("key"), Sink: &client{g: g}})
			if s != nil || !fault.Is(err, fault.NotFound) || at != (Resumed{Handled: 7, Known: true}) {
				t.Errorf("at node %d: %v, %+v, %v", node, s, at, err)
			}
		}
	})
}

// TestOneResumesAtATime: while a session is being resumed at a node, nobody is told there that it does not exist.
func TestOneResumesAtATime(t *testing.T) {
	simulate(t, 1, func(g *rig) {
		g.users(1, "alice")
		time.Sleep(time.Second)
		r := g.nodes[1].r
		resuming, ending := &Session{r: r, id: 7, user: addr("alice")}, &Session{r: r, id: 8, user: addr("alice"), ending: &unbinding{}}
		moved := &Session{r: r, id: 9, user: addr("alice"), ending: &unbinding{}} // its home was not reached yet
		moved.moved.Store(true)
		for _, s := range []*Session{resuming, ending, moved} {
			r.sessions.add(s)
			defer r.sessions.remove(s)
		}
		for id, want := range map[uint64]fault.Code{7: fault.Unavailable, 8: fault.NotFound, 9: fault.Unavailable} {
			if _, _, err := r.Resume(context.Background(), ResumeRequest{User: addr("alice"), ID: id, Sink: &client{g: g}}); !fault.Is(err, want) {
				t.Errorf("session %d: %v", id, err)
			}
		}
	})
}

// resume takes up a session of alice at a node.
func (g *rig) resume(node uint32, session uint64) *client {
	g.t.Helper()
	c := &client{g: g, name: fmt.Sprint("at node ", node)}
	s, _, err := g.nodes[node].r.Resume(context.Background(), ResumeRequest{User: addr("alice"), ID: session, Key: []byte("key"), Sink: c})
	if err != nil {
		g.t.Fatalf("%s: %v", c.name, err)
	}
	c.s = s
	return c
}

// withRecord runs fn on three nodes. A session of alice is on record, and her home is node 1; bob is online there.
func withRecord(t *testing.T, fn func(g *rig, bob *client)) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 3, shelf{Recorded{Record: Record{Key: []byte("key")}, Resource: "phone", Handled: 1, Presence: presence("", 0)}, new(atomic.Uint64)})
		defer g.close()
		g.users(1, "alice", "bob")
		time.Sleep(time.Second)
		fn(g, g.online(1, "bob/b"))
	})
}

// TestResumedWhileTheLinkWasCut: a session that was resumed at another node, while its old node could not hear of
// it, stays there when that node is heard again; the old node lets go of it, and may have it back.
func TestResumedWhileTheLinkWasCut(t *testing.T) {
	withRecord(t, func(g *rig, bob *client) {
		first := g.resume(2, 99)
		g.net.Cut("n1", "n2")
		g.net.Cut("n2", "n1")
		first.message("bob/b", "lost with the connection, sent again")
		second := g.resume(3, 99)
		second.message("bob/b", "1")
		bob.want("message chat alice/phone 1")
		g.net.HealAll()
		time.Sleep(5 * time.Second)
		if first.ended() != stanza.StreamConflict || !first.s.Moved() {
			t.Errorf("the old session ended with %q, moved %v", first.ended(), first.s.Moved())
		}
		second.message("bob/b", "2")
		bob.want("message chat alice/phone 2")
		bob.message("alice/phone", "3")
		second.want("message chat bob/b 3")
		third := g.resume(2, 99)
		third.message("bob/b", "4")
		bob.want("message chat alice/phone 4")
		if second.ended() != stanza.StreamConflict {
			t.Errorf("the second session ended with %q", second.ended())
		}
	})
}

// TestResumedTwice: the answer to a node that resumes a session is lost with the link, and the node asks again.
func TestResumedTwice(t *testing.T) {
	withRecord(t, func(g *rig, bob *client) {
		g.net.Cut("n1", "n2")
		go func() {
			time.Sleep(time.Second)
			if g.nodes[1].r.remote.get(99) == nil {
				t.Error("the home has not heard of it")
			}
			g.nodes[2].r.links.Reset(1)
			g.net.HealAll()
		}()
		alice := g.resume(2, 99)
		time.Sleep(time.Second)
		bob.message("alice/phone", "1")
		alice.want("message chat bob/b 1")
		alice.message("bob/b", "2")
		bob.want("message chat alice/phone 2")
		if alice.ended() != "" {
			t.Errorf("the session ended with %q", alice.ended())
		}
	})
}

// TestResumedUnseen: a home that missed the claim of a session, since another node was the home then, takes the session from where it is now.
func TestResumedUnseen(t *testing.T) {
	withRecord(t, func(g *rig, bob *client) {
		first := g.resume(2, 99)
		n1 := g.nodes[1]
		n1.deaf.Store(true)
		g.must(cluster.AssignEntry([]string{"alice@" + testDomain}, 3))
		synctest.Wait()
		second := g.resume(3, 99)
		g.must(cluster.AssignEntry([]string{"alice@" + testDomain}, 1))
		synctest.Wait()
		n1.catchUpUnheard()
		time.Sleep(time.Second)
		second.message("bob/b", "1")
		bob.want("message chat alice/phone 1")
		if first.ended() != stanza.StreamConflict || second.ended() != "" {
			t.Errorf("the first session ended with %q, the second with %q", first.ended(), second.ended())
		}
	})
}

// TestResumedElsewhere: a session of which the log says that it was resumed elsewhere ends, and what it sent last counts for nothing.
func TestResumedElsewhere(t *testing.T) {
	for _, node := range []uint32{1, 2} {
		t.Run(fmt.Sprint("session on node ", node), func(t *testing.T) {
			simulateWith(t, 2, func(reg *Registry) {
				reg.OnMessageSend(func(c *Ctx, p *stanza.Packet) bool {
					c.Async(func(context.Context) error { return nil }, func(c *Ctx, _ error) { c.ResumedElsewhere() })
					return true
				})
			}, func(g *rig) {
				g.users(1, "alice")
				time.Sleep(time.Second)
				alice := g.online(node, "alice/a")
				before := alice.s.settled
				alice.message("alice", "1")
				alice.message("alice", "2")
				time.Sleep(time.Second)
				if alice.ended() != stanza.StreamConflict || !alice.s.Moved() || alice.s.settled != before {
					t.Errorf("it ended with %q, moved %v, at %d, before %d", alice.ended(), alice.s.Moved(), alice.s.settled, before)
				}
				if left := g.nodes[node].r.sessions.get(alice.s.id); left != nil {
					t.Error("its node has not forgotten it")
				}
				if at := g.nodes[1].r.remote.get(alice.s.id); at != nil {
					t.Error("its home has not forgotten it")
				}
			})
		})
	}
}
