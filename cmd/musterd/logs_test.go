package main

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"muster/edges/xmpp"
	"muster/fsm/cluster"
	"muster/internal/node"
	"muster/internal/simnode"
	"muster/monitor"
	"muster/replication"
)

// virtual runs a test on a virtual cluster of n nodes.
func virtual(t *testing.T, n int, fn func(t *testing.T, c *simnode.Cluster)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := simnode.New(t, simnode.Options{Nodes: n, Seed: 1, Features: features, Cert: simCert(t), Raft: simTiming})
		defer c.Close()
		fn(t, c)
	})
}

// logsOf returns both logs of the hosts whose process runs.
func logsOf(hosts []*simnode.Host) (control, messages []*replication.Group) {
	for _, h := range hosts {
		if n := h.Node(); n != nil {
			control, messages = append(control, n.Group()), append(messages, n.Messages())
		}
	}
	return control, messages
}

// agree waits until a log's nodes all know the same voters and followers, and one of them leads.
func agree(c *simnode.Cluster, what string, groups []*replication.Group, voters, others int) {
	c.Until(what, time.Minute, func() bool {
		leads := false
		for _, g := range groups {
			s := g.Status()
			leads = leads || g.IsLeader()
			if len(s.Voters) != voters || len(s.NonVoters) != others || s.Leader == 0 || s.Lag > 0 {
				return false
			}
		}
		return leads
	})
}

// equalTables compares the tables of both logs at one index each, over all members.
func equalTables(t *testing.T, n *node.Node) {
	t.Helper()
	for _, g := range []*replication.Group{n.Group(), n.Messages()} {
		r, err := g.CompareDigests(t.Context())
		if err != nil || !r.Equal || len(r.Missing) > 0 || len(r.Tables) == 0 {
			t.Errorf("the %s log: %+v %v", g.Name(), r, err)
		}
	}
}

func TestMessageLogHasThreeVoters(t *testing.T) {
	virtual(t, 5, func(t *testing.T, c *simnode.Cluster) {
		control, messages := logsOf(c.Hosts())
		agree(c, "five voters of the control log", control, 5, 0)
		agree(c, "three voters of the message log, and two that follow", messages, 3, 2)
		equalTables(t, c.Hosts()[4].Node())

		// The loss of a follower costs it nothing; a removed voter is replaced by a follower.
		voter := c.Host("n3")
		if _, err := c.Host("n1").Propose(cluster.RemoveEntry(voter.ID)); err != nil {
			t.Fatal(err)
		}
		left := slices.DeleteFunc(c.Hosts(), func(h *simnode.Host) bool { return h == voter })
		control, messages = logsOf(left)
		agree(c, "three voters of four", control, 3, 1)
		agree(c, "another message voter", messages, 3, 1)
		c.Until("the removed node to be told", time.Minute, func() bool {
			return slices.ContainsFunc(voter.Node().Alarms().Active(), func(a monitor.Alarm) bool { return a.Name == "node-removed" })
		})
		c.Until("the removed node to take no clients any more", time.Minute, func() bool {
			return slices.ContainsFunc(voter.Node().Runner().Report(), func(r monitor.ServiceStatus) bool {
				return r.Name == xmpp.ServiceName && r.State == monitor.Stopped
			})
		})
		voter.Kill(0)
		equalTables(t, left[0].Node())
	})
}

// TestRemovedLeaders removes, from a cluster of two, the node that leads one of the logs, or both. The other one must be able to go on alone.
func TestRemovedLeaders(t *testing.T) {
	for name, leads := range map[string]func(*node.Node) []*replication.Group{
		"of the control log": func(n *node.Node) []*replication.Group { return []*replication.Group{n.Group()} },
		"of the message log": func(n *node.Node) []*replication.Group { return []*replication.Group{n.Messages()} },
		"of both":            func(n *node.Node) []*replication.Group { return []*replication.Group{n.Group(), n.Messages()} },
		"of none":            func(*node.Node) []*replication.Group { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			virtual(t, 2, func(t *testing.T, c *simnode.Cluster) {
				stays, goes := c.Host("n1"), c.Host("n2")
				control, messages := logsOf(c.Hosts())
				agree(c, "two voters", control, 2, 0)
				agree(c, "two message voters", messages, 2, 0)
				lead(t, c, stays.Node(), stays.Node().Group(), stays.Node().Messages())
				lead(t, c, goes.Node(), leads(goes.Node())...)
				if _, err := stays.Propose(cluster.RemoveEntry(goes.ID)); err != nil {
					t.Fatal(err)
				}
				agree(c, "one voter", []*replication.Group{stays.Node().Group()}, 1, 0)
				agree(c, "one message voter", []*replication.Group{stays.Node().Messages()}, 1, 0)
				c.Until("the removed node to be told", time.Minute, func() bool {
					return slices.ContainsFunc(goes.Node().Alarms().Active(), func(a monitor.Alarm) bool { return a.Name == "node-removed" })
				})
				goes.Kill(0)
				equalTables(t, stays.Node())
			})
		})
	}
}

