package fsm

import (
	"bytes"
	"slices"
	"sort"
	"time"

	"muster/internal/fault"
	"muster/log"
)

// Tx is what a handler sees: the tables as all earlier entries left them, and
// its own writes. If the handler returns an error none of its writes stay.
type Tx struct {
	m      *Machine
	index  uint64
	place  int // of the entry in its record
	time   time.Time
	base   *overlay // writes of earlier entries of the same record
	own    *overlay
	result []byte

	version log.ClusterVersion // set by SetVersion; 0: unchanged
}

// overlay holds uncommitted writes: key to value, nil for a deleted row.
type overlay struct {
	rows    map[string]row
	order   []string            // keys by first write, so that changes have one order everywhere
	byTable map[*Table][]string // the same by table, so that a scan of a small table stays cheap in a large entry
}

type row struct {
	table *Table
	full  []byte // the key with the table's prefix
	value []byte // nil: deleted
	fresh bool   // the store has no such row, which need not be looked up
}

// key is the row's key in its table.
func (r row) key() []byte { return slices.Clip(r.full[len(r.table.prefix):]) }

func (o *overlay) put(full string, r row) {
	if o.rows == nil {
		o.rows, o.byTable = make(map[string]row), make(map[*Table][]string)
	}
	if old, ok := o.rows[full]; ok {
		r.fresh = old.fresh
	} else {
		o.order = append(o.order, full)
		o.byTable[r.table] = append(o.byTable[r.table], full)
	}
	o.rows[full] = r
}

// reuseRows is how many rows an overlay may have had to be used again; larger ones would keep too much memory.
const reuseRows = 4096

// reset empties the overlay for the next entry or record.
func (o *overlay) reset() {
	if len(o.order) > reuseRows {
		*o = overlay{}
		return
	}
	clear(o.rows)
	clear(o.order) // lets the strings go
	o.order = o.order[:0]
	// order: each list is emptied on its own
	for t, list := range o.byTable {
		clear(list)
		o.byTable[t] = list[:0]
	}
}

// Index returns the log index of the entry being applied. Handlers use it as the revision of what they write.
func (tx *Tx) Index() uint64 { return tx.index }

// OrdinalBits is how many bits of a Number stand for the place in the record.
const OrdinalBits = 12

// Number returns a number that no other entry of this log has, and that rises
// in the order of entries: the index, and in its lowest OrdinalBits the entry's
// place in the record. It panics beyond 4096 entries in a record, which no
// proposer of a log that uses it writes.
func (tx *Tx) Number() uint64 {
	if tx.place >= 1<<OrdinalBits {
		panic(fault.New(fault.Internal, "fsm.number", "", "a record has too many entries"))
	}
	return tx.index<<OrdinalBits | uint64(tx.place)
}

// Time returns the machine's time: the latest of all entries' times up to this one.
func (tx *Tx) Time() time.Time { return tx.time }

// Version returns the cluster version in force before this entry.
func (tx *Tx) Version() log.ClusterVersion { return tx.m.Version() }

// SetResult sets what the proposer gets back; it is kept with the idempotency key.
func (tx *Tx) SetResult(b []byte) { tx.result = b }

// CheckRevision returns a Stale fault unless the entry expects any revision or this one.
func CheckRevision(e *log.Entry, actual uint64) error {
	if e.Expect == 0 || e.Expect == actual {
		return nil
	}
	return fault.New(fault.Stale, e.Kind.String(), "", "the subject was changed meanwhile; read it again")
}

// Get implements Reader.
func (tx *Tx) Get(t *Table, key []byte) ([]byte, bool) {
	full := t.key(key)
	for _, o := range [2]*overlay{tx.own, tx.base} {
		if r, ok := o.rows[string(full)]; ok {
			return r.value, r.value != nil
		}
	}
	return tx.m.load(tx.m.store, full)
}

// Put writes a row. The value must not be nil; an empty one is a row.
func (tx *Tx) Put(t *Table, key, value []byte) {
	if value == nil {
		value = []byte{}
	}
	tx.write(t, key, value, false)
}

