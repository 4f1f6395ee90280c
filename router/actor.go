package router

import (
	"fmt"
	"hash/maphash"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"muster/fsm"
	"muster/internal/jid"
	"muster/router/stanza"
)

// Actor is a user's one authority. Its methods are for code that runs in the
// actor: features' handlers. It has no goroutine of its own while it is idle.
type Actor struct {
	r    *Router
	user jid.JID
	busy atomic.Int32 // sessions, outstanding work and parked events: not to be evicted

	mu      sync.Mutex
	queue   []event
	stanzas int  // routed stanzas that are queued or parked
	running bool // a goroutine drains the queue
	dead    bool // evicted or moved: nothing is taken any more
	overrun bool // a call had to be refused
	idle    int  // sweeps since the last event

	// What follows belongs to the goroutine that drains the queue.
	spare    []event
	handled  int    // routed stanzas done with since the queue was taken
	last     bool   // the event being handled is the last of those taken
	follow   *Actor // to be run next on this goroutine, woken by the last event
	epoch    uint64
	moved    bool
	sessions []*Attached
	bound    uint64 // the highest number of a session
	recent   recent
	owed     []owed
	behind   []behind    // kept messages that wait for a token
	credits  []*Attached // with input to be credited
	parked   []event     // waiting for the log or for known sessions
	awaited  map[uint64]bool
	values   map[any]any
	self     Ctx       // for events that are not from an own session
	from     jid.JID   // whose stanza is being handled
	sender   *Attached // the own session whose input is being handled, or nil
	begun    bool
	tookOver time.Time // when a session came here from an earlier home
	pending  int       // proposals and other work under way
}

type eventKind uint8

const (
	eventCall   eventKind = iota // code to run
	eventRouted                  // a stanza for this user
	eventInput                   // a stanza from an own session
	eventWake                    // take up what was set aside
)

// event is one thing for an actor to do.
type event struct {
	kind  eventKind
	hops  uint8
	epoch uint64 // log index that must be applied here first
	seq   uint64 // of an input; of a stanza: the number of the kept message that it follows
	at    *Attached
	p     *stanza.Packet
	end   *unbinding // of an input: the session's end in place of a stanza
	call  func(a *Actor)
}

// unbinding is the end of a session; it waits behind the session's input.
type unbinding struct {
	clean       bool
	elsewhere   bool   // another home took leave of the session, and finished with its input:
	done        uint64 // up to here
	undelivered []*stanza.Packet
}

type posting uint8

const (
	posted  posting = iota
	refused         // the mailbox is full
	isDead          // ask for the actor again
)

// post queues an event; it never blocks.
func (a *Actor) post(e event) posting {
	p, start := a.enqueue(e)
	if start {
		a.r.start(a)
	}
	return p
}

// enqueue queues an event; it never blocks. start: the caller sees to it that the actor runs.
func (a *Actor) enqueue(e event) (p posting, start bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.dead:
		return isDead, false
	case e.kind == eventRouted && a.stanzas >= MaxMailbox:
		return refused, false
	case e.kind == eventCall && len(a.queue) >= maxCalls:
		a.overrun = true
		return refused, false
	case e.kind == eventRouted:
		a.stanzas++
	}
	a.queue = append(a.queue, e)
	a.idle = 0
	start = !a.running
	a.running = true
	return posted, start
}

// run drains the queue and ends.
func (a *Actor) run() {
	for {
		more, next := a.drain()
		switch {
		case next != nil && more:
			a.r.start(next)
		case next != nil:
			a = next
		case !more:
			return
		}
	}
}

// runHere is run on a goroutine that has other things to do: it handles what
// is queued now, and what that wakes, and leaves the rest to another goroutine.
// A message costs no goroutine that way. The caller holds no lock.
func (a *Actor) runHere() {
	for a != nil {
		more, next := a.drain()
		if more {
			a.r.start(a)
		}
		a = next
	}
}

// drain handles what is queued. more: there may be more, else the actor is
// idle now. next is the actor that the last event woke, for the caller to run.
func (a *Actor) drain() (more bool, next *Actor) {
	a.mu.Lock()
	overrun := a.overrun
	a.overrun = false
	batch := a.queue
	a.queue, a.spare = a.spare, nil
	a.mu.Unlock()
	if overrun {
		a.giveUp()
	}
	for i := range batch {
		a.last = i == len(batch)-1
		a.handle(&batch[i])
		batch[i] = event{}
	}
	a.flushCredits()
	if cap(batch) <= keepEvents {
		a.spare = batch[:0]
	}
	next, a.follow, a.last = a.follow, nil, false
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stanzas -= a.handled
	a.handled = 0
	a.running = len(a.queue) > 0 || a.overrun
	return a.running, next
}

