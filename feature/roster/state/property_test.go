package state_test

import (
	"testing"

	"pgregory.net/rapid"

	"muster/feature/roster/state"
	"muster/fsm/fsmtest"
	"muster/internal/jid"
	"muster/log"
)

// TestRostersNeverDrift plays random entries among three users and a remote
// one, and demands after each that both sides of a local pair agree, and that a
// client which follows the deltas has the roster that the server has.
func TestRostersNeverDrift(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := rig(t)
		people := []jid.JID{alice, bob, carol, romeo}
		cache := map[jid.JID]state.Item{}
		version := uint64(0)
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			r.Apply(randomEntries(rt, people)...)
			for _, a := range people[:3] {
				for _, b := range people[:3] {
					if a != b {
						checkPair(rt, r, a, b)
					}
				}
			}
			if rapid.Bool().Draw(rt, "sync") {
				version = follow(rt, r, cache, version)
			}
		}
		r.Verify()
	})
}

func randomEntries(rt *rapid.T, people []jid.JID) []*log.Entry {
	var out []*log.Entry
	for range rapid.IntRange(1, 3).Draw(rt, "entries") {
		a := rapid.SampledFrom(people).Draw(rt, "a")
		b := rapid.SampledFrom(people).Draw(rt, "b")
		switch kind := rapid.IntRange(0, 9).Draw(rt, "kind"); kind {
		case 0:
			out = append(out, state.RemoveEntry(a, b))
		case 1:
			out = append(out, state.SetEntry(a, b, rapid.StringMatching(`[a-c]`).Draw(rt, "name"), nil))
		default:
			out = append(out, state.SubscriptionEntry(state.Request{From: a, To: b, Type: state.Type(1 + kind%4), Payload: []byte("<presence/>")}))
		}
	}
	return out
}

func checkPair(rt *rapid.T, r *fsmtest.Rig, a, b jid.JID) {
	mine, _ := state.Get(r.M, a, b)
	theirs, _ := state.Get(r.M, b, a)
	if mine.Sub.HasTo() != theirs.Sub.HasFrom() {
		rt.Fatalf("%v has %v of %v, who has %v", a, mine.Sub, b, theirs.Sub)
	}
	if mine.Ask != theirs.PendingIn {
		rt.Fatalf("%v asks %v: %v, who knows: %v", a, b, mine.Ask, theirs.PendingIn)
	}
	if mine.PendingIn != (mine.Request != nil) {
		rt.Fatalf("%v: pending %v, stanza %q", a, mine.PendingIn, mine.Request)
	}
}

// follow brings a client's copy of alice's roster up to date and compares it.
func follow(rt *rapid.T, r *fsmtest.Rig, cache map[jid.JID]state.Item, since uint64) uint64 {
	deltas, ok := state.Changed(r.M, alice, since)
	if !ok {
		clear(cache)
		for _, i := range state.Items(r.M, alice) {
			cache[i.Contact] = i
		}
		return state.Version(r.M, alice)
	}
	for _, d := range deltas {
		if d.Removed {
			delete(cache, d.Item.Contact)
		} else {
			cache[d.Item.Contact] = d.Item
		}
	}
	items := state.Items(r.M, alice)
	if len(items) != len(cache) {
		rt.Fatalf("the client has %d contacts, the server %d", len(cache), len(items))
	}
	for _, i := range items {
		have, ok := cache[i.Contact]
		if !ok || have.Sub != i.Sub || have.Ask != i.Ask || have.Approved != i.Approved || have.Name != i.Name {
			rt.Fatalf("the client has %+v, the server %+v", have, i)
		}
	}
	return state.Version(r.M, alice)
}