// Insert is Put for a row that cannot be there yet, because the key has the
// entry's index in it: it saves the look into the store that a change is
// compared with. A row that is there all the same would falsify the digest.
func (tx *Tx) Insert(t *Table, key, value []byte) {
	if value == nil {
		value = []byte{}
	}
	tx.write(t, key, value, true)
}

// Delete removes a row, if there is one.
func (tx *Tx) Delete(t *Table, key []byte) {
	tx.write(t, key, nil, false)
}

func (tx *Tx) write(t *Table, key, value []byte, fresh bool) {
	full := t.key(key)
	tx.own.put(string(full), row{table: t, full: full, value: value, fresh: fresh})
}

// Scan implements Reader. Rows that fn writes while scanning are not seen by the same scan.
func (tx *Tx) Scan(t *Table, prefix, from []byte, fn func(key, value []byte) bool) {
	lower, upper := bounds(t, prefix, from)
	tx.merge(t, tx.pending(t, lower, upper), func(visit func(k, v []byte) bool) error {
		return tx.m.store.Scan(lower, upper, visit)
	}, func(a, b string) bool { return a < b }, fn)
}

// ScanBack implements Reader. Rows that fn writes while scanning are not seen by the same scan.
func (tx *Tx) ScanBack(t *Table, prefix, before []byte, fn func(key, value []byte) bool) {
	lower, upper := boundsBack(t, prefix, before)
	pending := tx.pending(t, lower, upper)
	slices.Reverse(pending)
	tx.merge(t, pending, func(visit func(k, v []byte) bool) error {
		return tx.m.store.ScanBack(lower, upper, visit)
	}, func(a, b string) bool { return a > b }, fn)
}

// merge calls fn for the rows of the store and the uncommitted ones over them,
// both of which come in the order that ahead says.
func (tx *Tx) merge(t *Table, pending []pendingRow, scan func(visit func(k, v []byte) bool) error, ahead func(a, b string) bool, fn func(key, value []byte) bool) {
	ok := true
	emit := func(full string, value []byte) bool {
		if value != nil {
			ok = fn([]byte(full)[len(t.prefix):], value)
		}
		return ok
	}
	err := scan(func(k, v []byte) bool {
		for len(pending) > 0 && ahead(pending[0].full, string(k)) {
			if !emit(pending[0].full, pending[0].value) {
				return false
			}
			pending = pending[1:]
		}
		if len(pending) > 0 && pending[0].full == string(k) {
			v, pending = pending[0].value, pending[1:]
		} else if v == nil {
			v = []byte{} // an empty row, not a deleted one
		}
		return emit(string(k), v)
	})
	must(err, "fsm.scan", t.name)
	for i := 0; ok && i < len(pending); i++ {
		emit(pending[i].full, pending[i].value)
	}
}

type pendingRow struct {
	full  string
	value []byte
}

// pending returns the uncommitted rows of a table's key range in order, the entry's own over the record's earlier ones.
func (tx *Tx) pending(t *Table, lower, upper []byte) []pendingRow {
	var out []pendingRow
	add := func(o *overlay, skip *overlay) {
		for _, full := range o.byTable[t] {
			if full < string(lower) || upper != nil && full >= string(upper) {
				continue
			}
			if skip != nil {
				if _, ok := skip.rows[full]; ok {
					continue
				}
			}
			out = append(out, pendingRow{full, o.rows[full].value})
		}
	}
	add(tx.own, nil)
	add(tx.base, tx.own)
	sort.Slice(out, func(i, j int) bool { return out[i].full < out[j].full })
	return out
}

func bounds(t *Table, prefix, from []byte) (lower, upper []byte) {
	lower = t.key(prefix)
	upper = after(lower)
	if from != nil {
		if start := t.key(from); bytes.Compare(start, lower) > 0 {
			lower = start
		}
	}
	return lower, upper
}

func boundsBack(t *Table, prefix, before []byte) (lower, upper []byte) {
	lower = t.key(prefix)
	upper = after(lower)
	if before != nil {
		if end := t.key(before); bytes.Compare(end, upper) < 0 || upper == nil {
			upper = end
		}
		if bytes.Compare(upper, lower) < 0 {
			upper = lower
		}
	}
	return lower, upper
}
