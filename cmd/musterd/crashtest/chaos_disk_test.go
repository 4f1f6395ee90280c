//go:build chaos && linux

package crashtest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// volumeSize is of the file system that one node's data is on.
const volumeSize = 1 << 30

// volume is a file system of its own for a node's data, which can be filled and frozen.
type volume struct{ at, image, loop string }

// newVolume makes one at a node's data folder, before the node is laid.
func newVolume(c *testCluster, t *testing.T, name string) (*volume, error) {
	v := &volume{at: filepath.Join(c.dir, name, "data"), image: filepath.Join(c.dir, name+".img")}
	if err := os.MkdirAll(v.at, 0o700); err != nil {
		return nil, err
	}
	if err := os.WriteFile(v.image, nil, 0o600); err != nil {
		return nil, err
	}
	if err := os.Truncate(v.image, volumeSize); err != nil {
		return nil, err
	}
	if _, err := command("mkfs.ext4", "-q", "-m", "0", v.image); err != nil {
		return nil, err
	}
	loop, err := command("losetup", "-f", "--show", v.image)
	if err != nil {
		return nil, err
	}
	v.loop = strings.TrimSpace(loop)
	t.Cleanup(func() {
		_, _ = command("fsfreeze", "-u", v.at)
		c.end()
		_, _ = command("umount", v.at)
		_, _ = command("losetup", "-d", v.loop)
	})
	if _, err := command("mount", v.loop, v.at); err != nil {
		return nil, err
	}
	return v, os.RemoveAll(filepath.Join(v.at, "lost+found"))
}

func command(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return string(out), nil
}

// fill leaves no room on the volume; the ballast is removed by empty.
func (v *volume) fill() error {
	f, err := os.Create(filepath.Join(v.at, "ballast"))
	if err != nil {
		return err
	}
	defer f.Close()
	for step := int64(64 << 20); step >= 4096; step /= 2 {
		for size := int64(0); ; size += step {
			info, err := f.Stat()
			if err != nil {
				return err
			}
			if err := unix.Fallocate(int(f.Fd()), 0, info.Size(), step); err != nil {
				if errors.Is(err, unix.ENOSPC) {
					break
				}
				return err
			}
		}
	}
	return nil
}

func (v *volume) empty() error { return os.Remove(filepath.Join(v.at, "ballast")) }

// leave takes so much of the volume that free bytes are left; the ballast is removed by empty.
func (v *volume) leave(free int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(v.at, &st); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(v.at, "ballast"))
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-free)
}

// fullTime is how long a disk stays full: longer than users need to be given to their backups.
const fullTime = 25 * time.Second

// diskFull takes the room of a node's volume for a while, by fill. The process
// stands it, says that the disk is full, leads nothing, and is well again by itself.
func diskFull(leads bool, fill func(v *volume) error) func(c *trial) {
	return func(c *trial) {
		n := c.onVolume()
		life := n.process
		c.makeLead(n, leads)
		c.during(n, func() {
			if err := fill(c.volume); err != nil {
				c.t.Fatal(err)
			}
			begun, full := time.Now(), ""
			if !eventually(fullTime, 50*time.Millisecond, func() (said bool) {
				_, _, full = n.ready()
				return strings.HasPrefix(full, "disk full") || !n.running()
			}) {
				c.t.Errorf("%s does not say that its disk is full, but %q", n.name, full)
			}
			c.remark("said so after %.1f s (%s)", time.Since(begun).Seconds(), full)
			time.Sleep(fullTime - time.Since(begun))
			if who := c.leader("message"); who == n {
				c.t.Errorf("%s still leads the message log", n.name)
			}
			if err := c.volume.empty(); err != nil {
				c.t.Fatal(err)
			}
		})
		begun := time.Now()
		if !n.running() {
			c.t.Errorf("the process ended: %s", lastError(n))
		}
		if !eventually(readyTime, 50*time.Millisecond, func() bool { return n.settled() || !n.running() }) || n.process != life {
			c.t.Errorf("%s did not become well again:\n%s", n.name, n.lastWords())
		}
		c.remark("ready %.1f s after it, by itself", time.Since(begun).Seconds())
		if !n.running() {
			c.comeBack(n)
		}
	}
}

// onVolume is the node whose data is on the volume.
func (c *trial) onVolume() *node {
	for _, n := range c.nodes {
		if strings.HasPrefix(c.volume.at, n.dir+"/") {
			return n
		}
	}
	c.t.Fatal("no node is on the volume")
	return nil
}

// hungDisk freezes the file system below a node: every write hangs, and the process is to end itself.
func hungDisk(c *trial) {
	n := c.onVolume()
	c.during(n, func() {
		if _, err := command("fsfreeze", "-f", c.volume.at); err != nil {
			c.t.Fatal(err)
		}
		time.Sleep(15 * time.Second)
		if _, err := command("fsfreeze", "-u", c.volume.at); err != nil {
			c.t.Fatal(err)
		}
	})
	if !eventually(5*time.Second, 50*time.Millisecond, func() bool { return !n.running() }) {
		c.t.Errorf("%s went on with a disk that hung for 15 s:\n%s", n.name, n.lastWords())
	}
	c.comeBack(n)
}

