// Package version tells clients which software this server runs (XEP-0092).
// cmd/musterd hands it to the router with the release's number.
package version

import (
	"muster/router"
	"muster/router/stanza"
)

// Feature is the XEP-0092 responder.
type Feature struct{ version string }

var _ router.Feature = (*Feature)(nil)

// New returns the feature; version is the release's number.
func New(version string) *Feature { return &Feature{version: version} }

// Name implements router.Feature.
func (*Feature) Name() string { return "version" }

// Setup implements router.Feature.
func (f *Feature) Setup(reg *router.Registry) error {
	reg.HandleIQ(router.Domain, stanza.NSVersion, "query", f.answer)
	reg.Advertise(router.Domain, stanza.NSVersion)
	return nil
}

// answer leaves the operating system out: it helps nobody but an attacker.
func (f *Feature) answer(c *router.Ctx, iq *stanza.Packet) {
	if iq.Type != stanza.TypeGet {
		c.Reply(iq.ErrorReply(stanza.NewError(stanza.NotAllowed, "the version can only be read")))
		return
	}
	b := stanza.NewBuilder("").Open("query", stanza.NSVersion)
	b.TextElement("name", "", "Muster").TextElement("version", "", f.version)
	c.Reply(iq.Result(b.Bytes()))
}
