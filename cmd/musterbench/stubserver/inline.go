package stubserver

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"

	"muster/cmd/musterbench/wire"
)

// inline is what a login by SASL2 (XEP-0388) asks for.
type inline struct {
	tag        string // of the resource
	resume     []byte // the session to go on with; nil: a new one
	wantsToken bool
}

// profile returns the namespace of the login under way.
func (c *session) profile() string {
	if c.inline != nil {
		return "urn:xmpp:sasl:2"
	}
	return "urn:ietf:params:xml:ns:xmpp-sasl"
}

// authenticate starts a login by SASL2, by password or by token (XEP-0484).
func (c *session) authenticate(frame []byte) error {
	c.inline = &inline{tag: string(wire.Text(frame, "tag")), wantsToken: bytes.Contains(frame, []byte("<request-token "))}
	if at := bytes.Index(frame, []byte("<resume ")); at >= 0 {
		c.inline.resume = bytes.Clone(frame[at:])
	}
	initial, _ := base64.StdEncoding.DecodeString(string(wire.Text(frame, "initial-response")))
	if string(wire.Attr(frame, "mechanism")) != "HT-SHA-256-NONE" {
		return c.exchange(frame, initial)
	}
	name, code, _ := bytes.Cut(initial, []byte{0})
	if _, known := c.password(string(name)); !known || !hmac.Equal(code, tokenCode(string(name), "Initiator")) {
		return c.refuse()
	}
	c.server.mu.Lock()
	c.server.byToken++
	c.server.mu.Unlock()
	answer := tokenCode(string(name), "Responder")
	if c.server.BadProof {
		answer[0]++
	}
	return c.accept(string(name), string(answer))
}

// tokenOf returns the one token of a user: the stub protects nothing.
func tokenOf(name string) string { return "token of " + name }

func tokenCode(name, role string) []byte {
	m := hmac.New(sha256.New, []byte(tokenOf(name)))
	m.Write([]byte(role))
	return m.Sum(nil)
}

// welcome tells the client that it is logged in and bound.
func (c *session) welcome(final string) {
	if c.inline.resume != nil {
		c.send(`<success xmlns="urn:xmpp:sasl:2"><additional-data>` + base64.StdEncoding.EncodeToString([]byte(final)) +
			`</additional-data><authorization-identifier>` + c.bare() + `</authorization-identifier>` + c.resume(c.inline.resume) + `</success><stream:features/>`)
		return
	}
	c.bind(c.inline.tag)
	token := ""
	if c.inline.wantsToken && !c.server.NoTokens {
		token = `<token xmlns="urn:xmpp:fast:0" expiry="2100-01-01T00:00:00Z" token="` + tokenOf(c.user) + `"/>`
	}
	c.send(`<success xmlns="urn:xmpp:sasl:2"><additional-data>` + base64.StdEncoding.EncodeToString([]byte(final)) +
		`</additional-data><authorization-identifier>` + c.jid + `</authorization-identifier><bound xmlns="urn:xmpp:bind:0"/>` + token +
		`</success><stream:features/>`)
}

// remember makes a session one that can be resumed, and returns its id.
func (s *Server) remember(jid string) (id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id = "sm-" + jid
	s.resumable[id] = true
	return id
}

// resume answers a request for resumption (XEP-0198 section 5); each session can be resumed once.
func (c *session) resume(frame []byte) string {
	id := string(wire.Attr(frame, "previd"))
	s := c.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.Busy > 0 {
		s.Busy--
		return `<stream:error><resource-constraint xmlns="urn:ietf:params:xml:ns:xmpp-streams"/></stream:error>`
	}
	if s.Forgetful || !s.resumable[id] {
		return `<failed xmlns="urn:xmpp:sm:3"><item-not-found xmlns="urn:ietf:params:xml:ns:xmpp-stanzas"/></failed>`
	}
	delete(s.resumable, id)
	c.jid = id[len("sm-"):]
	s.sessions[c.bare()] = c
	s.resumed++
	return `<resumed xmlns="urn:xmpp:sm:3" h="1" previd="` + id + `"/>`
}
