package replication

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"muster/internal/fault"
)

func ids(n ...uint32) []uint32 { return n }

func leave(nodes ...uint32) func(*situation) {
	return func(s *situation) {
		s.leaving = map[uint32]bool{}
		for _, n := range nodes {
			s.leaving[n] = true
		}
	}
}

func TestPlan(t *testing.T) {
	steady := peerState{steady: steadyLooks}
	now := time.Unix(1_000_000, 0)
	silent := func(d time.Duration) peerState { return peerState{since: now.Add(-d)} }
	tests := []struct {
		name    string
		members []uint32
		voters  []uint32
		others  []uint32
		peers   map[uint32]peerState
		want    change
		edit    func(*situation)
	}{
		{"nothing to do", ids(1, 2, 3), ids(1, 2, 3), nil, nil, change{}, nil},
		{"a new member becomes a non-voter", ids(1, 2), ids(1), nil, nil, change{addNonVoter, 2}, nil},
		{"a new one waits until it has caught up", ids(1, 2), ids(1), ids(2), map[uint32]peerState{2: {steady: 1}}, change{}, nil},
		{"then it gets a vote", ids(1, 2), ids(1), ids(2), map[uint32]peerState{2: steady}, change{promote, 2}, nil},
		{"a fourth gets none", ids(1, 2, 3, 4), ids(1, 2, 3), ids(4), map[uint32]peerState{4: steady}, change{}, nil},
		{"with a fifth both do, one after the other", ids(1, 2, 3, 4, 5), ids(1, 2, 3), ids(5, 4), map[uint32]peerState{4: steady, 5: steady}, change{promote, 4}, nil},
		{"a sixth gets none", ids(1, 2, 3, 4, 5, 6), ids(1, 2, 3, 4, 5), ids(6), map[uint32]peerState{6: steady}, change{}, nil},
		{"a silent one is not promoted", ids(1, 2, 3), ids(1, 2), ids(3), map[uint32]peerState{3: silent(time.Second)}, change{}, nil},
		{"a voter that died lately keeps its vote", ids(1, 2, 3, 4), ids(1, 2, 3), ids(4), map[uint32]peerState{2: silent(time.Minute), 4: steady}, change{}, nil},
		{"one that is dead for long gives it up", ids(1, 2, 3, 4), ids(1, 2, 3), ids(4), map[uint32]peerState{2: silent(6 * time.Minute), 4: steady}, change{demote, 2}, nil},
		{"and another gets it, the dead one not again", ids(1, 2, 3, 4), ids(1, 3), ids(2, 4), map[uint32]peerState{2: silent(6 * time.Minute), 4: steady}, change{promote, 4}, nil},
		{"but not without a replacement", ids(1, 2, 3, 4), ids(1, 2, 3), ids(4), map[uint32]peerState{2: silent(6 * time.Minute), 4: silent(time.Hour)}, change{}, nil},
		{"a removed voter goes", ids(1, 3), ids(1, 2, 3), nil, nil, change{remove, 2}, nil},
		{"a removed non-voter goes first", ids(1, 3), ids(1, 2, 3), ids(4), nil, change{remove, 4}, nil},
		{"too many voters after a removal: a silent one loses its vote", ids(1, 2, 3, 5), ids(1, 2, 3, 5), nil, map[uint32]peerState{2: silent(time.Second)}, change{demote, 2}, nil},
		{"or the youngest", ids(1, 2, 3, 5), ids(1, 2, 3, 5), nil, nil, change{demote, 5}, nil},
		{"a removed leader hands over", ids(2, 3), ids(1, 2, 3), nil, nil, change{handOver, 1}, nil},
		{"two nodes both vote", ids(1, 2), ids(1, 2), nil, nil, change{}, nil},
		{"a removed leader alone makes an heir", ids(2), ids(1), ids(2), map[uint32]peerState{2: steady}, change{promote, 2}, nil},
		{"with an heir it hands over", ids(2), ids(1, 2), nil, nil, change{handOver, 1}, nil},
		{"a fifth node gets no fourth vote", ids(1, 2, 3, 4, 5), ids(1, 2, 3), ids(4, 5), map[uint32]peerState{4: steady, 5: steady}, change{},
			func(s *situation) { s.most = 3 }},
		{"five voters become three when the limit falls", ids(1, 2, 3, 4, 5), ids(1, 2, 3, 4, 5), nil, nil, change{demote, 5},
			func(s *situation) { s.most = 3 }},
		{"a removed node that is held stays", ids(1, 2), ids(1, 2, 3), nil, nil, change{},
			func(s *situation) { s.held = map[uint32]bool{3: true} }},
		{"while another one goes", ids(1, 2), ids(1, 2, 3), ids(4), nil, change{remove, 4},
			func(s *situation) { s.held = map[uint32]bool{3: true} }},
		{"one that leaves is replaced first", ids(1, 2, 3, 4), ids(1, 2), ids(3, 4), map[uint32]peerState{2: steady, 3: steady, 4: steady}, change{promote, 3}, leave(2)},
		{"by all who can", ids(1, 2, 3, 4), ids(1, 2, 3), ids(4), map[uint32]peerState{2: steady, 3: steady, 4: steady}, change{promote, 4}, leave(2)},
		{"then it gives up its vote", ids(1, 2, 3, 4), ids(1, 2, 3, 4), nil, map[uint32]peerState{2: steady, 3: steady, 4: steady}, change{demote, 2}, leave(2)},
		{"and does not get it back", ids(1, 2), ids(1), ids(2), map[uint32]peerState{2: steady}, change{}, leave(2)},
		{"it waits for one that catches up", ids(1, 2, 3), ids(1, 2), ids(3), map[uint32]peerState{2: steady, 3: {}}, change{}, leave(2)},
		{"but for none that is silent", ids(1, 2, 3), ids(1, 2), ids(3), map[uint32]peerState{2: steady, 3: silent(time.Second)}, change{demote, 2}, leave(2)},
		{"the other of two leaves", ids(1, 2), ids(1, 2), nil, map[uint32]peerState{2: steady}, change{demote, 2}, leave(2)},
		{"a dead one leaves", ids(1, 2, 3), ids(1, 2, 3), nil, map[uint32]peerState{2: steady, 3: silent(time.Second)}, change{demote, 3}, leave(3)},
		{"not if too few are left that answer", ids(1, 2, 3), ids(1, 2, 3), nil, map[uint32]peerState{2: steady, 3: silent(time.Second)}, change{}, leave(2)},
		{"nor while one is left of which nothing is known", ids(1, 2, 3), ids(1, 2, 3), nil, map[uint32]peerState{2: steady}, change{}, leave(2)},
		{"nor while a removed one still votes", ids(1, 2), ids(1, 2, 3), nil, map[uint32]peerState{2: steady}, change{},
			func(s *situation) { s.held = map[uint32]bool{3: true}; leave(2)(s) }},
		{"a silent voter too many goes first", ids(1, 2, 3, 4, 5), ids(1, 2, 3, 4, 5), nil,
			map[uint32]peerState{2: steady, 3: steady, 4: silent(time.Second), 5: silent(time.Second)}, change{demote, 5}, leave(3)},
		{"of two that leave one goes after the other", ids(1, 2, 3), ids(1, 2, 3), nil, map[uint32]peerState{2: steady, 3: steady}, change{demote, 2}, leave(2, 3)},
		{"a leader that leaves hands over", ids(1, 2, 3), ids(1, 2, 3), nil, map[uint32]peerState{2: steady, 3: steady}, change{handOver, 1}, leave(1)},
		{"after others that leave", ids(1, 2, 3), ids(1, 2, 3), nil, map[uint32]peerState{2: steady, 3: steady}, change{demote, 3}, leave(1, 3)},
		{"alone it makes an heir", ids(1, 2), ids(1), ids(2), map[uint32]peerState{2: steady}, change{promote, 2}, leave(1)},
		{"or goes on", ids(1, 2), ids(1), ids(2), map[uint32]peerState{2: silent(time.Second)}, change{}, leave(1)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := situation{self: 1, voters: tt.voters, others: tt.others, peers: tt.peers, now: now, dead: 5 * time.Minute, most: DefaultVoters}
			for _, m := range tt.members {
				s.members = append(s.members, Member{ID: m})
			}
			if tt.edit != nil {
				tt.edit(&s)
			}
			if got := plan(s); got != tt.want {
				t.Errorf("plan = %v %d, want %v %d", got.do, got.node, tt.want.do, tt.want.node)
			}
		})
	}
}

