package load

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"muster/cmd/musterbench/client"
	"muster/cmd/musterbench/proc"
	"muster/cmd/musterbench/relay"
	"muster/cmd/musterbench/stubserver"
	"muster/cmd/musterbench/target"
	"muster/cmd/musterbench/wire"
	"muster/internal/fault"
)

const domain = "bench.test"

// stub starts a server and returns an Env that points at it. With accounts, they exist there.
func stub(t *testing.T, s *stubserver.Server, users int, accounts bool) *Env {
	t.Helper()
	s.Domain = domain
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	e := env(t, client.Direct, users)
	e.Target.Nodes = []target.Node{{Name: "stub", DirectTLS: s.Direct(), StartTLS: s.StartTLS()}}
	if accounts {
		for _, u := range e.Target.Users {
			s.AddUser(u.Local, string(u.Password))
		}
	}
	return e
}

// env returns an Env without nodes, that measures this process.
func env(t *testing.T, transport client.Transport, users int) *Env {
	t.Helper()
	accounts, err := target.Expand("user%d@"+domain+":secret", 1, users)
	if err != nil {
		t.Fatal(err)
	}
	config, err := client.TLSConfig("", domain, transport, false)
	if err != nil {
		t.Fatal(err)
	}
	return &Env{
		Target: &target.Target{Users: accounts}, Tree: proc.New("/proc", os.Getpid()), Workers: 4, Drain: 10 * time.Second,
		Options: client.Options{Transport: transport, TLS: config, Mechanism: "SCRAM-SHA-1", Resource: "bench", Timeout: 20 * time.Second},
		Log:     slog.New(slog.DiscardHandler),
	}
}

// floor starts a relay and returns an Env that points at it.
func floor(t *testing.T, users int) *Env {
	t.Helper()
	server, err := relay.New(domain)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	e := env(t, client.Relay, users)
	e.Target.Nodes = []target.Node{{Name: "relay", DirectTLS: listener.Addr().String()}}
	return e
}

// check fails unless the run was clean and measured something.
func check(t *testing.T, r Result, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	if r.Errors != 0 || r.Operations == 0 || r.Seconds <= 0 || r.Rate <= 0 {
		t.Errorf("got %+v", r)
	}
}

func TestLogin(t *testing.T) {
	t.Parallel()
	s := new(stubserver.Server)
	e := stub(t, s, 5, true)
	r, err := Login{Count: 20, Roster: true, Presence: true}.Run(t.Context(), e)
	check(t, r, err)
	if r.Operations != 20 || s.Logins() != 20 || r.Latency.P50 <= 0 || r.Memory != nil {
		t.Errorf("got %+v after %d logins", r, s.Logins())
	}
}

// TestLoginByToken: the passwords are used once for each user, and that is not measured.
func TestLoginByToken(t *testing.T) {
	t.Parallel()
	s := new(stubserver.Server)
	e := stub(t, s, 5, true)
	e.Options.Flow, e.Options.Wallet = client.Token, new(client.Wallet)
	r, err := Login{Count: 20, Roster: true, Presence: true}.Run(t.Context(), e)
	check(t, r, err)
	if r.Operations != 20 || s.Logins() != 25 || s.ByToken() != 20 {
		t.Errorf("got %+v after %d logins, %d by token", r, s.Logins(), s.ByToken())
	}
	e = stub(t, &stubserver.Server{NoTokens: true}, 2, true)
	e.Options.Flow, e.Options.Wallet = client.Token, new(client.Wallet)
	if _, err := (Login{Count: 2}).Run(t.Context(), e); !fault.Is(err, fault.NotSupported) {
		t.Errorf("a server without tokens: %v", err)
	}
}

func TestLoginOpenLoopWithSTARTTLS(t *testing.T) {
	t.Parallel()
	e := stub(t, new(stubserver.Server), 3, true)
	e.Options.Transport, e.Sources = client.StartTLS, 3
	r, err := Login{Count: 10, Rate: 200}.Run(t.Context(), e)
	check(t, r, err)
	if r.Operations != 10 || r.Seconds < 0.04 {
		t.Errorf("ten logins at 200 a second: %+v", r)
	}
}

