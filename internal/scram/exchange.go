package scram

import (
	"bytes"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"strconv"
	"strings"

	"muster/internal/fault"
)

// Limits of the messages of an exchange.
const (
	maxMessage = 4 << 10 // bytes of one client message; a name of 1,023 bytes, escaped, fits
	maxNonce   = 512     // bytes of the client's nonce; clients use 24 to 64
	nonceBytes = 18      // random bytes of the server's nonce: 24 characters
)

// Params say how an exchange is led.
type Params struct {
	Hash        Hash
	Plus        bool                                // the mechanism's name ends in -PLUS: channel binding is used
	PlusOffered bool                                // a -PLUS mechanism was offered; then the flag "y" reveals a downgrade
	Binding     func(kind string) ([]byte, bool)    // channel-binding data of that type; false: not available here
	Lookup      func(user string) (Verifier, error) // of the unescaped name; for an unknown user a Fake, never an error
	Nonce       func() string                       // nil: random
}

// Exchange is the server's side of one SCRAM login (RFC 5802 section 5). Use it
// once, from one goroutine: First, then Final. Errors are faults: BadRequest
// for a malformed message, NotAcceptable for an unknown channel binding,
// Unauthorized for a wrong proof or binding and for a detected downgrade; those of Lookup are passed on.
type Exchange struct {
	p        Params
	user     string
	authzid  string
	header   []byte // the client's GS2 header, as sent
	kind     string // channel-binding type; "" without
	nonce    string
	auth     []byte // the auth message so far
	verifier Verifier
	step     int
}

// New starts an exchange.
func New(p Params) *Exchange { return &Exchange{p: p} }

// User returns the name that the client wants to log in as, unescaped. Valid after First.
func (e *Exchange) User() string { return e.user }

// Authzid returns the identity that the client wants to act as; "" for its own. Valid after First.
func (e *Exchange) Authzid() string { return e.authzid }

// First takes the client-first-message and returns the server-first-message.
func (e *Exchange) First(msg []byte) ([]byte, error) {
	if e.step != 0 || len(msg) > maxMessage {
		return nil, malformed("message out of place or too long")
	}
	e.step = 1
	bare, err := e.gs2(msg)
	if err != nil {
		return nil, err
	}
	nonce, err := e.clientFirst(bare)
	if err != nil {
		return nil, err
	}
	if e.verifier, err = e.p.Lookup(e.user); err != nil {
		return nil, err
	}
	own := e.p.Nonce
	if own == nil {
		own = randomNonce
	}
	e.nonce = nonce + own()
	reply := "r=" + e.nonce + ",s=" + base64.StdEncoding.EncodeToString(e.verifier.Salt) + ",i=" + strconv.Itoa(e.verifier.Iterations)
	e.auth = append(append(append([]byte(nil), bare...), ','), reply...)
	return []byte(reply), nil
}

// gs2 reads the GS2 header (RFC 5801 section 4) and returns what follows it.
func (e *Exchange) gs2(msg []byte) (bare []byte, err error) {
	flag, rest, ok1 := bytes.Cut(msg, []byte(","))
	authzid, bare, ok2 := bytes.Cut(rest, []byte(","))
	if !ok1 || !ok2 {
		return nil, malformed("no GS2 header")
	}
	e.header = bytes.Clone(msg[:len(msg)-len(bare)])
	if len(authzid) > 0 {
		name, ok := bytes.CutPrefix(authzid, []byte("a="))
		if !ok {
			return nil, malformed("GS2 header")
		}
		if e.authzid, ok = unescape(string(name)); !ok {
			return nil, malformed("authorization identity")
		}
	}
	return bare, e.bindingFlag(string(flag))
}

func (e *Exchange) bindingFlag(flag string) error {
	kind, wants := strings.CutPrefix(flag, "p=")
	switch {
	case wants && e.p.Plus:
		if _, ok := e.p.Binding(kind); !ok {
			return fault.New(fault.NotAcceptable, "scram.first", "", "this type of channel binding is not offered")
		}
		e.kind = kind
		return nil
	case wants || e.p.Plus:
		return malformed("the mechanism and the channel-binding flag do not fit")
	case flag == "n":
		return nil
	case flag == "y":
		if e.p.PlusOffered {
			return fault.New(fault.Unauthorized, "scram.first", "", "the client did not see that channel binding is offered: somebody changed the list")
		}
		return nil
	}
	return malformed("channel-binding flag")
}

