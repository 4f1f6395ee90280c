package node

import (
	"time"

	"muster/edges/xmpp"
	"muster/fsm/cluster"
	"muster/internal/node/operate"
	"muster/monitor"
)

// source is the monitor's view of the node.
type source struct{ n *Node }

var _ monitor.Source = source{}

// LogFacts implements monitor.Source.
func (s source) LogFacts() []monitor.LogFacts {
	logs := []monitor.LogFacts{s.n.controlProgress.facts(s.n.machine), s.n.messageProgress.facts(s.n.messageMachine)}
	for i := range logs {
		if why := s.n.diskFull(); why != "" && logs[i].Problem == "" {
			logs[i].Problem = why
		}
	}
	return logs
}

// SyncFacts implements monitor.Source.
func (s source) SyncFacts() monitor.SyncFacts {
	if s.n.o.Sync == nil {
		return monitor.SyncFacts{}
	}
	return s.n.o.Sync()
}

// ClusterFacts implements monitor.Source.
func (s source) ClusterFacts() monitor.ClusterFacts {
	m, self := s.n.machine, s.n.identity.NodeID
	f := monitor.ClusterFacts{Version: uint32(m.Version()), PublisherTimeout: monitor.PublisherTimeout.Get(m, 0), Stopped: map[string]string{}}
	if info, ok := cluster.Get(m); ok {
		f.Publisher = info.Publisher == self
	}
	for _, name := range cluster.StoppedServices(m, self) {
		f.Stopped[name] = "an administrator"
	}
	if s.n.removed.Load() { // its clients go on at the nodes that are members
		f.Stopped[xmpp.ServiceName] = "the cluster, of which this node is no member any more"
	}
	if o, ok := cluster.Override(m, self); ok && time.Now().Before(o.Until) {
		f.OverrideUntil, f.OverrideBy = o.Until, "an administrator"
		if o.Reason != "" {
			f.OverrideBy += " (" + o.Reason + ")"
		}
	}
	f.Nodes = operate.NodeFacts(m, s.n.health.get()...)
	return f
}
