package router

import (
	"muster/fsm/cluster"
	"muster/internal/fault"
	"muster/internal/jid"
	"muster/router/stanza"
)

// RoutePacket routes a stanza from the server itself; errors come back to p.From.
func (r *Router) RoutePacket(p *stanza.Packet) { r.route(p, 0) }

// forward routes a stanza again that reached this node although it is not the home, or not any more.
// stored is the kept message that it must not overtake; 0: none.
func (r *Router) forward(p *stanza.Packet, hops uint8, stored uint64) {
	if hops >= maxHops {
		r.bounce(p, stanza.NewError(stanza.RecipientUnavailable, ""))
		return
	}
	r.count.forwarded.Add(1)
	if p.To.Local == "" || !r.IsLocalDomain(p.To.Domain) {
		r.route(p, hops+1)
		return
	}
	r.toActor(p, hops+1, dependency{stored: stored}, nil)
}

// route sends a stanza to the actor of its recipient.
func (r *Router) route(p *stanza.Packet, hops uint8) { r.routeAfter(p, hops, dependency{}, nil) }

// routeAfter is route for a stanza that must not overtake a row. via is the actor that routes it, if it is one.
func (r *Router) routeAfter(p *stanza.Packet, hops uint8, after dependency, via *Actor) {
	r.count.routed[p.Kind&3].Add(1)
	switch {
	case p.To.IsZero():
		r.count.ignored.Add(1)
	case !r.IsLocalDomain(p.To.Domain):
		r.refuse(p, stanza.RemoteServerNotFound) // other servers are not reached yet
	case p.To.Local == "":
		r.refuse(p, stanza.ServiceUnavailable) // requests to the domain were handled in the sender's actor
	default:
		r.routeToUser(p, hops, after, via)
	}
}

// refuse answers what must not vanish; presence is forgotten unless it asks for something.
func (r *Router) refuse(p *stanza.Packet, condition stanza.Condition) {
	if p.Kind == stanza.KindPresence && p.Type != "" && p.Type != stanza.TypeSubscribe || sameUser(p.From, p.To) {
		r.count.ignored.Add(1)
		return
	}
	if p.Kind == stanza.KindPresence && condition == stanza.ServiceUnavailable {
		r.count.ignored.Add(1)
		return
	}
	r.bounce(p, stanza.NewError(condition, ""))
}

func (r *Router) routeToUser(p *stanza.Packet, hops uint8, after dependency, via *Actor) {
	if after.stored != 0 && (r.order.size.Load() > 0 || !after.met(r)) && r.behind(p, hops, after) {
		return
	}
	r.toActor(p, hops, after, via)
}

// toActor gives a stanza to the recipient's actor, here or at the home.
func (r *Router) toActor(p *stanza.Packet, hops uint8, after dependency, via *Actor) {
	user := p.To.Bare()
	if home, ok := r.beyond(p); ok {
		_ = r.links.Send(home, kindRoute, appendRoute(0, hops, after, p), true) // congested: the sender's silence is all that is left
		return
	}
	if a := r.actors.get(user); a != nil && r.postStanza(a, p, hops, after.change, after.stored, via) {
		return
	}
	home, where := r.locate(user)
	switch where {
	case here:
		r.arrive(user, p, hops, after.change, after.stored, via)
	case elsewhere:
		if via != nil && via.sender != nil {
			via.sender.noteLive(home.Node)
		}
		err := r.hand(home.Node, kindRoute, appendRoute(max(home.Epoch, after.change), hops, after, p), p.Kind == stanza.KindIQ && !p.IsRequest())
		if err != nil {
			r.congested(p, err)
		}
	case nowhere:
		r.unreachable(p)
	case unknownUser:
		typ := p.Type
		if p.Kind == stanza.KindMessage {
			typ = p.MessageType()
		}
		if refuseUnknown(p.Kind, typ) {
			r.bounce(p, stanza.NewError(stanza.ServiceUnavailable, ""))
		}
	}
}

