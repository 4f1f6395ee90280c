package replication

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
)

// often takes a snapshot after a few entries and keeps hardly any log behind it.
var often = Timing{SnapshotInterval: 200 * time.Millisecond, SnapshotThreshold: 8, TrailingLogs: 2}

func TestLaggingFollowerGetsASnapshot(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, often)
		c.settle(3)
		late := c.follower()
		late.must("start", "1")
		c.isolate(late.id, true)
		c.until("a leader among the others", 10*time.Second, func() bool { l := c.leader(); return l != nil && l != late })
		lead := c.leader()
		for i := range 100 {
			lead.must(fmt.Sprint("k", i), strings.Repeat("v", 1000))
			time.Sleep(20 * time.Millisecond)
		}
		c.until("the log to be cut", 10*time.Second, func() bool { return lead.Status().FirstLog > late.Status().LastLog+1 })
		view, err := late.machine.View() // must stay readable while the state is replaced
		if err != nil {
			t.Fatal(err)
		}
		c.isolate(late.id, false)
		c.until("catching up", 30*time.Second, func() bool { return late.get("k99") != "" })
		if v, ok := view.Get(kv, []byte("k99")); ok {
			t.Errorf("the old view has %q", v)
		}
		view.Close()
		late.mu.Lock()
		replaced := len(late.replaced)
		late.mu.Unlock()
		if replaced == 0 {
			t.Error("nobody was told that the state was replaced")
		}
		c.equal(lead)
		late.crash()
		late.start()
		c.equal(c.settle(3))
	})
}

func TestSnapshotsBoundTheLog(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, often)
		lead := c.settle(3)
		for i := range 200 {
			lead.must(fmt.Sprint("k", i%10), "v")
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(time.Second)
		for _, n := range c.nodes {
			st := n.Status()
			if st.LastLog-st.FirstLog > 40 || st.SnapshotIndex == 0 {
				t.Errorf("node %d keeps %d to %d, snapshot %d", n.id, st.FirstLog, st.LastLog, st.SnapshotIndex)
			}
			names, _ := n.fs.List("data/snapshots")
			if len(names) != 1 {
				t.Errorf("node %d keeps the snapshots %q", n.id, names)
			}
		}
		for _, n := range c.nodes {
			n.crash()
		}
		for _, n := range c.nodes {
			n.start()
		}
		lead = c.settle(3)
		if got := len(lead.get("count")); got != 200 {
			t.Errorf("%d of 200 changes are there after a crash of all nodes", got)
		}
		c.equal(lead)
	})
}

func TestLostStateComesBackFromTheSnapshot(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 1, Timing{TrailingLogs: 1})
		n := c.nodes[1]
		for i := range 20 {
			n.must(fmt.Sprint("k", i), "v")
		}
		if err := n.Snapshot(t.Context()); err != nil {
			t.Fatal(err)
		}
		n.must("later", "v")
		n.stop()
		if err := n.fs.RemoveAll("data/state"); err != nil {
			t.Fatal(err)
		}
		n.start()
		c.settle(1)
		if n.get("k19") != "v" || n.get("later") != "v" || len(n.get("count")) != 21 {
			t.Errorf("k19=%q later=%q, %d changes", n.get("k19"), n.get("later"), len(n.get("count")))
		}
	})
}

// packed returns a snapshot folder's stream and its header.
func packed(t testing.TB, files map[string]string) ([]byte, *streamHeader) {
	fs := vfs.NewMem()
	_ = fs.MkdirAll("from", 0o700)
	h := &streamHeader{Version: streamVersion, ID: "1-2-3", StateIndex: 7}
	for name, text := range files {
		f, err := fs.Create("from/"+name, "test")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = f.Write([]byte(text))
		_ = f.Close()
		h.Files = append(h.Files, snapFile{name, int64(len(text))})
	}
	var b bytes.Buffer
	if err := pack(&b, fs, "from", h); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), h
}

var sampleFiles = map[string]string{"000001.sst": strings.Repeat("table", 100_000), "CURRENT": "x", "empty": "", "MANIFEST-000001": strings.Repeat("m", chunkSize)}

func unpackAll(stream []byte, step int) (*unpacker, *vfs.MemFS, error) {
	fs := vfs.NewMem()
	_ = fs.MkdirAll("to", 0o700)
	u := &unpacker{fs: fs, dir: "to"}
	defer u.abort()
	for len(stream) > 0 {
		n := min(step, len(stream))
		if _, err := u.Write(stream[:n]); err != nil {
			return u, fs, err
		}
		stream = stream[n:]
	}
	return u, fs, u.done()
}

