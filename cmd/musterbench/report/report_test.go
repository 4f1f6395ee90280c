package report

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"muster/cmd/musterbench/load"
	"muster/cmd/musterbench/stat"
	"muster/internal/fault"
)

// runs are three rounds of three servers.
func runs() []load.Result {
	var all []load.Result
	for _, factor := range []float64{1, 10, 2} {
		all = append(all,
			load.Result{Label: "relay", Scenario: "chat", CPUMicros: 10 * factor, Rate: 90_000},
			load.Result{Label: "muster", Scenario: "chat", CPUMicros: 25 * factor, Latency: stat.Latency{P50: 1}},
			load.Result{Label: "ejabberd", Scenario: "chat", CPUMicros: 100 * factor, Errors: 1},
			load.Result{Label: "muster", Scenario: "idle", CPUMicros: 500, Memory: &load.Footprint{PerSession: 20.5}},
		)
	}
	return all
}

func TestMarkdown(t *testing.T) {
	var b strings.Builder
	if err := Markdown(&b, runs(), []string{"ejabberd", "relay"}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	want := []string{
		"| figure | unit | runs | muster | muster / ejabberd | muster / relay | ejabberd | ejabberd / relay | relay |",
		"|---|---|---|---:|---:|---:|---:|---:|---:|",
		"| chat message, end to end | µs CPU | 3 | 50 | 0.25 | 2.50 | 200 | 10.00 | 20 |",
		"| login, session kept | µs CPU | 3 | 500 | - | - | 0 | - | 0 |",
		"| idle session | KiB RSS | 3 | 20.5 | - | - | 0 | - | 0 |",
		"| chat messages, closed loop | per s | 3 | 0 | - | - | 0 | - | 90000 |",
		"| errors | count | 6 | 0 | - | - | 3 | - | 0 |",
	}
	if !slices.Equal(lines, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
}

func TestMarkdownWithoutBaselines(t *testing.T) {
	var b strings.Builder
	if err := Markdown(&b, runs()[:2], []string{"prosody"}); err != nil {
		t.Fatal(err)
	}
	if first, _, _ := strings.Cut(b.String(), "\n"); first != "| figure | unit | runs | relay | muster |" {
		t.Errorf("got %q", first)
	}
}

// full is a writer without room.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestMarkdownReportsWriteErrors(t *testing.T) {
	if err := Markdown(full{}, runs(), nil); !fault.Is(err, fault.Unavailable) {
		t.Errorf("got %v", err)
	}
}

func TestRead(t *testing.T) {
	dir := t.TempDir()
	for name, r := range map[string]load.Result{"2.json": {Label: "b"}, "1.json": {Label: "a", Memory: &load.Footprint{After: 5}}} {
		text, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	results, err := Read(dir)
	if err != nil || len(results) != 2 || results[0].Label != "a" || results[0].Memory.After != 5 || results[1].Label != "b" {
		t.Errorf("got %+v, %v", results, err)
	}
}

func TestReadRejects(t *testing.T) {
	if _, err := Read(t.TempDir()); !fault.Is(err, fault.NotFound) {
		t.Errorf("empty folder: %v", err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(dir); !fault.Is(err, fault.BadRequest) {
		t.Errorf("broken file: %v", err)
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.456: "0.46", 9.99: "9.99", 12.34: "12.3", 123.4: "123"} {
		if got := number(v); got != want {
			t.Errorf("%v: got %q, want %q", v, got, want)
		}
	}
}
