package xmpp

import (
	"fmt"
	"strings"
	"testing"

	"muster/internal/jid"
	"muster/router/stanza"
)

func presence(from, typ, inner string) *stanza.Packet {
	return stanza.WithInner(stanza.KindPresence, typ, "", jid.MustParse(from), jid.JID{}, []byte(inner))
}

func message(from, id, inner string) *stanza.Packet {
	return stanza.WithInner(stanza.KindMessage, "chat", id, jid.MustParse(from), jid.JID{}, []byte(inner))
}

const composing = `<composing xmlns="http://jabber.org/protocol/chatstates"/>`

func TestInactiveClientsAreSpared(t *testing.T) {
	f := start(t)
	c := f.online("alice", "phone")
	sink := f.router.session(c.full).sink
	deliver := func(p *stanza.Packet) {
		t.Helper()
		if err := sink.Deliver(p); err != nil {
			t.Fatal(err)
		}
	}
	sync := func() { // what was sent has been handled
		c.send(`<iq type='get' id='p'><ping xmlns='urn:xmpp:ping'/></iq>`)
	}
	s := sink.(*session)
	c.send(`<inactive xmlns='urn:xmpp:csi:0'/>`)
	f.until("inactive", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.quiet })
	deliver(presence("bob@example.com/a", "", "<show>away</show>"))
	deliver(presence("carol@example.com/b", "", ""))
	deliver(message("bob@example.com/a", "state1", composing))
	deliver(message("bob@example.com/a", "state2", `<paused xmlns="http://jabber.org/protocol/chatstates"/>`))
	deliver(presence("bob@example.com/a", "unavailable", ""))
	deliver(message("bob@example.com/a", "real", "<body>wake up</body>"))
	c.expect(`^<presence from="carol@example.com/b"/><message from="bob@example.com/a" type="chat" id="state2">.*</message>` +
		`<presence from="bob@example.com/a" type="unavailable"/><message [^>]*id="real"`)
	deliver(presence("bob@example.com/a", "", ""))
	sync()
	got := c.expect(`.*type="result" id="p"`)
	if !strings.Contains(got, `<presence from="bob@example.com/a"/>`) {
		t.Errorf("what is sent must come after what was held back: %s", got)
	}
	deliver(presence("bob@example.com/a", "", "<show>dnd</show>"))
	c.send(`<active xmlns='urn:xmpp:csi:0'/>`)
	c.expect(`<show>dnd</show>`)
	deliver(presence("bob@example.com/a", "", "<show>xa</show>"))
	c.expect(`<show>xa</show>`)
}

func TestHeldStanzasAreBounded(t *testing.T) {
	f := start(t)
	c := f.online("alice", "phone")
	s := f.router.session(c.full).sink.(*session)
	c.send(`<inactive xmlns='urn:xmpp:csi:0'/>`)
	f.until("inactive", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.quiet })
	for i := range maxHeld {
		if err := s.Deliver(presence(fmt.Sprintf("u%d@example.com/x", i), "", "")); err != nil {
			t.Fatal(err)
		}
	}
	c.expect(fmt.Sprintf(`from="u%d@example.com/x"/>`, maxHeld-1))
}

func TestHoldable(t *testing.T) {
	for _, tt := range []struct {
		name string
		p    *stanza.Packet
		want bool
	}{
		{"available", presence("b@x/a", "", ""), true},
		{"unavailable", presence("b@x/a", "unavailable", ""), true},
		{"subscription request", presence("b@x", "subscribe", ""), false},
		{"presence error", presence("b@x", "error", ""), false},
		{"chat state", message("b@x/a", "", composing), true},
		{"chat state with hints", message("b@x/a", "", composing+`<no-store xmlns="urn:xmpp:hints"/><thread>1</thread>`), true},
		{"chat state with a body", message("b@x/a", "", composing+`<body>x</body>`), false},
		{"receipt", message("b@x/a", "", `<received xmlns="urn:xmpp:receipts" id="1"/>`), false},
		{"empty message", message("b@x/a", "", ""), false},
		{"iq", stanza.WithInner(stanza.KindIQ, "result", "1", jid.JID{}, jid.JID{}, nil), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := holdable(tt.p); got != tt.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestRoomPresenceIsNotReplaced(t *testing.T) {
	room := `<x xmlns="http://jabber.org/protocol/muc#user"><status code="110"/></x>`
	a, b := presence("room@x/nick", "", room), presence("room@x/nick", "unavailable", room)
	if obsolete(a, b) {
		t.Error("a status code was lost")
	}
	if !obsolete(presence("b@x/a", "", ""), presence("b@x/a", "unavailable", "")) {
		t.Error("presence is not replaced")
	}
	if obsolete(message("b@x/a", "", composing), presence("b@x/a", "", "")) || obsolete(presence("b@x/a", "", ""), presence("b@x/b", "", "")) {
		t.Error("something else was replaced")
	}
}
