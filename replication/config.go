package replication

import (
	"log/slog"
	"path/filepath"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"muster/fsm"
	"muster/fsm/cluster"
	"muster/replication/mesh"
	"muster/replication/pki"
)

// Config is what a Group needs. Zero durations and counts take the defaults below.
type Config struct {
	Name    string       // ControlLog or MessageLog; names the mesh streams ("raft/control")
	NodeID  uint32       // this node
	FS      vfs.FS       // where Dir lies; nil for the disk
	Dir     string       // folder of log, snapshots and state
	Store   Store        // under Machine, on the same file system as Dir
	Machine *fsm.Machine // over Store
	Mesh    *mesh.Mesh   // connections to the other members
	Logger  *slog.Logger // nil: slog.Default()
	Version string       // of the software, shown by Health

	// LogStore and StableStore replace the log's own store in Dir; for in-process
	// simulations. Both or none.
	LogStore    raft.LogStore
	StableStore raft.StableStore

	Members   func() []Member        // the node table, which the leader makes the Raft configuration follow; nil: membership is not reconciled
	MaxVoters int                    // of the Raft configuration; further members follow without a vote. 0: DefaultVoters
	Hold      func(node uint32) bool // a node that left the table is not removed yet while this says so, for HoldTime at most; may be nil

	Service func() string // what Health says of this node's services: NodeHealth.Service; nil: nothing

	Timing Timing
	Batch  func() Batch // how this node gathers proposals into records, asked for each; nil: DefaultBatch

	// Room says what the node's disk has room for and, where that is not
	// everything, why; it is asked often. nil: everything.
	Room func() (Room, string)
	// Relieve makes what room it can on a disk that a write found full; the write is then tried again, once. nil: nothing can be done.
	Relieve func()

	// Exit ends the process when going on could break a promise (a failed
	// fsync, a stalled disk, a damaged record), which is logged before. nil: os.Exit(ExitStatus).
	Exit func(reason string)
	// OnUnhealthy hears of what is wrong with this node and, with "", that it is well again.
	OnUnhealthy func(reason string)
	// OnRemoved hears that this node is no member any more.
	OnRemoved func(reason string)
	// OnReplaced hears that the whole state was replaced by a snapshot: rows
	// may have changed without having been in the change feed.
	OnReplaced func(index uint64)
}

// Room is what a node's disk has room for. A node that led, and whose disk is
// full, would refuse what the others could keep: it hands its lead to one with more room.
type Room uint8

// The sorts of room.
const (
	RoomForAll   Room = iota
	RoomToFollow      // for a while: this node does not lead if another can
	NoRoom            // neither its own proposals nor the records of others are taken, only Raft's own
)

// Batch bounds what one record gathers. Proposals gather while earlier records
// of the node are under way; an idle node's goes at once, or after Delay.
type Batch struct {
	Entries int           // at most so many, unless one proposal alone has more
	Bytes   int           // of bodies; reaching it ends the gathering
	Delay   time.Duration // for which a record waits for more proposals even though none is under way; 0: not at all
}

// DefaultBatch is Config.Batch when that is nil.
var DefaultBatch = Batch{Entries: 64, Bytes: 1 << 20}

// Store is the state under a group's machine (internal/store.DB).
type Store interface {
	// Checkpoint writes a consistent copy to dir, by hard links.
	Checkpoint(dir string) error
	// Replace makes a checkpoint directory the store's contents; dir is moved.
	Replace(dir string) error
	// Flush makes all writes so far durable.
	Flush() error
}

// Member is a row of the node table as far as Raft cares.
type Member struct {
	ID   uint32
	Name string
	Down bool // the control log says that the node is down
}

// ExitStatus is the process's exit status when the group gives up on its disk.
const ExitStatus = 70

