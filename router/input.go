package router

import (
	"slices"

	"muster/internal/jid"
	"muster/router/stanza"
)

// input takes one stanza, or the end, of an own session. It waits while the session is held.
func (a *Actor) input(e *event) {
	at := e.at
	if a.moved {
		return // its session's node gives it to the new home
	}
	at.ending = at.ending || e.end != nil
	if e.end != nil && e.end.elsewhere {
		at.done = max(at.done, e.end.done) // what waits here was handled there
		a.unpublished(at)
	}
	if at.held > 0 || len(at.pending) > 0 {
		at.pending = append(at.pending, *e)
		return
	}
	a.take(e)
}

// take handles an input that need not wait.
func (a *Actor) take(e *event) {
	at := e.at
	if e.end != nil {
		a.unbind(at, e.end)
		return
	}
	if e.seq <= at.done || at.replaced {
		return // handled already, before the session was attached again; or its client sends it again
	}
	at.current, at.ordinal = e.seq, 0
	if e.p == nil { // the edge has answered it
		a.finishInput(at)
		return
	}
	a.from, a.sender = at.JID, at
	defer func() {
		a.sender = nil
		if at.held == 0 {
			a.finishInput(at)
		}
	}()
	if at.gone && e.p.Kind != stanza.KindMessage {
		return // its answer would reach the session that took the resource
	}
	a.send(&at.ctx, e.p)
}

// finishInput counts the present input as handled.
func (a *Actor) finishInput(at *Attached) {
	if at.current == 0 || at.detached || at.replaced {
		return
	}
	at.done, at.current = max(at.done, at.current), 0
	a.credits = append(a.credits, at)
}

// release lets the input of a session go on when what it waited for is done.
func (a *Actor) release(at *Attached) {
	if at.held--; at.held > 0 {
		return
	}
	if at.detached {
		at.pending = nil // the session gives it to its next home
		return
	}
	a.finishInput(at)
	for len(at.pending) > 0 && at.held == 0 {
		e := at.pending[0]
		at.pending = at.pending[1:]
		a.takeGuarded(&e)
	}
}

func (a *Actor) takeGuarded(e *event) {
	defer a.recovered(e)
	a.take(e)
}

// send handles one stanza from an own client.
func (a *Actor) send(c *Ctx, p *stanza.Packet) {
	at := c.Session
	if p.From != at.JID { // edges stamp it; whatever they did, nobody speaks for another
		p = p.Clone()
		p.From = at.JID
	}
	for _, screen := range a.r.reg.screenOut {
		if err := screen(c, p); err != nil {
			a.r.count.screened.Add(1)
			if p.Kind != stanza.KindPresence {
				a.Reply(p.ErrorReply(err))
			}
			return
		}
	}
	switch p.Kind {
	case stanza.KindMessage:
		a.sendMessage(c, p)
	case stanza.KindPresence:
		a.sendPresence(c, p)
	case stanza.KindIQ:
		a.sendIQ(c, p)
	}
}

func (a *Actor) sendMessage(c *Ctx, p *stanza.Packet) {
	if p.To.IsZero() { // RFC 6120 section 10.3.1: as if to the own account
		p = p.Clone()
		p.To = a.user
	}
	if a.ReadOnly() && c.Session.current > c.Session.sent { // what went to another home before may be kept
		a.Reply(p.ErrorReply(stanza.FromFault(isolatedFault("message.send", a.user))))
		return
	}
	for _, fn := range a.r.reg.messageSend {
		if fn(c, p) {
			return
		}
	}
	a.Route(p)
	a.sent(c, p)
}

// sent tells the features of a message that is on its way.
func (a *Actor) sent(c *Ctx, p *stanza.Packet) {
	for _, fn := range a.r.reg.messageOut {
		fn(c, p)
	}
}

func (a *Actor) sendPresence(c *Ctx, p *stanza.Packet) {
	for _, fn := range a.r.reg.presenceOut {
		if fn(c, p) {
			return
		}
	}
	switch {
	case !p.To.IsZero():
		a.Route(p)
	case p.Type == "" || p.Type == stanza.TypeUnavailable:
		a.Publish(c.Session, p)
	}
}

func (a *Actor) sendIQ(c *Ctx, p *stanza.Packet) {
	scope, mine := Account, p.To.IsZero() || p.To == a.user
	if !mine && p.To.IsDomain() && a.r.IsLocalDomain(p.To.Domain) {
		scope, mine = Domain, true
	}
	if mine {
		if p.To.IsZero() {
			p = p.Clone() // the answer comes from the own account
			p.To = a.user
		}
		a.answer(c, scope, p)
		return
	}
	if stanza.NeverRelayed(p) {
		a.Reply(p.ErrorReply(stanza.NewError(stanza.Forbidden, "")))
		return
	}
	if a.ReadOnly() && a.r.actors.get(p.To.Bare()) == nil {
		a.Reply(p.ErrorReply(stanza.FromFault(isolatedFault("iq.send", a.user))))
		return
	}
	a.Route(p)
}

// answer gives a request to the server to its handler. Results and errors are nobody's: a push is not waited for.
func (a *Actor) answer(c *Ctx, scope Scope, p *stanza.Packet) {
	if !p.IsRequest() {
		return
	}
	payload, ok := p.Payload()
	if !ok {
		a.Reply(p.ErrorReply(stanza.NewError(stanza.BadRequest, "")))
		return
	}
	if h := a.r.reg.iq[iqKey{scope, payload.Space, payload.Local}]; h != nil {
		h(c, p)
		return
	}
	a.Reply(p.ErrorReply(stanza.NewError(stanza.ServiceUnavailable, "")))
}

// unbind ends a session for good: its node hears no more of it.
func (a *Actor) unbind(at *Attached, u *unbinding) {
	if !at.gone {
		a.part(at, u.clean)
	}
	a.r.remote.remove(at)
	for _, p := range slices.Concat(at.missed, u.undelivered, at.aside) {
		if !at.replaced || p.Number == 0 { // else it was offered where the session is now
			a.undelivered(p)
		}
	}
	if at.session != nil {
		at.session.finish()
	} else {
		a.r.toSession(at, kindRelease, nil)
	}
}

// part takes a session off the actor and tells the features; then its row goes.
func (a *Actor) part(at *Attached, clean bool) {
	a.remove(at)
	for _, fn := range a.r.reg.onUnbind {
		fn(&at.ctx, clean)
	}
	a.Publish(at, nil)
	at.gone = true
}

// undelivered takes up a stanza that a session could not take: as if its resource were not available.
func (a *Actor) undelivered(p *stanza.Packet) {
	a.from = p.From
	switch p.Kind {
	case stanza.KindMessage:
		if p.Number != 0 {
			a.lostStored(p)
			return
		}
		if sameUser(p.From, a.user) && (p.Has(stanza.NSCarbons, "")) {
			return // a copy: the original goes its own way
		}
		a.lostMessage(p)
	case stanza.KindIQ:
		if p.IsRequest() {
			a.r.bounce(p, stanza.NewError(stanza.ServiceUnavailable, ""))
		}
	}
}

func sameUser(a, b jid.JID) bool { return a.Local == b.Local && a.Domain == b.Domain }
