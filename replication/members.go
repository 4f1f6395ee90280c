package replication

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Membership rules.
const (
	caughtUp     = 64          // log entries that a node may lag and still count as caught up
	steadyLooks  = 2           // looks in a row at which a node must be caught up before it gets a vote
	lookTime     = time.Second // for a node to answer the leader's look
	changeTime   = 10 * time.Second
	lookInterval = time.Second
)

// DefaultVoters is Config.MaxVoters when it is 0: more would only make every write wait for more disks.
const DefaultVoters = 5

// HoldTime bounds how long Config.Hold may delay a removal: what it waits for may itself have lost its majority.
const HoldTime = time.Minute

// peerState is what the leader knows of another node.
type peerState struct {
	seen   time.Time // last answer; zero: none yet
	since  time.Time // since when it has not answered; zero while it does
	room   Room      // as it last said
	steady int       // looks in a row at which it was caught up
}

// change is one step of membership.
type change struct {
	do   changeKind
	node uint32
}

type changeKind uint8

const (
	keepAll changeKind = iota
	addNonVoter
	promote
	demote
	remove
	handOver // the leader itself leaves or was removed: another one must go on
)

var changeNames = [...]string{"keep", "add", "promote", "demote", "remove", "hand_over"}

// String names the step for the log.
func (k changeKind) String() string { return changeNames[k] }

// votersFor is how many voters a log of n nodes has: an odd number, up to
// most, since an even one only adds a node to wait for. Two nodes are the
// exception: with one voter its loss would lose confirmed changes.
func votersFor(n, most int) int {
	if n <= 2 {
		return n
	}
	return min(n-(n+1)%2, most)
}

// situation is what plan decides on.
type situation struct {
	self    uint32
	members []Member // the node table
	voters  []uint32 // of the Raft configuration
	others  []uint32 // non-voters of it
	peers   map[uint32]peerState
	most    int             // Config.MaxVoters
	held    map[uint32]bool // nodes that left the table and must stay in the configuration for the time being
	leaving map[uint32]bool // nodes that are about to leave the table and shall have no vote (Release)
	now     time.Time
	dead    time.Duration // Timing.DeadVoter
}

func (s *situation) isMember(node uint32) bool {
	return slices.ContainsFunc(s.members, func(m Member) bool { return m.ID == node })
}

func (s *situation) isDead(node uint32) bool {
	p := s.peers[node]
	return node != s.self && !p.since.IsZero() && s.now.Sub(p.since) > s.dead
}

// candidate is the first healthy non-voter that may get a vote once it was caught up at so many looks; 0: none.
func (s *situation) candidate(looks int) uint32 {
	for _, n := range s.others {
		if s.stays(n) && s.peers[n].since.IsZero() && s.peers[n].steady >= looks {
			return n
		}
	}
	return 0
}

// loser is the voter that gives up its vote when there are too many: a silent one, else the youngest; never the leader.
func (s *situation) loser() uint32 {
	var pick uint32
	silent := false
	for _, n := range s.voters {
		down := !s.peers[n].since.IsZero()
		if n != s.self && !s.leaving[n] && (pick == 0 || down && !silent || down == silent && n > pick) {
			pick, silent = n, down
		}
	}
	return pick
}

// plan returns the next step that brings the Raft configuration nearer to the
// node table: one change at a time, removals first, since they may be what restores a majority.
func plan(s situation) change {
	slices.Sort(s.voters)
	slices.Sort(s.others)
	for _, n := range slices.Concat(s.others, s.voters) {
		if !s.isMember(n) && n != s.self && !s.held[n] {
			return change{remove, n}
		}
	}
	if !s.isMember(s.self) && len(s.voters) > 1 {
		return change{handOver, s.self}
	}
	for _, m := range s.members {
		if !slices.Contains(s.voters, m.ID) && !slices.Contains(s.others, m.ID) {
			return change{addNonVoter, m.ID}
		}
	}
	return s.balance()
}

// votes is how many of those who stay vote, and how many should. The vote of one
// who does not counts for nothing: somebody must be there to take over from it.
func (s *situation) votes() (have, want int) {
	for _, n := range s.voters {
		if s.stays(n) {
			have++
		}
	}
	staying := 0
	for _, m := range s.members {
		if s.stays(m.ID) {
			staying++
		}
	}
	return have, votersFor(staying, s.most)
}

// balance gives and takes votes.
func (s *situation) balance() change {
	if step := s.leave(); step.do != keepAll {
		return step
	}
	have, want := s.votes()
	next := s.candidate(steadyLooks)
	if have > want {
		if n := s.loser(); n != 0 {
			return change{demote, n}
		}
		return change{}
	}
	if next == 0 {
		return change{}
	}
	if have < want {
		return change{promote, next}
	}
	for _, n := range s.voters {
		if s.isDead(n) {
			return change{demote, n}
		}
	}
	return change{}
}

// reconcileLoop makes the Raft configuration follow the node table while this node leads.
func (g *Group) reconcileLoop() {
	if g.cfg.Members == nil {
		return
	}
	tick := time.NewTicker(g.cfg.Timing.Reconcile)
	defer tick.Stop()
	var looked time.Time
	for {
		select {
		case <-tick.C:
		case <-g.ctx.Done():
			return
		}
		g.dropRemoved()
		if !g.IsLeader() {
			g.forgetPeers()
			continue
		}
		if now := time.Now(); now.Sub(looked) >= lookInterval {
			looked = now
			g.lookAround()
			g.makeRoom()
		}
		s := g.situation()
		if step := plan(s); step.do != keepAll {
			g.carryOut(step)
		}
	}
}

