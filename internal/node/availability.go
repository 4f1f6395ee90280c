package node

import (
	"context"
	"strings"
	"sync"
	"time"

	"muster/fsm"
	"muster/fsm/cluster"
	"muster/internal/fault"
	"muster/internal/node/operate"
	"muster/log"
	"muster/monitor"
	"muster/replication"
	"muster/router"
)

// Alarms about failovers; a node's name follows.
const (
	alarmAway    = "node-failed-over/"
	alarmService = "critical-service-down/"
)

// wordKeeps is how long a node's word about its services counts: some polls, each of which may take its time.
const wordKeeps = 4 * healthStep

// services is what the nodes said of their services, and since when they have been saying so.
type services struct {
	mu sync.Mutex
	of map[uint32]word
}

type word struct {
	operate.NodeLiveness
	heard time.Time
}

// note takes in a round of answers. Times are those of this node: nobody's clock is trusted.
func (s *services) note(now time.Time, nodes []replication.NodeHealth) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.of
	s.of = make(map[uint32]word, len(nodes))
	for _, h := range nodes {
		w := old[h.Node]
		if now.Sub(w.heard) > wordKeeps {
			w = word{}
		}
		switch {
		case !h.Reachable: // what it said last counts for a while
		case h.Service != "":
			if w.Bad == "" {
				w.BadSince = now
			}
			w.Bad, w.GoodSince, w.heard = h.Service, time.Time{}, now
		default:
			if w.GoodSince.IsZero() {
				w.GoodSince = now
			}
			w.Bad, w.BadSince, w.heard = "", time.Time{}, now
		}
		s.of[h.Node] = w
	}
}

// get returns what is known of a node; nothing if that is too old.
func (s *services) get(now time.Time, node uint32) operate.NodeLiveness {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.of[node]
	if now.Sub(w.heard) > wordKeeps {
		return operate.NodeLiveness{}
	}
	return w.NodeLiveness
}

// liveness is what this node knows of the others beyond the log.
func (n *Node) liveness() operate.Liveness {
	now := time.Now()
	l := operate.Liveness{Now: now, Observer: n.identity.NodeID, SilentAfter: router.SilentAfter, Nodes: map[uint32]operate.NodeLiveness{}}
	if d := n.group.LeaderContact(); d > router.IsolationAfter {
		l.Unheard = n.identity.Name + " hears no leader"
	}
	heard := map[uint32]time.Time{}
	for _, p := range n.router.Status().Links {
		heard[p.Node] = p.Heard
	}
	for _, peer := range cluster.Nodes(n.machine) {
		w := n.services.get(now, peer.ID)
		if at, ok := heard[peer.ID]; ok && peer.ID != n.identity.NodeID && now.Sub(peer.Since) > router.SilentAfter {
			w.Silent = max(now.Sub(at), 0)
		}
		l.Nodes[peer.ID] = w
	}
	return l
}

// criticalDown is what this node tells the others of its services.
// Users of a node whose disk is full are better off with their backups, which can keep their messages.
func (n *Node) criticalDown() string {
	if why := n.diskFull(); why != "" {
		return why
	}
	return monitor.CriticalDown(n.runner.Report())
}

// leading tells whether this node may act for the cluster: it leads the control
// log, a majority has just confirmed it, and its own start stands. A leader that
// was itself asleep (stopped, swapped out, starved) hears nobody when it wakes,
// and may lead no more: it listens for a while before it judges.
type leading struct {
	n             *Node
	looked, awake time.Time
}

func (n *Node) leading() *leading { return &leading{n, time.Now(), time.Now()} }

// now is to be called every dutyStep.
func (l *leading) now() bool {
	now := time.Now()
	if now.Sub(l.looked) > 2*dutyStep || !l.n.group.IsLeader() || l.n.group.LeaderContact() != 0 {
		l.awake = now
	}
	l.looked = now
	return now.Sub(l.awake) >= 2*dutyStep && l.n.fresh.Load()
}

