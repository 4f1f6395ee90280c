// Package demo runs a whole cluster of real processes on this machine: it makes
// certificates, bootstrap files, the cluster, an administrator and users, starts
// the nodes, and writes down where everything is.
//
// Callers: `muster demo`, which `make run` and `make run-node` call, and test
// suites through them. Invariants: cluster.json says where each node is and
// which process it was last; a folder that demo did not make is never removed;
// passwords are random, and stand only in cluster.json, which its owner alone can read.
package demo

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"muster/internal/bootstrap"
	"muster/internal/certs"
	"muster/internal/fault"
)

// Limits and defaults.
const (
	MaxNodes = 6      // nodes of a cluster
	MaxUsers = 50_000 // users that are made in one go
	step     = 10     // between the ports of two nodes
)

// Cluster is what cluster.json holds.
type Cluster struct {
	Domain string `json:"domain"`
	CA     string `json:"ca"` // PEM file of the authority that signed the nodes' certificates
	Admin  User   `json:"admin"`
	Users  []User `json:"users"`
	Nodes  []Node `json:"nodes"`

	dir string
}

// User is somebody who can log in.
type User struct {
	JID      string `json:"jid"`
	Password string `json:"password"`
}

// Node is one process of the cluster.
type Node struct {
	Name      string    `json:"name"`
	ID        uint32    `json:"id"`
	PID       int       `json:"pid"`
	Data      string    `json:"data"`
	Config    string    `json:"config"`
	Log       string    `json:"log"`
	Addresses Addresses `json:"addresses"`
}

// Addresses are host:port each.
type Addresses struct {
	Client    string `json:"client"`     // STARTTLS
	ClientTLS string `json:"client_tls"` // direct TLS
	HTTPS     string `json:"https"`
	Cluster   string `json:"cluster"`
}

// Plan says what cluster to make.
type Plan struct {
	Dir    string // everything is below it
	Domain string
	Nodes  int
	Users  int // user1..userN; 0: alice, bob and carol
	Ports  int // added to every port
}

// file is where the description stands.
func file(dir string) string { return filepath.Join(dir, "cluster.json") }

// Load reads the description of the cluster in dir; NotFound if there is none.
func Load(dir string) (*Cluster, error) {
	b, err := os.ReadFile(file(dir))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "demo.load", dir, "there is no cluster in "+dir+"; make run makes one")
	}
	if err != nil {
		return nil, fault.Wrap(err, fault.Forbidden, "demo.load", dir)
	}
	c := &Cluster{dir: dir}
	if err := json.Unmarshal(b, c); err != nil {
		return nil, &fault.Error{Code: fault.BadRequest, Op: "demo.load", Subject: file(dir), Text: file(dir) + " is damaged; make run CLEAN=1 starts afresh", Err: err}
	}
	return c, nil
}

// save writes the description, whole or not at all.
func (c *Cluster) save() error {
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fault.Wrap(err, fault.Internal, "demo.save", c.dir)
	}
	tmp := file(c.dir) + ".new"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o600); err != nil {
		return fault.Wrap(err, fault.Forbidden, "demo.save", c.dir)
	}
	return fault.Wrap(os.Rename(tmp, file(c.dir)), fault.Forbidden, "demo.save", c.dir)
}

// setPID notes a node's process, in what the file says by now: another demo process may have written it.
func setPID(dir string, i, pid int) error {
	c, err := Load(dir)
	if err != nil {
		return err
	}
	c.Nodes[i].PID = pid
	return c.save()
}

// Clean removes what an earlier run left in dir. It refuses a folder that demo did not make.
func Clean(dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if _, err := os.Stat(filepath.Join(dir, marker)); err != nil {
		return fault.New(fault.Forbidden, "demo.clean", dir, dir+" was not made by muster demo: it is left alone; remove it yourself or name another folder")
	}
	if c, err := Load(dir); err == nil {
		for _, n := range c.Nodes {
			if n.running() {
				return fault.New(fault.Conflict, "demo.clean", dir, fmt.Sprintf("%s still runs (process %d); stop it first", n.Name, n.PID))
			}
		}
	}
	return fault.Wrap(os.RemoveAll(dir), fault.Forbidden, "demo.clean", dir)
}

