package stubserver

import (
	"bytes"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"net"
	"strings"
	"sync"

	"muster/cmd/musterbench/wire"
)

// iterations is low because the stub protects nothing.
const iterations = 64

var salt = []byte("stub")

// session is one client connection.
type session struct {
	net.Conn
	server  *Server
	scanner *wire.Scanner
	secured bool
	user    string // local part after SASL
	jid     string // full JID after bind
	write   sync.Mutex

	// of a SCRAM exchange under way
	hash   func() hash.Hash
	inline *inline // by SASL2; nil: not
	first  string  // client-first-bare and server-first
	nonce  string
	name   string
}

// errRestart ends the reading of one stream: another begins on the same connection.
var errRestart = errors.New("stream restart")

func (c *session) run() {
	if c.server.HangUp && c.secured {
		_ = c.Conn.(*tls.Conn).Handshake()
		return
	}
	defer c.leave()
	buffer := make([]byte, readBuffer)
	for {
		n, err := c.Read(buffer)
		if err != nil {
			return
		}
		err = c.scanner.Feed(buffer[:n], c.handle)
		if errors.Is(err, errRestart) {
			c.scanner.Reset()
		} else if err != nil {
			return
		}
	}
}

func (c *session) send(text string) {
	c.write.Lock()
	defer c.write.Unlock()
	_, _ = c.Write([]byte(text)) // a client that is gone ends its own reader
}

func (c *session) leave() {
	s := c.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions[c.bare()] == c {
		delete(s.sessions, c.bare())
	}
}

func (c *session) bare() string { return c.user + "@" + c.server.Domain }

var errClosed = errors.New("stream closed")

// handle answers one frame.
func (c *session) handle(frame []byte) error {
	switch {
	case wire.Named(frame, "stream:stream"):
		c.send(`<?xml version="1.0"?><stream:stream id="1" from="` + c.server.Domain + `" version="1.0" xmlns="jabber:client" ` +
			`xmlns:stream="http://etherx.jabber.org/streams"><stream:features>` + c.features() + `</stream:features>`)
	case wire.Named(frame, "/stream:stream"):
		c.send(`</stream:stream>`)
		return errClosed
	case wire.Named(frame, "starttls"):
		c.send(`<proceed xmlns="urn:ietf:params:xml:ns:xmpp-tls"/>`)
		c.Conn, c.secured = tls.Server(c.Conn, c.server.config), true
		return errRestart
	case wire.Named(frame, "auth"):
		return c.auth(frame)
	case wire.Named(frame, "authenticate"):
		return c.authenticate(frame)
	case wire.Named(frame, "response"):
		return c.proof(frame)
	case wire.Named(frame, "enable"):
		c.send(`<enabled xmlns="urn:xmpp:sm:3" resume="true" id="` + c.server.remember(c.jid) + `"/>`)
	case wire.Named(frame, "resume"):
		c.send(c.resume(frame))
	case wire.Named(frame, "iq"):
		c.iq(frame)
	case wire.Named(frame, "presence"):
		c.presence(frame)
	case wire.Named(frame, "message"):
		c.server.message(c.jid, string(wire.Attr(frame, "to")), frame)
	}
	return nil
}

func (c *session) features() string {
	switch {
	case !c.secured:
		return `<starttls xmlns="urn:ietf:params:xml:ns:xmpp-tls"><required/></starttls>`
	case c.user == "":
		return `<authentication xmlns="urn:xmpp:sasl:2"><mechanism>SCRAM-SHA-1</mechanism></authentication><mechanisms xmlns="urn:ietf:params:xml:ns:xmpp-sasl"><mechanism>SCRAM-SHA-256</mechanism>` +
			`<mechanism>SCRAM-SHA-1</mechanism><mechanism>PLAIN</mechanism></mechanisms>`
	}
	return `<bind xmlns="urn:ietf:params:xml:ns:xmpp-bind"/>`
}

func (c *session) password(local string) (string, bool) {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	password, ok := c.server.accounts[local]
	return password, ok
}

// auth starts SASL.
func (c *session) auth(frame []byte) error {
	initial, _ := base64.StdEncoding.DecodeString(string(wire.Text(frame, "auth")))
	return c.exchange(frame, initial)
}

// exchange takes the first message of a mechanism.
func (c *session) exchange(frame, initial []byte) error {
	switch mechanism := string(wire.Attr(frame, "mechanism")); mechanism {
	case "PLAIN":
		parts := strings.Split(string(initial), "\x00")
		if len(parts) != 3 {
			return c.refuse()
		}
		if password, ok := c.password(parts[1]); !ok || password != parts[2] {
			return c.refuse()
		}
		return c.accept(parts[1], "")
	case "SCRAM-SHA-1":
		c.hash = sha1.New
	case "SCRAM-SHA-256":
		c.hash = sha256.New
	default:
		return c.refuse()
	}
	bare := strings.TrimPrefix(string(initial), "n,,")
	name, nonce, _ := strings.Cut(bare, ",r=")
	c.name, c.nonce = strings.TrimPrefix(name, "n="), nonce+"server"
	first := fmt.Sprintf("r=%s,s=%s,i=%d", c.nonce, base64.StdEncoding.EncodeToString(salt), iterations)
	c.first = bare + "," + first
	c.send(`<challenge xmlns="` + c.profile() + `">` + base64.StdEncoding.EncodeToString([]byte(first)) + `</challenge>`)
	return nil
}

