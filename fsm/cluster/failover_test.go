package cluster_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"muster/fsm/cluster"
	"muster/fsm/fsmtest"
	"muster/fsm/user"
	"muster/internal/fault"
	"muster/log"
)

// down has a node fall silent.
func down(r *fsmtest.Rig, id uint32) {
	r.TB.Helper()
	n, _ := cluster.NodeByID(r.M, id)
	e := cluster.DownEntry(id, n.Incarnation)
	e.Node = 99 // the leader, whoever that is
	r.Must(e)
}

// spread tells how many users each node serves, and how many nobody does.
func spread(r *fsmtest.Rig) string {
	at := map[uint32]int{}
	user.Scan(r.M, "", "", func(u user.User) bool {
		h, _ := cluster.EffectiveHome(r.M, u.Name)
		at[h.Node]++
		return true
	})
	return strings.TrimPrefix(fmt.Sprint(at), "map")
}

// state renders a node's failover: "-", or cause, share that is away and backups that lost their part.
func state(r *fsmtest.Rig, id uint32) string {
	n, _ := cluster.NodeByID(r.M, id)
	f := n.Failover
	if f == nil {
		return "-"
	}
	s := fmt.Sprintf("%v %d", f.Cause, f.Away)
	if len(f.Back) > 0 {
		s += fmt.Sprint(" back ", f.Back)
	}
	if f.Fallback != cluster.NoCause {
		s += fmt.Sprint(", ", f.Fallback)
	}
	return s
}

