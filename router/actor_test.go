package router

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"muster/fsm"
	"muster/fsm/config"
	"muster/internal/fault"
	"muster/internal/jid"
	"muster/router/hot"
	"muster/router/stanza"
)

// scripted is a feature made of functions.
type scripted func(reg *Registry)

// Name implements Feature.
func (scripted) Name() string { return "scripted" }

// Setup implements Feature.
func (s scripted) Setup(reg *Registry) error { s(reg); return nil }

// simulateWith is simulate with a feature.
func simulateWith(t *testing.T, n int, feature scripted, fn func(g *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, n, feature)
		defer g.close()
		fn(g)
	})
}

const testSpace = "urn:test"

// TestProposalHoldsTheInput: what the session sends after a change is handled after the change, other traffic goes on.
func TestProposalHoldsTheInput(t *testing.T) {
	for _, node := range []uint32{1, 2} {
		t.Run(fmt.Sprint("session on node ", node), func(t *testing.T) {
			var order []string
			var mu sync.Mutex
			note := func(s string) {
				mu.Lock()
				defer mu.Unlock()
				order = append(order, s)
			}
			simulateWith(t, 2, func(reg *Registry) {
				reg.HandleIQ(Account, testSpace, "query", func(c *Ctx, iq *stanza.Packet) {
					note("asked " + iq.ID)
					c.Propose(func(c *Ctx, res fsm.Result) {
						if res.Err != nil {
							c.Reply(iq.ErrorReply(stanza.FromFault(res.Err)))
							return
						}
						note("done " + iq.ID)
						c.Reply(iq.Result(nil))
					}, config.SetEntry("session.max_per_user", "7", 0))
				})
				reg.OnMessageOut(func(c *Ctx, p *stanza.Packet) { note("sent " + p.ID) })
				reg.OnMessageIn(func(c *Ctx, p *stanza.Packet, to []*Attached) { note("got " + p.ID) })
			}, func(g *rig) {
				g.users(1, "alice", "bob")
				time.Sleep(time.Second)
				alice, bob := g.online(node, "alice/a"), g.online(1, "bob/b")
				alice.send(request("set", "", "q1", testSpace))
				alice.message("bob", "m1")
				alice.send(request("set", "", "q2", testSpace))
				alice.message("bob", "m2")
				bob.message("alice", "in")
				time.Sleep(time.Second)
				alice.take()
				bob.want("message chat alice/a m1", "message chat alice/a m2")
				var mine []string
				for _, s := range order {
					if !strings.HasPrefix(s, "got ") && s != "sent in" {
						mine = append(mine, s)
					}
				}
				want := "asked q1,done q1,sent m1,asked q2,done q2,sent m2"
				if got := strings.Join(mine, ","); got != want {
					t.Errorf("order %s", got)
				}
				if at := indexOf(order, "got in"); at < 0 || at > indexOf(order, "done q1") {
					t.Errorf("other traffic waited: %v", order)
				}
			})
		})
	}
}

func indexOf(list []string, s string) int {
	for i, have := range list {
		if have == s {
			return i
		}
	}
	return -1
}

// TestProposalSurvivesTheHome: the stanza behind a lost proposal is handled by the new home, with the same key.
func TestProposalSurvivesTheHome(t *testing.T) {
	keys := map[string]int{}
	var mu sync.Mutex
	simulateWith(t, 3, func(reg *Registry) {
		reg.HandleIQ(Account, testSpace, "query", func(c *Ctx, iq *stanza.Packet) {
			e := config.SetEntry("session.max_per_user", "7", 0)
			c.Propose(func(c *Ctx, res fsm.Result) { c.Reply(iq.Result(nil)) }, e)
			mu.Lock()
			defer mu.Unlock()
			keys[e.Key]++
			if e.Actor != "alice@"+testDomain || e.Surface != "xmpp" || e.Time.IsZero() || e.Node != c.Router().Node() {
				t.Errorf("entry %+v", e)
			}
		})
	}, func(g *rig) {
		g.users(1, "alice")
		time.Sleep(time.Second)
		alice := g.online(3, "alice/a")
		alice.send(request("set", "", "q", testSpace))
		time.Sleep(500 * time.Microsecond) // the proposal is on its way
		g.kill(1)
		time.Sleep(SilentAfter)
		g.down(1)
		time.Sleep(time.Second)
		alice.want("iq result alice q")
		if len(keys) != 1 {
			t.Errorf("keys %v", keys)
		}
		for _, n := range keys {
			if n != 2 {
				t.Errorf("the request was handled %d times", n)
			}
		}
	})
}

