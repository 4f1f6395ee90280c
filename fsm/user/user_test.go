package user_test

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"muster/fsm"
	"muster/fsm/cluster"
	"muster/fsm/config"
	"muster/fsm/fsmtest"
	"muster/fsm/user"
	"muster/internal/fault"
	"muster/log"
)

func rig(tb testing.TB, onDelete ...func(*fsm.Tx, string) error) *fsmtest.Rig {
	r := fsmtest.New(tb, cluster.Module(), config.Module(user.DomainInUse), user.Module(onDelete...))
	r.Must(config.AddDomainEntry("example.com"), config.AddDomainEntry("example.org"))
	return r
}

func verifier(size int) user.Verifier {
	return user.Verifier{
		Iterations: 10_000, Salt: bytes.Repeat([]byte{7}, 16),
		StoredKey: bytes.Repeat([]byte{8}, size), ServerKey: bytes.Repeat([]byte{9}, size),
	}
}

func TestCreate(t *testing.T) {
	r := rig(t)
	want := user.User{
		Name: "alice@example.com", IM: true, Presence: true, Admin: true, DisplayName: "Alice Ä.", Email: "a@example.com",
		SHA256: verifier(32), SHA1: verifier(20),
	}
	res := r.Must(user.CreateEntry(want))
	want.Created, want.Revision = fsmtest.Start.Add(time.Duration(res.Index)*time.Second), res.Index
	got, ok := user.Get(r.M, "alice@example.com")
	if !ok || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if name, before, after, ok := user.DecodeChange(r.Changes[0]); !ok || name != want.Name || before != nil || !reflect.DeepEqual(*after, want) {
		t.Errorf("change decoded as %s %v %+v", name, before, after)
	}
	if _, ok := user.Get(r.M, "bob@example.com"); ok || user.Exists(r.M, "bob@example.com") {
		t.Error("bob exists")
	}
}

func TestCreateRefused(t *testing.T) {
	short := verifier(32)
	short.Salt = short.Salt[:4]
	weak := verifier(20)
	weak.Iterations = 100
	tests := []struct {
		name string
		u    user.User
		code fault.Code
	}{
		{"exists", user.User{Name: "alice@example.com"}, fault.Conflict},
		{"no address", user.User{}, fault.BadRequest},
		{"domain only", user.User{Name: "example.com"}, fault.BadRequest},
		{"full address", user.User{Name: "bob@example.com/phone"}, fault.BadRequest},
		{"not normal", user.User{Name: "Bob@example.com"}, fault.BadRequest},
		{"malformed", user.User{Name: "b b@example.com"}, fault.BadRequest},
		{"not UTF-8", user.User{Name: "b\xff@example.com"}, fault.BadRequest},
		{"foreign domain", user.User{Name: "bob@example.net"}, fault.NotFound},
		{"long display name", user.User{Name: "bob@example.com", DisplayName: strings.Repeat("n", 257)}, fault.NotAcceptable},
		{"long email", user.User{Name: "bob@example.com", Email: strings.Repeat("n", 321)}, fault.NotAcceptable},
		{"wrong key size", user.User{Name: "bob@example.com", SHA256: verifier(20)}, fault.BadRequest},
		{"short salt", user.User{Name: "bob@example.com", SHA256: short}, fault.BadRequest},
		{"few iterations", user.User{Name: "bob@example.com", SHA1: weak}, fault.BadRequest},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := rig(t)
			r.Must(user.CreateEntry(user.User{Name: "alice@example.com"}))
			r.Refused(user.CreateEntry(tt.u), tt.code)
		})
	}
}

func TestUpdateChangesOnlyWhatIsNamed(t *testing.T) {
	r := rig(t)
	r.Must(user.CreateEntry(user.User{Name: "alice@example.com", IM: true, DisplayName: "Alice", SHA1: verifier(20)}))
	before, _ := user.Get(r.M, "alice@example.com")
	no, yes, mail := false, true, "a@b.c"
	res := r.Must(user.UpdateEntry("alice@example.com", user.Update{IM: &no, Presence: &yes, Email: &mail}))
	want := before
	want.IM, want.Presence, want.Email, want.Revision = false, true, mail, res.Index
	if got, _ := user.Get(r.M, "alice@example.com"); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	long := strings.Repeat("n", 400)
	r.Refused(user.UpdateEntry("alice@example.com", user.Update{DisplayName: &long}), fault.NotAcceptable)
	r.Refused(user.UpdateEntry("bob@example.com", user.Update{}), fault.NotFound)
	stale := user.UpdateEntry("alice@example.com", user.Update{Admin: &yes})
	stale.Expect = before.Revision
	r.Refused(stale, fault.Stale)
	fresh := user.UpdateEntry("alice@example.com", user.Update{Admin: &yes})
	fresh.Expect = want.Revision
	r.Must(fresh)
}

