// Package replication is how facts spread: it runs the Raft groups under the
// machines of package fsm, and all that belongs to being a member of a
// cluster: joining, membership, catching up, health, certificates.
//
// Callers: internal/node opens one Group for each log; features and edges propose
// through it; monitor and the health pages read its Status and Health.
//
// Invariants are in DESIGN.md of this folder.
package replication

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"muster/internal/fault"
	"muster/internal/store"
)

// Group is one replicated log and its machine on this node.
type Group struct {
	cfg      Config
	raft     *raft.Raft
	trans    *heardTransport
	layer    *streamLayer
	log      *guardedLog
	files    io.Closer // of log; nil with injected stores
	alone    bool      // Exit ends the process
	snaps    *snapStore
	watch    *watchdog
	trouble  *trouble
	progress progress
	digests  digestRing
	rpc      *rpcPeers
	queue    chan *proposal
	slots    chan struct{}

	opened    time.Time
	ready     atomic.Bool  // leader, and all entries of earlier leaders are applied
	verified  atomic.Int64 // when leadership was last proven, in nanoseconds since opened
	removed   atomic.Bool
	wasMember atomic.Bool // the node table held this node at some time
	exited    atomic.Bool
	diskBytes atomic.Int64 // of Dir, as last measured

	mu         sync.Mutex
	leadership []func(bool)
	leaderCtx  context.Context // ends when another leader is known, or none
	leaderEnd  context.CancelFunc
	peers      map[uint32]peerState // what the leader knows of the others
	known      map[uint32]bool      // members at the last look
	holding    map[uint32]time.Time // removals that Config.Hold delays, since when
	leaving    map[uint32]time.Time // nodes that shall have no vote, until when
	narrow     time.Time            // since when the disk lacks room; zero while it does not
	silent     map[uint32]time.Time // members that Health does not reach, since when

	ctx    context.Context
	cancel context.CancelFunc
	stop   chan struct{} // closed when Raft has stopped, or is given up
	done   sync.WaitGroup
	closed sync.Once
}

// Open starts the group from what Dir holds: log, snapshots, and the store
// under cfg.Machine. A node that was just initialised or has just joined finds
// its first records there. A damaged log is refused with a fault that says what to do.
func Open(cfg Config) (*Group, error) {
	alone := cfg.Exit == nil
	cfg.fill()
	g := &Group{cfg: cfg, alone: alone, opened: time.Now(), queue: make(chan *proposal, maxQueued), slots: make(chan struct{}, maxInFlight),
		peers: map[uint32]peerState{}, silent: map[uint32]time.Time{}, holding: map[uint32]time.Time{}, leaving: map[uint32]time.Time{}, stop: make(chan struct{})}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	g.leaderCtx, g.leaderEnd = context.WithCancel(g.ctx)
	g.trouble = &trouble{tell: g.tellTrouble}
	g.watch = &watchdog{warn: cfg.Timing.StallWarn, limit: cfg.Timing.StallExit, trouble: g.trouble, exit: g.exit}
	if err := g.openStores(); err != nil {
		g.cancel()
		return nil, err
	}
	if err := g.start(); err != nil {
		g.cancel()
		g.closeStores()
		return nil, err
	}
	return g, nil
}

func (cfg *Config) fill() {
	cfg.Timing.fill()
	if cfg.MaxVoters == 0 {
		cfg.MaxVoters = DefaultVoters
	}
	if cfg.Batch == nil {
		cfg.Batch = func() Batch { return DefaultBatch }
	}
	if cfg.FS == nil {
		cfg.FS = vfs.Default
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Exit == nil {
		cfg.Exit = exitProcess
	}
}

func (g *Group) tellTrouble(reason string) {
	if reason != "" {
		g.cfg.Logger.Error("replication_unhealthy", "log", g.cfg.Name, "reason", reason)
	}
	if g.cfg.OnUnhealthy != nil {
		g.cfg.OnUnhealthy(reason)
	}
}

// exit ends the process, once.
func (g *Group) exit(reason string) {
	if g.exited.CompareAndSwap(false, true) {
		g.cfg.Logger.Error("replication_giving_up", "log", g.cfg.Name, "reason", reason)
		g.cfg.Exit(reason)
	}
}

// storeFailed is what the journal comes upon outside of any call.
func (g *Group) storeFailed(f *fault.Error) {
	if g.exit(fault.Public(f)); g.alone {
		select {} // the process is ending, and the journal must not go on meanwhile
	}
}

// openStores opens log, votes and snapshots, and checks that they fit the state.
func (g *Group) openStores() error {
	fs, dir := g.cfg.FS, g.cfg.Dir
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return &fault.Error{Code: fault.Internal, Op: "replication.open", Subject: dir, Text: "the data folder cannot be written", Err: err}
	}
	g.log = &guardedLog{logs: g.cfg.LogStore, stable: g.cfg.StableStore, watch: g.watch, exit: g.exit, where: dir, room: g.cfg.room, relieve: g.cfg.Relieve}
	if g.cfg.LogStore == nil {
		own, err := openLogStore(fs, dir, g.cfg.Name, g.cfg.Logger, g.storeFailed)
		if err != nil {
			return err
		}
		g.files, g.log.logs, g.log.stable = own, own, own
	}
	err := g.checkStores()
	if err != nil {
		g.closeStores()
	}
	return err
}

