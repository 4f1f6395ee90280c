package state

import (
	"bytes"
	"crypto/subtle"
	"encoding/binary"
	"slices"
	"time"

	"muster/feature/message/state/messagepb"
	"muster/fsm"
	"muster/internal/fault"
	"muster/log"
)

// Bounds of a session's record.
const (
	MaxSessionKey   = 64       // bytes
	MaxSessionBytes = 64 << 10 // of marks and presence
	maxRefusals     = 64 << 10 // bytes of errors that are kept for a session; of more, the latest
)

// Session is what a stream's session needs to go on at another node (XEP-0198 section 5).
type Session struct {
	ID             uint64
	User, Resource string // bare address; resource
	Key            []byte // that resuming it takes
	Base           uint64 // number of its last input before counting began
	Node           uint32 // that holds the connection
	Incarnation    uint64
	Timeout        time.Duration // that a lost client has, in whole seconds
	Claims         uint64        // how often it was resumed at another node
	Published      uint64        // presence changes so far
	Presence       []byte        // the last one, canonical; nil: not available
	Marks          map[string]string
	Time           time.Time // of this state
}

// Step is how far a session has come.
type Step struct {
	Session   uint64
	Confirmed uint64   // input that the client was told is handled; 0: unchanged
	Claims    uint64   // of the session then: to one that was claimed since, the step is nothing
	Told      bool     // Refusals are told, too
	Refusals  [][]byte // canonical stanzas: errors for its messages that the client may not have
}

// Progress is how far a recorded session has come.
type Progress struct {
	Handled  uint64   // input up to which the server is done, and may have told the client
	Cursor   uint64   // number of the last kept message that the client is known to have
	Refusals [][]byte // canonical stanzas: errors for its messages up to Handled that the client may not have
}

// SessionEntry records a session, or its new state. keys are the names of the marks in their order.
func SessionEntry(s Session, keys []string) *log.Entry {
	body := &messagepb.Session{Id: s.ID, User: s.User, Resource: fsm.Text(s.Resource), Key: s.Key, Base: s.Base, Node: s.Node,
		Incarnation: s.Incarnation, Timeout: uint32(s.Timeout / time.Second), Claims: s.Claims, Published: s.Published, Presence: s.Presence}
	for _, k := range keys {
		body.Marks = append(body.Marks, &messagepb.Mark{Key: fsm.Text(k), Value: fsm.Text(s.Marks[k])})
	}
	return log.New(log.SessionPut, body)
}

// ClaimEntry moves a session to a node, where its input is numbered on from what
// is on record then: what the log has not got by now of earlier claims, it takes
// no more. Faults: NotFound if there is no such session of that user with that key.
func ClaimEntry(session uint64, user string, key []byte, node uint32, incarnation uint64) *log.Entry {
	return log.New(log.SessionClaim, &messagepb.Claim{Session: session, User: user, Key: key, Node: node, Incarnation: incarnation})
}

// SessionByID returns a recorded session and how far it has come.
func SessionByID(r fsm.Reader, id uint64) (Session, Progress, bool) {
	var row messagepb.Session
	if !fsm.Load(r, Sessions, numberKey(id), &row) {
		return Session{}, Progress{}, false
	}
	p := progressOf(r, id)
	return session(&row), Progress{Handled: max(p.input, p.confirmed, row.Base), Cursor: p.cursor, Refusals: refusalsOf(r, id)}, true
}

// Recorded reports whether a session is on record.
func Recorded(r fsm.Reader, id uint64) bool {
	_, ok := r.Get(Sessions, numberKey(id))
	return ok
}

func session(row *messagepb.Session) Session {
	s := Session{ID: row.Id, User: row.User, Resource: row.Resource, Key: row.Key, Base: row.Base, Node: row.Node,
		Incarnation: row.Incarnation, Timeout: time.Duration(row.Timeout) * time.Second, Claims: row.Claims, Published: row.Published,
		Presence: row.Presence, Marks: map[string]string{}, Time: time.Unix(0, row.Time).UTC()}
	for _, m := range row.Marks {
		s.Marks[m.Key] = m.Value
	}
	return s
}

// Lost returns at most limit sessions whose node is gone, and whose clients' time was over at now. It counts from when the node went, or from
// when the session came to it if that is later.
func Lost(r fsm.Reader, now time.Time, limit int, gone func(node uint32, incarnation uint64) (since time.Time, ok bool)) []Ended {
	var out []Ended
	r.Scan(Sessions, nil, nil, func(_, v []byte) bool {
		var row messagepb.Session
		fsm.Decode(Sessions, v, &row)
		lost := time.Unix(0, row.Time)
		since, ok := gone(row.Node, row.Incarnation)
		if since.After(lost) {
			lost = since
		}
		if ok && lost.Add(time.Duration(row.Timeout)*time.Second).Before(now) {
			out = append(out, Ended{row.Id, row.Claims})
		}
		return len(out) < limit
	})
	return out
}

// Idle returns at most limit sessions that are not on record and whose
// input is remembered for nothing: they ended with their nodes, or have sent
// nothing for long. What one of them sends later is remembered anew.
func Idle(r fsm.Reader, limit int) []Ended {
	var out []Ended
	r.Scan(inputs, nil, nil, func(k, _ []byte) bool {
		id := numberOf(k)
		if _, recorded := r.Get(Sessions, k); !recorded && progressOf(r, id).isOld(r.Index()) {
			out = append(out, Ended{id, AnyClaim})
		}
		return len(out) < limit
	})
	return out
}

