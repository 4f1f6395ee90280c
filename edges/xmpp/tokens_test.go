package xmpp

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"muster/fsm/cluster"
	"muster/fsm/config"
	"muster/fsm/fsmtest"
	"muster/fsm/token"
	"muster/fsm/user"
	"muster/internal/fault"
	"muster/internal/jid"
	"muster/internal/scram"
	"muster/log"
)

const none = "HT-SHA-256-NONE"

// tokenSite is nodes that apply one log, each to a state of its own, with one clock.
type tokenSite struct {
	t      *testing.T
	nodes  []*fixture
	rigs   []*fsmtest.Rig
	offset atomic.Int64 // of the clock, from the rigs' first day
	cut    atomic.Bool  // no majority

	mu    sync.Mutex
	voids []token.Void // that told the log something new
}

func newTokenSite(t *testing.T, n int) *tokenSite {
	t.Helper()
	s := &tokenSite{t: t}
	for range n {
		s.rigs = append(s.rigs, fsmtest.New(t, cluster.Module(), config.Module(),
			user.ModuleWith(user.Hooks{Delete: []user.Hook{token.DeleteUser}, Disable: []user.Hook{token.DisableUser}}), token.Module()))
	}
	s.must(config.AddDomainEntry(testDomain))
	for _, name := range []string{"alice", "bob"} {
		s.must(createUser(t, name, testPassword, 1))
	}
	for i, rig := range s.rigs {
		f := startWith(t, func(o *Options) {
			o.Node, o.State, o.Accounts, o.VoidTokens = uint32(i+1), rig.M, Users(rig.M), s.void
		}, "c2s.unlimited_networks", "127.0.0.0/8")
		f.srv.tokens.now = s.now
		s.nodes = append(s.nodes, f)
	}
	return s
}

func createUser(t *testing.T, name, password string, salt int) *log.Entry {
	sha256, sha1 := verifiers(t, password, salt)
	return user.CreateEntry(user.User{Name: name + "@" + testDomain, IM: true, SHA256: sha256, SHA1: sha1})
}

func verifiers(t *testing.T, password string, salt int) (v256, v1 user.Verifier) {
	t.Helper()
	a, b, err := scram.Derive(password, fmt.Appendf(nil, "a salt, number %d", salt), scram.MinIterations)
	if err != nil {
		t.Fatal(err)
	}
	return user.Verifier{Iterations: a.Iterations, Salt: a.Salt, StoredKey: a.StoredKey, ServerKey: a.ServerKey},
		user.Verifier{Iterations: b.Iterations, Salt: b.Salt, StoredKey: b.StoredKey, ServerKey: b.ServerKey}
}

func (s *tokenSite) now() time.Time { return fsmtest.Start.Add(time.Duration(s.offset.Load())) }

// pass lets time go by.
func (s *tokenSite) pass(d time.Duration) { s.offset.Add(int64(d)) }

func (s *tokenSite) must(e *log.Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, rig := range s.rigs {
		c := *e
		c.Time = s.now()
		rig.Must(&c)
	}
}

func (s *tokenSite) void(_ context.Context, voids ...token.Void) error {
	if s.cut.Load() {
		return fault.New(fault.NoQuorum, "test", "", "no majority")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var refused error
	for _, v := range voids {
		if token.StandingOf(s.rigs[0].M, v.User, v.Agent).Before < v.Before { // else both nodes saw the same login's token
			s.voids = append(s.voids, v)
		}
		for _, rig := range s.rigs {
			e := token.VoidEntry(v)
			e.Time = s.now()
			if err := rig.Apply(e)[0].Err; err != nil {
				refused = err
			}
		}
	}
	return refused
}

func (s *tokenSite) writes() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.voids)
}

// settle waits until the log has had n voids since the beginning.
func (s *tokenSite) settle(n int) {
	s.t.Helper()
	s.nodes[0].until(fmt.Sprintf("%d voids in the log", n), func() bool { return s.writes() >= n })
	if got := s.writes(); got != n {
		s.t.Fatalf("%d voids in the log, want %d", got, n)
	}
}

type held struct {
	mechanism, text string
	expires         time.Time
}

