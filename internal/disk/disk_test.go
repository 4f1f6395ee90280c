package disk

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const mb = 1 << 20

func TestLevels(t *testing.T) {
	const r = 256 * mb
	for _, tc := range []struct {
		name string
		was  Level
		free int64
		want Level
	}{
		{"much", Plenty, 10 * r, Plenty},
		{"twice the reserve", Plenty, 2 * r, Plenty},
		{"a byte less", Plenty, 2*r - 1, Low},
		{"below the reserve", Plenty, r - 1, Full},
		{"below half", Plenty, r/2 - 1, Critical},
		{"below a quarter", Plenty, r/4 - 1, Spent},
		{"nothing", Plenty, 0, Spent},
		{"low stays until a quarter above", Low, 2*r + r/2 - 1, Low},
		{"and ends there", Low, 2*r + r/2, Plenty},
		{"full stays", Full, r + r/4 - 1, Full},
		{"full ends in low", Full, r + r/4, Low},
		{"critical stays", Critical, r/2 + r/8 - 1, Critical},
		{"critical ends in full", Critical, r/2 + r/8, Full},
		{"spent stays", Spent, r/4 + r/16 - 1, Spent},
		{"spent ends in critical", Spent, r/4 + r/16, Critical},
		{"from spent to plenty at once", Spent, 10 * r, Plenty},
		{"from full, where low still holds", Full, 2*r + 1, Low},
		{"it gets worse at once", Low, 0, Spent},
	} {
		if got := levelOf(tc.was, tc.free, r); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

// volume is a file system in memory that can be full, and counts what the reserve file takes.
type volume struct {
	vfs.FS
	mu   sync.Mutex
	size int64            // of the volume
	used map[string]int64 // by file, as far as written through here
	deaf bool             // GetDiskUsage fails
}

func newVolume(size int64) *volume {
	return &volume{FS: vfs.NewMem(), size: size, used: map[string]int64{}}
}

func (v *volume) take(name string, n int64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.free() < n {
		return &os.PathError{Op: "write", Path: name, Err: syscall.ENOSPC}
	}
	v.used[name] += n
	return nil
}

func (v *volume) free() int64 {
	left := v.size
	for _, n := range v.used {
		left -= n
	}
	return left
}

func (v *volume) GetDiskUsage(string) (vfs.DiskUsage, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.deaf {
		return vfs.DiskUsage{}, vfs.ErrUnsupported
	}
	return vfs.DiskUsage{AvailBytes: uint64(v.free()), TotalBytes: uint64(v.size)}, nil
}

func (v *volume) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := v.FS.Create(name, c)
	return &file{f, v, name}, err
}

func (v *volume) Remove(name string) error {
	v.mu.Lock()
	delete(v.used, name)
	v.mu.Unlock()
	return v.FS.Remove(name)
}

type file struct {
	vfs.File
	v    *volume
	name string
}

func (f *file) Write(p []byte) (int, error) {
	if err := f.v.take(f.name, int64(len(p))); err != nil {
		return 0, err
	}
	return f.File.Write(p)
}

func (f *file) Preallocate(_, n int64) error { return f.v.take(f.name, n) }

// guarded is a guard with a clock and a record of what it told.
type guarded struct {
	*Guard
	v    *volume
	now  time.Time
	told []Level
}

func guard(t *testing.T, v *volume, reserve int64) *guarded {
	t.Helper()
	if err := v.MkdirAll("data", 0o700); err != nil {
		t.Fatal(err)
	}
	g := &guarded{v: v, now: time.Unix(1000, 0)}
	g.Guard = New(Options{FS: v, Dirs: []string{"data"}, Reserve: func() int64 { return reserve }, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
		OnChange: func(s State) { g.told = append(g.told, s.Level) }, Now: func() time.Time { return g.now }})
	return g
}

// TestReserveSavesAWrite: a write that meets a full disk succeeds with the room
// of the reserve file, the level says so at once, and all is as before when there is room again.
func TestReserveSavesAWrite(t *testing.T) {
	g := guard(t, newVolume(2000*mb), 256*mb)
	g.keep()
	if g.held != 128*mb || g.v.used["data/reserve"] != 128*mb {
		t.Fatalf("the reserve file has %d bytes, %v on the volume", g.held, g.v.used)
	}
	log, err := g.FS().Create("data/log", "log")
	if err != nil {
		t.Fatal(err)
	}
	g.v.used["ballast"] = g.v.free()
	if n, err := log.Write(bytes.Repeat([]byte("x"), mb)); n != mb || err != nil {
		t.Fatalf("a write into a full disk: %d, %v", n, err)
	}
	if s := g.State(); s.Level != Critical || s.Free != 128*mb {
		t.Errorf("afterwards: %v", s)
	}
	if g.keep(); g.v.used["data/reserve"] != 0 {
		t.Error("the reserve file was made anew in a full disk")
	}
	g.v.used["ballast"] += 127 * mb
	if _, err := log.Write([]byte("y")); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("without a reserve: %v, want that the disk is full", err)
	}
	delete(g.v.used, "ballast")
	if s := g.Look(); s.Level != Critical {
		t.Errorf("right after a failed write: %v, though nobody knows what failed it", s)
	}
	g.now = g.now.Add(struckTime)
	if s := g.Look(); s.Level != Plenty || s.Reason() != "" {
		t.Errorf("with room again: %v %q", s, s.Reason())
	}
	if g.keep(); g.v.used["data/reserve"] != 128*mb {
		t.Error("the reserve file was not made anew")
	}
	if want := []Level{Critical, Spent, Critical, Plenty}; !equal(g.told, want) {
		t.Errorf("told %v, want %v", g.told, want)
	}
}

