package state_test

import (
	"testing"

	"muster/feature/vcard/state"
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

func TestCard(t *testing.T) {
	r := rig(t)
	if _, ok := state.Get(r.M, alice); ok {
		t.Error("a card from the start")
	}
	r.Must(state.SetEntry(alice.WithResource("phone"), []byte("<vCard/>")))
	if got, ok := state.Get(r.M, alice); string(got) != "<vCard/>" || !ok {
		t.Errorf("got %q %v", got, ok)
	}
	if u, xml, ok := state.DecodeChange(r.Changes[0]); u != alice || string(xml) != "<vCard/>" || !ok {
		t.Errorf("change %v %q %v", u, xml, ok)
	}
	r.Must(state.SetEntry(alice, nil))
	if _, ok := state.Get(r.M, alice); ok {
		t.Error("the card is still there")
	}
	if u, xml, ok := state.DecodeChange(r.Changes[0]); u != alice || xml != nil || !ok {
		t.Errorf("change %v %q %v", u, xml, ok)
	}
	r.Verify()
}

func TestRefused(t *testing.T) {
	r := rig(t)
	r.Refused(state.SetEntry(bob, []byte("<vCard/>")), fault.NotFound)
	r.Refused(state.SetEntry(alice, make([]byte, state.MaxCard+1)), fault.TooLarge)
	r.Refused(&log.Entry{Kind: log.VCardSet, Body: []byte{0xff}}, fault.BadRequest)
	r.Must(state.SetEntry(alice, make([]byte, state.MaxCard)))
}

func TestDeletedUserLeavesNoTrace(t *testing.T) {
	r := rig(t)
	r.Must(state.SetEntry(alice, []byte("<vCard/>")), user.DeleteEntry(alice.String()), user.CreateEntry(user.User{Name: alice.String()}))
	if _, ok := state.Get(r.M, alice); ok {
		t.Error("the next alice has the old one's card")
	}
	r.Must(user.UpdateEntry(alice.String(), user.Update{}))
	for _, c := range r.Changes {
		if _, _, ok := state.DecodeChange(c); ok {
			t.Errorf("a change of %s was taken for a card", c.Table.Name())
		}
	}
}
