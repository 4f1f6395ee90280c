// Package blocking keeps what a user does not want to hear of away (XEP-0191).
// cmd/musterd hands it to the router, whose actors ask it about every stanza
// that leaves or reaches a user.
//
// Invariants: a blocked sender gets what an absent recipient would answer, and
// presence just vanishes; the owner cannot send to whom it blocks; a client
// that fetched the list is told of each change, whatever surface made it. The
// presence that blocking hides and unblocking shows is package presence's.
package blocking

import (
	"crypto/rand"

	"muster/feature/blocking/state"
	"muster/fsm"
	"muster/internal/jid"
	"muster/router"
	"muster/router/stanza"
)

// mark is set on a session whose client fetched the list and wants pushes.
const mark = "blocklist"

// Feature serves blocking lists.
type Feature struct{ reg *router.Registry }

var _ router.Feature = (*Feature)(nil)

// New returns the feature.
func New() *Feature { return &Feature{} }

// Name implements router.Feature.
func (*Feature) Name() string { return "blocking" }

// Setup implements router.Feature.
func (f *Feature) Setup(reg *router.Registry) error {
	f.reg = reg
	reg.HandleIQ(router.Account, stanza.NSBlocking, "blocklist", get)
	reg.HandleIQ(router.Account, stanza.NSBlocking, "block", change("block"))
	reg.HandleIQ(router.Account, stanza.NSBlocking, "unblock", change("unblock"))
	reg.Advertise(router.Domain, stanza.NSBlocking)
	reg.Advertise(router.Account, stanza.NSBlocking)
	reg.ScreenOut(f.screenOut)
	reg.ScreenIn(f.screenIn)
	reg.ScreenStored(screenStored)
	reg.Watch(state.Lists, f.changed)
	return nil
}

// list is a user's list, kept with the actor: it is asked for every stanza.
type list struct {
	loaded  bool
	blocked []jid.JID
}

type listKey struct{}

func listOf(c *router.Ctx) *list {
	return router.Value(c.Actor, listKey{}, func() *list { return &list{} })
}

// blocks reports whether the actor's user blocks j.
func blocks(c *router.Ctx, j jid.JID) bool {
	l := listOf(c)
	if !l.loaded {
		l.blocked, l.loaded = state.List(c.State(), c.User()), true
	}
	return len(l.blocked) > 0 && state.Blocked(l.blocked, j)
}

// screenOut refuses what goes to somebody blocked (XEP-0191 section 3.5). The
// user's own account and the server are always within reach.
func (f *Feature) screenOut(c *router.Ctx, p *stanza.Packet) *stanza.Error {
	switch {
	case p.To.IsZero(), p.To.Bare() == c.User(), p.To.Local == "" && f.reg.Router().IsLocalDomain(p.To.Domain):
		return nil
	case p.Kind == stanza.KindIQ && !p.IsRequest(), !blocks(c, p.To):
		return nil
	}
	e := stanza.NewError(stanza.NotAcceptable, "you have blocked this address; unblock it first")
	e.Type = stanza.Cancel // as XEP-0191 has it
	e.Extra = stanza.NewBuilder("").Leaf("blocked", stanza.NSBlockErrors).Bytes()
	return e
}

// screenIn answers a blocked sender as if the user were not there.
func (f *Feature) screenIn(c *router.Ctx, p *stanza.Packet) router.Verdict {
	switch {
	case p.From.IsZero(), p.From.Bare() == c.User(), !blocks(c, p.From):
		return router.Pass
	case p.Kind == stanza.KindMessage, p.IsRequest():
		return router.Bounce(stanza.NewError(stanza.ServiceUnavailable, ""))
	}
	return router.Drop
}

// screenStored is screenIn for a message that is to be kept, asked before the recipient's actor sees it.
func screenStored(r fsm.Reader, recipient jid.JID, p *stanza.Packet) router.Verdict {
	if p.From.Bare() == recipient || !state.Any(r, recipient) || !state.Blocked(state.List(r, recipient), p.From) {
		return router.Pass
	}
	return router.Bounce(stanza.NewError(stanza.ServiceUnavailable, ""))
}

func get(c *router.Ctx, iq *stanza.Packet) {
	if refusal := admit(c, iq, stanza.TypeGet); refusal != nil {
		c.Reply(iq.ErrorReply(refusal))
		return
	}
	if err := c.SetMark(c.Session, mark, "on"); err != nil {
		c.Reply(iq.ErrorReply(stanza.FromFault(err)))
		return
	}
	c.Reply(iq.Result(render("blocklist", state.List(c.State(), c.User()))))
}

func admit(c *router.Ctx, iq *stanza.Packet, typ string) *stanza.Error {
	switch {
	case !c.Own():
		return stanza.NewError(stanza.ServiceUnavailable, "") // as for a user who does not exist
	case iq.Type != typ:
		return stanza.NewError(stanza.BadRequest, "the request is of type "+typ)
	}
	return nil
}

// change handles block, which needs an item, and unblock, where none means all.
func change(local string) router.IQHandler {
	return func(c *router.Ctx, iq *stanza.Packet) {
		refusal := admit(c, iq, stanza.TypeSet)
		var jids []jid.JID
		if refusal == nil {
			jids, refusal = parse(iq)
		}
		if refusal == nil && local == "block" && len(jids) == 0 {
			refusal = stanza.NewError(stanza.BadRequest, "name the addresses to block")
		}
		if refusal != nil {
			c.Reply(iq.ErrorReply(refusal))
			return
		}
		entry := state.AddEntry(c.User(), jids)
		if local == "unblock" {
			entry = state.RemoveEntry(c.User(), jids)
		}
		c.Propose(func(c *router.Ctx, res fsm.Result) {
			listOf(c).loaded = false // the answer must not be ahead of the screens
			if res.Err != nil {
				c.Reply(iq.ErrorReply(stanza.FromFault(res.Err)))
				return
			}
			c.Reply(iq.Result(nil))
		}, entry)
	}
}

func parse(iq *stanza.Packet) ([]jid.JID, *stanza.Error) {
	payload, _ := iq.Payload()
	var jids []jid.JID
	for _, item := range iq.Element(payload).All(stanza.NSBlocking, "item") {
		j, err := jid.Parse(item.Attr("jid"))
		if err != nil {
			return nil, stanza.NewError(stanza.JIDMalformed, "an item's jid is missing or malformed")
		}
		jids = append(jids, j)
	}
	return jids, nil
}

// changed pushes one change to the clients that fetched the list (XEP-0191 sections 3.3 and 3.4).
func (f *Feature) changed(ch fsm.Change) {
	owner, blocked, added, _ := state.DecodeChange(ch)
	local := "unblock"
	if added {
		local = "block"
	}
	f.reg.Router().Active(owner, func(c *router.Ctx) {
		listOf(c).loaded = false
		for _, at := range c.Sessions() {
			if at.Mark(mark) == "" {
				continue
			}
			inner := render(local, []jid.JID{blocked})
			c.Deliver(at, stanza.WithInner(stanza.KindIQ, stanza.TypeSet, "push-"+rand.Text(), c.User(), at.JID, inner))
		}
	})
}

func render(local string, jids []jid.JID) []byte {
	b := stanza.NewBuilder("").Open(local, stanza.NSBlocking)
	for _, j := range jids {
		b.Leaf("item", "", "jid", j.String())
	}
	return b.Bytes()
}
