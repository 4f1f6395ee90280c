package xmltok

import (
	"bytes"
	"unicode/utf8"
)

// tag is the start tag being read. Its slices point into the input, and hold only until the tag is written.
type tag struct {
	name  []byte // as in the source
	colon int    // offset of the colon in name, or -1
	attrs []attr
	arena []byte // values that differ from their source
	empty bool   // <a/>
}

// attr is an attribute of the tag being read.
type attr struct {
	name  []byte
	colon int
	value []byte // decoded
	uri   string // namespace of a prefixed attribute
	plain bool   // the value needs no escapes
	decl  bool   // a namespace declaration
}

func (t *tag) forget() {
	clear(t.attrs[:cap(t.attrs)])
	t.attrs, t.name, t.arena = t.attrs[:0], nil, kept(t.arena)
}

func (a *attr) prefix() []byte { return a.name[:max(a.colon, 0)] }
func (a *attr) local() []byte  { return a.name[a.colon+1:] }

// startTag reads the start tag at b[i:], enters its namespaces, and writes it to the output.
func (d *Decoder) startTag(b []byte, i int) (int, error) {
	w := d.w
	end, err := w.tag.read(b, i+1, d.opts)
	if err != nil {
		return 0, err
	}
	w.elements++
	switch {
	case w.elements > d.opts.MaxElements:
		return 0, ErrTooLarge.because("too many elements")
	case len(w.stack) >= d.opts.MaxDepth:
		return 0, ErrTooLarge.because("elements too deep")
	}
	f := frame{def: d.def, name: len(w.names), colon: w.tag.colon, decls: len(w.decls)}
	if n := len(w.stack); n > 0 {
		f.def = w.stack[n-1].def
	}
	if err := d.declare(&f); err != nil {
		return 0, err
	}
	if err := d.resolve(&f); err != nil {
		return 0, err
	}
	if len(w.stack) == 0 {
		w.writeTop(&f)
	} else {
		w.write(&f)
	}
	if w.tag.empty {
		w.decls = w.decls[:f.decls]
		return end, nil
	}
	w.names = append(w.names, w.tag.name...)
	f.content = len(w.out)
	if d.phase != prolog {
		w.stack = append(w.stack, f)
	}
	return end, nil
}

// read reads a start tag from its name on.
func (t *tag) read(b []byte, i int, o *Options) (int, error) {
	t.attrs, t.arena, t.empty = t.attrs[:0], t.arena[:0], false
	end, colon, err := qname(b, i, o.MaxName)
	if err != nil {
		return 0, err
	}
	t.name, t.colon = b[i:end], colon
	for i = end; ; {
		n := spaces(b[i:])
		i += n
		if i == len(b) {
			return 0, errMore
		}
		switch c := b[i]; {
		case c == '>':
			return i + 1, nil
		case c == '/':
			if i+1 == len(b) {
				return 0, errMore
			}
			if b[i+1] != '>' {
				return 0, ErrNotWellFormed.because("malformed start tag")
			}
			t.empty = true
			return i + 2, nil
		case n == 0:
			return 0, ErrNotWellFormed.because("malformed start tag")
		}
		if len(t.attrs) >= o.MaxAttrs {
			return 0, ErrTooLarge.because("too many attributes")
		}
		if i, err = t.readAttr(b, i, o.MaxName); err != nil {
			return 0, err
		}
	}
}

// readAttr reads one attribute.
func (t *tag) readAttr(b []byte, i, maxName int) (int, error) {
	end, colon, err := qname(b, i, maxName)
	if err != nil {
		return 0, err
	}
	name := b[i:end]
	for k := range t.attrs {
		if bytes.Equal(t.attrs[k].name, name) {
			return 0, ErrNotWellFormed.because("duplicate attribute")
		}
	}
	t.attrs = append(t.attrs, attr{name: name, colon: colon})
	a := &t.attrs[len(t.attrs)-1]
	a.decl = colon < 0 && string(name) == "xmlns" || colon == len("xmlns") && string(name[:colon]) == "xmlns"
	i = end + spaces(b[end:])
	if i < len(b) && b[i] != '=' {
		return 0, ErrNotWellFormed.because("attribute without a value")
	}
	if i < len(b) {
		i += 1 + spaces(b[i+1:])
	}
	if i >= len(b) {
		return 0, errMore
	}
	if b[i] != '"' && b[i] != '\'' {
		return 0, ErrNotWellFormed.because("attribute value without quotes")
	}
	return t.readValue(a, b, i+1, b[i])
}

