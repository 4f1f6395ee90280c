package sasl

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"unicode/utf8"

	"muster/fsm/token"
)

// tokenMechanisms maps the mechanisms that use a token to the channel binding
// that each needs, the strongest first (draft-schmaus-kitten-sasl-ht). That of
// tls-unique is missing: TLS 1.3 has no such binding.
var tokenMechanisms = []struct{ name, binding string }{
	{"HT-SHA-256-EXPR", "tls-exporter"},
	{"HT-SHA-256-ENDP", "tls-server-end-point"},
	{"HT-SHA-256-NONE", ""},
}

// Validity is what Tokens finds out about a token.
type Validity uint8

// The validities.
const (
	Unknown Validity = iota // not a token of that client
	Void                    // was one, and has expired or was made void
	Good
)

// Tokens knows the tokens with which clients log in again (XEP-0484).
type Tokens interface {
	// Find looks for the token that fits among those that the client may have of that account and
	// mechanism, and returns its day. Where there is no such account it is the zero one, and Find takes as long.
	Find(a Account, agent token.Agent, mechanism string, fits func(token []byte) bool) (day uint32, v Validity)
}

// TokenMechanisms returns the names of the mechanisms that use a token to offer to a peer, the strongest first.
func TokenMechanisms(p Peer) []string {
	var all []string
	for _, m := range tokenMechanisms {
		if p.binds(m.binding) {
			all = append(all, m.name)
		}
	}
	return all
}

// binds reports whether the peer has that channel binding; "" is none, which all have.
func (p Peer) binds(kind string) bool {
	for _, k := range p.Kinds {
		if k == kind {
			return true
		}
	}
	return kind == ""
}

// beginToken prepares a login by token; false if the mechanism is not offered.
func (e *Exchange) beginToken(mechanism string) bool {
	if e.a.o.Tokens == nil || e.peer.Agent == (token.Agent{}) {
		return false
	}
	for _, m := range tokenMechanisms {
		if m.name == mechanism && e.peer.binds(m.binding) {
			e.token, e.binding = mechanism, m.binding
			return true
		}
	}
	return false
}

// maxAuthcid is the longest name in a login by token, in bytes.
const maxAuthcid = 1023

// checkToken takes the only message of the client: its name, NUL, and a code over "Initiator" and the
// channel binding whose key is the token. The server's answer is the same over "Responder".
func (e *Exchange) checkToken(msg []byte) Step {
	name, code, ok := bytes.Cut(msg, []byte{0})
	if !ok || len(name) == 0 || len(name) > maxAuthcid || !utf8.Valid(name) || len(code) != sha256.Size {
		return failure(MalformedRequest, "malformed message of a login by token")
	}
	var binding []byte
	if e.binding != "" {
		if binding, ok = e.peer.Binding(e.binding); !ok {
			return failure(InvalidMechanism, "channel binding is not available on this connection")
		}
	}
	if err := e.find(string(name)); err != nil {
		return e.refused(err)
	}
	var answer []byte
	day, validity := e.a.o.Tokens.Find(e.account, e.peer.Agent, e.token, func(key []byte) bool {
		if !hmac.Equal(code, tokenCode(key, "Initiator", binding)) {
			return false
		}
		answer = tokenCode(key, "Responder", binding)
		return true
	})
	switch {
	case validity == Good && e.known:
		s := e.proved("", answer)
		s.TokenDay = day
		return s
	case validity == Void && e.known:
		return failure(CredentialsExpired, "the token has expired: log in with your password")
	}
	s := failure(NotAuthorized, wrongToken)
	s.Delay = e.a.o.Guard.FailedToken(e.name, e.peer.Address)
	return s
}

// wrongToken is the one text for a wrong name and a wrong token.
const wrongToken = "the token is not valid: log in with your password"

func tokenCode(key []byte, role string, binding []byte) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(role))
	m.Write(binding)
	return m.Sum(nil)
}
