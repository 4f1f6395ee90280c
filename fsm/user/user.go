// Package user is the replicated directory of users: who may log in, with what
// password verifiers, and what they may do.
//
// Callers: administration surfaces and sync agents propose entries; the edges
// read verifiers at login; the router asks whether an address is a user.
//
// Invariants: a user's domain is an IM domain; a user has an assignment row
// (fsm/cluster) from creation to deletion; what other modules keep of a user
// goes in the entry that deletes it; no password is ever in the log, only
// SCRAM verifiers.
package user

import (
	"encoding/binary"
	"time"
	"unicode/utf8"

	"muster/fsm"
	"muster/fsm/cluster"
	"muster/fsm/config"
	"muster/fsm/user/userpb"
	"muster/internal/fault"
	"muster/internal/jid"
	"muster/log"
)

// Limits of a user's data.
const (
	MaxDisplayName = 256        // bytes
	MaxEmail       = 320        // bytes: 64 + @ + 255
	minIterations  = 4096       // RFC 5802 section 5.1
	maxIterations  = 10_000_000 // seconds of a client's time
	minSalt        = 8          // bytes
	maxSalt        = 64         // bytes
)

// Tables of this module.
var (
	Table      = fsm.NewTable("user.users")  // bare address → user
	countTable = fsm.NewTable("user.counts") // domain ("": all) → number of users
)

// Hook is what another module does within an entry that concerns a user.
type Hook = func(tx *fsm.Tx, user string) error

// Hooks run in order, within the entry.
type Hooks struct {
	Delete  []Hook // when a user is deleted
	Disable []Hook // when a user who might log in may no longer
}

// Module returns the module of users with hooks for deletion only.
func Module(onDelete ...Hook) fsm.Module { return ModuleWith(Hooks{Delete: onDelete}) }

// ModuleWith returns the module of users.
func ModuleWith(h Hooks) fsm.Module {
	return fsm.Module{
		Name:   "fsm/user",
		Tables: []*fsm.Table{Table, countTable},
		Handlers: map[log.Kind]fsm.Handler{
			log.UserCreate:   create,
			log.UserUpdate:   func(tx *fsm.Tx, e *log.Entry) error { return update(tx, e, h.Disable) },
			log.UserPassword: setPassword,
			log.UserDelete:   func(tx *fsm.Tx, e *log.Entry) error { return remove(tx, e, h.Delete) },
		},
	}
}

func run(tx *fsm.Tx, name string, hooks []Hook) error {
	for _, fn := range hooks {
		if err := fn(tx, name); err != nil {
			return err
		}
	}
	return nil
}

// Verifier is what the server keeps of a password for one hash function (RFC
// 5802 section 3). The zero Verifier lets nobody in. It prints as "***".
type Verifier struct {
	Iterations int
	Salt       []byte
	StoredKey  []byte
	ServerKey  []byte
}

// String keeps verifiers out of logs.
func (Verifier) String() string { return "***" }

// GoString keeps verifiers out of logs.
func (Verifier) GoString() string { return "***" }

// IsZero reports whether there is no password.
func (v Verifier) IsZero() bool { return len(v.StoredKey) == 0 }

// User is somebody who may log in.
type User struct {
	Name        string // bare address
	IM          bool   // may log in and send messages
	Presence    bool   // has presence
	Admin       bool   // may administer the cluster
	DisplayName string
	Email       string
	SHA256      Verifier // SCRAM-SHA-256
	SHA1        Verifier // SCRAM-SHA-1
	Created     time.Time
	Revision    uint64 // log index of the last change
}

// Update says what to change of a user; nil fields stay.
type Update struct {
	IM, Presence, Admin *bool
	DisplayName, Email  *string
}

// CreateEntry creates a user. Created and Revision of u are ignored.
func CreateEntry(u User) *log.Entry {
	return log.New(log.UserCreate, &userpb.Create{
		Name: fsm.Text(u.Name), Im: u.IM, Presence: u.Presence, Admin: u.Admin, DisplayName: fsm.Text(u.DisplayName),
		Email: fsm.Text(u.Email), Sha256: u.SHA256.encode(), Sha1: u.SHA1.encode(),
	})
}

// UpdateEntry changes a user.
func UpdateEntry(name string, up Update) *log.Entry {
	return log.New(log.UserUpdate, &userpb.Update{
		Name: fsm.Text(name), Im: up.IM, Presence: up.Presence, Admin: up.Admin,
		DisplayName: text(up.DisplayName), Email: text(up.Email),
	})
}

