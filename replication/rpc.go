package replication

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"muster/internal/fault"
	"muster/log"
	"muster/replication/mesh"
)

// Limits of requests between nodes.
const (
	maxRPC      = log.MaxBatch + 64<<10 // bytes of one request or answer
	maxIdleRPC  = 4                     // unused connections kept per node
	maxRPCConns = 256                   // connections served at a time, all nodes together
	rpcTime     = 10 * time.Second      // for serving one request
)

// RPC answers requests of other members. It returns the answer or a fault,
// whose code and public text the caller gets.
type RPC func(ctx context.Context, from uint32, request []byte) ([]byte, error)

// rpcPeers is both ends of the requests between nodes: pooled connections to
// others, and the table of what this node answers. A request is length (4
// bytes), name (one byte of length, text), body; an answer is length, fault
// code (0: none), body or text.
type rpcPeers struct {
	mesh   *mesh.Mesh
	stream string
	ln     *mesh.Listener

	mu       sync.Mutex
	idle     map[uint32][]net.Conn
	serving  map[net.Conn]struct{}
	handlers map[string]RPC
	closed   bool
	done     sync.WaitGroup
}

func newRPCPeers(m *mesh.Mesh, stream string) *rpcPeers {
	return &rpcPeers{mesh: m, stream: stream, ln: m.Listen(stream), idle: map[uint32][]net.Conn{},
		serving: map[net.Conn]struct{}{}, handlers: map[string]RPC{}}
}

// handle registers the answer to requests of a name.
func (r *rpcPeers) handle(name string, fn RPC) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.handlers[name] = fn
}

func (r *rpcPeers) close() {
	r.mu.Lock()
	r.closed = true
	var open []net.Conn
	for _, conns := range r.idle {
		open = append(open, conns...)
	}
	for c := range r.serving {
		open = append(open, c)
	}
	r.mu.Unlock()
	_ = r.ln.Close()
	for _, c := range open {
		_ = c.Close()
	}
	r.done.Wait()
}

// call asks a node. A pooled connection that turns out to be dead is replaced
// once: every request may safely be served twice. An error is errUnsent if the
// node did not get the request.
func (r *rpcPeers) call(ctx context.Context, node uint32, name string, body []byte) ([]byte, error) {
	conn := r.pooled(node)
	fresh := conn == nil
	if !fresh {
		answer, err := r.exchange(ctx, conn, node, name, body)
		if err == nil || !errors.Is(err, errBroken) || ctx.Err() != nil {
			return answer, err
		}
	}
	conn, err := r.mesh.Dial(ctx, node, r.stream)
	switch {
	case err != nil && fresh:
		return nil, errors.Join(errUnsent, err)
	case err != nil:
		return nil, err
	}
	return r.exchange(ctx, conn, node, name, body)
}

var (
	errBroken = errors.New("the connection broke")
	errUnsent = errors.New("the request was not sent")
)

func (r *rpcPeers) pooled(node uint32) net.Conn {
	r.mu.Lock()
	defer r.mu.Unlock()
	conns := r.idle[node]
	if len(conns) == 0 {
		return nil
	}
	c := conns[len(conns)-1]
	r.idle[node] = conns[:len(conns)-1]
	return c
}

func (r *rpcPeers) keep(node uint32, c net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || len(r.idle[node]) >= maxIdleRPC {
		_ = c.Close()
		return
	}
	r.idle[node] = append(r.idle[node], c)
}

func (r *rpcPeers) exchange(ctx context.Context, conn net.Conn, node uint32, name string, body []byte) ([]byte, error) {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(rpcTime)
	}
	_ = conn.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	answer, err := roundTrip(conn, name, body)
	if !stop() || err != nil && fault.CodeOf(err) == fault.Unavailable && errors.Is(err, errBroken) {
		_ = conn.Close()
		if err == nil {
			return answer, nil
		}
		return nil, err
	}
	_ = conn.SetDeadline(time.Time{})
	r.keep(node, conn)
	return answer, err
}

