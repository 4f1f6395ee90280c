package router

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"muster/fsm/cluster"
	"muster/internal/fault"
	"muster/router/stanza"
)

func TestAcrossNodes(t *testing.T) {
	simulate(t, 3, func(g *rig) {
		g.users(1, "alice")
		g.users(2, "bob")
		g.befriend("alice", "bob")
		time.Sleep(time.Second) // links come up
		// Neither session is on its home.
		alice, bob := g.online(3, "alice/a"), g.online(1, "bob/b")
		alice.take()
		bob.take()
		alice.send(presence("", 1))
		var want = []string{"presence - alice/a "}
		for i := range 200 {
			alice.message("bob", fmt.Sprint(i))
			want = append(want, fmt.Sprintf("message chat alice/a %d", i))
		}
		bob.want(want...)
		alice.send(request("get", "bob/b", "q", "urn:x"))
		bob.want("iq get alice/a q")
		bob.send(request("result", "alice/a", "q", "urn:x"))
		alice.want("iq result bob/b q")
		alice.s.End(true, nil)
		bob.want("presence unavailable alice/a ")
		for id, n := range g.nodes {
			if c := n.hot.Count(); c != 1 {
				t.Errorf("node %d has %d rows", id, c)
			}
		}
	})
}

func TestBindWaitsForTheLink(t *testing.T) {
	simulate(t, 2, func(g *rig) {
		g.users(1, "alice")
		g.net.Partition([]string{"n1"}, []string{"n2"})
		g.net.Reset("n2")
		time.Sleep(time.Second)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if _, err := g.nodes[2].r.Bind(ctx, BindRequest{User: addr("alice"), Sink: &client{g: g}}); !fault.Is(err, fault.Unavailable) {
			t.Errorf("bind without a link: %v", err)
		}
		time.Sleep(2 * closingFor)
		if n := g.nodes[2].r.Stats().Sessions; n != 0 {
			t.Errorf("%d sessions are left", n)
		}
	})
}

// TestKilledNode: what a dead node held is gone once, and who lives goes on.
func TestKilledNode(t *testing.T) {
	simulate(t, 3, func(g *rig) {
		g.users(1, "alice") // home 1, session on 3
		g.users(2, "bob")   // home and session on 2
		g.users(1, "carol") // home and session on 1, which dies
		g.befriend("carol", "bob")
		g.befriend("alice", "bob")
		g.befriend("bob", "alice")
		g.befriend("bob", "carol")
		time.Sleep(time.Second)
		alice, bob, carol := g.online(3, "alice/a"), g.online(2, "bob/b"), g.online(1, "carol/c")
		if err := g.nodes[1].r.actors.get(addr("alice")).SetMarkOf("alice/a", "interested", "yes"); err != nil {
			t.Fatal(err)
		}
		alice.take()
		bob.take()
		carol.take()

		g.kill(1)
		time.Sleep(SilentAfter + time.Second)
		if s := fmt.Sprint(g.nodes[2].r.Silent()); s != "[1]" {
			t.Errorf("silent nodes: %s", s)
		}
		bob.want()
		g.down(1)
		bob.want("presence unavailable carol/c ")
		if s := g.nodes[2].r.Silent(); len(s) != 0 {
			t.Errorf("a node that is known to be down is reported: %v", s)
		}

		time.Sleep(time.Millisecond)
		home, _ := g.nodes[2].r.HomeOf(addr("alice"))
		at := g.nodes[home.Node].r.actors.get(addr("alice")).find("a")
		if at == nil || !at.Reattached() || !at.Available() || at.Mark("interested") != "yes" {
			t.Fatalf("alice is not attached to node %d as she was: %+v", home.Node, at)
		}
		bob.message("alice", "1")
		alice.want("message chat bob/b 1")
		alice.message("bob", "2")
		bob.want("message chat alice/a 2")
		bob.send(presence("", 3))
		alice.want("presence - bob/b ")
		if alice.ended() != "" {
			t.Errorf("alice's session ended: %v", alice.ended())
		}

		g.start(1) // the home is back: everybody moves again, when the users fall back
		synctest.Wait()
		if s := g.nodes[2].r.Silent(); len(s) != 0 {
			t.Errorf("silent nodes right after the start: %v", s)
		}
		time.Sleep(2 * time.Second)
		if home, _ := g.nodes[2].r.HomeOf(addr("alice")); home.Node == 1 {
			t.Fatal("alice's home is the node that has just started")
		}
		g.must(cluster.FallbackStepEntry(1, 0, cluster.Automatic))
		synctest.Wait()
		if home, _ := g.nodes[2].r.HomeOf(addr("alice")); home.Node != 1 {
			t.Fatalf("alice's home is %d", home.Node)
		}
		alice.take() // node 1 tells what it has missed of bob's presence
		bob.message("alice", "3")
		alice.want("message chat bob/b 3")
		alice.send(presence("", 5))
		bob.want("presence - alice/a ")
	})
}

