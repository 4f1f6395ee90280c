package main

import (
	"crypto/tls"
	"flag"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"muster/internal/certs"
	"muster/internal/simnode"
	"muster/replication"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "simulate only this seed, and print the trace")
	seedsFlag = flag.Int("seeds", 200, "how many seeds to simulate")
	fromFlag  = flag.Uint64("from", 1, "the first of them")
	liveFlag  = flag.Bool("live", false, "print the trace while it grows")
)

// simTiming makes snapshots frequent, so that nodes that were away need one, and
// idle leaders quieter than they are: most of a simulation was their empty messages.
var simTiming = replication.Timing{SnapshotInterval: 2 * time.Second, SnapshotThreshold: 48, TrailingLogs: 24, Commit: 20 * time.Millisecond}

// TestSim plays seeded schedules of faults under load on virtual clusters and checks the promises after each.
// A failing seed is played again with: go test ./cmd/musterd -run TestSim -seed N
func TestSim(t *testing.T) {
	if *seedFlag != 0 {
		simulate(t, *seedFlag, true)
		return
	}
	var all tally
	t.Run("seeds", func(t *testing.T) {
		for i := range uint64(*seedsFlag) {
			seed := *fromFlag + i
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				t.Parallel()
				all.add(simulate(t, seed, false))
			})
		}
	})
	t.Log(all.String())
}

func simulate(t *testing.T, seed uint64, verbose bool) (f simnode.Figures) {
	plan := simnode.Draw(seed)
	synctest.Test(t, func(t *testing.T) {
		o := simnode.Options{Seed: seed, Features: features, Cert: simCert(t), Raft: simTiming}
		if *liveFlag {
			o.Live = func(line string) { fmt.Println(line) }
		}
		simnode.Simulate(t, o, plan, func(got simnode.Figures, c *simnode.Cluster) {
			f = got
			wrong := c.History.Violations()
			for _, v := range wrong {
				t.Errorf("%s", v)
			}
			if len(wrong) > 0 || verbose {
				t.Logf("seed %d\n%s\n%s\n%+v", seed, plan, c.Trace.Tail(3000), got)
			}
		})
	})
	return f
}

// simCert is a certificate in the bubble's year.
func simCert(t *testing.T) tls.Certificate {
	t.Helper()
	ca, err := certs.NewCA("sim", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.Issue(time.Now(), simnode.Domain)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// tally sums the figures of all seeds.
type tally struct {
	mu                          sync.Mutex
	seeds, chats, confirmed     int
	unknown, doubtful           int
	serve, presence, leaderless time.Duration
}

func (a *tally) add(f simnode.Figures) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seeds++
	a.chats += f.Chats
	a.confirmed += f.Confirmed
	a.unknown += f.Unknown
	a.doubtful += f.Doubtful
	a.serve, a.presence, a.leaderless = max(a.serve, f.Serve), max(a.presence, f.Presence), max(a.leaderless, f.Leaderless)
}

// String tells what the seeds amounted to.
func (a *tally) String() string {
	return fmt.Sprintf("%d seeds: %d messages (%d of doubtful fate by a fault), %d changes confirmed, %d of unknown outcome; at worst all served after %v, presence was right after %v, no leader for %v",
		a.seeds, a.chats, a.doubtful, a.confirmed, a.unknown, a.serve, a.presence, a.leaderless)
}
