package feature_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	blockstate "muster/feature/blocking/state"
	rosterstate "muster/feature/roster/state"
	"muster/internal/jid"
	"muster/log"
	"muster/router/stanza"
)

// relations are what an asker can be to the subject, and whether the subject's presence is for that asker.
var relations = []struct {
	name  string
	make  func(w *world)
	shown bool
}{
	{"stranger", func(*world) {}, false},
	{"asked and was not answered", func(w *world) { w.must(subscription("asker", "subject", rosterstate.Subscribe)) }, false},
	{"is watched by the subject", func(w *world) { w.must2(subscriptionEntries("subject", "asker")) }, false},
	{"watches", func(w *world) { w.must2(subscriptionEntries("asker", "subject")) }, true},
	{"friend", func(w *world) { w.befriend("asker", "subject") }, true},
	{"was refused again", func(w *world) {
		w.befriend("asker", "subject")
		w.must(subscription("subject", "asker", rosterstate.Unsubscribed))
	}, false},
	{"blocked friend", func(w *world) {
		w.befriend("asker", "subject")
		w.must(blockstate.AddEntry(jid.MustParse("subject@"+domain), []jid.JID{jid.MustParse("asker@" + domain)}))
	}, false},
	{"friend of a blocked domain", func(w *world) {
		w.befriend("asker", "subject")
		w.must(blockstate.AddEntry(jid.MustParse("subject@"+domain), []jid.JID{jid.MustParse(domain)}))
	}, false},
	{"friend who blocks", func(w *world) {
		w.befriend("asker", "subject")
		w.must(blockstate.AddEntry(jid.MustParse("asker@"+domain), []jid.JID{jid.MustParse("subject@" + domain)}))
	}, false},
}

func subscription(from, to string, t rosterstate.Type) *log.Entry {
	return rosterstate.SubscriptionEntry(rosterstate.Request{From: jid.MustParse(from + "@" + domain), To: jid.MustParse(to + "@" + domain), Type: t})
}

func (w *world) must2(entries []*log.Entry) {
	w.t.Helper()
	for _, e := range entries {
		w.must(e)
	}
}

// TestPresenceDoesNotLeak: default deny. Whatever way somebody without the
// right to a subject's presence tries, nothing of it comes back.
func TestPresenceDoesNotLeak(t *testing.T) {
	ways := []struct {
		name string
		try  func(asker, subject *client)
	}{
		{"sees it come", func(_, subject *client) { subject.send("<presence><status>SECRET</status></presence>") }},
		{"sees it go", func(_, subject *client) {
			subject.send("<presence type='unavailable'><status>SECRET</status></presence>")
		}},
		{"logs in after it", func(asker, _ *client) {
			asker.send("<presence type='unavailable'/>")
			asker.send("<presence/>")
		}},
		{"probes", func(asker, _ *client) { asker.send("<presence type='probe' to='subject@example.com'/>") }},
		{"probes the resource", func(asker, _ *client) { asker.send("<presence type='probe' to='subject@example.com/r'/>") }},
		{"asks for activity", func(asker, _ *client) { asker.request("subject@example.com", "get", requests[stanza.NSLast].payload) }},
		{"asks for abilities", func(asker, _ *client) {
			asker.request("subject@example.com", "get", requests[stanza.NSDiscoInfo].payload)
		}},
		{"asks for items", func(asker, _ *client) {
			asker.request("subject@example.com", "get", requests[stanza.NSDiscoItems].payload)
		}},
	}
	for _, rel := range relations {
		for _, way := range ways {
			t.Run(rel.name+" "+way.name, func(t *testing.T) {
				inWorld(t, func(t *testing.T, w *world) {
					w.addUser("asker", false)
					w.addUser("subject", false)
					rel.make(w)
					subject, asker := w.login("subject/r"), w.login("asker/r")
					subject.send("<presence><status>SECRET</status></presence>")
					asker.send("<presence/>")
					asker.forgetAll()
					way.try(asker, subject)
					if leak := asker.learned(); leak != "" && !rel.shown {
						t.Errorf("learned %s", leak)
					} else if leak == "" && rel.shown {
						t.Error("a watcher learned nothing")
					}
				})
			})
		}
	}
}