func TestVotersFor(t *testing.T) {
	for most, want := range map[int][]int{DefaultVoters: {0, 1, 2, 3, 3, 5, 5, 5}, 3: {0, 1, 2, 3, 3, 3, 3}} {
		for n, w := range want {
			if got := votersFor(n, most); got != w {
				t.Errorf("%d nodes, at most %d voters: %d, want %d", n, most, got, w)
			}
		}
	}
}

func TestNodesJoinOneByOne(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 1, Timing{})
		for id := uint32(2); id <= 6; id++ {
			c.nodes[1].must(fmt.Sprint("before", id), "v")
			c.add(id)
			lead := c.settle(votersFor(int(id), DefaultVoters))
			c.until("the new node to have everything", 10*time.Second, func() bool { return c.nodes[id].get(fmt.Sprint("before", id)) == "v" })
			st := lead.Status()
			if len(st.Voters)+len(st.NonVoters) != int(id) {
				t.Errorf("%d nodes: voters %v, others %v", id, st.Voters, st.NonVoters)
			}
		}
		c.nodes[6].must("from a non-voter", "v")
		c.equal(c.leader())
	})
}

func TestDeadVoterIsReplaced(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 4, Timing{})
		lead := c.settle(3)
		var dead *node
		for _, n := range c.nodes {
			if n != lead && n.Status().Voter {
				dead = n
			}
		}
		dead.stop()
		time.Sleep(4 * time.Minute)
		if v := c.leader().Status().Voters; !slices.Contains(v, dead.id) {
			t.Errorf("after 4 minutes the voters are %v", v)
		}
		c.until("the swap", 90*time.Second, func() bool {
			v := c.leader().Status().Voters
			return len(v) == 3 && !slices.Contains(v, dead.id)
		})
		dead.start()
		c.leader().must("after", "v")
		c.until("the dead one to be back", 10*time.Second, func() bool { return dead.get("after") == "v" })
		time.Sleep(10 * time.Second)
		if st := c.leader().Status(); len(st.Voters) != 3 || !slices.Contains(st.NonVoters, dead.id) {
			t.Errorf("voters %v, others %v", st.Voters, st.NonVoters)
		}
	})
}

