package router

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"time"

	"muster/internal/fault"
	"muster/internal/jid"
	"muster/router/hot"
	"muster/router/stanza"
)

// BindRequest asks for a session.
type BindRequest struct {
	User      jid.JID // bare, authenticated
	Resource  string  // normalised; "": the router makes one
	Sink      Sink
	Transport string // "c2s", for the administrator's lists
	Remote    string // the client's network address, for the administrator's lists
	Wishes    []Wish // what the client wants on from the start; those that no feature knows are ignored
}

// Bind makes a session and attaches it to its user's actor, here or over a
// link. The conflict policy (setting session.conflict) decides about a
// resource that is in use. Faults: NotFound for an unknown user, Conflict,
// TooLarge if the user has too many sessions, Unavailable if no home can be
// reached before ctx ends or this node is stopping.
func (r *Router) Bind(ctx context.Context, b BindRequest) (*Session, error) {
	if r.stopping.Load() {
		return nil, fault.New(fault.Unavailable, "session.bind", b.User.String(), "the server is stopping")
	}
	if b.Resource == "" {
		b.Resource = randomResource()
	}
	bound := make(chan error, 1)
	s := &Session{
		r: r, id: r.nextSession.Add(1), user: b.User.Bare(), resource: b.Resource, sink: b.Sink,
		transport: b.Transport, remote: b.Remote, bound: bound, exempt: r.isolated.Load(), since: time.Now(),
	}
	s.counter, _ = b.Sink.(Counter)
	for _, w := range b.Wishes {
		if m, ok := r.reg.atBind[w]; ok {
			_ = s.marks.set(m.Key, m.Value) // far from the bounds: a new session has no others
		}
	}
	r.sessions.add(s)
	s.mu.Lock()
	s.attach()
	s.mu.Unlock()
	select {
	case err := <-bound:
		if err != nil {
			r.sessions.remove(s)
			return nil, err
		}
		return s, nil
	case <-ctx.Done():
		s.End(false, nil) // if the home has attached it by now, it is told
		return nil, fault.Wrap(ctx.Err(), fault.Unavailable, "session.bind", b.User.String())
	}
}

func randomResource() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// attachment is a session's request to its home.
type attachment struct {
	session     *Session // if it is of this node
	id          uint64
	attempt     uint32
	node        uint32
	incarnation uint64
	user        jid.JID
	resource    string
	reattached  bool
	claims      uint64 // how often it was resumed at another node; what follows is as of the last time
	done        uint64 // input up to here was finished with by an earlier home
	sent        uint64 // input up to here may be known to an earlier home
	presence    *stanza.Packet
	published   uint64
	row         hot.Position // of the last presence change
	offered     uint64       // number of the last kept message that it got
	marks       map[string]string
	refusals    []*stanza.Packet // of its messages, that the client is not known to have
	age         time.Duration    // for how long there has been the session
	resume      []byte           // the key of a session that is to be resumed; nil: it is another kind of request
	transport   string
	remote      string
}

// attach asks the user's present home to take the session. The caller holds mu.
func (s *Session) attach() {
	if s.state == finished {
		return
	}
	s.attempt++
	s.state, s.at = attaching, nil
	home, where := s.r.locate(s.user)
	s.moveTo(home.Node, where)
	s.misled = s.misled || s.r.isolated.Load()
	if s.bound == nil {
		s.r.rehomed.Store(time.Now().UnixNano()) // a row may end before the next home has the session
	}
	req := &attachment{
		session: s, id: s.id, attempt: s.attempt, node: s.r.node, incarnation: s.r.incarnation.Load(), user: s.user,
		resource: s.resource, reattached: s.bound == nil, claims: s.claims, done: s.seq, sent: s.seq,
		presence: s.presence, published: s.published, row: s.row, offered: s.offered.Load(),
		marks: s.marks.m, refusals: s.refusals.list(), age: s.age(), resume: s.resume, transport: s.transport, remote: s.remote,
	}
	if len(s.inflight) > 0 {
		req.done = s.inflight[0].seq - 1
	}
	switch where {
	case here:
		req.marks = cloneMarks(s.marks.m)
		s.r.attachHere(req, home.Epoch)
	case elsewhere:
		_ = s.r.links.Send(home.Node, kindAttach, appendAttachment(nil, home.Epoch, req), true)
	case nowhere:
		s.state = waiting
	case unknownUser:
		s.state = waiting
		s.turnDown(fault.New(fault.NotFound, "session.bind", s.user.String(), "there is no such user"))
	}
}

