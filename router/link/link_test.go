package link

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"muster/internal/fault"
	"muster/internal/simnet"
)

// side is one node: a manager and a record of what it was told.
type side struct {
	id  uint32
	net *simnet.Net
	ln  net.Listener
	m   *Manager

	mu    sync.Mutex
	inc   uint64
	got   []string // frames
	lost  []Frame
	ups   []string // "fresh" or "resumed", and the peer's extra part
	admit func(uint32, uint64) bool
}

func newSide(t *testing.T, n *simnet.Net, id uint32, inc uint64) *side {
	t.Helper()
	s := &side{id: id, net: n, inc: inc}
	host := fmt.Sprintf("n%d", id)
	var err error
	if s.ln, err = n.Host(host).Listen(host + ":1"); err != nil {
		t.Fatal(err)
	}
	level := slog.Level(100)
	if os.Getenv("LINK_TEST_LOG") != "" {
		level = slog.LevelDebug
	}
	s.m = New(id, s, s, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})).With("node", id))
	s.m.Start()
	return s
}

// Dial implements Mesh.
func (s *side) Dial(ctx context.Context, node uint32) (net.Conn, error) {
	return s.net.Host(fmt.Sprintf("n%d", s.id)).Dial(ctx, fmt.Sprintf("n%d:1", node))
}

// Accept implements Mesh.
func (s *side) Accept() (net.Conn, uint32, error) {
	c, err := s.ln.Accept()
	if err != nil {
		return nil, 0, err
	}
	id, _ := strconv.Atoi(strings.TrimPrefix(simnet.HostOf(c.RemoteAddr()), "n"))
	return c, uint32(id), nil
}

// Incarnation implements Handler.
func (s *side) Incarnation() uint64 { return s.inc }

// Hello implements Handler.
func (s *side) Hello(peer uint32) []byte { return fmt.Appendf(nil, "%d to %d", s.id, peer) }

// Admit implements Handler.
func (s *side) Admit(peer uint32, inc uint64) bool { return s.admit == nil || s.admit(peer, inc) }

// Up implements Handler.
func (s *side) Up(_ uint32, extra []byte, fresh bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	word := "resumed"
	if fresh {
		word = "fresh"
	}
	s.ups = append(s.ups, word+" "+string(extra))
}

// Frame implements Handler.
func (s *side) Frame(_ uint32, kind byte, payload []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, fmt.Sprintf("%d %s", kind, payload))
}

// Lost implements Handler.
func (s *side) Lost(_ uint32, frames []Frame) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost = append(s.lost, frames...)
}

func (s *side) stop() {
	_ = s.ln.Close()
	s.m.Stop()
}

func (s *side) taken() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.got...)
}

// pair runs fn with two connected nodes.
func pair(t *testing.T, fn func(t *testing.T, n *simnet.Net, a, b *side)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := simnet.New(7)
		a, b := newSide(t, n, 1, 10), newSide(t, n, 2, 20)
		defer func() { a.stop(); b.stop() }()
		a.m.SetPeers([]uint32{1, 2})
		b.m.SetPeers([]uint32{1, 2})
		time.Sleep(time.Second)
		fn(t, n, a, b)
	})
}

func (s *side) lostFrames() []Frame {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Frame(nil), s.lost...)
}

func (s *side) connections() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.ups...)
}

func (s *side) send(t *testing.T, to uint32, text string) {
	t.Helper()
	if err := s.m.Send(to, FirstKind, []byte(text), false); err != nil {
		t.Error(err)
	}
}

func numbered(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("16 %d", i)
	}
	return out
}

func equal(t *testing.T, what string, got, want []string) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %d frames, want %d", what, len(got), len(want))
		return
	}
	for i := range got {
		if got[i] != want[i] {
			t.Errorf("%s: %q at %d, want %q", what, got[i], i, want[i])
			return
		}
	}
}

