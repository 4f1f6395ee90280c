package state_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"muster/feature/blocking/state"
	"muster/fsm/cluster"
	"muster/fsm/config"
	"muster/fsm/fsmtest"
	"muster/fsm/user"
	"muster/internal/fault"
	"muster/internal/jid"
	"muster/log"
)

var alice = jid.MustParse("alice@example.com")

func rig(tb testing.TB) *fsmtest.Rig {
	r := fsmtest.New(tb, cluster.Module(), config.Module(), user.Module(state.DeleteUser), state.Module())
	r.Must(config.AddDomainEntry("example.com"), user.CreateEntry(user.User{Name: alice.String()}))
	return r
}

func jids(s string) (out []jid.JID) {
	for _, w := range strings.Fields(s) {
		out = append(out, jid.MustParse(w))
	}
	return out
}

func list(r *fsmtest.Rig) string {
	var out []string
	for _, j := range state.List(r.M, alice) {
		out = append(out, j.String())
	}
	return strings.Join(out, " ")
}

// TestBlocked follows the matching order of XEP-0191 section 2.
func TestBlocked(t *testing.T) {
	tests := []struct {
		list, address string
		want          bool
	}{
		{"bob@x.org/phone", "bob@x.org/phone", true},
		{"bob@x.org/phone", "bob@x.org/desk", false},
		{"bob@x.org/phone", "bob@x.org", false},
		{"bob@x.org", "bob@x.org/desk", true},
		{"bob@x.org", "bob@x.org", true},
		{"bob@x.org", "eve@x.org", false},
		{"bob@x.org", "x.org", false},
		{"x.org/gate", "bob@x.org/gate", true},
		{"x.org/gate", "x.org/gate", true},
		{"x.org/gate", "x.org", false},
		{"x.org", "bob@x.org/desk", true},
		{"x.org", "x.org", true},
		{"x.org", "sub.x.org", false},
		{"", "bob@x.org", false},
		{"eve@y.org bob@x.org", "bob@x.org/a", true},
	}
	for _, tt := range tests {
		t.Run(tt.list+" "+tt.address, func(t *testing.T) {
			if got := state.Blocked(jids(tt.list), jid.MustParse(tt.address)); got != tt.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestAddAndRemove(t *testing.T) {
	r := rig(t)
	r.Must(state.AddEntry(alice, jids("bob@x.org x.org/gate")), state.AddEntry(alice, jids("bob@x.org eve@y.org")))
	if got := list(r); got != "bob@x.org eve@y.org x.org/gate" {
		t.Errorf("list %s", got)
	}
	if u, j, added, ok := state.DecodeChange(r.Changes[0]); u != alice || j.String() != "eve@y.org" || !added || !ok {
		t.Errorf("change %v %v %v %v", u, j, added, ok)
	}
	r.Must(state.RemoveEntry(alice, jids("x.org/gate never@blocked.org")))
	if got := list(r); got != "bob@x.org eve@y.org" {
		t.Errorf("list %s", got)
	}
	r.Must(state.RemoveEntry(alice, jids("bob@x.org eve@y.org")))
	r.Must(state.AddEntry(alice, jids("bob@x.org")), state.RemoveEntry(alice, nil))
	if got := list(r); got != "" {
		t.Errorf("list %s", got)
	}
	r.Verify()
}

func TestRefused(t *testing.T) {
	r := rig(t)
	r.Refused(state.AddEntry(jid.MustParse("bob@example.com"), jids("x.org")), fault.NotFound)
	r.Refused(state.RemoveEntry(jid.MustParse("bob@example.com"), nil), fault.NotFound)
	r.Refused(state.AddEntry(alice, nil), fault.BadRequest)
	r.Refused(state.AddEntry(alice, []jid.JID{{Domain: "Not Normal"}}), fault.BadRequest)
	r.Refused(state.RemoveEntry(alice, make([]jid.JID, 10_001)), fault.TooLarge)
	for kind := range state.Module().Handlers {
		r.Refused(&log.Entry{Kind: kind, Body: []byte{0xff}}, fault.BadRequest)
	}
}

func TestLimit(t *testing.T) {
	r := rig(t)
	r.Must(config.SetEntry("blocking.max_blocked", "3", 0), state.AddEntry(alice, jids("a.org b.org")))
	r.Refused(state.AddEntry(alice, jids("c.org d.org")), fault.TooLarge)
	r.Must(state.AddEntry(alice, jids("a.org b.org c.org")))
	r.Must(state.RemoveEntry(alice, jids("a.org")), state.AddEntry(alice, jids("d.org")))
	if got := list(r); got != "b.org c.org d.org" {
		t.Errorf("list %s", got)
	}
}

func TestDeletedUserLeavesNoTrace(t *testing.T) {
	r := rig(t)
	r.Must(state.AddEntry(alice, jids("a.org b.org")), user.DeleteEntry(alice.String()))
	for key := range r.Store.Rows() {
		if strings.HasPrefix(key, "blocking.") {
			t.Errorf("row left: %q", key)
		}
	}
	r.Must(user.CreateEntry(user.User{Name: alice.String()}))
	if got := list(r); got != "" {
		t.Errorf("the next alice blocks %s", got)
	}
}

func TestListIsSorted(t *testing.T) {
	r := rig(t)
	for i := range 20 {
		r.Must(state.AddEntry(alice, jids(fmt.Sprintf("u%02d@x.org", 19-i))))
	}
	if got := strings.Fields(list(r)); len(got) != 20 || !slices.IsSorted(got) {
		t.Errorf("list %v", got)
	}
}
