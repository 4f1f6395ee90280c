package hot

import (
	"hash/maphash"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"muster/internal/jid"
)

// Store is the hot store of one node. It is safe for concurrent use.
type Store struct {
	db       *pebble.DB
	self     uint32
	limit    int64
	resident atomic.Int64
	count    atomic.Int64
	seed     maphash.Seed
	shards   [shardCount]shard
	own      own
	origins  origins
	watchers []func(Change)
	gate     sync.RWMutex // held for reading while the database is used
	closed   bool         // under gate
}

// Options say how to open a store.
type Options struct {
	DB       *pebble.DB // of its own: no other keys may be in it
	Self     uint32     // this node: the origin of its own rows
	Resident int64      // bytes of presence stanzas kept in memory, the rest is read from the database; 0: DefaultResident
}

// shard holds a part of the users. emit is held around a change and the
// telling of it, so that changes of one user are told in order; mu guards the
// maps only, so that whoever is told may read. emit comes before own.mu, own.mu before mu.
type shard struct {
	emit  sync.Mutex
	mu    sync.RWMutex
	users map[jid.JID][]*slot // rows in order of arrival
	gone  []tombstone         // oldest first
}

// slot is a row in memory. Its Presence is nil while the stanza is only in the database.
type slot struct {
	Row
	size int // bytes of the presence stanza
}

type tombstone struct {
	user jid.JID
	Gone
}

// Open opens the store and removes this node's own rows: their sessions went
// with the process. Recent tells of them: who watches them may not have heard,
// since a node that is back soon enough is never declared down.
func Open(o Options) (*Store, error) {
	if o.Resident == 0 {
		o.Resident = DefaultResident
	}
	s := &Store{db: o.DB, self: o.Self, limit: o.Resident, seed: maphash.MakeSeed()}
	for i := range s.shards {
		s.shards[i].users = map[jid.JID][]*slot{}
	}
	s.own.peers = map[uint32]*subscription{}
	s.origins.known = map[uint32]*origin{}
	if err := s.load(); err != nil {
		return nil, err
	}
	s.eachShard(func(sh *shard) {
		s.removeIf(sh, s.self, func(*slot) bool { return true })
	})
	return s, nil
}

// Close ends the use of the database, which its owner may close afterwards.
// What is still written goes to memory only.
func (s *Store) Close() {
	s.own.mu.Lock()
	clear(s.own.peers)
	s.own.mu.Unlock()
	s.gate.Lock()
	defer s.gate.Unlock()
	s.closed = true
}

// OnChange registers fn for every change, in order per user. fn may read the
// store; it must not write to it, and other changes wait for it. Register before the first write.
func (s *Store) OnChange(fn func(Change)) { s.watchers = append(s.watchers, fn) }

// Begin makes incarnation the one that this node's rows carry. Rows that are
// there already (the node was declared down while it lived) are taken along.
// Peers must be subscribed again after it.
func (s *Store) Begin(incarnation uint64) {
	s.own.mu.Lock()
	defer s.own.mu.Unlock()
	s.own.restart(incarnation)
	s.eachShard(func(sh *shard) {
		sh.mu.Lock()
		defer sh.mu.Unlock()
		for _, rows := range sh.users {
			for i, sl := range rows {
				if sl.Node == s.self {
					renewed := *sl
					s.own.seq++
					renewed.Incarnation, renewed.Version = incarnation, s.own.seq
					rows[i] = &renewed
				}
			}
		}
	})
}

// Rows returns the user's rows, best first: by priority, then the newest.
func (s *Store) Rows(user jid.JID) []Row {
	var out []Row
	for _, sl := range s.slots(user) {
		if r, ok := s.fill(sl); ok {
			out = append(out, r)
		}
	}
	if len(out) > 1 {
		sort.SliceStable(out, func(i, j int) bool {
			if out[i].Priority != out[j].Priority {
				return out[i].Priority > out[j].Priority
			}
			return out[i].Since.After(out[j].Since)
		})
	}
	return out
}

// Row returns the row of one resource.
func (s *Store) Row(user jid.JID, resource string) (Row, bool) {
	for _, sl := range s.slots(user) {
		if sl.Resource == resource {
			return s.fill(sl)
		}
	}
	return Row{}, false
}

// Heads returns the user's rows in no order, without their presence stanzas. It does not touch the database.
func (s *Store) Heads(user jid.JID) []Row {
	slots := s.slots(user)
	out := make([]Row, len(slots))
	for i, sl := range slots {
		out[i] = sl.Row
		out[i].Presence = nil
	}
	return out
}

// Online reports whether the user has a row. It does not touch the database.
func (s *Store) Online(user jid.JID) bool {
	sh := s.shard(user)
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	return len(sh.users[user]) > 0
}

// Each calls fn for every row of an origin, without the presence stanza, until it returns false.
func (s *Store) Each(node uint32, fn func(Row) bool) {
	for i := range s.shards {
		for _, sl := range s.shards[i].of(node) {
			r := sl.Row
			r.Presence = nil
			if !fn(r) {
				return
			}
		}
	}
}

// Count returns how many rows there are.
func (s *Store) Count() int { return int(s.count.Load()) }

// ResidentBytes returns how many bytes of presence stanzas are held in memory.
func (s *Store) ResidentBytes() int64 { return s.resident.Load() }

// Recent returns the user's rows that were removed in the last RecentFor and are not there again.
func (s *Store) Recent(user jid.JID) []Gone {
	sh := s.shard(user)
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	var out []Gone
	since := time.Now().Add(-RecentFor)
	for _, t := range sh.gone {
		if t.user == user && t.At.After(since) && visible(sh.users[user], t.Resource) == nil {
			out = without(out, t.Resource)
			out = append(out, t.Gone)
		}
	}
	return out
}

func without(list []Gone, resource string) []Gone {
	for i := range list {
		if list[i].Resource == resource {
			return append(list[:i], list[i+1:]...)
		}
	}
	return list
}

func (s *Store) shard(user jid.JID) *shard {
	return &s.shards[maphash.String(s.seed, user.Local)%shardCount]
}

func (s *Store) eachShard(fn func(*shard)) {
	for i := range s.shards {
		fn(&s.shards[i])
	}
}

// slots returns the visible rows of a user: of two origins' rows for one resource the one that arrived last.
func (s *Store) slots(user jid.JID) []*slot {
	sh := s.shard(user)
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	rows := sh.users[user]
	if len(rows) == 0 {
		return nil
	}
	out := make([]*slot, 0, len(rows))
	for _, sl := range rows {
		if visible(rows, sl.Resource) == sl {
			out = append(out, sl)
		}
	}
	return out
}

// of returns the shard's rows of one origin.
func (sh *shard) of(node uint32) []*slot {
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	var out []*slot
	for _, rows := range sh.users {
		for _, sl := range rows {
			if sl.Node == node {
				out = append(out, sl)
			}
		}
	}
	return out
}

// visible returns the row that counts for a resource: the one that arrived last.
func visible(rows []*slot, resource string) *slot {
	for i := len(rows) - 1; i >= 0; i-- {
		if rows[i].Resource == resource {
			return rows[i]
		}
	}
	return nil
}

// fill returns the row with its presence stanza, which may have to be read; false if it is gone by now.
func (s *Store) fill(sl *slot) (Row, bool) {
	if sl.Presence != nil || sl.size == 0 {
		return sl.Row, true
	}
	r, ok := s.read(sl)
	if !ok {
		return Row{}, false
	}
	return r, true
}
