package xmpp

import (
	"net"
	"testing"
	"time"
)

// TestWithoutParking serves connections that are not TCP, as simulations have them.
func TestWithoutParking(t *testing.T) {
	pipes := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	f := startWith(t, func(o *Options) {
		o.Listen = func(string) (net.Listener, error) { return pipes, nil }
		o.DirectTLS = nil
	})
	here, there := net.Pipe()
	pipes.conns <- there
	c := &client{tb: t, conn: here}
	c.startTLS(f)
	c.login("alice")
	c.bind("pipe")
	c.send(`<iq type='get' id='p'><ping xmlns='urn:xmpp:ping'/></iq>`)
	c.expect(`type="result" id="p"`)
	c.send(`</stream:stream>`)
	c.expect(`</stream:stream>`)
	s := f.router.session("alice@example.com/pipe")
	s.wait(t)
	if !s.clean {
		t.Error("not a clean end")
	}
}

type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	select {
	case <-l.closed:
	default:
		close(l.closed)
	}
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }

func TestWorkersAreUsedAgainAndEnd(t *testing.T) {
	w := newWorkers()
	done := make(chan struct{})
	for range 100 {
		w.run(nil, func(*stream) { done <- struct{}{} })
		<-done
	}
	idle := func() int { w.mu.Lock(); defer w.mu.Unlock(); return len(w.idle) }
	for end := time.Now().Add(testPatience); idle() == 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if n := idle(); n == 0 || n > 10 {
		t.Errorf("%d workers for one task at a time", n)
	}
	w.sweep(time.Now().Add(2 * workerIdle))
	if n := idle(); n != 0 {
		t.Errorf("%d workers never end", n)
	}
}
