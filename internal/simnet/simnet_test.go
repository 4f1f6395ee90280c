package simnet

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// pair returns both ends of a connection from host a to host b.
func pair(t *testing.T, n *Net) (client, server net.Conn) {
	t.Helper()
	l, err := n.Host("b").Listen("b:1")
	if err != nil {
		t.Fatal(err)
	}
	client, err = n.Host("a").Dial(context.Background(), "b:1")
	if err != nil {
		t.Fatal(err)
	}
	server, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	return client, server
}

func TestBytesArriveInOrderAndThenEOF(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		n.SetDelay(func(string, string) (time.Duration, time.Duration) {
			return 10 * time.Millisecond, 50 * time.Millisecond
		})
		a, b := pair(t, n)
		var want bytes.Buffer
		for i := range 200 {
			want.WriteByte(byte(i))
			if _, err := a.Write([]byte{byte(i)}); err != nil {
				t.Fatal(err)
			}
		}
		a.Close()
		start := time.Now()
		got, err := io.ReadAll(b)
		if err != nil || !bytes.Equal(got, want.Bytes()) {
			t.Fatalf("read %d bytes, %v; want %d", len(got), err, want.Len())
		}
		if d := time.Since(start); d < 10*time.Millisecond || d > 60*time.Millisecond {
			t.Errorf("arrived after %v; want the delay", d)
		}
	})
}

func TestCutHoldsBackUntilHealed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		a, b := pair(t, n)
		n.Cut("a", "b")
		a.Write([]byte("x"))
		b.SetReadDeadline(time.Now().Add(time.Hour))
		if _, err := b.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("read through a cut: %v", err)
		}
		b.SetReadDeadline(time.Time{})
		if _, err := b.Write([]byte("y")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(a, make([]byte, 1)); err != nil {
			t.Fatalf("the other direction is cut too: %v", err)
		}
		time.AfterFunc(time.Minute, func() { n.Heal("a", "b") })
		start := time.Now()
		if _, err := io.ReadFull(b, make([]byte, 1)); err != nil || time.Since(start) != time.Minute {
			t.Fatalf("after healing: %v after %v", err, time.Since(start))
		}
	})
}

func TestDialThroughCutEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		l, _ := n.Host("b").Listen(":1")
		defer l.Close()
		n.Partition([]string{"a"}, []string{"b"})
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		start := time.Now()
		if _, err := n.Host("a").Dial(ctx, "b:1"); err == nil || time.Since(start) != 3*time.Second {
			t.Fatalf("dial: %v after %v", err, time.Since(start))
		}
		n.HealAll()
		if c, err := n.Host("a").Dial(context.Background(), "b:1"); err != nil {
			t.Fatal(err)
		} else {
			c.Close()
		}
	})
}

func TestResetFailsBothEndsAndRefusesDialling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		a, b := pair(t, n)
		l, _ := n.Host("b").Listen("b:2")
		done := make(chan error, 1)
		go func() { _, err := a.Read(make([]byte, 1)); done <- err }()
		synctest.Wait()
		n.Reset("b")
		if err := <-done; !errors.Is(err, errReset) {
			t.Errorf("the peer's read ended with %v", err)
		}
		if _, err := b.Write([]byte("x")); err == nil {
			t.Error("the dead host can still write")
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept on a dead host: %v", err)
		}
		if _, err := n.Host("a").Dial(context.Background(), "b:2"); err == nil {
			t.Error("a dead host accepted a connection")
		}
	})
}

func TestWriterWaitsWhenTheBufferIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		a, b := pair(t, n)
		if _, err := a.Write(make([]byte, MaxBuffered)); err != nil {
			t.Fatal(err)
		}
		a.SetWriteDeadline(time.Now().Add(time.Second))
		if _, err := a.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("writing into a full connection: %v", err)
		}
		a.SetWriteDeadline(time.Time{})
		go io.Copy(io.Discard, b)
		if _, err := a.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		a.Close()
	})
}

func TestHostsAreSeparate(t *testing.T) {
	n := New(1)
	if _, err := n.Host("a").Listen("b:1"); err == nil {
		t.Error("a host listens on another's address")
	}
	l, err := n.Host("a").Listen(":5")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := n.Host("a").Listen("a:5"); err == nil {
		t.Error("two listeners on one address")
	}
	if HostOf(l.Addr()) != "a" {
		t.Errorf("HostOf = %q", HostOf(l.Addr()))
	}
}
