package state_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"muster/feature/message/state"
	"muster/fsm/fsmtest"
	"muster/internal/fault"
	"muster/log"
)

// archived is a log of alice's messages 0 to 19, one a second: the even ones
// with bob, the odd ones with carol, every fifth to herself, and others'
// messages between them.
func archived(tb testing.TB) (r *rig, numbers []uint64, ids []string) {
	r = newRig(tb)
	for i := range 20 {
		p := state.Put{From: alice, To: []string{bob, carol}[i%2], SenderID: uint64(i), RecipientID: uint64(100 + i), XML: []byte("<message/>")}
		if i%4 > 1 {
			p.From, p.To = p.To, p.From
		}
		if i%5 == 0 {
			p.From, p.To = alice, alice
		}
		n, _ := r.put(p)
		r.put(state.Put{From: bob, To: carol})
		m, _ := state.ByNumber(r.M, n)
		numbers, ids = append(numbers, n), append(ids, m.ID(alice))
	}
	return r, numbers, ids
}

// second is when alice's message of that number was sent.
func second(i int) time.Time { return fsmtest.Start.Add(time.Duration(2*i+1) * time.Second) }

func TestRead(t *testing.T) {
	r, numbers, ids := archived(t)
	stranger, _ := state.ByNumber(r.M, numbers[1]+4096)
	between := func(lo, hi int) (out []int) {
		for i := lo; i <= hi; i++ {
			out = append(out, i)
		}
		return out
	}
	cases := []struct {
		name     string
		q        state.Query
		want     []int // of alice's messages
		complete bool
		count    int
		index    int
	}{
		{"the first page", state.Query{Max: 3}, between(0, 2), false, 20, 0},
		{"the second page", state.Query{Max: 3, After: ids[2]}, between(3, 5), false, 20, 3},
		{"the last of several", state.Query{Max: 3, After: ids[16]}, between(17, 19), true, 20, 17},
		{"behind the end", state.Query{Max: 3, After: ids[19]}, nil, true, 20, 0},
		{"from the end", state.Query{Max: 3, Last: true}, between(17, 19), false, 20, 17},
		{"back from there", state.Query{Max: 3, Last: true, Before: ids[17]}, between(14, 16), false, 20, 14},
		{"back to the beginning", state.Query{Max: 3, Last: true, Before: ids[3]}, between(0, 2), true, 20, 0},
		{"before the beginning", state.Query{Max: 3, Last: true, Before: ids[0]}, nil, true, 20, 0},
		{"all", state.Query{Max: 100}, between(0, 19), true, 20, 0},
		{"all from the end", state.Query{Max: 20, Last: true}, between(0, 19), true, 20, 0},
		{"the count", state.Query{}, nil, false, 20, 0},
		{"with bob", state.Query{Max: 2, With: bob}, []int{2, 4}, false, 8, 0},
		{"with bob, further", state.Query{Max: 2, With: bob, After: ids[5]}, []int{6, 8}, false, 8, 2},
		{"with bob, from the end", state.Query{Max: 2, With: bob, Last: true}, []int{16, 18}, false, 8, 6},
		{"with herself", state.Query{Max: 9, With: alice}, []int{0, 5, 10, 15}, true, 4, 0},
		{"with a stranger", state.Query{Max: 9, With: "x@example.com"}, nil, true, 0, 0},
		{"since", state.Query{Max: 2, Start: second(7)}, []int{7, 8}, false, 13, 0},
		{"since shortly after", state.Query{Max: 2, Start: second(7).Add(1)}, []int{8, 9}, false, 12, 0},
		{"until", state.Query{Max: 2, End: second(7), Last: true}, []int{6, 7}, false, 8, 6},
		{"until shortly before", state.Query{Max: 2, End: second(7).Add(-1), Last: true}, []int{5, 6}, false, 7, 5},
		{"between times", state.Query{Max: 9, Start: second(3), End: second(5)}, []int{3, 4, 5}, true, 3, 0},
		{"until before since", state.Query{Max: 9, Start: second(5), End: second(3)}, nil, true, 0, 0},
		{"between ids", state.Query{Max: 9, AfterID: ids[3], BeforeID: ids[7]}, between(4, 6), true, 3, 0},
		{"between ids, page by page", state.Query{Max: 2, AfterID: ids[3], BeforeID: ids[9], After: ids[5]}, between(6, 7), false, 5, 2},
		{"between ids and times with bob", state.Query{Max: 9, With: bob, AfterID: ids[3], End: second(9)}, []int{4, 6, 8}, true, 3, 0},
		{"by ids, in order and once", state.Query{Max: 9, IDs: []string{ids[9], ids[2], ids[9], ids[4]}}, []int{2, 4, 9}, true, 3, 0},
		{"by ids, a page", state.Query{Max: 2, IDs: []string{ids[9], ids[2], ids[4]}}, []int{2, 4}, false, 3, 0},
		{"by ids, a page from the end", state.Query{Max: 2, Last: true, IDs: []string{ids[9], ids[2], ids[4]}}, []int{4, 9}, false, 3, 1},
		{"by ids with bob", state.Query{Max: 9, With: bob, IDs: []string{ids[9], ids[2]}}, []int{2}, true, 1, 0},
		{"as many bytes", state.Query{Max: 9, MaxBytes: 29}, []int{0, 1}, false, 20, 0},
		{"one at the least", state.Query{Max: 9, MaxBytes: 1, Last: true}, []int{19}, false, 20, 19},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			tc.q.Owner = alice
			p, err := state.Read(r.M, tc.q)
			if err != nil {
				t.Fatal(err)
			}
			var got []int
			for _, m := range p.Messages {
				got = append(got, slices.Index(numbers, m.Number))
			}
			if !slices.Equal(got, tc.want) || p.Complete != tc.complete || !p.Counted || p.Count != tc.count || p.Index != tc.index {
				t.Errorf("got %v, complete %v, %d from %d; want %v, %v, %d from %d", got, p.Complete, p.Count, p.Index, tc.want, tc.complete, tc.count, tc.index)
			}
			first, last := "", ""
			if len(tc.want) > 0 {
				first, last = ids[tc.want[0]], ids[tc.want[len(tc.want)-1]]
			}
			if p.First != first || p.Last != last {
				t.Errorf("from %q to %q, want %q to %q", p.First, p.Last, first, last)
			}
		})
	}
	for _, q := range []state.Query{
		{After: "x"}, {Before: "x"}, {AfterID: "x"}, {BeforeID: "x"}, {IDs: []string{ids[0], "x"}}, {After: stranger.ID(bob)},
	} {
		q.Owner, q.Max = alice, 5
		if p, err := state.Read(r.M, q); !fault.Is(err, fault.NotFound) {
			t.Errorf("%+v gives %d messages, %v", q, len(p.Messages), err)
		}
	}
}

