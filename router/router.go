// Package router decides who gets what: it holds the sessions of this node,
// one actor for each active user whose home this node is, and the links to the
// other nodes. Edges bind sessions and hand in stanzas, features hang their
// behaviour on the actors, package node starts it and feeds it the log.
//
// Invariants (DESIGN.md in this folder says more): all that concerns one user
// happens in that user's actor, one event after the other; a user has at most
// one actor in the cluster, on the effective home node, and whoever acts or
// routes with an outdated epoch is refused. Nothing that was accepted vanishes:
// a message reaches a session, or a feature takes it, or its sender gets one
// error. Every queue has a bound.
package router

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"muster/fsm"
	"muster/fsm/config"
	"muster/internal/fault"
	"muster/log"
	"muster/router/hot"
	"muster/router/link"
	"muster/router/stanza"
)

// Proposer writes to the control log. replication.Group is one.
type Proposer interface {
	// Propose returns a result for each entry once it is applied here, or an
	// error if the outcome is unknown or nothing was written.
	Propose(ctx context.Context, entries ...*log.Entry) ([]fsm.Result, error)
}

// Mesh carries the node links: streams between authenticated nodes.
type Mesh interface {
	// Dial opens a stream to a node.
	Dial(ctx context.Context, node uint32) (net.Conn, error)
	// Accept waits for a stream that another node opened; an error ends the accepting.
	Accept() (net.Conn, uint32, error)
}

// Options say what a router works with. All fields without a remark are required.
type Options struct {
	NodeID      uint32
	State       fsm.Reader
	Live        *config.Live
	Proposer    Proposer
	Mesh        Mesh // nil: a node alone
	Hot         *hot.Store
	Features    []Feature
	Messages    fsm.Reader    // state of the message log; nil: no message is kept
	Keeper      Proposer      // writes to the message log; with Messages
	Incarnation func() uint64 // of this node as its own log says; 0: not started yet
	OnFenced    func()        // called when this node was declared down while it lives: it must start anew; may be nil
	Logger      *slog.Logger  // nil: slog.Default()
}

// Router is one node's router.
type Router struct {
	node     uint32
	state    fsm.Reader
	live     *config.Live
	proposer Proposer
	messages fsm.Reader
	keeper   Proposer
	hot      *hot.Store
	reg      *Registry
	links    *link.Manager
	logger   *slog.Logger
	onFenced func()
	startInc func() uint64

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	homes    *homes
	actors   *actors
	sessions *sessions
	remote   remotes
	feed     *feed
	stored   *feed // of the message log
	parked   parkings
	births   births
	greeted  greetings
	order    ordering
	writes   *writes
	runnable chan *Actor // for workers
	tokens   tokens
	count    counters

	nextSession atomic.Uint64
	incarnation atomic.Uint64
	applied     atomic.Uint64 // log index up to which homes are current
	rehomed     atomic.Int64  // when a session of this node was last attached anew, or asked for that, in Unix nanoseconds
	handed      atomic.Uint64 // message log index up to which messages were handed to actors
	stopping    atomic.Bool
	leaderless  atomic.Bool   // the control leader was not heard for IsolationAfter
	fenced      atomic.Uint64 // incarnation of this node that the log says is down, and that no later start has followed; 0: none
	isolated    atomic.Bool   // one of the two
	departing   atomic.Bool   // this node is about to stop

	graceMu       sync.Mutex
	grace         *time.Timer
	isolatedSince time.Time
}

var _ link.Handler = (*Router)(nil)

