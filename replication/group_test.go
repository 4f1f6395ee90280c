package replication

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"muster/internal/fault"
	"muster/log"
)

func TestThreeNodesReplicate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, Timing{})
		lead := c.settle(3)
		follower := c.follower()
		index := follower.must("a", "1")
		if got := follower.get("a"); got != "1" {
			t.Errorf("the proposer reads %q right after Propose, want its own write", got)
		}
		for _, n := range c.nodes {
			if err := n.WaitIndex(t.Context(), index); err != nil {
				t.Fatal(err)
			}
			if n.get("a") != "1" {
				t.Errorf("node %d has a=%q", n.id, n.get("a"))
			}
		}
		c.equal(lead)
	})
}

func TestResultsComeBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, Timing{})
		for _, n := range c.nodes {
			res, err := n.Propose(t.Context(), put("x", "val"), put("!bad", "1"), put("y", ""))
			if err != nil || len(res) != 3 {
				t.Fatalf("node %d: %d results, %v", n.id, len(res), err)
			}
			if string(res[0].Value) != "val" || res[0].Err != nil || res[1].Err == nil || res[2].Err != nil {
				t.Errorf("node %d: results %+v", n.id, res)
			}
			if got := n.get("y"); got != "" {
				t.Errorf("y=%q", got)
			}
		}
	})
}

func TestSameKeyAppliesOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, Timing{})
		var first uint64
		for _, n := range c.nodes {
			e := put("k", "v")
			e.Key = "retry"
			res, err := n.Propose(t.Context(), e)
			if err != nil {
				t.Fatal(err)
			}
			if first == 0 {
				first = res[0].Index
			}
			if res[0].Index != first || string(res[0].Value) != "v" {
				t.Errorf("node %d: result %+v, want that of index %d", n.id, res[0], first)
			}
			if n.get("count") != "x" {
				t.Errorf("node %d applied it %d times", n.id, len(n.get("count")))
			}
		}
	})
}

// TestGather counts the records that proposals are gathered into. The queue is
// filled by hand: nothing of a group runs but the function.
func TestGather(t *testing.T) {
	bubble(t, func(t *testing.T) {
		tests := []struct {
			name    string
			limit   Batch
			waiting []int         // entries of the proposals that wait
			size    int           // bytes of each
			gone    bool          // the second one's proposer has gone
			coming  time.Duration // another proposal comes after this; 0: none does
			want    []int         // entries of the proposals of one record
			takes   time.Duration
		}{
			{"what waits goes together", Batch{Entries: 64, Bytes: 1 << 20}, []int{1, 1, 1}, 10, false, 0, []int{1, 1, 1}, 0},
			{"up to a number of entries", Batch{Entries: 2, Bytes: 1 << 20}, []int{1, 1, 1}, 10, false, 0, []int{1, 1}, 0},
			{"a proposal is never split", Batch{Entries: 2, Bytes: 1 << 20}, []int{5, 1}, 10, false, 0, []int{5}, 0},
			{"up to a number of bytes", Batch{Entries: 64, Bytes: 15}, []int{1, 1, 1}, 10, false, 0, []int{1, 1}, 0},
			{"who has gone is left out", Batch{Entries: 64, Bytes: 1 << 20}, []int{1, 2, 3}, 10, true, 0, []int{1, 3}, 0},
			{"without delay nobody is waited for", Batch{Entries: 64, Bytes: 1 << 20}, []int{1}, 10, false, time.Millisecond, []int{1}, 0},
			{"with one, for what comes in time", Batch{Entries: 64, Bytes: 1 << 20, Delay: 5 * time.Millisecond}, []int{1}, 10, false, time.Millisecond, []int{1, 9}, 5 * time.Millisecond},
			{"not for what comes late", Batch{Entries: 64, Bytes: 1 << 20, Delay: 5 * time.Millisecond}, []int{1}, 10, false, time.Second, []int{1}, 5 * time.Millisecond},
			{"and not when the record is full", Batch{Entries: 10, Bytes: 1 << 20, Delay: time.Minute}, []int{1}, 10, false, time.Millisecond, []int{1, 9}, time.Millisecond},
		}
		for _, tt := range tests {
			g := &Group{cfg: Config{Batch: func() Batch { return tt.limit }}, queue: make(chan *proposal, 16), ctx: t.Context()}
			add := func(entries int, stage int32) {
				p := &proposal{ctx: t.Context(), entries: make([]*log.Entry, entries), size: tt.size}
				p.stage.Store(stage)
				g.queue <- p
			}
			for i, n := range tt.waiting {
				stage := int32(queued)
				if tt.gone && i == 1 {
					stage = withdrawn
				}
				add(n, stage)
			}
			if tt.coming > 0 {
				time.AfterFunc(tt.coming, func() { add(9, queued) })
			}
			start := time.Now()
			var got []int
			for _, p := range g.gather(<-g.queue) {
				got = append(got, len(p.entries))
			}
			if took := time.Since(start); !slices.Equal(got, tt.want) || took != tt.takes {
				t.Errorf("%s: %v after %v, want %v after %v", tt.name, got, took, tt.want, tt.takes)
			}
			time.Sleep(2 * time.Second) // for the late one
		}
	})
}

