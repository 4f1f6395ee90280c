package replication

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"muster/internal/fault"
)

// release takes a node's votes as an operator at via does.
func (c *testCluster) release(via *node, id uint32, most time.Duration) error {
	ctx, cancel := context.WithTimeout(c.t.Context(), most)
	defer cancel()
	return via.Release(ctx, id)
}

// votes reports whether a leader knows a node as a voter.
func (c *testCluster) votes(id uint32) bool {
	l := c.leader()
	return l == nil || slices.Contains(l.Status().Voters, id)
}

// TestReleasedIsSwitchedOff removes a node while one of two votes is its own, and switches it off in the same moment.
func TestReleasedIsSwitchedOff(t *testing.T) {
	for _, who := range []string{"follower", "leader", "follower, with nobody else", "leader, with nobody else", "leader, by itself"} {
		t.Run(who, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				c := newClusterOf(t, MessageLog, 2, Timing{})
				gone := c.leader()
				if strings.HasPrefix(who, "follower") {
					gone = c.follower()
				}
				if !strings.HasSuffix(who, "else") {
					c.add(3) // these have no vote yet
					c.add(4)
				}
				via := c.nodes[3-gone.id]
				if strings.HasSuffix(who, "itself") {
					via = gone
				}
				if err := c.release(via, gone.id, 12*time.Second); err != nil {
					t.Fatal(err)
				}
				c.remove(gone.id)
				gone.stop()
				delete(c.nodes, gone.id)
				left := c.nodes[3-gone.id]
				left.must("after", "v")
				c.equal(c.settle(votersFor(len(c.nodes), DefaultVoters)))
			})
		})
	}
}

func TestDeadVoterIsReleased(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, Timing{})
		dead, via := c.follower(), c.leader()
		dead.stop()
		if err := c.release(via, dead.id, 12*time.Second); err != nil {
			t.Fatal(err)
		}
		c.remove(dead.id)
		delete(c.nodes, dead.id)
		c.equal(c.settle(2))
	})
}

// TestReleaseRefused asks for the vote of one of the two that are left of three.
func TestReleaseRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, Timing{})
		via := c.leader()
		dead := c.follower()
		other := c.nodes[6-via.id-dead.id]
		dead.stop()
		err := c.release(other, other.id, 12*time.Second)
		if want := other.addr() + " still has a vote in the control log"; !fault.Is(err, fault.Unavailable) || !strings.Contains(fault.Public(err), want) ||
			!strings.Contains(fault.Public(err), dead.addr()+" cannot be reached") {
			t.Errorf("release: %v", err)
		}
		via.must("meanwhile", "v")
		dead.start()
		c.until("the vote to be given up after all", 10*time.Second, func() bool { return !c.votes(other.id) })
		c.until("it to come back when nobody asks any more", leaveTime+10*time.Second, func() bool { return c.votes(other.id) })
		c.settle(3)

		other.stop()
		via.stop()
		if err := c.release(dead, via.id, 12*time.Second); !fault.Is(err, fault.NoQuorum) || !strings.Contains(fault.Public(err), "the control log: ") {
			t.Errorf("release without a majority: %v", err)
		}
	})
}

// TestReleaseKeepsOtherVotes has the leader leave, whose successor must not take the vote of one that is down for one too many.
func TestReleaseKeepsOtherVotes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 4, Timing{})
		gone := c.settle(3)
		var down, heir *node
		for _, n := range c.nodes {
			switch {
			case n == gone:
			case n.Status().Voter:
				down = n
			default:
				heir = n
			}
		}
		down.stop()
		if err := c.release(heir, gone.id, 12*time.Second); err != nil {
			t.Fatal(err)
		}
		if v := c.leader().Status().Voters; len(v) != 3 || slices.Contains(v, gone.id) {
			t.Errorf("the voters are %v without %d", v, gone.id)
		}
		for _, n := range c.nodes {
			if n != down && !n.situation().leaving[gone.id] {
				t.Errorf("node %d, which may lead next, does not know of it", n.id)
			}
		}
		gone.stop()
		c.remove(gone.id)
		delete(c.nodes, gone.id)
		heir.must("after", "v")
	})
}

// TestReleaseOutlivesLeader has the leader die while a vote is being given up: the next one hears of it, too.
func TestReleaseOutlivesLeader(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 5, Timing{})
		lead := c.settle(5)
		gone := c.follower()
		via := c.nodes[gone.id%5+1]
		for via == lead {
			via = c.nodes[via.id%5+1]
		}
		done := make(chan error, 1)
		go func() { done <- c.release(via, gone.id, 12*time.Second) }()
		time.Sleep(50 * time.Millisecond)
		lead.stop()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if c.votes(gone.id) {
			t.Error("it still votes")
		}
	})
}
