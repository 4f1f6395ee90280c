// Package fsm is what is: the deterministic machine that turns the log into
// state. State packages (fsm/cluster, fsm/user, fsm/config and every
// feature/x/state) register modules: their tables, and one handler for each
// kind of entry that they own.
//
// Callers: package replication feeds records to Apply in log order; everybody
// else reads through the modules' view functions, which take a Reader, and
// learns of state only from the change feed (OnApply).
//
// Invariants: the same log gives the same rows, digests and results on every
// node. A rejected entry changes nothing but the applied index, the machine's
// time and its idempotency record. Each record's writes, its applied index and
// its digests are stored in one atomic batch. Nothing here reads a clock, a
// random source, a file or the network, and nothing depends on map order.
package fsm

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"

	"muster/internal/fault"
	"muster/log"
)

// Handler applies one entry. It must be deterministic: it may use only the
// entry and tx. An error rejects the entry.
type Handler func(tx *Tx, e *log.Entry) error

// Module is a state package's contribution to a machine.
type Module struct {
	Name     string // the package below the module root: "fsm/user"
	Tables   []*Table
	Handlers map[log.Kind]Handler
}

// Result is the outcome of one entry.
type Result struct {
	Index uint64 // log index at which the entry was first applied
	Value []byte // what the handler set with SetResult
	Err   error  // why the entry was rejected: always a *fault.Error
}

// Machine applies one log. Apply must be called from one goroutine at a time; reading is free for all.
type Machine struct {
	store    Store
	log      log.Name
	handlers map[log.Kind]Handler
	keyless  map[log.Kind]bool
	tables   []*Table
	digests  map[*Table]uint64
	applied  atomic.Uint64
	version  atomic.Uint32 // cluster version
	now      atomic.Int64  // Unix nanoseconds
	halted   atomic.Pointer[fault.Error]
	batch    overlay // what the record being applied has written
	own      overlay // and its present entry
	watchers []func(index uint64, changes []Change)
	reloads  []func()
}

// meta keys stand outside every table.
var (
	metaHead   = []byte("!head")       // applied index, time in Unix nanoseconds, cluster version: 8 bytes each
	metaDigest = []byte("!digest\x00") // and the table's name: its digest, 8 bytes
)

// MaxKept is for how many log indexes an idempotency key is remembered. A retry
// that comes later than that is applied again.
const MaxKept = 1 << 16

var (
	keptKeys  = NewTable("idempotency")       // key → result
	keptOrder = NewTable("idempotency-order") // index, ordinal → key
)

// New opens the machine of one log over a store, which may hold earlier state.
// It panics if two modules claim one kind or table, or a module claims a kind
// that the kind table gives to another owner.
func New(store Store, name log.Name, modules ...Module) (*Machine, error) {
	m := &Machine{store: store, log: name, handlers: map[log.Kind]Handler{}, keyless: map[log.Kind]bool{}, digests: map[*Table]uint64{}}
	for _, mod := range modules {
		m.register(mod)
	}
	m.addTables(keptKeys, keptOrder)
	return m, m.Reload()
}

func (m *Machine) register(mod Module) {
	// order: each handler goes to its own place in a map
	for k, h := range mod.Handlers {
		info, ok := k.Info()
		if !ok || info.Owner != mod.Name || info.Log != m.log {
			panic(fmt.Sprintf("fsm: module %s may not handle %v of log %s", mod.Name, k, m.log))
		}
		if m.handlers[k] != nil {
			panic("fsm: two handlers for " + k.String())
		}
		m.handlers[k], m.keyless[k] = h, info.Keyless
	}
	m.addTables(mod.Tables...)
}

func (m *Machine) addTables(tables ...*Table) {
	for _, t := range tables {
		for _, have := range m.tables {
			if have.name == t.name {
				panic("fsm: two tables named " + t.name)
			}
		}
		m.tables = append(m.tables, t)
	}
}

// Reload reads applied index, time and digests from the store again; needed after the store was replaced by a snapshot.
func (m *Machine) Reload() error {
	head, err := headOf(m.store)
	if err != nil {
		return err
	}
	for _, t := range m.tables {
		sum, err := meta(m.store, digestKey(t), 8)
		if err != nil {
			return err
		}
		m.digests[t] = binary.BigEndian.Uint64(sum)
	}
	m.now.Store(int64(binary.BigEndian.Uint64(head[8:])))
	m.version.Store(max(uint32(binary.BigEndian.Uint64(head[16:])), uint32(log.OldestVersion)))
	m.applied.Store(binary.BigEndian.Uint64(head))
	m.halted.Store(nil)
	for _, fn := range m.reloads {
		fn()
	}
	return nil
}

