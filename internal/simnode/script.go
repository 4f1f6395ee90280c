package simnode

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"muster/fsm/cluster"
	"muster/fsm/config"
	"muster/log"
	"muster/monitor"
	"muster/replication"
)

// Play plays lines of a script. Verbs on nodes take a name, "leader",
// "follower" (one of them) or "all":
//
//	kill NODE [PERCENT]   kill -9; of what was not synced, PERCENT (0) survives
//	stop, start NODE      SIGTERM; run the process again
//	isolate NODE          cut it off in both directions
//	cut A B, cut A > B    cut one link, or one direction of it
//	delay BASE JITTER     of all bytes between nodes
//	stall NODE            its disk hangs
//	heal                  no cuts, delays and stalls any more
//	snapshot NODE         take one, and cut the log
//	join; remove NODE     membership
//	move NODE             make it the home of all users, as far as it can be
//	failover NODE         its users go to their backups, by order
//	fallback NODE         and come back
//	lead                  hand on the leadership
//	clock NODE OFFSET     the clock of an operator at NODE is wrong by that much
//	wait DURATION         time passes
func (c *Cluster) Play(lines []string) {
	for _, line := range lines {
		c.Step(line)
	}
}

// Step plays one line; it reports false for a verb that it does not know.
func (c *Cluster) Step(line string) bool {
	word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	args := strings.Fields(rest)
	if word != "wait" {
		c.Trace.Notef("step: %s", line)
	}
	switch word {
	case "wait":
		time.Sleep(c.duration(args, 0))
	case "heal":
		c.Heal()
	case "delay":
		c.SetDelay(c.duration(args, 0), c.duration(args, 1))
		c.touch()
	case "join":
		c.Join()
	case "lead":
		c.lead()
	case "cut":
		c.cutStep(args)
	case "kill", "stop", "start", "isolate", "stall", "snapshot", "remove", "move", "clock", "failover", "fallback":
		for _, h := range c.named(args[0]) {
			c.nodeStep(word, h, args[1:])
		}
	default:
		return false
	}
	return true
}

func (c *Cluster) nodeStep(word string, h *Host, args []string) {
	switch word {
	case "kill":
		keep := 0
		if len(args) > 0 {
			keep = c.number(args[0])
		}
		h.Kill(keep)
	case "stop":
		h.Stop()
	case "start":
		h.Start()
	case "isolate":
		c.Isolate(h)
	case "stall":
		h.Stall(true)
	case "remove":
		if len(c.Hosts()) > 3 { // so that one may still die
			c.Remove(h)
		}
	case "snapshot":
		if n := h.Node(); n != nil {
			ctx, cancel := within(5 * time.Second)
			defer cancel()
			for _, g := range []*replication.Group{n.Group(), n.Messages()} {
				if err := g.Snapshot(ctx); err != nil {
					c.Trace.Notef("no snapshot of the %s log: %v", g.Name(), err) // a node without anything new, or just stalled
				}
			}
		}
	case "move":
		c.move(h)
	case "failover":
		c.order(h, cluster.FailoverEntry)
	case "fallback":
		c.order(h, cluster.FallbackEntry)
	case "clock":
		h.skew.Store(int64(c.duration(args, 0)))
	}
}

func (c *Cluster) move(h *Host) {
	c.touch()
	c.History.mark(move)
	var users []string
	for _, cl := range c.Clients() {
		users = append(users, cl.User.String())
	}
	for _, via := range c.Ready() {
		if _, err := via.Propose(cluster.AssignEntry(users, h.ID)); err == nil {
			return
		}
	}
}

// order proposes an entry about a host through some node that serves; it may be refused.
func (c *Cluster) order(h *Host, entry func(uint32) *log.Entry) {
	for _, via := range c.Ready() {
		res, err := via.Propose(entry(h.ID))
		if err != nil {
			continue
		}
		if res[0].Err != nil {
			c.Trace.Notef("refused: %v", res[0].Err)
		}
		return
	}
}

// quickFallback makes users come home while the schedule is still played: the defaults are for people.
func (c *Cluster) quickFallback(seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 0x6661_6c6c))
	c.Must(config.SetEntry(monitor.FallbackDelay.Name(), fmt.Sprint(500*time.Millisecond*time.Duration(rng.IntN(20))), 0),
		config.SetEntry(monitor.FallbackRate.Name(), fmt.Sprint(1+rng.IntN(3)), 0))
}

func (c *Cluster) lead() {
	h := c.Leader()
	if h == nil {
		return
	}
	ctx, cancel := within(5 * time.Second)
	defer cancel()
	for _, g := range []*replication.Group{h.Node().Group(), h.Node().Messages()} { // each leader that this host is
		if err := g.TransferLeadership(ctx); err != nil {
			c.Trace.Notef("leadership of the %s log stays: %v", g.Name(), err) // nobody is there to take it
		}
	}
}

func (c *Cluster) cutStep(args []string) {
	one := len(args) == 3 && args[1] == ">"
	for _, a := range c.named(args[0]) {
		for _, b := range c.named(args[len(args)-1]) {
			if a == b {
				continue
			}
			c.Cut(a, b)
			if !one {
				c.Cut(b, a)
			}
		}
	}
}

// named returns the hosts that a script means.
func (c *Cluster) named(name string) []*Host {
	hosts := c.Hosts()
	lead := c.Leader()
	switch name {
	case "all":
		return hosts
	case "leader":
		if lead == nil {
			return nil
		}
		return []*Host{lead}
	case "follower":
		for _, h := range hosts {
			if h != lead && h.Running() {
				return []*Host{h}
			}
		}
		return nil
	}
	return keep(hosts, func(h *Host) bool { return h.Name == name })
}

func (c *Cluster) duration(args []string, i int) time.Duration {
	c.t.Helper()
	if i >= len(args) {
		return 0
	}
	d, err := time.ParseDuration(args[i])
	if err != nil {
		c.t.Fatalf("script: %v", err)
	}
	return d
}

func (c *Cluster) number(s string) int {
	c.t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		c.t.Fatalf("script: %v", err)
	}
	return n
}

// Simulate plays a seed: cluster, load, schedule, and the checks.
func Simulate(t T, o Options, plan Plan, report func(Figures, *Cluster)) {
	t.Helper()
	o.Nodes = plan.Nodes
	c := New(t, o)
	defer c.Close()
	c.AddUsers("alice", "bob", "carol")
	c.quickFallback(o.Seed)
	for _, who := range []string{"alice/phone", "alice/desk", "bob/phone", "carol/phone"} {
		user, device, _ := strings.Cut(who, "/")
		c.NewClient(user, device)
	}
	w := c.watch()
	defer w.stop()
	ld := c.StartLoad()
	defer ld.Stop() // also where the test ends early: what goes on in the bubble would hide why
	time.Sleep(time.Second)
	c.Play(plan.Steps)
	f := c.Settle(ld)
	w.stop()
	f.Leaderless = w.longest
	report(f, c)
}

// String shows the plan as a script.
func (p Plan) String() string {
	return fmt.Sprintf("nodes %d\n%s\n", p.Nodes, strings.Join(p.Steps, "\n"))
}