// TestLocation: a client is told of the node that will have its session, and a change of addresses needs no restart.
func TestLocation(t *testing.T) {
	simulate(t, 3, func(g *rig) {
		g.users(1, "alice")
		g.users(3, "carol") // whose node has no other in its group, and borrows one
		time.Sleep(time.Second)
		atHome, away, alone := g.online(1, "alice/a"), g.online(3, "alice/b"), g.online(3, "carol/c")
		want := func(when, home, backup, lent string) {
			t.Helper()
			synctest.Wait()
			if a, b, c := atHome.s.Location(), away.s.Location(), alone.s.Location(); a != backup || b != home || c != lent {
				t.Errorf("%s: %q at home, %q away, %q of a lone node", when, a, b, c)
			}
		}
		want("no addresses", "", "", "")
		for id := uint32(1); id <= 3; id++ {
			g.must(cluster.UpdateEntry(id, "", map[string]string{cluster.ClientListener: fmt.Sprintf("n%d:5222", id), "https": "n:1"}))
		}
		want("addresses", "n1:5222", "n2:5222", "n1:5222")
		g.must(cluster.UpdateEntry(2, "", map[string]string{cluster.ClientListener: "n2.example.com:15222"}))
		want("moved", "n1:5222", "n2.example.com:15222", "n1:5222")
		g.must(cluster.UpdateEntry(2, "", map[string]string{"https": "n:1"}))
		want("taken back", "n1:5222", "", "n1:5222")
		g.kill(2)
		g.must(cluster.UpdateEntry(2, "", map[string]string{cluster.ClientListener: "n2:5222"}))
		g.down(2)
		want("backup down", "n1:5222", "", "n1:5222")
	})
}

// TestNothingVanishesWhenTheHomeDies: each message reaches the recipient or is answered, once the dead node is known to be down.
func TestNothingVanishesWhenTheHomeDies(t *testing.T) {
	simulate(t, 3, func(g *rig) {
		g.users(1, "alice")
		g.users(2, "bob")
		time.Sleep(time.Second)
		alice, bob := g.online(3, "alice/a"), g.online(2, "bob/b")
		bob.take()
		g.kill(1)
		const sent = 60 // within the window of the input
		for i := range sent {
			alice.message("bob", fmt.Sprint("from-alice-", i))
			bob.message("alice", fmt.Sprint("from-bob-", i))
		}
		time.Sleep(SilentAfter)
		g.down(1)
		time.Sleep(settleFor)
		got, back := bob.take(), alice.take()
		if len(got) != sent || len(back) != sent {
			t.Fatalf("bob got %d, alice %d, of %d\n%s", len(got), len(back), sent, strings.Join(got, "\n"))
		}
		for i := range sent {
			if want := fmt.Sprintf("message chat alice/a from-alice-%d", i); got[i] != want {
				t.Fatalf("bob got %q at %d", got[i], i)
			}
			if want := fmt.Sprintf("message chat bob/b from-bob-%d", i); back[i] != want {
				t.Fatalf("alice got %q at %d", back[i], i)
			}
		}
	})
}

func TestBothNodesDown(t *testing.T) {
	simulate(t, 3, func(g *rig) {
		g.users(1, "alice")
		home := g.homes(t, "alice")
		g.users(3, "bob")
		time.Sleep(time.Second)
		bob := g.online(3, "bob/b")
		g.kill(home[0])
		g.down(home[0])
		if home[1] == 3 {
			t.Fatal("the backup is the observer: the test needs another one")
		}
		g.kill(home[1])
		g.down(home[1])
		bob.message("alice", "1")
		bob.want("message error alice 1 recipient-unavailable")
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if _, err := g.nodes[3].r.Bind(ctx, BindRequest{User: addr("alice"), Sink: &client{g: g}}); !fault.Is(err, fault.Unavailable) {
			t.Errorf("bind without a home: %v", err)
		}
	})
}

