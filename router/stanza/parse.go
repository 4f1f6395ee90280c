package stanza

import (
	"bytes"
	"strings"

	"muster/internal/fault"
	"muster/internal/jid"
	"muster/router/xmltok"
)

// KindOf returns the kind of stanza that an item is; 0 if it is none: another name or namespace.
func KindOf(item *xmltok.Item) Kind {
	if item.Space != NSClient {
		return 0
	}
	switch item.Local {
	case "message":
		return KindMessage
	case "presence":
		return KindPresence
	case "iq":
		return KindIQ
	}
	return 0
}

// FromElement makes a packet of a complete top-level element that a
// xmltok.Decoder returned. The packet shares nothing with the decoder.
// Attributes that RFC 6120 section 8.1 does not name are dropped.
//
// Where an address is malformed, the packet comes without it, and with a
// *Error jid-malformed to answer with. Where the element is no stanza, the
// packet is nil and the error a fault with code BadRequest.
func FromElement(item *xmltok.Item) (*Packet, error) {
	kind := KindOf(item)
	if kind == 0 {
		return nil, fault.New(fault.BadRequest, "stanza.parse", item.Local, "not a message, presence or iq")
	}
	p := &Packet{Kind: kind}
	malformed := p.readHead(item)
	if len(item.Inner) > 0 {
		p.Inner = bytes.Clone(item.Inner)
		p.Children = append(p.few[:0], item.Children...)
	}
	if malformed != nil {
		return p, malformed
	}
	return p, nil
}

// readHead takes the attributes; it returns the first address error.
func (p *Packet) readHead(item *xmltok.Item) (malformed *Error) {
	own := headCopier(item.Attrs)
	for i := range item.Attrs {
		a := &item.Attrs[i]
		switch {
		case a.Space == NSXML && a.Local == "lang":
			p.Lang = own(a.Value)
		case a.Space != "":
		case a.Local == "type":
			p.Type = own(a.Value)
		case a.Local == "id":
			p.ID = own(a.Value)
		case a.Local == "from":
			malformed = address(&p.From, own(a.Value), malformed)
		case a.Local == "to":
			malformed = address(&p.To, own(a.Value), malformed)
		}
	}
	return malformed
}

// bigHead is from what size on, in bytes, the attributes of a stanza are copied one by one, so that
// a feature that keeps an address does not keep all of a huge head with it.
const bigHead = 1024

func headCopier(attrs []xmltok.Attr) func(string) string {
	size := 0
	for i := range attrs {
		size += len(attrs[i].Local) + len(attrs[i].Value)
	}
	if size < bigHead {
		return func(s string) string { return s }
	}
	return strings.Clone
}

func address(dst *jid.JID, s string, before *Error) *Error {
	j, err := jid.Parse(s)
	if err != nil {
		if before == nil {
			before = NewError(JIDMalformed, "malformed address")
		}
		return before
	}
	*dst = j
	return before
}

// ParsePacket reads one stanza from canonical or any other bytes, where
// jabber:client is the default namespace in scope, and validates it. Errors
// are those of xmltok.Parse and FromElement; the packet is nil.
func ParsePacket(b []byte) (*Packet, error) {
	item, err := xmltok.Parse(b, nil)
	if err != nil {
		return nil, err
	}
	p, err := FromElement(&item)
	if err != nil {
		return nil, err
	}
	return p, nil
}

// WithInner makes a packet of canonical children, as a Builder or another
// packet has them, and finds its Children. inner is shared: do not change it
// afterwards. Bytes that are not canonical are a mistake of the caller; what
// follows the mistake is not among the Children.
func WithInner(kind Kind, typ, id string, from, to jid.JID, inner []byte) *Packet {
	p := &Packet{Kind: kind, Type: typ, ID: id, From: from, To: to}
	if len(inner) > 0 {
		p.Inner = inner
		p.Children, _ = xmltok.AppendChildren(p.few[:0], inner, NSClient) // the error is the documented mistake
	}
	return p
}

// Escape appends s escaped for character data and for attributes in double
// quotes. What XML cannot hold becomes U+FFFD.
func Escape(dst []byte, s string) []byte { return xmltok.AppendAttr(dst, s) }
