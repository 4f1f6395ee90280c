package router

import (
	"slices"

	"muster/fsm"
	"muster/internal/jid"
	"muster/router/stanza"
)

// Kept messages. A message that must last is written to the message log in its
// sender's actor; that makes it the server's. Every node sees it in that log,
// and the recipient's home hands it to the recipient's actor from there, in the
// order of the log. A session's place in that order is a number, so that
// nothing is offered twice and nothing left out when sessions come, go and move.

// MessageChanges takes in what the message log's record at index changed; node
// calls it from that machine's OnApply. It only queues, as Changes does.
func (r *Router) MessageChanges(index uint64, changes []fsm.Change) {
	r.stored.put(feedItem{index: index, changes: changes})
}

// ReloadMessages notes that the message log's state was replaced by a snapshot:
// what it brought nobody was told of. Sessions that are attached are offered it.
func (r *Router) ReloadMessages() {
	r.stored.put(feedItem{index: r.messages.Index(), call: func() {
		for _, a := range r.actors.all() {
			a.post(event{call: (*Actor).offerMissed})
		}
	}})
}

// dispatchStored hands the message log's changes on until the router stops.
func (r *Router) dispatchStored() {
	for {
		select {
		case <-r.stored.wake:
		case <-r.ctx.Done():
			return
		}
		for _, it := range r.stored.take() {
			if it.call != nil {
				it.call()
			}
			for _, c := range it.changes {
				r.tellWatchers(c)
			}
			if it.index > r.handed.Load() {
				r.handed.Store(it.index)
				r.order.handed(r) // before the next message: what followed this one goes first
			}
		}
	}
}

// behind has a stanza for a user of this node wait for a kept message that it
// must not overtake, and for stanzas that wait already; false if the user's home is not here.
func (r *Router) behind(p *stanza.Packet, hops uint8, after dependency) bool {
	if _, where := r.locate(p.To.Bare()); where != here {
		return false
	}
	r.order.take(r, after, func() { r.toActor(p, hops, after, nil) })
	return true
}

// ScreenStored asks the screens whether a recipient wants a message that is to be kept.
func (r *Router) ScreenStored(recipient jid.JID, p *stanza.Packet) Verdict {
	for _, screen := range r.reg.screenStored {
		if v := screen(r.state, recipient, p); v.drop {
			return v
		}
	}
	return Pass
}

// Err returns what the verdict tells the sender; nil if it may pass or is dropped silently.
func (v Verdict) Err() *stanza.Error { return v.err }

// Passes reports whether the stanza may go on.
func (v Verdict) Passes() bool { return !v.drop }

// Input returns the number of the stanza of the session that is being handled;
// the same one if another home handles it again.
func (at *Attached) Input() uint64 { return at.current }

// Sent says that a message of c's session is kept under that number: the
// features hear of it, and nothing that the session sends now overtakes it.
func (c *Ctx) Sent(p *stanza.Packet, number uint64) {
	if at := c.Session; at != nil {
		at.stored, at.lasting = max(at.stored, number), max(at.lasting, at.current)
	}
	c.sent(c, p)
}

// NodeOver reports whether the session ended because its node is down.
func (at *Attached) NodeOver() bool { return at.over }

// able reports whether the session gets messages to the account.
func (at *Attached) able() bool { return at.Presence != nil && at.Priority >= 0 }

// Able reports whether the session is available with priority 0 or more.
func (at *Attached) Able() bool { return at.able() }

// Offered returns the number up to which kept messages were offered to the session.
func (at *Attached) Offered() uint64 { return at.offered }

// SetOffered says that all kept messages up to number were offered to the session, or are not for it.
func (at *Attached) SetOffered(number uint64) { at.offered = max(at.offered, number) }

// Holds reports whether the session got a kept message before it was ready for messages to the account.
func (at *Attached) Holds(number uint64) bool { return at.given[number] }

// ready tells the features that a session gets messages to the account from now on.
func (a *Actor) ready(at *Attached) {
	for _, fn := range a.r.reg.onReady {
		fn(&at.ctx)
	}
}

// receiveStored hands a kept message to the sessions that it is for.
func (a *Actor) receiveStored(p *stanza.Packet) {
	c := &a.self
	a.from = p.From
	if !c.Wants(p) {
		return
	}
	var to []*Attached
	switch decide(p.Kind, p.MessageType(), a.target(p), a.presence()) {
	case doDeliver:
		if at := a.SessionByResource(p.To.Resource); !at.able() {
			to = a.giveEarly(at, p)
		} else if at.due(p.Number) {
			to = []*Attached{at}
		}
	case doAll:
		for _, at := range a.sessions {
			if at.due(p.Number) {
				to = append(to, at)
			}
		}
	}
	for _, at := range a.sessions {
		if at.due(p.Number) {
			at.offered = p.Number
		}
	}
	if len(to) > 0 {
		a.deliver(&a.self, p, to)
	}
}

