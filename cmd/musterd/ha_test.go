package main

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"muster/fsm/cluster"
	"muster/fsm/config"
	"muster/fsm/user"
	"muster/internal/simnode"
	"muster/monitor"
)

// stage is a virtual cluster with users, clients and load, for scenarios of high availability.
type stage struct {
	*simnode.Cluster
	t *testing.T
}

// perform runs a scenario and holds all promises of a simulation afterwards.
func perform(t *testing.T, nodes int, scenario func(s *stage)) {
	synctest.Test(t, func(t *testing.T) {
		c := simnode.New(t, simnode.Options{Nodes: nodes, Seed: 7, Features: features, Cert: simCert(t), Raft: simTiming})
		defer c.Close()
		c.AddUsers("alice", "bob", "carol", "dave")
		for _, who := range []string{"alice", "bob", "carol", "dave"} {
			c.NewClient(who, "phone")
		}
		ld := c.StartLoad()
		time.Sleep(time.Second)
		scenario(&stage{c, t})
		c.Settle(ld)
		for _, v := range c.History.Violations() {
			t.Errorf("%s", v)
		}
		if t.Failed() {
			t.Log(c.Trace.Tail(80))
		}
	})
}

// set changes a setting.
func (s *stage) set(name, value string) { s.Must(config.SetEntry(name, value, 0)) }

// state is how a node of the cluster sees another one.
func (s *stage) state(name string) monitor.NodeAvailability {
	s.t.Helper()
	for _, h := range s.Ready() {
		got, err := h.Node().Operator().HA(s.t.Context())
		if err != nil {
			s.t.Fatal(err)
		}
		for _, n := range got.Nodes {
			if n.Node == name {
				return n
			}
		}
	}
	return monitor.NodeAvailability{}
}

// until waits for a node's state and returns how long that took.
func (s *stage) until(name string, want monitor.HAState, most time.Duration) time.Duration {
	s.t.Helper()
	return s.Until(fmt.Sprint(name, " is ", want), most, func() bool { return s.state(name).State == want })
}

// served tells which nodes serve the users of a node, as the leader's log has it.
func (s *stage) served(name string) string {
	lead := s.Leader()
	if lead == nil {
		return ""
	}
	m, at := lead.Node().State(), map[uint32]bool{}
	n, _ := cluster.NodeByName(m, name)
	cluster.HomeOf(m, n.ID, func(u string) bool {
		home, _ := cluster.EffectiveHome(m, u)
		at[home.Node] = true
		return true
	})
	var out []string
	for _, h := range s.Hosts() {
		if at[h.ID] {
			out = append(out, h.Name)
		}
	}
	return strings.Join(out, " ")
}

func (s *stage) story() string {
	var out []string
	for _, tr := range cluster.History(s.Leader().Node().State()) {
		out = append(out, fmt.Sprintf("%s %v: %v", tr.Name, tr.Event, tr.Cause))
	}
	return strings.Join(out, "\n")
}

