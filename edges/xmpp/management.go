package xmpp

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"strconv"
	"time"

	"muster/internal/jid"
	"muster/router"
	"muster/router/stanza"
	"muster/router/xmltok"
)

// Numbers of stream management (XEP-0198).
const (
	askEvery       = 5               // stanzas sent before the client is asked to acknowledge
	takeOverWait   = 5 * time.Second // for the old stream's stanza that the router is taking
	takeOverPoll   = 5 * time.Millisecond
	resumeIDRandom = 12 // bytes
	resumeIDMAC    = 10 // bytes
)

// management is a session's stream management, guarded by the session's mu.
type management struct {
	id      string           // for resumption; "" without
	base    uint64           // inputs before counting began
	owed    []uint64         // acknowledgements that the client asked for: up to which input
	asking  uint64           // up to which input was asked to be made sure
	acked   uint32           // stanzas acknowledged by the client, modulo 2^32
	unacked []*stanza.Packet // sent after those, or to be sent
	unseen  bool             // it came from another node, and the client has acknowledged nothing here: it may not know that, and be at a third one
	asked   bool             // an acknowledgement is due
	until   time.Time        // while the connection is lost: when the session ends
}

// ack returns the acknowledgement of what is done with of what the client sent.
func (s *session) ack() []byte {
	b := strconv.AppendUint([]byte(`<a xmlns='`+stanza.NSSM+`' h='`), uint64(s.handled()), 10)
	return append(b, "'/>"...)
}

// sure returns how many inputs may be acknowledged: those that the server is
// done with and, where the session can be resumed at another node, those that it will know of. s.mu is held.
func (s *session) sure() uint64 {
	if s.sm != nil && s.sm.id != "" {
		return min(s.done, s.lasting)
	}
	return s.done
}

// handled returns that as the client counts, modulo 2^32. s.mu is held.
func (s *session) handled() uint32 {
	return uint32(max(s.sure(), s.sm.base) - s.sm.base)
}

// count notes a stanza on its way to the router; false if st is not the session's stream any more.
func (s *session) count(st *stream) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.st != st || s.over {
		return false
	}
	s.given++
	return true
}

// uncount takes back the last count: the router did not take the stanza.
func (s *session) uncount() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.given--
}

// Handled implements router.Counter: what the client waits for is acknowledged.
func (s *session) Handled(n, lasting uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done, s.lasting = max(s.done, n), max(s.lasting, lasting)
	if s.sm != nil && len(s.sm.owed) > 0 {
		s.pay()
	}
}

// pay acknowledges what may be, of what the client waits for, and has the rest made sure. s.mu is held.
func (s *session) pay() {
	m, paid := s.sm, 0
	for paid < len(m.owed) && m.owed[paid] <= s.sure() {
		paid++
		s.pushRaw(s.ack())
	}
	m.owed = m.owed[paid:]
	if len(m.owed) > 0 {
		s.makeSure(m.owed[0])
	}
}

// makeSure has another node know that the inputs up to n are done with, as soon as they are. s.mu is held.
func (s *session) makeSure(n uint64) {
	if s.done >= n && s.lasting < n && s.sm.asking < n {
		s.sm.asking = s.done
		s.bound.Confirm(s.done)
	}
}

// maxOwed is how many acknowledgements a client may wait for; further requests are answered at once.
const maxOwed = 64

// owe answers a request for an acknowledgement as soon as all that came before it may be acknowledged.
func (s *session) owe() {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.st == nil || s.over:
	case len(s.sm.owed) < maxOwed:
		s.sm.owed = append(s.sm.owed, s.given)
		s.pay()
	default:
		s.pushRaw(s.ack())
	}
}

// record puts a session that can be resumed on record in the cluster.
func (s *session) record() {
	s.mu.Lock()
	m := s.sm
	s.mu.Unlock()
	if m == nil || m.id == "" {
		return
	}
	if _, key, ok := parseResumeID(s.run.srv.o.Key, m.id, s.user); ok {
		s.bound.Record(router.Record{Key: key, Base: m.base, Timeout: s.run.srv.o.Live.Duration(setResumeTimeout)})
	}
}

