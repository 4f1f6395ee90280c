package replication

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"muster/fsm"
	"muster/internal/fault"
)

func TestAppliedSurvivesTheWire(t *testing.T) {
	in := applied{index: 9, results: []fsm.Result{
		{Index: 9}, {Index: 3, Value: []byte("v")}, {Index: 9, Err: fault.New(fault.Conflict, "x", "y", "it exists already")}}}
	out, err := decodeApplied(encodeApplied(in))
	if err != nil || out.index != 9 || len(out.results) != 3 {
		t.Fatalf("%+v, %v", out, err)
	}
	if !reflect.DeepEqual(out.results[:2], in.results[:2]) {
		t.Errorf("results %+v", out.results)
	}
	if e := out.results[2].Err; !fault.Is(e, fault.Conflict) || fault.Public(e) != "it exists already" {
		t.Errorf("the fault came back as %v", e)
	}
}

func FuzzDecodeApplied(f *testing.F) {
	f.Add(encodeApplied(applied{index: 1, results: []fsm.Result{{Index: 1, Value: []byte("v")}}}))
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := decodeApplied(b)
		if err != nil {
			return
		}
		again, err := decodeApplied(encodeApplied(a))
		if err != nil || len(again.results) != len(a.results) || again.index != a.index {
			t.Errorf("%+v came back as %+v, %v", a, again, err)
		}
	})
}

func FuzzReadMessage(f *testing.F) {
	f.Add([]byte{0, 0, 0, 2, 'h', 'i'})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0, 2, 0, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := readMessage(bytes.NewReader(b))
		if err == nil && (len(m) > len(b) || len(m) > maxRPC) {
			t.Errorf("a message of %d bytes out of %d", len(m), len(b))
		}
		var req joinRequest
		_ = readJSON(bytes.NewReader(b), &req)
	})
}

func FuzzReadHeader(f *testing.F) {
	stream, _ := packed(f, map[string]string{"a": "1"})
	f.Add(stream)
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := readHeader(bytes.NewReader(b))
		if err == nil && h.Version != streamVersion {
			t.Error("another version was taken")
		}
	})
}

func TestFalseLengthCostsNothing(t *testing.T) {
	head := binary.BigEndian.AppendUint32(nil, maxRPC)
	before := testing.AllocsPerRun(1, func() {})
	var err error
	bytesPer := testing.Benchmark(func(b *testing.B) {
		for range b.N {
			_, err = readMessage(bytes.NewReader(append(head, 1, 2, 3)))
		}
		b.ReportAllocs()
	}).AllocedBytesPerOp()
	if err == nil || bytesPer > 1<<20 {
		t.Errorf("a false length of %d took %d bytes (%v, %v)", maxRPC, bytesPer, before, err)
	}
	if _, err := readMessage(bytes.NewReader([]byte{0xff, 0xff, 0xff, 0xff})); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("an endless message: %v", err)
	}
}

func TestCallsBetweenNodes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, Timing{})
		for _, n := range c.nodes {
			n.Handle("who", func(_ context.Context, from uint32, req []byte) ([]byte, error) {
				if len(req) == 0 {
					return nil, fault.New(fault.BadRequest, "who", "", "say something")
				}
				return fmt.Appendf(nil, "%d hears %s from %d", n.id, req, from), nil
			})
		}
		a := c.nodes[1]
		for id := uint32(1); id <= 3; id++ {
			for range 3 { // over new, pooled and local connections
				got, err := a.Call(t.Context(), id, "who", []byte("x"))
				if want := fmt.Sprintf("%d hears x from 1", id); string(got) != want || err != nil {
					t.Errorf("%q, %v", got, err)
				}
			}
			if _, err := a.Call(t.Context(), id, "who", nil); !fault.Is(err, fault.BadRequest) || fault.Public(err) != "say something" {
				t.Errorf("a fault came back as %v", err)
			}
			if _, err := a.Call(t.Context(), id, "nonsense", nil); !fault.Is(err, fault.NotSupported) {
				t.Errorf("an unknown request: %v", err)
			}
		}
		c.nodes[2].stop()
		if _, err := a.Call(t.Context(), 2, "who", []byte("x")); !fault.Is(err, fault.Unavailable) {
			t.Errorf("a node that stopped: %v", err)
		}
		c.nodes[2].start()
		c.nodes[2].Handle("who", func(context.Context, uint32, []byte) ([]byte, error) { return []byte("back"), nil })
		if got, err := a.Call(t.Context(), 2, "who", []byte("x")); string(got) != "back" {
			t.Errorf("a node that came back: %q, %v", got, err)
		}
	})
}

