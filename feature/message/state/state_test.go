package state_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"muster/feature/message/state"
	"muster/fsm/fsmtest"
	"muster/internal/fault"
	"muster/log"
)

const (
	alice = "alice@example.com"
	bob   = "bob@example.com"
	carol = "carol@example.com"
)

// rig is a message log's machine.
type rig struct{ *fsmtest.Rig }

func newRig(tb testing.TB) *rig { return &rig{fsmtest.NewMessage(tb, state.Module())} }

// put keeps a message and returns its number. What the caller leaves out is usual.
func (r *rig) put(p state.Put) (number uint64, how state.Repeat) {
	r.TB.Helper()
	return state.PutResult(r.Must(state.PutEntry(usual(p))).Value)
}

func usual(p state.Put) state.Put {
	if p.From == "" {
		p.From = alice
	}
	if p.To == "" {
		p.To = bob
	}
	if p.XML == nil {
		p.XML = []byte("<message/>")
	}
	if !p.KeepSent && !p.KeepReceived && p.Limit == 0 {
		p.KeepSent, p.KeepReceived = true, true
	}
	return p
}

// archive returns the numbers in an owner's archive, in order.
func (r *rig) archive(owner string) []uint64 {
	r.TB.Helper()
	p, err := state.Read(r.M, state.Query{Owner: owner, Max: 1 << 20})
	if err != nil || !p.Complete {
		r.TB.Fatalf("reading all of %s: %v %v", owner, p.Complete, err)
	}
	var out []uint64
	for _, m := range p.Messages {
		out = append(out, m.Number)
	}
	return out
}

// with returns the numbers of an owner's conversation with somebody.
func (r *rig) with(owner, other string) []uint64 {
	r.TB.Helper()
	p, err := state.Read(r.M, state.Query{Owner: owner, With: other, Max: 1 << 20})
	if err != nil {
		r.TB.Fatal(err)
	}
	var out []uint64
	for _, m := range p.Messages {
		out = append(out, m.Number)
	}
	return out
}

// rows are the rows of a table, or with "message." of all of them.
func (r *rig) rows(table string) (out []string) {
	for k := range r.Store.Rows() {
		if strings.HasPrefix(k, table) {
			out = append(out, k)
		}
	}
	return out
}

func (r *rig) want(what string, got []uint64, want ...uint64) {
	r.TB.Helper()
	if !slices.Equal(got, want) {
		r.TB.Errorf("%s: %v, want %v", what, got, want)
	}
}

func TestWhoKeepsAMessage(t *testing.T) {
	cases := []struct {
		name            string
		put             state.Put
		alice, bob, box bool // whether it is there
	}{
		{"both", state.Put{KeepSent: true, KeepReceived: true}, true, true, false},
		{"the sender", state.Put{KeepSent: true}, true, false, false},
		{"the recipient", state.Put{KeepReceived: true}, false, true, false},
		{"the inbox", state.Put{Limit: 10}, false, false, true},
		{"all three", state.Put{KeepSent: true, KeepReceived: true, Limit: 10}, true, true, true},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			n, how := r.put(tc.put)
			if how != state.New || n == 0 {
				t.Fatalf("kept as %d, %v", n, how)
			}
			for _, c := range []struct {
				what string
				got  []uint64
				in   bool
			}{
				{"alice's archive", r.archive(alice), tc.alice}, {"bob's archive", r.archive(bob), tc.bob},
				{"alice with bob", r.with(alice, bob), tc.alice}, {"bob with alice", r.with(bob, alice), tc.bob},
				{"alice with herself", r.with(alice, alice), false},
				{"bob's inbox", state.Inbox(r.M, bob), tc.box}, {"alice's inbox", state.Inbox(r.M, alice), false},
			} {
				if in := slices.Equal(c.got, []uint64{n}); in != c.in || len(c.got) > 1 {
					t.Errorf("%s holds %v, want it in there: %v", c.what, c.got, c.in)
				}
			}
			m, ok := state.ByNumber(r.M, n)
			if !ok || m.From != alice || m.To != bob || string(m.XML) != "<message/>" || !m.Time.Equal(fsmtest.Start.Add(time.Second)) {
				t.Errorf("the message is %+v, %v", m, ok)
			}
			r.Verify()
		})
	}
}

