package http

import (
	"context"
	nethttp "net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"muster/edges/http/adminapi"
	"muster/internal/fault"
)

// Health is what the health pages show.
type Health interface {
	// Live returns nil while the process works at all, even if it waits.
	Live() error
	// Ready reports whether this node serves clients; if not, why.
	Ready() (ok bool, reason string)
	// Replication asks the nodes for their state.
	Replication(ctx context.Context) (adminapi.Replication, error)
}

// Sample is one value of a metric.
type Sample struct {
	Name    string // "muster_sessions", counters end in _total
	Help    string
	Counter bool // grows only; false: a gauge
	Value   float64
	Labels  []Label
}

// Label is a label of a Sample; one metric always has the same label names in the same order.
type Label struct{ Name, Value string }

// healthTime is how long the replication page waits for nodes that do not answer.
const healthTime = 3 * time.Second

// Public returns the handler of the HTTPS listener. samples is called for each scrape and must not block.
func Public(h Health, samples func() []Sample) nethttp.Handler {
	mux := nethttp.NewServeMux()
	mux.HandleFunc("GET /health/live", func(w nethttp.ResponseWriter, _ *nethttp.Request) { live(w, h) })
	mux.HandleFunc("GET /health/ready", func(w nethttp.ResponseWriter, _ *nethttp.Request) { ready(w, h) })
	mux.HandleFunc("GET /health/replication", func(w nethttp.ResponseWriter, r *nethttp.Request) { replication(w, r, h) })
	mux.Handle("GET /metrics", metrics(samples))
	return secured(mux)
}

// secured sets the headers that every answer of the public listener has.
func secured(h nethttp.Handler) nethttp.Handler {
	return nethttp.HandlerFunc(func(w nethttp.ResponseWriter, r *nethttp.Request) {
		head := w.Header()
		head.Set("X-Content-Type-Options", "nosniff")
		head.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		head.Set("Cache-Control", "no-store")
		head.Set("Strict-Transport-Security", "max-age=31536000")
		h.ServeHTTP(w, r)
	})
}

// state is the answer of the live and ready pages.
type state struct {
	Status string `json:"status"` // "ok" or "unavailable"
	Reason string `json:"reason,omitempty"`
}

func live(w nethttp.ResponseWriter, h Health) {
	if err := h.Live(); err != nil {
		writeJSON(w, nethttp.StatusServiceUnavailable, state{"unavailable", fault.Public(err)})
		return
	}
	writeJSON(w, nethttp.StatusOK, state{Status: "ok"})
}

func ready(w nethttp.ResponseWriter, h Health) {
	if ok, reason := h.Ready(); !ok {
		w.Header().Set("Retry-After", retryAfter)
		writeJSON(w, nethttp.StatusServiceUnavailable, state{"unavailable", reason})
		return
	}
	writeJSON(w, nethttp.StatusOK, state{Status: "ok"})
}

func replication(w nethttp.ResponseWriter, r *nethttp.Request, h Health) {
	ctx, cancel := context.WithTimeout(r.Context(), healthTime)
	defer cancel()
	v, err := h.Replication(ctx)
	if err != nil {
		writeError(w, err)
		return
	}
	writeJSON(w, nethttp.StatusOK, v)
}

// metrics renders the samples and the Go runtime's own in the Prometheus text format.
func metrics(samples func() []Sample) nethttp.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collector(samples), collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4, Timeout: 10 * time.Second})
}

// collector makes a Prometheus collector of a function that returns samples.
type collector func() []Sample

// Describe implements prometheus.Collector; describing nothing makes it an unchecked one.
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c collector) Collect(out chan<- prometheus.Metric) {
	for _, s := range c() {
		names, values := make([]string, len(s.Labels)), make([]string, len(s.Labels))
		for i, l := range s.Labels {
			names[i], values[i] = l.Name, l.Value
		}
		kind := prometheus.GaugeValue
		if s.Counter {
			kind = prometheus.CounterValue
		}
		desc := prometheus.NewDesc(s.Name, s.Help, names, nil)
		m, err := prometheus.NewConstMetric(desc, kind, s.Value, values...)
		if err != nil {
			m = prometheus.NewInvalidMetric(desc, err)
		}
		out <- m
	}
}
