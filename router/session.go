package router

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"muster/internal/fault"
	"muster/internal/jid"
	"muster/router/hot"
	"muster/router/stanza"
)

// Sink is the client's side of a session; edges implement it.
type Sink interface {
	// Deliver queues a stanza for the client. It never blocks: if the bounded
	// queue is full it returns an Overloaded fault, and the router ends the
	// session. p is shared: never change it. It is called by one goroutine at a time.
	Deliver(p *stanza.Packet) error
	// End says that the session is over: send the stream error and close, then
	// call Session.End with what was not delivered. It never blocks.
	End(cond stanza.StreamCondition, text string)
}

// Counter is a Sink that wants to know how much of the client's input is done
// with: answered, or where it lasts. Only that may be acknowledged (XEP-0198 section 4).
type Counter interface {
	// Handled says that the server has finished with the first n inputs of the
	// session, and that another node knows of the first lasting of them, should
	// this one die. It never blocks; of the session it may call Confirm.
	Handled(n, lasting uint64)
}

// Suspender is a Sink whose client can go on at another node (Record).
type Suspender interface {
	// Suspend breaks the connection without ending the stream: this node stops.
	Suspend()
}

// Disconnecter is a Sink whose connection the router can break.
type Disconnecter interface {
	// Disconnect breaks the connection as if the network had: a session that its
	// client can resume goes on. It never blocks.
	Disconnect()
}

// Session is a connected client of this node. It keeps all that a new home
// needs, so that the client does not notice when its user's home moves.
type Session struct {
	r         *Router
	id        uint64
	user      jid.JID // bare
	full      jid.JID // set before Bind returns
	resource  string  // asked for, or bound
	sink      Sink
	counter   Counter // the sink, if it is one
	transport string
	remote    string
	since     time.Time // of the binding
	misled    bool      // it was here while this node was isolated, or seconds before that was known: it may have been shown what had ended before
	exempt    bool      // bound while this node was isolated: the grace time is over for it

	mu        sync.Mutex
	state     sessionState
	attempt   uint32     // counts attachments: late answers to earlier ones are ignored
	home      uint32     // node that it is, or is being, attached to
	homed     time.Time  // when it was attached anew
	left      uint32     // node that may hold it still: the home that this node left when it became isolated; 0: none
	at        *Attached  // if the home is this node
	bound     chan error // tells Bind; nil once told
	inflight  []numbered // input that the actor has not finished with
	settled   uint64     // input that it has finished with
	lasting   uint64     // input that another node knows to be finished with
	record    *Record    // nil: the session ends with its node
	claims    uint64     // how often it was resumed at another node
	resume    []byte     // the key of a session that is being resumed
	seq       uint64     // of the last input
	room      chan struct{}
	presence  *stanza.Packet
	published uint64       // presence changes so far
	row       hot.Position // of the last one
	marks     marks
	moved     atomic.Bool // resumed elsewhere
	ending    *unbinding  // End was called
	ended     time.Time

	out      sync.Mutex // held while the sink is called
	closed   bool       // the sink was told to end
	missed   []*stanza.Packet
	gone     []jid.JID     // whose end the client was told last, the oldest first
	shown    []shown       // who the client was told is available, while homes may not know all; the oldest first
	offered  atomic.Uint64 // number of the last kept message that was delivered
	refusals refusals      // that the client is not known to have
	rowLock  sync.Mutex    // held while the row is written
	over     bool          // under rowLock: no row any more
}

type sessionState uint8

const (
	waiting   sessionState = iota // no home is up, or it refused
	attaching                     // asked the home
	attached
	finished
)

// numbered is one input; p is nil for a stanza that the edge answered itself.
type numbered struct {
	seq uint64
	p   *stanza.Packet
}

// JID returns the session's full address.
func (s *Session) JID() jid.JID { return s.full }

// ID returns the session's number, which no other session of the cluster ever has.
func (s *Session) ID() uint64 { return s.id }

