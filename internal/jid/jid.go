// Package jid holds the XMPP address (RFC 7622) in a comparable form that can
// be a map key. Plain ASCII addresses take a fast path; all others are
// prepared and checked by mellium.im/xmpp/jid.
package jid

import (
	"strings"

	mjid "mellium.im/xmpp/jid"

	"muster/internal/fault"
)

// MaxPart is the largest size of each part of an address, in bytes (RFC 7622 section 3.1).
const MaxPart = 1023

// JID is an address: local@domain/resource. The zero value means "no address".
// Parts are normalised, so that two JIDs are the same address if and only if they are ==.
type JID struct {
	Local, Domain, Resource string
}

// Parse reads and normalises an address (RFC 7622 section 3). The error is a fault with code BadRequest.
func Parse(s string) (JID, error) {
	rest, resource, hasResource := strings.Cut(s, "/")
	local, domain, hasLocal := strings.Cut(rest, "@")
	if !hasLocal {
		local, domain = "", rest
	}
	if hasLocal && local == "" || hasResource && resource == "" {
		return JID{}, malformed(s)
	}
	return New(local, domain, resource)
}

// New builds a normalised address from its parts; local and resource may be empty.
func New(local, domain, resource string) (JID, error) {
	domain = strings.TrimSuffix(domain, ".") // RFC 7622 section 3.2
	if simple(local, false) && simpleDomain(domain) && simple(resource, true) {
		return JID{local, domain, resource}, nil
	}
	j, err := mjid.New(local, domain, resource)
	if err != nil || strings.HasSuffix(j.Domainpart(), ".") || j.Domainpart() == "" { // mellium lets ".." pass
		return JID{}, malformed(local + "@" + domain + "/" + resource)
	}
	return JID{j.Localpart(), j.Domainpart(), j.Resourcepart()}, nil
}

// MustParse is Parse for constants and tests; it panics on a malformed address.
func MustParse(s string) JID {
	j, err := Parse(s)
	if err != nil {
		panic(err)
	}
	return j
}

// Bare returns the address without its resource.
func (j JID) Bare() JID { return JID{j.Local, j.Domain, ""} }

// WithResource returns the address with another resource, which must be normalised already.
func (j JID) WithResource(r string) JID { return JID{j.Local, j.Domain, r} }

// IsZero reports whether there is no address.
func (j JID) IsZero() bool { return j.Domain == "" }

// IsBare reports whether the address has no resource.
func (j JID) IsBare() bool { return j.Resource == "" }

// IsDomain reports whether the address is a bare domain.
func (j JID) IsDomain() bool { return j.Local == "" && j.Resource == "" }

// String renders the address; "" for the zero value.
func (j JID) String() string {
	switch {
	case j.Local == "" && j.Resource == "":
		return j.Domain
	case j.Resource == "":
		return j.Local + "@" + j.Domain
	case j.Local == "":
		return j.Domain + "/" + j.Resource
	}
	return j.Local + "@" + j.Domain + "/" + j.Resource
}

// Append appends the rendered address to b.
func (j JID) Append(b []byte) []byte {
	if j.Local != "" {
		b = append(append(b, j.Local...), '@')
	}
	b = append(b, j.Domain...)
	if j.Resource != "" {
		b = append(append(b, '/'), j.Resource...)
	}
	return b
}

func malformed(s string) error {
	if len(s) > 64 {
		s = strings.ToValidUTF8(s[:64], "") + "…"
	}
	return fault.New(fault.BadRequest, "jid.parse", s, "malformed address")
}

// simple reports whether s is ASCII that the PRECIS profiles (RFC 8265: UsernameCaseMapped
// for a localpart, OpaqueString for a resource) leave as it is.
func simple(s string, resource bool) bool {
	if len(s) > MaxPart {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
		case resource && c > ' ' && c < 0x7f:
		default:
			return false
		}
	}
	return true
}

// simpleDomain reports whether s is a domain of plain ASCII labels that IDNA leaves as it is.
func simpleDomain(s string) bool {
	if len(s) > 253 {
		return false
	}
	last := byte('.') // what stood before: a label may not be empty, nor begin or end with a hyphen
	label := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '.':
			if last == '.' || last == '-' {
				return false
			}
			label = -1
		case c == '-':
			if last == '.' || last == '-' {
				return false
			}
		case !('a' <= c && c <= 'z' || '0' <= c && c <= '9'):
			return false
		}
		if label++; label > 63 {
			return false
		}
		last = c
	}
	return last != '.' && last != '-'
}