// keepAvailable has the control log's leader fail nodes over whose critical
// services are down, bring users home step by step, and rebalance where that was ordered.
func (n *Node) keepAvailable() {
	leads, stepped := n.leading(), map[uint32]time.Time{}
	var balanced time.Time
	for n.pause(dutyStep) {
		if !leads.now() {
			clear(stepped)
			balanced = time.Time{}
			continue
		}
		facts := operate.HAFacts(n.machine, n.liveness())
		facts.Stepped = stepped
		for _, o := range monitor.PlanHA(facts) {
			if err := n.carryOut(o); err != nil {
				n.logger.Warn("ha_order_refused", "peer", o.Name, "failover", o.Failover, "away", o.Away, "error", err)
				continue
			}
			stepped[o.Node] = facts.Now
		}
		balanced = n.rebalance(facts, balanced)
	}
}

// carryOut writes what the plan orders; it is void if the node's state has changed since.
func (n *Node) carryOut(o monitor.HAOrder) error {
	e := cluster.FallbackStepEntry(o.Node, o.Away, o.Cause)
	if o.Failover {
		e = cluster.ServiceFailoverEntry(o.Node, o.Detail)
	}
	e.Expect = o.Revision
	_, err := n.order(e)
	return err
}

// order proposes an entry of the leader's duties, with little patience: the next look decides anew.
func (n *Node) order(e *log.Entry) (fsm.Result, error) {
	ctx, cancel := context.WithTimeout(n.ctx, 5*time.Second)
	defer cancel()
	return n.propose(ctx, e)
}

// rebalance moves some users if that was ordered and no node is down or failed
// over: the cluster has other things to do then. It returns when it last did.
func (n *Node) rebalance(f monitor.HAFacts, last time.Time) time.Time {
	if _, ordered := cluster.BalanceOrdered(n.machine); !ordered {
		return time.Time{}
	}
	for _, peer := range f.Nodes {
		if !peer.Up || peer.Failover != nil {
			return time.Time{}
		}
	}
	if last.IsZero() {
		return f.Now // begins at the next look
	}
	elapsed := min(f.Now.Sub(last), 4*dutyStep)
	most := int(float64(n.live.Int(monitor.RebalanceRate)) * elapsed.Seconds())
	if most == 0 {
		return last
	}
	res, err := n.order(cluster.RebalanceEntry(most))
	switch {
	case err != nil:
		n.logger.Warn("rebalance_refused", "error", err, "reason", fault.Public(err))
	case cluster.RebalanceResult(res.Value) == 0:
		n.logger.Info("rebalance_done")
	}
	return f.Now
}

// tell logs the transitions among what was applied.
func (n *Node) tell(changes []fsm.Change) {
	for _, c := range changes {
		if t, ok := cluster.DecodeTransition(c); ok {
			n.logger.Info("ha_transition", "peer", t.Name, "event", t.Event.String(), "cause", t.Cause.String(), "by", t.By, "detail", t.Detail)
		}
	}
}

// haAlarms raises an alarm for each node that is up and failed over, and for each whose critical services are down.
func (n *Node) haAlarms() {
	f := operate.HAFacts(n.machine, n.liveness())
	states, _ := monitor.Availability(f)
	away, bad := map[string]monitor.Alarm{}, map[string]monitor.Alarm{}
	for i, peer := range f.Nodes {
		if peer.Up && peer.Failover != nil {
			away[peer.Name] = monitor.Alarm{Severity: monitor.Warning, Since: peer.Failover.Since,
				Reason: "node " + peer.Name + ": " + string(states[i].State) + " (" + states[i].Reason + "); " + states[i].Next}
		}
		if peer.Up && peer.Bad != "" && f.Now.Sub(peer.BadSince) >= f.ServiceDelay {
			bad[peer.Name] = monitor.Alarm{Severity: monitor.Critical, Since: peer.BadSince, Reason: "node " + peer.Name + ": " + peer.Bad}
		}
	}
	n.keepAlarms(alarmAway, away)
	n.keepAlarms(alarmService, bad)
}

// keepAlarms makes the active alarms of a prefix those of want, by node name.
func (n *Node) keepAlarms(prefix string, want map[string]monitor.Alarm) {
	for name, a := range want {
		a.Name = prefix + name
		n.alarms.Raise(a)
	}
	for _, a := range n.alarms.Active() {
		name, ours := strings.CutPrefix(a.Name, prefix)
		if _, stays := want[name]; ours && !stays {
			n.alarms.Clear(a.Name)
		}
	}
}