func TestAsyncFailures(t *testing.T) {
	var got []fault.Code
	simulateWith(t, 1, func(reg *Registry) {
		reg.HandleIQ(Account, testSpace, "query", func(c *Ctx, iq *stanza.Packet) {
			c.Async(func(ctx context.Context) error {
				switch iq.ID {
				case "panics":
					panic("work")
				case "hangs":
					<-ctx.Done()
					return ctx.Err()
				}
				return errors.New("plain")
			}, func(c *Ctx, err error) {
				got = append(got, fault.CodeOf(err))
				c.Reply(iq.Result(nil))
			})
		})
	}, func(g *rig) {
		g.users(1, "alice")
		alice := g.online(1, "alice/a")
		for _, id := range []string{"panics", "hangs", "fails"} {
			alice.send(request("get", "", id, testSpace))
		}
		time.Sleep(proposeTimeout + time.Second)
		alice.want("iq result alice panics", "iq result alice hangs", "iq result alice fails")
		if fmt.Sprint(got) != fmt.Sprint([]fault.Code{fault.Internal, fault.Timeout, fault.Internal}) {
			t.Errorf("codes %v", got)
		}
	})
}

func TestOutstandingWorkIsBounded(t *testing.T) {
	simulate(t, 1, func(g *rig) {
		g.users(1, "alice")
		g.online(1, "alice/a")
		gate := make(chan struct{})
		refused, done := 0, 0
		g.nodes[1].r.Active(addr("alice"), func(c *Ctx) {
			for range maxOutstanding + 5 {
				c.Async(func(context.Context) error { <-gate; return nil }, func(_ *Ctx, err error) {
					if done++; fault.Is(err, fault.Overloaded) {
						refused++
					}
				})
			}
		})
		synctest.Wait()
		if refused != 5 || done != 5 {
			t.Errorf("%d refused", refused)
		}
		close(gate)
		synctest.Wait()
		if done != maxOutstanding+5 {
			t.Errorf("%d done", done)
		}
	})
}

// TestPanics: a handler that panics costs the session that caused it, and nobody else anything.
func TestPanics(t *testing.T) {
	simulateWith(t, 1, func(reg *Registry) {
		reg.HandleIQ(Account, testSpace, "query", func(c *Ctx, iq *stanza.Packet) { panic("handler") })
		reg.ScreenIn(func(c *Ctx, p *stanza.Packet) Verdict {
			if p.ID == "boom" && !p.IsError() {
				panic("screen")
			}
			return Pass
		})
		reg.Watch(config.SettingTable, func(fsm.Change) { panic("watcher") })
		reg.OnRow(func(c hot.Change) {
			if c.Resource == "row" {
				panic("row")
			}
		})
	}, func(g *rig) {
		g.users(1, "alice", "bob")
		alice, other, bob := g.online(1, "alice/a"), g.online(1, "alice/b"), g.online(1, "bob/b")
		alice.send(request("get", "", "q", testSpace))
		synctest.Wait()
		if alice.ended() != stanza.StreamInternalServerError || other.ended() != "" {
			t.Errorf("ended %q, %q", alice.ended(), other.ended())
		}
		bob.message("alice", "boom")
		bob.want("message error alice boom internal-server-error")
		bob.message("alice", "fine")
		other.want("message chat bob/b fine")
		g.set("session.max_per_user", "9")
		row := g.online(1, "alice/row")
		bob.message("alice/row", "x")
		row.want("message chat bob/b x")
		if n := g.nodes[1].r.Stats().Panics; n != 4 {
			t.Errorf("%d panics counted", n)
		}
	})
}

