package xmpp

import (
	"math"
	"net"
	"syscall"
)

// descriptorReserve is how many file descriptors clients leave to the node's
// stores and links: a store that cannot open its next file ends the process.
const descriptorReserve = 64

// descriptorLimit is how many file descriptors the process may have now.
func descriptorLimit() uint64 {
	var l syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l) != nil {
		return math.MaxUint64
	}
	return l.Cur
}

// takesReserve reports whether a connection that was just accepted has one of the
// last descriptors. Their numbers tell: the system gives out the lowest free one.
func takesReserve(c net.Conn, limit uint64) bool {
	s, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return false
	}
	takes := false
	_ = raw.Control(func(fd uintptr) { takes = limit < descriptorReserve || uint64(fd) >= limit-descriptorReserve })
	return takes
}