// headOf returns the head of a state, from its row, or of the rows for each of its
// parts that a release before wrote: in its folder, or in a backup. Zeros if there are none.
func headOf(r StoreReader) ([]byte, error) {
	head, err := meta(r, metaHead, 24)
	if err != nil || binary.BigEndian.Uint64(head) != 0 {
		return head, err
	}
	head = nil // a row is not ours to change
	for _, key := range []string{"!applied", "!time", "!version"} {
		part, err := meta(r, []byte(key), 8)
		if err != nil {
			return nil, err
		}
		head = append(head, part...)
	}
	return head, nil
}

func digestKey(t *Table) []byte {
	return append(metaDigest[:len(metaDigest):len(metaDigest)], t.name...)
}

// meta returns a meta row of that size; zeros if there is none.
func meta(r StoreReader, key []byte, size int) ([]byte, error) {
	v, ok, err := r.Get(key)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "fsm.open", string(key))
	}
	if !ok || len(v) != size {
		return make([]byte, size), nil
	}
	return v, nil
}

// OnApply registers fn to be called after each applied record, in order, from
// the applying goroutine. fn must be quick and must not call Apply. Register before the first Apply.
func (m *Machine) OnApply(fn func(index uint64, changes []Change)) {
	m.watchers = append(m.watchers, fn)
}

// OnReload registers fn to be called at the end of each Reload: all state may
// have changed without a change feed, so whoever caches rows reads them again.
// Register before the first Apply.
func (m *Machine) OnReload(fn func()) { m.reloads = append(m.reloads, fn) }

// Applied returns the index of the last applied record.
func (m *Machine) Applied() uint64 { return m.applied.Load() }

// Version returns the cluster version in force.
func (m *Machine) Version() log.ClusterVersion { return log.ClusterVersion(m.version.Load()) }

// Halted returns why the machine stopped applying, or nil. A machine halts at
// an entry that it must understand and does not: a newer release is needed.
func (m *Machine) Halted() error {
	if f := m.halted.Load(); f != nil {
		return f
	}
	return nil
}

// Apply applies the record at index and returns a result for each of its
// entries. Records at or below the applied index are skipped (nil results).
// After a halt nothing is applied (nil results) and Halted says why.
// A store that fails to write panics: the process must not go on.
func (m *Machine) Apply(index uint64, record []byte) []Result {
	if index <= m.applied.Load() || m.halted.Load() != nil {
		return nil
	}
	entries, err := log.Decode(record)
	if err == nil {
		err = m.understood(entries)
	}
	if err != nil {
		m.halted.Store(&fault.Error{Code: fault.Internal, Op: "fsm.apply", Subject: fmt.Sprint(index), Err: err})
		return nil
	}
	defer m.batch.reset()
	results := make([]Result, len(entries))
	for i, e := range entries {
		results[i] = m.applyEntry(index, i, e)
	}
	m.commit(index, &m.batch)
	return results
}

// Skip records that index holds nothing for this machine (a Raft configuration or a no-op).
func (m *Machine) Skip(index uint64) {
	if index > m.applied.Load() && m.halted.Load() == nil {
		m.commit(index, &overlay{})
	}
}

func (m *Machine) understood(entries []*log.Entry) error {
	for _, e := range entries {
		info, known := e.Kind.Info()
		if m.handlers[e.Kind] == nil && !(known && info.Optional) {
			return fault.New(fault.NotSupported, "fsm.apply", e.Kind.String(), "this release does not know this kind of entry; upgrade this node")
		}
	}
	return nil
}

// applyEntry applies one entry on top of m.batch.
func (m *Machine) applyEntry(index uint64, ordinal int, e *log.Entry) Result {
	m.now.Store(m.later(e.Time))
	defer m.own.reset()
	tx := &Tx{m: m, index: index, place: ordinal, time: time.Unix(0, m.now.Load()).UTC(), base: &m.batch, own: &m.own}
	key := m.key(e)
	if kept, ok := tx.kept(key); ok {
		return kept
	}
	res := Result{Index: index}
	if err := m.run(tx, e); err != nil {
		res.Err = err
		tx.own.reset()
		tx.result = nil
	} else if tx.version != 0 {
		m.version.Store(uint32(tx.version))
	}
	res.Value = tx.result
	tx.keep(key, ordinal, res)
	for _, full := range tx.own.order {
		m.batch.put(full, tx.own.rows[full])
	}
	return res
}

