// Package entitytime tells clients the server's clock (XEP-0202), from which
// they learn how far their own one is off. cmd/musterd hands it to the router.
package entitytime

import (
	"time"

	"muster/router"
	"muster/router/stanza"
)

// Feature is the XEP-0202 responder.
type Feature struct{}

var _ router.Feature = (*Feature)(nil)

// New returns the feature.
func New() *Feature { return &Feature{} }

// Name implements router.Feature.
func (*Feature) Name() string { return "entitytime" }

// Setup implements router.Feature.
func (*Feature) Setup(reg *router.Registry) error {
	reg.HandleIQ(router.Domain, stanza.NSTime, "time", answer)
	reg.Advertise(router.Domain, stanza.NSTime)
	return nil
}

func answer(c *router.Ctx, iq *stanza.Packet) {
	if iq.Type != stanza.TypeGet {
		c.Reply(iq.ErrorReply(stanza.NewError(stanza.NotAllowed, "the server's clock can only be read")))
		return
	}
	c.Reply(iq.Result(render(time.Now())))
}

// render writes the time in both forms of XEP-0202: the zone's offset, and UTC as XEP-0082 writes it.
func render(now time.Time) []byte {
	b := stanza.NewBuilder("").Open("time", stanza.NSTime)
	b.TextElement("tzo", "", now.Format("-07:00"))
	b.TextElement("utc", "", now.UTC().Format("2006-01-02T15:04:05.000Z"))
	return b.Bytes()
}