// story renders the history.
func story(r *fsmtest.Rig) string {
	var out []string
	for _, tr := range cluster.History(r.M) {
		line := fmt.Sprintf("%s %v: %v", tr.Name, tr.Event, tr.Cause)
		if tr.Detail != "" {
			line += " (" + tr.Detail + ")"
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n")
}

func expect(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %s, want %s", what, got, want)
	}
}

func TestSlots(t *testing.T) {
	for user, want := range map[string]uint8{"": 0xc5, "alice@example.com": 0xc3, "bob@example.com": 0xbc} {
		if got := cluster.Slot(user); got != want {
			t.Errorf("%q is in slot %#x, want %#x", user, got, want)
		}
	}
	const users = 25_600
	counts := [cluster.Slots]int{}
	for i := range users {
		counts[cluster.Slot(fmt.Sprintf("user%d@example.com", i))]++
	}
	for slot, n := range counts {
		if n < 50 || n > 150 { // 100 on average; a binomial spread stays far inside
			t.Errorf("slot %d has %d of %d users", slot, n, users)
		}
	}
}

// TestDeadNodeComesBack follows a crash, the restart and a fallback in steps.
func TestDeadNodeComesBack(t *testing.T) {
	r := town(t, 2)
	populate(r, 0, 100)
	expect(t, "before", spread(r), "[1:50 2:50]")
	down(r, 1)
	expect(t, "down", spread(r), "[2:100]")
	expect(t, "down", state(r, 1), "Peer Down 256")
	start(r, 1)
	expect(t, "started", spread(r), "[2:100]")
	populate(r, 100, 120) // users come at any time; half of them belong to n1 and are served by n2
	expect(t, "created meanwhile", spread(r), "[2:120]")
	r.Must(cluster.AssignEntry([]string{name(1), name(3)}, 1))
	expect(t, "assigned meanwhile", spread(r), "[2:120]")

	moved, before := 0, homesOf(r, 1)
	for away := 192; away >= 0; away -= 64 {
		r.Must(cluster.FallbackStepEntry(1, away, cluster.Automatic))
		now := homesOf(r, 1)
		for u, h := range now {
			if h.Node == before[u].Node {
				continue
			}
			if moved++; h.Node != 1 || h.Epoch <= before[u].Epoch || int(cluster.Slot(u)) < away {
				t.Errorf("step to %d moves %s of slot %d from %+v to %+v", away, u, cluster.Slot(u), before[u], h)
			}
		}
		if away > 0 && (moved == 0 || moved == len(now)) {
			t.Errorf("after the step to %d, %d of %d users are home", away, moved, len(now))
		}
		before = now
	}
	if moved != len(before) || state(r, 1) != "-" {
		t.Errorf("%d of %d came home; %s", moved, len(before), state(r, 1))
	}
	expect(t, "history", story(r), "n1 failed over: Peer Down\nn1 started again: Peer Down\nn1 falling back: Automatic Fallback\nn1 returned: Automatic Fallback")
	r.Verify()
}

// homesOf returns the effective homes of a node's users.
func homesOf(r *fsmtest.Rig, node uint32) map[string]cluster.Home {
	out := map[string]cluster.Home{}
	cluster.HomeOf(r.M, node, func(user string) bool {
		out[user], _ = cluster.EffectiveHome(r.M, user)
		return true
	})
	return out
}

// TestQuickRestart: a process that is back before anybody missed it has not failed over.
func TestQuickRestart(t *testing.T) {
	r := town(t, 2)
	populate(r, 0, 10)
	start(r, 1)
	expect(t, "restarted", spread(r), "[1:5 2:5]")
	expect(t, "restarted", state(r, 1)+story(r), "-")
}

func TestShutdown(t *testing.T) {
	r := town(t, 2)
	n, _ := cluster.NodeByID(r.M, 1)
	e := cluster.DownEntry(1, n.Incarnation)
	e.Node, e.Actor = 1, "node:1"
	r.Must(e)
	n, _ = cluster.NodeByID(r.M, 1)
	if f := n.Failover; f == nil || f.Cause != cluster.PeerShutdown || f.By != "node:1" || f.Since != n.Since {
		t.Errorf("failover %+v", f)
	}
}

// TestNobodyIsLeftAlone: whatever dies, users are served by a node that is up, if one of theirs is.
func TestNobodyIsLeftAlone(t *testing.T) {
	half := cluster.FallbackStepEntry(1, 128, cluster.Automatic)
	tests := []struct {
		name          string
		nodes         int
		steps         func(*fsmtest.Rig)
		spread, state string // of all users; of n1
	}{
		{"both die, the home starts first", 2, func(r *fsmtest.Rig) { down(r, 1); down(r, 2); start(r, 1) }, "[1:12]", "-"},
		{"both die, the backup starts first", 2, func(r *fsmtest.Rig) { down(r, 1); down(r, 2); start(r, 2) }, "[2:12]", "Peer Down 256"},
		{"both die, both start", 2, func(r *fsmtest.Rig) { down(r, 1); down(r, 2); start(r, 2); start(r, 1) }, "[2:12]", "Peer Down 256"},
		{"the backup dies before the fallback", 2, func(r *fsmtest.Rig) { down(r, 1); start(r, 1); down(r, 2) }, "[1:12]", "-"},
		{"the backup dies during the fallback", 2, func(r *fsmtest.Rig) { down(r, 1); start(r, 1); r.Must(half); down(r, 2) }, "[1:12]", "-"},
		{"and comes back", 2, func(r *fsmtest.Rig) { down(r, 1); start(r, 1); r.Must(half); down(r, 2); start(r, 2) }, "[1:12]", "-"},
		{"the home dies again during the fallback", 2, func(r *fsmtest.Rig) { down(r, 1); start(r, 1); r.Must(half); down(r, 1) }, "[2:12]", "Peer Down 256"},
		{"and starts", 2, func(r *fsmtest.Rig) { down(r, 1); start(r, 1); r.Must(half); down(r, 1); start(r, 1) }, "[2:12]", "Peer Down 256"},
		{"the backup dies in an administrator's failover", 2, func(r *fsmtest.Rig) { r.Must(cluster.FailoverEntry(1)); down(r, 2) }, "[1:12]", "-"},
		{"the home dies in an administrator's failover", 2, func(r *fsmtest.Rig) { r.Must(cluster.FailoverEntry(1)); down(r, 1); start(r, 1) }, "[2:12]", "On Admin Request 256"},
		{"both die in an administrator's failover", 2, func(r *fsmtest.Rig) { r.Must(cluster.FailoverEntry(1)); down(r, 1); down(r, 2); start(r, 1) }, "[1:12]", "-"},
		{"the home dies while an administrator's failover ends", 2, func(r *fsmtest.Rig) {
			r.Must(cluster.FailoverEntry(1), cluster.FallbackStepEntry(1, 9, cluster.OnRequest))
			down(r, 1)
			start(r, 1)
		}, "[2:12]", "Peer Down 256"},
		{"high availability is switched off while it is away", 2, func(r *fsmtest.Rig) {
			down(r, 1)
			start(r, 1)
			r.Must(cluster.GroupEntry(cluster.Group{Name: "group-1", Nodes: []uint32{1, 2}}))
		}, "[1:6 2:6]", "-"},
		{"high availability is off", 2, func(r *fsmtest.Rig) {
			r.Must(cluster.GroupEntry(cluster.Group{Name: "group-1", Nodes: []uint32{1, 2}}))
			down(r, 1)
			start(r, 1)
		}, "[1:6 2:6]", "-"},
		{"high availability is switched on while it is down", 2, func(r *fsmtest.Rig) {
			r.Must(cluster.GroupEntry(cluster.Group{Name: "group-1", Nodes: []uint32{1, 2}}))
			down(r, 1)
			r.Must(cluster.GroupEntry(cluster.Group{Name: "group-1", Nodes: []uint32{1, 2}, HA: true}))
			start(r, 1)
		}, "[2:12]", "Peer Down 256"},
		{"the only node", 1, func(r *fsmtest.Rig) { down(r, 1); start(r, 1) }, "[1:12]", "-"},
		{"the backup is removed", 2, func(r *fsmtest.Rig) {
			down(r, 1)
			start(r, 1)
			r.Must(cluster.PublisherEntry(1), cluster.RemoveEntry(2))
		}, "[1:12]", "-"},
		{"the only other node joins while it is down", 1, func(r *fsmtest.Rig) { down(r, 1); join(r, "n2"); start(r, 1) }, "[2:12]", "Peer Down 256"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := town(t, tt.nodes)
			populate(r, 0, 12)
			tt.steps(r)
			expect(t, "homes", spread(r), tt.spread)
			expect(t, "n1", state(r, 1), tt.state)
			r.Verify()
		})
	}
}

