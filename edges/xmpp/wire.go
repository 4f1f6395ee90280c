package xmpp

import (
	"crypto/x509"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"muster/internal/fault"
)

// wire is a client's transport connection under TLS. Once it is parkable, a
// Read that finds nothing returns errWait instead of waiting: crypto/tls passes
// a temporary timeout through without harm to its state, so that nobody need
// wait inside it (a test holds that).
type wire struct {
	net.Conn
	leaf     *x509.Certificate    // that the server showed in the handshake
	raw      syscall.RawConn      // nil: not a TCP connection
	stall    func() time.Duration // that a write may take; nil: for ever
	turn     *turn                // while the stream works towards a session; nil: before and after
	parkable bool
	dry      bool // the last read took all that there was: the next one need not ask
	in       atomic.Uint64
	out      atomic.Uint64

	// of the read under way
	buf  []byte
	n    int
	err  error
	read func(fd uintptr) bool
}

// errWait says that there is nothing to read now.
var errWait net.Error = waitError{}

type waitError struct{}

func (waitError) Error() string   { return "nothing to read yet" }
func (waitError) Timeout() bool   { return true }
func (waitError) Temporary() bool { return true }

// errNoTurn ends a connection that is not let in.
var errNoTurn = fault.New(fault.Overloaded, "xmpp.login", "", "too many clients log in")

func newWire(c net.Conn) *wire { return &wire{Conn: c} }

// Read implements net.Conn.
func (w *wire) Read(b []byte) (int, error) {
	var n int
	var err error
	w.turn.drop()
	if w.parkable {
		n, err = w.readNow(b)
	} else {
		n, err = w.Conn.Read(b)
	}
	if n > 0 {
		w.in.Add(uint64(n))
		if w.turn != nil && !w.turn.take() {
			return 0, errNoTurn
		}
	}
	return n, err
}

// Write implements net.Conn. Each write has a deadline of its own, since TLS
// writes when it likes: a deadline left over from an earlier write would make its
// answer to a key update fail, and with that every write after it.
func (w *wire) Write(b []byte) (int, error) {
	if w.stall != nil {
		if err := w.Conn.SetWriteDeadline(time.Now().Add(w.stall())); err != nil {
			return 0, err
		}
	}
	n, err := w.Conn.Write(b)
	w.out.Add(uint64(n))
	return n, err
}