func requestToken(mechanism string) string {
	return `<request-token xmlns='urn:xmpp:fast:0' mechanism='` + mechanism + `'/>`
}

// given returns the token in an answer; none has an empty text.
func given(t *testing.T, told, mechanism string) (h held) {
	t.Helper()
	if !strings.Contains(told, "<token ") {
		return held{}
	}
	el := "<token " + between(told, "<token ", "/>") + "/>"
	h = held{mechanism: mechanism, text: between(el, `token="`, `"`)}
	var err error
	if h.expires, err = time.Parse(time.RFC3339, between(el, `expiry="`, `"`)); err != nil {
		t.Fatalf("%s: %v", el, err)
	}
	return h
}

// token logs in with the password at a node and gets a token.
func (s *tokenSite) token(node int, name, agent, mechanism string) held {
	s.t.Helper()
	c, _ := s.nodes[node].secured(name + "@example.com")
	c.send(plain(name, userAgent(agent), requestToken(mechanism)))
	h := given(s.t, c.welcomed(), mechanism)
	if len(h.text) != 43 {
		s.t.Fatalf("no token: %+v", h)
	}
	return h
}

// use logs in with a token and returns what the server says, the server's proof checked.
func (s *tokenSite) use(node int, name, agent string, h held, attrs string, more ...string) string {
	s.t.Helper()
	c, _ := s.nodes[node].secured(name + "@example.com")
	binding := bindingOf(s.t, c, h.mechanism)
	c.send(authenticate(h.mechanism, name+"\x00"+string(code(h.text, "Initiator", binding)), append(more, userAgent(agent), `<fast xmlns='urn:xmpp:fast:0' `+attrs+`/>`)...))
	told := c.expect(`(?:<success .*</success><stream:features>|<failure .*</failure>)`)
	if proof := base64.StdEncoding.EncodeToString(code(h.text, "Responder", binding)); strings.HasPrefix(told, "<success") && between(told, "<additional-data>", "<") != proof {
		s.t.Errorf("the server does not prove that it knows the token: %s", told)
	}
	return told
}

func code(key, role string, binding []byte) []byte {
	m := hmac.New(sha256.New, []byte(key))
	m.Write(append([]byte(role), binding...))
	return m.Sum(nil)
}

// bindingOf computes the channel binding as a client does.
func bindingOf(t *testing.T, c *client, mechanism string) []byte {
	t.Helper()
	state := c.conn.(*tls.Conn).ConnectionState()
	switch mechanism {
	case "HT-SHA-256-EXPR":
		b, err := state.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
		if err != nil {
			t.Fatal(err)
		}
		return b
	case "HT-SHA-256-ENDP":
		sum := sha256.Sum256(state.PeerCertificates[0].Raw)
		return sum[:]
	}
	return nil
}

func accepted(told string) bool { return strings.HasPrefix(told, "<success ") }

func (s *tokenSite) accepts(what string, told string) {
	s.t.Helper()
	if !accepted(told) {
		s.t.Errorf("%s: %s", what, told)
	}
}

// refuses demands a failure with that condition.
func (s *tokenSite) refuses(what, condition, told string) {
	s.t.Helper()
	if !strings.HasPrefix(told, `<failure xmlns="urn:xmpp:sasl:2"><`+condition+` xmlns="urn:ietf:params:xml:ns:xmpp-sasl"/>`) {
		s.t.Errorf("%s: %s", what, told)
	}
}

