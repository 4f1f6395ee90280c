package fsmtest

import (
	"testing"
	"time"

	"muster/fsm"
	"muster/internal/fault"
	"muster/log"
)

// Start is the time of a rig's first entry; each record is a second later.
var Start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// Rig is a machine over a store in memory. It fails its test on what must not happen.
type Rig struct {
	TB      testing.TB
	M       *fsm.Machine
	Store   *Store
	Changes []fsm.Change // of the last record
}

// New returns a rig with an empty machine of the control log.
func New(tb testing.TB, modules ...fsm.Module) *Rig { return Over(tb, NewStore(), modules...) }

// Over returns a rig over a store that may hold earlier state of the control log.
func Over(tb testing.TB, store *Store, modules ...fsm.Module) *Rig {
	tb.Helper()
	return OverLog(tb, store, log.Control, modules...)
}

// NewMessage returns a rig with an empty machine of a message log.
func NewMessage(tb testing.TB, modules ...fsm.Module) *Rig {
	tb.Helper()
	return OverLog(tb, NewStore(), log.Message, modules...)
}

// OverLog returns a rig over a store that may hold earlier state of a log.
func OverLog(tb testing.TB, store *Store, name log.Name, modules ...fsm.Module) *Rig {
	tb.Helper()
	m, err := fsm.New(store, name, modules...)
	if err != nil {
		tb.Fatal(err)
	}
	r := &Rig{TB: tb, M: m, Store: store}
	m.OnApply(func(_ uint64, changes []fsm.Change) { r.Changes = changes })
	return r
}

// Record encodes entries as one record and stamps those that have no time with the time that belongs to index.
func Record(tb testing.TB, index uint64, entries ...*log.Entry) []byte {
	tb.Helper()
	for _, e := range entries {
		if e.Time.IsZero() {
			e.Time = Start.Add(time.Duration(index) * time.Second)
		}
	}
	record, err := log.Encode(entries)
	if err != nil {
		tb.Fatal(err)
	}
	return record
}

// Apply applies entries as one record at the next index.
func (r *Rig) Apply(entries ...*log.Entry) []fsm.Result {
	r.TB.Helper()
	index := r.M.Applied() + 1
	results := r.M.Apply(index, Record(r.TB, index, entries...))
	if err := r.M.Halted(); err != nil {
		r.TB.Fatal(err)
	}
	return results
}

// Must applies entries, each as a record of its own, and fails the test if one is rejected. It returns the last result.
func (r *Rig) Must(entries ...*log.Entry) fsm.Result {
	r.TB.Helper()
	var last fsm.Result
	for _, e := range entries {
		last = r.Apply(e)[0]
		if last.Err != nil {
			r.TB.Fatalf("%v was rejected: %v", e.Kind, last.Err)
		}
	}
	return last
}

// Refused applies an entry that must be rejected with code and must change no row of any module.
func (r *Rig) Refused(e *log.Entry, code fault.Code) {
	r.TB.Helper()
	before := r.Store.Rows()
	res := r.Apply(e)[0]
	if got := fault.CodeOf(res.Err); got != code {
		r.TB.Fatalf("%v: got %v (%v), want %v", e.Kind, got, res.Err, code)
	}
	for k, v := range r.Store.Rows() {
		if k[0] != '!' && before[k] != v {
			r.TB.Fatalf("%v was rejected and still wrote row %q", e.Kind, k)
		}
		delete(before, k)
	}
	for k := range before {
		r.TB.Fatalf("%v was rejected and still deleted row %q", e.Kind, k)
	}
}

// Verify fails the test if a table's digest is not the sum of its rows.
func (r *Rig) Verify() {
	r.TB.Helper()
	if err := r.M.VerifyDigests(); err != nil {
		r.TB.Fatal(err)
	}
}
