package simnet

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

var errReset = errors.New("simnet: connection reset by peer")

// conn is one end of a connection.
type conn struct {
	net           *Net
	local, remote simAddr
	in, out       *half
	rd, wr        deadline
	once          sync.Once
}

var _ net.Conn = (*conn)(nil)

func (c *conn) Read(b []byte) (int, error) { return c.in.read(b, &c.rd) }

func (c *conn) Write(b []byte) (int, error) { return c.out.write(b, &c.wr) }

// Close ends both directions: the peer reads what was written before, then EOF.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.out.end()
		c.in.fail(net.ErrClosed)
		c.net.forget(c)
	})
	return nil
}

func (c *conn) LocalAddr() net.Addr { return c.local }

func (c *conn) RemoteAddr() net.Addr { return c.remote }

func (c *conn) SetDeadline(t time.Time) error {
	c.rd.set(t)
	c.wr.set(t)
	return nil
}

func (c *conn) SetReadDeadline(t time.Time) error { c.rd.set(t); return nil }

func (c *conn) SetWriteDeadline(t time.Time) error { c.wr.set(t); return nil }

// half is one direction of a connection.
type half struct {
	net      *Net
	from, to string

	mu      sync.Mutex
	chunks  []chunk
	size    int
	ended   bool  // the writer closed: EOF after the last chunk
	err     error // both ends fail with it
	changed chan struct{}
}

type chunk struct {
	data []byte
	at   time.Time
}

func newHalf(n *Net, from, to string) *half {
	return &half{net: n, from: from, to: to, changed: make(chan struct{})}
}

func (h *half) wake() {
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *half) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err == nil {
		h.err = err
		h.wake()
	}
}

func (h *half) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ended = true
	h.wake()
}

func (h *half) write(b []byte, d *deadline) (int, error) {
	for {
		h.mu.Lock()
		switch {
		case h.err != nil:
			defer h.mu.Unlock()
			return 0, h.err
		case h.ended:
			h.mu.Unlock()
			return 0, net.ErrClosed
		case d.passed():
			h.mu.Unlock()
			return 0, os.ErrDeadlineExceeded
		case h.size < MaxBuffered:
			h.push(b)
			h.mu.Unlock()
			return len(b), nil
		}
		changed := h.changed
		h.mu.Unlock()
		wait(changed, nil, d, time.Time{})
	}
}

// push queues b; its arrival is never before that of an earlier chunk.
func (h *half) push(b []byte) {
	at := h.net.arrival(h.from, h.to)
	if n := len(h.chunks); n > 0 && h.chunks[n-1].at.After(at) {
		at = h.chunks[n-1].at
	}
	h.chunks = append(h.chunks, chunk{append([]byte(nil), b...), at})
	h.size += len(b)
	h.wake()
}

func (h *half) read(b []byte, d *deadline) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	for {
		ok, cutChanged := h.net.passable(h.from, h.to)
		h.mu.Lock()
		if h.err != nil || d.passed() {
			defer h.mu.Unlock()
			if h.err != nil {
				return 0, h.err
			}
			return 0, os.ErrDeadlineExceeded
		}
		var due time.Time
		if ok && len(h.chunks) > 0 {
			if due = h.chunks[0].at; !due.After(time.Now()) {
				n := h.pull(b)
				h.mu.Unlock()
				return n, nil
			}
		} else if ok && h.ended {
			h.mu.Unlock()
			return 0, io.EOF
		}
		changed := h.changed
		h.mu.Unlock()
		wait(changed, cutChanged, d, due)
	}
}

// pull takes bytes of the first chunk.
func (h *half) pull(b []byte) int {
	n := copy(b, h.chunks[0].data)
	if h.chunks[0].data = h.chunks[0].data[n:]; len(h.chunks[0].data) == 0 {
		h.chunks = h.chunks[1:]
	}
	h.size -= n
	h.wake()
	return n
}

// wait returns when one of the channels closes, the deadline changes or passes, or due has come.
func wait(a, b <-chan struct{}, d *deadline, due time.Time) {
	at, moved := d.get()
	if at.IsZero() || !due.IsZero() && due.Before(at) {
		at = due
	}
	var timer <-chan time.Time
	if !at.IsZero() {
		t := time.NewTimer(time.Until(at))
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-a:
	case <-b:
	case <-moved:
	case <-timer:
	}
}

// deadline is a settable point in time; the zero value is none.
type deadline struct {
	mu    sync.Mutex
	at    time.Time
	moved chan struct{}
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = t
	if d.moved != nil {
		close(d.moved)
		d.moved = nil
	}
}

func (d *deadline) get() (time.Time, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.moved == nil {
		d.moved = make(chan struct{})
	}
	return d.at, d.moved
}

func (d *deadline) passed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.at.IsZero() && !time.Now().Before(d.at)
}
