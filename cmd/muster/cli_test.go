package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"muster/edges/http/adminapi"
	roster "muster/feature/roster/state"
	"muster/fsm/cluster"
	"muster/fsm/user"
	"muster/internal/fault"
	"muster/internal/jid"
	"muster/internal/node/operate/operatetest"
	"muster/internal/scram"
	"muster/monitor"
	"muster/router/hot"
)

// shell runs the tool against a world.
type shell struct {
	t     *testing.T
	w     *operatetest.World
	data  string
	input string
}

func newShell(t *testing.T) *shell {
	w := operatetest.New(t)
	return &shell{t: t, w: w, data: w.Serve(t)}
}

func (s *shell) run(args ...string) (out, errs string, status int) {
	s.t.Helper()
	var o, e bytes.Buffer
	status = run(context.Background(), append([]string{"--data", s.data}, args...), strings.NewReader(s.input), &o, &e)
	return o.String(), e.String(), status
}

// must runs a command that must succeed and returns its output.
func (s *shell) must(args ...string) string {
	s.t.Helper()
	out, errs, status := s.run(args...)
	if status != 0 {
		s.t.Fatalf("muster %s: status %d: %s%s", strings.Join(args, " "), status, out, errs)
	}
	return out
}

// fails runs a command that must fail with a code and say text.
func (s *shell) fails(code fault.Code, text string, args ...string) {
	s.t.Helper()
	out, errs, status := s.run(args...)
	if status != exitStatuses[code] || !strings.Contains(errs, text) {
		s.t.Errorf("muster %s: status %d, want %d (%s) and %q: %s%s", strings.Join(args, " "), status, exitStatuses[code], code, text, out, errs)
	}
}

func (s *shell) file(content string) string {
	s.t.Helper()
	name := filepath.Join(s.t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return name
}

func contains(t *testing.T, text string, wants ...string) {
	t.Helper()
	for _, w := range wants {
		if !strings.Contains(text, w) {
			t.Errorf("%q is not in\n%s", w, text)
		}
	}
}

func TestExitStatuses(t *testing.T) {
	seen := map[int]fault.Code{}
	for _, c := range fault.Codes() {
		s, ok := exitStatuses[c]
		if !ok || s == 0 {
			t.Errorf("no exit status for %s", c)
		}
		if seen[s] != 0 {
			t.Errorf("%s and %s have the same status", seen[s], c)
		}
		seen[s] = c
		if got := exitStatus(fault.Wrap(errors.New("x"), c, "op", "")); got != s {
			t.Errorf("%s exits with %d", c, got)
		}
	}
	if exitStatus(nil) != 0 || exitStatus(errors.New("x")) != 1 || exitStatus(&outcome{differStatus, ""}) != differStatus {
		t.Error("nil, a plain error or an outcome has a wrong status")
	}
	if seen[differStatus] != 0 || seen[partStatus] != 0 {
		t.Error("an outcome's status is a fault's too")
	}
}

func TestUsage(t *testing.T) {
	for _, tc := range []struct {
		name   string
		args   []string
		status int
		want   string
	}{
		{"help", []string{"--help"}, 0, "cluster"},
		{"no command", nil, usageStatus, "--help"},
		{"unknown command", []string{"fly"}, usageStatus, "fly"},
		{"unknown flag", []string{"status", "--loud"}, usageStatus, "--loud"},
		{"missing argument", []string{"user", "create"}, usageStatus, "user"},
		{"bad mode", []string{"assign", "mode", "x"}, usageStatus, "balanced"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out, errs bytes.Buffer
			status := run(t.Context(), tc.args, strings.NewReader(""), &out, &errs)
			if status != tc.status || !strings.Contains(out.String()+errs.String(), tc.want) {
				t.Errorf("status %d, output %s%s", status, out.String(), errs.String())
			}
		})
	}
}

func TestNoNode(t *testing.T) {
	var out, errs bytes.Buffer
	status := run(t.Context(), []string{"--data", t.TempDir(), "status"}, strings.NewReader(""), &out, &errs)
	if status != exitStatuses[fault.Unavailable] {
		t.Errorf("status %d", status)
	}
	contains(t, errs.String(), "is musterd running?", "--data")
}