func TestSnapshotStream(t *testing.T) {
	stream, h := packed(t, sampleFiles)
	if int64(len(stream)) != h.size() {
		t.Errorf("the stream has %d bytes, its size was announced as %d", len(stream), h.size())
	}
	for _, step := range []int{997, 1 << 20} {
		u, fs, err := unpackAll(stream, step)
		if err != nil {
			t.Fatalf("in steps of %d: %v", step, err)
		}
		if u.header.ID != h.ID || u.header.StateIndex != 7 {
			t.Errorf("header %+v", u.header)
		}
		for name, want := range sampleFiles {
			f, err := fs.Open("to/" + name)
			if err != nil {
				t.Fatal(err)
			}
			got, _ := io.ReadAll(f)
			_ = f.Close()
			if string(got) != want {
				t.Errorf("%s came through with %d bytes, want %d", name, len(got), len(want))
			}
		}
	}
	if got, err := readHeader(bytes.NewReader(stream)); err != nil || got.ID != h.ID {
		t.Errorf("readHeader: %+v, %v", got, err)
	}
}

func TestDamagedStreamIsRefused(t *testing.T) {
	stream, _ := packed(t, map[string]string{"a.sst": "0123456789", "b": "xyz"})
	for i := range stream {
		bad := bytes.Clone(stream)
		bad[i] ^= 0x40
		if _, _, err := unpackAll(bad, len(bad)); err == nil {
			t.Fatalf("a changed byte at %d of %d was not noticed", i, len(stream))
		}
		if _, _, err := unpackAll(stream[:i], len(stream)); err == nil {
			t.Fatalf("a stream cut at %d was not noticed", i)
		}
	}
	if _, _, err := unpackAll(append(bytes.Clone(stream), 1, 2, 3, 4, 5, 6, 7, 8, 9), 1<<20); err == nil {
		t.Error("a stream with something behind it was not noticed")
	}
}

func TestBadFileNamesAreRefused(t *testing.T) {
	for _, name := range []string{"../evil", "a/b", "..", ".", "", "a\x00b", strings.Repeat("x", 200), "/etc/passwd"} {
		h := &streamHeader{Version: streamVersion, Files: []snapFile{{name, 1}}}
		if _, err := decodeHeader(h.encode()); err == nil {
			t.Errorf("the file name %q was taken", name)
		}
	}
	twice := &streamHeader{Version: streamVersion, Files: []snapFile{{"a", 1}, {"a", 1}}}
	if _, err := decodeHeader(twice.encode()); err == nil {
		t.Error("a file twice was taken")
	}
	other := &streamHeader{Version: 2}
	if _, err := decodeHeader(other.encode()); err == nil {
		t.Error("another version was taken")
	}
}

func FuzzUnpack(f *testing.F) {
	stream, _ := packed(f, map[string]string{"a.sst": "0123456789", "b": ""})
	f.Add(stream)
	f.Add(stream[:20])
	f.Add([]byte(streamMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		u, fs, err := unpackAll(b, 7)
		if err != nil {
			return
		}
		for _, file := range u.header.Files {
			st, err := fs.Stat("to/" + file.Name)
			if err != nil || st.Size() != file.Size {
				t.Errorf("accepted, but %q is not whole: %v", file.Name, err)
			}
		}
	})
}

func FuzzSnapshotMeta(f *testing.F) {
	f.Add(encodeMeta(&snapMeta{ID: "1", Index: 5, Files: []snapFile{{"a", 1}}}))
	f.Add([]byte("00000000\n{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeMeta(b)
		if err == nil && m == nil {
			t.Error("neither a snapshot nor an error")
		}
	})
}

func TestUnfinishedSnapshotsAreSwept(t *testing.T) {
	fs := vfs.NewMem()
	s, err := openSnapStore(fs, "snaps", testLogger())
	if err != nil {
		t.Fatal(err)
	}
	stream, h := packed(t, sampleFiles)
	sink, err := s.Create(1, 10, 2, raft.Configuration{}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sink.Write(stream[:len(stream)/2]); err != nil {
		t.Fatal(err)
	}
	if err := sink.Close(); err == nil {
		t.Error("half a snapshot was kept")
	}
	half, _ := s.Create(1, 11, 2, raft.Configuration{}, 1, nil)
	_, _ = half.Write(stream[:len(stream)/2]) // and the process dies here
	whole, _ := s.Create(1, 12, 2, raft.Configuration{}, 1, nil)
	if _, err := whole.Write(stream); err != nil {
		t.Fatal(err)
	}
	if err := whole.Close(); err != nil {
		t.Fatal(err)
	}
	s, err = openSnapStore(fs, "snaps", testLogger())
	if err != nil {
		t.Fatal(err)
	}
	list, _ := s.List()
	names, _ := fs.List("snaps")
	if len(list) != 1 || list[0].Index != 12 || list[0].Size != h.size()+int64(len(list[0].ID)-len(h.ID)) || len(names) != 1 {
		t.Errorf("after a restart there are %+v, files %q", list, names)
	}
}

func TestReadSnapshotIsKeptUntilReleased(t *testing.T) {
	fs := vfs.NewMem()
	s, _ := openSnapStore(fs, "snaps", testLogger())
	stream, _ := packed(t, sampleFiles)
	add := func(index uint64) string {
		k, _ := s.Create(1, index, 1, raft.Configuration{}, 1, nil)
		_, _ = k.Write(stream)
		if err := k.Close(); err != nil {
			t.Fatal(err)
		}
		return k.ID()
	}
	first := add(1)
	meta, rc, err := s.Open(first)
	if err != nil {
		t.Fatal(err)
	}
	add(2)
	n, err := io.Copy(io.Discard, rc)
	if err != nil || n != meta.Size {
		t.Errorf("read %d of %d bytes of a replaced snapshot: %v", n, meta.Size, err)
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if names, _ := fs.List("snaps"); len(names) == 1 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the replaced snapshot is never removed")
		}
	}
	if _, _, err := s.Open(first); err == nil {
		t.Error("a removed snapshot was opened")
	}
}

