package state

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"slices"
	"time"

	"muster/feature/message/state/messagepb"
	"muster/fsm"
)

// Direction tells whether an archive's owner sent or received a message.
type Direction byte

// The directions. A message to oneself counts as received. The values are stored.
const (
	Received Direction = 1
	Sent     Direction = 2
)

// Message is a message that is kept.
type Message struct {
	Number         uint64    // its place in the order of all messages
	Time           time.Time // when it was acknowledged; never falls as numbers rise
	From, To       string    // bare addresses
	XML            []byte    // the canonical stanza as its sender's server took it
	Session, Input uint64    // of a message that follows live stanzas of its session; else 0

	senderID, recipientID uint64
}

// SenderID returns the random id that the message got when it was proposed.
func (m *Message) SenderID() uint64 { return m.senderID }

// ID returns the message's id in an owner's archive (XEP-0359), which is the
// same for ever and on every node. The two owners' ids of one message differ,
// and nobody can tell one from the other.
func (m *Message) ID(owner string) string {
	id := m.recipientID
	if owner != m.To {
		id = m.senderID
	}
	b := binary.BigEndian.AppendUint64(numberKey(m.Number), id)
	return base64.RawURLEncoding.EncodeToString(b)
}

// ByID returns the message that has that id in owner's archive; false if there is none.
func ByID(r fsm.Reader, owner, id string) (Message, bool) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(id)
	if err != nil || len(b) != 16 {
		return Message{}, false
	}
	n := binary.BigEndian.Uint64(b)
	var row messagepb.MessageRow
	if !fsm.Load(r, Messages, numberKey(n), &row) || !(row.From == owner && row.KeepSent || row.To == owner && row.KeepReceived) {
		return Message{}, false
	}
	m := message(n, &row)
	return m, m.ID(owner) == id
}

// ByNumber returns a message.
func ByNumber(r fsm.Reader, n uint64) (Message, bool) {
	var row messagepb.MessageRow
	if !fsm.Load(r, Messages, numberKey(n), &row) {
		return Message{}, false
	}
	return message(n, &row), true
}

func message(n uint64, row *messagepb.MessageRow) Message {
	return Message{Number: n, Time: time.Unix(0, row.Time).UTC(), From: row.From, To: row.To, XML: row.Xml, Session: row.Session, Input: row.Input,
		senderID: row.SenderId, recipientID: row.RecipientId}
}

// Inbox returns the numbers of the messages that wait for an owner, in order.
func Inbox(r fsm.Reader, owner string) []uint64 { return inboxOf(r, owner).numbers }

// Last returns a number that no message so far exceeds, and every later one does.
func Last(r fsm.Reader) uint64 { return numberAt(r.Index()+1, 0) - 1 }

// numberAt is the number of an entry: its record's index and its place in it.
func numberAt(index uint64, ordinal int) uint64 { return index<<fsm.OrdinalBits | uint64(ordinal) }

// DecodeNew returns the message that a change added; false for any other change.
func DecodeNew(c fsm.Change) (Message, bool) {
	if c.Table != Messages || c.Before != nil || c.After == nil {
		return Message{}, false
	}
	var row messagepb.MessageRow
	fsm.Decode(Messages, c.After, &row)
	return message(numberOf(c.Key), &row), true
}

// Oldest returns the oldest message that is kept; false if there is none.
func Oldest(r fsm.Reader) (m Message, ok bool) {
	r.Scan(Messages, nil, nil, func(k, v []byte) bool {
		var row messagepb.MessageRow
		fsm.Decode(Messages, v, &row)
		m, ok = message(numberOf(k), &row), true
		return false
	})
	return m, ok
}

// Newest returns the newest message that is kept; false if there is none.
func Newest(r fsm.Reader) (m Message, ok bool) {
	r.ScanBack(Messages, nil, nil, func(k, v []byte) bool {
		var row messagepb.MessageRow
		fsm.Decode(Messages, v, &row)
		m, ok = message(numberOf(k), &row), true
		return false
	})
	return m, ok
}

// rowCost is about how many bytes a message takes on disk besides its stanza: addresses, ids, references.
const rowCost = 300

// Weigh looks at the oldest messages, most of them at the most, until they take
// enough bytes. It returns the number of the first one that it left out, and the bytes.
func Weigh(r fsm.Reader, most int, enough uint64) (before, bytes uint64) {
	r.Scan(Messages, nil, nil, func(k, v []byte) bool {
		if bytes >= enough || most == 0 {
			return false
		}
		before, bytes, most = numberOf(k)+1, bytes+uint64(len(v))+rowCost, most-1
		return true
	})
	return before, bytes
}

// FirstSince returns the number of the first message at or after a time, found
// by halving: times never fall. If there is none it is above all numbers.
func FirstSince(r fsm.Reader, t time.Time) uint64 {
	lo, hi := uint64(0), Last(r)+1
	for lo < hi {
		mid := lo + (hi-lo)/2
		n, at, ok := next(r, mid)
		switch {
		case !ok || !at.Before(t):
			hi = mid
		default:
			lo = n + 1
		}
	}
	return lo
}

// next returns the first message at or after a number.
func next(r fsm.Reader, from uint64) (n uint64, at time.Time, ok bool) {
	r.Scan(Messages, nil, numberKey(from), func(k, v []byte) bool {
		var row messagepb.MessageRow
		fsm.Decode(Messages, v, &row)
		n, at, ok = numberOf(k), time.Unix(0, row.Time).UTC(), true
		return false
	})
	return n, at, ok
}

// ReceivedSince returns, in order, the numbers of at most limit messages after
// a number that are to an owner: in the archive, or waiting.
func ReceivedSince(r fsm.Reader, owner string, after uint64, limit int) []uint64 {
	var out []uint64
	r.Scan(archives, fsm.Prefix(owner), archiveKey(owner, after+1), func(k, v []byte) bool {
		if len(v) > 0 && Direction(v[0]) == Received {
			out = append(out, numberOf(k))
		}
		return len(out) < limit
	})
	for _, n := range Inbox(r, owner) {
		if n > after {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	out = slices.Compact(out)
	return out[:min(len(out), limit)]
}

// NextOwner returns the first owner of an archive or an inbox whose address is
// greater; false if there is none. It costs two lookups however large the archives are.
func NextOwner(r fsm.Reader, after string) (owner string, ok bool) {
	take := func(k []byte) {
		if name := string(k); !ok || name < owner {
			owner, ok = name, true
		}
	}
	var from []byte
	if after != "" {
		from = []byte(after + "\x01") // no address holds that: it is behind all of the last owner's keys
	}
	r.Scan(archives, nil, from, func(k, _ []byte) bool { take(k[:bytes.IndexByte(k, 0)]); return false })
	r.Scan(Inboxes, nil, from, func(k, _ []byte) bool { take(k); return false })
	return owner, ok
}

// ByInput returns the number of the message that was the last of a session's inputs to be kept, if it is that input.
func ByInput(r fsm.Reader, session, input uint64) (number uint64, ok bool) {
	p := progressOf(r, session)
	return p.number, input != 0 && p.input == input
}

// ByOrigin returns the number of an account's message with that origin-id (XEP-0359 section 3.2).
func ByOrigin(r fsm.Reader, from, id string) (number uint64, ok bool) {
	row, ok := r.Get(origins, numberKey(originHash(from, id)))
	if !ok || len(row) != 8 {
		return 0, false
	}
	return binary.BigEndian.Uint64(row), true
}
