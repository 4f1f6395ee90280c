package simnode

import (
	"maps"
	"sync"

	"github.com/hashicorp/raft"
)

// disk is a node's log and votes. What was written survives a crash: the real
// store returns from a write after its fsync. It can be stalled, as a hung disk is.
type disk struct {
	mu    sync.Mutex
	clear *sync.Cond // on mu: the stall is over
	stall bool
	logs  map[uint64]raft.Log
	first uint64
	last  uint64
	votes map[string]string
	terms map[string]uint64
}

var (
	_ raft.LogStore    = (*disk)(nil)
	_ raft.StableStore = (*disk)(nil)
)

func newDisk() *disk {
	d := &disk{logs: map[uint64]raft.Log{}, votes: map[string]string{}, terms: map[string]uint64{}}
	d.clear = sync.NewCond(&d.mu)
	return d
}

// setStall makes all writes wait, or lets them go on.
func (d *disk) setStall(on bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stall = on
	d.clear.Broadcast()
}

func (d *disk) stalled() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stall
}

// stop makes writes wait while fn runs, which may copy other parts of the node's storage.
func (d *disk) stop(fn func()) (copied *disk) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fn()
	c := newDisk()
	c.logs, c.votes, c.terms = maps.Clone(d.logs), maps.Clone(d.votes), maps.Clone(d.terms)
	c.first, c.last = d.first, d.last
	d.stall = false // what is left of the process writes to a disk that nobody reads
	d.clear.Broadcast()
	return c
}

// write runs fn when the disk is not stalled.
func (d *disk) write(fn func()) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.stall {
		d.clear.Wait()
	}
	fn()
	return nil
}

// FirstIndex implements raft.LogStore.
func (d *disk) FirstIndex() (uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.first, nil
}

// LastIndex implements raft.LogStore.
func (d *disk) LastIndex() (uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.last, nil
}

// GetLog implements raft.LogStore.
func (d *disk) GetLog(index uint64, out *raft.Log) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	l, ok := d.logs[index]
	if !ok {
		return raft.ErrLogNotFound
	}
	*out = l
	return nil
}

// StoreLog implements raft.LogStore.
func (d *disk) StoreLog(l *raft.Log) error { return d.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore.
func (d *disk) StoreLogs(logs []*raft.Log) error {
	return d.write(func() {
		for _, l := range logs {
			d.logs[l.Index] = *l
			if d.first == 0 {
				d.first = l.Index
			}
			d.last = max(d.last, l.Index)
		}
	})
}

// DeleteRange implements raft.LogStore.
func (d *disk) DeleteRange(lo, hi uint64) error {
	return d.write(func() {
		for i := lo; i <= hi; i++ {
			delete(d.logs, i)
		}
		if lo <= d.first {
			d.first = hi + 1
		}
		if hi >= d.last {
			d.last = lo - 1
		}
		if len(d.logs) == 0 {
			d.first, d.last = 0, 0
		}
	})
}

// Set implements raft.StableStore.
func (d *disk) Set(key, val []byte) error {
	return d.write(func() { d.votes[string(key)] = string(val) })
}

// Get implements raft.StableStore. The library knows a missing key by this text.
func (d *disk) Get(key []byte) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v, ok := d.votes[string(key)]
	if !ok {
		return nil, errNotFound
	}
	return []byte(v), nil
}

// SetUint64 implements raft.StableStore.
func (d *disk) SetUint64(key []byte, val uint64) error {
	return d.write(func() { d.terms[string(key)] = val })
}

// GetUint64 implements raft.StableStore.
func (d *disk) GetUint64(key []byte) (uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v, ok := d.terms[string(key)]
	if !ok {
		return 0, errNotFound
	}
	return v, nil
}

type notFound struct{}

func (notFound) Error() string { return "not found" }

var errNotFound error = notFound{}
