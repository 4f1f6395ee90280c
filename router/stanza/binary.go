package stanza

import (
	"encoding/binary"

	"muster/internal/fault"
	"muster/router/xmltok"
)

// The binary form of a packet is what nodes of a cluster send each other, who
// trust each other to have validated the XML: a version byte, a kind byte, the
// number in the message log as a varint, then type, id, lang, the three parts of from and of to, and the canonical inner
// bytes, each with its length before it as a varint, then the number of
// children and of each its namespace, name and size, and the gap before it.
const binaryVersion = 1

// MaxBinary is the largest binary packet that DecodeBinary takes, in bytes. Stanzas are bounded
// where they enter the cluster, and what the server adds to them is small.
const MaxBinary = 2 << 20

// AppendBinary appends the binary form of p.
func AppendBinary(dst []byte, p *Packet) []byte {
	dst = binary.AppendUvarint(append(dst, binaryVersion, byte(p.Kind)), p.Number)
	for _, s := range [...]string{
		p.Type, p.ID, p.Lang, p.From.Local, p.From.Domain, p.From.Resource, p.To.Local, p.To.Domain, p.To.Resource,
	} {
		dst = appendString(dst, s)
	}
	dst = binary.AppendUvarint(dst, uint64(len(p.Inner)))
	dst = append(dst, p.Inner...)
	dst = binary.AppendUvarint(dst, uint64(len(p.Children)))
	end := 0
	for _, c := range p.Children {
		dst = appendString(appendString(dst, c.Space), c.Local)
		dst = binary.AppendUvarint(dst, uint64(c.Start-end))
		dst = binary.AppendUvarint(dst, uint64(c.End-c.Start))
		end = c.End
	}
	return dst
}

func appendString(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

// DecodeBinary reads what AppendBinary wrote. b must hold exactly one packet, and is not kept. Errors are faults
// with code BadRequest.
func DecodeBinary(b []byte) (*Packet, error) {
	malformed := fault.New(fault.BadRequest, "stanza.decode", "", "malformed packet")
	if len(b) < 2 || len(b) > MaxBinary || b[0] != binaryVersion || Kind(b[1]).String() == "" {
		return nil, malformed
	}
	p := &Packet{Kind: Kind(b[1])}
	r := binaryReader{b: b[2:], ok: true}
	p.Number = r.uint64()
	p.readBinaryHead(&r)
	if inner := r.bytes(); len(inner) > 0 {
		p.Inner = append([]byte(nil), inner...)
	}
	r.children(p)
	if !r.ok || len(r.b) > 0 {
		return nil, malformed
	}
	return p, nil
}

// readBinaryHead takes the strings of the head, which share one allocation.
func (p *Packet) readBinaryHead(r *binaryReader) {
	fields := [...]*string{
		&p.Type, &p.ID, &p.Lang, &p.From.Local, &p.From.Domain, &p.From.Resource, &p.To.Local, &p.To.Domain, &p.To.Resource,
	}
	var ends [len(fields)]int
	all := r.b
	for i := range fields {
		r.bytes()
		ends[i] = len(all) - len(r.b)
	}
	if !r.ok {
		return
	}
	head := string(all[:ends[len(ends)-1]])
	field := binaryReader{b: all, ok: true}
	for i, end := range ends {
		*fields[i] = head[end-len(field.bytes()) : end]
	}
}

// binaryReader takes values off the front of b; ok turns false at the first that is malformed.
type binaryReader struct {
	b  []byte
	ok bool
}

func (r *binaryReader) uint64() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.ok, r.b = false, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *binaryReader) uint(limit int) int {
	v := r.uint64()
	if v > uint64(limit) {
		r.ok, r.b = false, nil
		return 0
	}
	return int(v)
}

func (r *binaryReader) bytes() []byte {
	n := r.uint(len(r.b))
	if n > len(r.b) {
		r.ok, r.b = false, nil
		return nil
	}
	s := r.b[:n]
	r.b = r.b[n:]
	return s
}

// name takes a string that is mostly well known.
func (r *binaryReader) name() string { return xmltok.Intern(r.bytes()) }

func (r *binaryReader) children(p *Packet) {
	const smallest = 4 // bytes that a child takes at least: the count cannot make us allocate more than b is worth
	count := r.uint(len(r.b) / smallest)
	if count > 0 {
		p.Children = p.few[:0]
	}
	for end := 0; count > 0 && r.ok; count-- {
		c := Child{Space: r.name(), Local: r.name()}
		c.Start = end + r.uint(len(p.Inner)-end)
		c.End = c.Start + r.uint(len(p.Inner)-c.Start)
		end = c.End
		if c.Start == c.End || p.Inner[c.Start] != '<' {
			r.ok = false
			return
		}
		p.Children = append(p.Children, c)
	}
}