func TestMessageToOneself(t *testing.T) {
	for _, tc := range []struct{ sent, received bool }{{true, true}, {true, false}, {false, true}} {
		t.Run(fmt.Sprint(tc), func(t *testing.T) {
			r := newRig(t)
			n, _ := r.put(state.Put{To: alice, KeepSent: tc.sent, KeepReceived: tc.received, Limit: 5, RecipientID: 7, SenderID: 8})
			r.want("archive", r.archive(alice), n)
			r.want("with herself", r.with(alice, alice), n)
			r.want("inbox", state.Inbox(r.M, alice), n)
			m, _ := state.ByNumber(r.M, n)
			if found, ok := state.ByID(r.M, alice, m.ID(alice)); !ok || found.Number != n {
				t.Errorf("by its id: %+v, %v", found, ok)
			}
			r.Must(state.TakenEntry([]state.Taken{{Owner: alice, Numbers: []uint64{n}}}, nil))
			r.want("archive when it was taken", r.archive(alice), n)
			r.Must(state.PurgeEntry(alice, n+1))
			if left := r.rows("message."); len(left) > 0 {
				t.Errorf("left after the purge: %q", left)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	many := make([]uint64, 1<<14+1)
	tests := []struct {
		name  string
		entry *log.Entry
		code  fault.Code
	}{
		{"no sender", state.PutEntry(state.Put{To: bob, XML: []byte("x"), KeepSent: true}), fault.BadRequest},
		{"no recipient", state.PutEntry(state.Put{From: bob, XML: []byte("x"), KeepSent: true}), fault.BadRequest},
		{"no text", state.PutEntry(state.Put{From: bob, To: alice, KeepSent: true}), fault.BadRequest},
		{"zero byte", state.PutEntry(state.Put{From: bob + "\x00x", To: alice, XML: []byte("x"), KeepSent: true}), fault.BadRequest},
		{"nobody keeps it", state.PutEntry(state.Put{From: bob, To: alice, XML: []byte("x")}), fault.BadRequest},
		{"too large", state.PutEntry(usual(state.Put{XML: make([]byte, state.MaxXML+1)})), fault.TooLarge},
		{"too many taken", state.TakenEntry([]state.Taken{{Owner: alice, Numbers: many[1:]}, {Owner: bob, Numbers: many[:1]}}, nil), fault.TooLarge},
		{"too many sessions", state.ForgetEntry(make([]state.Ended, 1<<14+1)...), fault.TooLarge},
		{"garbage", &log.Entry{Kind: log.MessagePut, Body: []byte{0xff}}, fault.BadRequest},
		{"garbage taken", &log.Entry{Kind: log.MessageTaken, Body: []byte{0xff}}, fault.BadRequest},
		{"garbage to forget", &log.Entry{Kind: log.SessionForget, Body: []byte{0xff}}, fault.BadRequest},
		{"garbage to trim", &log.Entry{Kind: log.MessageTrim, Body: []byte{0xff}}, fault.BadRequest},
		{"garbage to purge", &log.Entry{Kind: log.MessagePurge, Body: []byte{0xff}}, fault.BadRequest},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			r.put(state.Put{Session: 1, Input: 1, OriginID: "o"})
			r.Refused(tt.entry, tt.code)
			r.Verify()
		})
	}
	newRig(t).put(state.Put{XML: make([]byte, state.MaxXML)})
}

// TestNoRetryMakesASecondMessage: neither the same input of a session, nor the same origin-id of an account.
func TestNoRetryMakesASecondMessage(t *testing.T) {
	first := state.Put{Session: 5, Input: 10, OriginID: "o1"}
	cases := []struct {
		name    string
		put     state.Put
		how     state.Repeat
		unknown bool // which message it repeats
	}{
		{"the same again", first, state.SameInput, false},
		{"the same input, without its origin-id", state.Put{Session: 5, Input: 10}, state.SameInput, false},
		{"an earlier input", state.Put{Session: 5, Input: 9}, state.SameInput, true},
		{"the next input", state.Put{Session: 5, Input: 11}, state.New, false},
		{"the same number of another session", state.Put{Session: 6, Input: 10}, state.New, false},
		{"from the session, but no input", state.Put{Session: 5}, state.New, false},
		{"the origin-id from another session", state.Put{Session: 6, Input: 1, OriginID: "o1"}, state.SameOrigin, false},
		{"the origin-id from no session", state.Put{OriginID: "o1"}, state.SameOrigin, false},
		{"the origin-id to somebody else", state.Put{To: carol, OriginID: "o1"}, state.SameOrigin, false},
		{"the origin-id of another account", state.Put{From: carol, OriginID: "o1"}, state.New, false},
		{"another origin-id", state.Put{OriginID: "o2"}, state.New, false},
		{"no origin-id and no session", state.Put{}, state.New, false},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			n, _ := r.put(first)
			got, how := r.put(tc.put)
			switch {
			case how != tc.how, tc.unknown && got != 0, how == state.New && got <= n, how != state.New && !tc.unknown && got != n:
				t.Errorf("kept as %d, repeated %v; the first is %d", got, how, n)
			}
			if all := len(r.rows("message.messages")); (all == 2) != (how == state.New) {
				t.Errorf("there are %d messages", all)
			}
			again, how := r.put(tc.put)
			if (tc.put.OriginID != "" || tc.put.Input != 0) && (again != got || how == state.New) {
				t.Errorf("once more: %d, %v", again, how)
			}
			r.Verify()
		})
	}
}

