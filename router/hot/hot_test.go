package hot

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"muster/internal/fault"
	"muster/internal/jid"
)

type quiet struct{}

// Infof implements pebble.Logger.
func (quiet) Infof(string, ...any) {}

// Errorf implements pebble.Logger.
func (quiet) Errorf(string, ...any) {}

// Fatalf implements pebble.Logger.
func (quiet) Fatalf(f string, args ...any) { panic(fmt.Sprintf(f, args...)) }

// bench is a store with a record of the changes that it told.
type bench struct {
	*Store
	db *pebble.DB
	fs *vfs.MemFS

	mu   sync.Mutex
	told []string
}

func open(t testing.TB, self uint32) *bench { return reopen(t, self, vfs.NewMem(), 0) }

func reopen(t testing.TB, self uint32, fs *vfs.MemFS, resident int64) *bench {
	t.Helper()
	db, err := pebble.Open("db", &pebble.Options{FS: fs, Logger: quiet{}})
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(Options{DB: db, Self: self, Resident: resident})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{Store: s, db: db, fs: fs}
	s.OnChange(func(c Change) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.told = append(b.told, describe(c))
	})
	s.Begin(uint64(self) * 100)
	t.Cleanup(func() {
		s.gate.RLock()
		closed := s.closed
		s.gate.RUnlock()
		if !closed {
			s.Close()
			db.Close()
		}
	})
	return b
}

func describe(c Change) string {
	side := func(r *Row) string {
		if r == nil {
			return "none"
		}
		return fmt.Sprintf("%d:%s", r.Node, r.Presence)
	}
	s := fmt.Sprintf("%s/%s %s → %s", c.User.Local, c.Resource, side(c.Before), side(c.After))
	if c.Farewell != nil {
		s += " " + string(c.Farewell)
	}
	return s
}

// want fails the test unless exactly these changes were told since the last call.
func (b *bench) want(t testing.TB, changes ...string) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if strings.Join(b.told, "\n") != strings.Join(changes, "\n") {
		t.Errorf("told\n  %s\nwant\n  %s", strings.Join(b.told, "\n  "), strings.Join(changes, "\n  "))
	}
	b.told = nil
}

func user(name string) jid.JID { return jid.JID{Local: name, Domain: "example.com"} }

func (b *bench) put(t testing.TB, name, resource string, session uint64, text string) {
	t.Helper()
	err := ignore(b.Put(Row{User: user(name), Resource: resource, Session: session, Since: time.Now(), Presence: []byte(text)}))
	if err != nil {
		t.Fatal(err)
	}
}

func ignore(_ Position, err error) error { return err }

// pipe is a Stream that applies at once, or keeps frames while it is held.
type pipe struct {
	from uint32
	to   *bench
	mu   sync.Mutex
	held [][]byte
	hold bool
	cut  bool
	n    int
}

// Send implements Stream.
func (p *pipe) Send(frame []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut {
		return false
	}
	p.n++
	if p.hold {
		p.held = append(p.held, frame)
		return true
	}
	return p.to.Apply(p.from, frame) == nil
}

// Wait implements Stream.
func (p *pipe) Wait() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.cut
}

func (p *pipe) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.held {
		_ = p.to.Apply(p.from, f)
	}
	p.held, p.hold = nil, false
}

// connect subscribes to at from, from where to stands, and waits until a full set is through.
func connect(t testing.TB, from, to *bench) *pipe {
	t.Helper()
	p := &pipe{from: from.self, to: to}
	from.Subscribe(to.self, to.Position(from.self), p)
	until(t, func() bool { return to.Position(from.self) == from.position() })
	return p
}

func (s *Store) position() Position {
	s.own.mu.Lock()
	defer s.own.mu.Unlock()
	return Position{s.own.inc, s.own.seq}
}

func until(t testing.TB, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the condition did not come true")
		}
	}
}

