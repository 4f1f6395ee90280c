package stat

import (
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"
)

func TestBucketsCoverAllValues(t *testing.T) {
	values := []uint64{0, 1, 63, 64, 65, 127, 128, 1000, 1 << 20, 1<<20 + 1, 1 << 40, math.MaxInt64}
	for _, v := range values {
		i := bucket(v)
		if i < 0 || i >= buckets {
			t.Fatalf("bucket(%d) = %d, outside 0..%d", v, i, buckets-1)
		}
		if upper(i) < v {
			t.Errorf("upper(bucket(%d)) = %d, below the value", v, upper(i))
		}
		if i > 0 && upper(i-1) >= v {
			t.Errorf("value %d belongs into an earlier bucket than %d", v, i)
		}
	}
}

func TestBucketsAreOrdered(t *testing.T) {
	for i := 1; i < buckets; i++ {
		if upper(i) <= upper(i-1) && upper(i-1) < math.MaxInt64 {
			t.Fatalf("upper(%d)=%d is not above upper(%d)=%d", i, upper(i), i-1, upper(i-1))
		}
	}
}

func TestQuantile(t *testing.T) {
	cases := []struct {
		name   string
		values []time.Duration
		q      float64
		want   time.Duration
	}{
		{"empty", nil, 0.5, 0},
		{"one", []time.Duration{7}, 0.5, 7},
		{"one, lowest", []time.Duration{7}, 0, 7},
		{"median of three", []time.Duration{30, 10, 20}, 0.5, 20},
		{"median of four is the lower", []time.Duration{10, 20, 30, 40}, 0.5, 20},
		{"highest", []time.Duration{10, 20, 30, 40}, 1, 40},
		{"negative counts as zero", []time.Duration{-5}, 1, 0},
	}
	for _, c := range cases {
		var h Histogram
		for _, v := range c.values {
			h.Record(v)
		}
		if got := h.Quantile(c.q); got != c.want {
			t.Errorf("%s: got %d, want %d", c.name, got, c.want)
		}
	}
}

func TestQuantileIsPreciseEnough(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var h Histogram
	var all []time.Duration
	for range 20_000 {
		v := time.Duration(math.Exp(random.Float64()*16)) * time.Microsecond / 100
		h.Record(v)
		all = append(all, v)
	}
	slices.Sort(all)
	for _, q := range []float64{0.01, 0.5, 0.95, 0.99, 0.999} {
		exact := all[int(math.Ceil(q*float64(len(all))))-1]
		got := h.Quantile(q)
		if relative := math.Abs(float64(got-exact)) / float64(exact+1); relative > 0.017 {
			t.Errorf("quantile %v: got %v, exact %v: %.1f %% off", q, got, exact, 100*relative)
		}
	}
	if h.Max() != all[len(all)-1] {
		t.Errorf("max %v, want exactly %v", h.Max(), all[len(all)-1])
	}
}

func TestRecordFromManyGoroutines(t *testing.T) {
	var h Histogram
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 1000 {
				h.Record(time.Duration(g*1000 + i))
			}
		})
	}
	wg.Wait()
	if h.Count() != 8000 || h.Max() != 7999 {
		t.Errorf("count %d, max %d; want 8000 and 7999", h.Count(), h.Max())
	}
}

func TestLatency(t *testing.T) {
	var h Histogram
	for i := 1; i <= 100; i++ {
		h.Record(time.Duration(i) * time.Millisecond)
	}
	l := h.Latency()
	for _, c := range []struct {
		name      string
		got, want float64
	}{{"p50", l.P50, 50}, {"p95", l.P95, 95}, {"p99", l.P99, 99}, {"max", l.Max, 100}} {
		if math.Abs(c.got-c.want)/c.want > 0.017 {
			t.Errorf("%s: got %v ms, want about %v", c.name, c.got, c.want)
		}
	}
}

func TestMedian(t *testing.T) {
	cases := []struct {
		name   string
		values []float64
		want   float64
	}{
		{"none", nil, 0}, {"one", []float64{3}, 3}, {"odd", []float64{9, 1, 5}, 5}, {"even", []float64{4, 1, 3, 2}, 2.5},
	}
	for _, c := range cases {
		before := slices.Clone(c.values)
		if got := Median(c.values); got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
		if !slices.Equal(before, c.values) {
			t.Errorf("%s: Median reordered its argument", c.name)
		}
	}
}