func TestInputsOfOneRecord(t *testing.T) {
	r := newRig(t)
	put := func(input uint64) *log.Entry { return state.PutEntry(usual(state.Put{Session: 1, Input: input})) }
	results := r.Apply(put(1), put(2), put(2), put(1))
	var numbers []uint64
	for _, res := range results {
		n, _ := state.PutResult(res.Value)
		numbers = append(numbers, n)
	}
	if numbers[1] != numbers[0]+1 || numbers[2] != numbers[1] || numbers[3] != 0 {
		t.Errorf("numbers %v", numbers)
	}
	r.want("archive", r.archive(alice), numbers[:2]...)
}

func TestForget(t *testing.T) {
	r := newRig(t)
	first, _ := r.put(state.Put{Session: 5, Input: 10})
	r.put(state.Put{Session: 6, Input: 10})
	r.Must(state.ForgetEntry(state.Ended{Session: 5}, state.Ended{Session: 99}))
	if n, how := r.put(state.Put{Session: 5, Input: 10}); how != state.SameInput || n != first {
		t.Errorf("a retry that was under way when the session ended is %d, repeated %v", n, how)
	}
	r.M.Skip(r.M.Applied() + 1<<14)
	r.Must(state.ForgetEntry(state.Ended{Session: 99}))
	if n, how := r.put(state.Put{Session: 5, Input: 10}); how != state.New || n <= first {
		t.Errorf("long after that it is %d, repeated %v", n, how)
	}
	if _, how := r.put(state.Put{Session: 6, Input: 10}); how != state.SameInput {
		t.Error("the other session was forgotten, too")
	}
}

func TestInboxLimit(t *testing.T) {
	r := newRig(t)
	one, _ := r.put(state.Put{Limit: 2, KeepSent: true, OriginID: "first"})
	two, _ := r.put(state.Put{Limit: 2})
	third := usual(state.Put{Limit: 2, KeepSent: true, Session: 3, Input: 1, OriginID: "x"})
	r.Refused(state.PutEntry(third), fault.Overloaded)
	r.want("inbox", state.Inbox(r.M, bob), one, two)
	r.put(state.Put{To: carol, Limit: 1}) // every inbox by itself
	r.put(state.Put{KeepSent: true})      // does not wait
	if n, how := r.put(state.Put{Limit: 2, OriginID: "first"}); n != one || how != state.SameOrigin {
		t.Errorf("a retry of what waits already is %d, repeated %v", n, how)
	}
}

func TestRefusedForAFullInboxMayBeTriedAgain(t *testing.T) {
	r := newRig(t)
	one, _ := r.put(state.Put{Limit: 1})
	again := state.Put{Limit: 1, Session: 3, Input: 1, OriginID: "x"}
	r.Refused(state.PutEntry(usual(again)), fault.Overloaded)
	r.Must(state.TakenEntry([]state.Taken{{Owner: bob, Numbers: []uint64{one}}}, nil))
	if n, how := r.put(again); how != state.New || n <= one {
		t.Errorf("kept as %d, repeated %v", n, how)
	}
}

