package state

import (
	"slices"

	"muster/feature/message/state/messagepb"
	"muster/fsm"
	"muster/log"
)

// trim removes the oldest messages from all archives and inboxes.
func trim(tx *fsm.Tx, e *log.Entry) error {
	var body messagepb.Trim
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	var old []uint64
	more := false
	tx.Scan(Messages, nil, nil, func(k, _ []byte) bool {
		switch n := numberOf(k); {
		case n >= body.Before:
		case len(old) == int(min(body.Most, MaxSweep)):
			more = true
		default:
			old = append(old, n)
			return true
		}
		return false
	})
	for _, n := range old {
		var row messagepb.MessageRow
		fsm.Load(tx, Messages, numberKey(n), &row)
		if row.KeepSent {
			unfile(tx, row.From, row.To, n)
		}
		if row.KeepReceived {
			unfile(tx, row.To, row.From, n)
		}
		if in := inboxOf(tx, row.To); slices.Contains(in.numbers, n) {
			in.numbers, in.only = without(in.numbers, n), without(in.only, n)
			in.save(tx, row.To)
		}
		discard(tx, n, &row)
	}
	tx.SetResult(moreResult(more))
	return nil
}

func moreResult(more bool) []byte {
	if more {
		return []byte{1}
	}
	return []byte{0}
}

func without(numbers []uint64, n uint64) []uint64 {
	return slices.DeleteFunc(numbers, func(have uint64) bool { return have == n })
}

// purge removes one owner's old messages. What is in the other's archive or inbox stays there.
// The inbox goes first: a row must not vanish that it refers to.
func purge(tx *fsm.Tx, e *log.Entry) error {
	var body messagepb.Purge
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	takeFrom(tx, body.Owner, slices.DeleteFunc(Inbox(tx, body.Owner), func(n uint64) bool { return n >= body.Before }))
	var refs []uint64
	more := false
	tx.Scan(archives, fsm.Prefix(body.Owner), nil, func(k, _ []byte) bool {
		switch n := numberOf(k); {
		case n >= body.Before:
		case len(refs) == int(min(body.Most, MaxSweep)):
			more = true
		default:
			refs = append(refs, n)
			return true
		}
		return false
	})
	for _, n := range refs {
		leave(tx, body.Owner, n)
	}
	tx.SetResult(moreResult(more))
	return nil
}

// leave takes a message out of an owner's archive.
func leave(tx *fsm.Tx, owner string, n uint64) {
	var row messagepb.MessageRow
	if !fsm.Load(tx, Messages, numberKey(n), &row) {
		return
	}
	if row.From == owner {
		unfile(tx, owner, row.To, n)
		row.KeepSent = false
	}
	if row.To == owner {
		unfile(tx, owner, row.From, n)
		row.KeepReceived = false
	}
	in := inboxOf(tx, row.To)
	waits, archived := slices.Contains(in.numbers, n), row.KeepSent || row.KeepReceived
	if !waits && !archived {
		discard(tx, n, &row)
		return
	}
	tx.Save(Messages, numberKey(n), &row)
	if waits && !archived && !slices.Contains(in.only, n) {
		in.only = append(in.only, n)
		slices.Sort(in.only)
		in.save(tx, row.To)
	}
}
