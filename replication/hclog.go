package replication

import (
	"context"
	"io"
	"log/slog"
	"strings"

	"github.com/hashicorp/go-hclog"
)

// raftLogger gives the Raft library a logger that writes to ours.
func raftLogger(to *slog.Logger, group string) hclog.Logger {
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "raft", Level: hclog.Trace, Output: io.Discard})
	l.RegisterSink(&slogSink{to.With("log", group)})
	return l
}

type slogSink struct{ to *slog.Logger }

var slogLevels = map[hclog.Level]slog.Level{
	hclog.Trace: slog.LevelDebug - 4, hclog.Debug: slog.LevelDebug, hclog.Info: slog.LevelDebug,
	hclog.Warn: slog.LevelInfo, hclog.Error: slog.LevelWarn,
}

// Accept implements hclog.SinkAdapter. The library's levels are one too loud
// for an operator: what matters of Raft is in Status.
func (s *slogSink) Accept(_ string, level hclog.Level, msg string, args ...any) {
	to, ok := slogLevels[level]
	if !ok || !s.to.Enabled(context.Background(), to) {
		return
	}
	for i := range args {
		if f, ok := args[i].(hclog.Format); ok && len(f) > 0 {
			args[i] = f[1:]
		}
	}
	s.to.Log(context.Background(), to, "raft_"+strings.ReplaceAll(strings.Trim(msg, " :"), " ", "_"), args...)
}
