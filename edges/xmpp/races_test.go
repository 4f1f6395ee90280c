package xmpp

import (
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"muster/internal/fault"
	"muster/internal/jid"
	"muster/router/stanza"
)

// TestTwoResumeAtOnce: the session lives on one of two streams that resume it at the same time; the other one
// is told, and nothing is lost.
func TestTwoResumeAtOnce(t *testing.T) {
	f := start(t, "c2s.unlimited_networks", "127.0.0.0/8")
	for round := range 20 {
		c, id := f.managed("alice", fmt.Sprint("desk", round))
		f.drop(c)
		if err := f.deliver(c.full, "m"); err != nil {
			t.Fatal(err)
		}
		a, b := f.returning("alice"), f.returning("alice")
		var both sync.WaitGroup
		for _, x := range []*client{a, b} {
			both.Go(func() { _, _ = io.WriteString(x.conn, resumeElement(id, 0)) })
		}
		both.Wait()
		s := f.router.session(c.full).sink.(*session)
		f.until("both have been there", func() bool { return f.srv.Metrics().Resumed == int64(2*round+2) })
		winner, loser := a, b
		f.until("one has it", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.st == nil {
				return false
			}
			if s.st.wire.RemoteAddr().String() == b.conn.LocalAddr().String() {
				winner, loser = b, a
			}
			return true
		})
		loser.expect(`<stream:error><conflict `)
		winner.expect(`<resumed .*id="m"`)
		winner.send(`<iq type='get' id='p'><ping xmlns='urn:xmpp:ping'/></iq>`)
		winner.expect(`type="result" id="p"`)
		winner.send(`</stream:stream>`)
		winner.expect(`</stream:stream>`)
		f.router.session(c.full).wait(t)
	}
	if n := f.srv.Metrics().Hibernated; n != 0 {
		t.Errorf("%d sessions hibernate", n)
	}
}

// TestResumeWhileTheOldConnectionIsStuck: a client that does not read is replaced by itself, and gets everything.
func TestResumeWhileTheOldConnectionIsStuck(t *testing.T) {
	f := start(t, "c2s.queue_bytes", "100000000")
	old, id := f.managed("alice", "desk")
	s := f.router.session(old.full)
	stuffed, err := f.stuff(s)
	if err != nil {
		t.Fatal(err)
	}
	back := f.returning("alice")
	back.send(resumeElement(id, 0))
	back.expect(`<resumed `)
	back.expect(fmt.Sprintf(`id="%d"`, stuffed-1))
	old.conn.Close()
	back.send(fmt.Sprintf(`<a xmlns='urn:xmpp:sm:3' h='%d'/>`, stuffed))
	inner := s.sink.(*session)
	f.until("all is acknowledged", func() bool {
		inner.mu.Lock()
		defer inner.mu.Unlock()
		return len(inner.sm.unacked) == 0 && inner.bytes == 0
	})
	f.until("the old connection is gone", func() bool { return f.srv.Metrics().Connections == 1 })
	back.send(`</stream:stream>`)
	s.wait(t)
	if len(s.undelivered) != 0 {
		t.Errorf("%d of %d stanzas came back although they were acknowledged", len(s.undelivered), stuffed)
	}
}

// stuff delivers stanzas until the writer is stuck, and some more; it returns how many were accepted.
func (f *fixture) stuff(s *fakeSession) (int, error) {
	f.tb.Helper()
	inner := s.sink.(*session)
	body := []byte("<body>" + strings.Repeat("x", 8<<10) + "</body>")
	deliver := func(n int) error {
		return s.sink.Deliver(stanza.WithInner(stanza.KindMessage, "chat", fmt.Sprint(n), jid.MustParse("bob@example.com/x"), s.full, body))
	}
	n, stuck := 0, time.Time{}
	for end := time.Now().Add(testPatience); time.Now().Before(end); {
		inner.mu.Lock()
		waiting := len(inner.pending)
		inner.mu.Unlock()
		switch {
		case waiting == 0:
			stuck = time.Time{}
		case stuck.IsZero():
			stuck = time.Now()
		case time.Since(stuck) > 200*time.Millisecond: // longer than a write to a reading client takes
			return n, nil
		default:
			time.Sleep(time.Millisecond)
			continue
		}
		if err := deliver(n); err != nil {
			return n, err
		}
		n++
	}
	return n, fmt.Errorf("%d stanzas went out to a client that reads nothing", n)
}

// trapped starts a server whose connections write through the function that
// trap sets; and one client on it.
func trapped(t *testing.T, settings ...string) (f *fixture, c *client, trap func(func([]byte) (int, error))) {
	t.Helper()
	var conn atomic.Pointer[trapConn]
	f = startWith(t, func(o *Options) {
		o.DirectTLS = nil
		o.Listen = func(a string) (net.Listener, error) {
			l, err := net.Listen("tcp", a)
			return trapListener{l, conn.Store}, err
		}
	}, settings...)
	c = f.online("alice", "desk")
	mine := conn.Load()
	return f, c, func(fn func([]byte) (int, error)) { mine.write.Store(&fn) }
}

