package fsm_test

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"muster/fsm"
	"muster/fsm/fsmtest"
	"muster/internal/fault"
	"muster/log"
)

var (
	toys  = fsm.NewTable("test.toys")
	times = fsm.NewTable("test.times")
)

// toy is a module whose entries are lines: "put k v", "del k", "fail",
// "fail-after k" (writes, then fails), "odd" (an error that is no fault),
// "sum" and "back" (show the rows that it sees, forwards and backwards), "time", "version".
func toy() fsm.Module {
	return fsm.Module{
		Name: "fsm/config", Tables: []*fsm.Table{toys, times},
		Handlers: map[log.Kind]fsm.Handler{log.SettingSet: play},
	}
}

func play(tx *fsm.Tx, e *log.Entry) error {
	words := strings.Fields(string(e.Body))
	switch words[0] {
	case "put":
		if err := fsm.CheckRevision(e, 7); err != nil {
			return err
		}
		tx.Put(toys, []byte(words[1]), []byte(strings.Join(words[2:], " ")))
	case "del":
		tx.Delete(toys, []byte(words[1]))
	case "fail":
		return fault.New(fault.Conflict, "toy", "", "told to fail")
	case "fail-after":
		tx.Put(toys, []byte(words[1]), nil)
		tx.SetVersion(9)
		tx.SetResult([]byte("lost"))
		return fault.New(fault.Conflict, "toy", "", strings.Repeat("long ", 20_000))
	case "odd":
		return errors.New("not a fault")
	case "sum":
		tx.SetResult([]byte(dump(tx, words[1:]...)))
	case "back":
		tx.SetResult([]byte(dumpBack(tx, words[1:]...)))
	case "time":
		tx.Put(times, []byte("now"), []byte(tx.Time().Format(time.RFC3339)))
	case "version":
		tx.SetVersion(tx.Version() + 1)
	}
	return nil
}

// dump renders the rows of a prefix, from a key.
func dump(r fsm.Reader, args ...string) string {
	var prefix, from []byte
	if len(args) > 0 && args[0] != "-" {
		prefix = []byte(args[0])
	}
	if len(args) > 1 {
		from = []byte(args[1])
	}
	var out []string
	r.Scan(toys, prefix, from, func(k, v []byte) bool {
		out = append(out, string(k)+"="+string(v))
		return len(out) < 5
	})
	return strings.Join(out, " ")
}

// dumpBack renders the rows of a prefix from the end, below a key.
func dumpBack(r fsm.Reader, args ...string) string {
	var prefix, before []byte
	if len(args) > 0 && args[0] != "-" {
		prefix = []byte(args[0])
	}
	if len(args) > 1 {
		before = []byte(args[1])
	}
	var out []string
	r.ScanBack(toys, prefix, before, func(k, v []byte) bool {
		out = append(out, string(k)+"="+string(v))
		return len(out) < 5
	})
	return strings.Join(out, " ")
}

func line(format string, args ...any) *log.Entry {
	return &log.Entry{Kind: log.SettingSet, Body: fmt.Appendf(nil, format, args...)}
}

func keyed(key string, e *log.Entry) *log.Entry {
	e.Key = key
	return e
}

func TestEntriesOfARecordSeeEachOther(t *testing.T) {
	r := fsmtest.New(t, toy())
	r.Must(line("put b stored"), line("put d stored"), line("put e stored"), line("put x/1 stored"))
	results := r.Apply(line("put a new"), line("put b replaced"), line("del d"), line("put c new"), line("sum"),
		line("sum - bb"), line("sum x/"), line("put zz last"), line("sum - y"), line("put empty"), line("sum emp"))
	for i, want := range map[int]string{
		4: "a=new b=replaced c=new e=stored x/1=stored", 5: "c=new e=stored x/1=stored", 6: "x/1=stored", 8: "zz=last", 10: "empty=",
	} {
		if got := string(results[i].Value); got != want {
			t.Errorf("entry %d sees %q, want %q", i, got, want)
		}
	}
	if got := dump(r.M, "emp"); got != "empty=" {
		t.Errorf("an empty row reads as %q", got)
	}
	if got := r.Must(line("sum emp")).Value; string(got) != "empty=" {
		t.Errorf("a stored empty row scans as %q", got)
	}
	r.Verify()
}

