package router

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"muster/fsm"
	"muster/fsm/cluster"
	"muster/fsm/config"
	"muster/fsm/fsmtest"
	"muster/fsm/user"
	"muster/internal/fault"
	"muster/internal/jid"
	"muster/internal/simnet"
	"muster/log"
	"muster/router/hot"
	"muster/router/stanza"
)

const testDomain = "example.com"

// rig is a virtual cluster of routers: one log that is applied on every node
// that is not cut off from it, a simulated network, and no replication.
type rig struct {
	t       testing.TB
	net     *simnet.Net
	mu      sync.Mutex // one record at a time
	records [][]byte
	nodes   map[uint32]*testNode
	fans    map[jid.JID][]jid.JID // who watches whose presence
}

// testNode is one node of a rig.
type testNode struct {
	rig     *rig
	id      uint32
	mu      sync.Mutex // one apply at a time
	machine *fsm.Machine
	live    *config.Live
	fs      *vfs.MemFS
	db      *pebble.DB
	hot     *hot.Store
	r       *Router
	ln      net.Listener
	deaf    atomic.Bool // does not get new records
	dead    atomic.Bool
	inc     uint64
	fenced  int
	extra   []Feature
}

// simulate runs fn in a bubble with a cluster of n nodes.
func simulate(t *testing.T, n int, fn func(g *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, n)
		defer g.close()
		fn(g)
	})
}

func newRig(t testing.TB, n int, features ...Feature) *rig {
	t.Helper()
	g := &rig{t: t, net: simnet.New(1), nodes: map[uint32]*testNode{}, fans: map[jid.JID][]jid.JID{}}
	g.addNode(1, features...)
	g.must(cluster.InitEntry(cluster.Init{ID: "c1", Name: "test", CACert: []byte("x"), Node: cluster.Member{Name: "n1", ClusterAddr: "n1:1", NewestVersion: log.NewestVersion}}))
	for id := uint32(2); id <= uint32(n); id++ {
		g.addNode(id, features...)
		token := cluster.HashToken([]byte{byte(id)})
		g.must(cluster.TokenEntry(token, time.Now().Add(time.Hour)))
		name := fmt.Sprintf("n%d", id)
		g.must(cluster.JoinEntry(token, cluster.Member{Name: name, ClusterAddr: name + ":1", NewestVersion: log.NewestVersion}))
	}
	g.must(config.AddDomainEntry(testDomain))
	for id := uint32(1); id <= uint32(n); id++ {
		g.start(id)
	}
	return g
}

func (g *rig) addNode(id uint32, features ...Feature) *testNode {
	n := &testNode{rig: g, id: id, extra: features, fs: vfs.NewMem()}
	g.nodes[id] = n
	n.newMachine()
	return n
}

func (n *testNode) newMachine() {
	m, err := fsm.New(fsmtest.NewStore(), log.Control, cluster.Module(), config.Module(), user.Module())
	if err != nil {
		n.rig.t.Fatal(err)
	}
	n.machine = m
	m.OnApply(func(index uint64, changes []fsm.Change) {
		if n.live != nil {
			n.live.Update(changes)
		}
		if n.r != nil && !n.dead.Load() {
			n.r.Changes(index, changes)
		}
	})
	n.catchUp()
	n.live = config.NewLive(m, n.id)
}

// catchUp applies what the log has.
func (n *testNode) catchUp() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i, record := range n.rig.records {
		if index := uint64(i + 1); index > n.machine.Applied() {
			n.machine.Apply(index, record)
		}
	}
}

// catchUpUnheard lets a deaf node catch up as by a snapshot: its router hears of the outcome, and of no single entry.
func (n *testNode) catchUpUnheard() {
	n.deaf.Store(false)
	n.dead.Store(true)
	n.catchUp()
	n.dead.Store(false)
	n.r.Reload()
}