func roundTrip(conn net.Conn, name string, body []byte) ([]byte, error) {
	req := make([]byte, 0, 4+1+len(name)+len(body))
	req = binary.BigEndian.AppendUint32(req, uint32(1+len(name)+len(body)))
	req = append(append(append(req, byte(len(name))), name...), body...)
	if _, err := conn.Write(req); err != nil {
		return nil, broken(err)
	}
	answer, err := readMessage(conn)
	if err != nil {
		return nil, broken(err)
	}
	if len(answer) == 0 {
		return nil, broken(io.ErrUnexpectedEOF)
	}
	if code := fault.Code(answer[0]); code != 0 {
		return nil, fault.New(code, "replication.call", name, string(answer[1:]))
	}
	return answer[1:], nil
}

func broken(err error) error {
	return &fault.Error{Code: fault.Unavailable, Op: "replication.call", Text: "the other node does not answer", Err: errors.Join(errBroken, err)}
}

// readMessage reads a length and that many bytes, in steps, so that a false length costs nothing.
func readMessage(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxRPC {
		return nil, fmt.Errorf("a message of %d bytes is too large", n)
	}
	if n <= 64<<10 {
		b := make([]byte, n)
		_, err := io.ReadFull(r, b)
		return b, err
	}
	b, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err == nil && len(b) < int(n) {
		err = io.ErrUnexpectedEOF
	}
	return b, err
}

// serve answers other nodes until the listener closes.
func (r *rpcPeers) serve(ctx context.Context) {
	for {
		conn, from, err := r.ln.Accept()
		if err != nil {
			return
		}
		r.mu.Lock()
		if r.closed || len(r.serving) >= maxRPCConns {
			r.mu.Unlock()
			_ = conn.Close()
			continue
		}
		r.serving[conn] = struct{}{}
		r.done.Add(1)
		r.mu.Unlock()
		go func() {
			defer r.done.Done()
			for r.serveOne(ctx, conn, from) == nil {
			}
			r.mu.Lock()
			delete(r.serving, conn)
			r.mu.Unlock()
			_ = conn.Close()
		}()
	}
}

func (r *rpcPeers) serveOne(ctx context.Context, conn net.Conn, from uint32) error {
	req, err := readMessage(conn)
	if err != nil {
		return err
	}
	if len(req) == 0 || len(req) < 1+int(req[0]) {
		return io.ErrUnexpectedEOF
	}
	name, body := string(req[1:1+req[0]]), req[1+req[0]:]
	answer, err := r.answer(ctx, from, name, body)
	out := make([]byte, 4, 5+len(answer))
	out = append(out, byte(fault.CodeOf(err)))
	if err != nil {
		answer = []byte(fault.Public(err))
	}
	out = append(out, answer...)
	binary.BigEndian.PutUint32(out, uint32(len(out)-4))
	_ = conn.SetWriteDeadline(time.Now().Add(rpcTime))
	_, err = conn.Write(out)
	return err
}

func (r *rpcPeers) answer(ctx context.Context, from uint32, name string, body []byte) ([]byte, error) {
	r.mu.Lock()
	fn := r.handlers[name]
	r.mu.Unlock()
	if fn == nil {
		return nil, fault.New(fault.NotSupported, "replication.serve", name, "this node's release does not know the request "+name)
	}
	ctx, cancel := context.WithTimeout(ctx, rpcTime)
	defer cancel()
	return fn(ctx, from, body)
}

// Handle registers the answer to other members' requests of a name (at most 255 bytes).
func (g *Group) Handle(name string, fn RPC) { g.rpc.handle(name, fn) }

// Call asks another member; this node itself answers without the network.
func (g *Group) Call(ctx context.Context, node uint32, name string, request []byte) ([]byte, error) {
	if node == g.cfg.NodeID {
		return g.rpc.answer(ctx, node, name, request)
	}
	return g.rpc.call(ctx, node, name, request)
}

// rpcServe answers other members until the group closes.
func (g *Group) rpcServe() {
	g.rpc.serve(g.ctx)
}

// reader takes numbers and bytes off a message; after a shortage all are zero and bad is set.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) bytes(n int) []byte {
	if r.bad || n < 0 || n > len(r.b) {
		r.bad = true
		return nil
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) uint(n int) (v uint64) {
	for _, c := range r.bytes(n) {
		v = v<<8 | uint64(c)
	}
	return v
}

func (r *reader) u8() uint8   { return uint8(r.uint(1)) }
func (r *reader) u16() uint16 { return uint16(r.uint(2)) }
func (r *reader) u32() uint32 { return uint32(r.uint(4)) }
func (r *reader) u64() uint64 { return r.uint(8) }

func be64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }
