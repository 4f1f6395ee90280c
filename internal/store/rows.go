package store

import (
	"sync"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"
)

// rows remembers single rows of a generation, and which keys have none, so
// that what every message asks for costs a look-up in a map. Scans and
// snapshots do not use it.
//
// It holds only what the store held at some moment between two batches. While a
// batch is being stored, seq is odd: readers go to the store and remember
// nothing, so that nobody sees an old row after a new one. What a reader found
// is remembered only if no batch has begun since it looked; one that begins
// then replaces it. A written row takes the place of a remembered one and no
// other: rows that nobody asked for do not drive out those that somebody did.
//
// Each shard has two halves. A row that is asked for is in the young one; when
// that is full it becomes the old one, and the old one is dropped.
type rows struct {
	seq    atomic.Uint64
	half   int // bytes of a shard's half
	shards [rowShards]rowShard
}

const (
	rowBytes  = 8 << 20 // of all rows of a store
	rowShards = 16
	rowCost   = 128 // bytes that a row is counted for beyond its key and value
	rowPart   = 4   // a row of more than this part of a half is not remembered
)

type rowShard struct {
	mu         sync.RWMutex
	young, old map[string]*foundRow
	bytes      int // of young
}

// foundRow is what the store holds under a key. The bytes of a value are never changed.
type foundRow struct {
	value []byte
	ok    bool
}

func (f foundRow) cost(key []byte) int { return len(key) + len(f.value) + rowCost }

func newRows(bytes int) *rows { return &rows{half: bytes / rowShards / 2} }

func (r *rows) shard(key []byte) *rowShard { return &r.shards[xxhash.Sum64(key)%rowShards] }

// find returns what is remembered of a key; state is for remember.
func (r *rows) find(key []byte) (row foundRow, known bool, state uint64) {
	state = r.seq.Load()
	if state%2 != 0 {
		return row, false, state
	}
	s := r.shard(key)
	s.mu.RLock()
	got, late := s.young[string(key)], false
	if got != nil {
		row = *got
	} else {
		_, late = s.old[string(key)]
	}
	s.mu.RUnlock()
	if late {
		row, known = s.renew(key, r.half)
	}
	return row, known || got != nil, state
}

// renew takes a row from the old half to the young one.
func (s *rowShard) renew(key []byte, half int) (row foundRow, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if got := s.young[string(key)]; got != nil {
		return *got, true
	}
	got := s.old[string(key)]
	if got == nil {
		return row, false
	}
	row = *got
	delete(s.old, string(key))
	s.put(key, got, half)
	return row, true
}

// put places a row that is in neither half, unless it is too large. The caller holds mu.
func (s *rowShard) put(key []byte, row *foundRow, half int) {
	size := row.cost(key)
	if size > half/rowPart {
		return
	}
	if s.bytes+size > half {
		s.turn()
	}
	if s.young == nil {
		s.young = map[string]*foundRow{}
	}
	s.young[string(key)] = row
	s.bytes += size
}

// turn makes the young half the old one. The caller holds mu.
func (s *rowShard) turn() { s.old, s.young, s.bytes = s.young, nil, 0 }

// remember keeps what a reader found in the store after find had returned state.
func (r *rows) remember(key []byte, row foundRow, state uint64) {
	if state%2 != 0 {
		return
	}
	s := r.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.seq.Load() != state {
		return // a batch has begun: it may have changed the row and passed this shard
	}
	if s.young[string(key)] == nil {
		delete(s.old, string(key))
		s.put(key, &row, r.half)
	}
}

// begin says that a batch is about to be stored; end must follow. Batches come one after the other.
func (r *rows) begin() { r.seq.Add(1) }

// end says that the batch is stored or failed.
func (r *rows) end() { r.seq.Add(1) }

// replace puts a written row in the place of the remembered one, if there is
// one. It is called between begin and end.
func (r *rows) replace(key []byte, row foundRow) {
	s := r.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	have := s.young[string(key)]
	if have == nil {
		if have = s.old[string(key)]; have == nil {
			return
		}
		delete(s.old, string(key))
		*have = row
		s.put(key, have, r.half)
		return
	}
	s.bytes += len(row.value) - len(have.value)
	*have = row
	switch size := row.cost(key); {
	case size > r.half/rowPart:
		delete(s.young, string(key))
		s.bytes -= size
	case s.bytes > r.half:
		s.turn()
	}
}

// clear forgets all rows; between begin and end, too.
func (r *rows) clear() {
	for i := range r.shards {
		s := &r.shards[i]
		s.mu.Lock()
		s.young, s.old, s.bytes = nil, nil, 0
		s.mu.Unlock()
	}
}
