package replication

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// TestVoteForAnUnknownVoter: a node that missed a promotion and the node that
// was promoted are a majority, and the latter alone has the whole log.
func TestVoteForAnUnknownVoter(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 2, Timing{})
		lead := c.settle(2)
		lagging := c.follower()
		lead.must("a", "1")
		third := c.add(3)
		c.until("the third node follows", 10*time.Second, func() bool {
			_, others := lead.Group.servers()
			return slices.Contains(others, 3) && third.get("a") == "1"
		})
		c.isolate(lagging.id, true)
		if err := lead.raft.AddVoter(serverID(3), raft.ServerAddress(serverID(3)), 0, time.Second).Error(); err != nil {
			t.Fatal(err)
		}
		lead.must("b", "2")
		if voters, _ := lagging.Group.servers(); slices.Contains(voters, 3) {
			t.Fatal("the lagging node knows of the promotion")
		}
		lead.crash()
		c.isolate(lagging.id, false)
		c.until("the promoted node leads", 10*time.Second, func() bool { return third.Group.IsLeader() })
		third.must("c", "3")
		c.until("the lagging node has all", 10*time.Second, func() bool { return lagging.get("b") == "2" && lagging.get("c") == "3" })
	})
}

// TestVoteOfAnUnknowingVoter: the library commits the promotion of a second
// voter by the first one alone. The second, which missed it, must vote all the same.
func TestVoteOfAnUnknowingVoter(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 1, Timing{})
		lead := c.settle(1)
		second := c.add(2)
		c.until("the second node follows", 10*time.Second, func() bool {
			_, others := lead.Group.servers()
			return slices.Contains(others, 2)
		})
		c.isolate(2, true)
		_ = lead.raft.AddVoter(serverID(2), raft.ServerAddress(serverID(2)), 0, time.Second).Error()
		if voters, _ := lead.Group.servers(); !slices.Contains(voters, 2) {
			t.Fatal("the first node does not know of the promotion")
		}
		lead.crash()
		c.isolate(2, false)
		if voters, _ := second.Group.servers(); slices.Contains(voters, 2) {
			t.Fatal("the second node knows of the promotion")
		}
		lead.start()
		c.until("the first node leads again, at its first election", 2*time.Second, func() bool { return lead.Group.IsLeader() })
		lead.must("a", "1")
	})
}

// TestCandidateWithALeader: a leader begins to send a snapshot to a node that has become a candidate meanwhile, and dies.
func TestCandidateWithALeader(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, Timing{})
		lead := c.settle(3)
		lagging := c.follower()
		next := c.nodes[6-lead.id-lagging.id]
		c.isolate(lagging.id, true)
		lead.must("a", "1")
		c.until("the cut-off node is a candidate", 5*time.Second, func() bool { return lagging.raft.State() == raft.Candidate })
		c.until("the other one has the change", 5*time.Second, func() bool { return next.get("a") == "1" })
		from := serverID(lead.id)
		header := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(from), Addr: []byte(from)}
		configuration := raft.EncodeConfiguration(lead.raft.GetConfiguration().Configuration())
		lead.crash()
		c.isolate(lagging.id, false)
		to := serverID(lagging.id)
		_ = next.trans.InstallSnapshot(to, raft.ServerAddress(to), &raft.InstallSnapshotRequest{
			RPCHeader: header, SnapshotVersion: raft.SnapshotVersionMax, Term: lagging.raft.CurrentTerm(), Configuration: configuration, ConfigurationIndex: 1, Size: 1,
		}, &raft.InstallSnapshotResponse{}, strings.NewReader(""))
		if addr, _ := lagging.raft.LeaderWithID(); addr != raft.ServerAddress(from) || lagging.raft.State() != raft.Candidate {
			t.Fatalf("the library is another one: leader %q, %v", addr, lagging.raft.State())
		}
		c.until("the other node leads", 5*time.Second, func() bool { return next.Group.IsLeader() })
		next.must("b", "2")
	})
}

// TestLateRequestOfALeader: a vote that was won while one voter was still to be asked stays won.
func TestLateRequestOfALeader(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, Timing{})
		lead := c.settle(3)
		term := lead.raft.CurrentTerm()
		voteTransport{lead.trans, serverID(lead.id)}.renounce()
		lead.must("a", "1")
		if !lead.Group.IsLeader() || lead.raft.CurrentTerm() != term {
			t.Errorf("node %d follows in term %d, and led in term %d", lead.id, lead.raft.CurrentTerm(), term)
		}
	})
}
