package router

import (
	"sync"
	"sync/atomic"
	"time"

	"muster/fsm"
)

// ordering keeps stanzas from overtaking presence. A session's presence travels
// from its node to all others, its messages from its home; where the two are
// different nodes, the messages name the row that they follow, and wait here
// for it, a second at most: the link from the session's node may be cut.
type ordering struct {
	mu      sync.Mutex
	size    atomic.Int32
	waiting map[uint32][]delayed // by the row's origin (0: for a message only), in order of arrival
	timed   map[uint32]bool      // whether expire is to be called for an origin
}

type delayed struct {
	after dependency
	until time.Time
	call  func()
}

// met reports whether what a stanza must not overtake is here.
func (d dependency) met(r *Router) bool {
	return (d.stored == 0 || d.stored < (r.handed.Load()+1)<<fsm.OrdinalBits) && (d.node == 0 || r.hot.Reached(d.node, d.row))
}

// Bounds of waiting. Beyond them stanzas go on at once, out of order rather than lost.
const (
	maxDelayed = 4096
	maxDelay   = time.Second
)

// take runs call when the row is here. Calls for one origin run in order.
func (o *ordering) take(r *Router, after dependency, call func()) {
	if after == (dependency{}) || o.size.Load() == 0 && after.met(r) {
		call()
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.release(r, after.node)
	if len(o.waiting[after.node]) == 0 && after.met(r) || o.size.Load() >= maxDelayed {
		call()
		return
	}
	if o.waiting == nil {
		o.waiting, o.timed = map[uint32][]delayed{}, map[uint32]bool{}
	}
	o.waiting[after.node] = append(o.waiting[after.node], delayed{after, time.Now().Add(maxDelay), call})
	if o.size.Add(1); !o.timed[after.node] {
		o.timed[after.node] = true
		time.AfterFunc(maxDelay, func() { o.expire(r, after.node) })
	}
}

// reached runs what waited for rows of an origin that are here now.
func (o *ordering) reached(r *Router, node uint32) {
	if o.size.Load() == 0 {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.release(r, node)
}

// handed runs what waited for messages that actors have now.
func (o *ordering) handed(r *Router) {
	if o.size.Load() == 0 {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for node := range o.waiting {
		o.release(r, node)
	}
}

// release is reached. The caller holds mu.
func (o *ordering) release(r *Router, node uint32) {
	list := o.waiting[node]
	n := 0
	for n < len(list) && list[n].after.met(r) {
		list[n].call()
		n++
	}
	o.drop(node, n)
}

// expire runs what has waited for an origin for too long, and what waited only behind
// that. What came later has its time.
func (o *ordering) expire(r *Router, node uint32) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	for list := o.waiting[node]; len(list) > 0; list = o.waiting[node] {
		if left := list[0].until.Sub(now); left > 0 {
			time.AfterFunc(left, func() { o.expire(r, node) })
			return
		}
		list[0].call()
		o.drop(node, 1)
		o.release(r, node)
	}
	delete(o.timed, node)
}

// drop forgets the first n. The caller holds mu.
func (o *ordering) drop(node uint32, n int) {
	o.size.Add(int32(-n))
	if n == len(o.waiting[node]) {
		delete(o.waiting, node)
	} else {
		o.waiting[node] = o.waiting[node][n:]
	}
}
