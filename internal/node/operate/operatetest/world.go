// Package operatetest is an Operator over a machine in memory, without a log
// and a network, for tests of the administrative surfaces. The server never uses it.
package operatetest

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"muster/edges/http"
	"muster/edges/http/adminapi"
	"muster/fsm"
	"muster/fsm/cluster"
	"muster/fsm/config"
	"muster/fsm/fsmtest"
	"muster/internal/certs"
	"muster/internal/jid"
	"muster/internal/modules"
	"muster/internal/node/operate"
	"muster/log"
	"muster/monitor"
	"muster/replication"
	"muster/replication/pki"
	"muster/router/hot"
	"muster/router/stanza"
)

// Domain is the world's IM domain.
const Domain = "example.test"

// World is a cluster of the nodes node1 (publisher, the one that answers) and node2.
type World struct {
	Rig      *fsmtest.Rig
	Operator *operate.Operator
	Alarms   *monitor.Alarms
	Services []monitor.ServiceStatus
	Health   []replication.NodeHealth
	Report   replication.Report
	Messages Log // the message log; the fields above are the control log's
	Rows     []hot.Row
	Backup   func(w io.Writer, req adminapi.BackupRequest) error
	Reload   error
	Live     operate.Liveness

	mu     sync.Mutex
	fails  []error // what the next proposals fail with
	Ended  []string
	Actors map[string]bool // who proposed
}

// Log is what the nodes say of a log beside the control log.
type Log struct {
	Nodes   []replication.NodeHealth
	Digests replication.Report

	Released []uint32 // nodes that were to give up their votes
	Refuse   []error  // what keeps them from it, one each
}

// Name implements operate.Log.
func (*Log) Name() string { return replication.MessageLog }

// Health implements operate.Log.
func (l *Log) Health(context.Context) []replication.NodeHealth { return l.Nodes }

// CompareDigests implements operate.Log.
func (l *Log) CompareDigests(context.Context) (replication.Report, error) { return l.Digests, nil }

// Release implements operate.Log.
func (l *Log) Release(_ context.Context, node uint32) error {
	l.Released = append(l.Released, node)
	if len(l.Refuse) < len(l.Released) {
		return nil
	}
	return l.Refuse[len(l.Released)-1]
}

// New returns a world.
func New(tb testing.TB) *World {
	w := &World{Messages: Log{Digests: replication.Report{Equal: true}}, Rig: fsmtest.New(tb, modules.Control()...), Alarms: monitor.NewAlarms(slog.New(slog.DiscardHandler)), Actors: map[string]bool{}}
	w.Services = []monitor.ServiceStatus{
		{Name: operate.Essential, Health: monitor.Health{State: monitor.Started, Since: fsmtest.Start}},
		{Name: "client-connections", Health: monitor.Health{State: monitor.Starting, Reason: "waits for the control log", Since: fsmtest.Start}},
	}
	token := cluster.HashToken([]byte("t"))
	w.Rig.Must(
		cluster.InitEntry(cluster.Init{ID: "c-1", Name: "Test", CACert: []byte("PEM"), Version: 1, Node: member("node1", "10.0.0.1")}),
		cluster.TokenEntry(token, fsmtest.Start.Add(time.Hour)),
		cluster.JoinEntry(token, member("node2", "10.0.0.2")),
		cluster.StartEntry(1, "1.0", 1), cluster.StartEntry(2, "1.0", 1),
		config.AddDomainEntry(Domain),
	)
	ca, err := certs.NewCA("test", time.Now())
	if err != nil {
		tb.Fatal(err)
	}
	source, err := ca.IssueSource(time.Now(), Domain)
	if err != nil {
		tb.Fatal(err)
	}
	w.Live = operate.Liveness{Now: fsmtest.Start.Add(time.Hour), Observer: 1, SilentAfter: 3 * time.Second,
		Nodes: map[uint32]operate.NodeLiveness{1: {GoodSince: fsmtest.Start}, 2: {GoodSince: fsmtest.Start}}}
	w.Operator = operate.New(operate.Parts{
		Self: 1, Name: "node1", Release: "1.0", State: w.Rig.M, Proposer: w, Replication: health{w}, Logs: []operate.Log{&w.Messages}, Router: w, Presence: presence{w},
		Runner: runner{w}, Alarms: w.Alarms, Certificates: source, Reload: func() error { return w.Reload },
		NewToken: func(life time.Duration) (*log.Entry, pki.Token) {
			t := pki.NewToken([32]byte{1})
			return cluster.TokenEntry(cluster.HashToken(t.Secret), time.Now().Add(life)), t
		},
		Backup: func(_ context.Context, out io.Writer, req adminapi.BackupRequest, _ func(int64)) error {
			if w.Backup == nil {
				return errors.New("no backup")
			}
			return w.Backup(out, req)
		},
		Liveness: func() operate.Liveness { return w.Live },
	})
	return w
}