// Suspend implements router.Suspender: this node stops, and the client goes on at another.
func (s *session) Suspend() {
	s.mu.Lock()
	st := s.st
	s.st, s.over, s.ended = nil, true, true
	if s.sm != nil && !s.sm.until.IsZero() {
		s.run.srv.counters.hibernated.Add(-1)
	}
	s.mu.Unlock()
	s.run.srv.counters.sessions.Add(-1)
	if st != nil {
		st.kill()
	}
}

// Disconnect implements router.Disconnecter.
func (s *session) Disconnect() {
	s.mu.Lock()
	st := s.st
	s.mu.Unlock()
	if st != nil {
		st.kill()
	}
}

func (m *management) wantsAck() bool { return !m.asked && len(m.unacked) >= askEvery }

// ask returns a request for an acknowledgement.
func (m *management) ask(st *stream) []byte {
	m.asked = true
	st.asked.CompareAndSwap(0, time.Now().UnixNano())
	return []byte(`<r xmlns='` + stanza.NSSM + `'/>`)
}

// sent returns how many stanzas were sent, modulo 2^32.
func (m *management) sent() uint32 { return m.acked + uint32(len(m.unacked)) }

// acknowledge drops what the client has handled; false if it claims more than
// was sent. taken is what the router is to be told of.
func (s *session) acknowledge(h uint32) (taken []*stanza.Packet, ok bool) {
	m := s.sm
	n := int(h - m.acked) // modulo 2^32
	if n > len(m.unacked) {
		return nil, false
	}
	m.unseen = false
	for _, p := range m.unacked[:n] {
		s.bytes -= p.Size()
		if counts(p) {
			taken = append(taken, p)
		}
	}
	clear(m.unacked[:n])
	m.unacked, m.acked, m.asked = m.unacked[n:], h, false
	if len(m.unacked) == 0 {
		m.unacked = nil
	}
	return taken, true
}

// counts reports whether the router is to be told that the client has a stanza: a kept message, or an error for one of its own.
func counts(p *stanza.Packet) bool { return p.Number != 0 || p.IsRefusal() }

// manage takes an element of stream management in a session.
func (st *stream) manage(s *session, el *xmltok.Item) {
	s.mu.Lock()
	on := s.sm != nil
	s.mu.Unlock()
	switch {
	case el.Local == "enable" && !on:
		s.enable(el.Attr("resume"))
	case el.Local == "r" && on:
		s.owe()
	case el.Local == "a" && on:
		st.acknowledged(s, el.Attr("h"))
	case el.Local == "enable":
		s.sendRaw(managementFailed("unexpected-request", nil))
		st.end(stanza.StreamPolicyViolation, "stream management is on already", nil)
	default:
		s.sendRaw(managementFailed("unexpected-request", nil))
	}
}

func (st *stream) acknowledged(s *session, h string) {
	n, err := strconv.ParseUint(h, 10, 32)
	if err != nil {
		st.end(stanza.StreamBadFormat, "h is a number", nil)
		return
	}
	s.mu.Lock()
	taken, ok := s.acknowledge(uint32(n))
	sent := s.sm.sent()
	s.mu.Unlock()
	if len(taken) > 0 {
		s.bound.Taken(taken)
	}
	if !ok {
		st.end(stanza.StreamUndefinedCondition, "you acknowledged more than was sent", countTooHigh(uint32(n), sent))
	}
}

func countTooHigh(h, sent uint32) []byte {
	return stanza.NewBuilder(stanza.NSStreams).Leaf("handled-count-too-high", stanza.NSSM,
		"h", strconv.FormatUint(uint64(h), 10), "send-count", strconv.FormatUint(uint64(sent), 10)).Bytes()
}

// enable turns stream management on, with resumption if the client wants it.
func (s *session) enable(resume string) {
	m, enabled := s.newManagement(s.bound, resume)
	s.mu.Lock()
	if s.over || s.st == nil {
		s.mu.Unlock()
		return
	}
	s.manageFrom(m)
	s.pending = append([]item{{raw: enabled}}, s.pending...)
	s.kick()
	s.mu.Unlock()
	s.record()
}

