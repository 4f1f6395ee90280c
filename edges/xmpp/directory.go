package xmpp

import (
	"muster/edges/xmpp/sasl"
	"muster/fsm"
	"muster/fsm/user"
	"muster/internal/jid"
	"muster/internal/scram"
)

type users struct{ r fsm.Reader }

// Users returns the users of the replicated state as those who may log in.
func Users(r fsm.Reader) sasl.Directory { return users{r} }

// Account implements sasl.Directory.
func (d users) Account(j jid.JID) (sasl.Account, bool) {
	u, ok := user.Get(d.r, j.String())
	if !ok {
		return sasl.Account{}, false
	}
	return sasl.Account{User: j, SHA256: verifier(u.SHA256), SHA1: verifier(u.SHA1), Created: u.Created, Disabled: !u.IM, Admin: u.Admin}, true
}

func verifier(v user.Verifier) scram.Verifier {
	return scram.Verifier{Salt: v.Salt, Iterations: v.Iterations, StoredKey: v.StoredKey, ServerKey: v.ServerKey}
}

// maxNeighbours is how many users are looked at for one who has a password.
const maxNeighbours = 64

// neighbour returns how many iterations the password of a user who does not
// exist seems to have: those of the next user in order of address. Imported
// users may have fewer than others, and a number that nobody has would tell who
// is nobody. It is the same on every node, and at every try.
func neighbour(r fsm.Reader) func(name string) int {
	return func(name string) int {
		n, seen := 0, 0
		look := func(u user.User) bool {
			n = u.SHA256.Iterations
			seen++
			return n == 0 && seen < maxNeighbours
		}
		user.Scan(r, "", name, look)
		if n == 0 { // the last of all: go round
			seen = 0
			user.Scan(r, "", "", look)
		}
		if n == 0 {
			n = scram.DefaultIterations
		}
		return n
	}
}
