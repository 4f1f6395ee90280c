package monitor

import (
	"fmt"
	"slices"
	"time"

	"muster/fsm/cluster"
)

// HAOrder is an entry that the leader shall write: a failover of a node for a
// critical service, or a step of its fallback.
type HAOrder struct {
	Node     uint32
	Name     string
	Revision uint64 // that the node has: the order is void if it changed meanwhile
	Failover bool   // else a step
	Detail   string // of a failover: which service, and why
	Away     int    // of a step: slots that stay with the backups
	Cause    cluster.Cause
}

// maxElapsed bounds the time that one step makes up for, so that a leader that was held up does not move all at once.
const maxElapsed = 2 * time.Second

// PlanHA decides what the leader shall do about failovers now. It is pure.
func PlanHA(f HAFacts) []HAOrder {
	p := haPlanner{haView: haView{HAFacts: f, byID: map[uint32]*HANode{}}}
	for i := range f.Nodes {
		p.byID[f.Nodes[i].ID] = &f.Nodes[i]
	}
	for i := range f.Nodes {
		p.node(&f.Nodes[i])
	}
	return p.out
}

type haPlanner struct {
	haView
	out []HAOrder
}

func (p *haPlanner) node(n *HANode) {
	f := n.Failover
	switch {
	case !n.HA || !n.Up:
	case f == nil:
		if p.failing(n) {
			p.failOver(n)
		}
	case n.isWell() && p.backupsFail(n):
		p.step(n, 0, cluster.BackupService)
	case f.Fallback != cluster.NoCause && p.failing(n):
		if len(p.able(n)) > 0 {
			p.order(HAOrder{Failover: true, Detail: n.Bad, Cause: cluster.ServiceDown}, n)
		}
	case f.Fallback != cluster.NoCause:
		if n.Bad == "" {
			p.pace(n, f.Fallback)
		}
	case f.Cause != cluster.OnRequest && p.AutoFallback && n.isWell() && !p.Now.Before(p.due(n)):
		p.pace(n, cluster.Automatic)
	}
}

// failing reports whether a critical service has been down for so long that the node fails over.
func (p *haPlanner) failing(n *HANode) bool {
	return n.Bad != "" && p.Now.Sub(n.BadSince) >= p.ServiceDelay
}

// isWell reports whether a node has said lately that all of its critical services run.
func (n *HANode) isWell() bool { return n.Bad == "" && !n.GoodSince.IsZero() }

// failOver has a node's users served by their backups. A backup that is well
// and whose own users are with this node takes those back first: nobody shall
// depend on two nodes at a time.
func (p *haPlanner) failOver(n *HANode) {
	if len(p.able(n)) > 0 {
		p.order(HAOrder{Failover: true, Detail: n.Bad, Cause: cluster.ServiceDown}, n)
		return
	}
	for _, id := range n.Reserves {
		b := p.byID[id]
		if b != nil && b.Up && b.isWell() && b.Failover != nil && b.Failover.Cause != cluster.OnRequest && slices.Contains(b.Reserves, n.ID) {
			p.step(b, 0, cluster.BackupService)
		}
	}
}

// backupsFail reports whether a critical service is down on every backup that serves users of a node.
func (p *haPlanner) backupsFail(n *HANode) bool {
	fail := false
	for _, id := range n.Reserves {
		b := p.byID[id]
		if b == nil || !b.Up || slices.Contains(n.Failover.Back, id) {
			continue
		}
		if !p.failing(b) {
			return false
		}
		fail = true
	}
	return fail
}

// pace takes as many users home as the rate allows since the last step. The first step moves some at least.
func (p *haPlanner) pace(n *HANode, cause cluster.Cause) {
	away := n.Failover.Away
	if n.Users == 0 {
		p.step(n, 0, cause)
		return
	}
	last, stepped := p.Stepped[n.ID]
	slots := 1
	if stepped && n.Failover.Fallback != cluster.NoCause {
		rate := float64(p.FallbackRate) * cluster.Slots / float64(n.Users) // slots a second
		slots = int(min(rate*p.Now.Sub(last).Seconds(), max(rate*maxElapsed.Seconds(), 1)))
	}
	if slots > 0 {
		p.step(n, max(away-slots, 0), cause)
	}
}

func (p *haPlanner) step(n *HANode, away int, cause cluster.Cause) {
	p.order(HAOrder{Away: away, Cause: cause}, n)
}

// order adds an order; a node gets one at a time.
func (p *haPlanner) order(o HAOrder, n *HANode) {
	for _, have := range p.out {
		if have.Node == n.ID {
			return
		}
	}
	o.Node, o.Name, o.Revision = n.ID, n.Name, n.Revision
	p.out = append(p.out, o)
}

// CriticalDown names the first service that does not run although nobody
// stopped it on purpose, and why; "" if there is none. All services of a node are critical.
func CriticalDown(report []ServiceStatus) string {
	for _, s := range report {
		if s.State == Started || s.State == Stopped && s.Reason == ReasonCommanded {
			continue
		}
		if s.Reason == "" {
			return fmt.Sprintf("%s is %s", s.Name, s.State)
		}
		return fmt.Sprintf("%s is %s: %s", s.Name, s.State, s.Reason)
	}
	return ""
}
