package token

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"time"
)

// Agent names an installation of a client: the UUID v4 of its user agent (XEP-0388 section 2.3). The zero Agent is none.
type Agent [16]byte

// ParseAgent reads a UUID v4 in its usual form, in either case; false if s is none.
func ParseAgent(s string) (a Agent, ok bool) {
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return Agent{}, false
	}
	digits := s[:8] + s[9:13] + s[14:18] + s[19:23] + s[24:]
	if _, err := hex.Decode(a[:], []byte(digits)); err != nil || a[6]>>4 != 4 || a[8]>>6 != 2 { // version and variant, RFC 9562 section 5.4
		return Agent{}, false
	}
	return a, true
}

// Owner is whom a token belongs to. Whatever changes here makes all earlier tokens void.
type Owner struct {
	User       string    // bare address
	Created    time.Time // of the user
	Password   [2][]byte // stored keys of the user's verifiers, which every new password changes
	Generation uint64    // see Standing
	Agent      Agent
	Mechanism  string // the only one that the token is good for
}

// Deriver makes the tokens of one owner. Use it from one goroutine.
type Deriver struct {
	mac    hash.Hash
	prefix []byte
	sum    [sha256.Size]byte
	text   [43]byte // a sum in base64
}

// NewDeriver returns a deriver; key is a secret of the cluster for nothing else.
func NewDeriver(key []byte, o Owner) *Deriver {
	var b []byte
	for _, part := range [][]byte{[]byte(o.User), o.Password[0], o.Password[1], o.Agent[:], []byte(o.Mechanism)} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(part)))
		b = append(b, part...)
	}
	b = binary.BigEndian.AppendUint64(b, uint64(o.Created.UnixNano()))
	b = binary.BigEndian.AppendUint64(b, o.Generation)
	return &Deriver{mac: hmac.New(sha256.New, key), prefix: b}
}

// Token returns the owner's token of a day, 43 characters; valid until the next call.
func (d *Deriver) Token(on uint32) []byte {
	d.mac.Reset()
	d.mac.Write(d.prefix)
	var last [4]byte
	binary.BigEndian.PutUint32(last[:], on)
	d.mac.Write(last[:])
	d.mac.Sum(d.sum[:0])
	base64.RawURLEncoding.Encode(d.text[:], d.sum[:])
	return d.text[:]
}
