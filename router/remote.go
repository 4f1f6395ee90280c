package router

import (
	"sync"

	"muster/internal/fault"
	"muster/internal/jid"
	"muster/router/link"
	"muster/router/stanza"
)

// remotes finds the attached sessions of this node's actors by number; that is how frames name them.
type remotes struct {
	mu sync.RWMutex
	m  map[uint64]*Attached
}

func (rs *remotes) add(at *Attached) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.m[at.ID] = at
}

func (rs *remotes) get(id uint64) *Attached {
	rs.mu.RLock()
	defer rs.mu.RUnlock()
	return rs.m[id]
}

func (rs *remotes) remove(at *Attached) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.m[at.ID] == at {
		delete(rs.m, at.ID)
	}
}

func (rs *remotes) of(node uint32) []*Attached {
	rs.mu.RLock()
	defer rs.mu.RUnlock()
	var out []*Attached
	for _, at := range rs.m {
		if at.Node == node {
			out = append(out, at)
		}
	}
	return out
}

// hand sends a frame to a node. If the log has said meanwhile that the node is
// down, its channel was reset before the frame was on it: then it is reset once
// more, so that the frame comes back through Lost and does not lie there until
// the node returns. A later incarnation, which this node's log does not know
// yet, takes frames like any other.
func (r *Router) hand(node uint32, kind byte, payload []byte, urgent bool) error {
	err := r.links.Send(node, kind, payload, urgent)
	if err == nil && !r.lives(node) {
		r.feed.put(feedItem{call: func() { r.links.Reset(node) }})
	}
	return err
}

// toSession sends a frame about a session to its node.
func (r *Router) toSession(at *Attached, kind byte, body []byte) {
	if at.over {
		return // a later incarnation of the node would take it for news of the session as it is then
	}
	b := append(appendUint64(make([]byte, 0, 8+len(body)), at.ID), body...)
	if err := r.hand(at.Node, kind, b, true); err != nil {
		r.logger.Debug("session_frame_lost", "session", at.JID, "error", err) // the link is reset: the session attaches again
		if kind == kindDeliver {
			at.keep(body)
		}
	}
}

// keep sets a stanza aside that cannot be sent now: until the session is attached again, or is over.
func (at *Attached) keep(packet []byte) {
	p, err := stanza.DecodeBinary(packet)
	switch {
	case err != nil:
	case len(at.aside) < MaxMailbox:
		at.aside = append(at.aside, p)
	default:
		at.actor.r.unreachable(p)
	}
}

// endAttached ends a session from its actor: its place is free at once.
func (r *Router) endAttached(at *Attached, cond stanza.StreamCondition, text string) {
	if at.gone {
		return
	}
	at.actor.part(at, false)
	if at.session != nil {
		at.session.terminate(cond, text)
		return
	}
	r.toSession(at, kindEnd, appendText(appendText(nil, string(cond)), text))
}

// EndSessions ends a user's sessions, wherever they are: the one with that resource, or all if it is "".
func (r *Router) EndSessions(user jid.JID, resource string, cond stanza.StreamCondition, text string) {
	user = user.Bare()
	home, where := r.locate(user)
	if where == elsewhere {
		b := appendText(appendText(nil, user.String()), resource)
		_ = r.links.Send(home.Node, kindEndUser, appendText(appendText(b, string(cond)), text), true)
		return
	}
	if a := r.actors.get(user); a != nil {
		a.post(event{call: func(a *Actor) { a.endSessions(resource, cond, text) }})
		return
	}
	for _, s := range r.sessions.of(user) { // a user without a home: deleted, or the nodes are down
		if resource == "" || s.full.Resource == resource {
			s.discard(cond, text)
		}
	}
}

func (a *Actor) endSessions(resource string, cond stanza.StreamCondition, text string) {
	for _, at := range a.Sessions() {
		if resource == "" || at.JID.Resource == resource {
			a.r.endAttached(at, cond, text)
		}
	}
}

// sendAttachAnswer answers a session of another node.
func (r *Router) sendAttachAnswer(req *attachment, at *Attached, err error) {
	b := appendUint64(appendUint64(nil, req.id), uint64(req.attempt))
	b = append(b, byte(fault.CodeOf(err)))
	if err != nil {
		var done uint64 // one more than a session that is no more had handled; 0: it is not known
		if l := known(err); l.Known {
			done = l.Handled + 1
		}
		b = appendText(appendUint64(b, done), fault.Public(err))
	} else {
		b = appendText(appendUint64(b, at.done), at.JID.Resource)
	}
	_ = r.links.Send(req.node, kindAttached, b, true)
}