// newManagement returns stream management as the client wants it, and the element that tells the client.
func (s *session) newManagement(bound Session, resume string) (*management, []byte) {
	timeout := s.run.srv.o.Live.Duration(setResumeTimeout)
	b := []byte(`<enabled xmlns='` + stanza.NSSM + `'`)
	m := &management{}
	if (resume == "true" || resume == "1") && timeout > 0 {
		m.id = newResumeID(s.run.srv.o.Key, bound.ID(), s.user)
		b = append(append(b, ` resume='true' id='`...), m.id...)
		b = strconv.AppendInt(append(b, `' max='`...), int64(timeout/time.Second), 10)
		b = append(b, '\'')
		if at := bound.Location(); at != "" {
			b = append(xmltok.AppendAttr(append(b, ` location="`...), at), '"')
		}
	}
	return m, append(b, "/>"...)
}

// manageFrom counts what is sent from now on, for which the client must have been told. s.mu is held.
func (s *session) manageFrom(m *management) {
	s.bytes = 0 // what is being written now is not counted; what is pending follows <enabled/>
	for _, i := range s.pending {
		if i.p != nil {
			m.unacked = append(m.unacked, i.p)
			s.bytes += i.p.Size()
		}
	}
	for _, p := range s.held {
		s.bytes += p.Size()
	}
	s.sm, m.base = m, s.given
	if m.id != "" {
		s.run.resumable.add(s)
	}
}

// hibernate lets the session wait for its client; false if it cannot. s.mu is held.
func (s *session) hibernate() bool {
	timeout := s.run.srv.o.Live.Duration(setResumeTimeout)
	if s.sm == nil || s.sm.id == "" || timeout <= 0 {
		return false
	}
	s.pending = nil // its stanzas are in unacked
	s.sm.until = time.Now().Add(timeout)
	s.run.srv.counters.hibernated.Add(1)
	return true
}

// resumption is what a client asks to resume; h is as it was sent.
type resumption struct{ previd, h string }

// resume takes over the session of a lost, or still open, stream. It returns <failed/> if that cannot be;
// nil if the stream has a session now, or has been ended. say makes of <resumed/> what the client is told first.
func (st *stream) resume(q resumption, say func(s *session, resumed []byte) []byte) (failed []byte) {
	h, err := strconv.ParseUint(q.h, 10, 32)
	if err != nil {
		return managementFailed("bad-request", nil)
	}
	st.yield()
	s, stale := st.run.findSession(q.previd, st.user)
	if s != nil && st.resumeHere(s, uint32(h), say) {
		return nil
	}
	if stale == nil {
		if stale, err = st.resumeRecorded(q.previd, uint32(h), say); stale == nil && err == nil {
			return nil
		}
	}
	st.run.srv.counters.resumeFailed.Add(1)
	return managementFailed("item-not-found", stale)
}

// resumeHere takes over a session of this node; false if that is over here, as when it has just been resumed at another node.
func (st *stream) resumeHere(s *session, h uint32, say func(*session, []byte) []byte) bool {
	if !lockWithin(&s.input, takeOverWait) {
		st.notNow()
		return true
	}
	defer s.input.Unlock()
	if !s.drain() {
		st.notNow()
		return true
	}
	old, sent, taken, outcome := s.takeOver(st, h, say)
	if len(taken) > 0 {
		s.bound.Taken(taken)
	}
	switch {
	case outcome == resumeTooHigh:
		st.end(stanza.StreamUndefinedCondition, "you acknowledged more than was sent", countTooHigh(h, sent))
	case outcome == resumed && old != nil:
		old.end(stanza.StreamConflict, "the session was resumed elsewhere", nil)
	}
	return outcome != resumeGone
}

// drain waits until all that the client sent may be acknowledged, so that it need not send it again; false if that takes too long. s.input is held.
func (s *session) drain() bool {
	for until := time.Now().Add(takeOverWait); ; time.Sleep(takeOverPoll) {
		s.mu.Lock()
		idle := s.sure() >= s.given || s.over
		if !idle {
			s.makeSure(s.given)
		}
		s.mu.Unlock()
		if idle || time.Now().After(until) {
			return idle
		}
	}
}

