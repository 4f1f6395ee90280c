package presence

import (
	"fmt"
	"testing"
	"time"

	blockstate "muster/feature/blocking/state"
	rosterstate "muster/feature/roster/state"
	"muster/fsm"
	"muster/fsm/cluster"
	"muster/fsm/config"
	"muster/fsm/fsmtest"
	"muster/fsm/user"
	"muster/internal/jid"
	"muster/internal/modules"
	"muster/router/hot"
	"muster/router/stanza"
)

var (
	alice = jid.MustParse("alice@example.com")
	bob   = jid.MustParse("bob@example.com")
	carol = jid.MustParse("carol@example.com")
)

func parse(t testing.TB, xml string) *stanza.Packet {
	t.Helper()
	p, err := stanza.ParsePacket([]byte(xml))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestCheck(t *testing.T) {
	cases := []struct {
		name, inner string
		priority    int8
		bad         bool
	}{
		{"nothing", "", 0, false},
		{"away", "<show>away</show>", 0, false},
		{"all shows", "<show>xa</show><priority>-128</priority>", -128, false},
		{"blanks around", "<show> dnd </show><priority> 127\n</priority>", 127, false},
		{"other name space", "<show xmlns='urn:x'>busy</show><priority xmlns='urn:x'>many</priority>", 0, false},
		{"unknown show", "<show>online</show>", 0, true},
		{"empty show", "<show/>", 0, true},
		{"two shows", "<show>away</show><show>away</show>", 0, true},
		{"priority too high", "<priority>128</priority>", 0, true},
		{"priority too low", "<priority>-129</priority>", 0, true},
		{"priority no number", "<priority>high</priority>", 0, true},
		{"empty priority", "<priority/>", 0, true},
		{"two priorities", "<priority>1</priority><priority>1</priority>", 0, true},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			got, refusal := check(parse(t, "<presence>"+tc.inner+"</presence>"))
			if got != tc.priority && !tc.bad || (refusal != nil) != tc.bad {
				t.Errorf("priority %d, refusal %v", got, refusal)
			}
			if refusal != nil && refusal.Condition != stanza.BadRequest {
				t.Errorf("refused with %v", refusal)
			}
		})
	}
}

func TestMeter(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var m meter
	for i := range Burst {
		if wait := m.take(now.Add(time.Duration(i) * time.Millisecond)); wait != 0 {
			t.Fatalf("update %d waits %v", i, wait)
		}
	}
	if wait := m.take(now.Add(4 * time.Second)); wait != 6*time.Second {
		t.Errorf("the update too many waits %v", wait)
	}
	if wait := m.take(now.Add(Window)); wait != 0 {
		t.Errorf("the next window's first update waits %v", wait)
	}
	m = meter{start: now, used: Burst}
	if wait := m.take(now.Add(-time.Hour)); wait != 0 {
		t.Errorf("after a step of the clock an update waits %v", wait)
	}
}

// directory is a machine with three users.
func directory(t testing.TB) *fsmtest.Rig {
	rig := fsmtest.New(t, modules.Control()...)
	rig.Must(cluster.InitEntry(cluster.Init{ID: "c", Name: "c", CACert: []byte("x"), Node: cluster.Member{Name: "n", ClusterAddr: "n:1", NewestVersion: 1}}))
	rig.Must(config.AddDomainEntry("example.com"))
	for _, j := range []jid.JID{alice, bob, carol} {
		rig.Must(user.CreateEntry(user.User{Name: j.String(), IM: true, Presence: true}))
	}
	return rig
}

// watch lets watcher see subject.
func watch(rig *fsmtest.Rig, watcher, subject jid.JID) {
	rig.Must(rosterstate.SubscriptionEntry(rosterstate.Request{From: watcher, To: subject, Type: rosterstate.Subscribe}),
		rosterstate.SubscriptionEntry(rosterstate.Request{From: subject, To: watcher, Type: rosterstate.Subscribed}))
}

