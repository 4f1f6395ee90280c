package cluster_test

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"muster/fsm/cluster"
	"muster/fsm/fsmtest"
	"muster/fsm/user"
	"muster/log"
)

// TestHomesUnderAnyChange holds, after each of many random changes: whoever has
// a node that is up has a home, which is up; the epoch rises when the home
// moves; a fallback's step moves users home only; a failover of a node that is
// up has a backup in service.
func TestHomesUnderAnyChange(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := town(t, rapid.IntRange(1, 4).Draw(rt, "nodes"))
		populate(r, 0, 8)
		before := homes(r)
		for i := range rapid.IntRange(5, 60).Draw(rt, "steps") {
			e := anything(rt, r, i)
			res := r.Apply(e)[0]
			now := homes(r)
			if res.Err == nil && e.Kind == log.HAFallback {
				checkStep(rt, r, before, now)
			}
			checkMoves(rt, before, now)
			checkServed(rt, r, now)
			checkFailovers(rt, r)
			before = now
		}
		r.Verify()
	})
}

// anything draws a change of nodes, groups, failovers or users.
func anything(rt *rapid.T, r *fsmtest.Rig, i int) *log.Entry {
	list := cluster.Nodes(r.M)
	n := rapid.SampledFrom(list).Draw(rt, "node")
	switch rapid.IntRange(0, 13).Draw(rt, "what") {
	case 0, 1, 2:
		return cluster.DownEntry(n.ID, n.Incarnation)
	case 3, 4, 5:
		return cluster.StartEntry(n.ID, "m", 2)
	case 6:
		return cluster.FailoverEntry(n.ID)
	case 7:
		return cluster.ServiceFailoverEntry(n.ID, "x")
	case 8, 9:
		return cluster.FallbackStepEntry(n.ID, rapid.IntRange(0, cluster.Slots).Draw(rt, "away"), cluster.Automatic)
	case 10:
		hash := cluster.HashToken([]byte(fmt.Sprint("token", i)))
		r.Must(cluster.TokenEntry(hash, fsmtest.Start.AddDate(1, 0, 0)))
		return cluster.JoinEntry(hash, member(fmt.Sprint("m", i)))
	case 11:
		return cluster.RemoveEntry(n.ID)
	case 12:
		other := rapid.SampledFrom(list).Draw(rt, "other")
		members := []uint32{n.ID, other.ID}
		if n.ID == other.ID {
			members = members[:1]
		}
		return cluster.GroupEntry(cluster.Group{Name: n.Group, Nodes: members, HA: rapid.IntRange(0, 3).Draw(rt, "ha") > 0})
	}
	return cluster.AssignEntry([]string{name(rapid.IntRange(0, 7).Draw(rt, "user"))}, n.ID)
}

// homes returns everybody's effective home; none for those whom nobody serves.
func homes(r *fsmtest.Rig) map[string]cluster.Home {
	out := map[string]cluster.Home{}
	user.Scan(r.M, "", "", func(u user.User) bool {
		if h, ok := cluster.EffectiveHome(r.M, u.Name); ok {
			out[u.Name] = h
		}
		return true
	})
	return out
}

func checkMoves(rt *rapid.T, before, now map[string]cluster.Home) {
	for u, h := range now {
		if old, was := before[u]; was && (old.Node != h.Node && h.Epoch <= old.Epoch || h.Epoch < old.Epoch) {
			rt.Fatalf("%s moved from %+v to %+v", u, old, h)
		}
	}
}

// checkStep demands that a fallback moves nobody away.
func checkStep(rt *rapid.T, r *fsmtest.Rig, before, now map[string]cluster.Home) {
	for u, h := range now {
		if a, _ := cluster.AssignmentOf(r.M, u); h.Node != before[u].Node && h.Node != a.Home {
			rt.Fatalf("a fallback moved %s from %+v to %+v", u, before[u], h)
		}
	}
}

func checkServed(rt *rapid.T, r *fsmtest.Rig, now map[string]cluster.Home) {
	up := map[uint32]bool{}
	for _, n := range cluster.Nodes(r.M) {
		up[n.ID] = n.Up
	}
	user.Scan(r.M, "", "", func(u user.User) bool {
		a, _ := cluster.AssignmentOf(r.M, u.Name)
		h, ok := now[u.Name]
		if ok != (up[a.Home] || up[a.Backup]) || ok && !up[h.Node] {
			rt.Fatalf("%s of %+v has home %+v %v; up are %v", u.Name, a, h, ok, up)
		}
		return true
	})
}

func checkFailovers(rt *rapid.T, r *fsmtest.Rig) {
	for _, n := range cluster.Nodes(r.M) {
		f := n.Failover
		if f == nil {
			continue
		}
		serving := false
		for _, b := range cluster.Reserves(r.M, n) {
			serving = serving || b.Up && !slices.Contains(f.Back, b.ID)
		}
		if g, _ := cluster.GroupByName(r.M, n.Group); !g.HA || n.Up && !serving || f.Away < 1 || f.Away > cluster.Slots {
			rt.Fatalf("node %+v of group %+v has failover %+v", n, g, f)
		}
	}
}
