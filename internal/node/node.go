// Package node puts one node together from its parts: the two logs with their
// stores and machines, hot store, router, features and edges, with the data monitor in
// charge of when the services run.
//
// Callers: cmd/musterd runs one for its process, simulations run several in
// one. Invariants: whatever a node touches outside itself (files, network,
// listeners, process exit) can be replaced through Options; the health pages
// and the administrative socket answer from Start to Stop, also while services
// wait; a node is a home for users only while its own start stands in the log.
package node

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"muster/edges/http"
	"muster/edges/xmpp"
	"muster/feature/message"
	"muster/fsm"
	"muster/fsm/cluster"
	"muster/fsm/config"
	"muster/internal/certs"
	"muster/internal/disk"
	"muster/internal/fault"
	"muster/internal/modules"
	"muster/internal/store"
	"muster/log"
	"muster/monitor"
	"muster/replication"
	"muster/replication/backup"
	"muster/replication/mesh"
	"muster/replication/pki"
	"muster/router"
	"muster/router/hot"
)

// Node is one node of a cluster.
type Node struct {
	o         Options
	logger    *slog.Logger
	identity  *pki.Identity
	directory *replication.Directory
	mesh      *mesh.Mesh
	links     *mesh.Listener
	hot       *hot.Store
	presence  *store.DB
	router    *router.Router
	certs     *certs.Source
	clients   *xmpp.Server
	alarms    *monitor.Alarms
	runner    *monitor.Runner
	servers   []*http.Server

	space     *disk.Guard                 // below FS
	spaceLive atomic.Pointer[config.Live] // nil until the state is open
	gaveUp    atomic.Bool                 // a store failed

	state   *store.DB // of the control log
	machine *fsm.Machine
	live    *config.Live
	group   *replication.Group
	keeper  *replication.Gatekeeper

	messageState   *store.DB
	messageMachine *fsm.Machine
	messages       *replication.Group
	retention      *message.Retention

	controlProgress, messageProgress progress

	health     healthCache
	services   services
	fenced     chan struct{} // a word that this node was declared down
	moved      chan struct{} // a word that a member came, went or has another address
	fresh      atomic.Bool   // this process's own start stands in the log
	routing    atomic.Bool   // the router takes changes
	removed    atomic.Bool   // this node is no member any more
	ctx        context.Context
	cancel     context.CancelFunc
	background sync.WaitGroup
	backingUp  sync.Mutex // a backup is being written
	stopped    sync.Once
}

// Open puts the node together from what its data folder holds. Nothing listens
// and nothing is applied before Start.
func Open(o Options) (*Node, error) {
	o.complete()
	n := &Node{o: o, fenced: make(chan struct{}, 1), moved: make(chan struct{}, 1)}
	n.controlProgress.name, n.messageProgress.name = replication.ControlLog, replication.MessageLog
	n.ctx, n.cancel = context.WithCancel(context.Background())
	for _, step := range []func() error{n.openIdentity, n.openCertificates, n.openSpace, n.openState, n.openMessageState, n.openRouter, n.openRetention, n.openServices} {
		if err := step(); err != nil {
			n.close()
			return nil, err
		}
	}
	return n, nil
}

func (n *Node) openIdentity() (err error) {
	if n.identity = n.o.Identity; n.identity == nil {
		if n.identity, err = pki.Load(n.o.Config.Data); err != nil {
			return err
		}
	}
	n.logger = n.o.Logger.With("node", n.identity.Name)
	n.alarms = monitor.NewAlarms(n.logger)
	return nil
}

// hotDir is the folder of presence below the data folder; the logs' are package replication's.
const hotDir = "hot"

// stateCache is the block cache of the replicated state, in bytes. Pebble takes
// its memtables (twice 4 MiB) out of it; with 8 MiB nothing was left and a
// created user cost 260 µs instead of 60.
const stateCache = 16 << 20