func TestAudience(t *testing.T) {
	rig := directory(t)
	watch(rig, bob, alice)
	watch(rig, carol, alice)
	watch(rig, alice, carol)
	reads := 0
	a := newAudience(func() source { reads++; return rig.M })
	circleOf := func(subject jid.JID) []jid.JID {
		var got []jid.JID
		a.tell(subject, func(c *circle) { got = c.watchers })
		return got
	}
	want := func(subject jid.JID, watchers ...jid.JID) {
		t.Helper()
		if got := circleOf(subject); fmt.Sprint(got) != fmt.Sprint(watchers) {
			t.Errorf("%v is watched by %v, want %v", subject, got, watchers)
		}
	}
	want(alice, bob, carol)
	want(carol, alice)
	want(bob)
	before := reads
	want(alice, bob, carol)
	if reads != before {
		t.Error("a known circle was read again")
	}
	rig.Must(blockstate.AddEntry(alice, []jid.JID{bob}))
	want(alice, bob, carol) // until the feed tells
	a.forget(alice)
	want(alice, carol)
	rig.Must(blockstate.RemoveEntry(alice, nil), blockstate.AddEntry(alice, []jid.JID{bob.WithResource("pad")}))
	a.forget(alice)
	want(alice, bob, carol) // one resource of bob is looked at when it is told
	no := false
	rig.Must(user.UpdateEntry(alice.String(), user.Update{Presence: &no}))
	a.forget(alice)
	want(alice)
	want(jid.MustParse("nobody@example.com"))
}

func TestAudienceIsBounded(t *testing.T) {
	a := newAudience(func() source { return nil })
	crowd := &circle{watchers: make([]jid.JID, maxCached/4)}
	for i := range 10 {
		subject := jid.JID{Local: fmt.Sprint("s", i), Domain: "example.com"}
		a.makeRoom(len(crowd.watchers) + 1)
		a.cached[subject] = crowd
		a.total += len(crowd.watchers) + 1
		if a.total > maxCached {
			t.Fatalf("%d watchers are kept", a.total)
		}
	}
	for subject := range a.cached {
		a.forget(subject)
	}
	if a.total != 0 {
		t.Errorf("%d watchers are counted of nobody", a.total)
	}
}

func TestUnheard(t *testing.T) {
	a := newAudience(func() source { return nil })
	now := time.Now()
	gone := []hot.Gone{{Resource: "phone", At: now}, {Resource: "desk", At: now}, {Resource: "old", At: now.Add(-2 * memory)}}
	a.part(alice, "phone", &circle{watchers: []jid.JID{bob}})
	a.part(alice, "desk", &circle{})
	if got := fmt.Sprint(a.unheard(alice, bob, gone)); got != "[desk]" {
		t.Errorf("bob did not hear of %s", got)
	}
	if got := fmt.Sprint(a.unheard(alice, carol, gone)); got != "[phone desk]" {
		t.Errorf("carol did not hear of %s", got)
	}
	a.cleaned = now.Add(-2 * memory)
	a.parted[alice][1].at = now.Add(-2 * memory)
	a.part(bob, "pad", &circle{})
	if len(a.parted) != 1 {
		t.Errorf("%d subjects are remembered", len(a.parted))
	}
}

func TestShows(t *testing.T) {
	rig := directory(t)
	watch(rig, bob, alice)
	a := newAudience(func() source { return rig.M })
	no := false
	steps := []struct {
		name  string
		entry func() *fsm.Result
		bob   bool
	}{
		{"granted", nil, true},
		{"blocked", func() *fsm.Result { r := rig.Must(blockstate.AddEntry(alice, []jid.JID{bob})); return &r }, false},
		{"unblocked", func() *fsm.Result { r := rig.Must(blockstate.RemoveEntry(alice, nil)); return &r }, true},
		{"no presence", func() *fsm.Result {
			r := rig.Must(user.UpdateEntry(alice.String(), user.Update{Presence: &no}))
			return &r
		}, false},
	}
	for _, s := range steps {
		if s.entry != nil {
			s.entry()
		}
		a.forget(alice)
		shows := func(subject, watcher jid.JID) bool { _, ok := a.shows(subject, watcher); return ok }
		if got := shows(alice, bob); got != s.bob {
			t.Errorf("%s: alice shows herself to bob: %v", s.name, got)
		}
		if shows(alice, carol) || shows(bob, alice) || shows(jid.MustParse("nobody@example.com"), bob) {
			t.Errorf("%s: somebody shows himself without having granted it", s.name)
		}
	}
}

