//go:build chaos && linux

package crashtest

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"muster/cmd/musterbench/client"
	"muster/cmd/musterbench/target"
	"muster/edges/http/adminapi"
)

// crowdSize is how many devices there are: 40 send 200 messages a second in all.
var crowdSize = func() int {
	if n, err := strconv.Atoi(os.Getenv("CHAOS_CLIENTS")); err == nil && n >= 2*partnersOf {
		return n
	}
	return 40
}()

const (
	sayStep     = 200 * time.Millisecond // between two messages of a device
	partnersOf  = 4
	settleTime  = 60 * time.Second // for everybody to be online, and every message to have an outcome
	drainTime   = 20 * time.Second // for what waits to arrive at the end
	coolTime    = 5 * time.Second  // of load after the last of a fault
	onlineLimit = 60 * time.Second
)

// warmTime is how long the load runs before a fault.
func warmTime() time.Duration {
	if testing.Short() {
		return 3 * time.Second
	}
	return 10 * time.Second
}

// devicesFor makes users p00 to pNN's devices. Partners are spread over all, so that every pair of homes and nodes occurs.
func devicesFor(t *testing.T, users []target.User, places []place, ca, mechanism string) []*device {
	t.Helper()
	conf, err := client.TLSConfig(ca, domain, client.Direct, false)
	if err != nil {
		t.Fatal(err)
	}
	var all []*device
	for i, u := range users {
		all = append(all, &device{user: u, tls: conf, mechanism: mechanism, source: net.IPv4(127, 0, 1, byte(1+i%250)), places: places, seat: i % len(places), blind: i%2 == 0})
	}
	for i, d := range all {
		for k := range partnersOf {
			d.partners = append(d.partners, all[(i+1+k*(len(all)/partnersOf-1))%len(all)])
		}
	}
	return all
}

// arena is a cluster with a crowd.
type arena struct {
	*testCluster
	devices []*device
	links   *network // nil: the nodes reach each other directly
	volume  *volume  // nil: all data is in the test's folder
}

// newArena founds a cluster of three on that stage and makes its users. An error says why the stage cannot be set on this machine.
func newArena(t *testing.T, stage string) (a *arena, err error) {
	t.Helper()
	a = &arena{testCluster: newFolder(t)}
	switch stage {
	case onLinks:
		a.links = newNetwork(a.testCluster)
		a.front = func(n *node) string { return a.links.front(t, n) }
		t.Cleanup(a.links.close)
	case onVolume:
		if a.volume, err = newVolume(a.testCluster, t, "three"); err != nil {
			return nil, err
		}
	}
	a.found(t, "one", "two", "three")
	a.people(t)
	return a, nil
}

// The stages.
const (
	plain    = ""
	onLinks  = "links"  // the nodes reach each other through a network that can be held up
	onVolume = "volume" // one node's data is on a file system of its own
)

// people makes the users and devices.
func (a *arena) people(t *testing.T) {
	t.Helper()
	var made []adminapi.NewUser
	var users []target.User
	for i := range crowdSize {
		u := target.User{Local: fmt.Sprintf("p%02d", i), Domain: domain, Password: target.Secret(fmt.Sprintf("secret-%02d", i))}
		users = append(users, u)
		made = append(made, adminapi.NewUser{JID: u.JID(), Password: string(u.Password)})
	}
	var outcomes []adminapi.Outcome
	a.nodes[0].must(http.MethodPost, "/users", made, &outcomes)
	for _, o := range outcomes {
		if o.Code != "" {
			t.Fatalf("%s: %s %s", o.Subject, o.Code, o.Text)
		}
	}
	var places []place
	for _, n := range a.nodes {
		places = append(places, place{n.name, func() string { return n.tlsAddr }})
	}
	a.devices = devicesFor(t, users, places, a.caFile, "SCRAM-SHA-256")
}

// leads returns the node that leads a log.
func (a *arena) leader(log string) *node {
	a.t.Helper()
	var who *node
	if !eventually(30*time.Second, 100*time.Millisecond, func() bool {
		term := -1.0
		for _, n := range a.nodes {
			if m, err := n.metrics(); err == nil && m[`muster_log_leader{log="`+log+`"}`] == 1 && m[`muster_log_term{log="`+log+`"}`] > term {
				who, term = n, m[`muster_log_term{log="`+log+`"}`]
			}
		}
		return who != nil
	}) {
		a.t.Fatalf("the %s log has no leader", log)
	}
	return who
}

// follower returns a node that leads neither log, or else not the message log.
func (a *arena) follower() *node {
	messages, control := a.leader("message"), a.leader("control")
	for _, n := range a.nodes {
		if n != messages && n != control {
			return n
		}
	}
	return a.nodes[(slices.Index(a.nodes, messages)+1)%len(a.nodes)]
}

