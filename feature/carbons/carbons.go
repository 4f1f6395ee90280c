// Package carbons copies a user's conversations to all of their clients
// (XEP-0280). cmd/musterd hands it to the router, whose user actors call it
// after a message was routed or delivered.
//
// Invariants: copies are made only on the server of the user that gets them,
// from the user's bare address; no client gets a message twice, nor a copy of
// what it sent; a copy is never copied; a message that was refused is not copied.
package carbons

import (
	"slices"

	"muster/router"
	"muster/router/stanza"
)

// Feature is the XEP-0280 server.
type Feature struct{}

var _ router.Feature = (*Feature)(nil)

// New returns the feature.
func New() *Feature { return &Feature{} }

// Name implements router.Feature.
func (*Feature) Name() string { return "carbons" }

// Setup implements router.Feature.
func (*Feature) Setup(reg *router.Registry) error {
	reg.HandleIQ(router.Account, stanza.NSCarbons, "enable", turn(true))
	reg.HandleIQ(router.Account, stanza.NSCarbons, "disable", turn(false))
	reg.Advertise(router.Domain, stanza.NSCarbons)
	reg.Advertise(router.Account, stanza.NSCarbons)
	reg.EnableAtBind(router.Wish{Space: stanza.NSCarbons, Local: "enable"}, router.Mark{Key: mark, Value: "on"})
	reg.OnMessageOut(sent)
	reg.OnMessageIn(received)
	return nil
}

// mark is set on a session whose client wants copies; it moves with the session.
const mark = "carbons"

// turn handles enable and disable; both may be repeated (XEP-0280 sections 4 and 5).
func turn(on bool) func(*router.Ctx, *stanza.Packet) {
	value := ""
	if on {
		value = "on"
	}
	return func(c *router.Ctx, iq *stanza.Packet) {
		switch {
		case !c.Own():
			c.Reply(iq.ErrorReply(stanza.NewError(stanza.ServiceUnavailable, "")))
		case iq.Type != stanza.TypeSet:
			c.Reply(iq.ErrorReply(stanza.NewError(stanza.BadRequest, "copies are turned on and off by a set")))
		default:
			if err := c.SetMark(c.Session, mark, value); err != nil {
				c.Reply(iq.ErrorReply(stanza.FromFault(err)))
				return
			}
			c.Reply(iq.Result(nil))
		}
	}
}

// sent copies what one of the user's clients sent to the others. A message to
// the user's own account comes back in, where received looks after it.
func sent(c *router.Ctx, p *stanza.Packet) {
	if p.To.Bare() == c.User() || !eligible(p, false) {
		return
	}
	copyTo(c, "sent", p, func(at *router.Attached) bool { return at != c.Session })
}

// received copies what came for one client, or for some, to those that did not get it.
func received(c *router.Ctx, p *stanza.Packet, delivered []*router.Attached) {
	if len(delivered) == 0 || !eligible(p, true) {
		return
	}
	copyTo(c, "received", p, func(at *router.Attached) bool {
		return at.JID != p.From && !slices.Contains(delivered, at)
	})
}

func copyTo(c *router.Ctx, direction string, p *stanza.Packet, wanted func(*router.Attached) bool) {
	var wrapped *stanza.Packet // made once, for all
	for _, at := range c.Sessions() {
		if at.Mark(mark) == "" || !wanted(at) {
			continue
		}
		if wrapped == nil {
			wrapped = wrap(direction, p, c.User())
		}
		one := wrapped.Clone()
		one.To = at.JID
		c.Deliver(at, one)
	}
}
