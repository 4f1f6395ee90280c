package replication

import (
	"context"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"muster/replication/mesh"
)

// serverID is a node's name in Raft, which is also its address there: the mesh
// knows where nodes are, so a changed address needs no Raft change.
func serverID(node uint32) raft.ServerID {
	return raft.ServerID(strconv.FormatUint(uint64(node), 10))
}

// nodeOf undoes serverID; 0 for anything else.
func nodeOf[S ~string](id S) uint32 {
	n, err := strconv.ParseUint(string(id), 10, 32)
	if err != nil {
		return 0
	}
	return uint32(n)
}

// heardTransport notes when each follower last took what this node sent it as the leader.
//
// It also spares the followers of an idle log: after each commit timeout, which
// is short, the library (v1.7.3) tells them the commit index, whether they have
// it or not. What a follower took a moment ago word for word it is not sent
// again; its last answer stands. Heartbeats, and all that is new, do go out.
//
// And it waits for a follower that cannot be reached: the library tries again
// after a time that doubles up to ten seconds, with no event that would end it. Its
// heartbeats go out at least twice in a heartbeat timeout, and one that arrives ends the wait.
type heardTransport struct {
	*raft.NetworkTransport
	opened time.Time
	raft   *atomic.Pointer[raft.Raft] // nil until it runs

	mu    sync.Mutex
	heard map[uint32]time.Duration // since opened, when the request was sent that the follower took
	beats map[uint32]chan struct{} // closed when the next heartbeat arrives there
	take  func(raft.RPC)           // the library's handler of heartbeats
	told  map[uint32]told
}

// told is the last request without entries that a follower took, and its answer.
type told struct {
	sent   time.Duration // since opened
	what   position
	answer raft.AppendEntriesResponse
}

// position is all that a request without entries says.
type position struct{ term, last, lastTerm, commit uint64 }

// retell is after how long a follower is told the same again. The leader's lease, which
// is longer, counts from what the follower is taken to have answered meanwhile.
const retell = 100 * time.Millisecond

func newHeardTransport(opened time.Time, t *raft.NetworkTransport) *heardTransport {
	return &heardTransport{NetworkTransport: t, opened: opened, raft: &atomic.Pointer[raft.Raft]{},
		heard: map[uint32]time.Duration{}, beats: map[uint32]chan struct{}{}, told: map[uint32]told{}}
}

// SetHeartbeatHandler implements raft.Transport.
func (t *heardTransport) SetHeartbeatHandler(take func(raft.RPC)) {
	t.mu.Lock()
	t.take = take
	t.mu.Unlock()
	t.NetworkTransport.SetHeartbeatHandler(take)
}