func TestKeyFor(t *testing.T) {
	a, b := keyFor("", false), keyFor("", false)
	if a == "" || a == b {
		t.Errorf("invented keys %q and %q", a, b)
	}
	if got := keyFor("own", false); got != "own" {
		t.Errorf("an entry's own key became %q", got)
	}
	if keyFor("", true) != "" || keyFor("own", true) != "" {
		t.Error("an entry that needs no key has one")
	}
}

func TestConcurrentProposalsShareRecords(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, Timing{})
		lead := c.settle(3)
		before := lead.Commit()
		const n = 300
		var wg sync.WaitGroup
		for i := range n {
			from := c.nodes[uint32(i%3+1)]
			wg.Go(func() { from.must(fmt.Sprint("k", i), "v") })
		}
		wg.Wait()
		if records := lead.Commit() - before; records > n/2 {
			t.Errorf("%d proposals took %d records", n, records)
		}
		if got := len(lead.get("count")); got != n {
			t.Errorf("%d proposals were applied, want %d", got, n)
		}
		c.equal(lead)
	})
}

func TestLeaderKilled(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, Timing{})
		old := c.settle(3)
		old.must("before", "1")
		old.stop()
		start := time.Now()
		c.follower().must("after", "1")
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("a change took %v after the leader's death, want at most 3 s", took)
		}
		c.until("a ready leader", 3*time.Second, func() bool { return c.leader() != nil })
		if lead := c.leader(); lead.get("before") != "1" {
			t.Error("a confirmed change is lost")
		}
		old.start()
		c.until("the old leader to catch up", 10*time.Second, func() bool { return old.get("after") == "1" })
		c.equal(c.settle(3))
	})
}

func TestProposalsSurviveLeaderChanges(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, Timing{})
		const writers, each = 4, 40
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				for i := range each {
					from := c.nodes[uint32((w+i)%3+1)]
					from.must(fmt.Sprintf("w%d-%d", w, i), "v")
					time.Sleep(50 * time.Millisecond)
				}
			})
		}
		for range 3 {
			time.Sleep(500 * time.Millisecond)
			if lead := c.leader(); lead != nil {
				c.isolate(lead.id, true)
				time.Sleep(1500 * time.Millisecond)
				c.isolate(lead.id, false)
			}
		}
		wg.Wait()
		lead := c.settle(3)
		if got := len(lead.get("count")); got != writers*each {
			t.Errorf("%d changes were applied, want each of %d once", got, writers*each)
		}
		c.equal(lead)
	})
}

