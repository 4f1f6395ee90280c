package load

import (
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"muster/cmd/musterbench/proc"
	"muster/cmd/musterbench/stat"
)

// Result is what a scenario measured. Zero values mean "not measured".
type Result struct {
	Scenario   string       `json:"scenario"`
	Label      string       `json:"label"` // the server's name in tables
	Sessions   int          `json:"sessions"`
	Operations uint64       `json:"operations"` // within the measured time
	Unit       string       `json:"unit"`       // what an operation is
	Errors     uint64       `json:"errors"`     // lost, duplicated, misordered or refused
	Seconds    float64      `json:"seconds"`    // of measured time
	Rate       float64      `json:"per_second"`
	CPUMicros  float64      `json:"cpu_us_per_operation"` // user and system time of the server's processes
	CPUSeconds float64      `json:"cpu_seconds"`
	Latency    stat.Latency `json:"latency"`
	Memory     *Footprint   `json:"memory,omitempty"`
	Herd       *Return      `json:"herd,omitempty"`
}

// Footprint is the server's memory before and with the sessions, in KiB.
type Footprint struct {
	Before       int64   `json:"rss_before_kib"`
	After        int64   `json:"rss_after_kib"`
	PerSession   float64 `json:"rss_kib_per_session"`
	Proportional float64 `json:"pss_kib_per_session"`
	Anonymous    float64 `json:"anonymous_kib_per_session"`
}

// String renders the result for a person.
func (r Result) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s: %d %s in %.1f s with %d sessions, %.0f/s, %d errors\n",
		r.Label, r.Scenario, r.Operations, r.Unit, r.Seconds, r.Sessions, r.Rate, r.Errors)
	if r.CPUSeconds > 0 {
		fmt.Fprintf(&b, "  server CPU   %.1f us per operation (%.2f s)\n", r.CPUMicros, r.CPUSeconds)
	}
	if r.Latency.Max > 0 {
		fmt.Fprintf(&b, "  latency      p50 %.2f  p95 %.2f  p99 %.2f  max %.2f ms\n", r.Latency.P50, r.Latency.P95, r.Latency.P99, r.Latency.Max)
	}
	if r.Herd != nil {
		b.WriteString(r.Herd.String())
	}
	if m := r.Memory; m != nil {
		fmt.Fprintf(&b, "  server RSS   %d -> %d KiB, %.1f KiB per session (PSS %.1f, anonymous %.1f)\n",
			m.Before, m.After, m.PerSession, m.Proportional, m.Anonymous)
	}
	return b.String()
}

// meter measures the server between two moments.
type meter struct {
	tree  *proc.Tree
	ops   *atomic.Uint64
	begun time.Time
	count uint64
	cpu   time.Duration
}

// begin takes the first reading.
func begin(tree *proc.Tree, ops *atomic.Uint64) (*meter, error) {
	m := &meter{tree: tree, ops: ops, begun: time.Now(), count: ops.Load()}
	var err error
	if !tree.Empty() {
		m.cpu, err = tree.CPU()
	}
	return m, err
}

// end takes the second reading and fills in r.
func (m *meter) end(r *Result) error {
	r.Operations = m.ops.Load() - m.count
	r.Seconds = time.Since(m.begun).Seconds()
	r.Rate = float64(r.Operations) / r.Seconds
	if m.tree.Empty() {
		return nil
	}
	cpu, err := m.tree.CPU()
	if err != nil {
		return err
	}
	used := cpu - m.cpu
	r.CPUSeconds = used.Seconds()
	if r.Operations > 0 {
		r.CPUMicros = float64(used.Microseconds()) / float64(r.Operations)
	}
	return nil
}

// footprint compares two readings of memory.
func footprint(before, after proc.Memory, sessions int) *Footprint {
	per := func(now, then int64) float64 { return float64(now-then) / 1024 / float64(max(sessions, 1)) }
	return &Footprint{
		Before: before.Resident >> 10, After: after.Resident >> 10,
		PerSession:   per(after.Resident, before.Resident),
		Proportional: per(after.Proportional, before.Proportional),
		Anonymous:    per(after.Anonymous, before.Anonymous),
	}
}