func TestScanFromTheEnd(t *testing.T) {
	r := fsmtest.New(t, toy())
	r.Must(line("put b stored"), line("put d stored"), line("put e stored"), line("put x/1 stored"), line("put x/2 stored"))
	cases := []struct{ args, want string }{
		{"", "x/2=stored x/1=stored e=new c=new b=stored"}, // five at the most
		{"x/", "x/2=stored x/1=stored"},
		{"x/ x/2", "x/1=stored"},
		{"- d", "c=new b=stored a="},
		{"x/ b", ""}, // below all that have the prefix
		{"b z", "b=stored"},
		{"nothing", ""},
	}
	entries := []*log.Entry{line("put a"), line("put c new"), line("put e new"), line("del d")}
	for _, tc := range cases {
		entries = append(entries, line("back %s", tc.args))
	}
	results := r.Apply(entries...)[4:]
	view, err := r.M.View()
	if err != nil {
		t.Fatal(err)
	}
	defer view.Close()
	for i, tc := range cases {
		if got := string(results[i].Value); got != tc.want {
			t.Errorf("within the record %q shows %q, want %q", tc.args, got, tc.want)
		}
		for _, reader := range []fsm.Reader{r.M, view} {
			if got := dumpBack(reader, strings.Fields(tc.args)...); got != tc.want {
				t.Errorf("%T: %q shows %q, want %q", reader, tc.args, got, tc.want)
			}
		}
	}
}

func TestConsistent(t *testing.T) {
	r := fsmtest.New(t, toy())
	r.Must(line("put a 1"))
	reader, release, err := fsm.Consistent(r.M)
	if err != nil {
		t.Fatal(err)
	}
	same, nothing, err := fsm.Consistent(reader)
	if err != nil || same != reader {
		t.Errorf("a view of a view is %v, %v", same, err)
	}
	r.Must(line("put a 2"))
	if got := dump(same); got != "a=1" || reader.Index() != 1 {
		t.Errorf("the view moved: %s at %d", got, reader.Index())
	}
	if err := errors.Join(nothing(), release()); err != nil {
		t.Error(err)
	}
}

func TestRejectedEntryLeavesNothing(t *testing.T) {
	r := fsmtest.New(t, toy())
	r.Must(line("put a 1"))
	r.Refused(line("fail"), fault.Conflict)
	r.Refused(line("fail-after b"), fault.Conflict)
	r.Refused(line("odd"), fault.Internal)
	if r.M.Version() != log.OldestVersion {
		t.Errorf("a rejected entry raised the version to %d", r.M.Version())
	}
	results := r.Apply(line("put b 1"), line("fail-after c"), line("put d 1"))
	if results[0].Err != nil || results[1].Err == nil || results[1].Value != nil || results[2].Err != nil {
		t.Errorf("results %+v", results)
	}
	if got := dump(r.M); got != "a=1 b=1 d=1" {
		t.Errorf("rows %q", got)
	}
	r.Verify()
}

func TestChangesTellWhatDiffers(t *testing.T) {
	r := fsmtest.New(t, toy())
	r.Must(line("put a 1"), line("put b 1"))
	r.Apply(line("put a 1"), line("put b 2"), line("put c 1"), line("put c 2"), line("put d 1"), line("del d"), line("del never"))
	want := []fsm.Change{
		{Table: toys, Key: []byte("b"), Before: []byte("1"), After: []byte("2"), Index: 3},
		{Table: toys, Key: []byte("c"), After: []byte("2"), Index: 3},
	}
	if !reflect.DeepEqual(r.Changes, want) {
		t.Errorf("got %v, want %v", r.Changes, want)
	}
	r.Must(line("del a"))
	if len(r.Changes) != 1 || r.Changes[0].After != nil || string(r.Changes[0].Before) != "1" {
		t.Errorf("deletion: %v", r.Changes)
	}
	r.Must(line("put e"))
	if len(r.Changes) != 1 || r.Changes[0].After == nil || r.Changes[0].Before != nil {
		t.Errorf("an empty row: %v", r.Changes)
	}
	r.Must(line("put e 1"))
	if len(r.Changes) != 1 || r.Changes[0].Before == nil {
		t.Errorf("an empty row before: %v", r.Changes)
	}
	r.Verify()
}

