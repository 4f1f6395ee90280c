//go:build chaos && linux

package crashtest

import (
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// downTime is how long a killed node stays away.
const downTime = 8 * time.Second

// killFor kills a node and brings it back.
func (c *trial) killFor(n *node, down time.Duration) {
	c.during(n, func() {
		n.kill()
		time.Sleep(down)
	})
	c.revive(n)
}

// revive starts a node and waits until it serves.
func (c *trial) revive(n *node) {
	begun := time.Now()
	n.start()
	n.awaitReady(readyTime)
	c.remark("ready again in %.1f s", time.Since(begun).Seconds())
}

func killLeader(c *trial) { c.killFor(c.leader("message"), downTime) }

// killHome kills a node that leads no log: what is hit are the homes and the sessions there.
func killHome(c *trial) { c.killFor(c.follower(), downTime) }

// killTwice kills the node again as soon as it serves, and then the one that leads by now.
func killTwice(c *trial) {
	n := c.follower()
	c.killFor(n, 2*time.Second)
	n.kill()
	time.Sleep(2 * time.Second)
	c.revive(n)
	c.awaitVoters()
	c.killFor(c.leader("message"), downTime)
}

func killAll(c *trial) {
	c.at = time.Now()
	var all sync.WaitGroup
	for _, n := range c.nodes {
		all.Go(n.kill)
	}
	all.Wait()
	time.Sleep(time.Second)
	for _, n := range c.nodes {
		n.start()
	}
	for _, n := range c.nodes {
		n.awaitReady(readyTime)
	}
	c.remark("serving after %.1f s", time.Since(c.at).Seconds())
}

// restartInTurn stops each node in good order and starts it again.
func restartInTurn(c *trial) {
	c.at = time.Now()
	for _, n := range c.nodes {
		n.stop()
		n.start()
		n.awaitReady(readyTime)
		c.awaitVoters()
	}
}

// freeze stops a node's process for a while (a gray failure: its sockets live on).
func (c *trial) freeze(n *node, d time.Duration) {
	c.during(n, func() {
		n.signal(syscall.SIGSTOP)
		time.Sleep(d)
		n.signal(syscall.SIGCONT)
	})
	n.awaitReady(readyTime)
}

func freezeLeader(d time.Duration) func(*trial) {
	return func(c *trial) { c.freeze(c.leader("message"), d) }
}

func freezeFollower(d time.Duration) func(*trial) {
	return func(c *trial) { c.freeze(c.follower(), d) }
}

// starve leaves a node no file descriptors for new connections, and takes all that are left.
func starve(c *trial) {
	n := c.follower()
	pid := n.cmd.Process.Pid
	var was unix.Rlimit
	open, err := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/fd")
	if err == nil {
		err = unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &was)
	}
	if err == nil {
		few := unix.Rlimit{Cur: uint64(len(open)) + 10, Max: was.Max}
		err = unix.Prlimit(pid, unix.RLIMIT_NOFILE, &few, nil)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	c.during(n, func() {
		var held []net.Conn
		for range 60 {
			if conn, err := net.DialTimeout("tcp", n.clientAddr, time.Second); err == nil {
				held = append(held, conn)
			}
		}
		time.Sleep(10 * time.Second)
		for _, conn := range held {
			conn.Close()
		}
	})
	if !n.running() {
		c.t.Errorf("the process ended with status %d", n.cmd.ProcessState.ExitCode())
		n.start()
	} else if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &was, nil); err != nil {
		c.t.Fatal(err)
	}
	n.awaitReady(readyTime)
}
