package carbons

import (
	"muster/internal/jid"
	"muster/router/stanza"
)

// talk holds the namespaces of the payloads that belong to a conversation and
// so make a message without a body worth copying (XEP-0280 section 6.1).
var talk = map[string]bool{
	stanza.NSReceipts:   true,
	stanza.NSChatStates: true,
	stanza.NSMarkers:    true,
	stanza.NSCorrect:    true,
}

// eligible reports whether a message is copied to the user's other clients
// (XEP-0280 section 6). received tells the two directions apart: a private
// message from a room reaches every client that is in the room by itself.
func eligible(p *stanza.Packet, received bool) bool {
	switch p.MessageType() {
	case stanza.TypeGroupchat, stanza.TypeHeadline, stanza.TypeError:
		return false
	}
	if excluded(p) || received && fromRoom(p) {
		return false
	}
	if p.Type == stanza.TypeChat || p.Has(stanza.NSClient, "body") {
		return true
	}
	for _, c := range p.Children {
		if talk[c.Space] {
			return true
		}
	}
	return p.Has(stanza.NSMUCUser, "x") // an invitation to a room
}

// excluded: the sender asked for no copies, or the message is a copy already.
func excluded(p *stanza.Packet) bool {
	return p.Has(stanza.NSCarbons, "") || p.Has(stanza.NSHints, "no-copy")
}

// fromRoom reports whether the message is a room's private message rather than an invitation.
func fromRoom(p *stanza.Packet) bool {
	x, ok := p.Child(stanza.NSMUCUser, "x")
	if !ok {
		return false
	}
	el := p.Element(x)
	return el.Find(stanza.NSMUCUser, "invite") == nil && el.Find(stanza.NSMUCUser, "decline") == nil
}

// wrap makes the copy of p without an addressee: from the bare address, of the
// original's type, the original forwarded inside (XEP-0280 section 7, XEP-0297).
func wrap(direction string, p *stanza.Packet, owner jid.JID) *stanza.Packet {
	b := stanza.NewBuilder("").Open(direction, stanza.NSCarbons).Open("forwarded", stanza.NSForward).Embed(p)
	return stanza.WithInner(stanza.KindMessage, p.Type, "", owner, jid.JID{}, b.Bytes())
}
