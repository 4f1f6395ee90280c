package sasl

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"muster/internal/fault"
	"muster/internal/jid"
	"muster/internal/scram"
)

const (
	domain   = "example.com"
	password = "pencil"
	rounds   = 64
)

type directory map[jid.JID]Account

func (d directory) Account(j jid.JID) (Account, bool) {
	a, ok := d[j]
	return a, ok
}

// recorder is a guard that locks whom it is told to, and records.
type recorder struct {
	mu     sync.Mutex
	locked map[string]bool
	events []string
}

func (r *recorder) add(what, account, peer string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, what+" "+account+" "+peer)
}

func (r *recorder) Check(account, peer string) error {
	if r.locked[account] {
		return fault.New(fault.Overloaded, "guard", account, "locked")
	}
	return nil
}

func (r *recorder) Failed(account, peer string) time.Duration {
	r.add("failed", account, peer)
	return 3 * time.Second
}

func (r *recorder) FailedToken(account, peer string) time.Duration {
	r.add("failed token", account, peer)
	return 2 * time.Second
}

func (r *recorder) Succeeded(account, peer string) { r.add("succeeded", account, peer) }

func newTest(tb testing.TB) (*Authenticator, *recorder) {
	tb.Helper()
	d := directory{}
	for _, name := range []string{"alice", "carol", "dave", "müller"} {
		v256, v1, err := scram.Derive(password, []byte("salt of "+name), rounds)
		if err != nil {
			tb.Fatal(err)
		}
		j := jid.MustParse(name + "@" + domain)
		a := Account{User: j, SHA256: v256, SHA1: v1, Disabled: name == "carol", Admin: name == "alice"}
		if name == "dave" {
			a.SHA256, a.SHA1 = scram.Verifier{}, scram.Verifier{} // has no password
		}
		d[j] = a
	}
	g := &recorder{locked: map[string]bool{"locked@" + domain: true}}
	return NewAuthenticator(Options{Directory: d, Guard: g, FakeKey: []byte("key"), Iterations: func(string) int { return rounds }, Workers: 2}), g
}

func peer(kinds ...string) Peer {
	return Peer{Domain: domain, Address: "192.0.2.1", Kinds: kinds, Binding: func(kind string) ([]byte, bool) {
		return []byte("data of " + kind), slices.Contains(kinds, kind)
	}}
}

// client runs a whole attempt the way a client does, and returns the last step.
func client(a *Authenticator, p Peer, mechanism, header, user, pass string) Step {
	e := a.New(p)
	ctx := context.Background()
	if mechanism == "PLAIN" {
		return e.Begin(ctx, mechanism, []byte(header+"\x00"+user+"\x00"+pass))
	}
	bare := "n=" + user + ",r=abcdef"
	step := e.Begin(ctx, mechanism, []byte(header+bare))
	if step.Failure != "" || step.Done {
		return step
	}
	first := string(step.Data)
	fields := strings.Split(first, ",")
	salt, _ := base64.StdEncoding.DecodeString(fields[1][2:])
	var iterations int
	fmt.Sscanf(fields[2], "i=%d", &iterations)
	key, _ := pbkdf2.Key(sha256.New, pass, salt, iterations, sha256.Size)
	mac := func(key []byte, text string) []byte {
		m := hmac.New(sha256.New, key)
		m.Write([]byte(text))
		return m.Sum(nil)
	}
	proof := mac(key, "Client Key")
	stored := sha256.Sum256(proof)
	binding := []byte(header)
	if kind, ok := strings.CutPrefix(strings.Split(header, ",")[0], "p="); ok {
		data, _ := p.Binding(kind)
		binding = append(binding, data...)
	}
	without := "c=" + base64.StdEncoding.EncodeToString(binding) + "," + fields[0]
	for i, b := range mac(stored[:], bare+","+first+","+without) {
		proof[i] ^= b
	}
	return e.Continue(ctx, []byte(without+",p="+base64.StdEncoding.EncodeToString(proof)))
}