// moveTo makes a node the session's home. On an isolated node that is the node
// itself: the true home is not asked, and must hear if the session ends meanwhile,
// or it would keep what is no more. The caller holds mu.
func (s *Session) moveTo(home uint32, where whereabouts) {
	switch {
	case where == here && s.home != s.r.node && s.r.isolated.Load():
		s.left = s.home
	case where == elsewhere:
		s.left = 0 // that home knows it, or learns of it
	}
	s.home = home
}

// age is for how long the session may have believed what it was told.
func (s *Session) age() time.Duration {
	if s.misled {
		return hot.RecentFor
	}
	return time.Since(s.since)
}

func cloneMarks(m map[string]string) map[string]string {
	out := make(map[string]string, len(m))
	for k, v := range m {
		out[k] = v
	}
	return out
}

func (r *Router) attachHere(req *attachment, epoch uint64) {
	for {
		a := r.actors.need(r, req.user, epoch)
		switch a.post(event{epoch: epoch, call: func(a *Actor) { a.attach(req) }}) {
		case posted:
			return
		case refused:
			r.answerAttach(req, nil, fault.New(fault.Overloaded, "session.bind", req.user.String(), "too much is waiting for this user"))
			return
		}
		r.actors.remove(a)
	}
}

// attach takes a session into the actor.
func (a *Actor) attach(req *attachment) {
	if _, where := a.r.locate(a.user); where != here || a.moved {
		a.r.answerAttach(req, nil, fault.New(fault.Stale, "session.attach", a.user.String(), "this node is not the user's home"))
		return
	}
	if req.session == nil && a.ReadOnly() {
		a.r.answerAttach(req, nil, fault.New(fault.Stale, "session.attach", a.user.String(), "this node is isolated"))
		return
	}
	if req.session == nil && a.r.isOver(req.node, req.incarnation) {
		a.r.answerAttach(req, nil, fault.New(fault.Stale, "session.attach", a.user.String(), "the log says that the session's node is down"))
		a.arrived(req.id)
		return
	}
	if req.resume != nil {
		a.resume(req)
		return
	}
	if at := a.r.remote.get(req.id); at != nil && at.actor == a && !at.gone {
		switch {
		case req.claims < at.claims:
			a.r.answerAttach(req, nil, fault.New(fault.Gone, "session.attach", a.user.String(), "the session was resumed at another node"))
			return
		case req.claims == at.claims:
			a.attachAgain(at, req)
			return
		}
		a.outrun(at) // by a claim of which this node saw nothing: another one was the home then
	}
	resource, err := a.admit(req)
	if err != nil {
		a.r.answerAttach(req, nil, err)
		a.arrived(req.id)
		return
	}
	at := a.admitted(req, resource)
	a.r.answerAttach(req, at, nil)
	a.settleIn(at, req)
}

// admitted puts a session on the actor's list.
func (a *Actor) admitted(req *attachment, resource string) *Attached {
	at := &Attached{
		JID: a.user.WithResource(resource), Node: req.node, ID: req.id, Transport: req.transport, Remote: req.remote,
		actor: a, session: req.session, incarnation: req.incarnation, reattached: req.reattached, claims: req.claims,
		done: req.done, credited: req.done, sent: req.sent, Presence: req.presence, published: req.published, row: req.row, offered: req.offered,
		began: time.Now().Add(-req.age),
	}
	at.refusals.set(req.refusals)
	for k, v := range req.marks {
		_ = at.marks.set(k, v) // within the bounds that the earlier home held
	}
	if at.Presence != nil {
		at.Priority = priority(at.Presence)
	}
	if req.reattached {
		a.tookOver = time.Now()
	}
	a.bound++
	at.number = a.bound
	at.ctx = Ctx{a, at}
	a.sessions = append(a.sessions, at)
	a.busy.Add(1)
	a.r.remote.add(at)
	if at.session == nil && a.r.isOver(at.Node, at.incarnation) { // the log said so since it was asked, and did not find it
		a.insist(event{call: func(a *Actor) { a.nodeOver(at, at.incarnation) }})
	}
	return at
}

