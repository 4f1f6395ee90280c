package replication

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Housekeeping.
const (
	houseStep     = time.Second      // between looks at the log's size
	diskStep      = 10 * time.Second // between measurements of the folder
	snapshotRetry = 30 * time.Second // after a snapshot that failed
	maxTrailing   = 1 << 18          // records that stay behind a snapshot at most, however small they are
	recordCost    = 64               // bytes that a record is counted for beyond its data
)

// logSizes knows how many bytes the log's newest records are.
type logSizes struct {
	mu    sync.Mutex
	first uint64  // index of ends[0]
	begin int64   // what all records before first came to
	ends  []int64 // what all records up to each index came to
}

// add notes a record. One that does not follow the last makes the others
// forgotten: a snapshot stands for those.
func (s *logSizes) add(index uint64, data int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	end := s.begin
	if n := uint64(len(s.ends)); n == 0 || index != s.first+n {
		if n > 0 && index >= s.first && index < s.first+n { // written anew
			s.ends = s.ends[:index-s.first]
		} else {
			s.first, s.ends = index, s.ends[:0]
		}
	}
	if len(s.ends) > 0 {
		end = s.ends[len(s.ends)-1]
	}
	s.ends = append(s.ends, end+int64(data+recordCost))
}

// cut forgets the records lo to hi, which are the first or the last.
func (s *logSizes) cut(lo, hi uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := uint64(len(s.ends))
	switch {
	case n == 0 || hi < s.first || lo >= s.first+n:
	case lo <= s.first:
		gone := min(hi-s.first+1, n)
		s.begin = s.ends[gone-1]
		s.ends, s.first = slices.Clone(s.ends[gone:]), s.first+gone
	default:
		s.ends = s.ends[:lo-s.first]
	}
}

func (s *logSizes) end() int64 {
	if len(s.ends) == 0 {
		return s.begin
	}
	return s.ends[len(s.ends)-1]
}

// after returns the bytes of the records beyond index.
func (s *logSizes) after(index uint64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch n := uint64(len(s.ends)); {
	case index < s.first:
		return s.end() - s.begin
	case index >= s.first+n:
		return 0
	}
	return s.end() - s.ends[index-s.first]
}

// newest returns how many of the last records come to no more than limit bytes.
func (s *logSizes) newest(limit int64) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	from := s.end() - limit
	if from <= s.begin {
		return len(s.ends)
	}
	return len(s.ends) - 1 - sort.Search(len(s.ends), func(i int) bool { return s.ends[i] >= from })
}

// housekeep bounds the log by bytes where Timing says so, measures its folder, and
// has the node stand back from leading while its disk lacks room.
func (g *Group) housekeep() {
	tick := time.NewTicker(houseStep)
	defer tick.Stop()
	var measured, failed time.Time
	for {
		now := time.Now()
		if now.Sub(measured) >= diskStep {
			measured = now
			g.measureDisk()
		}
		if err := g.setPatience(); err != nil {
			g.cfg.Logger.Warn("patience_not_set", "log", g.cfg.Name, "err", err)
		}
		if now.Sub(failed) >= snapshotRetry {
			if err := g.boundLog(); err != nil && g.ctx.Err() == nil {
				failed = now
				g.cfg.Logger.Warn("snapshot_failed", "log", g.cfg.Name, "err", err)
			}
		}
		select {
		case <-tick.C:
		case <-g.ctx.Done():
			return
		}
	}
}

// boundLog takes a snapshot when the records since the last one have grown to
// SnapshotBytes, and has the library keep TrailingBytes behind it. The library
// itself counts records only, and those of one log may be a hundred bytes or a megabyte.
func (g *Group) boundLog() error {
	t := g.cfg.Timing
	if t.SnapshotBytes == 0 || g.cfg.Machine.Halted() != nil || g.log.sizes.after(g.snaps.covered()) < t.SnapshotBytes {
		return nil
	}
	rc := g.raft.ReloadableConfig()
	rc.TrailingLogs = min(uint64(g.log.sizes.newest(t.TrailingBytes)), maxTrailing)
	if err := g.raft.ReloadConfig(rc); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(g.ctx, time.Minute)
	defer cancel()
	return g.Snapshot(ctx)
}

// measureDisk notes how large the log's folder is.
func (g *Group) measureDisk() { g.diskBytes.Store(folderSize(g.cfg.FS, g.cfg.Dir, map[string]bool{})) }

// folderSize adds up the files below dir. A table is counted once, though the
// state and a snapshot may both link to it.
func folderSize(fs vfs.FS, dir string, seen map[string]bool) (total int64) {
	names, err := fs.List(dir)
	if err != nil {
		return 0 // removed meanwhile
	}
	for _, name := range names {
		path := fs.PathJoin(dir, name)
		st, err := fs.Stat(path)
		switch {
		case err != nil:
		case st.IsDir():
			total += folderSize(fs, path, seen)
		case strings.HasSuffix(name, ".sst") || strings.HasSuffix(name, ".blob"):
			if key := fmt.Sprint(name, "/", st.Size()); !seen[key] {
				seen[key] = true
				total += st.Size()
			}
		default:
			total += st.Size()
		}
	}
	return total
}
