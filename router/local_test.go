package router

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"muster/fsm/config"
	"muster/internal/fault"
	"muster/internal/jid"
	"muster/router/stanza"
)

func TestMessageBetweenLocalUsers(t *testing.T) {
	simulate(t, 1, func(g *rig) {
		g.users(1, "alice", "bob")
		alice, bob := g.online(1, "alice/a"), g.online(1, "bob/b")
		for i := range 10 {
			alice.message("bob", fmt.Sprint(i))
		}
		var want []string
		for i := range 10 {
			want = append(want, fmt.Sprintf("message chat alice/a %d", i))
		}
		bob.want(want...)
		alice.want()
	})
}

func TestSenderIsNeverBelieved(t *testing.T) {
	simulate(t, 1, func(g *rig) {
		g.users(1, "alice", "bob")
		alice, bob := g.online(1, "alice/a"), g.online(1, "bob/b")
		p := message(stanza.TypeChat, "bob", "x")
		p.From = addr("eve/e")
		if err := alice.s.Receive(context.Background(), p); err != nil {
			t.Fatal(err)
		}
		bob.want("message chat alice/a x")
	})
}

func TestAddressesThatAreNotHere(t *testing.T) {
	simulate(t, 1, func(g *rig) {
		g.users(1, "alice", "bob")
		alice := g.online(1, "alice/a")
		to := func(s string) jid.JID { return jid.MustParse(s) }
		tests := []struct {
			name string
			p    *stanza.Packet
			want []string
		}{
			{"message to another server", &stanza.Packet{Kind: stanza.KindMessage, ID: "1", To: to("x@other.example")}, []string{"message error x 1 remote-server-not-found"}},
			{"message to a subdomain", &stanza.Packet{Kind: stanza.KindMessage, ID: "1", To: to("x@rooms.example.com")}, []string{"message error x 1 remote-server-not-found"}},
			{"request to another server", &stanza.Packet{Kind: stanza.KindIQ, Type: "get", ID: "1", To: to("other.example")}, []string{"iq error other.example 1 remote-server-not-found"}},
			{"result to another server", &stanza.Packet{Kind: stanza.KindIQ, Type: "result", ID: "1", To: to("other.example")}, nil},
			{"subscription to another server", &stanza.Packet{Kind: stanza.KindPresence, Type: "subscribe", ID: "1", To: to("x@other.example")}, []string{"presence error x 1 remote-server-not-found"}},
			{"unavailable to another server", &stanza.Packet{Kind: stanza.KindPresence, Type: "unavailable", To: to("x@other.example")}, nil},
			{"message to the domain", &stanza.Packet{Kind: stanza.KindMessage, ID: "1", To: to(testDomain)}, []string{"message error example.com 1 service-unavailable"}},
			{"presence to the domain", &stanza.Packet{Kind: stanza.KindPresence, To: to(testDomain)}, nil},
			{"request to a resource of the domain", &stanza.Packet{Kind: stanza.KindIQ, Type: "get", ID: "1", To: to(testDomain + "/x")}, []string{"iq error example.com 1 service-unavailable"}},
			{"unknown request to the domain", request("get", testDomain, "1", "urn:nothing"), []string{"iq error example.com 1 service-unavailable"}},
			{"unknown request to the account", request("get", "", "1", "urn:nothing"), []string{"iq error alice 1 service-unavailable"}},
			{"request without a payload", &stanza.Packet{Kind: stanza.KindIQ, Type: "get", ID: "1"}, []string{"iq error alice 1 bad-request"}},
			{"result to the account", &stanza.Packet{Kind: stanza.KindIQ, Type: "result", ID: "1"}, nil},
			{"message to nobody known", &stanza.Packet{Kind: stanza.KindMessage, ID: "1", To: addr("nobody")}, []string{"message error nobody 1 service-unavailable"}},
			{"message to somebody offline", &stanza.Packet{Kind: stanza.KindMessage, ID: "1", To: addr("bob")}, []string{"message error bob 1 service-unavailable"}},
			{"error to nobody known", &stanza.Packet{Kind: stanza.KindMessage, Type: "error", ID: "1", To: addr("nobody")}, nil},
			{"presence to nobody known", &stanza.Packet{Kind: stanza.KindPresence, To: addr("nobody")}, nil},
			{"subscription to nobody known", &stanza.Packet{Kind: stanza.KindPresence, Type: "subscribe", To: addr("nobody")}, nil},
			{"request to nobody known", request("get", "nobody", "1", "urn:x"), []string{"iq error nobody 1 service-unavailable"}},
			{"request to somebody offline", request("get", "bob", "1", "urn:x"), []string{"iq error bob 1 service-unavailable"}},
			{"request to nobody's resource", request("get", "nobody/x", "1", "urn:x"), []string{"iq error nobody/x 1 service-unavailable"}},
			{"roster push to another", request("set", "bob/b", "1", stanza.NSRoster), []string{"iq error bob/b 1 forbidden"}},
			{"message without a recipient comes back", &stanza.Packet{Kind: stanza.KindMessage, Type: "chat", ID: "1"}, []string{"message chat alice/a 1"}},
		}
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				alice.g.t = t
				alice.send(tt.p)
				alice.want(tt.want...)
			})
		}
		g.t = t
	})
}