// comeBack starts a node's process if it has ended, and waits until it serves.
func (c *trial) comeBack(n *node) {
	begun := time.Now()
	if !n.running() {
		c.remark("ended: status %d", n.cmd.ProcessState.ExitCode())
		n.start()
	}
	n.awaitReady(readyTime)
	c.remark("ready %.1f s after it", time.Since(begun).Seconds())
}

// injected restarts a node with its sync calls tampered with, by strace; what
// says how. The filter of system calls is the kernel's, so that all others cost nothing.
func (c *trial) injected(n *node, what string) {
	n.stop()
	n.wrap = []string{"strace", "-D", "-f", "--seccomp-bpf", "-qq", "-o", n.straced(), "-e", "trace=fsync,fdatasync", "-e", "signal=none",
		"-e", "inject=fsync,fdatasync:" + what}
	n.start()
	n.wrap = nil
	n.awaitReady(2 * readyTime)
}

func (n *node) straced() string { return filepath.Join(n.dir, "strace.out") }

// tampered says how many calls of a node were.
func (n *node) tampered() int {
	b, err := os.ReadFile(n.straced())
	if err != nil {
		return 0
	}
	return bytes.Count(b, []byte("(INJECTED)")) + bytes.Count(b, []byte("(DELAYED)"))
}

// slowDisk lets every sync of a node take 300 ms more, once it has done some (per thread) and leads the message log, or does not.
func slowDisk(leads bool) func(c *trial) {
	return func(c *trial) {
		n := c.follower()
		c.injected(n, "delay_enter=300000:when=100+")
		c.makeLead(n, leads)
		term := c.term()
		c.during(n, func() { time.Sleep(20 * time.Second) })
		c.remark("%d syncs slowed, %.0f terms, leads at the end: %v", n.tampered(), c.term()-term, c.leader("message") == n)
		n.stop()
		n.start()
		n.awaitReady(readyTime)
	}
}

// brokenSync lets a sync of a node fail once (per thread): after that nobody
// knows what is on the disk, and the process must end, not try again.
func brokenSync(leads bool) func(c *trial) {
	return func(c *trial) {
		n := c.follower()
		c.injected(n, "error=EIO:when=150")
		c.makeLead(n, leads)
		c.during(n, func() {
			if !eventually(60*time.Second, 50*time.Millisecond, func() bool { return !n.running() }) {
				c.t.Errorf("%s went on after %d syncs that failed", n.name, n.tampered())
				return
			}
			c.at = time.Now()
			c.remark("ended with %d: %s", n.cmd.ProcessState.ExitCode(), lastError(n))
			if n.cmd.ProcessState.ExitCode() == 0 {
				c.t.Errorf("%s ended with status 0 after a sync that failed", n.name)
			}
			time.Sleep(downTime)
		})
		if !n.running() {
			c.revive(n)
		}
	}
}

// lastError is the last line of a node's log that tells of an error.
func lastError(n *node) string {
	last, end := "", ""
	b, err := os.ReadFile(n.logFile)
	if err != nil {
		return err.Error()
	}
	if i := bytes.LastIndex(b, []byte("msg=node_started")); i >= 0 {
		b = b[i:]
	}
	for line := range strings.Lines(string(b)) {
		end = line
		if strings.HasPrefix(line, "panic:") || strings.HasPrefix(line, "fatal error:") {
			last = line
			break
		}
		if strings.Contains(line, "level=ERROR") {
			last = line
		}
	}
	if last == "" {
		last = end
	}
	if _, text, ok := strings.Cut(last, " msg="); ok {
		last = text
	}
	return fmt.Sprintf("%.200s", strings.TrimSpace(strings.ReplaceAll(last, n.cluster.dir, "")))
}

// lateTime is how long after it serves a node may still come upon damage in a table that it has not read before.
const lateTime = 5 * time.Second

// damage does something to the newest file of a killed node that fits the
// pattern, and brings the node back: by itself if it can, else, as the
// documentation has it, as a new member.
func (c *trial) damage(n *node, pattern string, harm func(file string) error) {
	n.kill()
	file, err := newest(n, pattern)
	if err == nil {
		err = harm(file)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.t.Fatal(err)
	}
	n.start()
	ok := eventually(readyTime, 100*time.Millisecond, func() bool { return n.settled() || !n.running() })
	if ok && n.running() {
		eventually(lateTime, 100*time.Millisecond, func() bool { return !n.settled() && !n.running() }) // to be asked makes it read more
	}
	switch running := n.running(); {
	case err != nil:
		c.remark("%s: there is none", pattern)
	case running && ok:
		c.remark("%s: came back", pattern)
	case running:
		c.t.Errorf("%s: it neither serves nor ends: %s", pattern, n.lastWords())
		n.kill()
		c.replace(n)
	default:
		c.ended(n, pattern)
	}
	if !eventually(readyTime, 100*time.Millisecond, func() bool { return !n.running() || c.allVote() }) || !n.running() {
		c.ended(n, pattern) // later still
	}
}

