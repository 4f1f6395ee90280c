package xmpp

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestTLSSurvivesWaiting guards what parking rests on: crypto/tls passes a temporary timeout of
// the connection under it through, loses nothing that was read before, and reads on later.
func TestTLSSurvivesWaiting(t *testing.T) {
	f := start(t)
	client, server := tcpPair(t)
	w := newWire(server)
	conn := tls.Server(w, f.srv.startTLS)
	go func() { _ = conn.Handshake() }()
	tc := tls.Client(&slowConn{client}, f.tlsConfig())
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	raw, err := server.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	f.until("the handshake is done", func() bool { return conn.ConnectionState().HandshakeComplete })
	w.raw, w.read, w.parkable = raw, w.readOnce, true
	want := strings.Repeat("one record in many pieces ", 200)
	go func() {
		_, _ = io.WriteString(tc, want)
		tc.Close()
	}()
	var got strings.Builder
	waits := 0
	buf := make([]byte, 100)
	for {
		n, err := conn.Read(buf)
		got.Write(buf[:n])
		if errors.Is(err, error(errWait)) {
			waits++
			time.Sleep(time.Millisecond)
			continue
		}
		if err != nil {
			break
		}
	}
	if got.String() != want || waits == 0 {
		t.Errorf("got %d bytes of %d, waited %d times", got.Len(), len(want), waits)
	}
}

// TestDryReadDoesNotAsk: after a read that took all there was, the next one is
// spared; what came meanwhile is there for the one after it.
func TestDryReadDoesNotAsk(t *testing.T) {
	client, server := tcpPair(t)
	w := newWire(server)
	raw, err := server.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	w.raw, w.read, w.parkable = raw, w.readOnce, true
	send := func(text string) {
		t.Helper()
		if _, err := io.WriteString(client, text); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond) // it is on the same machine: it has arrived
	}
	buf := make([]byte, 4)
	read := func(want string, wantErr error) {
		t.Helper()
		if n, err := w.Read(buf); string(buf[:n]) != want || !errors.Is(err, wantErr) {
			t.Errorf("read %q, %v; want %q, %v", buf[:n], err, want, wantErr)
		}
	}
	send("abcdef")
	read("abcd", nil) // a full buffer: there may be more
	read("ef", nil)
	send("g")
	read("", errWait)
	read("g", nil)
	read("", errWait)
	client.Close()
	time.Sleep(10 * time.Millisecond)
	read("", io.EOF)
}

// slowConn writes in small pieces, so that a record arrives in many.
type slowConn struct{ net.Conn }

func (c *slowConn) Write(b []byte) (int, error) {
	for i := 0; i < len(b); i += 50 {
		if _, err := c.Conn.Write(b[i:min(i+50, len(b))]); err != nil {
			return i, err
		}
		time.Sleep(100 * time.Microsecond)
	}
	return len(b), nil
}

func tcpPair(t *testing.T) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

// serving counts the goroutines that are in a stream's code.
func serving() int {
	buf := make([]byte, 4<<20)
	all := string(buf[:runtime.Stack(buf, true)])
	return strings.Count(all, ").work(") - strings.Count(all, "(*workers).work(") + strings.Count(all, ").serve(")
}

// TestIdleConnectionsHoldNoGoroutine, and still answer.
func TestIdleConnectionsHoldNoGoroutine(t *testing.T) {
	f := start(t)
	var clients []*client
	for range 20 {
		clients = append(clients, f.online("alice", ""))
	}
	f.until("all are parked", func() bool { return serving() == 0 })
	for _, c := range clients {
		c.send(`<iq type='get' id='p'><ping xmlns='urn:xmpp:ping'/></iq>`)
		c.expect(`type="result" id="p"`)
	}
	f.until("all are parked again", func() bool { return serving() == 0 })
	for _, c := range clients {
		c.conn.Close()
	}
	f.until("all are gone", func() bool { return f.srv.Metrics().Connections == 0 })
}

