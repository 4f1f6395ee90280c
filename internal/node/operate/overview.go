package operate

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"sort"
	"sync"
	"time"

	"muster/edges/http/adminapi"
	"muster/fsm"
	"muster/fsm/cluster"
	"muster/fsm/config"
	"muster/fsm/user"
	"muster/monitor"
	"muster/replication"
)

// The states of a node's replication, as the reference product numbers them.
const (
	stateNotStarted = 0 // known, but it hears no leader yet
	stateCount      = 1 // not in the members that the log replicates to, or waiting for a whole snapshot
	stateGood       = 2
	stateBad        = 3 // behind by more than MaxLag, or its tables differ
	stateFailed     = 4 // not reached, or its log cannot be applied
)

var stateText = map[int]string{
	stateNotStarted: "Initializing", stateCount: "Number of Replicates not correct", stateGood: "Setup Completed",
	stateBad: "Mismatched / suspended", stateFailed: "Setup Failed/Dropped",
}

// MaxLag is how many entries a node may be behind the cluster and still count as caught up.
const MaxLag = 1000

// Compare looks for tables whose digests differ between nodes that noted them
// at the same index. It returns their names and how many tables there are.
func Compare(nodes []replication.NodeHealth) (differ []string, tables int) {
	type mark struct {
		index uint64
		table string
	}
	seen, bad := map[mark]uint64{}, map[string]bool{}
	for _, n := range nodes {
		tables = max(tables, len(n.Digests))
		for _, d := range n.Digests {
			m := mark{n.Index, d.Table}
			if have, ok := seen[m]; ok && have != d.Digest {
				bad[d.Table] = true
			}
			seen[m] = d.Digest
		}
	}
	for t := range bad {
		differ = append(differ, t)
	}
	sort.Strings(differ)
	return differ, tables
}

// sum folds a node's digests into one.
func sum(digests []fsm.TableDigest) string {
	if len(digests) == 0 {
		return ""
	}
	h := fnv.New64a()
	for _, d := range digests {
		_, _ = h.Write(binary.BigEndian.AppendUint64([]byte(d.Table), d.Digest)) // never fails
	}
	return fmt.Sprintf("%016x", h.Sum64())
}

// tip is the highest commit index and the lowest index that the leader's log still has.
func tip(nodes []replication.NodeHealth) (commit, first uint64) {
	for _, n := range nodes {
		commit = max(commit, n.Status.Commit, n.Status.Applied)
		if n.Status.Role == "leader" {
			first = n.Status.FirstLog
		}
	}
	return commit, first
}