func TestLoginCountsFailures(t *testing.T) {
	t.Parallel()
	s := new(stubserver.Server)
	e := stub(t, s, 4, true)
	e.Target.Users[1].Password = "wrong"
	r, err := Login{Count: 4}.Run(t.Context(), e)
	if err != nil || r.Operations != 3 || r.Errors != 1 {
		t.Errorf("one wrong password of four: %+v, %v", r, err)
	}
	for i := range e.Target.Users {
		e.Target.Users[i].Password = "wrong"
	}
	if _, err := (Login{Count: 4}).Run(t.Context(), e); !fault.Is(err, fault.Forbidden) {
		t.Errorf("all passwords wrong: %v", err)
	}
}

func TestIdle(t *testing.T) {
	t.Parallel()
	e := stub(t, new(stubserver.Server), 30, true)
	r, err := Login{Count: 30, Hold: true, Roster: true, Presence: true, Settle: time.Millisecond}.Run(t.Context(), e)
	check(t, r, err)
	if r.Scenario != "idle" || r.Memory == nil || r.Memory.After == 0 || r.CPUSeconds < 0 {
		t.Errorf("got %+v", r)
	}
	if _, err := (Login{Count: 31, Hold: true}).Run(t.Context(), e); !fault.Is(err, fault.BadRequest) {
		t.Errorf("more sessions than accounts: %v", err)
	}
}

var shortChat = Chat{Pairs: 3, Size: 300, Window: 2, Warmup: 10 * time.Millisecond, Duration: 150 * time.Millisecond}

func TestChat(t *testing.T) {
	t.Parallel()
	full, open, live := shortChat, shortChat, shortChat
	full.ToFull, live.Live = true, true
	open.Rate = 400
	for name, c := range map[string]Chat{"closed loop": shortChat, "full JIDs": full, "open loop": open, "not kept": live} {
		r, err := c.Run(t.Context(), stub(t, new(stubserver.Server), 6, true))
		check(t, r, err)
		if r.Latency.P50 <= 0 || r.Sessions != 6 {
			t.Errorf("%s: %+v", name, r)
		}
		if c.Live && r.Scenario != "chat-live" {
			t.Errorf("%s: %+v", name, r)
		}
		if c.Rate > 0 && (r.Operations > 90 || r.Scenario != "chat-open") {
			t.Errorf("%s: 400 a second for 150 ms made %+v", name, r)
		}
	}
}

func TestChatThroughRelay(t *testing.T) {
	t.Parallel()
	r, err := shortChat.Run(t.Context(), floor(t, 6))
	check(t, r, err)
}

func TestChatNoticesLossAndDuplicates(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]*stubserver.Server{"loss": {DropEvery: 7}, "duplicates": {Duplicate: true}} {
		e := stub(t, s, 6, true)
		e.Drain = 50 * time.Millisecond
		r, err := shortChat.Run(t.Context(), e)
		if err != nil || r.Errors == 0 {
			t.Errorf("%s went unnoticed: %+v, %v", name, r, err)
		}
	}
}

func TestChatNoticesRefusals(t *testing.T) {
	t.Parallel()
	run := &conversation{Chat: shortChat}
	run.started.Store(true)
	run.receive(0, nil, []byte(`<message type='error' from='x'><error/></message>`))
	run.receive(0, nil, []byte(`<message from='x'><body>spam</body></message>`))
	run.receive(0, nil, []byte(`<presence from='x'/>`))
	if got := run.errors.Load(); got != 2 {
		t.Errorf("an error and a stranger's message: %d errors counted, want 2", got)
	}
}

func TestChatRejects(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]Chat{
		"no pairs":  {Pairs: 0, Size: 300, Window: 1},
		"too small": {Pairs: 1, Size: 10, Window: 1},
		"too large": {Pairs: 1, Size: 1 << 20, Window: 1},
		"no window": {Pairs: 1, Size: 300},
		"no users":  {Pairs: 9, Size: 300, Window: 1},
	} {
		if _, err := c.Run(t.Context(), env(t, client.Direct, 4)); !fault.Is(err, fault.BadRequest) {
			t.Errorf("%s: got %v, want bad-request", name, err)
		}
	}
}

