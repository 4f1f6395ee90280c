// Package relay is the floor that servers are measured against: it terminates
// TLS and moves bytes from one connection to others, and does nothing else.
//
// A client says one line, "NAME PARTNER...\n", gets "<ok/>", and from then on
// whatever it sends is written to each partner that is connected. What a server
// costs beyond this is XMPP, durability and its own overhead.
package relay

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"strings"
	"sync"
	"time"

	"muster/internal/fault"
)

// Limits on what a client can make the relay hold.
const (
	maxHello     = 4096             // bytes of the hello line
	maxPartners  = 100              // names in it
	helloTimeout = 30 * time.Second // from accepting to the end of the hello line
	readBuffer   = 512              // bytes; one stanza of the benchmark is 300
)

// Server relays. The zero value is not ready: use New.
type Server struct {
	config *tls.Config

	mu    sync.RWMutex
	conns map[string]net.Conn
}

// New returns a relay with a certificate of its own making (ECDSA P-256, as the measured servers use).
func New(domain string) (*Server, error) {
	cert, err := selfSigned(domain)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "relay.new", domain)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, NextProtos: []string{"xmpp-client"}}
	return &Server{config: config, conns: make(map[string]net.Conn)}, nil
}

// Serve accepts connections until ctx ends, then closes all of them.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer s.closeAll()
	for {
		raw, err := listener.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fault.Wrap(err, fault.Unavailable, "relay.accept", listener.Addr().String())
		}
		wg.Go(func() { s.serve(raw) })
	}
}

func (s *Server) serve(raw net.Conn) {
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(helloTimeout))
	conn := tls.Server(raw, s.config)
	name, partners, err := readHello(conn)
	if err != nil {
		return
	}
	s.add(name, conn)
	defer s.remove(name, conn)
	if _, err := conn.Write([]byte("<ok/>")); err != nil {
		return
	}
	_ = raw.SetDeadline(time.Time{})
	s.relay(conn, partners)
}

// readHello reads the line byte by byte out of a small buffer that goes away afterwards.
func readHello(conn net.Conn) (string, []string, error) {
	reader := bufio.NewReaderSize(conn, maxHello)
	line, err := reader.ReadSlice('\n')
	if err != nil {
		return "", nil, fault.Wrap(err, fault.BadRequest, "relay.hello", "")
	}
	fields := strings.Fields(string(line))
	if len(fields) == 0 || len(fields) > maxPartners+1 || reader.Buffered() > 0 {
		return "", nil, fault.New(fault.BadRequest, "relay.hello", "", "a hello line is a name and up to 100 partners")
	}
	return fields[0], fields[1:], nil
}

// relay moves what conn sends to its partners until it ends.
func (s *Server) relay(conn net.Conn, partners []string) {
	buffer := make([]byte, readBuffer)
	for {
		n, err := conn.Read(buffer)
		if err != nil {
			return
		}
		for _, partner := range partners {
			s.mu.RLock()
			to := s.conns[partner]
			s.mu.RUnlock()
			if to != nil {
				_, _ = to.Write(buffer[:n]) // a partner that is going away closes by itself
			}
		}
	}
}

func (s *Server) add(name string, conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns[name] = conn
}

func (s *Server) remove(name string, conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns[name] == conn {
		delete(s.conns, name)
	}
}

func (s *Server) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, conn := range s.conns {
		_ = conn.Close()
	}
}

// selfSigned makes a certificate that lasts as long as a benchmark can.
func selfSigned(domain string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: domain}, DNSNames: []string{domain},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(48 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
