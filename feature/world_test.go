package feature_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"muster/feature/account"
	"muster/feature/archive"
	"muster/feature/blocking"
	"muster/feature/carbons"
	"muster/feature/commands"
	"muster/feature/disco"
	"muster/feature/entitytime"
	"muster/feature/last"
	"muster/feature/message"
	"muster/feature/offline"
	"muster/feature/ping"
	"muster/feature/presence"
	"muster/feature/private"
	"muster/feature/register"
	"muster/feature/roster"
	"muster/feature/vcard"
	"muster/feature/version"
	"muster/fsm"
	"muster/fsm/cluster"
	"muster/fsm/config"
	"muster/fsm/fsmtest"
	"muster/fsm/user"
	"muster/internal/jid"
	"muster/internal/modules"
	"muster/internal/simnet"
	"muster/log"
	"muster/router"
	"muster/router/hot"
	"muster/router/stanza"
)

const domain = "example.com"

// allFeatures is what the server runs with.
func allFeatures() []router.Feature {
	cmds, waiting := commands.New(), offline.New()
	return []router.Feature{
		blocking.New(), roster.New(), presence.New(), message.New(archive.Keeps), carbons.New(), private.New(), vcard.New(), disco.New(cmds).Account(waiting), cmds, waiting,
		ping.New(), version.New("1.2.3"), entitytime.New(), last.New(), register.New(), account.New(), archive.New(),
	}
}

// world is a cluster of routers with all features, over one log that is
// applied at once on every node that lives, and clients without a wire.
type world struct {
	*node // the first one
	t     testing.TB
	net   *simnet.Net
	nodes map[uint32]*node

	commit  time.Duration // that an entry takes to be committed
	mu      sync.Mutex    // of the log
	records [][]byte
	kept    [][]byte // of the message log
	clients map[string]*client
}

// node is one node of a world.
type node struct {
	w           *world
	id          uint32
	incarnation uint64
	router      *router.Router
	machine     *fsm.Machine
	messages    *fsm.Machine
	hot         *hot.Store
	db          *pebble.DB
	listener    net.Listener
	dead        bool
}

// newWorld builds a cluster of one node.
func newWorld(t testing.TB) *world { return newCluster(t, 1) }

// newCluster builds a cluster of n nodes. Call it in a synctest bubble if time is to be virtual, and close it there.
func newCluster(t testing.TB, n uint32) *world {
	w := &world{t: t, net: simnet.New(1), nodes: map[uint32]*node{}, clients: map[string]*client{}}
	for id := uint32(1); id <= n; id++ {
		w.nodes[id] = w.newNode(id)
	}
	w.node = w.nodes[1]
	w.must(cluster.InitEntry(cluster.Init{ID: "c", Name: "c", CACert: []byte("x"), Node: member(1)}))
	for id := uint32(2); id <= n; id++ {
		token := cluster.HashToken([]byte{byte(id)})
		w.must(cluster.TokenEntry(token, time.Now().Add(time.Hour)))
		w.must(cluster.JoinEntry(token, member(id)))
	}
	for id := uint32(1); id <= n; id++ {
		w.nodes[id].incarnation = cluster.IncarnationResult(w.must(cluster.StartEntry(id, "1.2.3", 1)).Value)
	}
	w.must(config.AddDomainEntry(domain))
	for id := uint32(1); id <= n; id++ {
		if err := w.nodes[id].router.Start(); err != nil {
			t.Fatal(err)
		}
		w.nodes[id].router.LeaderContact(0)
	}
	return w
}

func member(id uint32) cluster.Member {
	return cluster.Member{Name: host(id), ClusterAddr: host(id) + ":1", NewestVersion: 1}
}

func host(id uint32) string { return fmt.Sprint("n", id) }

