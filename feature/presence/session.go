package presence

import (
	"slices"
	"time"

	"muster/feature/blocking/state"
	rosterstate "muster/feature/roster/state"
	"muster/internal/jid"
	"muster/router"
	"muster/router/hot"
	"muster/router/stanza"
)

// held is a session's rate of presence, and its latest presence that waits for the window to end.
type held struct {
	meter
	waiting *stanza.Packet
}

type heldKey struct{}

func heldOf(at *router.Attached) *held {
	h, _ := at.Data(heldKey{}).(*held)
	if h == nil {
		h = &held{}
		at.SetData(heldKey{}, h)
	}
	return h
}

// broadcast handles presence without an addressee (RFC 6121 sections 4.2, 4.4 and 4.5).
func (f *Feature) broadcast(c *router.Ctx, p *stanza.Packet) {
	h := heldOf(c.Session)
	if p.Type == stanza.TypeUnavailable {
		h.hold(c, nil)
		f.leave(c, p)
		return
	}
	wait := h.take(time.Now())
	if wait == 0 {
		h.hold(c, nil)
		f.publish(c, p)
		return
	}
	if h.waiting == nil { // else the timer runs already
		f.publishLater(c, wait)
	}
	h.hold(c, p)
}

// heldMark is the mark that carries a presence that waits to the session's next home.
const heldMark = "presence-held"

// hold keeps a presence that waits, or for nil forgets it.
func (h *held) hold(c *router.Ctx, p *stanza.Packet) {
	if p == nil && h.waiting == nil {
		return
	}
	h.waiting = p
	text := ""
	if p != nil {
		text = string(p.AppendTo(nil))
	}
	_ = c.SetMark(c.Session, heldMark, text) // beyond the bounds of marks it is lost only if the home moves now
}

// takeHeld publishes what waited when the session's home moved here.
func (f *Feature) takeHeld(c *router.Ctx) {
	text := c.Session.Mark(heldMark)
	if text == "" {
		return
	}
	_ = c.SetMark(c.Session, heldMark, "")
	if p, err := stanza.ParsePacket([]byte(text)); err == nil {
		f.publish(c, p)
	}
}

// publishLater publishes what the session then holds back.
func (f *Feature) publishLater(c *router.Ctx, wait time.Duration) {
	r, user, resource, id := c.Router(), c.User(), c.Session.JID.Resource, c.Session.ID
	time.AfterFunc(wait, func() {
		r.Active(user, func(c *router.Ctx) {
			at := c.SessionByResource(resource)
			if at == nil || at.ID != id {
				return
			}
			if h := heldOf(at); h.waiting != nil {
				own := &router.Ctx{Actor: c.Actor, Session: at}
				p := h.waiting
				h.hold(own, nil)
				h.take(time.Now())
				f.publish(own, p)
			}
		})
	})
}

// publish makes p the session's presence. The first one also tells the client who is there.
func (f *Feature) publish(c *router.Ctx, p *stanza.Packet) {
	first := !c.Session.Available()
	c.Publish(c.Session, p)
	if first {
		f.greet(c)
	}
}

// greet gives a client that became available the presence of the user's other
// clients and of its contacts, and the requests that wait for an answer
// (RFC 6121 sections 4.2.2 and 3.1.3).
func (f *Feature) greet(c *router.Ctx) {
	f.showOwn(c)
	f.showContacts(c)
	for _, item := range rosterstate.Pending(c.State(), c.User()) {
		c.Deliver(c.Session, request(item, c.User()))
	}
}

// showOwn goes by the rows, as all that comes after it does: another client of
// the user may still be attached to an earlier home.
func (f *Feature) showOwn(c *router.Ctx) {
	rows := c.Router().Hot().Rows(c.User())
	for i := range rows {
		if rows[i].Resource == c.Session.JID.Resource {
			continue
		}
		p := newNotice(rows[i].User, rows[i].Resource, &rows[i], nil).stanza
		p.To = c.Session.JID
		c.Deliver(c.Session, p)
	}
}

func (f *Feature) showContacts(c *router.Ctx) {
	store := c.Router().Hot()
	for _, item := range rosterstate.Items(c.State(), c.User()) {
		if !item.Sub.HasTo() || !store.Online(item.Contact) {
			continue
		}
		if circle, ok := f.audience.shows(item.Contact, c.User()); ok {
			introduce(c, c.Session, circle, store.Rows(item.Contact))
		}
	}
}