// apply writes entries as one record and applies it on every node that hears.
func (g *rig) apply(entries ...*log.Entry) []fsm.Result {
	for _, e := range entries {
		if e.Time.IsZero() {
			e.Time = time.Now()
		}
	}
	record, err := log.Encode(entries)
	if err != nil {
		g.t.Fatal(err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.records = append(g.records, record)
	var results []fsm.Result
	for _, n := range g.nodes {
		if n.deaf.Load() || n.dead.Load() {
			continue
		}
		n.mu.Lock()
		results = n.machine.Apply(uint64(len(g.records)), record)
		n.mu.Unlock()
	}
	return results
}

func (g *rig) must(entries ...*log.Entry) fsm.Result {
	g.t.Helper()
	var last fsm.Result
	for _, res := range g.apply(entries...) {
		if last = res; res.Err != nil {
			g.t.Fatal(res.Err)
		}
	}
	return last
}

// start starts a node's process: a new incarnation.
func (g *rig) start(id uint32) *testNode {
	g.t.Helper()
	n := g.nodes[id]
	if n.dead.Load() {
		n.dead.Store(false)
		n.r = nil
		n.newMachine()
	}
	n.inc = cluster.IncarnationResult(g.must(cluster.StartEntry(id, "test", log.NewestVersion)).Value)
	var err error
	if n.db, err = pebble.Open("hot", &pebble.Options{FS: n.fs, Logger: quietLogger{}}); err != nil {
		g.t.Fatal(err)
	}
	if n.hot, err = hot.Open(hot.Options{DB: n.db, Self: id}); err != nil {
		g.t.Fatal(err)
	}
	host := fmt.Sprintf("n%d", id)
	if n.ln, err = g.net.Host(host).Listen(host + ":1"); err != nil {
		g.t.Fatal(err)
	}
	n.r, err = New(Options{
		NodeID: id, State: n.machine, Live: n.live, Proposer: n, Mesh: n, Hot: n.hot,
		Features: append([]Feature{&watching{rig: g}}, n.extra...), Incarnation: func() uint64 { return n.inc },
		OnFenced: func() { n.fenced++ }, Logger: testLogger(id),
	})
	if err != nil {
		g.t.Fatal(err)
	}
	if err := n.r.Start(); err != nil {
		g.t.Fatal(err)
	}
	return n
}

func testLogger(id uint32) *slog.Logger {
	level := slog.Level(100)
	if os.Getenv("ROUTER_TEST_LOG") != "" {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})).With("node", id)
}

// kill ends a node's process without a word.
func (g *rig) kill(id uint32) {
	n := g.nodes[id]
	n.dead.Store(true)
	g.net.Reset(fmt.Sprintf("n%d", id))
	n.halt()
}

// halt stops what a dead process would not run any more.
func (n *testNode) halt() {
	n.r.stopping.Store(true)
	n.r.cancel()
	n.r.feed.end()
	_ = n.ln.Close()
	n.r.links.Stop()
	n.r.wg.Wait()
	n.r.graceMu.Lock()
	if n.r.grace != nil {
		n.r.grace.Stop()
	}
	n.r.graceMu.Unlock()
	n.hot.Close()
	n.db.Close()
}

// down writes that a node's incarnation is down.
func (g *rig) down(id uint32) {
	g.t.Helper()
	g.must(cluster.DownEntry(id, g.nodes[id].inc))
}

func (g *rig) close() {
	settleBubble()
	for _, n := range g.nodes {
		if !n.dead.Load() && n.r != nil {
			n.dead.Store(true)
			n.halt()
		}
	}
}

// settleBubble lets actors that still run finish before the stores close.
func settleBubble() { synctest.Wait() }

// Dial implements Mesh.
func (n *testNode) Dial(ctx context.Context, node uint32) (net.Conn, error) {
	return n.rig.net.Host(fmt.Sprintf("n%d", n.id)).Dial(ctx, fmt.Sprintf("n%d:1", node))
}

// Accept implements Mesh.
func (n *testNode) Accept() (net.Conn, uint32, error) {
	c, err := n.ln.Accept()
	if err != nil {
		return nil, 0, err
	}
	id, _ := strconv.Atoi(strings.TrimPrefix(simnet.HostOf(c.RemoteAddr()), "n"))
	return c, uint32(id), nil
}

// Propose implements Proposer.
func (n *testNode) Propose(ctx context.Context, entries ...*log.Entry) ([]fsm.Result, error) {
	if n.deaf.Load() {
		return nil, fault.New(fault.NoQuorum, "log.propose", "", "no quorum")
	}
	time.Sleep(time.Millisecond) // a round trip of the log
	return n.rig.apply(entries...), nil
}

// users creates users with their home on a node.
func (g *rig) users(home uint32, names ...string) {
	g.t.Helper()
	for _, name := range names {
		g.must(user.CreateEntry(user.User{Name: name + "@" + testDomain, IM: true, Presence: true}))
		g.must(cluster.AssignEntry([]string{name + "@" + testDomain}, home))
	}
}

func addr(s string) jid.JID {
	local, resource, _ := strings.Cut(s, "/")
	j, err := jid.New(local, testDomain, resource)
	if err != nil {
		panic(err)
	}
	return j
}

// client is a session's sink that records.
type client struct {
	g    *rig
	s    *Session
	name string

	mu    sync.Mutex
	got   []string
	limit int // stanzas that fit; 0: any number
	over  stanza.StreamCondition
	cut   int // how often it was disconnected; it is back at once
}

// Deliver implements Sink.
func (c *client) Deliver(p *stanza.Packet) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.limit > 0 && len(c.got) >= c.limit {
		return fault.New(fault.Overloaded, "client.deliver", c.name, "full")
	}
	c.got = append(c.got, show(p))
	return nil
}

// show renders a stanza shortly: kind, type, sender, id or body.
func show(p *stanza.Packet) string {
	typ := p.Type
	if typ == "" {
		typ = "-"
	}
	from := p.From.Local
	if p.From.Resource != "" {
		from += "/" + p.From.Resource
	}
	if p.From.Local == "" {
		from = p.From.Domain
	}
	s := p.Kind.String() + " " + typ + " " + from + " " + p.ID
	if c, ok := p.Child(stanza.NSClient, "error"); ok {
		s += " " + p.Element(c).Children[0].Elem.Local
	}
	return s
}

