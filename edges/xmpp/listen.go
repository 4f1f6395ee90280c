package xmpp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"golang.org/x/time/rate"

	"muster/internal/fault"
	"muster/router/stanza"
	"muster/router/xmltok"
)

// acceptPause is how long accepting rests after an error such as too many open files.
const acceptPause = 100 * time.Millisecond

// listenTCP opens a TCP listener. The runtime's keep-alive probes stay on: they find dead peers that send nothing.
func listenTCP(address string) (net.Listener, error) { return net.Listen("tcp", address) }

// listen opens all listeners and begins to accept.
func (r *run) listen() error {
	for i, addresses := range [][]string{r.srv.o.StartTLS, r.srv.o.DirectTLS} {
		for _, a := range addresses {
			l, err := r.srv.o.Listen(a)
			if err != nil {
				return &fault.Error{Code: fault.Unavailable, Op: "xmpp.listen", Subject: a, Err: err,
					Text: "the address " + a + " cannot be listened on: is it another's, or in use?"}
			}
			r.listeners = append(r.listeners, l)
			r.done.Go(func() { r.accept(l, i == 1) })
		}
	}
	return nil
}

func (r *run) accept(l net.Listener, direct bool) {
	for shard := 0; ; shard++ {
		c, err := l.Accept()
		switch {
		case err == nil:
			r.admit(c, direct, shard%streamShards)
		case r.ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return
		default:
			r.srv.o.Logger.Warn("accept_failed", "address", l.Addr().String(), "error", err.Error())
			time.Sleep(acceptPause)
		}
	}
}

// admit lets a connection in, or closes it.
func (r *run) admit(c net.Conn, direct bool, shard int) {
	live := r.srv.o.Live
	now := time.Now()
	addr := clientAddress(c.RemoteAddr())
	free := addr.IsValid() && r.srv.free.contain(live, addr) || !addr.IsValid()
	if takesReserve(c, descriptorLimit()) {
		r.srv.counters.refuse(refusedFiles)
		c.Close()
		return
	}
	if why := r.refuse(addr, free, now); why != "" {
		r.srv.counters.refuse(why)
		c.Close()
		return
	}
	if limit := rate.Limit(live.Int(setRate)); !free && r.waitTurn(limit) != nil {
		r.gate.leave(addr, free)
		c.Close()
		return
	}
	r.srv.counters.accepted.Add(1)
	st := &stream{run: r, wire: newWire(c), addr: addr, unlimited: free, counted: true, direct: direct, shard: shard,
		began: now, dec: xmltok.NewDecoder(r.srv.before), neg: &negotiation{}}
	st.conn, st.wire.stall = st.wire, r.writeTimeout
	st.heard.Store(now.UnixNano())
	st.deadline.Store(now.Add(live.Duration(setHeaderTimeout)).UnixNano())
	r.done.Add(1)
	r.streams.add(st)
	if r.stopping.Load() {
		st.kill()
	}
	go st.serve()
}

func (r *run) refuse(addr netip.Addr, free bool, now time.Time) refusal {
	live := r.srv.o.Live
	if !free && r.srv.guard.banned(addr.String()) {
		return refusedBanned
	}
	return r.gate.enter(addr, limits{
		perAddress: int(live.Int(setPerAddress)), total: int(live.Int(setUnauthenticated)),
		addressRate: int(live.Int(setRatePerAddress)), unlimited: free,
	}, now)
}

// waitTurn delays accepting to the node's rate.
func (r *run) waitTurn(limit rate.Limit) error {
	n := r.gate.node
	if n.Limit() != limit {
		n.SetLimit(limit)
		n.SetBurst(int(limit))
	}
	return n.Wait(r.ctx)
}

// shutdown ends the run: no new connections, a last word to the present ones, and the end of their sessions.
func (r *run) shutdown(ctx context.Context) {
	r.stopping.Store(true)
	r.closeListeners()
	r.turns.stop()
	for _, s := range r.resumable.all() {
		s.leaveToOthers()
	}
	r.streams.each(func(st *stream) { go st.end(stanza.StreamSystemShutdown, "this node is shutting down", nil) })
	for _, s := range r.resumable.all() {
		s.endIfLost()
	}
	gone := make(chan struct{})
	go func() {
		r.done.Wait()
		close(gone)
	}()
	r.linger(ctx)
	r.streams.each((*stream).kill)
	r.close()
	<-gone
}

// linger waits for the clients to hang up, at most closeTimeout.
func (r *run) linger(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	poll := time.NewTicker(acceptPause / 10)
	defer poll.Stop()
	for r.streams.count() > 0 {
		select {
		case <-ctx.Done():
			return
		case <-poll.C:
		}
	}
}

// leaveToOthers lets the session's client resume it at another node, if this one stops as a whole and it is on record. Its
// connection breaks then, without the end of the stream, which would be the session's.
func (s *session) leaveToOthers() {
	s.mu.Lock()
	bound, over := s.bound, s.over
	s.mu.Unlock()
	if bound != nil && !over {
		bound.Suspend()
	}
}

// endIfLost ends a session that waits for its client.
func (s *session) endIfLost() {
	s.mu.Lock()
	lost := s.st == nil
	s.mu.Unlock()
	if lost {
		s.end(false)
	}
}

func (r *run) closeListeners() {
	for _, l := range r.listeners {
		l.Close()
	}
}

func (r *run) close() {
	r.cancel()
	r.closeListeners()
	r.poller.close()
}
