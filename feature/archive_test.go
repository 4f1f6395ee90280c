package feature_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	message "muster/feature/message/state"
	"muster/fsm/config"
	"muster/router/stanza"
)

// archivePage is an answer to a query as a client sees it.
type archivePage struct {
	bodies, ids, stamps []string
	fin                 *stanza.Element // nil: refused
	refusal             *stanza.Packet
}

// archive asks for a page of the client's own archive; fields of the form are "name=value".
func (c *client) archive(set string, fields ...string) archivePage {
	c.w.t.Helper()
	form := ""
	if len(fields) > 0 {
		form = strings.Replace(submit(pairsOf(fields)...), "http://jabber.org/protocol/admin", stanza.NSMAM, 1)
	}
	c.take()
	c.send("<iq type='set' id='page'><query xmlns='urn:xmpp:mam:2' queryid='q7'>" + form + "<set xmlns='http://jabber.org/protocol/rsm'>" + set + "</set></query></iq>")
	var page archivePage
	for _, p := range c.take() {
		if p.Kind == stanza.KindIQ && p.ID == "page" {
			if p.Type == stanza.TypeError {
				page.refusal = p
				return page
			}
			payload, _ := p.Payload()
			page.fin = p.Element(payload)
			continue
		}
		child, ok := p.Child(stanza.NSMAM, "result")
		if !ok {
			continue
		}
		if page.fin != nil {
			c.w.t.Error("a result comes after the end of the page")
		}
		result := p.Element(child)
		forwarded := result.Find(stanza.NSForward, "forwarded")
		inside := forwarded.Find(stanza.NSClient, "message")
		if id := inside.Find(stanza.NSStanzaID, "stanza-id"); result.Attr("queryid") != "q7" || id.Attr("id") != result.Attr("id") || id.Attr("by") != c.session.JID().Bare().String() {
			c.w.t.Errorf("a result without the right ids: %s", p.AppendTo(nil))
		}
		page.bodies = append(page.bodies, inside.Find(stanza.NSClient, "body").Text())
		page.ids = append(page.ids, result.Attr("id"))
		page.stamps = append(page.stamps, forwarded.Find(stanza.NSDelay, "delay").Attr("stamp"))
	}
	if page.fin == nil {
		c.w.t.Fatal("the page did not end")
	}
	return page
}

func pairsOf(fields []string) (out []string) {
	for _, f := range fields {
		name, value, _ := strings.Cut(f, "=")
		out = append(out, name, value)
	}
	return out
}

// end returns what the page's end says: the first or the last id.
func (p *archivePage) end(name string) string {
	return p.fin.Find(stanza.NSRSM, "set").Find(stanza.NSRSM, name).Text()
}

// chat fills an archive with numbered messages, a second apart, every third with carol.
func chat(w *world, n int) (alice *client, bodies []string) {
	for _, name := range []string{"alice", "bob", "carol"} {
		w.addUser(name, false)
	}
	alice = w.login("alice/phone")
	for i := range n {
		body := fmt.Sprint("message ", i)
		to := "bob"
		if i%3 == 0 {
			to = "carol"
		}
		alice.send("<message type='chat' to='" + to + "@example.com'><body>" + body + "</body></message>")
		bodies = append(bodies, body)
		time.Sleep(time.Second + 123_456_789)
	}
	return alice, bodies
}

