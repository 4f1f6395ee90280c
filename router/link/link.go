// Package link connects this node to each other node: one reliable, ordered
// channel of frames per pair, over streams that come and go. Package router is
// its only user.
//
// Invariants: between two resets of a channel every frame is handed over
// exactly once and in order, however often the connection breaks: the sender
// keeps frames until they are acknowledged, and both sides compare counts when
// they connect. If the counts cannot be brought together (the other process is
// a new one, or a queue overflowed) both sides reset, and the sender's
// user gets back what was not acknowledged. Of two nodes the one with the lower
// id dials. Queues are bounded in frames and bytes.
package link

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"muster/internal/fault"
)

// Timing of a link.
const (
	Heartbeat    = 500 * time.Millisecond // between pings
	SilentAfter  = 3 * time.Second        // a connection without a sign of life is closed
	writeTimeout = 3 * time.Second        // a peer that does not read
	helloTimeout = 5 * time.Second        // for the peer's hello
	dialTimeout  = 2 * time.Second
	firstBackoff = 50 * time.Millisecond // after a failed dial; doubles
	maxBackoff   = time.Second
)

// Bounds of a queue. Beyond the soft ones only urgent frames are taken; beyond the hard ones the channel is reset.
const (
	softFrames = 8192
	softBytes  = 8 << 20
	hardFrames = 1 << 17
	hardBytes  = 64 << 20
	roomBytes  = 1 << 20 // Wait waits until fewer are queued
	ackEvery   = 64      // frames received between acks; a heartbeat acknowledges the rest
	batchBytes = 64 << 10
)

// Frame is a numbered frame.
type Frame struct {
	Kind    byte
	Payload []byte // never changed once sent
}

// Handler is the link's user. For one peer its methods are called one at a
// time, in the order of events; they must not block and must not call Reset.
type Handler interface {
	// Incarnation returns this node's incarnation.
	Incarnation() uint64
	// Hello returns what to tell a peer at the start of a connection, at most 4 KiB.
	Hello(peer uint32) []byte
	// Admit decides whether a peer of that incarnation may connect.
	Admit(peer uint32, incarnation uint64) bool
	// Up says that a connection stands. fresh: the channel is new, nothing was exchanged on it yet.
	Up(peer uint32, extra []byte, fresh bool)
	// Frame hands over the next frame. payload is valid during the call only.
	Frame(peer uint32, kind byte, payload []byte)
	// Lost says that the channel was reset, and returns the frames that the peer may not have received.
	Lost(peer uint32, unacknowledged []Frame)
}

// Link is the channel to one peer.
type Link struct {
	m    *Manager
	peer uint32

	calls sync.Mutex // held while the handler is called; guards generation changes
	serve sync.Mutex // held by the connection in use

	mu         sync.Mutex
	room       *sync.Cond // on mu: the queue shrank, or the generation changed
	generation uint64
	queue      []Frame // not acknowledged; the first has number base+1
	bytes      int     // of the queue
	base       uint64  // frames acknowledged
	sent       uint64  // frames written to the present connection
	received   uint64
	acked      uint64 // of received: told to the peer
	mine       uint64 // channel identity, our half
	theirs     uint64 // the peer's half; 0: not known yet
	overflow   bool
	conn       net.Conn // in use, or nil
	connected  bool     // the hellos agreed
	since      time.Time
	rtt        time.Duration
	resets     uint64

	heard atomic.Int64 // when the last frame arrived, on the manager's clock
	wake  chan struct{}
	done  chan struct{} // closed when the peer is removed
}

func newLink(m *Manager, peer uint32) *Link {
	l := &Link{m: m, peer: peer, mine: identity(), since: time.Now(), wake: make(chan struct{}, 1), done: make(chan struct{})}
	l.room = sync.NewCond(&l.mu)
	l.heard.Store(m.now())
	return l
}

// identity returns a random number that is not 0.
func identity() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.BigEndian.Uint64(b[:]) | 1
}

