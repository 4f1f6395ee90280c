package router

import (
	"context"
	"errors"
	"strings"
	"time"

	"muster/fsm/cluster"
	"muster/internal/fault"
	"muster/internal/jid"
	"muster/router/hot"
	"muster/router/stanza"
)

// Resumption (XEP-0198 section 5). A session that is on record survives its
// node: the client shows its key to any node, which asks the user's home to
// claim the record and goes on where it ends. Inputs are numbered on, so that
// what the log has already is recognised.

// Record says how a session can be resumed at another node.
type Record struct {
	Key     []byte        // that resuming it takes
	Base    uint64        // input before counting began
	Timeout time.Duration // that a lost client has
}

// Recorded is a session on record.
type Recorded struct {
	Record
	ID          uint64
	User        jid.JID // bare
	Resource    string
	Node        uint32
	Incarnation uint64
	Claims      uint64 // how often it was resumed at another node
	Published   uint64
	Presence    *stanza.Packet // nil: not available
	Marks       map[string]string
	Handled     uint64           // input that is finished with
	Offered     uint64           // number of the last kept message that the client is known to have
	Refusals    []*stanza.Packet // errors for its messages up to Handled that the client may not have
}

// Progress is how far a session on record has come.
type Progress struct {
	Session, Claims uint64
	Handled         uint64           // input, as of so many claims; 0: unchanged
	Refusals        []*stanza.Packet // errors for its messages that the client may not have
}

// A record holds at most so many bytes of marks. Of a session with more, those
// that belong to a list (directed presence) or are large are left out.
const (
	maxRecordBytes = 48 << 10
	smallMark      = 1 << 10
)

// Record puts the session on record; from then on its state is kept there.
func (s *Session) Record(rec Record) {
	s.mu.Lock()
	s.record = &rec
	s.tellRecord()
	s.mu.Unlock()
	if s.lingers() {
		s.r.hot.Linger(s.user, s.full.Resource, s.id)
	}
}

// lingers reports whether the session's row outlives its node for a while.
func (s *Session) lingers() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.record != nil && s.r.reg.recorder != nil
}

// tellRecord keeps the session's present state. The caller holds mu.
func (s *Session) tellRecord() {
	if s.record == nil || s.r.reg.recorder == nil || s.ending != nil || s.state == finished {
		return
	}
	rec := Recorded{Record: *s.record, ID: s.id, User: s.user, Resource: s.full.Resource, Node: s.r.node, Incarnation: s.r.incarnation.Load(),
		Claims: s.claims, Published: s.published, Presence: s.presence, Marks: map[string]string{}}
	for k, v := range s.marks.m {
		if s.marks.bytes <= maxRecordBytes || len(k)+len(v) < smallMark && !strings.Contains(k, "/") {
			rec.Marks[k] = v
		}
	}
	s.r.reg.recorder.Record(rec)
}

// Skip counts a stanza that the edge answered itself: it is finished with as soon as all before it is.
func (s *Session) Skip() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending != nil || s.state == finished {
		return
	}
	s.seq++
	in := numbered{seq: s.seq}
	s.inflight = append(s.inflight, in)
	if s.state == attached {
		s.forward(in)
	}
}

// Confirm has it kept that the session's input up to n is finished with, so that
// the client may be told; the edge hears of it by Handled. It never blocks.
func (s *Session) Confirm(n uint64) {
	if rec := s.r.reg.recorder; rec != nil {
		rec.Confirm(Progress{s.id, s.claims, n, s.refusals.list()}, func() { s.confirmed(n) })
		return
	}
	go s.confirmed(n)
}

func (s *Session) confirmed(n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lasting = max(s.lasting, n)
	s.tellHandled()
}

// Suspend leaves a session on record to the other nodes, when this one departs
// (Router.Depart): the sink's Suspend has been called then, and the session is none of
// this node's any more. False for a session that cannot go on elsewhere, which is to be ended.
func (s *Session) Suspend() bool { return s.r.departing.Load() && s.suspend() }

// suspend leaves a session on record to the other nodes; false for one that is not.
func (s *Session) suspend() bool {
	sink, ok := s.sink.(Suspender)
	s.mu.Lock()
	recorded := s.record != nil && s.r.reg.recorder != nil && s.ending == nil && s.state != finished
	s.mu.Unlock()
	if !recorded || !ok {
		return false
	}
	sink.Suspend()
	s.r.sessions.remove(s)
	return true
}

// Location returns where the session's client can best resume it if this node dies, host:port for clients with
// STARTTLS (XEP-0198 section 5, location): at the user's other node, if that is up and its address is known; "" if not.
func (s *Session) Location() string {
	home, where := s.r.locate(s.user)
	other := home.Node
	if where == here {
		other = home.Backup
	}
	n, ok := s.r.homes.node(other)
	if !ok || !n.Up || other == s.r.node {
		return ""
	}
	return n.Addrs[cluster.ClientListener]
}