// ended replaces a node that damage has ended, and checks how it ended.
func (c *trial) ended(n *node, pattern string) {
	c.t.Helper()
	if n.running() {
		c.t.Fatalf("%s: %s does not become a voter\n%s", pattern, n.name, n.lastWords())
	}
	c.remark("%s: ended (%s)", pattern, lastError(n))
	c.endedWell(n, pattern)
	c.replace(n)
}

// endedWell checks that a process that could not trust its data said so in one
// line, with the remedy, and no stack of calls.
func (c *trial) endedWell(n *node, what string) {
	c.t.Helper()
	if status := n.cmd.ProcessState.ExitCode(); status != 70 {
		c.t.Errorf("%s: %s ended with status %d, want 70", what, n.name, status)
	}
	b, err := os.ReadFile(n.logFile)
	if err != nil {
		c.t.Fatal(err)
	}
	told := 0
	for line := range strings.Lines(string(b[n.logged:])) {
		if strings.HasPrefix(line, "panic:") || strings.HasPrefix(line, "fatal error:") || strings.HasPrefix(line, "goroutine ") {
			c.t.Errorf("%s: %s ended with a stack: %s", what, n.name, line)
		}
		if strings.Contains(line, "level=ERROR") && strings.Contains(line, "giving_up") {
			told++
			if !strings.Contains(line, "join it again") && !strings.Contains(line, "made anew") {
				c.t.Errorf("%s: no remedy in %s", what, line)
			}
		}
	}
	if told != 1 {
		c.t.Errorf("%s: %s said %d times why it ended, want once:\n%s", what, n.name, told, n.lastWords())
	}
}

// settled reports whether a node serves and votes in both logs.
func (n *node) settled() bool {
	if ok, _, _ := n.ready(); !ok {
		return false
	}
	m, err := n.metrics()
	return err == nil && m[`muster_log_voter{log="control"}`] == 1 && m[`muster_log_voter{log="message"}`] == 1
}

// replace removes a dead node and lets it join anew with an empty folder.
func (c *trial) replace(n *node) {
	via := c.others(n)[0]
	via.mustMuster("node", "remove", n.name)
	wipe(c.t, n.data)
	n.join(via)
	n.start()
	n.awaitReady(readyTime)
	c.awaitVoters()
}

// wipe empties a folder, which may be a mount point.
func wipe(t *testing.T, dir string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	for _, e := range list {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// files are those that are damaged, by pattern.
var files = []string{"message/log/*/*.log", "control/log.db", "message/state/*/MANIFEST-*", "message/state/*/*.sst", "control/state/*/*.log"}

// tornLogs cuts the ends of files of a killed node, as a crash of the machine may.
func tornLogs(c *trial) {
	c.at = time.Now()
	for _, pattern := range files {
		c.damage(c.removable(), pattern, func(file string) error {
			_, used, err := content(file)
			if err != nil {
				return err
			}
			return os.Truncate(file, int64(used-min(used/3, 3000)))
		})
	}
}

// flippedBits turns a bit of a file of a killed node over.
func flippedBits(c *trial) {
	c.at = time.Now()
	for round := range longerCount(1, 4) {
		for _, pattern := range files {
			c.damage(c.removable(), pattern, func(file string) error {
				b, used, err := content(file)
				if err != nil {
					return err
				}
				r := rand.New(rand.NewPCG(uint64(round), 9))
				b[r.IntN(used)] ^= 1 << r.IntN(8)
				return os.WriteFile(file, b, 0o600)
			})
		}
	}
}

// content reads a file; used is its length without the zeros at its end.
func content(file string) (b []byte, used int, err error) {
	b, err = os.ReadFile(file)
	for used = len(b); used > 1 && b[used-1] == 0; {
		used--
	}
	return b, used, err
}

// newest is the newest file of a node's data folder that the pattern fits.
func newest(n *node, pattern string) (string, error) {
	list, err := filepath.Glob(filepath.Join(n.data, pattern))
	if err != nil {
		return "", err
	}
	best, at := "", time.Time{}
	for _, f := range list {
		if info, err := os.Stat(f); err == nil && info.ModTime().After(at) && info.Size() > 0 {
			best, at = f, info.ModTime()
		}
	}
	if best == "" {
		return "", fs.ErrNotExist
	}
	return best, nil
}

// longer chooses a time by the form of the run.
func longer(short, long time.Duration) time.Duration {
	if testing.Short() {
		return short
	}
	return long
}

func longerCount(short, long int) int {
	if testing.Short() {
		return short
	}
	return long
}
