package xmltok

import (
	"bytes"
	"io"
	"math"
	"strings"
	"unicode/utf8"
)

// unlimited is for bytes that were validated before.
var unlimited = Options{
	MaxBytes: math.MaxInt, MaxDepth: math.MaxInt, MaxAttrs: math.MaxInt,
	MaxDecls: math.MaxInt, MaxElements: math.MaxInt, MaxName: math.MaxInt,
}.WithDefaults()

// Parse validates a slice that holds exactly one element, with white space
// around it at most, and jabber:client as the default namespace in scope. What
// it returns shares no memory with b or a decoder.
func Parse(b []byte, o *Options) (Item, error) {
	framed := *o.complete()
	framed.Framed = true
	d := NewDecoder(&framed)
	defer d.Release()
	var found Item
	for len(b) > 0 {
		n, item, err := d.Next(b)
		switch {
		case err != nil:
			return Item{}, err
		case item.Kind == None:
			return Item{}, ErrNotWellFormed.because("incomplete element")
		case item.Kind == Element && found.Kind == Element:
			return Item{}, ErrNotWellFormed.because("more than one element")
		case item.Kind == Element:
			found = item.clone()
		}
		b = b[n:]
	}
	if found.Kind == None {
		return Item{}, ErrNotWellFormed.because("no element")
	}
	return found, nil
}

func (i *Item) clone() Item {
	c := *i
	c.Attrs = append([]Attr(nil), i.Attrs...)
	c.Inner = bytes.Clone(i.Inner)
	c.Children = append([]Child(nil), i.Children...)
	return c
}

// AppendTo appends the item in canonical form, for a place where scope is the default namespace.
func (i *Item) AppendTo(dst []byte, scope string) []byte {
	dst = append(append(dst, '<'), i.Local...)
	if i.Space != scope {
		dst = appendValue(append(dst, " xmlns"...), i.Space, false)
	}
	dst = AppendAttrs(dst, i.Attrs)
	if len(i.Inner) == 0 {
		return append(dst, '/', '>')
	}
	dst = append(append(dst, '>'), i.Inner...)
	return append(append(append(dst, '<', '/'), i.Local...), '>')
}

// AppendAttrs appends attributes in canonical form. Namespaces get the prefixes p0, p1 and so on, by first use.
func AppendAttrs(dst []byte, attrs []Attr) []byte {
	var spaces []string
	for _, a := range attrs {
		dst = append(dst, ' ')
		switch a.Space {
		case "":
		case nsXML:
			dst = append(dst, "xml:"...)
		default:
			n := 0
			for n < len(spaces) && spaces[n] != a.Space {
				n++
			}
			prefix := prefixName(n)
			if n == len(spaces) {
				spaces = append(spaces, a.Space)
				dst = append(append(dst, "xmlns:"...), prefix...)
				dst = append(appendValue(dst, a.Space, false), ' ')
			}
			dst = append(append(dst, prefix...), ':')
		}
		dst = appendValue(append(dst, a.Local...), a.Value, false)
	}
	return dst
}

func prefixName(n int) string {
	if n < 10 {
		return "p" + string(rune('0'+n))
	}
	return prefixName(n/10) + string(rune('0'+n%10))
}

// AppendChildren finds the top-level elements of canonical bytes, without
// looking inside them. scope is the default namespace around them. It stops
// with an error at what is not canonical.
func AppendChildren(dst []Child, inner []byte, scope string) ([]Child, error) {
	var t tag
	for i, depth := 0, 0; ; {
		n := bytes.IndexByte(inner[i:], '<')
		if n < 0 {
			if depth != 0 {
				return dst, ErrNotWellFormed.because("incomplete element")
			}
			return dst, nil
		}
		i += n
		end := i + bytes.IndexByte(inner[i:], '>') + 1
		if end == i || end < i+3 {
			return dst, ErrNotWellFormed.because("incomplete tag")
		}
		if inner[i+1] == '/' {
			depth--
		} else {
			if depth == 0 {
				child, err := t.child(inner, i, scope)
				if err != nil {
					return dst, err
				}
				dst = append(dst, child)
			}
			if inner[end-2] != '/' {
				depth++
			}
		}
		if depth < 0 {
			return dst, ErrNotWellFormed.because("end tag without a start tag")
		}
		i = end
		if depth == 0 {
			dst[len(dst)-1].End = end
		}
	}
}

// child reads the canonical start tag at b[i:] as that of a top-level child.
func (t *tag) child(b []byte, i int, scope string) (Child, error) {
	if _, err := t.read(b, i+1, unlimited); err != nil {
		return Child{}, settled(err)
	}
	if t.colon > 0 {
		return Child{}, ErrBadNamespacePrefix.because("not canonical")
	}
	return Child{Space: t.defaultSpace(scope), Local: intern(t.name), Start: i}, nil
}

