// Package xmltok is the tokenizer of XMPP streams: restricted XML (RFC 6120
// section 11.1) read as it arrives, validated in one pass, and rewritten into
// one canonical form, so that nothing a client sent is ever relayed as raw
// bytes. Edges feed a Decoder per connection; package stanza parses payloads
// with the same code.
//
// Canonical form: UTF-8; attributes in source order in double quotes; only
// & < > and where needed quotes and white space escaped; CDATA turned into
// text; empty elements as <a/>; no element has a prefix, it declares its
// namespace with xmlns="…" where it differs from its parent's; a prefixed
// attribute keeps its prefix, which the same element declares; declarations
// that no name uses are dropped. Inside a stanza jabber:client is the default
// namespace in scope.
//
// Invariants: memory is bounded by Options; an error is final for its stream;
// a decoder without a partial item holds no buffer.
package xmltok

// ItemKind says what a Decoder found.
type ItemKind uint8

// The kinds of top-level items.
const (
	None        ItemKind = iota // nothing complete yet: feed more bytes
	StreamOpen                  // the stream header: Space, Local, Attrs
	Element                     // a complete first-level element, a stanza or nonza
	StreamClose                 // the end tag of the stream; what follows it is ignored
	Whitespace                  // white space between elements: a keep-alive (RFC 6120 section 4.6.1)
)

// Item is one top-level item of a stream.
type Item struct {
	Kind         ItemKind
	Space, Local string  // of the stream header or element
	Default      string  // default namespace declared for what is inside; of a stream header: the content namespace
	Attrs        []Attr  // without namespace declarations; valid until the next call of Next
	Inner        []byte  // canonical content of an element; valid until the next call of Next
	Children     []Child // its child elements; valid until the next call of Next
	Size         int     // bytes on the wire
}

// Attr is one attribute of an item. The strings stay valid.
type Attr struct{ Space, Local, Value string }

// Child is one child element of an item: Inner[Start:End]. The strings stay valid.
type Child struct {
	Space, Local string
	Start, End   int
}

// Attr returns the value of the attribute of that name without a namespace, or "".
func (i *Item) Attr(local string) string {
	for _, a := range i.Attrs {
		if a.Local == local && a.Space == "" {
			return a.Value
		}
	}
	return ""
}

// Lang returns the item's xml:lang, or "".
func (i *Item) Lang() string {
	for _, a := range i.Attrs {
		if a.Local == "lang" && a.Space == nsXML {
			return a.Value
		}
	}
	return ""
}
