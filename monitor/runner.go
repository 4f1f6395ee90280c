package monitor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// Source is where a Runner learns its facts. Each method must return at once.
type Source interface {
	LogFacts() []LogFacts       // the control log first, always in one order; LogFacts.Rate is filled in by the Runner
	SyncFacts() SyncFacts       // the zero value where there is no sync agent
	ClusterFacts() ClusterFacts // as this node's applied state and its peers tell
}

// Timing of a Runner. The zero value of a field means its default.
type Timing struct {
	Interval time.Duration // between two looks at the facts; default 250 ms
	Retry    time.Duration // delay after a first failure, doubled by each further one; default 1 s
	RetryMax time.Duration // longest such delay; default 30 s
	Stop     time.Duration // how long one service may take to stop; default 10 s
}

func (t Timing) withDefaults() Timing {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	set(&t.Interval, 250*time.Millisecond)
	set(&t.Retry, time.Second)
	set(&t.RetryMax, 30*time.Second)
	set(&t.Stop, 10*time.Second)
	return t
}

// Options of a Runner.
type Options struct {
	Source         Source
	Services       []Service // in start order; stopped in reverse order
	Alarms         *Alarms
	Logger         *slog.Logger // nil: slog.Default
	Timing         Timing
	Oldest, Newest uint32 // cluster versions that this binary can run
}

// ServiceStatus is one line of Report.
type ServiceStatus struct {
	Name string `json:"name"`
	Health
	Needs []Gate `json:"needs,omitempty"`
}

// Runner executes what Plan decides for the services of one node.
type Runner struct {
	opts   Options
	poke   chan struct{}
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	units   []*unit
	rates   []rateMeter // by log
	booted  time.Time
	planned map[string]bool // Plan's alarms that are active
}

// unit is a service under the Runner's care; its fields are guarded by Runner.mu.
type unit struct {
	svc      Service
	state    State // as executed
	shown    Health
	failure  string
	failures int
	retryAt  time.Time
	started  time.Time          // when it last reached STARTED
	cancel   context.CancelFunc // ends a Start under way
	finished chan struct{}      // closed when the Start or Stop under way has returned
}

// NewRunner returns a Runner that has not started anything.
func NewRunner(o Options) *Runner {
	o.Timing = o.Timing.withDefaults()
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Alarms == nil {
		o.Alarms = NewAlarms(o.Logger)
	}
	r := &Runner{opts: o, poke: make(chan struct{}, 1), done: make(chan struct{}), planned: map[string]bool{}}
	now := time.Now()
	for _, s := range o.Services {
		r.units = append(r.units, &unit{svc: s, state: Stopped, shown: Health{State: Stopped, Reason: ReasonNotRun, Since: now}})
	}
	return r
}

// Start begins to watch the facts. It returns at once.
func (r *Runner) Start() {
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	r.mu.Lock()
	r.booted = time.Now()
	r.mu.Unlock()
	go r.loop(ctx)
}

// Poke makes the Runner look at the facts at once.
func (r *Runner) Poke() {
	select {
	case r.poke <- struct{}{}:
	default:
	}
}

func (r *Runner) loop(ctx context.Context) {
	defer close(r.done)
	tick := time.NewTicker(r.opts.Timing.Interval)
	defer tick.Stop()
	for {
		r.step()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-r.poke:
		}
	}
}

// step gathers the facts, plans, and executes.
func (r *Runner) step() {
	f := r.facts()
	for _, a := range Plan(f) {
		switch a.Kind {
		case ActRaise:
			r.planned[a.Alarm.Name] = true
			r.opts.Alarms.Raise(a.Alarm)
		case ActClear:
			delete(r.planned, a.Alarm.Name)
			r.opts.Alarms.Clear(a.Alarm.Name)
		default:
			r.execute(a)
		}
	}
}