func (n *Node) openState() (err error) {
	fs, data := n.o.FS, n.o.Config.Data
	if err = backup.Sweep(data); err != nil {
		return err
	}
	if n.state, err = store.Open(replication.StateDir(data, replication.ControlLog), store.Options{FS: fs, Logger: n.logger, CacheBytes: stateCache, Fatal: n.storeFailed}); err != nil {
		return err
	}
	if n.machine, err = fsm.New(n.state, log.Control, modules.Control()...); err != nil {
		return err
	}
	n.live = config.NewLive(n.machine, n.identity.NodeID)
	n.spaceLive.Store(n.live)
	n.machine.OnApply(n.applied)
	n.directory = replication.NewDirectory(n.machine, n.identity.Peers)
	n.mesh = mesh.New(mesh.Config{Identity: n.identity, Listen: n.o.Config.ClusterListen, Network: n.o.Network,
		AddrOf: n.directory.AddrOf, Member: n.directory.Member, Logger: n.logger, Plain: n.o.Plain})
	n.links = n.mesh.Listen("link")
	if err = n.openPresence(fs.PathJoin(data, hotDir)); err != nil {
		return err
	}
	n.hot, err = hot.Open(hot.Options{DB: n.presence.Pebble(), Self: n.identity.NodeID})
	return err
}

// applied hands on what a record changed; it runs in the applying goroutine.
func (n *Node) applied(index uint64, changes []fsm.Change) {
	n.live.Update(changes)
	if n.retention != nil {
		n.retention.ControlChanges(changes)
	}
	if slices.ContainsFunc(changes, movesMember) {
		select {
		case n.moved <- struct{}{}:
		default:
		}
	}
	if n.routing.Load() {
		n.tell(changes)
		n.router.Changes(index, changes)
	}
	if n.runner != nil {
		n.runner.Poke()
	}
}

func (n *Node) openCertificates() (err error) {
	if n.certs = n.o.Certs; n.certs != nil {
		return nil
	}
	c := n.o.Config
	if c.Cert == "" {
		return fault.New(fault.BadRequest, "node.open", "certificates", "the bootstrap file names no certificate: set certificates.cert and certificates.key, which clients and browsers will see")
	}
	n.certs, err = certs.Open(c.Cert, c.Key, n.logger)
	return err
}

func (n *Node) openRouter() (err error) {
	n.router, err = router.New(router.Options{
		NodeID: n.identity.NodeID, State: n.machine, Live: n.live, Proposer: proposer{n}, Mesh: links{n}, Hot: n.hot,
		Messages: n.messageMachine, Keeper: keeper{n},
		Features: n.o.Features, Incarnation: n.incarnation, OnFenced: n.onFenced, Logger: n.logger,
	})
	return err
}

// Start opens the cluster port, the logs, the health pages and the
// administrative socket, and lets the data monitor start the services as soon
// as their gates open. It returns without waiting for that.
func (n *Node) Start(context.Context) error {
	if err := n.start(); err != nil {
		n.Kill()
		return err
	}
	n.logger.Info("node_started", "id", n.identity.NodeID, "cluster", n.identity.ClusterID, "release", n.o.Release)
	return nil
}

func (n *Node) start() (err error) {
	if err = n.mesh.Start(); err != nil {
		return err
	}
	if err = n.openGroups(); err != nil {
		return err
	}
	n.keeper = &replication.Gatekeeper{Group: n.group, Machine: n.machine, Mesh: n.mesh, Dir: n.o.Config.Data, Logger: n.logger}
	n.keeper.Start(n.ctx)
	if err = n.serve(); err != nil {
		return err
	}
	n.background.Go(func() { n.trackCatchUp(n.group, &n.controlProgress) })
	n.background.Go(func() { n.trackCatchUp(n.messages, &n.messageProgress) })
	for _, duty := range []func(){n.reportContact, n.declareSilent, n.keepAvailable, n.pollHealth, n.renewStart, n.keepMembers, func() { n.retention.Run(n.ctx) }, func() { n.space.Run(n.ctx) }, func() { n.certs.Run(n.ctx) }} {
		n.background.Go(duty)
	}
	n.runner.Start()
	return nil
}

// Runner returns the data monitor's runner, for tests that wait for a service.
func (n *Node) Runner() *monitor.Runner { return n.runner }

// Group returns the control log's group.
func (n *Node) Group() *replication.Group { return n.group }

// Messages returns the message log's group.
func (n *Node) Messages() *replication.Group { return n.messages }

