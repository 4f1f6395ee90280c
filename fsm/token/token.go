// Package token is the replicated half of the tokens with which clients log in
// again in one round trip (XEP-0484). No token is stored: one is derived from
// the cluster's secret, its owner and the day on which it was given, so that
// every node knows it without having been told (ADR 10). What is stored is
// which tokens are void.
//
// Callers: the client edge derives and reads; the node proposes; fsm/user's
// hooks DisableUser and DeleteUser void all of a user's tokens.
//
// Invariants: a token that became void stays void; a client's row says from
// which day on its tokens count, a user's row the same for all clients and since
// when (generation); a user has at most MaxClients client rows, and beyond that
// the client that has been away longest loses its tokens.
package token

import (
	"time"

	"muster/fsm"
	"muster/fsm/token/tokenpb"
	"muster/fsm/user"
	"muster/internal/fault"
	"muster/log"
)

// Limits of tokens.
const (
	MaxClients = 32 // clients of one user whose void tokens are remembered one by one
	MaxDays    = 90 // days for which a token can be good at most
	MaxAhead   = 32 // days that a void may lie ahead of the log's time: tokens that are invalidated on the day they were given
)

const day = 24 * time.Hour

var (
	clientTable = fsm.NewTable("token.clients") // user, NUL, agent → row
	userTable   = fsm.NewTable("token.users")   // user → row
)

// Module returns the module of tokens.
func Module() fsm.Module {
	return fsm.Module{
		Name:     "fsm/token",
		Tables:   []*fsm.Table{clientTable, userTable},
		Handlers: map[log.Kind]fsm.Handler{log.TokenVoid: void},
	}
}

// DayOf returns the day of a time: whole days of UTC since the Unix epoch.
func DayOf(t time.Time) uint32 { return uint32(max(t.Unix(), 0) / int64(day/time.Second)) }

// EndOf returns when a day ends.
func EndOf(d uint32) time.Time { return time.Unix(int64(d+1)*int64(day/time.Second), 0).UTC() }

// Void says that a client's tokens of days before a day are of no use any more.
type Void struct {
	User   string // bare address
	Agent  Agent
	Before uint32 // day
}

// VoidEntry makes tokens void. It never brings one back: of two days the later one counts.
func VoidEntry(v Void) *log.Entry {
	return log.New(log.TokenVoid, &tokenpb.Void{User: fsm.Text(v.User), Agent: v.Agent[:], Before: v.Before})
}

// Standing is what counts of a client's tokens.
type Standing struct {
	Generation uint64 // changes when all of the user's tokens become void
	Before     uint32 // tokens of days before this one are void
}

// StandingOf returns what counts of the tokens of a user's client. It is the zero Standing where nothing is void.
func StandingOf(r fsm.Reader, name string, agent Agent) Standing {
	var (
		all tokenpb.UserRow
		one tokenpb.ClientRow
	)
	fsm.Load(r, userTable, []byte(name), &all)
	fsm.Load(r, clientTable, clientKey(name, agent), &one)
	return Standing{Generation: all.Generation, Before: max(all.Before, one.Before)}
}

func clientKey(name string, agent Agent) []byte { return append(clientPrefix(name), agent[:]...) }

func clientPrefix(name string) []byte { return append([]byte(name), 0) }

// DisableUser makes all tokens of a user void; it is for user.Hooks.
func DisableUser(tx *fsm.Tx, name string) error {
	forgetClients(tx, name, func([]byte, uint32) bool { return true })
	tx.Save(userTable, []byte(name), &tokenpb.UserRow{Generation: tx.Index()})
	return nil
}

// DeleteUser forgets what is known of a user's tokens; it is for user.Hooks. A
// later user of that name has another password and time of creation, from which tokens derive too.
func DeleteUser(tx *fsm.Tx, name string) error {
	forgetClients(tx, name, func([]byte, uint32) bool { return true })
	tx.Delete(userTable, []byte(name))
	return nil
}

// forgetClients removes the rows of a user's clients that gone says yes to, and returns how many are left.
func forgetClients(tx *fsm.Tx, name string, gone func(key []byte, before uint32) bool) (left int) {
	tx.Scan(clientTable, clientPrefix(name), nil, func(k, v []byte) bool {
		var row tokenpb.ClientRow
		fsm.Decode(clientTable, v, &row)
		if gone(k, row.Before) {
			tx.Delete(clientTable, k)
		} else {
			left++
		}
		return true
	})
	return left
}

// void applies a Void.
func void(tx *fsm.Tx, e *log.Entry) error {
	var body tokenpb.Void
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	today := DayOf(tx.Time())
	switch {
	case len(body.Agent) != len(Agent{}):
		return fault.New(fault.BadRequest, "token.void", body.User, "a client is named by a UUID")
	case body.Before > today+MaxAhead:
		return fault.New(fault.NotAcceptable, "token.void", body.User, "that day is too far ahead")
	case !user.Exists(tx, body.User):
		return fault.New(fault.NotFound, "token.void", body.User, "no such user")
	}
	agent := Agent(body.Agent)
	if body.Before <= StandingOf(tx, body.User, agent).Before {
		return nil
	}
	key := clientKey(body.User, agent)
	if _, have := tx.Get(clientTable, key); !have {
		makeRoom(tx, body.User, today)
	}
	tx.Save(clientTable, key, &tokenpb.ClientRow{Before: body.Before})
	return nil
}

// makeRoom leaves place for one more client of a user. Rows whose void tokens
// have all expired by now say nothing any more. If that is not enough the client
// that has been away longest goes: what its row made void becomes void for all.
func makeRoom(tx *fsm.Tx, name string, today uint32) {
	lowest := uint32(0)
	left := forgetClients(tx, name, func(_ []byte, before uint32) bool {
		if before+MaxDays < today {
			return true
		}
		if lowest == 0 || before < lowest {
			lowest = before
		}
		return false
	})
	if left < MaxClients {
		return
	}
	var row tokenpb.UserRow
	fsm.Load(tx, userTable, []byte(name), &row)
	row.Before = max(row.Before, lowest)
	tx.Save(userTable, []byte(name), &row)
	forgetClients(tx, name, func(_ []byte, before uint32) bool { return before <= row.Before })
}