func TestIdempotency(t *testing.T) {
	r := fsmtest.New(t, toy())
	first := r.Must(keyed("k1", line("put a 1")))
	r.Must(line("put a 2"))
	again := r.Apply(keyed("k1", line("put a 1")))[0]
	if again.Index != first.Index || again.Err != nil || dump(r.M) != "a=2" {
		t.Errorf("a retry was applied again: %+v, %s", again, dump(r.M))
	}
	sum := r.Must(keyed("k2", line("sum")))
	r.Must(line("put b 1"))
	if again := r.Must(keyed("k2", line("sum"))); string(again.Value) != string(sum.Value) || again.Index != sum.Index {
		t.Errorf("a retry got %+v, want %+v", again, sum)
	}
	refused := r.Apply(keyed("k3", line("fail")))[0]
	if again := r.Apply(keyed("k3", line("put x 1")))[0]; again.Index != refused.Index || fault.CodeOf(again.Err) != fault.Conflict || fault.Public(again.Err) != "told to fail" {
		t.Errorf("a retry of a rejected entry got %+v", again)
	}
	r.Apply(keyed("k4", line("fail-after z"))) // the text of the fault is longer than is kept
	if again := r.Apply(keyed("k4", line("put x 1")))[0]; fault.CodeOf(again.Err) != fault.Conflict || again.Value != nil {
		t.Errorf("a long refusal came back as %v, value %q", fault.CodeOf(again.Err), again.Value)
	}
	same := r.Apply(keyed("k5", line("put c 1")), keyed("k5", line("put c 2")))
	if same[0].Index != same[1].Index || !strings.HasSuffix(dump(r.M), "c=1") {
		t.Errorf("twice in one record: %+v, %s", same, dump(r.M))
	}
	if err := r.M.Check(keyed("k3", line("fail"))); err != nil {
		t.Errorf("Check refuses a retry: %v", err)
	}
	r.Verify()
}

// TestInsert: rows that are new by their keys are written, changed and deleted
// as others are, within an entry and a record, and digests and changes are right.
func TestInsert(t *testing.T) {
	steps := map[string]func(tx *fsm.Tx, key []byte){
		"insert":        func(tx *fsm.Tx, key []byte) { tx.Insert(toys, key, []byte("1")) },
		"insert, put":   func(tx *fsm.Tx, key []byte) { tx.Insert(toys, key, nil); tx.Put(toys, key, []byte("1")) },
		"insert, gone":  func(tx *fsm.Tx, key []byte) { tx.Insert(toys, key, []byte("1")); tx.Delete(toys, key) },
		"deleted first": func(tx *fsm.Tx, key []byte) { tx.Delete(toys, key); tx.Insert(toys, key, []byte("1")) },
	}
	names := []string{"insert", "insert, put", "insert, gone", "deleted first"} // one order
	r := fsmtest.New(t, fsm.Module{Name: "fsm/config", Tables: []*fsm.Table{toys}, Handlers: map[log.Kind]fsm.Handler{
		log.SettingSet: func(tx *fsm.Tx, e *log.Entry) error {
			for _, name := range names {
				steps[name](tx, fmt.Appendf(nil, "%016x.%s.%s", tx.Index(), name, e.Body))
			}
			if v, ok := tx.Get(toys, fmt.Appendf(nil, "%016x.insert.%s", tx.Index(), e.Body)); string(v) != "1" || !ok {
				t.Errorf("the entry itself reads %q %v", v, ok)
			}
			return nil
		},
		log.SettingReset: func(tx *fsm.Tx, e *log.Entry) error { // in the same record: what an earlier entry inserted
			key := fmt.Appendf(nil, "%016x.insert.%s", tx.Index(), e.Body)
			if _, ok := tx.Get(toys, key); !ok {
				t.Error("a later entry does not see the row")
			}
			tx.Delete(toys, key)
			return nil
		},
	}})
	r.Must(line("a"))
	if len(r.Changes) != 3 {
		t.Errorf("%d changes, want 3: %v", len(r.Changes), r.Changes)
	}
	for _, c := range r.Changes {
		if c.Before != nil || c.After == nil {
			t.Errorf("%s changed from %v to %v", c.Key, c.Before, c.After)
		}
	}
	r.Verify()
	r.Apply(line("b"), line("c"), &log.Entry{Kind: log.SettingReset, Body: []byte("b")})
	if len(r.Changes) != 5 {
		t.Errorf("%d changes of two entries of which one row was deleted again, want 5", len(r.Changes))
	}
	r.Verify()
}

