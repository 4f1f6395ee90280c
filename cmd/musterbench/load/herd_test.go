package load

import (
	"strings"
	"testing"
	"time"

	"muster/cmd/musterbench/client"
	"muster/cmd/musterbench/stubserver"
	"muster/cmd/musterbench/target"
	"muster/internal/fault"
)

// two returns an Env whose two nodes are one stub: it knows its sessions wherever they come back.
func two(t *testing.T, s *stubserver.Server, users int) *Env {
	t.Helper()
	e := stub(t, s, users, true)
	there := e.Target.Nodes[0]
	there.Name = "other"
	e.Target.Nodes = append(e.Target.Nodes, there)
	return e
}

func TestHerdResumes(t *testing.T) {
	t.Parallel()
	for _, flow := range []client.Flow{client.Classic, client.Token} {
		t.Run(string(flow), func(t *testing.T) {
			s := &stubserver.Server{Busy: 1}
			e := two(t, s, 12)
			e.Options.Flow, e.Options.Wallet = flow, new(client.Wallet)
			r, err := Herd{Sessions: 10, Break: Drop, Probes: 2, Patience: 30 * time.Second}.Run(t.Context(), e)
			check(t, r, err)
			h := r.Herd
			if h.Resumed != 10 || h.Anew+h.Gone+h.Stuck != 0 || h.Retries != 1 || s.Resumed() != 10 || h.Last < h.First || h.First <= 0 || h.Best < 1 {
				t.Errorf("got %+v; the server resumed %d", h, s.Resumed())
			}
			if h.Before.Max <= 0 || !strings.Contains(r.String(), "10 resumed, 0 anew") {
				t.Errorf("got %s", r)
			}
		})
	}
}

// TestHerdLosesSessions: sessions that the server has forgotten are errors, though their clients come back.
func TestHerdLosesSessions(t *testing.T) {
	t.Parallel()
	e := two(t, &stubserver.Server{Forgetful: true}, 4)
	r, err := Herd{Sessions: 4, Break: Drop, Patience: 30 * time.Second}.Run(t.Context(), e)
	if err != nil || r.Errors != 4 || r.Herd.Gone != 4 || r.Herd.Anew != 4 || r.Herd.Resumed != 0 {
		t.Errorf("got %+v, %+v, %v", r, r.Herd, err)
	}
}

func TestHerdLogsInAnew(t *testing.T) {
	t.Parallel()
	s := new(stubserver.Server)
	e := two(t, s, 4)
	r, err := Herd{Sessions: 4, Break: Drop, Anew: true, Patience: 30 * time.Second}.Run(t.Context(), e)
	check(t, r, err)
	if r.Herd.Anew != 4 || s.Logins() != 8 || s.Resumed() != 0 {
		t.Errorf("got %+v after %d logins", r.Herd, s.Logins())
	}
}

// TestHerdGetsStuck: a client that is not back in time is an error.
func TestHerdGetsStuck(t *testing.T) {
	t.Parallel()
	e := two(t, &stubserver.Server{Busy: 1 << 20}, 2)
	r, err := Herd{Sessions: 2, Break: Drop, Patience: 300 * time.Millisecond}.Run(t.Context(), e)
	if err != nil || r.Errors != 2 || r.Herd.Stuck != 2 || r.Operations != 0 {
		t.Errorf("got %+v, %+v, %v", r, r.Herd, err)
	}
}

func TestHerdRefused(t *testing.T) {
	t.Parallel()
	e := two(t, new(stubserver.Server), 3)
	inline, alone := *e, *e
	inline.Options.Flow = client.Inline
	alone.Target = &target.Target{Users: e.Target.Users, Nodes: e.Target.Nodes[:1]}
	for name, tt := range map[string]struct {
		e *Env
		h Herd
	}{
		"too many":           {e, Herd{Sessions: 3, Probes: 1, Break: Drop}},
		"none":               {e, Herd{Break: Drop}},
		"unknown node":       {e, Herd{Sessions: 1, At: "nowhere", Break: Drop}},
		"one node":           {&alone, Herd{Sessions: 1, Break: Drop}},
		"no process to kill": {e, Herd{Sessions: 1, Break: Kill}},
		"flow":               {&inline, Herd{Sessions: 1, Break: Drop}},
	} {
		if _, err := tt.h.Run(t.Context(), tt.e); !fault.Is(err, fault.BadRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHerdThatNobodyBreaks(t *testing.T) {
	t.Parallel()
	e := two(t, new(stubserver.Server), 1)
	if _, err := (Herd{Sessions: 1, Break: Wait, Patience: 10 * time.Millisecond}).Run(t.Context(), e); !fault.Is(err, fault.Timeout) {
		t.Errorf("got %v", err)
	}
}

func TestBestSecond(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		millis []time.Duration
		want   int
	}{{nil, 0}, {[]time.Duration{5}, 1}, {[]time.Duration{0, 999, 1000, 1500, 1999, 3000}, 3}} {
		var times []time.Duration
		for _, ms := range tt.millis {
			times = append(times, ms*time.Millisecond)
		}
		if got := bestSecond(times); got != tt.want {
			t.Errorf("%v: %d", tt.millis, got)
		}
	}
}
