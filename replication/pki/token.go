package pki

import (
	"encoding/base32"
	"strings"

	"muster/internal/fault"
)

// Token invites one node to a cluster. Only the SHA-256 of its secret is replicated.
type Token struct {
	Fingerprint [32]byte // SHA-256 of the cluster's CA certificate, which the joining node pins
	Secret      Secret   // 32 random bytes
}

const (
	tokenPrefix  = "muster-join-"
	tokenVersion = 1
	tokenBytes   = 1 + 32 + 32
)

var tokenCoding = base32.StdEncoding.WithPadding(base32.NoPadding)

// NewToken makes a token for the cluster whose CA has this fingerprint.
func NewToken(fingerprint [32]byte) Token {
	return Token{Fingerprint: fingerprint, Secret: NewSecret(32)}
}

// Reveal returns the token as an operator hands it on: "muster-join-" and
// base32 of version, fingerprint and secret. It is the only way to see the secret.
func (t Token) Reveal() string {
	b := append([]byte{tokenVersion}, t.Fingerprint[:]...)
	return tokenPrefix + strings.ToLower(tokenCoding.EncodeToString(append(b, t.Secret...)))
}

// String hides the secret.
func (t Token) String() string { return tokenPrefix + "***" }

// ParseToken reads what Reveal wrote; letter case and surrounding space do not matter.
func ParseToken(s string) (Token, error) {
	bad := func(text string) (Token, error) { return Token{}, fault.New(fault.BadRequest, "pki.token", "", text) }
	s = strings.TrimSpace(s)
	if len(s) > 2*tokenBytes+len(tokenPrefix) {
		return bad("this is no join token: it is too long")
	}
	rest, ok := strings.CutPrefix(strings.ToLower(s), tokenPrefix)
	if !ok {
		return bad("this is no join token: it must begin with " + tokenPrefix)
	}
	b, err := tokenCoding.DecodeString(strings.ToUpper(rest))
	if err != nil || len(b) != tokenBytes || len(rest) != tokenCoding.EncodedLen(tokenBytes) {
		return bad("the join token is incomplete or mistyped")
	}
	if b[0] != tokenVersion {
		return bad("the join token comes from another release")
	}
	return Token{Fingerprint: [32]byte(b[1:33]), Secret: b[33:]}, nil
}