// EachSession calls fn once for every session that is on record or whose input is remembered.
func EachSession(r fsm.Reader, fn func(id uint64)) {
	r.Scan(inputs, nil, nil, func(k, _ []byte) bool { fn(numberOf(k)); return true })
	r.Scan(Sessions, nil, nil, func(k, _ []byte) bool {
		if _, told := r.Get(inputs, k); !told {
			fn(numberOf(k))
		}
		return true
	})
}

func putSession(tx *fsm.Tx, e *log.Entry) error {
	var body messagepb.Session
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	size := len(body.Presence)
	for _, m := range body.Marks {
		size += len(m.Key) + len(m.Value)
	}
	switch {
	case body.Id == 0 || body.User == "" || body.Resource == "" || len(body.Key) == 0 || len(body.Key) > MaxSessionKey:
		return fault.New(fault.BadRequest, "session.put", body.User, "a session needs an id, a user, a resource and a key")
	case size > MaxSessionBytes:
		return fault.New(fault.TooLarge, "session.put", body.User, "the session's state is too large")
	}
	var have messagepb.Session
	if fsm.Load(tx, Sessions, numberKey(body.Id), &have) && have.Claims > body.Claims {
		return fault.New(fault.Stale, "session.put", body.User, "the session is at another node")
	}
	body.Time = tx.Time().UnixNano()
	tx.Save(Sessions, numberKey(body.Id), &body)
	return nil
}

func claim(tx *fsm.Tx, e *log.Entry) error {
	var (
		body messagepb.Claim
		row  messagepb.Session
	)
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	if !fsm.Load(tx, Sessions, numberKey(body.Session), &row) || row.User != body.User || subtle.ConstantTimeCompare(row.Key, body.Key) != 1 {
		return fault.New(fault.NotFound, "session.claim", body.User, "there is no such session")
	}
	row.Node, row.Incarnation, row.Time = body.Node, body.Incarnation, tx.Time().UnixNano()
	row.Claims++
	tx.Save(Sessions, numberKey(body.Session), &row)
	p := progressOf(tx, body.Session)
	p.claims = row.Claims
	p.save(tx, body.Session)
	return nil
}

// progress is a row of inputs.
type progress struct {
	input, number     uint64 // the last input that was a kept message, and that message
	confirmed, cursor uint64 // as in Step
	claims            uint64 // of the session, which is not in rows of sessions that nobody claimed
}

const progressBytes = 32 // without claims

func progressOf(r fsm.Reader, session uint64) (p progress) {
	row, ok := r.Get(inputs, numberKey(session))
	if !ok || len(row) != progressBytes && len(row) != progressBytes+8 {
		return p
	}
	for i, v := range []*uint64{&p.input, &p.number, &p.confirmed, &p.cursor, &p.claims}[:len(row)/8] {
		*v = binary.BigEndian.Uint64(row[8*i:])
	}
	return p
}

// isOld reports whether no retry of the last input can be under way at that index.
func (p progress) isOld(index uint64) bool {
	return index > remember && p.number < numberAt(index-remember, 0)
}

func (p progress) save(tx *fsm.Tx, session uint64) {
	row := make([]byte, 0, progressBytes+8)
	for _, v := range []uint64{p.input, p.number, p.confirmed, p.cursor} {
		row = binary.BigEndian.AppendUint64(row, v)
	}
	if p.claims > 0 {
		row = binary.BigEndian.AppendUint64(row, p.claims)
	}
	tx.Put(inputs, numberKey(session), row)
}

// confirmed notes how many of its messages a recorded session's client has; false if the session has been claimed since:
// what the client counts as handled may be others then, which it got at the other node, and these are offered again.
func confirmed(tx *fsm.Tx, in *messagepb.Inbox) bool {
	p := progressOf(tx, in.Session)
	if in.Claims < p.claims {
		return false
	}
	last := p.cursor
	for _, n := range in.Numbers {
		last = max(last, n)
	}
	if last > p.cursor && Recorded(tx, in.Session) {
		p.cursor = last
		p.save(tx, in.Session)
	}
	return true
}

// advance takes a recorded session further; one that is not recorded any more stays forgotten.
func advance(tx *fsm.Tx, step *messagepb.Progress) {
	if !Recorded(tx, step.Session) {
		return
	}
	p := progressOf(tx, step.Session)
	if p.cursor = max(p.cursor, step.Cursor); step.Claims >= p.claims {
		p.confirmed = max(p.confirmed, step.Confirmed)
		if step.Told {
			saveRefusals(tx, step.Session, step.Refusals)
		}
	}
	p.save(tx, step.Session)
}

// refusalsOf returns the errors that a session's client may not have.
func refusalsOf(r fsm.Reader, session uint64) [][]byte {
	var row messagepb.Refusals
	fsm.Load(r, refusals, numberKey(session), &row)
	return row.Xml
}

// addRefusals keeps errors of a recorded session beside those that it has.
func addRefusals(tx *fsm.Tx, session uint64, more [][]byte) {
	if len(more) == 0 {
		return
	}
	if !Recorded(tx, session) {
		return
	}
	all := refusalsOf(tx, session)
	for _, xml := range more {
		if !slices.ContainsFunc(all, func(have []byte) bool { return bytes.Equal(have, xml) }) {
			all = append(all, xml)
		}
	}
	saveRefusals(tx, session, all)
}

func saveRefusals(tx *fsm.Tx, session uint64, all [][]byte) {
	size := 0
	for i := len(all) - 1; i >= 0; i-- {
		if size += len(all[i]); size > maxRefusals {
			all = all[i+1:]
			break
		}
	}
	if len(all) == 0 {
		tx.Delete(refusals, numberKey(session))
		return
	}
	tx.Save(refusals, numberKey(session), &messagepb.Refusals{Xml: all})
}
