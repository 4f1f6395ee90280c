// Package ping answers XEP-0199 pings that clients send to the server or to
// their own account. cmd/musterd hands it to the router.
//
// Invariant: a ping to somebody else's account is never answered: the answer
// would tell whether that account exists.
package ping

import (
	"muster/router"
	"muster/router/stanza"
)

// Feature is the XEP-0199 responder.
type Feature struct{}

var _ router.Feature = (*Feature)(nil)

// New returns the feature.
func New() *Feature { return &Feature{} }

// Name implements router.Feature.
func (*Feature) Name() string { return "ping" }

// Setup implements router.Feature.
func (*Feature) Setup(reg *router.Registry) error {
	for _, scope := range []router.Scope{router.Domain, router.Account} {
		reg.HandleIQ(scope, stanza.NSPing, "ping", answer)
		reg.Advertise(scope, stanza.NSPing)
	}
	return nil
}

func answer(c *router.Ctx, iq *stanza.Packet) {
	switch {
	case !c.Own():
		c.Reply(iq.ErrorReply(stanza.NewError(stanza.ServiceUnavailable, "")))
	case iq.Type != stanza.TypeGet:
		c.Reply(iq.ErrorReply(stanza.NewError(stanza.BadRequest, "a ping is of type get")))
	default:
		c.Reply(iq.Result(nil))
	}
}
