package replication

import (
	"sync"

	"muster/fsm"
	"muster/fsm/cluster"
	"muster/fsm/cluster/clusterpb"
	"muster/replication/mesh"
	"muster/replication/pki"
)

// ClusterMembers returns a Config.Members that reads the node table.
func ClusterMembers(r fsm.Reader) func() []Member {
	return func() []Member {
		var out []Member
		for _, n := range cluster.Nodes(r) {
			out = append(out, Member{ID: n.ID, Name: n.Name, Down: !n.Up})
		}
		return out
	}
}

// Directory tells the mesh who is a member, and where. The node table decides,
// with one exception: a node that left it counts as a member, at its last
// address, until no log's Raft configuration lists it any more. Cut off at once,
// a removed leader could neither hand over nor be outvoted in a log of two.
type Directory struct {
	r      fsm.Reader
	joined []pki.Peer

	mu     sync.Mutex
	groups []*Group
	last   map[uint32]string // addresses that the table held when they were last asked for
}

// NewDirectory reads the node table from r, and what it does not hold yet from
// joined: the members that this node was told of when it joined.
func NewDirectory(r fsm.Reader, joined []pki.Peer) *Directory {
	return &Directory{r: r, joined: joined, last: map[uint32]string{}}
}

// Watch makes the directory look at a log's Raft configuration.
func (d *Directory) Watch(g *Group) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.groups = append(d.groups, g)
}

// Listed reports whether a node is in the Raft configuration of the log of that name, or ("") of any.
func (d *Directory) Listed(node uint32, name string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, g := range d.groups {
		if (name == "" || g.cfg.Name == name) && g.Lists(node) {
			return true
		}
	}
	return false
}

// Member is a mesh.Config.Member. Ids beyond the highest that was given out here are unknown: this node is behind.
func (d *Directory) Member(node uint32) mesh.MemberState {
	if _, ok := cluster.NodeByID(d.r, node); ok {
		return mesh.Present
	}
	var row clusterpb.InfoRow
	switch {
	case !fsm.Load(d.r, cluster.InfoTable, nil, &row) || node > row.LastNode:
		return mesh.Unknown
	case d.Listed(node, ""):
		return mesh.Present
	}
	return mesh.Removed
}

// AddrOf is a mesh.Config.AddrOf.
func (d *Directory) AddrOf(node uint32) (string, bool) {
	n, ok := cluster.NodeByID(d.r, node)
	d.mu.Lock()
	defer d.mu.Unlock()
	if ok {
		d.last[node] = n.ClusterAddr
	}
	if addr := d.last[node]; ok || addr != "" {
		return addr, addr != ""
	}
	for _, p := range d.joined {
		if p.ID == node {
			return p.Addr, true
		}
	}
	return "", false
}