// settleIn tells the features of a session, and gives it what waits for it.
func (a *Actor) settleIn(at *Attached, req *attachment) {
	for _, fn := range a.r.reg.onBind {
		fn(&at.ctx)
	}
	if req.reattached && at.able() {
		a.missed(at)
	}
	a.arrived(req.id)
	a.payOwed(at)
}

// attachAgain confirms a session that is attached already: the link broke, or this node was isolated.
func (a *Actor) attachAgain(at *Attached, req *attachment) {
	at.incarnation = req.incarnation
	for _, p := range req.refusals {
		at.refusals.note(p)
	}
	at.sent = max(at.sent, req.sent)
	at.done = max(at.done, req.done) // what its own node finished with while it was isolated is not to be done again here
	was := at.Available()
	if req.published >= at.published {
		at.published, at.Presence, at.Priority, at.row = req.published, req.presence, 0, req.row
		if at.Presence != nil {
			at.Priority = priority(at.Presence)
		}
	}
	a.r.answerAttach(req, at, nil)
	a.arrived(req.id)
	a.publishAgain(at, req.published)
	if !was && at.Available() {
		a.appeared(at, req)
	}
	if aside := at.aside; !at.ending {
		at.aside = nil
		for _, p := range aside {
			a.Deliver(at, p)
		}
	}
}

// appeared makes up for a session that became available at its own node, while
// that was isolated, and was attached here before: by a request that lay on a
// link that was cut. Its client has heard nothing from here.
func (a *Actor) appeared(at *Attached, req *attachment) {
	for k, v := range req.marks {
		_ = at.marks.set(k, v) // within the bounds that its node held
	}
	if began := time.Now().Add(-req.age); began.Before(at.began) {
		at.began = began
	}
	at.reattached, at.offered = true, max(at.offered, req.offered)
	a.bound++
	at.number, a.tookOver = a.bound, time.Now()
	a.settleIn(at, req)
}

// isOver reports whether the log says that a node's incarnation is over, or that the node is no member.
func (r *Router) isOver(node uint32, incarnation uint64) bool {
	n, ok := r.homes.node(node)
	return !ok || incarnation < n.Incarnation || incarnation == n.Incarnation && !n.Up
}

// admit decides about the resource by the conflict policy, and about the number of sessions.
func (a *Actor) admit(req *attachment) (resource string, err error) {
	resource = req.resource
	older := a.SessionByResource(resource)
	if older == nil {
		if !req.reattached && int64(len(a.sessions)) >= a.r.live.Int(settingMaxSessions) {
			return "", fault.New(fault.TooLarge, "session.bind", a.user.String(), "too many sessions; close one first")
		}
		return resource, nil
	}
	policy := a.r.live.String(settingConflict)
	switch {
	case req.reattached && !older.reattached:
		return "", fault.New(fault.Conflict, "session.attach", a.user.String(), "replaced by a newer session")
	case req.reattached || policy == conflictReplace:
		a.r.endAttached(older, stanza.StreamConflict, "replaced by a newer session")
	case policy == conflictReject:
		return "", fault.New(fault.Conflict, "session.bind", a.user.String(), "the resource is in use")
	default:
		resource += "-" + randomResource()
	}
	if int64(len(a.sessions)) >= a.r.live.Int(settingMaxSessions) {
		return "", fault.New(fault.TooLarge, "session.bind", a.user.String(), "too many sessions; close one first")
	}
	return resource, nil
}

// answerAttach tells a session's node that it is attached, or why not.
func (r *Router) answerAttach(req *attachment, at *Attached, err error) {
	switch {
	case req.session == nil:
		r.sendAttachAnswer(req, at, err)
	case err != nil:
		req.session.notAttached(req.attempt, err)
	default:
		req.session.attachedTo(req.attempt, at, at.JID.Resource, at.done)
	}
}

