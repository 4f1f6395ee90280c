package fsm

import (
	"strings"

	"google.golang.org/protobuf/proto"
)

// Load decodes the row of t at key into m and reports whether there is one.
// A row that cannot be decoded is a broken invariant: Load then panics.
func Load(r Reader, t *Table, key []byte, m proto.Message) bool {
	b, ok := r.Get(t, key)
	if ok {
		Decode(t, b, m)
	}
	return ok
}

// Decode decodes a row of t, for Scan callbacks and changes. It panics on a damaged row.
func Decode(t *Table, value []byte, m proto.Message) {
	must(proto.Unmarshal(value, m), "fsm.decode", t.name)
}

// Save encodes m as the row of t at key.
func (tx *Tx) Save(t *Table, key []byte, m proto.Message) { tx.Put(t, key, Encode(m)) }

// Encode encodes a row or a result in the one way that is equal on all nodes.
func Encode(m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	must(err, "fsm.encode", string(m.ProtoReflect().Descriptor().Name()))
	return b
}

// Text returns s as an entry may hold it: valid UTF-8, wrong bytes replaced.
// Entry constructors pass what comes from outside through it.
func Text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
