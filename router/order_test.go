package router

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"muster/fsm"
	"muster/fsm/config"
	"muster/internal/jid"
	"muster/router/stanza"
)

// TestOrderingPatience: each stanza waits for what it follows, a second at most,
// however long others have waited before it.
func TestOrderingPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &Router{}
		var mu sync.Mutex
		var got []string
		take := func(name string, record uint64) {
			r.order.take(r, dependency{stored: record << fsm.OrdinalBits}, func() {
				mu.Lock()
				defer mu.Unlock()
				got = append(got, name)
			})
		}
		want := func(when string, names ...string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if !slices.Equal(got, names) {
				t.Fatalf("%s: %q came through, want %q", when, got, names)
			}
		}
		take("first", 1)
		want("before record 1")
		time.Sleep(maxDelay / 2)
		r.handed.Store(1)
		r.order.handed(r)
		want("with record 1", "first")

		time.Sleep(maxDelay / 4)
		take("second", 2)
		time.Sleep(maxDelay / 2) // the first one's patience would be over
		take("third", 3)
		want("before record 2", "first")
		time.Sleep(maxDelay/2 + time.Millisecond)
		want("when the second has waited long enough", "first", "second")
		r.handed.Store(3)
		r.order.handed(r)
		want("with record 3", "first", "second", "third")
		if n := r.order.size.Load(); n != 0 {
			t.Errorf("%d are counted as waiting", n)
		}
		time.Sleep(2 * maxDelay)
		r.order.mu.Lock()
		defer r.order.mu.Unlock()
		if len(r.order.timed) != 0 {
			t.Errorf("timers are left: %v", r.order.timed)
		}
	})
}

// TestFollowsBehind: a stanza waits for the last kept message of its own session that waits for its token, and for no other.
func TestFollowsBehind(t *testing.T) {
	ada, bob := jid.JID{Local: "ada", Domain: "example.test", Resource: "x"}, jid.JID{Local: "bob", Domain: "example.test", Resource: "y"}
	kept := func(from jid.JID, number uint64) behind {
		return behind{p: &stanza.Packet{From: from, Number: number}}
	}
	for _, c := range []struct {
		name  string
		from  jid.JID
		seq   uint64
		under int // index in the row; -1: it goes on
	}{
		{"follows the message itself", ada, 10, 0},
		{"follows a later message to somebody else", ada, 15, 0},
		{"follows the second", ada, 30, 2},
		{"came before all kept messages", ada, 5, -1},
		{"follows none", ada, 0, -1},
		{"of another session", bob, 25, 1},
	} {
		a := &Actor{behind: []behind{kept(ada, 10), kept(bob, 20), kept(ada, 30)}}
		e := event{kind: eventRouted, p: &stanza.Packet{From: c.from}, seq: c.seq}
		if waits := a.followsBehind(&e); waits != (c.under >= 0) {
			t.Errorf("%s: waits %v", c.name, waits)
		}
		for i, b := range a.behind {
			if (len(b.then) == 1) != (i == c.under) {
				t.Errorf("%s: %d wait behind message %d", c.name, len(b.then), i)
			}
		}
	}
}

// TestFollowerOfAWaitingMessage: what follows a kept message does not overtake it while that one waits for its token.
func TestFollowerOfAWaitingMessage(t *testing.T) {
	simulate(t, 1, func(g *rig) {
		g.users(1, "alice", "bob")
		alice := g.online(1, "alice/a")
		alice.take()
		r, token := g.nodes[1].r, Token{Session: 1, Input: 2}
		kept := &stanza.Packet{Kind: stanza.KindMessage, From: addr("bob/b"), To: addr("alice"), Type: "chat", ID: "kept", Number: 7}
		after := &stanza.Packet{Kind: stanza.KindMessage, From: addr("bob/b"), To: addr("alice/a"), Type: "chat", ID: "after"}
		other := &stanza.Packet{Kind: stanza.KindMessage, From: addr("carol/c"), To: addr("alice/a"), Type: "chat", ID: "other"}
		r.Active(addr("alice"), func(c *Ctx) { c.ReceiveStored(kept, token) })
		r.arrive(addr("alice"), after, 0, 0, 7, nil)
		r.arrive(addr("alice"), other, 0, 0, 6, nil)
		alice.want("message chat carol/c other")
		if err := r.takeToken(appendUint64(appendUint64(nil, token.Session), token.Input)); err != nil {
			t.Fatal(err)
		}
		alice.want("message chat bob/b kept", "message chat bob/b after")
	})
}

// TestRouteChange: what tells of a change reaches nobody whose home does not know that change yet.
func TestRouteChange(t *testing.T) {
	simulate(t, 2, func(g *rig) {
		g.users(1, "alice")
		g.users(2, "bob")
		time.Sleep(time.Second)
		g.online(1, "alice/a")
		bob := g.online(2, "bob/b")
		time.Sleep(time.Second)
		bob.take()
		g.nodes[2].deaf.Store(true)
		change := g.must(config.AddDomainEntry("new.test"))
		tell := func(id string, index uint64) {
			g.nodes[1].r.Active(addr("alice"), func(c *Ctx) {
				c.RouteChange(&stanza.Packet{Kind: stanza.KindMessage, From: addr("alice/a"), To: addr("bob/b"), Type: "chat", ID: id}, index)
			})
		}
		tell("of an older one", change.Index-1)
		bob.want("message chat alice/a of an older one")
		tell("of this one", change.Index)
		time.Sleep(time.Second)
		bob.want()
		g.nodes[2].deaf.Store(false)
		g.nodes[2].catchUp()
		bob.want("message chat alice/a of this one")
	})
}
