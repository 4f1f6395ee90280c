package xmpp

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"muster/edges/xmpp/sasl"
	"muster/fsm/config"
	"muster/fsm/fsmtest"
	"muster/internal/certs"
	"muster/internal/fault"
	"muster/internal/jid"
	"muster/internal/scram"
	"muster/log"
	"muster/router"
	"muster/router/stanza"
)

const (
	testDomain   = "example.com"
	testPassword = "pencil"
	testRounds   = 64 // iterations: tests need no strength
	testPatience = 10 * time.Second
)

var testKey = []byte("a key of the cluster, for tests only")

// fakeRouter stands in for the router: it delivers messages between its own sessions and records the rest.
type fakeRouter struct {
	mu       sync.Mutex
	sessions map[jid.JID]*fakeSession
	bound    []*fakeSession
	bindErr  error
	bindWait func(context.Context)                        // nil: does not wait
	receive  func(s *fakeSession, p *stanza.Packet) error // nil: route
	received []*stanza.Packet
	wishes   [][]Wish                                                                     // of each binding
	resume   func(context.Context, router.ResumeRequest) (Session, router.Resumed, error) // nil: there is no session
	location string                                                                       // where clients are to resume
	onBind   func(*fakeSession)                                                           // nil: nothing; called before the edge knows

	departing bool // sessions are left to other nodes
}

type fakeSession struct {
	r           *fakeRouter
	full        jid.JID
	sink        Sink
	ended       chan struct{}
	once        sync.Once
	clean       bool
	undelivered []*stanza.Packet
	number      uint64
	record      router.Record
	handled     uint64   // stanzas taken
	taken       []uint64 // kept messages that the client has
	moved       bool     // it goes on elsewhere
}

func (r *fakeRouter) Bind(ctx context.Context, b BindRequest) (Session, error) {
	r.mu.Lock()
	if wait := r.bindWait; wait != nil {
		r.mu.Unlock()
		wait(ctx)
		r.mu.Lock()
	}
	defer r.mu.Unlock()
	if r.bindErr != nil {
		return nil, r.bindErr
	}
	res := b.Resource
	if res == "" {
		res = fmt.Sprintf("made-%d", len(r.bound))
	}
	r.wishes = append(r.wishes, b.Wishes)
	s := &fakeSession{r: r, number: uint64(len(r.bound)) + 1, full: b.User.WithResource(res), sink: b.Sink, ended: make(chan struct{})}
	if old := r.sessions[s.full]; old != nil {
		go old.sink.End(stanza.StreamConflict, "replaced")
	}
	r.sessions[s.full] = s
	if r.onBind != nil {
		r.onBind(s)
	}
	r.bound = append(r.bound, s)
	return s, nil
}

func (r *fakeRouter) Resume(ctx context.Context, q router.ResumeRequest) (Session, router.Resumed, error) {
	if r.resume != nil {
		return r.resume(ctx, q)
	}
	return nil, router.Resumed{}, fault.New(fault.NotFound, "fake.resume", "", "")
}

func (r *fakeRouter) StreamFeatures() []byte {
	return []byte(`<ver xmlns="urn:xmpp:features:rosterver"/>`)
}

func (r *fakeRouter) BindFeatures() []string { return []string{stanza.NSCarbons} }

func (r *fakeRouter) packets() []*stanza.Packet {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]*stanza.Packet(nil), r.received...)
}

func (r *fakeRouter) session(full string) *fakeSession {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sessions[jid.MustParse(full)]
}

func (s *fakeSession) JID() jid.JID { return s.full }

func (s *fakeSession) Receive(ctx context.Context, p *stanza.Packet) error {
	err := s.take(ctx, p)
	if err == nil {
		s.handled++
		s.sink.(router.Counter).Handled(s.handled, s.handled)
	}
	return err
}

func (s *fakeSession) Skip() {
	s.handled++
	s.sink.(router.Counter).Handled(s.handled, s.handled)
}

func (s *fakeSession) Location() string { return s.r.location }

func (s *fakeSession) ID() uint64 { return s.number }

func (s *fakeSession) Record(rec router.Record) {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	s.record = rec
}

func (s *fakeSession) Confirm(uint64) {}

func (s *fakeSession) Moved() bool { return s.moved }

// Suspend implements Session.
func (s *fakeSession) Suspend() bool {
	s.r.mu.Lock()
	departing := s.r.departing
	s.r.mu.Unlock()
	if departing {
		s.sink.(router.Suspender).Suspend()
	}
	return departing
}

