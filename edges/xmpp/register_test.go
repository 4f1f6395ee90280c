package xmpp

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"muster/internal/fault"
	"muster/internal/jid"
)

// fakeRegistrar makes accounts in a map.
type fakeRegistrar struct {
	open atomic.Bool

	mu      sync.Mutex
	made    map[string]string // address → password
	remotes []string
	err     error
}

func (r *fakeRegistrar) Open() bool { return r.open.Load() }

func (r *fakeRegistrar) Register(_ context.Context, user jid.JID, password, remote string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.remotes = append(r.remotes, remote)
	if r.err == nil {
		r.made[user.String()] = password
	}
	return r.err
}

func (r *fakeRegistrar) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
}

func startRegistering(t *testing.T) (*fixture, *fakeRegistrar) {
	t.Helper()
	r := &fakeRegistrar{made: map[string]string{}}
	r.open.Store(true)
	return startWith(t, func(o *Options) { o.Registrar = r }), r
}

const (
	registerFeature = `<register xmlns='http://jabber.org/features/iq-register'/>`
	registerForm    = `<iq type='get' id='r'><query xmlns='jabber:iq:register'/></iq>`
)

func registerRequest(name, password string) string {
	return `<iq type='set' id='r' to='example.com'><query xmlns='jabber:iq:register'><username>` + name + `</username><password>` + password + `</password></query></iq>`
}

// beforeLogin returns a client under TLS, and the stream features that it was offered.
func (f *fixture) beforeLogin() (*client, string) {
	f.tb.Helper()
	c := f.dialTo(1)
	c.conn = tlsClient(f, c)
	c.send(openStream)
	return c, c.expect(`<stream:features>.*</stream:features>`)
}

func TestRegistrationBeforeLogin(t *testing.T) {
	f, r := startRegistering(t)
	c := f.dial()
	c.send(openStream)
	if plain := c.expect(`<stream:features>.*</stream:features>`); strings.Contains(plain, "iq-register") {
		t.Errorf("offered in clear: %s", plain)
	}
	c, features := f.beforeLogin()
	if !strings.Contains(features, registerFeature) {
		t.Errorf("not offered: %s", features)
	}
	c.send(registerForm)
	c.expect(`^<iq from="example.com" type="result" id="r"><query xmlns="jabber:iq:register"><instructions [^>]*>[^<]+</instructions><username/><password/></query></iq>`)
	c.send(registerRequest("Dora", "sesame"))
	c.expect(`^<iq from="example.com" type="result" id="r"/>`)
	if r.made["dora@example.com"] != "sesame" || r.remotes[0] != "127.0.0.1" {
		t.Errorf("made %v from %v", r.made, r.remotes)
	}
	c.login("alice") // the stream goes on
	if m := f.srv.Metrics(); m.Registrations != 1 || m.RegisterRefused != 0 {
		t.Errorf("metrics %+v", m)
	}
	if logs := f.logs.String(); !strings.Contains(logs, "account_registered") || strings.Contains(logs, "sesame") {
		t.Error("the log lacks the account, or holds its password")
	}
}

func TestRegistrationRefused(t *testing.T) {
	f, r := startRegistering(t)
	for _, tt := range []struct {
		name, send string
		err        error
		want       string
	}{
		{"name taken", registerRequest("alice", "x"), fault.New(fault.Conflict, "x", "", "taken"), `type="cancel"><conflict `},
		{"too many", registerRequest("dora", "x"), fault.New(fault.Overloaded, "x", "", "too many"), `type="wait"><resource-constraint `},
		{"no quorum", registerRequest("dora", "x"), fault.New(fault.NoQuorum, "x", "", ""), `type="wait"><resource-constraint `},
		{"no password", registerRequest("dora", ""), nil, `type="modify"><not-acceptable `},
		{"no name", registerRequest("", "x"), nil, `type="modify"><not-acceptable `},
		{"bad name", registerRequest("a@b", "x"), nil, `type="modify"><not-acceptable `},
		{"empty form", `<iq type='set' id='r'><query xmlns='jabber:iq:register'/></iq>`, nil, `type="modify"><not-acceptable `},
		{"removal", `<iq type='set' id='r'><query xmlns='jabber:iq:register'><remove/></query></iq>`, nil, `type="wait"><unexpected-request `},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r.fail(tt.err)
			c, _ := f.in(t).beforeLogin()
			c.send(tt.send)
			c.expect(`^<iq from="example.com" type="error" id="r"><error ` + tt.want)
		})
	}
	if len(r.made) != 0 {
		t.Errorf("made %v", r.made)
	}
}

// TestRegistrationIsNotForAnythingElse: while it is on, other stanzas before login end the stream as ever.
func TestRegistrationIsNotForAnythingElse(t *testing.T) {
	f, r := startRegistering(t)
	for name, send := range map[string]string{
		"a message":          `<message to='bob@example.com'><body>x</body></message>`,
		"another request":    `<iq type='get' id='r'><ping xmlns='urn:xmpp:ping'/></iq>`,
		"to a user":          strings.Replace(registerRequest("dora", "x"), "to='example.com'", "to='bob@example.com'", 1),
		"to another domain":  strings.Replace(registerRequest("dora", "x"), "to='example.com'", "to='example.org'", 1),
		"in somebody's name": strings.Replace(registerRequest("dora", "x"), "to='example.com'", "from='alice@example.com'", 1),
		"a result":           `<iq type='result' id='r'><query xmlns='jabber:iq:register'/></iq>`,
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := f.in(t).beforeLogin()
			c.send(send)
			c.expect(`^<stream:error><not-authorized `)
		})
	}
	t.Run("in clear", func(t *testing.T) {
		c := f.in(t).dial()
		c.send(openStream)
		c.expect(`</stream:features>`)
		c.send(registerRequest("dora", "x"))
		c.expect(`^<stream:error><policy-violation `)
	})
	if len(r.remotes) != 0 {
		t.Errorf("%d requests got through", len(r.remotes))
	}
}

func TestRegistrationSwitchesLive(t *testing.T) {
	f, r := startRegistering(t)
	r.open.Store(false)
	c, features := f.beforeLogin()
	if strings.Contains(features, "iq-register") {
		t.Errorf("offered while it is off: %s", features)
	}
	r.open.Store(true)
	c.send(registerForm) // a stream from before
	c.expect(`type="result" .*</iq>`)
	r.open.Store(false)
	c.send(registerRequest("dora", "x"))
	c.expect(`^<stream:error><not-authorized `)
	if _, features = f.beforeLogin(); strings.Contains(features, "iq-register") || len(r.made) != 0 {
		t.Errorf("offered after it was turned off: %s; made %v", features, r.made)
	}
}

func TestRegistrationRequestsAreLimited(t *testing.T) {
	f, r := startRegistering(t)
	c, _ := f.beforeLogin()
	for i := range maxRegistrations {
		c.send(registerRequest(fmt.Sprint("user", i), "x"))
		c.expect(`type="result" id="r"`)
	}
	c.send(registerForm)
	c.expect(`<stream:error><policy-violation `)
	if len(r.made) != maxRegistrations {
		t.Errorf("%d accounts", len(r.made))
	}
	f.set("c2s.unlimited_networks", "127.0.0.0/8")
	c, _ = f.beforeLogin()
	c.send(registerRequest("free", "x"))
	c.expect(`type="result" id="r"`)
	if last := r.remotes[len(r.remotes)-1]; last != "" {
		t.Errorf("a client of an unlimited network is counted as %s", last)
	}
}
