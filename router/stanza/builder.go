package stanza

import (
	"muster/router/xmltok"
)

// Builder writes a payload in canonical form. It escapes everything, and
// declares a namespace wherever it differs from the surrounding element's.
// The zero Builder is not ready: call NewBuilder.
type Builder struct {
	buf   []byte
	stack []opened
	root  string
	bare  bool // the last start tag is still open: "<a x="y""
}

type opened struct{ space, local string }

// NewBuilder returns a builder for a place where ns is the default namespace;
// "" means jabber:client, which is right for everything inside a stanza.
func NewBuilder(ns string) *Builder {
	if ns == "" {
		ns = NSClient
	}
	return &Builder{root: ns}
}

func (b *Builder) scope() string {
	if n := len(b.stack); n > 0 {
		return b.stack[n-1].space
	}
	return b.root
}

// Open starts an element. attrs are name, value pairs; a pair with an empty
// value is left out. space "" means the namespace of the element around it.
func (b *Builder) Open(local, space string, attrs ...string) *Builder {
	b.finishTag()
	scope := b.scope()
	if space == "" {
		space = scope
	}
	b.buf = append(append(b.buf, '<'), local...)
	if space != scope {
		b.buf = append(xmltok.AppendAttr(append(b.buf, ` xmlns="`...), space), '"')
	}
	b.stack = append(b.stack, opened{space, local})
	b.bare = true
	for i := 0; i+1 < len(attrs); i += 2 {
		if attrs[i+1] != "" {
			b.Attr(attrs[i], attrs[i+1])
		}
	}
	return b
}

// Attr adds an attribute to the element just opened, even an empty one.
func (b *Builder) Attr(name, value string) *Builder {
	if !b.bare {
		panic("stanza.Builder: Attr after the start tag was finished")
	}
	b.buf = append(append(append(b.buf, ' '), name...), '=', '"')
	b.buf = append(xmltok.AppendAttr(b.buf, value), '"')
	return b
}

// Text adds character data, escaped.
func (b *Builder) Text(s string) *Builder {
	if s != "" {
		b.finishTag()
		b.buf = xmltok.AppendText(b.buf, s)
	}
	return b
}

// Raw adds canonical XML as it is; its default namespace must be that of the
// element around it. Bytes of a packet fit where jabber:client is in scope;
// see Embed for other places.
func (b *Builder) Raw(xml []byte) *Builder {
	if len(xml) > 0 {
		b.finishTag()
		b.buf = append(b.buf, xml...)
	}
	return b
}

// Embed adds a whole stanza, as forwarding needs it (XEP-0297): its element
// declares jabber:client unless that is in scope already.
func (b *Builder) Embed(p *Packet) *Builder {
	b.finishTag()
	start := len(b.buf)
	b.buf = p.AppendTo(b.buf)
	if b.scope() == NSClient {
		return b
	}
	const decl = ` xmlns="` + NSClient + `"`
	at := start + 1 + len(p.Kind.String())
	b.buf = append(b.buf, decl...)
	copy(b.buf[at+len(decl):], b.buf[at:])
	copy(b.buf[at:], decl)
	return b
}

// Close ends the element opened last.
func (b *Builder) Close() *Builder {
	n := len(b.stack) - 1
	if n < 0 {
		panic("stanza.Builder: Close without Open")
	}
	if b.bare {
		b.buf = append(b.buf, '/', '>')
		b.bare = false
	} else {
		b.buf = append(append(append(b.buf, '<', '/'), b.stack[n].local...), '>')
	}
	b.stack = b.stack[:n]
	return b
}

// Leaf adds an element without content.
func (b *Builder) Leaf(local, space string, attrs ...string) *Builder {
	return b.Open(local, space, attrs...).Close()
}

// TextElement adds an element with character data only.
func (b *Builder) TextElement(local, space, text string, attrs ...string) *Builder {
	return b.Open(local, space, attrs...).Text(text).Close()
}

// Bytes closes what is still open and returns what was built. The builder must not be used after that.
func (b *Builder) Bytes() []byte {
	for len(b.stack) > 0 {
		b.Close()
	}
	return b.buf
}

func (b *Builder) finishTag() {
	if b.bare {
		b.buf = append(b.buf, '>')
		b.bare = false
	}
}