func TestTokens(t *testing.T) {
	for _, mechanism := range []string{none, "HT-SHA-256-ENDP", "HT-SHA-256-EXPR"} {
		t.Run(mechanism, func(t *testing.T) {
			s := newTokenSite(t, 1)
			h := s.token(0, "alice", agentOne, mechanism)
			if want := token.EndOf(token.DayOf(fsmtest.Start)).Add(21 * 24 * time.Hour); !h.expires.Equal(want) {
				t.Errorf("expires %v, want %v", h.expires, want)
			}
			for range 3 {
				told := s.use(0, "alice", agentOne, h, "", bind2(`<tag>A</tag>`))
				if !accepted(told) || !strings.Contains(told, "<bound ") || strings.Contains(told, "<token") {
					t.Fatalf("got %s", told)
				}
			}
			s.settle(1) // the first use, no other
			for _, other := range []string{none, "HT-SHA-256-ENDP", "HT-SHA-256-EXPR"} {
				if other != mechanism {
					s.refuses("by "+other, "not-authorized", s.use(0, "alice", agentOne, held{mechanism: other, text: h.text}, ""))
				}
			}
			s.refuses("another client", "not-authorized", s.use(0, "alice", agentTwo, h, ""))
			s.refuses("another user", "not-authorized", s.use(0, "bob", agentOne, h, ""))
			s.refuses("nobody", "not-authorized", s.use(0, "nobody", agentOne, h, ""))
			s.refuses("a wrong token", "not-authorized", s.use(0, "alice", agentOne, held{mechanism: mechanism, text: h.text[1:] + "x"}, ""))
			if m := s.nodes[0].srv.Metrics(); m.TokenLogins != 3 || m.TokensIssued != 1 || m.Logins != 4 {
				t.Errorf("metrics %+v", m)
			}
		})
	}
}

// TestTokensHoldOnEveryNode: also while the node that gave them is gone, and before anything was written.
func TestTokensHoldOnEveryNode(t *testing.T) {
	s := newTokenSite(t, 2)
	h, other := s.token(0, "alice", agentOne, none), s.token(0, "bob", agentTwo, none)
	if s.writes() != 0 {
		t.Errorf("%d entries for tokens that nobody has used", s.writes())
	}
	s.nodes[0].stop()
	s.accepts("on the other node", s.use(1, "alice", agentOne, h, ""))
	s.settle(1)
	s.cut.Store(true)
	s.accepts("again, without a majority", s.use(1, "alice", agentOne, h, ""))
	s.accepts("for the first time, without a majority", s.use(1, "bob", agentTwo, other, ""))
	s.cut.Store(false)
	s.settle(2) // made up for
}

func TestTokensAreRenewed(t *testing.T) {
	s := newTokenSite(t, 2)
	old := s.token(0, "alice", agentOne, none)
	s.pass(6 * 24 * time.Hour)
	if told := s.use(0, "alice", agentOne, old, ""); !accepted(told) || strings.Contains(told, "<token ") {
		t.Fatalf("good for 15 days and more: %s", told)
	}
	s.pass(50 * time.Hour)
	next := given(t, s.use(1, "alice", agentOne, old, ""), none)
	if next.text == "" || next.text == old.text || !next.expires.After(s.now().Add(21*24*time.Hour)) {
		t.Fatalf("no new token: %+v", next)
	}
	s.accepts("the old one is lost on the way only if it still works", s.use(0, "alice", agentOne, old, ""))
	s.settle(1)
	s.accepts("the new one", s.use(1, "alice", agentOne, next, ""))
	s.settle(2)
	for node := range s.nodes {
		s.refuses(fmt.Sprintf("the old one on node %d", node), "credentials-expired", s.use(node, "alice", agentOne, old, ""))
	}
	s.accepts("the new one again", s.use(0, "alice", agentOne, next, ""))
	s.settle(2)
}

// TestOldTokensEndAtOnce: where the log cannot take it, the node that saw the new token refuses the old one all the same.
func TestOldTokensEndAtOnce(t *testing.T) {
	s := newTokenSite(t, 1)
	old := s.token(0, "alice", agentOne, none)
	s.pass(24 * time.Hour)
	next := s.token(0, "alice", agentOne, none)
	s.cut.Store(true)
	s.accepts("the new one", s.use(0, "alice", agentOne, next, ""))
	s.refuses("the old one", "credentials-expired", s.use(0, "alice", agentOne, old, ""))
	if s.writes() != 0 {
		t.Error("written without a majority")
	}
}

