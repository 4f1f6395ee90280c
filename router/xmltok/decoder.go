package xmltok

import (
	"bytes"
	"unicode/utf8"
)

// phase is where in the stream a decoder is.
type phase uint8

const (
	atStart phase = iota // a byte order mark and an XML declaration may follow
	prolog               // the stream header follows
	between              // between top-level elements
	inside               // in a top-level element
	ending               // an empty stream header was read: the end follows by itself
	ended                // after the end of the stream
)

// Decoder reads one stream. It is not safe for concurrent use. While no item is
// partial it holds no buffer, only what the stream header declared.
type Decoder struct {
	opts  *Options
	w     *work
	err   error
	root  string // qualified name of the stream header
	def   string // default namespace in scope for top-level elements
	decls []decl // prefixes that the stream header declared
	used  int    // bytes of the current item, without those in work.pend
	phase phase
}

// NewDecoder returns a decoder at the start of a stream; nil options mean the defaults.
func NewDecoder(o *Options) *Decoder {
	d := &Decoder{}
	d.opts = o.complete()
	d.Reset()
	return d
}

// SetOptions changes the limits from the next byte on, for example after authentication.
// Framed and Content must be what they were.
func (d *Decoder) SetOptions(o *Options) { d.opts = o.complete() }

// Reset forgets everything but the options, for a new stream on the same
// connection (after TLS, after SASL), and gives the buffers back.
func (d *Decoder) Reset() {
	d.release()
	*d = Decoder{opts: d.opts}
	if d.opts.Framed {
		d.def = nsClient
	}
}

// Release gives the buffers back when the connection ends. Only Reset may follow.
func (d *Decoder) Release() {
	d.release()
	d.phase = ended
}

// Pending returns how many bytes of an incomplete item were fed.
func (d *Decoder) Pending() int {
	if d.w == nil || d.w.spent {
		return 0
	}
	return d.used + len(d.w.pend)
}

// Next reads from in until it has one item, and returns how many bytes it used.
// Call it with the rest of the bytes until the kind is None; only then, when it
// has used all of them, wait for more input: a decoder that returned None and
// has no partial item holds no buffer. in is not kept. Errors are *Error and
// final: every later call returns the same.
func (d *Decoder) Next(in []byte) (n int, item Item, err error) {
	if d.err != nil {
		return 0, Item{}, d.err
	}
	if d.phase == ending {
		d.phase = ended
		return 0, Item{Kind: StreamClose}, nil
	}
	if d.phase == ended {
		return len(in), Item{}, nil
	}
	if d.w != nil && d.w.spent {
		d.w.next()
	}
	n, kind, err := d.feed(in)
	switch {
	case err != nil:
		d.err = err
		d.release()
		return n, item, err
	case kind == None:
		if d.Pending() == 0 {
			d.release()
		}
		return n, item, nil
	case kind == Element || kind == StreamOpen:
		d.w.finish(&item)
	}
	item.Kind, item.Size = kind, d.used+n
	d.used = 0
	return n, item, nil
}

// feed joins in with the held bytes, reads, holds what is incomplete, and counts.
func (d *Decoder) feed(in []byte) (int, ItemKind, error) {
	if len(in) == 0 {
		return 0, None, nil
	}
	buf, held := in, 0
	room := d.opts.MaxBytes - d.used
	if d.w != nil && len(d.w.pend) > 0 {
		held = len(d.w.pend)
		d.w.pend = append(d.w.pend, in[:min(len(in), max(room-held, 0))]...)
		buf = d.w.pend
		if len(buf) <= room && len(buf)-held == len(in) && !d.w.seek.complete(buf) {
			return len(in), None, nil
		}
	}
	tooLarge := held+len(in) > room
	buf = buf[:min(len(buf), max(room, 0))]
	n, kind, err := d.step(buf)
	if err == nil {
		d.used += held // the caller counts what it gave now
		d.settle(held)
		return n - held, kind, nil
	}
	if err != errMore {
		return 0, None, err
	}
	if tooLarge {
		return 0, None, ErrTooLarge.because("more bytes than one element may have")
	}
	d.used += n
	d.hold(buf[n:], n, held)
	return len(in), None, nil
}

// settle forgets the held bytes: what they began is complete.
func (d *Decoder) settle(held int) {
	if held > 0 {
		d.w.pend, d.w.seek = d.w.pend[:0], seek{}
	}
}

// hold keeps the incomplete token that rest is, after n bytes were read.
func (d *Decoder) hold(rest []byte, n, held int) {
	if len(rest) == 0 {
		d.settle(held)
		return
	}
	w := d.work()
	if n > 0 || held == 0 {
		w.seek = seek{}
	}
	w.pend = append(w.pend[:0], rest...) // rest may be the end of pend itself: append moves it as copy does
	w.seek.more(w.pend)
}

func (d *Decoder) work() *work {
	if d.w == nil {
		d.w = pool.Get().(*work)
	}
	return d.w
}