func (e *Exchange) clientFirst(bare []byte) (nonce string, err error) {
	fields := strings.SplitN(string(bare), ",", 3) // what follows the nonce are extensions that may be ignored
	if len(fields) < 2 || strings.HasPrefix(fields[0], "m=") {
		return "", malformed("client-first-message")
	}
	name, ok1 := strings.CutPrefix(fields[0], "n=")
	nonce, ok2 := strings.CutPrefix(fields[1], "r=")
	if !ok1 || !ok2 || !printable(nonce) || len(nonce) > maxNonce {
		return "", malformed("client-first-message")
	}
	user, ok := unescape(name)
	if !ok || user == "" {
		return "", malformed("user name")
	}
	e.user = user
	return nonce, nil
}

// Final takes the client-final-message. It returns the server-final-message
// when the proof is right.
func (e *Exchange) Final(msg []byte) ([]byte, error) {
	if e.step != 1 || len(msg) > maxMessage {
		return nil, malformed("message out of place or too long")
	}
	e.step = 2
	at := bytes.LastIndex(msg, []byte(",p="))
	if at < 0 {
		return nil, malformed("no proof")
	}
	proof, err := base64.StdEncoding.DecodeString(string(msg[at+3:]))
	if err != nil || len(proof) != e.p.Hash.Size() {
		return nil, malformed("proof")
	}
	fields := strings.SplitN(string(msg[:at]), ",", 3)
	if len(fields) < 2 || !strings.HasPrefix(fields[0], "c=") || !strings.HasPrefix(fields[1], "r=") || len(fields) > 2 && strings.HasPrefix(fields[2], "m=") {
		return nil, malformed("client-final-message")
	}
	if err := e.checkBinding(fields[0][2:]); err != nil {
		return nil, err
	}
	if subtle.ConstantTimeCompare([]byte(fields[1][2:]), []byte(e.nonce)) != 1 {
		return nil, malformed("nonce")
	}
	return e.checkProof(append(append(e.auth, ','), msg[:at]...), proof)
}

func (e *Exchange) checkBinding(encoded string) error {
	got, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return malformed("channel binding")
	}
	want := bytes.Clone(e.header)
	if e.kind != "" {
		data, ok := e.p.Binding(e.kind)
		if !ok {
			return fault.New(fault.NotAcceptable, "scram.final", "", "channel binding is not available")
		}
		want = append(want, data...)
	}
	if subtle.ConstantTimeCompare(got, want) != 1 {
		return fault.New(fault.Unauthorized, "scram.final", "", "channel bindings do not match")
	}
	return nil
}

func (e *Exchange) checkProof(auth, proof []byte) ([]byte, error) {
	h := e.p.Hash
	signature := h.mac(e.verifier.StoredKey, auth)
	key := make([]byte, len(proof))
	subtle.XORBytes(key, proof, signature)
	if subtle.ConstantTimeCompare(h.sum(key), e.verifier.StoredKey) != 1 {
		return nil, fault.New(fault.Unauthorized, "scram.final", "", "wrong user name or password")
	}
	return []byte("v=" + base64.StdEncoding.EncodeToString(h.mac(e.verifier.ServerKey, auth))), nil
}

// unescape undoes the escaping of names: =2C for a comma, =3D for an equals sign (RFC 5802 section 5.1).
func unescape(s string) (string, bool) {
	if strings.IndexByte(s, 0) >= 0 {
		return "", false
	}
	if strings.IndexByte(s, '=') < 0 {
		return s, true
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] != '=':
			b.WriteByte(s[i])
			continue
		case strings.HasPrefix(s[i:], "=2C"):
			b.WriteByte(',')
		case strings.HasPrefix(s[i:], "=3D"):
			b.WriteByte('=')
		default:
			return "", false
		}
		i += 2
	}
	return b.String(), true
}

func printable(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < 0x21 || s[i] > 0x7e || s[i] == ',' {
			return false
		}
	}
	return s != ""
}

func randomNonce() string {
	b := make([]byte, nonceBytes)
	rand.Read(b)
	return base64.RawURLEncoding.EncodeToString(b)
}

func malformed(what string) error {
	return fault.New(fault.BadRequest, "scram", "", "malformed SCRAM message: "+what)
}
