package xmltok

import "unicode/utf8"

// Classes of bytes in character data and attribute values.
const (
	plain     = iota // stands for itself in canonical form
	markup           // & < > and the like: has an escape
	wide             // part of a character beyond ASCII
	forbidden        // a control character that XML has no way to write
)

var textClass, attrClass = classes("&<>\r"), classes("&<>\"\t\n\r")

func classes(escaped string) (t [256]uint8) {
	for c := range t {
		switch {
		case c >= utf8.RuneSelf:
			t[c] = wide
		case c < ' ' && c != '\t' && c != '\n' && c != '\r':
			t[c] = forbidden
		}
	}
	for i := range len(escaped) {
		t[escaped[i]] = markup
	}
	return t
}

// AppendText appends s as canonical character data. What XML cannot hold becomes U+FFFD.
func AppendText(dst []byte, s string) []byte { return appendEscaped(dst, s, &textClass) }

// AppendAttr appends s as the canonical inside of an attribute value in double
// quotes. It is valid character data too. What XML cannot hold becomes U+FFFD.
func AppendAttr(dst []byte, s string) []byte { return appendEscaped(dst, s, &attrClass) }

func appendEscaped[T string | []byte](dst []byte, s T, class *[256]uint8) []byte {
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		k := class[c]
		if k == plain {
			i++
			continue
		}
		size := 1
		if k == wide {
			r, n := utf8.DecodeRuneInString(string(s[i:min(i+utf8.UTFMax, len(s))]))
			if size = n; isChar(r) && (r != utf8.RuneError || n > 1) {
				i += size
				continue
			}
		}
		dst = append(dst, s[start:i]...)
		if k == markup {
			dst = append(dst, escapes[c]...)
		} else {
			dst = utf8.AppendRune(dst, utf8.RuneError)
		}
		i += size
		start = i
	}
	return append(dst, s[start:]...)
}

var escapes = [256]string{
	'&': "&amp;", '<': "&lt;", '>': "&gt;", '"': "&quot;", '\t': "&#9;", '\n': "&#10;", '\r': "&#13;",
}

// isChar reports whether r may occur in XML (XML 1.0 section 2.2).
func isChar(r rune) bool {
	return r == '\t' || r == '\n' || r == '\r' || ' ' <= r && r <= 0xD7FF || 0xE000 <= r && r <= 0xFFFD || 0x10000 <= r && r <= 0x10FFFF
}
