//go:build chaos && linux

package crashtest

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"muster/cmd/musterbench/client"
	"muster/cmd/musterbench/target"
	"muster/cmd/musterbench/wire"
)

// Times and bounds of a device.
const (
	entryTime = 15 * time.Second       // to dial, authenticate and bind
	patience  = 10 * time.Second       // for an answer to <r/>; then the connection counts as lost
	stuckTime = 25 * time.Second       // for <resumed/> or <failed/>; then the client is stuck
	backoff   = 100 * time.Millisecond // before the next node is tried; doubled up to patient
	patient   = 2 * time.Second
	window    = 40 // messages under way, per device
	nsSM      = "urn:xmpp:sm:3"
)

// place is where devices can connect.
type place struct {
	name    string
	address func() string // of direct TLS
}

// device is a client that uses stream management (XEP-0198): when its
// connection breaks it goes to the next place and resumes there, or logs in anew.
type device struct {
	user      target.User
	tls       *tls.Config
	mechanism string
	source    net.IP
	places    []place
	blind     bool // sends again what is not acknowledged even if it has bounced, as most libraries do
	seat      int  // place where it begins
	at        int  // place where it is, or was last
	partners  []*device

	mu       sync.Mutex
	books    *books
	conn     *client.Conn // nil: offline
	ready    bool         // the session is there and presence is sent
	smid     string       // "": nothing to resume
	received uint32       // stanzas of the session
	told     uint32       // of these, those that the server knows of
	acked    uint32       // stanzas that the server has acknowledged
	unacked  []outgoing
	asked    time.Time // when the oldest unanswered <r/> was sent
	troubles []trouble
	silent   int // requests to resume that were never answered
	turn     int
	quit     chan struct{}
	gone     chan struct{}
}

// outgoing is a stanza that the server has not acknowledged.
type outgoing struct {
	stanza []byte
	parcel *parcel // nil: not a message
}

// trouble is one lost connection and how the client came back.
type trouble struct {
	from, to string // places
	lost     time.Time
	why      string
	tried    bool // it asked to resume and was answered
	resumed  bool
	back     time.Time // zero: not yet
	attempts int
}

// online reports whether the device has a session.
func (d *device) online() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ready
}

// begin brings the device online and keeps it there until leave.
func (d *device) begin(b *books) {
	d.mu.Lock()
	d.books, d.troubles, d.silent, d.at = b, nil, 0, d.seat
	d.quit, d.gone = make(chan struct{}), make(chan struct{})
	d.mu.Unlock()
	go d.live()
}

// leave closes the stream and waits. Leaving twice is leaving once.
func (d *device) leave() {
	d.mu.Lock()
	select {
	case <-d.quit:
	default:
		close(d.quit)
	}
	d.mu.Unlock()
	<-d.gone
}

func (d *device) live() {
	defer close(d.gone)
	defer d.forget()
	wait := backoff
	for {
		conn, err := d.enter()
		if err == nil {
			wait = backoff
			err = d.serve(conn)
		}
		select {
		case <-d.quit:
			return
		default:
		}
		d.lose(err)
		select {
		case <-d.quit:
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, patient)
	}
}

// forget gives up the session, and what was under way in it.
func (d *device) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.conn, d.ready, d.smid, d.unacked, d.asked = nil, false, "", nil, time.Time{}
}

// lose notes that the connection, or the attempt to get one, failed, and turns to the next place.
func (d *device) lose(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := len(d.troubles); n > 0 && d.troubles[n-1].back.IsZero() {
		d.troubles[n-1].attempts++
	} else if d.ready || d.smid != "" {
		d.troubles = append(d.troubles, trouble{from: d.places[d.at].name, lost: time.Now(), why: fmt.Sprint(err)})
	}
	d.conn, d.ready, d.asked = nil, false, time.Time{}
	d.at = (d.at + 1) % len(d.places)
}

