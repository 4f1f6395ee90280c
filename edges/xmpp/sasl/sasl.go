// Package sasl is the server's side of SASL (RFC 4422) as XMPP uses it
// (RFC 6120 section 6): SCRAM-SHA-256 and SCRAM-SHA-1, each with and without
// channel binding, PLAIN, and the mechanisms that use a token (XEP-0484). The
// client edge calls it with decoded bytes; it knows no XML.
//
// Invariants: nothing it answers, nor how long it takes, tells whether a user
// exists; a disabled account is named only to who proved its password; an
// authorization identity other than the user's own is refused.
package sasl

import (
	"bytes"
	"context"
	"time"
	"unicode/utf8"

	"muster/fsm/token"
	"muster/internal/fault"
	"muster/internal/jid"
	"muster/internal/scram"
)

// Condition is why an attempt failed (RFC 6120 section 6.5).
type Condition string

// The conditions of RFC 6120 section 6.5.
const (
	Aborted              Condition = "aborted"
	AccountDisabled      Condition = "account-disabled"
	CredentialsExpired   Condition = "credentials-expired"
	EncryptionRequired   Condition = "encryption-required"
	IncorrectEncoding    Condition = "incorrect-encoding"
	InvalidAuthzid       Condition = "invalid-authzid"
	InvalidMechanism     Condition = "invalid-mechanism"
	MalformedRequest     Condition = "malformed-request"
	MechanismTooWeak     Condition = "mechanism-too-weak"
	NotAuthorized        Condition = "not-authorized"
	TemporaryAuthFailure Condition = "temporary-auth-failure"
)

// Step is what the server answers.
type Step struct {
	Done     bool          // logged in to Account
	Account  Account       // whose it is; with Done
	TokenDay uint32        // day of the token that was used; 0: none was
	Data     []byte        // the challenge, or the additional data with success; may be nil
	Failure  Condition     // "" = none
	Text     string        // why, for people; goes with Failure
	Delay    time.Duration // wait this long before answering a failure (a tarpit against guessing)
}

// Account is what a login needs of a user.
type Account struct {
	User         jid.JID // bare
	SHA256, SHA1 scram.Verifier
	Created      time.Time // a later account of that name has another
	Disabled     bool
	Admin        bool // may administer the cluster
}

// Directory finds accounts.
type Directory interface {
	// Account returns the account of that bare address; false if there is none.
	Account(user jid.JID) (Account, bool)
}

// Guard slows and locks out who guesses passwords. account is a normalised
// bare address, or the name as sent where it is no address.
type Guard interface {
	// Check returns a fault with code Overloaded while that account is locked for that peer.
	Check(account, peer string) error
	// Failed counts a failure and returns how long to wait before answering.
	Failed(account, peer string) time.Duration
	// FailedToken is Failed for a token, which nobody can guess. It does not count against the peer as a
	// whole: when all tokens become void, each client behind one address comes with one that was good.
	FailedToken(account, peer string) time.Duration
	// Succeeded forgets the failures of that account from that peer.
	Succeeded(account, peer string)
}

// Options are what all exchanges of a server share.
type Options struct {
	Directory  Directory
	Guard      Guard
	FakeKey    []byte                // of the cluster: salts of users that do not exist derive from it
	Iterations func(user string) int // of the password that a user who does not exist seems to have
	Workers    int                   // passwords that are hashed at once; 0 means one
	Tokens     Tokens                // nil: no mechanism that uses a token
}

// Authenticator makes exchanges. It is shared by all connections.
type Authenticator struct {
	o     Options
	plain *plainChecker
}

// NewAuthenticator returns an authenticator.
func NewAuthenticator(o Options) *Authenticator {
	return &Authenticator{o: o, plain: newPlainChecker(max(o.Workers, 1))}
}

// Peer is what an exchange knows of its connection.
type Peer struct {
	Domain  string                           // the stream's domain: every user of it is looked up there
	Address string                           // of the client, for the guard; "" is never locked out
	Binding func(kind string) ([]byte, bool) // channel-binding data (RFC 5929, RFC 9266)
	Kinds   []string                         // channel-binding types that Binding has; empty: no -PLUS mechanism
	Agent   token.Agent                      // the client's installation, whose tokens count; zero: none do
}

// Mechanisms returns the names to offer to a peer, the strongest first.
func Mechanisms(p Peer) []string {
	plain := []string{"SCRAM-SHA-256", "SCRAM-SHA-1", "PLAIN"}
	if len(p.Kinds) == 0 {
		return plain
	}
	return append([]string{"SCRAM-SHA-256-PLUS", "SCRAM-SHA-1-PLUS"}, plain...)
}

// Exchange is one attempt to log in. Use it from one goroutine.
type Exchange struct {
	a       *Authenticator
	peer    Peer
	scram   *scram.Exchange
	hash    scram.Hash
	plus    bool
	plain   bool
	token   string // the mechanism that uses a token; "": another
	binding string // the channel binding that goes with it
	account Account
	known   bool
	name    string // the guard's name for the account
	step    int
}

// New starts an attempt.
func (a *Authenticator) New(p Peer) *Exchange { return &Exchange{a: a, peer: p} }

