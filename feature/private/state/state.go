// Package state is the replicated half of private storage: XML elements that a
// user's clients keep on the server (XEP-0049).
//
// Callers: the private storage feature proposes and reads; nobody else may see
// the elements.
//
// Invariants: an element is found under its name and namespace; a user has at
// most MaxElements of at most MaxElement bytes; the counter equals the rows.
package state

import (
	"strings"

	"muster/feature/private/state/privatepb"
	"muster/fsm"
	"muster/fsm/user"
	"muster/internal/fault"
	"muster/internal/jid"
	"muster/log"
)

// Limits of private storage.
const (
	MaxElement  = 64 << 10 // bytes of one element
	MaxElements = 100      // elements of a user
	maxName     = 1024     // bytes of a name or a namespace
)

// Tables of this module.
var (
	Elements   = fsm.NewTable("private.elements") // user, namespace, local name → element
	countTable = fsm.NewTable("private.counts")   // user → number of elements
)

// Module returns the module of private storage.
func Module() fsm.Module {
	return fsm.Module{
		Name:     "feature/private/state",
		Tables:   []*fsm.Table{Elements, countTable},
		Handlers: map[log.Kind]fsm.Handler{log.PrivateSet: set},
	}
}

// SetEntry stores an element under its name and namespace; an empty one forgets it.
func SetEntry(u jid.JID, local, ns string, xml []byte) *log.Entry {
	return log.New(log.PrivateSet, &privatepb.Set{User: u.Bare().String(), Local: fsm.Text(local), Ns: fsm.Text(ns), Xml: xml})
}

// Get returns an element as it was stored.
func Get(r fsm.Reader, u jid.JID, local, ns string) ([]byte, bool) {
	return r.Get(Elements, fsm.Key(u.Bare().String(), ns, local))
}

// DecodeChange tells which element of whom changed; xml is nil if it was
// forgotten. ok is false for a change of another table.
func DecodeChange(c fsm.Change) (u jid.JID, local, ns string, xml []byte, ok bool) {
	if c.Table != Elements {
		return jid.JID{}, "", "", nil, false
	}
	parts := fsm.SplitKey(c.Key)
	return jid.MustParse(parts[0]), parts[2], parts[1], c.After, true
}

// DeleteUser forgets a user's elements; it is for user.Module.
func DeleteUser(tx *fsm.Tx, name string) error {
	var all [][]byte
	tx.Scan(Elements, fsm.Prefix(name), nil, func(k, _ []byte) bool {
		all = append(all, append([]byte(nil), k...))
		return true
	})
	for _, k := range all {
		tx.Delete(Elements, k)
	}
	tx.Delete(countTable, []byte(name))
	return nil
}

func set(tx *fsm.Tx, e *log.Entry) error {
	var body privatepb.Set
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	refuse := func(code fault.Code, text string) error { return fault.New(code, "private.set", body.User, text) }
	switch {
	case !user.Exists(tx, body.User):
		return refuse(fault.NotFound, "no such user")
	case body.Local == "" || body.Ns == "" || strings.Contains(body.Local+body.Ns, "\x00"):
		return refuse(fault.BadRequest, "an element needs a name and a namespace")
	case len(body.Local) > maxName || len(body.Ns) > maxName || len(body.Xml) > MaxElement:
		return refuse(fault.TooLarge, "the element is too large")
	}
	key := fsm.Key(body.User, body.Ns, body.Local)
	_, have := tx.Get(Elements, key)
	var row privatepb.CountRow
	fsm.Load(tx, countTable, []byte(body.User), &row)
	switch forget := len(body.Xml) == 0; {
	case forget && have:
		tx.Delete(Elements, key)
		row.Count--
	case forget:
		return nil
	case !have && row.Count >= MaxElements:
		return refuse(fault.TooLarge, "too many elements are stored; remove one first")
	default:
		tx.Put(Elements, key, body.Xml)
		if !have {
			row.Count++
		}
	}
	if row.Count == 0 {
		tx.Delete(countTable, []byte(body.User))
	} else {
		tx.Save(countTable, []byte(body.User), &row)
	}
	return nil
}