// AppendEntries implements raft.Transport; heartbeats come here too.
func (t *heardTransport) AppendEntries(id raft.ServerID, target raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	node, sent := nodeOf(id), time.Since(t.opened)
	what := position{req.Term, req.PrevLogEntry, req.PrevLogTerm, req.LeaderCommitIndex}
	heartbeat := len(req.Entries) == 0 && what.last == 0 // it names no entry
	idle := len(req.Entries) == 0 && !heartbeat
	if idle && t.knows(node, what, sent, resp) {
		return nil
	}
	err := t.NetworkTransport.AppendEntries(id, target, req, resp)
	if err != nil && !heartbeat && t.awaitBeat(id, req.Term) {
		sent = time.Since(t.opened)
		err = t.NetworkTransport.AppendEntries(id, target, req, resp)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if heartbeat && err == nil {
		if beat := t.beats[node]; beat != nil {
			close(beat)
			delete(t.beats, node)
		}
	}
	switch {
	case err != nil || !resp.Success:
		delete(t.told, node)
		return err
	case idle:
		t.told[node] = told{sent, what, *resp}
	}
	t.heard[node] = sent
	return nil
}

// beatPoll is how often a wait for a heartbeat looks whether there is still cause for it.
const beatPoll = 100 * time.Millisecond

// awaitBeat waits until a heartbeat arrives at a follower; false if this node does not lead in that term any more, or the follower is no member.
func (t *heardTransport) awaitBeat(id raft.ServerID, term uint64) bool {
	node := nodeOf(id)
	t.mu.Lock()
	beat := t.beats[node]
	if beat == nil {
		beat = make(chan struct{})
		t.beats[node] = beat
	}
	t.mu.Unlock()
	poll := time.NewTicker(beatPoll)
	defer poll.Stop()
	for r := t.raft.Load(); r != nil && r.State() == raft.Leader && r.CurrentTerm() == term; {
		if !slices.ContainsFunc(r.GetConfiguration().Configuration().Servers, func(s raft.Server) bool { return s.ID == id }) {
			return false
		}
		select {
		case <-beat:
			return true
		case <-poll.C:
		}
	}
	return false
}

// knows reports whether a follower took the same a moment ago, and gives its answer of then.
func (t *heardTransport) knows(node uint32, what position, now time.Duration, resp *raft.AppendEntriesResponse) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	before, ok := t.told[node]
	if !ok || before.what != what || now-before.sent >= retell {
		return false
	}
	*resp = before.answer
	return true
}

// majority reports whether self and others of the voters, together more than half, took a request sent since then.
func (t *heardTransport) majority(self uint32, voters []uint32, since time.Duration) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for _, v := range voters {
		if at, ok := t.heard[v]; v == self || ok && at >= since {
			n++
		}
	}
	return 2*n > len(voters)
}

// streamLayer carries Raft's connections over the mesh.
type streamLayer struct {
	mesh   *mesh.Mesh
	stream string
	node   uint32
	ln     *mesh.Listener

	mu    sync.Mutex
	conns map[*layerConn]struct{} // both directions; closed with the layer
	gone  func(error)             // hears what went wrong when dialing
	shut  bool
}

type layerConn struct {
	net.Conn
	layer *streamLayer
}

// Close implements net.Conn.
func (c *layerConn) Close() error {
	c.layer.mu.Lock()
	delete(c.layer.conns, c)
	c.layer.mu.Unlock()
	return c.Conn.Close()
}

func newStreamLayer(m *mesh.Mesh, stream string, node uint32, gone func(error)) *streamLayer {
	return &streamLayer{mesh: m, stream: stream, node: node, ln: m.Listen(stream), conns: map[*layerConn]struct{}{}, gone: gone}
}

func (s *streamLayer) keep(c net.Conn) (net.Conn, error) {
	lc := &layerConn{c, s}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shut {
		_ = c.Close()
		return nil, net.ErrClosed
	}
	s.conns[lc] = struct{}{}
	return lc, nil
}

// Accept implements net.Listener.
func (s *streamLayer) Accept() (net.Conn, error) {
	c, _, err := s.ln.Accept()
	if err != nil {
		return nil, err
	}
	return s.keep(c)
}

// Dial implements raft.StreamLayer.
func (s *streamLayer) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	c, err := s.mesh.Dial(ctx, nodeOf(to), s.stream)
	if err != nil {
		s.gone(err)
		return nil, err
	}
	return s.keep(c)
}

// Close implements net.Listener; it ends all connections too.
func (s *streamLayer) Close() error {
	s.mu.Lock()
	s.shut = true
	var open []*layerConn
	for c := range s.conns {
		open = append(open, c)
	}
	s.mu.Unlock()
	for _, c := range open {
		_ = c.Close()
	}
	return s.ln.Close()
}

// Addr implements net.Listener: the node's id.
func (s *streamLayer) Addr() net.Addr { return nodeAddr(serverID(s.node)) }

type nodeAddr string

// Network implements net.Addr.
func (nodeAddr) Network() string { return "muster" }

// String implements net.Addr.
func (a nodeAddr) String() string { return string(a) }
