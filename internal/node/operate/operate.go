// Package operate is what an administrator can do on a node: it turns requests
// into log entries, proposes them, and reads the replicated state for display.
//
// Callers: internal/node makes one Operator for the administrative socket; it
// stands behind the interfaces of edges/http. Invariants: a change is confirmed
// only when this node has applied it; every entry carries who asked; nothing
// here decides what the machine decides.
package operate

import (
	"context"
	"io"
	"time"

	"muster/edges/http"
	"muster/edges/http/adminapi"
	"muster/fsm"
	"muster/fsm/cluster"
	"muster/internal/certs"
	"muster/internal/fault"
	"muster/internal/jid"
	"muster/log"
	"muster/monitor"
	"muster/replication"
	"muster/replication/pki"
	"muster/router/hot"
	"muster/router/stanza"
)

// Essential is the service that cannot be stopped by itself: without it a node is nobody's home.
const Essential = "router"

// Proposer writes to the control log.
type Proposer interface {
	Propose(ctx context.Context, entries ...*log.Entry) ([]fsm.Result, error)
}

// Log is what administration needs of each log's group.
type Log interface {
	Name() string
	Health(ctx context.Context) []replication.NodeHealth
	CompareDigests(ctx context.Context) (replication.Report, error)
	Release(ctx context.Context, node uint32) error
}

// State is the control log's machine.
type State interface {
	fsm.Reader
	Check(e *log.Entry) error
}

// Replication is what it needs of the control log's group besides.
type Replication interface {
	Log
	ReadIndex(ctx context.Context) (uint64, error)
	WaitIndex(ctx context.Context, index uint64) error
}

// Router is what administration needs of the router.
type Router interface {
	EndSessions(user jid.JID, resource string, cond stanza.StreamCondition, text string)
}

// Presence is what lists of sessions need of the hot store.
type Presence interface {
	Count() int
	Rows(user jid.JID) []hot.Row
	Each(node uint32, fn func(hot.Row) bool)
}

// Services is what the data monitor tells of the services.
type Services interface {
	Report() []monitor.ServiceStatus
	Ready() (bool, string)
}

// Certificates tells what certificate clients see.
type Certificates interface {
	Status(now time.Time) certs.Status
}

// Parts is what an Operator works with.
type Parts struct {
	Self         uint32
	Name         string
	Release      string
	State        State
	Proposer     Proposer
	Replication  Replication
	Logs         []Log // the logs beside the control log
	Router       Router
	Presence     Presence
	Runner       Services
	Alarms       *monitor.Alarms
	Certificates Certificates
	Reload       func() error
	NewToken     func(life time.Duration) (*log.Entry, pki.Token)
	Backup       func(ctx context.Context, w io.Writer, req adminapi.BackupRequest, begin func(size int64)) error
	Liveness     func() Liveness
}

// Operator carries out administrators' requests on one node.
type Operator struct{ p Parts }

var _ http.Operator = (*Operator)(nil)

// New returns an Operator.
func New(p Parts) *Operator { return &Operator{p} }

// surface is how the log names the administrative socket.
const surface = "cli"

// propose writes entries in the name of the request's sender.
func (o *Operator) propose(ctx context.Context, entries ...*log.Entry) ([]fsm.Result, error) {
	now := time.Now()
	for _, e := range entries {
		e.Actor, e.Surface, e.Time = http.ActorOf(ctx), surface, now
	}
	return o.p.Proposer.Propose(ctx, entries...)
}

// change writes one entry and returns its index, or why it was rejected.
func (o *Operator) change(ctx context.Context, e *log.Entry) (adminapi.Done, error) {
	res, err := o.propose(ctx, e)
	if err != nil {
		return adminapi.Done{}, err
	}
	return adminapi.Done{Index: res[0].Index}, res[0].Err
}

// nodeID returns the id of the member of that name; "" is this node.
func (o *Operator) nodeID(name string) (uint32, error) {
	if name == "" {
		return o.p.Self, nil
	}
	n, ok := cluster.NodeByName(o.p.State, name)
	if !ok {
		return 0, fault.New(fault.NotFound, "admin.node", name, "no node is called "+name+"; muster node list shows them")
	}
	return n.ID, nil
}

// names maps node ids to names.
func (o *Operator) names() map[uint32]string {
	out := map[uint32]string{}
	for _, n := range cluster.Nodes(o.p.State) {
		out[n.ID] = n.Name
	}
	return out
}

// current waits until this node has applied all that was confirmed so far; a
// cluster without a majority shows what this node has.
func (o *Operator) current(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if index, err := o.p.Replication.ReadIndex(ctx); err == nil {
		_ = o.p.Replication.WaitIndex(ctx, index) // late: shown as it is
	}
}

// Backup implements http.Overview.
func (o *Operator) Backup(ctx context.Context, w io.Writer, req adminapi.BackupRequest, begin func(size int64)) error {
	return o.p.Backup(ctx, w, req, begin)
}
