package sasl

import (
	"context"
	"slices"
	"strings"
	"testing"

	"muster/fsm/token"
	"muster/internal/jid"
)

var agent = token.Agent{1}

// drawer has one good and one void token for each user but nobody, in the clear.
type drawer struct{ asked []string }

func (d *drawer) Find(a Account, _ token.Agent, mechanism string, fits func([]byte) bool) (uint32, Validity) {
	d.asked = append(d.asked, a.User.Local+" "+mechanism)
	switch {
	case fits([]byte("good " + a.User.Local + mechanism)):
		return 7, Good
	case fits([]byte("void " + a.User.Local + mechanism)):
		return 6, Void
	}
	return 0, Unknown
}

func newTokenTest(tb testing.TB) (*Authenticator, *recorder, *drawer) {
	tb.Helper()
	plain, guard := newTest(tb)
	o, d := plain.o, &drawer{}
	o.Tokens = d
	return NewAuthenticator(o), guard, d
}

func byToken(name, key, role string, binding string) []byte {
	return append([]byte(name+"\x00"), tokenCode([]byte(key), role, []byte(binding))...)
}

func TestLoginsByToken(t *testing.T) {
	const none, endPoint, exporter = "HT-SHA-256-NONE", "HT-SHA-256-ENDP", "HT-SHA-256-EXPR"
	a, guard, d := newTokenTest(t)
	both := []string{"tls-exporter", "tls-server-end-point"}
	for _, tt := range []struct {
		name, mechanism string
		msg             []byte
		kinds           []string
		noAgent         bool
		failure         Condition
		event           string
		answer          []byte
	}{
		{name: "good", mechanism: none, msg: byToken("alice", "good alice"+none, "Initiator", ""), event: "succeeded alice@example.com 192.0.2.1", answer: tokenCode([]byte("good alice"+none), "Responder", nil)},
		{name: "name in capitals", mechanism: none, msg: byToken("ALICE", "good alice"+none, "Initiator", ""), event: "succeeded alice@example.com 192.0.2.1", answer: tokenCode([]byte("good alice"+none), "Responder", nil)},
		{name: "with end point", mechanism: endPoint, msg: byToken("alice", "good alice"+endPoint, "Initiator", "data of tls-server-end-point"), kinds: both, event: "succeeded alice@example.com 192.0.2.1", answer: tokenCode([]byte("good alice"+endPoint), "Responder", []byte("data of tls-server-end-point"))},
		{name: "with exporter", mechanism: exporter, msg: byToken("alice", "good alice"+exporter, "Initiator", "data of tls-exporter"), kinds: both, event: "succeeded alice@example.com 192.0.2.1", answer: tokenCode([]byte("good alice"+exporter), "Responder", []byte("data of tls-exporter"))},
		{name: "binding of another connection", mechanism: exporter, msg: byToken("alice", "good alice"+exporter, "Initiator", "data of another"), kinds: both, failure: NotAuthorized, event: "failed token alice@example.com 192.0.2.1"},
		{name: "binding left out", mechanism: endPoint, msg: byToken("alice", "good alice"+endPoint, "Initiator", ""), kinds: both, failure: NotAuthorized, event: "failed token alice@example.com 192.0.2.1"},
		{name: "binding that is not there", mechanism: exporter, msg: byToken("alice", "good alice"+exporter, "Initiator", ""), kinds: both[1:], failure: InvalidMechanism},
		{name: "void", mechanism: none, msg: byToken("alice", "void alice"+none, "Initiator", ""), failure: CredentialsExpired},
		{name: "wrong", mechanism: none, msg: byToken("alice", "bad", "Initiator", ""), failure: NotAuthorized, event: "failed token alice@example.com 192.0.2.1"},
		{name: "the server's own answer", mechanism: none, msg: byToken("alice", "good alice"+none, "Responder", ""), failure: NotAuthorized, event: "failed token alice@example.com 192.0.2.1"},
		{name: "nobody", mechanism: none, msg: byToken("nobody", "bad", "Initiator", ""), failure: NotAuthorized, event: "failed token nobody@example.com 192.0.2.1"},
		{name: "nobody, with what would fit", mechanism: none, msg: byToken("nobody", "good "+none, "Initiator", ""), failure: NotAuthorized, event: "failed token nobody@example.com 192.0.2.1"},
		{name: "nobody, void", mechanism: none, msg: byToken("nobody", "void "+none, "Initiator", ""), failure: NotAuthorized, event: "failed token nobody@example.com 192.0.2.1"},
		{name: "disabled", mechanism: none, msg: byToken("carol", "good carol"+none, "Initiator", ""), failure: AccountDisabled, event: "succeeded carol@example.com 192.0.2.1"},
		{name: "locked", mechanism: none, msg: byToken("locked", "x", "Initiator", ""), failure: TemporaryAuthFailure},
		{name: "no user agent", mechanism: none, msg: byToken("alice", "good alice"+none, "Initiator", ""), noAgent: true, failure: InvalidMechanism},
		{name: "tls-unique", mechanism: "HT-SHA-256-UNIQ", msg: byToken("alice", "x", "Initiator", ""), kinds: both, failure: InvalidMechanism},
		{name: "no NUL", mechanism: none, msg: []byte("alice"), failure: MalformedRequest},
		{name: "no name", mechanism: none, msg: byToken("", "x", "Initiator", ""), failure: MalformedRequest},
		{name: "long name", mechanism: none, msg: byToken(strings.Repeat("a", maxAuthcid+1), "x", "Initiator", ""), failure: MalformedRequest},
		{name: "half a code", mechanism: none, msg: byToken("alice", "x", "Initiator", "")[:20], failure: MalformedRequest},
		{name: "not UTF-8", mechanism: none, msg: byToken("\xff", "x", "Initiator", ""), failure: MalformedRequest},
	} {
		t.Run(tt.name, func(t *testing.T) {
			guard.events, d.asked = nil, nil
			p := peer(tt.kinds...)
			if !tt.noAgent {
				p.Agent = agent
			}
			got := a.New(p).Begin(context.Background(), tt.mechanism, tt.msg)
			if got.Failure != tt.failure || got.Done != (tt.failure == "") || string(got.Data) != string(tt.answer) {
				t.Errorf("got %+v", got)
			}
			if got.Done && (got.TokenDay != 7 || got.Account.User != jid.MustParse("alice@example.com")) {
				t.Errorf("logged in to %v by the token of day %d", got.Account.User, got.TokenDay)
			}
			if events := strings.Join(guard.events, "; "); events != tt.event {
				t.Errorf("guard saw %q", events)
			}
			if got.Failure == NotAuthorized && (got.Text != wrongToken || got.Delay == 0 || len(d.asked) != 1) {
				t.Errorf("a failure that differs: %+v, asked %q", got, d.asked)
			}
		})
	}
}

