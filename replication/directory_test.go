package replication

import (
	"testing"
	"time"

	"muster/fsm/cluster"
	"muster/fsm/config"
	"muster/fsm/fsmtest"
	"muster/log"
	"muster/replication/mesh"
	"muster/replication/pki"
)

// TestDirectory follows a node from before it is known here until every log has let it go.
func TestDirectory(t *testing.T) {
	bubble(t, func(t *testing.T) {
		rig := fsmtest.New(t, cluster.Module(), config.Module())
		d := NewDirectory(rig.M, []pki.Peer{{ID: 1, Addr: "told:1"}})
		c := newCluster(t, 2, Timing{}) // its log lists nodes 1 and 2
		d.Watch(c.nodes[1].Group)
		check := func(when string, node uint32, state mesh.MemberState, addr string) {
			t.Helper()
			got, ok := d.AddrOf(node)
			if d.Member(node) != state || got != addr || ok != (addr != "") {
				t.Errorf("%s: node %d is %v at %q, want %v at %q", when, node, d.Member(node), got, state, addr)
			}
		}
		check("before anything was replicated", 1, mesh.Unknown, "told:1")
		check("before anything was replicated", 2, mesh.Unknown, "")
		hash := cluster.HashToken([]byte("x"))
		rig.Must(cluster.InitEntry(cluster.Init{ID: "c", Name: "c", CACert: []byte("ca"), Node: cluster.Member{Name: "n1", ClusterAddr: "here:1", NewestVersion: log.NewestVersion}}),
			cluster.TokenEntry(hash, fsmtest.Start.Add(time.Hour)), cluster.JoinEntry(hash, cluster.Member{Name: "n2", ClusterAddr: "here:2", NewestVersion: log.NewestVersion}))
		check("as members", 1, mesh.Present, "here:1")
		check("as members", 2, mesh.Present, "here:2")
		check("an id that was not given out", 3, mesh.Unknown, "")
		rig.Must(cluster.RemoveEntry(2))
		check("removed, and still in the log's configuration", 2, mesh.Present, "here:2")
		if !d.Listed(2, "control") || d.Listed(2, "message") || d.Listed(3, "") {
			t.Error("the lists are wrong")
		}
		c.remove(2)
		c.until("the log to let it go", time.Minute, func() bool { return !c.nodes[1].Lists(2) })
		if d.Member(2) != mesh.Removed {
			t.Errorf("let go, it is %v", d.Member(2))
		}
	})
}