func (c *client) forgetAll() {
	c.take()
	c.mu.Lock()
	c.seen = nil
	c.mu.Unlock()
}

// learned returns what the client got from the subject that is not a refusal.
func (c *client) learned() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.seen {
		if p.From.Local == "subject" && p.Type != stanza.TypeError {
			return string(p.AppendTo(nil))
		}
	}
	return ""
}

// TestRefusalsLookAlike: who may not know of an account gets what an account that does not exist gives.
func TestRefusalsLookAlike(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.addUser("asker", false)
		w.addUser("subject", false)
		asker := w.login("asker/r")
		asker.send("<presence/>")
		for feature, r := range requests {
			if slices.Contains([]string{stanza.NSLast, stanza.NSPrivate, stanza.NSMAM, stanza.NSOfflineNodes}, feature) {
				continue // their specifications want forbidden for another's
			}
			there := asker.request("subject@example.com", r.typ, r.payload)
			nobody := asker.request("nobody@example.com", r.typ, r.payload)
			a := strings.ReplaceAll(string(there.AppendTo(nil)), "subject", "nobody")
			if b := string(nobody.AppendTo(nil)); a != b {
				t.Errorf("%s: %s and %s", feature, a, b)
			}
		}
	})
}

// TestCommandsAreForAdministrators: every command, every role.
func TestCommandsAreForAdministrators(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.addUser("root", true)
		w.addUser("alice", false)
		var nodes []string
		list := w.login("root/r").request(domain, "get", fmt.Sprintf("<query xmlns='%s' node='%s'/>", stanza.NSDiscoItems, stanza.NSCommands))
		payload, _ := list.Payload()
		for _, el := range list.Element(payload).All(stanza.NSDiscoItems, "item") {
			nodes = append(nodes, el.Attr("node"))
		}
		if len(nodes) < 20 {
			t.Fatalf("only %d commands are shown to an administrator", len(nodes))
		}
		alice := w.login("alice/r")
		for _, node := range nodes {
			for _, action := range []string{"execute", "complete", "cancel"} {
				p := alice.request(domain, "set", fmt.Sprintf("<command xmlns='%s' node='%s' action='%s' sessionid='x'>%s</command>",
					stanza.NSCommands, node, action, submit("accountjid", "alice@example.com", "accountjids", "root@example.com", "password", "x", "announcement", "x")))
				if p.Type != stanza.TypeError || p.Element(p.Children[0]).Find(stanza.NSStanzas, "forbidden") == nil {
					t.Errorf("%s %s: %s", action, node, p.AppendTo(nil))
				}
			}
			info := alice.request(domain, "get", fmt.Sprintf("<query xmlns='%s' node='%s'/>", stanza.NSDiscoInfo, node))
			if info.Type != stanza.TypeError {
				t.Errorf("%s is shown to everybody", node)
			}
		}
	})
}

// TestForgedPushes: what only a server may say never reaches a client from another user.
func TestForgedPushes(t *testing.T) {
	forged := []string{
		"<query xmlns='jabber:iq:roster'><item jid='mallory@example.com' subscription='both'/></query>",
		"<query xmlns='jabber:iq:roster' ver='9'><item jid='boss@example.com' subscription='remove'/></query>",
		"<block xmlns='urn:xmpp:blocking'><item jid='boss@example.com'/></block>",
		"<unblock xmlns='urn:xmpp:blocking'/>",
	}
	inWorld(t, func(t *testing.T, w *world) {
		w.addUser("mallory", false)
		w.addUser("bob", false)
		mallory, bob := w.login("mallory/r"), w.login("bob/r")
		bob.send("<presence/>")
		bob.take()
		for _, inner := range forged {
			for _, to := range []string{"bob@example.com", "bob@example.com/r"} {
				if p := mallory.request(to, "set", inner); p.Type != stanza.TypeError {
					t.Errorf("%s was taken", inner)
				}
			}
		}
		mallory.send("<iq type='result' id='x' to='bob@example.com'><query xmlns='jabber:iq:roster'/></iq>")
		mallory.send("<presence type='subscribed' to='bob@example.com'/>")
		mallory.send("<presence type='unsubscribed' to='bob@example.com'/>")
		if got := bob.take(); len(got) != 0 {
			t.Errorf("bob got %s", got[0].AppendTo(nil))
		}
	})
}