func TestTaken(t *testing.T) {
	r := newRig(t)
	kept, _ := r.put(state.Put{Limit: 9, KeepReceived: true})
	passing, _ := r.put(state.Put{Limit: 9, OriginID: "o"})
	sent, _ := r.put(state.Put{Limit: 9, KeepSent: true})
	stays, _ := r.put(state.Put{Limit: 9})
	other, _ := r.put(state.Put{To: carol, Limit: 9})
	r.Must(state.TakenEntry([]state.Taken{{Owner: bob, Numbers: []uint64{sent, passing, kept, 12345, other}}, {Owner: "nobody@example.com", Numbers: []uint64{stays}}}, nil))
	r.want("bob's inbox", state.Inbox(r.M, bob), stays)
	r.want("carol's inbox", state.Inbox(r.M, carol), other)
	for n, want := range map[uint64]bool{kept: true, passing: false, sent: true, stays: true, other: true} {
		if _, ok := state.ByNumber(r.M, n); ok != want {
			t.Errorf("message %d is there: %v, want %v", n, ok, want)
		}
	}
	if rows := r.rows("message.origins"); len(rows) != 0 {
		t.Errorf("the origin-id of a message that is gone is still there: %q", rows)
	}
	r.Must(state.TakenEntry([]state.Taken{{Owner: bob, Numbers: []uint64{stays}}, {Owner: carol, Numbers: []uint64{other}}}, nil))
	if rows := r.rows("message.inboxes"); len(rows) != 0 {
		t.Errorf("empty inboxes have rows: %q", rows)
	}
	r.Verify()
}

func TestTrim(t *testing.T) {
	r := newRig(t)
	var all []uint64
	for i := range state.MaxSweep + 10 {
		n, _ := r.put(state.Put{KeepSent: i%3 != 0, KeepReceived: i%3 != 1, Limit: 1000 * (i % 2), OriginID: fmt.Sprint(i), To: []string{bob, carol, alice}[i%3]})
		all = append(all, n)
	}
	if value := r.Must(state.TrimEntry(all[5])).Value; state.More(value) {
		t.Error("more, although all is done")
	}
	if oldest, ok := state.Oldest(r.M); !ok || oldest.Number != all[5] {
		t.Errorf("the oldest is %d, want %d", oldest.Number, all[5])
	}
	if value := r.Must(state.TrimEntry(all[len(all)-1])).Value; !state.More(value) {
		t.Error("no more after one step")
	}
	if oldest, _ := state.Oldest(r.M); oldest.Number != all[5+state.MaxSweep] {
		t.Errorf("the oldest is %d after a step", oldest.Number)
	}
	if value := r.Must(state.TrimEntry(all[len(all)-1])).Value; state.More(value) {
		t.Error("still more")
	}
	if n := len(r.rows("message.messages")); n != 1 {
		t.Errorf("%d messages are left", n)
	}
	r.Must(state.TrimEntry(all[len(all)-1] + 1))
	if left := r.rows("message."); len(left) > 0 {
		t.Errorf("left after all was trimmed: %q", left)
	}
	if _, ok := state.Oldest(r.M); ok {
		t.Error("an empty log has an oldest message")
	}
	r.Verify()
}

func TestPurge(t *testing.T) {
	r := newRig(t)
	sent, _ := r.put(state.Put{KeepSent: true, KeepReceived: true, OriginID: "o"})
	received, _ := r.put(state.Put{From: carol, To: alice, KeepSent: true, KeepReceived: true, Limit: 9})
	waiting, _ := r.put(state.Put{From: carol, To: alice, Limit: 9})
	others, _ := r.put(state.Put{KeepSent: true, Limit: 9}) // waits for bob
	foreign, _ := r.put(state.Put{From: bob, To: carol})
	later, _ := r.put(state.Put{KeepSent: true, KeepReceived: true, From: bob, To: alice, Limit: 9})
	if value := r.Must(state.PurgeEntry(alice, later)).Value; state.More(value) {
		t.Error("more, although all is done")
	}
	r.want("alice's archive", r.archive(alice), later)
	r.want("alice's inbox", state.Inbox(r.M, alice), later)
	r.want("alice with bob", r.with(alice, bob), later)
	r.want("bob's archive", r.archive(bob), sent, foreign, later)
	r.want("bob's inbox", state.Inbox(r.M, bob), others)
	r.want("carol's archive", r.archive(carol), received, foreign)
	if _, ok := state.ByNumber(r.M, waiting); ok {
		t.Error("a message that nobody has any more is still there")
	}
	r.Must(state.PurgeEntry(alice, later+1))
	r.want("alice's archive", r.archive(alice))
	for _, owner := range []string{bob, carol} {
		r.Must(state.PurgeEntry(owner, later+1))
	}
	if left := r.rows("message."); len(left) > 0 {
		t.Errorf("left after all were purged: %q", left)
	}
	r.Verify()
}

