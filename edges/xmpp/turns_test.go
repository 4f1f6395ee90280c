package xmpp

import (
	"context"
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// people come to a turnstile and note in which order they got through, and who did not.
type people struct {
	t     turns
	l     turnLimits
	mu    sync.Mutex
	story []string
}

func (p *people) come(name string, first bool) {
	go func() {
		outcome := p.t.enter(first, p.l)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.story = append(p.story, fmt.Sprint(name, []string{"", " refused", " expired", " stopped"}[outcome]))
	}()
	time.Sleep(time.Millisecond) // so that no two come at one time
	synctest.Wait()
}

func (p *people) want(t *testing.T, what ...string) {
	t.Helper()
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.Equal(p.story, what) {
		t.Fatalf("got %q, want %q", p.story, what)
	}
	p.story = nil
}

func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &people{l: turnLimits{turns: 2, queue: 3, wait: 10 * time.Second}}
		p.come("a", true)
		p.come("b", true)
		p.want(t, "a", "b")
		for _, name := range []string{"c", "d", "e", "f"} {
			p.come(name, true)
		}
		p.want(t, "f refused")
		p.come("b again", false)
		p.t.leave(2)
		p.want(t, "b again") // before all whose handshake has not begun
		p.t.leave(2)
		p.want(t, "c")
		time.Sleep(9 * time.Second)
		p.come("g", true)
		time.Sleep(2 * time.Second)
		p.want(t, "d expired", "e expired")
		p.t.leave(2)
		p.want(t, "g")
		if n := p.t.waitingNow(); n != 0 {
			t.Errorf("%d wait", n)
		}
		p.come("h", true)
		p.come("i", false)
		p.t.leave(1) // the setting was lowered: one turn less
		p.want(t)
		p.t.leave(1)
		p.want(t, "i")
		p.t.stop()
		p.want(t, "h stopped")
		p.come("k", true)
		p.want(t, "k stopped")
	})
}

// busy takes all turns of the fixture's server.
func (f *fixture) busy() (free func()) {
	r := f.srv.running()
	n := r.turnLimits().turns
	for range n {
		r.turns.enter(true, turnLimits{turns: n})
	}
	return func() {
		for range n {
			r.turns.leave(n)
		}
	}
}

// TestLoginsWaitTheirTurn: while the node is busy with logins, clients wait before their handshake, and the bounded queue keeps the rest out.
func TestLoginsWaitTheirTurn(t *testing.T) {
	f := start(t, "c2s.login_queue", "2", "c2s.login_wait", "5m", "c2s.header_timeout", "100ms", "c2s.login_timeout", "10m")
	here := f.online("alice", "desk")
	free := f.busy()
	direct, plain := f.dialTo(1), f.dial()
	done := make(chan *client, 2)
	go func() {
		direct.conn = tlsClient(f, direct)
		direct.send(openStream)
		done <- direct
	}()
	go func() {
		plain.startTLS(f)
		done <- plain
	}()
	f.until("both wait", func() bool { return f.srv.Metrics().LoginsWaiting == 2 })
	late := f.dial()
	late.send(openStream)
	late.expect(`</stream:features>`)
	late.send(`<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>`)
	late.expect(`^<stream:error><resource-constraint `)
	other := f.dialTo(1)
	if rest := other.closedWithoutHandshake(f); rest == nil {
		t.Error("a connection got its handshake though the queue is full")
	}
	here.send(`<iq type='get' id='p'><ping xmlns='urn:xmpp:ping'/></iq>`) // who has a session needs no turn
	here.expect(`type="result" id="p"`)
	f.set("c2s.header_timeout", "5m") // the test's own machine may be slow; that the wait is not counted has been seen
	free()
	for range 2 {
		c := <-done
		c.login("bob")
	}
	if m := f.srv.Metrics(); m.LoginsWaiting != 0 || m.Refused["login_queue"] != 2 {
		t.Errorf("metrics %+v", m)
	}
}