// End implements Sink.
func (c *client) End(cond stanza.StreamCondition, _ string) {
	c.mu.Lock()
	c.over = cond
	c.mu.Unlock()
	if c.s != nil {
		go c.s.End(false, nil)
	}
}

// Disconnect implements Disconnecter.
func (c *client) Disconnect() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut++
}

func (c *client) disconnected() int {
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cut
}

func (c *client) ended() stanza.StreamCondition {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.over
}

// take returns what the client got since the last take.
func (c *client) take() []string {
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	got := c.got
	c.got = nil
	return got
}

// want fails the test unless the client got exactly this since the last take.
func (c *client) want(stanzas ...string) {
	c.g.t.Helper()
	got := c.take()
	for i := 0; i < len(got) && i < len(stanzas) && len(got)+len(stanzas) > 20; i++ { // of long lists show where they part
		if got[i] != stanzas[i] || i+1 == min(len(got), len(stanzas)) {
			c.g.t.Logf("%d and %d stanzas, the same up to %d", len(got), len(stanzas), i)
			got, stanzas = got[i:min(len(got), i+5)], stanzas[i:min(len(stanzas), i+5)]
			break
		}
	}
	if strings.Join(got, "\n") != strings.Join(stanzas, "\n") {
		c.g.t.Errorf("%s got\n  %s\nwant\n  %s", c.name, strings.Join(got, "\n  "), strings.Join(stanzas, "\n  "))
	}
}

// login binds a session on a node.
func (g *rig) login(node uint32, name string) *client {
	g.t.Helper()
	c := &client{g: g, name: name}
	j := addr(name)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	s, err := g.nodes[node].r.Bind(ctx, BindRequest{User: j.Bare(), Resource: j.Resource, Sink: c, Transport: "c2s", Remote: "test"})
	if err != nil {
		g.t.Fatalf("%s on node %d: %v", name, node, err)
	}
	c.s = s
	return c
}

// online binds a session and makes it available.
func (g *rig) online(node uint32, name string) *client {
	g.t.Helper()
	c := g.login(node, name)
	c.send(presence("", 0))
	synctest.Wait()
	return c
}

func (c *client) send(p *stanza.Packet) {
	c.g.t.Helper()
	p.From = c.s.JID()
	if err := c.s.Receive(context.Background(), p); err != nil {
		c.g.t.Errorf("%s: receive: %v", c.name, err)
	}
}

// message sends a chat message with an id.
func (c *client) message(to, id string) {
	c.g.t.Helper()
	c.send(message(stanza.TypeChat, to, id))
}

func message(typ, to, id string) *stanza.Packet {
	return stanza.WithInner(stanza.KindMessage, typ, id, jid.JID{}, addr(to), stanza.NewBuilder("").TextElement("body", "", "text "+id).Bytes())
}

func presence(typ string, priority int) *stanza.Packet {
	var inner []byte
	if priority != 0 {
		inner = stanza.NewBuilder("").TextElement("priority", "", strconv.Itoa(priority)).Bytes()
	}
	return stanza.WithInner(stanza.KindPresence, typ, "", jid.JID{}, jid.JID{}, inner)
}

func request(typ, to, id, space string) *stanza.Packet {
	var j jid.JID
	switch {
	case to == testDomain:
		j = jid.JID{Domain: testDomain}
	case to != "":
		j = addr(to)
	}
	return stanza.WithInner(stanza.KindIQ, typ, id, jid.JID{}, j, stanza.NewBuilder("").Leaf("query", space).Bytes())
}

// befriend makes the first user's presence visible to the second.
func (g *rig) befriend(watched, watcher string) {
	g.fans[addr(watched)] = append(g.fans[addr(watched)], addr(watcher))
}

// watching is a small presence feature: rows reach the sessions of a user's watchers.
type watching struct{ rig *rig }

// Name implements Feature.
func (w *watching) Name() string { return "watching" }

// Setup implements Feature.
func (w *watching) Setup(reg *Registry) error {
	reg.OnRow(func(c hot.Change) {
		for _, fan := range w.rig.fans[c.User] {
			reg.Router().Active(fan, func(ctx *Ctx) {
				p := stanza.WithInner(stanza.KindPresence, stanza.TypeUnavailable, "", c.User.WithResource(c.Resource), fan, nil)
				if c.After != nil {
					p.Type = ""
				}
				for _, at := range ctx.Sessions() {
					if at.Available() {
						ctx.Deliver(at, p)
					}
				}
			})
		}
	})
	return nil
}

type quietLogger struct{}

// Infof implements pebble.Logger.
func (quietLogger) Infof(string, ...any) {}

// Errorf implements pebble.Logger.
func (quietLogger) Errorf(string, ...any) {}

// Fatalf implements pebble.Logger.
func (quietLogger) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