func (r *Runner) facts() Facts {
	f := Facts{Now: time.Now(), Oldest: r.opts.Oldest, Newest: r.opts.Newest,
		Logs: r.opts.Source.LogFacts(), Sync: r.opts.Source.SyncFacts(), Cluster: r.opts.Source.ClusterFacts()}
	for _, u := range r.units {
		f.Services = append(f.Services, r.serviceFacts(u))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	f.Booted = r.booted
	for i := range f.Logs {
		if i == len(r.rates) {
			r.rates = append(r.rates, rateMeter{})
		}
		f.Logs[i].Rate = r.rates[i].observe(f.Now, f.Logs[i].Applied)
	}
	for name := range r.planned {
		f.Active = append(f.Active, name)
	}
	return f
}

func (r *Runner) serviceFacts(u *unit) ServiceFacts {
	r.mu.Lock()
	s := ServiceFacts{Name: u.svc.Name(), Needs: u.svc.Needs(), State: u.state, Since: u.shown.Since, Failure: u.failure, RetryAt: u.retryAt}
	r.mu.Unlock()
	if s.State == Started {
		if h := contained(u.svc); h.State == Stopped {
			s.Ended = h.Reason
			if s.Ended == "" {
				s.Ended = ReasonNotRun
			}
		}
	}
	return s
}

// contained asks the service for its health; a panic is a service that ended.
func contained(s Service) (h Health) {
	defer func() {
		if p := recover(); p != nil {
			h = Health{State: Stopped, Reason: fmt.Sprint("panic: ", p)}
		}
	}()
	return s.Health()
}

func (r *Runner) execute(a Action) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, u := range r.units {
		if u.svc.Name() != a.Service {
			continue
		}
		switch a.Kind {
		case ActHold:
			if u.state == Stopped {
				u.show(a.State, a.Reason)
			}
		case ActStart:
			if u.state == Stopped {
				r.start(u, a.Reason)
			}
		case ActStop, ActFail:
			r.stop(u, a.Reason, a.Kind == ActFail)
		}
		return
	}
}

// show sets what operators see; Since moves only with the state.
func (u *unit) show(s State, reason string) {
	if u.shown.State != s {
		u.shown.Since = time.Now()
	}
	u.shown.State, u.shown.Reason = s, reason
}

// start runs the service's Start in a goroutine of its own. r.mu is held.
func (r *Runner) start(u *unit, reason string) {
	ctx, cancel := context.WithCancel(context.Background())
	u.state, u.cancel, u.finished = Starting, cancel, make(chan struct{})
	u.show(Starting, reason)
	go func() {
		err := call(func() error { return u.svc.Start(ctx) })
		r.mu.Lock()
		defer r.mu.Unlock()
		defer close(u.finished)
		defer r.Poke()
		cancel()
		u.cancel = nil
		if err != nil {
			r.notStarted(u, err, u.shown)
			return
		}
		u.failure, u.started, u.state = "", time.Now(), Started
		u.show(Started, reason)
		r.opts.Logger.Info("service_started", "service", u.svc.Name(), "note", reason)
	}()
}

// notStarted notes that Start returned err, be it because the start was called off. r.mu is held.
func (r *Runner) notStarted(u *unit, err error, shown Health) {
	if shown.State == Stopping {
		u.state = Stopped
		u.show(Stopped, shown.Reason)
		return
	}
	r.failed(u, err)
}

// failed puts a service that did not start, or ended, on the list for another attempt. r.mu is held.
func (r *Runner) failed(u *unit, err error) {
	if !u.started.IsZero() && time.Since(u.started) > r.opts.Timing.RetryMax {
		u.failures = 0 // it served well for a while
	}
	delay := min(r.opts.Timing.Retry<<min(u.failures, 16), r.opts.Timing.RetryMax)
	u.failures++
	u.state, u.failure, u.retryAt = Stopped, err.Error(), time.Now().Add(delay)
	u.show(Starting, "failed: "+u.failure)
	r.opts.Logger.Error("service_failed", "service", u.svc.Name(), "error", err, "retry_in", delay)
}

// stop ends a service that runs or is being started. r.mu is held.
func (r *Runner) stop(u *unit, reason string, ended bool) {
	switch u.state {
	case Starting:
		if u.cancel != nil {
			u.cancel()
		}
		u.show(Stopping, reason)
	case Started:
		u.state, u.finished = Stopping, make(chan struct{})
		u.show(Stopping, reason)
		r.opts.Logger.Info("service_stopping", "service", u.svc.Name(), "reason", reason)
		go r.stopped(u, reason, ended)
	}
}

