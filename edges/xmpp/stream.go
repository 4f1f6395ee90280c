package xmpp

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"muster/internal/jid"
	"muster/router/stanza"
	"muster/router/xmltok"
)

// phase is how far a stream's negotiation has come.
type phase uint8

const (
	phaseHeader phase = iota // a stream header is awaited
	phasePlain               // STARTTLS is offered
	phaseLogin               // SASL is offered
	phaseBind                // binding and resumption are offered
	phaseLive                // a session is bound
)

// Sizes of reading and limits of a stream that has ended.
const (
	readSize     = 4 << 10 // bytes of a shared read buffer
	ownReadSize  = 1 << 10 // bytes of the buffer of a connection that cannot be parked
	maxDiscarded = 1 << 20 // bytes read and dropped after the server's last word
)

// The states of a stream's input.
const (
	inputRunning uint32 = iota // a goroutine handles it
	inputParked                // the poller watches it
)

// stream is one connection of a client.
type stream struct {
	run       *run
	wire      *wire
	conn      net.Conn // the wire, or TLS over it
	dec       *xmltok.Decoder
	neg       *negotiation // until a session is bound
	throttle  *throttle    // nil: free of rate limits
	sess      atomic.Pointer[session]
	addr      netip.Addr // of the client, for limits
	domain    string     // of the first stream header: it cannot change
	lang      string     // of the last stream header: stanzas without a language have this one
	user      jid.JID    // bare, after login
	began     time.Time
	index     int   // in the set of streams
	shard     int   // of the set
	slot      int32 // in the poller
	discarded int   // bytes after the last word
	phase     phase
	secure    bool // TLS is up
	direct    bool // TLS from the first byte
	unlimited bool // from an unlimited network
	counted   bool // by the gate
	torn      bool // teardown has run

	input    atomic.Uint32
	closed   atomic.Bool  // the connection is closed
	ending   atomic.Bool  // the last word is said, or being said: input is dropped
	greeted  atomic.Bool  // the server's stream header is sent
	said     atomic.Bool  // the last word is sent, or cannot be
	eof      atomic.Bool  // the client has closed its side
	heard    atomic.Int64 // when the client was heard last, in Unix nanoseconds
	asked    atomic.Int64 // when it was asked for a sign of life that it has not given; 0: not
	partial  atomic.Int64 // since when a stanza is incomplete; 0: none is
	deadline atomic.Int64 // when the connection is closed whatever happens; 0: never

	out     sync.Mutex // writes before a session is bound
	mute    bool       // nothing may be written: TLS is being negotiated; guarded by out
	writing bool       // a goroutine writes the session's queue; guarded by the session's mu
	hangUp  bool       // close after the queue is written; guarded by the session's mu
	leaving bool       // the session ends when the writing goroutine does; guarded by the session's mu
}

// verdict is what to do after an item.
type verdict uint8

const (
	goOn     verdict = iota
	startTLS         // negotiate TLS; drop what else has arrived
)

var readBuffers = sync.Pool{New: func() any { b := make([]byte, readSize); return &b }}

// serve handles a new connection until TLS is up, and then hands it to run. It has
// a goroutine of its own: the stack that the handshake grows goes with it.
func (st *stream) serve() {
	defer st.contain()
	if !st.direct {
		if err := st.servePlain(); err != nil {
			st.over(err)
			return
		}
	}
	if !st.handshake() {
		st.teardown()
		return
	}
	st.run.poller.add(st)
	st.run.srv.workers.run(st, (*stream).work)
}

