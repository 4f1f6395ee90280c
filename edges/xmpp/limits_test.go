package xmpp

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"muster/fsm/config"
	"muster/fsm/fsmtest"
	"muster/internal/fault"
	"muster/internal/jid"
	"muster/router/stanza"
)

var testLimits = limits{perAddress: 3, total: 5, addressRate: 10}

func TestGate(t *testing.T) {
	now := time.Now()
	one, two := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	g := newGate()
	for i, tt := range []struct {
		addr netip.Addr
		want refusal
	}{{one, ""}, {one, ""}, {one, ""}, {one, refusedAddress}, {two, ""}, {two, ""}, {two, refusedTotal}} {
		if got := g.enter(tt.addr, testLimits, now); got != tt.want {
			t.Errorf("%d: got %q, want %q", i, got, tt.want)
		}
	}
	free := testLimits
	free.unlimited = true
	if got := g.enter(one, free, now); got != "" {
		t.Errorf("unlimited: %q", got)
	}
	g.leave(one, true)
	g.leave(one, false)
	if got := g.enter(one, testLimits, now); got != "" {
		t.Errorf("after one left: %q", got)
	}
	if n := g.unauthenticated(); n != 5 {
		t.Errorf("%d waiting", n)
	}
}

func TestGateRate(t *testing.T) {
	now := time.Now()
	g, a := newGate(), netip.MustParseAddr("192.0.2.1")
	l := limits{perAddress: 1000, total: 1000, addressRate: 10}
	in := 0
	for g.enter(a, l, now) == "" {
		in++
	}
	if in != 10*burstFactor || g.enter(a, l, now) != refusedRate {
		t.Errorf("%d at once", in)
	}
	if got := g.enter(a, l, now.Add(time.Second)); got != "" {
		t.Errorf("a second later: %q", got)
	}
	l.addressRate = 1000
	if got := g.enter(a, l, now.Add(2*time.Second)); got != "" {
		t.Errorf("after the setting was raised: %q", got)
	}
}

func TestGateForgets(t *testing.T) {
	now := time.Now()
	g := newGate()
	l := limits{perAddress: 1, total: 1 << 30, addressRate: 1}
	for i := range maxAddresses {
		if got := g.enter(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), l, now); got != "" {
			t.Fatal(got)
		}
	}
	other := netip.MustParseAddr("192.0.2.1")
	if got := g.enter(other, l, now.Add(time.Minute)); got != refusedMemory {
		t.Errorf("got %q: an address whose connections are open was forgotten", got)
	}
	g.leave(netip.AddrFrom4([4]byte{10, 0, 0, 7}), false)
	if got := g.enter(other, l, now.Add(time.Minute)); got != "" {
		t.Errorf("got %q", got)
	}
	if len(g.addresses) != maxAddresses {
		t.Errorf("%d addresses", len(g.addresses))
	}
}

func TestClientAddress(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"192.0.2.1", "192.0.2.1"}, {"::ffff:192.0.2.1", "192.0.2.1"}, {"2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"},
	} {
		if got := clientAddress(&net.TCPAddr{IP: net.ParseIP(tt.in), Port: 1}); got.String() != tt.want {
			t.Errorf("%s: %s", tt.in, got)
		}
	}
	if clientAddress(&net.UnixAddr{}).IsValid() {
		t.Error("an address that is none")
	}
}

func TestNetworks(t *testing.T) {
	r := fsmtest.New(t, config.Module())
	live := config.NewLive(r.M, 1)
	var u unlimited
	a := netip.MustParseAddr("10.1.2.3")
	if u.contain(live, a) {
		t.Error("everybody is free of limits")
	}
	r.Must(config.SetEntry("c2s.unlimited_networks", "192.0.2.0/24, 10.0.0.0/8,2001:db8::/32", 1))
	live.Reload()
	for s, want := range map[string]bool{"10.1.2.3": true, "11.0.0.1": false, "2001:db8::5": true, "192.0.2.255": true} {
		if got := u.contain(live, netip.MustParseAddr(s)); got != want {
			t.Errorf("%s: %v", s, got)
		}
	}
	r.Refused(config.SetEntry("c2s.unlimited_networks", "10.0.0.1", 0), fault.NotAcceptable)
	r.Refused(config.SetEntry("c2s.unlimited_networks", "everybody", 0), fault.NotAcceptable)
}

