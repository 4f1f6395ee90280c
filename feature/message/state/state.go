// Package state is the message log's machine: every message that was
// acknowledged, whose archive it belongs to, and what still waits for its
// recipient.
//
// Callers: the message feature proposes entries and delivers what its watch
// shows; the archive feature reads pages. Control state is not visible here:
// whoever proposes has settled all that depends on it (does the recipient
// exist, who is blocked, whose archive keeps what).
//
// Invariants: a message has one number, which is its place in the order of the
// whole log, and no retry gives it a second one: not the same input of a
// session, not the same origin-id of an account. Times never fall as numbers
// rise. A message's row stays as long as an archive or an inbox refers to it;
// an inbox knows which rows it alone refers to.
package state

import (
	"bytes"
	"encoding/binary"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/cespare/xxhash/v2"

	"muster/feature/message/state/messagepb"
	"muster/fsm"
	"muster/internal/fault"
	"muster/log"
)

// Limits of entries.
const (
	MaxXML   = 1 << 20 // bytes of one stanza; edges admit less
	MaxSweep = 256     // messages that one Trim or Purge removes at the most
	maxTaken = 1 << 14 // messages that one Taken names
	remember = 1 << 14 // records after which the input of a session that is not on record is forgotten: far more than a proposal may be under way
)

// Tables of this module.
var (
	Messages   = fsm.NewTable("message.messages") // number → MessageRow
	archives   = fsm.NewTable("message.archives") // owner, number → direction
	withTable  = fsm.NewTable("message.with")     // owner, other, number → empty
	origins    = fsm.NewTable("message.origins")  // hash of sender and origin-id → number
	inputs     = fsm.NewTable("message.inputs")   // session → progress
	Sessions   = fsm.NewTable("message.sessions") // session → Session
	endedTable = fsm.NewTable("message.ended")    // number of the entry, place in it → session
	refusals   = fsm.NewTable("message.refusals") // session → Refusals
	Inboxes    = fsm.NewTable("message.inboxes")  // owner → InboxRow
)

// Module returns the message log's module.
func Module() fsm.Module {
	return fsm.Module{
		Name:   "feature/message/state",
		Tables: []*fsm.Table{Messages, archives, withTable, origins, inputs, Sessions, endedTable, refusals, Inboxes},
		Handlers: map[log.Kind]fsm.Handler{log.MessagePut: put, log.MessageTaken: taken, log.SessionForget: forget,
			log.MessageTrim: trim, log.MessagePurge: purge,
			log.SessionPut: putSession, log.SessionClaim: claim},
	}
}

// Put is a message to be kept.
type Put struct {
	From, To               string   // bare addresses of this cluster
	XML                    []byte   // the canonical stanza, with full addresses
	SenderID, RecipientID  uint64   // random
	OriginID               string   // of the client (XEP-0359); "": none
	Session, Input         uint64   // which input of which session it is; 0: from no session
	Claims                 uint64   // of the session, when its client sent it
	KeepSent, KeepReceived bool     // into the sender's, the recipient's archive
	Follows                bool     // live stanzas of the session went to the recipient before it, by another way
	Limit                  int      // how many messages may wait for the recipient; 0: this one does not wait
	Refusals               [][]byte // canonical stanzas: errors for earlier messages of the session that its client may not have
}

// PutEntry keeps a message. Its result is decoded by PutResult. Faults:
// Overloaded if too many messages wait for the recipient; Stale if the session was
// claimed since (ClaimEntry): what its client sends there has other numbers; BadRequest.
func PutEntry(p Put) *log.Entry {
	body := &messagepb.Put{From: p.From, To: p.To, Xml: p.XML, SenderId: p.SenderID, RecipientId: p.RecipientID,
		Session: p.Session, Input: p.Input, Claims: p.Claims, KeepSent: p.KeepSent, KeepReceived: p.KeepReceived, Follows: p.Follows, Limit: uint32(p.Limit), Refusals: p.Refusals}
	if p.OriginID != "" {
		body.Origin = originHash(p.From, p.OriginID)
	}
	return log.New(log.MessagePut, body)
}