func TestHealthNamesTheSilent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, Timing{})
		lead := c.settle(3)
		dead := c.follower()
		dead.stop()
		time.Sleep(5 * time.Second)
		first := lead.Health(t.Context())
		time.Sleep(5 * time.Second)
		for i, h := range lead.Health(t.Context()) {
			if h.Node == dead.id {
				if h.Reachable || h.Reason == "" || !h.Since.Equal(first[i].Since) || h.Since.IsZero() {
					t.Errorf("the dead node: %+v", h)
				}
				continue
			}
			if !h.Reachable || h.Reason != "" || h.Status.Term == 0 || h.Status.Lag != 0 || len(h.Digests) == 0 {
				t.Errorf("a living node: %+v", h)
			}
		}
		dead.start()
		c.settle(3)
		for _, h := range lead.Health(t.Context()) {
			if !h.Reachable {
				t.Errorf("after its return: %+v", h)
			}
		}
	})
}

func TestDifferenceIsNamed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, Timing{})
		lead := c.settle(3)
		lead.must("a", "1")
		odd := c.follower()
		time.Sleep(time.Second)
		odd.stop() // and now somebody changes its state behind the machine's back
		odd.start()
		c.settle(3)
		if err := odd.store.Apply([]fsm.Op{{Key: []byte("test.kv\x00a"), Value: []byte("2")}}); err != nil {
			t.Fatal(err)
		}
		if err := odd.machine.VerifyDigests(); err == nil || !strings.Contains(err.Error(), "test.kv") {
			t.Errorf("VerifyDigests: %v", err)
		}
		lead.must("a", "3") // the odd node's digest takes the wrong row for the old one
		r, err := lead.CompareDigests(t.Context())
		if err != nil || r.Equal || len(r.Missing) != 0 {
			t.Fatalf("report %+v, %v", r, err)
		}
		for _, table := range r.Tables {
			if table.Equal == (table.Table == "test.kv") || len(table.Digests) != 3 {
				t.Errorf("table %+v", table)
			}
		}
		odd.stop()
		if r, _ = lead.CompareDigests(t.Context()); !r.Equal || len(r.Missing) != 1 || r.Missing[0] != odd.id {
			t.Errorf("without the odd node: %+v", r)
		}
	})
}

func TestCompare(t *testing.T) {
	members := []Member{{ID: 1}, {ID: 2}, {ID: 3}}
	d := func(v ...uint64) digestMark {
		m := digestMark{Index: 5}
		for i, x := range v {
			m.Digests = append(m.Digests, fsm.TableDigest{Table: string(rune('a' + i)), Digest: x})
		}
		return m
	}
	tests := []struct {
		name    string
		answers map[uint32]digestMark
		equal   bool
		differ  int
		missing int
	}{
		{"all agree", map[uint32]digestMark{1: d(1, 2), 2: d(1, 2), 3: d(1, 2)}, true, 0, 0},
		{"one table differs", map[uint32]digestMark{1: d(1, 2), 2: d(1, 9), 3: d(1, 2)}, false, 1, 0},
		{"a table is missing", map[uint32]digestMark{1: d(1, 2), 2: d(1), 3: d(1, 2)}, false, 1, 0},
		{"a node is missing", map[uint32]digestMark{1: d(1, 2), 3: d(1, 2)}, true, 0, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := compare(5, members, tt.answers)
			if r.Equal != tt.equal || len(r.differing()) != tt.differ || len(r.Missing) != tt.missing {
				t.Errorf("%+v", r)
			}
		})
	}
}

func TestTroubleIsToldOnce(t *testing.T) {
	var told []string
	tr := &trouble{tell: func(s string) { told = append(told, s) }}
	tr.set("a", "one")
	tr.set("a", "one")
	tr.set("b", "two")
	tr.clear("a")
	tr.clear("a")
	tr.clear("b")
	if want := []string{"one", "one; two", "two", ""}; !reflect.DeepEqual(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
}

func TestPercentile(t *testing.T) {
	w := &watchdog{}
	if w.p99() != 0 {
		t.Error("without writes there is no percentile")
	}
	for i := range 1000 {
		w.note(time.Duration(i) * time.Millisecond)
	}
	if got := w.p99(); got < 990*time.Millisecond || got > 999*time.Millisecond {
		t.Errorf("p99 of the last %d writes is %v", latencies, got)
	}
}

// TestFuturesEnd holds endWith against the library: all its futures must have the field.
func TestFuturesEnd(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 1, Timing{})
		r := c.nodes[1].raft
		for name, f := range map[string]raft.Future{"apply": r.Apply(emptyRecord, time.Second), "verify": r.VerifyLeader(), "barrier": r.Barrier(time.Second)} {
			if !reflect.ValueOf(f).Elem().FieldByName("ShutdownCh").CanSet() {
				t.Errorf("the future of %s cannot be ended", name)
			}
			if err := f.Error(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}
