package simnode

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"muster/fsm"
	"muster/internal/bootstrap"
	"muster/internal/node"
	"muster/log"
	"muster/replication"
	"muster/replication/pki"
)

const (
	clusterPort = ":7400"
	clientPort  = ":5223"
	dataDir     = "/data"
	stopTime    = 15 * time.Second // of an orderly stop, as cmd/musterd has it
)

// Host is a machine: a disk, a network address, and a process while it runs.
// Its methods may be called by one goroutine at a time, those that only look by all.
type Host struct {
	c        *Cluster
	ID       uint32
	Name     string
	identity *pki.Identity
	fs       *vfs.MemFS
	log      *disk // the control log
	messages *disk // the message log
	proc     atomic.Pointer[process]
	removed  bool         // under Cluster.mu
	skew     atomic.Int64 // nanoseconds by which the clock of an operator at this host is wrong
}

// process is one life of a node.
type process struct {
	host *Host
	node *node.Node
	up   atomic.Bool // Node.Start has returned: all parts are there
	dead atomic.Bool
	ends atomic.Bool // an orderly stop is under way
}

func (c *Cluster) newHost(id uint32) *Host {
	who := *c.founder
	who.NodeID, who.Name = id, fmt.Sprint("n", id)
	if id != 1 {
		who.Cert, who.Key = nil, nil
	}
	who.Peers = nil
	for _, h := range c.hosts {
		who.Peers = append(who.Peers, pki.Peer{ID: h.ID, Addr: h.Name + clusterPort})
	}
	return &Host{c: c, ID: id, Name: who.Name, identity: &who, fs: newFS(c.t), log: newDisk(), messages: newDisk()}
}

// newFS is a file system with a data folder: it holds the node's identity, so it was made durable long ago.
func newFS(t T) *vfs.MemFS {
	fs := vfs.NewCrashableMem()
	err := fs.MkdirAll(dataDir, 0o700)
	if err == nil {
		var root vfs.File
		if root, err = fs.OpenDir("/"); err == nil {
			err = errors.Join(root.Sync(), root.Close())
		}
	}
	if err != nil {
		t.Fatalf("disk: %v", err)
	}
	return fs
}

var errDead = errors.New("simnode: the process is dead")

// Listen implements mesh.Network, and serves as the listening function of the node's other listeners.
func (p *process) Listen(addr string) (net.Listener, error) {
	if p.dead.Load() {
		return nil, errDead
	}
	return p.host.c.Net.Host(p.host.Name).Listen(addr)
}

// Dial implements mesh.Network.
func (p *process) Dial(ctx context.Context, addr string) (net.Conn, error) {
	if p.dead.Load() {
		return nil, errDead
	}
	conn, err := p.host.c.Net.Host(p.host.Name).Dial(ctx, addr)
	if err == nil && p.dead.Load() {
		_ = conn.Close()
		return nil, errDead
	}
	return conn, err
}

// Start runs a process on what the disk holds.
func (h *Host) Start() {
	h.c.t.Helper()
	if h.proc.Load() != nil {
		return
	}
	h.c.Trace.Notef("start %s", h.Name)
	p := &process{host: h}
	conf := bootstrap.Config{Data: dataDir, Name: h.Name, ClusterListen: h.Name + clusterPort, ClientTLSListen: h.Name + clientPort}
	n, err := node.Open(node.Options{
		Config: conf, Release: "sim", Features: h.c.o.Features(), Logger: slog.New(&listener{h.c.Trace, h.c.History, h.Name}), FS: h.fs, Identity: h.identity,
		Network: p, Plain: true, Listen: p.Listen, Certs: h.c.certs, NoAdmin: true, LogStore: h.log, StableStore: h.log, MessageLogStore: h.messages, MessageStableStore: h.messages,
		Raft: h.c.o.Raft, Exit: func(reason string) { p.exit(reason) },
	})
	if err == nil {
		p.node = n
		h.proc.Store(p)
		h.c.touch()
		err = n.Start(context.Background())
		p.up.Store(true)
	}
	if err != nil {
		h.c.t.Fatalf("start %s: %v", h.Name, err)
	}
}

// exit is how the process ends itself: as if it were killed, all data that is written being kept by the system.
func (p *process) exit(reason string) {
	p.host.c.Trace.Notef("%s gives up: %s", p.host.Name, reason)
	go p.host.crash(p, 100)
}

// ending reports whether an orderly stop is under way.
func (h *Host) ending() bool {
	p := h.proc.Load()
	return p != nil && p.ends.Load()
}

// Running reports whether the host's process runs.
func (h *Host) Running() bool { return h.proc.Load() != nil }