// TestFrameAfterTheReset: what is put on a channel after it was reset because its node is down comes back as well.
func TestFrameAfterTheReset(t *testing.T) {
	simulate(t, 3, func(g *rig) {
		g.users(1, "alice")
		g.users(3, "bob")
		time.Sleep(time.Second)
		alice, bob := g.online(3, "alice/a"), g.online(3, "bob/b")
		alice.take()
		g.kill(1)
		g.down(1)
		synctest.Wait()
		p := &stanza.Packet{Kind: stanza.KindMessage, From: addr("bob/b"), To: addr("alice/a"), Type: "chat", ID: "late"}
		if err := g.nodes[3].r.hand(1, kindRoute, appendRoute(0, 0, dependency{}, p), false); err != nil {
			t.Fatal(err)
		}
		alice.want("message chat bob/b late")
		bob.want()
	})
}

// TestLateRefusal: what a home refuses after the session is attached elsewhere, the present home was given as well; its client hears one outcome.
func TestLateRefusal(t *testing.T) {
	simulate(t, 3, func(g *rig) {
		g.users(1, "alice")
		home := g.homes(t, "alice")
		time.Sleep(time.Second)
		alice := g.online(3, "alice/a")
		alice.take()
		refusal := &stanza.Packet{Kind: stanza.KindMessage, From: addr("bob"), To: addr("alice/a"), Type: stanza.TypeError, ID: "1"}
		from := func(node uint32) {
			if err := g.nodes[3].r.fromHome(node, kindDeliver, stanza.AppendBinary(appendUint64(nil, alice.s.ID()), refusal)); err != nil {
				t.Fatal(err)
			}
		}
		from(home[1])
		alice.want()
		from(home[0])
		alice.want("message error bob 1")
	})
}

// TestAheadOfTheLog: a node that is back takes part before the log tells the others so.
func TestAheadOfTheLog(t *testing.T) {
	simulate(t, 3, func(g *rig) {
		g.users(1, "carol", "dave") // so that others get node 1 for their backup
		name := ""                  // of a user whose home and backup do not die
		for i := range 8 {
			try := fmt.Sprint("alice", i)
			g.users(3, try)
			synctest.Wait()
			if g.homes(t, try)[1] == 1 {
				name = try
			}
		}
		if name == "" {
			t.Fatal("nobody has node 1 for a backup")
		}
		g.users(3, "bob")
		time.Sleep(time.Second)
		bob := g.online(3, "bob/b")
		g.kill(2)
		g.down(2)
		g.nodes[3].deaf.Store(true)
		g.start(2)
		time.Sleep(5 * time.Second)
		alice := g.online(2, name+"/a")
		time.Sleep(time.Second)
		alice.take()
		resets := g.nodes[3].r.Stats().LinkResets
		bob.message(name, "1")
		time.Sleep(time.Second)
		alice.want("message chat bob/b 1")
		if n := g.nodes[3].r.Stats().LinkResets; n != resets {
			t.Errorf("the channel was reset %d times", n-resets)
		}
		g.nodes[3].deaf.Store(false)
		g.nodes[3].catchUp()
		time.Sleep(time.Second)
		bob.message(name, "2")
		alice.want("message chat bob/b 2")
		bob.want()
	})
}

// TestAttachedTooLate: a session that is taken in while the log says that its node is down does not stay.
func TestAttachedTooLate(t *testing.T) {
	simulate(t, 2, func(g *rig) {
		g.users(1, "alice", "bob")
		time.Sleep(time.Second)
		bob := g.online(1, "bob/b")
		g.online(1, "alice/a")
		n1, inc := g.nodes[1].r, g.nodes[2].inc
		g.kill(2)
		g.down(2)
		synctest.Wait()
		n1.actors.get(addr("alice")).post(event{call: func(a *Actor) {
			a.admitted(&attachment{id: 1, node: 2, incarnation: inc, user: a.user, presence: presence("", 0)}, "late")
		}})
		synctest.Wait()
		if n := n1.Stats().Attached; n != 2 {
			t.Errorf("%d sessions are attached", n)
		}
		bob.message("alice/late", "1")
		bob.want()
	})
}

