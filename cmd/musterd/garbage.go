package main

import (
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// A server at rest collects garbage at Go's usual pace, which keeps it small. One
// that works would do so many times a second, over a heap that is mostly the same.
const (
	garbageLook = time.Second // between looks, and about how often a busy server collects
	garbageMost = 128 << 20   // bytes of garbage that a busy server may gather, if what lives is less
	garbagePace = 100         // Go's usual one: garbage in percent of what lives
	garbageRest = 2           // looks in a row without much work after which memory goes back to the system
)

// paceGarbage adapts the collector's pace to what the process allocates, for as
// long as it runs; not if its administrator has set one (GOGC).
func paceGarbage() {
	if os.Getenv("GOGC") != "" {
		return
	}
	look := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"}}
	metrics.Read(look)
	before, pace, rest := look[0].Value.Uint64(), garbagePace, 0
	for range time.Tick(garbageLook) {
		metrics.Read(look)
		allocated, live := look[0].Value.Uint64(), look[1].Value.Uint64()
		next := garbagePercent(allocated-before, live)
		before = allocated
		if next > garbagePace {
			rest = 0
		} else if rest++; rest < garbageRest {
			continue
		}
		if next == pace {
			continue
		}
		debug.SetGCPercent(next)
		if pace = next; pace == garbagePace {
			debug.FreeOSMemory() // at rest nothing else would begin a collection
		}
	}
}

// garbagePercent is the pace at which one look's allocations are about one collection.
func garbagePercent(allocated, live uint64) int {
	if live == 0 {
		return garbagePace // before the first collection
	}
	return max(garbagePace, int(min(allocated, garbageMost)*100/live))
}