func (g *Group) situation() situation {
	s := situation{self: g.cfg.NodeID, members: g.cfg.Members(), now: time.Now(), dead: g.cfg.Timing.DeadVoter, peers: map[uint32]peerState{},
		most: g.cfg.MaxVoters, held: map[uint32]bool{}, leaving: map[uint32]bool{}}
	s.voters, s.others = g.servers()
	g.mu.Lock()
	defer g.mu.Unlock()
	for n, p := range g.peers {
		s.peers[n] = p
	}
	for _, n := range slices.Concat(s.voters, s.others) {
		if s.held[n] = !s.isMember(n) && g.holds(n, s.now); !s.held[n] {
			delete(g.holding, n)
		}
	}
	for n, until := range g.leaving {
		if s.leaving[n] = s.now.Before(until); !s.leaving[n] {
			delete(g.leaving, n)
		}
	}
	return s
}

// holds reports whether the removal of a node waits; g.mu is held.
func (g *Group) holds(node uint32, now time.Time) bool {
	if g.cfg.Hold == nil || !g.cfg.Hold(node) {
		return false
	}
	if g.holding[node].IsZero() {
		g.holding[node] = now
	}
	return now.Sub(g.holding[node]) < HoldTime
}

// Lists reports whether a node is in the newest Raft configuration that this node knows.
func (g *Group) Lists(node uint32) bool {
	voters, others := g.servers()
	return slices.Contains(voters, node) || slices.Contains(others, node)
}

// servers returns the voters and non-voters of the newest Raft configuration.
func (g *Group) servers() (voters, others []uint32) {
	f := g.raft.GetConfiguration()
	if f.Error() != nil {
		return nil, nil
	}
	for _, srv := range f.Configuration().Servers {
		if srv.Suffrage == raft.Voter {
			voters = append(voters, nodeOf(srv.ID))
		} else {
			others = append(others, nodeOf(srv.ID))
		}
	}
	return voters, others
}

func (g *Group) forgetPeers() {
	g.mu.Lock()
	clear(g.peers)
	g.mu.Unlock()
}

// dropRemoved ends what the table no longer allows: connections of nodes that
// were members, and this node itself.
func (g *Group) dropRemoved() {
	members := g.cfg.Members()
	if len(members) == 0 {
		return // nothing was replicated here yet
	}
	present := map[uint32]bool{}
	for _, m := range members {
		present[m.ID] = true
		if m.ID > g.cfg.NodeID {
			g.wasMember.Store(true) // ids rise: the table held this node before, perhaps in an earlier life of the process
		}
	}
	voters, others := g.servers()
	if !present[g.cfg.NodeID] && !slices.Contains(voters, g.cfg.NodeID) && g.wasMember.Load() {
		g.setRemoved("this node was removed from the cluster")
	}
	if present[g.cfg.NodeID] {
		g.wasMember.Store(true)
	}
	g.mu.Lock()
	known := g.known
	g.known = present
	g.mu.Unlock()
	for n := range known {
		if !present[n] && !slices.Contains(voters, n) && !slices.Contains(others, n) {
			if !g.cfg.Mesh.DropPeer(n) {
				present[n] = true // another log still counts on it: looked at again
			}
		} else if !present[n] {
			present[n] = true // still in the Raft configuration: looked at again
		}
	}
}

// lookAround asks all other members how they are, in parallel.
func (g *Group) lookAround() {
	commit := g.raft.CommitIndex()
	var wg sync.WaitGroup
	for _, m := range g.cfg.Members() {
		if m.ID == g.cfg.NodeID {
			continue
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			ctx, cancel := context.WithTimeout(g.ctx, lookTime)
			defer cancel()
			answer, err := g.rpc.call(ctx, m.ID, "status", nil)
			var h NodeHealth
			if err == nil {
				err = json.Unmarshal(answer, &h)
			}
			g.notePeer(m.ID, err == nil, h.Status.Applied+caughtUp >= commit, h.Status.Room)
		}()
	}
	wg.Wait()
}

func (g *Group) notePeer(node uint32, answered, level bool, room Room) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.peers[node]
	p.room = room
	now := time.Now()
	switch {
	case !answered:
		if p.steady = 0; p.since.IsZero() {
			p.since = now
		}
	case level:
		p.seen, p.since, p.steady = now, time.Time{}, p.steady+1
	default:
		p.seen, p.since, p.steady = now, time.Time{}, 0
	}
	g.peers[node] = p
}

// carryOut makes one change of the Raft configuration. A failure is tried again at the next look.
func (g *Group) carryOut(c change) {
	id := serverID(c.node)
	var f raft.Future
	switch c.do {
	case addNonVoter:
		f = g.raft.AddNonvoter(id, raft.ServerAddress(id), 0, changeTime)
	case promote:
		f = g.raft.AddVoter(id, raft.ServerAddress(id), 0, changeTime)
	case demote:
		f = g.raft.DemoteVoter(id, 0, changeTime)
	case remove:
		f = g.raft.RemoveServer(id, 0, changeTime)
	case handOver:
		f = g.raft.LeadershipTransfer()
	}
	err := g.within(changeTime, f)
	g.cfg.Logger.Info("membership_changed", "log", g.cfg.Name, "step", c.do.String(), "node", c.node, "err", err)
}
