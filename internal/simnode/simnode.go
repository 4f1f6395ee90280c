// Package simnode is a virtual cluster: whole nodes (internal/node) in one
// testing/synctest bubble, over a network and disks in memory, with clients
// that log what they were promised and what they saw. Virtual minutes of
// crashes and partitions pass in real milliseconds.
//
// Callers: the simulations in cmd/musterd, which hand in the server's features.
//
// Invariants: all of it runs inside the bubble of the caller; nothing outside
// is touched; what a crashed process still does reaches neither the network nor
// the disk that the next process finds. A seed decides the schedule of faults
// and load; the goroutines' order is the scheduler's.
package simnode

import (
	"context"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"muster/fsm"
	"muster/fsm/cluster"
	"muster/fsm/config"
	"muster/fsm/user"
	"muster/internal/certs"
	"muster/internal/jid"
	"muster/internal/simnet"
	"muster/log"
	"muster/replication"
	"muster/replication/pki"
	"muster/router"
)

// Domain is the cluster's IM domain.
const Domain = "sim.test"

// T is what a cluster needs of testing.T.
type T interface {
	Helper()
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// Options describe a virtual cluster.
type Options struct {
	Nodes    int
	Seed     uint64                  // of the network's jitter and of what crashes lose
	Features func() []router.Feature // made anew for each process
	Cert     tls.Certificate         // that clients see
	Raft     replication.Timing
	Live     func(line string) // gets the trace while it grows; may be nil
}

// Cluster is a set of hosts, some of which run a node.
type Cluster struct {
	t       T
	o       Options
	Net     *simnet.Net
	Trace   *Trace
	History *History
	certs   *certs.Source
	rng     *rand.Rand // of crashes; under mu

	founder *pki.Identity
	mu      sync.Mutex
	hosts   []*Host // in order of joining; removed ones too
	clients []*Client
	dying   sync.WaitGroup // processes that were killed and have not ended
	cuts    map[[2]string]bool
	changed time.Time // of processes and links
	closed  bool
}

// New founds a cluster and starts its nodes. Call it inside a bubble.
func New(t T, o Options) *Cluster {
	t.Helper()
	c := &Cluster{t: t, o: o, Net: simnet.New(o.Seed), Trace: newTrace(), cuts: map[[2]string]bool{}, rng: rand.New(rand.NewPCG(o.Seed, 0xc4a54))}
	c.History = newHistory()
	c.Trace.core.live = o.Live
	c.SetDelay(lanDelay, lanJitter)
	var err error
	if c.certs, err = certs.Static(o.Cert); err != nil {
		t.Fatalf("certificate: %v", err)
	}
	first := member("n1")
	f, err := replication.Found("sim", first, 1, "")
	if err != nil {
		t.Fatalf("found: %v", err)
	}
	c.founder = f.Identity
	entries := append(f.Entries, config.AddDomainEntry(Domain))
	for i := 2; i <= o.Nodes; i++ {
		entries = append(entries, invitation(fmt.Sprint("n", i))...)
	}
	complete(entries)
	for i := 1; i <= o.Nodes; i++ {
		c.hosts = append(c.hosts, c.newHost(uint32(i)))
	}
	for d, first := range map[*disk][]*log.Entry{c.hosts[0].log: entries, c.hosts[0].messages: nil} {
		if err := replication.SeedStores(d, d, 1, first); err != nil {
			t.Fatalf("seed: %v", err)
		}
	}
	for _, h := range c.hosts {
		h.Start()
	}
	c.Until("all nodes serve", time.Minute, func() bool { return c.allReady() })
	return c
}

func member(name string) cluster.Member {
	return cluster.Member{Name: name, ClusterAddr: name + clusterPort, NewestVersion: log.NewestVersion}
}

// invitation is what the log gets of a node that joins: its token, and the token's use.
func invitation(name string) []*log.Entry {
	hash := cluster.HashToken([]byte("token of " + name))
	return []*log.Entry{cluster.TokenEntry(hash, time.Now().Add(time.Hour)), cluster.JoinEntry(hash, member(name))}
}

// complete fills in what a proposer settles.
func complete(entries []*log.Entry) {
	for _, e := range entries {
		if e.Node == 0 {
			e.Node = 1
		}
		if e.Time.IsZero() {
			e.Time = time.Now()
		}
		if e.Actor == "" {
			e.Actor, e.Surface = "operator", "cli"
		}
	}
}

// User returns a user's bare address.
func User(name string) jid.JID { return jid.MustParse(name + "@" + Domain) }

// AddUsers creates users and makes each the contact of each other, subscribed both ways.
func (c *Cluster) AddUsers(names ...string) {
	c.t.Helper()
	var entries []*log.Entry
	for _, n := range names {
		entries = append(entries, user.CreateEntry(user.User{Name: User(n).String(), IM: true, Presence: true}))
	}
	for i, a := range names {
		for j, b := range names {
			if i != j {
				entries = append(entries, subscription(User(a), User(b))...)
			}
		}
	}
	c.Must(entries...)
	c.converge(10 * time.Second)
}

// Must proposes entries on some node that serves and fails the test if one is rejected.
func (c *Cluster) Must(entries ...*log.Entry) []fsm.Result {
	c.t.Helper()
	var last error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		for _, h := range c.Ready() {
			res, err := h.Propose(entries...)
			if last = err; err != nil {
				continue
			}
			for i, r := range res {
				if r.Err != nil {
					c.t.Fatalf("%v: %v", entries[i].Kind, r.Err)
				}
			}
			return res
		}
	}
	c.t.Fatalf("no node took the entries in 30 s: %v", last)
	return nil
}