func TestRemovedNodes(t *testing.T) {
	for _, who := range []string{"follower", "leader", "follower that was away"} {
		t.Run(who, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				c := newCluster(t, 4, Timing{})
				gone := c.settle(3)
				if who != "leader" {
					gone = c.follower()
				}
				if strings.HasSuffix(who, "away") {
					gone.stop()
				}
				c.remove(gone.id)
				left := c.nodes[gone.id%4+1]
				c.until("the others to go on without it", 60*time.Second, func() bool {
					l := c.leader()
					if l == nil || l == gone {
						return false
					}
					st := l.Status()
					return len(st.Voters) == 3 && !slices.Contains(st.Voters, gone.id) && !slices.Contains(st.NonVoters, gone.id)
				})
				left.must("after", "v")
				if strings.HasSuffix(who, "away") {
					gone.start()
				}
				c.until("it to be told", 30*time.Second, func() bool { return len(gone.noted(&gone.removals)) > 0 })
				if got := gone.noted(&gone.removals); len(got) != 1 || !strings.Contains(got[0], "removed") {
					t.Errorf("told %q", got)
				}
				term := c.leader().Status().Term
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				if _, err := gone.Propose(ctx, put("evil", "1")); err == nil || fault.Is(err, fault.Internal) {
					t.Errorf("a removed node's proposal: %v", err)
				}
				time.Sleep(30 * time.Second)
				if l := c.leader(); l == nil || l.Status().Term != term || l.get("evil") != "" {
					t.Error("the removed node disturbs the others")
				}
				gone.stop()
				delete(c.nodes, gone.id)
				c.equal(c.leader())
			})
		})
	}
}

func TestMembershipUnderLoad(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, Timing{})
		stop := make(chan struct{})
		confirmed := make(chan int, 1)
		writer := c.nodes[1]
		go func() {
			n := 0
			for {
				select {
				case <-stop:
					confirmed <- n
					return
				default:
					writer.must(fmt.Sprint("k", n), "v")
					n++
					time.Sleep(20 * time.Millisecond)
				}
			}
		}()
		c.add(4)
		c.add(5)
		c.settle(5)
		c.remove(2)
		c.until("the removal", 30*time.Second, func() bool {
			l := c.leader()
			return l != nil && !slices.Contains(l.Status().Voters, 2) && len(l.Status().Voters) == 3
		})
		c.nodes[2].stop()
		delete(c.nodes, 2)
		close(stop)
		n := <-confirmed
		lead := c.settle(3)
		if got := len(lead.get("count")); got != n {
			t.Errorf("%d changes applied, %d confirmed", got, n)
		}
		c.equal(lead)
	})
}