func TestMinorityRefuses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 5, Timing{})
		lead := c.settle(5)
		minority := []*node{lead, c.follower()}
		for _, a := range minority {
			for _, b := range c.nodes {
				if b != minority[0] && b != minority[1] {
					c.net.split(a.addr(), b.addr(), true)
				}
			}
		}
		refused := func(n *node, want fault.Code) {
			t.Helper()
			start := time.Now()
			_, err := n.Propose(t.Context(), put("lost", "1"))
			took := time.Since(start)
			if !fault.Is(err, want) || took > 5*time.Second {
				t.Errorf("node %d: %v after %v, want %v within 5 s", n.id, err, took, want)
			}
			if !strings.Contains(fault.Public(err), "majority") {
				t.Errorf("the refusal does not say why: %q", fault.Public(err))
			}
		}
		refused(lead, fault.Timeout) // it took the proposal before it knew: nobody can say what comes of it
		for _, n := range minority {
			refused(n, fault.NoQuorum)
			if _, err := n.ReadIndex(t.Context()); !fault.Is(err, fault.NoQuorum) {
				t.Errorf("node %d: ReadIndex: %v, want NoQuorum", n.id, err)
			}
			if n.LeaderContact() < 3*time.Second || n.Status().Reason == "" {
				t.Errorf("node %d does not know that it is cut off: %v %q", n.id, n.LeaderContact(), n.Status().Reason)
			}
		}
		var other *node
		c.until("the majority to have a leader", 5*time.Second, func() bool {
			for _, n := range c.nodes {
				if n != minority[0] && n != minority[1] && n.IsLeader() {
					other = n
				}
			}
			return other != nil
		})
		other.must("kept", "1")
		for _, a := range minority {
			c.isolate(a.id, false)
		}
		c.until("convergence", 10*time.Second, func() bool { return lead.get("kept") == "1" })
		c.equal(c.settle(5))
	})
}

func TestRestartReplays(t *testing.T) {
	tests := []struct {
		name string
		down func(*node)
	}{
		{"stopped", (*node).stop},
		{"crashed, unsynced state lost", (*node).crash},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				c := newCluster(t, 3, Timing{})
				lead := c.settle(3)
				for i := range 50 {
					lead.must(fmt.Sprint("k", i), "v")
				}
				for _, n := range c.nodes { // all of them, at once
					tt.down(n)
				}
				for _, n := range c.nodes {
					n.start()
				}
				lead = c.settle(3)
				if got := len(lead.get("count")); got != 50 {
					t.Errorf("%d of 50 confirmed changes are there", got)
				}
				c.equal(lead)
				lead.must("after", "1")
			})
		})
	}
}

func TestReadIndexSeesConfirmedWrites(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, Timing{})
		for i, n := range []*node{c.nodes[1], c.nodes[2], c.nodes[3], c.nodes[1]} {
			v := fmt.Sprint(i)
			n.must("r", v)
			for _, reader := range c.nodes {
				index, err := reader.ReadIndex(t.Context())
				if err == nil {
					err = reader.WaitIndex(t.Context(), index)
				}
				if err != nil || reader.get("r") != v {
					t.Fatalf("node %d reads %q, %v, want %q", reader.id, reader.get("r"), err, v)
				}
			}
		}
	})
}

// TestNonVotersProveNothing cuts a leader off from all voters: that it still reaches a node without a vote proves nothing.
func TestNonVotersProveNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 4, Timing{})
		lead := c.settle(3)
		c.until("a node without a vote", time.Minute, func() bool { return len(lead.Status().NonVoters) == 1 })
		for _, v := range lead.Status().Voters {
			if v != lead.id {
				c.net.split(lead.addr(), c.nodes[v].addr(), true)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond) // shorter than the lease, after which it steps down by itself
		defer cancel()
		if index, err := lead.ReadIndex(ctx); err == nil {
			t.Errorf("a leader without a majority answers %d", index)
		}
		c.isolate(lead.id, false)
		c.equal(c.settle(3))
	})
}

