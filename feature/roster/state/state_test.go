package state_test

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"muster/feature/roster/state"
	"muster/fsm"
	"muster/fsm/cluster"
	"muster/fsm/config"
	"muster/fsm/fsmtest"
	"muster/fsm/user"
	"muster/internal/fault"
	"muster/internal/jid"
)

var (
	alice = jid.MustParse("alice@example.com")
	bob   = jid.MustParse("bob@example.com")
	carol = jid.MustParse("carol@example.com")
	ghost = jid.MustParse("ghost@example.com")  // a local address without a user
	romeo = jid.MustParse("romeo@montague.net") // remote
)

func rig(tb testing.TB) *fsmtest.Rig {
	r := fsmtest.New(tb, cluster.Module(), config.Module(user.DomainInUse), user.Module(state.DeleteUser), state.Module())
	r.Must(config.AddDomainEntry("example.com"))
	for _, u := range []jid.JID{alice, bob, carol} {
		r.Must(user.CreateEntry(user.User{Name: u.String()}))
	}
	return r
}

func send(r *fsmtest.Rig, from jid.JID, t state.Type, to jid.JID) state.Outcome {
	r.TB.Helper()
	return outcome(r, r.Must(state.SubscriptionEntry(state.Request{
		From: from, To: to, Type: t, Payload: []byte("<presence type='" + t.String() + "'/>"),
	})))
}

func outcome(r *fsmtest.Rig, res fsm.Result) state.Outcome {
	r.TB.Helper()
	o, err := state.DecodeOutcome(res.Value)
	if err != nil {
		r.TB.Fatal(err)
	}
	return o
}

func item(r *fsmtest.Rig, u, contact jid.JID) state.Item {
	i, _ := state.Get(r.M, u, contact)
	return i
}

// show renders an outcome: "type from>to" with l for local and a for automatic, "+w:s" and "-w:s" for watches.
func show(o state.Outcome) string {
	var out []string
	for _, s := range o.Stanzas {
		flags := ""
		if s.Local {
			flags += "l"
		}
		if s.Auto {
			flags += "a"
		}
		out = append(out, fmt.Sprintf("%v %s>%s%s", s.Type, s.From.Local, s.To.Local, flags))
	}
	for _, w := range o.Gained {
		out = append(out, "+"+w.Watcher.Local+":"+w.Subject.Local)
	}
	for _, w := range o.Lost {
		out = append(out, "-"+w.Watcher.Local+":"+w.Subject.Local)
	}
	if o.Stored {
		out = append(out, "stored")
	}
	return strings.Join(out, ", ")
}

// TestFlows plays subscription flows; each step is "from type to = outcome",
// the result both sides' states as "alice→bob bob→alice".
func TestFlows(t *testing.T) {
	tests := []struct {
		name, steps, want string
	}{
		{"asked and accepted", `
			alice subscribe bob = subscribe alice>bobl, stored
			bob subscribed alice = subscribed bob>alicel, +alice:bob`, "to from"},
		{"mutual", `
			alice subscribe bob = subscribe alice>bobl, stored
			bob subscribed alice = subscribed bob>alicel, +alice:bob
			bob subscribe alice = subscribe bob>alicel, stored
			alice subscribed bob = subscribed alice>bobl, +bob:alice`, "both both"},
		{"refused", `
			alice subscribe bob = subscribe alice>bobl, stored
			bob unsubscribed alice = unsubscribed bob>alicel`, "none -"},
		{"asked twice is delivered once", `
			alice subscribe bob = subscribe alice>bobl, stored
			alice subscribe bob =`, "none+ask none+pi"},
		{"withdrawn", `
			alice subscribe bob = subscribe alice>bobl, stored
			alice unsubscribe bob = unsubscribe alice>bobl`, "none -"},
		{"pre-approved", `
			bob subscribed alice =
			alice subscribe bob = subscribed bob>alicela, +alice:bob`, "to from+ok"},
		{"pre-approval cancelled", `
			bob subscribed alice =
			bob unsubscribed alice =
			alice subscribe bob = subscribe alice>bobl, stored`, "none+ask none+pi"},
		{"cancelled by the subject", `
			alice subscribe bob = subscribe alice>bobl, stored
			bob subscribed alice = subscribed bob>alicel, +alice:bob
			bob unsubscribed alice = unsubscribed bob>alicel, -alice:bob`, "none none"},
		{"ended by the watcher", `
			alice subscribe bob = subscribe alice>bobl, stored
			bob subscribed alice = subscribed bob>alicel, +alice:bob
			alice unsubscribe bob = unsubscribe alice>bobl, -alice:bob`, "none none"},
		{"asked again while subscribed", `
			alice subscribe bob = subscribe alice>bobl, stored
			bob subscribed alice = subscribed bob>alicel, +alice:bob
			alice subscribe bob =`, "to from"},
		{"nobody asked", `
			bob unsubscribed alice =
			alice unsubscribe bob =`, "- -"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := rig(t)
			who := map[string]jid.JID{"alice": alice, "bob": bob}
			for line := range strings.Lines(strings.TrimSpace(tt.steps)) {
				step, want, _ := strings.Cut(strings.TrimSpace(line), "=")
				words := strings.Fields(step)
				typ, _ := state.ParseType(words[1])
				if got := show(send(r, who[words[0]], typ, who[words[2]])); got != strings.TrimSpace(want) {
					t.Fatalf("%s: got %q, want %q", step, got, want)
				}
			}
			if got := side(r, alice, bob) + " " + side(r, bob, alice); got != tt.want {
				t.Errorf("ended as %q, want %q", got, tt.want)
			}
			r.Verify()
		})
	}
}