// clock is a time that a test moves.
type clock struct{ now time.Time }

func (c *clock) time() time.Time { return c.now }

func testGuard() (*guard, *clock) {
	g, c := newGuard(), &clock{time.Unix(1_800_000_000, 0)}
	g.now = c.time
	return g, c
}

func TestLockOut(t *testing.T) {
	g, c := testGuard()
	fail := func(n int, account, peer string) (pair, address bool) {
		for range n {
			_, p, a := g.failed(account, peer)
			pair, address = pair || p, address || a
		}
		return pair, address
	}
	if pair, _ := fail(pairFailures-1, "alice", "a"); pair || g.check("alice", "a") != nil {
		t.Error("locked too early")
	}
	if pair, _ := fail(1, "alice", "a"); !pair || !fault.Is(g.check("alice", "a"), fault.Overloaded) {
		t.Error("not locked")
	}
	if g.check("alice", "b") != nil || g.check("bob", "a") != nil {
		t.Error("others are locked out too")
	}
	c.now = c.now.Add(pairLock)
	if g.check("alice", "a") != nil {
		t.Error("locked for ever")
	}
	fail(pairFailures-1, "alice", "a")
	c.now = c.now.Add(pairWindow + time.Second)
	if pair, _ := fail(1, "alice", "a"); pair {
		t.Error("old failures count")
	}
	fail(pairFailures-2, "alice", "a")
	g.succeeded("alice", "a")
	if pair, _ := fail(1, "alice", "a"); pair {
		t.Error("failures before a success count")
	}
	if fail(100, "alice", ""); g.check("alice", "") != nil {
		t.Error("a client without an address was locked out")
	}
}

func TestAddressBan(t *testing.T) {
	g, c := testGuard()
	banned := false
	for i := range addressFailures {
		_, _, b := g.failed(fmt.Sprintf("user%d", i), "a")
		banned = banned || b
	}
	if !banned || !g.banned("a") || g.banned("b") || g.check("anybody", "a") == nil {
		t.Error("not banned, or too many")
	}
	c.now = c.now.Add(addressLock)
	if g.banned("a") {
		t.Error("banned for ever")
	}
}

func TestTarpit(t *testing.T) {
	g, _ := testGuard()
	var waits []time.Duration
	for i := range accountFailures + 8 {
		wait, _, _ := g.failed("alice", fmt.Sprintf("attacker%d", i))
		waits = append(waits, wait)
	}
	got := waits[accountFailures-1:]
	want := []time.Duration{0, 1, 2, 4, 8, 16, 30, 30, 30}
	for i := range want {
		if got[i] != want[i]*time.Second {
			t.Errorf("failure %d: wait %v, want %ds", accountFailures+i, got[i], want[i])
		}
	}
	if g.check("alice", "home") != nil {
		t.Error("the account is locked for its owner")
	}
}

func TestGuardIsBounded(t *testing.T) {
	g, c := testGuard()
	for range pairFailures {
		g.failed("victim", "attacker")
	}
	for i := range maxTallies + 1000 {
		g.failed("alice", fmt.Sprint(i))
	}
	if n := len(g.pairs.tallies); n > maxTallies {
		t.Errorf("%d tallies", n)
	}
	c.now = c.now.Add(2 * time.Hour)
	g.sweep()
	if n := len(g.pairs.tallies) + len(g.addresses.tallies) + len(g.accounts.tallies); n != 0 {
		t.Errorf("%d tallies are never forgotten", n)
	}
}

