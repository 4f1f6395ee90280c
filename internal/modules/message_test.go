package modules_test

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	message "muster/feature/message/state"
	"muster/feature/message/state/messagepb"
	"muster/fsm/fsmtest"
	"muster/internal/modules"
	"muster/log"
)

// messageScript is script for the message log.
func messageScript() []line {
	put := func(from, to string, input uint64) *log.Entry {
		return message.PutEntry(message.Put{From: from, To: to, XML: []byte("<message from='" + from + "' to='" + to + "'><body>hi</body></message>"),
			SenderID: 0x1122334455667788, RecipientID: 0x99aabbccddeeff00, OriginID: fmt.Sprint("o", input), Session: 77, Input: input,
			KeepSent: true, KeepReceived: input != 2, Limit: 100})
	}
	const second = 2 << 12 // the number of the second record's first entry
	return []line{
		{false, put(alice.String(), bob.String(), 1)},
		{true, put(bob.String(), alice.String(), 2)},
		{true, put(alice.String(), bob.String(), 3)},
		{true, put(alice.String(), alice.String(), 4)},
		{false, message.SessionEntry(message.Session{ID: 77, User: alice.String(), Resource: "phone", Key: []byte("key"), Base: 2, Node: 1, Incarnation: 5,
			Timeout: 5 * time.Minute, Published: 3, Presence: []byte("<presence/>"), Marks: map[string]string{"carbons": "yes", "interested": "1"}},
			[]string{"carbons", "interested"})},
		{false, message.ClaimEntry(77, alice.String(), []byte("key"), 2, 9)},
		{false, log.New(log.MessageTaken, &messagepb.Taken{ // as earlier builds wrote it
			Inboxes:  []*messagepb.Inbox{{Owner: alice.String(), Numbers: []uint64{second}}, {Owner: bob.String(), Numbers: []uint64{second >> 1}}},
			Progress: []*messagepb.Progress{{Session: 77, Confirmed: 4, Cursor: second}}})},
		{false, message.ForgetEntry(message.Ended{Session: 77}, message.Ended{Session: 78})},
		{false, message.TrimEntry(second)},
		{false, message.PurgeEntry(alice.String(), 3<<12)},
	}
}

// genMessage draws an entry of the message log, sensible or not.
func genMessage(rt *rapid.T) *log.Entry {
	e := rapid.SampledFrom(messageGenerators).Draw(rt, "generator")(rt)
	if rapid.IntRange(0, 3).Draw(rt, "keyed") == 0 {
		e.Key = fmt.Sprint("key", rapid.IntRange(0, 5).Draw(rt, "key"))
	}
	e.Time = fsmtest.Start.Add(time.Duration(rapid.IntRange(-100, 100).Draw(rt, "seconds")) * time.Second)
	return e
}

func number(rt *rapid.T) uint64 {
	return uint64(rapid.IntRange(0, 40).Draw(rt, "index"))<<12 | uint64(rapid.IntRange(0, 3).Draw(rt, "place"))
}

func session(rt *rapid.T) uint64 { return uint64(rapid.IntRange(1, 4).Draw(rt, "session")) }

var messageGenerators = []func(*rapid.T) *log.Entry{
	drawPut, drawPut, drawPut, drawPut,
	func(rt *rapid.T) *log.Entry {
		a, b := who(rt).String(), who(rt).String()
		return message.TakenEntry([]message.Taken{{Owner: a, Numbers: []uint64{number(rt), number(rt)}}, {Owner: b, Session: session(rt), Claims: number(rt) % 3, Numbers: []uint64{number(rt)}}},
			[]message.Step{{Session: session(rt), Confirmed: number(rt), Claims: number(rt) % 3, Told: true, Refusals: [][]byte{[]byte("<message type='error'/>")}}})
	},
	func(rt *rapid.T) *log.Entry {
		return message.ForgetEntry(message.Ended{Session: session(rt)})
	},
	func(rt *rapid.T) *log.Entry {
		return message.SessionEntry(message.Session{ID: session(rt), User: who(rt).String(), Resource: "r", Key: []byte{1}, Claims: uint64(node(rt) % 3),
			Node: node(rt), Presence: []byte("<presence/>"), Marks: map[string]string{"b": "2", "a": "1"}}, []string{"b", "a"})
	},
	func(rt *rapid.T) *log.Entry {
		return message.ClaimEntry(session(rt), who(rt).String(), []byte{byte(node(rt) % 2)}, node(rt), number(rt))
	},
	func(rt *rapid.T) *log.Entry { return message.TrimEntry(number(rt)) },
	func(rt *rapid.T) *log.Entry { return message.PurgeEntry(who(rt).String(), number(rt)) },
}

