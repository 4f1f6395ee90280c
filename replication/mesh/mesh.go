// Package mesh connects the nodes of a cluster: one port, mutual TLS 1.3 with
// the cluster's own authority, and named streams on top ("raft/control",
// "rpc", "link").
//
// Callers: package replication (Raft and its own requests) and the router's
// node links. A connection is for one stream; after TLS the dialer names the
// stream (one byte of length, the name), and the acceptor answers with a
// status byte and a reason (one byte of length, the text).
//
// Invariants: nobody reaches a stream without a certificate of this cluster's
// authority that names this cluster and a node that was not removed; what an
// unproven peer sends is bounded in size, time and number of connections, and
// never delays a proven one.
package mesh

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"muster/internal/fault"
	"muster/replication/pki"
)

// Protocols that the cluster port speaks, by ALPN.
const (
	ALPN     = "muster/1"      // members, both sides with a certificate
	ALPNJoin = "muster-join/1" // a joining node, which has none yet
)

// Limits on peers that have not proven who they are.
const (
	HandshakeTime = 10 * time.Second // from connecting to the named stream
	MaxUnproven   = 64               // connections in that state; more are closed at once
	DialTime      = 3 * time.Second  // connecting and handshake on the dialing side, unless the context ends earlier
	backlog       = 64               // proven connections that wait for Accept, per stream
)

// MemberState is what a node knows of a peer's membership.
type MemberState uint8

// The states. A node that is behind does not know the newest members yet; it
// takes their word, since the authority signed for them.
const (
	Unknown MemberState = iota
	Present
	Removed
)

// Network makes raw connections; a simulation brings its own.
type Network interface {
	Listen(addr string) (net.Listener, error)
	Dial(ctx context.Context, addr string) (net.Conn, error)
}

// TCP is the Network of the real world.
type TCP struct{}

// Listen implements Network.
func (TCP) Listen(addr string) (net.Listener, error) { return net.Listen("tcp", addr) }

// Dial implements Network.
func (TCP) Dial(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", addr)
}

// Config is what a Mesh needs.
type Config struct {
	Identity *pki.Identity                            // who this node is; with Plain only its ClusterID and NodeID
	Listen   string                                   // address of the cluster port
	Network  Network                                  // nil: TCP
	AddrOf   func(node uint32) (addr string, ok bool) // where a member's cluster port is
	Member   func(node uint32) MemberState            // nil: every node is Unknown
	Logger   *slog.Logger                             // nil: slog.Default()
	// Plain switches TLS off. It exists for simulations inside one process; no setting reaches it.
	Plain bool
}

// Mesh is one node's end of the connections between nodes.
type Mesh struct {
	cfg      Config
	identity atomic.Pointer[pki.Identity]
	ln       net.Listener
	unproven chan struct{} // tokens of connections in the handshake

	mu      sync.Mutex
	streams map[string]*Listener
	join    func(net.Conn)
	conns   map[*Conn]struct{}
	raw     map[net.Conn]struct{}
	closed  bool
	done    sync.WaitGroup
}

// New returns a mesh that can dial; Start makes it listen.
func New(cfg Config) *Mesh {
	if cfg.Network == nil {
		cfg.Network = TCP{}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Member == nil {
		cfg.Member = func(uint32) MemberState { return Unknown }
	}
	m := &Mesh{cfg: cfg, unproven: make(chan struct{}, MaxUnproven), streams: map[string]*Listener{},
		conns: map[*Conn]struct{}{}, raw: map[net.Conn]struct{}{}}
	m.identity.Store(cfg.Identity)
	return m
}

// Start opens the cluster port.
func (m *Mesh) Start() error {
	ln, err := m.cfg.Network.Listen(m.cfg.Listen)
	if err != nil {
		return &fault.Error{Code: fault.Unavailable, Op: "mesh.listen", Subject: m.cfg.Listen, Text: "the cluster port cannot be opened", Err: err}
	}
	m.mu.Lock()
	m.ln = ln
	m.mu.Unlock()
	m.done.Add(1)
	go m.acceptLoop(ln)
	return nil
}

// Addr is the address that Start listens on.
func (m *Mesh) Addr() net.Addr { return m.ln.Addr() }

// Identity returns who this node is.
func (m *Mesh) Identity() *pki.Identity { return m.identity.Load() }

// SetIdentity puts a renewed certificate to use: new connections have it, existing ones stay.
func (m *Mesh) SetIdentity(id *pki.Identity) { m.identity.Store(id) }

// HandleJoin sets who serves connections of joining nodes; fn owns the connection.
func (m *Mesh) HandleJoin(fn func(net.Conn)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.join = fn
}

// Close ends all connections and the listener.
func (m *Mesh) Close() error {
	m.mu.Lock()
	m.closed = true
	if m.ln != nil {
		_ = m.ln.Close()
	}
	var open []net.Conn
	for c := range m.conns {
		open = append(open, c)
	}
	for c := range m.raw {
		open = append(open, c)
	}
	streams := m.streams
	m.streams = map[string]*Listener{}
	m.mu.Unlock()
	for _, c := range open {
		_ = c.Close()
	}
	for _, l := range streams {
		_ = l.Close()
	}
	m.done.Wait()
	return nil
}

// DropPeer closes every connection with a node that was removed. It reports
// false, and leaves them, while Config.Member does not say so.
func (m *Mesh) DropPeer(node uint32) bool {
	if m.cfg.Member(node) != Removed {
		return false
	}
	m.mu.Lock()
	var drop []*Conn
	for c := range m.conns {
		if c.peer == node {
			drop = append(drop, c)
		}
	}
	m.mu.Unlock()
	for _, c := range drop {
		_ = c.Close()
	}
	return true
}

// Conn is a connection with a proven peer.
type Conn struct {
	net.Conn
	peer uint32
	mesh *Mesh
}

// Peer is the node at the other end.
func (c *Conn) Peer() uint32 { return c.peer }

// Close implements net.Conn.
func (c *Conn) Close() error {
	c.mesh.mu.Lock()
	delete(c.mesh.conns, c)
	c.mesh.mu.Unlock()
	return c.Conn.Close()
}

// track makes a Conn of a proven connection; ok is false when the mesh is closing.
func (m *Mesh) track(raw net.Conn, peer uint32) (c *Conn, ok bool) {
	c = &Conn{Conn: raw, peer: peer, mesh: m}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		_ = raw.Close()
		return nil, false
	}
	m.conns[c] = struct{}{}
	return c, true
}

