package router

import (
	"time"

	"muster/router/stanza"
)

// Answers that wait for a session of the user that is known, and not attached.
const (
	owedFor = 10 * time.Second // longer than a node is isolated before the others take its users over
	maxOwed = 64               // of one actor; further ones are forgotten as before
)

// owed is an answer whose asker is not attached: the home was isolated and let
// go of the session, or has taken the user over before the session's node knew.
type owed struct {
	p       *stanza.Packet
	session uint64
	since   time.Time
}

// owes keeps an answer for a session that has a row, so that it will be attached again.
func (a *Actor) owes(p *stanza.Packet) bool {
	answer := p.Type == stanza.TypeError && p.Kind != stanza.KindPresence || p.Kind == stanza.KindIQ && p.Type == stanza.TypeResult
	if !answer || p.To.Resource == "" || len(a.owed) >= maxOwed || a.SessionByResource(p.To.Resource) != nil {
		return false
	}
	for _, row := range a.r.hot.Heads(a.user) {
		if row.Resource == p.To.Resource && !a.r.isOver(row.Node, row.Incarnation) {
			a.owed = append(a.owed, owed{p, row.Session, time.Now()})
			a.busy.Add(1)
			time.AfterFunc(owedFor, func() { a.post(event{call: (*Actor).forgetOwed}) })
			return true
		}
	}
	return false
}

// payOwed gives a session that was attached what waited for it.
func (a *Actor) payOwed(at *Attached) {
	rest := a.owed[:0:0]
	for _, o := range a.owed {
		if o.session != at.ID {
			rest = append(rest, o)
			continue
		}
		a.busy.Add(-1)
		a.Deliver(at, o.p)
	}
	a.owed = rest
}

// forgetOwed gives up what waited for too long.
func (a *Actor) forgetOwed() {
	for len(a.owed) > 0 && time.Since(a.owed[0].since) >= owedFor {
		a.owed = a.owed[1:]
		a.busy.Add(-1)
	}
}

// passOwed hands what waits to the user's next home.
func (a *Actor) passOwed() {
	list := a.owed
	a.owed = nil
	for _, o := range list {
		a.r.forward(o.p, 0, 0)
	}
}
