package link

import (
	"context"
	"log/slog"
	"net"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"muster/internal/fault"
)

// Mesh carries the links: streams between authenticated nodes.
type Mesh interface {
	Dial(ctx context.Context, node uint32) (net.Conn, error)
	Accept() (net.Conn, uint32, error)
}

// Manager keeps a link to each peer.
type Manager struct {
	self    uint32
	mesh    Mesh
	handler Handler
	logger  *slog.Logger
	started time.Time // the zero of its clock, which no change of the wall clock moves
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	mu    sync.RWMutex
	links map[uint32]*Link

	counters struct{ sent, received atomic.Uint64 }
}

// New returns a manager without peers. mesh may be nil: then there never are any.
func New(self uint32, mesh Mesh, handler Handler, logger *slog.Logger) *Manager {
	m := &Manager{self: self, mesh: mesh, handler: handler, logger: logger, started: time.Now(), links: map[uint32]*Link{}}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	return m
}

// now returns the time since the manager was made, in nanoseconds.
func (m *Manager) now() int64 { return int64(time.Since(m.started)) }

// Expect begins a peer's silence anew: it has just started, and is given time to connect.
func (m *Manager) Expect(peer uint32) {
	if l := m.link(peer); l != nil {
		l.heard.Store(m.now())
	}
}

// Start accepts links from now on.
func (m *Manager) Start() {
	if m.mesh != nil {
		go m.accepting()
	}
}

// Stop closes all links. What is queued is not handed back.
func (m *Manager) Stop() {
	m.cancel()
	m.mu.Lock()
	links := m.links
	m.links = map[uint32]*Link{}
	m.mu.Unlock()
	for _, l := range links {
		l.end()
	}
	m.wg.Wait()
}

// SetPeers makes links to exactly these nodes. The link to a node that is no longer among them is reset and ended.
func (m *Manager) SetPeers(peers []uint32) {
	if m.mesh == nil {
		return
	}
	wanted := map[uint32]bool{}
	var ended []*Link
	m.mu.Lock()
	for _, p := range peers {
		wanted[p] = p != m.self
		if p != m.self && m.links[p] == nil && m.ctx.Err() == nil {
			l := newLink(m, p)
			m.links[p] = l
			if m.self < p {
				m.wg.Go(l.dialing)
			}
		}
	}
	for p, l := range m.links {
		if !wanted[p] {
			delete(m.links, p)
			ended = append(ended, l)
		}
	}
	m.mu.Unlock()
	for _, l := range ended {
		l.end()
		l.reset()
	}
}

func (l *Link) end() {
	close(l.done)
	l.mu.Lock()
	if l.conn != nil {
		_ = l.conn.Close()
	}
	l.generation++
	l.room.Broadcast()
	l.mu.Unlock()
}

func (m *Manager) accepting() {
	for {
		conn, peer, err := m.mesh.Accept()
		if err != nil {
			if m.ctx.Err() == nil {
				m.logger.Error("link_accept_ended", "error", err)
			}
			return
		}
		l := m.link(peer)
		if l == nil || peer > m.self || m.ctx.Err() != nil {
			_ = conn.Close() // not known here yet, or not its turn to dial: it tries again
			continue
		}
		go func() {
			m.logger.Debug("link_down", "peer", peer, "error", l.use(conn))
		}()
	}
}

func (m *Manager) link(peer uint32) *Link {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.links[peer]
}

// Send queues a frame for a peer; payload must never change afterwards. An
// urgent frame is taken although the queue is at its soft bound: it belongs to
// an exchange that must not lose a part. Faults: Unavailable if there is no
// such peer, Overloaded, TooLarge.
func (m *Manager) Send(peer uint32, kind byte, payload []byte, urgent bool) error {
	l := m.link(peer)
	if l == nil {
		return fault.New(fault.Unavailable, "link.send", "", "the other node is not a member of the cluster")
	}
	return l.send(Frame{kind, payload}, urgent)
}

// Reset begins a new channel with a peer. The handler gets back what was not acknowledged.
func (m *Manager) Reset(peer uint32) {
	if l := m.link(peer); l != nil {
		l.reset()
	}
}

// Stream returns a sender of frames of one kind that ends with the present channel.
func (m *Manager) Stream(peer uint32, kind byte) *Stream {
	l := m.link(peer)
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return &Stream{l, kind, l.generation}
}

// Stream sends frames on one channel of a link.
type Stream struct {
	l          *Link
	kind       byte
	generation uint64
}

// Send queues a frame; false means that the channel has ended.
func (s *Stream) Send(payload []byte) bool {
	s.l.mu.Lock()
	ended := s.l.generation != s.generation
	s.l.mu.Unlock()
	return !ended && s.l.send(Frame{s.kind, payload}, true) == nil
}

// Wait blocks until little is queued; false means that the channel has ended.
func (s *Stream) Wait() bool {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	for s.l.generation == s.generation && s.l.bytes > roomBytes {
		s.l.room.Wait()
	}
	return s.l.generation == s.generation
}

// Peer is a link's state for the health page.
type Peer struct {
	Node      uint32        `json:"node"`
	Connected bool          `json:"connected"`
	Since     time.Time     `json:"since"`      // of the connection, or of its loss
	Heard     time.Time     `json:"last_heard"` // last sign of life
	RTT       time.Duration `json:"rtt_ns"`
	Queued    int           `json:"queued"`       // frames not acknowledged
	Bytes     int           `json:"queued_bytes"` // of them
	Resets    uint64        `json:"resets"`       // channels begun anew
}

// Peers returns the state of all links, by node.
func (m *Manager) Peers() []Peer {
	m.mu.RLock()
	defer m.mu.RUnlock()
	out := make([]Peer, 0, len(m.links))
	for node, l := range m.links {
		l.mu.Lock()
		out = append(out, Peer{Node: node, Connected: l.connected, Since: l.since, Heard: time.Now().Add(time.Duration(l.heard.Load() - m.now())),
			RTT: l.rtt, Queued: len(l.queue), Bytes: l.bytes, Resets: l.resets})
		l.mu.Unlock()
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Node < out[j].Node })
	return out
}

// Frames returns how many numbered frames were sent and received.
func (m *Manager) Frames() (sent, received uint64) {
	return m.counters.sent.Load(), m.counters.received.Load()
}

// Break closes the connection to a peer, as a fault of the network does; the channel goes on with the next one.
func (m *Manager) Break(peer uint32) {
	if l := m.link(peer); l != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.conn != nil {
			_ = l.conn.Close()
		}
	}
}
