// Package client is the load generator's light XMPP client.
//
// It speaks just enough of RFC 6120 to log in to any server (direct TLS or
// STARTTLS, SCRAM or PLAIN, resource binding) and then moves bytes: stanzas are
// written as prepared byte slices and read as raw frames. It also speaks the
// relay's protocol of one hello line, so that the same scenarios measure the
// floor. Every TLS handshake is a full one; session tickets are never used.
package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"time"

	"muster/cmd/musterbench/target"
	"muster/cmd/musterbench/wire"
	"muster/internal/fault"
)

// Transport says how a connection gets its TLS and what is spoken inside.
type Transport string

// The transports.
const (
	Direct   Transport = "direct"   // TLS from the first byte (XEP-0368)
	StartTLS Transport = "starttls" // RFC 6120 section 5
	Relay    Transport = "relay"    // direct TLS, then the relay's hello line instead of XMPP
)

// Sizes of what a connection holds, in bytes. Idle runs keep thousands of connections, so both are small.
const (
	readBuffer    = 2048
	maxHandshakes = 64 // frames that a server may send before a login step's answer
)

// Options says how to log in.
type Options struct {
	Address   string
	Transport Transport
	TLS       *tls.Config
	Mechanism string        // SCRAM-SHA-1, SCRAM-SHA-256 or PLAIN
	Source    net.IP        // local address; nil lets the kernel choose
	Resource  string        // asked for when binding; empty lets the server choose
	Timeout   time.Duration // for the whole login
	Partners  []string      // relay only: names that get what this connection sends
	Flow      Flow          // how to log in; "" is Classic
	Wallet    *Wallet       // tokens, for the flow that uses them
}

// Conn is a connection that is being logged in, or has been.
type Conn struct {
	net.Conn
	JID string // full JID after Login

	scanner *wire.Scanner
	buffer  []byte
	queue   [][]byte
}

// TLSConfig returns what every connection of a run uses. An empty ca file means
// that certificates are not checked. Key exchange is X25519 unless postQuantum
// is set, so that servers with and without ML-KEM do the same work.
func TLSConfig(ca, domain string, transport Transport, postQuantum bool) (*tls.Config, error) {
	config := &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: domain, InsecureSkipVerify: ca == "",
		CurvePreferences: []tls.CurveID{tls.X25519},
	}
	if postQuantum {
		config.CurvePreferences = []tls.CurveID{tls.X25519MLKEM768}
	}
	if transport == Direct {
		config.NextProtos = []string{"xmpp-client"}
	}
	if ca == "" {
		return config, nil
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, fault.Wrap(err, fault.NotFound, "client.tls", ca)
	}
	config.RootCAs = x509.NewCertPool()
	if !config.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fault.New(fault.BadRequest, "client.tls", ca, "the file holds no PEM certificate")
	}
	return config, nil
}

// Dial connects and completes the TLS handshake.
func Dial(ctx context.Context, o Options, domain string) (*Conn, error) {
	dialer := net.Dialer{}
	if o.Source != nil {
		dialer.LocalAddr = &net.TCPAddr{IP: o.Source}
	}
	raw, err := dialer.DialContext(ctx, "tcp", o.Address)
	if err != nil {
		return nil, fault.Wrap(err, fault.Unavailable, "client.dial", o.Address)
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = raw.SetDeadline(deadline)
	}
	c := &Conn{Conn: raw, scanner: new(wire.Scanner), buffer: make([]byte, readBuffer)}
	if err := c.secure(ctx, o, domain); err != nil {
		_ = raw.Close()
		return nil, err
	}
	return c, nil
}

func (c *Conn) secure(ctx context.Context, o Options, domain string) error {
	if o.Transport == StartTLS {
		if err := c.startTLS(domain); err != nil {
			return err
		}
	}
	secured := tls.Client(c.Conn, o.TLS)
	if err := secured.HandshakeContext(ctx); err != nil {
		return fault.Wrap(err, fault.Unavailable, "client.handshake", o.Address)
	}
	c.Conn = secured
	return nil
}

func (c *Conn) startTLS(domain string) error {
	if _, err := c.open(domain); err != nil {
		return err
	}
	if err := c.Send([]byte(`<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>`)); err != nil {
		return err
	}
	if _, err := c.Expect("proceed"); err != nil {
		return err
	}
	c.scanner.Reset()
	return nil
}

// Login dials and logs user in: SASL and bind, or the relay's hello.
func Login(ctx context.Context, o Options, user target.User) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	c, err := Dial(ctx, o, user.Domain)
	if err != nil {
		return nil, err
	}
	switch {
	case o.Transport == Relay:
		err = c.hello(user, o.Partners)
	case o.Flow == Inline || o.Flow == Token:
		err = c.authenticateInline(user, o)
	default:
		err = c.authenticate(user, o)
	}
	if err != nil {
		_ = c.Conn.Close()
		return nil, err
	}
	_ = c.SetDeadline(time.Time{})
	return c, nil
}