func TestVersion(t *testing.T) {
	contains(t, newShell(t).must("version"), "muster dev", "go1.")
}

func TestUsers(t *testing.T) {
	s := newShell(t)
	out := s.must("user", "create", "alice", "--name", "Alice A.", "--admin")
	contains(t, out, "alice@example.test created with password ")
	password := strings.TrimSpace(out[strings.LastIndex(out, " "):])
	u, ok := user.Get(s.w.Rig.M, "alice@example.test")
	if !ok || !u.Admin || u.DisplayName != "Alice A." || !scram.Verifier(scramOf(u.SHA256)).Matches(scram.SHA256, password) {
		t.Fatalf("alice is %+v", u)
	}
	s.input = "correct horse\n"
	contains(t, s.must("user", "create", "bob@example.test", "--stdin"), "bob@example.test created\n")
	if u, _ := user.Get(s.w.Rig.M, "bob@example.test"); !scramOf(u.SHA1).Matches(scram.SHA1, "correct horse") {
		t.Error("bob's password is another one")
	}
	s.input = "new password\n"
	contains(t, s.must("user", "passwd", "bob"), "has a new password (log index ")
	if u, _ := user.Get(s.w.Rig.M, "bob@example.test"); !scramOf(u.SHA256).Matches(scram.SHA256, "new password") {
		t.Error("bob's password was not changed")
	}
	contains(t, s.must("user", "disable", "bob"), "bob disabled")
	contains(t, s.must("user", "show", "bob"), "IM        no", "presence  no", "home      node2")
	contains(t, s.must("user", "enable", "bob"), "bob enabled")
	contains(t, s.must("user", "list"), "USER", "alice@example.test", "bob@example.test", "Alice A.")
	if out := s.must("user", "list", "b", "--json"); strings.Contains(out, "alice") || !strings.Contains(out, `"jid":"bob@example.test"`) {
		t.Errorf("the list of b is %s", out)
	}
	s.must("user", "delete", "bob")
	s.fails(fault.NotFound, "no user bob@example.test", "user", "show", "bob")
	s.fails(fault.Conflict, "exists already", "user", "create", "alice")
	s.fails(fault.NotFound, "add it first", "user", "create", "x@other.test")
	s.fails(fault.BadRequest, "name@domain", "user", "show", "@")
	s.input = "\n"
	s.fails(fault.BadRequest, "empty", "user", "passwd", "alice")
	s.must("domain", "add", "second.test")
	s.fails(fault.BadRequest, "write name@domain", "user", "show", "alice")
	for actor := range s.w.Actors {
		if want := fmt.Sprintf("local:%d", os.Getuid()); actor != want && actor != "local" {
			t.Errorf("the log says that %q did it, want %q", actor, want)
		}
	}
}

func scramOf(v user.Verifier) scram.Verifier {
	return scram.Verifier{Salt: v.Salt, Iterations: v.Iterations, StoredKey: v.StoredKey, ServerKey: v.ServerKey}
}

func TestUserImport(t *testing.T) {
	s := newShell(t)
	var csv strings.Builder
	csv.WriteString("user,password,name\n# a comment\n")
	const users = 1203 // three batches
	for i := range users {
		fmt.Fprintf(&csv, "u%d,\"pass, %d\",User %d\n", i, i, i)
	}
	file := s.file(csv.String())
	s.w.FailNext(fault.New(fault.NoQuorum, "x", "", ""), fault.New(fault.Timeout, "x", "", ""))
	out, errs, status := s.run("user", "import", file)
	if status != 0 {
		t.Fatalf("status %d: %s%s", status, out, errs)
	}
	contains(t, out, "1203 created, 0 existed already, 0 failed in ")
	contains(t, errs, "1203 of 1203 users, ")
	if n := user.Count(s.w.Rig.M); n != users {
		t.Errorf("%d users exist", n)
	}
	u, _ := user.Get(s.w.Rig.M, "u7@example.test")
	if u.DisplayName != "User 7" || u.SHA256.Iterations != 4096 || !scramOf(u.SHA256).Matches(scram.SHA256, "pass, 7") {
		t.Errorf("u7 is %+v", u)
	}
	s.must("user", "delete", "u7")
	contains(t, s.must("user", "import", "-q", file), "1 created, 1202 existed already, 0 failed")
}