// ResumeRequest asks for a session that is on record.
type ResumeRequest struct {
	User              jid.JID // bare, authenticated
	ID                uint64
	Key               []byte
	Sink              Sink
	Transport, Remote string // as in BindRequest
}

// Resumed says where a resumed session goes on.
type Resumed struct {
	Base    uint64 // input before counting began
	Handled uint64 // input that is finished with; the next one has the number after it
	Known   bool   // with an error: the rest is so all the same
}

// Resume takes over a session that is on record, wherever it was. What its
// client is not known to have is delivered again. Faults: NotFound if there is no
// such session; Unavailable if no home can be reached before ctx ends, or it is being
// resumed here, or was here and still takes leave; NoQuorum and others of the log if it cannot be claimed now.
func (r *Router) Resume(ctx context.Context, q ResumeRequest) (*Session, Resumed, error) {
	if r.stopping.Load() {
		return nil, Resumed{}, fault.New(fault.Unavailable, "session.resume", q.User.String(), "the server is stopping")
	}
	bound := make(chan error, 1)
	s := &Session{
		r: r, id: q.ID, user: q.User.Bare(), resume: q.Key, sink: q.Sink,
		transport: q.Transport, remote: q.Remote, bound: bound, exempt: r.isolated.Load(), since: time.Now(),
	}
	s.counter, _ = q.Sink.(Counter)
	if have := r.sessions.addNew(s); have != nil {
		if have.isEnding() && !have.Moved() {
			return nil, Resumed{}, fault.New(fault.NotFound, "session.resume", q.User.String(), "the session is being ended")
		}
		return nil, Resumed{}, fault.New(fault.Unavailable, "session.resume", q.User.String(), "the session is on its way to or from this node")
	}
	s.mu.Lock()
	s.attach()
	s.mu.Unlock()
	select {
	case err := <-bound:
		if err != nil {
			r.sessions.remove(s)
			return nil, known(err), err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		return s, Resumed{Base: s.record.Base, Handled: s.settled}, nil
	case <-ctx.Done():
		s.End(false, nil)
		return nil, Resumed{}, fault.Wrap(ctx.Err(), fault.Unavailable, "session.resume", q.User.String())
	}
}

// lapsed says that a session on record cannot go on, and how far it had come.
type lapsed struct {
	error
	handled uint64 // input as its client counts, since counting began
}

// Unwrap implements errors.Unwrap.
func (l lapsed) Unwrap() error { return l.error }

// known returns what an error tells of a session that is no more.
func known(err error) Resumed {
	var l lapsed
	if !errors.As(err, &l) {
		return Resumed{}
	}
	return Resumed{Handled: l.handled, Known: true}
}

// addNew is add, unless there is a session of that number: that one is returned.
func (ss *sessions) addNew(s *Session) (have *Session) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if have = ss.byID[s.id]; have != nil {
		return have
	}
	ss.byID[s.id] = s
	ss.byUser[s.user] = append(ss.byUser[s.user], s)
	return nil
}

// resume claims the record of a session and attaches it.
func (a *Actor) resume(req *attachment) {
	rec := a.r.reg.recorder
	switch {
	case rec == nil:
		a.r.answerAttach(req, nil, fault.New(fault.NotFound, "session.resume", a.user.String(), "there is no such session"))
		return
	case a.ReadOnly():
		a.r.answerAttach(req, nil, isolatedFault("session.resume", a.user))
		return
	}
	rec.Claim(&a.self, req.id, req.resume, req.node, req.incarnation, func(got Recorded, err error) {
		if err == nil {
			err = a.takeUp(req, &got)
		}
		if err != nil {
			a.r.answerAttach(req, nil, err)
		}
	})
}

// takeUp attaches a session that was claimed.
func (a *Actor) takeUp(req *attachment, got *Recorded) error {
	if _, where := a.r.locate(a.user); where != here || a.moved {
		return fault.New(fault.Stale, "session.resume", a.user.String(), "this node is not the user's home")
	}
	if req.session == nil && a.r.isOver(req.node, req.incarnation) { // it asks again when it is itself again
		return fault.New(fault.Stale, "session.resume", a.user.String(), "the log says that the session's node is down")
	}
	if old := a.r.remote.get(req.id); old != nil && old.actor == a && !old.gone {
		a.replaceBy(old, req, got)
	}
	if a.SessionByResource(got.Resource) != nil {
		return lapsed{fault.New(fault.NotFound, "session.resume", a.user.String(), "the resource has a newer session"), got.Handled - got.Base}
	}
	req.reattached, req.done, req.offered, req.age = true, got.Handled, got.Offered, hot.RecentFor
	req.presence, req.published, req.marks = got.Presence, got.Published, got.Marks
	req.claims, req.sent = got.Claims, got.Handled // the log takes nothing more of what went to an earlier home
	at := a.admitted(req, got.Resource)
	at.lasting = got.Handled
	if req.session != nil {
		req.session.resumedTo(req.attempt, at, got)
	} else {
		a.r.sendResumed(req, got)
	}
	a.settleIn(at, req)
	for _, p := range got.Refusals {
		a.Deliver(at, p)
	}
	return nil
}

