package simnode

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// keepTrace is how many of the latest lines a failure can show.
const keepTrace = 4000

// Trace keeps the latest log lines of all nodes, and the simulation's own notes. It is the nodes' slog.Handler.
type Trace struct {
	core  *traceCore
	attrs []slog.Attr
}

type traceCore struct {
	start time.Time
	mu    sync.Mutex
	lines []line
	next  int
	live  func(string) // also gets each line at once; nil: nobody
}

type line struct {
	at    time.Time
	text  string
	attrs []slog.Attr // of the logger
	rec   slog.Record
}

func newTrace() *Trace { return &Trace{core: &traceCore{start: time.Now()}} }

// Enabled implements slog.Handler.
func (tr *Trace) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }

// Handle implements slog.Handler.
func (tr *Trace) Handle(_ context.Context, r slog.Record) error {
	tr.core.add(line{at: r.Time, attrs: tr.attrs, rec: r})
	return nil
}

// WithAttrs implements slog.Handler.
func (tr *Trace) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &Trace{core: tr.core, attrs: append(tr.attrs[:len(tr.attrs):len(tr.attrs)], attrs...)}
}

// WithGroup implements slog.Handler; groups are not shown.
func (tr *Trace) WithGroup(string) slog.Handler { return tr }

// listener is the nodes' handler: it also hears when homes move.
type listener struct {
	slog.Handler
	history *History
	host    string
}

var moves = map[string]bool{"node_over": true, "isolated": true, "rejoined": true, "node_renewed": true, "homes_shifted": true}
var isolations = map[string]bool{"isolated": true, "node_fenced": true}

// Handle implements slog.Handler.
func (l *listener) Handle(ctx context.Context, r slog.Record) error {
	if moves[r.Message] {
		l.history.markHost(move, l.host)
	}
	if isolations[r.Message] {
		l.history.markHost(isolation, l.host)
	}
	return l.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (l *listener) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &listener{l.Handler.WithAttrs(attrs), l.history, l.host}
}

// Notef adds a line of the simulation's own.
func (tr *Trace) Notef(format string, args ...any) {
	tr.core.add(line{at: time.Now(), text: fmt.Sprintf(format, args...)})
}

func (c *traceCore) add(l line) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.live != nil {
		c.live(c.format(l))
	}
	if len(c.lines) < keepTrace {
		c.lines = append(c.lines, l)
		return
	}
	c.lines[c.next] = l
	c.next = (c.next + 1) % keepTrace
}

func (c *traceCore) format(l line) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%9.3f ", l.at.Sub(c.start).Seconds())
	if l.text != "" {
		b.WriteString("== " + l.text)
		return b.String()
	}
	b.WriteString(l.rec.Level.String()[:1] + " ")
	for _, a := range l.attrs {
		if a.Key == "node" {
			b.WriteString(a.Value.String() + " ")
		}
	}
	b.WriteString(l.rec.Message)
	l.rec.Attrs(func(a slog.Attr) bool {
		fmt.Fprintf(&b, " %s=%v", a.Key, a.Value)
		return true
	})
	return b.String()
}

// Tail returns the latest n lines.
func (tr *Trace) Tail(n int) string {
	c := tr.core
	c.mu.Lock()
	defer c.mu.Unlock()
	all := append(c.lines[c.next:len(c.lines):len(c.lines)], c.lines[:c.next]...)
	if len(all) > n {
		all = all[len(all)-n:]
	}
	var b strings.Builder
	for _, l := range all {
		b.WriteString(c.format(l) + "\n")
	}
	return b.String()
}
