package state_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"muster/feature/archive/state"
	"muster/fsm/cluster"
	"muster/fsm/config"
	"muster/fsm/fsmtest"
	"muster/fsm/user"
	"muster/internal/fault"
	"muster/internal/jid"
	"muster/log"
)

var (
	alice = jid.MustParse("alice@example.com")
	bob   = jid.MustParse("bob@example.com")
)

func rig(tb testing.TB) *fsmtest.Rig {
	r := fsmtest.New(tb, cluster.Module(), config.Module(), user.Module(state.DeleteUser), state.Module())
	r.Must(config.AddDomainEntry("example.com"), user.CreateEntry(user.User{Name: alice.String()}))
	return r
}

func TestKeeps(t *testing.T) {
	lists := func(def state.Policy, always, never string) state.Prefs {
		return state.Prefs{Default: def, Always: strings.Fields(always), Never: strings.Fields(never)}
	}
	cases := []struct {
		name              string
		prefs             state.Prefs
		other             string
		contact, stranger bool // what is kept if the other is a contact, or is not
	}{
		{"all", lists(state.Always, "", ""), "bob@example.com/pad", true, true},
		{"none", lists(state.Never, "", ""), "bob@example.com/pad", false, false},
		{"contacts", lists(state.Roster, "", ""), "bob@example.com/pad", true, false},
		{"never, listed bare", lists(state.Always, "", "x@y bob@example.com"), "bob@example.com/pad", false, false},
		{"never, listed bare, to the account", lists(state.Always, "", "bob@example.com"), "bob@example.com", false, false},
		{"never, listed full", lists(state.Always, "", "bob@example.com/pad"), "bob@example.com/pad", false, false},
		{"never, another resource", lists(state.Always, "", "bob@example.com/tab"), "bob@example.com/pad", true, true},
		{"never, a resource and not the account", lists(state.Always, "", "bob@example.com/pad"), "bob@example.com", true, true},
		{"always, listed bare", lists(state.Never, "bob@example.com", ""), "bob@example.com/pad", true, true},
		{"always, not a contact", lists(state.Roster, "bob@example.com", ""), "bob@example.com/pad", true, true},
		{"on both lists", lists(state.Always, "bob@example.com", "bob@example.com"), "bob@example.com/pad", false, false},
		{"a domain is not its people", lists(state.Always, "", "example.com"), "bob@example.com/pad", true, true},
		{"a domain", lists(state.Always, "", "example.com"), "example.com", false, false},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			r := rig(t)
			r.Must(state.SetEntry(alice, tc.prefs))
			for contact, want := range map[bool]bool{true: tc.contact, false: tc.stranger} {
				if got := state.Keeps(r.M, alice.String(), jid.MustParse(tc.other), func() bool { return contact }); got != want {
					t.Errorf("a contact %v: kept %v, want %v", contact, got, want)
				}
			}
		})
	}
}

func TestPreferences(t *testing.T) {
	r := rig(t)
	want := func(p state.Prefs) {
		t.Helper()
		got := state.Get(r.M, alice.String())
		if got.Default != p.Default || !slices.Equal(got.Always, p.Always) || !slices.Equal(got.Never, p.Never) {
			t.Errorf("preferences %+v, want %+v", got, p)
		}
	}
	want(state.Prefs{Default: state.Always})
	r.Must(config.SetEntry("archive.default", "roster", 0))
	want(state.Prefs{Default: state.Roster})
	chosen := state.Prefs{Default: state.Never, Always: []string{bob.String()}, Never: []string{"carol@example.com/phone"}}
	r.Must(state.SetEntry(alice.WithResource("phone"), chosen))
	want(chosen)
	r.Must(config.SetEntry("archive.users_choose", "false", 0))
	want(state.Prefs{Default: state.Roster})
	r.Refused(state.SetEntry(alice, chosen), fault.NotAllowed)
	r.Must(config.ResetEntry("archive.users_choose", 0))
	want(chosen)
	r.Must(state.SetEntry(alice, state.Prefs{Default: state.Always}))
	want(state.Prefs{Default: state.Always})
	r.Must(user.DeleteEntry(alice.String()))
	for key := range r.Store.Rows() {
		if strings.HasPrefix(key, "archive.") {
			t.Errorf("row left: %q", key)
		}
	}
	r.Verify()
}

func TestRefused(t *testing.T) {
	r := rig(t)
	var many []string
	for i := range state.MaxListed + 1 {
		many = append(many, fmt.Sprintf("u%d@example.com", i))
	}
	var long []string
	for i := range 100 {
		long = append(long, fmt.Sprintf("u%d@example.com/%s", i, strings.Repeat("r", 1020)))
	}
	ok := state.Prefs{Default: state.Always}
	tests := []struct {
		name  string
		entry *log.Entry
		code  fault.Code
	}{
		{"no such user", state.SetEntry(bob, ok), fault.NotFound},
		{"no default", state.SetEntry(alice, state.Prefs{}), fault.BadRequest},
		{"unknown default", state.SetEntry(alice, state.Prefs{Default: 4}), fault.BadRequest},
		{"malformed", state.SetEntry(alice, state.Prefs{Default: 1, Never: []string{"@"}}), fault.BadRequest},
		{"not in normal form", state.SetEntry(alice, state.Prefs{Default: 1, Always: []string{"Bob@Example.com"}}), fault.BadRequest},
		{"too many", state.SetEntry(alice, state.Prefs{Default: 1, Always: many[:500], Never: many[500:]}), fault.TooLarge},
		{"too long", state.SetEntry(alice, state.Prefs{Default: 1, Never: append(long, long...)}), fault.TooLarge},
		{"garbage", &log.Entry{Kind: log.ArchivePrefs, Body: []byte{0xff}}, fault.BadRequest},
		{"nothing", &log.Entry{Kind: log.ArchivePrefs, Body: []byte("\x0a\x11" + alice.String())}, fault.BadRequest},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { r.Refused(tt.entry, tt.code) })
	}
	r.Must(state.SetEntry(alice, state.Prefs{Default: 1, Always: many[1:]}))
}

func TestPolicies(t *testing.T) {
	for _, p := range []state.Policy{state.Always, state.Never, state.Roster} {
		if got, ok := state.ParsePolicy(p.String()); got != p || !ok {
			t.Errorf("%v is read as %v, %v", p, got, ok)
		}
	}
	for _, name := range []string{"", "Always", "all"} {
		if p, ok := state.ParsePolicy(name); ok {
			t.Errorf("%q is read as %v", name, p)
		}
	}
}
