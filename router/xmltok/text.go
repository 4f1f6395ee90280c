package xmltok

import (
	"bytes"
	"unicode/utf8"
)

const cdataStart, cdataEnd = "<![CDATA[", "]]>"

// maxRef is the longest character or entity reference taken: &#x0010FFFF; and a little more.
const maxRef = 16

// text copies the character data at b[i:] to the output, up to the next '<'.
// errMore says that b ends first; what stands from the returned index on must be seen again.
func (w *work) text(b []byte, i int) (int, error) {
	start := i
	for i < len(b) {
		c := b[i]
		if textClass[c] == plain {
			i++
			continue
		}
		var size int
		var err error
		if c >= utf8.RuneSelf {
			if size, err = wideChar(b[i:]); err == nil {
				i += size
				continue
			}
		}
		w.out = append(w.out, b[start:i]...)
		if c == '<' {
			return i, nil
		}
		if err == nil {
			size, err = w.textSpecial(b, i)
		}
		if err != nil {
			return i, err
		}
		i += size
		start = i
	}
	end := max(start, len(b)-heldBack(b))
	w.out = append(w.out, b[start:end]...)
	return end, errMore
}

// heldBack counts the brackets at the end of b that may be the beginning of "]]>".
func heldBack(b []byte) int {
	n := 0
	for n < 2 && n < len(b) && b[len(b)-1-n] == ']' {
		n++
	}
	return n
}

// textSpecial handles the one character at b[i] that does not stand for itself, and returns its size in b.
func (w *work) textSpecial(b []byte, i int) (int, error) {
	switch b[i] {
	case '&':
		r, size, err := reference(b[i:])
		if err == nil {
			w.out = appendTextRune(w.out, r)
		}
		return size, err
	case '>':
		if i >= 2 && b[i-1] == ']' && b[i-2] == ']' {
			return 0, ErrNotWellFormed.because("]]> in character data")
		}
		w.out = append(w.out, "&gt;"...)
		return 1, nil
	case '\r':
		size, err := lineEnd(b[i:])
		if err == nil {
			w.out = append(w.out, '\n')
		}
		return size, err
	}
	return 0, ErrNotWellFormed.because("control character")
}

func appendTextRune(dst []byte, r rune) []byte {
	if r < utf8.RuneSelf && textClass[r] == markup {
		return append(dst, escapes[r]...)
	}
	return utf8.AppendRune(dst, r)
}

// lineEnd returns the size of the line end at b, whose first byte is a carriage return (XML 1.0 section 2.11).
func lineEnd(b []byte) (int, error) {
	switch {
	case len(b) == 1:
		return 0, errMore
	case b[1] == '\n':
		return 2, nil
	}
	return 1, nil
}

// wideChar returns the size of the character beyond ASCII at the start of b.
func wideChar(b []byte) (int, error) {
	r, size := utf8.DecodeRune(b)
	switch {
	case r != utf8.RuneError && isChar(r), r == utf8.RuneError && size > 1:
		return size, nil
	case r != utf8.RuneError:
		return 0, ErrNotWellFormed.because("character that XML does not allow")
	case !utf8.FullRune(b):
		return 0, errMore
	}
	return 0, ErrBadEncoding.because("not UTF-8")
}

// reference reads the reference at the start of b: &name; or &#number;.
func reference(b []byte) (rune, int, error) {
	end := 1
	for end < len(b) && end < maxRef && (nameClass[b[end]] != 0 || b[end] == '#') {
		end++
	}
	if end == len(b) && end < maxRef {
		return 0, 0, errMore
	}
	if end == maxRef || b[end] != ';' {
		return 0, 0, ErrNotWellFormed.because("unfinished reference")
	}
	name := b[1:end]
	if len(name) > 0 && name[0] == '#' {
		r, ok := number(name[1:])
		if !ok {
			return 0, 0, ErrNotWellFormed.because("malformed character reference")
		}
		return r, end + 1, nil
	}
	switch string(name) {
	case "amp":
		return '&', end + 1, nil
	case "lt":
		return '<', end + 1, nil
	case "gt":
		return '>', end + 1, nil
	case "quot":
		return '"', end + 1, nil
	case "apos":
		return '\'', end + 1, nil
	}
	if _, colon, err := qname(b[1:end+1], 0, maxRef); err != nil || colon >= 0 {
		return 0, 0, ErrNotWellFormed.because("malformed reference")
	}
	return 0, 0, ErrRestricted.because("entity that is not predefined")
}

// number reads the digits of a character reference.
func number(s []byte) (rune, bool) {
	base := rune(10)
	if len(s) > 0 && s[0] == 'x' {
		base, s = 16, s[1:]
	}
	var r rune
	for _, c := range s {
		var digit rune
		switch {
		case '0' <= c && c <= '9':
			digit = rune(c - '0')
		case base == 16 && 'a' <= c|0x20 && c|0x20 <= 'f':
			digit = rune(c|0x20-'a') + 10
		default:
			return 0, false
		}
		if r = r*base + digit; r > utf8.MaxRune {
			return 0, false
		}
	}
	return r, len(s) > 0 && isChar(r)
}

// cdata copies the content of a CDATA section to the output, escaped as text.
// It is called again with what errMore left over.
func (w *work) cdata(b []byte, i int) (int, error) {
	end, done := bytes.Index(b[i:], []byte(cdataEnd)), true
	if end < 0 {
		end, done = len(b)-i-heldBack(b[i:]), false
	}
	section := b[i : i+end]
	for k := 0; k < len(section); {
		c := section[k]
		size, err := 1, error(nil)
		switch {
		case c >= utf8.RuneSelf:
			if size, err = wideChar(section[k:]); err == nil {
				w.out = append(w.out, section[k:k+size]...)
			}
		case c == '\r':
			if size, err = lineEnd(section[k:]); err == nil || done {
				w.out = append(w.out, '\n')
				size, err = max(size, 1), nil
			}
		case textClass[c] == forbidden:
			err = ErrNotWellFormed.because("control character")
		default:
			w.out = appendTextRune(w.out, rune(c))
		}
		if err == errMore && done {
			err = ErrBadEncoding.because("not UTF-8")
		}
		if err != nil {
			return i + k, err
		}
		k += size
	}
	if !done {
		return i + end, errMore
	}
	w.inCDATA = false
	return i + end + len(cdataEnd), nil
}