// wakes runs an actor that has just been posted to: after this event on the
// same goroutine, or on one of its own where there is no such event.
func (a *Actor) wakes(woken *Actor) {
	if a != nil && a.last && a.follow == nil {
		a.follow = woken
		return
	}
	woken.r.start(woken)
}

// start has an actor run: by a worker that is idle, whose stack has grown already, or else by a goroutine of its own.
func (r *Router) start(a *Actor) {
	select {
	case r.runnable <- a:
	default:
		go a.run()
	}
}

// work runs actors until the router stops.
func (r *Router) work() {
	for {
		select {
		case a := <-r.runnable:
			a.run()
		case <-r.ctx.Done():
			return
		}
	}
}

// handle runs one event. A panic ends the session that caused it; the actor goes on.
func (a *Actor) handle(e *event) {
	defer a.recovered(e)
	if early := e.epoch > a.r.applied.Load(); !a.moved && (early || a.mustWait(e)) {
		a.park(*e, early)
		return
	}
	switch e.kind {
	case eventCall:
		e.call(a)
	case eventInput:
		a.input(e)
	case eventWake:
		a.wake()
	case eventRouted:
		if a.followsBehind(e) {
			return
		}
		a.handled++
		if a.moved {
			a.r.forward(e.p, e.hops, e.seq)
			return
		}
		a.from = e.p.From
		a.receive(e.p)
	}
}

