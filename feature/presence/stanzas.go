package presence

import (
	blockstate "muster/feature/blocking/state"
	rosterstate "muster/feature/roster/state"
	"muster/fsm"
	"muster/internal/jid"
	"muster/router"
	"muster/router/stanza"
)

// out handles presence from one of the user's own clients.
func (f *Feature) out(c *router.Ctx, p *stanza.Packet) bool {
	if refusal := f.dispatch(c, p); refusal != nil {
		c.Reply(p.ErrorReply(refusal))
	}
	return true
}

func (f *Feature) dispatch(c *router.Ctx, p *stanza.Packet) *stanza.Error {
	switch p.Type {
	case "", stanza.TypeUnavailable:
		if _, refusal := check(p); refusal != nil {
			return refusal
		}
		if p.To.IsZero() {
			f.broadcast(c, p)
		} else {
			f.direct(c, p)
		}
	case stanza.TypeProbe, stanza.TypeError:
		if !p.To.IsZero() {
			c.Route(p)
		}
	default:
		typ, ok := rosterstate.ParseType(p.Type)
		if !ok || p.To.IsZero() {
			return stanza.NewError(stanza.BadRequest, "no such type of presence, or nobody to send it to")
		}
		f.subscription(c, p, typ)
	}
	return nil
}

// subscription writes a subscription stanza to the log; what it means for both
// sides comes back, and is passed on (RFC 6121 section 3).
func (f *Feature) subscription(c *router.Ctx, p *stanza.Packet, typ rosterstate.Type) {
	bare := p.Clone()
	bare.From, bare.To = c.User(), p.To.Bare()
	if bare.From == bare.To {
		return // everybody watches themselves
	}
	entry := rosterstate.SubscriptionEntry(rosterstate.Request{
		From: bare.From, To: bare.To, Type: typ, Payload: bare.AppendTo(nil),
		Blocked: blockstate.Blocked(blockstate.List(c.State(), bare.To), bare.From),
	})
	c.Propose(func(c *router.Ctx, res fsm.Result) {
		if res.Err != nil {
			c.Reply(p.ErrorReply(stanza.FromFault(res.Err)))
			return
		}
		outcome, err := rosterstate.DecodeOutcome(res.Value)
		if err != nil {
			c.Reply(p.ErrorReply(stanza.FromFault(err)))
			return
		}
		for _, s := range outcome.Stanzas {
			c.RouteChange(passed(s, bare), res.Index)
		}
	}, entry)
}

// passed is the stanza to pass on: the client's own with all that is in it, or one of the server's.
func passed(s rosterstate.Stanza, own *stanza.Packet) *stanza.Packet {
	if !s.Auto {
		return own
	}
	return stanza.WithInner(stanza.KindPresence, s.Type.String(), "", s.From, s.To, nil)
}

// request is a kept subscription request as it came, or a plain one if it was too large to keep.
func request(item rosterstate.Item, to jid.JID) *stanza.Packet {
	if p, err := stanza.ParsePacket(item.Request); err == nil && p.Kind == stanza.KindPresence && p.Type == stanza.TypeSubscribe {
		p.From, p.To = item.Contact, to
		return p
	}
	return stanza.WithInner(stanza.KindPresence, stanza.TypeSubscribe, "", item.Contact, to, nil)
}

// in handles presence that is addressed to the user. Subscription stanzas come
// from the log's outcome only: the sender's actor makes no others.
func (f *Feature) in(c *router.Ctx, p *stanza.Packet) bool {
	if p.Type == stanza.TypeProbe {
		f.probed(c, p)
		return true
	}
	typ, ok := rosterstate.ParseType(p.Type)
	if !ok {
		return false // plain, unavailable, error: the router's table
	}
	for _, at := range c.Sessions() {
		if at.Available() || typ != rosterstate.Subscribe && at.Mark("interested") != "" {
			c.Deliver(at, p)
		}
	}
	return true
}

// probed answers who asks for the user's presence (RFC 6121 section 4.3). Who
// may not see it hears nothing: as if the user did not exist.
func (f *Feature) probed(c *router.Ctx, p *stanza.Packet) {
	asker := p.From
	_, shown := f.audience.shows(c.User(), asker.Bare())
	if !shown && asker.Bare() != c.User() {
		if at := sentTo(c, asker); at != nil {
			f.answerDirected(c, at, asker)
		}
		return
	}
	rows := c.Router().Hot().Rows(c.User())
	for i := range rows {
		if p.To.IsBare() || p.To.Resource == rows[i].Resource {
			c.Route(current(&rows[i], asker))
		}
	}
}

// answerDirected answers a recipient of directed presence: that session is there.
func (f *Feature) answerDirected(c *router.Ctx, at *router.Attached, to jid.JID) {
	answer := &stanza.Packet{Kind: stanza.KindPresence}
	if at.Presence != nil {
		answer = at.Presence.Clone()
	}
	answer.From, answer.To = at.JID, to
	c.Route(answer)
}