// TestKeylessKinds: for a kind whose handler recognises retries no key is looked at and none is kept.
func TestKeylessKinds(t *testing.T) {
	r := fsmtest.New(t, toy())
	r.M.SetKeyless(line("x").Kind)
	first := r.Must(keyed("k1", line("put a 1")))
	if again := r.Must(keyed("k1", line("put b 1"))); again.Index == first.Index || dump(r.M) != "a=1 b=1" {
		t.Errorf("the handler was not asked again: %+v, %s", again, dump(r.M))
	}
	if err := r.M.Check(keyed("k1", line("fail"))); err == nil {
		t.Error("Check takes it for a retry")
	}
	for key := range r.Store.Rows() {
		if strings.HasPrefix(key, "idempotency") {
			t.Errorf("row %q was kept", key)
		}
	}
	r.Verify()
}

func TestKeysAreForgotten(t *testing.T) {
	r := fsmtest.New(t, toy())
	var old []*log.Entry
	for i := range 3 {
		old = append(old, keyed(fmt.Sprint("old", i), line("put a 1")))
	}
	r.Apply(old...)
	r.M.Skip(fsm.MaxKept + 1)
	if res := r.Apply(keyed("old0", line("put b 1")))[0]; res.Index != 1 {
		t.Errorf("a key inside the window was forgotten: %+v", res)
	}
	r.Apply(keyed("new", line("put c 1"))) // forgets those of index 1
	res := r.Apply(keyed("old0", line("put d 1")))[0]
	if res.Index != r.M.Applied() || !strings.Contains(dump(r.M), "d=1") {
		t.Errorf("an old key is still known: %+v, %s", res, dump(r.M))
	}
	for key := range r.Store.Rows() {
		if strings.Contains(key, "old1") || strings.Contains(key, "old2") {
			t.Errorf("row %q is still there", key)
		}
	}
	r.Verify()
}

func TestTimeNeverGoesBack(t *testing.T) {
	r := fsmtest.New(t, toy())
	at := func(offset time.Duration) *log.Entry {
		e := line("time")
		e.Time = fsmtest.Start.Add(offset)
		return e
	}
	for _, step := range []struct{ entry, want time.Duration }{{0, 0}, {time.Hour, time.Hour}, {time.Minute, time.Hour}, {2 * time.Hour, 2 * time.Hour}} {
		r.Must(at(step.entry))
		got, _ := r.M.Get(times, []byte("now"))
		if want := fsmtest.Start.Add(step.want).Format(time.RFC3339); string(got) != want {
			t.Errorf("entry at +%v: machine time %s, want %s", step.entry, got, want)
		}
	}
	again := fsmtest.Over(t, r.Store, toy())
	again.Must(at(0))
	if got, _ := again.M.Get(times, []byte("now")); string(got) != fsmtest.Start.Add(2*time.Hour).Format(time.RFC3339) {
		t.Errorf("after a restart the time is %s", got)
	}
}