func TestUserImportRefuses(t *testing.T) {
	s := newShell(t)
	for _, tc := range []struct {
		name, csv, want string
		args            []string
		code            fault.Code
	}{
		{"one field", "alice\n", "line 1: 2 to 3 fields", nil, fault.BadRequest},
		{"bad quote", "a,b\nc,\"d\n", "nothing was imported", nil, fault.BadRequest},
		{"few iterations", "a,b\n", "at least 4096", []string{"--iterations", "100"}, fault.NotAcceptable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s.fails(tc.code, tc.want, append([]string{"user", "import", s.file(tc.csv)}, tc.args...)...)
		})
	}
	s.fails(fault.NotFound, "cannot read", "user", "import", "/none")
	out, _, status := s.run("user", "import", s.file("a,pw\nb@other.test,pw\nc,\nd,pw\n"), "-q")
	if status != partStatus {
		t.Errorf("an import that left lines out has status %d", status)
	}
	contains(t, out, "2 created, 0 existed already, 2 failed", "b@other.test: the domain is not", "line 3: c@example.test")
	s.w.FailNext(fault.New(fault.Forbidden, "x", "", "not today"))
	s.fails(fault.Forbidden, "not today", "user", "import", s.file("e,pw\n"), "-q")
}

func TestRosterImport(t *testing.T) {
	s := newShell(t)
	s.must("user", "import", "-q", s.file("a,pw\nb,pw\nc,pw\n"))
	contains(t, s.must("roster", "import", "-q", s.file("a,b\na,c,both\n")), "2 made, 0 existed already")
	for _, pair := range [][2]string{{"a", "b"}, {"b", "a"}, {"a", "c"}, {"c", "a"}} {
		item, ok := roster.Get(s.w.Rig.M, jid.MustParse(pair[0]+"@example.test"), jid.MustParse(pair[1]+"@example.test"))
		if !ok || item.Sub != roster.Both || item.Hidden {
			t.Errorf("%v: %+v", pair, item)
		}
	}
	out, _, status := s.run("roster", "import", "-q", s.file("a,b\na,x\na,a\n"))
	if status != partStatus {
		t.Errorf("status %d", status)
	}
	contains(t, out, "0 made, 1 existed already, 2 failed", "no user x@example.test", "nobody is a contact of their own")
	s.fails(fault.BadRequest, "can only be both", "roster", "import", s.file("a,b,to\n"))
}

func TestSettings(t *testing.T) {
	s := newShell(t)
	contains(t, s.must("settings"), "SETTING", "monitor.publisher_timeout", "default")
	contains(t, s.must("settings", "set", "monitor.publisher_timeout", "90s"), "monitor.publisher_timeout = 90s")
	if out := s.must("settings", "get", "monitor.publisher_timeout"); out != "90s\n" {
		t.Errorf("get prints %q", out)
	}
	contains(t, s.must("settings", "get", "-v", "monitor.publisher_timeout"), "duration from 1s to 24h0m0s", "(cluster)")
	if out := s.must("settings", "list", "--changed"); strings.Count(out, "\n") != 2 {
		t.Errorf("changed settings are %s", out)
	}
	contains(t, s.must("settings", "list", "monitor.", "-v"), "How long the publisher's services wait")
	s.must("settings", "reset", "monitor.publisher_timeout")
	if out := s.must("settings", "get", "monitor.publisher_timeout"); out != "5m0s\n" {
		t.Errorf("after the reset get prints %q", out)
	}
	s.fails(fault.NotAcceptable, "from 1s to 24h", "settings", "set", "monitor.publisher_timeout", "soon")
	s.fails(fault.NotAcceptable, "one value for the whole cluster", "settings", "set", "monitor.publisher_timeout", "2s", "--node", "node2")
	s.fails(fault.NotFound, "no node is called", "settings", "set", "monitor.publisher_timeout", "2s", "--node", "x")
	s.fails(fault.NotFound, "lists", "settings", "set", "no.such", "1")
	s.fails(fault.NotFound, "no setting no.such", "settings", "get", "no.such")
	var list []adminapi.Setting
	if err := json.Unmarshal([]byte(s.must("settings", "list", "--json")), &list); err != nil || len(list) == 0 || list[0].Doc == "" {
		t.Errorf("JSON: %v, %+v", err, list)
	}
}