// Begin takes the mechanism and the initial response; initial is nil if there
// was none, and empty but not nil for an empty one.
func (e *Exchange) Begin(ctx context.Context, mechanism string, initial []byte) Step {
	switch mechanism {
	case "SCRAM-SHA-256-PLUS", "SCRAM-SHA-1-PLUS":
		if len(e.peer.Kinds) == 0 {
			return failure(InvalidMechanism, "channel binding is not available on this connection")
		}
		e.plus = true
	case "SCRAM-SHA-256", "SCRAM-SHA-1":
	case "PLAIN":
		e.plain = true
	default:
		if !e.beginToken(mechanism) {
			return failure(InvalidMechanism, "this mechanism is not offered")
		}
	}
	if mechanism == "SCRAM-SHA-1" || mechanism == "SCRAM-SHA-1-PLUS" {
		e.hash = scram.SHA1
	}
	if !e.plain && e.token == "" {
		e.scram = scram.New(scram.Params{
			Hash: e.hash, Plus: e.plus, PlusOffered: len(e.peer.Kinds) > 0,
			Binding: e.peer.Binding, Lookup: e.lookup,
		})
	}
	if initial == nil {
		return Step{} // an empty challenge asks for it
	}
	return e.Continue(ctx, initial)
}

// Continue takes the next response.
func (e *Exchange) Continue(ctx context.Context, response []byte) Step {
	e.step++
	switch {
	case e.plain && e.step == 1:
		return e.checkPlain(ctx, response)
	case e.token != "" && e.step == 1:
		return e.checkToken(response)
	case e.scram != nil && e.step == 1:
		if !utf8.Valid(response) {
			return failure(MalformedRequest, "not UTF-8")
		}
		challenge, err := e.scram.First(response)
		if err != nil {
			return e.refused(err)
		}
		return Step{Data: challenge}
	case e.scram != nil && e.step == 2:
		data, err := e.scram.Final(response)
		if err != nil {
			return e.refused(err)
		}
		return e.proved(e.scram.Authzid(), data)
	}
	return failure(MalformedRequest, "no exchange is under way")
}

// lookup finds the verifier for a name, a fake one if need be.
func (e *Exchange) lookup(name string) (scram.Verifier, error) {
	if err := e.find(name); err != nil {
		return scram.Verifier{}, err
	}
	v := scram.Fake(e.a.o.FakeKey, e.hash, e.name, e.a.o.Iterations(e.name))
	own := e.account.SHA256
	if e.hash == scram.SHA1 {
		own = e.account.SHA1
	}
	if e.known = e.known && own.Valid(e.hash); e.known {
		v = own
	}
	return v, nil
}

// find resolves the name that the client gave.
func (e *Exchange) find(name string) error {
	e.name = name[:min(len(name), maxName)]
	user, err := jid.New(name, e.peer.Domain, "")
	if err == nil && user.Local != "" {
		e.name = user.String()
		e.account, e.known = e.a.o.Directory.Account(user)
	}
	return e.a.o.Guard.Check(e.name, e.peer.Address)
}

func (e *Exchange) checkPlain(ctx context.Context, msg []byte) Step {
	parts := bytes.Split(msg, []byte{0})
	if len(parts) != 3 || len(parts[1]) == 0 || len(parts[2]) == 0 || !utf8.Valid(msg) || len(msg) > 3*scram.MaxPassword+jid.MaxPart {
		return failure(MalformedRequest, "malformed PLAIN message (RFC 4616)")
	}
	e.hash = scram.SHA256
	v, err := e.lookup(string(parts[1]))
	if err != nil {
		return e.refused(err)
	}
	ok, err := e.a.plain.check(ctx, e.name, v, string(parts[2]))
	if err != nil {
		return e.refused(err)
	}
	if !ok {
		return e.refused(fault.New(fault.Unauthorized, "sasl.plain", e.name, wrong))
	}
	return e.proved(string(parts[0]), nil)
}

// maxName bounds a name that is no address, where it is counted and logged.
const maxName = 64

// wrong is the one text for a wrong name and a wrong password.
const wrong = "wrong user name or password"

// proved is called once the client has shown that it knows the password.
func (e *Exchange) proved(authzid string, data []byte) Step {
	if !e.known { // a fake verifier cannot be matched; should it be, it opens nothing
		return e.refused(fault.New(fault.Unauthorized, "sasl", e.name, wrong))
	}
	e.a.o.Guard.Succeeded(e.name, e.peer.Address)
	if authzid != "" {
		as, err := jid.Parse(authzid)
		if err != nil || as != e.account.User {
			return failure(InvalidAuthzid, "you may act as yourself only")
		}
	}
	if e.account.Disabled {
		return failure(AccountDisabled, "this account is disabled: ask your administrator")
	}
	return Step{Done: true, Account: e.account, Data: data}
}

// refused turns a fault into the answer, and counts it where it is a guess.
func (e *Exchange) refused(err error) Step {
	switch code := fault.CodeOf(err); code {
	case fault.BadRequest:
		return failure(MalformedRequest, fault.Public(err))
	case fault.Unauthorized, fault.NotAcceptable:
		s := failure(NotAuthorized, fault.Public(err))
		if e.name != "" {
			s.Delay = e.a.o.Guard.Failed(e.name, e.peer.Address)
		}
		return s
	default:
		return failure(TemporaryAuthFailure, fault.Public(err))
	}
}

func failure(c Condition, text string) Step { return Step{Failure: c, Text: text} }
