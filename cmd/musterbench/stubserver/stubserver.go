// Package stubserver is a tiny XMPP server for the load generator's own tests.
//
// It knows just what the scenarios use (TLS, STARTTLS, SASL, bind, rosters,
// subscriptions, presence, messages, registration), keeps all in memory, and can
// be told to misbehave, so that tests see whether the load generator notices.
// Only tests start it; it is no part of what musterbench ships to its users.
package stubserver

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"muster/cmd/musterbench/wire"
	"muster/internal/fault"
)

// Limits of what one client can make the stub hold.
const (
	maxContacts = 1000
	readBuffer  = 2048
)

// Server is a running stub. Set the exported fields before Start.
type Server struct {
	Domain    string
	DropEvery int  // lose each n-th message; 0 loses none
	Duplicate bool // deliver each message twice
	NoSignup  bool // refuse registration
	BadProof  bool // send a wrong server signature
	HangUp    bool // close right after the TLS handshake
	NoTokens  bool // give no tokens
	Forgetful bool // know no session that is to be resumed
	Busy      int  // so many resumptions are put off first

	config   *tls.Config
	pem      []byte
	direct   net.Listener
	starttls net.Listener
	wg       sync.WaitGroup

	mu       sync.Mutex
	accounts map[string]string          // password by local part
	rosters  map[string]map[string]bool // both ways, by bare JID
	asked    map[string]bool            // "from to" of open subscription requests
	sessions map[string]*session        // by bare JID: one session each is enough
	open     map[net.Conn]bool
	messages int
	logins   int
	byToken  int

	resumable map[string]bool // by id
	resumed   int
}

// Start listens on two free ports of 127.0.0.1 until ctx ends or Close is called.
func (s *Server) Start(ctx context.Context) error {
	if err := s.makeCertificate(); err != nil {
		return err
	}
	s.accounts, s.rosters = make(map[string]string), make(map[string]map[string]bool)
	s.asked, s.sessions, s.open = make(map[string]bool), make(map[string]*session), make(map[net.Conn]bool)
	s.resumable = make(map[string]bool)
	var config net.ListenConfig
	for _, l := range []*net.Listener{&s.direct, &s.starttls} {
		listener, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return fault.Wrap(err, fault.Unavailable, "stubserver.start", "")
		}
		*l = listener
		secured := l == &s.direct
		s.wg.Go(func() { s.accept(listener, secured) })
	}
	return nil
}

// Direct returns the address of the direct TLS port.
func (s *Server) Direct() string { return s.direct.Addr().String() }

// StartTLS returns the address of the STARTTLS port.
func (s *Server) StartTLS() string { return s.starttls.Addr().String() }

// Certificate returns the server's own certificate in PEM, to be trusted by clients.
func (s *Server) Certificate() []byte { return s.pem }

// Logins returns how many sessions were bound.
func (s *Server) Logins() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.logins
}

// ByToken returns how many of those were bound without a password.
func (s *Server) ByToken() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byToken
}

// Resumed returns how many sessions were resumed.
func (s *Server) Resumed() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.resumed
}

// AddUser makes an account.
func (s *Server) AddUser(local, password string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.accounts[local] = password
}

// Befriend makes two bare JIDs mutual contacts.
func (s *Server) Befriend(a, b string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.befriend(a, b)
	s.befriend(b, a)
}

// Roster returns the contacts of a bare JID in order.
func (s *Server) Roster(jid string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var contacts []string
	for contact := range s.rosters[jid] {
		contacts = append(contacts, contact)
	}
	slices.Sort(contacts)
	return contacts
}

func (s *Server) befriend(owner, contact string) {
	if s.rosters[owner] == nil {
		s.rosters[owner] = make(map[string]bool)
	}
	if len(s.rosters[owner]) < maxContacts {
		s.rosters[owner][contact] = true
	}
}

// Close stops listening, closes all connections and waits for them.
func (s *Server) Close() {
	_ = s.direct.Close()
	_ = s.starttls.Close()
	s.mu.Lock()
	for conn := range s.open {
		_ = conn.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

func (s *Server) accept(listener net.Listener, secured bool) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.open[conn] = true
		s.mu.Unlock()
		s.wg.Go(func() {
			defer func() {
				_ = conn.Close()
				s.mu.Lock()
				delete(s.open, conn)
				s.mu.Unlock()
			}()
			c := &session{server: s, Conn: conn, scanner: new(wire.Scanner), secured: secured}
			if secured {
				c.Conn = tls.Server(conn, s.config)
			}
			c.run()
		})
	}
}

func (s *Server) makeCertificate() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fault.Wrap(err, fault.Internal, "stubserver.certificate", "")
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: s.Domain}, DNSNames: []string{s.Domain},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return fault.Wrap(err, fault.Internal, "stubserver.certificate", "")
	}
	s.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	s.config = &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"xmpp-client"},
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	}
	return nil
}

// route delivers a stanza to the session of a bare or full JID; it reports whether there is one.
func (s *Server) route(to string, stanza string) bool {
	bare, _, _ := strings.Cut(to, "/")
	s.mu.Lock()
	target := s.sessions[bare]
	s.mu.Unlock()
	if target == nil {
		return false
	}
	target.send(stanza)
	return true
}

// message delivers a chat message, or misbehaves as told.
func (s *Server) message(from, to string, stanza []byte) {
	s.mu.Lock()
	s.messages++
	drop := s.DropEvery > 0 && s.messages%s.DropEvery == 0
	s.mu.Unlock()
	if drop {
		return
	}
	copies := 1
	if s.Duplicate {
		copies = 2
	}
	for range copies {
		if !s.route(to, stamped(stanza, from)) {
			s.route(from, `<message type="error" from="`+to+`"><error type="cancel"/></message>`)
		}
	}
}

// stamped returns the stanza with a from attribute.
func stamped(stanza []byte, from string) string {
	end := bytes.IndexAny(stanza, " />")
	return string(stanza[:end]) + ` from="` + from + `"` + string(stanza[end:])
}
