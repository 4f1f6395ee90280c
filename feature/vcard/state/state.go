// Package state is the replicated half of the vCard feature (XEP-0054): one
// document for each user.
//
// Callers: the vCard feature proposes and reads.
//
// Invariants: only users have a vCard, and it is at most MaxCard bytes.
package state

import (
	"muster/feature/vcard/state/vcardpb"
	"muster/fsm"
	"muster/fsm/user"
	"muster/internal/fault"
	"muster/internal/jid"
	"muster/log"
)

// MaxCard is the size of a vCard in bytes: room for a small picture.
const MaxCard = 128 << 10

// Cards is the table of vCards.
var Cards = fsm.NewTable("vcard.cards") // user → vCard element

// Module returns the module of vCards.
func Module() fsm.Module {
	return fsm.Module{
		Name:     "feature/vcard/state",
		Tables:   []*fsm.Table{Cards},
		Handlers: map[log.Kind]fsm.Handler{log.VCardSet: set},
	}
}

// SetEntry stores a user's vCard element; an empty one forgets it.
func SetEntry(u jid.JID, xml []byte) *log.Entry {
	return log.New(log.VCardSet, &vcardpb.Set{User: u.Bare().String(), Xml: xml})
}

// Get returns a user's vCard element as it was stored.
func Get(r fsm.Reader, u jid.JID) ([]byte, bool) { return r.Get(Cards, []byte(u.Bare().String())) }

// DecodeChange tells whose vCard changed; xml is nil if it was forgotten. ok is
// false for a change of another table.
func DecodeChange(c fsm.Change) (u jid.JID, xml []byte, ok bool) {
	if c.Table != Cards {
		return jid.JID{}, nil, false
	}
	return jid.MustParse(string(c.Key)), c.After, true
}

// DeleteUser forgets a user's vCard; it is for user.Module.
func DeleteUser(tx *fsm.Tx, name string) error {
	tx.Delete(Cards, []byte(name))
	return nil
}

func set(tx *fsm.Tx, e *log.Entry) error {
	var body vcardpb.Set
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	switch {
	case !user.Exists(tx, body.User):
		return fault.New(fault.NotFound, "vcard.set", body.User, "no such user")
	case len(body.Xml) > MaxCard:
		return fault.New(fault.TooLarge, "vcard.set", body.User, "the vCard is too large; use a smaller picture")
	case len(body.Xml) == 0:
		tx.Delete(Cards, []byte(body.User))
	default:
		tx.Put(Cards, []byte(body.User), body.Xml)
	}
	return nil
}
