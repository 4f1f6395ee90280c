package xmpp

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"muster/internal/fault"
)

// poller tells when a parked connection has something to read. It watches
// duplicates of nothing: the descriptors stay the runtime's, and closing one
// takes it out of the set.
type poller struct {
	workers *workers
	fd      int
	wakeR   int // a pipe that ends the wait
	wakeW   int
	start   sync.Once // of loop: a server without TCP connections, as simulations have, needs none
	done    chan struct{}
	rounds  atomic.Int64 // waits that have ended

	mu      sync.RWMutex
	streams []*stream // by slot; a stale event wakes a wrong stream for nothing
	free    []int32
}

// pollBatch is how many connections one wait reports; the rest comes with the next.
const pollBatch = 256

func newPoller(w *workers) (*poller, error) {
	p := &poller{workers: w, done: make(chan struct{})}
	var err error
	if p.fd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fault.Wrap(err, fault.Internal, "xmpp.poller", "")
	}
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		unix.Close(p.fd)
		return nil, fault.Wrap(err, fault.Internal, "xmpp.poller", "")
	}
	p.wakeR, p.wakeW = ends[0], ends[1]
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: -1}
	if err := unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, p.wakeR, &ev); err != nil {
		p.closeFiles()
		return nil, fault.Wrap(err, fault.Internal, "xmpp.poller", "")
	}
	return p, nil
}

// add makes the stream's connection parkable if it is a TCP connection. Call it after the handshake.
func (p *poller) add(st *stream) {
	tcp, ok := st.wire.Conn.(*net.TCPConn)
	if p == nil || !ok {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return // it keeps its goroutine
	}
	p.start.Do(func() { go p.loop() })
	p.mu.Lock()
	slot := int32(len(p.streams))
	if n := len(p.free); n > 0 {
		slot, p.free = p.free[n-1], p.free[:n-1]
		p.streams[slot] = st
	} else {
		p.streams = append(p.streams, st)
	}
	p.mu.Unlock()
	ok = false
	ev := unix.EpollEvent{Events: unix.EPOLLONESHOT, Fd: slot} // errors and hang-ups are always reported: once, not for ever
	_ = raw.Control(func(fd uintptr) { ok = unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, int(fd), &ev) == nil })
	if !ok {
		p.drop(slot)
		return
	}
	w := st.wire
	w.raw, w.read = raw, w.readOnce
	w.parkable, st.slot = true, slot
}

// arm asks for one wake-up of the stream; false if its connection is closed.
func (p *poller) arm(st *stream) bool {
	ok := false
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLONESHOT, Fd: st.slot}
	err := st.wire.raw.Control(func(fd uintptr) { ok = unix.EpollCtl(p.fd, unix.EPOLL_CTL_MOD, int(fd), &ev) == nil })
	return err == nil && ok
}

// remove forgets a stream whose connection is closed.
func (p *poller) remove(st *stream) {
	if p != nil && st.wire.parkable {
		p.drop(st.slot)
	}
}

func (p *poller) drop(slot int32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.streams[slot] = nil
	p.free = append(p.free, slot)
}

func (p *poller) loop() {
	defer close(p.done)
	events := make([]unix.EpollEvent, pollBatch)
	for {
		n, err := unix.EpollWait(p.fd, events, -1)
		p.rounds.Add(1)
		if err != nil && err != unix.EINTR {
			return // only when the set was closed
		}
		for _, ev := range events[:max(n, 0)] {
			if ev.Fd < 0 {
				return
			}
			p.mu.RLock()
			st := p.streams[ev.Fd]
			p.mu.RUnlock()
			if st != nil {
				st.wake()
			}
		}
	}
}

// close ends the poller; no connection may be parked any more.
func (p *poller) close() {
	if p == nil {
		return
	}
	p.start.Do(func() { close(p.done) })
	_, _ = unix.Write(p.wakeW, []byte{0})
	<-p.done
	p.closeFiles()
}

func (p *poller) closeFiles() {
	unix.Close(p.fd)
	unix.Close(p.wakeR)
	unix.Close(p.wakeW)
}

// hungUp reports whether the client has closed the connection, without reading from it.
func (w *wire) hungUp() bool {
	tcp, ok := w.Conn.(*net.TCPConn)
	if !ok {
		return false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return true
	}
	var n int
	var got error
	err = raw.Control(func(fd uintptr) {
		var one [1]byte
		n, _, got = unix.Recvfrom(int(fd), one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	})
	return err != nil || n <= 0 && got != unix.EAGAIN && got != unix.EINTR
}

// readNow reads what there is. After a read that did not fill its buffer it does
// not ask again: what comes meanwhile wakes the stream as soon as it is armed.
func (w *wire) readNow(b []byte) (int, error) {
	if w.dry {
		w.dry = false
		return 0, errWait
	}
	w.buf = b
	err := w.raw.Read(w.read)
	w.buf = nil
	switch {
	case err != nil:
		return 0, err
	case w.err == syscall.EAGAIN:
		return 0, errWait
	case w.err != nil:
		return 0, w.err
	case w.n == 0:
		return 0, io.EOF
	}
	w.dry = w.n < len(b)
	return w.n, nil
}

// readOnce is what RawConn.Read calls; it returns true so as never to wait.
func (w *wire) readOnce(fd uintptr) bool {
	for {
		w.n, w.err = syscall.Read(int(fd), w.buf)
		if w.err != syscall.EINTR {
			return true
		}
	}
}