func (c *session) refuse() error {
	c.send(`<failure xmlns="` + c.profile() + `"><not-authorized xmlns="urn:ietf:params:xml:ns:xmpp-sasl"/></failure>`)
	return nil
}

func (c *session) accept(user, final string) error {
	c.user = user
	if c.inline != nil {
		c.welcome(final)
		return nil
	}
	c.send(`<success xmlns="urn:ietf:params:xml:ns:xmpp-sasl">` + base64.StdEncoding.EncodeToString([]byte(final)) + `</success>`)
	return errRestart
}

// proof checks a SCRAM client-final message.
func (c *session) proof(frame []byte) error {
	text, _ := base64.StdEncoding.DecodeString(string(wire.Text(frame, "response")))
	without, encoded, _ := strings.Cut(string(text), ",p=")
	given, _ := base64.StdEncoding.DecodeString(encoded)
	password, known := c.password(c.name)
	if !known || c.hash == nil || without != "c=biws,r="+c.nonce {
		return c.refuse()
	}
	key, err := pbkdf2.Key(c.hash, password, salt, iterations, c.hash().Size())
	if err != nil {
		return err
	}
	message := c.first + "," + without
	clientKey := c.mac(key, "Client Key")
	stored := c.hash()
	stored.Write(clientKey)
	want := make([]byte, len(clientKey))
	subtle.XORBytes(want, clientKey, c.mac(stored.Sum(nil), message))
	if !hmac.Equal(want, given) {
		return c.refuse()
	}
	signature := c.mac(c.mac(key, "Server Key"), message)
	if c.server.BadProof {
		signature[0]++
	}
	return c.accept(c.name, "v="+base64.StdEncoding.EncodeToString(signature))
}

func (c *session) mac(key []byte, text string) []byte {
	h := hmac.New(c.hash, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// iq answers bind, roster, registration and pings; anything else is an error.
func (c *session) iq(frame []byte) {
	id := string(wire.Attr(frame, "id"))
	switch {
	case string(wire.Attr(frame, "type")) == "result":
	case bytes.Contains(frame, []byte("xmpp-bind")):
		resource := string(wire.Text(frame, "resource"))
		c.bind(resource)
		c.send(`<iq type="result" id="` + id + `"><bind xmlns="urn:ietf:params:xml:ns:xmpp-bind"><jid>` + c.jid + `</jid></bind></iq>`)
		c.send(`<iq type="get" id="ping" from="` + c.server.Domain + `"><ping xmlns="urn:xmpp:ping"/></iq>`)
	case bytes.Contains(frame, []byte("jabber:iq:roster")):
		c.roster(id)
	case bytes.Contains(frame, []byte("jabber:iq:register")):
		c.register(id, frame)
	default:
		c.send(`<iq type="error" id="` + id + `"><error type="cancel"><service-unavailable/></error></iq>`)
	}
}

// bind makes the session.
func (c *session) bind(resource string) {
	c.jid = c.bare() + "/" + resource
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	c.server.sessions[c.bare()] = c
	c.server.logins++
}

func (c *session) roster(id string) {
	var items strings.Builder
	for _, contact := range c.server.Roster(c.bare()) {
		items.WriteString(`<item jid="` + contact + `" subscription="both"/>`)
	}
	c.send(`<iq type="result" id="` + id + `"><query xmlns="jabber:iq:roster">` + items.String() + `</query></iq>`)
}

func (c *session) register(id string, frame []byte) {
	local := string(wire.Text(frame, "username"))
	_, exists := c.password(local)
	switch {
	case c.server.NoSignup:
		c.send(`<iq type="error" id="` + id + `"><error type="cancel"><not-allowed/></error></iq>`)
	case exists:
		c.send(`<iq type="error" id="` + id + `"><error type="cancel"><conflict/></error></iq>`)
	default:
		c.server.AddUser(local, string(wire.Text(frame, "password")))
		c.send(`<iq type="result" id="` + id + `"/>`)
	}
}

// presence handles subscriptions and tells contacts of availability.
func (c *session) presence(frame []byte) {
	to := string(wire.Attr(frame, "to"))
	s := c.server
	switch string(wire.Attr(frame, "type")) {
	case "subscribe":
		s.mu.Lock()
		s.asked[c.bare()+" "+to] = true
		s.mu.Unlock()
		s.route(to, stamped(frame, c.bare()))
	case "subscribed":
		s.mu.Lock()
		if s.asked[to+" "+c.bare()] {
			s.befriend(to, c.bare())
		}
		s.mu.Unlock()
		s.route(to, stamped(frame, c.bare()))
	case "":
		for _, contact := range append(s.Roster(c.bare()), c.bare()) {
			s.route(contact, stamped(frame, c.jid))
		}
	}
}