// readValue reads an attribute's value up to the quotation mark, and normalises it (XML 1.0 section 3.3.3).
func (t *tag) readValue(a *attr, b []byte, i int, quote byte) (int, error) {
	start := i
	for i < len(b) && b[i] != quote && attrClass[b[i]] == plain {
		i++
	}
	if i < len(b) && b[i] == quote {
		a.value, a.plain = b[start:i], true
		return i + 1, nil
	}
	from := len(t.arena)
	t.arena = append(t.arena, b[start:i]...)
	for i < len(b) {
		c := b[i]
		if c == quote {
			a.value = t.arena[from:len(t.arena):len(t.arena)]
			return i + 1, nil
		}
		if attrClass[c] == plain {
			t.arena = append(t.arena, c)
			i++
			continue
		}
		n, err := t.valueSpecial(b[i:])
		if err != nil {
			return 0, err
		}
		i += n
	}
	return 0, errMore
}

// valueSpecial decodes the one character at the start of b, and returns its size.
func (t *tag) valueSpecial(b []byte) (int, error) {
	switch c := b[0]; {
	case c == '&':
		r, n, err := reference(b)
		if err == nil {
			t.arena = utf8.AppendRune(t.arena, r)
		}
		return n, err
	case c == '<':
		return 0, ErrNotWellFormed.because("< in an attribute value")
	case c == '\r':
		n, err := lineEnd(b)
		if err == nil {
			t.arena = append(t.arena, ' ')
		}
		return n, err
	case c == '\t' || c == '\n':
		t.arena = append(t.arena, ' ')
		return 1, nil
	case c >= utf8.RuneSelf:
		n, err := wideChar(b)
		t.arena = append(t.arena, b[:n]...)
		return n, err
	case attrClass[c] == forbidden:
		return 0, ErrNotWellFormed.because("control character")
	default: // > or the other quotation mark
		t.arena = append(t.arena, c)
		return 1, nil
	}
}

// declare enters the tag's namespace declarations.
func (d *Decoder) declare(f *frame) error {
	w := d.w
	for k := range w.tag.attrs {
		a := &w.tag.attrs[k]
		if !a.decl {
			continue
		}
		if w.declared++; w.declared > d.opts.MaxDecls {
			return ErrTooLarge.because("too many namespace declarations")
		}
		uri := intern(a.value)
		if err := checkDecl(a, uri); err != nil {
			return err
		}
		if uri == d.opts.Content {
			uri = nsClient
		}
		if a.colon < 0 {
			f.def = uri
		} else {
			w.decls = append(w.decls, decl{intern(a.local()), uri})
		}
	}
	return nil
}

// checkDecl refuses what Namespaces in XML 1.0, sections 2.2 and 3, forbids.
func checkDecl(a *attr, uri string) error {
	prefixed := a.colon >= 0
	xml := prefixed && string(a.local()) == "xml"
	switch {
	case prefixed && uri == "":
		return ErrBadNamespacePrefix.because("a prefix without a namespace")
	case uri == nsXMLNS || prefixed && string(a.local()) == "xmlns":
		return ErrBadNamespacePrefix.because("xmlns declared")
	case xml != (uri == nsXML):
		return ErrBadNamespacePrefix.because("xml declared as something else")
	}
	return nil
}

