package replication

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"muster/internal/fault"
	"muster/internal/store"
)

// soundLog makes a log file with records and votes, and returns its contents.
func soundLog(t *testing.T, path string, records int) []byte {
	t.Helper()
	bolt, err := openBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	g := quietLog(bolt, bolt)
	var logs []*raft.Log
	for i := 1; i <= records; i++ {
		logs = append(logs, &raft.Log{Index: uint64(i), Term: 7, Data: []byte(strings.Repeat(fmt.Sprint("record ", i, " "), 60))})
	}
	if err := errors.Join(g.StoreLogs(logs), g.SetUint64(keyTerm, 7), g.SetUint64([]byte("LastVoteTerm"), 7), g.Set([]byte("LastVoteCand"), []byte("2")),
		g.DeleteRange(1, 5), bolt.Close()); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// useLog does to a log file what a node does; false: it was refused, with the
// file and the remedy. What is given out must be what was written.
func useLog(t *testing.T, what, path string, records, writes int) bool {
	t.Helper()
	bolt, err := openBolt(path)
	if err == nil {
		defer bolt.Close()
		g := quietLog(bolt, bolt)
		g.where = path
		if err = g.scan(5); err == nil {
			term, e1 := g.GetUint64(keyTerm)
			vote, e2 := g.Get([]byte("LastVoteCand"))
			if err = errors.Join(e1, e2); err == nil && (term != 7 || string(vote) != "2") {
				t.Errorf("%s: term %d, vote %q were given out", what, term, vote)
			}
			if err != nil {
				return false
			}
		}
		for i := records + 1; i <= records+writes && err == nil; i++ { // fills free pages, and makes the file grow
			err = g.StoreLog(&raft.Log{Index: uint64(i), Term: 7, Data: make([]byte, 3000)})
		}
		if err == nil {
			return true
		}
	}
	text := fault.Public(err)
	if !fault.Is(err, fault.Internal) || !strings.Contains(text, path) || !strings.Contains(text, store.Remedy) {
		t.Errorf("%s: refused with %q (%v)", what, text, err)
	}
	return false
}

// TestCutLogFile cuts a log file at many places: it is refused before anything
// runs on it, since bbolt reads past the end of what is left.
func TestCutLogFile(t *testing.T) {
	const records = 200
	dir := t.TempDir()
	path := filepath.Join(dir, "bad")
	good := soundLog(t, filepath.Join(dir, logFile), records)
	used := len(good)
	for used > 1 && good[used-1] == 0 {
		used--
	}
	refused := 0
	for cut := 1; cut < used; cut += used/60 + 1 {
		if err := os.WriteFile(path, good[:used-cut], 0o600); err != nil {
			t.Fatal(err)
		}
		if useLog(t, fmt.Sprint("cut by ", cut), path, records, 30) {
			t.Errorf("a log file of %d bytes in use was taken without the last %d", used, cut)
		}
		refused++
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if !useLog(t, "whole", path, records, 30) || refused < 10 {
		t.Errorf("the whole file was refused, or only %d cuts were tried", refused)
	}
}

// TestFlippedVotes flips every bit of the votes in a log file: a node must not vote by what it never kept.
func TestFlippedVotes(t *testing.T) {
	const records = 20
	dir := t.TempDir()
	path := filepath.Join(dir, "bad")
	good := soundLog(t, filepath.Join(dir, logFile), records)
	refused := 0
	for _, name := range []string{"CurrentTerm", "LastVoteCand"} {
		for at := 0; ; at++ {
			i := strings.Index(string(good[at:]), name)
			if i < 0 {
				break
			}
			at += i
			for bit := range 8 * (len(name) + 12) { // the value follows the key
				bad := append([]byte(nil), good...)
				bad[at+bit/8] ^= 1 << (bit % 8)
				if err := os.WriteFile(path, bad, 0o600); err != nil {
					t.Fatal(err)
				}
				if !useLog(t, fmt.Sprint(name, " bit ", bit), path, records, 0) {
					refused++
				}
			}
		}
	}
	if refused == 0 {
		t.Error("no flipped bit was noticed")
	}
}

// TestForgottenTerm: a log whose records are of a later term than is kept was damaged, or is not this node's.
func TestForgottenTerm(t *testing.T) {
	for term, want := range map[uint64]bool{0: false, 6: false, 7: true, 8: true} {
		mem := raft.NewInmemStore()
		g := quietLog(mem, mem)
		if err := errors.Join(g.StoreLog(&raft.Log{Index: 1, Term: 7}), g.SetUint64(keyTerm, term)); err != nil {
			t.Fatal(err)
		}
		if err := g.scan(0); (err == nil) != want {
			t.Errorf("records of term 7, kept is %d: %v", term, err)
		}
	}
	mem := raft.NewInmemStore()
	if g := quietLog(mem, mem); g.scan(0) != nil {
		t.Error("an empty log needs no term")
	}
}
