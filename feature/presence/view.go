package presence

import (
	"slices"
	"time"

	"muster/feature/blocking/state"
	rosterstate "muster/feature/roster/state"
	"muster/fsm"
	"muster/fsm/user"
	"muster/internal/jid"
	"muster/router"
	"muster/router/hot"
	"muster/router/stanza"
)

// rosterChanged shows or hides the roster owner's presence to a contact that
// gained or lost the right to it.
func (f *Feature) rosterChanged(ch fsm.Change) {
	subject, before, after, _ := rosterstate.DecodeChange(ch)
	had := before != nil && before.Sub.HasFrom()
	has := after != nil && after.Sub.HasFrom()
	if had == has {
		return
	}
	f.audience.forget(subject)
	watcher := contactOf(before, after)
	f.reg.Router().Active(watcher, func(c *router.Ctx) { f.review(c, subject, has) })
}

func contactOf(before, after *rosterstate.Item) jid.JID {
	if after != nil {
		return after.Contact
	}
	return before.Contact
}

// blockingChanged hides the owner's presence from whom it blocks, and after an
// unblocking shows both sides to each other again (XEP-0191 section 3).
func (f *Feature) blockingChanged(ch fsm.Change) {
	owner, blocked, added, _ := state.DecodeChange(ch)
	f.audience.forget(owner)
	r := f.reg.Router()
	r.Active(owner, func(c *router.Ctx) {
		blocklistOf(c).loaded = false
		if !added {
			f.reviewContacts(c, blocked)
		}
	})
	for _, item := range rosterstate.Items(r.State(), owner) {
		if item.Sub.HasFrom() && matches(blocked, item.Contact) {
			r.Active(item.Contact, func(c *router.Ctx) { f.review(c, owner, !added) })
		}
	}
}

// matches reports whether an entry of a blocking list concerns a contact: its address, a resource of it, or its domain.
func matches(blocked, contact jid.JID) bool {
	return blocked.Domain == contact.Domain && (blocked.Local == "" || blocked.Local == contact.Local)
}

// reviewContacts shows the user those contacts again that an unblocked address stands for.
func (f *Feature) reviewContacts(c *router.Ctx, unblocked jid.JID) {
	for _, item := range rosterstate.Items(c.State(), c.User()) {
		if item.Sub.HasTo() && matches(unblocked, item.Contact) {
			f.review(c, item.Contact, true)
		}
	}
}

// userChanged forgets who watches a user that came, went or was given or denied presence.
func (f *Feature) userChanged(ch fsm.Change) {
	name, before, after, _ := user.DecodeChange(ch)
	had, has := before != nil && before.Presence, after != nil && after.Presence
	subject, err := jid.Parse(name)
	if had == has || err != nil {
		return
	}
	f.audience.forget(subject)
	r := f.reg.Router()
	for _, item := range rosterstate.Items(r.State(), subject) {
		if item.Sub.HasFrom() {
			r.Active(item.Contact, func(c *router.Ctx) { f.review(c, subject, has) })
		}
	}
}

// review tells the actor's available clients what they should now believe of a
// subject: its present rows if it is shown, else that each of them is gone. A
// row that ended while the watcher had lost its right, and the change feed had
// not come to that yet, counts as gone too.
func (f *Feature) review(c *router.Ctx, subject jid.JID, shown bool) {
	store := c.Router().Hot()
	rows := store.Rows(subject)
	if shown {
		if circle, ok := f.audience.shows(subject, c.User()); ok {
			forAvailable(c, func(at *router.Attached) { introduce(c, at, circle, rows) })
		}
		return
	}
	gone := f.audience.unheard(subject, c.User(), store.Recent(subject))
	for i := range rows {
		if !slices.Contains(gone, rows[i].Resource) {
			gone = append(gone, rows[i].Resource)
		}
	}
	for _, resource := range gone {
		forAvailable(c, func(at *router.Attached) { hide(c, at, subject, resource) })
	}
}

func forAvailable(c *router.Ctx, fn func(at *router.Attached)) {
	for _, at := range c.Sessions() {
		if at.Available() {
			fn(at)
		}
	}
}

// introduce gives one client the present rows of a subject that shows itself to it.
func introduce(c *router.Ctx, at *router.Attached, circle *circle, rows []hot.Row) {
	for i := range rows {
		from := rows[i].User.WithResource(rows[i].Resource)
		if !blocks(c, from) && !state.Blocked(circle.blocked, at.JID) {
			c.Deliver(at, current(&rows[i], at.JID))
		}
	}
}

func hide(c *router.Ctx, at *router.Attached, subject jid.JID, resource string) {
	c.Deliver(at, stanza.WithInner(stanza.KindPresence, stanza.TypeUnavailable, "", subject.WithResource(resource), c.User(), nil))
}

// current is a row's presence as an answer to who asks for it: the stanza as
// it was sent, with the time when it was (XEP-0203).
func current(row *hot.Row, to jid.JID) *stanza.Packet {
	n := newNotice(row.User, row.Resource, row, nil)
	p := n.stanza
	b := stanza.NewBuilder("").Raw(p.Inner)
	b.Leaf("delay", stanza.NSDelay, "from", row.User.String(), "stamp", row.Since.UTC().Format(time.RFC3339))
	answer := stanza.WithInner(stanza.KindPresence, "", p.ID, p.From, to, b.Bytes())
	answer.Lang = p.Lang
	return answer
}
