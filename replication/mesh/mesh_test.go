package mesh

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"muster/internal/fault"
	"muster/replication/pki"
)

// authority makes identities of one cluster.
type authority struct {
	id string
	ca *pki.CA
}

func newAuthority(t testing.TB, id string) *authority {
	ca, err := pki.NewCA(id, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &authority{id, ca}
}

func (a *authority) identity(t testing.TB, node uint32, now time.Time) *pki.Identity {
	id := &pki.Identity{ClusterID: a.id, NodeID: node, Name: "n", CA: a.ca.Cert}
	if err := id.Certify(a.ca, now); err != nil {
		t.Fatal(err)
	}
	return id
}

// book is where test nodes listen, and who was removed.
type book struct {
	mu    sync.Mutex
	addrs map[uint32]string
	state map[uint32]MemberState
}

func (b *book) addr(n uint32) (string, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a, ok := b.addrs[n]
	return a, ok
}

func (b *book) member(n uint32) MemberState {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state[n]
}

// logBuffer keeps what was logged.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) has(s string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.b.String(), s)
}

func start(t testing.TB, b *book, id *pki.Identity) (*Mesh, *logBuffer) {
	logs := &logBuffer{}
	m := New(Config{Identity: id, Listen: "127.0.0.1:0", AddrOf: b.addr, Member: b.member, Logger: slog.New(slog.NewTextHandler(logs, nil))})
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	b.mu.Lock()
	b.addrs[id.NodeID] = m.Addr().String()
	b.mu.Unlock()
	t.Cleanup(func() { m.Close() })
	return m, logs
}

func newBook() *book {
	return &book{addrs: map[uint32]string{}, state: map[uint32]MemberState{}}
}

// echo serves a stream by sending back what comes.
func echo(m *Mesh, stream string, peers chan<- uint32) {
	l := m.Listen(stream)
	go func() {
		for {
			c, peer, err := l.Accept()
			if err != nil {
				return
			}
			if peers != nil {
				peers <- peer
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
}

func say(t *testing.T, c net.Conn, text string) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		t.Fatalf("echo %q, %v", got, err)
	}
}

func TestStreams(t *testing.T) {
	a, b := newAuthority(t, "c1"), newBook()
	m1, _ := start(t, b, a.identity(t, 1, time.Now()))
	m2, _ := start(t, b, a.identity(t, 2, time.Now()))
	peers := make(chan uint32, 2)
	echo(m2, "link", peers)
	echo(m2, "rpc", peers)
	for _, stream := range []string{"link", "rpc"} {
		c, err := m1.Dial(t.Context(), 2, stream)
		if err != nil {
			t.Fatal(err)
		}
		if got := <-peers; got != 1 {
			t.Errorf("the acceptor sees node %d", got)
		}
		say(t, c, "hello on "+stream)
		st := c.(*Conn).Conn.(*tls.Conn).ConnectionState()
		if st.Version != tls.VersionTLS13 || st.NegotiatedProtocol != ALPN {
			t.Errorf("TLS %x, ALPN %q", st.Version, st.NegotiatedProtocol)
		}
		_ = c.Close()
	}
}

func TestRefusals(t *testing.T) {
	now := time.Now()
	home, other := newAuthority(t, "c1"), newAuthority(t, "c2")
	twin := &authority{"c9", home.ca} // same authority, another cluster id
	tests := []struct {
		name   string
		dialer *pki.Identity
		state  MemberState
		stream string
		addrOf uint32 // whose address node 2's is, 0: its own
		code   fault.Code
		text   string
	}{
		{"member", home.identity(t, 1, now), Present, "link", 0, 0, ""},
		{"one that is not known yet", home.identity(t, 7, now), Unknown, "link", 0, 0, ""},
		{"foreign authority", other.identity(t, 1, now), Present, "link", 0, fault.Unauthorized, "not signed by this cluster"},
		{"foreign cluster id", twin.identity(t, 1, now), Present, "link", 0, fault.Unauthorized, "another cluster"},
		{"removed", home.identity(t, 1, now), Removed, "link", 0, fault.Gone, "was removed"},
		{"unknown stream", home.identity(t, 1, now), Present, "nonsense", 0, fault.Unavailable, "does not serve"},
		{"expired", home.identity(t, 1, now.Add(-2*pki.NodeLife)), Present, "link", 0, fault.Unauthorized, "expired"},
		{"another node's address", home.identity(t, 1, now), Present, "link", 3, fault.Unauthorized, "node 3 answers"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBook()
			m2, logs := start(t, b, home.identity(t, 2, now))
			echo(m2, "link", nil)
			m3, _ := start(t, b, home.identity(t, 3, now))
			echo(m3, "link", nil)
			b.state[tt.dialer.NodeID] = tt.state
			if tt.addrOf != 0 {
				b.addrs[2] = b.addrs[tt.addrOf]
			}
			m1, _ := start(t, b, tt.dialer)
			c, err := m1.Dial(t.Context(), 2, tt.stream)
			if tt.code == 0 {
				if err != nil {
					t.Fatal(err)
				}
				say(t, c, "hi")
				return
			}
			if !fault.Is(err, tt.code) || !strings.Contains(fault.Public(err), tt.text) {
				t.Errorf("Dial: %v, want %v with %q", err, tt.code, tt.text)
			}
			if tt.code == fault.Gone && !logs.has("mesh_peer_refused") {
				t.Error("the refusal is not logged")
			}
		})
	}
}

