package xmpp

import (
	"fmt"
	"testing"

	"muster/fsm/config"
	"muster/fsm/fsmtest"
	"muster/fsm/user"
	"muster/internal/scram"
)

// TestNeighbour: the password of nobody looks like one that somebody near has.
func TestNeighbour(t *testing.T) {
	rig := fsmtest.New(t, config.Module(), user.Module())
	rig.Must(config.AddDomainEntry(testDomain))
	look := neighbour(rig.M)
	if n := look("nobody@" + testDomain); n != scram.DefaultIterations {
		t.Errorf("without users: %d iterations", n)
	}
	add := func(name string, iterations int) {
		t.Helper()
		u := user.User{Name: name + "@" + testDomain, IM: true}
		if iterations > 0 {
			v256, v1, err := scram.Derive(testPassword, []byte("salt of "+name), iterations)
			if err != nil {
				t.Fatal(err)
			}
			u.SHA256 = user.Verifier{Iterations: v256.Iterations, Salt: v256.Salt, StoredKey: v256.StoredKey, ServerKey: v256.ServerKey}
			u.SHA1 = user.Verifier{Iterations: v1.Iterations, Salt: v1.Salt, StoredKey: v1.StoredKey, ServerKey: v1.ServerKey}
		}
		rig.Must(user.CreateEntry(u))
	}
	add("bob", 4100)
	add("dave", 0)
	add("eve", 4200)
	for _, tc := range []struct {
		name string
		want int
	}{
		{"alice", 4100}, {"bobby", 4200}, {"carol", 4200}, {"dora", 4200}, {"zoe", 4100}, {"", 4100}, {"\xff", 4100},
	} {
		t.Run(fmt.Sprintf("%q", tc.name), func(t *testing.T) {
			for range 2 {
				if n := look(tc.name + "@" + testDomain); n != tc.want {
					t.Errorf("%d iterations, want %d", n, tc.want)
				}
			}
		})
	}
}