func TestFramesBothWays(t *testing.T) {
	pair(t, func(t *testing.T, _ *simnet.Net, a, b *side) {
		for i := range 500 {
			a.send(t, 2, fmt.Sprint(i))
			b.send(t, 1, fmt.Sprint(i))
		}
		time.Sleep(time.Second)
		equal(t, "at b", b.taken(), numbered(500))
		equal(t, "at a", a.taken(), numbered(500))
		equal(t, "ups of a", a.connections(), []string{"fresh 2 to 1"})
		equal(t, "ups of b", b.connections(), []string{"fresh 1 to 2"})
		p := a.m.Peers()[0]
		if !p.Connected || p.Queued != 0 || p.Bytes != 0 || p.Node != 2 || p.Resets != 0 {
			t.Errorf("the link stands at %+v", p)
		}
		if sent, taken := a.m.Frames(); sent != 500 || taken != 500 {
			t.Errorf("counted %d sent, %d taken", sent, taken)
		}
	})
}

// TestBreaksLoseNothing breaks the connection again and again: every frame arrives once, in order.
func TestBreaksLoseNothing(t *testing.T) {
	pair(t, func(t *testing.T, n *simnet.Net, a, b *side) {
		n.SetDelay(func(string, string) (time.Duration, time.Duration) { return 3 * time.Millisecond, 5 * time.Millisecond })
		const frames = 2000
		for i := range frames {
			a.send(t, 2, fmt.Sprint(i))
			b.send(t, 1, fmt.Sprint(i))
			if i%37 == 0 {
				time.Sleep(11 * time.Millisecond)
			}
			switch {
			case i%211 == 100:
				a.m.Break(2)
			case i%307 == 200:
				b.m.Break(1)
			}
		}
		time.Sleep(5 * time.Second)
		equal(t, "at b", b.taken(), numbered(frames))
		equal(t, "at a", a.taken(), numbered(frames))
		if len(a.lostFrames())+len(b.lostFrames()) != 0 || len(a.connections()) < 3 {
			t.Errorf("lost %d and %d; %d connections", len(a.lostFrames()), len(b.lostFrames()), len(a.connections()))
		}
	})
}

func TestSilentPeer(t *testing.T) {
	pair(t, func(t *testing.T, n *simnet.Net, a, b *side) {
		n.Cut("n2", "n1") // b's bytes stay on the way
		time.Sleep(SilentAfter + 2*time.Second)
		if p := a.m.Peers()[0]; p.Connected || time.Since(p.Heard) < SilentAfter {
			t.Errorf("a silent link stands at %+v", p)
		}
		a.send(t, 2, "0")
		n.HealAll()
		time.Sleep(5 * time.Second)
		equal(t, "at b", b.taken(), numbered(1))
		if p := a.m.Peers()[0]; !p.Connected || p.Queued != 0 {
			t.Errorf("the link stands at %+v", p)
		}
	})
}

// TestNewProcess: when the peer's process is another one, the sender gets back what it may not have received.
func TestNewProcess(t *testing.T) {
	pair(t, func(t *testing.T, n *simnet.Net, a, b *side) {
		a.send(t, 2, "0")
		time.Sleep(time.Second)
		n.Reset("n2")
		b.stop()
		for i := range 5 {
			a.send(t, 2, fmt.Sprint("to the dead ", i))
		}
		time.Sleep(time.Second)
		b2 := newSide(t, n, 2, 21)
		defer b2.stop()
		b2.m.SetPeers([]uint32{1})
		time.Sleep(5 * time.Second)
		if len(a.lostFrames()) != 5 || string(a.lostFrames()[0].Payload) != "to the dead 0" {
			t.Errorf("lost %d frames", len(a.lostFrames()))
		}
		a.send(t, 2, "0")
		b2.send(t, 1, "0")
		time.Sleep(time.Second)
		equal(t, "at the new process", b2.taken(), numbered(1))
		equal(t, "at a", a.taken(), numbered(1))
	})
}

