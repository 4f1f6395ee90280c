package target

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"muster/internal/fault"
)

const cluster = `{
  "domain": "example.test", "ca": "run/ca.pem",
  "users": [{"jid": "user1@example.test", "password": "one"}, {"jid": "user2", "password": "two"}],
  "nodes": [
    {"name": "node1", "id": 1, "pid": 123, "data": "run/node1", "addresses": {"client": "127.0.0.1:5222", "client_tls": "127.0.0.1:5223", "https": "127.0.0.1:8443"}},
    {"name": "node2", "id": 2, "pid": 0, "addresses": {"client": "127.0.0.1:5232", "client_tls": "127.0.0.1:5233"}}
  ]}`

func load(t *testing.T, text string) (*Target, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cluster.json")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(path)
}

func TestLoad(t *testing.T) {
	target, err := load(t, cluster)
	if err != nil {
		t.Fatal(err)
	}
	if target.CA != "run/ca.pem" || len(target.Users) != 2 || len(target.Nodes) != 2 {
		t.Fatalf("got %+v", target)
	}
	if got := target.Users[0].JID() + " " + target.Users[1].JID(); got != "user1@example.test user2@example.test" {
		t.Errorf("users %q", got)
	}
	if target.Users[1].Password != "two" {
		t.Error("the password is not the file's")
	}
	want := Node{Name: "node1", PID: 123, DirectTLS: "127.0.0.1:5223", StartTLS: "127.0.0.1:5222"}
	if target.Nodes[0] != want {
		t.Errorf("got %+v, want %+v", target.Nodes[0], want)
	}
	if pids := target.PIDs(); !slices.Equal(pids, []int{123}) {
		t.Errorf("process ids %v: an unknown one must be left out", pids)
	}
}

func TestLoadRejects(t *testing.T) {
	for name, text := range map[string]string{
		"not JSON": "domain: x", "no nodes": `{"domain": "x", "users": []}`, "wrong type": `{"nodes": "many"}`,
	} {
		if _, err := load(t, text); !fault.Is(err, fault.BadRequest) {
			t.Errorf("%s: got %v, want bad-request", name, err)
		}
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none")); !fault.Is(err, fault.NotFound) {
		t.Errorf("no file: %v", err)
	}
}

func TestOnly(t *testing.T) {
	target, err := load(t, cluster)
	if err != nil {
		t.Fatal(err)
	}
	if err := target.Only("node9"); !fault.Is(err, fault.NotFound) {
		t.Errorf("unknown node: %v", err)
	}
	if err := target.Only("node2"); err != nil || len(target.Nodes) != 1 || target.Nodes[0].Name != "node2" {
		t.Errorf("got %v, %+v", err, target.Nodes)
	}
}

func TestExpand(t *testing.T) {
	users, err := Expand("user%d@example.test:pw:%d", 5, 2)
	if err != nil {
		t.Fatal(err)
	}
	want := []User{{"user5", "example.test", "pw:5"}, {"user6", "example.test", "pw:6"}}
	if !slices.Equal(users, want) {
		t.Errorf("got %v", users)
	}
}

func TestExpandRejects(t *testing.T) {
	cases := []struct {
		name, pattern string
		count         int
	}{
		{"no password", "user%d@example.test", 1}, {"no domain", "user%d:pw", 1}, {"no number", "user@example.test:pw", 1},
		{"empty password", "user%d@example.test:", 1}, {"none", "user%d@example.test:pw", 0}, {"too many", "user%d@example.test:pw", maxUsers + 1},
	}
	for _, c := range cases {
		if _, err := Expand(c.pattern, 1, c.count); !fault.Is(err, fault.BadRequest) {
			t.Errorf("%s: got %v, want bad-request", c.name, err)
		}
	}
}

func FuzzExpand(f *testing.F) {
	f.Add("user%d@example.test:pw", 1)
	f.Add("%d@:%d", 3)
	f.Fuzz(func(t *testing.T, pattern string, count int) {
		users, err := Expand(pattern, 1, min(count, 50))
		if err == nil && len(users) != min(count, 50) {
			t.Errorf("asked for %d users, got %d", count, len(users))
		}
	})
}

func FuzzParseCluster(f *testing.F) {
	f.Add([]byte(cluster))
	f.Add([]byte(`{"nodes":[{}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if target, err := parseCluster("fuzz", text); err == nil && len(target.Nodes) == 0 {
			t.Error("a target without nodes was accepted")
		}
	})
}

func TestSecretDoesNotPrint(t *testing.T) {
	user := User{"a", "b", "hunter2"}
	if text := fmt.Sprintf("%v %+v %#v %s", user, user, user, user.Password); strings.Contains(text, "hunter2") {
		t.Errorf("the password shows: %s", text)
	}
}

func TestContacts(t *testing.T) {
	cases := []struct {
		name       string
		i, n, each int
		want       []int
	}{
		{"middle of a ring", 5, 10, 4, []int{6, 4, 7, 3}},
		{"around the end", 0, 10, 4, []int{1, 9, 2, 8}},
		{"fewer users than contacts", 1, 3, 20, []int{2, 0}},
		{"alone", 0, 1, 20, nil},
		{"none wanted", 0, 10, 0, nil},
	}
	for _, c := range cases {
		if got := Contacts(c.i, c.n, c.each); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
}

func TestContactsAreMutual(t *testing.T) {
	for _, n := range []int{2, 3, 20, 21, 22, 50} {
		for i := range n {
			contacts := Contacts(i, n, 20)
			if len(contacts) != min(20, n-1) {
				t.Fatalf("user %d of %d has %d contacts", i, n, len(contacts))
			}
			for _, j := range contacts {
				if !slices.Contains(Contacts(j, n, 20), i) {
					t.Fatalf("of %d users, %d has %d as a contact, but not the other way", n, i, j)
				}
			}
		}
	}
}
