package link

import (
	"bufio"
	"encoding/binary"
	"net"
	"sync"
	"time"

	"muster/internal/fault"
)

// connection is one stream to the peer: the caller of run reads, a second goroutine writes.
type connection struct {
	l          *Link
	conn       net.Conn
	r          *bufio.Reader
	generation uint64
	mine       uint64 // our half of the channel's identity as our hello told it
	closed     chan struct{}
	greeted    chan struct{} // closed when our hello is sent, or cannot be
	ready      chan struct{} // closed when the hellos agreed
	pong       struct {
		sync.Mutex
		clock uint64 // of a ping to be answered; 0: none
	}
}

func (c *connection) run() error {
	first := c.l.hello()
	c.mine = first.mine
	var writer sync.WaitGroup
	writer.Go(func() { c.write(first) })
	err := c.read()
	_ = c.conn.Close()
	close(c.closed)
	writer.Wait()
	return err
}

// hello says where the channel stands.
func (l *Link) hello() *hello {
	l.calls.Lock() // no frame is being taken in: the extra part fits the counts
	defer l.calls.Unlock()
	extra := l.m.handler.Hello(l.peer)
	l.mu.Lock()
	defer l.mu.Unlock()
	return &hello{node: l.m.self, incarnation: l.m.handler.Incarnation(), mine: l.mine, theirs: l.theirs, base: l.base, received: l.received, extra: extra}
}

func (c *connection) read() error {
	var buf []byte
	_ = c.conn.SetReadDeadline(time.Now().Add(helloTimeout))
	kind, payload, err := readFrame(c.r, &buf)
	if err != nil {
		return err
	}
	if kind != kindHello {
		return malformed("a link must open with a hello")
	}
	h, err := parseHello(payload)
	if err != nil {
		return err
	}
	<-c.greeted // the peer must hear why before this side hangs up, or it would try the same again
	if err := c.agree(h); err != nil {
		return err
	}
	_ = c.conn.SetReadDeadline(time.Time{}) // from here on the writer watches for silence
	close(c.ready)
	for {
		kind, payload, err := readFrame(c.r, &buf)
		if err != nil {
			return err
		}
		c.l.heard.Store(c.l.m.now())
		if kind >= FirstKind {
			err = c.take(kind, payload)
		} else {
			err = c.control(kind, payload)
		}
		if err != nil {
			return err
		}
	}
}

// agree compares the hellos: go on where the channel stands, or reset it.
// Both sides judge the same numbers by the same rule, so both come to the same end.
func (c *connection) agree(h *hello) error {
	l := c.l
	if h.node != l.peer {
		return fault.New(fault.Forbidden, "link.hello", "", "another node than the one that was meant")
	}
	if !l.m.handler.Admit(h.node, h.incarnation) {
		return fault.New(fault.Stale, "link.hello", "", "the node's incarnation is over; it must start anew")
	}
	l.calls.Lock()
	l.mu.Lock()
	fits := l.mine == c.mine && (h.theirs == l.mine || h.theirs == 0 && l.base == 0) && l.base <= h.received &&
		(l.theirs == h.mine || l.theirs == 0 && h.base == 0) && h.base <= l.received &&
		h.received <= l.base+uint64(len(l.queue))
	if !fits {
		untouched := l.theirs == 0 && l.base == 0 // this side has begun anew already
		l.mu.Unlock()
		l.calls.Unlock()
		if !untouched {
			l.reset()
		}
		return fault.New(fault.Stale, "link.hello", "", "the channel begins anew")
	}
	defer l.calls.Unlock()
	fresh := l.theirs == 0
	l.theirs, l.connected, l.since = h.mine, true, time.Now()
	c.generation = l.generation
	l.mu.Unlock()
	if err := l.acknowledge(h.received); err != nil {
		return err
	}
	l.mu.Lock()
	l.sent, l.acked = l.base, l.received
	l.mu.Unlock()
	l.heard.Store(l.m.now())
	l.m.handler.Up(l.peer, h.extra, fresh)
	return nil
}

