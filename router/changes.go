package router

import (
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"muster/fsm"
	"muster/fsm/cluster"
	"muster/fsm/config"
	"muster/internal/jid"
	"muster/router/hot"
	"muster/router/stanza"
)

// feed carries the machine's changes, and the events of isolation between
// them, from whoever reports them to the router's own goroutine. Nothing is
// lost: beyond maxFeed changes the reporter waits.
type feed struct {
	mu    sync.Mutex
	room  *sync.Cond // on mu
	items []feedItem
	size  int
	ended bool
	wake  chan struct{}
}

type feedItem struct {
	index   uint64
	changes []fsm.Change
	call    func()
}

func newFeed() *feed {
	f := &feed{wake: make(chan struct{}, 1)}
	f.room = sync.NewCond(&f.mu)
	return f
}

func (f *feed) put(it feedItem) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.size+len(it.changes) > maxFeed && f.size > 0 && !f.ended {
		f.room.Wait()
	}
	f.items = append(f.items, it)
	f.size += len(it.changes)
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

func (f *feed) take() []feedItem {
	f.mu.Lock()
	defer f.mu.Unlock()
	items := f.items
	f.items, f.size = nil, 0
	f.room.Broadcast()
	return items
}

func (f *feed) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
	f.room.Broadcast()
}

// Changes takes in what the record at index changed; node calls it from the
// machine's OnApply. It only queues: features see changes later, in order.
func (r *Router) Changes(index uint64, changes []fsm.Change) {
	r.feed.put(feedItem{index: index, changes: changes})
}

// Reload makes the router read everything again after the state was replaced by a snapshot.
func (r *Router) Reload() {
	index := r.state.Index()
	r.feed.put(feedItem{index: index, call: func() {
		before := *r.homes.nodes.Load()
		r.homes.forgetAll()
		r.homes.reloadDomains()
		r.homes.reloadNodes()
		r.nodesChanged(before)
	}})
}

func (h *homes) forgetAll() {
	for i := range h.shards {
		sh := &h.shards[i]
		sh.mu.Lock()
		sh.version++
		clear(sh.users)
		sh.mu.Unlock()
	}
}

// dispatch hands the feed on until the router stops.
func (r *Router) dispatch() {
	for {
		select {
		case <-r.feed.wake:
		case <-r.ctx.Done():
			return
		}
		for _, it := range r.feed.take() {
			if it.call != nil {
				it.call()
			}
			r.takeChanges(it.changes)
			if it.index > r.applied.Load() {
				r.applied.Store(it.index)
			}
			for _, c := range it.changes {
				r.tellWatchers(c)
			}
		}
		r.unpark()
	}
}

func (r *Router) tellWatchers(c fsm.Change) {
	for _, fn := range r.reg.watches[c.Table] {
		r.guard("watch", func() { fn(c) })
	}
}

