package store_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"muster/fsm"
	"muster/internal/fault"
	"muster/internal/store"
)

func open(t *testing.T, dir string, opts store.Options) *store.DB {
	t.Helper()
	db, err := store.Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func put(t *testing.T, db *store.DB, pairs ...string) {
	t.Helper()
	var ops []fsm.Op
	for i := 0; i < len(pairs); i += 2 {
		ops = append(ops, fsm.Op{Key: []byte(pairs[i]), Value: []byte(pairs[i+1])})
	}
	if err := db.Apply(ops); err != nil {
		t.Fatal(err)
	}
}

// dump renders the rows of [lower, upper).
func dump(t *testing.T, r fsm.StoreReader, lower, upper string) string {
	t.Helper()
	var low, up []byte
	if lower != "" {
		low = []byte(lower)
	}
	if upper != "" {
		up = []byte(upper)
	}
	var out []string
	err := r.Scan(low, up, func(k, v []byte) bool {
		out = append(out, fmt.Sprintf("%s=%s", k, v))
		return len(out) < 4
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, " ")
}

func TestReadAndWrite(t *testing.T) {
	db := open(t, "data", store.Options{FS: vfs.NewMem()})
	put(t, db, "a", "1", "b", "2", "c", "", "d", "4", "e", "5")
	for key, want := range map[string]string{"a": "1", "c": ""} {
		if v, ok, err := db.Get([]byte(key)); string(v) != want || v == nil || !ok || err != nil {
			t.Errorf("%s: %q %v %v", key, v, ok, err)
		}
	}
	if _, ok, err := db.Get([]byte("x")); ok || err != nil {
		t.Errorf("x: %v %v", ok, err)
	}
	if err := db.Apply([]fsm.Op{{Key: []byte("b"), Delete: true}, {Key: []byte("x"), Delete: true}}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ lower, upper, want string }{
		{"", "", "a=1 c= d=4 e=5"}, {"b", "e", "c= d=4"}, {"d", "", "d=4 e=5"}, {"f", "", ""},
	} {
		if got := dump(t, db, tt.lower, tt.upper); got != tt.want {
			t.Errorf("[%s, %s): %s, want %s", tt.lower, tt.upper, got, tt.want)
		}
	}
}

func TestReadFromTheEnd(t *testing.T) {
	db := open(t, "data", store.Options{FS: vfs.NewMem()})
	put(t, db, "a", "1", "b", "2", "c", "", "d", "4")
	snap, err := db.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer snap.Close()
	put(t, db, "e", "5")
	for _, tt := range []struct {
		r                  fsm.StoreReader
		lower, upper, want string
	}{
		{db, "", "", "e=5 d=4 c= b=2"}, // four at the most
		{db, "b", "d", "c= b=2"},
		{snap, "b", "x", "d=4 c= b=2"},
		{snap, "b", "b", ""},
	} {
		var low, up []byte
		if tt.lower != "" {
			low, up = []byte(tt.lower), []byte(tt.upper)
		}
		var out []string
		err := tt.r.ScanBack(low, up, func(k, v []byte) bool {
			out = append(out, fmt.Sprintf("%s=%s", k, v))
			return len(out) < 4
		})
		if got := strings.Join(out, " "); got != tt.want || err != nil {
			t.Errorf("%T [%s, %s): %s (%v), want %s", tt.r, tt.lower, tt.upper, got, err, tt.want)
		}
	}
}

func TestSnapshotStays(t *testing.T) {
	db := open(t, "data", store.Options{FS: vfs.NewMem()})
	put(t, db, "a", "1")
	snap, err := db.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	put(t, db, "a", "2", "b", "1")
	if v, ok, _ := snap.Get([]byte("a")); string(v) != "1" || !ok || dump(t, snap, "", "") != "a=1" {
		t.Errorf("the snapshot moved: %s", dump(t, snap, "", ""))
	}
	if err := snap.Close(); err != nil {
		t.Error(err)
	}
	if err := snap.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
}

// TestCrash loses what was not synced: whole batches, from the end.
func TestCrash(t *testing.T) {
	fs := vfs.NewCrashableMem()
	db := open(t, "data", store.Options{FS: fs})
	put(t, db, "index", "1", "row", "1")
	if err := db.Flush(); err != nil {
		t.Fatal(err)
	}
	put(t, db, "index", "2", "row", "2")
	after := fs.CrashClone(vfs.CrashCloneCfg{})
	again := open(t, "data", store.Options{FS: after})
	if got := dump(t, again, "", ""); got != "index=1 row=1" {
		t.Errorf("after the crash: %s", got)
	}
}

func TestReopen(t *testing.T) {
	dir := t.TempDir()
	db := open(t, dir, store.Options{})
	put(t, db, "a", "1")
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
	if _, _, err := db.Get([]byte("a")); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a closed store answers %v", err)
	}
	reader := open(t, dir, store.Options{ReadOnly: true})
	if got := dump(t, reader, "", ""); got != "a=1" {
		t.Errorf("read-only: %s", got)
	}
	if err := reader.Apply([]fsm.Op{{Key: []byte("b")}}); err == nil {
		t.Error("a read-only store was written")
	}
	if err := reader.Replace(t.TempDir()); !fault.Is(err, fault.NotAllowed) {
		t.Errorf("a read-only store was replaced: %v", err)
	}
}

func TestClosedStoreRefusesEverything(t *testing.T) {
	db := open(t, "data", store.Options{FS: vfs.NewMem()})
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	calls := map[string]func() error{
		"scan":       func() error { return db.Scan(nil, nil, func(_, _ []byte) bool { return true }) },
		"apply":      func() error { return db.Apply(nil) },
		"snapshot":   func() error { _, err := db.Snapshot(); return err },
		"flush":      db.Flush,
		"checkpoint": func() error { return db.Checkpoint("x") },
	}
	for name, call := range calls {
		if err := call(); !fault.Is(err, fault.Unavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCheckpointAndReplace(t *testing.T) {
	dir := t.TempDir()
	source := open(t, dir+"/source", store.Options{})
	put(t, source, "a", "new", "b", "new")
	if err := source.Checkpoint(dir + "/checkpoint"); err != nil {
		t.Fatal(err)
	}
	put(t, source, "a", "newer")
	copied := open(t, dir+"/checkpoint", store.Options{ReadOnly: true})
	if got := dump(t, copied, "", ""); got != "a=new b=new" {
		t.Errorf("the checkpoint holds %s", got)
	}
	if err := copied.Close(); err != nil {
		t.Fatal(err)
	}

	db := open(t, dir+"/target", store.Options{})
	put(t, db, "a", "old", "z", "old")
	snap, err := db.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Replace(dir + "/checkpoint"); err != nil {
		t.Fatal(err)
	}
	if got := dump(t, db, "", ""); got != "a=new b=new" {
		t.Errorf("after the replacement: %s", got)
	}
	if got := dump(t, snap, "", ""); got != "a=old z=old" {
		t.Errorf("a snapshot from before: %s", got)
	}
	if err := snap.Close(); err != nil {
		t.Error(err)
	}
	put(t, db, "c", "1")
	waitFor(t, func() bool { return len(generations(t, dir+"/target")) == 1 })
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if got := dump(t, open(t, dir+"/target", store.Options{}), "", ""); got != "a=new b=new c=1" {
		t.Errorf("after a restart: %s", got)
	}
}

func TestBadReplacementChangesNothing(t *testing.T) {
	dir := t.TempDir()
	db := open(t, dir+"/target", store.Options{Logger: slog.New(slog.DiscardHandler)})
	put(t, db, "a", "old")
	if err := db.Replace(dir + "/missing"); err == nil {
		t.Error("nothing was taken for a checkpoint")
	}
	if err := vfs.Default.MkdirAll(dir+"/torn", 0o700); err != nil {
		t.Fatal(err)
	}
	source := open(t, dir+"/source", store.Options{})
	put(t, source, "a", "new")
	if err := source.Checkpoint(dir + "/cut"); err != nil {
		t.Fatal(err)
	}
	removeManifest(t, dir+"/cut")
	if err := db.Replace(dir + "/cut"); !fault.Is(err, fault.BadRequest) {
		t.Errorf("a checkpoint without its manifest: %v", err)
	}
	put(t, db, "b", "1")
	if got := dump(t, db, "", ""); got != "a=old b=1" {
		t.Errorf("contents: %s", got)
	}
}

func removeManifest(t *testing.T, dir string) {
	t.Helper()
	names, err := vfs.Default.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if strings.HasPrefix(n, "MANIFEST-") {
			if err := vfs.Default.Remove(dir + "/" + n); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func generations(t *testing.T, dir string) (out []string) {
	t.Helper()
	names, err := vfs.Default.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if strings.HasPrefix(n, "gen-") {
			out = append(out, n)
		}
	}
	return out
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not happen")
		}
	}
}

func TestLeftoversAreSwept(t *testing.T) {
	fs := vfs.NewMem()
	db := open(t, "data", store.Options{FS: fs})
	put(t, db, "a", "1")
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := fs.MkdirAll("data/gen-7", 0o700); err != nil {
		t.Fatal(err)
	}
	again := open(t, "data", store.Options{FS: fs})
	if _, err := fs.Stat("data/gen-7"); err == nil {
		t.Error("a generation that a crash left is still there")
	}
	if got := dump(t, again, "", ""); got != "a=1" {
		t.Errorf("contents: %s", got)
	}
}

func TestErrorsAreLogged(t *testing.T) {
	var out bytes.Buffer
	fs := vfs.NewMem()
	if _, err := store.Open("none", store.Options{FS: fs, ReadOnly: true, Logger: slog.New(slog.NewTextHandler(&out, nil))}); err == nil {
		t.Error("a store that is not there was opened read-only")
	}
	db := open(t, "data", store.Options{FS: fs, Logger: slog.New(slog.NewTextHandler(&out, nil)), CacheBytes: 1 << 20})
	if db.Pebble() == nil || strings.Contains(out.String(), "level=INFO") {
		t.Errorf("the log is not quiet: %s", out.String())
	}
}
