package operate

import (
	"slices"
	"strings"
	"testing"

	"muster/fsm"
	"muster/fsm/cluster"
	"muster/fsm/fsmtest"
	"muster/internal/modules"
	"muster/monitor"
	"muster/replication"
)

// healthy is node id's health at the tip of a cluster at index 5000, changed by edits.
func healthy(id uint32, edits ...func(*replication.NodeHealth)) replication.NodeHealth {
	h := replication.NodeHealth{Node: id, Reachable: true, Version: "1.0", Index: 4990,
		Status:  replication.Status{Node: id, Role: "follower", Voter: true, Leader: 1, Commit: 5000, Applied: 5000, FirstLog: 100},
		Digests: []fsm.TableDigest{{Table: "a", Digest: 1}, {Table: "b", Digest: 2}}}
	if id == 1 {
		h.Status.Role = "leader"
	}
	for _, edit := range edits {
		edit(&h)
	}
	return h
}

func TestClassify(t *testing.T) {
	edit := func(fn func(*replication.NodeHealth)) replication.NodeHealth { return healthy(2, fn) }
	for _, tc := range []struct {
		name    string
		health  replication.NodeHealth
		differs bool
		state   int
		reason  string
	}{
		{"good", healthy(2), false, stateGood, ""},
		{"good with a note", edit(func(h *replication.NodeHealth) { h.Status.Reason = "slow disk" }), false, stateGood, "slow disk"},
		{"not reached", edit(func(h *replication.NodeHealth) { h.Reachable = false }), false, stateFailed, "not reached"},
		{"not reached, with a reason", edit(func(h *replication.NodeHealth) { h.Reachable, h.Reason = false, "refused" }), false, stateFailed, "refused"},
		{"halted", edit(func(h *replication.NodeHealth) { h.Status.Halted = "kind 99" }), false, stateFailed, "kind 99"},
		{"tables differ", healthy(2), true, stateBad, "differ"},
		{"no leader", edit(func(h *replication.NodeHealth) { h.Status.Leader = 0 }), false, stateNotStarted, "hears no leader"},
		{"no member yet", edit(func(h *replication.NodeHealth) { h.Status.Voter = false }), false, stateCount, "not yet a member"},
		{"non-voter", edit(func(h *replication.NodeHealth) { h.Status.Voter, h.Status.NonVoters = false, []uint32{2} }), false, stateGood, ""},
		{"waits for a snapshot", edit(func(h *replication.NodeHealth) { h.Status.Applied = 50 }), false, stateCount, "snapshot"},
		{"far behind", edit(func(h *replication.NodeHealth) { h.Status.Applied = 5000 - MaxLag - 1 }), false, stateBad, "1001 entries behind"},
		{"a little behind", edit(func(h *replication.NodeHealth) { h.Status.Applied = 5000 - MaxLag }), false, stateGood, ""},
		{"ahead of what the others know", edit(func(h *replication.NodeHealth) { h.Status.Applied = 6000 }), false, stateGood, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			state, reason := classify(tc.health, 5000, 100, tc.differs)
			if state != tc.state || !strings.Contains(reason, tc.reason) || reason == "" != (tc.reason == "") {
				t.Errorf("(%d) %q, want (%d) %q", state, reason, tc.state, tc.reason)
			}
			if stateText[state] == "" {
				t.Errorf("state %d has no text", state)
			}
		})
	}
}

func digest(table int, value uint64) func(*replication.NodeHealth) {
	return func(h *replication.NodeHealth) { h.Digests[table].Digest = value }
}

func at(index uint64) func(*replication.NodeHealth) {
	return func(h *replication.NodeHealth) { h.Index = index }
}

func none(h *replication.NodeHealth) { h.Digests = nil }

func TestCompareAndOutliers(t *testing.T) {
	for _, tc := range []struct {
		name   string
		nodes  []replication.NodeHealth
		differ []string
		odd    []uint32
	}{
		{"equal", []replication.NodeHealth{healthy(1), healthy(2), healthy(3)}, nil, nil},
		{"one differs", []replication.NodeHealth{healthy(1), healthy(2), healthy(3, digest(1, 9))}, []string{"b"}, []uint32{3}},
		{"a tie blames both", []replication.NodeHealth{healthy(1), healthy(2, digest(0, 9))}, []string{"a"}, []uint32{1, 2}},
		{"another index cannot be compared", []replication.NodeHealth{healthy(1), healthy(2, at(4000), digest(0, 9))}, nil, nil},
		{"no digests", []replication.NodeHealth{healthy(1), healthy(2, none)}, nil, nil},
		{"several tables", []replication.NodeHealth{healthy(1), healthy(2), healthy(3, digest(0, 8), digest(1, 9))}, []string{"a", "b"}, []uint32{3}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			differ, tables := Compare(tc.nodes)
			if !slices.Equal(differ, tc.differ) || tables != 2 {
				t.Errorf("%v of %d tables differ, want %v of 2", differ, tables, tc.differ)
			}
			odd := outliers(tc.nodes)
			for _, h := range tc.nodes {
				if odd[h.Node] != slices.Contains(tc.odd, h.Node) {
					t.Errorf("outliers are %v, want %v", odd, tc.odd)
				}
			}
		})
	}
}

func TestNodeFacts(t *testing.T) {
	rig := fsmtest.New(t, modules.Control()...)
	hash := cluster.HashToken([]byte("t"))
	member := func(name string) cluster.Member {
		return cluster.Member{Name: name, ClusterAddr: name + ":1", Software: "0.9", NewestVersion: 1}
	}
	rig.Must(cluster.InitEntry(cluster.Init{ID: "c", Version: 1, Node: member("n1")}),
		cluster.TokenEntry(hash, fsmtest.Start.AddDate(1, 0, 0)), cluster.JoinEntry(hash, member("n2")))
	got := NodeFacts(rig.M, nil)
	want := []monitor.NodeFacts{{Name: "n1", Release: "0.9", CaughtUp: true}, {Name: "n2", Release: "0.9", CaughtUp: true}}
	if !slices.Equal(got, want) {
		t.Errorf("before anybody answered: %+v", got)
	}
	got = NodeFacts(rig.M, []replication.NodeHealth{healthy(1), healthy(2, func(h *replication.NodeHealth) { h.Status.Applied = 200 })})
	want = []monitor.NodeFacts{{Name: "n1", Release: "1.0", CaughtUp: true}, {Name: "n2", Release: "1.0", CaughtUp: false}}
	if !slices.Equal(got, want) {
		t.Errorf("with answers: %+v", got)
	}
	control := []replication.NodeHealth{healthy(1), healthy(2)}
	got = NodeFacts(rig.M, control, []replication.NodeHealth{healthy(1, func(h *replication.NodeHealth) { h.Status.Halted = "kind 99" }), healthy(2)})
	want = []monitor.NodeFacts{{Name: "n1", Release: "1.0", CaughtUp: false}, {Name: "n2", Release: "1.0", CaughtUp: true}}
	if !slices.Equal(got, want) {
		t.Errorf("with a message log that is behind: %+v", got)
	}
}
