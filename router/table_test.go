package router

import (
	"fmt"
	"testing"

	"muster/router/stanza"
)

// combination is one cell of RFC 6121 section 8.5.
type combination struct {
	kind stanza.Kind
	typ  string
	to   target
	have presenceState
}

// possible reports whether the cell can come up: a session that gets
// everything exists in every presence state but need not be available.
func every(fn func(c combination)) {
	types := map[stanza.Kind][]string{
		stanza.KindMessage:  {stanza.TypeNormal, stanza.TypeChat, stanza.TypeHeadline, stanza.TypeGroupchat, stanza.TypeError},
		stanza.KindPresence: {"", stanza.TypeUnavailable, stanza.TypeSubscribe, stanza.TypeSubscribed, stanza.TypeUnsubscribe, stanza.TypeUnsubscribed, stanza.TypeProbe, stanza.TypeError},
		stanza.KindIQ:       {stanza.TypeGet, stanza.TypeSet, stanza.TypeResult, stanza.TypeError},
	}
	for kind, list := range types {
		for _, typ := range list {
			for to := targetBare; to <= targetGone; to++ {
				for have := stateNone; have <= stateReady; have++ {
					fn(combination{kind, typ, to, have})
				}
			}
		}
	}
}

// TestRoutingTable states each rule of the table on its own, as the RFC words it, and checks every combination by all of them.
func TestRoutingTable(t *testing.T) {
	is := func(s string, list ...string) bool {
		for _, l := range list {
			if s == l {
				return true
			}
		}
		return false
	}
	rules := []struct {
		name    string
		applies func(c combination) bool
		want    action
	}{
		{"a message to an attached resource is delivered, whatever its type", func(c combination) bool {
			return c.kind == stanza.KindMessage && c.to == targetSession
		}, doDeliver},
		{"an error that has no session is ignored", func(c combination) bool {
			return c.typ == stanza.TypeError && c.to != targetSession
		}, doIgnore},
		{"groupchat never reaches an account (8.5.2.1.1)", func(c combination) bool {
			return c.typ == stanza.TypeGroupchat && c.to != targetSession
		}, doRefuse},
		{"a headline to the account goes to all of priority 0 or more (8.5.2.1.1)", func(c combination) bool {
			return c.typ == stanza.TypeHeadline && c.to == targetBare && c.have == stateReady
		}, doAll},
		{"a headline without such a session is ignored (8.5.2.2.1)", func(c combination) bool {
			return c.typ == stanza.TypeHeadline && c.to == targetBare && c.have != stateReady
		}, doIgnore},
		{"a headline to a missing resource is ignored (8.5.3.2.1)", func(c combination) bool {
			return c.typ == stanza.TypeHeadline && (c.to == targetMissing || c.to == targetGone)
		}, doIgnore},
		{"a normal message to a missing resource is refused (8.5.3.2.1)", func(c combination) bool {
			return c.typ == stanza.TypeNormal && c.to == targetMissing
		}, doRefuse},
		{"chat and normal to the account go to all of priority 0 or more (8.5.2.1.1)", func(c combination) bool {
			return is(c.typ, stanza.TypeChat, stanza.TypeNormal) && c.to == targetBare && c.have == stateReady
		}, doAll},
		{"chat to a missing resource is as if to the account (8.5.3.2.1)", func(c combination) bool {
			return c.typ == stanza.TypeChat && c.to == targetMissing && c.have == stateReady
		}, doAll},
		{"what a session had not yet got goes to the others", func(c combination) bool {
			return is(c.typ, stanza.TypeChat, stanza.TypeNormal) && c.to == targetGone && c.have == stateReady
		}, doAll},
		{"negative priority is as good as offline (8.5.2.2.1)", func(c combination) bool {
			return c.typ == stanza.TypeChat && c.to != targetSession && c.have != stateReady ||
				c.typ == stanza.TypeNormal && (c.to == targetBare || c.to == targetGone) && c.have != stateReady
		}, doStore},
		{"presence to the account goes to every available resource (8.5.2.1.2)", func(c combination) bool {
			return c.kind == stanza.KindPresence && is(c.typ, "", stanza.TypeUnavailable) && c.to == targetBare && c.have != stateNone
		}, doEvery},
		{"presence to an account without resources is ignored (8.5.2.2.2)", func(c combination) bool {
			return c.kind == stanza.KindPresence && is(c.typ, "", stanza.TypeUnavailable) && c.to == targetBare && c.have == stateNone
		}, doIgnore},
		{"presence to an attached resource is delivered (8.5.3.1)", func(c combination) bool {
			return c.kind == stanza.KindPresence && is(c.typ, "", stanza.TypeUnavailable, stanza.TypeError) && c.to == targetSession
		}, doDeliver},
		{"presence to a missing resource is ignored (8.5.3.2.2)", func(c combination) bool {
			return c.kind == stanza.KindPresence && is(c.typ, "", stanza.TypeUnavailable) && (c.to == targetMissing || c.to == targetGone)
		}, doIgnore},
		{"subscriptions and probes never reach a client by this table", func(c combination) bool {
			return is(c.typ, stanza.TypeSubscribe, stanza.TypeSubscribed, stanza.TypeUnsubscribe, stanza.TypeUnsubscribed, stanza.TypeProbe)
		}, doIgnore},
		{"an IQ to an attached resource is delivered (8.5.3.1)", func(c combination) bool {
			return c.kind == stanza.KindIQ && c.to == targetSession
		}, doDeliver},
		{"a request to the account is answered by the server (8.5.2.1.3)", func(c combination) bool {
			return is(c.typ, stanza.TypeGet, stanza.TypeSet) && c.to == targetBare
		}, doAnswer},
		{"a request to a missing resource is refused (8.5.3.2.3)", func(c combination) bool {
			return is(c.typ, stanza.TypeGet, stanza.TypeSet) && (c.to == targetMissing || c.to == targetGone)
		}, doRefuse},
		{"a result without a session is ignored", func(c combination) bool {
			return c.typ == stanza.TypeResult && c.to != targetSession
		}, doIgnore},
	}
	every(func(c combination) {
		got, applied := decide(c.kind, c.typ, c.to, c.have), 0
		for _, rule := range rules {
			if !rule.applies(c) {
				continue
			}
			applied++
			if got != rule.want {
				t.Errorf("%v %q to %d with %d: got %d, want %d by the rule that %s", c.kind, c.typ, c.to, c.have, got, rule.want, rule.name)
			}
		}
		if applied != 1 {
			t.Errorf("%v %q to %d with %d: %d rules say what to do", c.kind, c.typ, c.to, c.have, applied)
		}
	})
}