func TestTokensExpire(t *testing.T) {
	s := newTokenSite(t, 1)
	h := s.token(0, "alice", agentOne, none)
	s.pass(h.expires.Sub(s.now()) - time.Second)
	s.accepts("at its last second", s.use(0, "alice", agentOne, h, ""))
	s.pass(time.Second)
	s.refuses("then", "credentials-expired", s.use(0, "alice", agentOne, h, ""))
	s.pass(20 * 24 * time.Hour)
	s.refuses("and for ever, as it was used", "credentials-expired", s.use(0, "alice", agentOne, h, ""))
	s.refuses("long forgotten", "not-authorized", s.use(0, "bob", agentOne, h, ""))
	h = s.token(0, "alice", agentTwo, none)
	s.nodes[0].set("c2s.token_lifetime", "1h") // counts for those that are out already
	s.pass(26 * time.Hour)
	s.refuses("a shorter life", "credentials-expired", s.use(0, "alice", agentTwo, h, ""))
	s.nodes[0].set("c2s.token_lifetime", "0s")
	s.refuses("turned off", "invalid-mechanism", s.use(0, "alice", agentTwo, h, ""))
	c, _ := s.nodes[0].secured("alice@example.com")
	c.send(plain("alice", userAgent(agentOne), requestToken(none)))
	if told := c.welcomed(); strings.Contains(told, "<token") {
		t.Errorf("a token while they are turned off: %s", told)
	}
}

func TestInvalidate(t *testing.T) {
	s := newTokenSite(t, 2)
	h := s.token(0, "alice", agentOne, none)
	other := s.token(0, "alice", agentTwo, none)
	s.cut.Store(true)
	s.refuses("without a majority", "temporary-auth-failure", s.use(0, "alice", agentOne, h, "invalidate='true'"))
	s.cut.Store(false)
	for i := range 3 { // a token for each on one day
		told := s.use(0, "alice", agentOne, h, "count='7' invalidate='"+[]string{"true", "1"}[i%2]+"'", requestToken(none))
		next := given(t, told, none)
		if !accepted(told) || next.text == "" || next.text == h.text {
			t.Fatalf("got %s", told)
		}
		for node := range s.nodes {
			s.refuses("invalidated", "credentials-expired", s.use(node, "alice", agentOne, h, ""))
		}
		h = next
	}
	s.accepts("the last one", s.use(1, "alice", agentOne, h, ""))
	if told := s.use(0, "alice", agentOne, h, "invalidate='1'"); !accepted(told) || strings.Contains(told, "<token") {
		t.Errorf("a token that nobody asked for: %s", told)
	}
	s.accepts("another client's", s.use(0, "alice", agentTwo, other, ""))
	for range 2 * token.MaxAhead {
		c, _ := s.nodes[0].secured("")
		c.send(plain("alice", userAgent(agentOne), requestToken(none)))
		if h = given(t, c.welcomed(), none); h.text == "" {
			return // the day's supply is used up
		}
		s.accepts("one more", s.use(0, "alice", agentOne, h, "invalidate='1'"))
	}
	t.Error("there is no end to tokens")
}

// TestChangesThatEndTokens: on all nodes, as soon as they have applied the change.
func TestChangesThatEndTokens(t *testing.T) {
	yes, no := true, false
	for _, tt := range []struct {
		name    string
		entries func(t *testing.T) []*log.Entry
		good    bool
	}{
		{"new password", func(t *testing.T) []*log.Entry {
			a, b := verifiers(t, "new", 2)
			return []*log.Entry{user.PasswordEntry("alice@example.com", a, b)}
		}, false},
		{"the same password again", func(t *testing.T) []*log.Entry {
			a, b := verifiers(t, testPassword, 3)
			return []*log.Entry{user.PasswordEntry("alice@example.com", a, b)}
		}, false},
		{"disabled", func(*testing.T) []*log.Entry {
			return []*log.Entry{user.UpdateEntry("alice@example.com", user.Update{IM: &no})}
		}, false},
		{"disabled and enabled again", func(*testing.T) []*log.Entry {
			return []*log.Entry{user.UpdateEntry("alice@example.com", user.Update{IM: &no}), user.UpdateEntry("alice@example.com", user.Update{IM: &yes})}
		}, false},
		{"deleted", func(*testing.T) []*log.Entry { return []*log.Entry{user.DeleteEntry("alice@example.com")} }, false},
		{"deleted and made again with the same verifiers", func(t *testing.T) []*log.Entry {
			return []*log.Entry{user.DeleteEntry("alice@example.com"), createUser(t, "alice", testPassword, 1)}
		}, false},
		{"another name to show", func(*testing.T) []*log.Entry {
			name := "Alice"
			return []*log.Entry{user.UpdateEntry("alice@example.com", user.Update{DisplayName: &name, Admin: &yes})}
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newTokenSite(t, 2)
			h := s.token(0, "alice", agentOne, none)
			s.accepts("at first", s.use(0, "alice", agentOne, h, ""))
			s.settle(1)
			s.pass(time.Minute)
			for _, e := range tt.entries(t) {
				s.must(e)
			}
			for node := range s.nodes {
				if told := s.use(node, "alice", agentOne, h, ""); accepted(told) != tt.good {
					t.Errorf("node %d: %s", node, told)
				}
			}
		})
	}
}