func TestPutAndDelete(t *testing.T) {
	s := open(t, 1)
	s.put(t, "alice", "a", 1, "one")
	s.put(t, "alice", "b", 2, "two")
	s.put(t, "alice", "a", 1, "three")
	s.Delete(user("alice"), "a", 99, nil, "") // another session's: not this row
	s.Delete(user("alice"), "none", 1, nil, "")
	s.Delete(user("alice"), "a", 1, []byte("bye"), "gone home")
	s.want(t, "alice/a none → 1:one", "alice/b none → 1:two", "alice/a 1:one → 1:three", "alice/a 1:three → none bye")
	if rows := s.Rows(user("alice")); len(rows) != 1 || rows[0].Resource != "b" || rows[0].Incarnation != 100 {
		t.Errorf("rows %+v", rows)
	}
	if _, ok := s.Row(user("alice"), "a"); ok {
		t.Error("the removed row is there")
	}
	if gone := s.Recent(user("alice")); len(gone) != 1 || gone[0].Resource != "a" {
		t.Errorf("recent %+v", gone)
	}
	if _, _, ok := s.LastSeen(user("alice")); ok {
		t.Error("last seen although online")
	}
	s.Delete(user("alice"), "b", 2, nil, "off")
	if at, status, ok := s.LastSeen(user("alice")); !ok || status != "off" || time.Since(at) > time.Minute {
		t.Errorf("last seen %v %q %v", at, status, ok)
	}
	s.put(t, "alice", "a", 3, "again")
	if gone := s.Recent(user("alice")); len(gone) != 1 || gone[0].Resource != "b" {
		t.Errorf("recent %+v", gone)
	}
	s.Forget(user("alice"))
	s.Delete(user("alice"), "a", 3, nil, "")
	if _, err := s.Put(Row{User: user("x"), Resource: "r", Presence: make([]byte, MaxPresence+1)}); !fault.Is(err, fault.TooLarge) {
		t.Errorf("a huge presence: %v", err)
	}
	if s.Count() != 0 || s.ResidentBytes() != 0 {
		t.Errorf("%d rows and %d bytes are left", s.Count(), s.ResidentBytes())
	}
}

func TestBestRowFirst(t *testing.T) {
	s := open(t, 1)
	base := time.Now()
	for i, prio := range []int8{0, 5, -3, 5} {
		if _, err := s.Put(Row{User: user("alice"), Resource: fmt.Sprint(i), Priority: prio, Since: base.Add(time.Duration(i) * time.Second)}); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for _, r := range s.Rows(user("alice")) {
		got = append(got, r.Resource)
	}
	if strings.Join(got, "") != "3102" {
		t.Errorf("order %v", got)
	}
}

func TestStream(t *testing.T) {
	a, b := open(t, 1), open(t, 2)
	a.put(t, "alice", "x", 1, "before")
	connect(t, a, b)
	b.want(t, "alice/x none → 1:before")
	a.put(t, "alice", "x", 1, "after")
	a.Delete(user("alice"), "x", 1, []byte("bye"), "status")
	b.want(t, "alice/x 1:before → 1:after", "alice/x 1:after → none bye")
	if _, status, ok := b.LastSeen(user("alice")); !ok || status != "status" {
		t.Errorf("last seen at the other node: %q %v", status, ok)
	}
	if !b.Reached(1, a.position()) || b.Reached(1, Position{100, 99}) || !b.Reached(2, Position{999, 9}) {
		t.Error("Reached is wrong")
	}
}

// TestResume: what was missed is sent, and nothing else, in whatever way the stream broke.
func TestResume(t *testing.T) {
	tests := []struct {
		name   string
		while  func(t *testing.T, a *bench) // what the origin does while the stream is cut
		frames int                          // at most
		told   []string
	}{
		{"nothing happened", func(*testing.T, *bench) {}, 0, nil},
		{"a few operations", func(t *testing.T, a *bench) {
			a.put(t, "alice", "x", 1, "2")
			a.put(t, "bob", "y", 2, "1")
			a.Delete(user("bob"), "y", 2, nil, "")
		}, 3, []string{"alice/x 1:1 → 1:2", "bob/y none → 1:1", "bob/y 1:1 → none"}},
		{"more than the ring holds", func(t *testing.T, a *bench) {
			a.put(t, "alice", "x", 1, "2")
			a.Delete(user("carol"), "z", 3, nil, "")
			a.own.mu.Lock()
			a.own.ring, a.own.bytes = nil, 0
			a.own.mu.Unlock()
		}, 3, []string{"alice/x 1:1 → 1:2", "carol/z 1:c → none"}},
		{"a new incarnation with the same sessions", func(t *testing.T, a *bench) { a.Begin(101) }, 3, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, b := open(t, 1), open(t, 2)
			a.put(t, "alice", "x", 1, "1")
			a.put(t, "carol", "z", 3, "c")
			p := connect(t, a, b)
			p.mu.Lock()
			p.cut = true
			p.mu.Unlock()
			a.Unsubscribe(2)
			b.told = nil
			tt.while(t, a)
			again := connect(t, a, b)
			if tt.name == "a new incarnation with the same sessions" {
				b.told = nil // each row once more, under the new incarnation
			}
			b.want(t, tt.told...)
			if again.n > tt.frames {
				t.Errorf("%d frames, want at most %d", again.n, tt.frames)
			}
			b.DropNode(1, 100, 0) // what the former incarnation wrote
			rows := len(b.Rows(user("alice"))) + len(b.Rows(user("carol")))
			if want := b.Position(1).Incarnation == 101; want && rows != 2 || !want && rows != 0 {
				t.Errorf("%d rows are left at incarnation %d", rows, b.Position(1).Incarnation)
			}
		})
	}
}

