package proc

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"muster/internal/fault"
)

// fake is a folder that looks like /proc.
type fake struct {
	*testing.T
	root string
}

func newFake(t *testing.T) fake {
	t.Helper()
	return fake{t, t.TempDir()}
}

func (f fake) write(pid int, name, text string) {
	f.Helper()
	dir := filepath.Join(f.root, strconv.Itoa(pid))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		f.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
		f.Fatal(err)
	}
}

// process adds a process with times in ticks: user, system, and those of waited-for children.
func (f fake) process(pid, parent int, command string, times [4]int) {
	f.Helper()
	f.write(pid, "stat", fmt.Sprintf("%d (%s) S %d 1 1 0 -1 4194560 1 2 3 4 %d %d %d %d 20 0 1 0 100 1 2\n",
		pid, command, parent, times[0], times[1], times[2], times[3]))
}

func TestCPU(t *testing.T) {
	f := newFake(t)
	f.process(10, 1, "beam.smp", [4]int{100, 50, 0, 0})
	f.process(11, 10, "erl_child_setup", [4]int{1, 2, 3, 4})
	f.process(12, 11, "odd) name (", [4]int{0, 5, 0, 0})
	f.process(20, 1, "other", [4]int{9999, 9999, 0, 0})
	cases := []struct {
		name string
		pids []int
		want time.Duration
	}{
		{"a tree of three", []int{10}, 1650 * time.Millisecond},
		{"a leaf", []int{12}, 50 * time.Millisecond},
		{"root and child are counted once", []int{10, 11}, 1650 * time.Millisecond},
		{"two trees", []int{12, 11}, 150 * time.Millisecond},
		{"nothing", nil, 0},
	}
	for _, c := range cases {
		got, err := New(f.root, c.pids...).CPU()
		if err != nil || got != c.want {
			t.Errorf("%s: got %v, %v; want %v", c.name, got, err, c.want)
		}
	}
}

func TestMemory(t *testing.T) {
	f := newFake(t)
	f.process(10, 1, "server", [4]int{})
	f.write(10, "smaps_rollup", "5561 ---p 00000000 00:00 0 [rollup]\nRss:            1000 kB\nPss:             900 kB\nPss_Anon: 1 kB\nAnonymous:       800 kB\n")
	f.process(11, 10, "child", [4]int{})
	f.write(11, "status", "Name:\tchild\nVmPeak:\t  99 kB\nVmRSS:\t     30 kB\nRssAnon:\t 20 kB\n")
	got, err := New(f.root, 10).Memory()
	want := Memory{Resident: 1030 << 10, Proportional: 900 << 10, Anonymous: 820 << 10}
	if err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
}

func TestMemoryOfAProcessThatEnds(t *testing.T) {
	f := newFake(t)
	f.process(10, 1, "server", [4]int{})
	if got, err := New(f.root, 10).Memory(); err != nil || got != (Memory{}) {
		t.Errorf("a process without smaps and status: got %+v, %v; want nothing", got, err)
	}
}

func TestGone(t *testing.T) {
	f := newFake(t)
	f.process(10, 1, "server", [4]int{})
	tree := New(f.root, 99)
	if _, err := tree.CPU(); !fault.Is(err, fault.NotFound) {
		t.Errorf("CPU of a process that is gone: %v", err)
	}
	if _, err := tree.Memory(); !fault.Is(err, fault.NotFound) {
		t.Errorf("memory of a process that is gone: %v", err)
	}
	if _, err := New(filepath.Join(f.root, "none"), 1).CPU(); !fault.Is(err, fault.Unavailable) {
		t.Errorf("no /proc: %v", err)
	}
}

func TestParseStatRejects(t *testing.T) {
	for name, line := range map[string]string{
		"empty":           "",
		"no command":      "1 S 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1",
		"too short":       "1 (x) S 1 1 1",
		"parent no digit": "1 (x) S p 1 1 0 -1 4 1 2 3 4 5 6 7 8 20",
		"time no digit":   "1 (x) S 1 1 1 0 -1 4 1 2 3 4 5 six 7 8 20",
	} {
		if _, err := parseStat([]byte(line)); !fault.Is(err, fault.Internal) {
			t.Errorf("%s: got %v, want an internal fault", name, err)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("1 (x) S 1 1 1 0 -1 4 1 2 3 4 5 6 7 8 20"))
	f.Add([]byte(") ("))
	f.Fuzz(func(t *testing.T, line []byte) {
		if _, err := parseStat(line); err != nil && !fault.Is(err, fault.Internal) {
			t.Errorf("not a fault of ours: %v", err)
		}
	})
}

func TestParse(t *testing.T) {
	cases := []struct {
		name, list string
		want       []int
		fails      bool
	}{
		{"one", "12", []int{12}, false},
		{"several with spaces", " 12, 13 ,14", []int{12, 13, 14}, false},
		{"empty", "", nil, false},
		{"a name", "musterd", nil, true},
		{"zero", "0", nil, true},
		{"negative", "-5", nil, true},
	}
	for _, c := range cases {
		got, err := Parse(c.list)
		if !slices.Equal(got, c.want) || fault.Is(err, fault.BadRequest) != c.fails {
			t.Errorf("%s: got %v, %v", c.name, got, err)
		}
	}
}

func TestEmpty(t *testing.T) {
	if !New("/proc").Empty() || New("/proc", 1).Empty() {
		t.Error("a tree is empty exactly when it has no roots")
	}
}

// TestOurselves reads the real /proc: burning CPU shows, and so does holding memory.
func TestOurselves(t *testing.T) {
	tree := New("/proc", os.Getpid())
	before, err := tree.CPU()
	if err != nil {
		t.Fatal(err)
	}
	memory, err := tree.Memory()
	if err != nil {
		t.Fatal(err)
	}
	ballast := make([]byte, 32<<20)
	deadline := time.Now().Add(20 * time.Second)
	for used := time.Duration(0); used < 50*time.Millisecond; {
		if time.Now().After(deadline) {
			t.Fatal("CPU time does not grow")
		}
		for i := range ballast {
			ballast[i]++
		}
		now, err := tree.CPU()
		if err != nil {
			t.Fatal(err)
		}
		used = now - before
	}
	after, err := tree.Memory()
	if err != nil {
		t.Fatal(err)
	}
	if grown := after.Resident - memory.Resident; grown < 16<<20 {
		t.Errorf("32 MiB in use grew the resident memory by %d bytes only", grown)
	}
	if ballast[0] == 0 && ballast[1] != 0 {
		t.Error("unreachable: keeps the ballast alive")
	}
}