// send queues a frame.
func (l *Link) send(f Frame, urgent bool) error {
	if len(f.Payload)+1 > MaxFrame {
		return fault.New(fault.TooLarge, "link.send", "", "the frame is too large")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !urgent && (len(l.queue) >= softFrames || l.bytes >= softBytes) {
		return fault.New(fault.Overloaded, "link.send", "", "the link to the other node is congested; try again")
	}
	if len(l.queue) >= hardFrames || l.bytes >= hardBytes {
		l.overflow = true // the connection's goroutine, or the next one, resets the channel
		l.poke()
		return fault.New(fault.Overloaded, "link.send", "", "the link to the other node is congested; try again")
	}
	l.queue = append(l.queue, f)
	l.bytes += len(f.Payload)
	if l.connected {
		l.poke()
	}
	return nil
}

func (l *Link) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// acknowledge forgets frames that the peer has received. A count that makes no sense is refused.
func (l *Link) acknowledge(received uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if received < l.base {
		return nil
	}
	n := received - l.base
	if n > uint64(len(l.queue)) {
		return malformed("more frames acknowledged than sent")
	}
	for i := range l.queue[:n] {
		l.bytes -= len(l.queue[i].Payload)
		l.queue[i] = Frame{}
	}
	if l.queue = l.queue[n:]; len(l.queue) == 0 {
		l.queue = nil
	}
	l.base = received
	l.sent = max(l.sent, received)
	l.room.Broadcast()
	return nil
}

// reset begins a new channel and gives the handler back what was not acknowledged.
func (l *Link) reset() {
	l.calls.Lock()
	defer l.calls.Unlock()
	l.mu.Lock()
	lost := l.queue
	l.generation++
	l.resets++
	l.queue, l.bytes, l.overflow = nil, 0, false
	l.base, l.sent, l.received, l.acked = 0, 0, 0, 0
	l.mine, l.theirs = identity(), 0
	if l.conn != nil {
		_ = l.conn.Close()
	}
	l.connected = false
	l.room.Broadcast()
	l.mu.Unlock()
	l.m.handler.Lost(l.peer, lost)
}

// dialing keeps a connection to a peer with a higher id.
func (l *Link) dialing() {
	backoff := firstBackoff
	for !l.ended() {
		ctx, cancel := context.WithTimeout(l.m.ctx, dialTimeout)
		conn, err := l.m.mesh.Dial(ctx, l.peer)
		cancel()
		if err == nil {
			started := time.Now()
			err = l.use(conn)
			if time.Since(started) > maxBackoff || fault.Is(err, fault.Stale) {
				backoff = firstBackoff
			}
		}
		l.m.logger.Debug("link_down", "peer", l.peer, "error", err)
		select {
		case <-time.After(backoff):
		case <-l.done:
		case <-l.m.ctx.Done():
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

func (l *Link) ended() bool {
	select {
	case <-l.done:
		return true
	case <-l.m.ctx.Done():
		return true
	default:
		return false
	}
}

// use serves one connection until it breaks. An earlier one is closed first: the peer has given it up.
func (l *Link) use(conn net.Conn) error {
	l.mu.Lock()
	if l.conn != nil {
		_ = l.conn.Close()
	}
	l.mu.Unlock()
	l.serve.Lock()
	defer l.serve.Unlock()
	defer conn.Close()
	l.mu.Lock()
	l.conn = conn
	overflow := l.overflow
	l.mu.Unlock()
	if l.ended() {
		return fault.New(fault.Gone, "link.use", "", "")
	}
	if overflow {
		l.reset()
		return fault.New(fault.Stale, "link.use", "", "the queue overflowed")
	}
	c := &connection{l: l, conn: conn, r: bufio.NewReaderSize(conn, bufferSize), closed: make(chan struct{}), greeted: make(chan struct{}), ready: make(chan struct{})}
	err := c.run()
	l.mu.Lock()
	if l.conn == conn {
		l.conn = nil
	}
	if l.connected {
		l.connected, l.since = false, time.Now()
	}
	l.mu.Unlock()
	return err
}
