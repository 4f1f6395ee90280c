package node

import (
	"strconv"

	"muster/edges/http"
	"muster/fsm/cluster"
	"muster/fsm/user"
	"muster/monitor"
	"muster/replication"
)

// samples gathers the metrics of all parts for one scrape.
func (n *Node) samples() []http.Sample {
	var out []http.Sample
	for _, part := range []func() []http.Sample{n.logSamples, n.spaceSamples, n.clusterSamples, n.serviceSamples, n.routerSamples, n.clientSamples, n.linkSamples} {
		out = append(out, part()...)
	}
	return out
}

func gauge(name, help string, v float64, labels ...http.Label) http.Sample {
	return http.Sample{Name: name, Help: help, Value: v, Labels: labels}
}

func counter(name, help string, v float64, labels ...http.Label) http.Sample {
	return http.Sample{Name: name, Help: help, Value: v, Labels: labels, Counter: true}
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (n *Node) logSamples() (out []http.Sample) {
	for _, g := range []*replication.Group{n.group, n.messages} {
		out = append(out, samplesOf(g)...)
	}
	return out
}

func samplesOf(g *replication.Group) []http.Sample {
	s := g.Status()
	log := http.Label{Name: "log", Value: g.Name()}
	return []http.Sample{
		gauge("muster_log_healthy", "1 if this node's log and its disk report nothing wrong.", flag(s.Reason == "" && s.Halted == ""), log),
		gauge("muster_log_first_index", "Lowest index that the log still has.", float64(s.FirstLog), log),
		gauge("muster_log_disk_bytes", "Size of the log's folder: log, state, snapshots.", float64(s.DiskBytes), log),
		gauge("muster_log_leader", "1 if this node leads the log.", flag(s.Role == "leader"), log),
		gauge("muster_log_voter", "1 if this node votes.", flag(s.Voter), log),
		gauge("muster_log_term", "Raft term.", float64(s.Term), log),
		gauge("muster_log_commit_index", "Highest index known to be committed.", float64(s.Commit), log),
		gauge("muster_log_applied_index", "Index applied by this node's machine.", float64(s.Applied), log),
		gauge("muster_log_leader_contact_seconds", "Time since the leader was heard.", s.LastContact.Seconds(), log),
		gauge("muster_log_disk_p99_seconds", "99th percentile of the last writes to the log store.", s.DiskP99.Seconds(), log),
		gauge("muster_log_snapshot_index", "Index of the newest snapshot.", float64(s.SnapshotIndex), log),
	}
}

func (n *Node) clusterSamples() []http.Sample {
	out := []http.Sample{
		gauge("muster_users", "Users of the cluster.", float64(user.Count(n.machine))),
		gauge("muster_presence_rows", "Available sessions of the cluster, as this node knows.", float64(n.hot.Count())),
		gauge("muster_presence_resident_bytes", "Presence stanzas kept in memory.", float64(n.hot.ResidentBytes())),
		gauge("muster_certificate_expiry_seconds", "Unix time at which the certificate expires.", float64(n.certs.Certificate().Leaf.NotAfter.Unix())),
	}
	counts := cluster.Counts(n.machine)
	for _, peer := range cluster.Nodes(n.machine) {
		label := http.Label{Name: "peer", Value: peer.Name}
		out = append(out, gauge("muster_node_up", "1 if the control log says that the node is up.", flag(peer.Up), label),
			gauge("muster_node_users", "Users whose home the node is.", float64(counts[peer.ID]), label),
			gauge("muster_node_away_ratio", "Share of them that a failover holds with their backups.", awayRatio(peer), label))
	}
	return out
}

func awayRatio(n cluster.Node) float64 {
	if n.Failover == nil {
		return 0
	}
	return float64(n.Failover.Away) / cluster.Slots
}

func (n *Node) routerSamples() []http.Sample {
	s := n.router.Stats()
	kind := func(k string) http.Label { return http.Label{Name: "kind", Value: k} }
	const routed, delivered = "Stanzas that looked for their recipient on this node.", "Copies given to sessions by actors of this node."
	return []http.Sample{
		counter("muster_stanzas_routed_total", routed, float64(s.MessagesRouted), kind("message")),
		counter("muster_stanzas_routed_total", routed, float64(s.PresenceRouted), kind("presence")),
		counter("muster_stanzas_routed_total", routed, float64(s.IQsRouted), kind("iq")),
		counter("muster_stanzas_delivered_total", delivered, float64(s.MessagesDelivered), kind("message")),
		counter("muster_stanzas_delivered_total", delivered, float64(s.PresenceDelivered), kind("presence")),
		counter("muster_stanzas_delivered_total", delivered, float64(s.IQsDelivered), kind("iq")),
		counter("muster_stanzas_bounced_total", "Errors sent to senders.", float64(s.Bounced)),
		counter("muster_stanzas_ignored_total", "Stanzas that RFC 6121 says to forget.", float64(s.Ignored)),
		counter("muster_stanzas_screened_total", "Stanzas refused by blocking or policy.", float64(s.Screened)),
		counter("muster_stanzas_overloaded_total", "Stanzas refused for a full queue.", float64(s.Overloaded)),
		counter("muster_stanzas_forwarded_total", "Stanzas routed again because a home moved.", float64(s.Forwarded)),
		counter("muster_stale_frames_total", "Frames of other nodes with an outdated epoch.", float64(s.Stale)),
		counter("muster_bad_frames_total", "Frames of other nodes that made no sense.", float64(s.BadFrames)),
		counter("muster_panics_total", "Handlers that panicked and were contained.", float64(s.Panics)),
		counter("muster_link_resets_total", "Channels to other nodes that were begun anew.", float64(s.LinkResets)),
		counter("muster_presence_changes_total", "Presence changes told to features.", float64(s.RowChanges)),
		gauge("muster_sessions", "Sessions of this node.", float64(s.Sessions)),
		gauge("muster_sessions_attached", "Sessions attached to actors of this node.", float64(s.Attached)),
		gauge("muster_actors", "Active users whose home is this node.", float64(s.Actors)),
		gauge("muster_isolated", "1 while this node acts as nobody's home.", flag(n.router.Status().Isolated)),
	}
}

func (n *Node) clientSamples() []http.Sample {
	m := n.clients.Metrics()
	out := []http.Sample{
		gauge("muster_client_connections", "Client connections.", float64(m.Connections)),
		gauge("muster_client_logins_waiting", "Client connections that wait for their TLS handshake: more log in than the node has cores for.", float64(m.LoginsWaiting)),
		gauge("muster_client_unauthenticated", "Client connections that have not logged in.", float64(m.Unauthenticated)),
		gauge("muster_client_hibernated", "Sessions whose connection is lost and may be resumed.", float64(m.Hibernated)),
		counter("muster_client_accepted_total", "Client connections accepted.", float64(m.Accepted)),
		counter("muster_client_tls_failed_total", "TLS handshakes that failed.", float64(m.TLSFailed)),
		counter("muster_client_logins_total", "Logins.", float64(m.Logins)),
		counter("muster_client_token_logins_total", "Logins by a token, without the password.", float64(m.TokenLogins)),
		counter("muster_client_tokens_issued_total", "Tokens given to clients.", float64(m.TokensIssued)),
		counter("muster_client_logins_failed_total", "Logins that failed.", float64(m.LoginsFailed)),
		counter("muster_client_locked_out_total", "Logins not tried because of lock-out.", float64(m.LockedOut)),
		counter("muster_client_resumed_total", "Sessions resumed.", float64(m.Resumed)),
		counter("muster_client_resume_failed_total", "Resumptions refused.", float64(m.ResumeFailed)),
		counter("muster_client_resume_put_off_total", "Resumptions that the cluster could not make: their clients were told to try again.", float64(m.ResumePutOff)),
		counter("muster_client_stanzas_in_total", "Stanzas from clients.", float64(m.StanzasIn)),
		counter("muster_client_stanzas_out_total", "Stanzas to clients.", float64(m.StanzasOut)),
		counter("muster_client_throttled_total", "Reads delayed by a client's rate limit.", float64(m.Throttled)),
		counter("muster_client_overflows_total", "Sessions ended because their client did not read.", float64(m.Overflows)),
	}
	for why, count := range m.Refused {
		out = append(out, counter("muster_client_refused_total", "Client connections refused, by limit.", float64(count), http.Label{Name: "limit", Value: why}))
	}
	return out
}

func (n *Node) linkSamples() []http.Sample {
	names := map[uint32]string{}
	for _, peer := range cluster.Nodes(n.machine) {
		names[peer.ID] = peer.Name
	}
	var out []http.Sample
	for _, p := range n.router.Status().Links {
		if names[p.Node] == "" {
			continue // a former member
		}
		label := http.Label{Name: "peer", Value: names[p.Node]}
		out = append(out, gauge("muster_link_connected", "1 while the node link stands.", flag(p.Connected), label),
			gauge("muster_link_queued_bytes", "Bytes sent over the node link and not acknowledged.", float64(p.Bytes), label),
			gauge("muster_link_rtt_seconds", "Round trip over the node link.", p.RTT.Seconds(), label))
	}
	return out
}

func (n *Node) serviceSamples() []http.Sample {
	var out []http.Sample
	for _, s := range n.runner.Report() {
		out = append(out, gauge("muster_service_started", "1 if the service is STARTED.", flag(s.State == monitor.Started), http.Label{Name: "service", Value: s.Name}))
	}
	for _, a := range n.alarms.Active() {
		out = append(out, gauge("muster_alarm_active", "1 for each active alarm.", 1, http.Label{Name: "alarm", Value: a.Name}, http.Label{Name: "severity", Value: string(a.Severity)}))
	}
	raised, cleared := n.alarms.Counts()
	ready, _ := n.ready()
	return append(out, counter("muster_alarms_raised_total", "Alarms raised since the start.", float64(raised)),
		counter("muster_alarms_cleared_total", "Alarms cleared since the start.", float64(cleared)),
		gauge("muster_ready", "1 if this node serves clients.", flag(ready)),
		gauge("muster_build_info", "1, with the release as a label.", 1, http.Label{Name: "release", Value: n.o.Release}, http.Label{Name: "node", Value: strconv.FormatUint(uint64(n.identity.NodeID), 10)}))
}