// TestBorrowedBackups: the users of a node that is alone in its group are with
// several others; when one of those dies its part is home, and stays there.
func TestBorrowedBackups(t *testing.T) {
	r := town(t, 3) // n3 is alone in its group
	populate(r, 0, 30)
	down(r, 3)
	expect(t, "down", spread(r), "[1:15 2:15]")
	start(r, 3)
	down(r, 1) // its own ten go to n2; of n3's, five are home
	expect(t, "a backup dies", spread(r), "[2:25 3:5]")
	expect(t, "a backup dies", state(r, 3), "Peer Down 256 back [1]")
	start(r, 1)
	expect(t, "it starts", spread(r), "[2:25 3:5]")
	down(r, 2)
	expect(t, "the other one dies", spread(r), "[1:20 3:10]")
	expect(t, "the other one dies", state(r, 3), "-")
	start(r, 2)
	expect(t, "it starts", spread(r), "[1:20 3:10]")

	r.Must(cluster.FallbackStepEntry(2, 0, cluster.OnRequest), cluster.FailoverEntry(3))
	expect(t, "failed over by order", state(r, 3), "On Admin Request 256")
	join(r, "n4") // n3's partner from now on: it was never their backup
	expect(t, "a partner joins", state(r, 3), "-")
	expect(t, "a partner joins", spread(r), "[1:10 2:10 3:10]")
	r.Verify()
}

func TestFailoverRefused(t *testing.T) {
	off := cluster.GroupEntry(cluster.Group{Name: "group-1", Nodes: []uint32{1, 2}})
	stale := cluster.FailoverEntry(1)
	stale.Expect = 1
	tests := []struct {
		name  string
		nodes int
		steps func(*fsmtest.Rig)
		entry *log.Entry
		code  fault.Code
	}{
		{"no such node", 2, nil, cluster.FailoverEntry(9), fault.NotFound},
		{"outdated", 2, nil, stale, fault.Stale},
		{"high availability is off", 2, func(r *fsmtest.Rig) { r.Must(off) }, cluster.FailoverEntry(1), fault.NotAllowed},
		{"no other node", 1, nil, cluster.FailoverEntry(1), fault.NotAllowed},
		{"node down", 2, func(r *fsmtest.Rig) { down(r, 1) }, cluster.FailoverEntry(1), fault.Conflict},
		{"backup down", 2, func(r *fsmtest.Rig) { down(r, 2) }, cluster.FailoverEntry(1), fault.Unavailable},
		{"twice", 2, func(r *fsmtest.Rig) { r.Must(cluster.FailoverEntry(1)) }, cluster.FailoverEntry(1), fault.Conflict},
		{"twice by a service", 2, func(r *fsmtest.Rig) { r.Must(cluster.ServiceFailoverEntry(1, "x")) }, cluster.ServiceFailoverEntry(1, "x"), fault.Conflict},
		{"crosswise", 2, func(r *fsmtest.Rig) { r.Must(cluster.FailoverEntry(1)) }, cluster.FailoverEntry(2), fault.Unavailable},
		{"crosswise by services", 2, func(r *fsmtest.Rig) { r.Must(cluster.ServiceFailoverEntry(1, "x")) }, cluster.ServiceFailoverEntry(2, "x"), fault.Unavailable},
		{"all borrowed backups down", 3, func(r *fsmtest.Rig) { down(r, 1); down(r, 2) }, cluster.FailoverEntry(3), fault.Unavailable},
		{"fallback of no such node", 2, nil, cluster.FallbackEntry(9), fault.NotFound},
		{"nothing to fall back from", 2, nil, cluster.FallbackEntry(1), fault.Conflict},
		{"fallback to a node that is down", 2, func(r *fsmtest.Rig) { down(r, 1) }, cluster.FallbackEntry(1), fault.Unavailable},
		{"fallback for no reason", 2, func(r *fsmtest.Rig) { r.Must(cluster.FailoverEntry(1)) }, cluster.FallbackStepEntry(1, 0, 99), fault.BadRequest},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := town(t, tt.nodes)
			populate(r, 0, 6)
			if tt.steps != nil {
				tt.steps(r)
			}
			r.Refused(tt.entry, tt.code)
		})
	}
}