// Keyless reports whether entries of a kind need no idempotency key: log.KindInfo.Keyless.
func (m *Machine) Keyless(k log.Kind) bool { return m.keyless[k] }

// key is the idempotency key that counts for an entry; "" for none.
func (m *Machine) key(e *log.Entry) string {
	if m.keyless[e.Kind] {
		return ""
	}
	return e.Key
}

// later returns the machine's time or t, whichever is later, in Unix nanoseconds.
func (m *Machine) later(t time.Time) int64 { return max(m.now.Load(), t.UnixNano()) }

func (m *Machine) run(tx *Tx, e *log.Entry) error {
	info, _ := e.Kind.Info()
	if info.Since > m.Version() {
		return fault.New(fault.NotSupported, "fsm.apply", e.Kind.String(), "the cluster's version is too low for this; finish the upgrade first")
	}
	h := m.handlers[e.Kind]
	if h == nil {
		return nil // optional and unknown: skipped
	}
	err := h(tx, e)
	if err == nil {
		return nil
	}
	if _, ok := err.(*fault.Error); !ok {
		err = fault.Wrap(err, fault.CodeOf(err), e.Kind.String(), "")
	}
	return err
}

// Check runs the handler of e against the present state and throws its writes
// away: it is the same validation that Apply will do. It must not run
// concurrently with Apply's own goroutine expecting the same answer: state may move on in between.
func (m *Machine) Check(e *log.Entry) error {
	if _, ok := e.Kind.Info(); !ok || m.handlers[e.Kind] == nil {
		return fault.New(fault.NotSupported, "fsm.check", e.Kind.String(), "")
	}
	tx := &Tx{m: m, index: m.Applied() + 1, time: time.Unix(0, m.later(e.Time)).UTC(), base: &overlay{}, own: &overlay{}}
	if _, done := tx.kept(m.key(e)); done {
		return nil // a retry: Apply will return the first outcome
	}
	return m.run(tx, e)
}

// commit stores a record's writes with the applied index and the digests, then tells the watchers.
func (m *Machine) commit(index uint64, batch *overlay) {
	changes := make([]Change, 0, len(batch.order))
	ops := make([]Op, 0, len(batch.order)+4)
	touched := make([]*Table, 0, 4)
	for _, full := range batch.order {
		r := batch.rows[full]
		var before []byte
		had := false
		if !r.fresh {
			before, had = m.load(m.store, r.full)
		}
		if !had && r.value == nil || had && r.value != nil && string(before) == string(r.value) {
			continue
		}
		if !had {
			before = nil
		} else if before == nil {
			before = []byte{}
		}
		ops = append(ops, Op{Key: r.full, Value: r.value, Delete: r.value == nil})
		changes = append(changes, Change{Table: r.table, Key: r.key(), Before: before, After: r.value, Index: index})
		m.digests[r.table] += rowHash(full, r.value) - rowHash(full, before)
		touched = appendNew(touched, r.table)
	}
	for _, t := range touched {
		ops = append(ops, Op{Key: digestKey(t), Value: be64(m.digests[t])})
	}
	head := binary.BigEndian.AppendUint64(make([]byte, 0, 24), index)
	head = binary.BigEndian.AppendUint64(head, uint64(m.now.Load()))
	ops = append(ops, Op{Key: metaHead, Value: binary.BigEndian.AppendUint64(head, uint64(m.version.Load()))})
	must(m.store.Apply(ops), "fsm.commit", fmt.Sprint(index))
	m.applied.Store(index)
	for _, fn := range m.watchers {
		fn(index, changes)
	}
}

func appendNew(list []*Table, t *Table) []*Table {
	for _, have := range list {
		if have == t {
			return list
		}
	}
	return append(list, t)
}

// rowHash is a row's part of its table's digest; an absent row has none.
func rowHash(full string, value []byte) uint64 {
	if value == nil {
		return 0
	}
	var d xxhash.Digest
	d.Reset()
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(full)))
	d.Write(n[:])
	d.WriteString(full)
	d.Write(value)
	return d.Sum64()
}

// SetVersion raises the cluster version if the entry is accepted; for the
// handlers of log.ClusterInit and log.ClusterVersionSet.
func (tx *Tx) SetVersion(v log.ClusterVersion) { tx.version = v }

func be64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

// must panics on a store failure. The machine's state would no longer be what
// the log says, so nothing may go on: the process ends and replays at its next start.
func must(err error, op, subject string) {
	if err != nil {
		panic(&fault.Error{Code: fault.Internal, Op: op, Subject: subject, Err: err})
	}
}