// PasswordEntry replaces a user's verifiers; two zero ones take the password away.
func PasswordEntry(name string, sha256, sha1 Verifier) *log.Entry {
	return log.New(log.UserPassword, &userpb.Password{Name: fsm.Text(name), Sha256: sha256.encode(), Sha1: sha1.encode()})
}

// DeleteEntry deletes a user and everything that the log keeps of it.
func DeleteEntry(name string) *log.Entry {
	return log.New(log.UserDelete, &userpb.Delete{Name: fsm.Text(name)})
}

func text(s *string) *string {
	if s == nil {
		return nil
	}
	valid := fsm.Text(*s)
	return &valid
}

// Get returns a user by bare address.
func Get(r fsm.Reader, bare string) (User, bool) {
	b, ok := r.Get(Table, []byte(bare))
	if !ok {
		return User{}, false
	}
	return decode(bare, b), true
}

// Exists reports whether bare is a user, without decoding it.
func Exists(r fsm.Reader, bare string) bool {
	_, ok := r.Get(Table, []byte(bare))
	return ok
}

// Count returns the number of users.
func Count(r fsm.Reader) int { return int(readCount(r, "")) }

// CountIn returns the number of users of a domain.
func CountIn(r fsm.Reader, domain string) int { return int(readCount(r, domain)) }

// Scan calls fn for the users whose address begins with prefix, in order of
// address, until fn returns false. from, if not empty, is the first address wanted.
func Scan(r fsm.Reader, prefix, from string, fn func(User) bool) {
	var start []byte
	if from != "" {
		start = []byte(from)
	}
	r.Scan(Table, []byte(prefix), start, func(k, v []byte) bool { return fn(decode(string(k), v)) })
}

// DecodeChange tells which user a change is about, before and after (nil: no
// such user). ok is false for a change of another table.
func DecodeChange(c fsm.Change) (name string, before, after *User, ok bool) {
	if c.Table != Table {
		return "", nil, nil, false
	}
	name = string(c.Key)
	if c.Before != nil {
		u := decode(name, c.Before)
		before = &u
	}
	if c.After != nil {
		u := decode(name, c.After)
		after = &u
	}
	return name, before, after, true
}

// DomainInUse refuses the removal of a domain that has users; it is for config.Module.
func DomainInUse(tx *fsm.Tx, domain string) error {
	if readCount(tx, domain) > 0 {
		return fault.New(fault.Conflict, "domain.remove", domain, "the domain has users; delete them first")
	}
	return nil
}