// TestLastReference: a message goes with the last that refers to it, which may
// be the inbox, also when it was archived first.
func TestLastReference(t *testing.T) {
	for _, tc := range []struct {
		name    string
		put     state.Put
		before  []string // whose archives are purged while it waits
		remains bool     // after the client has it
	}{
		{"in no archive", state.Put{Limit: 9, OriginID: "o"}, nil, false},
		{"in both archives", state.Put{Limit: 9, KeepSent: true, KeepReceived: true}, nil, true},
		{"in the sender's archive", state.Put{Limit: 9, KeepSent: true}, nil, true},
		{"in the sender's archive until that is purged", state.Put{Limit: 9, KeepSent: true, OriginID: "o"}, []string{alice}, false},
		{"in both archives until one is purged", state.Put{Limit: 9, KeepSent: true, KeepReceived: true}, []string{alice}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			r.put(state.Put{Limit: 9, KeepSent: true}) // waits longer
			n, _ := r.put(tc.put)
			for _, owner := range tc.before {
				r.Must(state.PurgeEntry(owner, n+1))
			}
			if _, ok := state.ByNumber(r.M, n); !ok {
				t.Fatal("the message is gone while it waits")
			}
			r.Must(state.TakenEntry([]state.Taken{{Owner: bob, Numbers: []uint64{n}}}, nil))
			if _, ok := state.ByNumber(r.M, n); ok != tc.remains {
				t.Errorf("the message is there: %v, want %v", ok, tc.remains)
			}
			if waiting := len(state.Inbox(r.M, bob)); waiting != 1 {
				t.Errorf("%d messages wait", waiting)
			}
			r.Must(state.TrimEntry(n + 1))
			if left := r.rows("message."); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
			r.Verify()
		})
	}
}

// TestPurgeInSteps: between the steps no inbox refers to a row that is gone.
func TestPurgeInSteps(t *testing.T) {
	r := newRig(t)
	var last uint64
	for range state.MaxSweep*2 + 3 {
		last, _ = r.put(state.Put{KeepReceived: true, Limit: 1000})
	}
	steps := 1
	for ; state.More(r.Must(state.PurgeEntry(bob, last+1)).Value); steps++ {
		for _, n := range state.Inbox(r.M, bob) {
			if _, ok := state.ByNumber(r.M, n); !ok {
				t.Fatalf("message %d waits and is gone", n)
			}
		}
	}
	if left := r.rows("message."); steps != 3 || len(left) > 0 {
		t.Errorf("%d steps, left %q", steps, left)
	}
}

func TestTimesNeverFall(t *testing.T) {
	r := newRig(t)
	at := func(s int) time.Time { return fsmtest.Start.Add(time.Duration(s) * time.Second) }
	var numbers []uint64
	for _, s := range []int{100, 50, 50, 200, 10} {
		e := state.PutEntry(usual(state.Put{}))
		e.Time = at(s)
		n, _ := state.PutResult(r.Must(e).Value)
		numbers = append(numbers, n)
	}
	want := []int{100, 100, 100, 200, 200}
	for i, n := range numbers {
		if m, _ := state.ByNumber(r.M, n); !m.Time.Equal(at(want[i])) {
			t.Errorf("message %d is of %v, want %v", i, m.Time, at(want[i]))
		}
	}
	for _, second := range []int{0, 99, 100, 101, 200, 201} {
		got := state.FirstSince(r.M, at(second))
		for i, n := range numbers {
			if (n >= got) != (want[i] >= second) {
				t.Errorf("since second %d is from %d on; message %d is of second %d", second, got, n, want[i])
			}
		}
	}
	if got := state.FirstSince(newRig(t).M, at(1)); got > state.Last(r.M)+1 {
		t.Errorf("in an empty log: %d", got)
	}
}

