package state

import (
	"encoding/binary"
	"slices"
	"sort"

	"muster/feature/roster/state/rosterpb"
	"muster/fsm"
	"muster/internal/fault"
	"muster/internal/jid"
)

// book is one user's roster within an entry: it keeps version, counters and tombstones in step with the items.
type book struct {
	tx   *fsm.Tx
	user jid.JID
	row  *rosterpb.RosterRow
}

func openBook(tx *fsm.Tx, user jid.JID) *book {
	b := &book{tx: tx, user: user, row: &rosterpb.RosterRow{}}
	if !fsm.Load(tx, rosterTable, rosterKey(user), b.row) && tx.Index() > 0 {
		// A version that a client kept from an earlier user of this name is too old for a delta.
		b.row.Floor = tx.Index() - 1
	}
	return b
}

// put replaces old, the zero Item if there was none, by next. The version rises if the user can see a difference.
func (b *book) put(old, next Item) error {
	wasNew := old.Contact.IsZero()
	wasVisible := !wasNew && !old.Hidden
	switch {
	case !wasVisible && !next.Hidden:
		limit := MaxContacts.Get(b.tx, 0)
		if limit > 0 && int64(b.row.Contacts) >= limit {
			return fault.New(fault.TooLarge, "roster.set", b.user.String(), "the roster is full; remove a contact first")
		}
		b.row.Contacts++
		if !wasNew {
			b.row.Hidden--
		}
	case wasNew:
		b.row.Hidden++
	}
	b.countRequest(old.PendingIn, next.PendingIn)
	if !next.Hidden && (!wasVisible || differs(old, next)) {
		next.Revision = b.bump()
	}
	b.tx.Save(Rosters, itemKey(b.user, next.Contact), encodeItem(next))
	b.save()
	return nil
}

// drop removes an item and leaves a tombstone if the user could see it.
func (b *book) drop(old Item) {
	b.countRequest(old.PendingIn, false)
	b.tx.Delete(Rosters, itemKey(b.user, old.Contact))
	if old.Hidden {
		b.row.Hidden--
		b.save()
		return
	}
	b.row.Contacts--
	b.row.Removed++
	b.tx.Put(removedTable, removedKey(b.user, b.bump()), []byte(old.Contact.String()))
	if b.row.Removed > MaxRemoved {
		b.forgetOldest()
	}
	b.save()
}

func (b *book) forgetOldest() {
	var oldest []byte
	prefix := rosterPrefix(b.user)
	b.tx.Scan(removedTable, prefix, nil, func(k, _ []byte) bool {
		oldest = slices.Clone(k)
		return false
	})
	if oldest != nil {
		b.tx.Delete(removedTable, oldest)
		b.row.Removed--
		b.row.Floor = binary.BigEndian.Uint64(oldest[len(prefix):])
	}
}

func (b *book) countRequest(before, after bool) {
	switch {
	case after && !before:
		b.row.Requests++
	case before && !after:
		b.row.Requests--
	}
}

// bump raises the roster's version: to the log index, or further if another change of the same record took that.
func (b *book) bump() uint64 {
	b.row.Version = max(b.tx.Index(), b.row.Version+1)
	return b.row.Version
}

func (b *book) save() { b.tx.Save(rosterTable, rosterKey(b.user), b.row) }

// differs reports whether a client sees a difference between two items.
func differs(a, b Item) bool {
	return a.Name != b.Name || !slices.Equal(a.Groups, b.Groups) || a.Sub != b.Sub || a.Ask != b.Ask || a.Approved != b.Approved
}

// Delta is one change of a roster since an earlier version.
type Delta struct {
	Item    Item // after a removal only Contact and Revision are set
	Removed bool
}

// Changed returns what changed in a roster after version since, each contact
// once in its final state, in order of modification with rising Revisions (RFC
// 6121 section 2.6). ok is false if the deltas are no longer known: send the
// full roster then.
func Changed(r fsm.Reader, user jid.JID, since uint64) (deltas []Delta, ok bool) {
	row := loadRoster(r, user)
	if since > row.Version || since < row.Floor {
		return nil, false
	}
	if since == row.Version {
		return nil, true
	}
	last := map[jid.JID]int{}
	prefix := rosterPrefix(user)
	r.Scan(removedTable, prefix, removedKey(user, since+1), func(k, v []byte) bool {
		d := Delta{Item: Item{Contact: mustParse(string(v)), Revision: binary.BigEndian.Uint64(k[len(prefix):])}, Removed: true}
		if at, again := last[d.Item.Contact]; again {
			deltas[at] = d
		} else {
			last[d.Item.Contact] = len(deltas)
			deltas = append(deltas, d)
		}
		return true
	})
	for _, i := range collect(r, user, func(i *Item) bool { return !i.Hidden }) {
		at, removed := last[i.Contact]
		switch {
		case removed:
			deltas[at] = Delta{Item: i} // removed and added again
		case i.Revision > since:
			deltas = append(deltas, Delta{Item: i})
		}
	}
	sort.Slice(deltas, func(a, b int) bool { return deltas[a].Item.Revision < deltas[b].Item.Revision })
	return deltas, true
}

func loadRoster(r fsm.Reader, user jid.JID) *rosterpb.RosterRow {
	var row rosterpb.RosterRow
	fsm.Load(r, rosterTable, rosterKey(user), &row)
	return &row
}

func collect(r fsm.Reader, user jid.JID, want func(*Item) bool) []Item {
	var out []Item
	prefix := rosterPrefix(user)
	r.Scan(Rosters, prefix, nil, func(k, v []byte) bool {
		i := decodeItem(mustParse(string(k[len(prefix):])), v)
		if want(&i) {
			out = append(out, i)
		}
		return true
	})
	return out
}

func rosterKey(user jid.JID) []byte    { return []byte(user.Bare().String()) }
func rosterPrefix(user jid.JID) []byte { return fsm.Prefix(user.Bare().String()) }

func itemKey(user, contact jid.JID) []byte {
	return fsm.Key(user.Bare().String(), contact.Bare().String())
}

func splitItemKey(k []byte) (user, contact jid.JID) {
	parts := fsm.SplitKey(k)
	return mustParse(parts[0]), mustParse(parts[1])
}

func removedKey(user jid.JID, revision uint64) []byte {
	return binary.BigEndian.AppendUint64(rosterPrefix(user), revision)
}

// mustParse parses an address out of a row, where only normalised ones get.
func mustParse(s string) jid.JID { return jid.MustParse(s) }

func decodeItem(contact jid.JID, b []byte) Item {
	var row rosterpb.ItemRow
	fsm.Decode(Rosters, b, &row)
	return Item{
		Contact: contact, Name: row.Name, Groups: row.Groups, Sub: Sub(row.Sub), Ask: row.Ask, Approved: row.Approved,
		PendingIn: row.PendingIn, Request: row.Request, Revision: row.Revision, Hidden: row.Hidden,
	}
}

func encodeItem(i Item) *rosterpb.ItemRow {
	return &rosterpb.ItemRow{
		Name: i.Name, Groups: i.Groups, Sub: uint32(i.Sub), Ask: i.Ask, Approved: i.Approved,
		PendingIn: i.PendingIn, Request: i.Request, Revision: i.Revision, Hidden: i.Hidden,
	}
}
