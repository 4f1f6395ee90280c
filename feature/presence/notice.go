package presence

import (
	"time"

	"muster/feature/blocking/state"
	"muster/internal/jid"
	"muster/router"
	"muster/router/hot"
	"muster/router/stanza"
)

// notice is one change of a resource's presence on its way to watchers. The
// stanza is parsed once for all of them.
type notice struct {
	from    jid.JID        // full address of the resource
	stanza  *stanza.Packet // from set, to not
	blocked []jid.JID      // the subject's blocking list
}

// newNotice reads a stanza out of a row; a damaged one is replaced by a plain one.
func newNotice(user jid.JID, resource string, row *hot.Row, farewell []byte) *notice {
	n := &notice{from: user.WithResource(resource)}
	raw := farewell
	if row != nil {
		raw = row.Presence
	}
	if len(raw) > 0 {
		if p, err := stanza.ParsePacket(raw); err == nil && p.Kind == stanza.KindPresence {
			n.stanza = p
		}
	}
	if n.stanza == nil {
		n.stanza = &stanza.Packet{Kind: stanza.KindPresence}
	}
	if n.stanza.From = n.from; row == nil {
		n.stanza.Type = stanza.TypeUnavailable
	}
	return n
}

// rowChanged tells the subject's own clients and its watchers of a change of a
// row: those of them that are active on this node. It runs on the hot store's side.
func (f *Feature) rowChanged(ch hot.Change) {
	r := f.reg.Router()
	n := newNotice(ch.User, ch.Resource, ch.After, ch.Farewell)
	r.Active(ch.User, func(c *router.Ctx) { f.tellOwn(c, n) })
	f.audience.tell(ch.User, func(circle *circle) {
		n.blocked = circle.blocked
		if ch.After == nil {
			f.audience.part(ch.User, ch.Resource, circle)
			f.makeUp(ch.User, ch.Resource, circle)
		}
		show := func(c *router.Ctx) { f.show(c, n) }
		for _, watcher := range circle.watchers {
			r.Active(watcher, show)
		}
	})
}

// makeUpAfter is how long a home has to tell of an end itself.
const makeUpAfter = 2 * time.Second

// makeUp tells clients on this node of an end that their homes may not know of:
// a node that started a short while ago never had a row that vanished before it
// could get it, and one that got the session a moment ago may not have had what
// its client was told while this node was isolated. What the home has told is not told twice (router.Session), and the
// home may have told by now that the resource is back: this node need not have its new row yet.
func (f *Feature) makeUp(subject jid.JID, resource string, circle *circle) {
	r := f.reg.Router()
	if !r.Unsettled() {
		return
	}
	ended, from := time.Now(), subject.WithResource(resource)
	time.AfterFunc(makeUpAfter, func() {
		if _, back := r.Hot().Row(subject, resource); back {
			return
		}
		for _, watcher := range append([]jid.JID{subject}, circle.watchers...) {
			r.EachUnsettled(watcher, ended, func(m *router.Moved) {
				if m.Session() != from && !m.Shown(from, ended) && !state.Blocked(circle.blocked, m.Session()) {
					m.Deliver(stanza.WithInner(stanza.KindPresence, stanza.TypeUnavailable, "", from, watcher, nil))
				}
			})
		}
	})
}

// tellOwn gives a change to all of the user's available clients, the one it is
// from included (RFC 6121 sections 4.2.2, 4.4.2 and 4.5.2).
func (f *Feature) tellOwn(c *router.Ctx, n *notice) {
	p := n.stanza.Clone()
	p.To = c.User()
	for _, at := range c.Sessions() {
		if (at.Available() || at.JID == n.from) && !toldAlready(at, n.from, n.stanza.Type) {
			c.Deliver(at, p)
		}
	}
}

// show gives a change to the clients of a watcher, unless the watcher or the subject blocks the other.
func (f *Feature) show(c *router.Ctx, n *notice) {
	if blocks(c, n.from) {
		return
	}
	var p *stanza.Packet
	for _, at := range c.Sessions() {
		if !at.Available() || len(n.blocked) > 0 && state.Blocked(n.blocked, at.JID) || toldAlready(at, n.from, n.stanza.Type) {
			continue
		}
		if p == nil {
			p = n.stanza.Clone()
			p.To = c.User()
		}
		c.Deliver(at, p)
	}
}

// blocklist is a user's own blocking list, kept with the actor.
type blocklist struct {
	loaded  bool
	blocked []jid.JID
}

type blocklistKey struct{}

func blocklistOf(c *router.Ctx) *blocklist {
	return router.Value(c.Actor, blocklistKey{}, func() *blocklist { return &blocklist{} })
}

// blocks reports whether the actor's user blocks j.
func blocks(c *router.Ctx, j jid.JID) bool {
	l := blocklistOf(c)
	if !l.loaded {
		l.blocked, l.loaded = state.List(c.State(), c.User()), true
	}
	return len(l.blocked) > 0 && state.Blocked(l.blocked, j)
}
