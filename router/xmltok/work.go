package xmltok

import "sync"

// work is everything that reading an item needs. A decoder has one only while an
// item is partial, or its last item may still be looked at.
type work struct {
	pend     []byte // bytes of a token that is not complete
	seek     seek   // how far pend was searched for its end
	out      []byte // canonical content of the item so far
	head     []byte // names and values of the top-level element's attributes
	names    []byte // qualified names of the open elements, one after the other
	stack    []frame
	decls    []decl // in scope, innermost last; those of the stream header are in the decoder
	tag      tag
	top      Item // the item being read
	attrs    []Attr
	children []Child
	elements int
	declared int
	inCDATA  bool
	spent    bool // the item was returned: forget it at the next call
}

// frame is an open element.
type frame struct {
	space   string // its canonical namespace
	def     string // the default namespace in the source
	name    int    // where its name begins in work.names
	colon   int    // of the name, or -1
	decls   int    // how many declarations were in scope around it
	content int    // where its content begins in work.out
}

// decl is a namespace declaration with a prefix.
type decl struct{ prefix, uri string }

// keepBuffer is the largest buffer that goes back to the pool: enough for common items, in bytes.
const keepBuffer = 16 << 10

var pool = sync.Pool{New: func() any { return new(work) }}

// next prepares for another item.
func (w *work) next() {
	w.out, w.head, w.names = w.out[:0], w.head[:0], w.names[:0]
	w.stack, w.decls = w.stack[:0], w.decls[:0]
	w.attrs, w.children = w.attrs[:0], w.children[:0]
	w.top = Item{}
	w.elements, w.declared = 0, 0
	w.inCDATA, w.spent = false, false
}

// release puts the decoder's buffers back into the pool.
func (d *Decoder) release() {
	w := d.w
	if w == nil {
		return
	}
	d.w = nil
	w.next()
	w.seek = seek{}
	w.tag.forget()
	clear(w.attrs[:cap(w.attrs)])
	clear(w.children[:cap(w.children)])
	clear(w.decls[:cap(w.decls)])
	w.pend, w.out, w.head, w.names = kept(w.pend), kept(w.out), kept(w.head), kept(w.names)
	if cap(w.children) > DefaultMaxAttrs {
		w.children = nil
	}
	pool.Put(w)
}

func kept(b []byte) []byte {
	if cap(b) > keepBuffer {
		return nil
	}
	return b[:0]
}

// seek looks for the end of an incomplete token without reading the token again
// for each piece that arrives, so that bytes sent one by one cost linear time.
type seek struct {
	at    int  // how many bytes were searched
	quote byte // the quotation mark that is open at that place
	retry int  // read the token anyway when it is this long, to find its errors early
}

// complete reports whether reading b may be worth while.
func (s *seek) complete(b []byte) bool {
	if b[0] != '<' || len(b) < 2 || b[1] == '!' || b[1] == '?' || s.at == 0 || len(b) >= s.retry {
		return true // a short token, or a first look
	}
	for ; s.at < len(b); s.at++ {
		switch c := b[s.at]; {
		case s.quote != 0 && c == s.quote:
			s.quote = 0
		case s.quote != 0 && c != '<':
		case c == '"' || c == '\'':
			s.quote = c
		case c == '>' || c == '<':
			return true
		}
	}
	return false
}

// more notes that b, which begins with a token, is not enough.
func (s *seek) more(b []byte) {
	if s.at == 0 {
		s.at, s.quote = 1, 0
	}
	s.retry = 2 * len(b)
}
