package router

import (
	"muster/router/stanza"
)

// receive handles a stanza for this user.
func (a *Actor) receive(p *stanza.Packet) {
	c := &a.self
	own := sameUser(p.From, a.user)
	if !own {
		if a.ReadOnly() && p.Kind == stanza.KindMessage && p.Type != stanza.TypeError {
			a.r.bounce(p, stanza.FromFault(isolatedFault("message.receive", a.user)))
			return
		}
		for _, screen := range a.r.reg.screenIn {
			if v := screen(c, p); v.drop {
				a.r.count.screened.Add(1)
				if v.err != nil {
					a.r.bounce(p, v.err)
				}
				return
			}
		}
	}
	if p.Kind == stanza.KindPresence {
		for _, fn := range a.r.reg.presenceIn {
			if fn(c, p) {
				return
			}
		}
	}
	if a.owes(p) {
		return
	}
	typ := p.Type
	if p.Kind == stanza.KindMessage {
		typ = p.MessageType()
	}
	a.perform(c, p, decide(p.Kind, typ, a.target(p), a.presence()))
}

func (a *Actor) target(p *stanza.Packet) target {
	switch {
	case p.To.Resource == "":
		return targetBare
	case a.SessionByResource(p.To.Resource) != nil:
		return targetSession
	}
	return targetMissing
}

// presence sums up the sessions.
func (a *Actor) presence() presenceState {
	have := stateNone
	for _, at := range a.sessions {
		switch {
		case at.Presence == nil:
		case at.Priority >= 0:
			return stateReady
		default:
			have = stateNegative
		}
	}
	return have
}

// eligible returns the available sessions of priority 0 or more.
func (a *Actor) eligible() []*Attached {
	var out []*Attached
	for _, at := range a.sessions {
		if at.able() {
			out = append(out, at)
		}
	}
	return out
}

func (a *Actor) available() []*Attached {
	var out []*Attached
	for _, at := range a.sessions {
		if at.Presence != nil {
			out = append(out, at)
		}
	}
	return out
}

func (a *Actor) perform(c *Ctx, p *stanza.Packet, do action) {
	if p.Kind == stanza.KindMessage && (do == doDeliver || do == doAll || do == doStore) {
		for _, fn := range a.r.reg.messageReceive {
			if fn(c, p) {
				return
			}
		}
	}
	switch do {
	case doIgnore:
		a.r.count.ignored.Add(1)
	case doAnswer:
		a.answer(c, Account, p)
	case doDeliver:
		a.deliver(c, p, []*Attached{a.SessionByResource(p.To.Resource)})
	case doAll:
		to := a.eligible()
		if p.Kind == stanza.KindMessage {
			a.recent.note(p, a.bound, len(to))
		}
		a.deliver(c, p, to)
	case doEvery:
		a.deliver(c, p, a.available())
	case doStore:
		for _, fn := range a.r.reg.undeliverable {
			if fn(c, p) {
				return
			}
		}
		a.r.bounce(p, stanza.NewError(stanza.ServiceUnavailable, ""))
	case doRefuse:
		a.r.bounce(p, stanza.NewError(stanza.ServiceUnavailable, ""))
	}
}

// deliver sends a stanza to sessions, once to each, and tells the features of a message.
func (a *Actor) deliver(c *Ctx, p *stanza.Packet, to []*Attached) {
	for _, at := range to {
		a.Deliver(at, p)
	}
	if p.Kind == stanza.KindMessage {
		for _, fn := range a.r.reg.messageIn {
			fn(c, p, to)
		}
	}
}