func TestPassword(t *testing.T) {
	r := rig(t)
	r.Must(user.CreateEntry(user.User{Name: "alice@example.com"}))
	if u, _ := user.Get(r.M, "alice@example.com"); !u.SHA1.IsZero() || !u.SHA256.IsZero() {
		t.Errorf("a user without a password has one: %+v", u)
	}
	r.Must(user.PasswordEntry("alice@example.com", verifier(32), verifier(20)))
	if u, _ := user.Get(r.M, "alice@example.com"); !reflect.DeepEqual(u.SHA256, verifier(32)) || !reflect.DeepEqual(u.SHA1, verifier(20)) {
		t.Error("the verifiers are not what was set")
	}
	r.Refused(user.PasswordEntry("alice@example.com", verifier(20), verifier(32)), fault.BadRequest)
	r.Refused(user.PasswordEntry("bob@example.com", verifier(32), verifier(20)), fault.NotFound)
	r.Must(user.PasswordEntry("alice@example.com", user.Verifier{}, user.Verifier{}))
	if u, _ := user.Get(r.M, "alice@example.com"); !u.SHA1.IsZero() {
		t.Error("the password is still there")
	}
}

func TestVerifiersDoNotPrint(t *testing.T) {
	u := user.User{Name: "alice@example.com", SHA256: verifier(32)}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if out := fmt.Sprintf(format, u); strings.Contains(out, "8 8") || strings.Contains(out, "0x8") || !strings.Contains(out, "***") {
			t.Errorf("%s prints %s", format, out)
		}
	}
}

func TestDeleteRunsTheHooksInTheSameEntry(t *testing.T) {
	var cleared []string
	var failing error
	r := rig(t, func(_ *fsm.Tx, u string) error { cleared = append(cleared, u); return failing })
	r.Must(user.CreateEntry(user.User{Name: "alice@example.com"}))
	failing = fault.New(fault.Conflict, "test", "", "not now")
	r.Refused(user.DeleteEntry("alice@example.com"), fault.Conflict)
	if !user.Exists(r.M, "alice@example.com") {
		t.Fatal("a refused deletion deleted")
	}
	failing = nil
	r.Must(user.DeleteEntry("alice@example.com"))
	if len(cleared) != 2 || cleared[1] != "alice@example.com" || user.Exists(r.M, "alice@example.com") || user.Count(r.M) != 0 {
		t.Errorf("cleared %v, %d users", cleared, user.Count(r.M))
	}
	if got := cluster.Counts(r.M); len(got) != 0 {
		t.Errorf("assignments left: %v", got)
	}
	r.Refused(user.DeleteEntry("alice@example.com"), fault.NotFound)
	r.Verify()
}

func TestCountAndScan(t *testing.T) {
	r := rig(t)
	for _, n := range []string{"carol@example.org", "alice@example.com", "bob@example.com", "alfred@example.org"} {
		r.Must(user.CreateEntry(user.User{Name: n}))
	}
	if user.Count(r.M) != 4 || user.CountIn(r.M, "example.org") != 2 || user.CountIn(r.M, "x") != 0 {
		t.Errorf("counts %d, %d", user.Count(r.M), user.CountIn(r.M, "example.org"))
	}
	tests := []struct {
		prefix, from string
		most         int
		want         string
	}{
		{"", "", 10, "alfred@example.org alice@example.com bob@example.com carol@example.org"},
		{"al", "", 10, "alfred@example.org alice@example.com"},
		{"", "alice@example.com", 2, "alice@example.com bob@example.com"},
		{"al", "alg", 10, "alice@example.com"},
		{"z", "", 10, ""},
	}
	for _, tt := range tests {
		var got []string
		user.Scan(r.M, tt.prefix, tt.from, func(u user.User) bool {
			got = append(got, u.Name)
			return len(got) < tt.most
		})
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%q from %q: %v", tt.prefix, tt.from, got)
		}
	}
}

func TestDomainWithUsersStays(t *testing.T) {
	r := rig(t)
	r.Must(user.CreateEntry(user.User{Name: "alice@example.com"}))
	r.Refused(config.RemoveDomainEntry("example.com"), fault.Conflict)
	r.Must(user.DeleteEntry("alice@example.com"), config.RemoveDomainEntry("example.com"))
	r.Refused(user.CreateEntry(user.User{Name: "alice@example.com"}), fault.NotFound)
}

func TestGarbageBodiesAreRejected(t *testing.T) {
	r := rig(t)
	for kind := range user.Module().Handlers {
		r.Refused(&log.Entry{Kind: kind, Body: []byte{0xff}}, fault.BadRequest)
	}
}
