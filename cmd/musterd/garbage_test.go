package main

import "testing"

func TestGarbagePercent(t *testing.T) {
	for _, tc := range []struct {
		allocated, live uint64
		want            int
	}{
		{0, 0, 100},                 // before the first collection
		{0, 20 << 20, 100},          // at rest
		{5 << 20, 20 << 20, 100},    // hardly busy
		{60 << 20, 20 << 20, 300},   // a collection a second
		{900 << 20, 16 << 20, 800},  // more than may gather
		{900 << 20, 512 << 20, 100}, // so large that Go's pace leaves enough
	} {
		if got := garbagePercent(tc.allocated, tc.live); got != tc.want {
			t.Errorf("%d allocated, %d live: %d %%, want %d", tc.allocated, tc.live, got, tc.want)
		}
	}
}