func TestMessage(t *testing.T) {
	t.Parallel()
	stanza, _, err := message("user2@bench.test", 300, true)
	if err != nil || len(stanza) != 300 || !strings.HasSuffix(string(stanza), "</body><no-store xmlns='urn:xmpp:hints'/></message>") {
		t.Fatalf("got %d bytes, %v: %s", len(stanza), err, stanza)
	}
	stanza, at, err := message("user2@bench.test", 300, false)
	if err != nil || len(stanza) != 300 || strings.Contains(string(stanza), "no-store") {
		t.Fatalf("got %d bytes, %v: %s", len(stanza), err, stanza)
	}
	mark{sent: 123456, sequence: 42, sender: 7}.put(stanza[at : at+markSize])
	body := string(wire.Text(stanza, "body"))
	if !strings.HasPrefix(body, "~0000000000123456 0000000042 000007") {
		t.Errorf("body %q", body)
	}
	if _, _, err := message(strings.Repeat("x", 200)+"@bench.test", 200, false); !fault.Is(err, fault.BadRequest) {
		t.Errorf("a message too short for its address: %v", err)
	}
}

func TestMark(t *testing.T) {
	t.Parallel()
	for _, m := range []mark{{}, {sent: 1, sequence: 2, sender: 3}, {sent: 9_999_999_999_999_999, sequence: 9_999_999_999, sender: 999_999}} {
		b := make([]byte, markSize)
		m.put(b)
		got, ok := findMark(append([]byte("<status>"), b...))
		if !ok || got != m {
			t.Errorf("%+v came back as %+v, %v", m, got, ok)
		}
	}
	for _, text := range []string{"", "~", "no mark", "~000000000000000x 0000000000 000000", "~0000000000000000 0000000000 00000"} {
		if _, ok := findMark([]byte(text)); ok {
			t.Errorf("found a mark in %q", text)
		}
	}
}

func FuzzFindMark(f *testing.F) {
	f.Add([]byte("<body>~0000000000000001 0000000002 000003</body>"))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if m, ok := findMark(frame); ok && (m.sent < 0 || m.sender < 0) {
			t.Errorf("got %+v", m)
		}
	})
}

// friends makes every account of e's ring a contact of its neighbours.
func friends(s *stubserver.Server, e *Env, contacts int) {
	users := e.Target.Users
	for i, u := range users {
		for _, j := range target.Contacts(i, len(users), contacts) {
			s.Befriend(u.JID(), users[j].JID())
		}
	}
}

var shortPresence = Presence{Users: 8, Contacts: 4, Warmup: 10 * time.Millisecond, Duration: 150 * time.Millisecond}

func TestPresence(t *testing.T) {
	t.Parallel()
	open, few, counted := shortPresence, shortPresence, shortPresence
	open.Rate, few.Active, counted.Active = 100, 2, 3
	counted.Changes, counted.Duration = 6, 10*time.Second
	for name, p := range map[string]Presence{"closed loop": shortPresence, "open loop": open, "two active": few, "counted": counted} {
		s := new(stubserver.Server)
		e := stub(t, s, 8, true)
		friends(s, e, 4)
		r, err := p.Run(t.Context(), e)
		check(t, r, err)
		if p.Changes > 0 && r.Operations != 5*8*4 {
			t.Errorf("%s: the second to sixth change of eight users with four contacts: %+v", name, r)
		}
		if p.Rate > 0 && r.Operations > 100 {
			t.Errorf("%s: 100 changes a second for 150 ms delivered %d", name, r.Operations)
		}
	}
}

func TestPresenceOfAPartOfTheRing(t *testing.T) {
	t.Parallel()
	s := new(stubserver.Server)
	e := stub(t, s, 20, true)
	friends(s, e, 4)
	p := shortPresence
	p.Ring = 20
	r, err := p.Run(t.Context(), e)
	check(t, r, err)
}

func TestPresenceThroughRelay(t *testing.T) {
	t.Parallel()
	r, err := shortPresence.Run(t.Context(), floor(t, 8))
	check(t, r, err)
}