func member(name, host string) cluster.Member {
	return cluster.Member{Name: name, ClusterAddr: host + ":7400", Addrs: map[string]string{"client": host + ":5222"}, Software: "1.0", NewestVersion: 1}
}

// Serve opens the administrative socket and returns its data folder.
func (w *World) Serve(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "op") // a socket's path must be short
	if err != nil {
		tb.Fatal(err)
	}
	ln, err := http.ListenSocket(dir)
	if err != nil {
		tb.Fatal(err)
	}
	srv := http.Serve(ln, http.Admin(w.Operator), nil, slog.New(slog.DiscardHandler))
	tb.Cleanup(func() {
		_ = srv.Stop(context.Background()) // a test's end
		_ = os.RemoveAll(dir)
	})
	return dir
}

// FailNext makes the next proposals fail with these errors, one each.
func (w *World) FailNext(errs ...error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fails = append(w.fails, errs...)
}

// Propose implements operate.Proposer.
func (w *World) Propose(_ context.Context, entries ...*log.Entry) ([]fsm.Result, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.fails) > 0 {
		err := w.fails[0]
		w.fails = w.fails[1:]
		return nil, err
	}
	for _, e := range entries {
		w.Actors[e.Actor] = true
	}
	return w.Rig.Apply(entries...), nil
}

// Fallback makes a step of a node's fallback, as the leader would, and reports whether it was accepted.
func (w *World) Fallback(node uint32, away int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, _ := cluster.NodeByID(w.Rig.M, node)
	if n.Failover == nil || n.Failover.Fallback == cluster.NoCause && away == cluster.Slots {
		return false // nobody has asked for it yet
	}
	return w.Rig.Apply(cluster.FallbackStepEntry(node, away, cluster.OnRequest))[0].Err == nil
}

// ReadIndex implements operate.Replication.
func (w *World) ReadIndex(context.Context) (uint64, error) { return w.Rig.M.Applied(), nil }

// WaitIndex implements operate.Replication.
func (w *World) WaitIndex(context.Context, uint64) error { return nil }

// Name implements operate.Log.
func (w *World) Name() string { return replication.ControlLog }

// CompareDigests implements operate.Log.
func (w *World) CompareDigests(context.Context) (replication.Report, error) { return w.Report, nil }

// Release implements operate.Log.
func (w *World) Release(context.Context, uint32) error { return nil }

// Count implements operate.Presence.
func (w *World) Count() int { return len(w.Rows) }

// Each implements operate.Presence.
func (w *World) Each(node uint32, fn func(hot.Row) bool) {
	for _, r := range w.Rows {
		if r.Node == node && !fn(r) {
			return
		}
	}
}

// EndSessions implements operate.Router.
func (w *World) EndSessions(user jid.JID, resource string, _ stanza.StreamCondition, _ string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.Ended = append(w.Ended, user.WithResource(resource).String())
}

// Ready implements operate.Services.
func (w *World) Ready() (bool, string) {
	for _, s := range w.Services {
		if s.State != monitor.Started {
			return false, s.Name + ": " + s.Reason
		}
	}
	return true, ""
}

// world's own lists stand behind these methods, whose names are taken by fields.
type (
	presence struct{ *World }
	health   struct{ *World }
	runner   struct{ *World }
)

// Rows implements operate.Presence.
func (p presence) Rows(user jid.JID) []hot.Row {
	var out []hot.Row
	for _, r := range p.World.Rows {
		if r.User == user {
			out = append(out, r)
		}
	}
	return out
}

// Health implements operate.Log.
func (h health) Health(context.Context) []replication.NodeHealth { return h.World.Health }

// Report implements operate.Services.
func (r runner) Report() []monitor.ServiceStatus { return r.Services }
