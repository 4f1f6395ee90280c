package xmpp

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limits of the gate's memory.
const (
	maxAddresses  = 65_536          // client addresses that are counted at once, about 8 MiB
	addressMemory = 5 * time.Second // a quiet address is forgotten: by then its rate is full again
	burstFactor   = 4               // connections of one address at once, in seconds of its rate
)

// gate counts connections by client address until they have logged in, and limits their rate.
type gate struct {
	mu        sync.Mutex
	addresses map[netip.Addr]*address
	waiting   int // connections that have not logged in
	node      *rate.Limiter
}

type address struct {
	waiting int
	rate    *rate.Limiter
	seen    time.Time
}

func newGate() *gate {
	return &gate{addresses: map[netip.Addr]*address{}, node: rate.NewLimiter(rate.Inf, 0)}
}

// limits are the settings that the gate applies.
type limits struct {
	perAddress, total int
	addressRate       int
	unlimited         bool
}

// refusal is why a connection is closed; "" lets it in.
type refusal string

// The refusals, as the metrics name them.
const (
	refusedTotal   refusal = "unauthenticated"
	refusedAddress refusal = "unauthenticated_per_address"
	refusedRate    refusal = "connection_rate_per_address"
	refusedBanned  refusal = "banned"
	refusedMemory  refusal = "addresses"
	refusedFiles   refusal = "descriptors" // hardly any file descriptors are left
	refusedQueue   refusal = "login_queue"
	refusedWait    refusal = "login_wait"
	refusedGone    refusal = "gone" // the client hung up while it waited for its turn
)

// enter admits a connection from a, and counts it until leave.
func (g *gate) enter(a netip.Addr, l limits, now time.Time) refusal {
	g.mu.Lock()
	defer g.mu.Unlock()
	if l.unlimited {
		g.waiting++
		return ""
	}
	if g.waiting >= l.total {
		return refusedTotal
	}
	e := g.address(a, l.addressRate, now)
	if e == nil {
		return refusedMemory
	}
	e.seen = now
	if int(e.rate.Limit()) != l.addressRate {
		e.rate.SetLimitAt(now, rate.Limit(l.addressRate))
		e.rate.SetBurstAt(now, l.addressRate*burstFactor)
	}
	switch {
	case e.waiting >= l.perAddress:
		return refusedAddress
	case !e.rate.AllowN(now, 1):
		return refusedRate
	}
	e.waiting++
	g.waiting++
	return ""
}

// leave says that a connection has logged in or ended. It is called once for each that was admitted.
func (g *gate) leave(a netip.Addr, unlimited bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.waiting--
	if e := g.addresses[a]; e != nil && !unlimited {
		e.waiting--
	}
}

// address returns a's entry; nil if there is no room for one.
func (g *gate) address(a netip.Addr, perSecond int, now time.Time) *address {
	if e := g.addresses[a]; e != nil {
		return e
	}
	if len(g.addresses) >= maxAddresses {
		g.forget(now)
		if len(g.addresses) >= maxAddresses {
			return nil
		}
	}
	e := &address{seen: now, rate: rate.NewLimiter(rate.Limit(perSecond), perSecond*burstFactor)}
	g.addresses[a] = e
	return e
}

// sweep forgets quiet addresses.
func (g *gate) sweep(now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.forget(now)
}

func (g *gate) forget(now time.Time) {
	for a, e := range g.addresses {
		if e.waiting == 0 && now.Sub(e.seen) > addressMemory {
			delete(g.addresses, a)
		}
	}
}

// unauthenticated returns how many connections have not logged in.
func (g *gate) unauthenticated() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.waiting
}

// clientAddress returns whom the limits count: the IPv4 address, or the /64 of
// an IPv6 address, since one client has all of that. It is the zero Addr for what is no TCP connection.
func clientAddress(a net.Addr) netip.Addr {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	if ip.Is6() {
		p, err := ip.Prefix(64)
		if err == nil {
			return p.Addr()
		}
	}
	return ip
}
