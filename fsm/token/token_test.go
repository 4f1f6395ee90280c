package token_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"muster/fsm/cluster"
	"muster/fsm/config"
	"muster/fsm/fsmtest"
	"muster/fsm/token"
	"muster/fsm/token/tokenpb"
	"muster/fsm/user"
	"muster/internal/fault"
	"muster/log"
)

const (
	alice = "alice@example.com"
	never = -1 << 31
)

var today = token.DayOf(fsmtest.Start)

func rig(tb testing.TB) *fsmtest.Rig {
	r := fsmtest.New(tb, cluster.Module(), config.Module(),
		user.ModuleWith(user.Hooks{Delete: []user.Hook{token.DeleteUser}, Disable: []user.Hook{token.DisableUser}}), token.Module())
	r.Must(config.AddDomainEntry("example.com"), user.CreateEntry(user.User{Name: alice, IM: true}))
	return r
}

func agent(n int) token.Agent {
	a, ok := token.ParseAgent(fmt.Sprintf("00000000-0000-4000-8000-%012x", n))
	if !ok {
		panic("not a UUID")
	}
	return a
}

// void returns an entry that makes the tokens of a client void; days are counted from the rig's first day.
func void(client int, before int) *log.Entry {
	return token.VoidEntry(token.Void{User: alice, Agent: agent(client), Before: uint32(int(today) + before)})
}

// standing returns the day of a client, counted from the rig's first day; never for none.
func standing(r *fsmtest.Rig, client int) int {
	s := token.StandingOf(r.M, alice, agent(client))
	if s.Before == 0 {
		return never
	}
	return int(s.Before) - int(today)
}

func TestVoid(t *testing.T) {
	r := rig(t)
	if got := token.StandingOf(r.M, alice, agent(1)); got != (token.Standing{}) {
		t.Errorf("void from the start: %+v", got)
	}
	r.Must(void(1, 0), void(2, -3))
	if standing(r, 1) != 0 || standing(r, 2) != -3 || standing(r, 3) != never {
		t.Errorf("days %d, %d, %d", standing(r, 1), standing(r, 2), standing(r, 3))
	}
	r.Must(void(1, -5)) // late: nothing comes back
	if standing(r, 1) != 0 {
		t.Errorf("an earlier day brought tokens back: %d", standing(r, 1))
	}
	if len(r.Changes) != 0 {
		t.Errorf("nothing new was written: %v", r.Changes)
	}
	r.Must(void(1, token.MaxAhead))
	r.Refused(void(1, token.MaxAhead+1), fault.NotAcceptable)
	r.Refused(token.VoidEntry(token.Void{User: "bob@example.com", Agent: agent(1), Before: today}), fault.NotFound)
	r.Refused(&log.Entry{Kind: log.TokenVoid, Body: []byte{0xff}}, fault.BadRequest)
	r.Refused(log.New(log.TokenVoid, &tokenpb.Void{User: alice, Agent: make([]byte, 15), Before: today}), fault.BadRequest)
	r.Verify()
}

func TestDisabledAndDeletedUsers(t *testing.T) {
	yes, no := true, false
	r := rig(t)
	r.Must(void(1, 0), void(2, 0))
	mail := "a@example.com"
	r.Must(user.UpdateEntry(alice, user.Update{Email: &mail}), user.UpdateEntry(alice, user.Update{IM: &yes}))
	if g := token.StandingOf(r.M, alice, agent(1)).Generation; g != 0 {
		t.Errorf("a change that disables nobody raised the generation to %d", g)
	}
	index := r.Must(user.UpdateEntry(alice, user.Update{IM: &no})).Index
	if got := token.StandingOf(r.M, alice, agent(1)); got != (token.Standing{Generation: index}) {
		t.Errorf("disabled at %d: %+v", index, got)
	}
	r.Must(user.UpdateEntry(alice, user.Update{IM: &no}))
	if got := token.StandingOf(r.M, alice, agent(1)); got.Generation != index {
		t.Errorf("disabled twice: %+v", got)
	}
	r.Must(user.UpdateEntry(alice, user.Update{IM: &yes}), void(1, 0))
	if got := token.StandingOf(r.M, alice, agent(1)); got != (token.Standing{Generation: index, Before: today}) {
		t.Errorf("enabled again: %+v", got)
	}
	r.Must(user.DeleteEntry(alice))
	for k := range r.Store.Rows() {
		if strings.HasPrefix(k, "token.") && strings.Contains(k, alice) {
			t.Errorf("row %q is left", k)
		}
	}
	r.Verify()
}

