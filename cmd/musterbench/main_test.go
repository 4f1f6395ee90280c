package main

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"

	"muster/cmd/musterbench/client"
	"muster/cmd/musterbench/load"
	"muster/cmd/musterbench/stubserver"
	"muster/internal/fault"
)

// execute parses and runs a command line and returns what it printed.
func execute(t *testing.T, arguments ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var c cli
	parser, err := kong.New(&c, kong.BindTo(ctx, (*context.Context)(nil)))
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := parser.Parse(arguments)
	if err != nil {
		return "", err
	}
	stdout := os.Stdout
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	os.Stdout = writer
	printed := make(chan string, 1)
	go func() {
		text, _ := io.ReadAll(reader)
		printed <- string(text)
	}()
	err = parsed.Run()
	os.Stdout = stdout
	_ = writer.Close()
	return <-printed, err
}

// stub starts a server that lets anyone register.
func stub(t *testing.T) *stubserver.Server {
	t.Helper()
	s := &stubserver.Server{Domain: "bench.test"}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestCommands(t *testing.T) {
	s := stub(t)
	target := []string{"--address", s.Direct(), "--users", "user%d@bench.test:secret", "--accounts", "6", "--label", "stub", "--json"}
	results := t.TempDir()
	for _, c := range []struct {
		scenario  string
		arguments []string
	}{
		{"prepare", []string{"prepare", "--count", "6", "--contacts", "4"}},
		{"login", []string{"login", "--count", "6"}},
		{"login", []string{"login", "--count", "6", "--flow", "inline"}},
		{"login", []string{"login", "--count", "6", "--flow", "token"}},
		{"idle", []string{"idle", "--sessions", "6", "--settle", "1ms"}},
		{"chat", []string{"chat", "--pairs", "2", "--warmup", "1ms", "--duration", "50ms"}},
		{"presence", []string{"presence", "--online", "6", "--contacts", "4", "--warmup", "1ms", "--duration", "50ms"}},
	} {
		text, err := execute(t, append(c.arguments, target...)...)
		if err != nil {
			t.Fatalf("%s: %v", c.scenario, err)
		}
		var r load.Result
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			t.Fatalf("%s printed %q: %v", c.scenario, text, err)
		}
		if r.Scenario != c.scenario || r.Label != "stub" || r.Operations == 0 || r.Errors != 0 {
			t.Errorf("%s: %+v", c.scenario, r)
		}
		if err := os.WriteFile(filepath.Join(results, c.scenario+".json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	table, err := execute(t, "report", results)
	if err != nil || !strings.HasPrefix(table, "| figure | unit | runs | stub |") {
		t.Errorf("report: %v\n%s", err, table)
	}
}

func TestReportFailsOnErrors(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x.json"), []byte(`{"scenario":"chat","label":"s","errors":3}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := execute(t, "report", dir); err == nil || !strings.Contains(err.Error(), "3 errors") {
		t.Errorf("got %v", err)
	}
}

func TestTextOutput(t *testing.T) {
	s := stub(t)
	s.AddUser("user1", "secret")
	text, err := execute(t, "login", "--address", s.StartTLS(), "--transport", "starttls", "--users", "user%d@bench.test:secret", "--accounts", "1", "--count", "2")
	if err != nil || !strings.Contains(text, "server login: 2 logins") {
		t.Errorf("got %q, %v", text, err)
	}
}

func TestProvision(t *testing.T) {
	dir := t.TempDir()
	if _, err := execute(t, "provision", "--users", "user%d@bench.test:secret", "--accounts", "3", "--out", dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "users.csv")); err != nil {
		t.Error(err)
	}
}

func TestClusterFile(t *testing.T) {
	s := stub(t)
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, s.Certificate(), 0o600); err != nil {
		t.Fatal(err)
	}
	s.AddUser("user1", "secret")
	file := map[string]any{
		"domain": "bench.test", "ca": ca,
		"users": []any{map[string]string{"jid": "user1@bench.test", "password": "secret"}},
		"nodes": []any{map[string]any{"name": "node1", "pid": os.Getpid(), "addresses": map[string]string{"client": s.StartTLS(), "client_tls": s.Direct()}}},
	}
	text, err := json.Marshal(file)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "cluster.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, transport := range []string{"direct", "starttls"} {
		out, err := execute(t, "login", "--cluster", path, "--node", "node1", "--transport", transport, "--count", "20")
		if err != nil || !strings.Contains(out, "20 logins") {
			t.Errorf("%s: %q, %v", transport, out, err)
		}
	}
	if _, err := execute(t, "login", "--cluster", path, "--node", "node7"); !fault.Is(err, fault.NotFound) {
		t.Errorf("unknown node: %v", err)
	}
}

func TestBadFlags(t *testing.T) {
	for name, arguments := range map[string][]string{
		"no target":       {"login"},
		"address only":    {"login", "--address", "127.0.0.1:1"},
		"bad pattern":     {"login", "--address", "127.0.0.1:1", "--users", "user"},
		"bad pid":         {"login", "--address", "127.0.0.1:1", "--users", "u%d@d:p", "--pid", "x"},
		"no workers":      {"login", "--address", "127.0.0.1:1", "--users", "u%d@d:p", "--workers", "0"},
		"bad listen":      {"relay", "--listen", "nowhere"},
		"unknown format":  {"provision", "--users", "u%d@d:p", "--out", "/nonexistent", "--format", "xml"},
		"unknown command": {"fly"},
	} {
		if _, err := execute(t, arguments...); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func TestRelayCommandEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- (&relayCommand{Listen: "127.0.0.1:0", Domain: "bench.test"}).Run(ctx) }()
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("got %v", err)
	}
}

// TestTransportsAreNamed holds the flag's values and the client's constants together.
func TestTransportsAreNamed(t *testing.T) {
	s := stub(t)
	for _, transport := range []client.Transport{client.Direct, client.StartTLS, client.Relay} {
		f := targetFlags{Address: s.Direct(), Users: "u%d@d:p", First: 1, Accounts: 1, Transport: string(transport), Workers: 1}
		if e, err := f.env(); err != nil || e.Options.Transport != transport {
			t.Errorf("%s: %v", transport, err)
		}
	}
}