// servePlain reads until the client asks for TLS; an error if the stream is over.
func (st *stream) servePlain() error {
	buf := readBuffers.Get().(*[]byte)
	defer readBuffers.Put(buf)
	for {
		n, err := st.conn.Read(*buf)
		if st.consume((*buf)[:n]) == startTLS {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// wake lets a parked stream handle its input. Anybody may call it at any time.
func (st *stream) wake() {
	if st.input.CompareAndSwap(inputParked, inputRunning) {
		st.run.srv.workers.run(st, (*stream).work)
	}
}

// work reads and handles input until there is none (then the poller takes over) or the connection ends.
func (st *stream) work() {
	defer st.contain()
	buf := st.buffer()
	for {
		n, err := st.conn.Read(*buf)
		if n > 0 {
			st.consume((*buf)[:n])
		}
		if err == nil && st.discarded <= maxDiscarded {
			continue
		}
		if err == nil {
			st.release(buf)
			if st.rest() {
				return
			}
			buf = st.buffer()
			continue
		}
		if errors.Is(err, error(errWait)) && !st.closed.Load() {
			st.release(buf)
			if st.park() {
				return
			}
			buf = st.buffer()
			continue
		}
		st.release(buf)
		st.over(err)
		return
	}
}

// over is called when there is no more input: it tears the stream down. If the client only
// closed its side, while the last word is being said, that is left to whoever says it.
func (st *stream) over(err error) {
	if errors.Is(err, io.EOF) && st.ending.Load() {
		st.eof.Store(true)
		st.input.Store(inputParked)
		if !st.said.Load() && !st.closed.Load() || !st.input.CompareAndSwap(inputParked, inputRunning) {
			return
		}
	}
	st.teardown()
}

func (st *stream) buffer() *[]byte {
	if st.wire.parkable {
		return readBuffers.Get().(*[]byte)
	}
	own := make([]byte, ownReadSize)
	return &own
}

func (st *stream) release(buf *[]byte) {
	if st.wire.parkable {
		readBuffers.Put(buf)
	}
}

// park leaves the input to the poller; false if it is still the caller's.
func (st *stream) park() bool {
	st.input.Store(inputParked)
	if !st.closed.Load() && st.run.poller.arm(st) {
		return true
	}
	// Closed meanwhile: whoever takes the stream back tears it down.
	return !st.input.CompareAndSwap(inputParked, inputRunning)
}

// rest leaves the input unread until the connection is closed; false if it is still the caller's.
// To close with input unread would take the last word from a client that has not read it yet.
func (st *stream) rest() bool {
	st.input.Store(inputParked)
	return !st.closed.Load() || !st.input.CompareAndSwap(inputParked, inputRunning)
}

// kill closes the connection without a word; the input's goroutine then tears the stream down.
func (st *stream) kill() {
	if st.closed.CompareAndSwap(false, true) {
		st.wire.Close()
		st.wake()
	}
}

// teardown lets go of everything. Only the goroutine that handles the input calls it.
func (st *stream) teardown() {
	if st.torn {
		return
	}
	st.torn = true
	defer st.run.done.Done()
	st.graduate()
	st.closed.Store(true)
	st.wire.Close()
	st.run.poller.remove(st)
	st.dec.Release()
	st.admitted()
	st.run.streams.remove(st)
	if s := st.sess.Load(); s != nil {
		s.lost(st)
	}
}

// admitted takes the connection out of the count of those that have not logged in.
func (st *stream) admitted() {
	if st.counted {
		st.counted = false
		st.run.gate.leave(st.addr, st.unlimited)
	}
}

// contain turns a panic on a stream's goroutine into the end of that stream.
func (st *stream) contain() {
	e := recover()
	if e == nil {
		return
	}
	st.run.srv.counters.panics.Add(1)
	st.run.srv.o.Logger.Error("stream_panic", "user", st.user.String(), "panic", fmt.Sprint(e), "stack", string(debug.Stack()))
	if st.torn {
		return
	}
	st.end(stanza.StreamInternalServerError, "", nil)
	st.run.srv.workers.run(st, (*stream).work) // drops what still comes, and tears down
}

// consume handles what has arrived.
func (st *stream) consume(in []byte) verdict {
	now := time.Now()
	st.heard.Store(now.UnixNano())
	st.asked.Store(0)
	if st.ending.Load() {
		st.discard(len(in))
		return goOn
	}
	if st.flooded(len(in)) {
		st.end(stanza.StreamPolicyViolation, "too much was sent without logging in", nil)
		return goOn
	}
	st.pace(now)
	for {
		n, item, err := st.dec.Next(in)
		in = in[n:]
		if err != nil {
			st.end(stanza.StreamConditionOf(err), publicText(err), nil)
			return goOn
		}
		if item.Kind == xmltok.None {
			st.notePartial(now)
			return goOn
		}
		if v := st.handle(&item); v != goOn {
			return v
		}
		if st.ending.Load() {
			return goOn
		}
	}
}

// flooded counts what arrives before login and reports whether that is too much.
func (st *stream) flooded(n int) bool {
	if st.phase > phaseLogin || !st.user.IsZero() || st.unlimited {
		return false
	}
	st.neg.bytes += n
	return st.neg.bytes > maxBytesBefore
}

// discard counts what comes after the last word. Too much of it ends the connection, or once TLS is there its reading.
func (st *stream) discard(n int) {
	if st.discarded += n; st.discarded > maxDiscarded && st.phase == phasePlain {
		st.kill()
	}
}

// notePartial remembers since when a stanza has been arriving.
func (st *stream) notePartial(now time.Time) {
	switch {
	case st.dec.Pending() == 0:
		st.partial.Store(0)
	case st.partial.Load() == 0:
		st.partial.Store(now.UnixNano())
	}
}

func (st *stream) handle(item *xmltok.Item) verdict {
	st.partial.Store(0)
	switch {
	case item.Kind == xmltok.Whitespace:
		if st.authenticating() {
			st.interrupted()
		}
		return goOn
	case item.Kind == xmltok.StreamClose:
		st.hear()
		return goOn
	case item.Kind == xmltok.StreamOpen:
		st.open(item)
		return goOn
	}
	switch st.phase {
	case phasePlain:
		return st.handlePlain(item)
	case phaseLogin:
		st.handleLogin(item)
	case phaseBind:
		st.handleBind(item)
	case phaseLive:
		st.handleLive(item)
	default:
		st.end(stanza.StreamNotAuthorized, "", nil)
	}
	return goOn
}

// write sends bytes before a session is bound. Errors show at the next read.
func (st *stream) write(b []byte) {
	st.out.Lock()
	defer st.out.Unlock()
	if st.mute {
		return
	}
	if _, err := st.conn.Write(b); err != nil {
		st.kill()
	}
}

// end ends the stream with an error (RFC 6120 section 4.9), its session too. text is for people, or the
// host of see-other-host; extra is a canonical application-specific element. It does not wait.
func (st *stream) end(cond stanza.StreamCondition, text string, extra []byte) {
	if !st.ending.CompareAndSwap(false, true) {
		return
	}
	st.run.srv.counters.streamError(cond)
	var b []byte
	if !st.greeted.Swap(true) {
		b = st.header(nil, jid.JID{})
	}
	b = append(b, stanza.StreamError(cond, text, extra)...)
	st.lastWord(append(b, closeTag...))
}

// hear answers the client's end of the stream.
func (st *stream) hear() {
	if !st.ending.CompareAndSwap(false, true) {
		return
	}
	if s := st.sess.Load(); s != nil {
		s.closing(st)
	}
	st.lastWord([]byte(closeTag))
}

// lastWord sends the end of the stream and closes the sending side; the client's answer is read and dropped.
func (st *stream) lastWord(b []byte) {
	st.deadline.Store(time.Now().Add(closeTimeout).UnixNano())
	if s := st.sess.Load(); s != nil {
		s.farewell(st, b)
		return
	}
	go func() {
		st.write(b)
		st.closeWrite()
	}()
}

// closeWrite closes the sending side, so that the client reads all that was sent even if it is still sending.
func (st *stream) closeWrite() {
	st.out.Lock()
	t, secure := st.conn.(*tls.Conn)
	st.out.Unlock()
	if secure {
		_ = t.CloseWrite()
	}
	c, ok := st.wire.Conn.(interface{ CloseWrite() error })
	open := ok && c.CloseWrite() == nil
	st.said.Store(true)
	if !open || st.eof.Load() {
		st.kill()
	}
}