// resolve finds the namespaces of the tag and its attributes.
func (d *Decoder) resolve(f *frame) error {
	t := &d.w.tag
	f.space = f.def
	var ok bool
	if t.colon > 0 {
		if f.space, ok = d.lookup(t.name[:t.colon]); !ok {
			return ErrBadNamespacePrefix.because("undeclared prefix")
		}
		if f.space == nsXML {
			return ErrBadNamespacePrefix.because("an element of the namespace xml")
		}
	}
	if string(t.name[t.colon+1:]) == "xmlns" { // encoding/xml gives it another namespace than other parsers do
		return ErrBadNamespacePrefix.because("an element named xmlns")
	}
	prefixed := 0
	for k := range t.attrs {
		a := &t.attrs[k]
		if a.decl || a.colon < 0 {
			continue
		}
		if a.uri, ok = d.lookup(a.prefix()); !ok {
			return ErrBadNamespacePrefix.because("undeclared prefix")
		}
		prefixed++
	}
	if prefixed > 1 && t.sameExpanded() {
		return ErrNotWellFormed.because("duplicate attribute")
	}
	return nil
}

// sameExpanded reports whether two attributes have the same namespace and local name.
func (t *tag) sameExpanded() bool {
	for k := range t.attrs {
		for j := range t.attrs[:k] {
			a, b := &t.attrs[j], &t.attrs[k]
			if a.uri != "" && a.uri == b.uri && bytes.Equal(a.local(), b.local()) {
				return true
			}
		}
	}
	return false
}

// lookup returns the namespace of a prefix in scope.
func (d *Decoder) lookup(prefix []byte) (string, bool) {
	for _, scope := range [...][]decl{d.w.decls, d.decls} {
		for k := len(scope) - 1; k >= 0; k-- {
			if scope[k].prefix == string(prefix) {
				return scope[k].uri, true
			}
		}
	}
	return nsXML, string(prefix) == "xml"
}

// write appends the tag in canonical form to the output.
func (w *work) write(f *frame) {
	t := &w.tag
	local := t.name[t.colon+1:]
	if len(w.stack) == 1 {
		w.children = append(w.children, Child{Space: f.space, Local: intern(local), Start: len(w.out)})
	}
	out := append(append(w.out, '<'), local...)
	if f.space != w.stack[len(w.stack)-1].space {
		out = appendValue(append(out, " xmlns"...), f.space, false)
	}
	for k := range t.attrs {
		a := &t.attrs[k]
		if a.decl {
			continue
		}
		if a.colon > 0 && a.uri != nsXML && !t.prefixSeen(k) {
			out = append(append(out, " xmlns:"...), a.prefix()...)
			out = appendValue(out, a.uri, false)
		}
		out = append(append(out, ' '), a.name...)
		out = appendValue(out, a.value, a.plain)
	}
	if t.empty {
		out = append(out, '/', '>')
	} else {
		out = append(out, '>')
	}
	w.out = out
	if t.empty && len(w.stack) == 1 {
		w.children[len(w.children)-1].End = len(out)
	}
}

// prefixSeen reports whether an attribute before the k-th has the same prefix.
func (t *tag) prefixSeen(k int) bool {
	for j := range t.attrs[:k] {
		if !t.attrs[j].decl && t.attrs[j].colon > 0 && bytes.Equal(t.attrs[j].prefix(), t.attrs[k].prefix()) {
			return true
		}
	}
	return false
}

func appendValue[T string | []byte](dst []byte, value T, plain bool) []byte {
	dst = append(dst, '=', '"')
	if plain {
		dst = append(dst, value...)
	} else {
		dst = appendEscaped(dst, value, &attrClass)
	}
	return append(dst, '"')
}

// writeTop makes the tag the head of the item. One string holds everything of it that is not well known.
func (w *work) writeTop(f *frame) {
	t := &w.tag
	w.head = append(w.head[:0], t.name[t.colon+1:]...)
	for k := range t.attrs {
		if a := &t.attrs[k]; !a.decl {
			w.head = append(append(w.head, a.local()...), a.value...)
		}
	}
	head := string(w.head)
	take := func(n int) (s string) {
		s, head = head[:n], head[n:]
		return s
	}
	w.top.Space, w.top.Default, w.top.Local = f.space, f.def, take(len(t.name)-t.colon-1)
	for k := range t.attrs {
		if a := &t.attrs[k]; !a.decl {
			w.attrs = append(w.attrs, Attr{a.uri, take(len(a.local())), take(len(a.value))})
		}
	}
	w.top.Attrs = w.attrs
}