// TestClientsAreBounded: the client that has been away longest makes room, and what was void stays void.
func TestClientsAreBounded(t *testing.T) {
	r := rig(t)
	for n := range token.MaxClients {
		r.Must(void(n, n-40)) // -40 … -9
	}
	r.Must(void(100, -1))
	for _, tt := range []struct{ client, want int }{{0, -40}, {1, -39}, {31, -9}, {100, -1}, {200, -40}} {
		if got := standing(r, tt.client); got != tt.want {
			t.Errorf("client %d: tokens count from day %d, want %d", tt.client, got, tt.want)
		}
	}
	for n := 101; n < 200; n++ {
		before := map[int]uint32{}
		for c := range 200 {
			before[c] = token.StandingOf(r.M, alice, agent(c)).Before
		}
		r.Must(void(n, -1))
		for c := range 200 {
			if got := token.StandingOf(r.M, alice, agent(c)).Before; got < before[c] {
				t.Fatalf("client %d: tokens of day %d came back", c, got)
			}
		}
		if n := rows(r); n > token.MaxClients {
			t.Fatalf("%d rows", n)
		}
	}
	r.Verify()
}

// TestOldRowsGoFirst: a row whose tokens have all expired costs nobody anything.
func TestOldRowsGoFirst(t *testing.T) {
	r := rig(t)
	for n := range token.MaxClients {
		r.Must(void(n, -token.MaxDays-1-n%2)) // half of them a day older than the other half
	}
	r.Must(void(100, 0))
	if got := token.StandingOf(r.M, alice, agent(200)).Before; got != 0 {
		t.Errorf("a client that never had a token lost those of before day %d", got)
	}
	if n := rows(r); n != 1 {
		t.Errorf("%d rows are left", n)
	}
}

func rows(r *fsmtest.Rig) (n int) {
	for k := range r.Store.Rows() {
		if strings.Contains(k, alice+"\x00") {
			n++
		}
	}
	return n
}

func TestDays(t *testing.T) {
	for _, tt := range []struct {
		at   string
		day  uint32
		ends string
	}{
		{"1970-01-01T00:00:00Z", 0, "1970-01-02T00:00:00Z"},
		{"1969-12-31T00:00:00Z", 0, "1970-01-02T00:00:00Z"},
		{"2026-01-01T23:59:59Z", 20454, "2026-01-02T00:00:00Z"},
		{"2026-01-02T00:00:00Z", 20455, "2026-01-03T00:00:00Z"},
		{"2026-01-02T01:00:00+02:00", 20454, "2026-01-02T00:00:00Z"},
	} {
		at, err := time.Parse(time.RFC3339, tt.at)
		if err != nil {
			t.Fatal(err)
		}
		if d := token.DayOf(at); d != tt.day || token.EndOf(d).Format(time.RFC3339) != tt.ends {
			t.Errorf("%s: day %d ends %v", tt.at, d, token.EndOf(d))
		}
	}
}

