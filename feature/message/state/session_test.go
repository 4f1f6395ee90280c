package state_test

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"muster/feature/message/state"
	"muster/fsm/fsmtest"
	"muster/internal/fault"
	"muster/log"
)

// phone is a session of alice, at node 1.
func phone() state.Session {
	return state.Session{ID: 7, User: alice, Resource: "phone", Key: []byte("key"), Base: 3, Node: 1, Incarnation: 4, Timeout: 5 * time.Minute,
		Published: 2, Presence: []byte("<presence/>"), Marks: map[string]string{"carbons": "yes", "a": "b"}}
}

func record(s state.Session) *log.Entry { return state.SessionEntry(s, []string{"a", "carbons"}) }

func TestSessionRecord(t *testing.T) {
	r := newRig(t)
	want := phone()
	r.Must(record(want))
	want.Time = fsmtest.Start.Add(time.Second)
	got, p, ok := state.SessionByID(r.M, 7)
	if !ok || !reflect.DeepEqual(got, want) || !reflect.DeepEqual(p, state.Progress{Handled: 3}) {
		t.Errorf("the record is %+v with %+v, %v; want %+v", got, p, ok, want)
	}
	changed := phone()
	changed.Presence, changed.Marks, changed.Published = nil, map[string]string{"a": "", "carbons": ""}, 3
	r.Must(record(changed))
	if got, _, _ := state.SessionByID(r.M, 7); len(got.Presence) != 0 || got.Published != 3 || got.Marks["carbons"] != "" {
		t.Errorf("the new state is %+v", got)
	}
	if _, _, ok := state.SessionByID(r.M, 8); ok {
		t.Error("an unknown session has a record")
	}
	r.Must(state.ForgetEntry(state.Ended{Session: 7}))
	if _, _, ok := state.SessionByID(r.M, 7); ok {
		t.Error("a forgotten session has a record")
	}
	if left := r.rows("message."); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	r.Verify()
}

func TestSessionRefused(t *testing.T) {
	change := func(fn func(s *state.Session)) *log.Entry {
		s := phone()
		fn(&s)
		return record(s)
	}
	tests := []struct {
		name  string
		entry *log.Entry
		code  fault.Code
	}{
		{"no id", change(func(s *state.Session) { s.ID = 0 }), fault.BadRequest},
		{"no user", change(func(s *state.Session) { s.User = "" }), fault.BadRequest},
		{"no resource", change(func(s *state.Session) { s.Resource = "" }), fault.BadRequest},
		{"no key", change(func(s *state.Session) { s.Key = nil }), fault.BadRequest},
		{"long key", change(func(s *state.Session) { s.Key = make([]byte, state.MaxSessionKey+1) }), fault.BadRequest},
		{"large", change(func(s *state.Session) { s.Marks["a"] = strings.Repeat("x", state.MaxSessionBytes) }), fault.TooLarge},
		{"claim of an unknown session", state.ClaimEntry(8, alice, []byte("key"), 2, 1), fault.NotFound},
		{"claim for another user", state.ClaimEntry(7, bob, []byte("key"), 2, 1), fault.NotFound},
		{"claim with another key", state.ClaimEntry(7, alice, []byte("kex"), 2, 1), fault.NotFound},
		{"garbage", &log.Entry{Kind: log.SessionPut, Body: []byte{0xff}}, fault.BadRequest},
		{"garbage to claim", &log.Entry{Kind: log.SessionClaim, Body: []byte{0xff}}, fault.BadRequest},
		{"too many steps", state.TakenEntry(nil, make([]state.Step, 1<<14+1)), fault.TooLarge},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			r.Must(record(phone()))
			r.Refused(tt.entry, tt.code)
		})
	}
}

// TestClaim: whoever had the session before cannot change its record any more.
func TestClaim(t *testing.T) {
	r := newRig(t)
	r.Must(record(phone()), state.ClaimEntry(7, alice, []byte("key"), 2, 9))
	got, _, _ := state.SessionByID(r.M, 7)
	if got.Node != 2 || got.Incarnation != 9 || got.Claims != 1 || !got.Time.Equal(fsmtest.Start.Add(2*time.Second)) || got.Resource != "phone" {
		t.Errorf("the claimed session is %+v", got)
	}
	r.Refused(record(phone()), fault.Stale)
	mine := phone()
	mine.Claims, mine.Node = 1, 2
	r.Must(record(mine), state.ClaimEntry(7, alice, []byte("key"), 1, 10))
	r.Refused(record(mine), fault.Stale)
}

