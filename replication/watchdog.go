package replication

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// trouble keeps what is wrong with a node, by cause, and since when.
type trouble struct {
	mu     sync.Mutex
	causes map[string]string
	since  map[string]time.Time
	tell   func(reason string) // may be nil
}

// set notes that cause is wrong for this reason.
func (t *trouble) set(cause, reason string) { t.change(cause, reason) }

// clear notes that cause is well again.
func (t *trouble) clear(cause string) { t.change(cause, "") }

func (t *trouble) change(cause, reason string) {
	t.mu.Lock()
	if t.causes[cause] == reason {
		t.mu.Unlock()
		return
	}
	if t.causes == nil {
		t.causes, t.since = map[string]string{}, map[string]time.Time{}
	}
	if reason == "" {
		delete(t.causes, cause)
		delete(t.since, cause)
	} else {
		if t.causes[cause] == "" {
			t.since[cause] = time.Now()
		}
		t.causes[cause] = reason
	}
	all, _ := t.lockedReason()
	t.mu.Unlock()
	if t.tell != nil {
		t.tell(all)
	}
}

// reason joins all that is wrong, and since when the oldest of it is.
func (t *trouble) reason() (string, time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lockedReason()
}

func (t *trouble) lockedReason() (string, time.Time) {
	var texts []string
	var oldest time.Time
	for cause, text := range t.causes {
		texts = append(texts, text)
		if s := t.since[cause]; oldest.IsZero() || s.Before(oldest) {
			oldest = s
		}
	}
	slices.Sort(texts)
	return strings.Join(texts, "; "), oldest
}

// exitProcess is the default of Config.Exit.
func exitProcess(string) { os.Exit(ExitStatus) }

// watchdog times writes. A Raft leader whose disk hangs would lead for ever,
// since its heartbeats go on: past the limits the node first says that it is
// unwell, then ends its process, and the others elect another leader.
type watchdog struct {
	warn, limit time.Duration
	trouble     *trouble
	exit        func(reason string)

	mu     sync.Mutex
	recent [latencies]time.Duration // a ring of write times
	next   int
	count  int
}

const latencies = 256 // writes that DiskP99 looks back on

// guard starts timing a write; call the result when it is done.
func (w *watchdog) guard(what string) (done func()) {
	begin, stop := time.Now(), w.start(what)
	return func() {
		stop()
		w.note(time.Since(begin))
	}
}

const watchStep = 250 * time.Millisecond // between the looks of the watchdog at one write

// watched is one write under way.
type watched struct {
	w       *watchdog
	what    string
	mu      sync.Mutex
	timer   *time.Timer
	elapsed time.Duration
	warned  bool
	ended   bool
}

// start watches an operation until stop is called. Time counts in small steps,
// so that a process that was suspended does not take its own sleep for the disk's.
func (w *watchdog) start(what string) (stop func()) {
	o := &watched{w: w, what: what}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.timer = time.AfterFunc(watchStep, o.look)
	return o.stop
}

func (o *watched) look() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		return
	}
	o.elapsed += watchStep
	if o.elapsed >= o.w.limit {
		o.w.exit(fmt.Sprintf("a write to %s has taken more than %v; the disk is stalled", o.what, o.w.limit))
		return
	}
	if o.elapsed >= o.w.warn && !o.warned {
		o.warned = true
		o.w.trouble.set("stall", fmt.Sprintf("the disk is stalled: a write to %s has taken more than %v", o.what, o.w.warn))
	}
	o.timer.Reset(watchStep)
}

func (o *watched) stop() {
	o.timer.Stop()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended = true; o.warned {
		o.w.trouble.clear("stall")
	}
}

func (w *watchdog) note(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.recent[w.next] = d
	w.next = (w.next + 1) % latencies
	w.count = min(w.count+1, latencies)
}

// p99 returns the 99th percentile of the recent writes' times.
func (w *watchdog) p99() time.Duration {
	w.mu.Lock()
	sorted := slices.Clone(w.recent[:w.count])
	w.mu.Unlock()
	if len(sorted) == 0 {
		return 0
	}
	slices.Sort(sorted)
	return sorted[(len(sorted)*99+99)/100-1]
}