// TestForeignNodeIsToldWhy dials as a node whose own checks would let it pass.
func TestForeignNodeIsToldWhy(t *testing.T) {
	home, other := newAuthority(t, "c1"), newAuthority(t, "c2")
	m, logs := start(t, newBook(), home.identity(t, 2, time.Now()))
	certs := map[string]*tls.Config{
		"foreign authority": {Certificates: []tls.Certificate{*other.identity(t, 1, time.Now()).TLSCertificate()}},
		"no certificate":    {},
	}
	for name, cfg := range certs {
		t.Run(name, func(t *testing.T) {
			cfg.InsecureSkipVerify, cfg.NextProtos = true, []string{ALPN}
			c, err := tls.Dial("tcp", m.Addr().String(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			if err := readVerdict(c, 2); !fault.Is(err, fault.Unauthorized) {
				t.Errorf("told %v", err)
			}
			if !logs.has("mesh_peer_refused") {
				t.Error("the refusal is not logged")
			}
		})
	}
}

func TestGarbageHarmsNobody(t *testing.T) {
	a, b := newAuthority(t, "c1"), newBook()
	m1, _ := start(t, b, a.identity(t, 1, time.Now()))
	m2, _ := start(t, b, a.identity(t, 2, time.Now()))
	echo(m2, "link", nil)
	steady, err := m1.Dial(t.Context(), 2, "link")
	if err != nil {
		t.Fatal(err)
	}
	inputs := [][]byte{[]byte("GET / HTTP/1.1\r\n\r\n"), bytes.Repeat([]byte{0xff}, 1<<20), {22, 3, 1, 0xff, 0xff, 1}, {0}, nil}
	for i, in := range inputs {
		c, err := net.Dial("tcp", m2.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = c.Write(in)
		_ = c.(*net.TCPConn).CloseWrite()
		if n, err := io.Copy(io.Discard, c); n > 100 {
			t.Errorf("input %d is answered with %d bytes, %v", i, n, err)
		}
		_ = c.Close()
	}
	say(t, steady, "still here")
	for _, cfg := range []*tls.Config{{NextProtos: []string{"http/1.1"}}, {}, {MaxVersion: tls.VersionTLS12, NextProtos: []string{ALPN}}} {
		cfg.InsecureSkipVerify = true
		c, err := tls.Dial("tcp", m2.Addr().String(), cfg)
		if err != nil {
			continue
		}
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if n, err := c.Read(make([]byte, 1)); err == nil {
			t.Errorf("%+v got %d bytes", cfg.NextProtos, n)
		}
		_ = c.Close()
	}
	c, err := m1.Dial(t.Context(), 2, "link")
	if err != nil {
		t.Fatal(err)
	}
	say(t, c, "and new ones get in")
}

func TestSilentStrangersAreBounded(t *testing.T) {
	a, b := newAuthority(t, "c1"), newBook()
	m2, _ := start(t, b, a.identity(t, 2, time.Now()))
	m1, _ := start(t, b, a.identity(t, 1, time.Now()))
	echo(m2, "link", nil)
	steady, err := m1.Dial(t.Context(), 2, "link")
	if err != nil {
		t.Fatal(err)
	}
	var open []net.Conn
	var closed atomic.Int32
	for range MaxUnproven + 20 {
		c, err := net.Dial("tcp", m2.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
		go func() {
			if _, err := c.Read(make([]byte, 1)); err != nil {
				closed.Add(1)
			}
		}()
	}
	wait(t, "the surplus to be closed", func() bool { return closed.Load() >= 20 })
	if n := len(m2.unproven); n > MaxUnproven {
		t.Errorf("%d connections in the handshake", n)
	}
	say(t, steady, "existing ones go on")
	for _, c := range open {
		_ = c.Close()
	}
	wait(t, "the places to be free again", func() bool { return len(m2.unproven) == 0 })
	if _, err := m1.Dial(t.Context(), 2, "link"); err != nil {
		t.Error(err)
	}
}

func wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("in vain: " + what)
		}
	}
}

func TestNewCertificateNeedsNoRestart(t *testing.T) {
	a, b := newAuthority(t, "c1"), newBook()
	m1, _ := start(t, b, a.identity(t, 1, time.Now()))
	m2, _ := start(t, b, a.identity(t, 2, time.Now()))
	echo(m2, "link", nil)
	old, err := m1.Dial(t.Context(), 2, "link")
	if err != nil {
		t.Fatal(err)
	}
	before := m2.Identity().Cert.SerialNumber
	m2.SetIdentity(a.identity(t, 2, time.Now()))
	c, err := m1.Dial(t.Context(), 2, "link")
	if err != nil {
		t.Fatal(err)
	}
	shown := c.(*Conn).Conn.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber
	if shown.Cmp(before) == 0 {
		t.Error("the old certificate is still shown")
	}
	say(t, old, "old connections stay")
	say(t, c, "new ones work")
}

func TestDropPeer(t *testing.T) {
	a, b := newAuthority(t, "c1"), newBook()
	m1, _ := start(t, b, a.identity(t, 1, time.Now()))
	m2, _ := start(t, b, a.identity(t, 2, time.Now()))
	m3, _ := start(t, b, a.identity(t, 3, time.Now()))
	var removed atomic.Bool
	m2.cfg.Member = func(node uint32) MemberState {
		if node == 1 && removed.Load() {
			return Removed
		}
		return Present
	}
	echo(m2, "link", nil)
	gone, err := m1.Dial(t.Context(), 2, "link")
	if err != nil {
		t.Fatal(err)
	}
	stays, err := m3.Dial(t.Context(), 2, "link")
	if err != nil {
		t.Fatal(err)
	}
	say(t, gone, "x")
	if m2.DropPeer(1) {
		t.Error("a member was dropped")
	}
	say(t, gone, "still there")
	removed.Store(true)
	if !m2.DropPeer(1) {
		t.Error("a removed node was not dropped")
	}
	_ = gone.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := gone.Read(make([]byte, 1)); err == nil {
		t.Error("the removed node's connection is open")
	}
	say(t, stays, "y")
}

func TestJoiningNodesNeedNoCertificate(t *testing.T) {
	a, b := newAuthority(t, "c1"), newBook()
	m, _ := start(t, b, a.identity(t, 2, time.Now()))
	m.HandleJoin(func(c net.Conn) {
		_, _ = io.WriteString(c, "welcome")
		_ = c.Close()
	})
	c, err := tls.Dial("tcp", m.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{ALPNJoin}})
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if got, err := io.ReadAll(c); string(got) != "welcome" {
		t.Errorf("got %q, %v", got, err)
	}
	if chain := c.ConnectionState().PeerCertificates; len(chain) != 2 || !chain[1].Equal(a.ca.Cert) {
		t.Error("the authority, which the token pins, is not in the chain")
	}
}