func TestLogSizes(t *testing.T) {
	var s logSizes
	size := func(data int) int64 { return int64(data + recordCost) }
	steps := []struct {
		name   string
		do     func()
		after  uint64 // index asked about
		want   int64
		limit  int64
		newest int
	}{
		{"empty", func() {}, 0, 0, 1000, 0},
		{"one of ten", func() { s.add(5, 10) }, 4, size(10), size(10), 1},
		{"beyond it there is nothing", func() {}, 5, 0, size(10) - 1, 0},
		{"three of ten", func() { s.add(6, 10); s.add(7, 10) }, 5, 2 * size(10), 2*size(10) + 1, 2},
		{"all", func() {}, 0, 3 * size(10), 1 << 20, 3},
		{"the last written anew", func() { s.add(7, 100) }, 5, size(10) + size(100), size(100), 1},
		{"the first cut off", func() { s.cut(1, 5) }, 0, size(10) + size(100), 1 << 20, 2},
		{"the last cut off", func() { s.cut(7, 7) }, 0, size(10), 1 << 20, 1},
		{"a cut that misses", func() { s.cut(1, 5); s.cut(7, 9) }, 0, size(10), size(10), 1},
		{"a gap: what was before is forgotten", func() { s.add(20, 1); s.add(21, 1) }, 0, 2 * size(1), size(1), 1},
		{"nothing left", func() { s.cut(20, 30) }, 0, 0, 1 << 20, 0},
		{"and on", func() { s.add(22, 7) }, 21, size(7), size(7), 1},
	}
	for _, st := range steps {
		st.do()
		if got := s.after(st.after); got != st.want {
			t.Errorf("%s: %d bytes after %d, want %d", st.name, got, st.after, st.want)
		}
		if got := s.newest(st.limit); got != st.newest {
			t.Errorf("%s: %d records in %d bytes, want %d", st.name, got, st.limit, st.newest)
		}
	}
}

// TestBytesBoundTheLog: the message log's records may be large or small; it is their bytes that are bounded.
func TestBytesBoundTheLog(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const snapshotBytes, trailing = 200_000, 100_000
		c := newClusterOf(t, MessageLog, 3, Timing{SnapshotBytes: snapshotBytes, TrailingBytes: trailing})
		lead := c.settle(3)
		most, kept := int64(0), int64(0)
		for i := range 300 {
			lead.must(fmt.Sprint("k", i%10), strings.Repeat("v", 20+(i%7)*1500))
			time.Sleep(50 * time.Millisecond)
			for _, n := range c.nodes {
				most = max(most, n.log.sizes.after(0))
			}
		}
		time.Sleep(5 * time.Second)
		for _, n := range c.nodes {
			st := n.Status()
			first, _ := n.log.FirstIndex()
			kept = n.log.sizes.after(0)
			if st.SnapshotIndex == 0 || first == 1 || n.log.sizes.first != first || st.DiskBytes == 0 {
				t.Errorf("node %d keeps records from %d (sizes from %d), snapshot %d, %d bytes of disk", n.id, first, n.log.sizes.first, st.SnapshotIndex, st.DiskBytes)
			}
			if kept < trailing/2 {
				t.Errorf("node %d keeps only %d bytes", n.id, kept)
			}
		}
		// A second's entries, about 90,000 bytes, may come before the next look.
		if limit := int64(snapshotBytes + trailing + 2*90_000); most > limit {
			t.Errorf("the log grew to %d bytes, the limit is %d", most, limit)
		}
		if got := len(lead.get("count")); got != 300 {
			t.Errorf("%d changes applied", got)
		}
		c.nodes[1].crash() // and the sizes are known again after a start
		c.nodes[1].start()
		lead = c.settle(3)
		if got := c.nodes[1].log.sizes.after(0); got < trailing/2 {
			t.Errorf("after a start it knows of %d bytes", got)
		}
		c.equal(lead)
	})
}
