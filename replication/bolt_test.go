package replication

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"

	"muster/internal/fault"
)

func TestLogFileIsHeldByOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), logFile)
	first, err := openBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openBolt(path); !fault.Is(err, fault.Conflict) || !strings.Contains(fault.Public(err), "another process") {
		t.Errorf("a second opening: %v", err)
	}
	_ = first.Close()
	again, err := openBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	_ = again.Close()
	if st, _ := os.Stat(path); st.Mode().Perm() != 0o600 {
		t.Errorf("the log file has mode %v", st.Mode())
	}
}

// TestFlippedBits flips bits all over a log file: each time it is refused, or gives out only what was written.
func TestFlippedBits(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, logFile)
	bolt, err := openBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	want := map[uint64]string{}
	g := quietLog(bolt, bolt)
	var logs []*raft.Log
	for i := uint64(1); i <= 40; i++ {
		want[i] = strings.Repeat(fmt.Sprint("record ", i, " "), 40)
		logs = append(logs, &raft.Log{Index: i, Term: 1, Data: []byte(want[i])})
	}
	if err := g.StoreLogs(logs); err != nil {
		t.Fatal(err)
	}
	_ = bolt.Close()
	good, _ := os.ReadFile(path)
	refused := 0
	for i := range 150 {
		bad := append([]byte(nil), good...)
		bad[(i*len(bad)/150+i*7)%len(bad)] ^= 1 << (i % 8)
		file := filepath.Join(dir, "bad")
		if err := os.WriteFile(file, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if !readsTrue(t, file, want) {
			refused++
		}
	}
	if refused == 0 {
		t.Error("no flipped bit was noticed")
	}
}

// readsTrue reads a log file; false if it was refused.
func readsTrue(t *testing.T, file string, want map[uint64]string) (ok bool) {
	defer func() {
		if recover() != nil { // bbolt panics at its own checks when opening
			ok = false
		}
	}()
	bolt, err := raftboltdb.New(raftboltdb.Options{Path: file, BoltOptions: &bbolt.Options{ReadOnly: true}})
	if err != nil {
		return false
	}
	defer bolt.Close()
	g := quietLog(bolt, bolt)
	if g.scan(0) != nil {
		return false
	}
	for i := range want {
		var l raft.Log
		if g.GetLog(i, &l) == nil && string(l.Data) != want[i] {
			t.Errorf("record %d was given out changed", i)
		}
	}
	return true
}

func TestVotesAreKept(t *testing.T) {
	bolt, err := openBolt(filepath.Join(t.TempDir(), logFile))
	if err != nil {
		t.Fatal(err)
	}
	defer bolt.Close()
	g := quietLog(bolt, bolt)
	if err := errors.Join(g.Set([]byte("a"), []byte("x")), g.SetUint64(keyTerm, 7)); err != nil {
		t.Fatal(err)
	}
	a, err := g.Get([]byte("a"))
	n, err2 := g.GetUint64(keyTerm)
	if string(a) != "x" || n != 7 || err != nil || err2 != nil {
		t.Errorf("%q %d %v %v", a, n, err, err2)
	}
	if err := bootstrapLog(g, 1); err != nil {
		t.Fatal(err)
	}
	if err := bootstrapLog(g, 1); !fault.Is(err, fault.Conflict) {
		t.Errorf("a second beginning: %v", err)
	}
}

func TestSuspendedProcessIsNoStall(t *testing.T) {
	var exits []string
	w := &watchdog{warn: 3 * time.Second, limit: 5 * time.Second, trouble: &trouble{}, exit: func(s string) { exits = append(exits, s) }}
	o := &watched{w: w, what: "x"}
	o.timer = time.AfterFunc(time.Hour, func() {})
	o.look() // however long the process slept, it wakes to one look
	if reason, _ := w.trouble.reason(); reason != "" || len(exits) != 0 {
		t.Errorf("after one look: %q, %q", reason, exits)
	}
	o.stop()
	o.look()
	if o.elapsed != watchStep {
		t.Error("a finished write is still watched")
	}
}

func TestProgress(t *testing.T) {
	var p progress
	p.advance(5)
	p.advance(3)
	if err := p.wait(t.Context(), 5); err != nil {
		t.Error(err)
	}
	var wg sync.WaitGroup
	for i := range uint64(50) {
		wg.Go(func() {
			if err := p.wait(t.Context(), 6+i); err != nil {
				t.Error(err)
			}
		})
	}
	for i := range uint64(60) {
		p.advance(i)
	}
	wg.Wait()
	if len(p.waiters) != 0 {
		t.Errorf("%d waiters are left", len(p.waiters))
	}
}

func TestRaftLogsThroughOurs(t *testing.T) {
	var b strings.Builder
	l := raftLogger(slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelInfo})), "control")
	l.Info("entering follower state", "follower", 1)
	l.Warn("heartbeat timeout reached", "peers", hclog.Fmt("%d", 3))
	l.Error("failed to take snapshot", "error", "x")
	got := b.String()
	if strings.Contains(got, "entering") || !strings.Contains(got, "raft_heartbeat_timeout_reached") || !strings.Contains(got, "level=WARN msg=raft_failed_to_take_snapshot") ||
		!strings.Contains(got, "log=control") {
		t.Errorf("logged %s", got)
	}
}

func TestServerIDs(t *testing.T) {
	for _, n := range []uint32{1, 42, 1<<32 - 1} {
		if got := nodeOf(serverID(n)); got != n {
			t.Errorf("%d came back as %d", n, got)
		}
	}
	for _, s := range []string{"", "x", "-1", "4294967296"} {
		if got := nodeOf(s); got != 0 {
			t.Errorf("nodeOf(%q) = %d", s, got)
		}
	}
}
