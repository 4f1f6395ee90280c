package router

import (
	"hash/maphash"
	"sync"
	"sync/atomic"

	"muster/fsm"
	"muster/fsm/cluster"
	"muster/fsm/config"
	"muster/internal/jid"
)

// homes answers who is in charge of a user without reading the store each
// time. The feed of changes keeps it current; an answer may be as old as a
// change that is still in the feed, which the epochs make harmless.
type homes struct {
	state   fsm.Reader
	nodes   atomic.Pointer[map[uint32]cluster.Node]
	domains atomic.Pointer[map[string]bool]
	seed    maphash.Seed
	shards  [16]homeShard
}

type homeShard struct {
	mu      sync.RWMutex
	version uint64 // counts invalidations: an answer read before one is not kept after it
	users   map[jid.JID]cluster.Assignment
}

func newHomes(state fsm.Reader) *homes {
	h := &homes{state: state, seed: maphash.MakeSeed()}
	for i := range h.shards {
		h.shards[i].users = map[jid.JID]cluster.Assignment{}
	}
	h.reloadNodes()
	h.reloadDomains()
	return h
}

func (h *homes) reloadNodes() {
	nodes := map[uint32]cluster.Node{}
	for _, n := range cluster.Nodes(h.state) {
		nodes[n.ID] = n
	}
	h.nodes.Store(&nodes)
}

func (h *homes) reloadDomains() {
	domains := map[string]bool{}
	for _, d := range config.Domains(h.state) {
		domains[d] = true
	}
	h.domains.Store(&domains)
}

func (h *homes) node(id uint32) (cluster.Node, bool) {
	n, ok := (*h.nodes.Load())[id]
	return n, ok
}

func (h *homes) isDomain(domain string) bool { return (*h.domains.Load())[domain] }

func (h *homes) shard(user jid.JID) *homeShard {
	return &h.shards[maphash.String(h.seed, user.Local)%uint64(len(h.shards))]
}

// assignment returns where a user belongs; false for an unknown or unassigned user.
func (h *homes) assignment(user jid.JID) (cluster.Assignment, bool) {
	sh := h.shard(user)
	sh.mu.RLock()
	a, ok := sh.users[user]
	version := sh.version
	sh.mu.RUnlock()
	if ok {
		return a, true
	}
	a, ok = cluster.AssignmentOf(h.state, user.String())
	if !ok {
		return a, false
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.version == version {
		for victim := range sh.users {
			if len(sh.users) < maxCached/len(h.shards) {
				break
			}
			delete(sh.users, victim)
		}
		sh.users[user] = a
	}
	return a, true
}

func (h *homes) forget(user jid.JID) {
	sh := h.shard(user)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.version++
	delete(sh.users, user)
}

// whereabouts is where a user's actor lives, seen from this node.
type whereabouts uint8

const (
	unknownUser whereabouts = iota // no such user, or one without a home
	nowhere                        // the user's nodes are down
	here                           // on this node; also for everybody while this node is isolated
	elsewhere
)

// locate finds a user's home.
func (r *Router) locate(user jid.JID) (cluster.Home, whereabouts) {
	if r.ctx.Err() != nil {
		return cluster.Home{}, nowhere // a timer that came too late: the state may be closed
	}
	a, ok := r.homes.assignment(user)
	if !ok {
		return cluster.Home{}, unknownUser
	}
	if r.isolated.Load() {
		return cluster.Home{Node: r.node}, here
	}
	home, ok := cluster.Resolve(a, r.homes.node)
	switch {
	case !ok:
		return cluster.Home{}, nowhere
	case home.Node == r.node:
		return home, here
	}
	return home, elsewhere
}

// HomeOf returns the effective home of a user as this node knows it; false for an unknown user or if no home is up.
func (r *Router) HomeOf(user jid.JID) (cluster.Home, bool) {
	home, where := r.locate(user.Bare())
	return home, where == here || where == elsewhere
}

// IsUser reports whether a user of that bare address exists, wherever the home is, or if there is none now.
func (r *Router) IsUser(user jid.JID) bool {
	_, ok := r.homes.assignment(user)
	return ok
}

// IsLocalDomain reports whether the cluster serves domain.
func (r *Router) IsLocalDomain(domain string) bool { return r.homes.isDomain(domain) }