func TestLeadershipIsTold(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, Timing{})
		lead := c.settle(3)
		if lead.LeaderContact() != 0 {
			t.Errorf("the leader heard itself %v ago", lead.LeaderContact())
		}
		if f := c.follower(); f.LeaderContact() > time.Second || f.IsLeader() || f.Leader() != lead.id {
			t.Errorf("a follower says: contact %v, leader %d", f.LeaderContact(), f.Leader())
		}
		if err := lead.TransferLeadership(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.until("another leader", 5*time.Second, func() bool { l := c.leader(); return l != nil && l != lead })
		c.until("the old leader to be told", 5*time.Second, func() bool {
			lead.mu.Lock()
			defer lead.mu.Unlock()
			return len(lead.leads) >= 2 && lead.leads[0] && !lead.leads[len(lead.leads)-1]
		})
	})
}

func TestContextEndsAProposal(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, Timing{})
		f := c.follower()
		c.isolate(f.id, true)
		time.Sleep(2 * time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		_, err := f.Propose(ctx, put("a", "1"))
		if took := time.Since(start); took > 1100*time.Millisecond || !fault.CodeOf(err).Retryable() {
			t.Errorf("%v after %v, want a retryable fault when the context ends", err, took)
		}
	})
}

func TestClosedGroupRefuses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 1, Timing{})
		n := c.nodes[1]
		n.stop()
		if _, err := n.Propose(context.Background(), put("a", "1")); !fault.Is(err, fault.Unavailable) {
			t.Errorf("Propose on a closed group: %v", err)
		}
	})
}

func TestUnknownKindHalts(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 1, Timing{SnapshotInterval: 100 * time.Millisecond, SnapshotThreshold: 1, TrailingLogs: 1})
		n := c.nodes[1]
		n.must("a", "1")
		_, err := n.Propose(t.Context(), &log.Entry{Kind: 9999, Body: []byte("?")})
		if !fault.CodeOf(err).Retryable() {
			t.Errorf("the proposal of an unknown kind: %v", err)
		}
		applied := n.Applied()
		if st := n.Status(); !strings.Contains(st.Halted, "upgrade") || st.Reason == "" {
			t.Errorf("status %+v, want why it halted", st)
		}
		if _, err := n.Propose(t.Context(), put("b", "1")); !fault.Is(err, fault.Unavailable) || !strings.Contains(fault.Public(err), "upgrade") {
			t.Errorf("a proposal after the halt: %v", err)
		}
		snap := n.Status().SnapshotIndex
		if err := n.Snapshot(t.Context()); err == nil {
			t.Error("a snapshot past a halt")
		}
		if st := n.Status(); st.SnapshotIndex != snap || n.Applied() != applied || n.get("a") != "1" {
			t.Errorf("the halted machine moved on: %+v", st)
		}
	})
}

func TestLogDamage(t *testing.T) {
	logs := raft.NewInmemStore()
	g := quietLog(logs, logs)
	if err := bootstrapLog(g, 1, put("a", "1"), put("b", "2")); err != nil {
		t.Fatal(err)
	}
	damage := []struct {
		name string
		do   func(l *raft.Log)
	}{
		{"intact", func(*raft.Log) {}},
		{"a bit of the data", func(l *raft.Log) { l.Data[len(l.Data)-1] ^= 1 }},
		{"the term", func(l *raft.Log) { l.Term++ }},
		{"the type", func(l *raft.Log) { l.Type = raft.LogNoop }},
		{"the index", func(l *raft.Log) { l.Index = 2; l.Extensions = nil }},
		{"the checksum", func(l *raft.Log) { l.Extensions[0] ^= 0x80 }},
		{"an extension", func(l *raft.Log) { l.Extensions = append(l.Extensions, 1) }},
	}
	for _, tt := range damage {
		t.Run(tt.name, func(t *testing.T) {
			var l raft.Log
			if err := logs.GetLog(2, &l); err != nil {
				t.Fatal(err)
			}
			l.Data, l.Extensions = append([]byte(nil), l.Data...), append([]byte(nil), l.Extensions...)
			tt.do(&l)
			bad := raft.NewInmemStore()
			_ = bad.StoreLog(&l)
			var exits []string
			g := quietLog(bad, bad)
			if err := g.SetUint64(keyTerm, 1); err != nil {
				t.Fatal(err)
			}
			g.exit = func(s string) { exits = append(exits, s) }
			var out raft.Log
			var err error
			apart(func() { err = g.GetLog(2, &out) })
			scanned := g.scan(0)
			if tt.name == "intact" {
				if err != nil || scanned != nil || len(exits) != 0 || len(out.Extensions) != 0 {
					t.Errorf("an intact record: %v, %v, %v", err, scanned, exits)
				}
				return
			}
			if scanned == nil || len(exits) != 1 || len(out.Data) != 0 {
				t.Errorf("scan: %v; exits: %q; given out: %q", scanned, exits, out.Data)
			}
			if !strings.Contains(fault.Public(scanned), "join it again") {
				t.Errorf("no remedy in %q", fault.Public(scanned))
			}
		})
	}
}