func TestAppliedRecordsAreSkipped(t *testing.T) {
	r := fsmtest.New(t, toy())
	record := fsmtest.Record(t, 5, line("put a 1"))
	if res := r.M.Apply(5, record); len(res) != 1 || res[0].Err != nil {
		t.Fatalf("results %+v", res)
	}
	for _, index := range []uint64{1, 4, 5} {
		if res := r.M.Apply(index, record); res != nil {
			t.Errorf("index %d was applied after 5", index)
		}
	}
	r.M.Skip(3)
	r.M.Skip(9)
	if r.M.Applied() != 9 || r.M.Index() != 9 {
		t.Errorf("applied %d", r.M.Applied())
	}
	if again := fsmtest.Over(t, r.Store, toy()); again.M.Applied() != 9 {
		t.Errorf("after a restart %d", again.M.Applied())
	}
}

func TestHalt(t *testing.T) {
	good := fsmtest.Record(t, 1, line("put a 1"))
	damaged := append([]byte(nil), good...)
	damaged[len(damaged)-1] ^= 1
	foreign := fsmtest.Record(t, 1, line("put a 1"), &log.Entry{Kind: log.UserCreate})
	for name, record := range map[string][]byte{"damaged": damaged, "kind of another release": foreign, "empty": {}} {
		t.Run(name, func(t *testing.T) {
			r := fsmtest.New(t, toy())
			if res := r.M.Apply(1, record); res != nil || r.M.Halted() == nil || r.M.Applied() != 0 {
				t.Fatalf("results %+v, halted %v, applied %d", res, r.M.Halted(), r.M.Applied())
			}
			r.M.Skip(2)
			if res := r.M.Apply(1, good); res != nil || r.M.Applied() != 0 || len(r.Store.Rows()) != 0 {
				t.Error("a halted machine goes on")
			}
			if err := r.M.Reload(); err != nil || r.M.Halted() != nil {
				t.Errorf("after a reload: %v, %v", err, r.M.Halted())
			}
		})
	}
}

func TestCheckChangesNothing(t *testing.T) {
	r := fsmtest.New(t, toy())
	r.Must(line("put a 1"))
	before := r.Store.Rows()
	tests := []struct {
		name  string
		entry *log.Entry
		code  fault.Code
	}{
		{"fine", line("put b 1"), 0},
		{"refused", line("fail"), fault.Conflict},
		{"not here", &log.Entry{Kind: log.UserCreate}, fault.NotSupported},
		{"no such kind", &log.Entry{Kind: 60_000}, fault.NotSupported},
		{"stale", &log.Entry{Kind: log.SettingSet, Body: []byte("put b 1"), Expect: 6}, fault.Stale},
		{"expected", &log.Entry{Kind: log.SettingSet, Body: []byte("put b 1"), Expect: 7}, 0},
		{"version", line("version"), 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := fault.CodeOf(r.M.Check(tt.entry)); got != tt.code {
				t.Errorf("got %v, want %v", got, tt.code)
			}
		})
	}
	if !reflect.DeepEqual(before, r.Store.Rows()) || r.M.Version() != 1 {
		t.Error("Check wrote something")
	}
}