// giveBack takes up a stanza whose session on this node is no more: the user's actor decides.
func (r *Router) giveBack(user jid.JID, p *stanza.Packet) {
	home, where := r.locate(user)
	switch where {
	case here:
		for {
			a := r.actors.need(r, user, 0)
			if a.post(event{call: func(a *Actor) { a.undelivered(p) }}) == posted {
				return
			}
			if r.actors.get(user) == a {
				break // overrun: its sessions are being ended
			}
		}
	case elsewhere:
		if r.hand(home.Node, kindReturn, stanza.AppendBinary(appendText(nil, user.String()), p), true) == nil {
			return
		}
	}
	r.unreachable(p)
}

func (r *Router) giveBackAll(user jid.JID, ps []*stanza.Packet) {
	for _, p := range ps {
		r.giveBack(user, p)
	}
}

// returned is giveBack for an encoded packet.
func (r *Router) returned(user jid.JID, b []byte) {
	if p, err := stanza.DecodeBinary(b); err == nil {
		r.giveBack(user, p)
	}
}

// Lost implements link.Handler: a channel was reset. What was under way to the
// peer is taken up again, and sessions whose home the peer is attach anew.
func (r *Router) Lost(peer uint32, frames []link.Frame) {
	r.hot.Unsubscribe(peer)
	r.count.resets.Add(1)
	for _, s := range r.sessions.all() {
		s.lost(peer)
	}
	for _, f := range frames {
		r.retake(peer, f)
	}
}

// lost attaches the session anew if its home is, or was to be, that node.
func (s *Session) lost(peer uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.home == peer && (s.state == attached || s.state == attaching) {
		s.attach()
	}
}

// retake takes up a frame that a peer may not have received.
func (r *Router) retake(peer uint32, f link.Frame) {
	switch f.Kind {
	case kindRoute:
		if _, hops, after, p, err := parseRoute(f.Payload); err == nil {
			r.forward(p, hops, after.stored)
		}
	case kindReturn:
		s := &scanner{b: f.Payload}
		if user := s.user(); s.err() == nil {
			r.returned(user, s.b)
		}
	case kindEndUser:
		r.endUser(f.Payload)
	case kindDeliver:
		s := &scanner{b: f.Payload}
		r.redeliver(peer, s.uint64(), f, s.b)
	case kindAttached, kindCredit, kindPublish, kindMark, kindEnd, kindRelease, kindHeard:
		if r.lives(peer) {
			_ = r.links.Send(peer, f.Kind, f.Payload, true) // the same process goes on with a new channel
		}
	}
}

// redeliver sends a stanza to a session again, or takes it up if its node is gone.
func (r *Router) redeliver(peer uint32, id uint64, f link.Frame, packet []byte) {
	at := r.remote.get(id)
	switch {
	case at != nil && r.lives(peer):
		_ = r.links.Send(peer, f.Kind, f.Payload, true)
	case at != nil:
		r.returned(at.actor.user, packet)
	default:
		if p, err := stanza.DecodeBinary(packet); err == nil && p.To.Local != "" {
			r.giveBack(p.To.Bare(), p)
		}
	}
}

// alive reports whether the log says that a node is up.
func (r *Router) alive(node uint32) bool {
	n, ok := r.homes.node(node)
	return ok && n.Up
}

// lives reports whether a node is up: by the log, or because it has greeted
// this node in a later incarnation than the log says is over.
func (r *Router) lives(node uint32) bool {
	n, ok := r.homes.node(node)
	return ok && (n.Up || r.greeted.of(node) > n.Incarnation)
}

// greetings are the incarnations in which the other nodes greeted this one last.
type greetings struct {
	mu sync.Mutex
	m  map[uint32]uint64
}

func (g *greetings) note(node uint32, incarnation uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.m == nil {
		g.m = map[uint32]uint64{}
	}
	g.m[node] = incarnation
}

// of returns a node's incarnation; 0: it has not greeted this one.
func (g *greetings) of(node uint32) uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.m[node]
}

func (r *Router) endUser(b []byte) {
	s := &scanner{b: b}
	user, resource := s.user(), s.text()
	cond, text := s.text(), s.text()
	if s.err() == nil {
		r.EndSessions(user, resource, stanza.StreamCondition(cond), text)
	}
}