func TestDamagedLogIsNotOpened(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 1, Timing{})
		n := c.nodes[1]
		n.must("a", "1")
		last, _ := n.logs.LastIndex()
		n.stop()
		var l raft.Log
		_ = n.logs.GetLog(last, &l)
		l.Data = append([]byte(nil), l.Data...)
		l.Data[0] ^= 1
		_ = n.logs.StoreLog(&l)
		err := n.open()
		if err == nil || !strings.Contains(fault.Public(err), "damaged") {
			t.Errorf("Open of a damaged log: %v", err)
		}
		_ = n.mesh.Close()
		_ = n.store.Close()
	})
}

func TestMissingRecords(t *testing.T) {
	logs := raft.NewInmemStore()
	g := quietLog(logs, logs)
	if err := g.SetUint64(keyTerm, 1); err != nil {
		t.Fatal(err)
	}
	for _, i := range []uint64{3, 4, 8, 9} {
		if err := g.StoreLog(&raft.Log{Index: i, Term: 1}); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.scan(7); err != nil {
		t.Errorf("a gap that a snapshot covers: %v", err)
	}
	if err := g.scan(6); err == nil {
		t.Error("a missing record was not noticed")
	}
}

func TestMissingLogIsNotOpened(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 1, Timing{})
		n := c.nodes[1]
		n.must("a", "1")
		n.stop()
		n.logs = raft.NewInmemStore()
		err := n.open()
		if err == nil || !strings.Contains(fault.Public(err), "log is missing") {
			t.Errorf("Open without its log: %v", err)
		}
		_ = n.mesh.Close()
		_ = n.store.Close()
	})
}

// slowLog blocks or fails writes on demand.
type slowLog struct {
	raft.LogStore
	mu    sync.Mutex
	block chan struct{}
	fail  error
}

func (s *slowLog) StoreLogs(l []*raft.Log) error {
	s.mu.Lock()
	block, fail := s.block, s.fail
	s.mu.Unlock()
	if block != nil {
		<-block
	}
	if fail != nil {
		return fail
	}
	return s.LogStore.StoreLogs(l)
}

func (s *slowLog) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

func (s *slowLog) set(block chan struct{}, fail error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.block, s.fail = block, fail
}

// slowCluster is a cluster whose node 1 has a slow log.
func slowCluster(t *testing.T, n int) (*testCluster, *slowLog) {
	c := newCluster(t, n, Timing{})
	first := c.nodes[1]
	first.stop()
	slow := &slowLog{}
	first.wrapLog = func(l raft.LogStore) raft.LogStore { slow.LogStore = l; return slow }
	first.start()
	return c, slow
}

