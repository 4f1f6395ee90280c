package state_test

import (
	"fmt"
	"strings"
	"testing"

	"muster/feature/private/state"
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

func TestSetAndGet(t *testing.T) {
	r := rig(t)
	r.Must(state.SetEntry(alice.WithResource("phone"), "storage", "storage:bookmarks", []byte("<storage/>")))
	r.Must(state.SetEntry(alice, "storage", "storage:notes", []byte("<notes/>")))
	r.Must(state.SetEntry(alice, "other", "storage:bookmarks", []byte("<other/>")))
	for _, tt := range []struct{ local, ns, want string }{
		{"storage", "storage:bookmarks", "<storage/>"}, {"storage", "storage:notes", "<notes/>"},
		{"other", "storage:bookmarks", "<other/>"}, {"none", "storage:notes", ""},
	} {
		if got, ok := state.Get(r.M, alice, tt.local, tt.ns); string(got) != tt.want || ok != (tt.want != "") {
			t.Errorf("%s in %s: %q %v", tt.local, tt.ns, got, ok)
		}
	}
	if _, ok := state.Get(r.M, bob, "storage", "storage:notes"); ok {
		t.Error("bob sees alice's notes")
	}
	r.Must(state.SetEntry(alice, "other", "storage:bookmarks", []byte("<new/>")))
	u, local, ns, xml, ok := state.DecodeChange(r.Changes[0])
	if u != alice || local != "other" || ns != "storage:bookmarks" || string(xml) != "<new/>" || !ok {
		t.Errorf("change %v %q %q %q %v", u, local, ns, xml, ok)
	}
	r.Must(state.SetEntry(alice, "other", "storage:bookmarks", nil))
	if _, ok := state.Get(r.M, alice, "other", "storage:bookmarks"); ok {
		t.Error("the element is still there")
	}
	r.Verify()
}

func TestRefused(t *testing.T) {
	r := rig(t)
	big := make([]byte, state.MaxElement+1)
	tests := []struct {
		name  string
		entry *log.Entry
		code  fault.Code
	}{
		{"no such user", state.SetEntry(bob, "a", "b", nil), fault.NotFound},
		{"no name", state.SetEntry(alice, "", "b", nil), fault.BadRequest},
		{"no namespace", state.SetEntry(alice, "a", "", nil), fault.BadRequest},
		{"zero byte", state.SetEntry(alice, "a\x00", "b", nil), fault.BadRequest},
		{"long namespace", state.SetEntry(alice, "a", strings.Repeat("n", 1025), nil), fault.TooLarge},
		{"too large", state.SetEntry(alice, "a", "b", big), fault.TooLarge},
		{"garbage", &log.Entry{Kind: log.PrivateSet, Body: []byte{0xff}}, fault.BadRequest},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { r.Refused(tt.entry, tt.code) })
	}
	r.Must(state.SetEntry(alice, "a", "b", big[1:]))
}

func TestLimit(t *testing.T) {
	r := rig(t)
	for i := range state.MaxElements {
		r.Must(state.SetEntry(alice, fmt.Sprint("e", i), "ns", []byte("<x/>")))
	}
	r.Refused(state.SetEntry(alice, "more", "ns", []byte("<x/>")), fault.TooLarge)
	r.Must(state.SetEntry(alice, "e0", "ns", []byte("<replaced/>")), state.SetEntry(alice, "absent", "ns", nil))
	r.Must(state.SetEntry(alice, "e1", "ns", nil), state.SetEntry(alice, "more", "ns", []byte("<x/>")))
}

func TestDeletedUserLeavesNoTrace(t *testing.T) {
	r := rig(t)
	r.Must(state.SetEntry(alice, "a", "b", []byte("<x/>")), state.SetEntry(alice, "c", "d", []byte("<x/>")), user.DeleteEntry(alice.String()))
	for key := range r.Store.Rows() {
		if strings.HasPrefix(key, "private.") {
			t.Errorf("row left: %q", key)
		}
	}
}