func TestDomains(t *testing.T) {
	s := newShell(t)
	s.must("domain", "add", "Second.Test.")
	if out := s.must("domain"); out != "example.test\nsecond.test\n" {
		t.Errorf("domains are %q", out)
	}
	s.must("domain", "remove", "second.test")
	s.must("user", "create", "a")
	s.fails(fault.Conflict, "has users", "domain", "remove", "example.test")
	s.fails(fault.BadRequest, "no domain name", "domain", "add", "a@b")
}

func TestNodes(t *testing.T) {
	s := newShell(t)
	contains(t, s.must("node", "list"), "node1", "publisher", "node2", "subscriber", "10.0.0.2:7400", "10.0.0.1:5222")
	out, errs, _ := s.run("node", "token", "--for", "10m")
	if !strings.HasPrefix(out, "muster-join-") {
		t.Errorf("the token is %q", out)
	}
	contains(t, errs, "node join 10.0.0.1:7400")
	contains(t, s.must("publisher", "move", "node2"), "node2 is the publisher")
	if info, _ := cluster.Get(s.w.Rig.M); info.Publisher != 2 {
		t.Errorf("the publisher is %d", info.Publisher)
	}
	s.must("node", "remove", "node1")
	if n := len(cluster.Nodes(s.w.Rig.M)); n != 1 {
		t.Errorf("%d nodes are left", n)
	}
	if released := s.w.Messages.Released; !slices.Equal(released, []uint32{1}) {
		t.Errorf("released: %v", released)
	}
	s.fails(fault.NotFound, "no node is called x", "node", "remove", "x")
	s.fails(fault.BadRequest, "for: must be", "node", "token", "--for", "9999h")
}

// TestRemoveANodeThatVotes: it stays while a log does not do without its vote.
func TestRemoveANodeThatVotes(t *testing.T) {
	s := newShell(t)
	s.fails(fault.NotAllowed, "publisher", "node", "remove", "node1")
	if released := s.w.Messages.Released; released != nil {
		t.Errorf("the publisher gives up its vote: %v", released)
	}
	votes := fault.New(fault.Unavailable, "x", "", "node2 still has a vote in the message log")
	s.w.Messages.Refuse = []error{votes, nil, votes}
	s.fails(fault.Unavailable, "node2 is not removed: node2 still has a vote in the message log", "node", "remove", "node2")
	if n := len(cluster.Nodes(s.w.Rig.M)); n != 2 {
		t.Errorf("%d nodes are left", n)
	}
	s.fails(fault.Unavailable, "node2 is removed, but may still have a vote; leave it running", "node", "remove", "node2")
	if n := len(cluster.Nodes(s.w.Rig.M)); n != 1 {
		t.Errorf("%d nodes are left", n)
	}
}