// Wants asks the screens about a kept message once more: the sender's home may
// have been behind the log. One that is not wanted waits no longer, and its sender is told.
func (c *Ctx) Wants(p *stanza.Packet) bool {
	a := c.Actor
	if sameUser(p.From, a.user) {
		return true
	}
	for _, screen := range a.r.reg.screenIn {
		v := screen(c, p)
		if !v.drop {
			continue
		}
		a.r.count.screened.Add(1)
		a.r.taken(Taken{User: a.user, Numbers: []uint64{p.Number}})
		if v.err != nil {
			told := p.Clone()
			told.Number = 0
			a.r.bounce(told, v.err)
		}
		return false
	}
	return true
}

// due reports whether a session gets a kept message now: one with a backlog gets it in its turn.
func (at *Attached) due(number uint64) bool {
	return at.able() && at.offered < number && at.Mark(BacklogMark) == ""
}

// maxGiven is how many kept messages a session that is not ready may get and not confirm; more wait until it is ready.
const maxGiven = 256

// giveEarly notes a kept message for a session that is addressed but not ready.
func (a *Actor) giveEarly(at *Attached, p *stanza.Packet) []*Attached {
	if at.given[p.Number] || len(at.given) >= maxGiven {
		return nil
	}
	if at.given == nil {
		at.given = map[uint64]bool{}
	}
	at.given[p.Number] = true
	return []*Attached{at}
}

// singles are the numbers of the latest kept messages to one resource that a session got.
type singles struct {
	ring []uint64
	next int
}

// maxSingles is more than a client leaves unconfirmed. What is older is taken not to have come: twice is better than never.
const maxSingles = 64

func (g *singles) note(number uint64) {
	if len(g.ring) < maxSingles {
		g.ring = append(g.ring, number)
		return
	}
	g.ring[g.next] = number
	g.next = (g.next + 1) % maxSingles
}

func (g *singles) has(number uint64) bool { return slices.Contains(g.ring, number) }

// lostStored takes up a kept message that a session did not confirm. It waits
// in the log. If it was to the account, the others were offered it; one to
// that session alone goes to them now, as if the resource had not been there,
// except to those that found it in the inbox: the client may have come back
// before its earlier session, on a node that was hard to reach, gave it back.
func (a *Actor) lostStored(p *stanza.Packet) {
	if p.To.Resource == "" {
		return
	}
	var to []*Attached
	for _, at := range a.sessions {
		if at.able() && !at.given[p.Number] && !at.single.has(p.Number) {
			to = append(to, at)
		}
	}
	if len(to) > 0 {
		a.deliver(&a.self, p, to)
	}
}

// offerMissed lets the features offer the sessions what the feed did not show.
func (a *Actor) offerMissed() {
	if a.moved {
		return
	}
	for _, at := range a.Sessions() {
		if at.able() {
			a.missed(at)
		}
	}
}

// missed lets the features offer a session what it was not offered yet.
func (a *Actor) missed(at *Attached) {
	for _, fn := range a.r.reg.onMissed {
		fn(&at.ctx)
	}
}

// BacklogMark is the mark of a session for which more waits than it was
// offered: what it confirms makes the features offer more (OnMissed).
const BacklogMark = "backlog"

// Taken says that the client has these stanzas: kept messages, and errors for its own. It never blocks.
func (s *Session) Taken(ps []*stanza.Packet) {
	t := Taken{User: s.user}
	s.mu.Lock()
	if s.record != nil {
		t.Session, t.Claims = s.id, s.claims
	}
	s.mu.Unlock()
	heard := false
	for _, p := range ps {
		if p.Number != 0 {
			t.Numbers = append(t.Numbers, p.Number)
		} else if p.IsRefusal() {
			heard = s.heard(p) || heard
		}
	}
	if rec := s.r.reg.recorder; heard && rec != nil && t.Session != 0 {
		rec.Confirm(Progress{Session: t.Session, Claims: t.Claims, Refusals: s.refusals.list()}, func() {})
	}
	if len(t.Numbers) == 0 {
		return
	}
	s.r.taken(t)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.marks.m[BacklogMark] == "" || s.state != attached:
	case s.at != nil:
		at := s.at
		at.actor.post(event{call: func(a *Actor) { a.more(at) }})
	default:
		_ = s.r.links.Send(s.home, kindMore, appendUint64(nil, s.id), true)
	}
}

// Taken are kept messages that wait for a user no longer: a client has them, or nobody is to get them.
type Taken struct {
	User            jid.JID // bare
	Session, Claims uint64  // of the client's session, if that is on record
	Numbers         []uint64
}

// taken tells the features that kept messages wait no longer.
func (r *Router) taken(t Taken) {
	for _, fn := range r.reg.onTaken {
		fn(t)
	}
}

// more offers a session the next part of what waits.
func (a *Actor) more(at *Attached) {
	if !a.moved && !at.gone && at.Mark(BacklogMark) != "" && at.able() {
		a.missed(at)
	}
}

func (r *Router) takeMore(b []byte) error {
	s := &scanner{b: b}
	if at := r.remote.get(s.uint64()); at != nil && !s.bad {
		at.actor.post(event{call: func(a *Actor) { a.more(at) }})
	}
	return s.err()
}

// Keeper returns what writes to the message log, for what concerns nobody's input; nil if no message is kept.
func (r *Router) Keeper() Proposer { return r.keeper }