func TestScreens(t *testing.T) {
	simulateWith(t, 1, func(reg *Registry) {
		reg.ScreenOut(func(c *Ctx, p *stanza.Packet) *stanza.Error {
			if p.ID == "never" {
				return stanza.NewError(stanza.NotAcceptable, "")
			}
			return nil
		})
		reg.ScreenIn(func(c *Ctx, p *stanza.Packet) Verdict {
			switch {
			case c.Own():
				t.Error("an inbound stanza is the recipient's own")
			case p.IsError() && p.To.Local == "alice":
				return Pass
			case p.ID == "dropped":
				return Drop
			case p.ID == "bounced":
				return Bounce(stanza.NewError(stanza.ServiceUnavailable, ""))
			}
			return Pass
		})
	}, func(g *rig) {
		g.users(1, "alice", "bob")
		alice, bob := g.online(1, "alice/a"), g.online(1, "bob/b")
		alice.message("bob", "never")
		alice.want("message error bob never not-acceptable")
		p := presence("", 0)
		p.ID = "never"
		alice.send(p)
		alice.send(request("get", "bob/b", "never", "urn:x"))
		alice.want("iq error bob/b never not-acceptable")
		alice.message("bob", "dropped")
		alice.message("bob", "bounced")
		alice.send(message("error", "bob/b", "bounced"))
		alice.want("message error bob bounced service-unavailable")
		bob.want()
		alice.message("alice", "dropped") // the screens are for others
		alice.want("message chat alice/a dropped")
	})
}

func TestHooks(t *testing.T) {
	var told []string
	var mu sync.Mutex
	simulateWith(t, 1, func(reg *Registry) {
		note := func(s string) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, s)
		}
		reg.OnBind(func(c *Ctx) { note("bind " + c.Session.JID.Resource) })
		reg.OnUnbind(func(c *Ctx, clean bool) {
			note(fmt.Sprintf("unbind %s %v %v", c.Session.JID.Resource, clean, c.Session.Available()))
		})
		reg.OnPresenceOut(func(c *Ctx, p *stanza.Packet) bool { note("out " + p.ID); return p.ID == "mine" })
		reg.OnPresenceIn(func(c *Ctx, p *stanza.Packet) bool { note("in " + p.ID); return p.ID == "mine" })
		reg.Undeliverable(func(c *Ctx, p *stanza.Packet) bool { note("kept " + p.ID); return p.ID == "keep" })
		reg.Watch(config.SettingTable, func(c fsm.Change) { note("setting " + string(c.After)) })
	}, func(g *rig) {
		g.users(1, "alice", "bob")
		alice := g.login(1, "alice/a")
		synctest.Wait()
		bob := g.online(1, "bob/b")
		check := func(want ...string) {
			t.Helper()
			synctest.Wait()
			if strings.Join(told, ",") != strings.Join(want, ",") {
				t.Errorf("told %q, want %q", told, want)
			}
			told = nil
		}
		check("bind a", "bind b", "out ")
		p := presence("", 0)
		p.ID = "mine"
		alice.send(p)
		check("out mine")
		if g.nodes[1].hot.Online(addr("alice")) {
			t.Error("a presence that a feature handles was published")
		}
		for _, id := range []string{"mine", "default"} {
			d := presence("", 0)
			d.ID, d.To = id, addr("bob")
			alice.send(d)
		}
		check("out mine", "out default", "in default")
		bob.want("presence - alice/a default")
		bob.message("alice", "keep")
		bob.message("alice", "refuse")
		check("kept keep", "kept refuse")
		bob.want("message error alice refuse service-unavailable")
		g.set("session.max_per_user", "8")
		check("setting 8")
		bob.s.End(true, nil)
		check("unbind b true true")
		alice.s.End(false, nil)
		check("unbind a false false")
	})
}

