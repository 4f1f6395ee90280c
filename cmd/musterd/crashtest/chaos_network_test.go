//go:build chaos && linux

package crashtest

import (
	"math/rand/v2"
	"time"
)

// cutTime is how long a partition lasts.
const cutTime = 12 * time.Second

// isolate cuts a node off from all others, which stay together.
func (c *trial) isolate(n *node, d time.Duration) {
	c.during(n, func() {
		for _, m := range c.others(n) {
			c.links.set(n, m, weather{cut: true})
		}
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
