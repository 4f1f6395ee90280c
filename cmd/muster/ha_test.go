package main

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"muster/edges/http/adminapi"
	"muster/fsm/cluster"
	"muster/internal/fault"
)

func TestHAStatus(t *testing.T) {
	s := newShell(t)
	s.must("user", "import", "-q", s.file("a,pw\nb,pw\nc,pw\nd,pw\n"))
	contains(t, s.must("ha"), "group-1  on  Normal  Normal  yes", "node1  group-1  Normal  Normal", "Latest transitions:\nnone")

	n, _ := cluster.NodeByID(s.w.Rig.M, 2)
	s.w.Rig.Must(cluster.DownEntry(2, n.Incarnation))
	contains(t, s.must("ha", "status"), "the users of node1, node2 would have no home if one more node died",
		"Running in Backup Mode", "Failed Over with Critical Services Not Running  Peer Down", "start musterd on node2", "node2 failed over: Peer Down, by -")
	s.fails(fault.Conflict, "node2 is down", "ha", "failover", "node2")
	s.fails(fault.Unavailable, "start musterd there first", "ha", "fallback", "node2")
	s.fails(fault.Unavailable, "no backup can take the users of node1: node2 is down", "ha", "failover", "node1")

	s.w.Rig.Must(cluster.StartEntry(2, "1.0", 1))
	s.w.Live.Now = time.Now()
	s.w.Live.Unheard = "node1 hears no leader"
	contains(t, s.must("ha", "status"), "This may be outdated: node1 hears no leader", "node2 started again")
	var got adminapi.HA
	if err := json.Unmarshal([]byte(s.must("ha", "status", "--json")), &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Nodes) != 2 || got.Nodes[1].State != "Failed Over" || got.Nodes[1].Home != 0 || len(got.History) != 2 || got.Groups[0].Reason != "Peer Down" {
		t.Errorf("%+v", got)
	}
}

func TestHAOrders(t *testing.T) {
	s := newShell(t)
	s.must("user", "import", "-q", s.file("a,pw\nb,pw\nc,pw\nd,pw\n"))
	s.fails(fault.NotFound, "no node is called x", "ha", "failover", "x")
	s.fails(fault.NotFound, "no node is called x", "ha", "fallback", "x")
	s.fails(fault.Conflict, "there is nothing to do: the users of node1 are at home", "ha", "fallback", "node1")
	contains(t, s.must("ha", "failover", "node1"), "node1 is failed over; muster ha fallback node1 brings its users back")
	contains(t, s.must("ha"), "Idle", "On Admin Request", "muster ha fallback node1")
	s.fails(fault.Conflict, "node1 is failed over already", "ha", "failover", "node1")
	s.fails(fault.Unavailable, "node1 is failed over itself: run `muster ha fallback node1` first", "ha", "failover", "node2")
	contains(t, s.must("ha", "fallback", "node1", "--no-wait"), "its users are coming back")
	contains(t, s.must("ha"), "Taking Back", "Falling Back", "node1 falling back: On Admin Request, by local:")
	s.w.FailNext(fault.New(fault.NoQuorum, "log.propose", "", "no majority of the nodes can be reached"))
	s.fails(fault.NoQuorum, "no majority", "ha", "fallback", "node1")
	s.must("group", "put", "group-1", "node1", "node2", "--no-ha")
	s.fails(fault.NotAllowed, "high availability is off for the group group-1", "ha", "failover", "node1")
}

// TestHAFallbackProgress waits, as an operator does, while somebody makes the steps.
func TestHAFallbackProgress(t *testing.T) {
	s := newShell(t)
	s.must("user", "import", "-q", s.file("a,pw\nb,pw\nc,pw\nd,pw\n"))
	s.must("ha", "failover", "node1")
	var leader sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	leader.Go(func() {
		for away := cluster.Slots; away >= 0 && ctx.Err() == nil; time.Sleep(time.Millisecond) {
			if s.w.Fallback(1, away) {
				away -= 64
			}
		}
	})
	out, errs, status := s.run("ha", "fallback", "node1")
	cancel()
	leader.Wait()
	if status != 0 || !strings.Contains(out, "node1: Normal (Normal)") {
		t.Errorf("status %d: %s%s", status, out, errs)
	}
}

// leaver is an operator who leaves after the first line.
type leaver struct {
	strings.Builder
	leave func()
}

// Write implements io.Writer.
func (l *leaver) Write(p []byte) (int, error) {
	l.leave()
	return l.Builder.Write(p)
}

// TestHAFallbackWatched shows the progress line of a fallback that goes on when the operator leaves.
func TestHAFallbackWatched(t *testing.T) {
	s := newShell(t)
	s.must("user", "import", "-q", s.file("a,pw\nb,pw\nc,pw\nd,pw\n"))
	s.must("ha", "failover", "node1")
	s.w.Fallback(1, 64)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out strings.Builder
	errs := leaver{leave: cancel}
	if status := run(ctx, []string{"--data", s.data, "ha", "fallback", "node1"}, strings.NewReader(""), &out, &errs); status != partStatus {
		t.Errorf("status %d", status)
	}
	contains(t, errs.String(), "node1: 75 % of its 2 users are at home; the last one is at home in about 0 s", "the fallback goes on")
}
