package hot

import (
	"encoding/binary"
	"time"

	"muster/internal/fault"
	"muster/internal/jid"
)

// The operations of an origin, as the stream and the database hold them.
const (
	opPut    = 1
	opDelete = 2
)

// operation is one write of an origin.
type operation struct {
	kind     byte
	row      Row    // of a delete: User, Resource, Session, Version, and Since for when
	farewell []byte // of a delete
	status   string // of a delete: the status text to remember
}

// appendOperation encodes op: kind, version, session, nanoseconds, priority, whether it lingers, user, resource, then the body's parts.
func appendOperation(b []byte, op *operation) []byte {
	b = append(b, op.kind)
	b = binary.AppendUvarint(b, op.row.Version)
	b = binary.BigEndian.AppendUint64(b, op.row.Session)
	b = binary.BigEndian.AppendUint64(b, uint64(op.row.Since.UnixNano()))
	lingers := byte(0)
	if op.row.Lingers {
		lingers = 1
	}
	b = append(b, byte(op.row.Priority), lingers)
	b = appendString(b, op.row.User.String())
	b = appendString(b, op.row.Resource)
	if op.kind == opPut {
		return appendBytes(b, op.row.Presence)
	}
	return appendString(appendBytes(b, op.farewell), op.status)
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendBytes(b, s []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// reader takes an encoded operation apart. After a short read bad is set and all further values are zero.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n uint64) []byte {
	if r.bad || n > uint64(len(r.b)) {
		r.bad = true
		return nil
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uint64() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad = true
		return 0
	}
	r.take(uint64(n))
	return v
}

func (r *reader) bytes() []byte  { return r.take(r.uvarint()) }
func (r *reader) string() string { return string(r.bytes()) }

// operation reads one operation. Its byte slices are copies.
func (r *reader) operation() (*operation, error) {
	op := &operation{kind: r.byte()}
	op.row.Version = r.uvarint()
	op.row.Session = r.uint64()
	op.row.Since = time.Unix(0, int64(r.uint64())).UTC()
	op.row.Priority, op.row.Lingers = int8(r.byte()), r.byte() == 1
	user := r.string()
	op.row.Resource = r.string()
	switch op.kind {
	case opPut:
		op.row.Presence = clone(r.bytes())
	case opDelete:
		op.farewell = clone(r.bytes())
		op.status = r.string()
	default:
		r.bad = true
	}
	if r.bad || len(op.row.Presence) > MaxPresence || op.row.Resource == "" {
		return nil, fault.New(fault.BadRequest, "hot.decode", "", "malformed operation")
	}
	j, err := jid.Parse(user)
	if err != nil || !j.IsBare() || j.Local == "" {
		return nil, fault.New(fault.BadRequest, "hot.decode", "", "malformed user in an operation")
	}
	op.row.User = j
	return op, nil
}

func clone(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	return append(make([]byte, 0, len(b)), b...)
}