func TestTokensAreNotGuessed(t *testing.T) {
	s := newTokenSite(t, 1)
	f := s.nodes[0]
	f.set("c2s.unlimited_networks", "")
	h := s.token(0, "alice", agentOne, none)
	s.token(0, "bob", agentOne, none)
	wrong := held{mechanism: none, text: "x"}
	for range pairFailures {
		s.refuses("a guess", "not-authorized", s.use(0, "alice", agentOne, wrong, ""))
	}
	s.refuses("the right one, after too many guesses", "temporary-auth-failure", s.use(0, "alice", agentOne, h, ""))
	for i := range addressFailures { // many clients behind one address, whose tokens became void all at once
		s.refuses("a void token", "not-authorized", s.use(0, fmt.Sprintf("user%d", i), agentOne, wrong, ""))
	}
	c, _ := f.secured("")
	c.send(plain("bob"))
	c.welcomed()
}

func TestTokensOfMalformedLogins(t *testing.T) {
	s := newTokenSite(t, 1)
	h := s.token(0, "alice", agentOne, none)
	right := "alice\x00" + string(code(h.text, "Initiator", nil))
	const fast = `<fast xmlns='urn:xmpp:fast:0'/>`
	for _, tt := range []struct{ name, initial, want string }{
		{"no code", "alice", "malformed-request"},
		{"empty name", "\x00" + right[6:], "malformed-request"},
		{"short code", right[:len(right)-1], "malformed-request"},
		{"long code", right + "x", "malformed-request"},
		{"name that is no UTF-8", "\xff" + right, "malformed-request"},
		{"long name", strings.Repeat("a", maxNameInTest) + right, "malformed-request"},
		{"full address for a name", "alice@example.com" + right[5:], "not-authorized"},
		{"code of the server", "alice\x00" + string(code(h.text, "Responder", nil)), "not-authorized"},
	} {
		c, _ := s.nodes[0].secured("")
		c.send(authenticate(none, tt.initial, userAgent(agentOne), fast))
		s.refuses(tt.name, tt.want, c.expect(`<failure .*</failure>`))
	}
	c, _ := s.nodes[0].secured("")
	c.send(authenticate(none, right, userAgent(agentOne)))
	s.refuses("not said to be a token", "invalid-mechanism", c.expect(`<failure .*</failure>`))
	c.send(`<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='HT-SHA-256-NONE'>` + b64(right) + `</auth>`)
	c.expect(`<failure xmlns="urn:ietf:params:xml:ns:xmpp-sasl"><invalid-mechanism/>`)
	c.send(authenticate(none, "-", userAgent(agentOne), fast)) // in two steps, as any mechanism
	c.expect(`<challenge xmlns='urn:xmpp:sasl:2'/>`)
	c.send(`<response xmlns='urn:xmpp:sasl:2'>` + b64(right) + `</response>`)
	c.welcomed()
}

const maxNameInTest = 1024

func TestTokenRequestsWithoutAToken(t *testing.T) {
	s := newTokenSite(t, 1)
	for name, more := range map[string]string{
		"no user agent":         requestToken(none),
		"unknown mechanism":     userAgent(agentOne) + requestToken("HT-SHA3-512-NONE"),
		"binding of TLS 1.2":    userAgent(agentOne) + requestToken("HT-SHA-256-UNIQ"),
		"a password mechanism":  userAgent(agentOne) + requestToken("PLAIN"),
		"no mechanism":          userAgent(agentOne) + `<request-token xmlns='urn:xmpp:fast:0'/>`,
		"user agent without id": `<user-agent><software>x</software></user-agent>` + requestToken(none),
	} {
		c, _ := s.nodes[0].secured("")
		c.send(plain("alice", more))
		if told := c.welcomed(); strings.Contains(told, "<token") {
			t.Errorf("%s: %s", name, told)
		}
	}
}

