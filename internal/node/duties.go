package node

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"muster/fsm"
	"muster/fsm/cluster"
	"muster/internal/fault"
	"muster/internal/node/operate"
	"muster/log"
	"muster/monitor"
	"muster/replication"
)

// Alarms that a node raises besides the monitor's.
const (
	alarmReplication = "replication-unhealthy" // this node's control log or its disk
	alarmMessages    = "message-log-unhealthy" // this node's message log or its disk
	alarmDown        = "node-down/"            // followed by the node's name
	alarmCertificate = "certificate"           // expired, expiring or unreadable

	alarmDigests        = "tables-differ"         // nodes disagree at the same index of the control log
	alarmMessageDigests = "message-tables-differ" // or of the message log
)

// proposer fills in who proposes; it is what the router and the node's own duties write to the log through.
type proposer struct{ n *Node }

// Propose implements router.Proposer.
func (p proposer) Propose(ctx context.Context, entries ...*log.Entry) ([]fsm.Result, error) {
	return p.n.proposeTo(ctx, p.n.group, entries)
}

// keeper is proposer for the message log.
type keeper struct{ n *Node }

// Propose implements router.Proposer.
func (k keeper) Propose(ctx context.Context, entries ...*log.Entry) ([]fsm.Result, error) {
	return k.n.proposeTo(ctx, k.n.messages, entries)
}

func (n *Node) proposeTo(ctx context.Context, g *replication.Group, entries []*log.Entry) ([]fsm.Result, error) {
	now := time.Now()
	for _, e := range entries {
		if e.Node == 0 {
			e.Node = n.identity.NodeID
		}
		if e.Time.IsZero() {
			e.Time = now
		}
		if e.Actor == "" {
			e.Actor, e.Surface = fmt.Sprint("node:", n.identity.NodeID), "system"
		}
	}
	if g == nil {
		return nil, fault.New(fault.Unavailable, "node.propose", "", "the log is not open yet")
	}
	return g.Propose(ctx, entries...)
}

// propose writes one entry of the node's own and returns its result, or the fault that rejected it.
func (n *Node) propose(ctx context.Context, e *log.Entry) (fsm.Result, error) {
	res, err := proposer{n}.Propose(ctx, e)
	if err != nil {
		return fsm.Result{}, err
	}
	return res[0], res[0].Err
}

// links is the mesh as the router sees it: one stream between two nodes.
type links struct{ n *Node }

// Dial implements router.Mesh.
func (l links) Dial(ctx context.Context, node uint32) (net.Conn, error) {
	return l.n.mesh.Dial(ctx, node, "link")
}

// Accept implements router.Mesh.
func (l links) Accept() (net.Conn, uint32, error) { return l.n.links.Accept() }

// incarnation is the log index of this node's last start, as applied here; 0: it never started.
func (n *Node) incarnation() uint64 {
	me, _ := cluster.NodeByID(n.machine, n.identity.NodeID)
	return me.Incarnation
}

// onFenced is told by the router that the log declared this node down while it lives.
func (n *Node) onFenced() {
	n.fresh.Store(false)
	select {
	case n.fenced <- struct{}{}:
	default:
	}
}

// proposeStart writes this node's start to the log: from then on it is a home again, with a new incarnation.
func (n *Node) proposeStart(ctx context.Context) error {
	e := cluster.StartEntry(n.identity.NodeID, n.o.Release, log.NewestVersion)
	res, err := n.propose(ctx, e)
	if err != nil {
		return err
	}
	n.fresh.Store(true)
	n.logger.Info("start_committed", "incarnation", cluster.IncarnationResult(res.Value))
	n.announceAddresses(ctx)
	return nil
}

// announceAddresses tells the log where this node listens, if its bootstrap file says something new.
func (n *Node) announceAddresses(ctx context.Context) {
	c := n.o.Config
	me, _ := cluster.NodeByID(n.machine, n.identity.NodeID)
	if me.ClusterAddr == c.ClusterAdvertise && maps.Equal(me.Addrs, c.Listeners()) {
		return
	}
	if _, err := n.propose(ctx, cluster.UpdateEntry(n.identity.NodeID, c.ClusterAdvertise, c.Listeners())); err != nil {
		n.logger.Error("addresses_not_announced", "error", err)
	}
}

// renewStart starts the node anew in the log each time that it was fenced.
func (n *Node) renewStart() {
	for {
		select {
		case <-n.fenced:
		case <-n.ctx.Done():
			return
		}
		for n.ctx.Err() == nil {
			err := n.proposeStart(n.ctx)
			if err == nil {
				break
			}
			n.logger.Warn("start_not_committed", "error", err)
			n.pause(retryStep)
		}
	}
}