// TestFallbackInSteps: each step moves the actors of its own part of the users, and no client notices.
func TestFallbackInSteps(t *testing.T) {
	simulate(t, 3, func(g *rig) {
		const users = 24
		var names []string
		for i := range users {
			names = append(names, fmt.Sprint("u", i))
		}
		g.users(1, names...)
		g.users(3, "bob")
		time.Sleep(time.Second)
		bob := g.online(3, "bob/b")
		clients := map[string]*client{}
		for i, n := range names {
			clients[n] = g.online(uint32(1+i%3), n+"/r")
			clients[n].take()
		}
		placed := func(away int) {
			t.Helper()
			for _, n := range names {
				home := uint32(1)
				if int(cluster.Slot(n+"@"+testDomain)) < away {
					home = 2
				}
				for id, node := range g.nodes {
					if a := node.r.actors.get(addr(n)); (a != nil && a.find("r") != nil) != (id == home) {
						t.Errorf("%d slots away: %s is attached at node %d, its home is %d", away, n, id, home)
					}
				}
			}
		}
		g.must(cluster.FailoverEntry(1))
		for away := cluster.Slots; away >= 0; away -= 32 {
			if away < cluster.Slots {
				g.must(cluster.FallbackStepEntry(1, away, cluster.Automatic))
			}
			for _, n := range names { // without a pause, in the midst of the move
				bob.message(n, fmt.Sprint(away))
				clients[n].message("bob", fmt.Sprint(away))
			}
			synctest.Wait()
			time.Sleep(time.Second)
			placed(away)
			for _, n := range names {
				clients[n].want(fmt.Sprintf("message chat bob/b %d", away))
				if clients[n].ended() != "" {
					t.Errorf("%s was logged out: %v", n, clients[n].ended())
				}
			}
			// What a home had routed and not yet credited when it learned of the move, the next one routes again: at least once.
			got := map[string]bool{}
			for _, m := range bob.take() {
				got[m] = true
			}
			if len(got) != users {
				t.Errorf("%d slots away: bob got %d messages of %d: %v", away, len(got), users, got)
			}
		}
	})
}

// TestBrokenConnection: a link that breaks loses, doubles and reorders nothing.
func TestBrokenConnection(t *testing.T) {
	simulate(t, 2, func(g *rig) {
		g.users(1, "alice")
		g.users(2, "bob")
		time.Sleep(time.Second)
		alice, bob := g.online(1, "alice/a"), g.online(2, "bob/b")
		bob.take()
		var want []string
		for i := range 300 {
			if i%50 == 25 {
				g.breakLinks()
			}
			alice.message("bob", fmt.Sprint(i))
			want = append(want, fmt.Sprintf("message chat alice/a %d", i))
			if i%10 == 0 {
				time.Sleep(7 * time.Millisecond)
			}
		}
		time.Sleep(5 * time.Second)
		bob.want(want...)
		alice.want()
		if n := g.nodes[1].r.Stats().LinkResets; n != 0 {
			t.Errorf("the channel was reset %d times", n)
		}
	})
}

// TestMovedWhileAlive: an administrator moves a user; the client notices nothing.
func TestMovedWhileAlive(t *testing.T) {
	simulate(t, 3, func(g *rig) {
		g.users(1, "alice")
		g.users(3, "bob")
		g.befriend("alice", "bob")
		time.Sleep(time.Second)
		alice, bob := g.online(2, "alice/a"), g.online(3, "bob/b")
		alice.take()
		bob.take()
		for round := range 6 {
			node := uint32(1 + round%3)
			g.must(cluster.AssignEntry([]string{"alice@" + testDomain}, node))
			bob.message("alice", fmt.Sprint(round))
			alice.want(fmt.Sprintf("message chat bob/b %d", round))
			alice.message("bob", fmt.Sprint(round))
			bob.want(fmt.Sprintf("message chat alice/a %d", round))
			for id, n := range g.nodes {
				if at := n.r.actors.get(addr("alice")).find("a"); (at != nil) != (id == node) {
					t.Errorf("round %d: attached at node %d: %v", round, id, at != nil)
				}
			}
		}
		if alice.ended() != "" {
			t.Error("the session ended:", alice.ended())
		}
	})
}