func TestStalledDiskEndsTheProcess(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c, slow := slowCluster(t, 1)
		c.settle(1)
		n := c.nodes[1]
		block := make(chan struct{})
		slow.set(block, nil)
		start := time.Now()
		done := make(chan error, 1)
		go func() {
			_, err := n.Propose(context.Background(), put("a", "1"))
			done <- err
		}()
		time.Sleep(2900 * time.Millisecond)
		if got := n.noted(&n.troubles); len(got) != 0 {
			t.Errorf("unwell after 2.9 s: %q", got)
		}
		time.Sleep(200 * time.Millisecond)
		if got := n.Status().Reason; !strings.Contains(got, "stalled") {
			t.Errorf("after 3.1 s the status says %q", got)
		}
		c.until("the exit", 3*time.Second, func() bool { return len(n.noted(&n.exits)) > 0 })
		if took := time.Since(start); took < 5*time.Second || took > 5100*time.Millisecond {
			t.Errorf("exit after %v, want 5 s", took)
		}
		close(block)
		slow.set(nil, nil)
		<-done
	})
}

// TestProposalOutlivesAHungLeader: one that was handed to a leader whose disk hangs succeeds with the next leader, once the watchdog has ended the first.
func TestProposalOutlivesAHungLeader(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c, slow := slowCluster(t, 3)
		lead := c.settle(3)
		for first := c.nodes[1]; lead != first; lead = c.settle(3) {
			c.isolate(lead.id, true)
			time.Sleep(3 * time.Second)
			c.isolate(lead.id, false)
			time.Sleep(3 * time.Second)
		}
		block := make(chan struct{})
		slow.set(block, nil)
		const proposals = 30
		done := make(chan error, proposals)
		for i := range proposals {
			go func() {
				_, err := c.nodes[uint32(2+i%2)].Propose(t.Context(), put(fmt.Sprint("a", i), "1"))
				done <- err
			}()
			time.Sleep(50 * time.Millisecond)
		}
		c.until("the exit", 10*time.Second, func() bool { return len(lead.noted(&lead.exits)) > 0 })
		c.isolate(lead.id, true) // its process is gone
		for range proposals {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		close(block)
		slow.set(nil, nil)
	})
}

func TestShortStallHeals(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c, slow := slowCluster(t, 1)
		c.settle(1)
		n := c.nodes[1]
		block := make(chan struct{})
		slow.set(block, nil)
		time.AfterFunc(4*time.Second, func() { close(block); slow.set(nil, nil) })
		n.must("a", "1")
		got := n.noted(&n.troubles)
		if len(got) != 2 || got[0] == "" || got[1] != "" || len(n.noted(&n.exits)) != 0 {
			t.Errorf("told %q, exits %q", got, n.noted(&n.exits))
		}
	})
}

func TestFailedSyncEndsTheProcess(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c, slow := slowCluster(t, 3)
		c.settle(3)
		n := c.nodes[1]
		slow.set(nil, errors.New("input/output error"))
		for i := 0; len(n.noted(&n.exits)) == 0; i++ {
			if i > 100 {
				t.Fatal("the node goes on although its log cannot be written")
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			_, _ = c.nodes[2].Propose(ctx, put("a", fmt.Sprint(i)))
			cancel()
		}
		slow.set(nil, nil) // a later success must not count
		taken := false
		apart(func() { taken = n.log.StoreLog(&raft.Log{Index: 99}) == nil })
		if taken {
			t.Error("a write was taken after a failed one")
		}
	})
}

func TestFullDiskIsNotFatal(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c, slow := slowCluster(t, 1)
		c.settle(1)
		n := c.nodes[1]
		slow.set(nil, fmt.Errorf("write: %w", errNoSpace))
		if _, err := n.Propose(t.Context(), put("a", "1")); !fault.CodeOf(err).Retryable() {
			t.Errorf("a change on a full disk: %v", err)
		}
		if !strings.Contains(n.Status().Reason, "disk is full") || len(n.noted(&n.exits)) != 0 {
			t.Errorf("reason %q, exits %q", n.Status().Reason, n.noted(&n.exits))
		}
		slow.set(nil, nil)
		n.must("b", "1")
		if got := n.Status().Reason; got != "" {
			t.Errorf("still unwell: %q", got)
		}
	})
}

// apart runs fn on a goroutine that fn may end.
func apart(fn func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		fn()
	}()
	<-done
}