func (g *Group) checkStores() (err error) {
	if g.snaps, err = openSnapStore(g.cfg.FS, g.cfg.FS.PathJoin(g.cfg.Dir, "snapshots"), g.cfg.Logger); err != nil {
		return err
	}
	g.snaps.room = g.cfg.room
	if err := g.log.scan(g.snaps.covered()); err != nil {
		return err
	}
	last, err := g.log.LastIndex()
	if err != nil {
		return fault.Wrap(err, fault.Internal, "replication.open", g.cfg.Dir)
	}
	state := g.cfg.Machine.Applied()
	if snap := g.snaps.latest(); snap != nil {
		last = max(last, snap.Index)
		if state < snap.StateIndex {
			g.cfg.Logger.Warn("state_behind_snapshot", "log", g.cfg.Name, "state", state, "snapshot", snap.StateIndex)
			if err := g.restore(snap.ID); err != nil {
				return err
			}
		}
	}
	if state = g.cfg.Machine.Applied(); state > last {
		return fault.New(fault.Internal, "replication.open", g.cfg.Dir, fmt.Sprintf(
			"the state is at index %d, the log ends at %d: the log is missing; %s", state, last, store.Remedy))
	}
	g.progress.advance(state)
	return g.syncFolders()
}

// syncFolders makes the folders durable that were just made: a snapshot that
// vanishes with its folder in a crash would leave a log that was cut for it.
func (g *Group) syncFolders() error {
	fs := g.cfg.FS
	for _, dir := range []string{g.cfg.Dir, fs.PathDir(g.cfg.Dir)} {
		if err := syncDir(fs, dir); err != nil {
			return fault.Wrap(err, fault.Internal, "replication.open", dir)
		}
	}
	return nil
}

const logFile = "log.db" // the control log and its votes, in Dir

// maxPool is how many idle connections to each peer are kept: a leader uses
// two. After a peer's restart each of them fails once, which costs a candidate a round.
const maxPool = 2

// noPipeline has one request at a time under way to each follower. The library's
// pipeline (v1.7.3) deadlocks when a follower refuses a request, or the
// connection breaks, while two more are being sent: its reader is gone, the
// sender waits for it, and that follower gets no records until another leads
// (hashicorp/raft issue 612).
// Records gather meanwhile, so that one request carries up to maxAppend.
const noPipeline = 1

// start runs Raft and the group's own loops.
func (g *Group) start() error {
	cached, err := raft.NewLogCache(logCache, g.log)
	if err != nil {
		return fault.Wrap(err, fault.Internal, "replication.open", g.cfg.Name)
	}
	rc := g.cfg.raftConfig()
	g.layer = newStreamLayer(g.cfg.Mesh, "raft/"+g.cfg.Name, g.cfg.NodeID, g.dialFailed)
	g.trans = newHeardTransport(g.opened, raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: g.layer, MaxPool: maxPool, Timeout: g.cfg.Timing.RPC, Logger: rc.Logger, MsgpackUseNewTimeFormat: true,
		MaxRPCsInFlight: noPipeline}))
	if g.raft, err = raft.NewRaft(rc, adapter{g}, cached, g.log, g.snaps, voteTransport{g.trans, rc.LocalID}); err != nil {
		_ = g.trans.Close()
		return &fault.Error{Code: fault.Internal, Op: "replication.open", Subject: g.cfg.Name, Text: "the log cannot be started", Err: err}
	}
	g.trans.raft.Store(g.raft)
	g.rpc = newRPCPeers(g.cfg.Mesh, "rpc/"+g.cfg.Name)
	g.rpc.handle("propose", g.servePropose)
	g.rpc.handle("read-index", func(ctx context.Context, _ uint32, _ []byte) ([]byte, error) {
		index, err := g.leaderIndex(ctx)
		return be64(index), err
	})
	g.rpc.handle("status", g.serveStatus)
	g.rpc.handle("digests", g.serveDigests)
	g.rpc.handle("release", g.serveRelease)
	for _, loop := range []func(){g.dispatch, g.followLeadership, g.followLeaders, g.rpcServe, g.reconcileLoop, g.housekeep} {
		g.done.Add(1)
		go func() {
			defer g.done.Done()
			loop()
		}()
	}
	return nil
}

