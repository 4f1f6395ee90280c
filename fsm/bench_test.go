package fsm_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"muster/fsm"
	"muster/fsm/fsmtest"
	"muster/internal/store"
	"muster/log"
)

// Sizes of the benchmark: what a busy message log may bring.
const (
	benchEntries = 64  // of a record
	benchRows    = 6   // that each entry writes
	benchBody    = 300 // bytes of the first row; the others are small
)

var benchTable = fsm.NewTable("bench")

// benchModule writes six rows under new keys for each entry, the first of them
// with the entry's body: each to one of 256 users, behind what the user has.
func benchModule(inserts bool) fsm.Module {
	return fsm.Module{Name: "fsm/config", Tables: []*fsm.Table{benchTable}, Handlers: map[log.Kind]fsm.Handler{
		log.SettingSet: func(tx *fsm.Tx, e *log.Entry) error {
			for i := range benchRows {
				value := e.Body[:24]
				if i == 0 {
					value = e.Body
				}
				key := fmt.Appendf(nil, "%d\x00user%04d@example.test\x00%016x.%x", i, e.Body[8], tx.Index(), e.Body[:8])
				if inserts {
					tx.Insert(benchTable, key, value)
				} else {
					tx.Put(benchTable, key, value)
				}
			}
			return nil
		},
	}}
}

// BenchmarkApply applies records of 64 entries to a store on the disk, as the
// message log does: with an idempotency key in each entry, without, and with
// rows that are new by their keys and not looked up. ns/entry is the figure.
func BenchmarkApply(b *testing.B) {
	for _, name := range []string{"keyed", "keyless", "keyless-inserts"} {
		b.Run(name, func(b *testing.B) {
			db, err := store.Open(b.TempDir(), store.Options{CacheBytes: 32 << 20})
			if err != nil {
				b.Fatal(err)
			}
			defer db.Close()
			m, err := fsm.New(db, log.Control, benchModule(name == "keyless-inserts"))
			if err != nil {
				b.Fatal(err)
			}
			if name != "keyed" {
				m.SetKeyless(log.SettingSet)
			}
			index, seq := uint64(0), uint64(0)
			for b.Loop() {
				b.StopTimer()
				entries := make([]*log.Entry, benchEntries)
				for i := range entries {
					body := make([]byte, benchBody)
					binary.BigEndian.PutUint64(body, rand.Uint64())
					body[8] = byte(rand.Uint32())
					seq++
					entries[i] = &log.Entry{Kind: log.SettingSet, Body: body, Key: fmt.Sprintf("key%013d", seq), Node: 1}
				}
				index++
				record := fsmtest.Record(b, index, entries...)
				b.StartTimer()
				for _, res := range m.Apply(index, record) {
					if res.Err != nil {
						b.Fatal(res.Err)
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*benchEntries), "ns/entry")
		})
	}
}
