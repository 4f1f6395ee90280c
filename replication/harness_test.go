package replication

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"muster/fsm"
	"muster/internal/store"
	"muster/log"
	"muster/replication/mesh"
	"muster/replication/pki"
)

// kv is the test machine's only table.
var kv = fsm.NewTable("test.kv")

// kvModule puts ("key=value") with SettingSet and refuses keys that begin with "!".
func kvModule() fsm.Module {
	return fsm.Module{Name: "fsm/config", Tables: []*fsm.Table{kv}, Handlers: map[log.Kind]fsm.Handler{
		log.SettingSet: func(tx *fsm.Tx, e *log.Entry) error {
			if len(e.Body) > 0 && e.Body[0] == '!' {
				return errors.New("refused")
			}
			key, value, _ := cut(e.Body)
			n, _ := tx.Get(kv, []byte("count"))
			tx.Put(kv, []byte("count"), append(n, 'x'))
			tx.Put(kv, key, value)
			tx.SetResult(value)
			return nil
		},
	}}
}

func cut(b []byte) (k, v []byte, ok bool) {
	for i, c := range b {
		if c == '=' {
			return b[:i], b[i+1:], true
		}
	}
	return b, nil, false
}

func put(k, v string) *log.Entry { return &log.Entry{Kind: log.SettingSet, Body: []byte(k + "=" + v)} }

// memNet is a network inside the process, whose links can be cut.
type memNet struct {
	mu    sync.Mutex
	ports map[string]*memPort
	cut   map[[2]string]bool
	conns map[[2]string]map[net.Conn]struct{}
	hush  chan struct{} // not nil: nothing gets through until it is closed, and nobody is told
}

func newMemNet() *memNet {
	return &memNet{ports: map[string]*memPort{}, cut: map[[2]string]bool{}, conns: map[[2]string]map[net.Conn]struct{}{}}
}

// at is the network as one address sees it.
func (n *memNet) at(addr string) mesh.Network { return memEnd{n, addr} }

type memEnd struct {
	net  *memNet
	addr string
}

type memPort struct {
	net    *memNet
	addr   string
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (e memEnd) Listen(addr string) (net.Listener, error) {
	p := &memPort{net: e.net, addr: addr, conns: make(chan net.Conn, 16), closed: make(chan struct{})}
	e.net.mu.Lock()
	e.net.ports[addr] = p
	e.net.mu.Unlock()
	return p, nil
}

func (p *memPort) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *memPort) Close() error { p.once.Do(func() { close(p.closed) }); return nil }

func (p *memPort) Addr() net.Addr { return nodeAddr(p.addr) }

func pair(a, b string) [2]string {
	if a > b {
		a, b = b, a
	}
	return [2]string{a, b}
}