func TestLogins(t *testing.T) {
	a, guard := newTest(t)
	both := peer("tls-exporter", "tls-server-end-point")
	for _, tt := range []struct {
		name, mechanism, header, user, password string
		peer                                    Peer
		failure                                 Condition
		as                                      string
		event                                   string
	}{
		{name: "plain", mechanism: "PLAIN", user: "alice", password: password, as: "alice@example.com", event: "succeeded alice@example.com 192.0.2.1"},
		{name: "scram", mechanism: "SCRAM-SHA-256", header: "n,,", user: "alice", password: password, as: "alice@example.com", event: "succeeded alice@example.com 192.0.2.1"},
		{name: "scram with exporter", mechanism: "SCRAM-SHA-256-PLUS", header: "p=tls-exporter,,", user: "alice", password: password, peer: both, as: "alice@example.com", event: "succeeded alice@example.com 192.0.2.1"},
		{name: "scram with end point", mechanism: "SCRAM-SHA-256-PLUS", header: "p=tls-server-end-point,,", user: "alice", password: password, peer: both, as: "alice@example.com", event: "succeeded alice@example.com 192.0.2.1"},
		{name: "name in other case", mechanism: "PLAIN", user: "Alice", password: password, as: "alice@example.com", event: "succeeded alice@example.com 192.0.2.1"},
		{name: "name beyond ASCII", mechanism: "SCRAM-SHA-256", header: "n,,", user: "mu\u0308ller", password: password, as: "müller@example.com", event: "succeeded müller@example.com 192.0.2.1"},
		{name: "own identity", mechanism: "PLAIN", header: "alice@example.com", user: "alice", password: password, as: "alice@example.com", event: "succeeded alice@example.com 192.0.2.1"},
		{name: "other identity", mechanism: "PLAIN", header: "bob@example.com", user: "alice", password: password, failure: InvalidAuthzid, event: "succeeded alice@example.com 192.0.2.1"},
		{name: "identity with resource", mechanism: "SCRAM-SHA-256", header: "n,a=alice@example.com/x,", user: "alice", password: password, failure: InvalidAuthzid, event: "succeeded alice@example.com 192.0.2.1"},
		{name: "other identity by scram", mechanism: "SCRAM-SHA-256", header: "n,a=bob@example.com,", user: "alice", password: password, failure: InvalidAuthzid, event: "succeeded alice@example.com 192.0.2.1"},
		{name: "wrong password", mechanism: "PLAIN", user: "alice", password: "pen", failure: NotAuthorized, event: "failed alice@example.com 192.0.2.1"},
		{name: "wrong password by scram", mechanism: "SCRAM-SHA-256", header: "n,,", user: "alice", password: "pen", failure: NotAuthorized, event: "failed alice@example.com 192.0.2.1"},
		{name: "nobody", mechanism: "PLAIN", user: "nobody", password: password, failure: NotAuthorized, event: "failed nobody@example.com 192.0.2.1"},
		{name: "nobody by scram", mechanism: "SCRAM-SHA-256", header: "n,,", user: "nobody", password: password, failure: NotAuthorized, event: "failed nobody@example.com 192.0.2.1"},
		{name: "no name for an address", mechanism: "PLAIN", user: "a b@c", password: password, failure: NotAuthorized, event: "failed a b@c 192.0.2.1"},
		{name: "no password set", mechanism: "PLAIN", user: "dave", password: password, failure: NotAuthorized, event: "failed dave@example.com 192.0.2.1"},
		{name: "disabled", mechanism: "PLAIN", user: "carol", password: password, failure: AccountDisabled, event: "succeeded carol@example.com 192.0.2.1"},
		{name: "disabled, wrong password", mechanism: "PLAIN", user: "carol", password: "pen", failure: NotAuthorized, event: "failed carol@example.com 192.0.2.1"},
		{name: "locked", mechanism: "PLAIN", user: "locked", password: password, failure: TemporaryAuthFailure},
		{name: "locked by scram", mechanism: "SCRAM-SHA-256", header: "n,,", user: "locked", password: password, failure: TemporaryAuthFailure},
		{name: "downgrade", mechanism: "SCRAM-SHA-256", header: "y,,", user: "alice", password: password, peer: both, failure: NotAuthorized},
		{name: "client could bind", mechanism: "SCRAM-SHA-256", header: "y,,", user: "alice", password: password, as: "alice@example.com", event: "succeeded alice@example.com 192.0.2.1"},
		{name: "plus that is not offered", mechanism: "SCRAM-SHA-256-PLUS", header: "p=tls-exporter,,", user: "alice", password: password, failure: InvalidMechanism},
		{name: "weak binding", mechanism: "SCRAM-SHA-256-PLUS", header: "p=tls-unique,,", user: "alice", password: password, peer: both, failure: NotAuthorized},
		{name: "unknown mechanism", mechanism: "DIGEST-MD5", user: "alice", failure: InvalidMechanism},
		{name: "empty password", mechanism: "PLAIN", user: "alice", failure: MalformedRequest},
		{name: "empty name", mechanism: "PLAIN", password: password, failure: MalformedRequest},
		{name: "too many parts", mechanism: "PLAIN", user: "alice", password: "a\x00b", failure: MalformedRequest},
		{name: "not UTF-8", mechanism: "PLAIN", user: "alice", password: "\xff", failure: MalformedRequest},
		{name: "too long", mechanism: "PLAIN", user: "alice", password: strings.Repeat("x", 10_000), failure: MalformedRequest},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.peer.Domain == "" {
				tt.peer = peer()
			}
			guard.events = nil
			got := client(a, tt.peer, tt.mechanism, tt.header, tt.user, tt.password)
			if got.Failure != tt.failure || got.Done != (tt.as != "") || got.Account.User.String() != tt.as || got.Account.Admin != (tt.as == "alice@example.com") {
				t.Errorf("got %+v", got)
			}
			if events := strings.Join(guard.events, "; "); events != tt.event {
				t.Errorf("guard saw %q", events)
			}
			if got.Failure == NotAuthorized && tt.event != "" && (got.Text != wrong || got.Delay == 0) {
				t.Errorf("the text %q tells more than the others, or there is no delay", got.Text)
			}
		})
	}
}