// TestBruteForce goes through the whole server (S13).
func TestBruteForce(t *testing.T) {
	f := start(t)
	guess := func(user string) string {
		c := f.dial()
		c.startTLS(f)
		c.send(plainLogin(user, "guess"))
		return c.expect(`<failure [^>]*><([a-z-]+)/>`)
	}
	for i := range pairFailures {
		if got := guess("alice"); got != "not-authorized" {
			t.Fatalf("%d: %s", i, got)
		}
	}
	if got := guess("alice"); got != "temporary-auth-failure" {
		t.Errorf("after the lock: %s", got)
	}
	c := f.dial()
	c.startTLS(f)
	c.send(plainLogin("alice", testPassword))
	c.expect(`<temporary-auth-failure/><text [^>]*>too many failed logins: try again in 1[45] minutes`)
	f.online("bob", "desk") // another account from that address
	for i := range addressFailures - pairFailures {
		guess(fmt.Sprintf("nobody%d", i))
	}
	banned := f.dial()
	if got := banned.closed(); got != "" {
		t.Errorf("a banned address was answered: %s", got)
	}
	m := f.srv.Metrics()
	if m.LoginsFailed != addressFailures || m.LockedOut != 2 || m.Refused["banned"] != 1 {
		t.Errorf("metrics %+v", m)
	}
	if logs := f.logs.String(); !strings.Contains(logs, "login_failed") || strings.Contains(logs, "guess") || strings.Contains(logs, testPassword) {
		t.Error("the log lacks the failures, or holds passwords")
	}
}

func TestFiveTries(t *testing.T) {
	f := start(t)
	c := f.dial()
	c.startTLS(f)
	for range maxTries {
		c.send(`<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='X'/>`)
		c.expect(`<failure [^>]*><invalid-mechanism/>`)
	}
	c.expect(`<stream:error><policy-violation`)
	c.closed()
}

// TestSlowLoris: nobody holds a connection by sending a byte now and then (S14).
func TestSlowLoris(t *testing.T) {
	f := start(t, "c2s.header_timeout", "300ms", "c2s.login_timeout", "700ms")
	drip := func(c *client, s string) time.Duration {
		begin := time.Now()
		go func() {
			for _, b := range []byte(s) {
				if _, err := c.conn.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
		}()
		c.expect(`<stream:error><connection-timeout`)
		c.closed()
		return time.Since(begin)
	}
	for _, tt := range []struct {
		name  string
		setup func(f *fixture, c *client)
		send  string
		most  time.Duration
	}{
		{"in the header", func(*fixture, *client) {}, openStream, 2 * time.Second},
		{"before TLS", func(_ *fixture, c *client) { c.send(openStream); c.expect(`</stream:features>`) }, strings.Repeat(" ", 200), 3 * time.Second},
		{"in the login", func(f *fixture, c *client) { c.startTLS(f) }, "<auth>" + strings.Repeat("A", 200), 3 * time.Second},
		{"before the bind", func(f *fixture, c *client) { c.startTLS(f); c.login("alice") }, strings.Repeat(" ", 200), 3 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := f.in(t)
			c := f.dial()
			tt.setup(f, c)
			if d := drip(c, tt.send); d > tt.most {
				t.Errorf("held for %v", d)
			}
		})
	}
	t.Run("in the handshake", func(t *testing.T) {
		f := f.in(t)
		c := f.dialTo(1)
		c.send("\x16\x03\x01")
		c.closed()
	})
	f.until("nothing is left", func() bool {
		m := f.srv.Metrics()
		return m.Connections == 0 && m.Unauthenticated == 0
	})
}

func TestTooManyUnauthenticated(t *testing.T) {
	f := start(t, "c2s.unauthenticated_per_address", "3")
	f.online("alice", "desk") // does not count any more
	open := []*client{f.dial(), f.dial(), f.dial()}
	for _, c := range open {
		c.send(openStream)
		c.expect(`</stream:features>`)
	}
	if got := f.dial().closed(); got != "" {
		t.Errorf("answered: %s", got)
	}
	if n := f.srv.Metrics().Refused["unauthenticated_per_address"]; n != 1 {
		t.Errorf("%d refused", n)
	}
	open[0].conn.Close()
	f.until("one has left", func() bool { return f.srv.Metrics().Unauthenticated == 2 })
	c := f.dial()
	c.send(openStream)
	c.expect(`</stream:features>`)
	f.set("c2s.unlimited_networks", "127.0.0.0/8")
	c = f.dial()
	c.send(openStream)
	c.expect(`</stream:features>`)
}

