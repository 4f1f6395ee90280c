package client

import (
	"bytes"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"hash"
	"strconv"
	"strings"
	"sync"

	"muster/cmd/musterbench/target"
	"muster/cmd/musterbench/wire"
	"muster/internal/fault"
)

// mechanisms maps SASL names to hashes; PLAIN has none.
var mechanisms = map[string]func() hash.Hash{
	"SCRAM-SHA-256": sha256.New,
	"SCRAM-SHA-1":   sha1.New,
	"PLAIN":         nil,
}

// maxIterations bounds the work that a server can ask of us.
const maxIterations = 1_000_000

// salted remembers PBKDF2 results: they depend only on password, salt and
// iterations, and computing them again at each login would load the machine
// more than the server's own work does.
var salted sync.Map

// sasl runs one SASL exchange (RFC 6120 section 6, RFC 5802).
func (c *Conn) sasl(user target.User, mechanism string, features []byte) error {
	newHash, known := mechanisms[mechanism]
	if !known {
		return fault.New(fault.BadRequest, "client.sasl", mechanism, "the mechanism must be SCRAM-SHA-1, SCRAM-SHA-256 or PLAIN")
	}
	if !bytes.Contains(features, []byte(">"+mechanism+"<")) {
		return refused("client.sasl", features)
	}
	if newHash == nil {
		return c.plain(user)
	}
	nonce := rand.Text()
	bare := "n=" + escape(user.Local) + ",r=" + nonce
	if err := c.auth(mechanism, "n,,"+bare); err != nil {
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
	response := `<response xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>` + encode(final) + `</response>`
	if err := c.Send([]byte(response)); err != nil {
		return err
	}
	success, err := c.Expect("success")
	if err != nil {
		return err
	}
	return verify(success, signature)
}

func (c *Conn) plain(user target.User) error {
	if err := c.auth("PLAIN", "\x00"+user.Local+"\x00"+string(user.Password)); err != nil {
		return err
	}
	_, err := c.Expect("success")
	return err
}

func (c *Conn) auth(mechanism, initial string) error {
	return c.Send([]byte(`<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='` + mechanism + `'>` + encode(initial) + `</auth>`))
}

// respond computes the client-final message and the server signature to expect (RFC 5802 section 3).
func respond(newHash func() hash.Hash, password, nonce, bare, serverFirst string) (string, []byte, error) {
	fields := attributes(serverFirst)
	salt, err := base64.StdEncoding.DecodeString(fields["s"])
	if err != nil || len(salt) == 0 || !strings.HasPrefix(fields["r"], nonce) {
		return "", nil, malformedChallenge(serverFirst)
	}
	iterations, err := strconv.Atoi(fields["i"])
	if err != nil || iterations < 1 || iterations > maxIterations {
		return "", nil, malformedChallenge(serverFirst)
	}
	key, err := saltedPassword(newHash, password, salt, iterations)
	if err != nil {
		return "", nil, err
	}
	without := "c=biws,r=" + fields["r"]
	message := bare + "," + serverFirst + "," + without
	clientKey := mac(newHash, key, "Client Key")
	digest := newHash()
	digest.Write(clientKey)
	signature := mac(newHash, digest.Sum(nil), message)
	proof := make([]byte, len(clientKey))
	subtle.XORBytes(proof, clientKey, signature)
	server := mac(newHash, mac(newHash, key, "Server Key"), message)
	return without + ",p=" + base64.StdEncoding.EncodeToString(proof), server, nil
}

func saltedPassword(newHash func() hash.Hash, password string, salt []byte, iterations int) ([]byte, error) {
	size := newHash().Size()
	id := strconv.Itoa(size) + "\x00" + strconv.Itoa(iterations) + "\x00" + string(salt) + "\x00" + password
	if key, ok := salted.Load(id); ok {
		return key.([]byte), nil
	}
	key, err := pbkdf2.Key(newHash, password, salt, iterations, size)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "client.sasl", "")
	}
	salted.Store(id, key)
	return key, nil
}

// verify checks that the server knows the password's verifier too.
func verify(success, signature []byte) error {
	final, err := decode(success)
	if err != nil {
		return err
	}
	return checkSignature(final, signature)
}

func checkSignature(final string, signature []byte) error {
	got, err := base64.StdEncoding.DecodeString(attributes(final)["v"])
	if err != nil || !hmac.Equal(got, signature) {
		return fault.New(fault.Forbidden, "client.sasl", "", "the server's SCRAM signature is wrong")
	}
	return nil
}

func mac(newHash func() hash.Hash, key []byte, message string) []byte {
	h := hmac.New(newHash, key)
	h.Write([]byte(message))
	return h.Sum(nil)
}

// attributes splits "r=...,s=...,i=..." (RFC 5802 section 5).
func attributes(message string) map[string]string {
	fields := make(map[string]string)
	for part := range strings.SplitSeq(message, ",") {
		if name, value, ok := strings.Cut(part, "="); ok {
			fields[name] = value
		}
	}
	return fields
}

// escape replaces the two characters that a SCRAM user name must not hold.
func escape(name string) string {
	return strings.NewReplacer("=", "=3D", ",", "=2C").Replace(name)
}

func encode(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// decode returns the text that a challenge or success carries in base64.
func decode(frame []byte) (string, error) {
	name := "challenge"
	if wire.Named(frame, "success") {
		name = "success"
	}
	text, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(wire.Text(frame, name))))
	if err != nil {
		return "", fault.Wrap(err, fault.BadRequest, "client.sasl", name)
	}
	return string(text), nil
}

func malformedChallenge(message string) error {
	return fault.New(fault.BadRequest, "client.sasl", "", "the server's SCRAM challenge is malformed: "+message)
}