// Receive takes one stanza from the client, validated and with From set by the
// edge, in order. It blocks while InputWindow stanzas wait for the actor, until
// ctx ends. After a Receive without an error the server is responsible for the
// stanza. A session that has ended returns Gone.
func (s *Session) Receive(ctx context.Context, p *stanza.Packet) error {
	s.mu.Lock()
	for len(s.inflight) >= InputWindow && s.ending == nil {
		if s.room == nil {
			s.room = make(chan struct{})
		}
		room := s.room
		s.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			return fault.Wrap(ctx.Err(), fault.Timeout, "session.receive", s.user.String())
		}
		s.mu.Lock()
	}
	if s.ending != nil || s.state == finished {
		s.mu.Unlock()
		return fault.New(fault.Gone, "session.receive", s.user.String(), "the session has ended")
	}
	s.seq++
	in := numbered{s.seq, p}
	s.inflight = append(s.inflight, in)
	var woken *Actor
	switch {
	case s.state == attached && s.at != nil:
		if _, start := s.at.actor.enqueue(event{kind: eventInput, at: s.at, seq: in.seq, p: in.p}); start {
			woken = s.at.actor
		}
	case s.state == attached:
		s.forward(in)
	}
	s.mu.Unlock()
	woken.runHere()
	return nil
}

// forward gives an input to the home. What goes astray because the home moves is given to the next one. The caller holds mu.
func (s *Session) forward(in numbered) {
	if s.at != nil {
		s.at.actor.post(event{kind: eventInput, at: s.at, seq: in.seq, p: in.p})
		return
	}
	b := appendUint64(appendUint64(nil, s.id), in.seq)
	if in.p != nil {
		b = stanza.AppendBinary(b, in.p)
	}
	_ = s.r.links.Send(s.home, kindInput, b, true) // an overflow resets the link, and that attaches the session again
}

// credit notes that the home has finished with the input up to seq, and has it on record up to lasting.
func (s *Session) credit(seq, lasting uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lasting = max(s.lasting, lasting)
	s.settle(seq)
}

// settle is credit. The caller holds mu.
func (s *Session) settle(seq uint64) {
	s.settled = max(s.settled, seq)
	if s.r.keeper == nil {
		s.lasting = s.settled
	}
	defer s.tellHandled()
	n := 0
	for n < len(s.inflight) && s.inflight[n].seq <= seq {
		n++
	}
	if n == 0 {
		return
	}
	rest := copy(s.inflight, s.inflight[n:])
	clear(s.inflight[rest:])
	s.inflight = s.inflight[:rest]
	if s.room != nil {
		close(s.room)
		s.room = nil
	}
}

// tellHandled tells the edge what it may acknowledge. The caller holds mu.
func (s *Session) tellHandled() {
	if s.counter != nil {
		s.counter.Handled(s.settled, s.lasting)
	}
}

// End ends the session. clean: the client closed its stream; else the
// connection was lost and not resumed. undelivered are the stanzas that the
// client never confirmed: they are routed again as if the resource were
// unavailable. End never blocks; the second call does nothing.
func (s *Session) End(clean bool, undelivered []*stanza.Packet) {
	s.out.Lock()
	s.closed = true
	undelivered = append(undelivered, s.missed...)
	s.missed = nil
	s.out.Unlock()

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending != nil {
		return
	}
	s.ending, s.ended = &unbinding{clean: clean, undelivered: undelivered}, time.Now()
	if s.state == finished { // the home has taken leave of it before
		go s.r.giveBackAll(s.user, undelivered)
		return
	}
	if s.room != nil {
		close(s.room)
		s.room = nil
	}
	if s.state == attached {
		s.forwardEnd()
	}
}

// forwardEnd tells the home that the session has ended. The caller holds mu.
func (s *Session) forwardEnd() {
	if s.at != nil {
		s.at.actor.post(event{kind: eventInput, at: s.at, end: s.ending})
		return
	}
	id := appendUint64(nil, s.id)
	for _, p := range s.ending.undelivered {
		_ = s.r.links.Send(s.home, kindUndelivered, stanza.AppendBinary(id[:8:8], p), true)
	}
	_ = s.r.links.Send(s.home, kindUnbind, s.endFrame(s.ending.clean), true)
}