// descriptors counts the process's open files.
func descriptors(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

// waysToGo are the ways in which clients leave.
var waysToGo = map[string]func(c *client){
	"reset":                       func(c *client) { _ = c.tcp().SetLinger(0); c.tcp().Close() },
	"close without a word":        func(c *client) { c.tcp().Close() },
	"half close":                  func(c *client) { _ = c.tcp().CloseWrite() },
	"TLS close":                   func(c *client) { c.conn.Close() },
	"TLS half close":              func(c *client) { _ = c.conn.(*tls.Conn).CloseWrite() },
	"half a record":               func(c *client) { _, _ = c.tcp().Write([]byte{0x17, 3, 3, 1, 0, 1, 2, 3}); c.tcp().Close() },
	"a broken record":             func(c *client) { _, _ = c.tcp().Write([]byte{0x17, 3, 3, 0, 4, 1, 2, 3, 4}) },
	"half a stanza and close":     func(c *client) { c.send(`<message><body>`); c.conn.Close() },
	"end of stream, half close":   func(c *client) { c.send(`</stream:stream>`); _ = c.tcp().CloseWrite() },
	"rubbish, half close":         func(c *client) { c.send(`<!`); _ = c.tcp().CloseWrite() },
	"stanzas, end and half close": func(c *client) { c.send(`<presence/><presence/></stream:stream>`); _ = c.tcp().CloseWrite() },
}

// TestEveryWayToGo leaves neither connection, session, goroutine nor open file behind.
func TestEveryWayToGo(t *testing.T) {
	f := start(t, "c2s.unlimited_networks", "127.0.0.0/8")
	for name, goes := range waysToGo {
		t.Run(name, func(t *testing.T) {
			f := f.in(t)
			f.until("all is quiet", func() bool { return f.srv.Metrics().Connections == 0 })
			files := descriptors(t)
			var sessions []*fakeSession
			for range 5 {
				for _, c := range []*client{f.online("alice", ""), f.returning("alice")} {
					goes(c)
					if c.full != "" {
						sessions = append(sessions, f.router.session(c.full))
					}
					defer c.tcp().Close()
				}
			}
			for _, s := range sessions {
				s.wait(t)
			}
			f.until("all are gone", func() bool { m := f.srv.Metrics(); return m.Connections == 0 && m.Sessions == 0 })
			f.until("no goroutine is left", func() bool { return serving() == 0 })
			p := f.srv.running().poller
			p.mu.RLock()
			used := len(p.streams) - len(p.free)
			p.mu.RUnlock()
			if used != 0 {
				t.Errorf("%d slots of the poller are taken", used)
			}
			if n := descriptors(t) - files - 10; n > 0 { // the clients' ends are still open
				t.Errorf("%d files are left open", n)
			}
		})
	}
}

// TestHalfCloseIsAnswered: a client that closes its side behind its last stanza reads the answers to all of them.
func TestHalfCloseIsAnswered(t *testing.T) {
	f := start(t, "c2s.unlimited_networks", "127.0.0.0/8")
	for range 30 {
		c := f.online("alice", "")
		c.send(`<iq type='get' id='last'><ping xmlns='urn:xmpp:ping'/></iq></stream:stream>`)
		_ = c.conn.(*tls.Conn).CloseWrite()
		_ = c.tcp().CloseWrite()
		c.expect(`type="result" id="last"/></stream:stream>`)
		c.closed()
		c = f.dial()
		c.send(openStream + "<!-- -->")
		_ = c.tcp().CloseWrite()
		c.expect(`<restricted-xml .*</stream:stream>`)
		c.closed()
	}
	f.until("all are gone", func() bool { return f.srv.Metrics().Connections == 0 })
}

// holdingConn lets the first flight of a TLS client out, and keeps what follows.
type holdingConn struct {
	net.Conn
	flights int
	kept    []byte
}

func (c *holdingConn) Write(b []byte) (int, error) {
	if c.flights++; c.flights == 1 {
		return c.Conn.Write(b)
	}
	c.kept = append(c.kept, b...)
	return len(b), nil
}

func (c *holdingConn) release(t *testing.T) {
	t.Helper()
	if _, err := c.Conn.Write(c.kept); err != nil {
		t.Fatal(err)
	}
}

// TestResetOfABusyStreamIsNoNews: while a stream is handled, the poller hears of its connection's end at most once.
func TestResetOfABusyStreamIsNoNews(t *testing.T) {
	f := start(t)
	f.srv.guard.now = func() time.Time { return time.Unix(1_800_000_000, 0) }
	for range accountFailures + 2 { // the next failures are answered late
		f.srv.guard.failed("alice@example.com", "")
	}
	c := f.dialTo(1)
	held := &holdingConn{Conn: c.conn}
	secure := tls.Client(held, f.tlsConfig())
	if err := secure.Handshake(); err != nil {
		t.Fatal(err)
	}
	c.conn = secure
	p := f.srv.running().poller
	c.send(openStream + plainLogin("alice", "wrong")) // together with the handshake's end: the stream is never parked
	held.release(t)
	f.until("it is made to wait", func() bool { return strings.Contains(f.logs.String(), "login_failed") })
	before := p.rounds.Load()
	_ = held.Conn.(*net.TCPConn).SetLinger(0)
	held.Conn.Close()
	f.until("it is gone", func() bool { return f.srv.Metrics().Connections == 0 })
	if n := p.rounds.Load() - before; n > 3 {
		t.Errorf("the poller woke up %d times", n)
	}
}

// TestFileNumbersAreUsedAgain: connections that take the numbers of others that ended are served like these.
func TestFileNumbersAreUsedAgain(t *testing.T) {
	f := start(t, "c2s.unlimited_networks", "127.0.0.0/8")
	var lasting []*client
	for range 10 {
		lasting = append(lasting, f.online("bob", ""))
	}
	for range 30 {
		c := f.online("alice", "")
		go c.tcp().Close() // while others come
		d := f.online("alice", "")
		d.send(`<iq type='get' id='p'><ping xmlns='urn:xmpp:ping'/></iq>`)
		d.expect(`type="result" id="p"`)
		d.tcp().Close()
	}
	for _, c := range lasting {
		c.send(`<iq type='get' id='p'><ping xmlns='urn:xmpp:ping'/></iq>`)
		c.expect(`type="result" id="p"`)
	}
	f.until("the others are gone", func() bool { return f.srv.Metrics().Connections == 10 })
}

// TestKeyUpdate: a client that changes its keys, and asks for new ones of the server long after
// the server's last write, goes on being served (RFC 8446 section 4.6.3).
func TestKeyUpdate(t *testing.T) {
	f := start(t, "c2s.write_timeout", "100ms")
	var secrets strings.Builder
	c := f.dialTo(1)
	counting := &countingConn{Conn: c.conn}
	conf := f.tlsConfig()
	conf.KeyLogWriter, conf.MinVersion = &secrets, tls.VersionTLS13
	secure := tls.Client(counting, conf)
	if err := secure.Handshake(); err != nil {
		t.Fatal(err)
	}
	counting.records = 0
	c.conn = secure
	c.send(openStream)
	c.expect(`</stream:features>`)
	c.login("alice")
	c.bind("desk")
	due := time.Now().Add(200 * time.Millisecond) // the deadline of the last write has passed then
	f.until("some time has passed", func() bool { return time.Now().After(due) })
	record := keyUpdate(t, secrets.String(), secure.ConnectionState().CipherSuite, uint64(counting.records))
	before := f.srv.Metrics().BytesOut
	if _, err := counting.Write(record); err != nil {
		t.Fatal(err)
	}
	f.until("the server has answered", func() bool { return f.srv.Metrics().BytesOut > before })
	for _, id := range []string{"one", "two"} {
		if err := f.deliver(c.full, id); err != nil {
			t.Fatal(err)
		}
		c.expect(`id="` + id + `"`)
	}
}

// countingConn counts records: crypto/tls writes each with one Write.
type countingConn struct {
	net.Conn
	records int
}

func (c *countingConn) Write(b []byte) (int, error) {
	c.records++
	return c.Conn.Write(b)
}

// keyUpdate returns the client's record number sequence: a KeyUpdate that asks for one.
func keyUpdate(t *testing.T, secrets string, suite uint16, sequence uint64) []byte {
	t.Helper()
	var secret []byte
	for line := range strings.Lines(secrets) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "CLIENT_TRAFFIC_SECRET_0" {
			secret, _ = hex.DecodeString(fields[2])
		}
	}
	digest, size := sha256.New, 16
	switch suite {
	case tls.TLS_AES_128_GCM_SHA256:
	case tls.TLS_AES_256_GCM_SHA384:
		digest, size = sha512.New384, 32
	default: // a machine without AES
		t.Fatalf("the test does not know %s", tls.CipherSuiteName(suite))
	}
	expand := func(label string, n int) []byte {
		label = "tls13 " + label
		info := append([]byte{0, byte(n), byte(len(label))}, label...)
		out, err := hkdf.Expand(digest, secret, string(append(info, 0)), n)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	block, err := aes.NewCipher(expand("key", size))
	if err != nil {
		t.Fatal(err)
	}
	seal, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	nonce := expand("iv", 12)
	for i := range 8 {
		nonce[11-i] ^= byte(sequence >> (8 * i))
	}
	inner := []byte{24, 0, 0, 1, 1, 22} // key_update(update_requested), of type handshake
	head := []byte{23, 3, 3, 0, byte(len(inner) + seal.Overhead())}
	return seal.Seal(head, nonce, inner, head)
}
