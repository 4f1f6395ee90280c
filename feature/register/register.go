// Package register lets people make an account from their client, change its
// password and delete it (XEP-0077), where the administrator allows it. The
// Feature serves users who are logged in, and cmd/musterd hands it to the
// router; the Registrar makes accounts, and the client edge asks it.
//
// Invariants: while the setting is off nothing is advertised, and requests are
// answered as if nobody had ever heard of them; the end of an account is
// confirmed after it is committed, and before its sessions end.
package register

import (
	"context"

	"muster/fsm"
	"muster/fsm/config"
	"muster/fsm/user"
	"muster/router"
	"muster/router/stanza"
)

// Enabled is the setting that allows it.
var Enabled = config.Bool("register.enabled", false, config.Cluster,
	"Clients may make accounts without logging in, and users may change their password and delete their account from their client (XEP-0077).")

// Feature is the XEP-0077 server for users who are logged in.
type Feature struct {
	reg  *router.Registry
	hash hasher
}

var _ router.Feature = (*Feature)(nil)

// New returns the feature.
func New() *Feature { return &Feature{hash: newHasher()} }

// Name implements router.Feature.
func (*Feature) Name() string { return "register" }

// Setup implements router.Feature.
func (f *Feature) Setup(reg *router.Registry) error {
	f.reg = reg
	reg.HandleIQ(router.Domain, stanza.NSRegister, "query", f.handle)
	reg.HandleIQ(router.Account, stanza.NSRegister, "query", f.handle)
	reg.AdvertiseWhile(f.on, router.Domain, stanza.NSRegister)
	return nil
}

func (f *Feature) on() bool { return f.reg.Router().Live().Bool(Enabled) }

func (f *Feature) handle(c *router.Ctx, iq *stanza.Packet) {
	if !f.on() || !c.Own() {
		c.Reply(iq.ErrorReply(stanza.NewError(stanza.ServiceUnavailable, "")))
		return
	}
	if iq.Type == stanza.TypeGet {
		b := stanza.NewBuilder("").Open("query", stanza.NSRegister).Leaf("registered", "")
		b.TextElement("username", "", c.User().Local).Leaf("password", "")
		c.Reply(iq.Result(b.Bytes()))
		return
	}
	payload, _ := iq.Payload()
	el := iq.Element(payload)
	if el.Find(stanza.NSRegister, "remove") != nil {
		cancel(c, iq, el)
		return
	}
	f.changePassword(c, iq, el)
}

// cancel deletes the account (XEP-0077 section 3.2). That ends its sessions,
// wherever the log is applied first; so the node of the session that asked
// keeps the answer, and gives it before the stream error.
func cancel(c *router.Ctx, iq *stanza.Packet, el *stanza.Element) {
	if len(el.Elements()) != 1 {
		c.Reply(iq.ErrorReply(stanza.NewError(stanza.BadRequest, "remove stands alone")))
		return
	}
	if err := c.SetLastWord(c.Session, iq.Result(nil)); err != nil {
		c.Reply(iq.ErrorReply(stanza.FromFault(err)))
		return
	}
	c.Propose(func(c *router.Ctx, res fsm.Result) {
		if res.Err != nil {
			_ = c.SetLastWord(c.Session, nil) // taking it back is never refused
			c.Reply(iq.ErrorReply(stanza.FromFault(res.Err)))
		}
	}, user.DeleteEntry(c.User().String()))
}

// changePassword is XEP-0077 section 3.3.
func (f *Feature) changePassword(c *router.Ctx, iq *stanza.Packet, el *stanza.Element) {
	name, password := el.Find(stanza.NSRegister, "username"), el.Find(stanza.NSRegister, "password")
	switch {
	case name == nil || password == nil || password.Text() == "":
		c.Reply(iq.ErrorReply(stanza.NewError(stanza.BadRequest, "name and new password are needed")))
		return
	case name.Text() != c.User().Local:
		c.Reply(iq.ErrorReply(stanza.NewError(stanza.NotAllowed, "this is not your account")))
		return
	}
	var sha256, sha1 user.Verifier
	c.Async(func(ctx context.Context) (err error) {
		sha256, sha1, err = f.hash.derive(ctx, c.User().String(), password.Text())
		return err
	}, func(c *router.Ctx, err error) {
		if err != nil {
			c.Reply(iq.ErrorReply(stanza.FromFault(err)))
			return
		}
		c.Propose(answer(iq), user.PasswordEntry(c.User().String(), sha256, sha1))
	})
}

func answer(iq *stanza.Packet) func(*router.Ctx, fsm.Result) {
	return func(c *router.Ctx, res fsm.Result) {
		if res.Err != nil {
			c.Reply(iq.ErrorReply(stanza.FromFault(res.Err)))
			return
		}
		c.Reply(iq.Result(nil))
	}
}