func equal(a, b []Level) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// TestReserveIsGivenUpInTime: the file goes when next to nothing is left, before a write fails.
func TestReserveIsGivenUpInTime(t *testing.T) {
	g := guard(t, newVolume(2000*mb), 256*mb)
	g.turn()
	for _, s := range []struct {
		free, reserve int64
		want          Level
	}{{300, 128, Low}, {65, 128, Critical}, {10, 0, Critical}, {60, 0, Spent}, {1000, 128, Plenty}} {
		delete(g.v.used, "ballast")
		g.v.used["ballast"] = g.v.free() - s.free*mb
		g.turn()
		if g.v.used["data/reserve"] != s.reserve*mb || g.State().Level != s.want {
			t.Errorf("%d MB free: reserve of %d bytes, %v", s.free, g.v.used["data/reserve"], g.State())
		}
	}
}

// TestReserveNeedsRoom: the file is made only where it does not make the disk low, and one of an earlier process counts.
func TestReserveNeedsRoom(t *testing.T) {
	g := guard(t, newVolume(760*mb), 256*mb)
	if g.keep(); g.held != 0 {
		t.Error("a reserve file was made though little room is left beside it")
	}
	if g.Release() {
		t.Error("a reserve that is not there was given up")
	}
	f, err := g.v.Create("data/reserve", "reserve")
	if err == nil {
		err = errors.Join(f.Preallocate(0, 128*mb), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	if again := guard(t, g.v, 256*mb); !again.Release() || g.v.used["data/reserve"] != 0 {
		t.Error("the reserve of an earlier process was not given up")
	}
}

func TestReasons(t *testing.T) {
	for free, want := range map[int64]string{600 * mb: "", 300 * mb: "disk nearly full: free 300 MB in data", 12 * mb: "disk full: free 12 MB in data, of 256 MB"} {
		if got := guard(t, newVolume(free), 256*mb).State().Reason(); !strings.HasPrefix(got, want) || (got == "") != (want == "") {
			t.Errorf("%d MB free: %q, want %q", free/mb, got, want)
		}
	}
	v := newVolume(0)
	v.deaf = true
	g := guard(t, v, 256*mb)
	if s := g.State(); s.Level != Plenty {
		t.Errorf("a file system that cannot tell: %v", s)
	}
	g.Run(t.Context()) // returns: there is nothing to look at
}

// TestRealDisk: the reserve file takes room of a real file system, as far as that can set it aside.
func TestRealDisk(t *testing.T) {
	dir := t.TempDir()
	g := New(Options{FS: vfs.Default, Dirs: []string{dir}, Reserve: func() int64 { return 2 * mb }})
	if g.State().Level != Plenty {
		t.Skip("this disk is full")
	}
	g.keep()
	info, err := os.Stat(filepath.Join(dir, reserve))
	if err != nil {
		t.Fatal(err)
	}
	if blocks := info.Sys().(*syscall.Stat_t).Blocks * 512; blocks < mb {
		t.Logf("the file system sets nothing aside: %d bytes", blocks)
	}
	if !g.Release() {
		t.Error("it was not given up")
	}
	if _, err := os.Stat(filepath.Join(dir, reserve)); !os.IsNotExist(err) {
		t.Errorf("after giving up: %v", err)
	}
}