// defaultSpace returns the namespace that a canonical tag declares for itself, or scope.
func (t *tag) defaultSpace(scope string) string {
	for k := range t.attrs {
		if a := &t.attrs[k]; a.decl && a.colon < 0 {
			return intern(a.value)
		}
	}
	return scope
}

// settled turns a wish for more input into an error where there is no more.
func settled(err error) error {
	if err == errMore {
		return ErrNotWellFormed.because("incomplete")
	}
	return err
}

// TokenKind says what a Token is.
type TokenKind uint8

// The kinds of tokens.
const (
	StartTag TokenKind = iota + 1
	EndTag
	Text
)

// Token is one token of canonical bytes. An empty element is a start tag and an end tag.
type Token struct {
	Kind         TokenKind
	Space, Local string // of tags
	Attrs        []Attr // of start tags, without declarations; the caller's to keep
	Text         string
}

// Reader walks over canonical bytes token by token, for cold paths.
type Reader struct {
	b     []byte
	i     int
	scope string
	open  []Token
	tag   tag
	close bool // the last start tag was an empty element's
}

// NewReader returns a reader of canonical bytes; scope is the default namespace around them.
func NewReader(b []byte, scope string) *Reader { return &Reader{b: b, scope: scope} }

// Next returns the next token; io.EOF at the end. Bytes that are not canonical give an *Error.
func (r *Reader) Next() (Token, error) {
	switch {
	case r.close:
		r.close = false
		return r.pop(), nil
	case r.i == len(r.b) && len(r.open) == 0:
		return Token{}, io.EOF
	case r.i == len(r.b):
		return Token{}, ErrNotWellFormed.because("incomplete element")
	case r.b[r.i] != '<':
		return r.text()
	case r.i+1 < len(r.b) && r.b[r.i+1] == '/':
		return r.endTag()
	}
	return r.startTag()
}

func (r *Reader) pop() Token {
	n := len(r.open) - 1
	t := Token{Kind: EndTag, Space: r.open[n].Space, Local: r.open[n].Local}
	r.open = r.open[:n]
	return t
}

func (r *Reader) endTag() (Token, error) {
	if len(r.open) == 0 {
		return Token{}, ErrNotWellFormed.because("end tag without a start tag")
	}
	end, err := endTag(r.b, r.i, r.open[len(r.open)-1].Local)
	if err != nil {
		return Token{}, settled(err)
	}
	r.i = end
	return r.pop(), nil
}

func (r *Reader) startTag() (Token, error) {
	end, err := r.tag.read(r.b, r.i+1, unlimited)
	if err != nil {
		return Token{}, settled(err)
	}
	if r.tag.colon > 0 {
		return Token{}, ErrBadNamespacePrefix.because("not canonical")
	}
	scope := r.scope
	if n := len(r.open); n > 0 {
		scope = r.open[n-1].Space
	}
	t := Token{Kind: StartTag, Space: r.tag.defaultSpace(scope), Local: intern(r.tag.name)}
	for k := range r.tag.attrs {
		a := &r.tag.attrs[k]
		if a.decl {
			continue
		}
		space, ok := r.tag.attrSpace(a)
		if !ok {
			return Token{}, ErrBadNamespacePrefix.because("undeclared prefix")
		}
		t.Attrs = append(t.Attrs, Attr{space, intern(a.local()), string(a.value)})
	}
	r.i, r.close = end, r.tag.empty
	r.open = append(r.open, Token{Space: t.Space, Local: t.Local})
	return t, nil
}

// attrSpace returns the namespace of an attribute, which its own element must declare.
func (t *tag) attrSpace(a *attr) (string, bool) {
	if a.colon < 0 {
		return "", true
	}
	if string(a.prefix()) == "xml" {
		return nsXML, true
	}
	for k := range t.attrs {
		if d := &t.attrs[k]; d.decl && d.colon >= 0 && bytes.Equal(d.local(), a.prefix()) {
			return intern(d.value), true
		}
	}
	return "", false
}

func (r *Reader) text() (Token, error) {
	var s strings.Builder
	for r.i < len(r.b) && r.b[r.i] != '<' {
		if r.b[r.i] != '&' {
			n := bytes.IndexAny(r.b[r.i:], "&<")
			if n < 0 {
				n = len(r.b) - r.i
			}
			s.Write(r.b[r.i : r.i+n])
			r.i += n
			continue
		}
		c, n, err := reference(r.b[r.i:])
		if err != nil {
			return Token{}, settled(err)
		}
		s.WriteRune(c)
		r.i += n
	}
	if !utf8.ValidString(s.String()) {
		return Token{}, ErrBadEncoding.because("not UTF-8")
	}
	return Token{Kind: Text, Text: s.String()}, nil
}