func TestFullSetWhileRowsChange(t *testing.T) {
	a, b := open(t, 1), open(t, 2)
	const users = 500
	for i := range users {
		a.put(t, fmt.Sprint("u", i), "r", uint64(i+1), strings.Repeat("x", 700))
	}
	a.own.mu.Lock()
	a.own.ring = nil
	a.own.mu.Unlock()
	p := &pipe{from: 1, to: b}
	a.Subscribe(2, Position{}, p)
	for i := range users {
		switch i % 3 {
		case 0:
			a.put(t, fmt.Sprint("u", i), "r", uint64(i+1), "new")
		case 1:
			a.Delete(user(fmt.Sprint("u", i)), "r", uint64(i+1), nil, "")
		}
	}
	until(t, func() bool { return b.Position(1) == a.position() })
	for i := range users {
		mine, theirs := a.Rows(user(fmt.Sprint("u", i))), b.Rows(user(fmt.Sprint("u", i)))
		if len(mine) != len(theirs) || len(mine) == 1 && !bytes.Equal(mine[0].Presence, theirs[0].Presence) {
			t.Fatalf("user %d: %d rows here, %d there", i, len(mine), len(theirs))
		}
	}
}

func TestDropNode(t *testing.T) {
	a, b := open(t, 1), open(t, 2)
	a.put(t, "alice", "x", 1, "1")
	a.put(t, "bob", "y", 2, "1")
	p := connect(t, a, b)
	b.told = nil
	p.mu.Lock()
	p.hold = true
	p.mu.Unlock()
	a.put(t, "alice", "x", 1, "late")
	b.DropNode(1, 100, 0)
	b.DropNode(1, 100, 0)
	p.release() // what was under way when the node was declared down
	if len(b.told) != 2 {
		t.Errorf("told %q", b.told)
	}
	if b.Count() != 0 {
		t.Errorf("%d rows are left", b.Count())
	}
	if gone := b.Recent(user("alice")); len(gone) != 1 {
		t.Errorf("recent %+v", gone)
	}
	if _, _, ok := b.LastSeen(user("bob")); !ok {
		t.Error("not remembered when bob was last seen")
	}
	b.told = nil
	a.Begin(102)
	connect(t, a, b)
	if len(b.told) != 2 || b.Count() != 2 {
		t.Errorf("after the new start: told %q, %d rows", b.told, b.Count())
	}
}

// TestSameResourceOfTwoNodes: a session replaced by one on another node shows no gap, and the old row's end shows nothing.
func TestSameResourceOfTwoNodes(t *testing.T) {
	a, b, c := open(t, 1), open(t, 2), open(t, 3)
	connect(t, a, c)
	connect(t, b, c)
	a.put(t, "alice", "x", 1, "old")
	b.put(t, "alice", "x", 2, "new")
	a.Delete(user("alice"), "x", 1, nil, "")
	c.want(t, "alice/x none → 1:old", "alice/x 1:old → 2:new")
	if rows := c.Rows(user("alice")); len(rows) != 1 || rows[0].Node != 2 {
		t.Errorf("rows %+v", rows)
	}
	b.Delete(user("alice"), "x", 2, nil, "")
	c.want(t, "alice/x 2:new → none")
}

