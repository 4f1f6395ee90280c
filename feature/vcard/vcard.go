// Package vcard serves vCards (XEP-0054): everybody may read them, only their
// owner may write. cmd/musterd hands it to the router.
//
// Invariant: for somebody else "no vCard" and "no such user" look the same.
package vcard

import (
	"muster/feature/vcard/state"
	"muster/fsm"
	"muster/router"
	"muster/router/stanza"
)

// Feature serves vCards.
type Feature struct{}

var _ router.Feature = (*Feature)(nil)

// New returns the feature.
func New() *Feature { return &Feature{} }

// Name implements router.Feature.
func (*Feature) Name() string { return "vcard" }

// Setup implements router.Feature.
func (*Feature) Setup(reg *router.Registry) error {
	reg.HandleIQ(router.Account, stanza.NSVCard, "vCard", handle)
	reg.Advertise(router.Domain, stanza.NSVCard)
	reg.Advertise(router.Account, stanza.NSVCard)
	return nil
}

func handle(c *router.Ctx, iq *stanza.Packet) {
	switch {
	case iq.Type == stanza.TypeGet:
		get(c, iq)
	case !c.Own():
		c.Reply(iq.ErrorReply(stanza.NewError(stanza.Forbidden, "this is another user's vCard")))
	default:
		set(c, iq)
	}
}

func get(c *router.Ctx, iq *stanza.Packet) {
	card, ok := state.Get(c.State(), c.User())
	switch {
	case ok:
		c.Reply(iq.Result(card))
	case c.Own():
		c.Reply(iq.ErrorReply(stanza.NewError(stanza.ItemNotFound, "you have no vCard yet")))
	default: // as the router answers for a user who does not exist
		c.Reply(iq.ErrorReply(stanza.NewError(stanza.ServiceUnavailable, "")))
	}
}

func set(c *router.Ctx, iq *stanza.Packet) {
	payload, _ := iq.Payload()
	entry := state.SetEntry(c.User(), iq.ChildBytes(payload))
	c.Propose(func(c *router.Ctx, res fsm.Result) {
		if res.Err != nil {
			c.Reply(iq.ErrorReply(stanza.FromFault(res.Err)))
			return
		}
		c.Reply(iq.Result(nil))
	}, entry)
}