func TestMechanisms(t *testing.T) {
	if got := Mechanisms(peer()); strings.Join(got, " ") != "SCRAM-SHA-256 SCRAM-SHA-1 PLAIN" {
		t.Error(got)
	}
	if got := Mechanisms(peer("tls-exporter")); strings.Join(got, " ") != "SCRAM-SHA-256-PLUS SCRAM-SHA-1-PLUS SCRAM-SHA-256 SCRAM-SHA-1 PLAIN" {
		t.Error(got)
	}
}

func TestWithoutInitialResponse(t *testing.T) {
	a, _ := newTest(t)
	e := a.New(peer())
	if step := e.Begin(context.Background(), "PLAIN", nil); step.Failure != "" || step.Done || step.Data != nil {
		t.Fatalf("got %+v", step)
	}
	if step := e.Continue(context.Background(), []byte("\x00alice\x00"+password)); !step.Done {
		t.Errorf("got %+v", step)
	}
	if step := e.Continue(context.Background(), []byte("\x00alice\x00"+password)); step.Failure != MalformedRequest {
		t.Errorf("an attempt was used twice: %+v", step)
	}
}

// TestUnknownUsersLookReal: the challenge for a name that does not exist has the form of a real one, and is stable (S12).
func TestUnknownUsersLookReal(t *testing.T) {
	a, _ := newTest(t)
	challenge := func(user string) string {
		step := a.New(peer()).Begin(context.Background(), "SCRAM-SHA-256", []byte("n,,n="+user+",r=x"))
		_, rest, _ := strings.Cut(string(step.Data), ",")
		return rest
	}
	again := challenge("nobody")
	if challenge("nobody") != again || challenge("nobody2") == again {
		t.Error("salts are not stable")
	}
	if challenge("nobody") != challenge("Nobody") {
		t.Error("the salt depends on how the name is written: a real user's does not")
	}
	for _, user := range []string{"alice", "nobody"} {
		if c := challenge(user); !strings.HasSuffix(c, fmt.Sprintf(",i=%d", rounds)) {
			t.Errorf("%s: %s", user, c)
		}
	}
}