func TestOtherAccountsHandlers(t *testing.T) {
	simulateWith(t, 2, func(reg *Registry) {
		reg.HandleIQ(Account, testSpace, "query", func(c *Ctx, iq *stanza.Packet) {
			c.Reply(iq.Result(stanza.NewBuilder("").Leaf("x", testSpace, "own", fmt.Sprint(c.Own()), "user", c.User().Local).Bytes()))
		})
		reg.HandleIQ(Domain, testSpace, "query", func(c *Ctx, iq *stanza.Packet) { c.Reply(iq.Result(nil)) })
	}, func(g *rig) {
		g.users(1, "alice")
		g.users(2, "bob")
		time.Sleep(time.Second)
		alice := g.online(1, "alice/a")
		alice.send(request("get", "", "own", testSpace))
		alice.send(request("get", "alice", "own2", testSpace))
		alice.send(request("get", testDomain, "domain", testSpace))
		alice.want("iq result alice own", "iq result alice own2", "iq result example.com domain")
		alice.send(request("get", "bob", "other", testSpace))
		alice.want("iq result bob other")
		alice.send(request("result", "bob", "r", testSpace))
		alice.want()
	})
}

func TestSummonAndActive(t *testing.T) {
	simulate(t, 2, func(g *rig) {
		g.users(1, "alice")
		ran := 0
		run := func(c *Ctx) { ran++ }
		g.nodes[1].r.Active(addr("alice"), run)
		synctest.Wait()
		if ran != 0 {
			t.Error("Active made an actor")
		}
		tests := []struct {
			name string
			node uint32
			user string
			want fault.Code
		}{{"home", 1, "alice", 0}, {"not the home", 2, "alice", fault.Gone}, {"nobody", 1, "nobody", fault.NotFound}}
		for _, tt := range tests {
			if err := g.nodes[tt.node].r.Summon(addr(tt.user), run); fault.CodeOf(err) != tt.want {
				t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
			}
		}
		synctest.Wait()
		if ran != 1 {
			t.Errorf("ran %d times", ran)
		}
		g.nodes[1].r.Active(addr("alice"), run)
		synctest.Wait()
		if ran != 2 {
			t.Errorf("ran %d times", ran)
		}
	})
}

func TestIdleActorsAreEvicted(t *testing.T) {
	simulate(t, 1, func(g *rig) {
		g.users(1, "alice", "bob")
		r := g.nodes[1].r
		alice := g.online(1, "alice/a")
		alice.message("bob", "1") // makes an actor for bob, who is not there
		alice.want("message error bob 1 service-unavailable")
		if n := r.Stats().Actors; n != 2 {
			t.Errorf("%d actors", n)
		}
		time.Sleep(5 * sweepEvery)
		if n := r.Stats().Actors; n != 1 {
			t.Errorf("%d actors after a while", n)
		}
		alice.message("bob", "2")
		alice.want("message error bob 2 service-unavailable")
		alice.s.End(true, nil)
		time.Sleep(5 * sweepEvery)
		if st := r.Stats(); st.Actors != 0 || st.Sessions != 0 || st.Attached != 0 {
			t.Errorf("left: %+v", st)
		}
	})
}

// TestOverrun: an actor that cannot take the changes that it must know of ends its sessions rather than let them believe old ones.
func TestOverrun(t *testing.T) {
	simulate(t, 1, func(g *rig) {
		g.users(1, "alice", "bob")
		alice, bob := g.online(1, "alice/a"), g.online(1, "bob/b")
		r := g.nodes[1].r
		gate := make(chan struct{})
		r.Active(addr("alice"), func(*Ctx) { <-gate })
		synctest.Wait()
		for range maxCalls + 10 {
			r.Active(addr("alice"), func(*Ctx) {})
		}
		close(gate)
		synctest.Wait()
		if alice.ended() != stanza.StreamResourceConstraint || bob.ended() != "" {
			t.Errorf("ended %q, %q", alice.ended(), bob.ended())
		}
		again := g.online(1, "alice/a")
		bob.message("alice", "1")
		again.want("message chat bob/b 1")
	})
}