// closedWithoutHandshake returns why the handshake failed.
func (c *client) closedWithoutHandshake(f *fixture) error {
	_ = c.conn.SetDeadline(time.Now().Add(testPatience))
	return tls.Client(c.conn, f.tlsConfig()).Handshake()
}

func TestLoginWaitIsBounded(t *testing.T) {
	f := start(t, "c2s.login_wait", "100ms")
	defer f.busy()()
	if err := f.dialTo(1).closedWithoutHandshake(f); err == nil {
		t.Error("a connection got its handshake")
	}
	if m := f.srv.Metrics(); m.Refused["login_wait"] != 1 || m.LoginsWaiting != 0 {
		t.Errorf("metrics %+v", m)
	}
}

// TestSlowClientsHoldNoTurn: clients that say half of what is due keep nobody out.
func TestSlowClientsHoldNoTurn(t *testing.T) {
	f := start(t, "c2s.login_share", "1") // one at a time
	for range 3 {
		slow := f.dialTo(1)
		slow.send("\x16\x03\x01\x02\x00\x01\x00") // the beginning of a handshake
		half := f.dial()
		half.startTLS(f)
		half.send(`<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='SCRAM-SHA-1'>`)
	}
	var all sync.WaitGroup
	for i := range 10 {
		all.Go(func() {
			c := f.dial()
			c.startTLS(f)
			c.login([]string{"alice", "bob"}[i%2])
			c.bind(fmt.Sprint("r", i))
		})
	}
	all.Wait()
	if m := f.srv.Metrics(); m.Sessions != 10 {
		t.Errorf("metrics %+v", m)
	}
	if r := f.srv.running(); r.turns.busyNow() != 0 {
		t.Errorf("%d turns are taken", r.turns.busyNow())
	}
}

// TestBindingHoldsNoTurn: a login that waits for the cluster keeps nobody out, whatever it waits for.
func TestBindingHoldsNoTurn(t *testing.T) {
	f := start(t, "c2s.login_share", "1")
	proceed := make(chan struct{})
	defer close(proceed)
	c := f.returning("alice")
	f.router.mu.Lock()
	f.router.bindWait = func(ctx context.Context) {
		select {
		case <-proceed:
		case <-ctx.Done():
		}
	}
	f.router.mu.Unlock()
	c.send(`<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>`)
	wrong := f.dial()
	wrong.startTLS(f)
	wrong.send(plainLogin("bob", "wrong"))
	wrong.expect(`<failure `)
	f.returning("bob")
}

// TestClientThatGaveUp: the handshake is not made for a client that has hung up while it waited.
func TestClientThatGaveUp(t *testing.T) {
	f := start(t)
	c, d := f.dial(), f.dialTo(1)
	conn := f.srvConn(c)
	if conn.hungUp() {
		t.Error("a client that is there counts as gone")
	}
	c.send("x")
	if conn.hungUp() {
		t.Error("a client that has sent something counts as gone")
	}
	d.conn.Close()
	f.until("the end is seen", func() bool {
		w := f.srvConn(d)
		return w == nil || w.hungUp()
	})
}

// srvConn returns the server's end of a client's connection; nil if it is closed.
func (f *fixture) srvConn(c *client) (w *wire) {
	f.tb.Helper()
	at := c.conn.LocalAddr().String()
	find := func() bool {
		f.srv.running().streams.each(func(st *stream) {
			if st.wire.RemoteAddr().String() == at {
				w = st.wire
			}
		})
		return w != nil
	}
	for end := time.Now().Add(testPatience); !find() && f.srv.Metrics().Accepted < 2 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	return w
}

func TestStopSendsWaitingClientsAway(t *testing.T) {
	f := start(t)
	free := f.busy()
	gone := make(chan error, 1)
	go func() { gone <- f.dialTo(1).closedWithoutHandshake(f) }()
	f.until("it waits", func() bool { return f.srv.Metrics().LoginsWaiting == 1 })
	f.stop()
	if err := <-gone; err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("the client was left waiting: %v", err)
	}
	free()
}
