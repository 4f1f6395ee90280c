// Command musterd is the server: one node of a cluster. It reads its bootstrap
// file, runs the node until SIGTERM or SIGINT, and reloads the certificates on SIGHUP.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"muster/internal/bootstrap"
	"muster/internal/fault"
	"muster/internal/node"
	"muster/replication"
)

// version is the release; the linker sets it.
var version = "dev"

// stopTime is how long an orderly stop may take before the process ends anyway.
const stopTime = 15 * time.Second

type cli struct {
	Config  string           `short:"c" required:"" env:"MUSTER_CONFIG" placeholder:"FILE" help:"Bootstrap file; muster cluster example prints one."`
	Version kong.VersionFlag `help:"Show the release."`
}

func main() {
	var c cli
	kong.Parse(&c, kong.Name("musterd"), kong.Description("One node of a Muster cluster."), kong.Vars{"version": "musterd " + version})
	if err := run(c.Config); err != nil {
		os.Exit(report(os.Stderr, err))
	}
}

// report says why the server does not run, and returns the process's status:
// replication.ExitStatus if its data cannot be trusted, which a restart does not change.
func report(w io.Writer, err error) int {
	if fault.Is(err, fault.Internal) {
		slog.Error("node_giving_up", "reason", fault.Public(err), "error", strings.Join(strings.Fields(err.Error()), " "))
		return replication.ExitStatus
	}
	fmt.Fprintln(w, "musterd:", fault.Public(err), "\n  ", err)
	return 1
}

// run is the life of the process's node.
func run(file string) error {
	conf, err := bootstrap.Load(file)
	if err != nil {
		return err
	}
	logger := newLogger(os.Stderr, conf)
	slog.SetDefault(logger)
	n, err := node.Open(node.Options{Config: conf, Release: version, Features: features(), Logger: logger})
	if err != nil {
		return err
	}
	go paceGarbage()
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, os.Interrupt, syscall.SIGHUP)
	if err := n.Start(context.Background()); err != nil {
		return err
	}
	for s := range signals {
		if s != syscall.SIGHUP {
			break
		}
		_ = n.ReloadCertificates() // it logs and raises an alarm itself
	}
	signal.Reset() // a second signal ends the process at once
	ctx, cancel := context.WithTimeout(context.Background(), stopTime)
	defer cancel()
	return n.Stop(ctx)
}

func newLogger(w io.Writer, c bootstrap.Config) *slog.Logger {
	o := &slog.HandlerOptions{Level: c.LogLevel}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}