func TestConflictPolicies(t *testing.T) {
	tests := []struct {
		policy    string
		fault     fault.Code
		olderEnds stanza.StreamCondition
		renamed   bool
	}{
		{policy: conflictReplace, olderEnds: stanza.StreamConflict},
		{policy: conflictReject, fault: fault.Conflict},
		{policy: conflictRename, renamed: true},
	}
	for _, tt := range tests {
		t.Run(tt.policy, func(t *testing.T) {
			simulate(t, 2, func(g *rig) {
				g.set("session.conflict", tt.policy)
				g.users(1, "alice", "bob")
				g.befriend("alice", "bob")
				bob := g.online(1, "bob/b")
				older := g.online(2, "alice/a")
				bob.want("presence - alice/a ")
				c := &client{g: g, name: "newer"}
				s, err := g.nodes[1].r.Bind(context.Background(), BindRequest{User: addr("alice"), Resource: "a", Sink: c})
				synctest.Wait()
				if fault.CodeOf(err) != tt.fault {
					t.Fatalf("bind: %v, want %v", err, tt.fault)
				}
				if older.ended() != tt.olderEnds {
					t.Errorf("the older session ended with %q, want %q", older.ended(), tt.olderEnds)
				}
				if err == nil && (s.JID().Resource != "a") != tt.renamed {
					t.Errorf("bound %v", s.JID())
				}
				if tt.olderEnds != "" {
					bob.want("presence unavailable alice/a ")
				} else {
					bob.want()
				}
			})
		})
	}
}

func TestSessionsPerUserAreBounded(t *testing.T) {
	simulate(t, 1, func(g *rig) {
		g.set("session.max_per_user", "3")
		g.users(1, "alice")
		for i := range 3 {
			g.login(1, fmt.Sprintf("alice/%d", i))
		}
		_, err := g.nodes[1].r.Bind(context.Background(), BindRequest{User: addr("alice"), Sink: &client{g: g}})
		if !fault.Is(err, fault.TooLarge) {
			t.Errorf("a fourth session: %v", err)
		}
		if n := g.nodes[1].r.Stats().Sessions; n != 3 {
			t.Errorf("%d sessions are left", n)
		}
		_, err = g.nodes[1].r.Bind(context.Background(), BindRequest{User: addr("nobody"), Sink: &client{g: g}})
		if !fault.Is(err, fault.NotFound) {
			t.Errorf("a session of nobody: %v", err)
		}
	})
}

func TestSessionEnd(t *testing.T) {
	simulate(t, 2, func(g *rig) {
		g.users(1, "alice", "bob")
		g.befriend("alice", "bob")
		bob := g.online(1, "bob/b")
		for _, node := range []uint32{1, 2} {
			alice := g.online(node, "alice/a")
			bob.want("presence - alice/a ")
			alice.message("bob", "last")
			alice.s.End(true, nil)
			alice.s.End(true, nil)
			bob.want("message chat alice/a last", "presence unavailable alice/a ")
			if err := alice.s.Receive(context.Background(), message("chat", "bob", "x")); !fault.Is(err, fault.Gone) {
				t.Errorf("receive after the end: %v", err)
			}
		}
		for _, n := range g.nodes {
			if st := n.r.Stats(); n.id == 2 && st.Sessions != 0 || st.Rows != 1 {
				t.Errorf("node %d: %d sessions, %d rows", n.id, st.Sessions, st.Rows)
			}
		}
	})
}