// pause waits for d or the node's end, and reports whether the node goes on.
func (n *Node) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-n.ctx.Done():
		return false
	}
}

// movesMember reports whether a change is about who is a member, or where.
func movesMember(c fsm.Change) bool {
	_, before, after, ok := cluster.DecodeNode(c)
	return ok && (before == nil || after == nil || before.ClusterAddr != after.ClusterAddr)
}

// keepMembers makes changes of the members durable at once. All else that a
// crash takes from the state is applied again from the log, but that needs a
// leader, and without the members' addresses this node may reach none: after a
// loss of power everywhere it may be the only one with a log to lead.
func (n *Node) keepMembers() {
	for {
		select {
		case <-n.moved:
		case <-n.ctx.Done():
			return
		}
		if err := n.state.Flush(); err != nil {
			n.logger.Error("members_not_kept", "error", err)
		}
	}
}

// reportContact tells the router how long ago the leader was heard, so that an isolated node stops acting as a home.
func (n *Node) reportContact() {
	for n.pause(contactStep) {
		n.router.LeaderContact(n.group.LeaderContact())
	}
}

// declareSilent has the control log's leader declare nodes down that it does not hear.
func (n *Node) declareSilent() {
	leads := n.leading()
	for n.pause(dutyStep) {
		if !leads.now() {
			continue
		}
		for _, id := range n.router.Silent() {
			peer, ok := cluster.NodeByID(n.machine, id)
			if !ok || !peer.Up {
				continue
			}
			_, err := n.order(cluster.DownEntry(id, peer.Incarnation))
			n.logger.Warn("node_silent", "peer", peer.Name, "incarnation", peer.Incarnation, "declared_down", err == nil, "error", err)
		}
	}
}

// healthCache is what the nodes last said of themselves.
type healthCache struct {
	mu   sync.Mutex
	logs [][]replication.NodeHealth // the control log first
}

func (h *healthCache) get() [][]replication.NodeHealth {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.logs)
}

// pollHealth asks the nodes for their health in turns, for the alarms and the version rule.
func (n *Node) pollHealth() {
	for ok := true; ok; ok = n.pause(healthStep) {
		var wg sync.WaitGroup
		logs := make([][]replication.NodeHealth, 2)
		wg.Go(func() { logs[0] = n.group.Health(n.ctx) })
		wg.Go(func() { logs[1] = n.messages.Health(n.ctx) })
		wg.Wait()
		if n.ctx.Err() != nil {
			return
		}
		n.health.mu.Lock()
		n.health.logs = logs
		n.health.mu.Unlock()
		n.services.note(time.Now(), logs[0])
		n.nodeAlarms()
		n.haAlarms()
		n.spaceAlarm()
		n.digestAlarm(alarmDigests, replication.ControlLog, logs[0])
		n.digestAlarm(alarmMessageDigests, replication.MessageLog, logs[1])
		n.certificateAlarm()
	}
}

// nodeAlarms raises an alarm for each node that the log says is down.
func (n *Node) nodeAlarms() {
	down := map[string]monitor.Alarm{}
	for _, peer := range cluster.Nodes(n.machine) {
		if !peer.Up && peer.Incarnation > 0 && peer.ID != n.identity.NodeID {
			down[peer.Name] = monitor.Alarm{Severity: monitor.Critical, Since: peer.Since,
				Reason: "node " + peer.Name + " is down: start musterd there, or remove the node with muster node remove"}
		}
	}
	n.keepAlarms(alarmDown, down)
}

// digestAlarm compares what nodes that noted their digests at the same index have.
func (n *Node) digestAlarm(alarm, log string, nodes []replication.NodeHealth) {
	differ, _ := operate.Compare(nodes)
	if len(differ) == 0 {
		n.alarms.Clear(alarm)
		return
	}
	n.alarms.Raise(monitor.Alarm{Name: alarm, Severity: monitor.Critical,
		Reason: fmt.Sprintf("nodes disagree about %v of the %s log at the same index: see muster replication status", differ, log)})
}

// certificateAlarm raises what is wrong with the certificate that clients see.
func (n *Node) certificateAlarm() {
	s := n.certs.Status(time.Now())
	switch {
	case s.Error != "":
		n.alarms.Raise(monitor.Alarm{Name: alarmCertificate, Severity: monitor.Critical, Since: s.ErrorAt, Reason: s.Error})
	case s.Warning != "":
		n.alarms.Raise(monitor.Alarm{Name: alarmCertificate, Severity: monitor.Warning, Reason: s.Warning})
	default:
		n.alarms.Clear(alarmCertificate)
	}
}
