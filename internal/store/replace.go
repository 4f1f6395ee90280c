package store

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2"

	"muster/fsm"
	"muster/internal/fault"
)

// generation is one database directory of a store; Replace begins a new one.
type generation struct {
	pebble *pebble.DB
	path   string
	rows   *rows
	writes sync.Mutex     // one batch at a time
	users  sync.WaitGroup // reads, writes and snapshots under way
}

// get returns a row as it was remembered, or from the store.
func (g *generation) get(key []byte) ([]byte, bool, error) {
	row, known, state := g.rows.find(key)
	if known {
		return row.value, row.ok, nil
	}
	v, ok, err := get(g.pebble, key)
	if err == nil {
		g.rows.remember(key, foundRow{v, ok}, state)
	}
	return v, ok, err
}

// apply stores a batch, and what is remembered follows it.
func (g *generation) apply(ops []fsm.Op) error {
	b := g.pebble.NewBatch()
	defer b.Close()
	for _, op := range ops {
		var err error
		if op.Delete {
			err = b.Delete(op.Key, nil)
		} else {
			err = b.Set(op.Key, op.Value, nil)
		}
		if err != nil {
			return err
		}
	}
	g.writes.Lock()
	defer g.writes.Unlock()
	g.rows.begin()
	defer g.rows.end()
	if err := b.Commit(pebble.NoSync); err != nil {
		g.rows.clear() // nobody knows what of it is stored
		return err
	}
	for _, op := range ops {
		g.rows.replace(op.Key, written(op))
	}
	return nil
}

// written is what an operation leaves under its key.
func written(op fsm.Op) foundRow {
	switch {
	case op.Delete:
		return foundRow{}
	case op.Value == nil:
		return foundRow{[]byte{}, true}
	}
	return foundRow{slices.Clip(op.Value), true} // whoever appends to what Get returns gets a copy
}

// snapshot is a consistent view; it keeps its generation open.
type snapshot struct {
	g    *generation
	snap *pebble.Snapshot
}

// Get implements fsm.StoreReader.
func (s *snapshot) Get(key []byte) ([]byte, bool, error) { return get(s.snap, key) }

// Scan implements fsm.StoreReader.
func (s *snapshot) Scan(lower, upper []byte, fn func(key, value []byte) bool) error {
	return scan(s.snap, lower, upper, fn)
}

// ScanBack implements fsm.StoreReader.
func (s *snapshot) ScanBack(lower, upper []byte, fn func(key, value []byte) bool) error {
	return scanBack(s.snap, lower, upper, fn)
}

// Close implements fsm.StoreSnapshot.
func (s *snapshot) Close() error {
	if s.snap == nil {
		return nil
	}
	err := s.snap.Close()
	s.snap = nil
	s.g.users.Done()
	return fault.Wrap(err, fault.Internal, "store.snapshot", "")
}

// Replace makes the checkpoint in dir, which must lie on the store's file
// system, the store's contents; dir is moved. Snapshots taken before stay
// readable until they are closed. Nobody may write meanwhile, and the machine
// above must Reload afterwards. After an error the old contents are in force.
func (d *DB) Replace(dir string) error {
	if d.marker == nil || d.opts.ReadOnly {
		return fault.New(fault.NotAllowed, "store.replace", d.dir, "the store was opened as a checkpoint")
	}
	fs := d.opts.FS
	path := fs.PathJoin(d.dir, d.nextName())
	if err := fs.Rename(dir, path); err != nil {
		return fault.Wrap(err, fault.Internal, "store.replace", dir)
	}
	next, err := d.openAt(path)
	if err != nil {
		_ = fs.RemoveAll(path) // the next Open sweeps it otherwise
		return fault.Wrap(err, fault.BadRequest, "store.replace", dir)
	}
	if err := d.marker.Move(fs.PathBase(path)); err != nil {
		_ = next.pebble.Close()
		return fault.Wrap(err, fault.Internal, "store.replace", dir)
	}
	d.mu.Lock()
	old := d.cur
	d.cur = next
	d.mu.Unlock()
	go d.retire(old)
	return nil
}

// retire closes and removes a replaced generation when its last reader has left.
func (d *DB) retire(g *generation) {
	g.users.Wait()
	if err := g.pebble.Close(); err != nil {
		d.opts.Logger.Error("store_retire_failed", "path", g.path, "error", err)
	}
	if err := d.opts.FS.RemoveAll(g.path); err != nil {
		d.opts.Logger.Error("store_retire_failed", "path", g.path, "error", err)
	}
}

func (d *DB) nextName() string {
	highest := 0
	for _, name := range d.generations() {
		var n int
		if _, err := fmt.Sscanf(name, "gen-%d", &n); err == nil && n > highest {
			highest = n
		}
	}
	return fmt.Sprintf("gen-%d", highest+1)
}

func (d *DB) generations() []string {
	names, err := d.opts.FS.List(d.dir)
	if err != nil {
		return nil
	}
	var out []string
	for _, name := range names {
		if strings.HasPrefix(name, "gen-") {
			out = append(out, name)
		}
	}
	return out
}

// sweep removes generations that a crash left behind.
func (d *DB) sweep(current string) {
	for _, name := range d.generations() {
		if path := d.opts.FS.PathJoin(d.dir, name); path != current {
			if err := d.opts.FS.RemoveAll(path); err != nil {
				d.opts.Logger.Error("store_sweep_failed", "path", path, "error", err)
			}
		}
	}
}