// step reads b, which begins where the last call stopped, up to the end of one
// item. With errMore n bytes are done with, and the rest must be seen again.
func (d *Decoder) step(b []byte) (n int, kind ItemKind, err error) {
	for {
		switch d.phase {
		case atStart:
			n, err = d.start(b)
		case prolog:
			n, kind, err = d.header(b, n)
		case between:
			n, kind, err = d.outside(b, n)
		default:
			n, kind, err = d.content(b, n)
		}
		if err != nil || kind != None {
			return n, kind, err
		}
	}
}

// outside reads between top-level elements.
func (d *Decoder) outside(b []byte, i int) (int, ItemKind, error) {
	if n := spaces(b[i:]); n > 0 {
		return i + n, Whitespace, nil
	}
	if i == len(b) {
		return i, None, errMore
	}
	if err := d.refuse(b[i:]); err != nil {
		return i, None, err
	}
	if b[i+1] == '/' {
		end, err := endTag(b, i, d.root)
		if err != nil {
			return i, None, err
		}
		d.phase = ended
		return end, StreamClose, nil
	}
	d.work()
	end, err := d.startTag(b, i)
	if err != nil {
		return i, None, err
	}
	if d.w.tag.empty {
		return end, Element, nil
	}
	d.phase = inside
	return end, None, nil
}

// refuse reports what may not stand outside of elements; b is not empty.
func (d *Decoder) refuse(b []byte) error {
	if b[0] >= utf8.RuneSelf {
		if _, err := wideChar(b); err != nil {
			return err
		}
	}
	switch {
	case b[0] != '<':
		return ErrNotWellFormed.because("text outside of an element")
	case len(b) == 1:
		return errMore
	case b[1] == '!' || b[1] == '?':
		return ErrRestricted.because("comment, processing instruction or document type")
	case b[1] == '/' && (d.phase == prolog || d.opts.Framed):
		return ErrNotWellFormed.because("end tag without a start tag")
	}
	return nil
}

// content reads inside a top-level element.
func (d *Decoder) content(b []byte, i int) (int, ItemKind, error) {
	w := d.w
	for {
		var err error
		if w.inCDATA {
			if i, err = w.cdata(b, i); err != nil {
				return i, None, err
			}
		}
		if i, err = w.text(b, i); err != nil {
			return i, None, err
		}
		if i+1 == len(b) {
			return i, None, errMore
		}
		var end int
		switch b[i+1] {
		case '/':
			end, err = d.closeTag(b, i)
		case '!':
			end, err = w.openCDATA(b, i)
		case '?':
			err = ErrRestricted.because("processing instruction")
		default:
			end, err = d.startTag(b, i)
		}
		if err != nil {
			return i, None, err
		}
		i = end
		if len(w.stack) == 0 {
			d.phase = between
			return i, Element, nil
		}
	}
}

// finish hands out the complete item.
func (w *work) finish(item *Item) {
	*item = w.top
	item.Inner = w.out[:len(w.out):len(w.out)]
	item.Children = w.children
	w.spent = true
}

// openCDATA reads the beginning of a CDATA section.
func (w *work) openCDATA(b []byte, i int) (int, error) {
	rest := b[i:]
	switch {
	case bytes.HasPrefix(rest, []byte(cdataStart)):
		w.inCDATA = true
		return i + len(cdataStart), nil
	case incompletePrefix(rest, cdataStart):
		return 0, errMore
	}
	return 0, ErrRestricted.because("comment or document type")
}

// closeTag reads the end tag at b[i:] and closes the innermost element.
func (d *Decoder) closeTag(b []byte, i int) (int, error) {
	w := d.w
	f := &w.stack[len(w.stack)-1]
	name := w.names[f.name:]
	end, err := endTag(b, i, name)
	if err != nil {
		return 0, err
	}
	if len(w.stack) > 1 {
		if len(w.out) == f.content {
			w.out = append(w.out[:len(w.out)-1], '/', '>')
		} else {
			w.out = append(append(append(w.out, '<', '/'), name[f.colon+1:]...), '>')
		}
		w.closeChild()
	}
	w.names = w.names[:f.name]
	w.decls = w.decls[:f.decls]
	w.stack = w.stack[:len(w.stack)-1]
	return end, nil
}

// closeChild notes the end of a child of the top-level element, if the innermost element is one.
func (w *work) closeChild() {
	if len(w.stack) == 2 {
		w.children[len(w.children)-1].End = len(w.out)
	}
}

// endTag reads the end tag at b[i:], which must have that name.
func endTag[T string | []byte](b []byte, i int, name T) (int, error) {
	i += 2
	have := b[i:min(len(b), i+len(name))]
	if string(have) != string(name[:len(have)]) {
		return 0, ErrNotWellFormed.because("end tag does not match")
	}
	i += len(have)
	i += spaces(b[i:])
	if i == len(b) {
		return 0, errMore
	}
	if b[i] != '>' {
		return 0, ErrNotWellFormed.because("end tag does not match")
	}
	return i + 1, nil
}

// spaces counts the white space at the start of b.
func spaces(b []byte) int {
	n := 0
	for n < len(b) && isSpace(b[n]) {
		n++
	}
	return n
}

func isSpace(c byte) bool { return c == ' ' || c == '\n' || c == '\t' || c == '\r' }
