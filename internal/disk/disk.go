// Package disk watches the room on the file systems of a node's data folder, so
// that the node stops writing in order before it must: a store whose
// write-ahead log meets a full disk cannot go on.
//
// Callers: internal/node opens one Guard below all stores and logs, and asks it
// what may still be written. Invariants: the level follows the free space with
// hysteresis, so that a node does not waver; a write that meets a full disk all
// the same is tried again once, after the reserve file has been given up for
// it; the reserve file is made only where there is plenty of room besides.
package disk

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Level says how little room there is, by parts of the reserve.
type Level uint8

// The levels. What a node does at each is its own affair.
const (
	Plenty   Level = iota
	Low            // less than twice the reserve is free: somebody should look
	Full           // less than the reserve
	Critical       // less than half of it
	Spent          // less than a quarter of it
)

var levels = [...]string{"plenty", "low", "full", "critical", "spent"}

// String names the level for logs.
func (l Level) String() string { return levels[l] }

const (
	step       = 200 * time.Millisecond // between looks; one is a system call for each folder
	struckTime = 10 * time.Second       // for which a failed write counts, whatever the free space is said to be
	reserve    = "reserve"              // name of the reserve file
)

// Options say what a Guard watches. FS and Dirs are required.
type Options struct {
	FS       vfs.FS           // under Dirs
	Dirs     []string         // folders whose file systems are watched; the reserve file is in the first
	Reserve  func() int64     // bytes that should stay free; asked at each look
	Logger   *slog.Logger     // nil: slog.Default()
	OnChange func(State)      // hears of each change of the level, from whichever goroutine looked; may be nil
	Now      func() time.Time // nil: time.Now
}

// State is what a look found.
type State struct {
	Level   Level
	Free    int64     // bytes, on the fullest of the file systems
	Dir     string    // folder on it
	Reserve int64     // bytes that should be free
	Since   time.Time // when Level began
}

// Reason says that the disk is full or nearly so, for people; "" where there is plenty of room.
func (s State) Reason() string {
	switch s.Level {
	case Plenty:
		return ""
	case Low:
		return fmt.Sprintf("disk nearly full: %s; free some space, or give the volume more", s.room())
	}
	return fmt.Sprintf("disk full: %s; free some space, or give the volume more", s.room())
}

func (s State) room() string {
	return fmt.Sprintf("free %d MB in %s, of %d MB that should be", s.Free>>20, s.Dir, s.Reserve>>20)
}

// Guard watches the room below a data folder. It is safe for concurrent use.
type Guard struct {
	o     Options
	state atomic.Pointer[State]

	mu     sync.Mutex
	blind  bool      // the file system cannot tell its free space
	held   int64     // bytes of the reserve file; 0: there is none
	found  bool      // a reserve file of an earlier process, of unknown size
	struck time.Time // when a write last met a full disk
}

// New returns a guard that has looked once.
func New(o Options) *Guard {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	g := &Guard{o: o}
	g.state.Store(&State{Since: o.Now()})
	_, err := o.FS.Stat(g.file())
	g.found = err == nil
	g.Look()
	return g
}

func (g *Guard) file() string { return g.o.FS.PathJoin(g.o.Dirs[0], reserve) }

// FS is the file system through which all must write that the guard is to
// protect: what meets a full disk is tried again once, after Strike.
func (g *Guard) FS() vfs.FS { return vfs.OnDiskFull(g.o.FS, g.Strike) }

// State returns what the last look found.
func (g *Guard) State() State { return *g.state.Load() }

// Run looks until ctx ends. It returns at once where free space cannot be told.
func (g *Guard) Run(ctx context.Context) {
	g.mu.Lock()
	blind := g.blind
	g.mu.Unlock()
	if blind {
		return
	}
	tick := time.NewTicker(step)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			g.turn()
		case <-ctx.Done():
			return
		}
	}
}

// turn looks, and gives the reserve file up or makes it. When next to nothing is
// left there is no waiting for a write that fails: with the room of the file a node can still end its affairs in order.
func (g *Guard) turn() {
	if g.Look().Level == Spent {
		g.giveUp()
	}
	g.keep()
}

// giveUp removes the reserve file, if there is one, and looks again.
func (g *Guard) giveUp() {
	given := g.Release()
	s := g.Look()
	if given {
		g.o.Logger.Warn("disk_reserve_given_up", "dir", s.Dir, "free", s.Free)
	}
}

// Look measures the free space and returns what it found.
func (g *Guard) Look() State {
	g.mu.Lock()
	was := g.State()
	now, err := g.measure()
	if g.blind = err != nil; g.blind {
		g.mu.Unlock()
		return was
	}
	now.Level = levelOf(was.Level, now.Free, now.Reserve)
	if at := g.o.Now(); !g.struck.IsZero() && at.Sub(g.struck) < struckTime {
		now.Level = max(now.Level, Critical)
	}
	if now.Since = was.Since; now.Level != was.Level {
		now.Since = g.o.Now()
	}
	g.state.Store(&now)
	g.mu.Unlock()
	if now.Level != was.Level && g.o.OnChange != nil {
		g.o.OnChange(now)
	}
	return now
}

// measure finds the fullest file system.
func (g *Guard) measure() (s State, err error) {
	s.Reserve = g.o.Reserve()
	for i, dir := range g.o.Dirs {
		use, err := g.o.FS.GetDiskUsage(dir)
		if err != nil {
			return s, err
		}
		if free := int64(min(use.AvailBytes, 1<<62)); i == 0 || free < s.Free {
			s.Free, s.Dir = free, dir
		}
	}
	return s, nil
}

// levelOf is the level for so much free space. A level ends a quarter above where it begins.
func levelOf(was Level, free, reserve int64) Level {
	begins := [...]int64{Low: 2 * reserve, Full: reserve, Critical: reserve / 2, Spent: reserve / 4}
	for l := Spent; l > Plenty; l-- {
		if free < begins[l] || l <= was && free < begins[l]+begins[l]/4 {
			return l
		}
	}
	return Plenty
}

// Strike is for a write that has met a full disk: it gives the reserve file up
// and looks. The write may be tried again afterwards, once.
func (g *Guard) Strike() {
	g.mu.Lock()
	g.struck = g.o.Now()
	g.mu.Unlock()
	g.o.Logger.Warn("disk_full", "free", g.State().Free)
	g.giveUp()
}

// Release gives the reserve file up; false if there is none.
func (g *Guard) Release() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.held == 0 && !g.found {
		return false
	}
	if err := g.o.FS.Remove(g.file()); err != nil {
		g.o.Logger.Error("disk_reserve_not_given_up", "file", g.file(), "error", err)
		return false
	}
	g.held, g.found = 0, false
	return true
}

// keep makes the reserve file, half the reserve large, when there is plenty of
// room for it. It must not be what makes the disk low.
func (g *Guard) keep() {
	s := g.State()
	size := s.Reserve / 2
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.held == size || s.Level != Plenty || s.Free < 5*s.Reserve/2+size || !g.struck.IsZero() && g.o.Now().Sub(g.struck) < struckTime {
		return
	}
	f, err := g.o.FS.Create(g.file(), "muster-reserve")
	if err == nil {
		err = f.Preallocate(0, size)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}
	if g.found = false; err != nil {
		// A file system that cannot set space aside; nothing is tried again until the size changes.
		g.o.Logger.Warn("disk_reserve_not_kept", "file", g.file(), "error", err)
	}
	g.held = size
}