func TestPresenceNoticesWhatIsMissing(t *testing.T) {
	t.Parallel()
	s := new(stubserver.Server)
	e := stub(t, s, 8, true)
	e.Drain = 50 * time.Millisecond
	if _, err := shortPresence.Run(t.Context(), e); !fault.Is(err, fault.NotFound) {
		t.Errorf("nobody is anybody's contact: %v", err)
	}
	friends(s, e, 2)
	r, err := shortPresence.Run(t.Context(), e)
	if err != nil || r.Errors == 0 {
		t.Errorf("half of the contacts are missing: %+v, %v", r, err)
	}
}

func TestPresenceRejects(t *testing.T) {
	t.Parallel()
	for name, p := range map[string]Presence{
		"odd contacts": {Users: 8, Contacts: 3}, "no contacts": {Users: 8}, "too few users": {Users: 4, Contacts: 4},
		"ring too small": {Users: 8, Contacts: 4, Ring: 7},
	} {
		if _, err := p.Run(t.Context(), env(t, client.Direct, 8)); !fault.Is(err, fault.BadRequest) {
			t.Errorf("%s: got %v, want bad-request", name, err)
		}
	}
}

func TestPrepare(t *testing.T) {
	t.Parallel()
	s := new(stubserver.Server)
	e := stub(t, s, 7, false)
	p := Prepare{Users: 7, Contacts: 4, Register: true}
	r, err := p.Run(t.Context(), e)
	check(t, r, err)
	if r.Operations != 28 {
		t.Errorf("seven users with four contacts each: %d subscriptions, want 28", r.Operations)
	}
	for i, u := range e.Target.Users {
		if got := len(s.Roster(u.JID())); got != 4 {
			t.Errorf("user %d has %d contacts", i, got)
		}
	}
	again, err := p.Run(t.Context(), e)
	if err != nil || again.Operations != 0 {
		t.Errorf("the second time: %d subscriptions, %v; want nothing left to do", again.Operations, err)
	}
	presence, err := Presence{Users: 7, Contacts: 4, Duration: 50 * time.Millisecond}.Run(t.Context(), e)
	check(t, presence, err)
}

func TestPrepareWithoutSignup(t *testing.T) {
	t.Parallel()
	e := stub(t, &stubserver.Server{NoSignup: true}, 3, false)
	if _, err := (Prepare{Users: 3, Register: true}).Run(t.Context(), e); !fault.Is(err, fault.NotSupported) {
		t.Errorf("got %v, want not-supported", err)
	}
	if _, err := (Prepare{Users: 9}).Run(t.Context(), e); !fault.Is(err, fault.BadRequest) {
		t.Errorf("more users than accounts: %v", err)
	}
}