func TestViewStaysAndDigestsTell(t *testing.T) {
	r := fsmtest.New(t, toy())
	r.Must(line("put a 1"))
	v, err := r.M.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	index, before, err := r.M.Digests()
	if err != nil || index != 1 {
		t.Fatalf("index %d, %v", index, err)
	}
	r.Must(line("put a 2"), line("put b 1"))
	if got, ok := v.Get(toys, []byte("a")); string(got) != "1" || !ok || v.Index() != 1 || dump(v) != "a=1" {
		t.Errorf("the view moved: %q at %d, %s", got, v.Index(), dump(v))
	}
	_, after, _ := r.M.Digests()
	if reflect.DeepEqual(before, after) {
		t.Error("different rows have equal digests")
	}
	r.Must(line("del b"), line("put a 1"))
	if _, back, _ := r.M.Digests(); !reflect.DeepEqual(before, back) {
		t.Errorf("equal rows have digests %v and %v", before, back)
	}
	r.Verify()
	tampered := fsm.Op{Key: []byte("test.toys\x00a"), Value: []byte("9")}
	if err := r.Store.Apply([]fsm.Op{tampered}); err != nil {
		t.Fatal(err)
	}
	if err := r.M.VerifyDigests(); err == nil || !strings.Contains(err.Error(), "test.toys") {
		t.Errorf("a tampered row was not noticed: %v", err)
	}
}

func TestReloadTellsWhoCaches(t *testing.T) {
	r := fsmtest.New(t, toy())
	told := 0
	r.M.OnReload(func() { told++ })
	other := fsmtest.New(t, toy())
	other.Must(line("put a 1"), line("version"))
	for k, v := range other.Store.Rows() {
		if err := r.Store.Apply([]fsm.Op{{Key: []byte(k), Value: []byte(v)}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.M.Reload(); err != nil || told != 1 || r.M.Applied() != 2 || r.M.Version() != 2 {
		t.Errorf("%v, told %d times, applied %d, version %d", err, told, r.M.Applied(), r.M.Version())
	}
	r.Verify()
}

func TestRegistrationMistakesPanic(t *testing.T) {
	mod := func(name string, tables []*fsm.Table, kinds ...log.Kind) fsm.Module {
		m := fsm.Module{Name: name, Tables: tables, Handlers: map[log.Kind]fsm.Handler{}}
		for _, k := range kinds {
			m.Handlers[k] = play
		}
		return m
	}
	tests := map[string]func(){
		"foreign kind":  func() { _, _ = fsm.New(fsmtest.NewStore(), log.Control, mod("fsm/user", nil, log.SettingSet)) },
		"unknown kind":  func() { _, _ = fsm.New(fsmtest.NewStore(), log.Control, mod("fsm/user", nil, 60_000)) },
		"other log":     func() { _, _ = fsm.New(fsmtest.NewStore(), log.Message, toy()) },
		"two handlers":  func() { _, _ = fsm.New(fsmtest.NewStore(), log.Control, toy(), mod("fsm/config", nil, log.SettingSet)) },
		"two tables":    func() { _, _ = fsm.New(fsmtest.NewStore(), log.Control, toy(), mod("fsm/user", []*fsm.Table{toys})) },
		"table name":    func() { fsm.NewTable("!bad") },
		"no table name": func() { fsm.NewTable("") },
	}
	for name, fn := range tests {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("it was accepted")
				}
			}()
			fn()
		})
	}
}

// broken is a store whose disk fails.
type broken struct{ *fsmtest.Store }

func (broken) Apply([]fsm.Op) error { return errors.New("disk full") }

func TestStoreFailureEndsTheProcess(t *testing.T) {
	m, err := fsm.New(broken{fsmtest.NewStore()}, log.Control, toy())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if f, ok := recover().(*fault.Error); !ok || f.Op != "fsm.commit" {
			t.Errorf("recovered %v", f)
		}
		if m.Applied() != 0 {
			t.Error("the index moved on")
		}
	}()
	m.Apply(1, fsmtest.Record(t, 1, line("put a 1")))
}

func TestKeys(t *testing.T) {
	if got := fsm.SplitKey(fsm.Key("a", "", "c")); !reflect.DeepEqual(got, []string{"a", "", "c"}) {
		t.Errorf("split %q", got)
	}
	if got := string(fsm.Prefix("a", "b")); got != "a\x00b\x00" {
		t.Errorf("prefix %q", got)
	}
	if got := fsm.Text("a\xffb"); got != "a\uFFFDb" {
		t.Errorf("text %q", got)
	}
	if toys.Name() != "test.toys" {
		t.Errorf("name %q", toys.Name())
	}
}
