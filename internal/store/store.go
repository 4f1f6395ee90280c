// Package store is the ordered key-value store under the machines: fsm.Store on
// Pebble. cmd opens one for each log, package replication checkpoints it for
// snapshots and replaces it by a received one, and the router's hot store works
// on its Pebble directly.
//
// Invariants: a batch is written whole or not at all. Writes are not synced:
// after a crash the machine replays the log from the index that the store
// still holds, so a log may be cut only behind what Flush has made durable.
// Replace either takes over the new contents completely or keeps the old ones.
// Get may answer from memory (rows), which never shows: it holds what the store
// holds, and readers see batches in their order.
package store

import (
	"bytes"
	"fmt"
	"log/slog"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/atomicfs"

	"muster/fsm"
	"muster/internal/fault"
)

// Sizes that keep an idle store small; a node has two or three of them.
const (
	DefaultCache = 8 << 20 // bytes of block cache if Options names none
	memTable     = 4 << 20 // bytes of one memtable if Options names none; two may exist while one is flushed
	blockBytes   = 8 << 10 // of a table: larger ones cost less to write and more to read a row from
	maxOpenFiles = 256     // table files kept open
	filterBits   = 10      // Bloom filter bits for each key: one read in a hundred is wasted
)

const markerName = "generation" // names the subdirectory that is in force

// Options say how to open a store. The zero value is a writable store on disk.
type Options struct {
	FS         vfs.FS       // nil: the disk
	CacheBytes int64        // block cache; 0: DefaultCache
	MemTable   uint64       // bytes gathered in memory for one table: more is less to compact; it grows to that under load. 0: 4 MiB
	ReadOnly   bool         // refuse writes; the directory is left as it is
	Logger     *slog.Logger // nil: errors only go to the default logger

	// Fatal hears that the store cannot go on: a file is damaged, or a write
	// failed. It comes from any goroutine, Pebble's own too, and should end the
	// process. nil, or when it returns: damage is the reader's error, a failed write panics.
	Fatal func(*fault.Error)
}

// DB is an open store. It is safe for concurrent use.
type DB struct {
	dir    string
	opts   Options
	marker *atomicfs.Marker // nil: dir itself is the database (a checkpoint)
	mu     sync.RWMutex     // guards cur and closed
	cur    *generation
	closed bool
}

var _ fsm.Store = (*DB)(nil)

// Open opens the store in dir and creates it if there is none. A directory
// written by Checkpoint can be opened too, but not replaced.
func Open(dir string, opts Options) (*DB, error) {
	if opts.FS == nil {
		opts.FS = vfs.Default
	}
	if opts.CacheBytes == 0 {
		opts.CacheBytes = DefaultCache
	}
	if opts.MemTable == 0 {
		opts.MemTable = memTable
	}
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	d := &DB{dir: dir, opts: opts}
	path, err := d.locate()
	if err != nil {
		return nil, openFailed(dir, err)
	}
	if d.cur, err = d.openAt(path); err != nil {
		return nil, openFailed(dir, err)
	}
	if d.marker != nil && !opts.ReadOnly {
		d.sweep(path)
	}
	return d, nil
}

// locate finds the directory of the database in force.
func (d *DB) locate() (string, error) {
	fs := d.opts.FS
	if !d.opts.ReadOnly {
		if err := makeDir(fs, d.dir); err != nil {
			return "", err
		}
	}
	if desc, err := pebble.Peek(d.dir, fs); err == nil && desc.Exists {
		return d.dir, nil
	}
	if d.opts.ReadOnly {
		name, err := atomicfs.ReadMarker(fs, d.dir, markerName)
		return fs.PathJoin(d.dir, name), err
	}
	marker, name, err := atomicfs.LocateMarker(fs, d.dir, markerName)
	if err != nil {
		return "", err
	}
	d.marker = marker
	if name == "" {
		name = "gen-1"
		if err := fs.MkdirAll(fs.PathJoin(d.dir, name), 0o700); err != nil {
			return "", err
		}
		if err := marker.Move(name); err != nil { // syncs dir, too
			return "", err
		}
	}
	return fs.PathJoin(d.dir, name), nil
}

// makeDir creates dir durably: without its entry in the parent, all that is synced inside is lost with it.
func makeDir(fs vfs.FS, dir string) error {
	if _, err := fs.Stat(dir); err == nil {
		return nil
	}
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return syncDir(fs, fs.PathDir(dir))
}

// syncDir makes the entries of a directory durable.
func syncDir(fs vfs.FS, dir string) error {
	f, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}

func (d *DB) openAt(path string) (g *generation, err error) {
	defer func() {
		if p := recover(); p != nil { // what Pebble finds wrong with its manifest it calls fatal
			err = fmt.Errorf("%w: %v", errDamaged, p)
		}
	}()
	cache := pebble.NewCache(d.opts.CacheBytes)
	defer cache.Unref()
	po := &pebble.Options{
		FS: d.opts.FS, Cache: cache, ReadOnly: d.opts.ReadOnly, Logger: d.quiet(), EventListener: d.listener(path),
		MemTableSize: d.opts.MemTable, MaxOpenFiles: maxOpenFiles,
		FormatMajorVersion: pebble.FormatNewest,
	}
	for i := range po.Levels {
		po.Levels[i].BlockSize = blockBytes
		po.Levels[i].FilterPolicy = bloom.FilterPolicy(filterBits) // most reads before a write find nothing
	}
	po.ApplyCompressionSettings(func() pebble.DBCompressionSettings { return pebble.DBCompressionFastest })
	p, err := pebble.Open(path, po)
	if err != nil {
		return nil, err
	}
	return &generation{pebble: p, path: path, rows: newRows(rowBytes)}, nil
}

