package replication

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"muster/fsm"
	"muster/internal/store"
	"muster/log"
	"muster/replication/mesh"
	"muster/replication/pki"
)

// The benchmarks compare the two log stores on the disk below the temporary
// folder: go test ./replication -run xxx -bench . -benchtime 3s

// benchStores are the log stores by name: what openLogStore opens for a log of that name.
var benchStores = map[string]string{"bolt": ControlLog, "journal": MessageLog}

// BenchmarkStoreLog is one synced write of a record.
func BenchmarkStoreLog(b *testing.B) {
	for _, kind := range []string{"bolt", "journal"} {
		for _, size := range []int{400, 25 << 10} {
			b.Run(fmt.Sprintf("%s/%d", kind, size), func(b *testing.B) {
				logs, err := openLogStore(vfs.Default, b.TempDir(), benchStores[kind], testLogger(), nil)
				if err != nil {
					b.Fatal(err)
				}
				defer logs.Close()
				g, data := quietLog(logs, logs), noise(size)
				b.ResetTimer()
				for i := range b.N {
					if err := g.StoreLog(&raft.Log{Index: uint64(i + 1), Term: 1, Data: data}); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkScan is the check of a journal of 96 MiB before the group opens, in records of a message or of a full batch.
func BenchmarkScan(b *testing.B) {
	for _, size := range []int{400, 25 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			dir, total := b.TempDir(), 96<<20
			j, err := openJournal(vfs.Default, dir, testLogger(), nil)
			if err != nil {
				b.Fatal(err)
			}
			var batch []*raft.Log
			for i := 0; i < total/size; i++ {
				if batch = append(batch, &raft.Log{Index: uint64(i + 1), Term: 1, Data: noise(size)}); len(batch) == 256 {
					if err := quietLog(j, j).StoreLogs(batch); err != nil {
						b.Fatal(err)
					}
					batch = batch[:0]
				}
			}
			_ = j.Close()
			for b.Loop() {
				j, err := openJournal(vfs.Default, dir, testLogger(), nil)
				if err != nil {
					b.Fatal(err)
				}
				if err := quietLog(j, j).scan(0); err != nil {
					b.Fatal(err)
				}
				_ = j.Close()
			}
		})
	}
}

// noise is data that does not compress.
func noise(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

// benchCluster starts n nodes of a log in this process, over loopback TCP and files.
func benchCluster(b *testing.B, name string, n int) []*Group {
	b.Helper()
	var addrs []string
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		addrs = append(addrs, ln.Addr().String())
		_ = ln.Close()
	}
	var members []Member
	for i := range n {
		members = append(members, Member{ID: uint32(i + 1)})
	}
	var groups []*Group
	for i := range n {
		dir := b.TempDir()
		db, err := store.Open(filepath.Join(dir, "state"), store.Options{CacheBytes: 32 << 20})
		if err != nil {
			b.Fatal(err)
		}
		m, err := fsm.New(db, log.Control, benchModule())
		if err != nil {
			b.Fatal(err)
		}
		ms := mesh.New(mesh.Config{Identity: &pki.Identity{ClusterID: "test", NodeID: uint32(i + 1)}, Listen: addrs[i],
			AddrOf: func(id uint32) (string, bool) { return addrs[id-1], true }, Logger: testLogger(), Plain: true})
		if err := ms.Start(); err != nil {
			b.Fatal(err)
		}
		if i == 0 {
			logs, err := openLogStore(vfs.Default, dir, name, testLogger(), nil)
			if err == nil {
				err = errors.Join(bootstrapLog(quietLog(logs, logs), 1), logs.Close())
			}
			if err != nil {
				b.Fatal(err)
			}
		}
		g, err := Open(Config{Name: name, NodeID: uint32(i + 1), Dir: dir, Store: db, Machine: m, Mesh: ms, Logger: testLogger(),
			Members: func() []Member { return members }})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = g.Close(); _ = ms.Close(); _ = db.Close() })
		groups = append(groups, g)
	}
	for {
		ok := false
		for _, g := range groups {
			ok = ok || g.IsLeader() && len(g.Status().Voters) == n
		}
		if ok {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	return groups
}

var benchTable = fsm.NewTable("bench")

// benchModule writes one row for each entry.
func benchModule() fsm.Module {
	return fsm.Module{Name: "fsm/config", Tables: []*fsm.Table{benchTable}, Handlers: map[log.Kind]fsm.Handler{
		log.SettingSet: func(tx *fsm.Tx, e *log.Entry) error {
			tx.Put(benchTable, fmt.Appendf(nil, "%016x%s", tx.Index(), e.Body[:8]), e.Body)
			return nil
		},
	}}
}

// BenchmarkPropose is an entry of 300 bytes, confirmed, with 1, 64 and 512
// proposers spread over the nodes; cpu-µs/op is of all nodes together.
func BenchmarkPropose(b *testing.B) {
	for _, nodes := range []int{1, 3} {
		for _, kind := range []string{"bolt", "journal"} {
			for _, proposers := range []int{1, 64, 512} {
				b.Run(fmt.Sprintf("%d/%s/%d", nodes, kind, proposers), func(b *testing.B) {
					groups := benchCluster(b, benchStores[kind], nodes)
					before := cpuTime()
					b.ResetTimer()
					propose(b, groups, proposers)
					b.StopTimer()
					b.ReportMetric(float64(cpuTime()-before)/float64(b.N)/1000, "cpu-µs/op")
				})
			}
		}
	}
}

// propose has b.N entries proposed.
func propose(b *testing.B, groups []*Group, proposers int) {
	b.Helper()
	var wg sync.WaitGroup
	var next atomic.Int64
	body := noise(300)
	for w := range proposers {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				own := append([]byte(nil), body...)
				binary.BigEndian.PutUint64(own, uint64(i))
				if _, err := groups[w%len(groups)].Propose(context.Background(), &log.Entry{Kind: log.SettingSet, Body: own}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// cpuTime is what this process has used, in nanoseconds.
func cpuTime() int64 {
	var ru syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &ru)
	return ru.Utime.Nano() + ru.Stime.Nano()
}
