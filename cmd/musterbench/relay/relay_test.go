package relay

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// start serves a relay and returns its address; the test ends with it closed.
func start(t *testing.T) string {
	t.Helper()
	server, err := New("bench.test")
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return listener.Addr().String()
}

// join connects, says hello and returns the connection after the relay's answer.
func join(t *testing.T, address, hello string) *tls.Conn {
	t.Helper()
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, hello); err != nil {
		t.Fatal(err)
	}
	return conn
}

func expect(t *testing.T, conn net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		t.Fatalf("got %q, %v; want %q", got, err, want)
	}
}

func TestFanOut(t *testing.T) {
	address := start(t)
	a := join(t, address, "a b c\n")
	expect(t, a, "<ok/>")
	b := join(t, address, "b a\n")
	expect(t, b, "<ok/>")
	c := join(t, address, "c\n")
	expect(t, c, "<ok/>")
	long := "<x>" + strings.Repeat("y", 3*readBuffer) + "</x>"
	for _, text := range []string{"<one/>", long} {
		if _, err := io.WriteString(a, text); err != nil {
			t.Fatal(err)
		}
		expect(t, b, text)
		expect(t, c, text)
	}
	if _, err := io.WriteString(b, "<back/>"); err != nil {
		t.Fatal(err)
	}
	expect(t, a, "<back/>")
}

func TestAbsentPartnerIsNoError(t *testing.T) {
	address := start(t)
	a := join(t, address, "a nobody b\n")
	expect(t, a, "<ok/>")
	b := join(t, address, "b\n")
	expect(t, b, "<ok/>")
	if _, err := io.WriteString(a, "<x/>"); err != nil {
		t.Fatal(err)
	}
	expect(t, b, "<x/>")
}

func TestRefusesBadHello(t *testing.T) {
	address := start(t)
	cases := map[string]string{
		"no name":           "\n",
		"too long":          strings.Repeat("x", maxHello) + "\n",
		"too many partners": "a" + strings.Repeat(" b", maxPartners+1) + "\n",
		"early data":        "a b\n<x/>",
	}
	for name, hello := range cases {
		conn := join(t, address, hello)
		if n, err := conn.Read(make([]byte, 16)); err == nil {
			t.Errorf("%s: the relay answered %d bytes", name, n)
		}
	}
}

func TestLaterSessionReplacesEarlier(t *testing.T) {
	address := start(t)
	first := join(t, address, "b\n")
	expect(t, first, "<ok/>")
	second := join(t, address, "b\n")
	expect(t, second, "<ok/>")
	_ = first.Close()
	a := join(t, address, "a b\n")
	expect(t, a, "<ok/>")
	if _, err := io.WriteString(a, "<x/>"); err != nil {
		t.Fatal(err)
	}
	expect(t, second, "<x/>")
}
