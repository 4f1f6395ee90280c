// Package cluster is the replicated knowledge of the cluster about itself: its
// identity, its nodes and which of them are up, redundancy groups, and which
// node is the home and which the backup of each user.
//
// Callers: cmd and replication propose node entries, the router asks
// EffectiveHome (or Resolve with its own cache of nodes), fsm/user assigns new
// users within the entry that creates them, internal/node proposes failovers
// and the steps of fallbacks.
//
// Invariants: the publisher is always a member, so the last node can never be
// removed; a node is in exactly one redundancy group and a group has at most
// MaxGroup nodes; node ids are never reused; home and backup of a user are
// different members; the counts equal the assignments; a node that is up has a
// failover only while some backup of it is up, and only in a group with high
// availability, so a user with a node that is up has a home (ADR 11).
package cluster

import (
	"encoding/binary"
	"time"

	"muster/fsm"
	"muster/fsm/cluster/clusterpb"
	"muster/log"
)

// Limits of the cluster.
const (
	MaxNodes   = 6        // nodes of a cluster: three redundancy groups of two
	MaxGroup   = 2        // nodes of a redundancy group
	MaxGroups  = 6        // redundancy groups; more than nodes would be empty ones
	MaxTokens  = 64       // join tokens that are valid at one time
	MaxSecret  = 64 << 10 // bytes of one sealed secret
	MaxSecrets = 256      // secrets of a cluster
	MaxAssign  = 10_000   // users that one entry may assign or move
	maxCA      = 64 << 10 // bytes of the CA certificate
	maxReason  = 256      // bytes of an override's reason
	maxStopped = 64       // services stopped on one node
	maxAddrs   = 16       // listener addresses of one node
	maxAddr    = 256 + 8  // bytes of an address: a host name and a port
)

// ClientListener is the name of the listener for clients with STARTTLS among a node's addresses.
const ClientListener = "client"

// Tables of this module. Node ids in keys are four bytes, big-endian.
var (
	InfoTable       = fsm.NewTable("cluster.info")        // "" → cluster
	NodeTable       = fsm.NewTable("cluster.nodes")       // node → node
	TokenTable      = fsm.NewTable("cluster.tokens")      // SHA-256 of a token → expiry
	GroupTable      = fsm.NewTable("cluster.groups")      // name → group
	AssignmentTable = fsm.NewTable("cluster.assignments") // user → home and backup
	countTable      = fsm.NewTable("cluster.counts")      // node (0: unassigned) → users
	holderTable     = fsm.NewTable("cluster.holders")     // 'h' or 'b', node, user → empty
	SecretTable     = fsm.NewTable("cluster.secrets")     // name → sealed blob
	StoppedTable    = fsm.NewTable("cluster.stopped")     // node, service → empty
	OverrideTable   = fsm.NewTable("cluster.overrides")   // node → override
)

// Module returns the module of the cluster's own state.
func Module() fsm.Module {
	return fsm.Module{
		Name: "fsm/cluster",
		Tables: []*fsm.Table{InfoTable, NodeTable, TokenTable, GroupTable, AssignmentTable,
			countTable, holderTable, SecretTable, StoppedTable, OverrideTable, historyTable},
		Handlers: map[log.Kind]fsm.Handler{
			log.ClusterInit:       initCluster,
			log.ClusterVersionSet: setVersion,
			log.NodeToken:         addToken,
			log.NodeJoin:          joinNode,
			log.NodeRemove:        removeNode,
			log.NodeStart:         startNode,
			log.NodeDown:          downNode,
			log.NodeUpdate:        updateNode,
			log.PublisherMove:     movePublisher,
			log.GroupPut:          putGroup,
			log.GroupRemove:       removeGroup,
			log.AssignMode:        setMode,
			log.AssignUsers:       assignUsers,
			log.Rebalance:         rebalance,
			log.SecretPut:         putSecret,
			log.ServiceSet:        setService,
			log.GateOverride:      setOverride,
			log.HAFailover:        failOver,
			log.HAFallback:        fallBack,
			log.BalanceOrder:      orderBalance,
		},
	}
}

// The user assignment modes.
const (
	Balanced      = "balanced"       // new users go where there are fewest per node
	Manual        = "manual"         // new users have no home until somebody assigns one
	ActiveStandby = "active-standby" // new users go to the first node of a group, the second is their backup
)

// Info is the cluster's identity.
type Info struct {
	ID        string
	Name      string
	Publisher uint32             // node id
	Version   log.ClusterVersion // the generation of the log's meaning in force
	CACert    []byte             // PEM; the one authority for node certificates
	Created   time.Time
}