func (e memEnd) Dial(ctx context.Context, addr string) (net.Conn, error) {
	e.net.mu.Lock()
	p, cut := e.net.ports[addr], e.net.cut[pair(e.addr, addr)]
	e.net.mu.Unlock()
	if p == nil || cut {
		return nil, errors.New("no route")
	}
	select {
	case <-p.closed:
		return nil, errors.New("connection refused")
	default:
	}
	one, other := net.Pipe()
	a, b := net.Conn(memConn{one, e.net}), net.Conn(memConn{other, e.net})
	select {
	case p.conns <- b:
	case <-p.closed:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	e.net.mu.Lock()
	defer e.net.mu.Unlock()
	k := pair(e.addr, addr)
	if e.net.conns[k] == nil {
		e.net.conns[k] = map[net.Conn]struct{}{}
	}
	e.net.conns[k][a], e.net.conns[k][b] = struct{}{}, struct{}{}
	return a, nil
}

type memConn struct {
	net.Conn
	net *memNet
}

func (c memConn) Write(b []byte) (int, error) {
	c.net.mu.Lock()
	hush := c.net.hush
	c.net.mu.Unlock()
	if hush != nil {
		<-hush
	}
	return c.Conn.Write(b)
}

// silence holds up all that is sent while fn runs.
func (n *memNet) silence(fn func()) {
	hush := make(chan struct{})
	n.mu.Lock()
	n.hush = hush
	n.mu.Unlock()
	fn()
	n.mu.Lock()
	n.hush = nil
	n.mu.Unlock()
	close(hush)
}

// split cuts (or heals) the links between two nodes.
func (n *memNet) split(a, b string, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	k := pair(a, b)
	n.cut[k] = cut
	if cut {
		for c := range n.conns[k] {
			_ = c.Close()
		}
		delete(n.conns, k)
	}
}

// node is one member of a test cluster.
type node struct {
	t       *testing.T
	c       *testCluster
	id      uint32
	fs      *vfs.MemFS
	logs    *raft.InmemStore
	store   *store.DB
	machine *fsm.Machine
	mesh    *mesh.Mesh
	*Group
	running bool

	mu       sync.Mutex
	exits    []string
	troubles []string
	removals []string
	replaced []uint64
	leads    []bool
	wrapLog  func(raft.LogStore) raft.LogStore
}

type testCluster struct {
	t      *testing.T
	net    *memNet
	nodes  map[uint32]*node
	timing Timing
	adjust func(*Config)
	name   string // the log's; the message log is kept in the nodes' file systems, of which a crash takes what was not synced

	mu      sync.Mutex
	members []Member
	gone    map[uint32]bool
	groups  map[uint32]*Group
}

func testLogger() *slog.Logger {
	if os.Getenv("MUSTER_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
	}
	return slog.New(slog.NewTextHandler(io.Discard, nil))
}

// newCluster starts n nodes; the first is bootstrapped, the others are added by the leader.
func newCluster(t *testing.T, n int, timing Timing) *testCluster {
	return newClusterOf(t, ControlLog, n, timing)
}

func newClusterOf(t *testing.T, name string, n int, timing Timing) *testCluster {
	return newClusterWith(t, name, n, timing, func(*Config) {})
}

// newClusterWith has adjust change each node's configuration.
func newClusterWith(t *testing.T, name string, n int, timing Timing, adjust func(*Config)) *testCluster {
	c := &testCluster{t: t, name: name, adjust: adjust, net: newMemNet(), nodes: map[uint32]*node{}, timing: timing, gone: map[uint32]bool{}, groups: map[uint32]*Group{}}
	for i := 1; i <= n; i++ {
		c.add(uint32(i))
	}
	t.Cleanup(c.stop)
	c.settle(votersFor(n, DefaultVoters))
	return c
}

// add makes a new node and starts it.
func (c *testCluster) add(id uint32) *node {
	n := &node{t: c.t, c: c, id: id, fs: vfs.NewCrashableMem(), logs: raft.NewInmemStore()}
	c.nodes[id] = n
	c.mu.Lock()
	c.members = append(c.members, Member{ID: id, Name: fmt.Sprint("n", id)})
	c.mu.Unlock()
	if id == 1 {
		n.bootstrap()
	}
	n.start()
	return n
}

func (c *testCluster) remove(id uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone[id] = true
	var left []Member
	for _, m := range c.members {
		if m.ID != id {
			left = append(left, m)
		}
	}
	c.members = left
}

func (c *testCluster) table() []Member {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Member(nil), c.members...)
}

func (c *testCluster) state(id uint32) mesh.MemberState {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone[id] {
		return mesh.Removed
	}
	return mesh.Present
}

func (c *testCluster) stop() {
	for _, n := range c.nodes {
		n.stop()
	}
}

func (n *node) bootstrap() {
	if n.c.name == ControlLog {
		if err := bootstrapLog(quietLog(n.logs, n.logs), n.id); err != nil {
			n.t.Fatal(err)
		}
		return
	}
	j, err := openJournal(n.fs, "data/"+journalDir, testLogger(), nil)
	if err == nil {
		err = errors.Join(bootstrapLog(quietLog(j, j), n.id), j.Close())
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) addr() string { return fmt.Sprintf("n%d", n.id) }

func (n *node) open() error {
	var err error
	if n.store, err = store.Open("data/state", store.Options{FS: n.fs}); err != nil {
		return err
	}
	if n.machine, err = fsm.New(n.store, log.Control, kvModule()); err != nil {
		return err
	}
	n.mesh = mesh.New(mesh.Config{Identity: &pki.Identity{ClusterID: "test", NodeID: n.id}, Listen: n.addr(), Network: n.c.net.at(n.addr()),
		AddrOf: func(id uint32) (string, bool) { return fmt.Sprintf("n%d", id), true }, Member: n.c.state, Logger: testLogger(), Plain: true})
	if err = n.mesh.Start(); err != nil {
		return err
	}
	var logs raft.LogStore
	var votes raft.StableStore
	if n.c.name == ControlLog {
		logs, votes = n.logs, n.logs
	}
	if n.wrapLog != nil {
		logs = n.wrapLog(logs)
	}
	cfg := Config{Name: n.c.name, NodeID: n.id, FS: n.fs, Dir: "data", Store: n.store, Machine: n.machine, Mesh: n.mesh,
		Logger: testLogger().With("on", n.id), Version: "test", LogStore: logs, StableStore: votes, Members: n.c.table, Timing: n.c.timing,
		Exit:        func(s string) { n.note(&n.exits, s) },
		OnUnhealthy: func(s string) { n.note(&n.troubles, s) },
		OnRemoved:   func(s string) { n.note(&n.removals, s) },
		OnReplaced:  func(i uint64) { n.mu.Lock(); n.replaced = append(n.replaced, i); n.mu.Unlock() },
	}
	n.c.adjust(&cfg)
	n.Group, err = Open(cfg)
	return err
}

func (n *node) note(to *[]string, s string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	*to = append(*to, s)
}

func (n *node) noted(from *[]string) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]string(nil), *from...)
}