// leave makes the session unavailable; p, the client's own word for it, may be nil.
func (f *Feature) leave(c *router.Ctx, p *stanza.Packet) {
	f.partDirected(c, p)
	c.Publish(c.Session, p)
}

// bound repairs what a client believes after its user's home moved: nobody may
// have told it of changes meanwhile.
func (f *Feature) bound(c *router.Ctx) {
	if !c.Session.Reattached() {
		return
	}
	if c.Session.Available() {
		f.repair(c)
	}
	f.takeHeld(c)
}

func (f *Feature) repair(c *router.Ctx) {
	f.greet(c)
	store := c.Router().Hot()
	for _, item := range rosterstate.Items(c.State(), c.User()) {
		if !item.Sub.HasTo() {
			continue
		}
		if _, ok := f.audience.shows(item.Contact, c.User()); !ok {
			continue
		}
		for _, gone := range sinceBound(c.Session, store.Recent(item.Contact)) {
			if !blocks(c, item.Contact.WithResource(gone.Resource)) {
				f.hideOnce(c, item.Contact, gone.Resource)
			}
		}
	}
	for _, gone := range sinceBound(c.Session, store.Recent(c.User())) {
		f.hideOnce(c, c.User(), gone.Resource)
	}
}

// sinceBound leaves out what vanished before there was the session: its client never saw that.
func sinceBound(at *router.Attached, gone []hot.Gone) []hot.Gone {
	return slices.DeleteFunc(gone, func(g hot.Gone) bool { return g.At.Before(at.Began()) })
}

// moved tells a client whose home is now on a node that started a moment ago
// of the rows that vanished lately: the home cannot know of those before its
// start, and this node does.
func (f *Feature) moved(m *router.Moved) {
	r, me := f.reg.Router(), m.Session().Bare()
	own := state.List(r.State(), me)
	for _, item := range rosterstate.Items(r.State(), me) {
		if !item.Sub.HasTo() {
			continue
		}
		gone := missed(m, item.Contact)
		if len(gone) == 0 {
			continue
		}
		if _, ok := f.audience.shows(item.Contact, me); !ok {
			continue
		}
		for _, g := range gone {
			if from := item.Contact.WithResource(g.Resource); !state.Blocked(own, from) {
				m.Deliver(stanza.WithInner(stanza.KindPresence, stanza.TypeUnavailable, "", from, me, nil))
			}
		}
	}
	for _, g := range missed(m, me) {
		m.Deliver(stanza.WithInner(stanza.KindPresence, stanza.TypeUnavailable, "", me.WithResource(g.Resource), me, nil))
	}
}

// missed are the rows of a user that vanished before the new home could learn of it, and while there was the session;
// of later ones the home tells the client itself.
func missed(m *router.Moved, user jid.JID) []hot.Gone {
	gone := m.Router().Hot().Recent(user)
	began := m.Began()
	return slices.DeleteFunc(gone, func(g hot.Gone) bool { return g.At.After(m.Before()) || g.At.Before(began) })
}

// farewells are the resources that a client was told are gone when its home
// moved here. The change of the row may be on its way to this actor too.
type farewells map[jid.JID]bool

type farewellsKey struct{}

// hideOnce is hide, and the same that comes with the row's change is dropped.
func (f *Feature) hideOnce(c *router.Ctx, subject jid.JID, resource string) {
	told, _ := c.Session.Data(farewellsKey{}).(farewells)
	if told == nil {
		told = farewells{}
		c.Session.SetData(farewellsKey{}, told)
	}
	told[subject.WithResource(resource)] = true
	hide(c, c.Session, subject, resource)
}

// toldAlready reports whether what is to be shown of a resource is an
// unavailable that hideOnce told. Whatever is shown ends that memory.
func toldAlready(at *router.Attached, from jid.JID, typ string) bool {
	told, _ := at.Data(farewellsKey{}).(farewells)
	if !told[from] {
		return false
	}
	delete(told, from)
	return typ == stanza.TypeUnavailable
}

// unbound parts from whom the session sent directed presence; its row is the router's to remove.
func (f *Feature) unbound(c *router.Ctx, _ bool) { f.partDirected(c, nil) }