// beyond returns the home of the recipient of an answer that this node owes
// somebody on the other side while it is isolated: what came over a link
// before, or comes over one while the leader is still to be heard. The link
// keeps the answer until it is taken.
func (r *Router) beyond(p *stanza.Packet) (home uint32, ok bool) {
	if !r.isolated.Load() || p.Type != stanza.TypeError && (p.Kind != stanza.KindIQ || p.IsRequest()) {
		return 0, false
	}
	for _, s := range r.sessions.of(p.To.Bare()) {
		s.mu.Lock()
		resource := s.resource
		s.mu.Unlock()
		if resource == p.To.Resource {
			return 0, false
		}
	}
	a, known := r.homes.assignment(p.To.Bare())
	if !known {
		return 0, false
	}
	at, up := cluster.Resolve(a, r.homes.node)
	return at.Node, up && at.Node != r.node
}

// arrive gives a stanza to the user's actor on this node, which may find that the home is elsewhere.
func (r *Router) arrive(user jid.JID, p *stanza.Packet, hops uint8, epoch, stored uint64, via *Actor) {
	for !r.postStanza(r.actors.need(r, user, epoch), p, hops, epoch, stored, via) {
	}
}

// postStanza reports whether the actor took the stanza, or its sender was told that it is overloaded.
func (r *Router) postStanza(a *Actor, p *stanza.Packet, hops uint8, epoch, stored uint64, via *Actor) bool {
	done, start := a.enqueue(event{kind: eventRouted, p: p, hops: hops, epoch: epoch, seq: stored})
	if start {
		via.wakes(a)
	}
	switch done {
	case isDead:
		r.actors.remove(a)
		return false
	case refused:
		r.count.overloaded.Add(1)
		r.bounce(p, stanza.FromFault(fault.New(fault.Overloaded, "actor.post", a.user.String(), "the recipient is receiving too much; try again later")))
	}
	return true
}

// congested tells the sender that a link could not take a stanza.
func (r *Router) congested(p *stanza.Packet, err error) {
	r.count.overloaded.Add(1)
	r.logger.Debug("stanza_refused", "to", p.To, "error", err)
	r.bounce(p, stanza.FromFault(err))
}

// unreachable tells the sender that the recipient's nodes are down.
func (r *Router) unreachable(p *stanza.Packet) {
	if p.Kind == stanza.KindPresence {
		r.count.ignored.Add(1)
		return
	}
	r.bounce(p, stanza.NewError(stanza.RecipientUnavailable, ""))
}

// bounce answers a stanza with an error, where one may be sent.
func (r *Router) bounce(p *stanza.Packet, err *stanza.Error) {
	if p.From.IsZero() || p.From.Local == "" || p.Number != 0 {
		return // from the server itself, or kept: it waits in the log
	}
	reply := p.ErrorReply(err)
	if reply == nil {
		return
	}
	r.count.bounced.Add(1)
	r.route(reply, 0)
}

// Active runs fn in the user's actor if the user has one on this node, else it
// does nothing. It never blocks. If the user's actor is so far behind that it
// cannot take fn, its sessions are ended: what they know would be wrong.
func (r *Router) Active(user jid.JID, fn func(c *Ctx)) {
	if a := r.actors.get(user.Bare()); a != nil {
		a.post(event{call: func(a *Actor) { a.serve(fn) }})
	}
}

// Summon runs fn in the user's actor, made if need be, if this node is the
// user's home; else it returns Gone. Faults: NotFound for an unknown user, Overloaded.
func (r *Router) Summon(user jid.JID, fn func(c *Ctx)) error {
	user = user.Bare()
	for {
		switch _, where := r.locate(user); where {
		case unknownUser:
			return fault.New(fault.NotFound, "actor.summon", user.String(), "there is no such user")
		case nowhere, elsewhere:
			return fault.New(fault.Gone, "actor.summon", user.String(), "the user's home is another node")
		}
		a := r.actors.need(r, user, 0)
		switch a.post(event{call: func(a *Actor) { a.serve(fn) }}) {
		case posted:
			return nil
		case refused:
			return fault.New(fault.Overloaded, "actor.summon", user.String(), "too much is waiting for this user")
		}
		r.actors.remove(a)
	}
}

func (a *Actor) serve(fn func(c *Ctx)) {
	if !a.moved {
		a.from = jid.JID{}
		fn(&a.self)
	}
}
