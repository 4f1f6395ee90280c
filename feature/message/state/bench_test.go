package state_test

import (
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	"muster/feature/message/state"
	"muster/fsm"
	"muster/fsm/fsmtest"
	"muster/internal/store"
	"muster/log"
)

var archiveSize = flag.Int("archive", 100_000, "messages in the archive that BenchmarkArchivePage reads")

// large is one owner's archive on the real store, made once for all benchmarks.
var large struct {
	sync.Once
	machine *fsm.Machine
	numbers []uint64
	ids     []string
	built   time.Duration
}

// asANode is how a node opens the state.
var asANode = store.Options{CacheBytes: 48 << 20, MemTable: 16 << 20}

// buildLarge writes alice's archive: every second message with bob, the others with a thousand people, of 300 bytes.
func buildLarge(b *testing.B) {
	db, err := store.Open(b.TempDir(), asANode)
	if err != nil {
		b.Fatal(err)
	}
	if large.machine, err = fsm.New(db, log.Message, state.Module()); err != nil {
		b.Fatal(err)
	}
	xml := make([]byte, 300)
	rng := rand.New(rand.NewPCG(1, 2))
	start := time.Now()
	const batch = 500
	for i := 0; i < *archiveSize; i += batch {
		entries := make([]*log.Entry, batch)
		for k := range entries {
			for at := 0; at < len(xml)-8; at += 8 {
				binary.BigEndian.PutUint64(xml[at:], rng.Uint64())
			}
			p := state.Put{From: alice, To: bob, XML: append([]byte(nil), xml...), SenderID: rng.Uint64(), RecipientID: rng.Uint64(), KeepSent: true, KeepReceived: true,
				Session: 1, Input: uint64(i + k + 1), OriginID: fmt.Sprint(i + k)}
			if k%2 == 1 {
				p.From, p.To = fmt.Sprintf("user%d@example.com", rng.IntN(1000)), alice
			}
			entries[k] = state.PutEntry(p)
		}
		index := large.machine.Applied() + 1
		for _, res := range large.machine.Apply(index, fsmtest.Record(b, index, entries...)) {
			n, _ := state.PutResult(res.Value)
			m, _ := state.ByNumber(large.machine, n)
			large.numbers, large.ids = append(large.numbers, n), append(large.ids, m.ID(alice))
		}
	}
	large.built = time.Since(start)
	b.Logf("%d messages written in %v, disk %d bytes each", *archiveSize, large.built.Round(time.Millisecond), db.Pebble().Metrics().DiskSpaceUsage()/uint64(*archiveSize))
}

// cpuTime is what the process has used, in nanoseconds.
func cpuTime(b *testing.B) int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// BenchmarkArchivePage reads 50 messages in each of the ways that clients ask
// for them: go test -bench ArchivePage -args -archive 1000000.
func BenchmarkArchivePage(b *testing.B) {
	large.Do(func() { buildLarge(b) })
	at := func(i int) time.Time { m, _ := state.ByNumber(large.machine, large.numbers[i]); return m.Time }
	mid := len(large.ids) / 2
	rng := rand.New(rand.NewPCG(3, 4))
	anywhere := func() int { return rng.IntN(len(large.ids) - 60) }
	for _, bc := range []struct {
		name string
		q    func() state.Query
	}{
		{"first", func() state.Query { return state.Query{} }},
		{"last", func() state.Query { return state.Query{Last: true} }},
		{"after", func() state.Query { return state.Query{After: large.ids[anywhere()]} }},
		{"before", func() state.Query { return state.Query{Before: large.ids[anywhere()+50], Last: true} }},
		{"between-ids", func() state.Query { return state.Query{AfterID: large.ids[mid], BeforeID: large.ids[mid+500]} }},
		{"since", func() state.Query { return state.Query{Start: at(anywhere())} }},
		{"until-last", func() state.Query { return state.Query{End: at(anywhere() + 50), Last: true} }},
		{"with-first", func() state.Query { return state.Query{With: bob} }},
		{"with-last", func() state.Query { return state.Query{With: bob, Last: true} }},
		{"with-after", func() state.Query { return state.Query{With: bob, After: large.ids[anywhere()]} }},
		{"with-rare-since", func() state.Query { return state.Query{With: "user7@example.com", Start: at(mid)} }},
		{"ids", func() state.Query {
			q := state.Query{}
			for range 50 {
				q.IDs = append(q.IDs, large.ids[anywhere()])
			}
			return q
		}},
		{"full-address-no-match", func() state.Query { return state.Query{With: bob, Match: func(*state.Message) bool { return false }} }},
	} {
		b.Run(bc.name, func(b *testing.B) {
			var longest time.Duration
			var cpu int64
			for b.Loop() {
				q := bc.q()
				q.Owner, q.Max = alice, 50
				begin, used := time.Now(), cpuTime(b)
				view, release, err := fsm.Consistent(large.machine)
				if err != nil {
					b.Fatal(err)
				}
				p, err := state.Read(view, q)
				if err != nil || len(p.Messages) == 0 && q.Match == nil {
					b.Fatal(len(p.Messages), err)
				}
				if err := release(); err != nil {
					b.Fatal(err)
				}
				longest, cpu = max(longest, time.Since(begin)), cpu+cpuTime(b)-used
			}
			b.ReportMetric(float64(cpu)/float64(b.N)/1e6, "ms-cpu/page") // of the process, whatever else the machine does
			b.ReportMetric(float64(longest.Microseconds())/1000, "ms-longest")
		})
	}
}

