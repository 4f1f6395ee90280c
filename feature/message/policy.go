package message

import "muster/router/stanza"

// lastingKind says how long a message lasts.
type lastingKind uint8

const (
	live     lastingKind = iota // only for who is there now
	waiting                     // until a client has it
	archived                    // in the archives, too
)

// worthKeeping holds the namespaces of payloads without which a conversation is
// not complete, though the message has no body (XEP-0313 section 5.1.1).
var worthKeeping = map[string]bool{
	stanza.NSReceipts:                true,
	stanza.NSMarkers:                 true,
	stanza.NSMUCUser:                 true, // an invitation
	stanza.NSCorrect:                 true,
	"jabber:x:conference":            true, // XEP-0249
	"urn:xmpp:message-retract:1":     true, // XEP-0424
	"urn:xmpp:reactions:0":           true, // XEP-0444
	"urn:xmpp:jingle-message:0":      true, // XEP-0353
	"urn:xmpp:eme:0":                 true, // XEP-0380: encrypted
	"eu.siacs.conversations.axolotl": true, // XEP-0384, as it is in use
	"urn:xmpp:omemo:2":               true, // XEP-0384
}

// lasting decides what becomes of a message. Hints come first (XEP-0334), then
// the type: headlines and errors are of the moment, and rooms keep their own (XEP-0160 section 3).
func lasting(p *stanza.Packet) lastingKind {
	switch p.MessageType() {
	case stanza.TypeError, stanza.TypeHeadline, stanza.TypeGroupchat:
		return live
	}
	switch {
	case p.Has(stanza.NSHints, "no-store"):
		return live
	case p.Has(stanza.NSHints, "no-permanent-store"):
		return waiting
	case p.Has(stanza.NSHints, "store"), p.Has(stanza.NSClient, "body"):
		return archived
	}
	for _, c := range p.Children {
		if worthKeeping[c.Space] && (c.Space != stanza.NSReceipts || c.Local == "received") {
			return archived
		}
	}
	return live
}

// originID returns the id that the client gave the message for good (XEP-0359 section 3.2); "" for none.
func originID(p *stanza.Packet) string {
	c, ok := p.Child(stanza.NSStanzaID, "origin-id")
	if !ok {
		return ""
	}
	return p.Element(c).Attr("id")
}