func TestDialFaults(t *testing.T) {
	a, b := newAuthority(t, "c1"), newBook()
	m, _ := start(t, b, a.identity(t, 1, time.Now()))
	if _, err := m.Dial(t.Context(), 9, "link"); !fault.Is(err, fault.NotFound) {
		t.Errorf("unknown address: %v", err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.addrs[8] = ln.Addr().String() // accepts, says nothing
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := m.Dial(ctx, 8, "link"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("silent peer: %v", err)
	}
	_ = ln.Close()
	if _, err := m.Dial(t.Context(), 8, "link"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("nobody there: %v", err)
	}
}

func FuzzHello(f *testing.F) {
	f.Add([]byte{2, 'c', '1', 0, 0, 0, 1, 4, 'l', 'i', 'n', 'k'})
	f.Add([]byte{0, 3, 'n', 'o', '!'})
	f.Add([]byte{4, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		if cluster, _, err := readPlain(r); err == nil && len(cluster) > 255 {
			t.Error("an endless cluster id")
		}
		if s, err := readText(r); err == nil && len(s) > 255 {
			t.Error("an endless name")
		}
		if err := readVerdict(bytes.NewReader(b), 1); err == nil && b[0] != byte(accepted) {
			t.Error("a refusal was taken for a welcome")
		}
	})
}