func TestResetBySender(t *testing.T) {
	pair(t, func(t *testing.T, n *simnet.Net, a, b *side) {
		n.Partition([]string{"n1"}, []string{"n2"})
		stream := a.m.Stream(2, FirstKind)
		a.send(t, 2, "lost")
		if !stream.Send([]byte("lost too")) || !stream.Wait() {
			t.Error("the stream has ended before the channel")
		}
		a.m.Reset(2)
		if len(a.lostFrames()) != 2 {
			t.Errorf("lost %d frames", len(a.lostFrames()))
		}
		if stream.Send([]byte("x")) || stream.Wait() {
			t.Error("the stream goes on after its channel")
		}
		a.send(t, 2, "0")
		n.HealAll()
		time.Sleep(10 * time.Second)
		if got := b.taken(); got[len(got)-1] != "16 0" {
			t.Errorf("b got %q", got)
		}
		if last := b.connections()[len(b.connections())-1]; !strings.HasPrefix(last, "fresh") {
			t.Errorf("the other side's channel is %q", last)
		}
	})
}

func TestNotAdmitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := simnet.New(7)
		a, b := newSide(t, n, 1, 10), newSide(t, n, 2, 20)
		defer func() { a.stop(); b.stop() }()
		var mu sync.Mutex
		down := true
		b.admit = func(_ uint32, inc uint64) bool {
			mu.Lock()
			defer mu.Unlock()
			return inc == 10 && !down
		}
		a.m.SetPeers([]uint32{2})
		b.m.SetPeers([]uint32{1})
		a.send(t, 2, "0")
		time.Sleep(3 * time.Second)
		if len(b.taken()) != 0 || b.m.Peers()[0].Connected {
			t.Error("a node that is down may talk")
		}
		mu.Lock()
		down = false
		mu.Unlock()
		time.Sleep(5 * time.Second)
		equal(t, "at b", b.taken(), numbered(1))
	})
}

func TestQueueBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := simnet.New(7)
		a, b := newSide(t, n, 1, 10), newSide(t, n, 2, 20)
		defer func() { a.stop(); b.stop() }()
		a.m.SetPeers([]uint32{2})
		taken := 0
		for a.m.Send(2, FirstKind, []byte("x"), false) == nil {
			taken++
		}
		if taken != softFrames {
			t.Errorf("%d frames were taken, want %d", taken, softFrames)
		}
		if err := a.m.Send(2, FirstKind, []byte("x"), false); !fault.Is(err, fault.Overloaded) {
			t.Errorf("beyond the soft bound: %v", err)
		}
		for taken < hardFrames+10 {
			if a.m.Send(2, FirstKind, []byte("urgent"), true) != nil {
				break
			}
			taken++
		}
		if taken != hardFrames {
			t.Errorf("%d urgent frames were taken, want %d", taken, hardFrames)
		}
		b.m.SetPeers([]uint32{1})
		time.Sleep(10 * time.Second)
		if len(a.lostFrames()) != hardFrames || len(b.taken()) != 0 {
			t.Errorf("%d frames given back, %d arrived", len(a.lostFrames()), len(b.taken()))
		}
		a.send(t, 2, "0")
		time.Sleep(time.Second)
		equal(t, "at b", b.taken(), numbered(1))
		if err := a.m.Send(2, FirstKind, make([]byte, MaxFrame), true); !fault.Is(err, fault.TooLarge) {
			t.Errorf("a huge frame: %v", err)
		}
		if err := a.m.Send(9, FirstKind, nil, true); !fault.Is(err, fault.Unavailable) {
			t.Errorf("to nobody: %v", err)
		}
	})
}

func TestWaitForRoom(t *testing.T) {
	pair(t, func(t *testing.T, n *simnet.Net, a, b *side) {
		n.Partition([]string{"n1"}, []string{"n2"})
		stream := a.m.Stream(2, FirstKind)
		for range 20 {
			stream.Send(make([]byte, 100<<10))
		}
		done := make(chan bool)
		go func() { done <- stream.Wait() }()
		select {
		case <-done:
			t.Error("there is room in a full queue")
		case <-time.After(time.Second):
		}
		n.HealAll()
		if !<-done {
			t.Error("the stream ended")
		}
	})
}

func TestRemovedPeer(t *testing.T) {
	pair(t, func(t *testing.T, n *simnet.Net, a, b *side) {
		n.Partition([]string{"n1"}, []string{"n2"})
		a.send(t, 2, "x")
		a.m.SetPeers(nil)
		if len(a.lostFrames()) != 1 || len(a.m.Peers()) != 0 {
			t.Errorf("lost %d, peers %v", len(a.lostFrames()), a.m.Peers())
		}
		n.HealAll()
		a.m.SetPeers([]uint32{2})
		a.send(t, 2, "0")
		time.Sleep(10 * time.Second)
		equal(t, "at b", b.taken(), numbered(1))
	})
}