type trapListener struct {
	net.Listener
	accepted func(*trapConn)
}

func (l trapListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	t := &trapConn{Conn: c}
	l.accepted(t)
	return t, nil
}

type trapConn struct {
	net.Conn
	write atomic.Pointer[func([]byte) (int, error)]
}

func (c *trapConn) Write(b []byte) (int, error) {
	if fn := c.write.Load(); fn != nil {
		return (*fn)(b)
	}
	return c.Conn.Write(b)
}

// TestNothingIsLostWithoutManagement: what was being written when the connection broke is handed back.
func TestNothingIsLostWithoutManagement(t *testing.T) {
	for name, enable := range map[string]string{"never on": "", "turned on meanwhile": `<enable xmlns='urn:xmpp:sm:3'/>`} {
		t.Run(name, func(t *testing.T) {
			f, c, trap := trapped(t)
			s := f.router.session(c.full)
			inner := s.sink.(*session)
			begun, let := make(chan struct{}, 10), make(chan struct{})
			trap(func([]byte) (int, error) {
				begun <- struct{}{}
				<-let
				return 0, net.ErrClosed
			})
			for i := range 3 {
				if err := f.deliver(c.full, fmt.Sprint(i)); err != nil {
					t.Fatal(err)
				}
				if i == 0 {
					<-begun
				}
			}
			if enable != "" {
				c.send(enable)
				f.until("it is on", func() bool { inner.mu.Lock(); defer inner.mu.Unlock(); return inner.sm != nil })
			}
			c.tcp().Close()
			f.until("the connection counts as lost", func() bool { inner.mu.Lock(); defer inner.mu.Unlock(); return inner.st == nil })
			close(let)
			s.wait(t)
			if len(s.undelivered) != 3 {
				t.Errorf("%d of 3 stanzas were handed back", len(s.undelivered))
			}
		})
	}
}

// TestOverflowWithoutManagement: what was being written when too much waited is handed back, too.
func TestOverflowWithoutManagement(t *testing.T) {
	f := start(t, "c2s.queue_stanzas", "100", "c2s.write_timeout", "1s")
	c := f.online("alice", "desk")
	s := f.router.session(c.full)
	accepted, err := f.stuff(s)
	for err == nil {
		if err = f.deliver(c.full, "more"); err == nil {
			accepted++
		}
	}
	if !fault.Is(err, fault.Overloaded) {
		t.Fatal(err)
	}
	s.wait(t)
	written := int(f.srv.Metrics().StanzasOut)
	if written+len(s.undelivered) != accepted || len(s.undelivered) < 100 {
		t.Errorf("%d accepted, %d written, %d handed back", accepted, written, len(s.undelivered))
	}
}

// TestWriteStall: a client that reads nothing is lost after the write timeout (S14).
func TestWriteStall(t *testing.T) {
	f := start(t, "c2s.queue_bytes", "100000000", "c2s.write_timeout", "500ms")
	c := f.online("alice", "desk")
	s := f.router.session(c.full)
	begin := time.Now()
	if _, err := f.stuff(s); err != nil {
		t.Fatal(err)
	}
	s.wait(t)
	if took := time.Since(begin); took < 500*time.Millisecond {
		t.Errorf("given up after %v", took)
	}
	f.until("the connection is gone", func() bool { return f.srv.Metrics().Connections == 0 })
}

// TestAnswersAreBounded: a client that makes the edge answer and acknowledges nothing is ended like any that does not keep up.
func TestAnswersAreBounded(t *testing.T) {
	for name, send := range map[string]string{
		"errors":           `<iq type='get' id='bad'/>`,
		"acknowledgements": `<r xmlns='urn:xmpp:sm:3'/>`,
	} {
		t.Run(name, func(t *testing.T) {
			f := start(t, "c2s.queue_stanzas", "100", "c2s.unlimited_networks", "127.0.0.0/8", "c2s.write_timeout", "100ms")
			c, _ := f.managed("alice", "desk")
			s := f.router.session(c.full)
			go func() {
				for flood := strings.Repeat(send, 50); ; {
					if _, err := io.WriteString(c.conn, flood); err != nil {
						return
					}
				}
			}()
			f.until("the session has no stream any more", func() bool {
				inner := s.sink.(*session)
				inner.mu.Lock()
				defer inner.mu.Unlock()
				if len(inner.pending) > 110 || inner.sm != nil && len(inner.sm.unacked) > 110 {
					t.Fatalf("%d and %d wait", len(inner.pending), len(inner.sm.unacked))
				}
				return inner.over || inner.st == nil
			})
		})
	}
}

// TestTheOldStreamCountsNothing: what still comes over the connection that a session has left is neither answered nor counted.
func TestTheOldStreamCountsNothing(t *testing.T) {
	f := start(t)
	old, id := f.managed("alice", "desk")
	s := f.router.session(old.full).sink.(*session)
	s.mu.Lock()
	st := s.st
	s.mu.Unlock()
	back := f.returning("alice")
	back.send(resumeElement(id, 0))
	back.expect(`<resumed [^>]*h='0'`)
	p, _ := stanza.ParsePacket([]byte(`<iq type='get' id='late'><x xmlns='urn:x'/></iq>`))
	s.answer(st, p, stanza.NewError(stanza.BadRequest, ""))
	s.receive(st, p)
	back.send(`<r xmlns='urn:xmpp:sm:3'/>`)
	back.expect(`<a xmlns='urn:xmpp:sm:3' h='0'/>`)
	if n := len(f.router.packets()); n != 0 {
		t.Errorf("%d stanzas reached the router", n)
	}
}

// TestHeldBytesAreCountedOnce: turning stream management on while stanzas are held back keeps the books right.
func TestHeldBytesAreCountedOnce(t *testing.T) {
	f := start(t)
	c := f.online("alice", "desk")
	s := f.router.session(c.full).sink.(*session)
	c.send(`<inactive xmlns='urn:xmpp:csi:0'/>`)
	f.until("inactive", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.quiet })
	for i := range 10 {
		if err := s.Deliver(presence(fmt.Sprintf("u%d@example.com/x", i), "", "")); err != nil {
			t.Fatal(err)
		}
	}
	c.send(`<enable xmlns='urn:xmpp:sm:3'/><active xmlns='urn:xmpp:csi:0'/>`)
	c.expect(`from="u9@example.com/x"`)
	c.send(`<a xmlns='urn:xmpp:sm:3' h='10'/>`)
	f.until("all is acknowledged", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.bytes < 0 {
			t.Fatalf("%d bytes wait", s.bytes)
		}
		return len(s.sm.unacked) == 0 && s.bytes == 0
	})
}

// TestOverflowBeforeTheBindIsAnswered ends the session that is about to begin.
func TestOverflowBeforeTheBindIsAnswered(t *testing.T) {
	f := start(t, "c2s.resume_queue_stanzas", "10")
	c := f.returning("alice")
	var st *stream
	f.until("it awaits a bind request", func() bool {
		st = f.srv.running().streams.all()[0]
		return st.input.Load() == inputParked
	})
	s := newSession(st)
	var err error
	for n := 0; err == nil; n++ {
		if n > 10 {
			t.Fatal("without a bound")
		}
		err = s.Deliver(presence(fmt.Sprintf("u%d@example.com/x", n), "", ""))
	}
	bound := &fakeSession{r: f.router, full: jid.MustParse("alice@example.com/desk"), sink: s, ended: make(chan struct{})}
	result, _ := stanza.ParsePacket([]byte(`<iq type='result' id='b'/>`))
	st.live(s)
	s.attach(st, bound, beginning{first: result.AppendTo(nil)})
	c.expect(`<iq [^>]*id="b"/>.*<stream:error><policy-violation `)
	bound.wait(t)
}

// TestBytesAreCountedLive: the bytes of open connections count, and each once.
func TestBytesAreCountedLive(t *testing.T) {
	f := start(t)
	c := f.online("alice", "desk")
	open := f.srv.Metrics()
	if open.BytesIn < 500 || open.BytesOut < 1000 {
		t.Errorf("%d in, %d out of an open connection", open.BytesIn, open.BytesOut)
	}
	c.conn.Close()
	f.until("it is gone", func() bool { return f.srv.Metrics().Connections == 0 })
	closed := f.srv.Metrics()
	if closed.BytesIn < open.BytesIn || closed.BytesIn > open.BytesIn+200 || closed.BytesOut < open.BytesOut {
		t.Errorf("%d in, %d out after it was closed; %d and %d before", closed.BytesIn, closed.BytesOut, open.BytesIn, open.BytesOut)
	}
	f.stop()
	if err := f.srv.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if again := f.srv.Metrics(); again.BytesIn != closed.BytesIn || again.BytesOut != closed.BytesOut {
		t.Errorf("%d in, %d out after a restart; %d and %d before", again.BytesIn, again.BytesOut, closed.BytesIn, closed.BytesOut)
	}
}

// TestDeadlineOfAnEnd: a stream that is ended just when its session begins is still closed in time.
func TestDeadlineOfAnEnd(t *testing.T) {
	f := start(t, "c2s.unlimited_networks", "127.0.0.0/8")
	for range 50 {
		c := f.returning("alice")
		st := f.srv.running().streams.all()[0]
		go st.end(stanza.StreamSystemShutdown, "", nil)
		_, _ = io.WriteString(c.conn, `<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>`)
		f.until("it ends", st.ending.Load)
		f.until("it has a deadline", func() bool { return st.deadline.Load() != 0 || st.closed.Load() })
		c.expect(`</stream:stream>`)
		c.conn.Close()
		f.until("it is gone", func() bool { return f.srv.Metrics().Connections == 0 })
	}
}
