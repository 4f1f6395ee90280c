package pki

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"muster/internal/fault"
)

// Peer is a member's address on the cluster port, as a joining node learns it.
type Peer struct {
	ID   uint32 `json:"id"`
	Addr string `json:"addr"`
}

// Identity is who a node is. It lives in the node's data folder.
type Identity struct {
	ClusterID string `json:"cluster_id"`
	NodeID    uint32 `json:"node_id"`
	Name      string `json:"name"`
	Peers     []Peer `json:"peers,omitempty"` // members at the time of joining, until the node has the node table

	Key        *ecdsa.PrivateKey `json:"-"`
	Cert       *x509.Certificate `json:"-"`
	CA         *x509.Certificate `json:"-"`
	ClusterKey Secret            `json:"-"` // seals the CA's key and backups
}

// The files of an identity, in the node's data folder.
const (
	fileIdentity   = "identity.json"
	fileKey        = "node.key"
	fileCert       = "node.crt"
	fileCA         = "ca.crt"
	fileClusterKey = "cluster.key"

	maxIdentityFile = 1 << 20 // bytes
)

// TLSCertificate returns the node's certificate with its chain and key.
func (id *Identity) TLSCertificate() *tls.Certificate {
	return &tls.Certificate{Certificate: [][]byte{id.Cert.Raw, id.CA.Raw}, PrivateKey: id.Key, Leaf: id.Cert}
}

// Exists reports whether dir holds an identity.
func Exists(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, fileIdentity))
	return err == nil
}

// Save writes the identity's files with mode 0600. identity.json comes last:
// where it exists, the others are complete. Each file replaces its former self atomically.
func (id *Identity) Save(dir string) error {
	key, err := x509.MarshalECPrivateKey(id.Key)
	if err != nil {
		return fault.Wrap(err, fault.Internal, "pki.save", dir)
	}
	doc, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return fault.Wrap(err, fault.Internal, "pki.save", dir)
	}
	files := []struct {
		name string
		data []byte
	}{
		{fileKey, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: key})},
		{fileCert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: id.Cert.Raw})},
		{fileCA, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: id.CA.Raw})},
		{fileClusterKey, []byte(fmt.Sprintf("%x\n", []byte(id.ClusterKey)))},
		{fileIdentity, append(doc, '\n')},
	}
	for _, f := range files {
		if err := writeFile(filepath.Join(dir, f.name), f.data); err != nil {
			return &fault.Error{Code: fault.Internal, Op: "pki.save", Subject: f.name, Text: "the identity file cannot be written; check space and permissions of the data folder", Err: err}
		}
	}
	return nil
}

func writeFile(path string, data []byte) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Chmod(0o600), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Load reads an identity. A missing one is a NotFound fault; files that others
// may read, or that do not belong together, are refused with the remedy.
func Load(dir string) (*Identity, error) {
	var id Identity
	doc, err := readFile(dir, fileIdentity)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "pki.load", dir, "this data folder belongs to no cluster yet: initialise one, or join one with a token")
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(doc, &id); err != nil {
		return nil, damaged(fileIdentity, err)
	}
	if err := id.loadKeys(dir); err != nil {
		return nil, err
	}
	return &id, id.check()
}

func (id *Identity) loadKeys(dir string) error {
	block, err := readPEM(dir, fileKey)
	if err != nil {
		return err
	}
	if id.Key, err = x509.ParseECPrivateKey(block); err != nil {
		return damaged(fileKey, err)
	}
	for _, c := range []struct {
		file string
		into **x509.Certificate
	}{{fileCert, &id.Cert}, {fileCA, &id.CA}} {
		if block, err = readPEM(dir, c.file); err != nil {
			return err
		}
		if *c.into, err = x509.ParseCertificate(block); err != nil {
			return damaged(c.file, err)
		}
	}
	text, err := readFile(dir, fileClusterKey)
	if err != nil {
		return err
	}
	if n, err := fmt.Sscanf(string(text), "%x", (*[]byte)(&id.ClusterKey)); n != 1 || err != nil || len(id.ClusterKey) != KeySize {
		return damaged(fileClusterKey, err)
	}
	return nil
}

func (id *Identity) check() error {
	cluster, node, err := NodeOf(id.Cert)
	if err != nil {
		return err
	}
	switch {
	case cluster != id.ClusterID || node != id.NodeID:
		return damaged(fileCert, errors.New("it names another cluster or node"))
	case !id.Key.PublicKey.Equal(id.Cert.PublicKey):
		return damaged(fileKey, errors.New("it does not belong to node.crt"))
	case id.Cert.CheckSignatureFrom(id.CA) != nil:
		return damaged(fileCA, errors.New("it did not sign node.crt"))
	}
	return nil
}

func damaged(file string, err error) error {
	return &fault.Error{Code: fault.Internal, Op: "pki.load", Subject: file, Text: file + " is damaged; empty the data folder and join the cluster again with a token", Err: err}
}

func readPEM(dir, name string) ([]byte, error) {
	data, err := readFile(dir, name)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, damaged(name, errors.New("no PEM block"))
	}
	return block.Bytes, nil
}

func readFile(dir, name string) ([]byte, error) {
	path := filepath.Join(dir, name)
	st, err := os.Stat(path)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "pki.load", name)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fault.New(fault.Forbidden, "pki.load", name, fmt.Sprintf("%s may be read by others (mode %04o); run chmod 600 on it", path, st.Mode().Perm()))
	}
	if st.Size() > maxIdentityFile {
		return nil, damaged(name, errors.New("it is too large"))
	}
	data, err := os.ReadFile(path)
	return data, fault.Wrap(err, fault.Internal, "pki.load", name)
}

// Certify gives the identity a new certificate, and a key if it has none. A
// key stays the same for the node's life, so that a crash between writing the two files harms nothing.
func (id *Identity) Certify(ca *CA, now time.Time) (err error) {
	key := id.Key
	if key == nil {
		if key, err = NewNodeKey(); err != nil {
			return err
		}
	}
	csr, err := Request(key, id.Name)
	if err != nil {
		return err
	}
	der, err := ca.Sign(csr, id.ClusterID, id.NodeID, id.Name, now)
	if err != nil {
		return err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return fault.Wrap(err, fault.Internal, "pki.certify", id.Name)
	}
	id.Key, id.Cert = key, cert
	return nil
}
