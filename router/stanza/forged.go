package stanza

import (
	"muster/internal/jid"
	"muster/router/xmltok"
)

// StripForged returns p without the children that only servers may add, and
// which a client put in to deceive its peers (XEP-0359 section 6, XEP-0203
// section 4, XEP-0280 section 11, XEP-0313 section 6, XEP-0421, XEP-0045):
//
//   - <stanza-id/> by, and <delay/> from, an address of a local domain; a delay from the sender itself stays,
//     for clients say so how long they have been away;
//   - <occupant-id/>, and MUC's <x/> with the name space muc#user, except for an invitation
//     or a decline, which clients send;
//   - <sent/>, <received/> of carbon copies and <result/>, <fin/> of archives.
//
// p.From must be stamped already. local tells which domains are served here. Without anything forged, the
// result is p itself.
func StripForged(p *Packet, local func(domain string) bool) *Packet {
	for i := range p.Children {
		if forged(p, &p.Children[i], local) {
			return stripped(p, local)
		}
	}
	return p
}

// stripped returns a copy of p with only the honest children; text between them goes too.
func stripped(p *Packet, local func(string) bool) *Packet {
	inner := make([]byte, 0, len(p.Inner))
	for i := range p.Children {
		if c := &p.Children[i]; !forged(p, c, local) {
			inner = append(inner, p.Inner[c.Start:c.End]...)
		}
	}
	c := WithInner(p.Kind, p.Type, p.ID, p.From, p.To, inner)
	c.Lang = p.Lang
	return c
}

func forged(p *Packet, c *Child, local func(string) bool) bool {
	switch c.Space {
	case NSStanzaID:
		return c.Local == "stanza-id" && claimsStanzaID(p, c, local)
	case NSDelay, NSDelayLegacy:
		return claimsDelay(p, c, local)
	case NSOccupantID:
		return p.Kind != KindIQ
	case NSCarbons:
		return p.Kind == KindMessage && (c.Local == "sent" || c.Local == "received")
	case NSMAM:
		return p.Kind == KindMessage && (c.Local == "result" || c.Local == "fin")
	case NSMUCUser:
		return p.Kind != KindIQ && !fromClient(p, c)
	}
	return false
}

// claimsStanzaID reports whether a stanza-id is said to be by an address of a local domain; one by nobody is invalid.
func claimsStanzaID(p *Packet, c *Child, local func(string) bool) bool {
	j, err := jid.Parse(startAttr(p, c, "by"))
	return err != nil || local(j.Domain)
}

// claimsDelay reports whether a delay is said to be from an address of a local domain that is not the sender's own.
func claimsDelay(p *Packet, c *Child, local func(string) bool) bool {
	from := startAttr(p, c, "from")
	if from == "" {
		return false
	}
	j, err := jid.Parse(from)
	return err != nil || local(j.Domain) && j.Bare() != p.From.Bare()
}

// fromClient reports whether a muc#user element is one of those that clients send:
// a mediated invitation or a decline (XEP-0045 section 7.8.2).
func fromClient(p *Packet, c *Child) bool {
	e := p.Element(*c)
	for _, child := range e.Elements() {
		if child.Local != "invite" && child.Local != "decline" {
			return false
		}
	}
	return len(e.Elements()) > 0
}

// startAttr returns an attribute of a child's start tag, or "".
func startAttr(p *Packet, c *Child, name string) string {
	t, err := xmltok.NewReader(p.ChildBytes(*c), NSClient).Next()
	if err != nil {
		return ""
	}
	for _, a := range t.Attrs {
		if a.Local == name && a.Space == "" {
			return a.Value
		}
	}
	return ""
}

// NeverRelayed reports whether p is a request that only a server may send to a client: a push of a roster or a
// block list. From another user it is forged, and must be answered instead of delivered (RFC 6121 section 2.1.6,
// XEP-0191 section 3.3).
func NeverRelayed(p *Packet) bool {
	return p.Kind == KindIQ && p.Type == TypeSet && (p.Has(NSRoster, "") || p.Has(NSBlocking, ""))
}