// Node is a member.
type Node struct {
	ID            uint32
	Name          string
	ClusterAddr   string            // host:port for the other nodes
	Addrs         map[string]string // host:port by listener, as others reach it
	Group         string            // its redundancy group
	Up            bool
	Incarnation   uint64 // log index of its last start; 0 if it never started
	Revision      uint64 // log index of its last change of state: joined, started, down, failed over, a step back
	Software      string // release that it runs
	NewestVersion log.ClusterVersion
	Joined        time.Time
	Since         time.Time // when Up last changed
	Failover      *Failover // nil: its users are at home while it is up
}

// Group is a presence redundancy group: its nodes are each other's backup.
type Group struct {
	Name  string
	Nodes []uint32 // at most MaxGroup; the first is the active one in mode active-standby
	HA    bool     // false: users of the group have no backup, and never fail over
}

// Assignment is where a user belongs.
type Assignment struct {
	Home     uint32 // 0: unassigned
	Backup   uint32 // 0: none
	Revision uint64 // log index of its last change
	Slot     uint8  // the user's part of its home's users (Slot)
}

// Home is where a user's actor lives now.
type Home struct {
	Node   uint32 // the node in charge
	Backup uint32 // the other node, up or not; 0: none
	Epoch  uint64 // rises with every change of who is in charge
}

// Get returns the cluster's identity; ok is false before cluster.init.
func Get(r fsm.Reader) (Info, bool) {
	var row clusterpb.InfoRow
	if !fsm.Load(r, InfoTable, nil, &row) {
		return Info{}, false
	}
	return Info{
		ID: row.Id, Name: row.Name, Publisher: row.Publisher, Version: log.ClusterVersion(row.Version),
		CACert: row.CaCert, Created: time.Unix(0, row.Created).UTC(),
	}, true
}

// Mode returns the user assignment mode.
func Mode(r fsm.Reader) string {
	var row clusterpb.InfoRow
	if fsm.Load(r, InfoTable, nil, &row) && row.Mode != "" {
		return row.Mode
	}
	return Balanced
}

// Nodes returns all members by id.
func Nodes(r fsm.Reader) []Node {
	var out []Node
	r.Scan(NodeTable, nil, nil, func(k, v []byte) bool {
		out = append(out, decodeNode(k, v))
		return true
	})
	return out
}

// NodeByID returns one member.
func NodeByID(r fsm.Reader, id uint32) (Node, bool) {
	b, ok := r.Get(NodeTable, nodeKey(id))
	if !ok {
		return Node{}, false
	}
	return decodeNode(nodeKey(id), b), true
}

// NodeByName returns the member of that name.
func NodeByName(r fsm.Reader, name string) (Node, bool) {
	for _, n := range Nodes(r) {
		if n.Name == name {
			return n, true
		}
	}
	return Node{}, false
}

// Groups returns all redundancy groups by name.
func Groups(r fsm.Reader) []Group {
	var out []Group
	r.Scan(GroupTable, nil, nil, func(k, v []byte) bool {
		out = append(out, decodeGroup(k, v))
		return true
	})
	return out
}

// GroupByName returns one redundancy group.
func GroupByName(r fsm.Reader, name string) (Group, bool) {
	b, ok := r.Get(GroupTable, []byte(name))
	if !ok {
		return Group{}, false
	}
	return decodeGroup([]byte(name), b), true
}

// AssignmentOf returns where a user belongs; ok is false if the user is unknown or has no home.
func AssignmentOf(r fsm.Reader, user string) (Assignment, bool) {
	a, ok := assignment(r, user)
	return a, ok && a.Home != 0
}

// EffectiveHome returns where a user's actor lives now: the home node if it is
// up and its failover, if there is one, does not hold the user; else the backup
// if it is up; else the home node if it is; ok is false if neither is up.
func EffectiveHome(r fsm.Reader, user string) (Home, bool) {
	a, ok := AssignmentOf(r, user)
	if !ok {
		return Home{}, false
	}
	return Resolve(a, func(id uint32) (Node, bool) { return NodeByID(r, id) })
}

// Resolve is the rule behind EffectiveHome, for callers that keep assignments
// and nodes in memory. The epoch is the highest revision among the assignment and both nodes.
func Resolve(a Assignment, nodes func(uint32) (Node, bool)) (Home, bool) {
	home, haveHome := nodes(a.Home)
	backup, haveBackup := nodes(a.Backup)
	h := Home{Epoch: max(a.Revision, home.Revision, backup.Revision)}
	reserve := haveBackup && backup.Up
	switch {
	case haveHome && home.Up && !(reserve && home.Failover.holds(a)):
		h.Node, h.Backup = a.Home, a.Backup
	case reserve:
		h.Node, h.Backup = a.Backup, a.Home
	default:
		return Home{}, false
	}
	return h, true
}