// marker shows that demo made a folder.
const marker = ".muster-demo"

func (p Plan) check() error {
	switch {
	case p.Nodes < 1 || p.Nodes > MaxNodes:
		return fault.New(fault.NotAcceptable, "demo.run", "", fmt.Sprintf("NODES must be 1 to %d", MaxNodes))
	case p.Users < 0 || p.Users > MaxUsers:
		return fault.New(fault.NotAcceptable, "demo.run", "", fmt.Sprintf("USERS must be 0 to %d", MaxUsers))
	}
	return nil
}

// lay writes folders, certificates and bootstrap files of a new cluster.
func (p Plan) lay() (*Cluster, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(p.Dir)
	if err != nil {
		return nil, fault.Wrap(err, fault.BadRequest, "demo.run", p.Dir)
	}
	if _, err := os.Stat(filepath.Join(dir, marker)); err == nil {
		return nil, fault.New(fault.Conflict, "demo.run", dir, dir+" holds a cluster that was not finished; make run CLEAN=1 starts afresh")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.Wrap(err, fault.Forbidden, "demo.run", dir)
	}
	ca, err := certs.NewCA("Muster demo", time.Now())
	if err != nil {
		return nil, err
	}
	c := &Cluster{Domain: p.Domain, CA: filepath.Join(dir, "ca.pem"), dir: dir}
	for name, content := range map[string][]byte{filepath.Join(dir, marker): nil, c.CA: ca.PEM()} {
		if err := os.WriteFile(name, content, 0o644); err != nil {
			return nil, fault.Wrap(err, fault.Forbidden, "demo.run", name)
		}
	}
	for i := range p.Nodes {
		n, err := p.layNode(dir, i, ca)
		if err != nil {
			return nil, err
		}
		c.Nodes = append(c.Nodes, n)
	}
	return c, nil
}

func (p Plan) layNode(dir string, i int, ca *certs.CA) (Node, error) {
	name := "node" + strconv.Itoa(i+1)
	home := filepath.Join(dir, name)
	port := func(base int) string { return "127.0.0.1:" + strconv.Itoa(base+p.Ports+i*step) }
	n := Node{Name: name, Data: filepath.Join(home, "data"), Config: filepath.Join(home, "musterd.yaml"), Log: filepath.Join(home, "musterd.log"),
		Addresses: Addresses{Client: port(5222), ClientTLS: port(5223), HTTPS: port(8443), Cluster: port(7400)}}
	if err := os.MkdirAll(n.Data, 0o700); err != nil {
		return n, fault.Wrap(err, fault.Forbidden, "demo.run", n.Data)
	}
	cert, key, err := ca.Issue(time.Now(), p.Domain, name)
	if err != nil {
		return n, err
	}
	certFile, keyFile := filepath.Join(home, "cert.pem"), filepath.Join(home, "key.pem")
	if err := certs.WriteFiles(certFile, keyFile, cert, key); err != nil {
		return n, err
	}
	conf := fmt.Sprintf("data: data\nname: %s\ncluster:\n  listen: %s\nclient:\n  listen: %s\n  tls_listen: %s\nhttps:\n  listen: %s\ncertificates:\n  cert: cert.pem\n  key: key.pem\n",
		name, n.Addresses.Cluster, n.Addresses.Client, n.Addresses.ClientTLS, n.Addresses.HTTPS)
	if err := os.WriteFile(n.Config, []byte(conf), 0o600); err != nil {
		return n, fault.Wrap(err, fault.Forbidden, "demo.run", n.Config)
	}
	_, err = bootstrap.Load(n.Config)
	return n, err
}
