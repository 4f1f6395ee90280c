package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"strconv"
	"time"

	"muster/internal/fault"
)

// Lifetimes of generated certificates: a demonstration cluster outlives neither.
const (
	caLife     = 10 * 365 * 24 * time.Hour
	serverLife = 825 * 24 * time.Hour // the longest that client platforms accept
	clockSlack = time.Hour            // a certificate made now is valid on a machine whose clock is behind
)

// loopbacks is how many addresses from 127.0.0.1 on a generated server certificate names.
const loopbacks = 8

// CA is a certificate authority made for one demonstration cluster or test.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewCA makes an authority (ECDSA P-256).
func NewCA(name string, now time.Time) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "certs.ca", name)
	}
	t := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-clockSlack), NotAfter: now.Add(caLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "certs.ca", name)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "certs.ca", name)
	}
	return &CA{cert: cert, key: key}, nil
}

// PEM returns the authority's certificate, for clients to trust.
func (c *CA) PEM() []byte { return encode("CERTIFICATE", c.cert.Raw) }

// Pool returns a pool that trusts this authority only.
func (c *CA) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(c.cert)
	return p
}

// Issue makes a server certificate for names (DNS names or IP addresses), plus
// localhost, 127.0.0.1 to 127.0.0.8 and ::1. It returns certificate and key in PEM.
func (c *CA) Issue(now time.Time, names ...string) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fault.Wrap(err, fault.Internal, "certs.issue", "")
	}
	t := &x509.Certificate{
		SerialNumber: serial(), NotBefore: now.Add(-clockSlack), NotAfter: now.Add(serverLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	addNames(t, names)
	der, err := x509.CreateCertificate(rand.Reader, t, c.cert, &key.PublicKey, c.key)
	if err != nil {
		return nil, nil, fault.Wrap(err, fault.Internal, "certs.issue", "")
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fault.Wrap(err, fault.Internal, "certs.issue", "")
	}
	return encode("CERTIFICATE", der), encode("PRIVATE KEY", pkcs8), nil
}

func addNames(t *x509.Certificate, names []string) {
	for _, n := range append(names, "localhost") {
		if ip := net.ParseIP(n); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
			continue
		}
		t.DNSNames = append(t.DNSNames, n)
	}
	for i := byte(1); i <= loopbacks; i++ {
		t.IPAddresses = append(t.IPAddresses, net.IPv4(127, 0, 0, i))
	}
	t.IPAddresses = append(t.IPAddresses, net.IPv6loopback)
	t.Subject = pkix.Name{CommonName: t.DNSNames[0]}
}

// IssueSource is Issue as a Source, for tests.
func (c *CA) IssueSource(now time.Time, names ...string) (*Source, error) {
	certPEM, keyPEM, err := c.Issue(now, names...)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "certs.issue", "")
	}
	return Static(pair)
}

// WriteFiles writes a pair, the key readable by its owner only. Each file is
// replaced whole; the key is written first, so that a watching Source finds a
// pair that fits at the latest at its second look.
func WriteFiles(certFile, keyFile string, certPEM, keyPEM []byte) error {
	if err := replace(keyFile, keyPEM, 0o600); err != nil {
		return err
	}
	return replace(certFile, certPEM, 0o644)
}

func replace(file string, content []byte, mode os.FileMode) error {
	tmp := file + ".new"
	if err := os.WriteFile(tmp, content, mode); err != nil {
		return unusable(file, "cannot be written", err)
	}
	if err := os.Rename(tmp, file); err != nil {
		return unusable(file, "cannot be replaced", err)
	}
	return nil
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func serial() *big.Int {
	b := make([]byte, 16)
	rand.Read(b)
	b[0] &= 0x7f // positive, at most 20 bytes (RFC 5280 section 4.1.2.2)
	return new(big.Int).SetBytes(b)
}

func plural(days int) string {
	if days == 1 {
		return "1 day"
	}
	return strconv.Itoa(days) + " days"
}
