package hot

import (
	"encoding/binary"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"muster/internal/fault"
	"muster/internal/jid"
)

// The database's keys: 'r' origin user 0 resource → incarnation and operation,
// 'p' origin → position, 's' user → when last seen and status.
const (
	keyRow      = 'r'
	keyPosition = 'p'
	keySeen     = 's'
)

func rowKey(r *Row) []byte {
	b := binary.BigEndian.AppendUint32(append(make([]byte, 0, 64), keyRow), r.Node)
	b = r.User.Append(b)
	return append(append(b, 0), r.Resource...)
}

func positionKey(node uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{keyPosition}, node)
}

func seenKey(user jid.JID) []byte { return user.Append([]byte{keySeen}) }

// batch collects the writes of one operation. A failed write ends the process,
// as everywhere: what the store says would no longer be what the memory holds.
type batch struct {
	s *Store
	b *pebble.Batch
}

func (s *Store) batch() batch { return batch{s, s.db.NewBatch()} }

func (b batch) put(r *Row) {
	value := binary.BigEndian.AppendUint64(make([]byte, 0, 96+len(r.Presence)), r.Incarnation)
	must(b.b.Set(rowKey(r), appendOperation(value, &operation{kind: opPut, row: *r}), nil))
}

func (b batch) remove(r *Row) { must(b.b.Delete(rowKey(r), nil)) }

func (b batch) seen(user jid.JID, at time.Time, status string) {
	must(b.b.Set(seenKey(user), append(binary.BigEndian.AppendUint64(nil, uint64(at.UnixNano())), status...), nil))
}

func (b batch) position(node uint32, p Position) {
	v := binary.BigEndian.AppendUint64(nil, p.Incarnation)
	must(b.b.Set(positionKey(node), binary.BigEndian.AppendUint64(v, p.Sequence), nil))
}

func (b batch) commit() {
	b.s.gate.RLock()
	defer b.s.gate.RUnlock()
	if !b.b.Empty() && !b.s.closed {
		must(b.b.Commit(pebble.NoSync))
	}
	must(b.b.Close())
}

func must(err error) {
	if err != nil {
		panic(&fault.Error{Code: fault.Internal, Op: "hot.write", Err: err})
	}
}

// get returns a copy of a key's value.
func (s *Store) get(key []byte) ([]byte, bool) {
	s.gate.RLock()
	defer s.gate.RUnlock()
	if s.closed {
		return nil, false
	}
	v, closer, err := s.db.Get(key)
	if err != nil {
		return nil, false
	}
	defer closer.Close()
	return clone(v), true
}

// read reads the row of a slot from the database; false if another has taken its place.
func (s *Store) read(sl *slot) (Row, bool) {
	v, ok := s.get(rowKey(&sl.Row))
	if !ok || len(v) < 8 {
		return Row{}, false
	}
	op, err := (&reader{b: v[8:]}).operation()
	if err != nil || op.row.Version != sl.Version && op.row.Session != sl.Session {
		return Row{}, false
	}
	r := sl.Row
	r.Presence = op.row.Presence
	return r, true
}

// load fills the index from the database at the start.
func (s *Store) load() error {
	if err := s.scan(keyPosition, func(k, v []byte) {
		if len(k) == 5 && len(v) == 16 {
			o := s.origins.get(binary.BigEndian.Uint32(k[1:]))
			o.pos = Position{binary.BigEndian.Uint64(v), binary.BigEndian.Uint64(v[8:])}
		}
	}); err != nil {
		return err
	}
	return s.scan(keyRow, func(k, v []byte) {
		if len(k) < 5 || len(v) < 8 {
			return
		}
		op, err := (&reader{b: v[8:]}).operation()
		if err != nil {
			return // damaged: the origin's next full set brings it again
		}
		op.row.Node, op.row.Incarnation = binary.BigEndian.Uint32(k[1:]), binary.BigEndian.Uint64(v)
		s.shard(op.row.User).insert(s, &op.row)
	})
}

func (s *Store) scan(kind byte, fn func(k, v []byte)) error {
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: []byte{kind}, UpperBound: []byte{kind + 1}})
	if err != nil {
		return fault.Wrap(err, fault.Internal, "hot.load", "")
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return fault.Wrap(err, fault.Internal, "hot.load", "")
		}
		fn(it.Key(), v)
	}
	return fault.Wrap(it.Error(), fault.Internal, "hot.load", "")
}

// LastSeen returns when the user's last row was removed, and its status text;
// false if never, or if the user has rows.
func (s *Store) LastSeen(user jid.JID) (at time.Time, status string, ok bool) {
	if s.Online(user) {
		return time.Time{}, "", false
	}
	v, ok := s.get(seenKey(user))
	if !ok || len(v) < 8 {
		return time.Time{}, "", false
	}
	return time.Unix(0, int64(binary.BigEndian.Uint64(v))).UTC(), string(v[8:]), true
}

// SetLastSeen remembers when a user was last there; tests and imports use it.
func (s *Store) SetLastSeen(user jid.JID, at time.Time, status string) {
	b := s.batch()
	b.seen(user, at, status)
	b.commit()
}

// Forget drops what is remembered of a user who was deleted.
func (s *Store) Forget(user jid.JID) {
	b := s.batch()
	must(b.b.Delete(seenKey(user), nil))
	b.commit()
}
