// Package account ends the sessions of accounts that may no longer have any:
// deleted, disabled, or, where the administrator wants it, with a new password.
// It follows the directory of users, so that it does not matter who changed it
// and through what. cmd/musterd hands it to the router.
package account

import (
	"bytes"

	"muster/fsm"
	"muster/fsm/config"
	"muster/fsm/user"
	"muster/internal/jid"
	"muster/router"
	"muster/router/stanza"
)

// EndOnPassword is the setting for what a new password does to open sessions.
var EndOnPassword = config.Bool("account.end_sessions_on_password", false, config.Cluster,
	"A new password ends the sessions that were opened with the old one.")

// Feature watches the directory of users.
type Feature struct{ reg *router.Registry }

var _ router.Feature = (*Feature)(nil)

// New returns the feature.
func New() *Feature { return &Feature{} }

// Name implements router.Feature.
func (*Feature) Name() string { return "account" }

// Setup implements router.Feature.
func (f *Feature) Setup(reg *router.Registry) error {
	f.reg = reg
	reg.Watch(user.Table, f.changed)
	reg.OnBind(f.bound)
	return nil
}

// bound ends a session of an account that was disabled while its client logged in, or while it had no home.
func (f *Feature) bound(c *router.Ctx) {
	if u, ok := user.Get(c.State(), c.User().String()); ok && !u.IM {
		f.reg.Router().EndSessions(c.User(), c.Session.JID.Resource, stanza.StreamNotAuthorized, disabled)
	}
}

const disabled = "the account was disabled"

func (f *Feature) changed(ch fsm.Change) {
	name, before, after, _ := user.DecodeChange(ch)
	r := f.reg.Router()
	j, err := jid.Parse(name)
	why := reason(before, after, r.Live().Bool(EndOnPassword))
	if err != nil || why == "" {
		return
	}
	if home, ok := r.HomeOf(j); !ok || home.Node == r.Node() { // a user who was deleted has no home: each node sees to its own
		r.EndSessions(j, "", stanza.StreamNotAuthorized, why)
	}
}

// reason says why a change ends the account's sessions; "" if it does not.
func reason(before, after *user.User, onPassword bool) string {
	switch {
	case before == nil:
		return ""
	case after == nil:
		return "the account was deleted"
	case before.IM && !after.IM:
		return disabled
	case onPassword && !bytes.Equal(before.SHA256.StoredKey, after.SHA256.StoredKey):
		return "the password was changed"
	}
	return ""
}