// TestFence: what comes into the log after a claim, from where the session was before, counts for nothing. Its client
// sends what it has not heard of again at the other node, or something else: the numbers tell of other stanzas there.
func TestFence(t *testing.T) {
	r := newRig(t)
	r.Must(record(phone()))
	first, _ := r.put(state.Put{Session: 7, Input: 4})
	r.Must(state.ClaimEntry(7, alice, []byte("key"), 2, 9))
	late := func(claims uint64) *log.Entry {
		return state.PutEntry(usual(state.Put{Session: 7, Input: 6, Claims: claims}))
	}
	r.Refused(late(0), fault.Stale)
	forHer, _ := r.put(state.Put{From: bob, To: alice, Limit: 10})
	taken := func(claims uint64) {
		r.Must(state.TakenEntry([]state.Taken{{Owner: alice, Session: 7, Claims: claims, Numbers: []uint64{forHer}}}, []state.Step{{Session: 7, Claims: claims, Confirmed: 9}}))
	}
	taken(0)
	if _, p, _ := state.SessionByID(r.M, 7); !reflect.DeepEqual(p, state.Progress{Handled: 4}) {
		t.Errorf("after what came late the session is at %+v", p)
	}
	r.want("inbox", state.Inbox(r.M, alice), forHer)
	other, how := r.put(state.Put{Session: 7, Input: 5, Claims: 1})
	if how != state.New {
		t.Errorf("the first input at the other node is repeated %v", how)
	}
	taken(1)
	r.want("inbox", state.Inbox(r.M, alice))
	r.Must(state.ForgetEntry(state.Ended{Session: 7}))
	if _, p, ok := state.SessionByID(r.M, 7); !ok || p.Handled != 9 || p.Cursor != forHer {
		t.Errorf("after its end at the earlier node it is at %+v, %v", p, ok)
	}
	r.Must(state.ForgetEntry(state.Ended{Session: 7, Claims: 1}))
	if _, _, ok := state.SessionByID(r.M, 7); ok {
		t.Error("its end was not noted")
	}
	r.Refused(late(0), fault.Stale)
	r.want("archive", r.archive(alice), first, other)
	r.Verify()
}

func TestProgress(t *testing.T) {
	r := newRig(t)
	step := func(s state.Step) { r.Must(state.TakenEntry(nil, []state.Step{s})) }
	want := func(handled, cursor uint64) {
		t.Helper()
		if _, p, _ := state.SessionByID(r.M, 7); p.Handled != handled || p.Cursor != cursor {
			t.Errorf("progress %+v, want %d and %d", p, handled, cursor)
		}
	}
	r.Must(record(phone()))
	want(3, 0)
	r.put(state.Put{Session: 7, Input: 5})
	want(5, 0)
	has := func(numbers ...uint64) {
		r.Must(state.TakenEntry([]state.Taken{{Owner: alice, Session: 7, Numbers: numbers}}, nil))
	}
	step(state.Step{Session: 7, Confirmed: 9})
	want(9, 0)
	has(80, 100, 90)
	want(9, 100)
	step(state.Step{Session: 7, Confirmed: 8})
	has(90)
	has()
	want(9, 100)
	has(110)
	want(9, 110)
	if _, how := r.put(state.Put{Session: 7, Input: 5}); how != state.SameInput {
		t.Errorf("the progress made the server forget the last kept input: %v", how)
	}
	r.put(state.Put{Session: 7, Input: 10})
	want(10, 110)
	step(state.Step{Session: 8, Confirmed: 1})
	if n := len(r.rows("message.inputs")); n != 1 {
		t.Errorf("%d sessions have progress", n)
	}
}

