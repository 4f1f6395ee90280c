package xmpp

import (
	"net"
	"testing"
)

// TestDescriptorsAreLeft: a connection with one of the last file descriptors is refused, whatever else is free.
func TestDescriptorsAreLeft(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, _ := c.(*net.TCPConn).SyscallConn()
	var number uint64
	_ = raw.Control(func(fd uintptr) { number = uint64(fd) })
	for _, tc := range []struct {
		limit uint64
		want  bool
	}{{number + descriptorReserve + 1, false}, {number + descriptorReserve, true}, {10, true}} {
		if got := takesReserve(c, tc.limit); got != tc.want {
			t.Errorf("number %d of %d: %v", number, tc.limit, got)
		}
	}
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	if takesReserve(near, 1) {
		t.Error("a connection without a descriptor counts as one")
	}
}
