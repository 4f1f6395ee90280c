package commands

import (
	"context"
	"crypto/rand"
	"strings"

	"muster/fsm"
	"muster/fsm/user"
	"muster/internal/fault"
	"muster/internal/jid"
	"muster/internal/scram"
	"muster/log"
	"muster/router"
	"muster/router/stanza"
)

var (
	oneAccount   = field{name: "accountjid", kind: jidSingle, label: "The account's address", required: true}
	manyAccounts = field{name: "accountjids", kind: jidMulti, label: "The accounts' addresses", required: true}
	newPassword  = field{name: "password", kind: textPrivate, label: "The new password", required: true}
)

// accountCommands are those that change accounts (XEP-0133 sections 4.1 to 4.6).
func accountCommands() []command {
	return []command{
		{node: "add-user", name: "Add User", ask: "Fill in this form to add a user.", run: addUser, form: []field{
			oneAccount, newPassword,
			{name: "password-verify", kind: textPrivate, label: "The password again", required: true},
			{name: "email", kind: textSingle, label: "E-mail address"},
			{name: "given_name", kind: textSingle, label: "Given name"},
			{name: "surname", kind: textSingle, label: "Family name"},
		}},
		{node: "delete-user", name: "Delete User", ask: "Delete accounts with all that is stored for them.",
			run: onAccounts("deleted", func(name string) *log.Entry { return user.DeleteEntry(name) }), form: []field{manyAccounts}},
		{node: "disable-user", name: "Disable User", ask: "Log accounts out and keep them out; their data stays.",
			run: onAccounts("disabled", enable(false)), form: []field{manyAccounts}},
		{node: "reenable-user", name: "Re-Enable User", ask: "Let disabled accounts log in again.",
			run: onAccounts("enabled", enable(true)), form: []field{manyAccounts}},
		{node: "end-user-session", name: "End User Session", ask: "End a session (full address), or all of an account (bare address).",
			run: endSessions, form: []field{manyAccounts}},
		{node: "change-user-password", name: "Change User Password", ask: "Give an account a new password.",
			run: changePassword, form: []field{oneAccount, newPassword}},
	}
}

// propose writes entries and finishes with note, or with the first error.
func propose(c *router.Ctx, note string, finish finish, entries ...*log.Entry) {
	c.Propose(func(c *router.Ctx, res fsm.Result) { finish(c, outcome{err: res.Err, note: note}) }, entries...)
}

func addUser(c *router.Ctx, in values, finish finish) {
	account, err := in.account("accountjid")
	if err == nil && in.one("password") != in.one("password-verify") {
		err = fault.New(fault.BadRequest, "user.create", account.String(), "the two passwords differ")
	}
	if err != nil {
		finish(c, outcome{err: err})
		return
	}
	u := user.User{
		Name: account.String(), IM: true, Presence: true, Email: in.one("email"),
		DisplayName: strings.TrimSpace(in.one("given_name") + " " + in.one("surname")),
	}
	derive(c, in.one("password"), finish, func(c *router.Ctx, sha256, sha1 user.Verifier) {
		u.SHA256, u.SHA1 = sha256, sha1
		propose(c, "The account was added.", finish, user.CreateEntry(u))
	})
}

func changePassword(c *router.Ctx, in values, finish finish) {
	account, err := in.account("accountjid")
	if err != nil {
		finish(c, outcome{err: err})
		return
	}
	derive(c, in.one("password"), finish, func(c *router.Ctx, sha256, sha1 user.Verifier) {
		propose(c, "The password was changed.", finish, user.PasswordEntry(account.String(), sha256, sha1))
	})
}

// derive makes the verifiers of a password outside the actor, since that takes milliseconds, and goes on with then.
func derive(c *router.Ctx, password string, finish finish, then func(c *router.Ctx, sha256, sha1 user.Verifier)) {
	var sha256, sha1 user.Verifier
	work := func(context.Context) error {
		salt := make([]byte, scram.SaltSize)
		rand.Read(salt) // never fails
		v256, v1, err := scram.Derive(password, salt, scram.DefaultIterations)
		sha256 = user.Verifier{Salt: v256.Salt, Iterations: v256.Iterations, StoredKey: v256.StoredKey, ServerKey: v256.ServerKey}
		sha1 = user.Verifier{Salt: v1.Salt, Iterations: v1.Iterations, StoredKey: v1.StoredKey, ServerKey: v1.ServerKey}
		return err
	}
	c.Async(work, func(c *router.Ctx, err error) {
		if err != nil {
			finish(c, outcome{err: err})
			return
		}
		then(c, sha256, sha1)
	})
}

// onAccounts makes one entry for each account of the form.
func onAccounts(done string, entry func(name string) *log.Entry) func(*router.Ctx, values, finish) {
	return func(c *router.Ctx, in values, finish finish) {
		list, err := in.addresses("accountjids")
		if err == nil {
			err = spareSelf(c, list)
		}
		if err != nil {
			finish(c, outcome{err: err})
			return
		}
		entries := make([]*log.Entry, len(list))
		for i, j := range list {
			entries[i] = entry(j.Bare().String())
		}
		propose(c, "The accounts were "+done+".", finish, entries...)
	}
}

// spareSelf keeps administrators from locking themselves out.
func spareSelf(c *router.Ctx, list []jid.JID) error {
	for _, j := range list {
		if j.Bare() == c.User() {
			return fault.New(fault.NotAllowed, "command.run", j.String(), "leave your own account to another administrator")
		}
	}
	return nil
}

func enable(on bool) func(string) *log.Entry {
	return func(name string) *log.Entry { return user.UpdateEntry(name, user.Update{IM: &on}) }
}

func endSessions(c *router.Ctx, in values, finish finish) {
	list, err := in.addresses("accountjids")
	for _, j := range list {
		c.Router().EndSessions(j.Bare(), j.Resource, stanza.StreamPolicyViolation, "ended by an administrator")
	}
	finish(c, outcome{err: err, note: "The sessions were ended."})
}