// replaceBy lets go of a session whose client has come back by another
// connection, before the old one was found to be lost. What the actor knows is
// newer than the record, unless it has seen nothing of another claim between.
func (a *Actor) replaceBy(old *Attached, req *attachment, got *Recorded) {
	if old.claims+1 == got.Claims {
		got.Handled, got.Marks = max(got.Handled, old.lasting), old.marks.m // what only the old connection was told, the client may not know
		got.Presence, got.Published = old.Presence, old.published
	}
	if old.Node == req.node { // that asks again: the answer was lost with the link
		a.displace(old)
		return
	}
	a.outrun(old)
}

// ResumedElsewhere says that c's session goes on at another node: it ends here, and the input at hand is not finished with.
func (c *Ctx) ResumedElsewhere() { c.outrun(c.Session) }

// displace takes off the list what another attachment of the same session has the place of.
func (a *Actor) displace(old *Attached) {
	a.remove(old)
	old.gone, old.replaced = true, true
}

// outrun lets go of a session whose client has another connection. Frames of its node still find it, so that its end is heard.
func (a *Actor) outrun(old *Attached) {
	a.displace(old)
	if old.session != nil {
		old.session.resumedElsewhere()
		return
	}
	a.r.toSession(old, kindEnd, appendText(appendText(nil, ""), ""))
}

// resumedElsewhere ends the session here, but not at its home.
func (s *Session) resumedElsewhere() {
	s.moved.Store(true)
	s.terminate(stanza.StreamConflict, "the session was resumed elsewhere")
}

// Moved reports whether the session goes on at another node, or by another connection to this one.
func (s *Session) Moved() bool { return s.moved.Load() }

// sendResumed tells the node of a resumed session what it is made of.
func (r *Router) sendResumed(req *attachment, got *Recorded) {
	b := appendUint64(appendUint64(nil, req.id), uint64(req.attempt))
	b = appendUint64(appendUint64(appendUint64(b, got.Handled), got.Base), got.Claims)
	b = appendText(appendUint64(b, uint64(got.Timeout)), string(got.Key))
	full := &attachment{id: req.id, user: req.user, resource: got.Resource, presence: got.Presence, published: got.Published,
		offered: got.Offered, marks: got.Marks}
	_ = r.links.Send(req.node, kindResumed, appendAttachment(b, 0, full), true)
}

func (r *Router) takeResumed(b []byte) error {
	sc := &scanner{b: b}
	s, attempt := r.sessions.get(sc.uint64()), uint32(sc.uint64())
	got := Recorded{Handled: sc.uint64()}
	got.Base, got.Claims, got.Timeout = sc.uint64(), sc.uint64(), time.Duration(sc.uint64())
	got.Key = []byte(sc.text())
	if err := sc.err(); err != nil {
		return err
	}
	_, full, err := parseAttachment(sc.b)
	if err != nil || s == nil {
		return err
	}
	got.Resource, got.Presence, got.Published = full.resource, full.presence, full.published
	got.Offered, got.Marks = full.offered, full.marks
	s.resumedTo(attempt, nil, &got)
	return nil
}

// resumedTo makes the session what it was, attached to its home.
func (s *Session) resumedTo(attempt uint32, at *Attached, got *Recorded) {
	s.mu.Lock()
	if attempt != s.attempt || s.state != attaching || s.bound == nil {
		s.mu.Unlock()
		return
	}
	s.state, s.at, s.resume = attached, at, nil
	s.resource, s.full = got.Resource, s.user.WithResource(got.Resource)
	s.seq, s.settled, s.lasting = got.Handled, got.Handled, got.Handled
	s.record, s.claims = &got.Record, got.Claims
	s.presence, s.published = got.Presence, got.Published
	for k, v := range got.Marks {
		_ = s.marks.set(k, v) // within the bounds that the earlier node held
	}
	s.offered.Store(got.Offered)
	presence, n, ended := s.presence, s.published, s.ending != nil
	if ended {
		s.forwardEnd()
	}
	s.mu.Unlock()
	if presence != nil && !ended {
		s.publish(n, presence)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bound <- nil
	s.bound = nil
}
