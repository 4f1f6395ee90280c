package replication_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"muster/fsm"
	"muster/fsm/cluster"
	"muster/fsm/config"
	"muster/fsm/user"
	"muster/internal/fault"
	"muster/internal/store"
	"muster/log"
	"muster/replication"
	"muster/replication/backup"
	"muster/replication/mesh"
	"muster/replication/pki"
)

// These tests run whole nodes with bolt files and TLS on 127.0.0.1.

// server is a node as cmd wires it.
type server struct {
	t       *testing.T
	dir     string
	store   *store.DB
	machine *fsm.Machine
	mesh    *mesh.Mesh
	group   *replication.Group
	gate    *replication.Gatekeeper
	removed chan string
	stop    context.CancelFunc
}

func openMachine(s fsm.Store) (*fsm.Machine, error) {
	return fsm.New(s, log.Control, cluster.Module(), config.Module(), user.Module())
}

func freeAddr(t *testing.T) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func member(t *testing.T, name string) cluster.Member {
	return cluster.Member{Name: name, ClusterAddr: freeAddr(t), Addrs: map[string]string{}, Software: "test", NewestVersion: log.NewestVersion}
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// run starts a node on a data folder that has an identity.
func run(t *testing.T, dir, listen string) *server {
	t.Helper()
	id, err := pki.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, dir: dir, removed: make(chan string, 1)}
	if s.store, err = store.Open(replication.StateDir(dir, replication.ControlLog), store.Options{}); err != nil {
		t.Fatal(err)
	}
	if s.machine, err = openMachine(s.store); err != nil {
		t.Fatal(err)
	}
	where := replication.NewDirectory(s.machine, id.Peers)
	s.mesh = mesh.New(mesh.Config{Identity: id, Listen: listen, AddrOf: where.AddrOf, Member: where.Member, Logger: quiet})
	if err := s.mesh.Start(); err != nil {
		t.Fatal(err)
	}
	s.group, err = replication.Open(replication.Config{Name: replication.ControlLog, NodeID: id.NodeID, Dir: replication.LogDir(dir, replication.ControlLog), Store: s.store,
		Machine: s.machine, Mesh: s.mesh, Members: replication.ClusterMembers(s.machine), Logger: quiet, Version: "test",
		Exit:      func(reason string) { panic("exit: " + reason) },
		OnRemoved: func(reason string) { s.removed <- reason }})
	if err != nil {
		t.Fatal(err)
	}
	where.Watch(s.group)
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	s.gate = &replication.Gatekeeper{Group: s.group, Machine: s.machine, Mesh: s.mesh, Dir: dir, Logger: quiet}
	s.gate.Start(ctx)
	t.Cleanup(s.close)
	return s
}

func (s *server) close() {
	if s.stop == nil {
		return
	}
	s.stop()
	s.stop = nil
	_ = s.group.Close()
	_ = s.mesh.Close()
	_ = s.store.Close()
}

func found(t *testing.T, name string) *server {
	t.Helper()
	dir, m := filepath.Join(t.TempDir(), name), member(t, name)
	if _, err := replication.Init(replication.InitOptions{Dir: dir, ClusterName: "Test", Node: m, Domain: "example.com"}); err != nil {
		t.Fatal(err)
	}
	s := run(t, dir, m.ClusterAddr)
	until(t, "the cluster to be founded", func() bool { _, ok := cluster.Get(s.machine); return ok && s.group.IsLeader() })
	return s
}

// invite makes a token on s.
func (s *server) invite(life time.Duration) pki.Token {
	s.t.Helper()
	e, tok := s.gate.NewToken(life)
	s.propose(e)
	return tok
}

func (s *server) propose(entries ...*log.Entry) {
	s.t.Helper()
	res, err := s.group.Propose(s.t.Context(), entries...)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, r := range res {
		if r.Err != nil {
			s.t.Fatal(r.Err)
		}
	}
}

func (s *server) addr() string { return s.mesh.Addr().String() }

// join makes a new member through s and starts it.
func (s *server) join(name string) *server {
	s.t.Helper()
	dir, m := filepath.Join(s.t.TempDir(), name), member(s.t, name)
	if _, err := replication.Join(s.t.Context(), replication.JoinOptions{Dir: dir, Addr: s.addr(), Token: s.invite(time.Hour), Node: m}); err != nil {
		s.t.Fatal(err)
	}
	return run(s.t, dir, m.ClusterAddr)
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("in vain: " + what)
		}
	}
}

func voters(s *server) int { return len(s.group.Status().Voters) }