func (s *fakeSession) Taken(ps []*stanza.Packet) {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	for _, p := range ps {
		s.taken = append(s.taken, p.Number)
	}
}

// confirmed returns the kept messages that the client has.
func (s *fakeSession) confirmed() []uint64 {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	return slices.Clone(s.taken)
}

func (s *fakeSession) take(_ context.Context, p *stanza.Packet) error {
	s.r.mu.Lock()
	s.r.received = append(s.r.received, p)
	fn, to := s.r.receive, s.r.sessions[p.To]
	s.r.mu.Unlock()
	if fn != nil {
		return fn(s, p)
	}
	if to != nil {
		return to.sink.Deliver(p)
	}
	if p.IsRequest() && p.Has(stanza.NSPing, "ping") {
		return s.sink.Deliver(p.Result(nil))
	}
	return nil
}

func (s *fakeSession) End(clean bool, undelivered []*stanza.Packet) {
	s.once.Do(func() {
		s.clean, s.undelivered = clean, undelivered
		close(s.ended)
	})
}

func (s *fakeSession) wait(t *testing.T) {
	t.Helper()
	select {
	case <-s.ended:
	case <-time.After(testPatience):
		t.Fatalf("%s: the session was not ended", s.full)
	}
}

// accounts is a directory of alice, bob and carol, who is disabled; all have the same password.
type accounts map[string]sasl.Account

func (a accounts) Account(j jid.JID) (sasl.Account, bool) {
	acc, ok := a[j.String()]
	return acc, ok
}

func testAccounts(tb testing.TB) accounts {
	tb.Helper()
	out := accounts{}
	for _, name := range []string{"alice", "bob", "carol", "admin"} {
		v256, v1, err := scram.Derive(testPassword, []byte("salt of "+name), testRounds)
		if err != nil {
			tb.Fatal(err)
		}
		j := jid.MustParse(name + "@" + testDomain)
		out[j.String()] = sasl.Account{User: j, SHA256: v256, SHA1: v1, Disabled: name == "carol", Admin: name == "admin"}
	}
	return out
}

var testCA = sync.OnceValues(func() (*certs.CA, error) { return certs.NewCA("test", time.Now()) })

// fixture is a started server.
type fixture struct {
	tb     testing.TB
	srv    *Server
	router *fakeRouter
	rig    *fsmtest.Rig
	live   *config.Live
	logs   *logBuffer
	ca     *certs.CA
}

type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start runs a server with settings (name, value, …) on ports of its own.
func start(tb testing.TB, settings ...string) *fixture {
	tb.Helper()
	return startWith(tb, func(*Options) {}, settings...)
}

func startWith(tb testing.TB, change func(*Options), settings ...string) *fixture {
	tb.Helper()
	ca, err := testCA()
	if err != nil {
		tb.Fatal(err)
	}
	source, err := ca.IssueSource(time.Now(), testDomain)
	if err != nil {
		tb.Fatal(err)
	}
	rig := fsmtest.New(tb, config.Module())
	rig.Must(config.AddDomainEntry(testDomain))
	f := &fixture{tb: tb, rig: rig, live: config.NewLive(rig.M, 1), logs: &logBuffer{}, ca: ca,
		router: &fakeRouter{sessions: map[jid.JID]*fakeSession{}}}
	for i := 0; i+1 < len(settings); i += 2 {
		f.set(settings[i], settings[i+1])
	}
	o := Options{
		Node: 1, StartTLS: []string{"127.0.0.1:0"}, DirectTLS: []string{"127.0.0.1:0"}, Certs: source, Router: f.router,
		State: rig.M, Live: f.live, Accounts: testAccounts(tb), Key: testKey, Iterations: func(string) int { return testRounds },
		Logger: slog.New(slog.NewTextHandler(f.logs, nil)),
	}
	change(&o)
	if f.srv, err = New(o); err != nil {
		tb.Fatal(err)
	}
	if err := f.srv.Start(context.Background()); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(f.stop)
	return f
}

func (f *fixture) set(name, value string) {
	f.tb.Helper()
	f.rig.Must(config.SetEntry(name, value, 0))
	f.live.Reload()
}

// in returns the fixture for a subtest.
func (f *fixture) in(t *testing.T) *fixture {
	sub := *f
	sub.tb = t
	return &sub
}

func (f *fixture) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = f.srv.Stop(ctx)
}

// until waits for a condition.
func (f *fixture) until(what string, cond func() bool) {
	f.tb.Helper()
	for end := time.Now().Add(testPatience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			f.tb.Fatalf("waited in vain: %s", what)
		}
	}
}

