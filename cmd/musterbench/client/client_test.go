package client

import (
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"muster/cmd/musterbench/relay"
	"muster/cmd/musterbench/stubserver"
	"muster/cmd/musterbench/target"
	"muster/cmd/musterbench/wire"
	"muster/internal/fault"
)

const domain = "bench.test"

var alice = target.User{Local: "alice", Domain: domain, Password: "secret, =strong="}

// start runs a stub server with alice's account.
func start(t *testing.T, s *stubserver.Server) *stubserver.Server {
	t.Helper()
	s.Domain = domain
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	s.AddUser(alice.Local, string(alice.Password))
	return s
}

// options returns how to reach s, with its certificate checked.
func options(t *testing.T, s *stubserver.Server, transport Transport) Options {
	t.Helper()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, s.Certificate(), 0o600); err != nil {
		t.Fatal(err)
	}
	config, err := TLSConfig(ca, domain, transport, false)
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Address: s.Direct(), Transport: transport, TLS: config, Mechanism: "SCRAM-SHA-1", Resource: "bench", Timeout: 10 * time.Second}
	if transport == StartTLS {
		o.Address = s.StartTLS()
	}
	return o
}

func TestLogin(t *testing.T) {
	s := start(t, new(stubserver.Server))
	for _, transport := range []Transport{Direct, StartTLS} {
		for _, mechanism := range []string{"SCRAM-SHA-1", "SCRAM-SHA-256", "PLAIN"} {
			o := options(t, s, transport)
			o.Mechanism = mechanism
			conn, err := Login(t.Context(), o, alice)
			if err != nil {
				t.Errorf("%s with %s: %v", transport, mechanism, err)
				continue
			}
			if conn.JID != "alice@bench.test/bench" {
				t.Errorf("%s with %s: bound as %q", transport, mechanism, conn.JID)
			}
			conn.Logout(time.Second)
		}
	}
	if s.Logins() != 6 {
		t.Errorf("the server saw %d logins, want 6", s.Logins())
	}
}

// TestLoginInline: with what the server needs to know in one go, and with a token from the second login on.
func TestLoginInline(t *testing.T) {
	s := start(t, new(stubserver.Server))
	for _, transport := range []Transport{Direct, StartTLS} {
		for _, mechanism := range []string{"SCRAM-SHA-1", "SCRAM-SHA-256", "PLAIN"} {
			o := options(t, s, transport)
			o.Mechanism, o.Flow, o.Wallet = mechanism, Inline, new(Wallet)
			loginAs(t, o, "alice@bench.test/bench")
			if o.Wallet.Has(alice) || s.ByToken() != 0 {
				t.Error("a token that nobody asked for")
			}
		}
	}
	o := options(t, s, Direct)
	o.Flow, o.Wallet = Token, new(Wallet)
	for i := range 3 {
		loginAs(t, o, "alice@bench.test/bench")
		if s.ByToken() != i || !o.Wallet.Has(alice) {
			t.Errorf("login %d: %d by token", i, s.ByToken())
		}
	}
	if s.Logins() != 9 {
		t.Errorf("the server saw %d logins, want 9", s.Logins())
	}
}

func loginAs(t *testing.T, o Options, jid string) {
	t.Helper()
	conn, err := Login(t.Context(), o, alice)
	if err != nil {
		t.Fatal(err)
	}
	if conn.JID != jid {
		t.Errorf("bound as %q", conn.JID)
	}
	conn.Logout(time.Second)
}