// Listener takes the connections of one stream.
type Listener struct {
	mesh   *Mesh
	stream string
	ready  chan *Conn
	closed chan struct{}
	once   sync.Once
}

// Listen registers the acceptor of a stream. It panics if the stream has one:
// streams are declared in code.
func (m *Mesh) Listen(stream string) *Listener {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.streams[stream] != nil {
		panic("mesh: two listeners for " + stream)
	}
	l := &Listener{mesh: m, stream: stream, ready: make(chan *Conn, backlog), closed: make(chan struct{})}
	m.streams[stream] = l
	return l
}

// Accept waits for the next connection and says which node made it.
func (l *Listener) Accept() (net.Conn, uint32, error) {
	select {
	case c := <-l.ready:
		return c, c.peer, nil
	case <-l.closed:
		return nil, 0, net.ErrClosed
	}
}

// Close ends the stream's acceptance; connections that were accepted stay.
func (l *Listener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.mesh.mu.Lock()
		if l.mesh.streams[l.stream] == l {
			delete(l.mesh.streams, l.stream)
		}
		l.mesh.mu.Unlock()
	})
	return nil
}

// Dial opens a stream to a member. Its faults: NotFound (no address known),
// Unavailable (not reached), Unauthorized (the other side is no member of this
// cluster, or says that we are none), Gone (this node was removed).
func (m *Mesh) Dial(ctx context.Context, node uint32, stream string) (net.Conn, error) {
	addr, ok, err := m.addrOf(node)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fault.New(fault.NotFound, "mesh.dial", fmt.Sprint(node), "no address is known for the node")
	}
	ctx, cancel := context.WithTimeout(ctx, DialTime)
	defer cancel()
	raw, err := m.cfg.Network.Dial(ctx, addr)
	if err != nil {
		return nil, &fault.Error{Code: fault.Unavailable, Op: "mesh.dial", Subject: addr, Text: "the node cannot be reached", Err: err}
	}
	deadline, _ := ctx.Deadline()
	_ = raw.SetDeadline(deadline)
	conn, err := m.open(ctx, raw, node, stream)
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	_ = conn.SetDeadline(time.Time{})
	c, ok := m.track(conn, node)
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

// addrOf looks up where a member is. After Close it asks nobody: the state may be closed too.
func (m *Mesh) addrOf(node uint32) (addr string, ok bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return "", false, net.ErrClosed
	}
	addr, ok = m.cfg.AddrOf(node)
	return addr, ok, nil
}

// open proves both sides to each other and names the stream.
func (m *Mesh) open(ctx context.Context, raw net.Conn, node uint32, stream string) (net.Conn, error) {
	id := m.Identity()
	conn := raw
	if m.cfg.Plain {
		if err := writePlain(raw, id.ClusterID, id.NodeID); err != nil {
			return nil, unreachable(node, err)
		}
	} else {
		tc := tls.Client(raw, clientConfig(id, node))
		if err := tc.HandshakeContext(ctx); err != nil {
			return nil, handshakeFault(node, err)
		}
		conn = tc
	}
	if err := writeText(conn, stream); err != nil {
		return nil, unreachable(node, err)
	}
	return conn, readVerdict(conn, node)
}

func unreachable(node uint32, err error) error {
	return &fault.Error{Code: fault.Unavailable, Op: "mesh.dial", Subject: fmt.Sprint(node), Text: "the connection broke off", Err: err}
}

func handshakeFault(node uint32, err error) error {
	var f *fault.Error
	if errors.As(err, &f) {
		return f
	}
	return unreachable(node, err)
}

func (m *Mesh) acceptLoop(ln net.Listener) {
	defer m.done.Done()
	for {
		raw, err := ln.Accept()
		if err != nil {
			if m.isClosed() || errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) {
				return
			}
			m.cfg.Logger.Warn("mesh_accept_failed", "err", err)
			time.Sleep(10 * time.Millisecond) // out of file descriptors: give others time to close some
			continue
		}
		select {
		case m.unproven <- struct{}{}:
			if !m.serve(raw) {
				return
			}
		default:
			_ = raw.Close()
		}
	}
}

func (m *Mesh) isClosed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closed
}

// serve handshakes on a goroutine of its own; false: the mesh is closing.
func (m *Mesh) serve(raw net.Conn) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		_ = raw.Close()
		return false
	}
	m.raw[raw] = struct{}{}
	m.done.Add(1)
	go func() {
		defer m.done.Done()
		next := m.admit(raw)
		m.mu.Lock()
		delete(m.raw, raw)
		m.mu.Unlock()
		<-m.unproven
		if next == nil {
			_ = raw.Close()
			return
		}
		next()
	}()
	return true
}
