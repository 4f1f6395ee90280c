// Package stat counts latencies and picks medians for the load generator.
//
// Scenarios record from many goroutines at once; a Histogram is therefore an
// array of atomic counters with a relative error below two percent, and holds
// the largest value exactly.
package stat

import (
	"math/bits"
	"slices"
	"sync/atomic"
	"time"
)

// subBits is the number of bits of precision in each power of two: 64 steps, 1.6 %.
const subBits = 6

// buckets covers every int64 number of nanoseconds.
const buckets = (64 - subBits) << subBits

// Histogram holds durations. The zero value is empty and ready.
type Histogram struct {
	counts [buckets]atomic.Uint64
	total  atomic.Uint64
	max    atomic.Int64
}

// Record adds one duration; negative ones count as zero.
func (h *Histogram) Record(d time.Duration) {
	d = max(d, 0)
	h.counts[bucket(uint64(d))].Add(1)
	h.total.Add(1)
	for {
		old := h.max.Load()
		if int64(d) <= old || h.max.CompareAndSwap(old, int64(d)) {
			return
		}
	}
}

// Count returns how many durations were recorded.
func (h *Histogram) Count() uint64 { return h.total.Load() }

// Max returns the largest duration recorded.
func (h *Histogram) Max() time.Duration { return time.Duration(h.max.Load()) }

// Quantile returns the smallest recorded duration d, within the precision, such
// that a share q (0..1) of all is not longer than d. It returns 0 when empty.
func (h *Histogram) Quantile(q float64) time.Duration {
	total := h.total.Load()
	if total == 0 {
		return 0
	}
	rank := uint64(q * float64(total))
	if float64(rank) < q*float64(total) || rank == 0 {
		rank++
	}
	var seen uint64
	for i := range h.counts {
		seen += h.counts[i].Load()
		if seen >= rank {
			return min(time.Duration(upper(i)), h.Max())
		}
	}
	return h.Max()
}

// bucket returns the counter that v belongs to.
func bucket(v uint64) int {
	if v < 1<<subBits {
		return int(v)
	}
	exponent := bits.Len64(v) - subBits - 1
	return (exponent+1)<<subBits + int(v>>exponent) - 1<<subBits
}

// upper returns the largest value of bucket i.
func upper(i int) uint64 {
	if i < 1<<subBits {
		return uint64(i)
	}
	exponent := i>>subBits - 1
	mantissa := uint64(i&(1<<subBits-1)) + 1<<subBits
	return (mantissa+1)<<exponent - 1
}

// Latency is a summary of a histogram in milliseconds.
type Latency struct {
	P50 float64 `json:"p50_ms"`
	P95 float64 `json:"p95_ms"`
	P99 float64 `json:"p99_ms"`
	Max float64 `json:"max_ms"`
}

// Latency summarises h.
func (h *Histogram) Latency() Latency {
	return Latency{
		P50: millis(h.Quantile(0.50)), P95: millis(h.Quantile(0.95)),
		P99: millis(h.Quantile(0.99)), Max: millis(h.Max()),
	}
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// Median returns the middle of values (the mean of the two middle ones for an
// even number), or 0 for none. It leaves values as they are.
func Median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	mid := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[mid]
	}
	return (sorted[mid-1] + sorted[mid]) / 2
}
