//go:build chaos && linux

package crashtest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// network carries the connections between a cluster's nodes, so that they can
// be held up. Each node's advertised address is the network's; who dials it is
// found by the owner of the socket.
type network struct {
	c *testCluster

	mu     sync.Mutex
	wake   *sync.Cond
	links  map[[2]string]weather // from, to
	conns  map[net.Conn]bool
	lns    []net.Listener
	closed bool
}

// weather is what a link does to what passes it in one direction.
type weather struct {
	cut    bool          // nothing passes; what was sent waits, as TCP has it
	delay  time.Duration // of each piece
	jitter time.Duration // at random, besides
	loss   float64       // share of the pieces that TCP has to send again
}

// resend is what a lost piece costs: the shortest timer of TCP in Linux.
const resend = 200 * time.Millisecond

func newNetwork(c *testCluster) *network {
	w := &network{c: c, links: map[[2]string]weather{}, conns: map[net.Conn]bool{}}
	w.wake = sync.NewCond(&w.mu)
	return w
}

// front opens the address at which the others reach n.
func (w *network) front(t *testing.T, n *node) string {
	t.Helper()
	ln, err := net.Listen("tcp", freeAddress(t))
	if err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	w.lns = append(w.lns, ln)
	w.mu.Unlock()
	go func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			go w.carry(in, n)
		}
	}()
	return ln.Addr().String()
}

func (w *network) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	for _, ln := range w.lns {
		ln.Close()
	}
	for c := range w.conns {
		c.Close()
	}
	w.wake.Broadcast()
}

// set changes a link in both directions.
func (w *network) set(a, b *node, x weather) {
	w.setOneWay(a, b, x)
	w.setOneWay(b, a, x)
}

func (w *network) setOneWay(from, to *node, x weather) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.links[[2]string{from.name, to.name}] = x
	w.wake.Broadcast()
}

// setAll changes every link.
func (w *network) setAll(x weather) {
	for i, a := range w.c.nodes {
		for _, b := range w.c.nodes[:i] {
			w.set(a, b, x)
		}
	}
}

// pass waits until a link is open; false when the network has been closed.
func (w *network) pass(from, to string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.links[[2]string{from, to}].cut && !w.closed {
		w.wake.Wait()
	}
	return !w.closed
}

// carry takes a connection to n.
func (w *network) carry(in net.Conn, n *node) {
	from := w.dialer(in)
	if !w.pass(from, n.name) || !w.pass(n.name, from) {
		in.Close()
		return
	}
	out, err := net.DialTimeout("tcp", n.clusterAddr, time.Second)
	if err != nil {
		in.Close()
		return
	}
	w.mu.Lock()
	w.conns[in], w.conns[out] = true, true
	w.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { w.pump(in, out, from, n.name) })
	both.Go(func() { w.pump(out, in, n.name, from) })
	both.Wait()
	w.mu.Lock()
	delete(w.conns, in)
	delete(w.conns, out)
	w.mu.Unlock()
}

type piece struct {
	data []byte
	due  time.Time
}

// pump moves what one side sends to the other, as the weather has it. When one side ends, so does the other, after what was sent.
func (w *network) pump(src, dst net.Conn, from, to string) {
	pieces := make(chan piece, 64)
	go func() {
		defer close(pieces)
		for {
			b := make([]byte, 16<<10)
			n, err := src.Read(b)
			if n > 0 {
				pieces <- piece{b[:n], time.Now().Add(w.lag(from, to))}
			}
			if err != nil {
				return
			}
		}
	}()
	broken := false
	for p := range pieces {
		if broken {
			continue
		}
		time.Sleep(time.Until(p.due))
		if !w.pass(from, to) {
			broken = true
		} else if _, err := dst.Write(p.data); err != nil {
			broken = true
			src.Close()
		}
	}
	w.pass(from, to) // the end is news, too
	dst.Close()
}

func (w *network) lag(from, to string) time.Duration {
	w.mu.Lock()
	x := w.links[[2]string{from, to}]
	w.mu.Unlock()
	d := x.delay
	if x.jitter > 0 {
		d += rand.N(x.jitter)
	}
	for x.loss > 0 && rand.Float64() < x.loss {
		d += resend
	}
	return d
}

// dialer returns the name of the node whose process opened a connection, "" for a tool.
func (w *network) dialer(in net.Conn) string {
	b, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return ""
	}
	theirs, ours := in.RemoteAddr().(*net.TCPAddr).Port, in.LocalAddr().(*net.TCPAddr).Port
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 10 || !strings.HasSuffix(f[1], fmt.Sprintf(":%04X", theirs)) || !strings.HasSuffix(f[2], fmt.Sprintf(":%04X", ours)) {
			continue
		}
		w.c.mu.Lock()
		defer w.c.mu.Unlock()
		for _, p := range w.c.procs {
			if holds(p.cmd.Process.Pid, "socket:["+f[9]+"]") {
				return p.node
			}
		}
		return ""
	}
	return ""
}

// holds reports whether a process has that file open.
func holds(pid int, file string) bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	list, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, e := range list {
		if name, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && name == file {
			return true
		}
	}
	return false
}