func (n *node) start() {
	n.t.Helper()
	if err := n.open(); err != nil {
		n.t.Fatalf("node %d: %v", n.id, err)
	}
	n.OnLeadership(func(is bool) { n.mu.Lock(); n.leads = append(n.leads, is); n.mu.Unlock() })
	n.running = true
	n.c.mu.Lock()
	n.c.groups[n.id] = n.Group
	n.c.mu.Unlock()
}

func (n *node) stop() {
	if !n.running {
		return
	}
	n.running = false
	_ = n.Group.Close()
	_ = n.mesh.Close()
	_ = n.store.Close()
}

// crash stops the node and takes back what it had not synced; the log store syncs everything.
func (n *node) crash() {
	n.t.Helper()
	clone := n.fs.CrashClone(vfs.CrashCloneCfg{})
	n.stop()
	n.fs = clone
}

// settle waits until there is a ready leader and as many voters.
func (c *testCluster) settle(voters int) *node {
	c.t.Helper()
	var lead *node
	c.until("leader and voters", 60*time.Second, func() bool {
		lead = c.leader()
		for _, n := range c.nodes { // all must know it: a configuration under way is not settled
			if lead != nil && n.running && (len(n.Status().Voters) != voters || n.Applied() < lead.raft.GetConfiguration().Index()) {
				lead = nil
			}
		}
		return lead != nil
	})
	return lead
}

func (c *testCluster) leader() *node {
	for _, n := range c.nodes {
		if n.running && n.IsLeader() {
			return n
		}
	}
	return nil
}

func (c *testCluster) follower() *node {
	for id := uint32(1); int(id) <= len(c.nodes); id++ {
		if n := c.nodes[id]; n != nil && n.running && !n.IsLeader() {
			return n
		}
	}
	c.t.Fatal("no follower")
	return nil
}

func (c *testCluster) until(what string, most time.Duration, ok func() bool) {
	c.t.Helper()
	for end := time.Now().Add(most); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			for id, n := range c.nodes {
				st := n.Status()
				c.t.Logf("node %d: running %v ready %v %+v", id, n.running, n.ready.Load(), st)
			}
			c.t.Fatalf("not in %v: %s", most, what)
		}
	}
}

func (n *node) must(k, v string) uint64 {
	n.t.Helper()
	res, err := n.Propose(n.t.Context(), put(k, v))
	if err != nil {
		n.t.Fatalf("node %d: Propose(%s): %v", n.id, k, err)
	}
	return res[0].Index
}

func (n *node) get(k string) string {
	v, _ := n.machine.Get(kv, []byte(k))
	return string(v)
}

// isolate cuts (or heals) a node's links to all others.
func (c *testCluster) isolate(id uint32, cut bool) {
	for other := range c.nodes {
		if other != id {
			c.net.split(fmt.Sprintf("n%d", id), fmt.Sprintf("n%d", other), cut)
		}
	}
}

// equal waits until all running nodes have the same digests.
func (c *testCluster) equal(lead *node) {
	c.t.Helper()
	c.until("equal digests", 30*time.Second, func() bool {
		r, err := lead.CompareDigests(c.t.Context())
		return err == nil && r.Equal && len(r.Tables) > 0
	})
}

func bubble(t *testing.T, fn func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, fn)
}

var errNoSpace error = syscall.ENOSPC
