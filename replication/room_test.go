package replication

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"muster/internal/fault"
)

// disks are what the nodes of a test cluster have room for.
type disks struct{ room [4]atomic.Int32 }

func (d *disks) set(node uint32, r Room) { d.room[node].Store(int32(r)) }

func (d *disks) of(node uint32) func() (Room, string) {
	return func() (Room, string) {
		r := Room(d.room[node].Load())
		if r == RoomForAll {
			return r, ""
		}
		return r, "disk full: free 1 MB in data"
	}
}

func newRoomCluster(t *testing.T, d *disks) *testCluster {
	c := newClusterWith(t, ControlLog, 3, Timing{}, func(cfg *Config) { cfg.Room = d.of(cfg.NodeID) })
	return c
}

// TestFullLeaderHandsOn: a leader whose disk lacks room has another one lead,
// and leads again only if it has to.
func TestFullLeaderHandsOn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var d disks
		c := newRoomCluster(t, &d)
		old := c.settle(3)
		old.must("a", "1")
		d.set(old.id, RoomToFollow)
		c.until("another leader", 30*time.Second, func() bool { n := c.leader(); return n != nil && n.id != old.id })
		if st := old.Status(); st.Room != RoomToFollow || !strings.Contains(st.Reason, "disk full") || st.Since.IsZero() {
			t.Errorf("its status: %+v", st)
		}
		old.must("b", "2") // it still has room to follow, and may propose
		lead := c.settle(3)
		lead.stop()
		c.until("the third one leads, since the full one is slow to stand", 30*time.Second, func() bool {
			n := c.leader()
			return n != nil && n.id != old.id
		})
		lead.start()
		d.set(old.id, RoomForAll)
		c.until("it is well", 30*time.Second, func() bool { return old.Status().Reason == "" })
		c.equal(c.settle(3))
	})
}

// TestNodeWithoutRoom: it takes no proposals and keeps no records of others;
// the group goes on; with room again it catches up by itself.
func TestNodeWithoutRoom(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var d disks
		c := newRoomCluster(t, &d)
		lead := c.settle(3)
		full := c.follower()
		lead.must("a", "1")
		d.set(full.id, NoRoom)
		if _, err := full.Propose(t.Context(), put("x", "y")); !fault.Is(err, fault.Unavailable) || !strings.Contains(fault.Public(err), "disk full") {
			t.Errorf("a proposal of a full node: %v", err)
		}
		before, _ := full.logs.LastIndex()
		for _, v := range []string{"2", "3", "4"} {
			lead.must("a", v)
		}
		if after, _ := full.logs.LastIndex(); after != before || full.get("a") == "4" {
			t.Errorf("the full node's log went from %d to %d", before, after)
		}
		if !lead.IsLeader() {
			t.Error("a follower without room cost the leader its lead")
		}
		d.set(full.id, RoomForAll)
		c.until("the full node has caught up", time.Minute, func() bool { return full.get("a") == "4" })
		if exits := full.noted(&full.exits); len(exits) != 0 {
			t.Errorf("it ended: %v", exits)
		}
		c.equal(c.settle(3))
	})
}

// TestNobodyHasRoom: there is a leader all the same, so that nodes know of one
// another; proposals are refused, each at its own node, and taken when there is room.
func TestNobodyHasRoom(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var d disks
		c := newRoomCluster(t, &d)
		lead := c.settle(3)
		lead.must("a", "1")
		c.equal(lead) // a record that one of the others lacked could not be written there any more
		for id := range c.nodes {
			d.set(id, NoRoom)
		}
		lead.stop()
		c.until("another leader without room", time.Minute, func() bool { n := c.leader(); return n != nil && n.id != lead.id })
		lead.start()
		for id, n := range c.nodes {
			if _, err := n.Propose(t.Context(), put("x", "y")); !fault.Is(err, fault.Unavailable) {
				t.Errorf("node %d: a proposal: %v", id, err)
			}
		}
		for id := range c.nodes {
			d.set(id, RoomForAll)
		}
		c.until("a proposal is taken", time.Minute, func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			_, err := lead.Propose(ctx, put("x", "z"))
			return err == nil
		})
		c.equal(c.settle(3))
	})
}

// TestAdmit says what a log without room still takes.
func TestAdmit(t *testing.T) {
	command := &raft.Log{Index: 3, Type: raft.LogCommand, Data: []byte("x")}
	for _, tc := range []struct {
		name string
		room Room
		logs []*raft.Log
		want error
	}{
		{"room", RoomForAll, []*raft.Log{command}, nil},
		{"room to follow", RoomToFollow, []*raft.Log{command}, nil},
		{"none", NoRoom, []*raft.Log{command}, syscall.ENOSPC},
		{"Raft's own", NoRoom, []*raft.Log{{Type: raft.LogNoop}, {Type: raft.LogConfiguration, Data: []byte("c")}}, nil},
		{"a new leader's first", NoRoom, []*raft.Log{{Type: raft.LogCommand, Data: emptyRecord}}, nil},
		{"one among others", NoRoom, []*raft.Log{{Type: raft.LogNoop}, command}, syscall.ENOSPC},
	} {
		mem := raft.NewInmemStore()
		g := quietLog(mem, mem)
		g.room = func() (Room, string) { return tc.room, "full" }
		for i, l := range tc.logs {
			l.Index = uint64(i + 1)
		}
		if err := g.StoreLogs(tc.logs); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
	}
}

// TestTailIsNotCutInVain: a tail is cut for records that take its place. Both are done, or neither.
func TestTailIsNotCutInVain(t *testing.T) {
	mem := raft.NewInmemStore()
	g, room := quietLog(mem, mem), NoRoom
	g.room = func() (Room, string) { return room, "full" }
	fill(t, mem, 1, 5)
	if err := g.DeleteRange(4, 5); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("cutting the tail: %v", err)
	}
	if err := g.DeleteRange(1, 2); err != nil {
		t.Errorf("cutting the head, which makes room: %v", err)
	}
	room = RoomForAll
	if err := g.DeleteRange(4, 5); err != nil {
		t.Fatal(err)
	}
	room = NoRoom
	for i, want := range []error{nil, syscall.ENOSPC} {
		if err := g.StoreLog(&raft.Log{Index: uint64(4 + i), Type: raft.LogCommand, Data: []byte("new")}); !errors.Is(err, want) {
			t.Errorf("record %d behind the cut: %v, want %v", i, err, want)
		}
	}
}

// TestFullDiskIsRelieved: bbolt changes nothing when the disk is full, so a write is tried again when room was made.
func TestFullDiskIsRelieved(t *testing.T) {
	full := &fullStore{InmemStore: raft.NewInmemStore(), full: true}
	g := quietLog(full, full)
	relieved := 0
	g.relieve = func() { relieved++; full.full = false }
	if err := g.StoreLog(&raft.Log{Index: 1}); err != nil || relieved != 1 {
		t.Errorf("with a reserve: %v, relieved %d times", err, relieved)
	}
	full.full = true
	g.relieve = func() { relieved++ }
	if err := g.StoreLog(&raft.Log{Index: 2}); !errors.Is(err, syscall.ENOSPC) || relieved != 2 {
		t.Errorf("without: %v, relieved %d times", err, relieved)
	}
	if why, _ := g.watch.trouble.reason(); !strings.Contains(why, "full") {
		t.Errorf("said: %q", why)
	}
}

type fullStore struct {
	*raft.InmemStore
	full bool
}

func (s *fullStore) StoreLogs(logs []*raft.Log) error {
	if s.full {
		return errNoSpace
	}
	return s.InmemStore.StoreLogs(logs)
}