// originHash names an origin-id of an account; never 0. A sender who makes two
// of its own origin-ids collide only harms itself.
func originHash(from, id string) uint64 {
	var d xxhash.Digest
	d.Reset()
	_, _ = d.WriteString(from)
	_, _ = d.WriteString("\x00")
	_, _ = d.WriteString(id)
	return max(d.Sum64(), 1)
}

// Repeat tells whether a message had been kept before, and how that is known.
type Repeat byte

// The answers.
const (
	New        Repeat = iota
	SameInput         // the same input of the same session
	SameOrigin        // another input with an origin-id that the account used before
)

// PutResult returns the message's number, and whether it had been kept before.
// The number of an input that was repeated out of turn is not known any more: 0.
func PutResult(value []byte) (number uint64, r Repeat) {
	if len(value) != 9 {
		return 0, New
	}
	return binary.BigEndian.Uint64(value), Repeat(value[8])
}

// Taken are messages that wait for their owner no longer: a client of his has them, or nobody is to get them.
type Taken struct {
	Owner   string // bare address
	Session uint64 // of the client; 0: one that is not on record, or no client
	Claims  uint64 // of the session then: to one that was claimed since the client does not have them
	Numbers []uint64
}

// TakenEntry says which messages wait no longer, and how far sessions have come.
func TakenEntry(taken []Taken, steps []Step) *log.Entry {
	body := &messagepb.Taken{}
	for _, s := range steps {
		body.Progress = append(body.Progress, &messagepb.Progress{Session: s.Session, Confirmed: s.Confirmed, Claims: s.Claims,
			Told: s.Told, Refusals: s.Refusals})
	}
	for _, t := range taken {
		body.Inboxes = append(body.Inboxes, &messagepb.Inbox{Owner: t.Owner, Numbers: t.Numbers, Session: t.Session, Claims: t.Claims})
	}
	return log.New(log.MessageTaken, body)
}

// Ended is a session that is over, as of its nth claim: one that was claimed since goes on.
type Ended struct{ Session, Claims uint64 }

// AnyClaim is for a session that is over wherever it is.
const AnyClaim = math.MaxUint64

// ForgetEntry forgets ended sessions. Their input is still recognised for a
// while: a retry of what they sent may be under way.
func ForgetEntry(ended ...Ended) *log.Entry {
	body := &messagepb.Forget{}
	last := 0
	for i, e := range ended {
		if body.Sessions, body.Claims = append(body.Sessions, e.Session), append(body.Claims, e.Claims); e.Claims > 0 {
			last = i + 1
		}
	}
	body.Claims = body.Claims[:last]
	return log.New(log.SessionForget, body)
}

// TrimEntry removes the oldest messages, up to the one of that number, MaxSweep at
// the most. The result is 1 byte: whether there are more.
func TrimEntry(before uint64) *log.Entry {
	return log.New(log.MessageTrim, &messagepb.Trim{Before: before, Most: MaxSweep})
}

// PurgeEntry removes an owner's messages below a number, MaxSweep at the most,
// from archive and inbox. The result is 1 byte: whether there are more.
func PurgeEntry(owner string, before uint64) *log.Entry {
	return log.New(log.MessagePurge, &messagepb.Purge{Owner: owner, Before: before, Most: MaxSweep})
}

// More reports whether the result of a Trim or Purge says that there is more to remove.
func More(value []byte) bool { return len(value) == 1 && value[0] == 1 }

