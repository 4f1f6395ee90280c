package cluster

import (
	"crypto/sha256"
	"encoding/binary"
	"sort"
	"time"
	"unicode/utf8"

	"muster/fsm"
	"muster/fsm/cluster/clusterpb"
	"muster/log"
)

// Member is a node as it introduces itself.
type Member struct {
	Name          string            // unique among the members
	ClusterAddr   string            // host:port for the other nodes
	Addrs         map[string]string // host:port by listener
	Software      string            // release
	NewestVersion log.ClusterVersion
}

// Init founds a cluster, or gives a restored backup's state a new identity.
type Init struct {
	ID       string             // new cluster id
	Name     string             // shown to operators
	CACert   []byte             // PEM
	Version  log.ClusterVersion // 0: the newest that this binary knows
	Node     Member             // the first node; it becomes the publisher
	Replaces string             // cluster id that the state had when it was backed up; its nodes are forgotten
}

// InitEntry founds the cluster. The result is the first node's id (NodeIDResult).
func InitEntry(i Init) *log.Entry {
	if i.Version == 0 {
		i.Version = log.NewestVersion
	}
	return log.New(log.ClusterInit, &clusterpb.Init{
		Id: fsm.Text(i.ID), Name: fsm.Text(i.Name), CaCert: i.CACert, Version: uint32(i.Version),
		Node: i.Node.encode(), Replaces: fsm.Text(i.Replaces),
	})
}

// VersionEntry raises the cluster version; every node must be able to run it.
func VersionEntry(v log.ClusterVersion) *log.Entry {
	return log.New(log.ClusterVersionSet, &clusterpb.VersionSet{Version: uint32(v)})
}

// HashToken returns what the log keeps of a join token.
func HashToken(token []byte) [sha256.Size]byte { return sha256.Sum256(token) }

// TokenEntry makes a join token valid once, until expires.
func TokenEntry(hash [sha256.Size]byte, expires time.Time) *log.Entry {
	return log.New(log.NodeToken, &clusterpb.Token{Hash: hash[:], Expires: expires.UnixNano()})
}

// JoinEntry makes a node a member and uses up the token. The result is the new node's id (NodeIDResult).
func JoinEntry(token [sha256.Size]byte, m Member) *log.Entry {
	return log.New(log.NodeJoin, &clusterpb.Join{TokenHash: token[:], Node: m.encode()})
}

// NodeIDResult decodes the result of InitEntry and JoinEntry; 0 if it is none.
func NodeIDResult(value []byte) uint32 {
	if len(value) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(value)
}

// RemoveEntry ends a node's membership; its users move to other nodes.
func RemoveEntry(node uint32) *log.Entry {
	return log.New(log.NodeRemove, &clusterpb.Remove{Node: node})
}

// StartEntry says that a node's process started. The result is its new incarnation (IncarnationResult).
func StartEntry(node uint32, software string, newest log.ClusterVersion) *log.Entry {
	return log.New(log.NodeStart, &clusterpb.Start{Node: node, Software: fsm.Text(software), NewestVersion: uint32(newest)})
}

// IncarnationResult decodes the result of StartEntry; 0 if it is none.
func IncarnationResult(value []byte) uint64 {
	if len(value) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(value)
}

// DownEntry says that a node's incarnation has fallen silent or stopped.
func DownEntry(node uint32, incarnation uint64) *log.Entry {
	return log.New(log.NodeDown, &clusterpb.Down{Node: node, Incarnation: incarnation})
}

// UpdateEntry changes a node's addresses. An empty clusterAddr leaves that one; addrs replaces all.
func UpdateEntry(node uint32, clusterAddr string, addrs map[string]string) *log.Entry {
	return log.New(log.NodeUpdate, &clusterpb.Update{Node: node, ClusterAddr: fsm.Text(clusterAddr), Addrs: encodeAddrs(addrs)})
}

// PublisherEntry makes another member the publisher.
func PublisherEntry(node uint32) *log.Entry {
	return log.New(log.PublisherMove, &clusterpb.Publisher{Node: node})
}

// GroupEntry creates a redundancy group or changes its nodes, which leave the groups that they were in.
func GroupEntry(g Group) *log.Entry {
	return log.New(log.GroupPut, &clusterpb.GroupPut{Name: fsm.Text(g.Name), Nodes: g.Nodes, Ha: g.HA})
}

// GroupRemoveEntry removes an empty redundancy group.
func GroupRemoveEntry(name string) *log.Entry {
	return log.New(log.GroupRemove, &clusterpb.GroupRemove{Name: fsm.Text(name)})
}