func TestFoundJoinRemoveComeBack(t *testing.T) {
	t.Parallel()
	first := found(t, "n1")
	if _, ok := cluster.Secret(first.machine, pki.SecretFakeSalt); !ok || !config.IsDomain(first.machine, "example.com") {
		t.Error("the first records are incomplete")
	}
	second := first.join("n2")
	until(t, "the second node to be a voter", func() bool { return voters(first) == 2 })
	third := second.join("n3") // any member lets nodes in
	until(t, "three voters", func() bool { return voters(first) == 3 && voters(third) == 3 })
	third.propose(config.AddDomainEntry("third.example"))
	if !config.IsDomain(third.machine, "third.example") {
		t.Error("the proposer does not read its own write")
	}
	health := first.group.Health(t.Context())
	for i, h := range health {
		if !h.Reachable || h.Name != fmt.Sprint("n", i+1) || h.Version != "test" || !h.Status.Voter {
			t.Errorf("health of node %d: %+v", i+1, h)
		}
	}
	report, err := second.group.CompareDigests(t.Context())
	if err != nil || !report.Equal || len(report.Missing) != 0 || len(report.Tables) < 5 {
		t.Errorf("digests: %+v, %v", report, err)
	}

	first.propose(cluster.RemoveEntry(2))
	select {
	case <-second.removed:
	case <-time.After(20 * time.Second):
		t.Fatal("the removed node is not told")
	}
	second.close()
	back := third.join("n2") // same name, empty folder: a new id
	if id := back.mesh.Identity().NodeID; id != 4 {
		t.Errorf("the node that came back has id %d, want a new one", id)
	}
	until(t, "three voters again", func() bool { return voters(first) == 3 })
	until(t, "it to catch up", func() bool { return config.IsDomain(back.machine, "third.example") })
}

func TestJoinRefusals(t *testing.T) {
	t.Parallel()
	home, other := found(t, "n1"), found(t, "m1")
	used := home.invite(time.Hour)
	dir := t.TempDir()
	if _, err := replication.Join(t.Context(), replication.JoinOptions{Dir: filepath.Join(dir, "a"), Addr: home.addr(), Token: used, Node: member(t, "n2")}); err != nil {
		t.Fatal(err)
	}
	forged := home.invite(time.Hour)
	forged.Secret = pki.NewSecret(32)
	type refusal struct {
		name  string
		addr  string
		token pki.Token
		node  string
		code  fault.Code
		text  string
	}
	tests := []refusal{
		{"used token", home.addr(), used, "n3", fault.Unauthorized, "used up"},
		{"unknown token", home.addr(), forged, "n3", fault.Unauthorized, "unknown"},
		{"another cluster's token", home.addr(), other.invite(time.Hour), "n3", fault.Unauthorized, "another cluster"},
		{"a member's name", home.addr(), home.invite(time.Hour), "n1", fault.Conflict, "has this name"},
		{"nobody there", freeAddr(t), home.invite(time.Hour), "n3", fault.Unavailable, "no member"},
	}
	expired, made := home.invite(200*time.Millisecond), time.Now() // the next token sweeps expired ones: no other after this
	until(t, "the token to expire", func() bool { return time.Since(made) > 300*time.Millisecond })
	tests = append(tests, refusal{"expired token", home.addr(), expired, "n3", fault.Unauthorized, "expired"})
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := filepath.Join(dir, fmt.Sprint(i))
			_, err := replication.Join(t.Context(), replication.JoinOptions{Dir: d, Addr: tt.addr, Token: tt.token, Node: member(t, tt.node)})
			if !fault.Is(err, tt.code) || !strings.Contains(fault.Public(err), tt.text) {
				t.Errorf("Join: %v, want %v with %q", err, tt.code, tt.text)
			}
			if pki.Exists(d) {
				t.Error("a refused node has an identity")
			}
		})
	}
	if n := len(cluster.Nodes(home.machine)); n != 2 {
		t.Errorf("the cluster has %d nodes", n)
	}
	if _, err := replication.Join(t.Context(), replication.JoinOptions{Dir: home.dir, Addr: other.addr(), Token: other.invite(time.Hour), Node: member(t, "x")}); !fault.Is(err, fault.Conflict) {
		t.Errorf("joining with a folder in use: %v", err)
	}
	if _, err := replication.Init(replication.InitOptions{Dir: home.dir, Node: member(t, "x"), Domain: "x.example"}); !fault.Is(err, fault.Conflict) {
		t.Errorf("founding on a folder in use: %v", err)
	}
	if _, err := replication.Init(replication.InitOptions{Dir: filepath.Join(dir, "bad"), Node: member(t, "x"), Domain: "a@b"}); !fault.Is(err, fault.BadRequest) {
		t.Errorf("founding with a bad domain: %v", err)
	}
}