// take hands a numbered frame over.
func (c *connection) take(kind byte, payload []byte) error {
	l := c.l
	l.calls.Lock()
	defer l.calls.Unlock()
	l.mu.Lock()
	if l.generation != c.generation {
		l.mu.Unlock()
		return fault.New(fault.Stale, "link.read", "", "the channel was reset")
	}
	l.received++
	ack := l.received-l.acked >= ackEvery
	l.mu.Unlock()
	l.m.counters.received.Add(1)
	l.m.handler.Frame(l.peer, kind, payload)
	if ack {
		l.poke()
	}
	return nil
}

func (c *connection) control(kind byte, payload []byte) error {
	if kind != kindAck && kind != kindPing && kind != kindPong {
		return malformed("unknown frame")
	}
	clock, received, err := parseCounts(kind, payload)
	if err != nil {
		return err
	}
	switch kind {
	case kindPing:
		c.pong.Lock()
		c.pong.clock = clock
		c.pong.Unlock()
		c.l.poke()
	case kindPong:
		c.l.mu.Lock()
		if rtt := time.Duration(c.l.m.now() - int64(clock)); rtt >= 0 && rtt < time.Minute {
			c.l.rtt = rtt
		}
		c.l.mu.Unlock()
	}
	return c.l.acknowledge(received)
}

// write sends the hello, then whatever is queued, acks and pings, until the connection closes.
func (c *connection) write(first *hello) {
	defer c.conn.Close()
	w := bufio.NewWriterSize(c.conn, bufferSize)
	err := c.emit(w, kindHello, appendHello(nil, first))
	if err == nil {
		err = c.flush(w)
	}
	close(c.greeted)
	if err != nil {
		return
	}
	select {
	case <-c.ready:
	case <-c.closed:
		return
	}
	tick := time.NewTicker(Heartbeat)
	defer tick.Stop()
	ping := true
	for {
		if c.pending(w, ping) != nil {
			return
		}
		ping = false
		select {
		case <-c.l.wake:
		case <-tick.C:
			ping = true
			if silent := c.l.m.now() - c.l.heard.Load(); silent > int64(SilentAfter) {
				return
			}
		case <-c.closed:
			return
		}
	}
}

// pending writes everything that is due, and flushes.
func (c *connection) pending(w *bufio.Writer, ping bool) error {
	if err := c.signs(w, ping); err != nil {
		return err
	}
	for {
		batch, overflow := c.batch()
		if overflow {
			go c.l.reset()
			return fault.New(fault.Overloaded, "link.write", "", "the queue overflowed")
		}
		if len(batch) == 0 {
			return c.flush(w)
		}
		_ = c.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		for _, f := range batch {
			if err := c.emit(w, f.Kind, f.Payload); err != nil {
				return err
			}
		}
		c.l.m.counters.sent.Add(uint64(len(batch)))
	}
}

// batch returns the next frames to write.
func (c *connection) batch() (batch []Frame, overflow bool) {
	l := c.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.generation != c.generation || l.overflow {
		return nil, l.overflow
	}
	rest := l.queue[l.sent-l.base:]
	n, size := 0, 0
	for n < len(rest) && size < batchBytes {
		size += len(rest[n].Payload)
		n++
	}
	l.sent += uint64(n)
	return append(batch, rest[:n]...), false // a copy: acknowledged frames are cleared in place
}

// signs writes a ping, a pong and an ack as far as they are due.
func (c *connection) signs(w *bufio.Writer, ping bool) error {
	c.pong.Lock()
	clock := c.pong.clock
	c.pong.clock = 0
	c.pong.Unlock()
	l := c.l
	l.mu.Lock()
	received, ack := l.received, l.received > l.acked
	l.acked = received
	l.mu.Unlock()
	counts := func(clock uint64) []byte {
		return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, clock), received)
	}
	var err error
	if ping {
		err, ack = c.emit(w, kindPing, counts(uint64(max(1, c.l.m.now())))), false
	}
	if clock != 0 && err == nil {
		err, ack = c.emit(w, kindPong, counts(clock)), false
	}
	if ack && err == nil {
		err = c.emit(w, kindAck, counts(0)[8:])
	}
	return err
}

func (c *connection) emit(w *bufio.Writer, kind byte, payload []byte) error {
	var head [5]byte
	if _, err := w.Write(appendFrameHeader(head[:0], kind, len(payload))); err != nil {
		return err
	}
	_, err := w.Write(payload)
	return err
}

func (c *connection) flush(w *bufio.Writer) error {
	if w.Buffered() == 0 {
		return nil
	}
	_ = c.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	return w.Flush()
}