func side(r *fsmtest.Rig, u, contact jid.JID) string {
	i, ok := state.Get(r.M, u, contact)
	if !ok {
		return "-"
	}
	s := i.Sub.String()
	if i.Ask {
		s += "+ask"
	}
	if i.PendingIn {
		s += "+pi"
	}
	if i.Approved {
		s += "+ok"
	}
	return s
}

func TestRemoteContacts(t *testing.T) {
	r := rig(t)
	if got := show(send(r, alice, state.Subscribe, romeo)); got != "subscribe alice>romeo" {
		t.Errorf("out: %q", got)
	}
	if got := show(send(r, romeo, state.Subscribed, alice)); got != "subscribed romeo>alicel, +alice:romeo" {
		t.Errorf("in: %q", got)
	}
	if got := show(send(r, romeo, state.Subscribe, alice)); got != "subscribe romeo>alicel, stored" {
		t.Errorf("in request: %q", got)
	}
	if got := show(send(r, alice, state.Subscribed, romeo)); got != "subscribed alice>romeo, +romeo:alice" {
		t.Errorf("accepted: %q", got)
	}
	if got := show(send(r, romeo, state.Subscribe, alice)); got != "subscribed alice>romeoa" {
		t.Errorf("asked again: %q", got)
	}
	if got := show(send(r, romeo, state.Unsubscribe, alice)); got != "unsubscribe romeo>alicel, unsubscribed alice>romeoa, -romeo:alice" {
		t.Errorf("left: %q", got)
	}
	if got := show(outcome(r, r.Must(state.RemoveEntry(alice, romeo)))); got != "unsubscribe alice>romeoa, -alice:romeo" {
		t.Errorf("removed: %q", got)
	}
	r.Refused(state.SubscriptionEntry(state.Request{From: romeo, To: jid.MustParse("tybalt@capulet.net"), Type: state.Subscribe}), fault.BadRequest)
}

func TestRequestsOfAndToNobody(t *testing.T) {
	r := rig(t)
	if got := show(send(r, alice, state.Subscribe, ghost)); got != "" {
		t.Errorf("a request to nobody must be silent: %q", got)
	}
	if side(r, alice, ghost) != "none+ask" || side(r, ghost, alice) != "-" {
		t.Errorf("states %q %q", side(r, alice, ghost), side(r, ghost, alice))
	}
	r.Refused(state.SubscriptionEntry(state.Request{From: ghost, To: alice, Type: state.Subscribe}), fault.NotFound)
	r.Refused(state.SubscriptionEntry(state.Request{From: alice, To: alice, Type: state.Subscribe}), fault.NotAllowed)
	r.Refused(state.SubscriptionEntry(state.Request{From: alice, To: bob, Type: 7}), fault.BadRequest)
}

func TestBlockedRequestChangesOnlyTheSender(t *testing.T) {
	r := rig(t)
	o := outcome(r, r.Must(state.SubscriptionEntry(state.Request{From: alice, To: bob, Type: state.Subscribe, Blocked: true})))
	if show(o) != "" || side(r, alice, bob) != "none+ask" || side(r, bob, alice) != "-" {
		t.Errorf("outcome %q, states %q %q", show(o), side(r, alice, bob), side(r, bob, alice))
	}
}