// Timing tunes a group's clocks. The defaults give a new leader within 3 s of
// the old one's death, on a loaded machine too.
type Timing struct {
	Heartbeat, Election, Lease time.Duration // 400 ms each
	Commit                     time.Duration // 50 ms: how soon followers learn of a commit without further traffic
	RPC                        time.Duration // 5 s: one Raft request

	NoQuorum time.Duration // 4.5 s: how long a proposal looks for a leader before NoQuorum
	Propose  time.Duration // 15 s: how long a proposal lasts at most when its context is longer

	StallWarn, StallExit time.Duration // 3 s, 5 s: one write to the log store or the state

	Reconcile  time.Duration // 500 ms: how often the leader compares members with the Raft configuration
	DeadVoter  time.Duration // 5 min: after this a silent voter gives its vote to a healthy non-voter
	VerifyStep time.Duration // 500 ms: how often the leader proves that it is one

	SnapshotInterval  time.Duration // 2 min between looks at whether a snapshot is due
	SnapshotThreshold uint64        // 8192 log entries make one due
	TrailingLogs      uint64        // 10240 entries stay behind a snapshot for followers that are nearly there
	SnapshotBytes     int64         // so many bytes of entries make a snapshot due, too; 0: only their number does
	TrailingBytes     int64         // with SnapshotBytes: so many bytes of entries stay behind a snapshot, in place of TrailingLogs
}

// Status is a group's state on this node.
type Status struct {
	Node          uint32        `json:"node"`
	Role          string        `json:"role"` // leader, follower, candidate, stopped
	Voter         bool          `json:"voter"`
	Term          uint64        `json:"term"`
	Leader        uint32        `json:"leader"` // 0: none known
	Commit        uint64        `json:"commit"`
	Applied       uint64        `json:"applied"`
	Lag           uint64        `json:"lag"` // commit minus applied
	LastLog       uint64        `json:"last_log"`
	FirstLog      uint64        `json:"first_log"`
	Voters        []uint32      `json:"voters"`
	NonVoters     []uint32      `json:"non_voters"`
	LastContact   time.Duration `json:"last_contact_ns"` // since the leader was heard
	DiskP99       time.Duration `json:"disk_p99_ns"`     // of the last log writes
	DiskBytes     int64         `json:"disk_bytes"`      // of the log's folder: log, state, snapshots
	SnapshotIndex uint64        `json:"snapshot_index"`
	SnapshotAge   time.Duration `json:"snapshot_age_ns"` // 0 with SnapshotIndex 0: there is none
	Halted        string        `json:"halted,omitempty"`
	Room          Room          `json:"room,omitempty"`   // what its disk has room for
	Reason        string        `json:"reason,omitempty"` // what is wrong; "" for nothing
	Since         time.Time     `json:"since,omitzero"`   // since when it is wrong
}

// NodeHealth is one node's row of Health.
type NodeHealth struct {
	Node      uint32            `json:"node"`
	Name      string            `json:"name"`
	Reachable bool              `json:"reachable"`
	Version   string            `json:"version"`
	Status    Status            `json:"status"`
	Ping      time.Duration     `json:"ping_ns"`
	Index     uint64            `json:"digest_index"`
	Digests   []fsm.TableDigest `json:"digests,omitempty"`
	Reason    string            `json:"reason,omitempty"`
	Since     time.Time         `json:"since,omitzero"`
	Service   string            `json:"service,omitempty"` // a critical service of the node that does not run, and why
}

// Report compares the nodes' tables at one index.
type Report struct {
	Index   uint64        `json:"index"`
	Tables  []TableReport `json:"tables"`
	Equal   bool          `json:"equal"`   // every reachable node's every table agrees
	Missing []uint32      `json:"missing"` // nodes that gave no answer at this index
}

// TableReport is one table of a Report: the digest that each node has.
type TableReport struct {
	Table   string            `json:"table"`
	Equal   bool              `json:"equal"`
	Digests map[uint32]uint64 `json:"digests"`
}

// The logs of a node, as Config.Name and the folders' names have them.
const (
	ControlLog = "control"
	MessageLog = "message"
)

// LogDir is where a data folder keeps a log (Config.Dir).
func LogDir(data, name string) string { return filepath.Join(data, name) }

// StateDir is where a data folder keeps the state of a log, for store.Open.
func StateDir(data, name string) string { return filepath.Join(data, name, "state") }

// InitOptions describe a new cluster and its first node.
type InitOptions struct {
	Dir         string         // data folder, without an identity so far
	ClusterName string         // shown to people
	Node        cluster.Member // the first node, the publisher
	Domain      string         // the first IM domain
}

// JoinOptions describe a node that wants to become a member.
type JoinOptions struct {
	Dir     string         // data folder, without an identity so far
	Addr    string         // cluster port of any member
	Token   pki.Token      // the invitation
	Node    cluster.Member // as the new node introduces itself
	Network mesh.Network   // nil: TCP
}
