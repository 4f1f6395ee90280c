package operate

import (
	"context"
	"time"

	"muster/edges/http/adminapi"
	"muster/fsm"
	"muster/fsm/cluster"
	"muster/monitor"
)

// Liveness is what a node knows of the others beyond the log.
type Liveness struct {
	Now         time.Time
	Observer    uint32
	Unheard     string // why its log may be behind; "" while it hears the leader
	SilentAfter time.Duration
	Nodes       map[uint32]NodeLiveness
}

// NodeLiveness is what was heard of one node; see monitor.HANode.
type NodeLiveness struct {
	Silent              time.Duration
	Bad                 string
	BadSince, GoodSince time.Time
}

// HAFacts joins what the log says of failovers with what was heard of the nodes.
func HAFacts(r fsm.Reader, l Liveness) monitor.HAFacts {
	f := monitor.HAFacts{Now: l.Now, Observer: l.Observer, Unheard: l.Unheard, SilentAfter: l.SilentAfter,
		ServiceDelay: monitor.ServiceDelay.Get(r, 0), AutoFallback: monitor.AutoFallback.Get(r, 0),
		FallbackDelay: monitor.FallbackDelay.Get(r, 0), FallbackRate: int(monitor.FallbackRate.Get(r, 0)), Groups: cluster.Groups(r)}
	ha := map[string]bool{}
	for _, g := range f.Groups {
		ha[g.Name] = g.HA
	}
	settled := map[uint32]cluster.Transition{}
	for _, t := range cluster.History(r) {
		if t.Event == cluster.Returned {
			settled[t.Node] = t
		}
	}
	counts := cluster.Counts(r)
	for _, n := range cluster.Nodes(r) {
		heard := l.Nodes[n.ID]
		node := monitor.HANode{Node: n, HA: ha[n.Group], Users: counts[n.ID], Settled: settled[n.ID].At, SettledBy: settled[n.ID].By,
			Silent: heard.Silent, Bad: heard.Bad, BadSince: heard.BadSince, GoodSince: heard.GoodSince}
		for _, b := range cluster.Reserves(r, n) {
			node.Reserves = append(node.Reserves, b.ID)
		}
		f.Nodes = append(f.Nodes, node)
	}
	return f
}

// HA implements http.Availability.
func (o *Operator) HA(ctx context.Context) (adminapi.HA, error) {
	o.current(ctx)
	f := HAFacts(o.p.State, o.p.Liveness())
	out := adminapi.HA{Time: f.Now, Node: o.p.Name, Unheard: f.Unheard, History: []adminapi.HATransition{}}
	out.Nodes, out.Groups = monitor.Availability(f)
	for _, t := range cluster.History(o.p.State) {
		out.History = append(out.History, adminapi.HATransition{At: t.At, Node: t.Name, Event: t.Event.String(), Reason: t.Cause.String(), By: t.By, Detail: t.Detail})
	}
	if b, ordered := cluster.BalanceOrdered(o.p.State); ordered {
		out.Rebalance = &adminapi.Rebalance{Left: cluster.Unbalanced(o.p.State), Rate: int(monitor.RebalanceRate.Get(o.p.State, 0)), Since: b.Since, By: b.By}
	}
	return out, nil
}

// Failover implements http.Availability.
func (o *Operator) Failover(ctx context.Context, node string) (adminapi.Done, error) {
	return o.changeNode(ctx, node, cluster.FailoverEntry)
}

// Fallback implements http.Availability.
func (o *Operator) Fallback(ctx context.Context, node string) (adminapi.Done, error) {
	return o.changeNode(ctx, node, cluster.FallbackEntry)
}