func TestRequestIsKeptWholeUntilAnswered(t *testing.T) {
	r := rig(t)
	stanza := []byte("<presence type='subscribe'><nick xmlns='http://jabber.org/protocol/nick'>A</nick></presence>")
	r.Must(state.SubscriptionEntry(state.Request{From: alice, To: bob, Type: state.Subscribe, Payload: stanza}))
	pending := state.Pending(r.M, bob)
	if len(pending) != 1 || !bytes.Equal(pending[0].Request, stanza) || !pending[0].Hidden {
		t.Fatalf("pending: %+v", pending)
	}
	if items := state.Items(r.M, bob); len(items) != 0 || state.Version(r.M, bob) != 0 {
		t.Errorf("a request is part of the roster: %+v, version %d", items, state.Version(r.M, bob))
	}
	r.Refused(state.RemoveEntry(bob, alice), fault.NotFound)
	send(r, bob, state.Subscribed, alice)
	if got := state.Pending(r.M, bob); got != nil || item(r, bob, alice).Request != nil {
		t.Errorf("an answered request is still kept: %+v", got)
	}
	big := state.SubscriptionEntry(state.Request{From: carol, To: bob, Type: state.Subscribe, Payload: make([]byte, state.MaxRequest+1)})
	r.Must(big)
	if got := state.Pending(r.M, bob); len(got) != 1 || got[0].Request != nil {
		t.Errorf("an oversized request is kept without its stanza: %+v", got)
	}
}

func TestRequestThenSetIsVisible(t *testing.T) {
	r := rig(t)
	send(r, alice, state.Subscribe, bob)
	r.Must(state.SetEntry(bob, alice, "Alice", nil))
	i := item(r, bob, alice)
	if i.Hidden || !i.PendingIn || len(state.Items(r.M, bob)) != 1 || len(state.Pending(r.M, bob)) != 1 {
		t.Errorf("item %+v", i)
	}
	send(r, bob, state.Unsubscribed, alice)
	if i, ok := state.Get(r.M, bob, alice); !ok || i.PendingIn || i.Name != "Alice" {
		t.Errorf("a refused request took the contact away: %+v", i)
	}
}

func TestSet(t *testing.T) {
	r := rig(t)
	res := r.Must(state.SetEntry(alice, bob.WithResource("phone"), "Bob", []string{"Friends", "Work"}))
	got := item(r, alice, bob)
	want := state.Item{Contact: bob, Name: "Bob", Groups: []string{"Friends", "Work"}, Revision: res.Index}
	if !reflect.DeepEqual(got, want) || state.Version(r.M, alice) != res.Index {
		t.Errorf("got %+v at %d, want %+v", got, state.Version(r.M, alice), want)
	}
	r.Must(state.SetEntry(alice, bob, "Robert", nil))
	if got := item(r, alice, bob); got.Name != "Robert" || got.Groups != nil {
		t.Errorf("a set must replace name and groups: %+v", got)
	}
	before := state.Version(r.M, alice)
	r.Must(state.SetEntry(alice, bob, "Robert", nil))
	if state.Version(r.M, alice) != before {
		t.Error("a set that changes nothing raised the version")
	}
}

func TestSetRefused(t *testing.T) {
	long := strings.Repeat("x", state.MaxName+1)
	many := make([]string, state.MaxGroups+1)
	for i := range many {
		many[i] = fmt.Sprint(i)
	}
	tests := []struct {
		name    string
		user    jid.JID
		contact jid.JID
		label   string
		groups  []string
		code    fault.Code
	}{
		{"own address", alice, alice, "", nil, fault.NotAllowed},
		{"no such user", ghost, bob, "", nil, fault.NotFound},
		{"remote user", romeo, bob, "", nil, fault.NotFound},
		{"long name", alice, bob, long, nil, fault.NotAcceptable},
		{"long group", alice, bob, "", []string{long}, fault.NotAcceptable},
		{"empty group", alice, bob, "", []string{""}, fault.NotAcceptable},
		{"duplicate group", alice, bob, "", []string{"a", "b", "a"}, fault.BadRequest},
		{"too many groups", alice, bob, "", many, fault.NotAcceptable},
		{"no address", alice, jid.JID{}, "", nil, fault.BadRequest},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rig(t).Refused(state.SetEntry(tt.user, tt.contact, tt.label, tt.groups), tt.code)
		})
	}
}

func TestExpectedRevision(t *testing.T) {
	r := rig(t)
	first := r.Must(state.SetEntry(alice, bob, "1", nil)).Index
	r.Must(state.SetEntry(alice, bob, "2", nil))
	stale := state.SetEntry(alice, bob, "3", nil)
	stale.Expect = first
	r.Refused(stale, fault.Stale)
	staleRemove := state.RemoveEntry(alice, bob)
	staleRemove.Expect = first
	r.Refused(staleRemove, fault.Stale)
}