func TestPageThroughAnArchive(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		alice, bodies := chat(w, 120)
		var forward, back, ids, stamps []string
		set := ""
		for pages := 1; ; pages++ {
			p := alice.archive(set)
			forward, ids, stamps = append(forward, p.bodies...), append(ids, p.ids...), append(stamps, p.stamps...)
			if len(p.bodies) > 50 || p.end("first") != p.ids[0] || p.end("last") != p.ids[len(p.ids)-1] {
				t.Fatalf("a page of %d, from %s to %s", len(p.bodies), p.end("first"), p.end("last"))
			}
			if set = "<after>" + p.end("last") + "</after>"; p.fin.Attr("complete") == "true" {
				if pages != 3 {
					t.Errorf("%d pages", pages)
				}
				break
			}
		}
		for set := "<max>33</max><before/>"; ; {
			p := alice.archive(set)
			back = append(p.bodies, back...)
			if set = "<max>33</max><before>" + p.end("first") + "</before>"; p.fin.Attr("complete") == "true" {
				break
			}
		}
		if !slices.Equal(forward, bodies) || !slices.Equal(back, bodies) {
			t.Errorf("forwards %q, backwards %q", forward, back)
		}
		for _, tc := range []struct {
			name     string
			fields   []string
			want     []string
			complete bool
		}{
			{"from the time that it was shown with", []string{"start=" + stamps[117]}, bodies[117:], true},
			{"up to the time that it was shown with", []string{"end=" + stamps[2]}, bodies[:3], true},
			{"between ids", []string{"after-id=" + ids[7], "before-id=" + ids[10]}, bodies[8:10], true},
			{"one of them", []string{"ids=" + ids[55]}, bodies[55:56], true},
			{"with carol", []string{"with=carol@example.com", "start=" + stamps[100], "end=" + stamps[110]}, []string{bodies[102], bodies[105], bodies[108]}, true},
			{"a longer range", []string{"start=" + stamps[10]}, bodies[10:60], false},
		} {
			p := alice.archive("", tc.fields...)
			if !slices.Equal(p.bodies, tc.want) || (p.fin.Attr("complete") == "true") != tc.complete {
				t.Errorf("%s: %q, complete %q; want %q", tc.name, p.bodies, p.fin.Attr("complete"), tc.want)
			}
		}
		w.must(config.SetEntry("archive.page_size", "7", 0))
		if p := alice.archive(""); len(p.bodies) != 7 {
			t.Errorf("a page has %d messages after the setting was changed", len(p.bodies))
		}
		// what was trimmed is gone, and so is the place of its id
		m, _ := message.ByID(w.messages, "alice@example.com", ids[100])
		if _, err := (keeper{w}).Propose(context.Background(), message.TrimEntry(m.Number)); err != nil {
			t.Fatal(err)
		}
		if p := alice.archive(""); len(p.bodies) == 0 || p.bodies[0] != bodies[100] {
			t.Errorf("after trimming the archive begins with %q", p.bodies)
		}
		if p := alice.archive("<after>" + ids[99] + "</after>"); p.refusal == nil || p.refusal.Element(p.refusal.Children[0]).Find(stanza.NSStanzas, "item-not-found") == nil {
			t.Errorf("after a message that was trimmed: %+v", p)
		}
	})
}

// TestArchiveOfANodeThatIsCutOff: what it has can be read, and the answer says that it may not be all.
func TestArchiveOfANodeThatIsCutOff(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		alice, bodies := chat(w, 3)
		w.router.LeaderContact(time.Minute)
		w.settle()
		p := alice.archive("")
		if !slices.Equal(p.bodies, bodies) || p.fin.Attr("stable") != "false" || p.fin.Attr("complete") != "true" {
			t.Errorf("got %q, stable %q, complete %q", p.bodies, p.fin.Attr("stable"), p.fin.Attr("complete"))
		}
		alice.take()
		alice.send("<iq type='set' id='p'><prefs xmlns='urn:xmpp:mam:2' default='never'/></iq>")
		for _, answer := range alice.take() {
			if answer.ID == "p" && answer.Type != stanza.TypeError {
				t.Errorf("preferences were changed: %s", answer.AppendTo(nil))
			}
		}
		w.router.LeaderContact(0)
		w.settle()
		if p := alice.archive(""); p.fin.Attr("stable") != "" {
			t.Error("the node is back, and its answers are still unstable")
		}
	})
}

// TestLargePageIsCut: what a page carries fits into a session's queue.
func TestLargePageIsCut(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.addUser("alice", false)
		w.addUser("bob", false)
		alice := w.login("alice/phone")
		for range 10 {
			alice.send("<message type='chat' to='bob@example.com'><body>" + strings.Repeat("x", 100<<10) + "</body></message>")
		}
		got, set := 0, ""
		for pages := 0; pages < 20; pages++ {
			p := alice.archive(set)
			if got += len(p.bodies); len(p.bodies) > 2 {
				t.Errorf("a page of %d large messages", len(p.bodies))
			}
			if set = "<after>" + p.end("last") + "</after>"; p.fin.Attr("complete") == "true" {
				break
			}
		}
		if got != 10 {
			t.Errorf("%d messages came", got)
		}
	})
}