// TestMovedAndBackUnseen: a home that moves and comes back at once has let go of its sessions. A node that sees
// only the outcome, as after a snapshot, attaches its own again all the same.
func TestMovedAndBackUnseen(t *testing.T) {
	simulate(t, 3, func(g *rig) {
		g.users(1, "alice")
		g.users(3, "bob")
		time.Sleep(time.Second)
		alice, bob := g.online(3, "alice/a"), g.online(3, "bob/b")
		alice.take()
		n3 := g.nodes[3]
		n3.deaf.Store(true)
		g.must(cluster.AssignEntry([]string{"alice@" + testDomain}, 2))
		synctest.Wait()
		g.must(cluster.AssignEntry([]string{"alice@" + testDomain}, 1))
		synctest.Wait()
		alice.message("bob", "1")
		n3.catchUpUnheard()
		time.Sleep(time.Second)
		bob.message("alice", "2")
		alice.want("message chat bob/b 2")
		bob.want("message chat alice/a 1")
	})
}

// TestLaggingNode: a node whose log is behind neither acts on old knowledge for long nor loses what comes too early.
func TestLaggingNode(t *testing.T) {
	simulate(t, 3, func(g *rig) {
		g.users(1, "alice")
		g.users(3, "bob")
		time.Sleep(time.Second)
		alice, bob := g.online(2, "alice/a"), g.online(3, "bob/b")
		alice.take()
		g.nodes[2].deaf.Store(true) // node 2 does not learn yet that it is the home
		g.must(cluster.AssignEntry([]string{"alice@" + testDomain}, 2))
		for i := range 5 {
			bob.message("alice", fmt.Sprint(i))
		}
		synctest.Wait()
		bob.want()
		g.nodes[2].deaf.Store(false)
		g.nodes[2].catchUp()
		alice.want("message chat bob/b 0", "message chat bob/b 1", "message chat bob/b 2", "message chat bob/b 3", "message chat bob/b 4")
	})
}

func TestIsolatedNode(t *testing.T) {
	simulate(t, 3, func(g *rig) {
		g.users(1, "alice")
		g.users(3, "bob")
		g.users(3, "carol")
		g.befriend("bob", "alice")
		g.befriend("alice", "bob")
		time.Sleep(time.Second)
		alice, bob, carol := g.online(1, "alice/a"), g.online(3, "bob/b"), g.online(3, "carol/c")
		dave := g.online(3, "alice/d") // alice's second session, on the node that is cut off
		alice.take()
		bob.take()
		n3 := g.nodes[3]
		n3.deaf.Store(true)
		g.net.Partition([]string{"n1", "n2"}, []string{"n3"})
		n3.r.LeaderContact(IsolationAfter + time.Millisecond)
		synctest.Wait()

		if ok, _ := n3.r.Isolated(); !ok {
			t.Fatal("not isolated")
		}
		carol.message("bob", "1")
		carol.want("message error bob 1 resource-constraint")
		dave.send(presence("", 2)) // its own side still sees presence
		bob.want("presence - alice/d ")
		n3.r.Active(addr("bob"), func(c *Ctx) {
			if !c.ReadOnly() {
				t.Error("the actor may change things")
			}
		})
		time.Sleep(SilentAfter)
		g.down(3)
		alice.want("presence unavailable bob/b ")

		time.Sleep(settingGrace.Get(n3.machine, 3) + time.Second)
		for _, c := range []*client{bob, carol, dave} {
			if c.ended() != stanza.StreamSystemShutdown {
				t.Errorf("%s ended with %q", c.name, c.ended())
			}
		}
		again := g.online(3, "bob/again")
		time.Sleep(time.Minute)
		if again.ended() != "" {
			t.Error("a session that came back was closed:", again.ended())
		}

		g.net.HealAll()
		n3.deaf.Store(false)
		n3.catchUp()
		n3.r.LeaderContact(0)
		synctest.Wait()
		if n3.fenced != 1 {
			t.Errorf("fenced %d times", n3.fenced)
		}
		again.message("alice", "2")
		again.want("message error alice 2 resource-constraint")
		n3.inc = cluster.IncarnationResult(g.must(cluster.StartEntry(3, "test", 1)).Value)
		time.Sleep(5 * time.Second)
		alice.want("presence - bob/again ")
		again.message("alice", "3")
		alice.want("message chat bob/again 3")
		alice.message("bob", "4")
		again.want("message chat alice/a 4")
		again.s.End(true, nil)
		alice.want("presence unavailable bob/again ")
	})
}