func TestLimits(t *testing.T) {
	r := rig(t)
	r.Must(config.SetEntry("roster.max_contacts", "2", 0), config.SetEntry("roster.max_requests", "1", 0))
	r.Must(state.SetEntry(alice, carol, "", nil), state.SetEntry(alice, romeo, "", nil))
	r.Refused(state.SetEntry(alice, bob, "", nil), fault.TooLarge)
	r.Refused(state.SubscriptionEntry(state.Request{From: alice, To: bob, Type: state.Subscribe}), fault.TooLarge)
	r.Must(state.SetEntry(alice, carol, "still editable", nil))
	r.Must(config.SetEntry("roster.max_contacts", "0", 0))
	r.Must(state.SetEntry(alice, bob, "", nil))

	send(r, alice, state.Subscribe, bob)
	if got := show(send(r, romeo, state.Subscribe, bob)); got != "" {
		t.Errorf("a request beyond the limit: %q", got)
	}
	if got := state.Pending(r.M, bob); len(got) != 1 {
		t.Errorf("pending: %+v", got)
	}
}

func TestRemove(t *testing.T) {
	r := rig(t)
	befriend(r, alice, bob)
	o := outcome(r, r.Must(state.RemoveEntry(alice, bob)))
	if got := show(o); got != "unsubscribe alice>bobla, unsubscribed alice>bobla, -bob:alice, -alice:bob" {
		t.Errorf("outcome %q", got)
	}
	if side(r, alice, bob) != "-" || side(r, bob, alice) != "none" {
		t.Errorf("states %q %q", side(r, alice, bob), side(r, bob, alice))
	}
	r.Refused(state.RemoveEntry(alice, bob), fault.NotFound)
	r.Refused(state.RemoveEntry(alice, jid.MustParse("never@seen.org")), fault.NotFound)

	send(r, alice, state.Subscribe, carol)
	if got := show(outcome(r, r.Must(state.RemoveEntry(alice, carol)))); got != "unsubscribe alice>carolla" {
		t.Errorf("removing a contact that was asked: %q", got)
	}
	if side(r, carol, alice) != "-" {
		t.Errorf("the request is still there: %q", side(r, carol, alice))
	}
}

func befriend(r *fsmtest.Rig, a, b jid.JID) {
	r.TB.Helper()
	send(r, a, state.Subscribe, b)
	send(r, b, state.Subscribed, a)
	send(r, b, state.Subscribe, a)
	send(r, a, state.Subscribed, b)
	if side(r, a, b) != "both" || side(r, b, a) != "both" {
		r.TB.Fatalf("not friends: %q %q", side(r, a, b), side(r, b, a))
	}
}

func TestDeletedUserLeavesNoTrace(t *testing.T) {
	r := rig(t)
	befriend(r, alice, bob)
	send(r, alice, state.Subscribe, carol) // hidden at carol
	send(r, carol, state.Subscribe, alice)
	r.Must(state.SetEntry(alice, romeo, "", nil), state.RemoveEntry(alice, romeo))
	r.Must(user.DeleteEntry(alice.String()))
	if side(r, bob, alice) != "none" {
		t.Errorf("bob still has %q", side(r, bob, alice))
	}
	if side(r, carol, alice) != "none" {
		t.Errorf("carol still has %q", side(r, carol, alice))
	}
	for key := range r.Store.Rows() {
		if strings.Contains(key, "roster.") && strings.Contains(key, "\x00alice@example.com") && !strings.Contains(key, "bob") && !strings.Contains(key, "carol") {
			t.Errorf("row left behind: %q", key)
		}
	}
	r.Verify()
}

func TestChangedGivesDeltasInOrder(t *testing.T) {
	r := rig(t)
	contact := func(i int) jid.JID { return jid.MustParse(fmt.Sprintf("c%d@x.org", i)) }
	for i := range 5 {
		r.Must(state.SetEntry(alice, contact(i), "", nil))
	}
	since := state.Version(r.M, alice)
	if d, ok := state.Changed(r.M, alice, since); !ok || d != nil {
		t.Fatalf("nothing changed, got %v %v", d, ok)
	}
	r.Must(state.SetEntry(alice, contact(3), "first", nil))
	r.Must(state.RemoveEntry(alice, contact(1)))
	r.Must(state.RemoveEntry(alice, contact(2)), state.SetEntry(alice, contact(2), "back", nil))
	// three changes in one record share the log index, and still have versions of their own
	for _, res := range r.Apply(state.SetEntry(alice, contact(0), "a", nil), state.RemoveEntry(alice, contact(4)), state.SetEntry(alice, contact(3), "last", nil)) {
		if res.Err != nil {
			t.Fatal(res.Err)
		}
	}
	deltas, ok := state.Changed(r.M, alice, since)
	if !ok {
		t.Fatal("the deltas must be known")
	}
	var got []string
	last := since
	for _, d := range deltas {
		got = append(got, fmt.Sprintf("%s:%s:%v", d.Item.Contact.Local, d.Item.Name, d.Removed))
		if d.Item.Revision <= last {
			t.Errorf("version %d after %d", d.Item.Revision, last)
		}
		last = d.Item.Revision
	}
	want := []string{"c1::true", "c2:back:false", "c0:a:false", "c4::true", "c3:last:false"}
	if !slices.Equal(got, want) || last != state.Version(r.M, alice) {
		t.Errorf("got %v up to %d, want %v up to %d", got, last, want, state.Version(r.M, alice))
	}
	if _, ok := state.Changed(r.M, alice, state.Version(r.M, alice)+1); ok {
		t.Error("a version of the future was accepted")
	}
}

