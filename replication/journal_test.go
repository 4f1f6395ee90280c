package replication

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"muster/internal/fault"
)

func openTestJournal(t *testing.T, fs vfs.FS, dir string) *journal {
	t.Helper()
	j, err := openJournal(fs, dir, testLogger(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// fill stores records from..to, whose data says which they are.
func fill(t *testing.T, s raft.LogStore, from, to uint64) {
	t.Helper()
	g := quietLog(s, nil)
	for i := from; i <= to; i++ {
		if err := g.StoreLog(&raft.Log{Index: i, Term: i / 10, Data: fmt.Appendf(nil, "record %d", i)}); err != nil {
			t.Fatal(err)
		}
	}
}

// holds checks that a store's records are exactly from..to; 0, 0: none.
func holds(t *testing.T, when string, s raft.LogStore, from, to uint64) {
	t.Helper()
	first, err := s.FirstIndex()
	last, err2 := s.LastIndex()
	if first != from || last != to || err != nil || err2 != nil {
		t.Errorf("%s: it holds %d to %d (%v, %v), want %d to %d", when, first, last, err, err2, from, to)
	}
	g := quietLog(s, nil)
	for i := uint64(1); i <= to+5; i++ {
		var l raft.Log
		err := g.GetLog(i, &l)
		if in := i >= from && i <= to && to > 0; in && (err != nil || string(l.Data) != fmt.Sprint("record ", i) || l.Term != i/10) {
			t.Errorf("%s: record %d is %q of term %d, %v", when, i, l.Data, l.Term, err)
		} else if !in && !errors.Is(err, raft.ErrLogNotFound) {
			t.Errorf("%s: record %d: %v, want that it is not found", when, i, err)
		}
	}
}

// TestJournalIsALogStore has the journal do what the Raft library does, and the library's own store beside it.
func TestJournalIsALogStore(t *testing.T) {
	fs := vfs.NewMem()
	stores := map[string]raft.LogStore{"journal": openTestJournal(t, fs, "log"), "library": raft.NewInmemStore()}
	for name, s := range stores {
		holds(t, name+" empty", s, 0, 0)
		fill(t, s, 1, 100)
		holds(t, name+" filled", s, 1, 100)
		steps := []struct {
			name         string
			lo, hi       uint64
			first, last  uint64
			refill, from uint64
		}{
			{"cut at the head", 1, 40, 41, 100, 0, 0},
			{"cut at the tail", 91, 100, 41, 90, 0, 0},
			{"written anew", 81, 90, 41, 95, 95, 81},
			{"cut to one", 41, 94, 95, 95, 0, 0},
			{"cut to nothing", 95, 95, 0, 0, 0, 0},
		}
		for _, st := range steps {
			if err := s.DeleteRange(st.lo, st.hi); err != nil {
				t.Fatal(err)
			}
			if st.refill > 0 {
				fill(t, s, st.from, st.refill)
			}
			if j, ok := s.(*journal); ok || st.last > 0 { // the library's own forgets to reset its bounds
				holds(t, name+" "+st.name, s, st.first, st.last)
				if ok {
					_ = j.Close()
					s = openTestJournal(t, fs, "log")
					holds(t, name+" "+st.name+" and opened again", s, st.first, st.last)
				}
			}
		}
	}
}

func TestJournalKeepsVotesAndTimes(t *testing.T) {
	fs := vfs.NewMem()
	j := openTestJournal(t, fs, "log")
	if _, err := j.Get([]byte("x")); err == nil || err.Error() != "not found" {
		t.Errorf("a vote that was never cast: %v", err)
	}
	if _, err := j.GetUint64(keyTerm); err == nil || err.Error() != "not found" {
		t.Errorf("a term that was never set: %v", err)
	}
	at := time.Unix(1234, 5678)
	if err := errors.Join(j.Set([]byte("x"), []byte("n1")), j.SetUint64(keyTerm, 7),
		j.StoreLog(&raft.Log{Index: 3, Term: 2, Type: raft.LogNoop, Extensions: []byte("e"), AppendedAt: at})); err != nil {
		t.Fatal(err)
	}
	_ = j.Close()
	j = openTestJournal(t, fs, "log")
	defer j.Close()
	v, err := j.Get([]byte("x"))
	n, err2 := j.GetUint64(keyTerm)
	var l raft.Log
	err3 := j.GetLog(3, &l)
	if string(v) != "n1" || n != 7 || errors.Join(err, err2, err3) != nil {
		t.Errorf("%q %d %v %v %v", v, n, err, err2, err3)
	}
	if l.Term != 2 || l.Type != raft.LogNoop || string(l.Extensions) != "e" || !l.AppendedAt.Equal(at) || len(l.Data) != 0 {
		t.Errorf("the record came back as %+v", l)
	}
	if err := j.StoreLog(&raft.Log{Index: 4, Extensions: make([]byte, 1<<16)}); err == nil {
		t.Error("extensions that do not fit were taken")
	}
}

// TestJournalSurvivesCrashes: what StoreLogs returned for is there after a loss
// of power, whatever part of the rest is.
func TestJournalSurvivesCrashes(t *testing.T) {
	for _, keep := range []int{0, 50, 100} {
		fs, rng := vfs.NewCrashableMem(), rand.New(rand.NewPCG(1, uint64(keep)))
		if err := errors.Join(fs.MkdirAll("data", 0o700), syncDir(fs, "/")); err != nil { // as Open of the group does
			t.Fatal(err)
		}
		j := openTestJournal(t, fs, "data/log")
		last := uint64(0)
		for range 5 {
			fill(t, j, last+1, last+50)
			last += 50
			clone := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: keep, RNG: rng})
			_ = j.Close()
			fs, j = clone, openTestJournal(t, clone, "data/log")
			holds(t, fmt.Sprint("after a crash that keeps ", keep), j, 1, last)
		}
		_ = j.Close()
	}
}

const walBlock = 32 << 10 // bytes of a block of Pebble's log

// TestFlippedBitsOfJournal flips bits all over the journal's files: each time it
// is refused when it is opened or scanned, or gives out only what was written.
// Only where the flipped bit is in the last blocks of Pebble's log may the tail
// be missing: there it looks as if a write had been torn.
func TestFlippedBitsOfJournal(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good")
	j := openTestJournal(t, vfs.Default, good)
	for i := uint64(1); i <= 600; i++ {
		if err := quietLog(j, j).StoreLog(&raft.Log{Index: i, Data: fmt.Appendf(nil, "record %d%01000d", i, i)}); err != nil {
			t.Fatal(err)
		}
		if i == 300 { // half of it into a table
			if err := j.db.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = j.Close()
	files := map[string][]byte{}
	err := filepath.Walk(good, func(path string, st os.FileInfo, err error) error {
		if err == nil && st.Mode().IsRegular() && st.Size() > 0 {
			files[path[len(good):]], err = os.ReadFile(path)
		}
		return err
	})
	if err != nil || len(files) < 3 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	refused, whole := 0, 0
	for name, data := range files {
		for i := range 25 {
			at := i*len(data)/25 + i%(len(data)/25+1)
			if at >= len(data) {
				continue
			}
			bad := filepath.Join(dir, "bad")
			if err := os.CopyFS(bad, os.DirFS(good)); err != nil {
				t.Fatal(err)
			}
			changed := append([]byte(nil), data...)
			changed[at] ^= 1 << (i % 8)
			if err := os.WriteFile(bad+name, changed, 0o600); err != nil {
				t.Fatal(err)
			}
			tail := strings.HasSuffix(name, ".log") && at/walBlock >= len(data)/walBlock-1
			if journalReadsTrue(t, fmt.Sprint(name, " at ", at), bad, tail) {
				whole++
			} else {
				refused++
			}
			_ = os.RemoveAll(bad)
		}
	}
	t.Logf("%d damaged journals were refused, %d were whole", refused, whole)
	if refused == 0 {
		t.Error("no flipped bit was noticed")
	}
}

// journalReadsTrue reads a damaged journal of 600 records; false if it was refused.
func journalReadsTrue(t *testing.T, what, dir string, tail bool) bool {
	j, err := openJournal(vfs.Default, dir, testLogger(), nil)
	if err != nil {
		return false
	}
	defer j.Close()
	g := quietLog(j, j)
	if err := g.scan(0); err != nil {
		if !fault.Is(err, fault.Internal) {
			t.Errorf("%s: refused with %v", what, err)
		}
		return false
	}
	if first, last := g.sizes.first, g.sizes.first+uint64(len(g.sizes.ends))-1; first != 1 || last != 600 && !tail {
		t.Errorf("%s: it is taken for whole and holds %d to %d of 1 to 600", what, first, last)
	}
	for i := uint64(1); i <= 600; i++ {
		var l raft.Log
		if err := g.read(i, &l); err == nil && string(l.Data) != fmt.Sprintf("record %d%01000d", i, i) {
			t.Errorf("%s: record %d was given out changed", what, i)
		}
	}
	return true
}

func TestJournalIsHeldByOne(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	j := openTestJournal(t, vfs.Default, dir)
	defer j.Close()
	if second, err := openJournal(vfs.Default, dir, testLogger(), nil); err == nil || !strings.Contains(fault.Public(err), "another process") {
		_ = second.Close()
		t.Errorf("a second opening: %v", err)
	}
}

// fullFS fails all writes once it is full.
type fullFS struct {
	vfs.FS
	full *bool
}

type fullFile struct {
	vfs.File
	full *bool
}

func (f fullFS) wrap(file vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return fullFile{file, f.full}, nil
}

func (f fullFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return f.wrap(f.FS.Create(name, c))
}

func (f fullFS) ReuseForWrite(a, b string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return f.wrap(f.FS.ReuseForWrite(a, b, c))
}

func (f fullFile) Write(p []byte) (int, error) {
	if *f.full {
		return 0, errNoSpace
	}
	return f.File.Write(p)
}

// TestFullDiskEndsTheJournal: the write fails and is not acknowledged, the
// failure is final, and what was written before is there when there is space again.
func TestFullDiskEndsTheJournal(t *testing.T) {
	mem, full := vfs.NewCrashableMem(), false
	j := openTestJournal(t, fullFS{mem, &full}, "log")
	fill(t, j, 1, 10)
	full = true
	var exits []string
	g := quietLog(j, j)
	g.exit = func(s string) { exits = append(exits, s) }
	apart(func() { _ = g.StoreLog(&raft.Log{Index: 11, Data: []byte("record 11")}) })
	if len(exits) != 1 || !strings.Contains(exits[0], "no space") {
		t.Fatalf("exits %q", exits)
	}
	full = false // the process ended; its successor finds space
	holds(t, "with space again", openTestJournal(t, mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))}), "log"), 1, 10)
}