// TestUnknownUsersTakeAsLong compares medians of many attempts by plain password (S12). The tolerance is that
// of a shared machine; leaving out the hashing would show as a factor of hundreds.
func TestUnknownUsersTakeAsLong(t *testing.T) {
	a, _ := newTest(t)
	measure := func(user string) time.Duration {
		begin := time.Now()
		if step := client(a, peer(), "PLAIN", "", user, "wrong password"); step.Failure != NotAuthorized {
			t.Fatalf("got %+v", step)
		}
		return time.Since(begin)
	}
	var known, unknown []time.Duration
	for range 2000 {
		known, unknown = append(known, measure("alice")), append(unknown, measure("nobody"))
	}
	slices.Sort(known)
	slices.Sort(unknown)
	a50, b50 := known[len(known)/2], unknown[len(unknown)/2]
	if a50 > b50*3/2 || b50 > a50*3/2 {
		t.Errorf("known user %v, unknown user %v", a50, b50)
	}
	t.Logf("known user %v, unknown user %v", a50, b50)
}

func TestPlainCache(t *testing.T) {
	v, _, err := scram.Derive(password, []byte("salt"), rounds)
	if err != nil {
		t.Fatal(err)
	}
	changed, _, err := scram.Derive(password, []byte("tlas"), rounds)
	if err != nil {
		t.Fatal(err)
	}
	p := newPlainChecker(1)
	check := func(v scram.Verifier, pass string) bool {
		ok, err := p.check(context.Background(), "alice", v, pass)
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	if check(v, "pen") || len(p.right) != 0 {
		t.Error("a wrong password is right, or remembered")
	}
	if !check(v, password) || len(p.right) != 1 || !p.remembered(p.tag("alice", v, password)) {
		t.Error("a right password is wrong, or not remembered")
	}
	if p.remembered(p.tag("alice", changed, password)) || p.remembered(p.tag("bob", v, password)) {
		t.Error("remembered for another verifier or user")
	}
	for i := range plainCacheMax + 10 {
		p.remember([32]byte{1, byte(i), byte(i >> 8), byte(i >> 16)})
	}
	if len(p.right) > plainCacheMax {
		t.Errorf("%d remembered", len(p.right))
	}
}

func TestPlainWorkersAreBounded(t *testing.T) {
	p := newPlainChecker(1)
	p.slots <- struct{}{} // busy
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := p.check(ctx, "alice", scram.Verifier{}, "x"); !fault.Is(err, fault.Overloaded) {
		t.Errorf("got %v", err)
	}
	<-p.slots
	if ok, err := p.check(context.Background(), "alice", scram.Verifier{}, "x"); ok || err != nil {
		t.Errorf("got %v, %v", ok, err)
	}
}

func TestEveryFaultHasAnAnswer(t *testing.T) {
	a, _ := newTest(t)
	for _, c := range fault.Codes() {
		step := a.New(peer()).refused(fault.New(c, "test", "", "text"))
		want := TemporaryAuthFailure
		switch c {
		case fault.BadRequest:
			want = MalformedRequest
		case fault.Unauthorized, fault.NotAcceptable:
			want = NotAuthorized
		}
		if step.Failure != want || step.Done {
			t.Errorf("%v: %+v", c, step)
		}
	}
}

// FuzzExchange: no input makes an exchange panic or succeed.
func FuzzExchange(f *testing.F) {
	f.Add("PLAIN", []byte("\x00alice\x00pencil2"), []byte(""))
	f.Add("SCRAM-SHA-1-PLUS", []byte("p=tls-exporter,,n=alice,r=abc"), []byte("c=,r=,p="))
	f.Add("SCRAM-SHA-256", []byte("n,a=x,n=alice,r=abc"), []byte("c=biws,r=abc,p=AAAA"))
	a, _ := newTest(f)
	f.Fuzz(func(t *testing.T, mechanism string, first, second []byte) {
		if strings.Contains(string(first), password+"\x00") || strings.HasSuffix(string(first), "\x00"+password) || strings.HasSuffix(string(second), "\x00"+password) {
			return // the right one
		}
		e := a.New(peer("tls-exporter"))
		for _, step := range []Step{e.Begin(context.Background(), mechanism, first), e.Continue(context.Background(), second), e.Continue(context.Background(), first)} {
			if step.Done {
				t.Fatalf("logged in: %+v", step)
			}
		}
	})
}
