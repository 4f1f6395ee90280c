package replication

import (
	"context"
	"time"

	"github.com/hashicorp/raft"

	"muster/internal/fault"
)

// OnLeadership registers fn to hear of this node becoming the leader (after
// it has applied all entries of earlier leaders) and of losing that. Calls
// come one after the other from one goroutine; register before traffic.
func (g *Group) OnLeadership(fn func(isLeader bool)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.leadership = append(g.leadership, fn)
}

// followLeadership keeps ready and verified true to what Raft says.
func (g *Group) followLeadership() {
	tick := time.NewTicker(g.cfg.Timing.VerifyStep)
	defer tick.Stop()
	for {
		select {
		case <-g.raft.LeaderCh():
			g.setReady(false)
		case <-tick.C:
		case <-g.ctx.Done():
			g.setReady(false)
			return
		}
		g.leadOnce()
	}
}

// leadOnce proves leadership, and makes a new leader ready.
func (g *Group) leadOnce() {
	if g.raft.State() != raft.Leader {
		g.setReady(false)
		return
	}
	if g.verify(g.cfg.Timing.NoQuorum) != nil || g.ready.Load() {
		return
	}
	// All entries of earlier leaders come before this record.
	if g.mark(g.ctx) == nil && g.raft.State() == raft.Leader {
		g.setReady(true)
	}
}

// mark has the leader write an empty record: when it is committed, so is all that came before it.
func (g *Group) mark(ctx context.Context) error {
	const op = "replication.mark"
	f := g.raft.Apply(emptyRecord, enqueueTime)
	if err := g.within(g.remaining(ctx, g.cfg.Timing.NoQuorum), f); err != nil {
		return &fault.Error{Code: leaderCode(err), Op: op, Err: err}
	}
	if out, ok := f.Response().(applied); ok {
		return out.err
	}
	return fault.New(fault.Internal, op, "", "")
}

func (g *Group) setReady(is bool) {
	if g.ready.Swap(is) == is {
		return
	}
	g.cfg.Logger.Info("leadership_changed", "log", g.cfg.Name, "node", g.cfg.NodeID, "leader", is, "term", g.raft.CurrentTerm())
	g.mu.Lock()
	fns := g.leadership
	g.mu.Unlock()
	for _, fn := range fns {
		fn(is)
	}
}

// followLeaders keeps one context per leader, which ends when another leader
// is known or none: requests to the old one need not be waited for.
func (g *Group) followLeaders() {
	seen := make(chan raft.Observation, 16)
	o := raft.NewObserver(seen, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	})
	g.raft.RegisterObserver(o)
	defer g.raft.DeregisterObserver(o)
	for {
		select {
		case <-seen:
			g.mu.Lock()
			g.leaderEnd()
			g.leaderCtx, g.leaderEnd = context.WithCancel(g.ctx)
			g.mu.Unlock()
		case <-g.ctx.Done():
			return
		}
	}
}

// untilLeaderChanges is a context that ends with the present leader's term, or after most.
func (g *Group) untilLeaderChanges(most time.Duration) (context.Context, context.CancelFunc) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return context.WithTimeout(g.leaderCtx, most)
}