func TestMarks(t *testing.T) {
	simulate(t, 2, func(g *rig) {
		g.users(1, "alice")
		time.Sleep(time.Second)
		for _, node := range []uint32{1, 2} {
			c := g.online(node, fmt.Sprint("alice/", node))
			res := c.s.JID().Resource
			g.nodes[1].r.Active(addr("alice"), func(c *Ctx) {
				at := c.SessionByResource(res)
				for i := range MaxMarks {
					if err := c.SetMark(at, fmt.Sprintf("directed/%04d", i), "x"); err != nil {
						t.Error(err)
						break
					}
				}
				if err := c.SetMark(at, "more", "x"); !fault.Is(err, fault.TooLarge) {
					t.Errorf("one too many: %v", err)
				}
				if err := c.SetMark(at, "directed/0000", strings.Repeat("x", MaxMarkBytes)); !fault.Is(err, fault.TooLarge) {
					t.Errorf("one too large: %v", err)
				}
				for i := 2; i < MaxMarks; i++ {
					_ = c.SetMark(at, fmt.Sprintf("directed/%04d", i), "")
				}
				_ = c.SetMark(at, "carbons", "1")
				var keys []string
				at.Marks("directed/", func(k, _ string) { keys = append(keys, k) })
				if fmt.Sprint(keys) != "[directed/0000 directed/0001]" || at.Mark("carbons") != "1" {
					t.Errorf("marks %v", keys)
				}
				at.SetData("k", 5)
				if at.Data("k") != 5 || at.Data("other") != nil {
					t.Error("data")
				}
			})
			synctest.Wait()
			c.s.mu.Lock()
			if len(c.s.marks.m) != 3 {
				t.Errorf("the session's node knows %d marks", len(c.s.marks.m))
			}
			c.s.mu.Unlock()
		}
	})
}

func TestActorValues(t *testing.T) {
	type key struct{}
	a := &Actor{}
	made := 0
	newInt := func() *int { made++; return new(int) }
	*Value(a, key{}, newInt) = 7
	if *Value(a, key{}, newInt) != 7 || made != 1 {
		t.Errorf("made %d times", made)
	}
}

func TestRegistryDescribes(t *testing.T) {
	g := newRegistry(nil)
	g.Advertise(Domain, "urn:b", "urn:a", "urn:b")
	g.Advertise(Account, "urn:c")
	g.Identity(Domain, "server", "im", "Muster")
	g.Identity(Domain, "server", "im", "Muster")
	g.Identity(Domain, "pubsub", "pep", "")
	g.DiscoForm(Domain, func() []byte { return []byte("<x/>") })
	g.DiscoForm(Domain, func() []byte { return nil })
	g.DiscoItem(Domain, func(*Ctx) []Item { return []Item{{JID: jid.JID{Domain: "x"}}} })
	d := g.Disco(Domain)
	if strings.Join(d.Features, ",") != "urn:a,urn:b" || len(d.Identities) != 2 || d.Identities[0].Category != "pubsub" || len(d.Forms) != 1 || len(d.Items) != 1 {
		t.Errorf("domain %+v", d)
	}
	if d := g.Disco(Account); strings.Join(d.Features, ",") != "urn:c" {
		t.Errorf("account %+v", d)
	}
	g.StreamFeature([]byte("<a/>"))
	g.StreamFeature([]byte("<b/>"))
	if s := string(g.streamFeatures()); s != "<a/><b/>" {
		t.Errorf("stream features %s", s)
	}
	defer func() {
		if recover() == nil {
			t.Error("a second handler was accepted")
		}
	}()
	h := func(*Ctx, *stanza.Packet) {}
	g.HandleIQ(Domain, "urn:a", "q", h)
	g.HandleIQ(Account, "urn:a", "q", h)
	g.HandleIQ(Domain, "urn:a", "q", h)
}