// TestAdministratorsFailover: it holds until somebody wants the users back, and takes over any other.
func TestAdministratorsFailover(t *testing.T) {
	r := town(t, 2)
	populate(r, 0, 12)
	by := func(e *log.Entry, who string) *log.Entry { e.Actor = who; return e }
	r.Must(by(cluster.FailoverEntry(1), "local:7"))
	expect(t, "away", spread(r), "[2:12]")
	n, _ := cluster.NodeByID(r.M, 1)
	if f := n.Failover; f.By != "local:7" || f.Since != lastTime(r) {
		t.Errorf("%+v", f)
	}
	r.Must(by(cluster.FallbackEntry(1), "local:8"))
	expect(t, "begun", state(r, 1), "On Admin Request 256, On Admin Request")
	expect(t, "begun", spread(r), "[2:12]")
	if n, _ = cluster.NodeByID(r.M, 1); n.Failover.FallbackBy != "local:8" || n.Failover.FallbackSince != lastTime(r) {
		t.Errorf("%+v", n.Failover)
	}
	r.Must(cluster.FallbackStepEntry(1, 100, cluster.Automatic), cluster.FallbackStepEntry(1, 200, cluster.Automatic), cluster.FallbackEntry(1))
	expect(t, "a late step and a second order change nothing", state(r, 1), "On Admin Request 100, On Admin Request")
	r.Must(cluster.FailoverEntry(1))
	expect(t, "called off", state(r, 1), "On Admin Request 256")

	down(r, 1)
	r.Must(cluster.StartEntry(1, "m", 2), cluster.FallbackStepEntry(1, 0, cluster.OnRequest))
	down(r, 1)
	start(r, 1)
	expect(t, "after a crash", state(r, 1), "Peer Down 256")
	r.Must(cluster.FailoverEntry(1))
	expect(t, "held", state(r, 1), "On Admin Request 256")
	r.Verify()
}

// lastTime is the time of the last record.
func lastTime(r *fsmtest.Rig) time.Time {
	return fsmtest.Start.Add(time.Duration(r.M.Applied()) * time.Second)
}

// TestBoundedHistory: only the latest transitions stay, in order.
func TestBoundedHistory(t *testing.T) {
	r := town(t, 2)
	for range 40 {
		r.Must(cluster.ServiceFailoverEntry(1, strings.Repeat("é", 400)), cluster.FallbackStepEntry(1, 0, cluster.Automatic))
	}
	h := cluster.History(r.M)
	if len(h) != cluster.MaxHistory || h[len(h)-1].Event != cluster.Returned || h[0].At.After(h[1].At) || h[1].At.After(h[2].At) {
		t.Errorf("%d lines, from %+v to %+v", len(h), h[0], h[len(h)-1])
	}
	for _, tr := range h {
		if len(tr.Detail) > 512 || tr.Node != 1 || tr.Name != "n1" {
			t.Errorf("%+v", tr)
		}
	}
	r.Verify()
}

func TestNamesOfCausesAndEvents(t *testing.T) {
	seen := map[string]bool{}
	for c := cluster.OnRequest; c.String() != "Unknown"; c++ {
		if s := c.String(); s == "" || seen[s] {
			t.Errorf("cause %d is called %q", c, s)
		} else {
			seen[s] = true
		}
	}
	if len(seen) != 8 {
		t.Errorf("%d causes have names", len(seen))
	}
	for e := cluster.FailedOver; e <= cluster.Returned; e++ {
		if s := e.String(); s == "unknown" || seen[s] {
			t.Errorf("event %d is called %q", e, s)
		}
	}
	if cluster.Event(0).String() != "unknown" || cluster.Event(99).String() != "unknown" {
		t.Error("an event that there is not has a name")
	}
}
