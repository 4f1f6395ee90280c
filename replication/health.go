package replication

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"muster/fsm"
	"muster/internal/fault"
)

const (
	healthTime = 2 * time.Second // for one node to answer Health
	digestKeep = 16              // marks at which digests are remembered
)

// digestRing remembers the tables' digests at the latest marks (empty records).
type digestRing struct {
	mu    sync.Mutex
	marks []digestMark
}

type digestMark struct {
	Index   uint64            `json:"index"`
	Digests []fsm.TableDigest `json:"digests"`
}

// note is called from the applying goroutine, at a mark: the index is the same on all nodes.
func (r *digestRing) note(m *fsm.Machine) {
	index, digests, err := m.Digests()
	if err != nil {
		return // the comparison will say that this node gave no answer
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.marks = append(r.marks, digestMark{index, digests}); len(r.marks) > digestKeep {
		r.marks = slices.Delete(r.marks, 0, 1)
	}
}

func (r *digestRing) at(index uint64) (digestMark, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range r.marks {
		if m.Index == index {
			return m, true
		}
	}
	return digestMark{}, false
}

func (r *digestRing) last() digestMark {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.marks) == 0 {
		return digestMark{}
	}
	return r.marks[len(r.marks)-1]
}

var roles = map[raft.RaftState]string{raft.Leader: "leader", raft.Follower: "follower", raft.Candidate: "candidate", raft.Shutdown: "stopped"}

// Status returns the group's state on this node.
func (g *Group) Status() Status {
	s := Status{Node: g.cfg.NodeID, Role: roles[g.raft.State()], Term: g.raft.CurrentTerm(), Leader: g.Leader(),
		Commit: g.raft.CommitIndex(), Applied: g.cfg.Machine.Applied(), LastLog: g.raft.LastIndex(),
		LastContact: g.LeaderContact(), DiskP99: g.watch.p99(), DiskBytes: g.diskBytes.Load()}
	s.FirstLog, _ = g.log.FirstIndex()
	s.Voters, s.NonVoters = g.servers()
	slices.Sort(s.Voters)
	slices.Sort(s.NonVoters)
	s.Voter = slices.Contains(s.Voters, s.Node)
	if s.Commit > s.Applied {
		s.Lag = s.Commit - s.Applied
	}
	if snap := g.snaps.latest(); snap != nil {
		s.SnapshotIndex, s.SnapshotAge = snap.Index, time.Since(snap.Created)
	}
	if err := g.cfg.Machine.Halted(); err != nil {
		s.Halted = haltText(err)
	}
	s.Room, _ = g.cfg.room()
	if s.Reason, s.Since = g.trouble.reason(); s.Reason == "" {
		s.Reason, s.Since = g.lacks()
	}
	if s.Reason == "" && s.LastContact > g.cfg.Timing.NoQuorum {
		s.Reason, s.Since = "this node hears no leader", time.Now().Add(-s.LastContact)
	}
	return s
}

// serveStatus answers another node's Health and the leader's looks.
func (g *Group) serveStatus(context.Context, uint32, []byte) ([]byte, error) {
	mark := g.digests.last()
	h := NodeHealth{Node: g.cfg.NodeID, Reachable: true, Version: g.cfg.Version, Status: g.Status(), Index: mark.Index, Digests: mark.Digests}
	h.Reason, h.Since = h.Status.Reason, h.Status.Since
	if g.cfg.Service != nil {
		h.Service = g.cfg.Service()
	}
	b, err := json.Marshal(h)
	return b, fault.Wrap(err, fault.Internal, "replication.status", "")
}

// members returns the node table or, while that is empty, the Raft configuration's nodes.
func (g *Group) members() []Member {
	if g.cfg.Members != nil {
		if m := g.cfg.Members(); len(m) > 0 {
			return m
		}
	}
	voters, others := g.servers()
	var out []Member
	for _, n := range slices.Concat(voters, others) {
		out = append(out, Member{ID: n})
	}
	return out
}

// each calls fn for all members in parallel and waits.
func (g *Group) each(fn func(i int, m Member)) []Member {
	members := g.members()
	var wg sync.WaitGroup
	for i, m := range members {
		wg.Add(1)
		go func() {
			defer wg.Done()
			fn(i, m)
		}()
	}
	wg.Wait()
	return members
}

