package carbons

import (
	"testing"

	"muster/internal/jid"
	"muster/router/stanza"
)

func TestEligible(t *testing.T) {
	cases := []struct {
		name, xml      string
		sent, received bool
	}{
		{"chat", "<message type='chat'><body>x</body></message>", true, true},
		{"chat without body", "<message type='chat'><composing xmlns='http://jabber.org/protocol/chatstates'/></message>", true, true},
		{"normal with body", "<message><body>x</body></message>", true, true},
		{"unknown type with body", "<message type='letter'><body>x</body></message>", true, true},
		{"normal without body", "<message><x xmlns='urn:x'/></message>", false, false},
		{"body of another name space", "<message><body xmlns='urn:x'>x</body></message>", false, false},
		{"receipt", "<message><received xmlns='urn:xmpp:receipts' id='1'/></message>", true, true},
		{"marker", "<message><displayed xmlns='urn:xmpp:chat-markers:0' id='1'/></message>", true, true},
		{"groupchat", "<message type='groupchat'><body>x</body></message>", false, false},
		{"headline", "<message type='headline'><body>x</body></message>", false, false},
		{"error", "<message type='error'><body>x</body></message>", false, false},
		{"private", "<message type='chat'><body>x</body><private xmlns='urn:xmpp:carbons:2'/></message>", false, false},
		{"no copy", "<message type='chat'><body>x</body><no-copy xmlns='urn:xmpp:hints'/></message>", false, false},
		{"other hint", "<message type='chat'><body>x</body><no-store xmlns='urn:xmpp:hints'/></message>", true, true},
		{"copy", "<message type='chat'><sent xmlns='urn:xmpp:carbons:2'/></message>", false, false},
		{"room's private message", "<message type='chat'><body>x</body><x xmlns='http://jabber.org/protocol/muc#user'/></message>", true, false},
		{"invitation", "<message><x xmlns='http://jabber.org/protocol/muc#user'><invite to='a@b'/></x></message>", true, true},
		{"decline", "<message><x xmlns='http://jabber.org/protocol/muc#user'><decline to='a@b'/></x></message>", true, true},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			p, err := stanza.ParsePacket([]byte(tc.xml))
			if err != nil {
				t.Fatal(err)
			}
			if sent, received := eligible(p, false), eligible(p, true); sent != tc.sent || received != tc.received {
				t.Errorf("sent %v, received %v", sent, received)
			}
		})
	}
}

func TestWrap(t *testing.T) {
	p, err := stanza.ParsePacket([]byte("<message type='chat' from='a@x/r' to='b@y' id='1'><body>hi</body><x xmlns='urn:x'/></message>"))
	if err != nil {
		t.Fatal(err)
	}
	w := wrap("sent", p, jid.MustParse("a@x"))
	want := `<message from="a@x" type="chat"><sent xmlns="urn:xmpp:carbons:2"><forwarded xmlns="urn:xmpp:forward:0">` +
		`<message xmlns="jabber:client" from="a@x/r" to="b@y" type="chat" id="1"><body>hi</body><x xmlns="urn:x"/></message></forwarded></sent></message>`
	if got := string(w.AppendTo(nil)); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	if eligible(w, true) {
		t.Error("a copy would be copied")
	}
}