func TestForeignNodeIsRefused(t *testing.T) {
	t.Parallel()
	home, other := found(t, "n1"), found(t, "m1")
	_, err := mesh.New(mesh.Config{Identity: other.mesh.Identity(), Logger: quiet,
		AddrOf: func(uint32) (string, bool) { return home.addr(), true }}).Dial(t.Context(), 1, "raft/control")
	if !fault.Is(err, fault.Unauthorized) {
		t.Errorf("a node of another cluster: %v", err)
	}
}

func TestRenewalIsLive(t *testing.T) {
	t.Parallel()
	first := found(t, "n1")
	second := first.join("n2")
	until(t, "two voters", func() bool { return voters(first) == 2 })
	before := second.mesh.Identity().Cert
	if err := second.gate.Renew(); err != nil {
		t.Fatal(err)
	}
	if second.mesh.Identity().Cert.Equal(before) {
		t.Error("the certificate is the old one")
	}
	if id, err := pki.Load(second.dir); err != nil || !id.Cert.Equal(second.mesh.Identity().Cert) {
		t.Errorf("the data folder has %v, %v", id, err)
	}
	first.propose(config.AddDomainEntry("a.example"))
	until(t, "replication to go on", func() bool { return config.IsDomain(second.machine, "a.example") })
}

func TestLeaderDiesOverTLS(t *testing.T) {
	t.Parallel()
	first := found(t, "n1")
	second, third := first.join("n2"), first.join("n3")
	until(t, "three voters", func() bool { return voters(second) == 3 && voters(third) == 3 })
	first.propose(config.AddDomainEntry("kept.example"))
	listen, dir := first.addr(), first.dir
	first.close()
	start := time.Now()
	second.propose(config.AddDomainEntry("after.example"))
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("a change took %v after the leader's end", took)
	}
	first = run(t, dir, listen)
	until(t, "the old leader to catch up", func() bool {
		return config.IsDomain(first.machine, "after.example") && config.IsDomain(first.machine, "kept.example")
	})
}

// machines reads backups of the control log alone.
var machines = backup.Machines{Control: openMachine}

// save makes a backup of s into a file.
func (s *server) save(passphrase string) (string, *backup.Manifest) {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), "backup")
	f, err := os.Create(path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	var last, total int64
	m, err := backup.Write(s.t.Context(), f, pki.Secret(passphrase), backup.Source{Control: s.store, Machines: machines,
		Identity: s.mesh.Identity(), Temp: s.dir, Software: "test"}, func(d, n int64) { last, total = d, n })
	if err != nil {
		s.t.Fatal(err)
	}
	if last != total || total == 0 {
		s.t.Errorf("progress ended at %d of %d", last, total)
	}
	return path, m
}

func newUser(name string) *log.Entry {
	return user.CreateEntry(user.User{Name: name + "@example.com", IM: true, Presence: true})
}

func TestBackupAndRestore(t *testing.T) {
	t.Parallel()
	old := found(t, "n1")
	for i := range 30 {
		old.propose(newUser(fmt.Sprint("user", i)))
	}
	sealed, err := pki.Seal(old.mesh.Identity().ClusterKey, []byte("s3cret bind password"), "ldap.bind")
	if err != nil {
		t.Fatal(err)
	}
	old.propose(cluster.SecretEntry("ldap.bind", sealed))
	path, m := old.save("correct horse battery")
	if m.Index != old.group.Applied() && m.Index+2 < old.group.Applied() {
		t.Errorf("the backup is of index %d, the machine at %d", m.Index, old.group.Applied())
	}
	checked, err := backup.Verify(t.Context(), path, pki.Secret("correct horse battery"), machines, nil)
	if err != nil || checked.Index != m.Index || len(checked.Tables) != len(m.Tables) {
		t.Fatalf("Verify: %+v, %v", checked, err)
	}
	raw, _ := os.ReadFile(path)
	for _, canary := range [][]byte{[]byte("user7"), []byte("example.com"), []byte("s3cret"), []byte(m.ClusterID), old.mesh.Identity().ClusterKey} {
		if bytes.Contains(raw, canary) {
			t.Errorf("the backup shows %q", canary)
		}
	}

	dir, node := filepath.Join(t.TempDir(), "other"), member(t, "fresh")
	_, id, err := backup.Restore(t.Context(), backup.RestoreOptions{Path: path, Passphrase: pki.Secret("correct horse battery"), Dir: dir, Node: node, Machines: machines})
	if err != nil {
		t.Fatal(err)
	}
	if id.ClusterID == m.ClusterID || id.NodeID == 1 || id.CA.Equal(old.mesh.Identity().CA) || bytes.Equal(id.ClusterKey, old.mesh.Identity().ClusterKey) {
		t.Error("the restored cluster shares identity with the old one")
	}
	fresh := run(t, dir, node.ClusterAddr)
	until(t, "the new cluster", func() bool {
		info, _ := cluster.Get(fresh.machine)
		return info.ID == id.ClusterID && fresh.group.IsLeader()
	})
	if fresh.group.Applied() <= m.Index {
		t.Errorf("the new log is at %d, the backup was at %d", fresh.group.Applied(), m.Index)
	}
	sameRows(t, old.machine, fresh.machine, user.Table)
	if nodes := cluster.Nodes(fresh.machine); len(nodes) != 1 || nodes[0].Name != "fresh" || nodes[0].ID != id.NodeID {
		t.Errorf("nodes %+v", nodes)
	}
	if a, ok := cluster.AssignmentOf(fresh.machine, "user7@example.com"); !ok || a.Home != id.NodeID {
		t.Errorf("user7's home is %+v, want the new node", a)
	}
	value, _ := cluster.Secret(fresh.machine, "ldap.bind")
	if plain, err := pki.Open(id.ClusterKey, value, "ldap.bind"); string(plain) != "s3cret bind password" {
		t.Errorf("the secret came back as %q, %v", plain, err)
	}
	if err := fresh.machine.VerifyDigests(); err != nil {
		t.Error(err)
	}
	second := fresh.join("another")
	until(t, "another node to join and catch up", func() bool { return voters(fresh) == 2 && second.machine.Applied() >= m.Index })
	sameRows(t, old.machine, second.machine, user.Table)
	if err := fresh.group.Snapshot(t.Context()); err != nil {
		t.Error(err)
	}
}