func (a *Actor) recovered(e *event) {
	v := recover()
	if v == nil {
		return
	}
	a.r.count.panics.Add(1)
	a.r.logger.Error("actor_panicked", "user", a.user, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	switch {
	case e.at != nil:
		a.r.endAttached(e.at, stanza.StreamInternalServerError, "internal error")
	case e.p != nil:
		a.r.bounce(e.p, stanza.NewError(stanza.InternalServerError, ""))
	}
}

// mustWait reports whether an event comes too early: the user's known sessions
// are not attached yet, or what came before it waits.
func (a *Actor) mustWait(e *event) bool {
	return e.kind == eventRouted && a.awaited != nil ||
		len(a.parked) > 0 && (e.kind == eventRouted || e.kind == eventCall && !a.begun)
}

// park sets an event aside until wake. early: its sender knows more of the log than this node does.
func (a *Actor) park(e event, early bool) {
	first := len(a.parked) == 0
	a.parked = append(a.parked, e)
	if first {
		a.busy.Add(1)
	}
	if early {
		a.r.park(a, e.epoch)
	}
}

// begin is an actor's first event. A user who has rows has sessions somewhere
// that are about to be attached here; stanzas wait for them a moment.
func (a *Actor) begin() {
	a.begun = true
	a.recheck()
	if a.moved || a.ReadOnly() {
		return
	}
	for _, row := range a.r.hot.Heads(a.user) {
		if n, ok := a.r.homes.node(row.Node); ok && n.Up && n.Incarnation == row.Incarnation {
			if a.awaited == nil {
				a.awaited = map[uint64]bool{}
			}
			a.awaited[row.Session] = true
		}
	}
	if a.awaited != nil {
		a.busy.Add(1)
		time.AfterFunc(settleFor, func() { a.post(event{call: func(a *Actor) { a.busy.Add(-1); a.settled() }}) })
	}
}

// arrived notes that a session that was awaited is attached, or will never be.
func (a *Actor) arrived(session uint64) {
	if a.awaited == nil {
		return
	}
	if delete(a.awaited, session); len(a.awaited) == 0 {
		a.settled()
	}
}

func (a *Actor) settled() {
	if a.awaited != nil {
		a.awaited = nil
		a.wake()
	}
}

// wake takes up what was set aside; what must still wait is parked again.
func (a *Actor) wake() {
	events := a.parked
	a.parked = nil
	if len(events) > 0 {
		a.busy.Add(-1)
	}
	for i := range events {
		a.handle(&events[i])
	}
}

// giveUp ends all sessions: posts were lost, so what the clients know would be wrong.
func (a *Actor) giveUp() {
	a.r.count.overruns.Add(1)
	a.r.logger.Error("actor_overrun", "user", a.user, "limit", maxCalls)
	for _, at := range a.Sessions() {
		a.r.endAttached(at, stanza.StreamResourceConstraint, "too many changes at once")
	}
}

// recheck looks whether this node is still the user's home.
func (a *Actor) recheck() {
	if a.moved || !a.begun {
		return
	}
	home, where := a.r.locate(a.user)
	if where == here {
		a.epoch = home.Epoch
		if a.ReadOnly() {
			a.dropRemote()
		}
		return
	}
	a.leave()
}

// leave ends the actor without ending its sessions: their nodes attach them to the new home.
func (a *Actor) leave() {
	a.mu.Lock()
	a.dead = true
	a.mu.Unlock()
	a.moved = true
	a.r.actors.remove(a)
	sessions := a.sessions
	a.sessions, a.values = nil, nil
	for _, at := range sessions {
		a.r.detach(at)
	}
	a.awaited = nil
	a.passOwed()
	a.leaveBehind()
	a.wake()
}

// dropRemote lets go of the sessions of other nodes: an isolated node answers
// for its own only. The links may stand all the same, and the log need not say
// that this node is down: the sessions' nodes try until it is, or is itself again.
func (a *Actor) dropRemote() {
	for _, at := range a.Sessions() {
		if at.session == nil {
			a.remove(at)
			a.r.detach(at)
		}
	}
}

// User returns the bare address.
func (a *Actor) User() jid.JID { return a.user }

// Router returns the router.
func (a *Actor) Router() *Router { return a.r }

// State returns the replicated state.
func (a *Actor) State() fsm.Reader { return a.r.state }

// Messages returns the message log's state; nil if no message is kept.
func (a *Actor) Messages() fsm.Reader { return a.r.messages }

// Sessions returns the attached sessions in order of binding; they are a copy.
func (a *Actor) Sessions() []*Attached { return append([]*Attached(nil), a.sessions...) }

// SessionByResource returns the attached session of that resource, or nil.
func (a *Actor) SessionByResource(resource string) *Attached {
	for _, at := range a.sessions {
		if at.JID.Resource == resource {
			return at
		}
	}
	return nil
}

// ReadOnly reports whether this node is isolated: changes and sends must be refused with NoQuorum.
func (a *Actor) ReadOnly() bool { return a.r.isolated.Load() }

// Value returns the actor's value of a feature, made at first use; it is dropped with the actor.
func Value[T any](a *Actor, key any, make func() *T) *T {
	if v, ok := a.values[key].(*T); ok {
		return v
	}
	if a.values == nil {
		a.values = map[any]any{}
	}
	v := make()
	a.values[key] = v
	return v
}

// actors is the set of active users of this node.
type actors struct {
	seed   maphash.Seed
	shards [64]struct {
		mu sync.RWMutex
		m  map[jid.JID]*Actor
	}
	count atomic.Int64
}

func newActors() *actors {
	as := &actors{seed: maphash.MakeSeed()}
	for i := range as.shards {
		as.shards[i].m = map[jid.JID]*Actor{}
	}
	return as
}

func (as *actors) index(user jid.JID) uint64 {
	return maphash.String(as.seed, user.Local) % uint64(len(as.shards))
}

func (as *actors) get(user jid.JID) *Actor {
	sh := &as.shards[as.index(user)]
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	return sh.m[user]
}

// need returns the user's actor, made if need be; a new one begins when the log
// is applied here up to epoch.
func (as *actors) need(r *Router, user jid.JID, epoch uint64) *Actor {
	if a := as.get(user); a != nil {
		return a
	}
	sh := &as.shards[as.index(user)]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if a := sh.m[user]; a != nil {
		return a
	}
	a := &Actor{r: r, user: user}
	a.self.Actor = a
	sh.m[user] = a
	as.count.Add(1)
	a.post(event{call: (*Actor).begin, epoch: epoch})
	return a
}

func (as *actors) remove(a *Actor) {
	sh := &as.shards[as.index(a.user)]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.m[a.user] == a {
		delete(sh.m, a.user)
		as.count.Add(-1)
	}
}

func (as *actors) all() []*Actor {
	var out []*Actor
	for i := range as.shards {
		sh := &as.shards[i]
		sh.mu.RLock()
		for _, a := range sh.m {
			out = append(out, a)
		}
		sh.mu.RUnlock()
	}
	return out
}

// sweep evicts actors that have no session and nothing to do, and were so at the last sweep too.
func (as *actors) sweep() {
	for _, a := range as.all() {
		a.mu.Lock()
		a.idle++
		evict := a.idle > 2 && !a.running && len(a.queue) == 0 && a.busy.Load() == 0
		if evict {
			a.dead = true
		}
		a.mu.Unlock()
		if evict {
			as.remove(a)
		}
	}
}
