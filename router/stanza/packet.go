// Package stanza is the model of what moves through the server: messages,
// presence and IQs (RFC 6120 section 8), their errors, and the XML inside them.
//
// A Packet is the hot path's form: a parsed head, and the children as one run
// of validated canonical bytes that is never parsed again unless a feature
// looks inside. An Element is the cold path's tree, a Builder writes payloads.
// The router, the features and the edges call this package; it does no I/O.
//
// Invariants: Packet.Inner is canonical XML (package xmltok says what that is)
// with jabber:client as the default namespace in scope. It is shared between
// packets, goroutines and queues, and nobody changes it after its creation.
// Whoever wants another head makes a Clone and changes that.
package stanza

import (
	"muster/internal/jid"
	"muster/router/xmltok"
)

// Kind tells the three stanzas apart.
type Kind uint8

// The stanzas of RFC 6120 section 8. The numbers are part of the binary form.
const (
	KindMessage Kind = iota + 1
	KindPresence
	KindIQ
)

// String returns the stanza's element name; "" for an invalid kind.
func (k Kind) String() string {
	switch k {
	case KindMessage:
		return "message"
	case KindPresence:
		return "presence"
	case KindIQ:
		return "iq"
	}
	return ""
}

// The values of a stanza's type attribute (RFC 6120 section 8.2.3, RFC 6121 sections 4.7.1 and 5.2.2).
const (
	TypeError = "error"

	TypeGet    = "get"
	TypeSet    = "set"
	TypeResult = "result"

	TypeNormal    = "normal"
	TypeChat      = "chat"
	TypeGroupchat = "groupchat"
	TypeHeadline  = "headline"

	TypeUnavailable  = "unavailable"
	TypeProbe        = "probe"
	TypeSubscribe    = "subscribe"
	TypeSubscribed   = "subscribed"
	TypeUnsubscribe  = "unsubscribe"
	TypeUnsubscribed = "unsubscribed"
)

// Packet is one stanza.
type Packet struct {
	Kind     Kind
	Type     string  // as on the wire; "" = none
	ID, Lang string  // the id and xml:lang attributes; "" = none
	From, To jid.JID // zero = absent
	Inner    []byte  // canonical children, default namespace jabber:client in scope; shared, never changed
	Children []Child // top-level child elements in order; shared, never changed
	Number   uint64  // of a message in the message log: whoever has it confirms that; 0 = it is in no log

	few [4]Child // backs Children of a parsed packet that has no more than these
}

// Child is one top-level child element of a packet: Inner[Start:End].
type Child = xmltok.Child

// Child returns the first top-level child of that namespace and name; an empty name matches every name.
func (p *Packet) Child(space, local string) (Child, bool) {
	for _, c := range p.Children {
		if c.Space == space && (local == "" || c.Local == local) {
			return c, true
		}
	}
	return Child{}, false
}

// Has reports whether there is such a top-level child; an empty name matches every name.
func (p *Packet) Has(space, local string) bool {
	_, ok := p.Child(space, local)
	return ok
}

// Payload returns the first top-level child that is not an <error/>: the request of an IQ.
func (p *Packet) Payload() (Child, bool) {
	for _, c := range p.Children {
		if c.Local != TypeError || c.Space != NSClient {
			return c, true
		}
	}
	return Child{}, false
}

// ChildBytes returns the canonical bytes of a child of p, to be read only.
func (p *Packet) ChildBytes(c Child) []byte { return p.Inner[c.Start:c.End:c.End] }

// MessageType returns the type of a message, where none and unknown ones mean "normal" (RFC 6121 section 5.2.2).
func (p *Packet) MessageType() string {
	switch p.Type {
	case TypeChat, TypeGroupchat, TypeHeadline, TypeError:
		return p.Type
	}
	return TypeNormal
}

// IsError reports whether the stanza's type is "error".
func (p *Packet) IsError() bool { return p.Type == TypeError }

// IsRequest reports whether the stanza is an IQ that must be answered.
func (p *Packet) IsRequest() bool {
	return p.Kind == KindIQ && (p.Type == TypeGet || p.Type == TypeSet)
}