// TestUnknownLooksOffline: who asks learns nothing about who exists.
func TestUnknownLooksOffline(t *testing.T) {
	every(func(c combination) {
		if c.have != stateNone || c.to != targetBare && c.to != targetMissing {
			return
		}
		do := decide(c.kind, c.typ, c.to, c.have)
		answered := do == doRefuse || do == doStore || do == doAnswer
		if refuseUnknown(c.kind, c.typ) != answered {
			t.Errorf("%v %q to target %d: unknown user answered: %v, offline user answered: %v", c.kind, c.typ, c.to, !answered, answered)
		}
	})
}

// TestRoutingTableEndToEnd plays the table with real sessions, for each presence state of the recipient.
func TestRoutingTableEndToEnd(t *testing.T) {
	tests := []struct {
		name     string
		sessions map[string]int // resource → priority; 99: connected, not available
		typ, to  string
		reached  []string
		answer   string
	}{
		{"chat to the account", map[string]int{"a": 0, "b": 5, "n": -1, "c": 99}, "chat", "bob", []string{"a", "b"}, ""},
		{"normal to the account", map[string]int{"a": 0, "b": 5, "n": -1}, "normal", "bob", []string{"a", "b"}, ""},
		{"a type nobody knows", map[string]int{"a": 0}, "strange", "bob", []string{"a"}, ""},
		{"headline to the account", map[string]int{"a": 0, "n": -1}, "headline", "bob", []string{"a"}, ""},
		{"groupchat to the account", map[string]int{"a": 0}, "groupchat", "bob", nil, "service-unavailable"},
		{"error to the account", map[string]int{"a": 0}, "error", "bob", nil, ""},
		{"chat, negative only", map[string]int{"n": -1}, "chat", "bob", nil, "service-unavailable"},
		{"headline, negative only", map[string]int{"n": -1}, "headline", "bob", nil, ""},
		{"chat, connected only", map[string]int{"c": 99}, "chat", "bob", nil, "service-unavailable"},
		{"chat to a negative resource", map[string]int{"n": -1, "a": 0}, "chat", "bob/n", []string{"n"}, ""},
		{"groupchat to a resource", map[string]int{"a": 0}, "groupchat", "bob/a", []string{"a"}, ""},
		{"error to a resource", map[string]int{"a": 0}, "error", "bob/a", []string{"a"}, ""},
		{"chat to a connected resource", map[string]int{"c": 99}, "chat", "bob/c", []string{"c"}, ""},
		{"chat to a missing resource", map[string]int{"a": 0, "b": 1}, "chat", "bob/x", []string{"a", "b"}, ""},
		{"normal to a missing resource", map[string]int{"a": 0}, "normal", "bob/x", nil, "service-unavailable"},
		{"headline to a missing resource", map[string]int{"a": 0}, "headline", "bob/x", nil, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			simulate(t, 2, func(g *rig) {
				g.users(1, "alice", "bob")
				alice := g.online(1, "alice/a")
				bobs := map[string]*client{}
				for res, prio := range tt.sessions {
					c := g.login(uint32(1+len(bobs)%2), "bob/"+res)
					if prio != 99 {
						c.send(presence("", prio))
					}
					bobs[res] = c
				}
				alice.take()
				alice.send(message(tt.typ, tt.to, "m"))
				reached := map[string]bool{}
				for _, res := range tt.reached {
					reached[res] = true
				}
				for res, c := range bobs {
					if got := c.take(); len(got) != 0 != reached[res] || len(got) > 1 {
						t.Errorf("bob/%s got %q, want any: %v", res, got, reached[res])
					}
				}
				var want []string
				if tt.answer != "" {
					from := tt.to
					want = []string{fmt.Sprintf("message error %s m %s", from, tt.answer)}
				}
				alice.want(want...)
			})
		})
	}
}