// Hosts returns the members' hosts, on or off, in order of joining.
func (c *Cluster) Hosts() []*Host {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*Host
	for _, h := range c.hosts {
		if !h.removed {
			out = append(out, h)
		}
	}
	return out
}

// Host returns a host by name.
func (c *Cluster) Host(name string) *Host {
	c.t.Helper()
	for _, h := range c.Hosts() {
		if h.Name == name {
			return h
		}
	}
	c.t.Fatalf("there is no node %s", name)
	return nil
}

// Running returns the hosts whose process runs.
func (c *Cluster) Running() []*Host { return keep(c.Hosts(), (*Host).Running) }

// Ready returns the hosts that serve clients.
func (c *Cluster) Ready() []*Host { return keep(c.Hosts(), (*Host).Ready) }

func keep(hosts []*Host, cond func(*Host) bool) (out []*Host) {
	for _, h := range hosts {
		if cond(h) {
			out = append(out, h)
		}
	}
	return out
}

func (c *Cluster) allReady() bool { return len(c.Ready()) == len(c.Hosts()) }

// Leader returns the host that leads the control log; nil if there is none.
func (c *Cluster) Leader() *Host {
	for _, h := range c.Running() {
		if h.leads() {
			return h
		}
	}
	return nil
}

// Until waits for a condition, in virtual time, and fails the test if it does not come.
func (c *Cluster) Until(what string, most time.Duration, ok func() bool) time.Duration {
	c.t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > most {
			c.t.Fatalf("not in %v: %s\n%s", most, what, c.Describe())
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(start)
}

// converge waits until all running nodes have applied what the leader has committed.
func (c *Cluster) converge(most time.Duration) {
	c.t.Helper()
	c.Until("equal indexes", most, func() bool {
		var index uint64
		for i, h := range c.Running() {
			n := h.Node()
			if n == nil {
				return false
			}
			if a := n.State().Applied(); i > 0 && a != index || n.Group().Commit() > a {
				return false
			} else {
				index = a
			}
			if n.Messages().Commit() > n.MessageState().Applied() {
				return false
			}
		}
		return c.Leader() != nil
	})
}

// Describe tells the state of each node, for a failure.
func (c *Cluster) Describe() string {
	var s string
	for _, h := range c.Hosts() {
		s += h.describe() + "\n"
	}
	return s
}

// Close ends everything in order. Nothing of the cluster runs afterwards.
func (c *Cluster) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.Net.HealAll()
	for _, cl := range c.Clients() {
		cl.quit()
	}
	for _, h := range c.Hosts() {
		h.Kill(100)
	}
	c.dying.Wait()
	time.Sleep(time.Minute) // timers of what has ended run out
}

// within bounds a call on a node.
func within(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), d)
}