func TestParseAgent(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		ok         bool
	}{
		{"as printed in the XEP", "d4565fa7-4d72-4749-b3d3-740edbf87770", true},
		{"capital letters", "D4565FA7-4D72-4749-B3D3-740EDBF87770", true},
		{"version 1", "d4565fa7-4d72-1749-b3d3-740edbf87770", false},
		{"version 7", "d4565fa7-4d72-7749-b3d3-740edbf87770", false},
		{"other variant", "d4565fa7-4d72-4749-c3d3-740edbf87770", false},
		{"nil", "00000000-0000-0000-0000-000000000000", false},
		{"braces", "{d4565fa7-4d72-4749-b3d3-740edbf8777}", false},
		{"no dashes", "d4565fa74d724749b3d3740edbf87770", false},
		{"dash for digit", "d4565fa7-4d72-4749-b3d3-740edbf8777-", false},
		{"not hexadecimal", "g4565fa7-4d72-4749-b3d3-740edbf87770", false},
		{"too long", "d4565fa7-4d72-4749-b3d3-740edbf877700", false},
		{"empty", "", false},
	} {
		a, ok := token.ParseAgent(tt.text)
		if ok != tt.ok || !ok && a != (token.Agent{}) {
			t.Errorf("%s: %x, %v", tt.name, a, ok)
		}
	}
	lower, _ := token.ParseAgent("d4565fa7-4d72-4749-b3d3-740edbf87770")
	upper, _ := token.ParseAgent("D4565FA7-4D72-4749-B3D3-740EDBF87770")
	if lower != upper {
		t.Error("one client is two by the case of its letters")
	}
}

func FuzzParseAgent(f *testing.F) {
	f.Add("d4565fa7-4d72-4749-b3d3-740edbf87770")
	f.Add("D4565FA7-4D72-4749-B3D3-740EDBF8777\x00")
	f.Fuzz(func(t *testing.T, s string) {
		a, ok := token.ParseAgent(s)
		if !ok {
			return
		}
		back := fmt.Sprintf("%x-%x-%x-%x-%x", a[:4], a[4:6], a[6:8], a[8:10], a[10:])
		if back != strings.ToLower(s) || a[6]>>4 != 4 {
			t.Errorf("%q was read as %s", s, back)
		}
	})
}

// TestDerive: a token depends on all that it is bound to, and on nothing else.
func TestDerive(t *testing.T) {
	owner := func() token.Owner {
		return token.Owner{User: alice, Created: fsmtest.Start, Password: [2][]byte{[]byte("a"), []byte("bc")}, Generation: 1, Agent: agent(1), Mechanism: "HT-SHA-256-NONE"}
	}
	key := []byte("key")
	first := string(token.NewDeriver(key, owner()).Token(20_000))
	if len(first) != 43 || first != string(token.NewDeriver(key, owner()).Token(20_000)) {
		t.Fatalf("token %q", first)
	}
	seen := map[string]string{first: "the first"}
	for _, tt := range []struct {
		name   string
		change func(*token.Owner)
	}{
		{"user", func(o *token.Owner) { o.User = "alicE@example.com" }},
		{"created", func(o *token.Owner) { o.Created = o.Created.Add(1) }},
		{"password", func(o *token.Owner) { o.Password[0] = []byte("x") }},
		{"the other verifier", func(o *token.Owner) { o.Password[1] = nil }},
		{"border between verifiers", func(o *token.Owner) { o.Password = [2][]byte{[]byte("ab"), []byte("c")} }},
		{"generation", func(o *token.Owner) { o.Generation = 2 }},
		{"client", func(o *token.Owner) { o.Agent = agent(2) }},
		{"mechanism", func(o *token.Owner) { o.Mechanism = "HT-SHA-256-ENDP" }},
	} {
		o := owner()
		tt.change(&o)
		got := string(token.NewDeriver(key, o).Token(20_000))
		if other := seen[got]; other != "" {
			t.Errorf("another %s gives the token of %s", tt.name, other)
		}
		seen[got] = tt.name
	}
	d := token.NewDeriver(key, owner())
	next := bytes.Clone(d.Token(20_001))
	if string(next) == first || string(d.Token(20_000)) != first || string(token.NewDeriver([]byte("kez"), owner()).Token(20_000)) == first {
		t.Error("another day or key gives the same token, or a deriver can be used only once")
	}
}

func BenchmarkToken(b *testing.B) {
	d := token.NewDeriver([]byte("key"), token.Owner{User: alice, Password: [2][]byte{make([]byte, 32), make([]byte, 20)}, Agent: agent(1), Mechanism: "HT-SHA-256-NONE"})
	b.ReportAllocs()
	for i := range b.N {
		d.Token(uint32(i))
	}
}