// guard keeps a panic of a feature's callback from ending the process.
func (r *Router) guard(what string, fn func()) {
	defer func() {
		if v := recover(); v != nil {
			r.count.panics.Add(1)
			r.logger.Error("callback_panicked", "callback", what, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
		}
	}()
	fn()
}

// takeChanges follows what the log says of nodes, homes and domains.
func (r *Router) takeChanges(changes []fsm.Change) {
	nodes, domains := false, false
	var users []jid.JID
	for _, c := range changes {
		switch c.Table {
		case cluster.NodeTable:
			nodes = true
		case config.DomainTable:
			domains = true
		case cluster.AssignmentTable:
			if user, _, _, ok := cluster.DecodeAssignment(c); ok {
				if j, err := jid.Parse(user); err == nil {
					r.homes.forget(j)
					users = append(users, j)
				}
			}
		}
	}
	if domains {
		r.homes.reloadDomains()
	}
	if nodes {
		before := *r.homes.nodes.Load()
		r.homes.reloadNodes()
		r.nodesChanged(before)
		return // looks after all users
	}
	for _, u := range users {
		if a := r.actors.get(u); a != nil {
			a.post(event{call: (*Actor).recheck})
		}
		for _, s := range r.sessions.of(u) {
			s.follow(false)
		}
	}
}

// nodesChanged follows the nodes' starts and ends.
func (r *Router) nodesChanged(before map[uint32]cluster.Node) {
	now := *r.homes.nodes.Load()
	peers := make([]uint32, 0, len(now))
	for id, n := range now {
		old := before[id]
		switch {
		case id == r.node:
			r.noteShift(old, n)
			r.selfChanged(n)
			continue
		case old.Incarnation != 0 && n.Incarnation != old.Incarnation:
			r.births.note(id)
			r.nodeOver(id, lastOver(n))
		case old.Up && !n.Up:
			r.nodeOver(id, n.Incarnation)
		}
		if n.Up && (!old.Up || n.Incarnation != old.Incarnation) {
			r.links.Expect(id)
		}
		r.noteShift(old, n)
		peers = append(peers, id)
	}
	for id := range before {
		if _, still := now[id]; !still && id != r.node {
			r.nodeOver(id, ^uint64(0))
		}
	}
	r.links.SetPeers(peers)
	r.rehome()
}

// lastOver is the last incarnation of a node that is over: this node need not have seen each of them begin.
func lastOver(n cluster.Node) uint64 {
	if n.Up {
		return n.Incarnation - 1
	}
	return n.Incarnation
}

// noteShift tells that a failover or a step of a fallback moved users of a node that is up.
func (r *Router) noteShift(old, now cluster.Node) {
	if away(old) != away(now) && old.Up && now.Up {
		r.logger.Info("homes_shifted", "home", now.ID, "away", away(now), "of", cluster.Slots)
	}
}

// away is how many slots of a node's users are with their backups.
func away(n cluster.Node) int {
	if n.Failover == nil {
		return 0
	}
	return n.Failover.Away
}

// nodeOver follows "that node is down up to that incarnation": its rows and sessions are gone, its users have another home.
func (r *Router) nodeOver(node uint32, incarnation uint64) {
	r.logger.Info("node_over", "node", node, "incarnation", incarnation)
	for _, at := range r.remote.of(node) {
		at.actor.post(event{call: func(a *Actor) { a.nodeOver(at, incarnation) }})
	}
	r.hot.DropNode(node, incarnation, r.live.Duration(settingLinger))
	r.order.reached(r, node)
	r.links.Reset(node)
}

// nodeOver ends a session whose node is down.
func (a *Actor) nodeOver(at *Attached, incarnation uint64) {
	a.arrived(at.ID)
	if a.moved || at.incarnation > incarnation {
		return
	}
	at.over = true
	a.recent.doubt()
	if !at.gone {
		a.part(at, false)
	}
	for _, p := range slices.Concat(at.missed, at.aside) {
		a.undelivered(p)
	}
	a.r.remote.remove(at)
}

// rehome makes every actor and session of this node look for its home. A
// fallback comes in many steps, each of which moves few: an actor whose home is
// still here is not woken.
func (r *Router) rehome() {
	for _, a := range r.actors.all() {
		if _, where := r.locate(a.user); where != here || r.isolated.Load() {
			a.post(event{call: (*Actor).recheck})
		}
	}
	for _, s := range r.sessions.all() {
		s.follow(false)
	}
}

// selfChanged follows what the log says of this node. A start that it asked for
// may be down by the time that its log says so: then it has to start once more.
func (r *Router) selfChanged(n cluster.Node) {
	mine := r.incarnation.Load()
	switch {
	case n.Incarnation >= mine && !n.Up:
		if r.fenced.Swap(n.Incarnation) != n.Incarnation {
			r.logger.Warn("node_fenced", "incarnation", n.Incarnation)
			r.judge()
			if r.onFenced != nil {
				go r.onFenced()
			}
		}
	case n.Incarnation > mine && n.Up:
		r.logger.Info("node_renewed", "incarnation", n.Incarnation)
		r.incarnation.Store(n.Incarnation)
		r.hot.Begin(n.Incarnation)
		for id := range *r.homes.nodes.Load() {
			if id != r.node {
				r.links.Reset(id)
			}
		}
		r.fenced.Store(0)
		r.leaderless.Store(false) // who else committed this? From now on the others send here: do not turn them away until the next report
		r.judge()
	}
}

// LeaderContact reports how long ago the control log's leader was heard. Call
// it at least twice a second. More than IsolationAfter isolates this node.
func (r *Router) LeaderContact(d time.Duration) {
	lost := d > IsolationAfter
	if r.leaderless.Swap(lost) != lost {
		r.feed.put(feedItem{call: r.judge})
	}
}

// judge decides whether this node is isolated: it hears no leader, or the
// others have declared it down. It runs on the dispatching goroutine.
func (r *Router) judge() {
	isolated := r.leaderless.Load() || r.fenced.Load() != 0
	if r.isolated.Swap(isolated) == isolated {
		return
	}
	r.graceMu.Lock()
	defer r.graceMu.Unlock()
	r.isolatedSince = time.Now()
	if isolated {
		r.logger.Warn("isolated", "leaderless", r.leaderless.Load(), "fenced", r.fenced.Load() != 0)
		r.grace = time.AfterFunc(r.live.Duration(settingGrace), r.graceOver)
	} else {
		r.logger.Info("rejoined")
		r.grace.Stop()
		for _, s := range r.sessions.all() {
			s.exemptFrom(false)
		}
	}
	for _, a := range r.actors.all() {
		a.post(event{call: (*Actor).recheck})
	}
	for _, s := range r.sessions.all() {
		s.follow(false)
	}
}

// graceOver closes the sessions that were here before the isolation, so that
// their clients try the other nodes. Those that come back reach no other: they stay.
func (r *Router) graceOver() {
	if !r.isolated.Load() {
		return
	}
	for _, s := range r.sessions.all() {
		if !s.exemptFrom(true) {
			s.terminate(stanza.StreamSystemShutdown, "this server is cut off from the cluster; please connect to another one")
		}
	}
}

// exemptFrom reports whether the session was bound during this isolation, and for false makes it an ordinary one again.
func (s *Session) exemptFrom(isolation bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.exempt
	s.exempt = s.exempt && isolation
	return was
}

// Isolated reports whether this node acts as nobody's home, and since when.
func (r *Router) Isolated() (bool, time.Time) {
	r.graceMu.Lock()
	defer r.graceMu.Unlock()
	return r.isolated.Load(), r.isolatedSince
}

// Silent returns the nodes that the log says are up and that were not heard over their link for SilentAfter.
func (r *Router) Silent() []uint32 {
	var out []uint32
	for _, p := range r.links.Peers() {
		if r.alive(p.Node) && time.Since(p.Heard) > SilentAfter && r.births.age(p.Node) > SilentAfter {
			out = append(out, p.Node)
		}
	}
	return out
}

// births are when this node learned of the others' starts. A node that is just
// back has not been heard for long, and knows nothing of what went before.
type births struct {
	last atomic.Int64 // Unix nanoseconds: the latest; every presence that a client is sent asks for it
	mu   sync.Mutex
	at   map[uint32]time.Time
}

func (b *births) note(node uint32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.at == nil {
		b.at = map[uint32]time.Time{}
	}
	now := time.Now()
	b.at[node] = now
	b.last.Store(now.UnixNano())
}

// of returns when a node's start was learned of; zero for one that ran before this node did.
func (b *births) of(node uint32) time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.at[node]
}