func TestMutual(t *testing.T) {
	t.Parallel()
	roster := `<iq><query><item jid='a@x' subscription='both'/><item subscription="to" jid="b@x"/><item jid="c@x" subscription="both"><group>g</group></item></query></iq>`
	got := mutual([]byte(roster))
	if len(got) != 2 || got[0] != "a@x" || got[1] != "c@x" {
		t.Errorf("got %q", got)
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	good := func() *Env {
		e := env(t, client.Direct, 1)
		e.Target.Nodes = []target.Node{{Name: "n", DirectTLS: "127.0.0.1:1"}}
		return e
	}
	if err := good().Check(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Env){
		"no nodes":         func(e *Env) { e.Target.Nodes = nil },
		"no users":         func(e *Env) { e.Target.Users = nil },
		"no workers":       func(e *Env) { e.Workers = 0 },
		"too many workers": func(e *Env) { e.Workers = maxWorkers + 1 },
		"too many sources": func(e *Env) { e.Sources = maxSources + 1 },
		"no address":       func(e *Env) { e.Options.Transport = client.StartTLS },
	} {
		e := good()
		spoil(e)
		if err := e.Check(); !fault.Is(err, fault.BadRequest) {
			t.Errorf("%s: got %v, want bad-request", name, err)
		}
	}
}

func TestOptionsTakeTurns(t *testing.T) {
	t.Parallel()
	e := env(t, client.Direct, 1)
	e.Target.Nodes, e.Sources = []target.Node{{DirectTLS: "one"}, {DirectTLS: "two"}}, 3
	var got []string
	for i := range 4 {
		o := e.options(i, nil)
		got = append(got, o.Address+" "+o.Source.String())
	}
	if want := "one 127.0.0.2,two 127.0.0.3,one 127.0.0.4,two 127.0.0.2"; strings.Join(got, ",") != want {
		t.Errorf("got %v", got)
	}
}

func TestServerThatDies(t *testing.T) {
	t.Parallel()
	s := new(stubserver.Server)
	e := stub(t, s, 2, true)
	e.Drain = 50 * time.Millisecond
	c := Chat{Pairs: 1, Size: 300, Window: 1, Warmup: time.Millisecond, Duration: 100 * time.Millisecond}
	go func() {
		for s.Logins() < 2 && t.Context().Err() == nil {
			time.Sleep(time.Millisecond)
		}
		s.Close()
	}()
	r, err := c.Run(t.Context(), e)
	if err == nil && r.Errors == 0 {
		t.Errorf("the server went away unnoticed: %+v", r)
	}
}

func TestRunsEndWithTheirContext(t *testing.T) {
	t.Parallel()
	e := stub(t, new(stubserver.Server), 8, true)
	for name, s := range map[string]interface {
		Run(context.Context, *Env) (Result, error)
	}{
		"chat":     Chat{Pairs: 1, Size: 300, Window: 1, Duration: time.Hour},
		"presence": Presence{Users: 8, Contacts: 4, Duration: time.Hour},
		"idle":     Login{Count: 2, Hold: true, Settle: time.Hour},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		if _, err := s.Run(ctx, e); err == nil {
			t.Errorf("%s: an hour passed in a second", name)
		}
		cancel()
	}
}

func TestParallel(t *testing.T) {
	t.Parallel()
	var calls atomic.Int64
	if err := parallel(3, 100, func(int) error { calls.Add(1); return nil }); err != nil || calls.Load() != 100 {
		t.Errorf("%d calls, %v", calls.Load(), err)
	}
	calls.Store(0)
	broken := errors.New("broken")
	err := parallel(1, 100, func(i int) error {
		calls.Add(1)
		if i == 5 {
			return broken
		}
		return nil
	})
	if !errors.Is(err, broken) || calls.Load() != 6 {
		t.Errorf("%d calls, %v; want to stop after the sixth", calls.Load(), err)
	}
}

func TestResultString(t *testing.T) {
	t.Parallel()
	r := Result{Scenario: "idle", Label: "ejabberd", Sessions: 10, Operations: 10, Unit: "logins", CPUMicros: 12.5, CPUSeconds: 1,
		Memory: &Footprint{Before: 1000, After: 2000, PerSession: 100}}
	text := r.String()
	for _, want := range []string{"ejabberd idle: 10 logins", "12.5 us", "1000 -> 2000 KiB, 100.0 KiB per session"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q lacks %q", text, want)
		}
	}
	if strings.Contains(text, "latency") {
		t.Errorf("%q shows a latency that was not measured", text)
	}
}

func TestFootprint(t *testing.T) {
	t.Parallel()
	got := footprint(proc.Memory{Resident: 1 << 20, Proportional: 1 << 20}, proc.Memory{Resident: 3 << 20, Proportional: 2 << 20, Anonymous: 1 << 19}, 64)
	want := Footprint{Before: 1024, After: 3072, PerSession: 32, Proportional: 16, Anonymous: 8}
	if *got != want {
		t.Errorf("got %+v, want %+v", *got, want)
	}
}

func TestMeterWithoutProcesses(t *testing.T) {
	t.Parallel()
	var ops atomic.Uint64
	m, err := begin(proc.New("/proc"), &ops)
	if err != nil {
		t.Fatal(err)
	}
	ops.Add(10)
	var r Result
	if err := m.end(&r); err != nil || r.Operations != 10 || r.CPUSeconds != 0 {
		t.Errorf("got %+v, %v", r, err)
	}
	if _, err := begin(proc.New(t.TempDir(), 1), &ops); !fault.Is(err, fault.NotFound) {
		t.Errorf("a server that is gone: %v", err)
	}
}