// New sets up a router and its features. Start begins to serve.
func New(o Options) (*Router, error) {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	r := &Router{
		node: o.NodeID, state: o.State, live: o.Live, proposer: o.Proposer, messages: o.Messages, keeper: o.Keeper, hot: o.Hot, logger: o.Logger,
		onFenced: o.OnFenced, startInc: o.Incarnation, homes: newHomes(o.State), actors: newActors(), sessions: newSessions(),
		remote: remotes{m: map[uint64]*Attached{}}, feed: newFeed(), stored: newFeed(), parked: parkings{m: map[*Actor]struct{}{}},
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.writes, r.runnable = newWrites(r), make(chan *Actor)
	r.links = link.New(o.NodeID, o.Mesh, r, o.Logger)
	r.reg = newRegistry(r)
	var first [8]byte
	_, _ = rand.Read(first[:]) // never fails
	r.nextSession.Store(binary.BigEndian.Uint64(first[:]))
	for _, f := range o.Features {
		if err := f.Setup(r.reg); err != nil {
			return nil, fault.Wrap(err, fault.CodeOf(err), "router.setup", f.Name())
		}
	}
	o.Hot.OnChange(func(c hot.Change) {
		r.count.rowChanges.Add(1)
		for _, fn := range r.reg.onRow {
			r.guard("row", func() { fn(c) })
		}
	})
	return r, nil
}

// Start opens the links and serves. This node's start must have been applied (Incarnation is not 0).
func (r *Router) Start() error {
	inc := r.startInc()
	if inc == 0 {
		return fault.New(fault.Unavailable, "router.start", "", "the start of this node is not in the log yet")
	}
	r.incarnation.Store(inc)
	r.applied.Store(r.state.Index())
	if r.messages != nil {
		r.handed.Store(r.messages.Index())
	}
	r.homes.forgetAll()
	r.homes.reloadDomains()
	r.homes.reloadNodes()
	r.hot.Begin(inc)
	r.hot.Retain(func(node uint32, incarnation uint64) bool {
		n, ok := r.homes.node(node)
		return ok && n.Up && n.Incarnation == incarnation
	})
	r.links.Start()
	for range workersPerCPU * runtime.GOMAXPROCS(0) {
		r.wg.Go(r.work)
	}
	r.wg.Go(r.writes.run)
	r.wg.Go(r.dispatch)
	r.wg.Go(r.dispatchStored)
	r.wg.Go(r.sweep)
	r.feed.put(feedItem{call: func() { r.nodesChanged(*r.homes.nodes.Load()) }})
	return nil
}

// Depart says that this node is about to stop: from now on its sessions on record may be left to the other nodes (Session.Suspend).
func (r *Router) Depart() { r.departing.Store(true) }

// Stop ends all local sessions with system-shutdown, waits until ctx ends for them to leave, and closes the links.
// The hot store is closed too; its database may be closed after that.
func (r *Router) Stop(ctx context.Context) error {
	if r.stopping.Swap(true) {
		return nil
	}
	for _, s := range r.sessions.all() {
		if !s.suspend() {
			s.terminate(stanza.StreamSystemShutdown, "")
		}
	}
	tick := time.NewTicker(stopPoll)
	defer tick.Stop()
	for r.sessions.count() > 0 && ctx.Err() == nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	for _, fn := range r.reg.onStop {
		r.guard("stop", func() { fn(ctx) })
	}
	r.cancel()
	r.feed.end()
	r.stored.end()
	r.graceMu.Lock()
	if r.grace != nil {
		r.grace.Stop()
	}
	r.graceMu.Unlock()
	r.links.Stop()
	r.wg.Wait()
	r.hot.Close()
	return nil
}

// sweep evicts idle actors and forgets ended sessions that found no home.
func (r *Router) sweep() {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-r.ctx.Done():
			return
		}
		r.actors.sweep()
		for _, s := range r.sessions.all() {
			s.expire()
		}
	}
}

// expire forgets a session that ended long ago and that no home could take leave of.
func (s *Session) expire() {
	s.mu.Lock()
	over := s.ending != nil && time.Since(s.ended) > closingFor && s.state != finished
	var undelivered []*stanza.Packet
	if over {
		undelivered = s.ending.undelivered
	}
	s.mu.Unlock()
	if over {
		s.finish()
		for _, p := range undelivered {
			s.r.unreachable(p)
		}
	}
}

// StreamFeatures returns the stream features that are sent after authentication, canonical.
func (r *Router) StreamFeatures() []byte { return r.reg.streamFeatures() }

// BindFeatures returns the namespaces of the features that a client can turn on while it binds (XEP-0386), sorted.
func (r *Router) BindFeatures() []string { return r.reg.bindFeatures() }

// Registry returns what the features registered, for those that describe it (service discovery).
func (r *Router) Registry() *Registry { return r.reg }

// Hot returns the hot store.
func (r *Router) Hot() *hot.Store { return r.hot }

// Live returns the settings.
func (r *Router) Live() *config.Live { return r.live }

// Node returns this node's id.
func (r *Router) Node() uint32 { return r.node }

// State returns the replicated state.
func (r *Router) State() fsm.Reader { return r.state }

// Messages returns the message log's state; nil if no message is kept.
func (r *Router) Messages() fsm.Reader { return r.messages }