func TestGroupsAndAssignment(t *testing.T) {
	s := newShell(t)
	s.must("user", "import", "-q", s.file("a,pw\nb,pw\nc,pw\nd,pw\n"))
	s.must("assign", "mode", "manual")
	s.must("user", "create", "e")
	contains(t, s.must("user", "show", "e"), "home      -")
	s.must("assign", "user", "e", "a", "b", "c", "d", "--node", "node2")
	contains(t, s.must("user", "show", "e"), "home      node2")
	s.must("assign", "mode", "balanced")
	contains(t, s.must("assign", "rebalance"), "2 users are to be moved")
	contains(t, s.must("ha"), "Rebalancing since", "2 users left to move, at most 100 a second")
	contains(t, s.must("assign", "rebalance", "--stop"), "no more users are moved")
	if _, ordered := cluster.BalanceOrdered(s.w.Rig.M); ordered {
		t.Error("the rebalancing was not called off")
	}
	s.must("assign", "user", "e", "--unassign")
	contains(t, s.must("user", "show", "e"), "home      -")
	s.must("group", "put", "both", "node1", "node2")
	contains(t, s.must("group"), "both", "node1, node2")
	contains(t, s.must("group", "list", "--json"), `"ha": true`)
	s.must("group", "put", "spare", "--no-ha")
	s.must("group", "remove", "spare")
	s.fails(fault.NotFound, "no node is called", "group", "put", "x", "y")
	s.fails(fault.Conflict, "", "group", "remove", "both")
}

func TestServices(t *testing.T) {
	s := newShell(t)
	s.w.Alarms.Raise(monitor.Alarm{Name: "services-waiting", Severity: monitor.Warning, Reason: "waits", IndexNow: 4, IndexWanted: 9, Estimate: 5 * time.Second})
	contains(t, s.must("services"), "client-connections", "[STARTING]", "waits for the control log", "[STARTED]", "services-waiting", "4/9", "5s")
	contains(t, s.must("services", "list", "--json"), `"state": "STARTING"`, `"essential": true`)
	contains(t, s.must("services", "stop", "client-connections"), "stop is ordered (log index ")
	if got := cluster.StoppedServices(s.w.Rig.M, 1); len(got) != 1 || got[0] != "client-connections" {
		t.Errorf("stopped are %v", got)
	}
	s.must("services", "start", "client-connections", "--node", "node1")
	if got := cluster.StoppedServices(s.w.Rig.M, 1); len(got) != 0 {
		t.Errorf("stopped are %v", got)
	}
	s.fails(fault.NotFound, "muster services lists them", "services", "stop", "x")
	s.fails(fault.NotAllowed, "cannot be stopped by itself", "services", "stop", "router")
}

func TestOverride(t *testing.T) {
	s := newShell(t)
	s.must("override", "--for", "10m", "--reason", "we know better")
	o, ok := cluster.Override(s.w.Rig.M, 1)
	if left := time.Until(o.Until); !ok || o.Reason != "we know better" || left < 9*time.Minute || left > 10*time.Minute {
		t.Errorf("the override is %+v", o)
	}
	s.must("override", "--end")
	if o, _ := cluster.Override(s.w.Rig.M, 1); time.Until(o.Until) > 0 {
		t.Errorf("after its end the override is %+v", o)
	}
	s.fails(fault.BadRequest, "at most 24h", "override", "--for", "100h")
}

func TestAlarms(t *testing.T) {
	s := newShell(t)
	contains(t, s.must("alarms"), "no alarm on node1")
	s.w.Alarms.Raise(monitor.Alarm{Name: "node-down/node2", Severity: monitor.Critical, Reason: "start it"})
	contains(t, s.must("alarms"), "node-down/node2", "critical", "start it")
	s.w.Alarms.Clear("node-down/node2")
	contains(t, s.must("alarms", "--history"), "raised   node-down/node2", "cleared  node-down/node2", "no alarm")
	contains(t, s.must("alarms", "--json"), `"raised": true`)
}

func TestSessions(t *testing.T) {
	s := newShell(t)
	s.must("user", "create", "alice")
	alice := jid.MustParse("alice@example.test")
	s.w.Rows = []hot.Row{{User: alice, Resource: "phone", Node: 2, Priority: 5, Since: time.Now()}, {User: alice, Resource: "desk", Node: 1}}
	contains(t, s.must("sessions"), "alice@example.test/phone", "node2", "5", "alice@example.test/desk")
	contains(t, s.must("sessions", "list", "alice", "--json"), `"node": "node1"`)
	contains(t, s.must("sessions", "list", "--limit", "1"), "and more")
	contains(t, s.must("user", "show", "alice"), "sessions  2", "alice@example.test/desk on node1")
	s.must("sessions", "end", "alice@example.test/phone")
	if len(s.w.Ended) != 1 || s.w.Ended[0] != "alice@example.test/phone" {
		t.Errorf("ended are %v", s.w.Ended)
	}
	s.fails(fault.NotFound, "no user", "sessions", "end", "bob@example.test")
}

