package http

import (
	"net"
	"strconv"
	"syscall"
)

// peerOf asks the kernel which local user is at the other end of a Unix socket.
func peerOf(c net.Conn) string {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ""
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return ""
	}
	actor := ""
	_ = raw.Control(func(fd uintptr) { // a socket that is gone has no peer
		if cred, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
			actor = "local:" + strconv.FormatUint(uint64(cred.Uid), 10)
		}
	})
	return actor
}