// enter connects, and resumes or binds.
func (d *device) enter() (*client.Conn, error) {
	conn, err := client.Login(context.Background(), client.Options{Address: d.places[d.at].address(), Transport: client.Direct, TLS: d.tls,
		Mechanism: d.mechanism, Source: d.source, Timeout: entryTime, Flow: client.Unbound}, d.user)
	if err != nil {
		return nil, err
	}
	fresh := true
	if d.smid != "" {
		fresh, err = d.resume(conn)
	}
	if err == nil && fresh {
		err = d.bind(conn)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

var errStuck = errors.New("neither <resumed/> nor <failed/> came")

// resume asks for the session of the lost connection; fresh: it is not to be had.
func (d *device) resume(conn *client.Conn) (fresh bool, err error) {
	_ = conn.SetDeadline(time.Now().Add(stuckTime))
	if err := conn.Send(fmt.Appendf(nil, `<resume xmlns='%s' h='%d' previd='%s'/>`, nsSM, d.received, d.smid)); err != nil {
		return false, err
	}
	answer, err := conn.Await(func(f []byte) bool { return wire.Named(f, "resumed") || wire.Named(f, "failed") })
	if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
		d.mu.Lock()
		d.silent++
		d.mu.Unlock()
		return false, errStuck
	}
	if err != nil {
		return false, err
	}
	_ = conn.SetDeadline(time.Time{})
	d.mu.Lock()
	defer d.mu.Unlock()
	t := &d.troubles[len(d.troubles)-1]
	t.tried, t.resumed = true, wire.Named(answer, "resumed")
	if h, err := strconv.ParseUint(string(wire.Attr(answer, "h")), 10, 32); err == nil {
		d.acknowledged(uint32(h))
	}
	if !t.resumed {
		t.why += "; " + string(answer)
		d.smid = ""
		return true, nil
	}
	d.told = d.received
	return false, d.established(conn)
}

// bind makes a new session. What the old one did not get acknowledged is sent again.
func (d *device) bind(conn *client.Conn) error {
	_ = conn.SetDeadline(time.Now().Add(entryTime))
	if err := conn.Bind("phone"); err != nil {
		return err
	}
	if err := conn.Send([]byte(`<enable xmlns='` + nsSM + `' resume='true'/>`)); err != nil {
		return err
	}
	enabled, err := conn.Await(func(f []byte) bool { return wire.Named(f, "enabled") || wire.Named(f, "failed") })
	if err != nil {
		return err
	}
	if wire.Named(enabled, "failed") {
		return fmt.Errorf("no stream management: %s", enabled)
	}
	_ = conn.SetDeadline(time.Time{})
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.unacked
	d.smid = string(bytes.Clone(wire.Attr(enabled, "id")))
	d.received, d.told, d.acked = 0, 0, 0
	d.unacked = []outgoing{{stanza: []byte(`<presence/>`)}}
	for _, o := range old {
		if o.parcel != nil {
			d.unacked = append(d.unacked, o)
		}
	}
	return d.established(conn)
}

// established sends again what the server does not have. d.mu is held.
func (d *device) established(conn *client.Conn) error {
	var all []byte
	kept := d.unacked[:0]
	for _, o := range d.unacked {
		bounced := false
		if o.parcel != nil {
			d.books.note(o.parcel, func(p *parcel) {
				if bounced = !p.bounced.IsZero(); !bounced || d.blind {
					p.resent++
					p.again = bounced
				}
			})
		}
		if !bounced || d.blind {
			kept = append(kept, o)
			all = append(all, o.stanza...)
		}
	}
	d.unacked = kept
	if len(d.unacked) > 0 {
		all = append(all, request...)
		d.asked = time.Now()
	}
	if len(all) > 0 {
		_ = conn.SetWriteDeadline(time.Now().Add(patience))
		if err := conn.Send(all); err != nil {
			return err
		}
	}
	d.conn, d.ready = conn, true
	if n := len(d.troubles); n > 0 && d.troubles[n-1].back.IsZero() {
		d.troubles[n-1].back, d.troubles[n-1].to = time.Now(), d.places[d.at].name
	}
	return nil
}

var request = []byte(`<r xmlns='` + nsSM + `'/>`)

// serve runs a connection to its end.
func (d *device) serve(conn *client.Conn) error {
	ended := make(chan error, 1)
	go func() { ended <- conn.Serve(d.handle) }()
	defer conn.Close()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			return err
		case <-d.quit:
			d.farewell(conn)
			<-ended
			return nil
		case <-tick.C:
			if err := d.care(); err != nil {
				conn.Close()
				<-ended
				return err
			}
		}
	}
}

