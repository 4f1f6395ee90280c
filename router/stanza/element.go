package stanza

import (
	"io"
	"strings"

	"muster/router/xmltok"
)

// Element is a parsed XML element, for cold paths.
type Element struct {
	Space, Local string
	Attrs        []Attr // without namespace declarations
	Children     []Node
}

// Attr is an attribute of an Element.
type Attr = xmltok.Attr

// Node is one child of an Element: an element, or text.
type Node struct {
	Elem *Element // nil for text
	Text string
}

// ParseElement reads and validates one element, where jabber:client is the default namespace in scope.
func ParseElement(b []byte) (*Element, error) {
	item, err := xmltok.Parse(b, nil)
	if err != nil {
		return nil, err
	}
	return ElementOf(&item)
}

// ElementOf makes a tree of an item of a xmltok.Decoder. It shares nothing with the decoder.
func ElementOf(item *xmltok.Item) (*Element, error) {
	e := &Element{Space: item.Space, Local: item.Local, Attrs: append([]Attr(nil), item.Attrs...)}
	return e, e.fill(xmltok.NewReader(item.Inner, item.Space))
}

// Element parses a child of p. It is nil only if c is no child of p.
func (p *Packet) Element(c Child) *Element {
	if c.Start < 0 || c.End > len(p.Inner) || c.Start >= c.End {
		return nil
	}
	root := &Element{}
	if err := root.fill(xmltok.NewReader(p.ChildBytes(c), NSClient)); err != nil || len(root.Children) != 1 {
		return nil
	}
	return root.Children[0].Elem
}

// fill reads what is inside e.
func (e *Element) fill(r *xmltok.Reader) error {
	open := []*Element{e}
	for {
		t, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		at := open[len(open)-1]
		switch t.Kind {
		case xmltok.Text:
			at.Children = append(at.Children, Node{Text: t.Text})
		case xmltok.EndTag:
			open = open[:len(open)-1]
		default:
			child := &Element{Space: t.Space, Local: t.Local, Attrs: t.Attrs}
			at.Children = append(at.Children, Node{Elem: child})
			open = append(open, child)
		}
	}
}

// Attr returns the value of the attribute of that name without a namespace; "" if it is absent or e is nil.
func (e *Element) Attr(local string) string {
	v, _ := e.LookupAttr(local)
	return v
}

// LookupAttr is Attr that tells an empty attribute from an absent one.
func (e *Element) LookupAttr(local string) (string, bool) {
	if e == nil {
		return "", false
	}
	for _, a := range e.Attrs {
		if a.Local == local && a.Space == "" {
			return a.Value, true
		}
	}
	return "", false
}

// Find returns the first child element of that namespace and name; nil if there is none or e is nil.
// An empty name matches every name.
func (e *Element) Find(space, local string) *Element {
	if e == nil {
		return nil
	}
	for _, n := range e.Children {
		if n.Elem != nil && n.Elem.Space == space && (local == "" || n.Elem.Local == local) {
			return n.Elem
		}
	}
	return nil
}

// All returns the child elements of that namespace and name; an empty name matches every name.
func (e *Element) All(space, local string) []*Element {
	if e == nil {
		return nil
	}
	var all []*Element
	for _, n := range e.Children {
		if n.Elem != nil && n.Elem.Space == space && (local == "" || n.Elem.Local == local) {
			all = append(all, n.Elem)
		}
	}
	return all
}

// Elements returns all child elements.
func (e *Element) Elements() []*Element {
	if e == nil {
		return nil
	}
	var all []*Element
	for _, n := range e.Children {
		if n.Elem != nil {
			all = append(all, n.Elem)
		}
	}
	return all
}

// Text returns the character data directly inside the element; "" if e is nil.
func (e *Element) Text() string {
	if e == nil {
		return ""
	}
	if len(e.Children) == 1 {
		return e.Children[0].Text
	}
	var b strings.Builder
	for _, n := range e.Children {
		b.WriteString(n.Text)
	}
	return b.String()
}

// Append appends the element in canonical form, for a place where jabber:client is the default namespace.
func (e *Element) Append(dst []byte) []byte { return e.appendIn(dst, NSClient) }

func (e *Element) appendIn(dst []byte, scope string) []byte {
	dst = append(append(dst, '<'), e.Local...)
	if e.Space != scope {
		dst = append(xmltok.AppendAttr(append(dst, ` xmlns="`...), e.Space), '"')
	}
	dst = append(xmltok.AppendAttrs(dst, e.Attrs), '>')
	start := len(dst)
	for _, n := range e.Children {
		if n.Elem != nil {
			dst = n.Elem.appendIn(dst, e.Space)
		} else {
			dst = xmltok.AppendText(dst, n.Text)
		}
	}
	if len(dst) == start {
		return append(dst[:start-1], '/', '>')
	}
	return append(append(append(dst, '<', '/'), e.Local...), '>')
}