// lockWithin locks m if it gets free in time.
func lockWithin(m interface{ TryLock() bool }, d time.Duration) bool {
	for until := time.Now().Add(d); !m.TryLock(); time.Sleep(takeOverPoll) {
		if time.Now().After(until) {
			return false
		}
	}
	return true
}

type resumeOutcome uint8

const (
	resumed resumeOutcome = iota
	resumeGone
	resumeTooHigh
)

// takeOver moves the session to st and sends again what the client has not handled. s.input is held.
func (s *session) takeOver(st *stream, h uint32, say func(*session, []byte) []byte) (old *stream, sent uint32, taken []*stanza.Packet, o resumeOutcome) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return nil, 0, nil, resumeGone
	}
	ok := true
	if s.sm.unseen {
		s.sm.acked, s.sm.asked = h, false // what is more than when it asked first, it may have got elsewhere
	} else if taken, ok = s.acknowledge(h); !ok {
		return nil, s.sm.sent(), nil, resumeTooHigh
	}
	if !s.sm.until.IsZero() {
		s.run.srv.counters.hibernated.Add(-1)
		s.sm.until = time.Time{}
	}
	s.sm.owed = nil
	old, s.st = s.st, st
	st.live(s)
	s.quiet = false // XEP-0352 section 5.1: a resumed session begins active
	s.welcome(st, say)
	s.releaseHeld()
	s.run.srv.counters.resumed.Add(1) // before the client knows
	s.kick()
	return old, 0, taken, resumed
}

// welcome queues what a client gets first when its session goes on: say's answer, and what it has not acknowledged. s.mu is held.
func (s *session) welcome(st *stream, say func(*session, []byte) []byte) {
	s.pending = append(make([]item, 0, 2+len(s.sm.unacked)+len(s.held)), item{raw: say(s, s.resumedElement())})
	for _, p := range s.sm.unacked {
		s.pending = append(s.pending, item{p: p})
	}
	if s.sm.unseen {
		s.pending = append(s.pending, item{raw: s.sm.ask(st)})
	}
}

func (s *session) resumedElement() []byte {
	b := strconv.AppendUint([]byte(`<resumed xmlns='`+stanza.NSSM+`' h='`), uint64(s.handled()), 10)
	return append(append(append(b, `' previd='`...), s.sm.id...), "'/>"...)
}

// managementFailed returns <failed/> with a stanza error condition; h is what the server had handled, if it knows.
func managementFailed(condition string, h *uint32) []byte {
	b := []byte(`<failed xmlns='` + stanza.NSSM + `'`)
	if h != nil {
		b = strconv.AppendUint(append(b, ` h='`...), uint64(*h), 10)
		b = append(b, '\'')
	}
	return append(b, `><`+condition+` xmlns='`+stanza.NSStanzas+`'/></failed>`...)
}

// A resumption id is the session's number, random bytes, and a code over both
// and the user, so that any node can tell an id of its cluster, and which session it names.

func newResumeID(key []byte, session uint64, user jid.JID) string {
	b := make([]byte, 8+resumeIDRandom, 8+resumeIDRandom+resumeIDMAC)
	binary.BigEndian.PutUint64(b, session)
	rand.Read(b[8:])
	return base64.RawURLEncoding.EncodeToString(append(b, resumeMAC(key, b, user)...))
}

// parseResumeID returns the session with that id and the random bytes, which
// are the key to its record; false if the id is not one of this user in this cluster.
func parseResumeID(key []byte, id string, user jid.JID) (session uint64, random []byte, ok bool) {
	b, err := base64.RawURLEncoding.DecodeString(id)
	if err != nil || len(b) != 8+resumeIDRandom+resumeIDMAC {
		return 0, nil, false
	}
	body, mac := b[:8+resumeIDRandom], b[8+resumeIDRandom:]
	if !hmac.Equal(mac, resumeMAC(key, body, user)) {
		return 0, nil, false
	}
	return binary.BigEndian.Uint64(body), body[8:], true
}

func resumeMAC(key, body []byte, user jid.JID) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte("muster resumption\x00"))
	m.Write(body)
	m.Write([]byte(user.String()))
	return m.Sum(nil)[:resumeIDMAC]
}
