// Package state is the replicated half of the blocking feature: whom a user
// does not want to hear of (XEP-0191).
//
// Callers: the blocking feature proposes entries and pushes changes; the
// router's screen asks Blocked with a list that it keeps in memory.
//
// Invariants: a list holds normalised addresses, each once, and the counter of
// a list equals its rows.
package state

import (
	"muster/feature/blocking/state/blockingpb"
	"muster/fsm"
	"muster/fsm/config"
	"muster/fsm/user"
	"muster/internal/fault"
	"muster/internal/jid"
	"muster/log"
)

// MaxBlocked is the setting for the size of a list.
var MaxBlocked = config.Int("blocking.max_blocked", 1000, 1, 10_000, config.Cluster,
	"How many addresses a user's blocking list may hold.")

// maxChange is how many addresses one entry may name.
const maxChange = 10_000

// Tables of this module.
var (
	Lists      = fsm.NewTable("blocking.lists")  // user, address → empty
	countTable = fsm.NewTable("blocking.counts") // user → number of addresses
)

// Module returns the module of blocking lists.
func Module() fsm.Module {
	return fsm.Module{
		Name:     "feature/blocking/state",
		Tables:   []*fsm.Table{Lists, countTable},
		Handlers: map[log.Kind]fsm.Handler{log.BlockAdd: add, log.BlockRemove: remove},
	}
}

// AddEntry blocks addresses; those that are blocked already stay so.
func AddEntry(u jid.JID, blocked []jid.JID) *log.Entry {
	return log.New(log.BlockAdd, &blockingpb.Change{User: u.Bare().String(), Jids: texts(blocked)})
}

// RemoveEntry unblocks addresses, or all of them if none is named.
func RemoveEntry(u jid.JID, unblocked []jid.JID) *log.Entry {
	return log.New(log.BlockRemove, &blockingpb.Change{User: u.Bare().String(), Jids: texts(unblocked)})
}

func texts(list []jid.JID) []string {
	out := make([]string, len(list))
	for i, j := range list {
		out[i] = j.String()
	}
	return out
}

// List returns whom a user blocks, in order of address.
func List(r fsm.Reader, u jid.JID) []jid.JID {
	var out []jid.JID
	prefix := fsm.Prefix(u.Bare().String())
	r.Scan(Lists, prefix, nil, func(k, _ []byte) bool {
		out = append(out, jid.MustParse(string(k[len(prefix):])))
		return true
	})
	return out
}

// Any reports whether a user blocks anybody; it is cheaper than List.
func Any(r fsm.Reader, u jid.JID) bool {
	_, any := r.Get(countTable, []byte(u.Bare().String()))
	return any
}

// Blocked reports whether a list blocks an address: as a full address, as a
// bare one, as a domain with that resource, or by its whole domain (XEP-0191 section 2).
func Blocked(list []jid.JID, j jid.JID) bool {
	for _, b := range list {
		if b.Domain == j.Domain && (b.Local == "" || b.Local == j.Local) && (b.Resource == "" || b.Resource == j.Resource) {
			return true
		}
	}
	return false
}

// DecodeChange tells who blocked or unblocked whom. ok is false for a change of another table.
func DecodeChange(c fsm.Change) (u, blocked jid.JID, added, ok bool) {
	if c.Table != Lists {
		return jid.JID{}, jid.JID{}, false, false
	}
	parts := fsm.SplitKey(c.Key)
	return jid.MustParse(parts[0]), jid.MustParse(parts[1]), c.After != nil, true
}

// DeleteUser forgets a user's list; it is for user.Module.
func DeleteUser(tx *fsm.Tx, name string) error {
	u, err := jid.Parse(name)
	if err != nil {
		return err
	}
	for _, j := range List(tx, u) {
		tx.Delete(Lists, fsm.Key(name, j.String()))
	}
	tx.Delete(countTable, []byte(name))
	return nil
}

func add(tx *fsm.Tx, e *log.Entry) error {
	body, jids, err := decode(tx, e)
	if err != nil {
		return err
	}
	if len(jids) == 0 {
		return fault.New(fault.BadRequest, "blocking.add", body.User, "no address to block")
	}
	n := count(tx, body.User)
	for _, j := range jids {
		key := fsm.Key(body.User, j)
		if _, have := tx.Get(Lists, key); !have {
			tx.Put(Lists, key, nil)
			n++
		}
	}
	if int64(n) > MaxBlocked.Get(tx, 0) {
		return fault.New(fault.TooLarge, "blocking.add", body.User, "the blocking list is full")
	}
	tx.Save(countTable, []byte(body.User), &blockingpb.CountRow{Count: n})
	return nil
}

func remove(tx *fsm.Tx, e *log.Entry) error {
	body, jids, err := decode(tx, e)
	if err != nil {
		return err
	}
	if len(jids) == 0 {
		return DeleteUser(tx, body.User)
	}
	n := count(tx, body.User)
	for _, j := range jids {
		key := fsm.Key(body.User, j)
		if _, have := tx.Get(Lists, key); have {
			tx.Delete(Lists, key)
			n--
		}
	}
	if n == 0 {
		tx.Delete(countTable, []byte(body.User))
	} else {
		tx.Save(countTable, []byte(body.User), &blockingpb.CountRow{Count: n})
	}
	return nil
}

func count(r fsm.Reader, name string) uint32 {
	var row blockingpb.CountRow
	fsm.Load(r, countTable, []byte(name), &row)
	return row.Count
}

// decode checks that the user exists and that every address is in its normal form.
func decode(tx *fsm.Tx, e *log.Entry) (*blockingpb.Change, []string, error) {
	var body blockingpb.Change
	if err := e.Unmarshal(&body); err != nil {
		return nil, nil, err
	}
	if !user.Exists(tx, body.User) {
		return nil, nil, fault.New(fault.NotFound, e.Kind.String(), body.User, "no such user")
	}
	if len(body.Jids) > maxChange {
		return nil, nil, fault.New(fault.TooLarge, e.Kind.String(), body.User, "too many addresses at once")
	}
	for _, s := range body.Jids {
		j, err := jid.Parse(s)
		if err != nil || j.String() != s {
			return nil, nil, fault.New(fault.BadRequest, e.Kind.String(), body.User, "malformed address")
		}
	}
	return &body, body.Jids, nil
}