// endFrame tells another node that holds the session that it has ended.
func (s *Session) endFrame(clean bool) []byte {
	b := append(appendUint64(make([]byte, 0, 17), s.id), 0)
	if clean {
		b[8] = 1
	}
	return b
}

// finish forgets the session: its home has taken leave of it.
func (s *Session) finish() {
	s.mu.Lock()
	s.state, s.at, s.inflight = finished, nil, nil
	if s.bound != nil {
		s.bound <- fault.New(fault.Gone, "session.bind", s.user.String(), "the session ended")
		s.bound = nil
	}
	if s.left != 0 {
		b := s.endFrame(s.ending != nil && s.ending.clean)
		_ = s.r.links.Send(s.left, kindUnbind, appendUint64(b, s.seq), true)
		s.left = 0
	}
	s.mu.Unlock()
	s.dropRow(nil)
	s.r.sessions.remove(s)
}

// deliver gives a stanza to the client, or takes it up again if that cannot be.
func (s *Session) deliver(p *stanza.Packet) {
	s.out.Lock()
	if !s.closed {
		if p.Kind == stanza.KindPresence && s.knows(p) {
			s.out.Unlock()
			return
		}
		err := s.sink.Deliver(p)
		if err == nil {
			if p.Number > s.offered.Load() {
				s.offered.Store(p.Number)
			}
			if p.IsRefusal() && s.lingers() {
				s.refusals.note(p)
			}
			s.out.Unlock()
			return
		}
		s.closed = true
		s.r.count.overloaded.Add(1)
		s.r.logger.Debug("session_overflow", "session", s.full, "error", err)
		s.sink.End(stanza.StreamResourceConstraint, "the client does not read what is sent to it")
	}
	ending, room := s.isEnding(), len(s.missed) < MaxMailbox
	if room && !ending {
		s.missed = append(s.missed, p)
	}
	s.out.Unlock()
	switch {
	case ending:
		s.r.giveBack(s.user, p)
	case !room: // to give it back would bring it here again until the edge has ended the session
		s.r.bounce(p, stanza.NewError(stanza.ResourceConstraint, ""))
	}
}

// maxGone is how many ends of other sessions are remembered, so that a new home need not know what the old one told.
const maxGone = 32

// knows reports whether presence says no more than what the client was told
// last: a home that is new to the session tells of all that ended lately. The caller holds out.
func (s *Session) knows(p *stanza.Packet) bool {
	at := slices.Index(s.gone, p.From)
	switch {
	case p.Type == stanza.TypeUnavailable && at >= 0:
		return len(p.Inner) == 0 && p.To.Resource == ""
	case p.Type == stanza.TypeUnavailable && p.From.Resource != "":
		if len(s.gone) == maxGone {
			s.gone = s.gone[:copy(s.gone, s.gone[1:])]
		}
		s.gone = append(s.gone, p.From)
	case p.Type == "":
		if at >= 0 {
			s.gone = slices.Delete(s.gone, at, at+1)
		}
		s.noteShown(p.From)
	}
	return false
}

// shown is a resource that a client was told is available.
type shown struct {
	from jid.JID
	at   time.Time
}

// noteShown remembers for Moved.Shown what the client is told. The caller holds out.
func (s *Session) noteShown(from jid.JID) {
	if !s.r.Unsettled() {
		s.shown = nil
		return
	}
	if len(s.shown) == maxGone {
		s.shown = s.shown[:copy(s.shown, s.shown[1:])]
	}
	s.shown = append(s.shown, shown{from, time.Now()})
}

// isEnding reports whether End was called. Lock order: out before mu.
func (s *Session) isEnding() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ending != nil || s.state == finished
}

// terminate ends the session from the server's side.
func (s *Session) terminate(cond stanza.StreamCondition, text string) {
	s.out.Lock()
	defer s.out.Unlock()
	if !s.closed {
		s.closed = true
		if p := s.lastWord(); p != nil {
			_ = s.sink.Deliver(p) // a client that does not read misses it
		}
		s.sink.End(cond, text)
	}
}