// TestThrottle: a flood is read late, not dropped, and an administrator's is not.
func TestThrottle(t *testing.T) {
	f := start(t, "c2s.stanza_burst", "10", "c2s.stanza_rate", "100")
	var b strings.Builder
	for i := range 40 {
		fmt.Fprintf(&b, `<message to='x@example.com' id='%d'/>`, i)
	}
	for _, tt := range []struct {
		user string
		slow bool
	}{{"alice", true}, {"admin", false}} {
		t.Run(tt.user, func(t *testing.T) {
			f := f.in(t)
			c := f.online(tt.user, "desk")
			before := f.srv.Metrics().Throttled
			begin := time.Now()
			c.send(b.String() + `<iq type='get' id='p'><ping xmlns='urn:xmpp:ping'/></iq>`)
			c.expect(`id="p"`)
			took, throttled := time.Since(begin), f.srv.Metrics().Throttled > before
			if throttled != tt.slow || tt.slow && took < 250*time.Millisecond {
				t.Errorf("took %v, throttled %v", took, throttled)
			}
		})
	}
	if n := len(f.router.packets()); n != 82 {
		t.Errorf("%d stanzas of 82", n)
	}
}

func TestByteRate(t *testing.T) {
	f := start(t, "c2s.byte_rate", "100000", "c2s.byte_burst", "4096")
	c := f.online("alice", "desk")
	begin := time.Now()
	c.send(`<message to='x@example.com'><body>` + strings.Repeat("x", 50_000) + `</body></message><iq type='get' id='p'><ping xmlns='urn:xmpp:ping'/></iq>`)
	c.expect(`id="p"`)
	if took := time.Since(begin); took < 400*time.Millisecond {
		t.Errorf("took %v", took)
	}
}

// TestPanicsAreContained: a panic ends one stream (S28).
func TestPanicsAreContained(t *testing.T) {
	f := start(t)
	bystander := f.online("bob", "desk")
	c := f.online("alice", "desk")
	s := f.router.session(c.full)
	f.router.mu.Lock()
	f.router.receive = func(_ *fakeSession, p *stanza.Packet) error {
		if p.ID == "boom" {
			panic("boom")
		}
		return f.router.session("bob@example.com/desk").sink.Deliver(p)
	}
	f.router.mu.Unlock()
	c.send(`<message to='x@example.com' id='boom'/>`)
	c.expect(`<stream:error><internal-server-error`)
	c.closed()
	s.wait(t)
	bystander.send(`<message to='bob@example.com/desk' id='fine'/>`)
	bystander.expect(`id="fine"`)
	c.conn.Close()
	f.until("the stream is gone", func() bool { return f.srv.Metrics().Connections == 1 })
	if n := f.srv.Metrics().Panics; n != 1 {
		t.Errorf("%d panics", n)
	}
}

func TestBindErrors(t *testing.T) {
	f := start(t)
	for _, tt := range []struct {
		name string
		err  error
		want string
	}{
		{"conflict", fault.New(fault.Conflict, "bind", "", ""), `<error type="cancel"><conflict`},
		{"too many sessions", fault.New(fault.TooLarge, "bind", "", "ten sessions"), `<error type="wait"><resource-constraint .*ten sessions`},
		{"no home", fault.New(fault.Unavailable, "bind", "", ""), `<error type="wait"><resource-constraint`},
		{"deleted meanwhile", fault.New(fault.NotFound, "bind", "", ""), `<error type="cancel"><not-allowed`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := f.in(t)
			f.router.mu.Lock()
			f.router.bindErr = tt.err
			f.router.mu.Unlock()
			c := f.returning("alice")
			c.send(`<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>`)
			c.expect(`<iq [^>]*type="error" id="b"[^>]*>` + tt.want)
			f.router.mu.Lock()
			f.router.bindErr = nil
			f.router.mu.Unlock()
			c.bind("desk") // may try again
		})
	}
	t.Run("bad resource", func(t *testing.T) {
		c := f.in(t).returning("alice")
		c.send(`<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>` + strings.Repeat("x", jid.MaxPart+1) + `</resource></bind></iq>`)
		c.expect(`type="error" id="b"[^>]*><error type="modify"><bad-request`)
		c.send(`<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>`)
		c.expect(`<jid>alice@example.com/made-`)
	})
}
