package feature_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"muster/fsm/config"
	"muster/fsm/user"
	"muster/router/stanza"
)

const (
	queryRemove = "<query xmlns='jabber:iq:register'><remove/></query>"
	queryGet    = "<query xmlns='jabber:iq:register'/>"
)

func TestRegisterWhileLoggedIn(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.addUser("alice", false)
		alice := w.login("alice/phone")
		if p := alice.ask("get", queryGet); !strings.Contains(string(p.Inner), "service-unavailable") {
			t.Errorf("answered while it is off: %s", p.AppendTo(nil))
		}
		w.must(config.SetEntry("register.enabled", "true", 0))
		if p := alice.ask("get", queryGet); string(p.Inner) != `<query xmlns="jabber:iq:register"><registered/><username>alice</username><password/></query>` {
			t.Errorf("got %s", p.AppendTo(nil))
		}
		for name, tt := range map[string]struct{ payload, want string }{
			"another's password": {"<query xmlns='jabber:iq:register'><username>bob</username><password>x</password></query>", "not-allowed"},
			"no password":        {"<query xmlns='jabber:iq:register'><username>alice</username></query>", "bad-request"},
			"remove and more":    {"<query xmlns='jabber:iq:register'><remove/><username>alice</username></query>", "bad-request"},
		} {
			if p := alice.ask("set", tt.payload); !strings.Contains(string(p.Inner), tt.want) {
				t.Errorf("%s: %s", name, p.AppendTo(nil))
			}
		}
		before, _ := user.Get(w.machine, "alice@"+domain)
		alice.take()
		alice.send("<iq type='set' id='pw'><query xmlns='jabber:iq:register'><username>alice</username><password>sesame</password></query></iq>")
		time.Sleep(time.Second) // of the bubble: the password is hashed outside the actor
		synctest.Wait()
		after, _ := user.Get(w.machine, "alice@"+domain)
		if got := alice.take(); len(got) != 1 || got[0].Type != stanza.TypeResult || string(before.SHA256.StoredKey) == string(after.SHA256.StoredKey) {
			t.Errorf("a new password: %d answers, same key %v", len(got), string(before.SHA256.StoredKey) == string(after.SHA256.StoredKey))
		}
	})
}

// TestCancelIsAnsweredBeforeTheEnd: who deletes the own account gets the result
// once, then the stream error, on the node of the account's home and on another.
func TestCancelIsAnsweredBeforeTheEnd(t *testing.T) {
	for name, nodes := range map[string]uint32{"one node": 1, "three nodes": 3} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newCluster(t, nodes)
				defer w.close()
				w.commit = 10 * time.Millisecond // a round trip and a write: longer than a frame's way
				w.must(config.SetEntry("register.enabled", "true", 0))
				w.addUser("bob", false)
				bob := w.login("bob/phone")
				for id := uint32(1); id <= nodes; id++ {
					w.addUser("alice", false)
					alice, other := w.loginAt(id, "alice/phone"), w.loginAt(1, "alice/desk")
					alice.order()
					alice.send("<iq type='set' id='end'>" + queryRemove + "</iq>")
					time.Sleep(time.Second)
					w.settle()
					if got := alice.order(); !strings.HasPrefix(got, "result end; not-authorized ") {
						t.Errorf("from node %d: %s", id, got)
					}
					if got := other.order(); !strings.HasPrefix(got, "not-authorized ") {
						t.Errorf("the other session got %s", got)
					}
					if user.Exists(w.machine, "alice@"+domain) {
						t.Error("the account is still there")
					}
				}
				if bob.ended != "" {
					t.Errorf("somebody else's session ended: %s", bob.ended)
				}
			})
		})
	}
}

// TestLastWordIsForTheEndOnly: an account that is not deleted in the end leaves nothing unsaid behind.
func TestLastWordIsForTheEndOnly(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.must(config.SetEntry("register.enabled", "true", 0))
		w.addUser("alice", false)
		alice := w.login("alice/phone")
		w.router.LeaderContact(time.Minute)
		w.settle()
		if p := alice.ask("set", queryRemove); !strings.Contains(string(p.Inner), "resource-constraint") {
			t.Fatalf("without the log: %s", p.AppendTo(nil))
		}
		w.router.LeaderContact(0)
		w.settle()
		alice.take()
		w.must(user.DeleteEntry("alice@" + domain))
		w.settle()
		if got := alice.order(); !strings.HasPrefix(got, "not-authorized ") {
			t.Errorf("got %s", got)
		}
	})
}

// order takes what the client got: "type id" of each IQ, then the stream error.
func (c *client) order() string {
	var got []string
	for _, p := range c.take() {
		if p.Kind == stanza.KindIQ {
			got = append(got, p.Type+" "+p.ID)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended != "" {
		got = append(got, c.ended)
	}
	return strings.Join(got, "; ")
}