// removable is a node that is not the publisher, and leads the message log only if it must.
func (a *arena) removable() *node {
	messages := a.leader("message")
	for _, n := range a.nodes[1:] { // the first is the publisher
		if n != messages {
			return n
		}
	}
	return messages
}

func (a *arena) others(hit ...*node) []*node {
	var out []*node
	for _, n := range a.nodes {
		if !slices.Contains(hit, n) {
			out = append(out, n)
		}
	}
	return out
}

// trial is one fault with the load around it.
type trial struct {
	*arena
	name    string
	books   *books
	herded  []*device // further ones, which only wait
	at      time.Time // of the fault
	noticed time.Duration
	remarks []string
}

func (c *trial) remark(format string, args ...any) {
	c.remarks = append(c.remarks, fmt.Sprintf(format, args...))
}

// crowd runs the load around strike, which breaks something, mends it, and
// returns; then it waits until all has come to rest, and lets everybody fetch what waits.
func crowdAround(t *testing.T, devices []*device, b *books, strike func()) (stuck int) {
	defer func() {
		if t.Failed() {
			everybody(devices, (*device).leave) // strike may have ended the test
		}
	}()
	for _, d := range devices {
		d.begin(b)
	}
	if !eventually(onlineLimit, 50*time.Millisecond, func() bool { return !slices.ContainsFunc(devices, func(d *device) bool { return !d.online() }) }) {
		t.Errorf("at the beginning not everybody is online")
	}
	ctx, cancel := context.WithCancel(context.Background())
	var load sync.WaitGroup
	for i, d := range devices {
		if len(d.partners) == 0 {
			continue
		}
		load.Go(func() { d.talk(ctx, time.Duration(i)*sayStep/time.Duration(len(devices))) })
	}
	time.Sleep(warmTime())
	strike()
	time.Sleep(coolTime)
	cancel()
	load.Wait()
	eventually(settleTime, 50*time.Millisecond, func() bool {
		return b.undecided() == 0 && !slices.ContainsFunc(devices, func(d *device) bool { return !d.idle() })
	})
	for _, d := range devices {
		if !d.online() {
			stuck++
		}
		d.mu.Lock()
		stuck += d.silent
		d.mu.Unlock()
	}
	everybody(devices, (*device).leave)
	return stuck
}

// drain lets everybody log in once more and fetch what waits.
func drain(devices []*device, b *books) {
	for _, d := range devices {
		d.again(b)
	}
	eventually(settleTime, 50*time.Millisecond, func() bool { return !slices.ContainsFunc(devices, func(d *device) bool { return !d.idle() }) })
	eventually(drainTime, 50*time.Millisecond, func() bool { return b.missing() == 0 })
	time.Sleep(time.Second) // what should not come any more
	everybody(devices, (*device).leave)
}

func everybody(devices []*device, fn func(d *device)) {
	var all sync.WaitGroup
	for _, d := range devices {
		all.Go(func() { fn(d) })
	}
	all.Wait()
}

// talk sends a message every step until ctx ends.
func (d *device) talk(ctx context.Context, after time.Duration) {
	time.Sleep(after)
	tick := time.NewTicker(sayStep)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			d.say()
		}
	}
}

// comeback is what the devices' troubles come to.
type comeback struct {
	lost, tried, resumed int
	first, last          time.Duration // until the first and the last was back, after the fault
	refusals             map[string]int
}

func comebacks(devices []*device, at time.Time) comeback {
	c := comeback{refusals: map[string]int{}}
	for _, d := range devices {
		d.mu.Lock()
		for _, t := range d.troubles {
			c.lost++
			if t.tried {
				c.tried++
			}
			if t.resumed {
				c.resumed++
			} else if t.tried {
				_, why, _ := strings.Cut(t.why, "; ")
				c.refusals[why]++
			}
			if back := t.back.Sub(at); !t.back.IsZero() && back > 0 {
				if c.first == 0 || back < c.first {
					c.first = back
				}
				c.last = max(c.last, back)
			}
		}
		d.mu.Unlock()
	}
	return c
}

// watch notes when the cluster has decided that a hit node failed.
func (c *trial) watch(ctx context.Context, hit *node) {
	for ctx.Err() == nil {
		for _, n := range c.others(hit) {
			var ha adminapi.HA
			if n.call(2*time.Second, http.MethodGet, "/ha", nil, &ha) != nil {
				continue
			}
			for _, h := range ha.History {
				if h.Node == hit.name && h.Event == "failed over" && h.At.After(c.at) {
					c.noticed = h.At.Sub(c.at)
					return
				}
			}
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// during runs fn while the others are watched for noticing that hit is down.
func (c *trial) during(hit *node, fn func()) {
	c.at = time.Now()
	ctx, cancel := context.WithCancel(context.Background())
	var watch sync.WaitGroup
	watch.Go(func() { c.watch(ctx, hit) })
	fn()
	cancel()
	watch.Wait()
}