func readCount(r fsm.Reader, domain string) uint64 {
	b, ok := r.Get(countTable, []byte(domain))
	if !ok {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

func addCount(tx *fsm.Tx, domain string, delta int64) {
	for _, key := range []string{"", domain} {
		n := readCount(tx, key) + uint64(delta)
		if n == 0 {
			tx.Delete(countTable, []byte(key))
		} else {
			tx.Put(countTable, []byte(key), binary.BigEndian.AppendUint64(nil, n))
		}
	}
}

func decode(name string, b []byte) User {
	var row userpb.UserRow
	fsm.Decode(Table, b, &row)
	return User{
		Name: name, IM: row.Im, Presence: row.Presence, Admin: row.Admin, DisplayName: row.DisplayName, Email: row.Email,
		SHA256: decodeVerifier(row.Sha256), SHA1: decodeVerifier(row.Sha1),
		Created: time.Unix(0, row.Created).UTC(), Revision: row.Revision,
	}
}

func decodeVerifier(v *userpb.Verifier) Verifier {
	if v == nil {
		return Verifier{}
	}
	return Verifier{Iterations: int(v.Iterations), Salt: v.Salt, StoredKey: v.StoredKey, ServerKey: v.ServerKey}
}

func (v Verifier) encode() *userpb.Verifier {
	if v.IsZero() {
		return nil
	}
	return &userpb.Verifier{Iterations: uint32(v.Iterations), Salt: v.Salt, StoredKey: v.StoredKey, ServerKey: v.ServerKey}
}

// checkVerifier accepts no verifier, or one of the right sizes.
func checkVerifier(op, name string, v *userpb.Verifier, size int) error {
	if v == nil {
		return nil
	}
	if v.Iterations < minIterations || v.Iterations > maxIterations || len(v.Salt) < minSalt || len(v.Salt) > maxSalt ||
		len(v.StoredKey) != size || len(v.ServerKey) != size {
		return fault.New(fault.BadRequest, op, name, "malformed password verifier")
	}
	return nil
}

func checkVerifiers(op, name string, sha256, sha1 *userpb.Verifier) error {
	if err := checkVerifier(op, name, sha256, 32); err != nil {
		return err
	}
	return checkVerifier(op, name, sha1, 20)
}

func checkTexts(op string, row *userpb.UserRow, name string) error {
	if len(row.DisplayName) > MaxDisplayName || len(row.Email) > MaxEmail ||
		!utf8.ValidString(row.DisplayName) || !utf8.ValidString(row.Email) {
		return fault.New(fault.NotAcceptable, op, name, "the display name or the e-mail address is too long")
	}
	return nil
}

func create(tx *fsm.Tx, e *log.Entry) error {
	var body userpb.Create
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	j, err := jid.Parse(body.Name)
	switch {
	case err != nil:
		return fault.New(fault.BadRequest, "user.create", body.Name, "malformed address")
	case j.Local == "" || !j.IsBare() || j.String() != body.Name:
		return fault.New(fault.BadRequest, "user.create", body.Name, "a user is name@domain, in its normal form "+j.Bare().String())
	case !config.IsDomain(tx, j.Domain):
		return fault.New(fault.NotFound, "user.create", body.Name, "the domain is not one of the cluster's; add it first")
	case Exists(tx, body.Name):
		return fault.New(fault.Conflict, "user.create", body.Name, "the user exists already")
	}
	row := &userpb.UserRow{
		Im: body.Im, Presence: body.Presence, Admin: body.Admin, DisplayName: body.DisplayName, Email: body.Email,
		Sha256: body.Sha256, Sha1: body.Sha1, Created: tx.Time().UnixNano(), Revision: tx.Index(),
	}
	if err := checkTexts("user.create", row, body.Name); err != nil {
		return err
	}
	if err := checkVerifiers("user.create", body.Name, body.Sha256, body.Sha1); err != nil {
		return err
	}
	tx.Save(Table, []byte(body.Name), row)
	addCount(tx, j.Domain, 1)
	cluster.AssignNew(tx, body.Name)
	return nil
}

// load reads a user for a change of it and checks the revision that the entry expects.
func load(tx *fsm.Tx, e *log.Entry, name string) (*userpb.UserRow, error) {
	var row userpb.UserRow
	if !fsm.Load(tx, Table, []byte(name), &row) {
		return nil, fault.New(fault.NotFound, e.Kind.String(), name, "no such user")
	}
	return &row, fsm.CheckRevision(e, row.Revision)
}

func update(tx *fsm.Tx, e *log.Entry, onDisable []Hook) error {
	var body userpb.Update
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	row, err := load(tx, e, body.Name)
	if err != nil {
		return err
	}
	could := row.Im
	set(&row.Im, body.Im)
	set(&row.Presence, body.Presence)
	set(&row.Admin, body.Admin)
	set(&row.DisplayName, body.DisplayName)
	set(&row.Email, body.Email)
	if err := checkTexts("user.update", row, body.Name); err != nil {
		return err
	}
	row.Revision = tx.Index()
	tx.Save(Table, []byte(body.Name), row)
	if could && !row.Im {
		return run(tx, body.Name, onDisable)
	}
	return nil
}

func set[T any](field *T, value *T) {
	if value != nil {
		*field = *value
	}
}

func setPassword(tx *fsm.Tx, e *log.Entry) error {
	var body userpb.Password
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	row, err := load(tx, e, body.Name)
	if err != nil {
		return err
	}
	if err := checkVerifiers("user.password", body.Name, body.Sha256, body.Sha1); err != nil {
		return err
	}
	row.Sha256, row.Sha1, row.Revision = body.Sha256, body.Sha1, tx.Index()
	tx.Save(Table, []byte(body.Name), row)
	return nil
}

func remove(tx *fsm.Tx, e *log.Entry, onDelete []Hook) error {
	var body userpb.Delete
	if err := e.Unmarshal(&body); err != nil {
		return err
	}
	if _, err := load(tx, e, body.Name); err != nil {
		return err
	}
	if err := run(tx, body.Name, onDelete); err != nil {
		return err
	}
	j, err := jid.Parse(body.Name)
	if err != nil {
		return err
	}
	tx.Delete(Table, []byte(body.Name))
	addCount(tx, j.Domain, -1)
	cluster.Unassign(tx, body.Name)
	return nil
}