func numberKey(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func archiveKey(owner string, n uint64) []byte {
	return binary.BigEndian.AppendUint64(fsm.Prefix(owner), n)
}

func withKey(owner, other string, n uint64) []byte {
	return binary.BigEndian.AppendUint64(fsm.Prefix(owner, other), n)
}

// numberOf reads the number at the end of a key.
func numberOf(key []byte) uint64 { return binary.BigEndian.Uint64(key[len(key)-8:]) }

func put(tx *fsm.Tx, e *log.Entry) error {
	var body messagepb.Put
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	refuse := func(code fault.Code, text string) error { return fault.New(code, "message.put", body.To, text) }
	switch {
	case body.From == "" || body.To == "" || len(body.Xml) == 0 || strings.Contains(body.From+body.To, "\x00"):
		return refuse(fault.BadRequest, "a message needs a sender, a recipient and a text")
	case len(body.Xml) > MaxXML:
		return refuse(fault.TooLarge, "the message is too large")
	case !body.KeepSent && !body.KeepReceived && body.Limit == 0:
		return refuse(fault.BadRequest, "nobody keeps the message")
	}
	p := progressOf(tx, body.Session)
	if p.claims > body.Claims {
		return refuse(fault.Stale, "the session was resumed at another node")
	}
	addRefusals(tx, body.Session, body.Refusals)
	if n, repeat := before(tx, &body, p); repeat != New {
		p.note(tx, &body, n)
		tx.SetResult(append(numberKey(n), byte(repeat)))
		return nil
	}
	n := tx.Number()
	if body.Limit > 0 {
		in := inboxOf(tx, body.To)
		if len(in.numbers) >= int(body.Limit) {
			return refuse(fault.Overloaded, "too many messages wait for the recipient; try again later")
		}
		in.numbers = append(in.numbers, n)
		if !body.KeepSent && !body.KeepReceived {
			in.only = append(in.only, n)
		}
		in.save(tx, body.To)
	}
	p.note(tx, &body, n)
	if body.Origin != 0 {
		tx.Put(origins, numberKey(body.Origin), numberKey(n))
	}
	row := &messagepb.MessageRow{Xml: body.Xml, Time: tx.Time().UnixNano(), From: body.From, To: body.To,
		SenderId: body.SenderId, RecipientId: body.RecipientId, Origin: body.Origin, KeepSent: body.KeepSent, KeepReceived: body.KeepReceived}
	if body.Follows {
		row.Session, row.Input = body.Session, body.Input
	}
	tx.Insert(Messages, numberKey(n), fsm.Encode(row))
	if body.KeepReceived {
		file(tx, body.To, body.From, Received, n)
	}
	if body.KeepSent && !(body.KeepReceived && body.From == body.To) {
		file(tx, body.From, body.To, Sent, n)
	}
	tx.SetResult(append(numberKey(n), byte(New)))
	return nil
}

// before finds a message that was kept already. p is of its session.
func before(tx *fsm.Tx, body *messagepb.Put, p progress) (number uint64, r Repeat) {
	if body.Session != 0 && body.Input != 0 {
		switch {
		case body.Input == p.input:
			return p.number, SameInput
		case body.Input < p.input:
			return 0, SameInput
		}
	}
	if body.Origin != 0 {
		if row, have := tx.Get(origins, numberKey(body.Origin)); have && len(row) == 8 {
			return binary.BigEndian.Uint64(row), SameOrigin
		}
	}
	return 0, New
}

// note remembers the session's last input.
func (p progress) note(tx *fsm.Tx, body *messagepb.Put, n uint64) {
	if body.Session != 0 && body.Input > p.input {
		p.input, p.number = body.Input, n
		p.save(tx, body.Session)
	}
}

// file puts a message into an archive.
func file(tx *fsm.Tx, owner, other string, d Direction, n uint64) {
	tx.Insert(archives, archiveKey(owner, n), []byte{byte(d)})
	tx.Insert(withTable, withKey(owner, other, n), nil)
}

func unfile(tx *fsm.Tx, owner, other string, n uint64) {
	tx.Delete(archives, archiveKey(owner, n))
	tx.Delete(withTable, withKey(owner, other, n))
}

// inbox is a row of Inboxes.
type inbox struct {
	numbers []uint64 // that wait, in order
	only    []uint64 // of them, those that no archive refers to: with the inbox their rows go
}

func inboxOf(r fsm.Reader, owner string) inbox {
	var row messagepb.InboxRow
	if !fsm.Load(r, Inboxes, []byte(owner), &row) {
		return inbox{}
	}
	return inbox{summed(row.Steps), summed(row.Only)}
}

// summed undoes steps, in place.
func summed(steps []uint64) []uint64 {
	last := uint64(0)
	for i, step := range steps {
		last += step
		steps[i] = last
	}
	return steps
}

// steps is the first number, then differences: those are short.
func steps(numbers []uint64) []uint64 {
	out, last := make([]uint64, len(numbers)), uint64(0)
	for i, n := range numbers {
		out[i], last = n-last, n
	}
	return out
}

func (in inbox) save(tx *fsm.Tx, owner string) {
	if len(in.numbers) == 0 {
		tx.Delete(Inboxes, []byte(owner))
		return
	}
	tx.Save(Inboxes, []byte(owner), &messagepb.InboxRow{Steps: steps(in.numbers), Only: steps(in.only)})
}

func taken(tx *fsm.Tx, e *log.Entry) error {
	var body messagepb.Taken
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	total := 0
	for _, in := range body.Inboxes {
		if total += len(in.Numbers); total > maxTaken {
			return fault.New(fault.TooLarge, "message.taken", strconv.Itoa(total), "too many messages at once")
		}
		if in.Session == 0 || confirmed(tx, in) {
			takeFrom(tx, in.Owner, in.Numbers)
		}
	}
	if len(body.Progress) > maxTaken {
		return fault.New(fault.TooLarge, "message.taken", "", "too many sessions at once")
	}
	for _, step := range body.Progress {
		advance(tx, step)
	}
	return nil
}

// takeFrom removes messages from an inbox, and those that nobody else refers to altogether.
func takeFrom(tx *fsm.Tx, owner string, numbers []uint64) {
	gone := make(map[uint64]bool, len(numbers))
	for _, n := range numbers {
		gone[n] = true
	}
	in := inboxOf(tx, owner)
	before := len(in.numbers)
	for _, n := range in.only {
		var row messagepb.MessageRow
		if gone[n] && fsm.Load(tx, Messages, numberKey(n), &row) {
			discard(tx, n, &row)
		}
	}
	taken := func(n uint64) bool { return gone[n] }
	in.numbers, in.only = slices.DeleteFunc(in.numbers, taken), slices.DeleteFunc(in.only, taken)
	if len(in.numbers) < before {
		in.save(tx, owner)
	}
}

// discard removes a message's row, and its origin-id.
func discard(tx *fsm.Tx, n uint64, row *messagepb.MessageRow) {
	tx.Delete(Messages, numberKey(n))
	if row.Origin == 0 {
		return
	}
	key := numberKey(row.Origin)
	if have, ok := tx.Get(origins, key); ok && len(have) == 8 && binary.BigEndian.Uint64(have) == n {
		tx.Delete(origins, key)
	}
}

func forget(tx *fsm.Tx, e *log.Entry) error {
	var body messagepb.Forget
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	if len(body.Sessions) > maxTaken {
		return fault.New(fault.TooLarge, "session.forget", "", "too many sessions at once")
	}
	for i, s := range body.Sessions {
		p, claims := progressOf(tx, s), uint64(0)
		if i < len(body.Claims) {
			claims = body.Claims[i]
		}
		if p.claims > claims {
			continue
		}
		tx.Delete(Sessions, numberKey(s))
		tx.Delete(refusals, numberKey(s))
		switch _, known := tx.Get(inputs, numberKey(s)); {
		case !known:
		case p.isOld(tx.Index()):
			tx.Delete(inputs, numberKey(s))
		default:
			tx.Insert(endedTable, binary.BigEndian.AppendUint32(numberKey(tx.Number()), uint32(i)), numberKey(s))
		}
	}
	forgetInputs(tx, 2*len(body.Sessions))
	return nil
}

// forgetInputs forgets the input of at most limit sessions that ended long ago.
func forgetInputs(tx *fsm.Tx, limit int) {
	if tx.Index() <= remember {
		return
	}
	var keys, ids [][]byte
	tx.Scan(endedTable, nil, nil, func(k, v []byte) bool {
		if binary.BigEndian.Uint64(k) >= numberAt(tx.Index()-remember, 0) || len(keys) == limit {
			return false
		}
		keys, ids = append(keys, bytes.Clone(k)), append(ids, bytes.Clone(v))
		return true
	})
	for i := range keys {
		tx.Delete(endedTable, keys[i])
		tx.Delete(inputs, ids[i])
	}
}