// Counts returns how many users have each node as their home, members without
// users included; 0 stands for the users that have no home.
func Counts(r fsm.Reader) map[uint32]int {
	out := map[uint32]int{}
	for _, n := range Nodes(r) {
		out[n.ID] = 0
	}
	r.Scan(countTable, nil, nil, func(k, v []byte) bool {
		var row clusterpb.CountRow
		fsm.Decode(countTable, v, &row)
		out[binary.BigEndian.Uint32(k)] = int(row.Homes)
		return true
	})
	return out
}

// HomeOf calls fn for the users whose home is node, in order, until it returns false.
func HomeOf(r fsm.Reader, node uint32, fn func(user string) bool) {
	prefix := holderKey('h', node, "")
	r.Scan(holderTable, prefix, nil, func(k, _ []byte) bool { return fn(string(k[len(prefix):])) })
}

// BackupOf calls fn for the users whose backup is node, in order, until it returns false.
func BackupOf(r fsm.Reader, node uint32, fn func(user string) bool) {
	prefix := holderKey('b', node, "")
	r.Scan(holderTable, prefix, nil, func(k, _ []byte) bool { return fn(string(k[len(prefix):])) })
}

// Secret returns a blob that its proposer sealed; this package never sees inside.
func Secret(r fsm.Reader, name string) ([]byte, bool) { return r.Get(SecretTable, []byte(name)) }

// StoppedServices returns the services that an operator stopped on node, by name.
func StoppedServices(r fsm.Reader, node uint32) []string {
	var out []string
	r.Scan(StoppedTable, nodeKey(node), nil, func(k, _ []byte) bool {
		out = append(out, string(k[4:]))
		return true
	})
	return out
}

// GateOverrideInfo lets a node start its services although its gates are closed.
type GateOverrideInfo struct {
	Until  time.Time // the override has no effect from then on
	Reason string    // the operator's words
}

// Override returns a node's last gate override, expired or not.
func Override(r fsm.Reader, node uint32) (GateOverrideInfo, bool) {
	var row clusterpb.OverrideRow
	if !fsm.Load(r, OverrideTable, nodeKey(node), &row) {
		return GateOverrideInfo{}, false
	}
	return GateOverrideInfo{Until: time.Unix(0, row.Until).UTC(), Reason: row.Reason}, true
}

// DecodeNode tells which node a change is about and its state before and
// after (nil: not a member). ok is false for a change of another table.
func DecodeNode(c fsm.Change) (id uint32, before, after *Node, ok bool) {
	if c.Table != NodeTable {
		return 0, nil, nil, false
	}
	if c.Before != nil {
		n := decodeNode(c.Key, c.Before)
		before = &n
	}
	if c.After != nil {
		n := decodeNode(c.Key, c.After)
		after = &n
	}
	return binary.BigEndian.Uint32(c.Key), before, after, true
}

// DecodeAssignment tells whose assignment changed, before and after (nil:
// none). ok is false for a change of another table.
func DecodeAssignment(c fsm.Change) (user string, before, after *Assignment, ok bool) {
	if c.Table != AssignmentTable {
		return "", nil, nil, false
	}
	if c.Before != nil {
		a := decodeAssignment(string(c.Key), c.Before)
		before = &a
	}
	if c.After != nil {
		a := decodeAssignment(string(c.Key), c.After)
		after = &a
	}
	return string(c.Key), before, after, true
}

func nodeKey(id uint32) []byte { return binary.BigEndian.AppendUint32(nil, id) }

func holderKey(role byte, node uint32, user string) []byte {
	return append(append([]byte{role}, nodeKey(node)...), user...)
}

func assignment(r fsm.Reader, user string) (Assignment, bool) {
	b, ok := r.Get(AssignmentTable, []byte(user))
	if !ok {
		return Assignment{}, false
	}
	return decodeAssignment(user, b), true
}

func decodeAssignment(user string, b []byte) Assignment {
	var row clusterpb.AssignmentRow
	fsm.Decode(AssignmentTable, b, &row)
	return Assignment{row.Home, row.Backup, row.Revision, Slot(user)}
}

func decodeGroup(k, v []byte) Group {
	var row clusterpb.GroupRow
	fsm.Decode(GroupTable, v, &row)
	return Group{Name: string(k), Nodes: row.Nodes, HA: row.Ha}
}

func decodeNode(k, v []byte) Node {
	var row clusterpb.NodeRow
	fsm.Decode(NodeTable, v, &row)
	n := Node{
		ID: binary.BigEndian.Uint32(k), Name: row.Name, ClusterAddr: row.ClusterAddr, Addrs: map[string]string{},
		Group: row.Group, Up: row.Up, Incarnation: row.Incarnation, Revision: row.Revision, Software: row.Software,
		NewestVersion: log.ClusterVersion(row.NewestVersion),
		Joined:        time.Unix(0, row.Joined).UTC(), Since: time.Unix(0, row.Since).UTC(), Failover: decodeFailover(row.Failover),
	}
	for _, a := range row.Addrs {
		n.Addrs[a.Name] = a.Addr
	}
	return n
}