func TestIDs(t *testing.T) {
	r := newRig(t)
	n, _ := r.put(state.Put{SenderID: 1, RecipientID: 2})
	secret, _ := r.put(state.Put{SenderID: 3, RecipientID: 4, KeepReceived: true})
	m, _ := state.ByNumber(r.M, n)
	hidden, _ := state.ByNumber(r.M, secret)
	if m.ID(alice) == m.ID(bob) {
		t.Error("both owners have the same id")
	}
	cases := []struct {
		name, owner, id string
		want            uint64
	}{
		{"the sender's", alice, m.ID(alice), n},
		{"the recipient's", bob, m.ID(bob), n},
		{"the other's", alice, m.ID(bob), 0},
		{"a stranger's", carol, m.ID(bob), 0},
		{"in the other's archive only", alice, hidden.ID(alice), 0},
		{"in the recipient's archive", bob, hidden.ID(bob), secret},
		{"empty", alice, "", 0},
		{"not of this server", alice, "28482-98726-73623", 0},
		{"too long", alice, m.ID(alice) + "AAAA", 0},
		{"other bits at its end", alice, m.ID(alice)[:21] + "R", 0},
		{"line break", alice, m.ID(alice) + "\n", 0},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			got, ok := state.ByID(r.M, tc.owner, tc.id)
			if ok != (tc.want != 0) || ok && got.Number != tc.want {
				t.Errorf("found %d, %v; want %d", got.Number, ok, tc.want)
			}
		})
	}
}

func TestPutResult(t *testing.T) {
	for _, value := range [][]byte{nil, {}, make([]byte, 8), make([]byte, 10)} {
		if n, how := state.PutResult(value); n != 0 || how != state.New {
			t.Errorf("%x means %d, %v", value, n, how)
		}
	}
	if state.More(nil) || state.More([]byte{0}) || state.More([]byte{1, 1}) || !state.More([]byte{1}) {
		t.Error("More reads its byte wrongly")
	}
}

func TestChanges(t *testing.T) {
	r := newRig(t)
	n, _ := r.put(state.Put{Limit: 3, KeepSent: true, XML: []byte("<message>hi</message>")})
	var seen []state.Message
	see := func() {
		for _, c := range r.Changes {
			if m, ok := state.DecodeNew(c); ok {
				seen = append(seen, m)
			}
		}
	}
	see()
	if len(seen) != 1 || seen[0].Number != n || seen[0].From != alice || seen[0].To != bob || !bytes.Equal(seen[0].XML, []byte("<message>hi</message>")) {
		t.Errorf("the change shows %+v", seen)
	}
	for _, e := range []*log.Entry{
		state.PurgeEntry(bob, n+1),   // does not touch it but for the inbox
		state.PurgeEntry(alice, n+1), // removes it
	} {
		seen = nil
		r.Must(e)
		if see(); len(seen) != 0 {
			t.Errorf("%v shows new messages %+v", e.Kind, seen)
		}
	}
}

func TestOwners(t *testing.T) {
	r := newRig(t)
	if owner, ok := state.NextOwner(r.M, ""); ok {
		t.Errorf("an empty log has the owner %q", owner)
	}
	for i, to := range []string{"bo@example.com", "bob@example.com", "bob@example.com.au", "zoe@example.com"} {
		for range 3 {
			r.put(state.Put{To: to, KeepReceived: i != 1, Limit: 100 * (i % 2)})
		}
	}
	r.put(state.Put{To: carol, KeepSent: true})
	r.put(state.Put{To: carol, Limit: 1})
	var owners []string
	for owner, ok := state.NextOwner(r.M, ""); ok; owner, ok = state.NextOwner(r.M, owner) {
		owners = append(owners, owner)
	}
	want := []string{alice, "bo@example.com", bob, "bob@example.com.au", carol, "zoe@example.com"}
	if !slices.Equal(owners, want) {
		t.Errorf("owners %q, want %q", owners, want)
	}
}