func TestLost(t *testing.T) {
	r := newRig(t)
	for id := range uint64(6) {
		s := phone()
		s.ID, s.Node, s.Timeout = id+1, uint32(id%2+1), time.Duration(id)*time.Minute
		r.Must(record(s))
	}
	for _, tc := range []struct {
		died  time.Duration // when node 2 did; below 0: that is not known
		after time.Duration
		limit int
		want  []uint64 // sessions
	}{
		{-1, 0, 10, nil}, {-1, 2 * time.Minute, 10, []uint64{2}}, {-1, time.Hour, 10, []uint64{2, 4, 6}}, {-1, time.Hour, 2, []uint64{2, 4}},
		{time.Hour, time.Hour, 10, nil}, {time.Hour, time.Hour + 2*time.Minute, 10, []uint64{2}}, {time.Hour, 2 * time.Hour, 10, []uint64{2, 4, 6}},
	} {
		gone := func(node uint32, incarnation uint64) (since time.Time, ok bool) {
			if tc.died >= 0 {
				since = fsmtest.Start.Add(tc.died)
			}
			return since, node != 1 || incarnation != 4
		}
		var got []uint64
		for _, e := range state.Lost(r.M, fsmtest.Start.Add(tc.after), tc.limit, gone) {
			got = append(got, e.Session)
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("node 2 died after %v, now %v: %v, want %v", tc.died, tc.after, got, tc.want)
		}
	}
}

func TestReceivedSince(t *testing.T) {
	r := newRig(t)
	one, _ := r.put(state.Put{KeepReceived: true, Limit: 10})
	r.put(state.Put{From: bob, To: alice})
	passing, _ := r.put(state.Put{Limit: 10})
	own, _ := r.put(state.Put{From: bob, To: bob})
	r.put(state.Put{KeepSent: true})
	last, _ := r.put(state.Put{From: carol})
	for _, tc := range []struct {
		name  string
		after uint64
		limit int
		want  []uint64
	}{
		{"all", 0, 10, []uint64{one, passing, own, last}},
		{"later ones", one, 10, []uint64{passing, own, last}},
		{"some", 0, 2, []uint64{one, passing}},
		{"none", last, 10, nil},
	} {
		t.Run(tc.name, func(t *testing.T) { r.want("received", state.ReceivedSince(r.M, bob, tc.after, tc.limit), tc.want...) })
	}
}

// TestRefusals: what counts input as handled keeps the errors that the client may not have.
func TestRefusals(t *testing.T) {
	r := newRig(t)
	text := func(names ...string) (out [][]byte) {
		for _, n := range names {
			out = append(out, []byte(n))
		}
		return out
	}
	want := func(when string, names ...string) {
		t.Helper()
		if _, p, _ := state.SessionByID(r.M, 7); !reflect.DeepEqual(p.Refusals, text(names...)) {
			t.Errorf("%s: %q, want %q", when, p.Refusals, names)
		}
	}
	step := func(s state.Step) { r.Must(state.TakenEntry(nil, []state.Step{s})) }
	r.put(state.Put{Session: 7, Input: 4, Refusals: text("a")})
	want("before it is on record")
	r.Must(record(phone()))
	r.put(state.Put{Session: 7, Input: 5, Refusals: text("a", "b")})
	r.put(state.Put{Session: 7, Input: 5, Refusals: text("b", "c")})
	want("after a retry that knows more", "a", "b", "c")
	r.Must(state.TakenEntry([]state.Taken{{Owner: alice, Session: 7, Numbers: []uint64{1}}}, nil))
	want("after a message was confirmed", "a", "b", "c")
	step(state.Step{Session: 7, Told: true, Refusals: text("c", "d")})
	want("after two were confirmed", "c", "d")
	r.Must(state.ClaimEntry(7, alice, []byte("key"), 2, 9))
	step(state.Step{Session: 7, Told: true})
	want("after word of the earlier node", "c", "d")
	large := strings.Repeat("x", 30<<10)
	r.put(state.Put{Session: 7, Input: 6, Claims: 1, Refusals: text(large+"1", large+"2")})
	want("within the bound", "c", "d", large+"1", large+"2")
	r.put(state.Put{Session: 7, Input: 7, Claims: 1, Refusals: text(large + "3")})
	want("beyond the bound", large+"2", large+"3")
	step(state.Step{Session: 7, Claims: 1, Told: true})
	want("after all were confirmed")
	r.put(state.Put{Session: 7, Input: 8, Claims: 1, Refusals: text("e")})
	r.Must(state.ForgetEntry(state.Ended{Session: 7, Claims: 1}))
	if left := r.rows("message.refusals"); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	r.Verify()
}