// TestShortIsolation: a node that loses the leader for a moment and was not declared down goes on as before.
func TestShortIsolation(t *testing.T) {
	simulate(t, 2, func(g *rig) {
		g.users(1, "alice")
		g.users(2, "bob")
		g.befriend("alice", "bob")
		time.Sleep(time.Second)
		alice, bob := g.online(2, "alice/a"), g.online(2, "bob/b")
		bob.take()
		n2 := g.nodes[2].r
		n2.LeaderContact(4 * time.Second)
		synctest.Wait()
		alice.send(presence("", 7))
		bob.want("presence - alice/a ")
		n2.LeaderContact(10 * time.Millisecond)
		synctest.Wait()
		bob.message("alice", "1")
		alice.want("message chat bob/b 1")
		at := g.nodes[1].r.actors.get(addr("alice")).find("a")
		if at == nil || at.Priority != 7 {
			t.Errorf("the home does not know what happened meanwhile: %+v", at)
		}
		alice.message("bob", "2")
		bob.want("message chat alice/a 2")
		time.Sleep(2 * time.Minute)
		if alice.ended() != "" || bob.ended() != "" {
			t.Error("sessions were closed")
		}
	})
}

// TestEndDuringIsolation: a session that ends on an isolated node ends at its home too.
func TestEndDuringIsolation(t *testing.T) {
	const wire = 10 * time.Millisecond
	leave := func(_ *rig, bob *client) { bob.s.End(true, nil) }
	for _, tc := range []struct {
		name string
		send *stanza.Packet // by the session, and under way when the isolation begins
		end  func(g *rig, bob *client)
	}{
		{"the client leaves", nil, leave},
		{"the connection breaks", nil, func(_ *rig, bob *client) { bob.s.End(false, nil) }},
		{"an administrator ends it", nil, func(g *rig, bob *client) {
			g.nodes[2].r.EndSessions(addr("bob"), "", stanza.StreamPolicyViolation, "")
		}},
		{"its presence changes", presence("", 3), leave},
	} {
		t.Run(tc.name, func(t *testing.T) {
			simulate(t, 2, func(g *rig) {
				g.net.SetDelay(func(string, string) (base, jitter time.Duration) { return wire, 0 })
				g.users(1, "alice", "bob")
				time.Sleep(time.Second)
				alice, bob := g.online(1, "alice/a"), g.online(2, "bob/b")
				time.Sleep(10 * wire)
				if tc.send != nil {
					bob.send(tc.send)
					time.Sleep(wire + wire/2) // the home asks for the row
				}
				g.nodes[2].r.LeaderContact(IsolationAfter + time.Millisecond)
				time.Sleep(10 * wire)
				tc.end(g, bob)
				synctest.Wait()
				g.nodes[2].r.LeaderContact(0)
				time.Sleep(time.Second)
				alice.message("bob", "m")
				time.Sleep(time.Second)
				alice.want("message error bob m service-unavailable")
				if n := g.nodes[1].r.Stats().Attached; n != 1 {
					t.Errorf("%d sessions are attached at the home", n)
				}
			})
		})
	}
}

// TestReplacedDuringIsolation: who logs in again on an isolated node is not thrown out for the session that ended there.
func TestReplacedDuringIsolation(t *testing.T) {
	simulate(t, 2, func(g *rig) {
		g.users(1, "alice", "bob")
		time.Sleep(time.Second)
		alice, old := g.online(1, "alice/a"), g.online(2, "bob/b")
		g.nodes[2].r.LeaderContact(IsolationAfter + time.Millisecond)
		synctest.Wait()
		old.s.End(false, nil)
		again := g.online(2, "bob/b")
		g.nodes[2].r.LeaderContact(0)
		time.Sleep(time.Second)
		alice.message("bob", "m")
		again.want("message chat alice/a m")
		if again.ended() != "" {
			t.Errorf("the new session ended with %q", again.ended())
		}
	})
}

