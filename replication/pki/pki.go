// Package pki is the cluster's own small certificate authority: the CA, the
// nodes' certificates, the files that make up a node's identity, and the
// tokens with which a new node proves that it was invited.
//
// Callers: package replication (initialising, joining, renewing) and package
// mesh (the TLS configuration of the cluster port).
//
// Invariants: the CA's private key leaves this package only sealed with the
// cluster key; identity files are readable by their owner alone, and wider
// ones are refused; a Secret never prints itself.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"strconv"
	"strings"
	"time"

	"muster/internal/fault"
)

// Validity periods. The CA outlives any realistic cluster; a node's
// certificate is renewed when a third of its life is left.
const (
	CALife   = 10 * 365 * 24 * time.Hour
	NodeLife = 365 * 24 * time.Hour

	clockSlack = time.Hour // a certificate is valid this long before its making, for nodes whose clock is behind
)

// Secret is bytes that must not be shown. Its String, format and JSON forms are "***".
type Secret []byte

// String hides the secret.
func (Secret) String() string { return "***" }

// GoString hides the secret.
func (Secret) GoString() string { return "***" }

// Format hides the secret from every verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("***")) }

// MarshalText hides the secret.
func (Secret) MarshalText() ([]byte, error) { return []byte("***"), nil }

// KeySize is the length of a cluster key in bytes.
const KeySize = 32

// NewSecret returns n random bytes.
func NewSecret(n int) Secret {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return b
}

// CA is a cluster's certificate authority with its private key.
type CA struct {
	Cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewCA makes the authority of a cluster. Keys are ECDSA P-256.
func NewCA(clusterID string, now time.Time) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "pki.ca", clusterID)
	}
	tpl := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "Muster cluster " + clusterID},
		NotBefore: now.Add(-clockSlack), NotAfter: now.Add(CALife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tpl, tpl, key.Public(), key)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "pki.ca", clusterID)
	}
	cert, err := x509.ParseCertificate(der)
	return &CA{Cert: cert, key: key}, fault.Wrap(err, fault.Internal, "pki.ca", clusterID)
}

// PEM returns the authority's certificate as cluster.init stores it.
func (ca *CA) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Cert.Raw})
}

// OpenCA restores an authority from its certificate (PEM) and its sealed key.
func OpenCA(certPEM, sealedKey []byte, clusterKey Secret) (*CA, error) {
	block, _ := pem.Decode(certPEM)
	if block == nil {
		return nil, fault.New(fault.Internal, "pki.ca", "certificate", "the CA certificate is malformed")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "pki.ca", "certificate")
	}
	der, err := Open(clusterKey, sealedKey, sealLabel)
	if err != nil {
		return nil, err
	}
	key, err := x509.ParseECPrivateKey(der)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "pki.ca", "key")
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fault.New(fault.Internal, "pki.ca", "", "the CA's key does not belong to its certificate")
	}
	return &CA{Cert: cert, key: key}, nil
}

// sealLabel is the name of the secret that holds the CA's key: a sealed secret's label is its name.
const sealLabel = SecretCAKey

// Names of the secrets that a cluster is founded with (log.SecretPut).
const (
	SecretCAKey    = "cluster.ca-key" // the CA's private key, sealed with the cluster key
	SecretFakeSalt = "auth.fake-salt" // 32 random bytes, from which salts of unknown users are derived; not sealed
)

// SealedKey returns the private key sealed with the cluster key, as SecretPut stores it.
func (ca *CA) SealedKey(clusterKey Secret) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(ca.key)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "pki.seal", "")
	}
	return Seal(clusterKey, der, sealLabel)
}

// Fingerprint is the SHA-256 of a certificate, as tokens carry it.
func Fingerprint(cert *x509.Certificate) [32]byte { return sha256.Sum256(cert.Raw) }

// NodeURI is the SAN URI that names a node of a cluster.
func NodeURI(clusterID string, node uint32) *url.URL {
	return &url.URL{Scheme: "muster", Host: clusterID, Path: "/node/" + strconv.FormatUint(uint64(node), 10)}
}

// NodeOf returns the cluster and node that a certificate names.
func NodeOf(cert *x509.Certificate) (clusterID string, node uint32, err error) {
	for _, u := range cert.URIs {
		rest, ok := strings.CutPrefix(u.Path, "/node/")
		if u.Scheme != "muster" || !ok {
			continue
		}
		n, err := strconv.ParseUint(rest, 10, 32)
		if err == nil && n > 0 && u.Host != "" {
			return u.Host, uint32(n), nil
		}
	}
	return "", 0, fault.New(fault.Unauthorized, "pki.node", "", "the certificate names no node of a Muster cluster")
}

// NewNodeKey makes a node's private key.
func NewNodeKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	return key, fault.Wrap(err, fault.Internal, "pki.key", "")
}

// Request returns a certificate request (DER) for a node's key.
func Request(key crypto.Signer, name string) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	return der, fault.Wrap(err, fault.Internal, "pki.request", name)
}

// MaxRequest is the largest certificate request that Sign reads, in bytes.
const MaxRequest = 8 << 10

// Sign issues the certificate (DER) of a node for the key in a request. What
// the request asks for is ignored: cluster, id and name are the caller's.
func (ca *CA) Sign(request []byte, clusterID string, node uint32, name string, now time.Time) ([]byte, error) {
	if len(request) > MaxRequest {
		return nil, fault.New(fault.TooLarge, "pki.sign", name, "the certificate request is too large")
	}
	csr, err := x509.ParseCertificateRequest(request)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return nil, &fault.Error{Code: fault.BadRequest, Op: "pki.sign", Subject: name, Text: "the certificate request is malformed", Err: err}
	}
	if key, ok := csr.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		return nil, fault.New(fault.BadRequest, "pki.sign", name, "node keys must be ECDSA P-256")
	}
	tpl := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-clockSlack), NotAfter: now.Add(NodeLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{NodeURI(clusterID, node)},
	}
	der, err := x509.CreateCertificate(rand.Reader, tpl, ca.Cert, csr.PublicKey, ca.key)
	return der, fault.Wrap(err, fault.Internal, "pki.sign", name)
}

func serial() *big.Int { return new(big.Int).SetBytes(NewSecret(16)) }

// NeedsRenewal reports whether less than a third of a certificate's life is left.
func NeedsRenewal(cert *x509.Certificate, now time.Time) bool {
	return now.After(cert.NotAfter.Add(-cert.NotAfter.Sub(cert.NotBefore) / 3))
}