func TestLoginInlineFails(t *testing.T) {
	filled := func() *Wallet {
		w := new(Wallet)
		w.tokens.Store(alice.JID(), "token of alice")
		return w
	}
	wrong := new(Wallet)
	wrong.tokens.Store(alice.JID(), "a wrong one")
	for _, c := range []struct {
		name   string
		server *stubserver.Server
		change func(*Options, *target.User)
		want   fault.Code
	}{
		{"wrong password", new(stubserver.Server), func(_ *Options, u *target.User) { u.Password = "guess" }, fault.Forbidden},
		{"wrong password, plain", new(stubserver.Server), func(o *Options, u *target.User) { u.Password, o.Mechanism = "guess", "PLAIN" }, fault.Forbidden},
		{"unknown mechanism", new(stubserver.Server), func(o *Options, _ *target.User) { o.Mechanism = "DIGEST-MD5" }, fault.BadRequest},
		{"wrong server signature", &stubserver.Server{BadProof: true}, func(*Options, *target.User) {}, fault.Forbidden},
		{"no wallet", new(stubserver.Server), func(o *Options, _ *target.User) { o.Flow = Token }, fault.BadRequest},
		{"wrong token", new(stubserver.Server), func(o *Options, _ *target.User) { o.Flow, o.Wallet = Token, wrong }, fault.Forbidden},
		{"wrong proof of the token", &stubserver.Server{BadProof: true}, func(o *Options, _ *target.User) { o.Flow, o.Wallet = Token, filled() }, fault.Forbidden},
		{"server hangs up", &stubserver.Server{HangUp: true}, func(*Options, *target.User) {}, fault.Unavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, user := options(t, start(t, c.server), Direct), alice
			o.Flow = Inline
			c.change(&o, &user)
			conn, err := Login(t.Context(), o, user)
			if err == nil {
				_ = conn.Close()
			}
			if !fault.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

func TestUserAgent(t *testing.T) {
	one, two := userAgent(alice), userAgent(target.User{Local: "bob", Domain: domain})
	if one == two || len(one) != 36 || one[14] != '4' || !strings.Contains("89ab", one[19:20]) || one != userAgent(alice) {
		t.Errorf("%s and %s", one, two)
	}
}

func TestLoginUsesFullHandshakes(t *testing.T) {
	s := start(t, new(stubserver.Server))
	o := options(t, s, Direct)
	for range 3 {
		conn, err := Login(t.Context(), o, alice)
		if err != nil {
			t.Fatal(err)
		}
		state := conn.Conn.(*tls.Conn).ConnectionState()
		if state.DidResume || state.Version != tls.VersionTLS13 || state.CurveID != tls.X25519 {
			t.Errorf("resumed %v, version %x, curve %v: want a full TLS 1.3 handshake with X25519", state.DidResume, state.Version, state.CurveID)
		}
		conn.Logout(time.Second)
	}
}

func TestPostQuantum(t *testing.T) {
	s := start(t, new(stubserver.Server))
	o := options(t, s, Direct)
	o.TLS.CurvePreferences = nil
	config, err := TLSConfig("", domain, Direct, true)
	if err != nil {
		t.Fatal(err)
	}
	o.TLS = config
	conn, err := Login(t.Context(), o, alice)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if curve := conn.Conn.(*tls.Conn).ConnectionState().CurveID; curve != tls.X25519MLKEM768 {
		t.Errorf("key exchange %v", curve)
	}
}

func TestLoginFails(t *testing.T) {
	cases := []struct {
		name   string
		server *stubserver.Server
		change func(*Options, *target.User)
		want   fault.Code
	}{
		{"wrong password", new(stubserver.Server), func(_ *Options, u *target.User) { u.Password = "guess" }, fault.Forbidden},
		{"wrong password, plain", new(stubserver.Server), func(o *Options, u *target.User) { u.Password, o.Mechanism = "guess", "PLAIN" }, fault.Forbidden},
		{"no such user", new(stubserver.Server), func(_ *Options, u *target.User) { u.Local = "nobody" }, fault.Forbidden},
		{"unknown mechanism", new(stubserver.Server), func(o *Options, _ *target.User) { o.Mechanism = "DIGEST-MD5" }, fault.BadRequest},
		{"wrong server signature", &stubserver.Server{BadProof: true}, func(*Options, *target.User) {}, fault.Forbidden},
		{"server hangs up", &stubserver.Server{HangUp: true}, func(*Options, *target.User) {}, fault.Unavailable},
		{"nobody listens", new(stubserver.Server), func(o *Options, _ *target.User) { o.Address = "127.0.0.1:1" }, fault.Unavailable},
		{"certificate of another name", new(stubserver.Server), func(o *Options, _ *target.User) { o.TLS.ServerName = "other.test" }, fault.Unavailable},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			o, user := options(t, start(t, c.server), Direct), alice
			c.change(&o, &user)
			conn, err := Login(t.Context(), o, user)
			if err == nil {
				_ = conn.Close()
			}
			if !fault.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

// TestLoginTimesOut connects to a listener that never answers.
func TestLoginTimesOut(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	config, err := TLSConfig("", domain, Direct, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, transport := range []Transport{Direct, StartTLS} {
		o := Options{Address: listener.Addr().String(), Transport: transport, TLS: config, Mechanism: "PLAIN", Timeout: 50 * time.Millisecond}
		if _, err := Login(t.Context(), o, alice); err == nil {
			t.Errorf("%s: logged in to a silent server", transport)
		}
	}
}

func TestTLSConfigRejects(t *testing.T) {
	if _, err := TLSConfig(filepath.Join(t.TempDir(), "none"), domain, Direct, false); !fault.Is(err, fault.NotFound) {
		t.Errorf("no file: %v", err)
	}
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := TLSConfig(empty, domain, Direct, false); !fault.Is(err, fault.BadRequest) {
		t.Errorf("no certificate in the file: %v", err)
	}
}

func TestServe(t *testing.T) {
	s := start(t, new(stubserver.Server))
	conn, err := Login(t.Context(), options(t, s, Direct), alice)
	if err != nil {
		t.Fatal(err)
	}
	frames := make(chan string, 16)
	ended := make(chan error, 1)
	go func() {
		ended <- conn.Serve(func(frame []byte) {
			if wire.Named(frame, "message") {
				frames <- string(frame)
			}
		})
	}()
	long := strings.Repeat("x", 3*readBuffer)
	for _, body := range []string{"one", long, "three"} {
		if err := conn.Send([]byte(`<message to='alice@bench.test'><body>` + body + `</body></message>`)); err != nil {
			t.Fatal(err)
		}
	}
	for _, body := range []string{"one", long, "three"} {
		select {
		case frame := <-frames:
			if string(wire.Text([]byte(frame), "body")) != body {
				t.Errorf("got %.80q, want the body %.20q", frame, body)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("a message does not arrive")
		}
	}
	_ = conn.Close()
	if err := <-ended; !fault.Is(err, fault.Unavailable) {
		t.Errorf("Serve ended with %v", err)
	}
}

func TestRegister(t *testing.T) {
	s := start(t, new(stubserver.Server))
	o := options(t, s, Direct)
	bob := target.User{Local: "bob", Domain: domain, Password: "pw"}
	for _, attempt := range []string{"new", "existing"} {
		if err := Register(t.Context(), o, bob); err != nil {
			t.Errorf("%s account: %v", attempt, err)
		}
	}
	conn, err := Login(t.Context(), o, bob)
	if err != nil {
		t.Fatal(err)
	}
	conn.Logout(time.Second)
	s.NoSignup = true
	if err := Register(t.Context(), o, bob); !fault.Is(err, fault.NotSupported) {
		t.Errorf("registration that is not offered: %v", err)
	}
}

func TestRelay(t *testing.T) {
	server, err := relay.New(domain)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, listener) }()
	config, err := TLSConfig("", domain, Relay, false)
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Address: listener.Addr().String(), Transport: Relay, TLS: config, Timeout: 10 * time.Second}
	o.Partners = []string{"bob@bench.test"}
	a, err := Login(t.Context(), o, alice)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	o.Partners = []string{"alice@bench.test"}
	b, err := Login(t.Context(), o, target.User{Local: "bob", Domain: domain})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := a.Send([]byte(`<message><body>hello</body></message>`)); err != nil {
		t.Fatal(err)
	}
	if frame, err := b.Expect("message"); err != nil || !bytes.Contains(frame, []byte("hello")) {
		t.Errorf("got %q, %v", frame, err)
	}
	cancel()
	if err := <-served; err != nil {
		t.Errorf("the relay ended with %v", err)
	}
}

// TestRespond uses the exchanges printed in RFC 5802 section 5 and RFC 7677 section 3.
func TestRespond(t *testing.T) {
	cases := []struct {
		name, nonce, bare, first, final, signature string
		sha256                                     bool
	}{
		{
			"SCRAM-SHA-1", "fyko+d2lbbFgONRv9qkxdawL", "n=user,r=fyko+d2lbbFgONRv9qkxdawL",
			"r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096",
			"c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
			"rmF9pqV8S7suAoZWja4dJRkFsKQ=", false,
		},
		{
			"SCRAM-SHA-256", "rOprNGfwEbeRWgbNEkqO", "n=user,r=rOprNGfwEbeRWgbNEkqO",
			"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
			"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
			"6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=", true,
		},
	}
	for _, c := range cases {
		newHash := sha1.New
		if c.sha256 {
			newHash = sha256.New
		}
		final, signature, err := respond(newHash, "pencil", c.nonce, c.bare, c.first)
		if err != nil || final != c.final || base64.StdEncoding.EncodeToString(signature) != c.signature {
			t.Errorf("%s: got %q, %x, %v", c.name, final, signature, err)
		}
	}
}

func TestRespondRejects(t *testing.T) {
	for name, first := range map[string]string{
		"empty":               "",
		"another nonce":       "r=other,s=c2FsdA==,i=4096",
		"salt is not base64":  "r=nonce1,s=!,i=4096",
		"no salt":             "r=nonce1,i=4096",
		"no iterations":       "r=nonce1,s=c2FsdA==",
		"zero iterations":     "r=nonce1,s=c2FsdA==,i=0",
		"too many iterations": "r=nonce1,s=c2FsdA==,i=99999999",
	} {
		if _, _, err := respond(sha1.New, "pw", "nonce", "n=u,r=nonce", first); !fault.Is(err, fault.BadRequest) {
			t.Errorf("%s: got %v, want bad-request", name, err)
		}
	}
}

func FuzzRespond(f *testing.F) {
	f.Add("r=nonce1,s=c2FsdA==,i=2")
	f.Fuzz(func(t *testing.T, first string) {
		if strings.Contains(first, "i=") && len(first) > 40 {
			return // keeps the iterations small
		}
		final, _, err := respond(sha1.New, "pw", "nonce", "n=u,r=nonce", first)
		if err == nil && !strings.HasPrefix(final, "c=biws,r=nonce") {
			t.Errorf("answered %q to %q", final, first)
		}
	})
}

func TestEscape(t *testing.T) {
	if got := escape("a,b=c"); got != "a=2Cb=3Dc" {
		t.Errorf("got %q", got)
	}
}