// classify maps a node's health to the reference product's states, and says why it is not good.
func classify(n replication.NodeHealth, commit, first uint64, differs bool) (state int, reason string) {
	lag := commit - min(commit, n.Status.Applied)
	member := n.Status.Voter
	for _, id := range n.Status.NonVoters {
		member = member || id == n.Node
	}
	switch {
	case !n.Reachable:
		return stateFailed, orElse(n.Reason, "not reached")
	case n.Status.Halted != "":
		return stateFailed, n.Status.Halted
	case differs:
		return stateBad, "its tables differ from the other nodes'"
	case n.Status.Leader == 0:
		return stateNotStarted, "hears no leader"
	case !member:
		return stateCount, "is not yet a member of the log's group"
	case n.Status.Applied+1 < first:
		return stateCount, "waits for a snapshot"
	case lag > MaxLag:
		return stateBad, fmt.Sprintf("%d entries behind", lag)
	}
	return stateGood, n.Status.Reason
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// NodeFacts is what the data monitor wants to know of each node: it has caught up if it has with each log of which health is given.
func NodeFacts(r fsm.Reader, logs ...[]replication.NodeHealth) []monitor.NodeFacts {
	var out []monitor.NodeFacts
	for _, n := range cluster.Nodes(r) {
		f := monitor.NodeFacts{Name: n.Name, Release: n.Software, CaughtUp: true} // unless the contrary is known
		for _, health := range logs {
			commit, first := tip(health)
			for _, h := range health {
				if h.Node != n.ID {
					continue
				}
				if h.Version != "" {
					f.Release = h.Version
				}
				state, _ := classify(h, commit, first, false)
				f.CaughtUp = f.CaughtUp && state == stateGood
			}
		}
		out = append(out, f)
	}
	return out
}

// healths asks all nodes about all logs at once, the control log first.
func (o *Operator) healths(ctx context.Context) [][]replication.NodeHealth {
	out := make([][]replication.NodeHealth, 1+len(o.p.Logs))
	var wg sync.WaitGroup
	for i, l := range append([]Log{o.p.Replication}, o.p.Logs...) {
		wg.Go(func() { out[i] = l.Health(ctx) })
	}
	wg.Wait()
	return out
}

// Replication implements http.Overview.
func (o *Operator) Replication(ctx context.Context) (adminapi.Replication, error) {
	healths := o.healths(ctx)
	info, _ := cluster.Get(o.p.State)
	control := o.logReplication(o.p.Replication.Name(), healths[0], info)
	out := adminapi.Replication{Time: time.Now(), Node: o.p.Name, Cluster: info.Name, Version: o.p.Release, Leader: control.Leader, State: stateGood,
		Tables: control.Tables, Equal: control.Equal, Differ: control.Differ, Nodes: control.Nodes, Logs: o.others(healths, info)}
	for _, l := range append([]adminapi.LogReplication{control}, out.Logs...) {
		for _, n := range l.Nodes {
			if n.State != stateGood {
				out.State = n.State
			}
		}
	}
	return out, nil
}

// others is the replication of the logs beside the control log.
func (o *Operator) others(healths [][]replication.NodeHealth, info cluster.Info) (out []adminapi.LogReplication) {
	for i, l := range o.p.Logs {
		out = append(out, o.logReplication(l.Name(), healths[1+i], info))
	}
	return out
}

func (o *Operator) logReplication(name string, health []replication.NodeHealth, info cluster.Info) adminapi.LogReplication {
	differ, tables := Compare(health)
	out := adminapi.LogReplication{Log: name, Tables: tables, Equal: len(differ) == 0, Differ: differ, Nodes: o.nodes(health, info)}
	for _, n := range out.Nodes {
		if n.Role == "leader" {
			out.Leader = n.Name
		}
	}
	return out
}

// nodes joins what the log knows of the nodes with what they say of themselves.
func (o *Operator) nodes(health []replication.NodeHealth, info cluster.Info) []adminapi.ReplicationNode {
	commit, first := tip(health)
	odd := outliers(health)
	byID := map[uint32]replication.NodeHealth{}
	for _, h := range health {
		byID[h.Node] = h
	}
	var out []adminapi.ReplicationNode
	for _, n := range cluster.Nodes(o.p.State) {
		h := byID[n.ID]
		s := h.Status
		row := adminapi.ReplicationNode{ID: n.ID, Name: n.Name, Address: n.ClusterAddr, Publisher: n.ID == info.Publisher, Up: n.Up,
			Role: orElse(s.Role, "unknown"), Voter: s.Voter, Term: s.Term, Commit: s.Commit, Applied: s.Applied, Lag: commit - min(commit, s.Applied),
			LastContactMS: ms(s.LastContact), PingMS: ms(h.Ping), DigestIndex: h.Index, Digest: sum(h.Digests), Version: orElse(h.Version, n.Software),
			DiskP99MS: ms(s.DiskP99), DiskBytes: s.DiskBytes, SnapshotIndex: s.SnapshotIndex, Reachable: h.Reachable, Monitor: s.Halted == "" && s.Reason == "",
			Since: h.Since}
		row.State, row.Reason = classify(h, commit, first, odd[n.ID])
		row.Detail = stateText[row.State]
		if row.Since.IsZero() {
			row.Since = s.Since
		}
		out = append(out, row)
	}
	return out
}

// outliers returns the nodes whose digests at an index are not those of most nodes there.
func outliers(health []replication.NodeHealth) map[uint32]bool {
	votes := map[uint64]map[string]int{}
	for _, h := range health {
		if len(h.Digests) > 0 {
			if votes[h.Index] == nil {
				votes[h.Index] = map[string]int{}
			}
			votes[h.Index][sum(h.Digests)]++
		}
	}
	odd := map[uint32]bool{}
	for _, h := range health {
		if len(h.Digests) == 0 {
			continue
		}
		mine := votes[h.Index][sum(h.Digests)]
		for digest, n := range votes[h.Index] {
			if digest != sum(h.Digests) && n >= mine { // a tie blames both
				odd[h.Node] = true
			}
		}
	}
	return odd
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// CompareDigests implements http.Overview.
func (o *Operator) CompareDigests(ctx context.Context) (adminapi.Digests, error) {
	out, err := o.compareLog(ctx, o.p.Replication)
	for _, l := range o.p.Logs {
		if err != nil {
			break
		}
		var d adminapi.Digests
		d, err = o.compareLog(ctx, l)
		out.Logs = append(out.Logs, d)
	}
	return out, err
}

func (o *Operator) compareLog(ctx context.Context, l Log) (adminapi.Digests, error) {
	r, err := l.CompareDigests(ctx)
	if err != nil {
		return adminapi.Digests{}, err
	}
	names := o.names()
	out := adminapi.Digests{Log: l.Name(), Index: r.Index, Equal: r.Equal}
	for _, id := range r.Missing {
		out.Missing = append(out.Missing, orElse(names[id], fmt.Sprint("node ", id)))
	}
	for _, t := range r.Tables {
		row := adminapi.TableDigest{Table: t.Table, Equal: t.Equal, Digests: map[string]string{}}
		for id, d := range t.Digests {
			row.Digests[orElse(names[id], fmt.Sprint("node ", id))] = fmt.Sprintf("%016x", d)
		}
		out.Tables = append(out.Tables, row)
	}
	return out, nil
}

// Status implements http.Overview.
func (o *Operator) Status(ctx context.Context) (adminapi.Status, error) {
	healths := o.healths(ctx)
	info, _ := cluster.Get(o.p.State)
	s := adminapi.Status{Node: o.p.Name, Version: o.p.Release, Cluster: info.Name, ClusterID: info.ID,
		Domains: config.Domains(o.p.State), Users: user.Count(o.p.State), Sessions: o.p.Presence.Count(), Mode: cluster.Mode(o.p.State),
		Groups: o.groups(), Nodes: o.nodes(healths[0], info), Logs: o.others(healths, info), Certs: o.certificates(), Alarms: o.p.Alarms.Active()}
	s.Ready, s.Reason = o.p.Runner.Ready()
	s.Complete, s.Missing = monitor.Complete(NodeFacts(o.p.State, healths...))
	return s, nil
}