func sameRows(t *testing.T, a, b fsm.Reader, table *fsm.Table) {
	t.Helper()
	rows := map[string]string{}
	a.Scan(table, nil, nil, func(k, v []byte) bool { rows[string(k)] = string(v); return true })
	if len(rows) == 0 {
		t.Error("there are no rows to compare")
	}
	b.Scan(table, nil, nil, func(k, v []byte) bool {
		if rows[string(k)] != string(v) {
			t.Errorf("row %q differs", k)
		}
		delete(rows, string(k))
		return true
	})
	if len(rows) > 0 {
		t.Errorf("%d rows are missing", len(rows))
	}
}

func TestBadBackupsChangeNothing(t *testing.T) {
	t.Parallel()
	s := found(t, "n1")
	path, _ := s.save("correct horse battery")
	good, _ := os.ReadFile(path)
	flip := func(at int) []byte {
		b := bytes.Clone(good)
		b[at] ^= 1
		return b
	}
	tests := []struct {
		name       string
		data       []byte
		passphrase string
	}{
		{"wrong passphrase", good, "wrong horse battery"},
		{"changed magic", flip(0), ""},
		{"changed parameters", flip(12), ""},
		{"changed salt", flip(20), ""},
		{"changed first chunk", flip(100), ""},
		{"changed last byte", flip(len(good) - 1), ""},
		{"cut short by a byte", good[:len(good)-1], ""},
		{"something behind", append(bytes.Clone(good), 0), ""},
		{"empty", nil, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "b")
			if err := os.WriteFile(file, tt.data, 0o600); err != nil {
				t.Fatal(err)
			}
			pass := pki.Secret("correct horse battery")
			if tt.passphrase != "" {
				pass = pki.Secret(tt.passphrase)
			}
			if _, err := backup.Verify(t.Context(), file, pass, machines, nil); err == nil {
				t.Error("Verify accepts it")
			}
			dir := filepath.Join(t.TempDir(), "data")
			if _, _, err := backup.Restore(t.Context(), backup.RestoreOptions{Path: file, Passphrase: pass, Dir: dir, Node: member(t, "x"), Machines: machines}); err == nil {
				t.Error("Restore accepts it")
			}
			if left, _ := os.ReadDir(dir); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
	if _, _, err := backup.Restore(t.Context(), backup.RestoreOptions{Path: path, Passphrase: pki.Secret("correct horse battery"), Dir: s.dir, Node: member(t, "x"), Machines: machines}); !fault.Is(err, fault.Conflict) {
		t.Errorf("a restore over a node in use: %v", err)
	}
	if _, err := backup.Write(t.Context(), io.Discard, pki.Secret("short"), backup.Source{Control: s.store, Machines: machines, Identity: s.mesh.Identity(), Temp: s.dir}, nil); !fault.Is(err, fault.NotAcceptable) {
		t.Errorf("a short passphrase: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := backup.Write(ctx, io.Discard, pki.Secret("correct horse battery"), backup.Source{Control: s.store, Machines: machines, Identity: s.mesh.Identity(), Temp: s.dir}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled backup: %v", err)
	}
}
