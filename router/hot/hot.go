// Package hot is the hot store: each node's table of who is online where.
//
// A row is one available session's presence. Its origin is the node that holds
// the session's connection; only the origin writes it, and it reaches every
// other node as an operation with the origin's sequence number. The router
// writes and streams rows, features read them and watch their changes.
//
// Invariants: rows of one origin carry one incarnation of that node, and the
// fact "node N is down up to incarnation e" removes them all, once, and keeps
// late ones out. Every real change of a row is told exactly once, and in order
// for each user. What a store holds of an origin is that origin's rows as of a
// Position, so that a reconnect repairs only what is missing. Rows are kept in
// Pebble without syncing: after a crash they are streamed again. Presence
// stanzas are held in memory up to a bound, the rest is read from Pebble.
package hot

import (
	"time"

	"muster/internal/jid"
)

// Limits of the store.
const (
	DefaultResident = 128 << 20       // bytes of presence stanzas kept in memory: about 300,000 sessions
	MaxPresence     = 512 << 10       // bytes of one presence stanza; client streams accept half of that
	RecentFor       = 2 * time.Minute // for how long Recent tells of removed rows: longer than any failover
	maxRecent       = 4096            // removed rows remembered in each shard
	maxRing         = 1 << 16         // own operations kept for peers that reconnect
	maxRingBytes    = 16 << 20        // bytes of them
	shardCount      = 64              // independent locks
)

// Row is the presence of one available session.
type Row struct {
	User        jid.JID // bare
	Resource    string
	Node        uint32 // that holds the session: the row's origin
	Incarnation uint64 // of Node
	Session     uint64 // id of the session
	Version     uint64 // the origin's sequence number of the operation that wrote the row
	Priority    int8
	Since       time.Time // of this presence
	Lingers     bool      // it outlives its node for a while: its client can go on at another one
	Presence    []byte    // the presence stanza as broadcast, canonical: from is the full address, no to; never changed
}

// Change is one real change of a user's resource as this node sees it.
type Change struct {
	User          jid.JID
	Resource      string
	Before, After *Row   // nil: there was, there is none; never changed
	Farewell      []byte // of a removed row: the client's own unavailable presence, canonical; nil if it sent none
}

// Gone tells of a row that was removed a short while ago.
type Gone struct {
	Resource string
	At       time.Time
}

// Position says how much of an origin's operations a store has taken in.
type Position struct {
	Incarnation, Sequence uint64
}
