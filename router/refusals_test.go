package router

import (
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"muster/fsm/cluster"
	"muster/router/stanza"
)

// refusing refuses every message, and has a session on record, with an error that its client may not have.
type refusing struct {
	shelf
	told *atomic.Int64 // errors that the client may not have, as the recorder heard last; -1: nothing
}

func (f refusing) Setup(g *Registry) error {
	g.SetRecorder(f)
	g.OnMessageSend(func(c *Ctx, p *stanza.Packet) bool {
		c.Reply(p.ErrorReply(stanza.NewError(stanza.ResourceConstraint, "")))
		return true
	})
	return nil
}

func (f refusing) Confirm(p Progress, done func()) {
	f.told.Store(int64(len(p.Refusals)))
	go done()
}

// TestRefusalsAreKept: the home of a session, and what is written of it, know which errors its client has not
// confirmed, also after the home moved; where the client resumes it gets them.
func TestRefusalsAreKept(t *testing.T) {
	for _, node := range []uint32{1, 2} {
		t.Run(fmt.Sprint("session on node ", node), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				lost := message(stanza.TypeError, "alice/phone", "")
				lost.ID, lost.From = "m0", addr("bob")
				f := refusing{shelf{Recorded{Record: Record{Key: []byte("key")}, Resource: "phone", Handled: 1, Refusals: []*stanza.Packet{lost}}, new(atomic.Uint64)}, new(atomic.Int64)}
				g := newRig(t, 3, f)
				defer g.close()
				g.users(1, "alice")
				time.Sleep(time.Second)
				phone := g.resume(node, 99)
				wait := func(when string, home uint32, want int) {
					t.Helper()
					time.Sleep(time.Second)
					at := g.nodes[home].r.remote.get(99)
					if at == nil {
						t.Fatalf("%s: node %d is not the home", when, home)
					}
					if got := at.Refusals(); len(got) != want {
						t.Errorf("%s: the home knows of %d errors, want %d", when, len(got), want)
					}
				}
				wait("after it was resumed", 1, 1)
				phone.want("message error bob m0")
				phone.message("bob", "1")
				wait("after a refusal", 1, 2)
				phone.want("message error bob 1 resource-constraint")
				got := phone.s.refusals.list()
				g.must(cluster.AssignEntry([]string{"alice@" + testDomain}, 3))
				wait("at the next home", 3, 2)
				f.told.Store(-1)
				phone.s.Taken(got[:1])
				wait("after one was confirmed", 3, 1)
				if n := f.told.Load(); n != 1 {
					t.Errorf("%d errors are on record", n)
				}
				phone.s.Confirm(2)
				phone.s.Taken(got)
				wait("after both were confirmed", 3, 0)
				if n := f.told.Load(); n != 0 {
					t.Errorf("%d errors are on record", n)
				}
			})
		})
	}
}