// BenchmarkChat applies what a hundred people who write to each other bring:
// records of some messages and of what clients have confirmed of the earlier
// ones. us-cpu/message is the figure: of the process, with what the store does behind.
func BenchmarkChat(b *testing.B) {
	for _, size := range []int{2, 32} {
		b.Run(fmt.Sprint(size), func(b *testing.B) { benchmarkChat(b, size) })
	}
}

func benchmarkChat(b *testing.B, size int) {
	db, err := store.Open(b.TempDir(), asANode)
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	m, err := fsm.New(db, log.Message, state.Module())
	if err != nil {
		b.Fatal(err)
	}
	const people = 100
	name := func(i int) string { return fmt.Sprintf("user%d@example.com", i) }
	apply := func(entries ...*log.Entry) []fsm.Result {
		return m.Apply(m.Applied()+1, fsmtest.Record(b, m.Applied()+1, entries...))
	}
	for i := range people {
		apply(state.SessionEntry(state.Session{ID: uint64(i + 1), User: name(i), Resource: "phone", Key: []byte("key"), Node: 1}, nil))
	}
	rng := rand.New(rand.NewPCG(1, 2))
	stanzas := make([][]byte, 1000)
	for i := range stanzas {
		xml := fmt.Appendf(nil, "<message type='chat' from='%s/phone' id='%x'><body>", name(rng.IntN(people)), rng.Uint64())
		for len(xml) < 280 {
			xml = fmt.Appendf(xml, "%c", 'a'+rng.IntN(26))
		}
		stanzas[i] = append(xml, "</body></message>"...)
	}
	waiting, input := map[string][]uint64{}, uint64(0)
	begin := cpuTime(b)
	for b.Loop() {
		entries, recipients := make([]*log.Entry, size), make([]string, size)
		for k := range entries {
			from := rng.IntN(people)
			input++
			recipients[k] = name(from ^ 1)
			entries[k] = state.PutEntry(state.Put{From: name(from), To: recipients[k], XML: stanzas[rng.IntN(len(stanzas))], SenderID: rng.Uint64(), RecipientID: rng.Uint64(),
				KeepSent: true, KeepReceived: true, Session: uint64(from + 1), Input: input, Limit: 1000})
		}
		if input/uint64(size)%8 == 0 {
			var taken []state.Taken
			for i := range people {
				if n := waiting[name(i)]; len(n) > 0 {
					taken = append(taken, state.Taken{Owner: name(i), Session: uint64(i + 1), Numbers: n})
				}
			}
			entries = append(entries, state.TakenEntry(taken, nil))
			waiting = map[string][]uint64{}
		}
		for k, res := range apply(entries...)[:size] {
			n, _ := state.PutResult(res.Value)
			if res.Err != nil || n == 0 {
				b.Fatal(res.Err)
			}
			waiting[recipients[k]] = append(waiting[recipients[k]], n)
		}
	}
	b.ReportMetric(float64(cpuTime(b)-begin)/float64(b.N*size)/1e3, "us-cpu/message")
	b.ReportMetric(float64(db.DiskUsage())/float64(b.N*size), "disk-bytes/message")
}
