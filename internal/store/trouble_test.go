package store

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"muster/fsm"
	"muster/internal/fault"
)

// fates collects what a store says it cannot go on with.
type fates struct {
	mu   sync.Mutex
	list []*fault.Error
}

func (f *fates) add(e *fault.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = append(f.list, e)
}

func (f *fates) first() *fault.Error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.list) == 0 {
		return nil
	}
	return f.list[0]
}

func mute() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

const keys = 400 // of a filled store

func value(i int) string { return strings.Repeat(fmt.Sprint(i), 200) }

// filled makes a store with a table file and a write-ahead log in a folder.
func filled(t *testing.T, dir string) {
	t.Helper()
	db, err := Open(dir, Options{Logger: mute()})
	if err != nil {
		t.Fatal(err)
	}
	for i := range keys {
		if err := db.Apply([]fsm.Op{{Key: fmt.Appendf(nil, "key %d", i), Value: []byte(value(i))}}); err != nil {
			t.Fatal(err)
		}
		if i == 300 {
			if err := db.Pebble().Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func one(t *testing.T, pattern string) string {
	t.Helper()
	list, err := filepath.Glob(pattern)
	if err != nil || len(list) == 0 {
		t.Fatalf("%s: %v, %v", pattern, list, err)
	}
	return list[len(list)-1]
}

// TestDamageIsTold spoils files of a store. Whether it is found when the store
// is opened, read, or rewritten by Pebble itself, it is said once, with the file and the remedy, and nothing panics.
func TestDamageIsTold(t *testing.T) {
	cut := func(b []byte) []byte { return b[:len(b)/2] }
	flip := func(b []byte) []byte { b[len(b)/3] ^= 4; return b }
	for _, tc := range []struct {
		name, pattern string
		spoil         func([]byte) []byte
	}{
		{"a bit of a table", "*.sst", flip},
		{"a table cut short", "*.sst", cut},
		{"a table that is gone", "*.sst", nil},
		{"a bit of the manifest", "MANIFEST-*", func(b []byte) []byte { b[len(b)/4] ^= 4; return b }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			filled(t, dir)
			if !spoiled(t, dir, tc.pattern, tc.spoil) {
				t.Fatal("nobody noticed")
			}
		})
	}
}

// spoiled spoils a file of a filled store (nil: removes it) and reads all keys:
// it reports whether that was noticed, and fails the test if it was not told well, or something was lost unnoticed.
func spoiled(t *testing.T, dir, pattern string, spoil func([]byte) []byte) bool {
	t.Helper()
	file := one(t, filepath.Join(dir, "gen-1", pattern))
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if spoil != nil {
		if err := os.WriteFile(file, spoil(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var f fates
	db, err := Open(dir, Options{Logger: mute(), Fatal: f.add})
	lost := 0
	if err == nil {
		for i := 0; i < keys && err == nil; i++ {
			var v []byte
			if v, _, err = db.Get(fmt.Appendf(nil, "key %d", i)); string(v) != value(i) {
				lost++
			}
		}
		_ = db.Close()
	} else if !Damaged(err) && spoil != nil {
		t.Errorf("opening: %v, which is not called damage", err)
	}
	text := fault.Public(err)
	if e := f.first(); e != nil {
		if text = fault.Public(e); !Damaged(e) {
			t.Errorf("told: %v, which is not called damage", e)
		}
	} else if err == nil {
		if lost > 0 {
			t.Errorf("%d keys are lost, and nobody noticed", lost)
		}
		return false
	}
	if !strings.Contains(text, dir) || !strings.Contains(text, "damaged") || !strings.Contains(text, Remedy) || strings.ContainsAny(text, "\n\t") {
		t.Errorf("said: %q", text)
	}
	return true
}

// TestManifestDamage: Pebble takes a last record of the manifest that does not
// fit its checksum for one that was being written, and goes on with what was before; nothing is lost by that.
func TestManifestDamage(t *testing.T) {
	for at := 0; at < 110; at += 5 {
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			dir := t.TempDir()
			filled(t, dir)
			spoiled(t, dir, "MANIFEST-*", func(b []byte) []byte { b[min(at, len(b)-1)] ^= 4; return b })
		})
	}
}

// TestDamageInACompaction: what Pebble comes upon by itself, in a goroutine of its own, panics there if nobody takes it.
func TestDamageInACompaction(t *testing.T) {
	dir := t.TempDir()
	filled(t, dir)
	file := one(t, filepath.Join(dir, "gen-1", "*.sst"))
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/3] ^= 4
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	told := make(chan *fault.Error, 100)
	go func() { // opening compacts, too
		db, err := Open(dir, Options{Logger: mute(), Fatal: func(e *fault.Error) {
			told <- e
			select {} // as a process that is ending
		}})
		if err == nil {
			err = db.Pebble().Compact(t.Context(), []byte("a"), []byte("z"), false)
		}
		t.Error("it went on", err)
	}()
	if e := <-told; !Damaged(e) || !strings.Contains(fault.Public(e), filepath.Base(file)) {
		t.Errorf("told %v", e)
	}
}

// fullFS fails writes while it is full.
type fullFS struct {
	vfs.FS
	full *bool
}

func (f fullFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if *f.full {
		return nil, &os.PathError{Op: "create", Path: name, Err: syscall.ENOSPC}
	}
	file, err := f.FS.Create(name, c)
	return fullFile{file, f.full}, err
}

type fullFile struct {
	vfs.File
	full *bool
}

func (f fullFile) Write(p []byte) (int, error) {
	if *f.full {
		return 0, &os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}
	}
	return f.File.Write(p)
}

// TestFailedWriteIsTold: a write that fails is told before the writer's panic, which only a process that lives on sees.
func TestFailedWriteIsTold(t *testing.T) {
	full := false
	var f fates
	db, err := Open("data", Options{FS: fullFS{vfs.NewMem(), &full}, Logger: mute(), Fatal: f.add})
	if err != nil {
		t.Fatal(err)
	}
	full = true
	panicked := func() (p any) {
		defer func() { p = recover() }()
		if err := db.Apply([]fsm.Op{{Key: []byte("k"), Value: []byte("v")}}); err == nil {
			_ = db.Flush()
		}
		return nil
	}()
	if e := f.first(); e == nil || !strings.Contains(fault.Public(e), "no space left") || !strings.Contains(fault.Public(e), "data") || Damaged(e) || panicked == nil {
		t.Errorf("told %v, panicked with %v", e, panicked)
	}
}

func TestOpenSaysWhy(t *testing.T) {
	full := true
	for name, tc := range map[string]struct {
		open func(dir string) error
		code fault.Code
		text string
	}{
		"the disk is full": {func(string) error {
			_, err := Open("data", Options{FS: fullFS{vfs.NewMem(), &full}, Logger: mute()})
			return err
		}, fault.Internal, "is full"},
		"another has it open": {func(dir string) error {
			db, err := Open(dir, Options{Logger: mute()})
			if err != nil {
				return err
			}
			defer db.Close()
			_, err = Open(dir, Options{Logger: mute()})
			return err
		}, fault.Conflict, "another process"},
	} {
		err := tc.open(t.TempDir())
		if !fault.Is(err, tc.code) || !strings.Contains(fault.Public(err), tc.text) || Damaged(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestErrorsAreFew: a flush that fails is tried again at once, thousands of times a second.
func TestErrorsAreFew(t *testing.T) {
	var b strings.Builder
	d := &DB{dir: "data", opts: Options{Logger: slog.New(slog.NewTextHandler(&b, nil))}}
	q := d.quiet()
	for range 1000 {
		q.Errorf("background error: %v", "x\n\ty")
	}
	if n := strings.Count(b.String(), "\n"); n < 1 || n > 2 || !strings.Contains(b.String(), "x y") {
		t.Errorf("%d lines: %s", n, b.String())
	}
}
