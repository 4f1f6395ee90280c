package store

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"muster/fsm"
)

// known returns what is remembered of a key as text: "-" for nothing, "none" for no row.
func (r *rows) known(key string) string {
	switch row, ok, _ := r.find([]byte(key)); {
	case !ok:
		return "-"
	case !row.ok:
		return "none"
	default:
		return string(row.value)
	}
}

func has(text string) foundRow { return foundRow{[]byte(text), true} }

// batch replaces rows as a batch does.
func (r *rows) batch(set map[string]foundRow) {
	r.begin()
	defer r.end()
	for k, row := range set {
		r.replace([]byte(k), row)
	}
}

func TestRowsAreRemembered(t *testing.T) {
	r := newRows(rowBytes)
	want := func(when, key, text string) {
		t.Helper()
		if got := r.known(key); got != text {
			t.Errorf("%s: %s is %q, want %q", when, key, got, text)
		}
	}
	want("at first", "a", "-")
	_, _, state := r.find([]byte("a"))
	r.remember([]byte("a"), has("1"), state)
	r.remember([]byte("b"), foundRow{}, state)
	want("found", "a", "1")
	want("found to be absent", "b", "none")
	r.batch(map[string]foundRow{"a": has("2"), "b": has("3"), "c": has("4")})
	want("written", "a", "2")
	want("written", "b", "3")
	want("written and never asked for", "c", "-")
	r.batch(map[string]foundRow{"a": {}})
	want("deleted", "a", "none")
	r.clear()
	want("cleared", "b", "-")
}

// TestRowsDuringBatch: a reader that looked before a batch, or during one, leaves nothing behind.
func TestRowsDuringBatch(t *testing.T) {
	r := newRows(rowBytes)
	key := []byte("a")
	_, _, before := r.find(key)
	r.begin()
	_, _, during := r.find(key)
	r.remember(key, has("old"), before)
	r.remember(key, has("old"), during)
	r.replace(key, has("new"))
	r.end()
	r.remember(key, has("old"), before)
	r.remember(key, has("old"), during)
	if got := r.known("a"); got != "-" {
		t.Errorf("remembered %q", got)
	}
	_, _, state := r.find(key)
	r.remember(key, has("new"), state)
	r.begin()
	if got := r.known("a"); got != "-" {
		t.Errorf("%q was answered from memory while a batch is stored", got)
	}
	r.end()
	if got := r.known("a"); got != "new" {
		t.Errorf("after the batch: %q", got)
	}
}

// TestRowsAreBounded: whatever comes, no shard takes more than its share, and what is asked for stays.
func TestRowsAreBounded(t *testing.T) {
	const bytes = 256 << 10
	r := newRows(bytes)
	size := func() (total int) {
		for i := range r.shards {
			for _, half := range []map[string]*foundRow{r.shards[i].young, r.shards[i].old} {
				// order: a sum
				for k, row := range half {
					total += row.cost([]byte(k))
				}
			}
		}
		return total
	}
	fill := func(key string, n int) {
		_, _, state := r.find([]byte(key))
		r.remember([]byte(key), foundRow{make([]byte, n), true}, state)
	}
	fill("hot", 10)
	for i := range 20_000 {
		fill(fmt.Sprint("row", i), i%500)
		if got := r.known("hot"); got == "-" {
			t.Fatalf("a row that is always asked for is forgotten after %d others", i)
		}
	}
	if got := size(); got > bytes || got < bytes/2 {
		t.Errorf("%d bytes of %d", got, bytes)
	}
	for i := range 20_000 { // rows that grow by being written, in both halves
		r.batch(map[string]foundRow{fmt.Sprint("row", i): {make([]byte, 1500), true}})
	}
	if got := size(); got > bytes*3/2 {
		t.Errorf("%d bytes of %d after rows grew", got, bytes)
	}
	fill("large", bytes/rowShards/2)
	if got := r.known("large"); got != "-" {
		t.Error("a row as large as a half is remembered")
	}
	fill("grows", 1)
	r.batch(map[string]foundRow{"grows": {make([]byte, bytes/rowShards/2), true}})
	if got := r.known("grows"); got != "-" {
		t.Error("a row that grew as large as a half is remembered")
	}
}

// TestReadersSeeBatchesInOrder: readers of a store that is written to never see
// a row go back, whichever way they read it.
func TestReadersSeeBatchesInOrder(t *testing.T) {
	db, err := Open("data", Options{FS: vfs.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	key := []byte("counter")
	var done, applied atomic.Uint64
	var wg sync.WaitGroup
	for range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			var last uint64
			check := func(how string, v []byte) {
				if n := binary.BigEndian.Uint64(v); n < last {
					t.Errorf("%s: %d after %d", how, n, last)
				} else {
					last = n
				}
			}
			for done.Load() == 0 {
				last = max(last, applied.Load())
				if v, ok, err := db.Get(key); err != nil || ok {
					check("get", v)
				}
				_ = db.Scan(key, []byte("counterz"), func(_, v []byte) bool { check("scan", v); return true })
			}
		}()
	}
	for i := range uint64(5000) {
		op := fsm.Op{Key: key, Value: binary.BigEndian.AppendUint64(nil, i+1)}
		if err := db.Apply([]fsm.Op{op, {Key: []byte("other"), Delete: true}}); err != nil {
			t.Fatal(err)
		}
		applied.Store(i + 1)
	}
	done.Store(1)
	wg.Wait()
}

// TestReplacedStoreRemembersNothing of the rows that it had.
func TestReplacedStoreRemembersNothing(t *testing.T) {
	fs := vfs.NewMem()
	db, err := Open("data", Options{FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	write := func(value string) {
		if err := db.Apply([]fsm.Op{{Key: []byte("a"), Value: []byte(value)}}); err != nil {
			t.Fatal(err)
		}
	}
	read := func() string { v, _, _ := db.Get([]byte("a")); return string(v) }
	write("1")
	read()
	if err := db.Checkpoint("copy"); err != nil {
		t.Fatal(err)
	}
	write("2")
	if got := read(); got != "2" {
		t.Errorf("before: %s", got)
	}
	if err := db.Replace("copy"); err != nil {
		t.Fatal(err)
	}
	if got := read(); got != "1" {
		t.Errorf("after the store was replaced: %s", got)
	}
}
