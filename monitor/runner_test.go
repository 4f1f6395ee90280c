package monitor

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// world is a Source whose facts a test changes.
type world struct {
	mu      sync.Mutex
	log     LogFacts
	sync    SyncFacts
	cluster ClusterFacts
}

func newWorld() *world {
	return &world{log: LogFacts{Name: "control", Applied: 1, Wanted: 1, CaughtUp: true}, cluster: ClusterFacts{Version: 1, PublisherTimeout: 5 * time.Minute}}
}

func (w *world) change(fn func(*world)) { w.mu.Lock(); defer w.mu.Unlock(); fn(w) }
func (w *world) LogFacts() []LogFacts   { w.mu.Lock(); defer w.mu.Unlock(); return []LogFacts{w.log} }
func (w *world) SyncFacts() SyncFacts   { w.mu.Lock(); defer w.mu.Unlock(); return w.sync }
func (w *world) ClusterFacts() ClusterFacts {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cluster
}

// probe is a Service that a test steers and that notes its life in a shared journal.
type probe struct {
	name    string
	needs   []Gate
	journal *journal

	mu      sync.Mutex
	startFn func(ctx context.Context) error
	stopFn  func() error
	health  Health
}

type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) add(s string) { j.mu.Lock(); defer j.mu.Unlock(); j.lines = append(j.lines, s) }
func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Join(j.lines, ", ")
}

func (p *probe) Name() string  { return p.name }
func (p *probe) Needs() []Gate { return p.needs }
func (p *probe) Start(ctx context.Context) error {
	p.mu.Lock()
	fn := p.startFn
	p.mu.Unlock()
	p.journal.add("start " + p.name)
	if fn != nil {
		return fn(ctx)
	}
	return nil
}
func (p *probe) Stop(context.Context) error {
	p.journal.add("stop " + p.name)
	p.mu.Lock()
	fn := p.stopFn
	p.mu.Unlock()
	if fn != nil {
		return fn()
	}
	return nil
}
func (p *probe) Health() Health { p.mu.Lock(); defer p.mu.Unlock(); return p.health }

func (p *probe) set(fn func(*probe)) { p.mu.Lock(); defer p.mu.Unlock(); fn(p) }

// startRunner runs services over w inside a synctest bubble.
func startRunner(t *testing.T, w *world, services ...Service) *Runner {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	r := NewRunner(Options{Source: w, Services: services, Alarms: NewAlarms(quiet), Logger: quiet, Oldest: 1, Newest: 1})
	r.Start()
	t.Cleanup(func() {
		if err := r.Stop(context.Background()); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	return r
}

// settle lets virtual time pass until everything is quiet.
func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func stateOf(r *Runner, name string) ServiceStatus {
	for _, s := range r.Report() {
		if s.Name == name {
			return s
		}
	}
	return ServiceStatus{}
}

func TestRunnerStartsInOrderAndStopsInReverse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := &journal{}
		r := startRunner(t, newWorld(),
			&probe{name: "router", needs: []Gate{GateLog}, journal: j},
			&probe{name: "clients", needs: []Gate{Running("router")}, journal: j})
		settle(time.Second)
		if ok, why := r.Ready(); !ok {
			t.Fatalf("not ready: %s", why)
		}
		if err := r.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got, want := j.String(), "start router, start clients, stop clients, stop router"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if s := stateOf(r, "router"); s.State != Stopped {
			t.Errorf("after the stop the router is %s", s.State)
		}
	})
}

func TestRunnerWaitsVisiblyAndRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.log = LogFacts{Name: "control", Applied: 0, Wanted: 1000}
		r := startRunner(t, w, &probe{name: "clients", needs: FeatureGates(), journal: &journal{}})
		for range 20 {
			settle(time.Second)
			w.change(func(w *world) { w.log.Applied += 10 })
		}
		if s := stateOf(r, "clients"); s.State != Starting || !strings.Contains(s.Reason, "of 1000") {
			t.Fatalf("it waits as %+v", s)
		}
		if ok, why := r.Ready(); ok || !strings.Contains(why, "clients STARTING") {
			t.Fatalf("ready: %v %q", ok, why)
		}
		alarms := r.opts.Alarms.Active()
		if len(alarms) != 1 || alarms[0].Name != AlarmWaiting || alarms[0].IndexWanted != 1000 {
			t.Fatalf("alarms are %+v", alarms)
		}
		if e := alarms[0].Estimate; e < 60*time.Second || e > 110*time.Second { // 800 to go at about 10 a second
			t.Errorf("the estimate is %s", e)
		}
		w.change(func(w *world) { w.log = LogFacts{Name: "control", Applied: 1000, Wanted: 1000, CaughtUp: true} })
		settle(time.Second)
		if s := stateOf(r, "clients"); s.State != Started || s.Reason != "" {
			t.Fatalf("after catching up it is %+v", s)
		}
		history := r.opts.Alarms.History()
		if len(history) != 2 || !history[0].Raised || history[1].Raised {
			t.Errorf("the history is %+v", history)
		}
	})
}

func TestRunnerRetriesWithGrowingDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at []time.Duration
		begin := time.Now()
		p := &probe{name: "clients", journal: &journal{}}
		p.startFn = func(context.Context) error {
			at = append(at, time.Since(begin).Round(time.Second))
			if len(at) < 5 {
				return errors.New("port in use")
			}
			return nil
		}
		r := startRunner(t, newWorld(), p)
		settle(2 * time.Second)
		if s := stateOf(r, "clients"); s.State != Starting || !strings.Contains(s.Reason, "port in use") {
			t.Errorf("after a failure it is %+v", s)
		}
		settle(time.Minute)
		want := []time.Duration{0, 1, 3, 7, 15}
		for i := range want {
			if len(at) != len(want) || at[i] < want[i]*time.Second || at[i] > (want[i]+2)*time.Second {
				t.Fatalf("attempts at %v, want about %v seconds", at, want)
			}
		}
		if s := stateOf(r, "clients"); s.State != Started || s.Reason != "" {
			t.Errorf("at last it is %+v", s)
		}
		if a := r.opts.Alarms.Active(); len(a) != 0 {
			t.Errorf("alarms left: %+v", a)
		}
	})
}

func TestRunnerContainsPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := &journal{}
		bad := &probe{name: "bad", journal: j, startFn: func(context.Context) error { panic("nil map") }}
		good := &probe{name: "good", journal: j}
		r := startRunner(t, newWorld(), bad, good)
		settle(time.Second / 2)
		if s := stateOf(r, "bad"); s.State != Starting || !strings.Contains(s.Reason, "panic: nil map") {
			t.Errorf("the panicking service is %+v", s)
		}
		if s := stateOf(r, "good"); s.State != Started {
			t.Errorf("the other service is %+v", s)
		}
		bad.set(func(p *probe) { p.startFn, p.stopFn = nil, func() error { panic("twice") } })
		settle(5 * time.Second)
		if s := stateOf(r, "bad"); s.State != Started {
			t.Errorf("after the retry it is %+v", s)
		}
	})
}

func TestRunnerObeysAdministrator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, j := newWorld(), &journal{}
		r := startRunner(t, w, &probe{name: "clients", journal: j})
		settle(time.Second)
		w.change(func(w *world) { w.cluster.Stopped = map[string]string{"clients": "ann"} })
		settle(time.Second)
		if s := stateOf(r, "clients"); s.State != Stopped || s.Reason != ReasonCommanded {
			t.Fatalf("commanded out of service it is %+v", s)
		}
		if ok, why := r.Ready(); !ok {
			t.Errorf("a node whose service was stopped on purpose is not ready: %s", why)
		}
		w.change(func(w *world) { w.cluster.Stopped = nil })
		settle(time.Second)
		if got := j.String(); got != "start clients, stop clients, start clients" {
			t.Errorf("got %q", got)
		}
	})
}

func TestRunnerCallsOffASlowStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		p := &probe{name: "slow", journal: &journal{}, startFn: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}
		r := startRunner(t, w, p)
		settle(time.Second)
		w.change(func(w *world) { w.cluster.Stopped = map[string]string{"slow": "ann"} })
		settle(time.Second)
		if s := stateOf(r, "slow"); s.State != Stopped || s.Reason != ReasonCommanded {
			t.Errorf("it is %+v", s)
		}
		if a := r.opts.Alarms.Active(); len(a) != 0 {
			t.Errorf("a start that was called off raised %+v", a)
		}
	})
}

func TestRunnerShowsAServiceThatDoesNotStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		release := make(chan struct{})
		p := &probe{name: "stuck", journal: &journal{}, stopFn: func() error { <-release; return nil }}
		r := startRunner(t, w, p)
		settle(time.Second)
		w.change(func(w *world) { w.cluster.Stopped = map[string]string{"stuck": "ann"} })
		settle(time.Minute)
		if s := stateOf(r, "stuck"); s.State != Stopping || !strings.Contains(s.Reason, "has not stopped within 10s") {
			t.Errorf("it is %+v", s)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := r.settle(ctx, r.units[0]); err == nil || !strings.Contains(err.Error(), "stuck has not stopped") {
			t.Errorf("waiting for it gives %v", err)
		}
		close(release)
		settle(time.Second)
		if s := stateOf(r, "stuck"); s.State != Stopped {
			t.Errorf("at last it is %+v", s)
		}
	})
}

func TestRunnerRestartsAServiceThatEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := &journal{}
		p := &probe{name: "clients", journal: j}
		r := startRunner(t, newWorld(), p)
		settle(time.Second)
		p.set(func(p *probe) { p.health = Health{State: Stopped, Reason: "listener closed"} })
		settle(300 * time.Millisecond)
		if s := stateOf(r, "clients"); !strings.Contains(s.Reason, "listener closed") {
			t.Errorf("after it ended it is %+v", s)
		}
		p.set(func(p *probe) { p.health = Health{} })
		settle(3 * time.Second)
		if got := j.String(); got != "start clients, stop clients, start clients" {
			t.Errorf("got %q", got)
		}
	})
}

func TestRunnerShowsARunningServicesOwnReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &probe{name: "clients", journal: &journal{}, health: Health{State: Started, Reason: "isolated: read-only"}}
		r := startRunner(t, newWorld(), p)
		settle(time.Second)
		if s := stateOf(r, "clients"); s.State != Started || s.Reason != "isolated: read-only" {
			t.Errorf("it is %+v", s)
		}
	})
}

func TestStopBeforeStart(t *testing.T) {
	if err := NewRunner(Options{Source: newWorld()}).Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestRateMeter(t *testing.T) {
	var m rateMeter
	at := epoch
	if r := m.observe(at, 5); r != 0 {
		t.Errorf("one sample gives %v", r)
	}
	for i := 1; i <= 100; i++ {
		at = at.Add(250 * time.Millisecond)
		m.observe(at, 5+uint64(i)*10)
	}
	if r := m.observe(at.Add(250*time.Millisecond), 1015); r < 39 || r > 41 {
		t.Errorf("40 a second measure as %v", r)
	}
	if len(m.at) > rateSamples {
		t.Errorf("%d samples are kept", len(m.at))
	}
	if r := m.observe(at.Add(500*time.Millisecond), 3); r != 0 { // the store was replaced by an older one
		t.Errorf("an index that went back gives %v", r)
	}
}

func TestAlarms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := NewAlarms(slog.New(slog.DiscardHandler))
		a.Clear("none")
		a.Raise(Alarm{Name: "x", Reason: "one"})
		since := a.Active()[0].Since
		time.Sleep(time.Second)
		a.Raise(Alarm{Name: "x", Reason: "two"})
		if got := a.Active(); len(got) != 1 || got[0].Reason != "two" || !got[0].Since.Equal(since) {
			t.Errorf("after an update: %+v", got)
		}
		if len(a.History()) != 1 {
			t.Errorf("an update is in the history: %+v", a.History())
		}
		for range MaxHistory {
			a.Clear("x")
			a.Raise(Alarm{Name: "x"})
		}
		if n := len(a.History()); n != MaxHistory {
			t.Errorf("the history has %d events", n)
		}
		if raised, cleared := a.Counts(); raised != MaxHistory+1 || cleared != MaxHistory {
			t.Errorf("counts are %d and %d", raised, cleared)
		}
	})
}

func TestFunc(t *testing.T) {
	started := false
	f := &Func{Label: "f", Gates: []Gate{GateLog}, StartFn: func(context.Context) error { started = true; return nil }}
	if err := f.Start(t.Context()); err != nil || !started || f.Name() != "f" || f.Needs()[0] != GateLog || f.Health().State != Started {
		t.Errorf("start gives %v; %s %v %+v", err, f.Name(), f.Needs(), f.Health())
	}
	if err := f.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	f.StopFn = func(context.Context) error { return errors.New("x") }
	f.HealthFn = func() Health { return Health{Reason: "r"} }
	if f.Stop(t.Context()) == nil || f.Health().Reason != "r" {
		t.Error("the functions are not called")
	}
}
