package xmpp

import (
	"context"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"muster/fsm/config"
	"muster/fsm/fsmtest"
	"muster/internal/certs"
	"muster/internal/jid"
	"muster/router/stanza"
	"muster/router/xmltok"
)

// fuzzRun is a server without listeners: streams are put into it by hand.
func fuzzRun(tb testing.TB) (*run, *fakeRouter) {
	tb.Helper()
	rig := fsmtest.New(tb, config.Module())
	rig.Must(config.AddDomainEntry(testDomain), config.SetEntry("c2s.stanza_burst", "1000000", 0), config.SetEntry("c2s.byte_burst", "1000000000", 0))
	ca, err := testCA()
	if err != nil {
		tb.Fatal(err)
	}
	var source *certs.Source
	if source, err = ca.IssueSource(time.Now(), testDomain); err != nil {
		tb.Fatal(err)
	}
	fake := &fakeRouter{sessions: map[jid.JID]*fakeSession{}}
	registrar := &fakeRegistrar{made: map[string]string{}}
	registrar.open.Store(true)
	srv, err := New(Options{Node: 1, Certs: source, Router: fake, Registrar: registrar, State: rig.M, Live: config.NewLive(rig.M, 1), Accounts: testAccounts(tb),
		Key: testKey, Iterations: func(string) int { return testRounds }, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		tb.Fatal(err)
	}
	if err := srv.Start(context.Background()); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = srv.Stop(ctx)
	})
	return srv.running(), fake
}

// fuzzStream returns a stream whose output goes nowhere, as if it were under TLS.
func fuzzStream(r *run) *stream {
	here, there := net.Pipe()
	go func() { _, _ = io.Copy(io.Discard, there) }()
	st := &stream{run: r, wire: newWire(here), secure: true, unlimited: true, counted: true, dec: xmltok.NewDecoder(r.srv.before), neg: &negotiation{}, began: time.Now()}
	st.conn = st.wire
	r.gate.enter(st.addr, limits{unlimited: true}, time.Now())
	r.done.Add(1)
	r.streams.add(st)
	return st
}

// FuzzConnection feeds whole connections: whatever a client sends, in whatever pieces, nothing
// panics, and nothing reaches the router but with the session's own sender.
func FuzzConnection(f *testing.F) {
	loggedIn := openStream + plainLogin("alice", testPassword) + strings.TrimPrefix(openStream, "<?xml version='1.0'?>")
	bound := loggedIn + `<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>r</resource></bind></iq>`
	for _, seed := range []string{
		"", openStream, loggedIn, bound,
		bound + enableResume + `<r xmlns='urn:xmpp:sm:3'/><a xmlns='urn:xmpp:sm:3' h='0'/>`,
		bound + `<message from='alice@example.com' to='alice@example.com/r'><body>x</body></message></stream:stream>`,
		bound + `<inactive xmlns='urn:xmpp:csi:0'/><presence/><active xmlns='urn:xmpp:csi:0'/>`,
		bound + `<message from='bob@example.com'/>`,
		loggedIn + resumeElement("x", 0) + `<enable xmlns='urn:xmpp:sm:3'/>`,
		openStream + registerForm + registerRequest("dora", "x") + `<iq type='set' id='r'><query xmlns='jabber:iq:register'><remove/></query></iq>`,
		openStream + `<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='SCRAM-SHA-1'>biwsbj1hbGljZSxyPWFiYw==</auth><response xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>AAAA</response><abort xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>`,
	} {
		f.Add([]byte(seed), uint8(7))
	}
	r, fake := fuzzRun(f)
	f.Fuzz(func(t *testing.T, input []byte, piece uint8) {
		before := r.srv.counters.panics.Load()
		r.srv.guard = newGuard() // without the delays of many failed logins
		st := fuzzStream(r)
		func() {
			defer st.contain()
			for len(input) > 0 && !st.ending.Load() {
				n := min(len(input), int(piece)+1)
				st.consume(input[:n])
				input = input[n:]
			}
		}()
		st.kill()
		st.teardown()
		if st.run.srv.counters.panics.Load() != before {
			t.Fatal("a panic")
		}
		for _, p := range fake.packets() {
			if p.From.Bare() != st.user || p.From.IsBare() {
				t.Fatalf("from %s: %s", p.From, p.AppendTo(nil))
			}
			if _, err := stanza.ParsePacket(p.AppendTo(nil)); err != nil {
				t.Fatalf("%v: %q", err, p.AppendTo(nil))
			}
		}
		fake.mu.Lock()
		fake.received = nil
		fake.mu.Unlock()
	})
}
