//go:build chaos && linux

package crashtest

import (
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"time"

	"muster/edges/http/adminapi"
	"muster/monitor"
)

// cutTime is how long a partition lasts.
const cutTime = 12 * time.Second

// cutOff cuts a node's links to all others.
func (c *trial) cutOff(n *node) {
	for _, m := range c.others(n) {
		c.links.set(n, m, weather{cut: true})
	}
}

// isolate cuts a node off from all others, which stay together.
func (c *trial) isolate(n *node, d time.Duration) {
	c.during(n, func() {
		c.cutOff(n)
		time.Sleep(d)
		c.links.setAll(weather{})
	})
	c.converge()
}

// converge waits until every node serves again, and notes how long after the healing.
func (c *trial) converge() {
	begun := time.Now()
	for _, n := range c.nodes {
		if !n.running() {
			c.remark("%s ended by itself", n.name)
			n.start()
		}
		n.awaitReady(readyTime)
	}
	c.remark("all ready %.1f s after it", time.Since(begun).Seconds())
}

func isolateLeader(c *trial) { c.isolate(c.leader("message"), cutTime) }

func isolateFollower(c *trial) { c.isolate(c.follower(), cutTime) }

// isolateAll leaves each node alone: nothing can be acknowledged.
func isolateAll(c *trial) {
	c.at = time.Now()
	c.links.setAll(weather{cut: true})
	time.Sleep(cutTime)
	c.links.setAll(weather{})
	c.converge()
}

// cutPair cuts the leader off from one follower; the third node reaches both.
func cutPair(c *trial) {
	a, b := c.leader("message"), c.follower()
	term := c.term()
	c.during(b, func() {
		c.links.set(a, b, weather{cut: true})
		time.Sleep(2 * cutTime)
		c.links.setAll(weather{})
	})
	c.converge()
	c.remark("%.0f terms", c.term()-term)
}

// deafLeader lets the leader be heard by nobody, though it hears all.
func deafLeader(c *trial) {
	n := c.leader("message")
	term := c.term()
	c.during(n, func() {
		for _, m := range c.others(n) {
			c.links.setOneWay(n, m, weather{cut: true})
		}
		time.Sleep(cutTime)
		c.links.setAll(weather{})
	})
	c.converge()
	c.remark("%.0f terms", c.term()-term)
}

// term is the message log's, as its leader has it.
func (c *trial) term() float64 {
	m, err := c.leader("message").metrics()
	if err != nil {
		return 0
	}
	return m[`muster_log_term{log="message"}`]
}

// swizzle cuts links and mends them at random, one at a time.
func swizzle(c *trial) {
	c.at = time.Now()
	r := rand.New(rand.NewPCG(4, 17))
	for time.Since(c.at) < longer(30*time.Second, 2*time.Minute) {
		a := c.nodes[r.IntN(len(c.nodes))]
		b := c.others(a)[r.IntN(len(c.nodes)-1)]
		c.links.setOneWay(a, b, weather{cut: r.IntN(2) == 0})
		time.Sleep(time.Duration(100+r.IntN(1500)) * time.Millisecond)
	}
	c.links.setAll(weather{})
	c.converge()
}

// badWeather slows every link down.
func badWeather(x weather) func(*trial) {
	return func(c *trial) {
		c.at = time.Now()
		term := c.term()
		c.links.setAll(x)
		time.Sleep(15 * time.Second)
		c.links.setAll(weather{})
		c.converge()
		c.remark("%.0f terms", c.term()-term)
	}
}

// killInBadWeather kills the leader where the links are slow and lose pieces, and freezes another node while it is coming back.
func killInBadWeather(c *trial) {
	n := c.leader("message")
	c.links.setAll(weather{delay: 40 * time.Millisecond, jitter: 20 * time.Millisecond, loss: 0.03})
	c.during(n, func() {
		n.kill()
		time.Sleep(downTime)
	})
	n.start()
	c.freeze(c.others(n)[0], 5*time.Second)
	n.awaitReady(readyTime)
	c.links.setAll(weather{})
	c.converge()
}

const publisherTimeout = "monitor.publisher_timeout"

// publisherPatience is how long the publisher's services wait for a log here.
const publisherPatience = 20 * time.Second

// neverSynced starts a node that hears no other: its services wait, with an alarm, and it takes no clients. The publisher's
// wait no longer than publisherPatience; it takes no change then. All of it ends by itself when the node hears the others.
func neverSynced(publisher bool) func(*trial) {
	return func(c *trial) {
		n := c.removable()
		if publisher {
			n = c.nodes[0]
			c.others(n)[0].set(publisherTimeout, publisherPatience.String())
			if !eventually(commandTime, 100*time.Millisecond, func() bool {
				v, err := n.setting(commandTime, publisherTimeout)
				return err == nil && v == publisherPatience.String()
			}) {
				c.t.Errorf("%s does not hear of the setting", n.name)
			}
		}
		c.during(n, func() {
			n.stop() // in order: so that it knows the setting
			c.cutOff(n)
			n.start()
			c.awaitAlarm(n, monitor.AlarmWaiting, true, monitor.DelayAlarm+5*time.Second)
			if ok, _, reason := n.ready(); ok || reason == "" {
				c.t.Errorf("%s is ready, or does not say why not: %q", n.name, reason)
			}
			if conn, err := net.DialTimeout("tcp", n.tlsAddr, time.Second); err == nil {
				conn.Close()
				c.t.Errorf("%s takes clients", n.name)
			}
			if publisher {
				c.awaitAlarm(n, monitor.AlarmTimeout, true, publisherPatience)
				if !eventually(5*time.Second, 100*time.Millisecond, func() bool { ok, _, _ := n.ready(); return ok }) {
					c.t.Errorf("%s does not start its services", n.name)
				}
			}
			change := adminapi.SettingChange{Value: "1m"}
			if err := n.call(commandTime, http.MethodPut, "/settings/"+publisherTimeout, change, nil); err == nil {
				c.t.Errorf("%s takes a change", n.name)
			}
			c.links.setAll(weather{})
		})
		c.converge()
		c.awaitAlarm(n, monitor.AlarmWaiting, false, 10*time.Second)
		c.awaitAlarm(n, monitor.AlarmTimeout, false, 10*time.Second)
		if publisher {
			n.must(http.MethodDelete, "/settings/"+publisherTimeout, nil, nil)
		}
	}
}

// awaitAlarm waits until a node has an alarm, or has it no more.
func (c *trial) awaitAlarm(n *node, name string, want bool, limit time.Duration) {
	begun := time.Now()
	if !eventually(limit, 100*time.Millisecond, func() bool {
		var got adminapi.Alarms
		err := n.call(2*time.Second, http.MethodGet, "/alarms", nil, &got)
		return err == nil && want == slices.ContainsFunc(got.Active, func(a monitor.Alarm) bool { return a.Name == name })
	}) {
		c.t.Errorf("%s: alarm %s should be %v, and is not after %v", n.name, name, want, limit)
	} else if want {
		c.remark("%s after %.0f s", name, time.Since(begun).Seconds())
	}
}
