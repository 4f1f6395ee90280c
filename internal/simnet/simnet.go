// Package simnet is a network in memory for virtual clusters: hosts with
// listeners and connections whose bytes can be delayed, held back in one
// direction or in both, and cut. It is made for testing/synctest bubbles: all
// waiting is on channels and timers, so virtual time passes at once.
//
// A partition behaves like TCP over a dead link: bytes written into it are
// kept, and arrive when the link heals, unless an end gives up before. A reset
// closes connections at both ends at once, as when a process is killed.
//
// Callers: internal/simnode and the tests of the packages that take a Network.
package simnet

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"
)

// MaxBuffered is how many bytes one direction of a connection holds before
// its writer waits: about what two kernels' socket buffers hold.
const MaxBuffered = 1 << 20

// Net is one simulated network.
type Net struct {
	mu        sync.Mutex
	rng       *rand.Rand
	listeners map[string]*listener
	conns     map[*conn]struct{}
	cut       map[[2]string]bool // directed: from host, to host
	delay     func(from, to string) (base, jitter time.Duration)
	changed   chan struct{} // closed and replaced when cut changes
	nextPort  int
}

// New returns a network without delay; seed decides all jitter.
func New(seed uint64) *Net {
	return &Net{
		rng:       rand.New(rand.NewPCG(seed, 0x6d7573746572)),
		listeners: map[string]*listener{}, conns: map[*conn]struct{}{}, cut: map[[2]string]bool{},
		delay:    func(string, string) (time.Duration, time.Duration) { return 0, 0 },
		changed:  make(chan struct{}),
		nextPort: 40000,
	}
}

// SetDelay makes bytes between two hosts arrive after base plus up to jitter. Order within a connection stays.
func (n *Net) SetDelay(f func(from, to string) (base, jitter time.Duration)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delay = f
}

// Cut holds back everything from host a to host b (one direction).
func (n *Net) Cut(a, b string) { n.set(a, b, true) }

// Heal lets traffic from a to b pass again, beginning with what was held back.
func (n *Net) Heal(a, b string) { n.set(a, b, false) }

// HealAll removes every cut.
func (n *Net) HealAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
	n.wake()
}

// Partition cuts both directions between every host of one side and every host of the other.
func (n *Net) Partition(left, right []string) {
	for _, a := range left {
		for _, b := range right {
			n.Cut(a, b)
			n.Cut(b, a)
		}
	}
}

// Reset closes every connection and listener of host, at both ends, as the death of its process does.
func (n *Net) Reset(host string) {
	n.mu.Lock()
	var victims []*conn
	for c := range n.conns {
		if c.local.host == host || c.remote.host == host {
			victims = append(victims, c)
		}
	}
	var ls []*listener
	for _, l := range n.listeners {
		if l.addr.host == host {
			ls = append(ls, l)
		}
	}
	n.mu.Unlock()
	for _, c := range victims {
		c.in.fail(errReset)
		c.out.fail(errReset)
		n.forget(c)
	}
	for _, l := range ls {
		l.Close()
	}
}

func (n *Net) set(a, b string, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if cut {
		n.cut[[2]string{a, b}] = true
	} else {
		delete(n.cut, [2]string{a, b})
	}
	n.wake()
}

func (n *Net) wake() {
	close(n.changed)
	n.changed = make(chan struct{})
}

// passable reports whether bytes flow from a to b, and a channel that is closed when that may change.
func (n *Net) passable(a, b string) (bool, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.cut[[2]string{a, b}], n.changed
}

func (n *Net) arrival(a, b string) time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	base, jitter := n.delay(a, b)
	if jitter > 0 {
		base += time.Duration(n.rng.Int64N(int64(jitter)))
	}
	return time.Now().Add(base)
}

func (n *Net) forget(c *conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.conns, c)
}

// Host is one host's view of the network.
type Host struct {
	net  *Net
	name string
}

// Host returns the view of the host with this name.
func (n *Net) Host(name string) *Host { return &Host{n, name} }

// Listen opens a listener at addr ("host:port"); the host part must be this host's name or empty.
func (h *Host) Listen(addr string) (net.Listener, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if host != "" && host != h.name {
		return nil, fmt.Errorf("simnet: %s is not an address of host %s", addr, h.name)
	}
	n := h.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if port == "0" {
		n.nextPort++
		port = fmt.Sprint(n.nextPort)
	}
	a := simAddr{h.name, port}
	if n.listeners[a.String()] != nil {
		return nil, fmt.Errorf("simnet: %s is in use", a)
	}
	l := &listener{net: n, addr: a, backlog: make(chan *conn, 128), done: make(chan struct{})}
	n.listeners[a.String()] = l
	return l, nil
}

// Dial connects to a listener. Through a cut it waits until the cut heals or ctx ends; where nobody listens it is refused at once.
func (h *Host) Dial(ctx context.Context, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	for _, dir := range [][2]string{{h.name, host}, {host, h.name}} {
		if err := h.net.wait(ctx, dir); err != nil {
			return nil, &net.OpError{Op: "dial", Net: "sim", Err: err}
		}
	}
	n := h.net
	n.mu.Lock()
	l := n.listeners[addr]
	if l == nil {
		n.mu.Unlock()
		return nil, &net.OpError{Op: "dial", Net: "sim", Err: fmt.Errorf("%s: connection refused", addr)}
	}
	n.nextPort++
	here := simAddr{h.name, fmt.Sprint(n.nextPort)}
	there := l.addr
	ab, ba := newHalf(n, here.host, there.host), newHalf(n, there.host, here.host)
	client := &conn{net: n, local: here, remote: there, in: ba, out: ab}
	server := &conn{net: n, local: there, remote: here, in: ab, out: ba}
	n.conns[client], n.conns[server] = struct{}{}, struct{}{}
	n.mu.Unlock()
	select {
	case l.backlog <- server:
		return client, nil
	case <-l.done:
	case <-ctx.Done():
	}
	client.Close()
	return nil, &net.OpError{Op: "dial", Net: "sim", Err: fmt.Errorf("%s: connection refused", addr)}
}

func (n *Net) wait(ctx context.Context, dir [2]string) error {
	for {
		ok, changed := n.passable(dir[0], dir[1])
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

type simAddr struct{ host, port string }

func (a simAddr) Network() string { return "sim" }

func (a simAddr) String() string { return net.JoinHostPort(a.host, a.port) }

// HostOf returns the host part of a simulated address.
func HostOf(a net.Addr) string {
	host, _, _ := strings.Cut(a.String(), ":")
	return host
}

type listener struct {
	net     *Net
	addr    simAddr
	backlog chan *conn
	done    chan struct{}
	once    sync.Once
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
		return nil, net.ErrClosed
	default:
	}
	select {
	case c := <-l.backlog:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() {
		l.net.mu.Lock()
		delete(l.net.listeners, l.addr.String())
		l.net.mu.Unlock()
		close(l.done)
		for {
			select {
			case c := <-l.backlog:
				c.Close()
			default:
				return
			}
		}
	})
	return nil
}

func (l *listener) Addr() net.Addr { return l.addr }