// AppendTo appends the stanza in canonical form: <message …>…</message>.
func (p *Packet) AppendTo(dst []byte) []byte { return p.AppendWithTo(dst, p.To) }

// AppendWithTo is AppendTo with another 'to'; the zero address leaves it out.
func (p *Packet) AppendWithTo(dst []byte, to jid.JID) []byte {
	name := p.Kind.String()
	dst = append(append(dst, '<'), name...)
	dst = appendAddress(dst, ` from="`, p.From)
	dst = appendAddress(dst, ` to="`, to)
	dst = appendAttr(dst, ` type="`, p.Type)
	dst = appendAttr(dst, ` id="`, p.ID)
	dst = appendAttr(dst, ` xml:lang="`, p.Lang)
	if len(p.Inner) == 0 {
		return append(dst, '/', '>')
	}
	dst = append(append(dst, '>'), p.Inner...)
	dst = append(append(dst, '<', '/'), name...)
	return append(dst, '>')
}

func appendAttr(dst []byte, name, value string) []byte {
	if value == "" {
		return dst
	}
	dst = xmltok.AppendAttr(append(dst, name...), value)
	return append(dst, '"')
}

func appendAddress(dst []byte, name string, j jid.JID) []byte {
	if j.IsZero() {
		return dst
	}
	dst = append(dst, name...)
	if j.Local != "" {
		dst = append(append(dst, j.Local...), '@') // no localpart holds a character that needs escaping (RFC 7622 section 3.3.1)
	}
	dst = append(dst, j.Domain...)
	if j.Resource != "" {
		dst = xmltok.AppendAttr(append(dst, '/'), j.Resource)
	}
	return append(dst, '"')
}

// Clone returns a copy whose head may be changed. Inner and Children are shared.
func (p *Packet) Clone() *Packet {
	c := *p
	return &c
}

// With returns a copy of p with more children behind the others; xml is canonical, as a Builder's Bytes are.
func (p *Packet) With(xml []byte) *Packet {
	c := &Packet{Kind: p.Kind, Type: p.Type, ID: p.ID, Lang: p.Lang, From: p.From, To: p.To, Number: p.Number}
	before := len(p.Inner)
	c.Inner = append(append(make([]byte, 0, before+len(xml)), p.Inner...), xml...)
	c.Children = append(c.few[:0], p.Children...)
	old := len(c.Children)
	c.Children, _ = xmltok.AppendChildren(c.Children, xml, NSClient) // an error is the documented mistake
	for i := old; i < len(c.Children); i++ {
		c.Children[i].Start, c.Children[i].End = c.Children[i].Start+before, c.Children[i].End+before
	}
	return c
}

// Size returns about how many bytes AppendTo would add; queues count with it.
func (p *Packet) Size() int {
	const marks = 64 // element and attribute names, quotes
	return marks + len(p.Type) + len(p.ID) + len(p.Lang) + addressSize(p.From) + addressSize(p.To) + len(p.Inner)
}

func addressSize(j jid.JID) int { return len(j.Local) + len(j.Domain) + len(j.Resource) + 2 }

// Result returns the answer to an IQ request: type result, the same id, from
// and to swapped. inner is canonical (a Builder's Bytes), and may be nil.
func (p *Packet) Result(inner []byte) *Packet {
	return WithInner(KindIQ, TypeResult, p.ID, p.To, p.From, inner)
}

// ErrorReply returns the error answer to a stanza: type error, the same id,
// from and to swapped, and only the <error/> inside. It is nil where no error
// may be sent: to an error or an IQ result (RFC 6120 section 8.3.1).
func (p *Packet) ErrorReply(e *Error) *Packet {
	if p.Type == TypeError || p.Kind == KindIQ && p.Type == TypeResult {
		return nil
	}
	return WithInner(p.Kind, TypeError, p.ID, p.To, p.From, e.Append(nil))
}

// IsRefusal reports whether the stanza tells a sender that a message of theirs failed.
func (p *Packet) IsRefusal() bool { return p.Kind == KindMessage && p.Type == TypeError }