// ModeEntry sets the user assignment mode. Users keep the homes that they have; RebalanceEntry moves them.
func ModeEntry(mode string) *log.Entry {
	return log.New(log.AssignMode, &clusterpb.Mode{Mode: fsm.Text(mode)})
}

// AssignEntry gives users a home: node, or for 0 what the balanced rule (in mode active-standby that mode's rule) chooses.
func AssignEntry(users []string, node uint32) *log.Entry {
	return log.New(log.AssignUsers, &clusterpb.Assign{Users: texts(users), Node: node})
}

// UnassignEntry leaves users without a home: they cannot log in until they get one.
func UnassignEntry(users []string) *log.Entry {
	return log.New(log.AssignUsers, &clusterpb.Assign{Users: texts(users), Unassign: true})
}

// RebalanceEntry moves at most most users towards equal counts. The result is
// the number moved (RebalanceResult); 0 means that the counts are equal.
func RebalanceEntry(most int) *log.Entry {
	return log.New(log.Rebalance, &clusterpb.Rebalance{Most: uint32(min(max(most, 0), MaxAssign))})
}

// RebalanceResult decodes the result of RebalanceEntry.
func RebalanceResult(value []byte) int { return int(NodeIDResult(value)) }

// BalanceEntry orders a rebalancing in the background (stop: calls it off): the
// leader proposes RebalanceEntry at a limited rate until nothing is left to move.
func BalanceEntry(stop bool) *log.Entry {
	return log.New(log.BalanceOrder, &clusterpb.Balance{Stop: stop})
}

// FailoverEntry has a node's users served by their backups until an administrator wants them back.
func FailoverEntry(node uint32) *log.Entry {
	return log.New(log.HAFailover, &clusterpb.Failover{Node: node})
}

// ServiceFailoverEntry does the same because a critical service of the node is
// down; detail says which. They come back when it has been well for a while.
func ServiceFailoverEntry(node uint32, detail string) *log.Entry {
	detail = fsm.Text(detail)
	if len(detail) > maxDetail {
		detail = fsm.Text(detail[:maxDetail-utf8.UTFMax]) // a rune that is cut is replaced by a longer one
	}
	return log.New(log.HAFailover, &clusterpb.Failover{Node: node, Critical: true, Detail: detail})
}

// FallbackEntry begins a fallback in an administrator's name; the leader makes its steps.
func FallbackEntry(node uint32) *log.Entry {
	return log.New(log.HAFallback, &clusterpb.Fallback{Node: node, Away: Slots})
}

// FallbackStepEntry leaves the users of the first away slots with their
// backups and has all others at home; 0 ends the failover. cause is for a fallback that begins with this step.
func FallbackStepEntry(node uint32, away int, cause Cause) *log.Entry {
	return log.New(log.HAFallback, &clusterpb.Fallback{Node: node, Away: uint32(min(max(away, 0), Slots)), Cause: uint32(cause)})
}

// SecretEntry keeps a blob that only holders of the proposer's key can open; an empty one forgets it.
func SecretEntry(name string, sealed []byte) *log.Entry {
	return log.New(log.SecretPut, &clusterpb.Secret{Name: fsm.Text(name), Sealed: sealed})
}

// ServiceEntry stops a service on a node, or lets it run again.
func ServiceEntry(node uint32, service string, stopped bool) *log.Entry {
	return log.New(log.ServiceSet, &clusterpb.Service{Node: node, Service: fsm.Text(service), Stopped: stopped})
}

// OverrideEntry lets a node start its services in spite of its gates until a time; one in the past ends the override.
func OverrideEntry(node uint32, until time.Time, reason string) *log.Entry {
	return log.New(log.GateOverride, &clusterpb.Override{Node: node, Until: until.UnixNano(), Reason: fsm.Text(reason)})
}

func (m Member) encode() *clusterpb.Member {
	return &clusterpb.Member{
		Name: fsm.Text(m.Name), ClusterAddr: fsm.Text(m.ClusterAddr), Addrs: encodeAddrs(m.Addrs),
		Software: fsm.Text(m.Software), NewestVersion: uint32(m.NewestVersion),
	}
}

// encodeAddrs sorts the addresses, so that equal ones have equal bytes.
func encodeAddrs(addrs map[string]string) []*clusterpb.Addr {
	out := make([]*clusterpb.Addr, 0, len(addrs))
	// order: sorted below
	for name, addr := range addrs {
		out = append(out, &clusterpb.Addr{Name: fsm.Text(name), Addr: fsm.Text(addr)})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

func texts(in []string) []string {
	out := make([]string, len(in))
	for i, s := range in {
		out[i] = fsm.Text(s)
	}
	return out
}
