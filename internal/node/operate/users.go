package operate

import (
	"context"
	"crypto/rand"

	"muster/edges/http/adminapi"
	roster "muster/feature/roster/state"
	"muster/fsm/cluster"
	"muster/fsm/user"
	"muster/internal/fault"
	"muster/internal/jid"
	"muster/internal/scram"
	"muster/log"
)

// ListUsers implements http.Users.
func (o *Operator) ListUsers(ctx context.Context, prefix, after string, limit int) (adminapi.UserPage, error) {
	o.current(ctx)
	names := o.names()
	page := adminapi.UserPage{Users: []adminapi.User{}}
	user.Scan(o.p.State, prefix, after, func(u user.User) bool {
		if u.Name == after {
			return true
		}
		if len(page.Users) == limit {
			page.Next = page.Users[limit-1].JID
			return false
		}
		page.Users = append(page.Users, o.show(u, names))
		return true
	})
	return page, nil
}

func (o *Operator) show(u user.User, names map[uint32]string) adminapi.User {
	a, _ := cluster.AssignmentOf(o.p.State, u.Name)
	return adminapi.User{JID: u.Name, DisplayName: u.DisplayName, Email: u.Email, IM: u.IM, Presence: u.Presence, Admin: u.Admin,
		Created: u.Created, Home: names[a.Home], Backup: names[a.Backup]}
}

// bare reads a user's address.
func bare(s string) (jid.JID, error) {
	j, err := jid.Parse(s)
	if err != nil || j.Local == "" || !j.IsBare() {
		return j, fault.New(fault.BadRequest, "admin.user", s, s+" is no user's address: write name@domain")
	}
	return j, nil
}

// find reads an address and demands that it is a user.
func (o *Operator) find(ctx context.Context, s string) (user.User, error) {
	j, err := bare(s)
	if err != nil {
		return user.User{}, err
	}
	u, ok := user.Get(o.p.State, j.String())
	if !ok {
		o.current(ctx)
		if u, ok = user.Get(o.p.State, j.String()); !ok {
			return user.User{}, fault.New(fault.NotFound, "admin.user", j.String(), "no user "+j.String())
		}
	}
	return u, nil
}

// ShowUser implements http.Users.
func (o *Operator) ShowUser(ctx context.Context, name string) (adminapi.User, error) {
	u, err := o.find(ctx, name)
	if err != nil {
		return adminapi.User{}, err
	}
	names := o.names()
	out := o.show(u, names)
	for _, r := range o.p.Presence.Rows(jid.MustParse(u.Name)) {
		out.Sessions = append(out.Sessions, session(r, names))
	}
	return out, nil
}

// CreateUsers implements http.Users: all in one record, each with an outcome of its own.
func (o *Operator) CreateUsers(ctx context.Context, users []adminapi.NewUser) ([]adminapi.Outcome, error) {
	b := newBatch(len(users))
	for i, u := range users {
		b.subjects[i] = u.JID
		e, err := createEntry(u)
		if err != nil {
			b.fail(i, err)
			continue
		}
		b.add(i, e)
	}
	return b.run(ctx, o)
}

func createEntry(u adminapi.NewUser) (*log.Entry, error) {
	j, err := bare(u.JID)
	if err != nil {
		return nil, err
	}
	row := user.User{Name: j.String(), IM: !u.Disabled, Presence: !u.Disabled, Admin: u.Admin, DisplayName: u.DisplayName, Email: u.Email}
	switch {
	case u.Password != "":
		row.SHA256, row.SHA1, err = derive(u.Password)
	case u.SHA256 != nil && u.SHA1 != nil:
		row.SHA256, row.SHA1 = stored(*u.SHA256), stored(*u.SHA1)
	default:
		err = fault.New(fault.BadRequest, "admin.user", u.JID, "a user needs a password, or the verifiers of one")
	}
	if err != nil {
		return nil, err
	}
	return user.CreateEntry(row), nil
}

// derive makes the verifiers of a new password with a salt of their own.
func derive(password string) (v256, v1 user.Verifier, err error) {
	salt := make([]byte, scram.SaltSize)
	_, _ = rand.Read(salt) // never fails
	a, b, err := scram.Derive(password, salt, scram.DefaultIterations)
	return verifier(a), verifier(b), err
}

func verifier(v scram.Verifier) user.Verifier {
	return user.Verifier{Iterations: v.Iterations, Salt: v.Salt, StoredKey: v.StoredKey, ServerKey: v.ServerKey}
}

func stored(v adminapi.Verifier) user.Verifier {
	return user.Verifier{Iterations: v.Iterations, Salt: v.Salt, StoredKey: v.StoredKey, ServerKey: v.ServerKey}
}