// attachedTo notes that the home took the session, and gives it the input that it has not seen.
func (s *Session) attachedTo(attempt uint32, at *Attached, resource string, done uint64) {
	if home, moved := s.takeHome(attempt, at, resource, done); moved {
		m := &Moved{s, s.r.births.of(home).Add(SilentAfter)}
		for _, fn := range s.r.reg.onMoved {
			s.r.guard("moved", func() { fn(m) })
		}
	}
}

// takeHome is attachedTo; it reports whether the client may know more than its new home, and which that is.
func (s *Session) takeHome(attempt uint32, at *Attached, resource string, done uint64) (home uint32, moved bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if attempt != s.attempt || s.state != attaching {
		return 0, false
	}
	s.state, s.at = attached, at
	if s.bound == nil {
		s.homed = time.Now()
		s.r.rehomed.Store(s.homed.UnixNano())
	}
	s.settle(done)
	moved = s.bound == nil && at == nil && s.presence != nil && s.ending == nil && s.r.births.lately(s.home)
	if s.bound != nil {
		s.resource, s.full = resource, s.user.WithResource(resource)
		s.bound <- nil
		s.bound = nil
	}
	for _, in := range s.inflight {
		s.forward(in)
	}
	if s.ending != nil {
		s.forwardEnd()
	}
	return s.home, moved
}

// notAttached notes that the node asked did not take the session.
func (s *Session) notAttached(attempt uint32, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if attempt != s.attempt || s.state != attaching {
		return
	}
	s.tryAgain(err)
}

// letGo notes that the home, on another node, holds the session no longer. It
// follows the log to the next one, or asks the same one again.
func (s *Session) letGo(home uint32, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.home == home && s.at == nil && s.state == attached {
		s.tryAgain(err)
	}
}

// tryAgain waits for another home, or for this one to be itself again; or it ends the session. The caller holds mu.
func (s *Session) tryAgain(err error) {
	s.state = waiting
	if attempt := s.attempt; fault.Is(err, fault.Stale) {
		time.AfterFunc(retryAttach, func() { s.retry(attempt) })
		return
	}
	s.turnDown(err)
}

// turnDown ends a session that no home takes. The caller holds mu.
func (s *Session) turnDown(err error) {
	if s.bound != nil {
		s.bound <- err
		s.bound = nil
		s.state = finished
		return
	}
	cond := stanza.StreamNotAuthorized
	switch fault.CodeOf(err) {
	case fault.Gone:
		s.moved.Store(true)
		fallthrough
	case fault.Conflict:
		cond = stanza.StreamConflict
	case fault.TooLarge, fault.Overloaded:
		cond = stanza.StreamResourceConstraint
	}
	go s.discard(cond, fault.Public(err))
}

// discard ends a session that has no home any more.
func (s *Session) discard(cond stanza.StreamCondition, text string) {
	s.terminate(cond, text)
	s.finish()
}

// retry attaches the session unless that was done meanwhile.
func (s *Session) retry(attempt uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.attempt == attempt && s.state == waiting {
		s.attach()
	}
}

// detach tells a session that the actor has let go of it; it looks for its home anew.
func (r *Router) detach(at *Attached) {
	at.gone, at.detached = true, true
	r.remote.remove(at)
	r.giveBackAll(at.actor.user, at.aside)
	at.aside = nil
	s := at.session
	if s == nil {
		// Its node follows the same log, but need not see each step of it: of a home that moved and came back at once it may see nothing.
		r.sendAttachAnswer(&attachment{id: at.ID, node: at.Node}, nil, fault.New(fault.Stale, "session.attach", at.JID.String(), "this node has let go of the session"))
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at == at || s.state == attaching && s.home == r.node {
		s.attach()
	}
}

// follow attaches the session to its user's home if that is not where it is. force: even if it is.
func (s *Session) follow(force bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state == finished {
		return
	}
	s.misled = s.misled || s.r.isolated.Load()
	if s.state != waiting && !force {
		if s.at != nil || s.home == s.r.node {
			return // an actor of this node lets go by itself
		}
		home, where := s.r.locate(s.user)
		if (where == here || where == elsewhere) && home.Node == s.home {
			return
		}
	}
	s.attach()
}
