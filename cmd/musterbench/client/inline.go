package client

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"hash"
	"strings"
	"sync"

	"muster/cmd/musterbench/target"
	"muster/cmd/musterbench/wire"
	"muster/internal/fault"
)

// Flow says how a connection logs in once TLS is up.
type Flow string

// The flows.
const (
	Classic Flow = "classic" // RFC 6120: SASL, a new stream, then binding
	Inline  Flow = "inline"  // SASL2 with Bind 2 (XEP-0388, XEP-0386): stream header, login and binding in one go
	Token   Flow = "token"   // the same with a token (XEP-0484): one round trip; the first login of a user gets it with the password
	Unbound Flow = "unbound" // SASL only: to bind (Conn.Bind), or to resume a session (XEP-0198 section 5), is the caller's
)

// tokenMechanism is the mechanism by which tokens are used.
const tokenMechanism = "HT-SHA-256-NONE"

// Wallet keeps the tokens of a run's users. Use it from any goroutine.
type Wallet struct{ tokens sync.Map }

func (w *Wallet) get(user target.User) string {
	token, _ := w.tokens.Load(user.JID())
	text, _ := token.(string)
	return text
}

// keep stores the token that <success/> brings, if it brings one.
func (w *Wallet) keep(user target.User, success []byte) {
	_, rest, found := strings.Cut(string(success), "<token ")
	if !found {
		return
	}
	if token := wire.Attr([]byte("<token "+rest), "token"); token != nil {
		w.tokens.Store(user.JID(), string(token))
	}
}

// Has reports whether the wallet holds a token of that user.
func (w *Wallet) Has(user target.User) bool { return w.get(user) != "" }

// userAgent returns the id of the user's one installation: always the same UUID v4.
func userAgent(user target.User) string {
	b := sha256.Sum256([]byte("musterbench " + user.JID()))
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// authenticateInline sends the stream header and the login together, as a client does that knows the server.
func (c *Conn) authenticateInline(user target.User, o Options) error {
	if o.Flow != Token {
		return c.inlinePassword(user, o, "")
	}
	if o.Wallet == nil {
		return fault.New(fault.BadRequest, "client.login", user.JID(), "logins by token need a wallet")
	}
	if token := o.Wallet.get(user); token != "" {
		return c.inlineToken(user, o, token)
	}
	return c.inlinePassword(user, o, `<request-token xmlns='urn:xmpp:fast:0' mechanism='`+tokenMechanism+`'/>`)
}

// inlineToken logs in with a token (draft-schmaus-kitten-sasl-ht).
func (c *Conn) inlineToken(user target.User, o Options, token string) error {
	if err := c.begin(user, o, tokenMechanism, tokenInitial(user, token), `<fast xmlns='urn:xmpp:fast:0'/>`); err != nil {
		return err
	}
	data, err := c.inlineSuccess(user, o)
	if err != nil {
		return err
	}
	if !hmac.Equal(data, mac(sha256.New, []byte(token), "Responder")) {
		return fault.New(fault.Forbidden, "client.login", user.JID(), "the server does not know the token")
	}
	return nil
}

func tokenInitial(user target.User, token string) string {
	return user.Local + "\x00" + string(mac(sha256.New, []byte(token), "Initiator"))
}

// inlinePassword logs in by SCRAM or PLAIN.
func (c *Conn) inlinePassword(user target.User, o Options, more string) error {
	newHash, known := mechanisms[o.Mechanism]
	switch {
	case !known:
		return fault.New(fault.BadRequest, "client.sasl", o.Mechanism, "the mechanism must be SCRAM-SHA-1, SCRAM-SHA-256 or PLAIN")
	case newHash == nil:
		if err := c.begin(user, o, o.Mechanism, "\x00"+user.Local+"\x00"+string(user.Password), more); err != nil {
			return err
		}
		_, err := c.inlineSuccess(user, o)
		return err
	}
	return c.inlineScram(user, o, newHash, more)
}

func (c *Conn) inlineScram(user target.User, o Options, newHash func() hash.Hash, more string) error {
	nonce := rand.Text()
	bare := "n=" + escape(user.Local) + ",r=" + nonce
	if err := c.begin(user, o, o.Mechanism, "n,,"+bare, more); err != nil {
		return err
	}
	challenge, err := c.Expect("challenge")
	if err != nil {
		return err
	}
	serverFirst, err := decode(challenge)
	if err != nil {
		return err
	}
	final, signature, err := respond(newHash, string(user.Password), nonce, bare, serverFirst)
	if err != nil {
		return err
	}
	if err := c.Send([]byte(`<response xmlns='urn:xmpp:sasl:2'>` + encode(final) + `</response>`)); err != nil {
		return err
	}
	data, err := c.inlineSuccess(user, o)
	if err != nil {
		return err
	}
	return checkSignature(string(data), signature)
}

// begin sends the stream header and the login, and asks for a session.
func (c *Conn) begin(user target.User, o Options, mechanism, initial, more string) error {
	tag := ""
	if o.Resource != "" {
		tag = `<tag>` + o.Resource + `</tag>`
	}
	return c.authenticateWith(user, mechanism, initial, `<bind xmlns='urn:xmpp:bind:0'>`+tag+`</bind>`+more)
}

// authenticateWith sends the stream header and the login, with what else is asked for.
func (c *Conn) authenticateWith(user target.User, mechanism, initial, more string) error {
	return c.Send([]byte(streamHeader(user.Domain, user.JID()) +
		`<authenticate xmlns='urn:xmpp:sasl:2' mechanism='` + mechanism + `'><initial-response>` + encode(initial) + `</initial-response>` +
		`<user-agent id='` + userAgent(user) + `'><software>musterbench</software></user-agent>` + more + `</authenticate>`))
}

// inlineSuccess reads the outcome, and returns the mechanism's last data.
func (c *Conn) inlineSuccess(user target.User, o Options) ([]byte, error) {
	success, err := c.Expect("success")
	if err != nil {
		return nil, err
	}
	jid := wire.Text(success, "authorization-identifier")
	if !strings.Contains(string(success), "<bound ") || jid == nil {
		return nil, refused("client.bind", success)
	}
	c.JID = string(jid)
	if o.Wallet != nil {
		o.Wallet.keep(user, success)
	}
	data, err := base64.StdEncoding.DecodeString(string(wire.Text(success, "additional-data")))
	return data, fault.Wrap(err, fault.BadRequest, "client.login", user.JID())
}
