package xmpp

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	msasl "mellium.im/sasl"

	"muster/feature/ping"
	"muster/feature/register"
	"muster/fsm"
	"muster/fsm/cluster"
	"muster/fsm/config"
	"muster/fsm/fsmtest"
	"muster/fsm/user"
	"muster/internal/certs"
	"muster/internal/fault"
	"muster/internal/scram"
	"muster/log"
	"muster/router"
	"muster/router/hot"
)

// onRig proposes to a rig's machine.
type onRig struct{ rig *fsmtest.Rig }

func (o onRig) Propose(_ context.Context, entries ...*log.Entry) ([]fsm.Result, error) {
	return o.rig.Apply(entries...), nil
}

type quiet struct{}

func (quiet) Infof(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}
func (quiet) Fatalf(string, ...any) { panic("pebble") }

// startReal runs the edge on a real router and real users.
func startReal(t *testing.T) *fixture {
	t.Helper()
	rig := fsmtest.New(t, cluster.Module(), config.Module(), user.Module())
	rig.Must(cluster.InitEntry(cluster.Init{ID: "c1", Name: "test", CACert: []byte("x"), Node: cluster.Member{Name: "n1", ClusterAddr: "n1:1", NewestVersion: log.NewestVersion}}))
	incarnation := cluster.IncarnationResult(rig.Must(cluster.StartEntry(1, "test", log.NewestVersion)).Value)
	rig.Must(config.AddDomainEntry(testDomain))
	for _, name := range []string{"alice", "bob", "carol"} {
		v256, v1, err := scram.Derive(testPassword, []byte("salt of "+name), scram.MinIterations)
		if err != nil {
			t.Fatal(err)
		}
		rig.Must(user.CreateEntry(user.User{Name: name + "@" + testDomain, IM: name != "carol", Presence: true,
			SHA256: user.Verifier{Iterations: v256.Iterations, Salt: v256.Salt, StoredKey: v256.StoredKey, ServerKey: v256.ServerKey},
			SHA1:   user.Verifier{Iterations: v1.Iterations, Salt: v1.Salt, StoredKey: v1.StoredKey, ServerKey: v1.ServerKey}}))
	}
	live := config.NewLive(rig.M, 1)
	db, err := pebble.Open("hot", &pebble.Options{FS: vfs.NewMem(), Logger: quiet{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	rows, err := hot.Open(hot.Options{DB: db, Self: 1})
	if err != nil {
		t.Fatal(err)
	}
	logger := slog.New(slog.NewTextHandler(io.Discard, nil))
	r, err := router.New(router.Options{NodeID: 1, State: rig.M, Live: live, Proposer: onRig{rig}, Hot: rows,
		Features: []router.Feature{ping.New()}, Incarnation: func() uint64 { return incarnation }, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	rig.M.OnApply(r.Changes)
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testPatience)
		defer cancel()
		if err := r.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	ca, err := testCA()
	if err != nil {
		t.Fatal(err)
	}
	source, err := ca.IssueSource(time.Now(), testDomain)
	if err != nil {
		t.Fatal(err)
	}
	return startReally(t, rig, live, ForRouter(r), ca, source)
}

func startReally(t *testing.T, rig *fsmtest.Rig, live *config.Live, b Binder, ca *certs.CA, source *certs.Source) *fixture {
	t.Helper()
	srv, err := New(Options{Node: 1, StartTLS: []string{"127.0.0.1:0"}, DirectTLS: []string{"127.0.0.1:0"}, Certs: source, Router: b,
		Registrar: register.NewRegistrar(rig.M, live, onRig{rig}), State: rig.M, Live: live, Key: testKey, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	f := &fixture{tb: t, srv: srv, rig: rig, live: live, ca: ca}
	t.Cleanup(f.stop)
	return f
}

// TestOnTheRealRouter: the edge and the router fit.
func TestOnTheRealRouter(t *testing.T) {
	f := startReal(t)
	alice, bob := f.online("alice", "desk"), f.online("bob", "phone")
	alice.send(`<iq type='get' id='p1' to='example.com'><ping xmlns='urn:xmpp:ping'/></iq>`)
	alice.expect(`<iq [^>]*type="result" id="p1"`)
	alice.send(`<message to='bob@example.com/phone' type='chat' id='m1'><body>hello</body></message>`)
	bob.expect(`<message from="alice@example.com/desk" to="bob@example.com/phone" type="chat" id="m1"><body>hello</body></message>`)
	alice.send(`<message to='carol@example.com' type='chat' id='m2'><body>hello</body></message>`)
	alice.expect(`<message [^>]*type="error" id="m2".*<service-unavailable`)
	t.Run("a disabled account", func(t *testing.T) {
		c := f.in(t).dial()
		c.startTLS(f)
		c.send(plainLogin("carol", testPassword))
		c.expect(`<failure [^>]*><account-disabled/>`)
	})
	t.Run("a conflict", func(t *testing.T) {
		f := f.in(t)
		old := f.online("alice", "twice")
		f.online("alice", "twice")
		old.expect(`<stream:error><conflict`)
		old.closed()
	})
	t.Run("what a lost client did not get comes back", func(t *testing.T) {
		f.set("c2s.resume_timeout", "1s")
		bob.tb = t
		alice.tb = t
		bob.send(enableResume)
		bob.expect(`<enabled `)
		f.in(t).drop(bob)
		alice.send(`<message to='bob@example.com/phone' type='chat' id='m3'><body>too late</body></message>`)
		alice.expect(`<message [^>]*type="error" id="m3".*<service-unavailable`)
	})
}

// TestRegisterThenLogIn: off, on and off again, live, with real accounts.
func TestRegisterThenLogIn(t *testing.T) {
	f := startReal(t)
	c, features := f.beforeLogin()
	if strings.Contains(features, registerFeature) {
		t.Errorf("offered by default: %s", features)
	}
	c.send(registerRequest("dora", testPassword))
	c.expect(`<stream:error><not-authorized `)
	f.set("register.enabled", "true")
	f.set("register.per_address_per_hour", "2")
	c, features = f.beforeLogin()
	if !strings.Contains(features, registerFeature) {
		t.Errorf("not offered: %s", features)
	}
	for _, tt := range []struct{ name, want string }{
		{"dora", `type="result" id="r"/>`}, {"Dora", `<conflict `}, {"alice", `<conflict `}, {"emil", `type="result" id="r"/>`}, {"frieda", `type="wait"><resource-constraint `},
	} {
		c.send(registerRequest(tt.name, testPassword))
		c.expect(tt.want)
	}
	f.online("dora", "desk")
	if s, err := foreign(t, f, "emil", testPassword, msasl.ScramSha256, f.tlsConfig()); err != nil {
		t.Errorf("a foreign client cannot log in: %v", err)
	} else {
		s.Close()
	}
	f.set("register.enabled", "false")
	if _, features = f.beforeLogin(); strings.Contains(features, registerFeature) {
		t.Errorf("offered after it was turned off: %s", features)
	}
}

func TestNewRefuses(t *testing.T) {
	f := start(t)
	for name, change := range map[string]func(*Options){
		"no router":       func(o *Options) { o.Router = nil },
		"no certificates": func(o *Options) { o.Certs = nil },
		"short key":       func(o *Options) { o.Key = []byte("short") },
	} {
		t.Run(name, func(t *testing.T) {
			o := f.srv.o
			change(&o)
			if _, err := New(o); !fault.Is(err, fault.BadRequest) {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("an address in use", func(t *testing.T) {
		o := f.srv.o
		o.StartTLS = []string{f.srv.Addresses()[0].String()}
		s, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Start(context.Background()); !fault.Is(err, fault.Unavailable) {
			t.Errorf("got %v", err)
		}
		if err := f.srv.Start(context.Background()); !fault.Is(err, fault.Conflict) {
			t.Errorf("started twice: %v", err)
		}
	})
}

func TestStartAgain(t *testing.T) {
	f := start(t)
	f.online("alice", "desk")
	f.stop()
	if err := f.srv.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	f.online("alice", "desk")
	if h := f.srv.Health(); h.State != "STARTED" || f.srv.Name() != ServiceName || len(f.srv.Needs()) == 0 {
		t.Errorf("health %+v", h)
	}
}

func TestDrain(t *testing.T) {
	f := start(t)
	a, b := f.online("alice", "desk"), f.online("bob", "desk")
	ctx, cancel := context.WithTimeout(context.Background(), testPatience)
	defer cancel()
	if err := f.srv.Drain(ctx, "node2.example.com", time.Millisecond); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*client{a, b} {
		c.expect(`<stream:error><see-other-host [^>]*>node2.example.com</see-other-host></stream:error>`)
		c.closed()
	}
}