// client is a hand-made client that can do everything wrong.
type client struct {
	tb   testing.TB
	conn net.Conn
	got  strings.Builder // not yet expected
	full string
}

func (f *fixture) dial() *client { return f.dialTo(0) }

func (f *fixture) dialTo(listener int) *client {
	f.tb.Helper()
	c, err := net.Dial("tcp", f.srv.Addresses()[listener].String())
	if err != nil {
		f.tb.Fatal(err)
	}
	f.tb.Cleanup(func() { c.Close() })
	return &client{tb: f.tb, conn: c}
}

func (f *fixture) tlsConfig() *tls.Config {
	return &tls.Config{RootCAs: f.ca.Pool(), ServerName: testDomain}
}

func (c *client) tcp() *net.TCPConn {
	if t, ok := c.conn.(*tls.Conn); ok {
		return t.NetConn().(*net.TCPConn)
	}
	return c.conn.(*net.TCPConn)
}

// tlsClient negotiates TLS from the first byte on.
func tlsClient(f *fixture, c *client) net.Conn {
	c.tb.Helper()
	t := tls.Client(c.conn, f.tlsConfig())
	if err := t.Handshake(); err != nil {
		c.tb.Fatal(err)
	}
	return t
}

const openStream = `<?xml version='1.0'?><stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' to='example.com' version='1.0'>`

func (c *client) send(s string) {
	c.tb.Helper()
	_ = c.conn.SetWriteDeadline(time.Now().Add(testPatience))
	if _, err := io.WriteString(c.conn, s); err != nil {
		c.tb.Fatalf("send: %v", err)
	}
}

// expect reads until pattern matches and returns its first group, or all; what came before it is dropped.
func (c *client) expect(pattern string) string {
	c.tb.Helper()
	re := regexp.MustCompile(pattern)
	buf := make([]byte, 4096)
	end := time.Now().Add(testPatience)
	for {
		if m := re.FindStringSubmatchIndex(c.got.String()); m != nil {
			all := c.got.String()
			c.got.Reset()
			c.got.WriteString(all[m[1]:])
			if len(m) > 2 {
				return all[m[2]:m[3]]
			}
			return all[m[0]:m[1]]
		}
		_ = c.conn.SetReadDeadline(end)
		n, err := c.conn.Read(buf)
		c.got.Write(buf[:n])
		if err != nil && n == 0 {
			c.tb.Fatalf("expected %s; got %q and %v", pattern, c.got.String(), err)
		}
	}
}

// closed reads until the server hangs up, and returns the rest.
func (c *client) closed() string {
	c.tb.Helper()
	_ = c.conn.SetReadDeadline(time.Now().Add(testPatience))
	rest, err := io.ReadAll(c.conn)
	if err, ok := err.(net.Error); ok && err.Timeout() {
		c.tb.Fatalf("the server did not hang up; got %q %q", c.got.String(), rest)
	}
	return c.got.String() + string(rest)
}

func (c *client) startTLS(f *fixture) {
	c.tb.Helper()
	c.send(openStream)
	c.expect(`<starttls [^>]*><required/></starttls></stream:features>`)
	c.send(`<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>`)
	c.expect(`<proceed [^>]*/>`)
	c.secure(f)
}

func (c *client) secure(f *fixture) {
	c.tb.Helper()
	t := tls.Client(c.conn, f.tlsConfig())
	if err := t.Handshake(); err != nil {
		c.tb.Fatal(err)
	}
	c.conn = t
	c.send(openStream)
	c.expect(`</stream:features>`)
}

func plainLogin(user, password string) string {
	return `<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>` +
		base64.StdEncoding.EncodeToString([]byte("\x00"+user+"\x00"+password)) + `</auth>`
}

func (c *client) login(user string) {
	c.tb.Helper()
	c.send(plainLogin(user, testPassword))
	c.expect(`<success [^>]*/>`)
	c.send(openStream)
	c.expect(`</stream:features>`)
}

func (c *client) bind(resource string) {
	c.tb.Helper()
	c.send(`<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>` + resource + `</resource></bind></iq>`)
	c.full = c.expect(`<jid>([^<]*)</jid></bind></iq>`)
}

// online returns a logged-in client with a session.
func (f *fixture) online(user, resource string) *client {
	f.tb.Helper()
	c := f.dial()
	c.startTLS(f)
	c.login(user)
	c.bind(resource)
	return c
}

func addDomain(name string) *log.Entry { return config.AddDomainEntry(name) }