func TestRemovalsAreForgottenAtLast(t *testing.T) {
	r := rig(t)
	r.Must(state.SetEntry(alice, bob, "", nil))
	since := state.Version(r.M, alice)
	contact := func(i int) jid.JID { return jid.MustParse(fmt.Sprintf("c%d@x.org", i)) }
	for i := range state.MaxRemoved {
		r.Must(state.SetEntry(alice, contact(i), "", nil), state.RemoveEntry(alice, contact(i)))
	}
	if d, ok := state.Changed(r.M, alice, since); !ok || len(d) != state.MaxRemoved {
		t.Fatalf("%d deltas, ok %v", len(d), ok)
	}
	r.Must(state.SetEntry(alice, contact(9999), "", nil), state.RemoveEntry(alice, contact(9999)))
	if _, ok := state.Changed(r.M, alice, since); ok {
		t.Error("a delta was given although a removal is forgotten")
	}
	if _, ok := state.Changed(r.M, alice, state.Version(r.M, alice)-1); !ok {
		t.Error("a recent version must still get a delta")
	}
	r.Verify()
}

func TestVersionOfAnEarlierUserGetsTheFullRoster(t *testing.T) {
	r := rig(t)
	r.Must(state.SetEntry(alice, bob, "", nil), state.SetEntry(alice, carol, "", nil))
	old := state.Version(r.M, alice)
	r.Must(user.DeleteEntry(alice.String()), user.CreateEntry(user.User{Name: alice.String()}))
	r.Must(state.SetEntry(alice, romeo, "", nil))
	if d, ok := state.Changed(r.M, alice, old); ok {
		t.Errorf("got a delta %+v to a roster that is gone", d)
	}
}

func TestDecodeChange(t *testing.T) {
	r := rig(t)
	r.Must(state.SetEntry(alice, bob, "Bob", nil))
	var seen int
	for _, c := range r.Changes {
		u, before, after, ok := state.DecodeChange(c)
		if !ok {
			continue
		}
		seen++
		if u != alice || before != nil || after == nil || after.Contact != bob || after.Name != "Bob" {
			t.Errorf("decoded %v %+v %+v", u, before, after)
		}
	}
	if seen != 1 {
		t.Errorf("%d changes of items", seen)
	}
	r.Must(state.RemoveEntry(alice, bob))
	for _, c := range r.Changes {
		if _, before, after, ok := state.DecodeChange(c); ok && (before == nil || after != nil) {
			t.Errorf("removal decoded as %+v %+v", before, after)
		}
	}
}

func TestDecodeOutcomeRefusesGarbage(t *testing.T) {
	for _, b := range [][]byte{{0xff}, {0x0a, 0x02, 0x08, 0x01}, {0x12, 0x00}, {0x1a, 0x00}} {
		if o, err := state.DecodeOutcome(b); err == nil {
			t.Errorf("%x decoded as %+v", b, o)
		}
	}
}

// TestLargeRosterIsQuick reads a roster of 1,000; the bound is generous for a busy machine.
func TestLargeRosterIsQuick(t *testing.T) {
	r := rig(t)
	for i := range 1000 {
		r.Must(state.SetEntry(alice, jid.MustParse(fmt.Sprintf("contact%04d@example.org", i)), "A name", []string{"Group"}))
	}
	best := time.Hour
	for range 5 {
		start := time.Now()
		if n := len(state.Items(r.M, alice)); n != 1000 {
			t.Fatalf("%d items", n)
		}
		best = min(best, time.Since(start))
	}
	if best > 50*time.Millisecond {
		t.Errorf("reading took %v", best)
	}
}
