package simnode

import (
	"context"
	"fmt"
	"sync"
	"time"

	"muster/fsm/config"
	"muster/fsm/user"
)

// Load is the traffic of all clients and an operator while faults happen.
type Load struct {
	c       *Cluster
	busy    context.Context // ends with the load; the clients stay
	calm    context.CancelFunc
	ctx     context.Context // ends with the clients
	cancel  context.CancelFunc
	work    sync.WaitGroup // changes under way
	drivers sync.WaitGroup
}

// StartLoad has every client come online and use the server, and an operator change settings and users.
func (c *Cluster) StartLoad() *Load {
	ld := &Load{c: c}
	ld.ctx, ld.cancel = context.WithCancel(context.Background())
	ld.busy, ld.calm = context.WithCancel(ld.ctx)
	for _, cl := range c.Clients() {
		ld.drivers.Go(func() { ld.drive(cl) })
	}
	ld.drivers.Go(func() { ld.operate() })
	return ld
}

// Calm ends the traffic; who is online stays online, and comes back if the session is lost.
func (ld *Load) Calm() { ld.calm() }

// Stop ends the drivers. The clients keep their sessions.
func (ld *Load) Stop() {
	ld.cancel()
	ld.drivers.Wait()
	ld.work.Wait()
}

// pause waits, and reports whether the clients go on.
func (ld *Load) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ld.ctx.Done():
		return false
	}
}

// drive is one client's user at work.
func (ld *Load) drive(cl *Client) {
	status, writes := 0, make(chan struct{}, 1)
	for ld.pause(time.Duration(50+cl.rng.IntN(400)) * time.Millisecond) {
		busy := ld.busy.Err() == nil
		if cl.current() == nil {
			if busy && cl.rng.IntN(3) == 0 {
				continue // takes its time
			}
			if status++; ld.connect(cl) {
				_ = cl.Show(fmt.Sprint("s", status)) // the session may be lost already
			}
			continue
		}
		if !busy {
			continue
		}
		switch n := cl.rng.IntN(100); {
		case n < 50:
			_, _ = cl.Chat(ld.somebody(cl).address(cl.rng.IntN(3) == 0)) // History notes the outcome
		case n < 65 && cl.Online():
			status++
			_ = cl.Show(fmt.Sprint("s", status))
		case n < 85:
			ld.write(cl, writes)
		case n < 90:
			cl.Disconnect(cl.rng.IntN(2) == 0)
		case n < 93:
			_ = cl.Show("") // until it connects again: what it knew of others is void from here on
		}
	}
}

func (ld *Load) connect(cl *Client) bool {
	hosts := ld.c.Ready()
	return len(hosts) > 0 && cl.Connect(hosts[cl.rng.IntN(len(hosts))]) == nil
}

// somebody returns another client, perhaps of the same user.
func (ld *Load) somebody(cl *Client) *Client {
	all := ld.c.Clients()
	for {
		if other := all[cl.rng.IntN(len(all))]; other.User != cl.User {
			return other
		}
	}
}

// write changes a contact, beside the client's other traffic, one change at a time.
func (ld *Load) write(cl *Client, writes chan struct{}) {
	select {
	case writes <- struct{}{}:
	default:
		return
	}
	contact := fmt.Sprintf("c%d@elsewhere.test", cl.rng.IntN(3))
	name := fmt.Sprint("v", ld.c.History.number())
	ld.work.Go(func() {
		_ = cl.SetContact(contact, name) // History notes the outcome
		<-writes
	})
}

// The settings that serve as registers; their values matter to nobody here.
var registers = []string{"blocking.max_blocked", "roster.max_requests"}

// operate changes and reads settings, and creates users, on one node after the other.
func (ld *Load) operate() {
	for i := 0; ld.pause(150*time.Millisecond) && ld.busy.Err() == nil; i++ {
		hosts := ld.c.Running()
		if len(hosts) == 0 {
			continue
		}
		h := hosts[i%len(hosts)]
		name := registers[i/2%len(registers)]
		ld.work.Go(func() {
			switch {
			case i%7 == 6:
				ld.c.createUser(h, fmt.Sprintf("extra%d@%s", i, Domain))
			case i%3 == 2:
				ld.c.readSetting(h, name)
			default:
				ld.c.WriteSetting(h, name, fmt.Sprint(1000+i))
			}
		})
	}
}

func (c *Cluster) createUser(h *Host, name string) {
	o := c.History.begin("user "+name, "exists")
	res, err := h.Propose(user.CreateEntry(user.User{Name: name, IM: true, Presence: true}))
	c.History.end(o, err == nil && res[0].Err == nil)
}

// WriteSetting proposes a value on a host and notes the outcome.
func (c *Cluster) WriteSetting(h *Host, name, value string) error {
	o := c.History.begin("setting "+name, value)
	start := time.Now()
	e := config.SetEntry(name, value, 0)
	if skew := h.skew.Load(); skew != 0 {
		e.Time = start.Add(time.Duration(skew))
	}
	res, err := h.Propose(e)
	if err == nil {
		err = res[0].Err
	}
	c.History.end(o, err == nil)
	return err
}

// readSetting reads what was confirmed before, through the leader's index.
func (c *Cluster) readSetting(h *Host, name string) {
	p := h.proc.Load()
	if p == nil || !p.up.Load() {
		return
	}
	n := p.node
	ctx, cancel := within(15 * time.Second)
	defer cancel()
	defer func() { // the state is closed under a reader when the process is killed
		if v := recover(); v != nil && !p.dead.Load() {
			panic(v)
		}
	}()
	start := time.Now()
	index, err := n.Group().ReadIndex(ctx)
	if err == nil {
		err = n.Group().WaitIndex(ctx, index)
	}
	if err != nil {
		return
	}
	value, source, _ := config.Effective(n.State(), name, 0)
	if source == "default" {
		value = ""
	}
	if p.dead.Load() {
		return // its answer reaches nobody
	}
	c.History.saw("setting "+name, value, start)
}