func TestEnds(t *testing.T) {
	r, numbers, _ := archived(t)
	first, last, ok := state.Ends(r.M, alice)
	if first.Number != numbers[0] || last.Number != numbers[19] || !ok {
		t.Errorf("%d to %d, %v", first.Number, last.Number, ok)
	}
	if _, _, ok := state.Ends(r.M, "nobody@example.com"); ok {
		t.Error("an empty archive has ends")
	}
}

// TestMatch: only the caller can tell what matches, and the looking has a bound.
func TestMatch(t *testing.T) {
	r := newRig(t)
	const all = 11_000
	var numbers []uint64
	for i := 0; i < all; i += 1000 {
		record := make([]*log.Entry, 1000)
		for k := range record {
			record[k] = state.PutEntry(usual(state.Put{SenderID: uint64(i + k)}))
		}
		for _, res := range r.Apply(record...) {
			n, _ := state.PutResult(res.Value)
			numbers = append(numbers, n)
		}
	}
	only := func(wanted ...int) func(*state.Message) bool {
		return func(m *state.Message) bool { return slices.Contains(wanted, slices.Index(numbers, m.Number)) }
	}
	for _, tc := range []struct {
		name  string
		last  bool
		match func(*state.Message) bool
	}{{"forwards", false, only(3, 4, 4_999, 5_000, 10_999)}, {"backwards", true, only(3, 4, 4_999, 5_000, 10_999)}} {
		t.Run(tc.name, func(t *testing.T) {
			var got []int
			pages := 0
			q := state.Query{Owner: alice, Max: 2, Last: tc.last, Match: tc.match}
			for {
				p, err := state.Read(r.M, q)
				if pages++; err != nil || p.Counted || pages > 20 {
					t.Fatal(pages, p.Counted, err)
				}
				page := []int{}
				for _, m := range p.Messages {
					page = append(page, slices.Index(numbers, m.Number))
				}
				if tc.last {
					got = append(page, got...)
				} else {
					got = append(got, page...)
				}
				if p.Complete {
					break
				}
				if p.First == "" || p.Last == "" {
					t.Fatal("an incomplete page says not where to go on")
				}
				if q.After = p.Last; tc.last {
					q.After, q.Before = "", p.First
				}
			}
			if !slices.Equal(got, []int{3, 4, 4_999, 5_000, 10_999}) {
				t.Errorf("found %v in %d pages", got, pages)
			}
		})
	}
}