// dialFailed notices when a member tells this node that it was removed.
func (g *Group) dialFailed(err error) {
	if fault.Is(err, fault.Gone) {
		g.setRemoved(fault.Public(err))
	}
}

func (g *Group) setRemoved(reason string) {
	if !g.removed.CompareAndSwap(false, true) {
		return
	}
	g.trouble.set("removed", reason)
	if g.cfg.OnRemoved != nil {
		g.cfg.OnRemoved(reason)
	}
}

const closeWait = 5 * time.Second // for Raft to stop; a stalled disk must not keep the process

// Close stops the group. The caller closes machine store and mesh afterwards.
func (g *Group) Close() error {
	g.closed.Do(func() {
		g.cancel()
		_ = g.within(closeWait, g.raft.Shutdown())
		close(g.stop)
		g.rpc.close()
		_ = g.trans.Close()
		g.done.Wait()
		g.closeStores()
	})
	return nil
}

func (g *Group) closeStores() {
	if g.files != nil {
		_ = g.files.Close()
	}
}

var errWait = errors.New("timed out")

// within runs a wait on the Raft library under a timer of our own. The library
// forgets some futures when it shuts down; stop ends those.
func (g *Group) within(d time.Duration, f raft.Future) error {
	endWith(f, g.stop)
	out := make(chan error, 1)
	go func() { out <- f.Error() }()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case err := <-out:
		return err
	case <-t.C:
		return errWait
	}
}

// endWith makes f's Error return when stop is closed. All futures have the
// field that does it, but the library sets it on some only, and has no function for it.
func endWith(f raft.Future, stop chan struct{}) {
	v := reflect.ValueOf(f)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		return
	}
	field := v.Elem().FieldByName("ShutdownCh")
	if field.IsValid() && field.CanSet() && field.Type() == reflect.TypeFor[chan struct{}]() && field.IsNil() {
		field.Set(reflect.ValueOf(stop))
	}
}

// Name returns which log the group replicates: Config.Name.
func (g *Group) Name() string { return g.cfg.Name }

// Applied returns the index of the last record that this node's machine applied.
func (g *Group) Applied() uint64 { return g.cfg.Machine.Applied() }

// Commit returns the highest index that this node knows to be committed.
func (g *Group) Commit() uint64 { return g.raft.CommitIndex() }

// Leader returns the leader's node id, and 0 if none is known.
func (g *Group) Leader() uint32 {
	_, id := g.raft.LeaderWithID()
	return nodeOf(id)
}

// IsLeader reports whether this node leads and has applied all entries of earlier leaders.
func (g *Group) IsLeader() bool { return g.ready.Load() && g.raft.State() == raft.Leader }

// LeaderContact returns how long ago this node last heard the leader or, as the
// leader, last proved that it is; 0 on a leader with a fresh lease. A leader that
// was just elected, or is one no more, counts from whichever came last.
func (g *Group) LeaderContact() time.Duration {
	age := time.Since(g.opened) - time.Duration(g.verified.Load())
	if last := g.raft.LastContact(); !last.IsZero() {
		age = min(age, time.Since(last))
	}
	if g.raft.State() == raft.Leader && age <= 2*g.cfg.Timing.VerifyStep {
		return 0
	}
	return age
}

// WaitIndex returns when this node has applied index.
func (g *Group) WaitIndex(ctx context.Context, index uint64) error {
	if err := g.progress.wait(ctx, index); err != nil {
		return &fault.Error{Code: fault.Timeout, Op: "replication.wait", Subject: fmt.Sprint(index),
			Text: "this node has not caught up in time", Err: err}
	}
	return nil
}

// TransferLeadership asks a caught-up voter to take over, for an orderly stop.
func (g *Group) TransferLeadership(ctx context.Context) error {
	if g.raft.State() != raft.Leader {
		return nil
	}
	f := g.raft.LeadershipTransfer()
	return fault.Wrap(g.within(g.remaining(ctx, g.cfg.Timing.NoQuorum), f), fault.Unavailable, "replication.transfer", g.cfg.Name)
}

// Snapshot takes a snapshot now and cuts the log behind it.
func (g *Group) Snapshot(ctx context.Context) error {
	err := g.within(g.remaining(ctx, time.Minute), g.raft.Snapshot())
	if errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return nil
	}
	return fault.Wrap(err, fault.Unavailable, "replication.snapshot", g.cfg.Name)
}

// remaining is the shorter of the context's time and most.
func (g *Group) remaining(ctx context.Context, most time.Duration) time.Duration {
	if d, ok := ctx.Deadline(); ok {
		return max(min(most, time.Until(d)), 0)
	}
	return most
}