// Health asks every member for its state, at most 2 s each, in parallel.
func (g *Group) Health(ctx context.Context) []NodeHealth {
	var mu sync.Mutex
	rows := map[uint32]NodeHealth{}
	members := g.each(func(_ int, m Member) {
		h := g.ask(ctx, m)
		mu.Lock()
		rows[m.ID] = h
		mu.Unlock()
	})
	out := make([]NodeHealth, len(members))
	for i, m := range members {
		out[i] = rows[m.ID]
	}
	return out
}

func (g *Group) ask(ctx context.Context, m Member) NodeHealth {
	ctx, cancel := context.WithTimeout(ctx, healthTime)
	defer cancel()
	start := time.Now()
	answer, err := g.Call(ctx, m.ID, "status", nil)
	h := NodeHealth{Node: m.ID}
	if err == nil {
		err = json.Unmarshal(answer, &h)
	}
	h.Name, h.Ping = m.Name, time.Since(start)
	if err == nil {
		g.unreached(m.ID, false)
		return h
	}
	h = NodeHealth{Node: m.ID, Name: m.Name, Reason: "the node is not reached: " + fault.Public(err)}
	h.Since = g.unreached(m.ID, true)
	return h
}

// unreached keeps since when a node has not been reached from here.
func (g *Group) unreached(node uint32, is bool) time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !is {
		delete(g.silent, node)
		return time.Time{}
	}
	if g.silent[node].IsZero() {
		g.silent[node] = time.Now()
	}
	return g.silent[node]
}

// serveDigests answers with the digests at a mark, once that is applied here.
func (g *Group) serveDigests(ctx context.Context, _ uint32, request []byte) ([]byte, error) {
	r := reader{b: request}
	index := r.u64()
	if err := g.WaitIndex(ctx, index); err != nil {
		return nil, err
	}
	mark, ok := g.digests.at(index)
	if !ok {
		return nil, fault.New(fault.NotFound, "replication.digests", fmt.Sprint(index), "this node has no digests of that index; it may just have received a snapshot")
	}
	b, err := json.Marshal(mark)
	return b, fault.Wrap(err, fault.Internal, "replication.digests", "")
}

// CompareDigests has all nodes report their tables' digests at one index and compares them.
func (g *Group) CompareDigests(ctx context.Context) (Report, error) {
	mark, err := g.propose(ctx, nil)
	if err != nil {
		return Report{}, err
	}
	var mu sync.Mutex
	answers := map[uint32]digestMark{}
	members := g.each(func(_ int, m Member) {
		ctx, cancel := context.WithTimeout(ctx, g.cfg.Timing.NoQuorum)
		defer cancel()
		answer, err := g.Call(ctx, m.ID, "digests", be64(mark.index))
		var d digestMark
		if err == nil && json.Unmarshal(answer, &d) == nil && d.Index == mark.index {
			mu.Lock()
			answers[m.ID] = d
			mu.Unlock()
		}
	})
	report := compare(mark.index, members, answers)
	if !report.Equal {
		g.cfg.Logger.Error("digests_differ", "log", g.cfg.Name, "index", report.Index, "tables", report.differing())
	}
	return report, nil
}

// compare builds the report from what the nodes answered.
func compare(index uint64, members []Member, answers map[uint32]digestMark) Report {
	r := Report{Index: index, Equal: true}
	at := map[string]int{}
	for _, m := range members {
		mark, ok := answers[m.ID]
		if !ok {
			r.Missing = append(r.Missing, m.ID)
			continue
		}
		for _, d := range mark.Digests {
			i, seen := at[d.Table]
			if !seen {
				i = len(r.Tables)
				at[d.Table] = i
				r.Tables = append(r.Tables, TableReport{Table: d.Table, Digests: map[uint32]uint64{}})
			}
			r.Tables[i].Digests[m.ID] = d.Digest
		}
	}
	for i := range r.Tables {
		r.Tables[i].Equal = allEqual(r.Tables[i].Digests, len(answers))
		r.Equal = r.Equal && r.Tables[i].Equal
	}
	return r
}

// allEqual reports whether n nodes have one digest; a node without the table differs.
func allEqual(digests map[uint32]uint64, n int) bool {
	var first uint64
	seen := false
	for _, d := range digests {
		if seen && d != first {
			return false
		}
		first, seen = d, true
	}
	return len(digests) == n
}

func (r Report) differing() (tables []string) {
	for _, t := range r.Tables {
		if !t.Equal {
			tables = append(tables, t.Table)
		}
	}
	return tables
}