// ChangeUser implements http.Users.
func (o *Operator) ChangeUser(ctx context.Context, name string, c adminapi.UserChange) (adminapi.Done, error) {
	u, err := o.find(ctx, name)
	if err != nil {
		return adminapi.Done{}, err
	}
	var entries []*log.Entry
	up := user.Update{IM: c.IM, Presence: c.Presence, Admin: c.Admin, DisplayName: c.DisplayName, Email: c.Email}
	if up != (user.Update{}) {
		entries = append(entries, user.UpdateEntry(u.Name, up))
	}
	if c.Password != nil {
		v256, v1, err := derive(*c.Password)
		if err != nil {
			return adminapi.Done{}, err
		}
		entries = append(entries, user.PasswordEntry(u.Name, v256, v1))
	}
	if len(entries) == 0 {
		return adminapi.Done{}, fault.New(fault.BadRequest, "admin.user", u.Name, "nothing to change")
	}
	res, err := o.propose(ctx, entries...)
	if err != nil {
		return adminapi.Done{}, err
	}
	for _, r := range res {
		if r.Err != nil {
			return adminapi.Done{}, r.Err
		}
	}
	return adminapi.Done{Index: res[0].Index}, nil
}

// DeleteUser implements http.Users.
func (o *Operator) DeleteUser(ctx context.Context, name string) (adminapi.Done, error) {
	u, err := o.find(ctx, name)
	if err != nil {
		return adminapi.Done{}, err
	}
	return o.change(ctx, user.DeleteEntry(u.Name))
}

// ImportPairs implements http.Users: each pair becomes mutual contacts by the
// same four steps that two clients would take, in one record.
func (o *Operator) ImportPairs(ctx context.Context, pairs []adminapi.Pair) ([]adminapi.Outcome, error) {
	b := newBatch(len(pairs))
	for i, p := range pairs {
		b.subjects[i] = p.User + " and " + p.Contact
		entries, err := o.pairEntries(ctx, p)
		if err != nil {
			b.fail(i, err)
			continue
		}
		b.add(i, entries...)
	}
	return b.run(ctx, o)
}

func (o *Operator) pairEntries(ctx context.Context, p adminapi.Pair) ([]*log.Entry, error) {
	u, err := o.find(ctx, p.User)
	if err != nil {
		return nil, err
	}
	c, err := o.find(ctx, p.Contact)
	if err != nil {
		return nil, err
	}
	a, b := jid.MustParse(u.Name), jid.MustParse(c.Name)
	if a == b {
		return nil, fault.New(fault.BadRequest, "admin.contact", u.Name, "nobody is a contact of their own")
	}
	ab, _ := roster.Get(o.p.State, a, b)
	ba, _ := roster.Get(o.p.State, b, a)
	if ab.Sub == roster.Both && ba.Sub == roster.Both {
		return nil, fault.New(fault.Conflict, "admin.contact", u.Name, "they are contacts already")
	}
	return []*log.Entry{step(a, b, roster.Subscribe), step(b, a, roster.Subscribed), step(b, a, roster.Subscribe), step(a, b, roster.Subscribed)}, nil
}

func step(from, to jid.JID, t roster.Type) *log.Entry {
	return roster.SubscriptionEntry(roster.Request{From: from, To: to, Type: t})
}

// batch gathers the entries of several subjects for one record.
type batch struct {
	subjects []string
	errs     []error
	entries  []*log.Entry
	owner    []int // entry → subject
}

func newBatch(n int) *batch { return &batch{subjects: make([]string, n), errs: make([]error, n)} }

func (b *batch) fail(i int, err error) { b.errs[i] = err }

func (b *batch) add(i int, entries ...*log.Entry) {
	for _, e := range entries {
		b.entries, b.owner = append(b.entries, e), append(b.owner, i)
	}
}

// run proposes the entries and returns what became of each subject: its first error.
func (b *batch) run(ctx context.Context, o *Operator) ([]adminapi.Outcome, error) {
	if len(b.entries) > 0 {
		res, err := o.propose(ctx, b.entries...)
		if err != nil {
			return nil, err
		}
		for i, r := range res {
			if r.Err != nil && b.errs[b.owner[i]] == nil {
				b.errs[b.owner[i]] = r.Err
			}
		}
	}
	out := make([]adminapi.Outcome, len(b.subjects))
	for i, s := range b.subjects {
		out[i].Subject = s
		if err := b.errs[i]; err != nil {
			out[i].Code, out[i].Text = fault.CodeOf(err).String(), fault.Public(err)
		}
	}
	return out, nil
}