// State returns the control log's state as this node has applied it.
func (n *Node) State() *fsm.Machine { return n.machine }

// MessageState returns the message log's state as this node has applied it.
func (n *Node) MessageState() *fsm.Machine { return n.messageMachine }

// Router returns the router.
func (n *Node) Router() *router.Router { return n.router }

// Clients returns the client edge.
func (n *Node) Clients() *xmpp.Server { return n.clients }

// Alarms returns the node's alarms.
func (n *Node) Alarms() *monitor.Alarms { return n.alarms }

// Identity returns who the node is.
func (n *Node) Identity() *pki.Identity { return n.identity }

// ReloadCertificates reads the certificate files again; a bad file leaves the old certificate in use.
func (n *Node) ReloadCertificates() error {
	err := n.certs.Reload()
	if err != nil {
		n.logger.Error("certificate_reload_failed", "error", err)
		return err
	}
	n.logger.Info("certificate_reloaded", "not_after", n.certs.Certificate().Leaf.NotAfter)
	return nil
}

// Stop ends the services in reverse order, tells the cluster that this node
// leaves, hands on the logs' leadership and closes everything.
func (n *Node) Stop(ctx context.Context) error {
	var err error
	n.stopped.Do(func() {
		n.logger.Info("node_stopping")
		n.router.Depart()
		err = n.runner.Stop(ctx)
		n.leave(ctx)
		n.cancel()
		for _, s := range n.servers {
			err = errors.Join(err, s.Stop(ctx))
		}
		n.background.Wait()
		err = errors.Join(err, n.close())
		n.logger.Info("node_stopped")
	})
	return err
}

// leave tells the cluster that this node is down and hands on what it leads, as far as that works at once.
func (n *Node) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, farewell)
	defer cancel()
	if n.fresh.Load() {
		if _, err := n.propose(ctx, cluster.DownEntry(n.identity.NodeID, n.incarnation())); err != nil {
			n.logger.Info("departure_not_told", "error", err) // the others will notice the silence
		}
	}
	n.handOn(ctx)
}

// Kill drops the node without any farewell: connections and listeners break,
// nothing is flushed that the log does not have anyway. For simulations.
func (n *Node) Kill() {
	n.stopped.Do(func() {
		n.cancel()
		now, cancel := context.WithCancel(context.Background())
		cancel() // no time for anybody
		for _, s := range n.servers {
			_ = s.Stop(now) // being killed, as all below
		}
		_ = n.mesh.Close()
		_ = n.runner.Stop(now) // no new starts; then all ends at once
		_ = n.clients.Stop(now)
		_ = n.router.Stop(now)
		ctx, cancel := context.WithTimeout(context.Background(), killTime)
		defer cancel()
		_ = n.runner.Stop(ctx)
		n.background.Wait()
		_ = n.close()
	})
}

// close releases what Open and Start opened, as far as they came.
func (n *Node) close() error {
	n.cancel()
	var errs []error
	for _, g := range []*replication.Group{n.messages, n.group} { // the messages' members are read from the control log's state
		if g != nil {
			errs = append(errs, g.Close())
		}
	}
	if n.mesh != nil {
		errs = append(errs, n.mesh.Close())
	}
	for _, s := range []*store.DB{n.presence, n.messageState, n.state} {
		if s != nil {
			errs = append(errs, s.Close())
		}
	}
	return errors.Join(errs...)
}

// onRemoved raises the alarm of a node that is no member any more; it can only be joined anew.
func (n *Node) onRemoved(reason string) {
	n.logger.Error("node_removed", "reason", reason, "remedy", "empty the data folder and join again with a new token")
	n.alarms.Raise(monitor.Alarm{Name: "node-removed", Severity: monitor.Critical, Reason: reason})
	n.removed.Store(true)
	if n.runner != nil {
		n.runner.Poke()
	}
}

// onReplaced reads again what was kept in memory of a state that a snapshot replaced.
func (n *Node) onReplaced(index uint64) {
	n.live.Reload()
	n.retention.ControlReplaced()
	if n.routing.Load() {
		n.router.Reload()
	}
	n.logger.Info("state_replaced", "index", index)
}