func TestRestart(t *testing.T) {
	fs := vfs.NewMem()
	a, b := open(t, 1), reopen(t, 2, fs, 0)
	a.put(t, "alice", "x", 1, "theirs")
	b.put(t, "bob", "y", 2, "own")
	p := connect(t, a, b)
	b.SetLastSeen(user("carol"), time.Unix(1000, 0), "lunch")
	p.mu.Lock()
	p.cut = true
	p.mu.Unlock()
	a.put(t, "alice", "x", 1, "changed meanwhile")
	b.Close()
	if err := b.db.Close(); err != nil {
		t.Fatal(err)
	}
	again := reopen(t, 2, fs, 0)
	if again.Count() != 1 || len(again.Rows(user("bob"))) != 0 {
		t.Errorf("%d rows after the restart; own ones must be gone", again.Count())
	}
	if at, status, ok := again.LastSeen(user("carol")); !ok || status != "lunch" || at.Unix() != 1000 {
		t.Errorf("last seen %v %q %v", at, status, ok)
	}
	connect(t, a, again)
	again.want(t, "alice/x 1:theirs → 1:changed meanwhile")
	again.Retain(func(node uint32, inc uint64) bool { return node == 1 && inc == 100 })
	if again.Count() != 1 {
		t.Error("a living node's rows were dropped")
	}
	again.Retain(func(uint32, uint64) bool { return false })
	if again.Count() != 0 {
		t.Error("a dead node's rows were kept")
	}
}

func TestMemoryIsBounded(t *testing.T) {
	s := reopen(t, 1, vfs.NewMem(), 10_000)
	text := strings.Repeat("p", 400)
	for i := range 100 {
		s.put(t, fmt.Sprint("u", i), "r", uint64(i+1), text)
	}
	if s.ResidentBytes() > 10_000 {
		t.Errorf("%d bytes in memory", s.ResidentBytes())
	}
	for i := range 100 {
		r, ok := s.Row(user(fmt.Sprint("u", i)), "r")
		if !ok || string(r.Presence) != text {
			t.Fatalf("row %d: %v %q", i, ok, r.Presence)
		}
	}
	s.told = nil
	s.Delete(user("u99"), "r", 100, nil, "")
	s.want(t, "u99/r 1:"+text+" → none")
	if len(s.Heads(user("u0"))) != 1 || !s.Online(user("u0")) {
		t.Error("heads")
	}
	for i := range 100 {
		s.Delete(user(fmt.Sprint("u", i)), "r", uint64(i+1), nil, "")
	}
	if s.ResidentBytes() != 0 || s.Count() != 0 {
		t.Errorf("%d rows, %d bytes are left", s.Count(), s.ResidentBytes())
	}
}

func TestRecentIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, 1)
		s.put(t, "alice", "x", 1, "1")
		s.Delete(user("alice"), "x", 1, nil, "")
		time.Sleep(RecentFor - time.Second)
		if len(s.Recent(user("alice"))) != 1 {
			t.Error("forgotten too early")
		}
		time.Sleep(2 * time.Second)
		if len(s.Recent(user("alice"))) != 0 {
			t.Error("not forgotten")
		}
	})
	s := open(t, 1)
	for i := range 2*maxRecent + 10 {
		s.put(t, "alice", fmt.Sprint(i), 1, "1")
		s.Delete(user("alice"), fmt.Sprint(i), 1, nil, "")
	}
	if n := len(s.Recent(user("alice"))); n > maxRecent || n < maxRecent/2 {
		t.Errorf("%d removed rows remembered", n)
	}
}

func TestRingIsBounded(t *testing.T) {
	s := open(t, 1)
	big := strings.Repeat("x", MaxPresence)
	for i := range 40 {
		s.put(t, "alice", fmt.Sprint(i), 1, big)
	}
	if s.own.bytes > maxRingBytes+len(big)+1024 || len(s.own.ring) >= 40 {
		t.Errorf("the ring holds %d operations of %d bytes", len(s.own.ring), s.own.bytes)
	}
}

