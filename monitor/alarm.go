package monitor

import (
	"log/slog"
	"sort"
	"sync"
	"time"
)

// Severity says how soon somebody must look.
type Severity string

// The severities.
const (
	Warning  Severity = "warning"  // something waits or degrades; it may heal by itself
	Critical Severity = "critical" // something does not work and will not heal by itself
)

// Alarm is a condition that an operator should know of.
type Alarm struct {
	Name     string    `json:"name"` // stable: "services-waiting", "service-failed/client-connections"
	Severity Severity  `json:"severity"`
	Reason   string    `json:"reason"` // what is wrong and what to do
	Since    time.Time `json:"since"`

	IndexNow    uint64        `json:"index_now,omitempty"`    // log index reached, where the alarm is about catching up
	IndexWanted uint64        `json:"index_wanted,omitempty"` // log index waited for
	Estimate    time.Duration `json:"estimate_ns,omitempty"`  // time left at the present rate; 0: unknown
}

// Event is a line of the alarm history: an alarm raised or cleared.
type Event struct {
	At     time.Time `json:"at"`
	Raised bool      `json:"raised"` // false: recovered
	Alarm  Alarm     `json:"alarm"`
}

// MaxHistory bounds the alarm history of a node, in events.
const MaxHistory = 256

// Alarms holds a node's active alarms and their recent history. It is safe for concurrent use.
type Alarms struct {
	logger *slog.Logger

	mu      sync.Mutex
	active  map[string]Alarm
	history []Event // oldest first, at most MaxHistory
	raised  uint64
	cleared uint64
}

// NewAlarms returns an empty set; raising and recovery are logged to logger (nil: slog.Default).
func NewAlarms(logger *slog.Logger) *Alarms {
	if logger == nil {
		logger = slog.Default()
	}
	return &Alarms{logger: logger, active: map[string]Alarm{}}
}

// Raise makes a active. An alarm that is active already keeps its Since and
// only takes the new figures, without another notification. A zero Since means now.
func (s *Alarms) Raise(a Alarm) {
	now := time.Now()
	if a.Since.IsZero() {
		a.Since = now
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, ok := s.active[a.Name]; ok {
		a.Since = old.Since
		s.active[a.Name] = a
		return
	}
	s.active[a.Name] = a
	s.raised++
	s.record(Event{At: now, Raised: true, Alarm: a})
	s.logger.Warn("alarm_raised", "alarm", a.Name, "severity", a.Severity, "reason", a.Reason, "since", a.Since,
		"index_now", a.IndexNow, "index_wanted", a.IndexWanted, "estimate", a.Estimate)
}

// Clear ends the alarm, if it is active, and notifies of the recovery.
func (s *Alarms) Clear(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, ok := s.active[name]
	if !ok {
		return
	}
	now := time.Now()
	delete(s.active, name)
	s.cleared++
	s.record(Event{At: now, Alarm: a})
	s.logger.Info("alarm_cleared", "alarm", name, "severity", a.Severity, "reason", a.Reason, "lasted", now.Sub(a.Since))
}

func (s *Alarms) record(e Event) {
	if len(s.history) == MaxHistory {
		s.history = append(s.history[:0], s.history[1:]...)
	}
	s.history = append(s.history, e)
}

// Active returns the active alarms, ordered by name.
func (s *Alarms) Active() []Alarm {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Alarm, 0, len(s.active))
	for _, a := range s.active {
		out = append(out, a)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// History returns the recent events, oldest first.
func (s *Alarms) History() []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Event(nil), s.history...)
}

// Counts returns how many alarms were raised and cleared since the start.
func (s *Alarms) Counts() (raised, cleared uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.raised, s.cleared
}