// TestRemoveNode has an administrator remove, from a cluster of two, the node that leads both logs.
func TestRemoveNode(t *testing.T) {
	for name, itself := range map[string]bool{"by the other one": false, "by itself": true} {
		t.Run(name, func(t *testing.T) {
			virtual(t, 2, func(t *testing.T, c *simnode.Cluster) {
				stays, goes := c.Host("n1"), c.Host("n2")
				control, messages := logsOf(c.Hosts())
				agree(c, "two voters", control, 2, 0)
				agree(c, "two message voters", messages, 2, 0)
				lead(t, c, goes.Node(), goes.Node().Group(), goes.Node().Messages())
				via := stays
				if itself {
					via = goes
				}
				if _, err := via.Node().Operator().RemoveNode(t.Context(), goes.Name); err != nil {
					t.Fatal(err)
				}
				goes.Kill(0) // at once
				agree(c, "one voter", []*replication.Group{stays.Node().Group()}, 1, 0)
				agree(c, "one message voter", []*replication.Group{stays.Node().Messages()}, 1, 0)
				equalTables(t, stays.Node())
			})
		})
	}
}

// lead makes a node lead logs, by having those hand on that lead instead.
func lead(t *testing.T, c *simnode.Cluster, n *node.Node, groups ...*replication.Group) {
	t.Helper()
	for _, want := range groups {
		c.Until("the leadership of the "+want.Name()+" log", time.Minute, func() bool {
			if want.IsLeader() {
				return true
			}
			control, messages := logsOf(c.Hosts())
			for _, g := range append(control, messages...) {
				if g.Name() == want.Name() && g.IsLeader() {
					_ = g.TransferLeadership(t.Context()) // tried again while it is not there
				}
			}
			return false
		})
	}
}

// TestMessageLogGate restarts a node while the message log has no majority: it waits for that log, visibly, and serves when the majority is back.
func TestMessageLogGate(t *testing.T) {
	virtual(t, 5, func(t *testing.T, c *simnode.Cluster) {
		control, messages := logsOf(c.Hosts())
		agree(c, "five voters of the control log", control, 5, 0)
		agree(c, "three voters of the message log, and two that follow", messages, 3, 2)
		var voters, others []*simnode.Host
		for _, h := range c.Hosts() {
			if slices.Contains(messages[0].Status().Voters, h.ID) {
				voters = append(voters, h)
			} else {
				others = append(others, h)
			}
		}
		voters[1].Kill(0)
		voters[2].Kill(50)
		others[0].Kill(0)
		others[0].Start()
		c.Until("the node to have caught up with the control log", time.Minute, func() bool {
			_, why := others[0].Node().Runner().Ready()
			return strings.Contains(why, "waits for the message log")
		})
		time.Sleep(30 * time.Second)
		if others[0].Ready() || !voters[0].Ready() || !others[1].Ready() {
			t.Errorf("with no majority of the message log: %s", c.Describe())
		}
		voters[1].Start()
		c.Until("all of them to serve", 30*time.Second, func() bool { return others[0].Ready() && voters[1].Ready() })
		voters[2].Start()
		c.Until("all to serve", 30*time.Second, voters[2].Ready)
		equalTables(t, others[0].Node())
	})
}

// TestLogsComeBack kills everything at once, keeping none of what was not synced, and rejoins a node that was removed.
func TestLogsComeBack(t *testing.T) {
	virtual(t, 3, func(t *testing.T, c *simnode.Cluster) {
		control, messages := logsOf(c.Hosts())
		agree(c, "three voters", control, 3, 0)
		agree(c, "three message voters", messages, 3, 0)
		before := messages[0].Commit()
		for _, h := range c.Hosts() {
			h.Kill(0)
		}
		for _, h := range c.Hosts() {
			h.Start()
		}
		c.Until("all to serve", time.Minute, func() bool { return len(c.Ready()) == 3 })
		_, messages = logsOf(c.Hosts())
		if messages[0].Commit() < before {
			t.Errorf("the message log is at %d, it was at %d", messages[0].Commit(), before)
		}
		if !c.Remove(c.Host("n2")) || !c.Join() {
			t.Fatal("the cluster does not change its members")
		}
		c.Until("the new one to serve", time.Minute, func() bool { return len(c.Ready()) == 3 })
		control, messages = logsOf(c.Hosts())
		agree(c, "three voters again", control, 3, 0)
		agree(c, "three message voters again", messages, 3, 0)
		equalTables(t, c.Host("n4").Node())
	})
}