// Node returns the running node; nil if the process is off.
func (h *Host) Node() *node.Node {
	if p := h.proc.Load(); p != nil {
		return p.node
	}
	return nil
}

// leads reports whether the node leads the control log. One that is starting has none yet.
func (h *Host) leads() bool {
	n := h.Node()
	if n == nil {
		return false
	}
	g := n.Group()
	return g != nil && g.IsLeader()
}

// Ready reports whether the node serves clients.
func (h *Host) Ready() bool {
	n := h.Node()
	if n == nil {
		return false
	}
	ok, _ := n.Runner().Ready()
	return ok
}

// Kill ends the process as kill -9 or a loss of power does: connections are
// reset, and of the file data that was not synced keep percent survive.
func (h *Host) Kill(keep int) {
	if p := h.proc.Load(); p != nil {
		h.c.Trace.Notef("kill %s keeping %d %%", h.Name, keep)
		h.crash(p, keep)
	}
}

func (h *Host) crash(p *process, keep int) {
	if !h.proc.CompareAndSwap(p, nil) {
		return
	}
	h.c.touch()
	h.c.History.mark(death)
	p.dead.Store(true)
	h.c.lose(p)
	h.c.Net.Reset(h.Name)
	h.c.mu.Lock()
	rng := rand.New(rand.NewPCG(h.c.rng.Uint64(), 1))
	h.c.mu.Unlock()
	h.messages = h.messages.stop(func() {
		h.log = h.log.stop(func() { h.fs = h.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: keep, RNG: rng}) })
	})
	h.c.dying.Go(p.node.Kill) // what it still does reaches nobody
}

// Stop ends the process in order, as SIGTERM does.
func (h *Host) Stop() {
	h.c.t.Helper()
	p := h.proc.Load()
	if p == nil {
		return
	}
	h.c.Trace.Notef("stop %s", h.Name)
	p.ends.Store(true)
	h.c.touch()
	h.c.History.mark(death) // with other nodes down, what it owes them goes with it
	ctx, cancel := within(stopTime)
	defer cancel()
	if err := p.node.Stop(ctx); err != nil {
		h.c.t.Errorf("stop %s: %v", h.Name, err)
	}
	h.c.lose(p)
	if h.proc.CompareAndSwap(p, nil) {
		p.dead.Store(true)
		h.c.touch()
		h.c.Net.Reset(h.Name)
	}
}

// Stall makes the disk hang.
func (h *Host) Stall(on bool) {
	h.c.Trace.Notef("stall %s: %v", h.Name, on)
	h.c.touch()
	h.log.setStall(on)
	h.messages.setStall(on)
}

// Propose writes to the log through this node, within the time that a client would wait.
func (h *Host) Propose(entries ...*log.Entry) ([]fsm.Result, error) {
	p := h.proc.Load()
	if p == nil {
		return nil, errDead
	}
	for _, e := range entries {
		if e.Actor == "" {
			e.Actor, e.Surface = "operator", "cli"
		}
	}
	ctx, cancel := within(20 * time.Second)
	defer cancel()
	res, err := p.node.Group().Propose(ctx, entries...)
	if p.dead.Load() {
		return nil, errDead // its answer reaches nobody
	}
	return res, err
}

// remove ends the membership of the host of that name through this node, within the time that the node takes for it.
func (h *Host) remove(name string) (err error) {
	p := h.proc.Load()
	if p == nil {
		return errDead
	}
	defer func() {
		if v := recover(); v != nil && !p.dead.Load() { // the state is closed under a reader when the process ends
			panic(v)
		}
		if p.dead.Load() {
			err = errDead
		}
	}()
	_, err = p.node.Operator().RemoveNode(context.Background(), name)
	return err
}

func (h *Host) describe() string {
	n := h.Node()
	if n == nil {
		return h.Name + ": off"
	}
	ready, why := n.Runner().Ready()
	r := n.Router().Status()
	return fmt.Sprintf("%s: ready %v %s; %s; %s; sessions %d rows %d isolated %v fenced %v inc %d",
		h.Name, ready, why, describeLog(n.Group()), describeLog(n.Messages()), r.Sessions, r.Rows, r.Isolated, r.Fenced, r.Incarnation)
}

func describeLog(g *replication.Group) string {
	s := g.Status()
	return fmt.Sprintf("%s log: %s term %d leader %d commit %d applied %d voters %v/%v contact %v %s",
		g.Name(), s.Role, s.Term, s.Leader, s.Commit, s.Applied, s.Voters, s.NonVoters, s.LastContact, s.Reason)
}

var _ interface {
	Listen(string) (net.Listener, error)
	Dial(context.Context, string) (net.Conn, error)
} = (*process)(nil)