func drawPut(rt *rapid.T) *log.Entry {
	p := message.Put{From: who(rt).String(), To: who(rt).String(), XML: []byte("<message/>")[:rapid.IntRange(0, 10).Draw(rt, "size")],
		SenderID: number(rt), RecipientID: number(rt), KeepSent: yes(rt), KeepReceived: yes(rt), Limit: rapid.IntRange(0, 3).Draw(rt, "limit")}
	if yes(rt) {
		p.Session, p.Input = session(rt), uint64(rapid.IntRange(0, 9).Draw(rt, "input"))
	}
	if yes(rt) {
		p.OriginID = fmt.Sprint("o", rapid.IntRange(1, 4).Draw(rt, "origin"))
	}
	return message.PutEntry(p)
}

// TestSameMessageLogSameState is TestSameLogSameState for the message log.
func TestSameMessageLogSameState(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		a, b := fsmtest.NewMessage(t, modules.Message()...), fsmtest.NewMessage(t, modules.Message()...)
		steps := rapid.IntRange(1, 40).Draw(rt, "records")
		restart := rapid.IntRange(1, steps).Draw(rt, "restart")
		for i := 1; i <= steps; i++ {
			record := fsmtest.Record(t, uint64(i), []*log.Entry{genMessage(rt), genMessage(rt), genMessage(rt)}[:rapid.IntRange(1, 3).Draw(rt, "batch")]...)
			ra, rb := a.M.Apply(uint64(i), record), b.M.Apply(uint64(i), record)
			if show(ra) != show(rb) {
				rt.Fatalf("results differ:\n%s\n%s", show(ra), show(rb))
			}
			if again := b.M.Apply(uint64(i), record); again != nil {
				rt.Fatalf("record %d was applied twice", i)
			}
			if i == restart {
				b = fsmtest.OverLog(t, b.Store.Copy(), log.Message, modules.Message()...)
			}
			checkMessages(rt, a)
		}
		if !reflect.DeepEqual(a.Store.Rows(), b.Store.Rows()) {
			rt.Fatal("the stores differ")
		}
		a.Verify()
		b.Verify()
	})
}

// checkMessages holds the invariants of the message log: what an archive or an
// inbox refers to is there, what nobody refers to is not, and times follow numbers.
func checkMessages(rt *rapid.T, r *fsmtest.Rig) {
	held := map[uint64]bool{}
	for owner, ok := message.NextOwner(r.M, ""); ok; owner, ok = message.NextOwner(r.M, owner) {
		page, err := message.Read(r.M, message.Query{Owner: owner, Max: 1000})
		if err != nil || !page.Complete || page.Count != len(page.Messages) {
			rt.Fatalf("%s has %d messages, the index says %d (%v)", owner, len(page.Messages), page.Count, err)
		}
		for _, m := range page.Messages {
			held[m.Number] = true
			if found, ok := message.ByID(r.M, owner, m.ID(owner)); !ok || found.Number != m.Number || m.From != owner && m.To != owner {
				rt.Fatalf("%s has message %+v", owner, m)
			}
		}
		inbox := message.Inbox(r.M, owner)
		if !slices.IsSorted(inbox) || len(inbox) > 3 {
			rt.Fatalf("the inbox of %s is %v", owner, inbox)
		}
		for _, n := range inbox {
			held[n] = true
			if m, ok := message.ByNumber(r.M, n); !ok || m.To != owner {
				rt.Fatalf("%d waits for %s: %+v, %v", n, owner, m, ok)
			}
		}
	}
	count := 0
	r.M.Scan(message.Messages, nil, nil, func(_, _ []byte) bool { count++; return true })
	if count != len(held) {
		rt.Fatalf("%d messages, of which somebody has %d", count, len(held))
	}
	var before time.Time
	for _, n := range slices.Sorted(maps.Keys(held)) {
		m, ok := message.ByNumber(r.M, n)
		if !ok || m.Time.Before(before) {
			rt.Fatalf("message %d: there %v, of %v, an earlier one of %v", n, ok, m.Time, before)
		}
		before = m.Time
	}
}