func TestNotice(t *testing.T) {
	row := &hot.Row{User: alice, Resource: "phone", Presence: []byte(`<presence from="alice@example.com/phone" id="x"><status>hi</status></presence>`)}
	cases := []struct {
		name     string
		row      *hot.Row
		farewell string
		want     string
	}{
		{"available", row, "", `<presence from="alice@example.com/phone" id="x"><status>hi</status></presence>`},
		{"gone", nil, "", `<presence from="alice@example.com/phone" type="unavailable"/>`},
		{"gone with words", nil, `<presence type="unavailable"><status>bye</status></presence>`, `<presence from="alice@example.com/phone" type="unavailable"><status>bye</status></presence>`},
		{"words of another type", nil, `<presence/>`, `<presence from="alice@example.com/phone" type="unavailable"/>`},
		{"damaged row", &hot.Row{Presence: []byte("<pres")}, "", `<presence from="alice@example.com/phone"/>`},
		{"no presence", &hot.Row{Presence: []byte("<message/>")}, "", `<presence from="alice@example.com/phone"/>`},
		{"empty row", &hot.Row{}, "", `<presence from="alice@example.com/phone"/>`},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			n := newNotice(alice, "phone", tc.row, []byte(tc.farewell))
			if got := string(n.stanza.AppendTo(nil)); got != tc.want {
				t.Errorf("got %s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestCurrent(t *testing.T) {
	row := &hot.Row{User: alice, Resource: "phone", Since: time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC),
		Presence: []byte(`<presence from="alice@example.com/phone" id="x" xml:lang="de"><status>hi</status></presence>`)}
	want := `<presence from="alice@example.com/phone" to="bob@example.com/pad" id="x" xml:lang="de"><status>hi</status>` +
		`<delay xmlns="urn:xmpp:delay" from="alice@example.com" stamp="2026-02-03T04:05:06Z"/></presence>`
	if got := string(current(row, bob.WithResource("pad")).AppendTo(nil)); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

func TestRequest(t *testing.T) {
	plain := `<presence from="bob@example.com" to="alice@example.com" type="subscribe"/>`
	cases := []struct{ name, kept, want string }{
		{"with words", `<presence from="x@y" type="subscribe"><status>me</status></presence>`,
			`<presence from="bob@example.com" to="alice@example.com" type="subscribe"><status>me</status></presence>`},
		{"too large to keep", "", plain},
		{"damaged", "<presence", plain},
		{"another stanza", "<message/>", plain},
		{"another type", "<presence type='subscribed'/>", plain},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			got := request(rosterstate.Item{Contact: bob, Request: []byte(tc.kept)}, alice)
			if s := string(got.AppendTo(nil)); s != tc.want {
				t.Errorf("got %s\nwant %s", s, tc.want)
			}
		})
	}
}

func TestMatches(t *testing.T) {
	for _, tc := range []struct {
		blocked string
		want    bool
	}{
		{"bob@example.com", true}, {"bob@example.com/pad", true}, {"example.com", true}, {"example.com/pad", true},
		{"alice@example.com", false}, {"bob@example.org", false}, {"example.org", false},
	} {
		if got := matches(jid.MustParse(tc.blocked), bob); got != tc.want {
			t.Errorf("%s concerns bob: %v", tc.blocked, got)
		}
	}
}

// FuzzCheck: no presence, however odd, makes the check fail in another way than with bad-request.
func FuzzCheck(f *testing.F) {
	f.Add("<show>away</show><priority>5</priority>")
	f.Add("<priority>9999999999999999999999</priority>")
	f.Add("<show xmlns='urn:x'/><status/>")
	f.Fuzz(func(t *testing.T, inner string) {
		p, err := stanza.ParsePacket([]byte("<presence>" + inner + "</presence>"))
		if err != nil {
			return
		}
		if _, refusal := check(p); refusal != nil && refusal.Condition != stanza.BadRequest {
			t.Errorf("refused with %v", refusal)
		}
	})
}