func (s *stage) expect(what, got, want string) {
	s.t.Helper()
	if got != want {
		s.t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

// alarms are the names of the active alarms about nodes, on the node that leads.
func (s *stage) alarms() string {
	var out []string
	for _, a := range s.Leader().Node().Alarms().Active() {
		if strings.Contains(a.Name, "/") {
			out = append(out, a.Name)
		}
	}
	return strings.Join(out, " ")
}

// TestCrashAndFallback: the backup serves within 5 s, users may be made
// meanwhile, and they come home in steps after the delay, with nobody asked.
func TestCrashAndFallback(t *testing.T) {
	perform(t, 3, func(s *stage) {
		s.set("ha.fallback_delay", "20s")
		s.set("ha.fallback_rate", "1")
		s.Play([]string{"kill n2 0"})
		if d := s.until("n2", monitor.HAFailedServices, 10*time.Second); d > 5*time.Second {
			t.Errorf("the backup serves after %v", d)
		}
		s.expect("down", s.served("n2"), "n1")
		s.Must(user.CreateEntry(user.User{Name: "new@" + simnode.Domain, IM: true, Presence: true}))
		s.Must(cluster.AssignEntry([]string{"new@" + simnode.Domain}, 2))
		s.expect("a user is made", s.served("n2"), "n1")
		s.Until("the alarm", 10*time.Second, func() bool { return s.alarms() == "node-down/n2" })
		s.Play([]string{"start n2"})
		s.until("n2", monitor.HAFailedOver, 20*time.Second)
		s.expect("started", s.served("n2"), "n1")
		s.Until("the alarm", 10*time.Second, func() bool { return s.alarms() == "node-failed-over/n2" })
		if d := s.until("n2", monitor.HATakingBack, 40*time.Second); d < 15*time.Second {
			t.Errorf("users return %v after the start", d)
		}
		s.Until("both serve", 20*time.Second, func() bool { return s.served("n2") == "n1 n2" })
		s.until("n2", monitor.HANormal, 20*time.Second)
		s.expect("home", s.served("n2"), "n2")
		s.Until("no alarm", 10*time.Second, func() bool { return s.alarms() == "" })
		s.expect("history", s.story(), "n2 failed over: Peer Down\nn2 started again: Peer Down\nn2 falling back: Automatic Fallback\nn2 returned: Automatic Fallback")
	})
}

// TestOrderedFailover: it outlives a change of leaders and its node's restart, and ends by order.
func TestOrderedFailover(t *testing.T) {
	perform(t, 3, func(s *stage) {
		s.set("ha.fallback_delay", "0s")
		s.Play([]string{"failover n1", "lead", "wait 2s"})
		s.until("n1", monitor.HAIdle, 5*time.Second)
		s.Play([]string{"stop n1", "wait 1s", "start n1", "wait 20s"})
		s.until("n1", monitor.HAIdle, 10*time.Second)
		s.expect("idle", s.served("n1"), "n2")
		s.Play([]string{"fallback n1"})
		s.until("n1", monitor.HANormal, 10*time.Second)
		s.expect("home", s.served("n1"), "n1")

		s.Play([]string{"failover n1", "kill n2 0"}) // whoever is up serves, order or not
		s.Until("n1 serves", 5*time.Second, func() bool { return s.served("n1") == "n1" })
		s.Play([]string{"start n2", "wait 5s"})
		s.expect("home", s.served("n1"), "n1")
	})
}

// TestCriticalService: a node whose clients' port is taken fails over, and is home again when that is over.
func TestCriticalService(t *testing.T) {
	const service = "client-connections"
	perform(t, 3, func(s *stage) {
		s.set("ha.fallback_delay", "5s")
		s.Must(cluster.ServiceEntry(1, service, true))
		n1 := s.Host("n1").Node()
		running := func() bool {
			for _, r := range n1.Runner().Report() {
				if r.Name == service {
					return r.State == monitor.Started
				}
			}
			return false
		}
		s.Until("it stops", 5*time.Second, func() bool { return !running() })
		time.Sleep(20 * time.Second)
		s.expect("stopped on purpose", string(s.state("n1").State), string(monitor.HANormal))
		ln, err := s.Net.Host("n1").Listen("n1:5223")
		if err != nil {
			t.Fatal(err)
		}
		s.Must(cluster.ServiceEntry(1, service, false))
		s.until("n1", monitor.HAFailingOver, 5*time.Second)
		s.until("n1", monitor.HAFailedServices, 15*time.Second)
		s.expect("failed over", s.served("n1"), "n2")
		s.Until("the alarms", 10*time.Second, func() bool {
			return s.alarms() == "critical-service-down/n1 node-failed-over/n1 service-failed/client-connections"
		})
		if err := ln.Close(); err != nil {
			t.Fatal(err)
		}
		s.Until("it runs", 40*time.Second, running)
		s.until("n1", monitor.HANormal, 20*time.Second)
		s.expect("home", s.served("n1"), "n1")
		s.Until("no alarm", 10*time.Second, func() bool { return s.alarms() == "" })
	})
}

// TestRebalanceInTheBackground moves users slowly, not while a node is away, and ends by itself.
func TestRebalanceInTheBackground(t *testing.T) {
	perform(t, 3, func(s *stage) {
		s.set("assign.rebalance_rate", "5")
		var names []string
		for i := range 60 {
			names = append(names, fmt.Sprintf("u%d@%s", i, simnode.Domain))
			s.Must(user.CreateEntry(user.User{Name: names[i], IM: true, Presence: true}))
		}
		s.Must(cluster.AssignEntry(names, 1))
		left := func() int { return cluster.Unbalanced(s.Leader().Node().State()) }
		s.Play([]string{"failover n3"})
		s.Must(cluster.BalanceEntry(false))
		before, full := left(), cluster.Counts(s.Leader().Node().State())[1] // the load makes users on the other nodes
		time.Sleep(3 * time.Second)
		if n := cluster.Counts(s.Leader().Node().State())[1]; n != full {
			t.Errorf("%d of %d users are left though a node is failed over", n, full)
		}
		s.Play([]string{"fallback n3"})
		s.until("n3", monitor.HANormal, 20*time.Second)
		d := s.Until("equal counts", time.Minute, func() bool { return left() == 0 })
		if least := time.Duration(before/5-2) * time.Second; before < 30 || d < least {
			t.Errorf("%d users moved in %v", before, d)
		}
		s.Until("the order is done", 5*time.Second, func() bool {
			_, ordered := cluster.BalanceOrdered(s.Leader().Node().State())
			return !ordered
		})
	})
}