// TestConcurrentWriters: the changes of each user come in the order of its rows, although many write.
func TestConcurrentWriters(t *testing.T) {
	a, b := open(t, 1), open(t, 2)
	last := map[string]uint64{}
	var mu sync.Mutex
	b.OnChange(func(c Change) {
		mu.Lock()
		defer mu.Unlock()
		if c.After.Version <= last[c.User.Local] {
			t.Errorf("%s: version %d after %d", c.User.Local, c.After.Version, last[c.User.Local])
		}
		last[c.User.Local] = c.After.Version
	})
	connect(t, a, b)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 200 {
				a.put(t, fmt.Sprint("u", w), "r", 1, fmt.Sprint(i))
			}
		})
	}
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	if len(last) != 8 || len(b.told) != 1600 {
		t.Errorf("%d users, %d changes", len(last), len(b.told))
	}
}

func TestMalformedFrames(t *testing.T) {
	s := open(t, 1)
	op := appendOperation(nil, &operation{kind: opPut, row: Row{User: user("a"), Resource: "r", Version: 1, Presence: []byte("p")}})
	head := []byte{frameOps, 0, 0, 0, 0, 0, 0, 0, 9}
	tests := []struct {
		name  string
		frame []byte
	}{
		{"empty", nil},
		{"short", []byte{frameOps, 1}},
		{"unknown", []byte{77, 0, 0, 0, 0, 0, 0, 0, 9}},
		{"cut operation", append(bytes.Clone(head), op[:len(op)-1]...)},
		{"unknown operation", append(bytes.Clone(head), 9)},
		{"end without a begin", append([]byte{frameEnd}, make([]byte, 16)...)},
		{"cut end", []byte{frameEnd, 0, 0, 0, 0, 0, 0, 0, 9}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.name == "end without a begin" {
				tt.frame[8] = 9
			}
			if err := s.Apply(2, tt.frame); !fault.Is(err, fault.BadRequest) {
				t.Errorf("got %v", err)
			}
		})
	}
	if err := s.Apply(1, append(head, op...)); !fault.Is(err, fault.BadRequest) {
		t.Errorf("a frame that says it is from this node itself: %v", err)
	}
	if s.Count() != 0 {
		t.Error("a malformed frame left a row")
	}
}

func FuzzApply(f *testing.F) {
	put := appendOperation([]byte{frameOps, 0, 0, 0, 0, 0, 0, 0, 9}, &operation{kind: opPut, row: Row{User: user("a"), Resource: "r", Version: 1, Presence: []byte("p"), Since: time.Unix(1, 0)}})
	f.Add(put)
	f.Add(appendOperation(put, &operation{kind: opDelete, row: Row{User: user("a"), Resource: "r", Version: 2, Since: time.Unix(1, 0)}, farewell: []byte("x"), status: "s"}))
	f.Add([]byte{frameBegin, 0, 0, 0, 0, 0, 0, 0, 9})
	f.Add([]byte{frameEnd, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 1})
	s := open(f, 1)
	f.Fuzz(func(t *testing.T, frame []byte) {
		_ = s.Apply(2, frame)
		for _, r := range s.Rows(user("a")) {
			if r.Node != 2 || r.Resource == "" {
				t.Errorf("row %+v", r)
			}
		}
		s.DropNode(2, 8, 0)
	})
}

func BenchmarkLookup20Contacts(b *testing.B) {
	s := open(b, 1)
	for i := range 5000 {
		s.put(b, fmt.Sprint("user", i), "phone", uint64(i+1), strings.Repeat("x", 300))
	}
	contacts := make([]jid.JID, 20)
	for i := range contacts {
		contacts[i] = user(fmt.Sprint("user", i*211))
	}
	b.ReportAllocs()
	for b.Loop() {
		for _, c := range contacts {
			if len(s.Rows(c)) != 1 {
				b.Fatal("no row")
			}
		}
	}
}

func BenchmarkPut(b *testing.B) {
	s := open(b, 1)
	text := []byte(strings.Repeat("x", 300))
	b.ReportAllocs()
	for b.Loop() {
		_, _ = s.Put(Row{User: user("alice"), Resource: "r", Session: 1, Since: time.Now(), Presence: text})
		s.told = s.told[:0]
	}
}