func TestUndeliveredIsRoutedAgain(t *testing.T) {
	for _, node := range []uint32{1, 2} {
		t.Run(fmt.Sprint("session on node ", node), func(t *testing.T) {
			simulate(t, 2, func(g *rig) {
				g.users(1, "alice", "bob")
				alice, other := g.online(1, "alice/a"), g.online(1, "bob/other")
				bob := g.online(node, "bob/b")
				full, bare := message("chat", "bob/b", "full"), message("chat", "bob", "bare")
				head, iq := message("headline", "bob/b", "head"), request("get", "bob/b", "iq", "urn:x")
				for _, p := range []*stanza.Packet{full, bare, head, iq} {
					p.From = addr("alice/a")
				}
				bob.s.End(false, []*stanza.Packet{full, bare, head, iq, presence("", 0)})
				other.want("message chat alice/a full") // it has the bare one already
				alice.want("iq error bob/b iq service-unavailable")
				other.s.End(false, []*stanza.Packet{bare})
				alice.want("message error bob bare service-unavailable")
			})
		})
	}
}

func TestClientThatDoesNotRead(t *testing.T) {
	simulate(t, 1, func(g *rig) {
		g.users(1, "alice", "bob")
		alice, bob := g.online(1, "alice/a"), g.online(1, "bob/b")
		bob.limit = 3
		for i := range 5 {
			alice.message("bob", fmt.Sprint(i))
		}
		synctest.Wait()
		if bob.ended() != stanza.StreamResourceConstraint {
			t.Errorf("the session ended with %q", bob.ended())
		}
		got := alice.take()
		if len(got) != 2 || got[0] != "message error bob 3 service-unavailable" {
			t.Errorf("alice got %q", got)
		}
	})
}

func TestMailboxOverflowIsAnError(t *testing.T) {
	simulate(t, 1, func(g *rig) {
		g.users(1, "alice", "bob")
		alice, bob := g.online(1, "alice/a"), g.online(1, "bob/b")
		r := g.nodes[1].r
		gate := make(chan struct{})
		r.Active(addr("bob"), func(*Ctx) { <-gate })
		synctest.Wait()
		const sent = MaxMailbox + 100
		for i := range sent {
			alice.message("bob", fmt.Sprint(i))
		}
		synctest.Wait()
		close(gate)
		got, back := bob.take(), alice.take()
		if len(got) != MaxMailbox || len(back) != sent-MaxMailbox {
			t.Fatalf("bob got %d, alice %d back, of %d", len(got), len(back), sent)
		}
		if want := fmt.Sprintf("message error bob %d resource-constraint", MaxMailbox); back[0] != want {
			t.Errorf("alice got %q, want %q", back[0], want)
		}
	})
}

func TestInputIsHeldBack(t *testing.T) {
	simulate(t, 1, func(g *rig) {
		g.users(1, "alice")
		alice := g.login(1, "alice/a")
		gate := make(chan struct{})
		g.nodes[1].r.Active(addr("alice"), func(*Ctx) { <-gate })
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		n := 0
		for ; n < 1000; n++ {
			p := message("headline", "nobody", "x")
			if err := alice.s.Receive(ctx, p); err != nil {
				if !fault.Is(err, fault.Timeout) {
					t.Error(err)
				}
				break
			}
		}
		if n != InputWindow {
			t.Errorf("%d stanzas were taken, want %d", n, InputWindow)
		}
		close(gate)
		synctest.Wait()
		if err := alice.s.Receive(context.Background(), message("headline", "nobody", "x")); err != nil {
			t.Error(err)
		}
	})
}

func (g *rig) set(name, value string) {
	g.t.Helper()
	g.must(config.SetEntry(name, value, 0))
	synctest.Wait()
}