func (w *world) newNode(id uint32) *node {
	t := w.t
	t.Helper()
	n := &node{w: w, id: id, machine: fsmtest.New(t, modules.Control()...).M, messages: messageMachine(t)}
	n.messages.OnApply(func(index uint64, changes []fsm.Change) { n.router.MessageChanges(index, changes) })
	live := config.NewLive(n.machine, id)
	n.machine.OnApply(func(index uint64, changes []fsm.Change) {
		live.Update(changes)
		n.router.Changes(index, changes)
	})
	var err error
	if n.db, err = pebble.Open("", &pebble.Options{FS: vfs.NewMem(), Logger: quiet{}}); err != nil {
		t.Fatal(err)
	}
	if n.hot, err = hot.Open(hot.Options{DB: n.db, Self: id}); err != nil {
		t.Fatal(err)
	}
	if n.listener, err = w.net.Host(host(id)).Listen(host(id) + ":1"); err != nil {
		t.Fatal(err)
	}
	n.router, err = router.New(router.Options{
		NodeID: id, State: n.machine, Live: live, Proposer: w, Mesh: n, Hot: n.hot, Features: allFeatures(),
		Messages: n.messages, Keeper: keeper{w},
		Incarnation: func() uint64 { return n.incarnation }, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Dial implements router.Mesh.
func (n *node) Dial(ctx context.Context, to uint32) (net.Conn, error) {
	return n.w.net.Host(host(n.id)).Dial(ctx, host(to)+":1")
}

// Accept implements router.Mesh.
func (n *node) Accept() (net.Conn, uint32, error) {
	c, err := n.listener.Accept()
	if err != nil {
		return nil, 0, err
	}
	id, err := strconv.Atoi(strings.TrimPrefix(simnet.HostOf(c.RemoteAddr()), "n"))
	return c, uint32(id), err
}

// die cuts a node off for ever and ends it.
func (w *world) die(id uint32) {
	n := w.nodes[id]
	for other := range w.nodes {
		if other != id {
			w.net.Cut(host(id), host(other))
		}
	}
	w.net.Reset(host(id))
	w.mu.Lock()
	n.dead = true
	w.mu.Unlock()
	n.close()
}

// down tells the others that a node that died is down.
func (w *world) down(id uint32) { w.must(cluster.DownEntry(id, w.nodes[id].incarnation)) }

func (n *node) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = n.router.Stop(ctx) // its clients do not leave in time
	_ = n.listener.Close()
	if err := n.db.Close(); err != nil {
		n.w.t.Error(err)
	}
}

func (w *world) close() {
	for _, n := range w.nodes {
		if !n.dead {
			n.close()
		}
	}
}

type quiet struct{}

func (quiet) Infof(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}
func (quiet) Fatalf(string, ...any) {}

// Propose implements router.Proposer: the entries are one record, applied at once wherever a node lives.
func (w *world) Propose(_ context.Context, entries ...*log.Entry) ([]fsm.Result, error) {
	record, err := log.Encode(entries)
	if err != nil {
		return nil, err
	}
	time.Sleep(w.commit)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.records = append(w.records, record)
	var results []fsm.Result
	for id := uint32(1); id <= uint32(len(w.nodes)); id++ {
		if n := w.nodes[id]; !n.dead {
			results = n.machine.Apply(uint64(len(w.records)), record)
		}
	}
	return results, nil
}

func messageMachine(t testing.TB) *fsm.Machine {
	m, err := fsm.New(fsmtest.NewStore(), log.Message, modules.Message()...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// keeper is a world's message log.
type keeper struct{ w *world }

// Propose implements router.Proposer as the world does for the control log.
func (k keeper) Propose(_ context.Context, entries ...*log.Entry) ([]fsm.Result, error) {
	w := k.w
	for _, e := range entries {
		if e.Time.IsZero() {
			e.Time = time.Now()
		}
	}
	record, err := log.Encode(entries)
	if err != nil {
		return nil, err
	}
	time.Sleep(w.commit)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.kept = append(w.kept, record)
	var results []fsm.Result
	for id := uint32(1); id <= uint32(len(w.nodes)); id++ {
		if n := w.nodes[id]; !n.dead {
			results = n.messages.Apply(uint64(len(w.kept)), record)
		}
	}
	return results, nil
}

func (w *world) must(e *log.Entry) fsm.Result {
	w.t.Helper()
	e.Time = time.Now()
	res, err := w.Propose(context.Background(), e)
	if err != nil {
		w.t.Fatal(err)
	}
	if res[0].Err != nil {
		w.t.Fatalf("%v: %v", e.Kind, res[0].Err)
	}
	return res[0]
}

// settle waits until nothing moves any more; several nodes need virtual milliseconds for that.
func (w *world) settle() {
	if len(w.nodes) > 1 {
		time.Sleep(200 * time.Millisecond)
	}
	synctest.Wait()
}

// addUser creates name@example.com.
func (w *world) addUser(name string, admin bool) {
	w.must(user.CreateEntry(user.User{Name: name + "@" + domain, IM: true, Presence: true, Admin: admin}))
}

// client is one session; it keeps what it got.
type client struct {
	w       *world
	session *router.Session
	mu      sync.Mutex
	got     []*stanza.Packet
	seen    []*stanza.Packet // also what was taken already
	ended   string           // condition and text of the stream error
}

// Deliver implements router.Sink.
func (c *client) Deliver(p *stanza.Packet) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.got, c.seen = append(c.got, p), append(c.seen, p)
	return nil
}

// End implements router.Sink.
func (c *client) End(cond stanza.StreamCondition, text string) {
	c.mu.Lock()
	c.ended = string(cond) + " " + text
	c.mu.Unlock()
	go c.session.End(false, nil)
}

// login binds a session on the first node: "alice/phone".
func (w *world) login(name string) *client { return w.loginAt(1, name) }

func (w *world) loginAt(id uint32, name string, wishes ...router.Wish) *client {
	w.t.Helper()
	local, resource, _ := strings.Cut(name, "/")
	c := &client{w: w}
	s, err := w.nodes[id].router.Bind(context.Background(), router.BindRequest{
		User: jid.MustParse(local + "@" + domain), Resource: resource, Sink: c, Transport: "test", Remote: "127.0.0.1", Wishes: wishes,
	})
	if err != nil {
		w.t.Fatalf("login %s: %v", name, err)
	}
	c.session = s
	w.clients[name] = c
	return c
}

// send hands in a stanza as an edge would.
func (c *client) send(xml string) {
	c.w.t.Helper()
	p, err := stanza.ParsePacket([]byte(xml))
	if err != nil {
		c.w.t.Fatalf("%v in %s", err, xml)
	}
	p.From = c.session.JID()
	if e := stanza.ValidateClient(p); e != nil {
		c.w.t.Fatalf("%v in %s", e, xml)
	}
	p = stanza.StripForged(p, c.w.router.IsLocalDomain)
	if err := c.session.Receive(context.Background(), p); err != nil {
		c.w.t.Fatalf("%v for %s", err, xml)
	}
	c.w.settle()
}

// take removes what the client got so far.
func (c *client) take() []*stanza.Packet {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.got
	c.got = nil
	return all
}