// TestVoidsOnTheirWayAreBounded: beyond the limit a login waits for the log, and fails if that takes nothing.
func TestVoidsOnTheirWayAreBounded(t *testing.T) {
	s := newTokenSite(t, 1)
	h := s.token(0, "alice", agentOne, none)
	s.cut.Store(true)
	tokens := s.nodes[0].srv.tokens
	tokens.mu.Lock()
	for i := range maxVoids {
		tokens.voids[tokenClient{user: "gone@example.com", agent: token.Agent{byte(i), byte(i >> 8)}}] = 1
	}
	tokens.mu.Unlock()
	s.refuses("without a majority", "temporary-auth-failure", s.use(0, "alice", agentOne, h, ""))
	s.cut.Store(false)
	s.accepts("with one", s.use(0, "alice", agentOne, h, ""))
	if s.writes() != 1 {
		t.Errorf("%d entries", s.writes())
	}
	tokens.woken <- struct{}{}
	s.nodes[0].until("voids of users who are gone are forgotten", func() bool {
		tokens.mu.Lock()
		defer tokens.mu.Unlock()
		return len(tokens.voids) == 0
	})
}

// TestClocksThatDiffer: a token that a node ahead by hours gave is good on one that is not there yet.
func TestClocksThatDiffer(t *testing.T) {
	s := newTokenSite(t, 2)
	s.nodes[0].srv.tokens.now = func() time.Time { return s.now().Add(23 * time.Hour) }
	s.pass(2 * time.Hour)
	s.accepts("a token of tomorrow", s.use(1, "alice", agentOne, s.token(0, "alice", agentOne, none), ""))
}

// TestFailuresTakeAsLong: as many candidates are tried for a user who does not exist as for one who does.
func TestFailuresTakeAsLong(t *testing.T) {
	s := newTokenSite(t, 1)
	s.accepts("to know the client", s.use(0, "alice", agentOne, s.token(0, "alice", agentOne, none), ""))
	s.settle(1)
	tokens := s.nodes[0].srv.tokens
	agent, _ := token.ParseAgent(agentOne)
	tried := func(name string) (n int) {
		e := Users(s.rigs[0].M)
		a, _ := e.Account(jid.MustParse(name + "@" + testDomain))
		if _, v := tokens.Find(a, agent, none, func([]byte) bool { n++; return false }); v != 0 {
			t.Errorf("%s: validity %v", name, v)
		}
		return n
	}
	if a, b, c := tried("alice"), tried("bob"), tried("nobody"); a != b || b != c || a > 21+tokenRemembered+3 {
		t.Errorf("%d, %d and %d candidates", a, b, c)
	}
}

func BenchmarkTokenLogin(b *testing.B) {
	for _, age := range []int{0, 7, 21} {
		b.Run(fmt.Sprintf("unused for %d days", age), func(b *testing.B) {
			rig := fsmtest.New(b, cluster.Module(), config.Module(), user.Module(), token.Module())
			f := startWith(b, func(o *Options) {
				o.State, o.Accounts, o.VoidTokens = rig.M, Users(rig.M), func(context.Context, ...token.Void) error { return nil }
			})
			agent, _ := token.ParseAgent(agentOne)
			a := testAccounts(b)["alice@example.com"]
			day := token.DayOf(time.Now()) - uint32(age)
			want := code(string(f.srv.tokens.deriver(a, agent, none, 0).Token(day)), "Initiator", nil)
			b.ReportAllocs()
			for b.Loop() {
				got, _ := f.srv.tokens.Find(a, agent, none, func(key []byte) bool {
					return hmac.Equal(want, code(string(key), "Initiator", nil))
				})
				if got != day {
					b.Fatalf("found day %d", got)
				}
			}
		})
	}
}
