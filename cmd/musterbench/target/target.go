// Package target says which server is measured: addresses, accounts and process ids.
//
// A target comes from the command line (an address and a pattern of users) or
// from the cluster.json that `make run` writes. Every subcommand of the load
// generator starts with one.
package target

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"muster/internal/fault"
)

// maxUsers bounds the accounts of a run: more than a node can hold.
const maxUsers = 1 << 20

// maxClusterFile bounds the cluster file, in bytes.
const maxClusterFile = 256 << 20

// Secret is a password that does not print itself.
type Secret string

// String hides the secret.
func (Secret) String() string { return "***" }

// GoString hides the secret from %#v.
func (Secret) GoString() string { return "***" }

// User is an account that exists, or that prepare is to make.
type User struct {
	Local, Domain string
	Password      Secret
}

// JID returns the user's bare JID.
func (u User) JID() string { return u.Local + "@" + u.Domain }

// Node is one server of the target.
type Node struct {
	Name      string
	PID       int // 0 when unknown
	DirectTLS string
	StartTLS  string
}

// Target is everything that a scenario connects to.
type Target struct {
	CA    string // a PEM file; empty: the certificate is not checked
	Users []User
	Nodes []Node
}

// clusterFile is the shape of run/cluster.json.
type clusterFile struct {
	Domain string `json:"domain"`
	CA     string `json:"ca"`
	Users  []struct {
		JID      string `json:"jid"`
		Password string `json:"password"`
	} `json:"users"`
	Nodes []struct {
		Name      string `json:"name"`
		PID       int    `json:"pid"`
		Addresses struct {
			Client    string `json:"client"`
			ClientTLS string `json:"client_tls"`
		} `json:"addresses"`
	} `json:"nodes"`
}

// Load reads a cluster file.
func Load(path string) (*Target, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fault.Wrap(err, fault.NotFound, "target.load", path)
	}
	if info.Size() > maxClusterFile {
		return nil, fault.New(fault.TooLarge, "target.load", path, "the cluster file is larger than 256 MiB")
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.Wrap(err, fault.Unavailable, "target.load", path)
	}
	return parseCluster(path, text)
}

func parseCluster(path string, text []byte) (*Target, error) {
	var file clusterFile
	if err := json.Unmarshal(text, &file); err != nil {
		return nil, &fault.Error{Code: fault.BadRequest, Op: "target.load", Subject: path, Text: "not a cluster file: is it JSON as `make run` writes it?", Err: err}
	}
	t := &Target{CA: file.CA}
	for _, u := range file.Users {
		local, domain, ok := strings.Cut(u.JID, "@")
		if !ok {
			local, domain = u.JID, file.Domain
		}
		t.Users = append(t.Users, User{Local: local, Domain: domain, Password: Secret(u.Password)})
	}
	for _, n := range file.Nodes {
		t.Nodes = append(t.Nodes, Node{Name: n.Name, PID: n.PID, DirectTLS: n.Addresses.ClientTLS, StartTLS: n.Addresses.Client})
	}
	if len(t.Nodes) == 0 {
		return nil, fault.New(fault.BadRequest, "target.load", path, "the cluster file names no nodes")
	}
	return t, nil
}

// Expand makes count users from a pattern such as "user%d@example.test:secret",
// numbered from first. The password may hold %d too.
func Expand(pattern string, first, count int) ([]User, error) {
	address, password, ok := strings.Cut(pattern, ":")
	local, domain, isJID := strings.Cut(address, "@")
	if !ok || !isJID || !strings.Contains(local, "%d") || password == "" {
		return nil, fault.New(fault.BadRequest, "target.expand", address, `a users pattern looks like "user%d@example.test:password"`)
	}
	if count < 1 || count > maxUsers {
		return nil, fault.New(fault.BadRequest, "target.expand", strconv.Itoa(count), fmt.Sprintf("the number of users must be 1 to %d", maxUsers))
	}
	users := make([]User, count)
	for i := range users {
		number := strconv.Itoa(first + i)
		users[i] = User{
			Local: strings.ReplaceAll(local, "%d", number), Domain: domain,
			Password: Secret(strings.ReplaceAll(password, "%d", number)),
		}
	}
	return users, nil
}

// PIDs returns the known process ids of the nodes.
func (t *Target) PIDs() []int {
	var pids []int
	for _, n := range t.Nodes {
		if n.PID > 0 {
			pids = append(pids, n.PID)
		}
	}
	return pids
}

// Only keeps the named node and drops the others.
func (t *Target) Only(name string) error {
	for _, n := range t.Nodes {
		if n.Name == name {
			t.Nodes = []Node{n}
			return nil
		}
	}
	return fault.New(fault.NotFound, "target.only", name, "the cluster file has no node of that name")
}

// Contacts returns the indexes of user i's mutual contacts among n users: its
// nearest neighbours on a ring, half on either side. Fewer than each+1 users give fewer contacts.
func Contacts(i, n, each int) []int {
	var contacts []int
	seen := map[int]bool{i: true}
	for step := 1; step <= (each+1)/2; step++ {
		for _, j := range []int{(i + step) % n, ((i-step)%n + n) % n} {
			if !seen[j] && len(contacts) < each {
				seen[j] = true
				contacts = append(contacts, j)
			}
		}
	}
	return contacts
}
