// Package scram does the server's half of password login: it derives SCRAM
// verifiers (RFC 5802, RFC 7677) from passwords, checks a plain password
// against one, and leads the SCRAM exchange, with channel binding.
//
// Whoever creates or changes a password calls Derive with a fresh salt; the
// client edge calls the rest. The server keeps verifiers only, never a
// password. For a name that does not exist Fake gives a verifier that is
// stable, costs the same and matches no password, so that neither the answer
// nor its time tells whether the user exists.
package scram

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/subtle"
	"hash"
	"unicode/utf8"

	"golang.org/x/text/secure/precis"

	"muster/internal/fault"
)

// Hash names the hash function of a SCRAM mechanism. The zero value is SHA-256.
type Hash uint8

// The hash functions that are offered.
const (
	SHA256 Hash = iota // RFC 7677
	SHA1               // RFC 5802
)

// Limits and defaults of what a verifier and an exchange may hold.
const (
	DefaultIterations = 10_000     // of PBKDF2, for new passwords (reliability-security section 3)
	MinIterations     = 4_096      // RFC 7677 section 4
	MaxIterations     = 10_000_000 // as package user: seconds of CPU
	SaltSize          = 16         // bytes of a new salt
	MaxPassword       = 1_024      // bytes; a longer one is refused before it is hashed
)

// String returns the mechanism's name without its -PLUS ending.
func (h Hash) String() string {
	if h == SHA1 {
		return "SCRAM-SHA-1"
	}
	return "SCRAM-SHA-256"
}

// Size returns the length of the hash in bytes.
func (h Hash) Size() int {
	if h == SHA1 {
		return sha1.Size
	}
	return sha256.Size
}

func (h Hash) new() hash.Hash {
	if h == SHA1 {
		return sha1.New()
	}
	return sha256.New()
}

func (h Hash) mac(key []byte, parts ...[]byte) []byte {
	m := hmac.New(h.new, key)
	for _, p := range parts {
		m.Write(p)
	}
	return m.Sum(nil)
}

func (h Hash) sum(b []byte) []byte {
	s := h.new()
	s.Write(b)
	return s.Sum(nil)
}

// Verifier is what the server keeps of a password (RFC 5802 section 3): enough
// to check a proof, too little to log in with.
type Verifier struct {
	Salt       []byte
	Iterations int
	StoredKey  []byte
	ServerKey  []byte
}

// String keeps verifiers out of logs.
func (Verifier) String() string { return "***" }

// GoString keeps verifiers out of logs.
func (Verifier) GoString() string { return "***" }

// Valid reports whether the verifier is complete for h.
func (v Verifier) Valid(h Hash) bool {
	return len(v.Salt) > 0 && v.Iterations > 0 && v.Iterations <= MaxIterations &&
		len(v.StoredKey) == h.Size() && len(v.ServerKey) == h.Size()
}

// Derive makes both verifiers of a new password. The password is prepared by
// the OpaqueString profile (RFC 8265 section 4.2, which replaces SASLprep); the
// error is a fault with code NotAcceptable for one that is empty, too long or
// holds what the profile forbids. It takes some milliseconds of CPU.
func Derive(password string, salt []byte, iterations int) (v256, v1 Verifier, err error) {
	prepared, err := Prepare(password)
	if err != nil {
		return Verifier{}, Verifier{}, err
	}
	if len(salt) == 0 || iterations < 1 || iterations > MaxIterations {
		return Verifier{}, Verifier{}, fault.New(fault.NotAcceptable, "scram.derive", "", "a verifier needs a salt and between 1 and 10000000 iterations")
	}
	return derive(SHA256, prepared, salt, iterations), derive(SHA1, prepared, salt, iterations), nil
}

// Prepare returns the form of a password that is hashed. The error is a fault with code NotAcceptable.
func Prepare(password string) (string, error) {
	if len(password) > MaxPassword {
		return "", fault.New(fault.NotAcceptable, "scram.prepare", "", "a password has at most 1024 bytes")
	}
	prepared, err := precis.OpaqueString.String(password)
	if err != nil || !utf8.ValidString(password) {
		return "", &fault.Error{Code: fault.NotAcceptable, Op: "scram.prepare", Text: "the password is empty or holds characters that a password cannot have"}
	}
	return prepared, nil
}

func salted(h Hash, prepared string, salt []byte, iterations int) []byte {
	key, err := pbkdf2.Key(h.new, prepared, salt, iterations, h.Size())
	if err != nil { // only for lengths and modes that the constants above exclude
		panic("scram: " + err.Error())
	}
	return key
}

func derive(h Hash, prepared string, salt []byte, iterations int) Verifier {
	key := salted(h, prepared, salt, iterations)
	return Verifier{
		Salt: salt, Iterations: iterations,
		StoredKey: h.sum(h.mac(key, []byte("Client Key"))),
		ServerKey: h.mac(key, []byte("Server Key")),
	}
}

// Matches reports whether password is the one behind v. It takes the same time
// for a wrong password as for the right one, and for a password that Prepare
// refuses; it never matches such a one.
func (v Verifier) Matches(h Hash, password string) bool {
	prepared, err := Prepare(password)
	if err != nil {
		prepared = "x" // work all the same, for equal time
	}
	if !v.Valid(h) {
		return false
	}
	key := salted(h, prepared, v.Salt, v.Iterations)
	stored := h.sum(h.mac(key, []byte("Client Key")))
	return subtle.ConstantTimeCompare(stored, v.StoredKey) == 1 && err == nil
}

// Fake returns the verifier to use for a user that does not exist: stable for
// the name as long as key is the same, with the iteration count that a real
// user has, and behind no password. All nodes that share key agree on it.
func Fake(key []byte, h Hash, user string, iterations int) Verifier {
	part := func(label string, size int) []byte {
		return hmacSHA256(key, "muster fake "+label+"\x00"+user)[:size]
	}
	return Verifier{
		Salt: part("salt", SaltSize), Iterations: iterations,
		StoredKey: part("stored "+h.String(), h.Size()),
		ServerKey: part("server "+h.String(), h.Size()),
	}
}

func hmacSHA256(key []byte, text string) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(text))
	return m.Sum(nil)
}