func (c *Conn) authenticate(user target.User, o Options) error {
	features, err := c.open(user.Domain)
	if err != nil {
		return err
	}
	if err := c.sasl(user, o.Mechanism, features); err != nil {
		return err
	}
	c.scanner.Reset()
	if _, err := c.open(user.Domain); err != nil || o.Flow == Unbound {
		return err
	}
	return c.Bind(o.Resource)
}

// hello introduces the connection to the relay: its name, then its partners'.
func (c *Conn) hello(user target.User, partners []string) error {
	var line bytes.Buffer
	line.WriteString(user.JID())
	for _, p := range partners {
		line.WriteString(" " + p)
	}
	line.WriteByte('\n')
	if err := c.Send(line.Bytes()); err != nil {
		return err
	}
	c.JID = user.JID()
	c.scanner = wire.NewInside()
	_, err := c.Expect("ok")
	return err
}

// open sends a stream header and returns the features.
func (c *Conn) open(domain string) ([]byte, error) {
	if err := c.Send([]byte(streamHeader(domain, ""))); err != nil {
		return nil, err
	}
	return c.Expect("stream:features")
}

// streamHeader returns a stream header; from may be empty.
func streamHeader(domain, from string) string {
	if from != "" {
		from = ` from='` + from + `'`
	}
	return `<?xml version='1.0'?><stream:stream to='` + domain + `'` + from + ` version='1.0' xml:lang='en' ` +
		`xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>`
}

// Bind binds a resource (RFC 6120 section 7); with "" the server chooses.
func (c *Conn) Bind(resource string) error {
	request := `<iq type='set' id='bind'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>`
	if resource != "" {
		request = `<iq type='set' id='bind'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>` +
			resource + `</resource></bind></iq>`
	}
	if err := c.Send([]byte(request)); err != nil {
		return err
	}
	answer, err := c.Expect("iq")
	if err != nil {
		return err
	}
	jid := wire.Text(answer, "jid")
	if string(wire.Attr(answer, "type")) != "result" || jid == nil {
		return refused("client.bind", answer)
	}
	c.JID = string(jid)
	return nil
}

// Send writes one prepared stanza.
func (c *Conn) Send(stanza []byte) error {
	_, err := c.Write(stanza)
	return fault.Wrap(err, fault.Unavailable, "client.send", c.JID)
}

// Expect reads until a frame of the given name and returns a copy of it. A
// stream error or a SASL failure on the way is the error returned.
func (c *Conn) Expect(name string) ([]byte, error) {
	return c.Await(func(frame []byte) bool { return wire.Named(frame, name) })
}

// Await reads until wanted says yes and returns a copy of that frame; other frames are dropped.
func (c *Conn) Await(wanted func(frame []byte) bool) ([]byte, error) {
	for range maxHandshakes {
		frame, err := c.next()
		if err != nil {
			return nil, err
		}
		if wanted(frame) {
			return frame, nil
		}
		if wire.Named(frame, "failure") || wire.Named(frame, "stream:error") || wire.Named(frame, "/stream:stream") {
			return nil, refused("client.await", frame)
		}
	}
	return nil, fault.New(fault.Unavailable, "client.await", c.JID, "the server sends everything but the answer")
}

// next returns the next frame, reading as needed.
func (c *Conn) next() ([]byte, error) {
	for len(c.queue) == 0 {
		n, err := c.Read(c.buffer)
		if err != nil {
			return nil, fault.Wrap(err, fault.Unavailable, "client.read", c.JID)
		}
		err = c.scanner.Feed(c.buffer[:n], func(frame []byte) error {
			c.queue = append(c.queue, bytes.Clone(frame))
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	frame := c.queue[0]
	c.queue = c.queue[1:]
	return frame, nil
}

// Serve reads frames until the connection ends and hands each to handle, from
// one goroutine. A frame is valid only during the call. It returns why it ended.
func (c *Conn) Serve(handle func(frame []byte)) error {
	for _, frame := range c.queue {
		handle(frame)
	}
	c.queue = nil
	for {
		n, err := c.Read(c.buffer)
		if n > 0 {
			if err := c.scanner.Feed(c.buffer[:n], func(frame []byte) error { handle(frame); return nil }); err != nil {
				return err
			}
		}
		if err != nil {
			return fault.Wrap(err, fault.Unavailable, "client.read", c.JID)
		}
	}
}

// Logout closes the stream and waits for the server's own close, so that all
// work of this session is done when it returns.
func (c *Conn) Logout(timeout time.Duration) {
	_ = c.SetDeadline(time.Now().Add(timeout))
	if c.Send([]byte(`</stream:stream>`)) == nil {
		for {
			frame, err := c.next()
			if err != nil || wire.Named(frame, "/stream:stream") {
				break
			}
		}
	}
	_ = c.Close()
}

// refused makes an error of a frame in which the server said no.
func refused(op string, frame []byte) error {
	const shown = 300
	return fault.New(fault.Forbidden, op, "", fmt.Sprintf("the server answered %.*s", shown, frame))
}