// use returns the generation in force; the caller must release it.
func (d *DB) use() (*generation, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.closed {
		return nil, fault.New(fault.Unavailable, "store.use", d.dir, "the store is closed")
	}
	d.cur.users.Add(1)
	return d.cur, nil
}

// Get implements fsm.StoreReader.
func (d *DB) Get(key []byte) ([]byte, bool, error) {
	g, err := d.use()
	if err != nil {
		return nil, false, err
	}
	defer g.users.Done()
	return g.get(key)
}

// Scan implements fsm.StoreReader.
func (d *DB) Scan(lower, upper []byte, fn func(key, value []byte) bool) error {
	g, err := d.use()
	if err != nil {
		return err
	}
	defer g.users.Done()
	return scan(g.pebble, lower, upper, fn)
}

// ScanBack implements fsm.StoreReader.
func (d *DB) ScanBack(lower, upper []byte, fn func(key, value []byte) bool) error {
	g, err := d.use()
	if err != nil {
		return err
	}
	defer g.users.Done()
	return scanBack(g.pebble, lower, upper, fn)
}

// Apply implements fsm.Store.
func (d *DB) Apply(ops []fsm.Op) error {
	g, err := d.use()
	if err != nil {
		return err
	}
	defer g.users.Done()
	return fault.Wrap(g.apply(ops), fault.Internal, "store.apply", d.dir)
}

// Snapshot implements fsm.Store.
func (d *DB) Snapshot() (fsm.StoreSnapshot, error) {
	g, err := d.use()
	if err != nil {
		return nil, err
	}
	return &snapshot{g: g, snap: g.pebble.NewSnapshot()}, nil
}

// Flush makes all writes so far durable.
func (d *DB) Flush() error {
	g, err := d.use()
	if err != nil {
		return err
	}
	defer g.users.Done()
	return fault.Wrap(g.pebble.LogData(nil, pebble.Sync), fault.Internal, "store.flush", d.dir)
}

// Checkpoint writes a consistent copy to dir, which must not exist and should
// be on the same file system: files are hard-linked, which takes milliseconds.
func (d *DB) Checkpoint(dir string) error {
	g, err := d.use()
	if err != nil {
		return err
	}
	defer g.users.Done()
	return fault.Wrap(g.pebble.Checkpoint(dir, pebble.WithFlushedWAL()), fault.Internal, "store.checkpoint", dir)
}

// DiskUsage returns how many bytes the store takes on disk, with its write-ahead
// log. What was deleted counts until it was compacted away.
func (d *DB) DiskUsage() uint64 {
	g, err := d.use()
	if err != nil {
		return 0
	}
	defer g.users.Done()
	return g.pebble.Metrics().DiskSpaceUsage()
}

// Pebble returns the database in force, for callers that need more than
// fsm.Store. It is no longer valid after Replace or Close.
func (d *DB) Pebble() *pebble.DB {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.cur.pebble
}

// Close flushes and closes the store, once all snapshots and scans have ended.
func (d *DB) Close() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil
	}
	d.closed = true
	cur := d.cur
	d.mu.Unlock()
	cur.users.Wait()
	var err error
	if !d.opts.ReadOnly {
		err = cur.pebble.LogData(nil, pebble.Sync)
	}
	if cerr := cur.pebble.Close(); err == nil {
		err = cerr
	}
	if d.marker != nil {
		if cerr := d.marker.Close(); err == nil {
			err = cerr
		}
	}
	return fault.Wrap(err, fault.Internal, "store.close", d.dir)
}

func get(r pebble.Reader, key []byte) ([]byte, bool, error) {
	v, closer, err := r.Get(key)
	if err == pebble.ErrNotFound {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fault.Wrap(err, fault.Internal, "store.get", "")
	}
	out := append(make([]byte, 0, len(v)), v...)
	return out, true, fault.Wrap(closer.Close(), fault.Internal, "store.get", "")
}

func scan(r pebble.Reader, lower, upper []byte, fn func(key, value []byte) bool) error {
	return iterate(r, lower, upper, (*pebble.Iterator).First, (*pebble.Iterator).Next, fn)
}

func scanBack(r pebble.Reader, lower, upper []byte, fn func(key, value []byte) bool) error {
	return iterate(r, lower, upper, (*pebble.Iterator).Last, (*pebble.Iterator).Prev, fn)
}

func iterate(r pebble.Reader, lower, upper []byte, begin, next func(*pebble.Iterator) bool, fn func(key, value []byte) bool) error {
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: bytes.Clone(lower), UpperBound: bytes.Clone(upper)})
	if err != nil {
		return fault.Wrap(err, fault.Internal, "store.scan", "")
	}
	defer it.Close()
	for ok := begin(it); ok; ok = next(it) {
		v, err := it.ValueAndErr()
		if err != nil {
			return fault.Wrap(err, fault.Internal, "store.scan", "")
		}
		if !fn(it.Key(), v) {
			break
		}
	}
	return fault.Wrap(it.Error(), fault.Internal, "store.scan", "")
}
