package http

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	nethttp "net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"muster/edges/http/adminapi"
	"muster/internal/fault"
)

func TestEveryFaultHasAStatus(t *testing.T) {
	for _, c := range fault.Codes() {
		s, ok := statuses[c]
		if !ok || s < 400 || s > 599 {
			t.Errorf("%s maps to %d", c, s)
		}
		if c.Retryable() && s < 500 && s != nethttp.StatusTooManyRequests && s != nethttp.StatusPreconditionFailed {
			t.Errorf("%s may be tried again, and its status %d says that it may not", c, s)
		}
	}
	if len(statuses) != len(fault.Codes()) {
		t.Errorf("%d statuses for %d codes", len(statuses), len(fault.Codes()))
	}
	if Status(fault.Code(200)) != nethttp.StatusInternalServerError {
		t.Error("an unknown code is not an internal error")
	}
}

func TestWriteErrorShowsOnlyThePublicPart(t *testing.T) {
	w := httptest.NewRecorder()
	writeError(w, &fault.Error{Code: fault.NoQuorum, Op: "x", Text: "try again", Err: errors.New("secret detail")})
	if w.Code != 503 || w.Header().Get("Retry-After") == "" || strings.Contains(w.Body.String(), "secret") {
		t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
	}
	var e adminapi.Error
	if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || e.Code != "no-quorum" || e.Text != "try again" {
		t.Errorf("%+v %v", e, err)
	}
	w = httptest.NewRecorder()
	writeError(w, errors.New("secret detail"))
	if w.Code != 500 || strings.Contains(w.Body.String(), "secret") || w.Header().Get("Retry-After") != "" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// pages is a Health that a test steers.
type pages struct {
	live, replication error
	ready             string
	panics            bool
}

func (p *pages) Live() error { return p.live }
func (p *pages) Ready() (bool, string) {
	if p.panics {
		panic("secret")
	}
	return p.ready == "", p.ready
}
func (p *pages) Replication(context.Context) (adminapi.Replication, error) {
	return adminapi.Replication{Node: "n1", State: 2}, p.replication
}

func samples() []Sample {
	return []Sample{
		{Name: "muster_one", Help: "One.", Value: 7},
		{Name: "muster_two_total", Help: "Two.", Counter: true, Value: 3, Labels: []Label{{"kind", "a"}}},
		{Name: "muster_two_total", Help: "Two.", Counter: true, Value: 4, Labels: []Label{{"kind", "b"}}},
	}
}

func TestPublicPages(t *testing.T) {
	h := &pages{}
	handler := contain(Public(h, samples), slog.New(slog.DiscardHandler))
	for _, tc := range []struct {
		name, method, path string
		change             func()
		status             int
		want               string
	}{
		{"live", "GET", "/health/live", func() {}, 200, `"status": "ok"`},
		{"live by HEAD", "HEAD", "/health/live", func() {}, 200, ""},
		{"ready", "GET", "/health/ready", func() {}, 200, `"status": "ok"`},
		{"replication", "GET", "/health/replication", func() {}, 200, `"node": "n1"`},
		{"metrics", "GET", "/metrics", func() {}, 200, "muster_one 7"},
		{"metrics with labels", "GET", "/metrics", func() {}, 200, `muster_two_total{kind="b"} 4`},
		{"metrics of the process", "GET", "/metrics", func() {}, 200, "go_goroutines"},
		{"waiting", "GET", "/health/ready", func() { h.ready = "waits for the control log" }, 503, "waits for the control log"},
		{"halted", "GET", "/health/live", func() { h.live = fault.New(fault.Unavailable, "x", "", "halted") }, 503, "halted"},
		{"no replication", "GET", "/health/replication", func() { h.replication = fault.New(fault.Timeout, "x", "", "late") }, 504, "late"},
		{"changing a page", "POST", "/health/live", func() {}, 405, ""},
		{"no such page", "GET", "/admin/status", func() {}, 404, ""},
		{"the root", "GET", "/", func() {}, 404, ""},
		{"a panic", "GET", "/health/ready", func() { h.panics = true }, 500, `"code": "internal"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			*h = pages{}
			tc.change()
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, httptest.NewRequest(tc.method, tc.path, nil))
			if w.Code != tc.status || !strings.Contains(w.Body.String(), tc.want) {
				t.Errorf("%d, want %d; %q in\n%s", w.Code, tc.status, tc.want, w.Body)
			}
			if w.Header().Get("X-Content-Type-Options") != "nosniff" || strings.Contains(w.Body.String(), "secret") {
				t.Errorf("headers %v, body %s", w.Header(), w.Body)
			}
		})
	}
}

func TestABadSampleBreaksOnlyItself(t *testing.T) {
	h := Public(&pages{}, func() []Sample { return []Sample{{Name: "bad name"}, {Name: "good", Value: 1}} })
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 || !strings.Contains(w.Body.String(), "good 1") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// operator answers every request with what it was asked, as far as the tests look at it.
type operator struct {
	Operator // nil: what a test does not expect panics
	calls    []string
	err      error
	actor    string
	backup   func(w io.Writer) error
	size     int64 // that a backup announces
}

func (o *operator) call(format string, args ...any) (adminapi.Done, error) {
	o.calls = append(o.calls, fmt.Sprintf(format, args...))
	return adminapi.Done{Index: 7}, o.err
}

func (o *operator) ListUsers(_ context.Context, prefix, after string, limit int) (adminapi.UserPage, error) {
	_, err := o.call("list %s %s %d", prefix, after, limit)
	return adminapi.UserPage{}, err
}
func (o *operator) ShowUser(_ context.Context, user string) (adminapi.User, error) {
	_, err := o.call("show %s", user)
	return adminapi.User{JID: user}, err
}
func (o *operator) CreateUsers(ctx context.Context, users []adminapi.NewUser) ([]adminapi.Outcome, error) {
	o.actor = ActorOf(ctx)
	_, err := o.call("create %d", len(users))
	return []adminapi.Outcome{}, err
}
func (o *operator) ChangeUser(_ context.Context, user string, c adminapi.UserChange) (adminapi.Done, error) {
	return o.call("change %s %v", user, *c.IM)
}
func (o *operator) DeleteUser(_ context.Context, user string) (adminapi.Done, error) {
	return o.call("delete %s", user)
}
func (o *operator) ImportPairs(_ context.Context, pairs []adminapi.Pair) ([]adminapi.Outcome, error) {
	_, err := o.call("pairs %v", pairs)
	return nil, err
}
func (o *operator) Settings(_ context.Context, node string) ([]adminapi.Setting, error) {
	_, err := o.call("settings %s", node)
	return nil, err
}
func (o *operator) SetSetting(_ context.Context, name string, c adminapi.SettingChange) (adminapi.Done, error) {
	return o.call("set %s %+v", name, c)
}
func (o *operator) ResetSetting(_ context.Context, name, node string) (adminapi.Done, error) {
	return o.call("reset %s %s", name, node)
}
func (o *operator) Domains(context.Context) ([]string, error) { return []string{"a.test"}, o.err }
func (o *operator) AddDomain(_ context.Context, d string) (adminapi.Done, error) {
	return o.call("add %s", d)
}
func (o *operator) RemoveDomain(_ context.Context, d string) (adminapi.Done, error) {
	return o.call("remove %s", d)
}
func (o *operator) Nodes(context.Context) ([]adminapi.Node, error) { return nil, o.err }
func (o *operator) NewToken(_ context.Context, life time.Duration) (adminapi.Token, error) {
	_, err := o.call("token %s", life)
	return adminapi.Token{}, err
}
func (o *operator) RemoveNode(_ context.Context, n string) (adminapi.Done, error) {
	return o.call("remove node %s", n)
}
func (o *operator) MovePublisher(_ context.Context, n string) (adminapi.Done, error) {
	return o.call("publisher %s", n)
}
func (o *operator) Groups(context.Context) ([]adminapi.Group, error) { return nil, o.err }
func (o *operator) PutGroup(_ context.Context, g adminapi.Group) (adminapi.Done, error) {
	return o.call("group %+v", g)
}
func (o *operator) RemoveGroup(_ context.Context, n string) (adminapi.Done, error) {
	return o.call("remove group %s", n)
}
func (o *operator) SetMode(_ context.Context, m string) (adminapi.Done, error) {
	return o.call("mode %s", m)
}
func (o *operator) AssignUsers(_ context.Context, a adminapi.Assign) (adminapi.Done, error) {
	return o.call("assign %+v", a)
}
func (o *operator) Rebalance(_ context.Context, stop bool) (adminapi.Done, error) {
	return o.call("rebalance %v", stop)
}
func (o *operator) HA(context.Context) (adminapi.HA, error) {
	_, err := o.call("ha")
	return adminapi.HA{}, err
}
func (o *operator) Failover(_ context.Context, n string) (adminapi.Done, error) {
	return o.call("failover %s", n)
}
func (o *operator) Fallback(_ context.Context, n string) (adminapi.Done, error) {
	return o.call("fallback %s", n)
}
func (o *operator) Services(context.Context) (adminapi.Services, error) {
	return adminapi.Services{}, o.err
}
func (o *operator) SetService(_ context.Context, name, node string, run bool) (adminapi.Done, error) {
	return o.call("service %s %s %v", name, node, run)
}
func (o *operator) Override(_ context.Context, node, reason string, life time.Duration) (adminapi.Done, error) {
	return o.call("override %s %s %s", node, reason, life)
}
func (o *operator) Alarms(context.Context) (adminapi.Alarms, error) { return adminapi.Alarms{}, o.err }
func (o *operator) Sessions(_ context.Context, user string, limit int) (adminapi.Sessions, error) {
	_, err := o.call("sessions %s %d", user, limit)
	return adminapi.Sessions{}, err
}
func (o *operator) EndSessions(_ context.Context, address string) (adminapi.Done, error) {
	return o.call("end %s", address)
}
func (o *operator) ReloadCertificates(context.Context) ([]adminapi.Certificate, error) {
	_, err := o.call("reload")
	return nil, err
}
func (o *operator) Status(context.Context) (adminapi.Status, error) { return adminapi.Status{}, o.err }
func (o *operator) Replication(context.Context) (adminapi.Replication, error) {
	return adminapi.Replication{}, o.err
}
func (o *operator) CompareDigests(context.Context) (adminapi.Digests, error) {
	return adminapi.Digests{}, o.err
}
func (o *operator) Backup(_ context.Context, w io.Writer, req adminapi.BackupRequest, begin func(int64)) error {
	o.calls = append(o.calls, fmt.Sprint("backup ", req.Passphrase, " ", req.NoMessages))
	begin(o.size)
	return o.backup(w)
}

func TestAdminRoutes(t *testing.T) {
	for _, tc := range []struct {
		method, path, body string
		status             int
		call               string // what the operator was asked
	}{
		{"GET", "/admin/users", "", 200, "list   1000"},
		{"GET", "/admin/users?prefix=a&after=b&limit=5", "", 200, "list a b 5"},
		{"GET", "/admin/users?limit=0", "", 400, ""},
		{"GET", "/admin/users?limit=x", "", 400, ""},
		{"GET", "/admin/users?limit=99999999", "", 400, ""},
		{"POST", "/admin/users", `[{"jid":"a@b"},{"jid":"c@b"}]`, 200, "create 2"},
		{"POST", "/admin/users", `[{"jid":"a@b","colour":"red"}]`, 400, ""},
		{"POST", "/admin/users", `{`, 400, ""},
		{"POST", "/admin/users", "[" + strings.Repeat("{},", 500) + "{}]", 413, ""},
		{"POST", "/admin/users", `[{"jid":"` + strings.Repeat("a", MaxBody) + `"}]`, 413, ""},
		{"GET", "/admin/users/a@b.test", "", 200, "show a@b.test"},
		{"GET", "/admin/users/a%2Fb@c", "", 200, "show a/b@c"},
		{"PATCH", "/admin/users/a@b", `{"im":true}`, 200, "change a@b true"},
		{"PATCH", "/admin/users/a@b", ``, 400, ""},
		{"DELETE", "/admin/users/a@b", "", 200, "delete a@b"},
		{"PUT", "/admin/users/a@b", "", 405, ""},
		{"POST", "/admin/contacts", `[{"user":"a","contact":"b"}]`, 200, "pairs [{a b}]"},
		{"POST", "/admin/contacts", `7`, 400, ""},
		{"GET", "/admin/settings?node=n2", "", 200, "settings n2"},
		{"PUT", "/admin/settings/x.y", `{"value":"1","node":"n"}`, 200, "set x.y {Value:1 Node:n}"},
		{"PUT", "/admin/settings/x.y", `"1"`, 400, ""},
		{"DELETE", "/admin/settings/x.y?node=n", "", 200, "reset x.y n"},
		{"GET", "/admin/domains", "", 200, ""},
		{"PUT", "/admin/domains/a.test", "", 200, "add a.test"},
		{"DELETE", "/admin/domains/a.test", "", 200, "remove a.test"},
		{"GET", "/admin/nodes", "", 200, ""},
		{"DELETE", "/admin/nodes/n1", "", 200, "remove node n1"},
		{"PUT", "/admin/publisher/n1", "", 200, "publisher n1"},
		{"POST", "/admin/tokens", "", 200, "token 24h0m0s"},
		{"POST", "/admin/tokens?for=5m", "", 200, "token 5m0s"},
		{"POST", "/admin/tokens?for=-5m", "", 400, ""},
		{"POST", "/admin/tokens?for=9000h", "", 400, ""},
		{"GET", "/admin/groups", "", 200, ""},
		{"PUT", "/admin/groups/g", `{"name":"other","nodes":["a"],"ha":true}`, 200, "group {Name:g Nodes:[a] HA:true}"},
		{"PUT", "/admin/groups/g", `[]`, 400, ""},
		{"DELETE", "/admin/groups/g", "", 200, "remove group g"},
		{"PUT", "/admin/assignment/mode/manual", "", 200, "mode manual"},
		{"POST", "/admin/assignment/users", `{"users":["a"],"node":"n"}`, 200, "assign {Users:[a] Node:n Unassign:false}"},
		{"POST", "/admin/assignment/users", ``, 400, ""},
		{"POST", "/admin/assignment/rebalance", "", 200, "rebalance false"},
		{"DELETE", "/admin/assignment/rebalance", "", 200, "rebalance true"},
		{"GET", "/admin/ha", "", 200, "ha"},
		{"POST", "/admin/ha/n1/failover", "", 200, "failover n1"},
		{"POST", "/admin/ha/n1/fallback", "", 200, "fallback n1"},
		{"POST", "/admin/ha/n1/recover", "", 404, ""},
		{"GET", "/admin/services", "", 200, ""},
		{"POST", "/admin/services/s/start?node=n", "", 200, "service s n true"},
		{"POST", "/admin/services/s/stop", "", 200, "service s  false"},
		{"POST", "/admin/services/s/kick", "", 404, ""},
		{"POST", "/admin/override?reason=why&for=1m", "", 200, "override  why 1m0s"},
		{"POST", "/admin/override?for=1y", "", 400, ""},
		{"DELETE", "/admin/override?node=n", "", 200, "override n  0s"},
		{"GET", "/admin/alarms", "", 200, ""},
		{"GET", "/admin/sessions?user=a@b&limit=3", "", 200, "sessions a@b 3"},
		{"GET", "/admin/sessions?limit=-1", "", 400, ""},
		{"DELETE", "/admin/sessions?address=a@b/c", "", 200, "end a@b/c"},
		{"POST", "/admin/certificates/reload", "", 200, "reload"},
		{"GET", "/admin/status", "", 200, ""},
		{"GET", "/admin/replication", "", 200, ""},
		{"GET", "/admin/replication/digests", "", 200, ""},
		{"GET", "/admin", "", 404, ""},
		{"GET", "/health/live", "", 404, ""},
	} {
		name := tc.method + " " + tc.path
		t.Run(name[:min(len(name), 60)], func(t *testing.T) {
			op := &operator{}
			h := contain(Admin(op), slog.New(slog.DiscardHandler))
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(tc.method, tc.path, strings.NewReader(tc.body)))
			if w.Code != tc.status {
				t.Errorf("status %d, want %d: %s", w.Code, tc.status, w.Body)
			}
			if got := strings.Join(op.calls, "; "); got != tc.call {
				t.Errorf("the operator was asked %q, want %q", got, tc.call)
			}
		})
	}
}

func TestAdminPassesFaultsOn(t *testing.T) {
	for _, code := range fault.Codes() {
		op := &operator{err: fault.New(code, "op", "subject", "what to do")}
		w := httptest.NewRecorder()
		Admin(op).ServeHTTP(w, httptest.NewRequest("GET", "/admin/users/a@b", nil))
		var e adminapi.Error
		if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || w.Code != Status(code) || e.Code != code.String() || e.Text != "what to do" {
			t.Errorf("%s: %d %+v %v", code, w.Code, e, err)
		}
	}
}

// socket serves op on a Unix socket and returns its data folder.
func socket(t *testing.T, op Operator) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "adm")
	if err != nil {
		t.Fatal(err)
	}
	ln, err := ListenSocket(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := Serve(ln, Admin(op), nil, slog.New(slog.DiscardHandler))
	t.Cleanup(func() {
		if err := s.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		os.RemoveAll(dir)
	})
	return dir
}

func TestSocketIsPrivateAndKnowsItsPeer(t *testing.T) {
	op := &operator{}
	dir := socket(t, op)
	info, err := os.Stat(filepath.Join(dir, adminapi.SocketName))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	c := adminapi.NewClient(dir)
	if err := c.Call(t.Context(), "POST", "/users", []adminapi.NewUser{{JID: "a@b"}}, nil); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("local:%d", os.Getuid()); op.actor != want && op.actor != "local" {
		t.Errorf("the actor is %q", op.actor)
	}
	op.err = fault.New(fault.Stale, "x", "", "read again")
	if err := c.Call(t.Context(), "DELETE", "/users/a@b", nil, nil); !fault.Is(err, fault.Stale) || fault.Public(err) != "read again" {
		t.Errorf("the client gets %v", err)
	}
	if _, err := ListenSocket(dir); !fault.Is(err, fault.Conflict) {
		t.Errorf("a second server on the folder: %v", err)
	}
}

func TestSocketLeftBehindIsReplaced(t *testing.T) {
	dir, err := os.MkdirTemp("", "adm")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ln, err := net.Listen("unix", filepath.Join(dir, adminapi.SocketName))
	if err != nil {
		t.Fatal(err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false) // as a process that was killed leaves it
	ln.Close()
	ln, err = ListenSocket(dir)
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	if _, err := ListenSocket(filepath.Join(dir, strings.Repeat("x", 120))); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a path that is too long: %v", err)
	}
}

func TestBackupStream(t *testing.T) {
	data := bytes.Repeat([]byte("backup"), 100_000)
	op := &operator{size: int64(len(data))}
	c := adminapi.NewClient(socket(t, op))
	read := func() ([]byte, error) {
		body, size, err := c.Stream(t.Context(), "POST", "/backup", adminapi.BackupRequest{Passphrase: "p", NoMessages: true})
		if err != nil {
			return nil, err
		}
		if size != op.size {
			t.Errorf("the client hears of %d bytes", size)
		}
		defer body.Close()
		return io.ReadAll(body)
	}
	op.backup = func(w io.Writer) error { _, err := w.Write(data); return err }
	if got, err := read(); err != nil || !bytes.Equal(got, data) || op.calls[0] != "backup p true" {
		t.Errorf("%d bytes, %v, %v", len(got), err, op.calls)
	}
	op.backup = func(io.Writer) error { return fault.New(fault.NotAcceptable, "b", "", "too short") }
	if _, err := read(); !fault.Is(err, fault.NotAcceptable) {
		t.Errorf("a refusal comes as %v", err)
	}
	op.backup = func(w io.Writer) error {
		if _, err := w.Write(data[:1000]); err != nil {
			return err
		}
		return errors.New("disk on fire")
	}
	if got, err := read(); err == nil {
		t.Errorf("a broken backup of %d bytes looks whole", len(got))
	}
}

func TestStopEndsHangingAnswers(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	defer close(release)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := Serve(ln, nethttp.HandlerFunc(func(nethttp.ResponseWriter, *nethttp.Request) { close(entered); <-release }), nil, slog.New(slog.DiscardHandler))
	go nethttp.Get("http://" + s.Addr().String()) // it is cut off
	<-entered
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Stop(ctx); err != nil {
		t.Error(err)
	}
	if c, err := net.Dial("tcp", s.Addr().String()); err == nil {
		c.Close()
		t.Error("it still listens")
	}
}

func TestActorOfNobody(t *testing.T) {
	if got := ActorOf(t.Context()); got != "local" {
		t.Errorf("got %q", got)
	}
}

func TestClientErrors(t *testing.T) {
	c := adminapi.NewClient("/nowhere")
	err := c.Call(t.Context(), "GET", "/status", nil, nil)
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(fault.Public(err), "is musterd running?") {
		t.Errorf("got %v", err)
	}
	if err := c.Call(t.Context(), "GET", "/status", func() {}, nil); !fault.Is(err, fault.BadRequest) {
		t.Errorf("what cannot be sent gives %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := adminapi.NewClient(socket(t, &operator{})).Call(ctx, "GET", "/status", nil, nil); !fault.Is(err, fault.Timeout) {
		t.Errorf("a call that was given up gives %v", err)
	}
}
