// Package state is the replicated half of the archive: what users want to have
// kept (XEP-0441). The messages themselves are in the message log.
//
// Callers: the archive feature proposes and shows preferences; the message
// feature asks Keeps, or keeps a user's Prefs at hand, before it proposes a
// message.
//
// Invariants: only users have preferences; the addresses are in their normal
// form; both lists together hold at most MaxListed addresses.
package state

import (
	"slices"

	"muster/feature/archive/state/archivepb"
	"muster/fsm"
	"muster/fsm/config"
	"muster/fsm/user"
	"muster/internal/fault"
	"muster/internal/jid"
	"muster/log"
)

// Limits of a user's preferences.
const (
	MaxListed = 1000      // addresses of both lists
	maxBytes  = 128 << 10 // of all addresses: they travel in one stanza
)

// Policy says which messages are kept by default.
type Policy uint8

// The policies. The numbers are stored.
const (
	Always Policy = 1 // all
	Never  Policy = 2 // none
	Roster Policy = 3 // those with contacts
)

var policies = map[Policy]string{Always: "always", Never: "never", Roster: "roster"}

// String returns the policy's name (XEP-0441 section 2.1.1); "" for an invalid one.
func (p Policy) String() string { return policies[p] }

// ParsePolicy returns the policy of that name; false if there is none.
func ParsePolicy(name string) (Policy, bool) {
	for _, p := range []Policy{Always, Never, Roster} {
		if policies[p] == name {
			return p, true
		}
	}
	return 0, false
}

// Settings of this module.
var (
	DefaultPolicy = config.Enum("archive.default", "always", []string{"always", "never", "roster"}, config.Cluster,
		"Which messages are archived for a user who has not chosen: all, none, or those exchanged with contacts.")
	UsersChoose = config.Bool("archive.users_choose", true, config.Cluster,
		"Whether users may choose what is archived for them. If not, archive.default holds for everybody, whatever they chose before.")
)

// Table holds a row for each user who has chosen.
var Table = fsm.NewTable("archive.prefs") // user → Prefs

// Module returns the module of archive preferences.
func Module() fsm.Module {
	return fsm.Module{
		Name:     "feature/archive/state",
		Tables:   []*fsm.Table{Table},
		Handlers: map[log.Kind]fsm.Handler{log.ArchivePrefs: set},
	}
}

// Prefs are a user's preferences.
type Prefs struct {
	Default       Policy   // for addresses on neither list
	Always, Never []string // addresses, bare or full, in order; an address on both is never archived
}

// Get returns the preferences that are in force for a user.
func Get(r fsm.Reader, owner string) Prefs {
	var row archivepb.Prefs
	if UsersChoose.Get(r, 0) && fsm.Load(r, Table, []byte(owner), &row) {
		return Prefs{Default: Policy(row.Default), Always: row.Always, Never: row.Never}
	}
	policy, _ := ParsePolicy(DefaultPolicy.Get(r, 0))
	return Prefs{Default: policy}
}

// Keeps reports whether a message that owner exchanges with somebody goes into
// owner's archive. other is the full address that the message is from or to;
// inRoster says whether it is a contact's, and is asked only if that matters.
func Keeps(r fsm.Reader, owner string, other jid.JID, inRoster func() bool) bool {
	return Get(r, owner).Keeps(other, inRoster)
}

// Keeps is the function Keeps for preferences at hand.
func (p Prefs) Keeps(other jid.JID, inRoster func() bool) bool {
	switch {
	case lists(p.Never, other):
		return false
	case lists(p.Always, other):
		return true
	case p.Default == Roster:
		return inRoster()
	}
	return p.Default != Never
}

// lists reports whether an address is on a list, as it is or as a bare one (XEP-0441 section 2.3).
func lists(list []string, j jid.JID) bool {
	if len(list) == 0 {
		return false
	}
	return slices.Contains(list, j.String()) || j.Resource != "" && slices.Contains(list, j.Bare().String())
}

// SetEntry replaces a user's preferences. Faults: NotFound, BadRequest, TooLarge, NotAllowed.
func SetEntry(u jid.JID, p Prefs) *log.Entry {
	return log.New(log.ArchivePrefs, &archivepb.Set{User: u.Bare().String(),
		Prefs: &archivepb.Prefs{Default: uint32(p.Default), Always: p.Always, Never: p.Never}})
}

// DeleteUser forgets a user's preferences; it is for user.Module.
func DeleteUser(tx *fsm.Tx, name string) error {
	tx.Delete(Table, []byte(name))
	return nil
}

func set(tx *fsm.Tx, e *log.Entry) error {
	var body archivepb.Set
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	refuse := func(code fault.Code, text string) error { return fault.New(code, "archive.prefs", body.User, text) }
	p := body.Prefs
	switch {
	case !user.Exists(tx, body.User):
		return refuse(fault.NotFound, "no such user")
	case !UsersChoose.Get(tx, 0):
		return refuse(fault.NotAllowed, "the administrators decide what is archived here")
	case p == nil || p.Default > uint32(Roster) || Policy(p.Default).String() == "":
		return refuse(fault.BadRequest, "the default is always, never or roster")
	case len(p.Always)+len(p.Never) > MaxListed:
		return refuse(fault.TooLarge, "the lists hold too many addresses")
	}
	size := 0
	for _, s := range slices.Concat(p.Always, p.Never) {
		if j, err := jid.Parse(s); err != nil || j.String() != s {
			return refuse(fault.BadRequest, "malformed address")
		}
		size += len(s)
	}
	if size > maxBytes {
		return refuse(fault.TooLarge, "the lists are too long")
	}
	tx.Save(Table, []byte(body.User), &archivepb.Prefs{Default: p.Default, Always: p.Always, Never: p.Never})
	return nil
}