func TestTokenMechanisms(t *testing.T) {
	for want, kinds := range map[string][]string{
		"HT-SHA-256-NONE":                                 nil,
		"HT-SHA-256-ENDP HT-SHA-256-NONE":                 {"tls-server-end-point"},
		"HT-SHA-256-EXPR HT-SHA-256-ENDP HT-SHA-256-NONE": {"tls-server-end-point", "tls-exporter"},
	} {
		got := TokenMechanisms(peer(kinds...))
		if strings.Join(got, " ") != want {
			t.Errorf("%v: %v", kinds, got)
		}
		if slices.ContainsFunc(Mechanisms(peer(kinds...)), func(m string) bool { return strings.HasPrefix(m, "HT-") }) {
			t.Error("a mechanism for tokens is offered for passwords")
		}
	}
}

// TestNoTokens: without tokens no mechanism uses one.
func TestNoTokens(t *testing.T) {
	a, _ := newTest(t)
	p := peer()
	p.Agent = agent
	if got := a.New(p).Begin(context.Background(), "HT-SHA-256-NONE", byToken("alice", "x", "Initiator", "")); got.Failure != InvalidMechanism {
		t.Errorf("got %+v", got)
	}
}

// FuzzTokenMessage: no message makes a login by token panic or succeed but the right one.
func FuzzTokenMessage(f *testing.F) {
	right := byToken("alice", "good aliceHT-SHA-256-NONE", "Initiator", "")
	f.Add(right[:len(right)-1])
	f.Add(byToken("alice", "x", "Initiator", ""))
	f.Add([]byte("\x00\x00\x00"))
	a, _, _ := newTokenTest(f)
	f.Fuzz(func(t *testing.T, msg []byte) {
		p := peer("tls-exporter")
		p.Agent = agent
		if step := a.New(p).Begin(context.Background(), "HT-SHA-256-NONE", msg); step.Done && !strings.HasSuffix(string(msg), string(right[5:])) {
			t.Fatalf("logged in: %+v", step)
		}
	})
}