// care acknowledges, asks, and notices a server that answers no more.
func (d *device) care() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.asked.IsZero() && time.Since(d.asked) > patience {
		return fmt.Errorf("no answer to <r/> within %v", patience)
	}
	var out []byte
	if d.told != d.received {
		out = d.ack()
	}
	if d.asked.IsZero() && len(d.unacked) > 0 {
		out = append(out, request...)
		d.asked = time.Now()
	}
	if len(out) == 0 {
		return nil
	}
	return d.put(out)
}

// put writes to the connection. d.mu is held.
func (d *device) put(b []byte) error {
	_ = d.conn.SetWriteDeadline(time.Now().Add(patience))
	return d.conn.Send(b)
}

func (d *device) ack() []byte {
	d.told = d.received
	return fmt.Appendf(nil, `<a xmlns='%s' h='%d'/>`, nsSM, d.received)
}

// farewell acknowledges all and closes the stream; the session is over then.
func (d *device) farewell(conn *client.Conn) {
	d.mu.Lock()
	_ = d.put(append(d.ack(), `</stream:stream>`...))
	d.ready = false
	d.mu.Unlock()
	_ = conn.SetReadDeadline(time.Now().Add(3 * time.Second))
}

// handle takes an element from the server.
func (d *device) handle(frame []byte) {
	switch {
	case wire.Named(frame, "message"):
		d.books.receive(d, frame)
	case wire.Named(frame, "presence"), wire.Named(frame, "iq"):
	case wire.Named(frame, "r"):
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.conn != nil {
			_ = d.put(d.ack()) // a broken connection is noticed by the reader
		}
		return
	case wire.Named(frame, "a"):
		h, err := strconv.ParseUint(string(wire.Attr(frame, "h")), 10, 32)
		d.mu.Lock()
		defer d.mu.Unlock()
		if err == nil {
			d.acknowledged(uint32(h))
		}
		d.asked = time.Time{}
		return
	default:
		return
	}
	d.mu.Lock()
	d.received++
	d.mu.Unlock()
}

// acknowledged takes in how many stanzas the server has taken over. d.mu is held.
func (d *device) acknowledged(h uint32) {
	now := time.Now()
	for d.acked != h && len(d.unacked) > 0 {
		if p := d.unacked[0].parcel; p != nil {
			d.books.note(p, func(p *parcel) { p.acked = now })
		}
		d.unacked = d.unacked[1:]
		d.acked++
	}
}

// say sends the next message to the partner whose turn it is, unless too much is under way.
func (d *device) say() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.ready || len(d.unacked) >= window {
		return
	}
	p := d.books.write(d, d.partners[d.turn%len(d.partners)])
	d.turn++
	o := outgoing{stanza: p.stanza(), parcel: p}
	out := o.stanza
	if d.asked.IsZero() {
		out = append(bytes.Clone(out), request...)
		d.asked = time.Now()
	}
	d.unacked = append(d.unacked, o) // whether it was written or not, it is sent again
	if d.put(out) != nil {
		_ = d.conn.Close()
	}
}

// story tells of the device's connections, for a message.
func (d *device) story() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	parts := []string{d.user.Local}
	for _, t := range d.troubles {
		how := "logged in at"
		switch {
		case t.back.IsZero():
			how = "not back"
		case t.resumed:
			how = "resumed at"
		}
		parts = append(parts, fmt.Sprintf("lost %s %s (%.120s), %s %s %s after %d attempts", t.from, t.lost.Format(clock), t.why, how, t.to, t.back.Format(clock), t.attempts))
	}
	return strings.Join(parts, ", ")
}

// idle reports whether the device is online and everything it sent is acknowledged.
func (d *device) idle() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ready && len(d.unacked) == 0
}

// again is begin for the same books, with the troubles kept.
func (d *device) again(b *books) {
	d.mu.Lock()
	kept, silent := d.troubles, d.silent
	d.mu.Unlock()
	d.begin(b)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.troubles, d.silent = append(kept, d.troubles...), silent
}
