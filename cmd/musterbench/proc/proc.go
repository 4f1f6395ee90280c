// Package proc reads what a server process has used: CPU time and memory.
//
// The load generator compares servers by CPU seconds per operation and resident
// memory per session, because wall time on a shared machine means little. A
// Tree follows the given processes and all their descendants, so that servers
// of several processes (ejabberd's port programs, for one) are counted whole.
package proc

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"muster/internal/fault"
)

// tick is the unit of utime and stime in /proc/PID/stat; Linux fixes USER_HZ at 100 for user space.
const tick = time.Second / 100

// maxProcesses bounds the tree that is followed; a server has a handful.
const maxProcesses = 4096

// Memory is what a tree of processes holds, in bytes.
type Memory struct {
	Resident     int64 // RSS: pages in memory, shared ones counted in each process
	Proportional int64 // PSS: shared pages divided among their users; 0 if the kernel does not tell
	Anonymous    int64 // the part of RSS that no file backs; 0 if the kernel does not tell
}

// Tree is one or more processes with their descendants.
type Tree struct {
	root  string
	roots []int
}

// New returns the tree under pids, read from root ("/proc", or a folder that looks like it).
func New(root string, pids ...int) *Tree { return &Tree{root: root, roots: pids} }

// Parse reads a comma-separated list of process ids.
func Parse(list string) ([]int, error) {
	var pids []int
	for field := range strings.SplitSeq(list, ",") {
		field = strings.TrimSpace(field)
		if field == "" {
			continue
		}
		pid, err := strconv.Atoi(field)
		if err != nil || pid <= 0 {
			return nil, fault.New(fault.BadRequest, "proc.parse", field, "a process id is a positive number; give several separated by commas")
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// Empty reports whether there is nothing to measure.
func (t *Tree) Empty() bool { return len(t.roots) == 0 }

// CPU returns the user and system time of all processes of the tree, with what
// their waited-for children used. A root that is gone is NotFound.
func (t *Tree) CPU() (time.Duration, error) {
	var sum time.Duration
	err := t.each(func(s status) error {
		sum += s.cpu
		return nil
	})
	return sum, err
}

// Memory returns what the tree holds now. A root that is gone is NotFound.
func (t *Tree) Memory() (Memory, error) {
	var sum Memory
	err := t.each(func(s status) error {
		m, err := t.memory(s.pid)
		sum.Resident += m.Resident
		sum.Proportional += m.Proportional
		sum.Anonymous += m.Anonymous
		return err
	})
	return sum, err
}

// status is one line of /proc/PID/stat, as far as it matters here.
type status struct {
	pid, parent int
	cpu         time.Duration
}

// each calls visit for each process of the tree.
func (t *Tree) each(visit func(status) error) error {
	all, err := t.processes()
	if err != nil {
		return err
	}
	children := make(map[int][]int, len(all))
	for pid, s := range all {
		children[s.parent] = append(children[s.parent], pid)
	}
	queue := append([]int(nil), t.roots...)
	seen := make(map[int]bool)
	for len(queue) > 0 && len(seen) < maxProcesses {
		pid := queue[0]
		queue = queue[1:]
		s, ok := all[pid]
		if !ok {
			return fault.New(fault.NotFound, "proc.read", strconv.Itoa(pid), "no such process: the server under test is gone")
		}
		if seen[pid] {
			continue
		}
		seen[pid] = true
		if err := visit(s); err != nil {
			return err
		}
		queue = append(queue, children[pid]...)
	}
	return nil
}

// processes reads the status of every process; those that end meanwhile are left out.
func (t *Tree) processes() (map[int]status, error) {
	entries, err := os.ReadDir(t.root)
	if err != nil {
		return nil, fault.Wrap(err, fault.Unavailable, "proc.read", t.root)
	}
	all := make(map[int]status, len(entries))
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		line, err := os.ReadFile(filepath.Join(t.root, entry.Name(), "stat"))
		if err != nil {
			continue
		}
		s, err := parseStat(line)
		if err != nil {
			return nil, err
		}
		s.pid = pid
		all[pid] = s
	}
	return all, nil
}

// The places of the fields behind the command's closing parenthesis in /proc/PID/stat (proc(5)).
const (
	fieldParent = 1
	fieldUser   = 11 // then system time, and both again of waited-for children
	fieldsRead  = 15
)

// parseStat reads one line of /proc/PID/stat. The command in parentheses may hold anything, even ")".
func parseStat(line []byte) (status, error) {
	end := bytes.LastIndexByte(line, ')')
	var s status
	fields := bytes.Fields(line[end+1:])
	if end < 0 || len(fields) < fieldsRead {
		return s, malformedStat(line)
	}
	parent, err := strconv.Atoi(string(fields[fieldParent]))
	if err != nil {
		return s, malformedStat(line)
	}
	s.parent = parent
	for _, field := range fields[fieldUser:fieldsRead] {
		ticks, err := strconv.ParseInt(string(field), 10, 64)
		if err != nil {
			return s, malformedStat(line)
		}
		s.cpu += time.Duration(ticks) * tick
	}
	return s, nil
}

func malformedStat(line []byte) error {
	return fault.New(fault.Internal, "proc.stat", "", fmt.Sprintf("not a line of /proc/PID/stat: %.80q", line))
}

// memory reads one process: smaps_rollup where the kernel lets us, status otherwise.
func (t *Tree) memory(pid int) (Memory, error) {
	dir := filepath.Join(t.root, strconv.Itoa(pid))
	if text, err := os.ReadFile(filepath.Join(dir, "smaps_rollup")); err == nil && len(text) > 0 {
		return Memory{
			Resident: kibibytes(text, "Rss:"), Proportional: kibibytes(text, "Pss:"), Anonymous: kibibytes(text, "Anonymous:"),
		}, nil
	}
	text, err := os.ReadFile(filepath.Join(dir, "status"))
	if os.IsNotExist(err) {
		return Memory{}, nil // ended between the listing and now
	}
	if err != nil {
		return Memory{}, fault.Wrap(err, fault.Unavailable, "proc.memory", strconv.Itoa(pid))
	}
	return Memory{Resident: kibibytes(text, "VmRSS:"), Anonymous: kibibytes(text, "RssAnon:")}, nil
}

// kibibytes returns the value of a "Name:   123 kB" line in bytes, 0 if there is none.
func kibibytes(text []byte, name string) int64 {
	for line := range bytes.SplitSeq(text, []byte("\n")) {
		rest, ok := bytes.CutPrefix(line, []byte(name))
		if !ok {
			continue
		}
		fields := bytes.Fields(rest)
		if len(fields) == 0 {
			return 0
		}
		n, err := strconv.ParseInt(string(fields[0]), 10, 64)
		if err != nil {
			return 0
		}
		return n << 10
	}
	return 0
}
