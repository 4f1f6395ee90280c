package router

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"muster/fsm/cluster"
	"muster/router/hot"
	"muster/router/stanza"
)

// bindings notes of which sessions the features of node 1 hear.
type bindings struct {
	mu  sync.Mutex
	got []string
}

// Name implements Feature.
func (*bindings) Name() string { return "bindings" }

// Setup implements Feature.
func (b *bindings) Setup(reg *Registry) error {
	if reg.Router().Node() != 1 {
		return nil
	}
	reg.OnBind(func(c *Ctx) {
		state := " is new"
		if c.Session.Reattached() {
			state = " has moved"
		}
		if c.Session.Available() {
			state += ", available"
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.got = append(b.got, c.Session.JID.Local+state)
	})
	return nil
}

// TestAppearedDuringIsolation: a session that asked its home over a link that was cut, and was bound and became
// available on its isolated node meanwhile, is one of which the home's features hear when it is there.
func TestAppearedDuringIsolation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		heard := &bindings{}
		g := newRig(t, 2, heard)
		defer g.close()
		g.users(1, "alice")
		time.Sleep(time.Second)
		g.net.Partition([]string{"n1"}, []string{"n2"})
		alice := &client{g: g, name: "alice/a"}
		bound := make(chan *Session, 1)
		go func() {
			s, err := g.nodes[2].r.Bind(context.Background(), BindRequest{User: addr("alice"), Resource: "a", Sink: alice})
			if err != nil {
				t.Error(err)
			}
			bound <- s
		}()
		time.Sleep(time.Second)
		g.nodes[2].r.LeaderContact(IsolationAfter + time.Millisecond)
		if alice.s = <-bound; alice.s == nil {
			t.Fatal("the isolated node does not bind the session")
		}
		alice.send(presence("", 0))
		synctest.Wait()
		g.net.HealAll()
		time.Sleep(2 * time.Second)
		g.nodes[2].r.LeaderContact(0)
		time.Sleep(2 * time.Second)
		heard.mu.Lock()
		defer heard.mu.Unlock()
		if n := len(heard.got); n == 0 || heard.got[n-1] != "alice has moved, available" {
			t.Errorf("the home's features heard of %q", heard.got)
		}
	})
}

// TestPublishedDuringIsolation: a presence change that reached the session's node while that was isolated, and so
// counted for nothing there, is written when the session is with its home again.
func TestPublishedDuringIsolation(t *testing.T) {
	for _, tc := range []struct {
		name     string
		change   *stanza.Packet
		row      bool
		priority int8
	}{
		{"available", presence("", 7), true, 7},
		{"unavailable", presence(stanza.TypeUnavailable, 0), false, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			simulate(t, 2, func(g *rig) {
				g.users(1, "alice", "bob")
				time.Sleep(time.Second)
				alice, bob := g.online(1, "alice/a"), g.online(2, "bob/b")
				n2 := g.nodes[2]
				n2.r.LeaderContact(IsolationAfter + time.Millisecond)
				synctest.Wait()
				g.nodes[1].r.Active(addr("bob"), func(c *Ctx) { c.Publish(c.SessionByResource("b"), tc.change) })
				time.Sleep(time.Second)
				n2.r.LeaderContact(0)
				time.Sleep(time.Second)
				for id, n := range g.nodes {
					if row, ok := n.hot.Row(addr("bob"), "b"); ok != tc.row || row.Priority != tc.priority {
						t.Errorf("on node %d there is a row: %v, of priority %d", id, ok, row.Priority)
					}
				}
				bob.message("alice", "m") // its input goes on
				alice.want("message chat bob/b m")
			})
		})
	}
}

// TestBoundBeforeIsolation: a client that was bound when its node was cut off already, and did not know it, may have been
// shown rows that had ended before; the next home must know, so that it tells of all that ended lately.
func TestBoundBeforeIsolation(t *testing.T) {
	simulate(t, 2, func(g *rig) {
		g.users(2, "bob")
		time.Sleep(time.Second)
		g.online(2, "bob/b")
		n2 := g.nodes[2].r
		n2.LeaderContact(IsolationAfter + time.Millisecond)
		synctest.Wait()
		g.must(cluster.AssignEntry([]string{"bob@" + testDomain}, 1))
		n2.LeaderContact(0)
		time.Sleep(time.Second)
		synctest.Wait()
		at := g.nodes[1].r.actors.get(addr("bob")).find("b")
		if at == nil {
			t.Fatal("the session is not attached to the next home")
		}
		if age := time.Since(at.Began()); age < hot.RecentFor {
			t.Errorf("the next home takes what ended more than %v ago for known to the client", age)
		}
	})
}

// TestUnsettledOnTheWay: a row that ends while a session is on its way to its next home must be made up for, too.
func TestUnsettledOnTheWay(t *testing.T) {
	simulate(t, 2, func(g *rig) {
		g.users(2, "bob")
		time.Sleep(time.Second)
		g.online(2, "bob/b")
		if g.nodes[2].r.Unsettled() {
			t.Fatal("a session is unsettled before its home moved")
		}
		g.net.Partition([]string{"n1"}, []string{"n2"}) // the next home does not answer
		g.must(cluster.AssignEntry([]string{"bob@" + testDomain}, 1))
		time.Sleep(time.Second)
		if !g.nodes[2].r.Unsettled() {
			t.Error("no session is unsettled")
		}
	})
}

// TestShown: an end that a node would make up for is not told to a client that was shown the resource since, by its home.
func TestShown(t *testing.T) {
	simulate(t, 2, func(g *rig) {
		g.users(1, "alice", "bob")
		g.befriend("bob", "alice")
		time.Sleep(time.Second)
		alice := g.online(2, "alice/a")
		n2 := g.nodes[2].r
		shown := func(since time.Time) (yes bool) {
			n2.EachUnsettled(addr("alice"), time.Now(), func(m *Moved) { yes = m.Shown(addr("bob/b"), since) })
			return yes
		}
		start := time.Now()
		g.online(1, "bob/b")
		alice.want("presence - bob/b ")
		if shown(start) {
			t.Error("noted though all is settled")
		}
		for _, home := range []uint32{2, 1} {
			g.must(cluster.AssignEntry([]string{"alice@" + testDomain}, home))
			time.Sleep(time.Second)
		}
		alice.take()
		g.online(1, "bob/b")
		alice.want("presence unavailable bob/b ", "presence - bob/b ")
		if !shown(start) || shown(time.Now()) {
			t.Errorf("shown since the start: %v, from now on: %v", shown(start), shown(time.Now()))
		}
	})
}
