package fsm

import (
	"encoding/binary"
	"fmt"

	"muster/internal/fault"
)

// Get implements Reader on the latest applied state.
func (m *Machine) Get(t *Table, key []byte) ([]byte, bool) { return m.load(m.store, t.key(key)) }

// Scan implements Reader on the latest applied state; the scan itself is consistent.
func (m *Machine) Scan(t *Table, prefix, from []byte, fn func(key, value []byte) bool) {
	scan(m.store, t, prefix, from, fn)
}

// ScanBack implements Reader on the latest applied state; the scan itself is consistent.
func (m *Machine) ScanBack(t *Table, prefix, before []byte, fn func(key, value []byte) bool) {
	scanBack(m.store, t, prefix, before, fn)
}

// Index implements Reader.
func (m *Machine) Index() uint64 { return m.Applied() }

func (m *Machine) load(s StoreReader, full []byte) ([]byte, bool) {
	v, ok, err := s.Get(full)
	must(err, "fsm.get", string(full))
	return v, ok
}

func scan(s StoreReader, t *Table, prefix, from []byte, fn func(key, value []byte) bool) {
	lower, upper := bounds(t, prefix, from)
	must(s.Scan(lower, upper, func(k, v []byte) bool { return fn(k[len(t.prefix):], v) }), "fsm.scan", t.name)
}

func scanBack(s StoreReader, t *Table, prefix, before []byte, fn func(key, value []byte) bool) {
	lower, upper := boundsBack(t, prefix, before)
	must(s.ScanBack(lower, upper, func(k, v []byte) bool { return fn(k[len(t.prefix):], v) }), "fsm.scan", t.name)
}

// View is a consistent Reader over several calls. Close it.
type View struct {
	snap  StoreSnapshot
	m     *Machine
	index uint64
}

// View opens a consistent view of all tables.
func (m *Machine) View() (*View, error) {
	snap, err := m.store.Snapshot()
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "fsm.view", "")
	}
	head, err := headOf(snap)
	if err != nil {
		_ = snap.Close()
		return nil, err
	}
	return &View{snap: snap, m: m, index: binary.BigEndian.Uint64(head)}, nil
}

// Get implements Reader.
func (v *View) Get(t *Table, key []byte) ([]byte, bool) { return v.m.load(v.snap, t.key(key)) }

// Scan implements Reader.
func (v *View) Scan(t *Table, prefix, from []byte, fn func(key, value []byte) bool) {
	scan(v.snap, t, prefix, from, fn)
}

// ScanBack implements Reader.
func (v *View) ScanBack(t *Table, prefix, before []byte, fn func(key, value []byte) bool) {
	scanBack(v.snap, t, prefix, before, fn)
}

// Index implements Reader.
func (v *View) Index() uint64 { return v.index }

// Close releases the view.
func (v *View) Close() error { return v.snap.Close() }

// Consistent returns a reader of the same state over several calls, and what
// releases it: a view of a machine, or r itself where it is one already.
func Consistent(r Reader) (Reader, func() error, error) {
	m, ok := r.(*Machine)
	if !ok {
		return r, func() error { return nil }, nil
	}
	v, err := m.View()
	if err != nil {
		return nil, nil, err
	}
	return v, v.Close, nil
}

// TableDigest is the digest of one table at an index: the sum of its rows' hashes modulo 2^64.
type TableDigest struct {
	Table  string `json:"table"`
	Digest uint64 `json:"digest"`
}

// Digests returns the digest of every table, in order of registration, and the index that they belong to.
func (m *Machine) Digests() (uint64, []TableDigest, error) {
	v, err := m.View()
	if err != nil {
		return 0, nil, err
	}
	defer v.Close()
	out := make([]TableDigest, 0, len(m.tables))
	for _, t := range m.tables {
		d := TableDigest{Table: t.name}
		if b, ok := m.load(v.snap, digestKey(t)); ok {
			d.Digest = binary.BigEndian.Uint64(b)
		}
		out = append(out, d)
	}
	return v.index, out, nil
}

// TableRows says how many rows a table has.
type TableRows struct {
	Table string `json:"table"`
	Rows  uint64 `json:"rows"`
}

// VerifyDigests recomputes every table's digest from its rows. It returns an
// Internal fault that names the first table whose stored digest differs.
func (m *Machine) VerifyDigests() error {
	_, err := m.CountRows()
	return err
}

// CountRows is VerifyDigests that also returns how many rows each table has, in order of registration.
func (m *Machine) CountRows() ([]TableRows, error) {
	v, err := m.View()
	if err != nil {
		return nil, err
	}
	defer v.Close()
	counts := make([]TableRows, 0, len(m.tables))
	for _, t := range m.tables {
		var sum, stored, rows uint64
		v.Scan(t, nil, nil, func(key, value []byte) bool {
			if value == nil {
				value = []byte{} // an empty row has a hash, an absent one has none
			}
			sum += rowHash(string(t.key(key)), value)
			rows++
			return true
		})
		if b, ok := m.load(v.snap, digestKey(t)); ok {
			stored = binary.BigEndian.Uint64(b)
		}
		if sum != stored {
			return nil, fault.New(fault.Internal, "fsm.verify", t.name, fmt.Sprintf("rows sum to %016x, the digest says %016x at index %d", sum, stored, v.index))
		}
		counts = append(counts, TableRows{t.name, rows})
	}
	return counts, nil
}
