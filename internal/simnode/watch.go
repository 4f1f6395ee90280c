package simnode

import (
	"context"
	"time"
)

// Bounds that the promises name.
const (
	leaderTime   = 3 * time.Second // for a new leader while a majority is connected
	presenceTime = 5 * time.Second // for presence to be right after the last fault
	refuseTime   = 5 * time.Second // for a minority to refuse a change
	watchStep    = 50 * time.Millisecond
)

// watch looks all the time for what must never be.
type watch struct {
	c       *Cluster
	without time.Time        // since when a connected majority has no leader
	homes   map[claim]string // who is a user's home in an epoch
	longest time.Duration    // without a leader
	cancel  context.CancelFunc
	done    chan struct{}
}

type claim struct {
	user  string
	epoch uint64
}

func (c *Cluster) watch() *watch {
	w := &watch{c: c, homes: map[claim]string{}, done: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	go func() {
		defer close(w.done)
		for i := 0; ctx.Err() == nil; i++ {
			w.leaders()
			if i%4 == 0 {
				w.claims()
			}
			select {
			case <-time.After(watchStep):
			case <-ctx.Done():
			}
		}
	}()
	return w
}

func (w *watch) stop() {
	w.cancel()
	<-w.done
}

// leaders checks that a majority that is connected in both directions finds a leader in time.
func (w *watch) leaders() {
	need, have := w.c.quorum()
	if lead := w.c.Leader(); !need || have || w.c.stalled() || lead != nil && lead.ending() {
		w.without = time.Time{}
		return
	}
	now := time.Now()
	if w.without.IsZero() || w.c.lastChange().After(w.without) {
		w.without = now
		return
	}
	d := now.Sub(w.without)
	w.longest = max(w.longest, d)
	if d > leaderTime {
		w.c.History.Violate("%s: no leader for %v though a majority is connected\n%s", w.c.at(now), d, w.c.Describe())
		w.without = time.Time{}
	}
}

// quorum reports whether there is a majority of voters that run and reach each other, and whether such a majority has a leader in it.
func (c *Cluster) quorum() (need, have bool) {
	var alive []*Host
	voters := 0
	for _, h := range c.Hosts() {
		p := h.proc.Load()
		if p == nil || p.ends.Load() || p.node.Group() == nil {
			continue
		}
		n := p.node
		s := n.Group().Status()
		voters = max(voters, len(s.Voters))
		if s.Voter {
			alive = append(alive, h)
		}
	}
	for set := range 1 << len(alive) {
		var members []*Host
		for i, h := range alive {
			if set&(1<<i) != 0 {
				members = append(members, h)
			}
		}
		if 2*len(members) <= voters || !c.connected(members) {
			continue
		}
		need = true
		for _, h := range members {
			if h.leads() {
				return true, true
			}
		}
	}
	return need, false
}

// stalled reports whether some disk hangs: a leader with a hung disk stays the leader until its watchdog ends it.
func (c *Cluster) stalled() bool {
	return len(keep(c.Running(), func(h *Host) bool { return h.log.stalled() })) > 0
}

func (c *Cluster) connected(members []*Host) bool {
	for _, a := range members {
		for _, b := range members {
			if a != b && c.isCut(a, b) {
				return false
			}
		}
	}
	return true
}

// claims checks that no two nodes are a user's home in the same epoch.
func (w *watch) claims() {
	users := map[string]*Client{}
	for _, cl := range w.c.Clients() {
		users[cl.User.String()] = cl
	}
	for _, h := range w.c.Running() {
		n := h.Node()
		if n == nil || !h.Ready() {
			continue
		}
		if isolated, _ := n.Router().Isolated(); isolated {
			continue
		}
		for name, cl := range users {
			home, ok := n.Router().HomeOf(cl.User)
			if !ok || home.Node != h.ID || home.Epoch == 0 {
				continue
			}
			key := claim{name, home.Epoch}
			if other := w.homes[key]; other != "" && other != h.Name {
				w.c.History.Violate("%s: both %s and %s are the home of %s in epoch %d", w.c.at(time.Now()), other, h.Name, name, home.Epoch)
			}
			w.homes[key] = h.Name
		}
	}
}
