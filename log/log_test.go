package log_test

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"muster/internal/fault"
	"muster/log"
	"muster/log/logpb"
)

func sample() []*log.Entry {
	return []*log.Entry{
		{
			Kind: log.RosterSet, Body: []byte("body"), Key: "key", Node: 3, Actor: "alice@example.com", Surface: "xmpp",
			Time: time.Unix(1_700_000_000, 123).UTC(), Trace: "t-1", Expect: 42,
		},
		{Kind: log.NodeStart, Time: time.Unix(0, 0).UTC()},
	}
}

func encode(t testing.TB, entries []*log.Entry) []byte {
	t.Helper()
	b, err := log.Encode(entries)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRoundTrip(t *testing.T) {
	for name, entries := range map[string][]*log.Entry{"two": sample(), "none": {}, "one": sample()[:1]} {
		t.Run(name, func(t *testing.T) {
			got, err := log.Decode(encode(t, entries))
			if err != nil || len(got) != len(entries) {
				t.Fatalf("%d entries, %v", len(got), err)
			}
			for i := range got {
				if len(got[i].Body) == 0 {
					got[i].Body = entries[i].Body
				}
				if !reflect.DeepEqual(got[i], entries[i]) {
					t.Errorf("entry %d: got %+v, want %+v", i, got[i], entries[i])
				}
			}
		})
	}
}

func TestEveryFlippedBitIsNoticed(t *testing.T) {
	record := encode(t, sample())
	for i := range record {
		for bit := range 8 {
			bad := bytes.Clone(record)
			bad[i] ^= 1 << bit
			if _, err := log.Decode(bad); !fault.Is(err, fault.Internal) {
				t.Fatalf("bit %d of byte %d: %v", bit, i, err)
			}
		}
	}
	for n := range record {
		if _, err := log.Decode(record[:n]); !fault.Is(err, fault.Internal) {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	}
}

// framed gives any payload a right checksum.
func framed(payload []byte) []byte {
	out := append([]byte{1, 0, 0, 0, 0}, payload...)
	binary.BigEndian.PutUint32(out[1:], crc32.Checksum(payload, crc32.MakeTable(crc32.Castagnoli)))
	return out
}

func TestDecodeRefuses(t *testing.T) {
	wide, err := proto.Marshal(&logpb.Batch{Entries: []*logpb.Entry{{Kind: 1<<16 + uint32(log.ClusterInit)}}})
	if err != nil {
		t.Fatal(err)
	}
	newer := encode(t, sample())
	newer[0] = 2
	tests := map[string]struct {
		record []byte
		says   string
	}{
		"empty":             {nil, "cut short"},
		"newer format":      {newer, "upgrade"},
		"garbage":           {framed([]byte{0xff, 0xff}), "log.decode"},
		"kind out of range": {framed(wide), "upgrade"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := log.Decode(tt.record)
			if !fault.Is(err, fault.Internal) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestEncodeLimits(t *testing.T) {
	big := &log.Entry{Kind: log.VCardSet, Body: make([]byte, log.MaxBody)}
	tests := map[string]struct {
		entries []*log.Entry
		code    fault.Code
	}{
		"body":         {[]*log.Entry{{Body: make([]byte, log.MaxBody+1)}}, fault.TooLarge},
		"batch":        {[]*log.Entry{big, big}, fault.TooLarge},
		"key":          {[]*log.Entry{{Key: strings.Repeat("k", log.MaxKey+1)}}, fault.TooLarge},
		"not UTF-8":    {[]*log.Entry{{Actor: "\xff"}}, fault.BadRequest},
		"largest body": {[]*log.Entry{big}, 0},
		"longest key":  {[]*log.Entry{{Key: strings.Repeat("k", log.MaxKey)}}, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := log.Encode(tt.entries); fault.CodeOf(err) != tt.code {
				t.Errorf("got %v, want %v", err, tt.code)
			}
		})
	}
}

func TestKindTable(t *testing.T) {
	numbers, names := map[log.Kind]bool{}, map[string]bool{}
	last := log.Kind(0)
	for _, k := range log.Kinds() {
		if numbers[k.Kind] || names[k.Name] || k.Kind <= last {
			t.Errorf("%d %s is double or out of order", k.Kind, k.Name)
		}
		numbers[k.Kind], names[k.Name], last = true, true, k.Kind
		if k.Owner == "" || k.Log == "" || k.Since < 1 || k.Since > log.NewestVersion {
			t.Errorf("incomplete row %+v", k)
		}
		if info, ok := k.Kind.Info(); !ok || info != k || k.Kind.String() != k.Name {
			t.Errorf("%d is found as %+v", k.Kind, info)
		}
	}
	if _, ok := log.Kind(60_000).Info(); ok || log.Kind(60_000).String() != "kind(60000)" {
		t.Error("an unknown kind is known")
	}
	log.Kinds()[0].Name = "changed"
	if log.ClusterInit.String() != "cluster.init" {
		t.Error("the table can be changed through Kinds")
	}
}

func TestNewAndUnmarshal(t *testing.T) {
	e := log.New(log.SettingSet, &logpb.Entry{Actor: "a", Node: 3})
	var body logpb.Entry
	if err := e.Unmarshal(&body); err != nil || body.Actor != "a" || body.Node != 3 || e.Kind != log.SettingSet {
		t.Errorf("%v, %v", &body, err)
	}
	e.Body = []byte{0xff}
	if err := e.Unmarshal(&body); !fault.Is(err, fault.BadRequest) {
		t.Errorf("garbage: %v", err)
	}
	defer func() {
		if recover() == nil {
			t.Error("a body that cannot be encoded was accepted")
		}
	}()
	log.New(log.SettingSet, &logpb.Entry{Actor: "\xff"})
}

// FuzzDecode demands that any record, with a right checksum or not, decodes or
// is refused without a panic, and that what decodes can be encoded again with the same meaning.
func FuzzDecode(f *testing.F) {
	record := encode(f, sample())
	f.Add(record, false)
	f.Add(record[5:], true)
	f.Fuzz(func(t *testing.T, data []byte, frame bool) {
		if frame {
			data = framed(data)
		}
		entries, err := log.Decode(data)
		if err != nil {
			if !fault.Is(err, fault.Internal) {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		again, err := log.Encode(entries)
		if err != nil {
			return // longer than what this release writes
		}
		back, err := log.Decode(again)
		if err != nil || !reflect.DeepEqual(back, entries) {
			t.Fatalf("got back %+v, want %+v (%v)", back, entries, err)
		}
	})
}