// TestLatePresence: what a home kept for a session does not come over what another home did since.
func TestLatePresence(t *testing.T) {
	simulate(t, 2, func(g *rig) {
		g.users(1, "bob")
		time.Sleep(time.Second)
		bob := g.online(2, "bob/b")
		bob.send(presence("", 1))
		bob.send(presence("", 2))
		synctest.Wait()
		for _, tc := range []struct {
			count uint64
			want  int8
		}{{1, 2}, {2, 2}, {3, 7}, {4, 7}} {
			late := stanza.AppendBinary(appendUint64(appendUint64(nil, bob.s.id), tc.count), presence("", 7))
			g.nodes[2].r.Frame(1, kindPublish, late)
			if row, _ := g.nodes[2].hot.Row(addr("bob"), "b"); row.Priority != tc.want {
				t.Errorf("after change %d the priority is %d, not %d", tc.count, row.Priority, tc.want)
			}
		}
	})
}

func TestEndSessionsAnywhere(t *testing.T) {
	simulate(t, 3, func(g *rig) {
		g.users(1, "alice")
		time.Sleep(time.Second)
		one, two, three := g.online(1, "alice/1"), g.online(2, "alice/2"), g.online(3, "alice/3")
		g.nodes[3].r.EndSessions(addr("alice"), "2", stanza.StreamNotAuthorized, "bye")
		synctest.Wait()
		if two.ended() != stanza.StreamNotAuthorized || one.ended() != "" || three.ended() != "" {
			t.Errorf("ended: %q %q %q", one.ended(), two.ended(), three.ended())
		}
		g.nodes[1].r.EndSessions(addr("alice"), "", stanza.StreamNotAuthorized, "bye")
		synctest.Wait()
		if one.ended() == "" || three.ended() == "" {
			t.Error("not all sessions ended")
		}
		for id, n := range g.nodes {
			if st := n.r.Stats(); st.Sessions != 0 || st.Attached != 0 || st.Rows != 0 {
				t.Errorf("node %d keeps %+v", id, st)
			}
		}
	})
}

func TestStopSaysGoodbye(t *testing.T) {
	simulate(t, 2, func(g *rig) {
		g.users(1, "alice", "bob")
		g.befriend("alice", "bob")
		time.Sleep(time.Second)
		alice, bob := g.online(2, "alice/a"), g.online(1, "bob/b")
		bob.take()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := g.nodes[2].r.Stop(ctx); err != nil || ctx.Err() != nil {
			t.Errorf("stop: %v, %v", err, ctx.Err())
		}
		if alice.ended() != stanza.StreamSystemShutdown {
			t.Errorf("ended with %q", alice.ended())
		}
		bob.want("presence unavailable alice/a ")
		if _, err := g.nodes[2].r.Bind(ctx, BindRequest{User: addr("alice"), Sink: &client{g: g}}); !fault.Is(err, fault.Unavailable) {
			t.Errorf("bind while stopping: %v", err)
		}
	})
}

// find returns the attached session of a resource; tests read it when the bubble is at rest.
func (a *Actor) find(resource string) *Attached {
	if a == nil {
		return nil
	}
	return a.SessionByResource(resource)
}

// SetMarkOf sets a mark from outside the actor and waits for it.
func (a *Actor) SetMarkOf(name, key, value string) (err error) {
	a.post(event{call: func(a *Actor) { err = a.SetMark(a.find(addr(name).Resource), key, value) }})
	synctest.Wait()
	return err
}

// breakLinks closes every connection between nodes; listeners stay.
func (g *rig) breakLinks() {
	for _, n := range g.nodes {
		for _, l := range n.r.links.Peers() {
			n.r.links.Break(l.Node)
		}
	}
}

// homes returns the home and the backup of a user.
func (g *rig) homes(t *testing.T, name string) [2]uint32 {
	h, ok := g.nodes[1].r.HomeOf(addr(name))
	if !ok {
		t.Fatal("no home")
	}
	return [2]uint32{h.Node, h.Backup}
}
