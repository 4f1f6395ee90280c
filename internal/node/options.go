package node

import (
	"log/slog"
	"net"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"muster/internal/bootstrap"
	"muster/internal/certs"
	"muster/monitor"
	"muster/replication"
	"muster/replication/mesh"
	"muster/replication/pki"
	"muster/router"
)

// Options say what a node is made of. Config and Features are required; what
// is left zero is the real thing, what is set is a simulation's or a test's.
type Options struct {
	Config   bootstrap.Config
	Release  string           // software release, shown to operators and clients
	Features []router.Feature // in order of registration
	Logger   *slog.Logger     // nil: slog.Default

	FS          vfs.FS                                     // under log, state and hot store; nil: the disk
	Identity    *pki.Identity                              // nil: read from the data folder
	Network     mesh.Network                               // between nodes; nil: TCP
	Plain       bool                                       // no TLS between nodes; for simulations
	Listen      func(address string) (net.Listener, error) // for clients and HTTPS; nil: TCP
	Certs       *certs.Source                              // nil: the files that Config names
	NoAdmin     bool                                       // no administrative socket
	LogStore    raft.LogStore                              // nil: a file; both or none
	StableStore raft.StableStore
	Raft        replication.Timing
	Monitor     monitor.Timing

	MessageLogStore    raft.LogStore // of the message log; nil: files; both or none
	MessageStableStore raft.StableStore

	Sync func() monitor.SyncFacts // the sync agent's progress; nil: there is none
	Exit func(reason string)      // nil: the process ends with replication.ExitStatus
}

// Timing of a node's own duties.
const (
	contactStep = 200 * time.Millisecond // between reports of the leader's contact to the router; it needs two a second
	dutyStep    = 500 * time.Millisecond // between looks of the control log's leader for silent nodes
	healthStep  = 2 * time.Second        // between questions to the other nodes about their health
	retryStep   = 500 * time.Millisecond // between attempts of what the cluster cannot take just now
	killTime    = 10 * time.Second       // for the parts of a killed node to end
	farewell    = 3 * time.Second        // for the log to take this node's own departure
)

func (o *Options) complete() {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Network == nil {
		o.Network = mesh.TCP{}
	}
	if o.Listen == nil {
		o.Listen = func(address string) (net.Listener, error) { return net.Listen("tcp", address) }
	}
	if o.Release == "" {
		o.Release = "dev"
	}
}
