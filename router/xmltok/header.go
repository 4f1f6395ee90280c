package xmltok

import (
	"bytes"
	"strings"
)

// maxDeclaration is the longest XML declaration taken, in bytes; the usual one has 38.
const maxDeclaration = 128

// start skips white space, a byte order mark and an XML declaration. White space before the declaration is
// against XML, but clients send a line end after what came before a stream restart.
func (d *Decoder) start(b []byte) (int, error) {
	const bom, decl = "\xEF\xBB\xBF", "<?xml"
	if incompletePrefix(b, bom) {
		return 0, errMore
	}
	n := 0
	if bytes.HasPrefix(b, []byte(bom)) {
		n = len(bom)
	}
	n += spaces(b[n:])
	rest := b[n:]
	if len(rest) == 0 || incompletePrefix(rest, decl) {
		return n, errMore
	}
	d.phase = d.afterProlog()
	if !bytes.HasPrefix(rest, []byte(decl)) || len(rest) > len(decl) && nameClass[rest[len(decl)]] != 0 {
		return n, nil
	}
	end := bytes.Index(rest, []byte("?>"))
	switch {
	case end < 0 && len(rest) < maxDeclaration:
		d.phase = atStart
		return n, errMore
	case end < 0 || end > maxDeclaration:
		return 0, ErrNotWellFormed.because("malformed XML declaration")
	}
	return n + end + 2, xmlDeclaration(string(rest[len(decl):end]))
}

func (d *Decoder) afterProlog() phase {
	if d.opts.Framed {
		return between
	}
	return prolog
}

// incompletePrefix reports whether b is a true prefix of s, so that more input must tell.
func incompletePrefix(b []byte, s string) bool {
	return len(b) > 0 && len(b) < len(s) && strings.HasPrefix(s, string(b))
}

// xmlDeclaration checks the pseudo-attributes of an XML declaration (XML 1.0 section 2.8).
func xmlDeclaration(s string) error {
	malformed := ErrNotWellFormed.because("malformed XML declaration")
	values := map[string]string{}
	order := ""
	for s != "" {
		trimmed := strings.TrimLeft(s, " \t\r\n")
		if trimmed == "" {
			break
		}
		name, rest, ok := strings.Cut(trimmed, "=")
		rest = strings.TrimLeft(rest, " \t\r\n")
		if !ok || len(trimmed) == len(s) || rest == "" || rest[0] != '"' && rest[0] != '\'' {
			return malformed
		}
		value, after, ok := strings.Cut(rest[1:], rest[:1])
		if !ok {
			return malformed
		}
		name = strings.TrimRight(name, " \t\r\n")
		values[name] = value
		order += name + " "
		s = after
	}
	switch order {
	case "version ", "version encoding ", "version standalone ", "version encoding standalone ":
	default:
		return malformed
	}
	if sa, ok := values["standalone"]; values["version"] != "1.0" || ok && sa != "yes" && sa != "no" {
		return malformed
	}
	if enc, ok := values["encoding"]; ok && !strings.EqualFold(enc, "utf-8") {
		return ErrBadEncoding.because("only UTF-8 is understood")
	}
	return nil
}

// header reads the stream header.
func (d *Decoder) header(b []byte, i int) (int, ItemKind, error) {
	i += spaces(b[i:])
	if i == len(b) {
		return i, None, errMore
	}
	if err := d.refuse(b[i:]); err != nil {
		return i, None, err
	}
	w := d.work()
	end, err := d.startTag(b, i)
	if err != nil {
		return i, None, err
	}
	d.root = intern(w.tag.name)
	d.decls, d.def = append([]decl(nil), w.decls...), w.top.Default
	d.phase = between
	if w.tag.empty {
		d.phase = ending
	}
	return end, StreamOpen, nil
}