// age returns for how long a node has been running at least; long, for one that ran before this node did.
func (b *births) age(node uint32) time.Duration { return time.Since(b.of(node)) }

// any reports whether some node started so recently.
func (b *births) any() bool { return time.Since(time.Unix(0, b.last.Load())) < hot.RecentFor }

// lately reports whether a node started so recently that it does not know all that hot.Store.Recent would tell.
func (b *births) lately(node uint32) bool { return b.age(node) < hot.RecentFor }

// parkings are the actors with events that wait for the log.
type parkings struct {
	mu sync.Mutex
	m  map[*Actor]struct{}
}

// park makes unpark wake the actor; at once if the log is there meanwhile.
func (r *Router) park(a *Actor, epoch uint64) {
	r.parked.mu.Lock()
	r.parked.m[a] = struct{}{}
	r.parked.mu.Unlock()
	if r.applied.Load() >= epoch {
		r.unpark()
	}
}

// unpark wakes the actors that wait for the log.
func (r *Router) unpark() {
	r.parked.mu.Lock()
	waiting := r.parked.m
	if len(waiting) == 0 {
		r.parked.mu.Unlock()
		return // the map stays in use
	}
	r.parked.m = map[*Actor]struct{}{}
	r.parked.mu.Unlock()
	for a := range waiting {
		if a.insist(event{kind: eventWake}) {
			r.start(a)
		}
	}
}