// stopped runs the service's Stop and notes the end. A service that does not
// return in time stays STOPPING, with that as its reason, until it does.
func (r *Runner) stopped(u *unit, reason string, ended bool) {
	ctx, cancel := context.WithTimeout(context.Background(), r.opts.Timing.Stop)
	defer cancel()
	late := time.AfterFunc(r.opts.Timing.Stop, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if u.state == Stopping {
			u.show(Stopping, "has not stopped within "+r.opts.Timing.Stop.String())
		}
	})
	err := call(func() error { return u.svc.Stop(ctx) })
	late.Stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	defer close(u.finished)
	defer r.Poke()
	u.state = Stopped
	u.show(Stopped, reason)
	if err != nil {
		r.opts.Logger.Error("service_stop_failed", "service", u.svc.Name(), "error", err)
	}
	if ended {
		r.failed(u, errors.New(reason))
		return
	}
	r.opts.Logger.Info("service_stopped", "service", u.svc.Name(), "reason", reason)
}

// call runs fn and turns a panic into an error.
func call(fn func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return fn()
}

// Stop stops watching, then every service in reverse order of their start.
func (r *Runner) Stop(ctx context.Context) error {
	if r.cancel == nil {
		return nil
	}
	r.cancel()
	<-r.done
	for i := len(r.units) - 1; i >= 0; i-- {
		if err := r.settle(ctx, r.units[i]); err != nil {
			return err
		}
	}
	return nil
}

// settle waits for what is under way with u, stops it, and waits for that.
func (r *Runner) settle(ctx context.Context, u *unit) error {
	for {
		r.mu.Lock()
		state := u.state
		r.stop(u, "the node is stopping", false)
		finished := u.finished
		r.mu.Unlock()
		if state == Stopped {
			return nil
		}
		select {
		case <-finished:
		case <-ctx.Done():
			return fmt.Errorf("service %s has not stopped: %w", u.svc.Name(), ctx.Err())
		}
	}
}

// Report returns the state of every service, in start order.
func (r *Runner) Report() []ServiceStatus {
	out := make([]ServiceStatus, 0, len(r.units))
	for _, u := range r.units {
		r.mu.Lock()
		s := ServiceStatus{Name: u.svc.Name(), Health: u.shown, Needs: u.svc.Needs()}
		running := u.state == Started
		r.mu.Unlock()
		if running {
			if h := contained(u.svc); h.Reason != "" {
				s.Reason = h.Reason
			}
		}
		out = append(out, s)
	}
	return out
}

// Ready reports whether every service that nobody stopped on purpose serves; if not, why.
func (r *Runner) Ready() (bool, string) {
	for _, s := range r.Report() {
		if s.State != Started && !(s.State == Stopped && s.Reason == ReasonCommanded) {
			why := s.Name + " " + string(s.State)
			if s.Reason != "" {
				why += ": " + s.Reason
			}
			return false, why
		}
	}
	return true, ""
}

// rateMeter estimates how fast an index moves, from samples of the last rateWindow.
type rateMeter struct {
	at    []time.Time
	index []uint64
}

// The window must be long enough to smooth bursts of apply and short enough for an estimate that follows.
const (
	rateWindow  = 10 * time.Second
	rateSamples = 64 // bound on kept samples
)

// observe adds a sample and returns entries per second over the window.
func (m *rateMeter) observe(now time.Time, index uint64) float64 {
	for len(m.at) > 0 && (now.Sub(m.at[0]) > rateWindow || len(m.at) >= rateSamples || index < m.index[0]) {
		m.at, m.index = m.at[1:], m.index[1:]
	}
	m.at, m.index = append(m.at, now), append(m.index, index)
	span := now.Sub(m.at[0]).Seconds()
	if span <= 0 {
		return 0
	}
	return float64(index-m.index[0]) / span
}