func TestCerts(t *testing.T) {
	s := newShell(t)
	contains(t, s.must("certs", "reload"), "example.test", "VALID UNTIL")
	s.w.Reload = fault.New(fault.BadRequest, "certs", "", "the key does not fit the certificate")
	s.fails(fault.BadRequest, "does not fit", "certs", "reload")
}

func TestBackup(t *testing.T) {
	s := newShell(t)
	content := strings.Repeat("0123456789abcdef", 10_000)
	s.w.Backup = func(w io.Writer, req adminapi.BackupRequest) error {
		if req.NoMessages {
			return fault.New(fault.NotAcceptable, "backup", "", "without messages")
		}
		if req.Passphrase != "open sesame" {
			return fault.New(fault.NotAcceptable, "backup", "", "too short")
		}
		_, err := io.WriteString(w, content)
		return err
	}
	key := s.file("open sesame\nanother line\n")
	target := filepath.Join(t.TempDir(), "b")
	_, errs, status := s.run("backup", target, "--passphrase-file", key)
	if status != 0 {
		t.Fatalf("status %d: %s", status, errs)
	}
	contains(t, errs, "156.2 KiB")
	if b, err := os.ReadFile(target); err != nil || string(b) != content {
		t.Errorf("the file has %d bytes, %v", len(b), err)
	}
	s.fails(fault.Conflict, "exists already", "backup", target, "--passphrase-file", key)
	other := filepath.Join(t.TempDir(), "c")
	s.fails(fault.NotAcceptable, "without messages", "backup", other, "--no-messages", "--passphrase-file", key)
	t.Setenv("MUSTER_PASSPHRASE", "x")
	s.fails(fault.NotAcceptable, "too short", "backup", other)
	t.Setenv("MUSTER_PASSPHRASE", "")
	s.fails(fault.BadRequest, "--passphrase-file", "backup", other)
	s.w.Backup = func(w io.Writer, _ adminapi.BackupRequest) error {
		if _, err := io.WriteString(w, content); err != nil {
			return err
		}
		return errors.New("disk on fire")
	}
	s.fails(fault.Unavailable, "broke off and was thrown away", "backup", other, "--passphrase-file", key)
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(other), "*")); len(left) != 0 {
		t.Errorf("a broken backup left %v", left)
	}
}

func TestExample(t *testing.T) {
	contains(t, newShell(t).must("cluster", "example"), "cluster:", "tls_listen")
}

func TestOfflineCommandsNeedABootstrapFile(t *testing.T) {
	s := newShell(t)
	s.fails(fault.BadRequest, "--config", "cluster", "init", "--domain", "x.test")
	s.fails(fault.BadRequest, "--config", "node", "join", "a:1", "--token-file", "-")
	s.fails(fault.NotFound, "cannot be read", "--config", "/none", "cluster", "init", "--domain", "x.test")
}

func TestReadSecretLimits(t *testing.T) {
	if _, err := readLine(strings.NewReader(strings.Repeat("x", 5000))); !fault.Is(err, fault.TooLarge) {
		t.Errorf("a long secret gives %v", err)
	}
	if s, err := readLine(strings.NewReader("a b \r\nc")); err != nil || s != "a b " {
		t.Errorf("got %q, %v", s, err)
	}
	a, b := newPassword(), newPassword()
	if a == b || len(a) != 17 {
		t.Errorf("passwords are %s and %s", a, b)
	}
}

func TestHumanBytes(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 5 << 20: "5 MiB", 3 << 40: "3 TiB", 3000 << 40: "3000 TiB"} {
		if got := humanBytes(n); got != want {
			t.Errorf("%d is %s, want %s", n, got, want)
		}
	}
}
