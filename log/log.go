// Package log is what may happen: the entry envelope, the table of kinds, and
// the codec of the replicated event logs.
//
// An entry is a fact that all nodes apply in the same order. Whatever is not
// determined (time, ids, salts) is settled before an entry is proposed, so
// that applying it has one outcome everywhere. Entries travel in batches: one
// Raft record is one batch, framed with a format version and a CRC32C.
//
// Invariants: a kind's number and meaning never change; the golden bytes of
// every kind stay in testdata/golden for ever; decoding never panics and never
// accepts a record whose checksum is wrong.
package log

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"time"

	"google.golang.org/protobuf/proto"

	"muster/internal/fault"
	"muster/log/logpb"
)

// Limits of the codec. Raft keeps whole records in memory, so they stay well below a gigabyte.
const (
	MaxBody  = 8 << 20  // bytes of one entry's body
	MaxBatch = 16 << 20 // bytes of one encoded batch
	MaxKey   = 256      // bytes of an idempotency key: it is kept with the result
)

const (
	formatVersion = 1
	headerSize    = 1 + 4 // format version, CRC32C of the rest
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Entry is one record of a log.
type Entry struct {
	Kind    Kind
	Body    []byte    // the kind's own message, encoded
	Key     string    // idempotency key: a second entry with the same key gets the first one's result; "" for none
	Node    uint32    // proposing node
	Actor   string    // who: "alice@example.com", "local:0", "node:2"
	Surface string    // through what: "cli", "xmpp", "rest", "system"
	Time    time.Time // proposer's clock; the machine never goes back behind an earlier entry's
	Trace   string    // joins the log lines of one operation
	Expect  uint64    // revision (log index) that the subject must still have; 0 for any
}

// New returns an entry of kind with body encoded. It panics if body cannot be
// encoded, which only invalid UTF-8 in a string field can cause: callers validate first.
func New(kind Kind, body proto.Message) *Entry {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(body)
	if err != nil {
		panic(fmt.Sprintf("log: encoding the body of %v: %v", kind, err))
	}
	return &Entry{Kind: kind, Body: b}
}

// Unmarshal decodes the entry's body into m.
func (e *Entry) Unmarshal(m proto.Message) error {
	return fault.Wrap(proto.Unmarshal(e.Body, m), fault.BadRequest, "log.decode", e.Kind.String())
}

// Encode frames a batch of entries as one record: version, CRC32C, protobuf.
func Encode(entries []*Entry) ([]byte, error) {
	pb := &logpb.Batch{Entries: make([]*logpb.Entry, len(entries))}
	for i, e := range entries {
		if len(e.Body) > MaxBody {
			return nil, fault.New(fault.TooLarge, "log.encode", e.Kind.String(), "the entry is too large")
		}
		if len(e.Key) > MaxKey {
			return nil, fault.New(fault.TooLarge, "log.encode", e.Kind.String(), "the idempotency key is too long")
		}
		pb.Entries[i] = &logpb.Entry{
			Kind: uint32(e.Kind), Body: e.Body, Key: e.Key, Node: e.Node, Actor: e.Actor,
			Surface: e.Surface, Time: e.Time.UnixNano(), Trace: e.Trace, Expect: e.Expect,
		}
	}
	out, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(make([]byte, headerSize, 256), pb)
	if err != nil {
		return nil, fault.Wrap(err, fault.BadRequest, "log.encode", "")
	}
	if len(out) > MaxBatch {
		return nil, fault.New(fault.TooLarge, "log.encode", "", "the batch is too large")
	}
	out[0] = formatVersion
	binary.BigEndian.PutUint32(out[1:], crc32.Checksum(out[headerSize:], castagnoli))
	return out, nil
}

// Decode reads one record. A wrong checksum, an unknown format version or a
// malformed body is a fault with code Internal: the record's store is damaged
// or the record comes from a newer release.
func Decode(record []byte) ([]*Entry, error) {
	if len(record) < headerSize {
		return nil, fault.New(fault.Internal, "log.decode", "", "record is cut short")
	}
	if record[0] != formatVersion {
		return nil, fault.New(fault.Internal, "log.decode", "", fmt.Sprintf("record format %d is not known here; upgrade this node", record[0]))
	}
	if crc32.Checksum(record[headerSize:], castagnoli) != binary.BigEndian.Uint32(record[1:]) {
		return nil, fault.New(fault.Internal, "log.decode", "", "record checksum is wrong; the log store is damaged")
	}
	var pb logpb.Batch
	if err := proto.Unmarshal(record[headerSize:], &pb); err != nil {
		return nil, fault.Wrap(err, fault.Internal, "log.decode", "")
	}
	entries := make([]*Entry, len(pb.Entries))
	for i, e := range pb.Entries {
		if e.Kind > math.MaxUint16 {
			return nil, fault.New(fault.Internal, "log.decode", "", fmt.Sprintf("entry kind %d is not known here; upgrade this node", e.Kind))
		}
		entries[i] = &Entry{
			Kind: Kind(e.Kind), Body: e.Body, Key: e.Key, Node: e.Node, Actor: e.Actor,
			Surface: e.Surface, Time: time.Unix(0, e.Time).UTC(), Trace: e.Trace, Expect: e.Expect,
		}
	}
	return entries, nil
}
