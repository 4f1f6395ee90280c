// Package last tells how long the server has been running and when a user was
// last seen (XEP-0012). cmd/musterd hands it to the router.
//
// Invariant: a user's activity is told only to those who may see the user's presence.
package last

import (
	"strconv"
	"time"

	"muster/feature/roster/state"
	"muster/router"
	"muster/router/stanza"
)

// Feature is the XEP-0012 responder.
type Feature struct{ started time.Time }

var _ router.Feature = (*Feature)(nil)

// New returns the feature; the server's uptime counts from here.
func New() *Feature { return &Feature{started: time.Now()} }

// Name implements router.Feature.
func (*Feature) Name() string { return "last" }

// Setup implements router.Feature.
func (f *Feature) Setup(reg *router.Registry) error {
	reg.HandleIQ(router.Domain, stanza.NSLast, "query", f.uptime)
	reg.HandleIQ(router.Account, stanza.NSLast, "query", seen)
	reg.Advertise(router.Domain, stanza.NSLast)
	reg.Advertise(router.Account, stanza.NSLast)
	return nil
}

func (f *Feature) uptime(c *router.Ctx, iq *stanza.Packet) {
	if iq.Type != stanza.TypeGet {
		c.Reply(iq.ErrorReply(stanza.NewError(stanza.NotAllowed, "the uptime can only be read")))
		return
	}
	c.Reply(iq.Result(render(time.Since(f.started), "")))
}

// seen answers 0 for a user who is there, else the time since the last session ended and its parting words.
func seen(c *router.Ctx, iq *stanza.Packet) {
	item, _ := state.Get(c.State(), c.User(), iq.From.Bare())
	at, status, known := c.Router().Hot().LastSeen(c.User())
	switch {
	case iq.Type != stanza.TypeGet:
		c.Reply(iq.ErrorReply(stanza.NewError(stanza.NotAllowed, "activity can only be read")))
	case !c.Own() && !item.Sub.HasFrom():
		c.Reply(iq.ErrorReply(stanza.NewError(stanza.Forbidden, "subscribe to the user's presence first")))
	case c.Router().Hot().Online(c.User()):
		c.Reply(iq.Result(render(0, "")))
	case known:
		c.Reply(iq.Result(render(time.Since(at), status)))
	default:
		c.Reply(iq.ErrorReply(stanza.NewError(stanza.ServiceUnavailable, "")))
	}
}

func render(ago time.Duration, text string) []byte {
	b := stanza.NewBuilder("").Open("query", stanza.NSLast)
	b.Attr("seconds", strconv.FormatInt(int64(max(ago, 0)/time.Second), 10))
	return b.Text(text).Bytes()
}
