package simnode

import (
	"fmt"
	"time"

	"muster/fsm/cluster"
)

// touch notes that a process or a link changed its state.
func (c *Cluster) touch() {
	c.History.mark(disruption)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changed = time.Now()
}

func (c *Cluster) lastChange() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

// Cut holds back what a sends to b.
func (c *Cluster) Cut(a, b *Host) {
	c.mu.Lock()
	c.cuts[[2]string{a.Name, b.Name}] = true
	c.mu.Unlock()
	c.Trace.Notef("cut %s > %s", a.Name, b.Name)
	c.Net.Cut(a.Name, b.Name)
	c.touch()
}

// Isolate cuts a host off all others, in both directions.
func (c *Cluster) Isolate(h *Host) {
	for _, other := range c.Hosts() {
		if other != h {
			c.Cut(h, other)
			c.Cut(other, h)
		}
	}
}

// Heal removes all cuts and delays, and lets stalled disks go on.
func (c *Cluster) Heal() {
	c.Trace.Notef("heal")
	c.mu.Lock()
	clear(c.cuts)
	c.mu.Unlock()
	c.Net.HealAll()
	c.SetDelay(lanDelay, lanJitter)
	for _, h := range c.Hosts() {
		if h.log.stalled() {
			h.Stall(false)
		}
	}
	c.touch()
}

// isCut reports whether a and b do not reach each other in some direction.
func (c *Cluster) isCut(a, b *Host) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cuts[[2]string{a.Name, b.Name}] || c.cuts[[2]string{b.Name, a.Name}]
}

// The delay of a local network. Without any, a loop over the network would stop the virtual clock.
const (
	lanDelay  = 100 * time.Microsecond
	lanJitter = 400 * time.Microsecond
)

// SetDelay gives all bytes between hosts a delay of base to base plus jitter.
func (c *Cluster) SetDelay(base, jitter time.Duration) {
	c.Net.SetDelay(func(string, string) (time.Duration, time.Duration) { return base, jitter })
}

// Join invites a node through a host that serves and starts it. It reports whether the log took it.
func (c *Cluster) Join() bool {
	c.mu.Lock()
	name := fmt.Sprint("n", len(c.hosts)+1)
	c.mu.Unlock()
	for _, h := range c.Ready() {
		entries := invitation(name)
		c.Trace.Notef("join %s through %s", name, h.Name)
		if res, err := h.Propose(entries...); err == nil && res[1].Err == nil {
			c.adopt()
			return true
		}
	}
	return false
}

// Remove ends a host's membership, as an operator at another one does, and its process at once.
func (c *Cluster) Remove(h *Host) bool {
	for _, via := range c.Ready() {
		if via == h {
			continue
		}
		c.Trace.Notef("remove %s through %s", h.Name, via.Name)
		err := via.remove(h.Name)
		if err == nil {
			c.adopt()
			return true
		}
		c.Trace.Notef("not removed: %v", err)
	}
	return false
}

// adopt makes the hosts follow the node table: a change of membership whose outcome was unknown may have been made.
func (c *Cluster) adopt() {
	lead := c.Leader()
	if lead == nil {
		return
	}
	members := map[uint32]bool{}
	for _, n := range cluster.Nodes(lead.Node().State()) {
		members[n.ID] = true
		c.mu.Lock()
		known := false
		for _, h := range c.hosts {
			known = known || h.ID == n.ID
		}
		var h *Host
		if !known {
			h = c.newHost(n.ID)
			c.hosts = append(c.hosts, h)
		}
		c.mu.Unlock()
		if h != nil {
			h.Start()
		}
	}
	for _, h := range c.Hosts() {
		if !members[h.ID] {
			h.Kill(100)
			c.mu.Lock()
			h.removed = true
			c.mu.Unlock()
		}
	}
}