// disconnect breaks the client's connection, and leaves it to the edge what becomes of the session.
func (s *Session) disconnect() {
	s.out.Lock()
	defer s.out.Unlock()
	if sink, ok := s.sink.(Disconnecter); ok && !s.closed { // else its last word may be under way
		s.r.logger.Debug("session_disconnected", "session", s.full)
		sink.Disconnect()
	}
}

// publish writes or removes the session's row, and returns the position of
// that in this node's stream of rows. n counts the presence changes.
func (s *Session) publish(n uint64, p *stanza.Packet) (at hot.Position) {
	available := p != nil && p.Type == ""
	s.mu.Lock()
	s.published, s.presence = n, nil
	if available {
		s.presence = p
	}
	s.tellRecord()
	s.mu.Unlock()
	if available {
		at = s.putRow(p)
	} else {
		at = s.dropRow(p)
	}
	if at.Sequence != 0 {
		s.mu.Lock()
		s.row = at
		s.mu.Unlock()
	}
	return at
}

// outdated reports whether the nth presence change comes after a later one, and
// the position of the row as it is then. A home that was declared down while
// it lived, and is the home again, may send what it kept for the session.
func (s *Session) outdated(n uint64) (hot.Position, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.row, n < s.published
}

func (s *Session) putRow(p *stanza.Packet) (at hot.Position) {
	s.rowLock.Lock()
	defer s.rowLock.Unlock()
	if s.over {
		return at
	}
	at, err := s.r.hot.Put(hot.Row{User: s.user, Resource: s.full.Resource, Session: s.id, Priority: priority(p),
		Since: time.Now(), Lingers: s.lingers(), Presence: p.AppendWithTo(make([]byte, 0, p.Size()), jid.JID{})})
	if err != nil {
		s.r.logger.Error("presence_refused", "session", s.full, "error", err)
	}
	return at
}

// dropRow removes the row; farewell is the client's unavailable presence, or nil.
func (s *Session) dropRow(farewell *stanza.Packet) hot.Position {
	s.rowLock.Lock()
	defer s.rowLock.Unlock()
	s.mu.Lock()
	s.over = s.state == finished
	s.mu.Unlock()
	var xml []byte
	var status string
	if farewell != nil {
		xml = farewell.AppendWithTo(nil, jid.JID{})
		if c, ok := farewell.Child(stanza.NSClient, "status"); ok {
			status = farewell.Element(c).Text()
		}
	}
	return s.r.hot.Delete(s.user, s.full.Resource, s.id, xml, status)
}

func (s *Session) mark(key, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.marks.set(key, value) // the home has checked the bounds
	s.tellRecord()
}

// sessions is the set of this node's sessions.
type sessions struct {
	mu     sync.RWMutex
	byID   map[uint64]*Session
	byUser map[jid.JID][]*Session
}

func newSessions() *sessions {
	return &sessions{byID: map[uint64]*Session{}, byUser: map[jid.JID][]*Session{}}
}

func (ss *sessions) add(s *Session) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	ss.byID[s.id] = s
	ss.byUser[s.user] = append(ss.byUser[s.user], s)
}

func (ss *sessions) get(id uint64) *Session {
	ss.mu.RLock()
	defer ss.mu.RUnlock()
	return ss.byID[id]
}

func (ss *sessions) of(user jid.JID) []*Session {
	ss.mu.RLock()
	defer ss.mu.RUnlock()
	return append([]*Session(nil), ss.byUser[user]...)
}

func (ss *sessions) all() []*Session {
	ss.mu.RLock()
	defer ss.mu.RUnlock()
	out := make([]*Session, 0, len(ss.byID))
	for _, s := range ss.byID {
		out = append(out, s)
	}
	return out
}

func (ss *sessions) count() int {
	ss.mu.RLock()
	defer ss.mu.RUnlock()
	return len(ss.byID)
}

func (ss *sessions) remove(s *Session) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if ss.byID[s.id] != s {
		return
	}
	delete(ss.byID, s.id)
	list := ss.byUser[s.user]
	for i, have := range list {
		if have == s {
			list = append(list[:i:i], list[i+1:]...)
			break
		}
	}
	if len(list) == 0 {
		delete(ss.byUser, s.user)
	} else {
		ss.byUser[s.user] = list
	}
}
