package presence

import (
	"maps"
	"slices"
	"sync"
	"time"

	"muster/feature/blocking/state"
	rosterstate "muster/feature/roster/state"
	"muster/fsm"
	"muster/fsm/user"
	"muster/internal/jid"
	"muster/router/hot"
)

// maxCached bounds the watchers that all cached audiences of a node hold
// together; at about 80 bytes each that is 40 MiB.
const maxCached = 500_000

// source is where audiences are read from.
type source = fsm.Reader

// circle is who watches one subject.
type circle struct {
	watchers []jid.JID // bare; without those blocked as a whole
	blocked  []jid.JID // the subject's blocking list, for single resources of watchers
}

// audience knows the watchers of the subjects whose presence changed lately.
//
// hold is taken for reading while a row's change is posted to watchers, and for
// writing while a circle is forgotten. So a change of a subscription is posted
// either after a row's change that was told to the old circle, or before one
// that is told to the new circle: a watcher who lost a subject never hears of
// it after the parting unavailable.
type audience struct {
	hold   sync.RWMutex
	source func() source

	mu      sync.Mutex
	cached  map[jid.JID]*circle
	total   int
	parted  map[jid.JID][]parting
	cleaned time.Time
}

// parting is an unavailable that was told to a circle a moment ago.
type parting struct {
	resource string
	at       time.Time
	told     *circle
}

// memory is for how long partings are remembered: longer than the change feed and an actor lag behind the log.
const memory = 5 * time.Second

func newAudience(from func() source) *audience {
	return &audience{source: from, cached: map[jid.JID]*circle{}, parted: map[jid.JID][]parting{}}
}

// part notes that a circle is told of a resource's end.
func (a *audience) part(subject jid.JID, resource string, told *circle) {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if now.Sub(a.cleaned) > memory {
		a.cleaned = now
		maps.DeleteFunc(a.parted, func(_ jid.JID, list []parting) bool { return now.Sub(list[len(list)-1].at) > memory })
	}
	a.parted[subject] = append(a.parted[subject], parting{resource, now, told})
}

// unheard returns which of the resources that ended a moment ago the watcher
// was not told of: it had lost the subject in the state already, but not yet in the change feed.
func (a *audience) unheard(subject, watcher jid.JID, gone []hot.Gone) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []string
	for _, g := range gone {
		heard := slices.ContainsFunc(a.parted[subject], func(p parting) bool {
			return p.resource == g.Resource && slices.Contains(p.told.watchers, watcher)
		})
		if !heard && time.Since(g.At) < memory {
			out = append(out, g.Resource)
		}
	}
	return out
}

// tell calls fn with the subject's circle, which stays valid meanwhile.
func (a *audience) tell(subject jid.JID, fn func(*circle)) {
	a.hold.RLock()
	defer a.hold.RUnlock()
	fn(a.of(subject))
}

func (a *audience) of(subject jid.JID) *circle {
	a.mu.Lock()
	c := a.cached[subject]
	a.mu.Unlock()
	if c != nil {
		return c
	}
	c = load(a.source(), subject)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cached[subject] == nil {
		a.makeRoom(len(c.watchers) + 1)
		a.cached[subject] = c
		a.total += len(c.watchers) + 1
	}
	return c
}

// makeRoom drops arbitrary circles until n more fit.
func (a *audience) makeRoom(n int) {
	for subject, c := range a.cached {
		if a.total+n <= maxCached {
			return
		}
		delete(a.cached, subject)
		a.total -= len(c.watchers) + 1
	}
}

// forget drops the subject's circle, after those who are being told have been told.
func (a *audience) forget(subject jid.JID) {
	a.hold.Lock()
	defer a.hold.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.cached[subject]; c != nil {
		delete(a.cached, subject)
		a.total -= len(c.watchers) + 1
	}
}

func load(r fsm.Reader, subject jid.JID) *circle {
	c := &circle{}
	if u, ok := user.Get(r, subject.String()); !ok || !u.Presence {
		return c // nobody may watch
	}
	c.blocked = state.List(r, subject)
	for _, item := range rosterstate.Items(r, subject) {
		if item.Sub.HasFrom() && !state.Blocked(c.blocked, item.Contact) {
			c.watchers = append(c.watchers, item.Contact)
		}
	}
	return c
}

// shows returns the subject's circle if it lets the watcher see its presence.
func (a *audience) shows(subject, watcher jid.JID) (c *circle, ok bool) {
	a.tell(subject, func(all *circle) { c = all })
	return c, slices.Contains(c.watchers, watcher)
}
