package register

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"muster/fsm"
	"muster/fsm/cluster"
	"muster/fsm/config"
	"muster/fsm/fsmtest"
	"muster/fsm/user"
	"muster/internal/fault"
	"muster/internal/jid"
	"muster/internal/scram"
	"muster/log"
)

// site is a registrar on a machine of its own.
type site struct {
	*Registrar
	t    *testing.T
	rig  *fsmtest.Rig
	err  error // of the log
	last *log.Entry
}

// Propose implements Proposer.
func (s *site) Propose(_ context.Context, entries ...*log.Entry) ([]fsm.Result, error) {
	if s.err != nil {
		return nil, s.err
	}
	s.last = entries[0]
	return s.rig.Apply(entries...), nil
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, rig: fsmtest.New(t, cluster.Module(), config.Module(), user.Module())}
	s.rig.Must(cluster.InitEntry(cluster.Init{ID: "c1", Name: "test", CACert: []byte("x"), Node: cluster.Member{Name: "n1", ClusterAddr: "n1:1", NewestVersion: log.NewestVersion}}))
	s.rig.Must(config.AddDomainEntry("example.com"))
	s.Registrar = NewRegistrar(s.rig.M, config.NewLive(s.rig.M, 1), s)
	return s
}

func (s *site) set(name, value string) {
	s.t.Helper()
	s.rig.Must(config.SetEntry(name, value, 0))
	s.live.Reload()
}

func (s *site) register(name, password, remote string) fault.Code {
	j := jid.JID{}
	if name != "" {
		j = jid.MustParse(name)
	}
	return fault.CodeOf(s.Register(context.Background(), j, password, remote))
}

func TestRegister(t *testing.T) {
	s := newSite(t)
	if s.Open() || s.register("dora@example.com", "sesame", "a") != fault.NotAllowed {
		t.Error("open by default")
	}
	s.set("register.enabled", "true")
	s.set("register.per_address_per_hour", "100")
	for _, tt := range []struct {
		name, account, password string
		want                    fault.Code
	}{
		{"a new account", "dora@example.com", "sesame", 0},
		{"the same again", "dora@example.com", "sesame", fault.Conflict},
		{"no address", "", "sesame", fault.NotAcceptable},
		{"a domain", "example.com", "sesame", fault.NotAcceptable},
		{"a full address", "emil@example.com/desk", "sesame", fault.NotAcceptable},
		{"a foreign domain", "emil@example.org", "sesame", fault.NotAcceptable},
		{"no password", "emil@example.com", "", fault.NotAcceptable},
		{"a huge password", "emil@example.com", strings.Repeat("x", scram.MaxPassword+1), fault.NotAcceptable},
		{"a password of control characters", "emil@example.com", "a\x00b", fault.NotAcceptable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := s.register(tt.account, tt.password, "a"); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
	u, ok := user.Get(s.rig.M, "dora@example.com")
	if !ok || !u.IM || !u.Presence || u.Admin || user.Count(s.rig.M) != 1 {
		t.Fatalf("made %+v", u)
	}
	for hash, v := range map[scram.Hash]user.Verifier{scram.SHA256: u.SHA256, scram.SHA1: u.SHA1} {
		own := scram.Verifier{Salt: v.Salt, Iterations: v.Iterations, StoredKey: v.StoredKey, ServerKey: v.ServerKey}
		if !own.Matches(hash, "sesame") || own.Iterations != scram.DefaultIterations {
			t.Errorf("%v: not this password, or too weak", hash)
		}
	}
	if e := s.last; e.Actor != "dora@example.com" || e.Surface != "xmpp" || e.Time.IsZero() {
		t.Errorf("proposed by %s through %s at %v", e.Actor, e.Surface, e.Time)
	}
	s.set("register.enabled", "false")
	if s.Open() || s.register("emil@example.com", "sesame", "a") != fault.NotAllowed {
		t.Error("still open")
	}
}

func TestPerAddressLimit(t *testing.T) {
	s := newSite(t)
	s.set("register.enabled", "true")
	for i := range 5 {
		if got := s.register(fmt.Sprintf("user%d@example.com", i), "x", "a"); got != 0 {
			t.Fatalf("%d: %v", i, got)
		}
	}
	if got := s.register("more@example.com", "x", "a"); got != fault.Overloaded {
		t.Errorf("the sixth: %v", got)
	}
	if got := s.register("user1@example.com", "x", "a"); got != fault.Conflict {
		t.Errorf("a name that is taken: %v", got)
	}
	for _, remote := range []string{"b", ""} {
		if got := s.register("by"+remote+"@example.com", "x", remote); got != 0 {
			t.Errorf("from %q: %v", remote, got)
		}
	}
	s.set("register.per_address_per_hour", "6")
	if got := s.register("more@example.com", "x", "a"); got != 0 {
		t.Errorf("after the setting was raised: %v", got)
	}
}

// TestFailuresAreNotCounted: an account that was not made costs its address nothing.
func TestFailuresAreNotCounted(t *testing.T) {
	s := newSite(t)
	s.set("register.enabled", "true")
	s.set("register.per_address_per_hour", "1")
	s.err = fault.New(fault.NoQuorum, "log.propose", "", "")
	if got := s.register("dora@example.com", "x", "a"); got != fault.NoQuorum {
		t.Errorf("without a quorum: %v", got)
	}
	s.err = nil
	if got := s.register("dora@example.com", "x", "a"); got != 0 {
		t.Errorf("with one: %v", got)
	}
	s.err = context.DeadlineExceeded // it may yet be made: it counts
	if got := s.register("emil@example.com", "x", "b"); got != fault.Timeout {
		t.Errorf("too late: %v", got)
	}
	s.err = nil
	if got := s.register("emil@example.com", "x", "b"); got != fault.Overloaded {
		t.Errorf("after an unknown outcome: %v", got)
	}
}

func TestQuota(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	q := quota{made: map[string][]time.Time{}}
	for i, tt := range []struct {
		after time.Duration
		want  bool
	}{{0, true}, {50 * time.Minute, true}, {59 * time.Minute, false}, {60 * time.Minute, true}, {61 * time.Minute, false}, {111 * time.Minute, true}} {
		if got := q.take("a", 2, now.Add(tt.after)); got != tt.want {
			t.Errorf("%d, after %v: %v", i, tt.after, got)
		}
	}
	q.giveBack("a", now.Add(111*time.Minute))
	q.giveBack("nobody", now)
	if !q.take("a", 2, now.Add(112*time.Minute)) {
		t.Error("what was given back counts")
	}
	for i := len(q.made); i < maxAddresses; i++ {
		q.take(fmt.Sprint(i), 1, now.Add(2*time.Hour))
	}
	if q.take("other", 1, now.Add(2*time.Hour)) || len(q.made) != maxAddresses {
		t.Errorf("%d addresses are counted", len(q.made))
	}
	if !q.take("other", 1, now.Add(4*time.Hour)) || len(q.made) != 1 {
		t.Errorf("%d addresses are remembered for ever", len(q.made))
	}
}

func TestHasherIsBounded(t *testing.T) {
	h := newHasher()
	for range cap(h) {
		h <- struct{}{}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if _, _, err := h.derive(ctx, "dora", "sesame"); !fault.Is(err, fault.Overloaded) {
		t.Errorf("without a free worker: %v", err)
	}
	<-h
	if a, b, err := h.derive(context.Background(), "dora", "sesame"); err != nil || a.IsZero() || b.IsZero() {
		t.Errorf("with one: %v", err)
	}
	if len(h) != cap(h)-1 {
		t.Errorf("%d workers busy", len(h))
	}
}