// TestLargeArchiveIsNotCounted: what would cost a walk over everything is left out.
func TestLargeArchiveIsNotCounted(t *testing.T) {
	r := newRig(t)
	for range 2 {
		record := make([]*log.Entry, 505)
		for k := range record {
			record[k] = state.PutEntry(usual(state.Put{To: []string{bob, carol}[k%2]}))
		}
		r.Apply(record...)
	}
	if p, err := state.Read(r.M, state.Query{Owner: alice, Max: 1}); err != nil || p.Counted || len(p.Messages) != 1 {
		t.Errorf("1010 messages: counted %v, %v", p.Counted, err)
	}
	if p, err := state.Read(r.M, state.Query{Owner: alice, With: bob, Max: 1}); err != nil || !p.Counted || p.Count != 506 {
		t.Errorf("with bob: counted %v, %d, %v", p.Counted, p.Count, err)
	}
}

// TestReadLikeAList compares pages of a random archive with those of a list in memory.
func TestReadLikeAList(t *testing.T) {
	r, numbers, ids := archived(t)
	var list []state.Message
	for _, n := range numbers {
		m, _ := state.ByNumber(r.M, n)
		list = append(list, m)
	}
	pos := func(rt *rapid.T, name string) int { return rapid.IntRange(-8, 19).Draw(rt, name) }
	rapid.Check(t, func(rt *rapid.T) {
		q := state.Query{Owner: alice, Max: rapid.IntRange(0, 8).Draw(rt, "max"), Last: rapid.Bool().Draw(rt, "last")}
		q.With = rapid.SampledFrom([]string{"", bob, carol, alice}).Draw(rt, "with")
		keep := func(ok func(i int, m state.Message) bool) {
			var left []state.Message
			for _, m := range list {
				if ok(slices.Index(numbers, m.Number), m) {
					left = append(left, m)
				}
			}
			list = left
		}
		whole := list
		defer func() { list = whole }()
		if q.With != "" {
			keep(func(_ int, m state.Message) bool {
				return q.With == alice && m.From == m.To || q.With != alice && (m.From == q.With || m.To == q.With)
			})
		}
		limit := func(name string, set func(i int), ok func(i, at int) bool) {
			if at := pos(rt, name); at >= 0 {
				set(at)
				keep(func(i int, _ state.Message) bool { return ok(i, at) })
			}
		}
		limit("start", func(i int) { q.Start = second(i) }, func(i, at int) bool { return i >= at })
		limit("end", func(i int) { q.End = second(i) }, func(i, at int) bool { return i <= at })
		limit("after-id", func(i int) { q.AfterID = ids[i] }, func(i, at int) bool { return i > at })
		limit("before-id", func(i int) { q.BeforeID = ids[i] }, func(i, at int) bool { return i < at })
		count := len(list)
		limit("after", func(i int) { q.After = ids[i] }, func(i, at int) bool { return i > at })
		limit("before", func(i int) { q.Before = ids[i] }, func(i, at int) bool { return i < at })
		page := list[:min(len(list), q.Max)]
		if q.Last {
			page = list[len(list)-len(page):]
		}
		p, err := state.Read(r.M, q)
		if err != nil {
			rt.Fatal(err)
		}
		if show(p.Messages) != show(page) || p.Complete != (len(page) == len(list)) || p.Count != count {
			rt.Fatalf("got %s, complete %v, of %d; want %s of %d in a range of %d", show(p.Messages), p.Complete, p.Count, show(page), len(list), count)
		}
	})
}

func show(list []state.Message) (out string) {
	for _, m := range list {
		out += fmt.Sprint(m.Number/4096, " ")
	}
	return out
}