// TestGarbage: whatever a peer sends, the connection ends and the process does not.
func TestGarbage(t *testing.T) {
	good := appendHello(nil, &hello{node: 2, incarnation: 20, mine: 5})
	frame := func(kind byte, payload []byte) []byte {
		return append(appendFrameHeader(nil, kind, len(payload)), payload...)
	}
	tests := []struct {
		name string
		sent []byte
	}{
		{"an HTTP request", []byte("GET / HTTP/1.1\r\n\r\n")},
		{"an empty frame", []byte{0, 0, 0, 0, 0}},
		{"a huge frame", []byte{0xff, 0xff, 0xff, 0xff, 0}},
		{"no hello first", frame(FirstKind, []byte("x"))},
		{"a short hello", frame(kindHello, good[:20])},
		{"another protocol", frame(kindHello, append([]byte{9}, good[1:]...))},
		{"another node", frame(kindHello, appendHello(nil, &hello{node: 3, mine: 5}))},
		{"a hello without an identity", frame(kindHello, appendHello(nil, &hello{node: 2}))},
		{"frames received that were never sent", frame(kindHello, appendHello(nil, &hello{node: 2, mine: 5, theirs: 1, received: 99}))},
		{"a bad ack after the hello", append(frame(kindHello, good), frame(kindAck, []byte{1})...)},
		{"more acknowledged than sent", append(frame(kindHello, good), frame(kindAck, binary.BigEndian.AppendUint64(nil, 1000))...)},
		{"an unknown control frame", append(frame(kindHello, good), frame(9, nil)...)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := simnet.New(7)
				a := newSide(t, n, 1, 10)
				defer a.stop()
				ln, err := n.Host("n2").Listen("n2:1")
				if err != nil {
					t.Fatal(err)
				}
				defer ln.Close()
				a.m.SetPeers([]uint32{2})
				c, err := ln.Accept()
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if _, err := c.Write(tt.sent); err != nil {
					t.Fatal(err)
				}
				_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
				buf := make([]byte, 4096)
				for err == nil {
					_, err = c.Read(buf)
				}
				if e, ok := err.(net.Error); ok && e.Timeout() {
					t.Error("the connection goes on")
				}
				if len(a.taken()) != 0 {
					t.Errorf("taken: %q", a.taken())
				}
			})
		})
	}
}

func FuzzFrames(f *testing.F) {
	f.Add(appendFrameHeader(nil, kindHello, 0))
	f.Add(append(appendFrameHeader(nil, kindAck, 8), make([]byte, 8)...))
	h := appendHello(nil, &hello{node: 1, mine: 3, theirs: 4, base: 1, received: 2, extra: []byte("x")})
	f.Add(append(appendFrameHeader(nil, kindHello, len(h)), h...))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bufio.NewReader(bytes.NewReader(b))
		var buf []byte
		for {
			kind, payload, err := readFrame(r, &buf)
			if err != nil {
				return
			}
			if len(payload) >= MaxFrame {
				t.Fatalf("a frame of %d bytes", len(payload))
			}
			_, _, _ = parseCounts(kind, payload)
			if h, err := parseHello(payload); err == nil && !bytes.Equal(appendHello(nil, h), payload) {
				t.Errorf("hello %x reads as %+v", payload, h)
			}
		}
	})
}

func BenchmarkFrame(b *testing.B) {
	n := simnet.New(1)
	t := &testing.T{}
	x, y := newSide(t, n, 1, 1), newSide(t, n, 2, 2)
	defer func() { x.stop(); y.stop() }()
	x.m.SetPeers([]uint32{2})
	y.m.SetPeers([]uint32{1})
	payload := make([]byte, 300)
	b.ReportAllocs()
	for b.Loop() {
		for x.m.Send(2, FirstKind, payload, false) != nil {
			time.Sleep(100 * time.Microsecond)
		}
	}
}
