package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"muster/fsm/user"
	"muster/internal/bootstrap"
	"muster/internal/certs"
	"muster/internal/fault"
	"muster/internal/node"
)

// place is a node's folder with a bootstrap file, on free ports.
type place struct {
	t      *testing.T
	dir    string
	config string
}

func newPlace(t *testing.T, name string) *place {
	t.Helper()
	dir, err := os.MkdirTemp("", "cli")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	p := &place{t: t, dir: dir, config: filepath.Join(dir, "musterd.yaml")}
	text := fmt.Sprintf("name: %s\ndata: data\ncluster:\n  listen: %s\nclient:\n  listen: off\n  tls_listen: 127.0.0.1:0\nhttps:\n  listen: off\n", name, ln.Addr())
	if err := os.WriteFile(p.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *place) run(args ...string) (out string, status int) {
	var o bytes.Buffer
	status = run(context.Background(), append([]string{"--config", p.config}, args...), strings.NewReader("secret of alice\n"), &o, &o)
	return o.String(), status
}

func (p *place) must(args ...string) string {
	p.t.Helper()
	out, status := p.run(args...)
	if status != 0 {
		p.t.Fatalf("muster %s: status %d: %s", strings.Join(args, " "), status, out)
	}
	return out
}

func (p *place) fails(code fault.Code, text string, args ...string) {
	p.t.Helper()
	if out, status := p.run(args...); status != exitStatuses[code] || !strings.Contains(out, text) {
		p.t.Errorf("muster %s: status %d, want %d and %q: %s", strings.Join(args, " "), status, exitStatuses[code], text, out)
	}
}

// start runs the node, without features, until the test ends or stop is called.
func (p *place) start() (n *node.Node, stop func()) {
	p.t.Helper()
	conf, err := bootstrap.Load(p.config)
	if err != nil {
		p.t.Fatal(err)
	}
	ca, err := certs.NewCA("test", time.Now())
	if err != nil {
		p.t.Fatal(err)
	}
	source, err := ca.IssueSource(time.Now(), "x.test")
	if err != nil {
		p.t.Fatal(err)
	}
	n, err = node.Open(node.Options{Config: conf, Certs: source, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		p.t.Fatal(err)
	}
	if err := n.Start(p.t.Context()); err != nil {
		p.t.Fatal(err)
	}
	stop = func() {
		if err := n.Stop(context.Background()); err != nil {
			p.t.Error(err)
		}
	}
	p.t.Cleanup(stop)
	why := ""
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		var ok bool
		if ok, why = n.Runner().Ready(); ok {
			return n, stop
		}
	}
	p.t.Fatal("not ready: ", why)
	return nil, nil
}

// TestAClustersLife founds a cluster, lets a node join and leave, backs up, and restores elsewhere, all by the tool.
func TestAClustersLife(t *testing.T) {
	first := newPlace(t, "first")
	contains(t, first.must("cluster", "init", "--name", "Life", "--domain", "x.test"), "cluster Life (", "next: start musterd")
	first.fails(fault.Conflict, "", "cluster", "init", "--domain", "x.test")
	first.start()
	first.must("user", "create", "alice", "--stdin", "--admin")

	second := newPlace(t, "second")
	token := filepath.Join(second.dir, "token")
	if err := os.WriteFile(token, []byte(strings.SplitN(first.must("node", "token"), "\n", 2)[0]), 0o600); err != nil {
		t.Fatal(err)
	}
	address := strings.Fields(strings.SplitN(first.must("node", "list"), "\n", 3)[1])
	var port string
	for _, f := range address {
		if strings.HasPrefix(f, "127.0.0.1:") {
			port = f
		}
	}
	second.fails(fault.BadRequest, "join token", "node", "join", port, "--token-file", second.config)
	second.fails(fault.NotFound, "cannot read the token file", "node", "join", port, "--token-file", "/none")
	contains(t, second.must("node", "join", port, "--token-file", token), "second is node 2 of cluster ")
	_, stop := second.start()
	contains(t, second.must("user", "list"), "alice@x.test")
	contains(t, first.must("status"), "second", "(2) Setup Completed")

	key := filepath.Join(first.dir, "key")
	if err := os.WriteFile(key, []byte("a long passphrase\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(first.dir, "backup")
	contains(t, first.must("backup", file, "--passphrase-file", key), file)
	contains(t, first.must("backup", "verify", file, "--passphrase-file", key), "is whole: cluster Life")
	contains(t, first.must("backup", "verify", "-q", "--json", file, "--passphrase-file", key), `"cluster_name": "Life"`)
	first.must("node", "remove", "second") // while it runs: without it there would be no majority
	stop()
	checkRestore(t, file, key)
}

func checkRestore(t *testing.T, file, key string) {
	t.Helper()
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	p := newPlace(t, "heir")
	broken := filepath.Join(p.dir, "broken")
	for name, content := range map[string][]byte{
		"cut short": good[:len(good)-7],
		"tampered":  append(append(append([]byte{}, good[:len(good)/2]...), good[len(good)/2]^1), good[len(good)/2+1:]...),
		"empty":     nil,
	} {
		if err := os.WriteFile(broken, content, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, command := range [][]string{{"backup", "verify"}, {"restore"}} {
			if out, status := p.run(append(command, broken, "--passphrase-file", key)...); status == 0 {
				t.Errorf("a backup that is %s passes %v: %s", name, command, out)
			}
		}
	}
	other := filepath.Join(p.dir, "other")
	if err := os.WriteFile(other, []byte("another passphrase\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.fails(fault.Unauthorized, "", "restore", file, "--passphrase-file", other)
	contains(t, p.must("restore", file, "--passphrase-file", key, "--name", "Heirs"), "restored: cluster Life", "at home on heir")
	n, _ := p.start()
	u, ok := user.Get(n.State(), "alice@x.test")
	if !ok || !u.Admin {
		t.Errorf("alice is %+v", u)
	}
	contains(t, p.must("status"), "Cluster Heirs", "heir")
	contains(t, p.must("user", "show", "alice"), "home      heir")
}
