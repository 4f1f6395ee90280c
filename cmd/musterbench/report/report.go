// Package report turns the results of many runs into one table.
//
// Runs of several servers are repeated and interleaved; the table shows the
// medians by server, and each as a ratio to the two that everything is compared
// with: the first server named and the floor.
package report

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"

	"muster/cmd/musterbench/load"
	"muster/cmd/musterbench/stat"
	"muster/internal/fault"
)

// maxFiles bounds how many results are read into one table.
const maxFiles = 10_000

// Read returns the results in dir/*.json, in the order of their names.
func Read(dir string) ([]load.Result, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || len(paths) == 0 {
		return nil, fault.New(fault.NotFound, "report.read", dir, "the folder holds no results (*.json)")
	}
	if len(paths) > maxFiles {
		return nil, fault.New(fault.TooLarge, "report.read", dir, fmt.Sprintf("more than %d results", maxFiles))
	}
	var results []load.Result
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, fault.Wrap(err, fault.Unavailable, "report.read", path)
		}
		var r load.Result
		if err := json.Unmarshal(text, &r); err != nil {
			return nil, fault.Wrap(err, fault.BadRequest, "report.read", path)
		}
		results = append(results, r)
	}
	return results, nil
}

// measure is one row of the table: a figure of some scenario.
type measure struct {
	name, scenario, unit string
	of                   func(load.Result) float64
}

var measures = []measure{
	{"chat message, end to end", "chat", "µs CPU", cpu},
	{"chat message that nobody keeps", "chat-live", "µs CPU", cpu},
	{"chat message at a fixed rate", "chat-open", "µs CPU", cpu},
	{"presence delivered", "presence", "µs CPU", cpu},
	{"login and logout", "login", "µs CPU", cpu},
	{"login, session kept", "idle", "µs CPU", cpu},
	{"idle session", "idle", "KiB RSS", func(r load.Result) float64 {
		if r.Memory == nil {
			return 0
		}
		return r.Memory.PerSession
	}},
	{"latency at a fixed rate, p50", "chat-open", "ms", func(r load.Result) float64 { return r.Latency.P50 }},
	{"latency at a fixed rate, p99", "chat-open", "ms", func(r load.Result) float64 { return r.Latency.P99 }},
	{"chat messages, closed loop", "chat", "per s", func(r load.Result) float64 { return r.Rate }},
	{"errors", "", "count", func(r load.Result) float64 { return float64(r.Errors) }},
}

func cpu(r load.Result) float64 { return r.CPUMicros }

// Markdown writes the table: a row for each figure, a column for each server,
// the baselines last, and after each server's median its ratio to each baseline
// that comes later.
func Markdown(w io.Writer, results []load.Result, baselines []string) error {
	columns := columnsOf(labelsOf(results), baselines)
	line := "| figure | unit | runs |"
	rule := "|---|---|---|"
	for _, c := range columns {
		line += " " + c.title() + " |"
		rule += "---:|"
	}
	if _, err := fmt.Fprintln(w, line+"\n"+rule); err != nil {
		return fault.Wrap(err, fault.Unavailable, "report.write", "")
	}
	for _, m := range measures {
		if err := m.row(w, results, columns); err != nil {
			return fault.Wrap(err, fault.Unavailable, "report.write", "")
		}
	}
	return nil
}

// row writes one figure, if any result has it.
func (m measure) row(w io.Writer, results []load.Result, columns []column) error {
	medians, runs := make(map[string]float64), 0
	for _, c := range columns {
		values := m.values(results, c.label)
		runs = max(runs, len(values))
		medians[c.label] = m.middle(values)
	}
	if runs == 0 {
		return nil
	}
	line := fmt.Sprintf("| %s | %s | %d |", m.name, m.unit, runs)
	for _, c := range columns {
		if c.base == "" {
			line += " " + number(medians[c.label]) + " |"
		} else {
			line += " " + ratio(medians[c.label], medians[c.base]) + " |"
		}
	}
	_, err := fmt.Fprintln(w, line)
	return err
}

// column is a server's median, or with a base its ratio to that of another server.
type column struct{ label, base string }

func (c column) title() string {
	if c.base == "" {
		return c.label
	}
	return c.label + " / " + c.base
}

// columnsOf orders the servers, baselines last, and gives each its ratios.
func columnsOf(labels, baselines []string) []column {
	isBase := func(label string) bool { return slices.Contains(baselines, label) }
	ordered := slices.DeleteFunc(slices.Clone(labels), isBase)
	for _, base := range baselines {
		if slices.Contains(labels, base) {
			ordered = append(ordered, base)
		}
	}
	var columns []column
	for i, label := range ordered {
		columns = append(columns, column{label: label})
		for _, later := range ordered[i+1:] {
			if isBase(later) {
				columns = append(columns, column{label: label, base: later})
			}
		}
	}
	return columns
}

// middle returns the median, or the sum for the row of errors, where one bad run must not vanish.
func (m measure) middle(values []float64) float64 {
	if m.scenario != "" {
		return stat.Median(values)
	}
	var sum float64
	for _, v := range values {
		sum += v
	}
	return sum
}

// values returns the figure from each run of a server.
func (m measure) values(results []load.Result, label string) []float64 {
	var values []float64
	for _, r := range results {
		if r.Label == label && (m.scenario == "" || r.Scenario == m.scenario) {
			values = append(values, m.of(r))
		}
	}
	return values
}

// labelsOf returns the servers in the order in which they first appear.
func labelsOf(results []load.Result) []string {
	var labels []string
	for _, r := range results {
		if !slices.Contains(labels, r.Label) {
			labels = append(labels, r.Label)
		}
	}
	return labels
}

func number(v float64) string {
	switch {
	case v == math.Trunc(v):
		return fmt.Sprintf("%.0f", v)
	case v < 10:
		return fmt.Sprintf("%.2f", v)
	case v < 100:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

func ratio(v, base float64) string {
	if base == 0 || v == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", v/base)
}
