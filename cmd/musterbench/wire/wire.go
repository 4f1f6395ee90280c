// Package wire cuts the byte stream of an XMPP server into stanzas.
//
// The load generator's client engine is its only caller. It trusts the server
// to send well-formed XML and does no more than find where each top-level
// element ends, because every microsecond spent here is one that the server
// under test cannot use on a shared machine. Invariant: a frame handed to the
// caller is valid only until the next call of Feed.
package wire

import (
	"bytes"

	"muster/internal/fault"
)

// maxPending bounds what the scanner keeps of one unfinished stanza, in bytes;
// a server that sends more is broken, and the run must not eat the machine.
const maxPending = 4 << 20

// streamDepth is the nesting of the stream element's children.
const streamDepth = 1

// Scanner finds top-level elements in a stream. The zero value waits for a stream header.
type Scanner struct {
	pending []byte
	depth   int
	start   int // where the open stanza begins in pending, when depth > streamDepth
	next    int // first byte not looked at yet
}

// NewInside returns a scanner that is past the stream header already: bare stanzas follow.
func NewInside() *Scanner { return &Scanner{depth: streamDepth} }

// Reset forgets everything: a new stream header follows (RFC 6120 section 4.3.3).
func (s *Scanner) Reset() {
	s.pending, s.depth, s.start, s.next = s.pending[:0], 0, 0, 0
}

// Feed adds data and calls emit for each complete element: the stream header's
// opening tag, each stanza, and the stream's closing tag. It stops at emit's first error.
func (s *Scanner) Feed(data []byte, emit func(frame []byte) error) error {
	if len(s.pending)+len(data) > maxPending {
		return fault.New(fault.TooLarge, "wire.feed", "", "the server sent a stanza of more than 4 MiB")
	}
	s.pending = append(s.pending, data...)
	for {
		frame, ok := s.advance()
		if !ok {
			break
		}
		if frame == nil {
			continue
		}
		if err := emit(frame); err != nil {
			return err
		}
	}
	s.compact()
	return nil
}

// advance consumes one tag. It returns a frame when that tag ended one, and false when no whole tag is left.
func (s *Scanner) advance() ([]byte, bool) {
	open := bytes.IndexByte(s.pending[s.next:], '<')
	if open < 0 {
		s.next = len(s.pending)
		return nil, false
	}
	begin := s.next + open
	size := tagSize(s.pending[begin:])
	if size == 0 {
		s.next = begin
		return nil, false
	}
	end := begin + size
	s.next = end
	return s.frame(begin, end), true
}

// frame follows the tag at [begin,end) and returns the element that it completed, or nil.
func (s *Scanner) frame(begin, end int) []byte {
	switch tag := s.pending[begin:end]; {
	case tag[1] == '?' || tag[1] == '!':
		return nil
	case tag[1] == '/':
		s.depth--
		switch s.depth {
		case streamDepth:
			return s.pending[s.start:end]
		case 0:
			return tag
		}
	case tag[len(tag)-2] == '/':
		if s.depth == streamDepth {
			return tag
		}
	default:
		s.depth++
		switch s.depth {
		case streamDepth:
			return tag
		case streamDepth + 1:
			s.start = begin
		}
	}
	return nil
}

// compact drops what has been handed out.
func (s *Scanner) compact() {
	keep := s.next
	if s.depth > streamDepth {
		keep = s.start
	}
	if keep == 0 {
		return
	}
	n := copy(s.pending, s.pending[keep:])
	s.pending = s.pending[:n]
	s.next -= keep
	s.start = 0
}

// tagSize returns the length of the tag that b starts with, or 0 if it is not all there.
func tagSize(b []byte) int {
	var quote byte
	for i, c := range b {
		switch {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '\'' || c == '"':
			quote = c
		case c == '>':
			return i + 1
		}
	}
	return 0
}

// Attr returns the value of an attribute of frame's first tag, unescaped not at all, or nil.
func Attr(frame []byte, name string) []byte {
	tag := frame[:tagSize(frame)]
	for at := 0; ; {
		i := bytes.Index(tag[at:], []byte(name))
		if i < 0 {
			return nil
		}
		at += i
		after := at + len(name)
		if at > 0 && (tag[at-1] == ' ' || tag[at-1] == '\n') && after+1 < len(tag) && tag[after] == '=' {
			value := tag[after+2:]
			if end := bytes.IndexByte(value, tag[after+1]); end >= 0 {
				return value[:end]
			}
		}
		at = after
	}
}

// Named reports whether frame's element is called name (as written, prefix and all).
func Named(frame []byte, name string) bool {
	if len(frame) < len(name)+2 || frame[0] != '<' || string(frame[1:1+len(name)]) != name {
		return false
	}
	switch frame[1+len(name)] {
	case ' ', '>', '/', '\n':
		return true
	}
	return false
}

// Text returns the character data of the first child element written as <name>, or nil.
func Text(frame []byte, name string) []byte {
	i := bytes.Index(frame, []byte("<"+name))
	if i < 0 {
		return nil
	}
	size := tagSize(frame[i:])
	if size == 0 {
		return nil
	}
	rest := frame[i+size:]
	end := bytes.IndexByte(rest, '<')
	if end < 0 {
		return nil
	}
	return rest[:end]
}
