// Command musterbench loads an XMPP server and tells what it cost: CPU time of
// the server's processes for each operation, resident memory for each session,
// and latency. Any server can be the target, so that Muster, ejabberd, Prosody
// and a bare TLS relay are measured by the same means; `make bench-peers` does so.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"muster/cmd/musterbench/client"
	"muster/cmd/musterbench/load"
	"muster/cmd/musterbench/proc"
	"muster/cmd/musterbench/target"
	"muster/internal/fault"
)

// cli is the command line.
type cli struct {
	Login     loginCommand     `cmd:"" help:"Log in and out many times, each with a full TLS handshake."`
	Idle      idleCommand      `cmd:"" help:"Hold many sessions and report the server's memory for each."`
	Herd      herdCommand      `cmd:"" help:"Open sessions on one node, break their connections, and let all clients come back at the others."`
	Chat      chatCommand      `cmd:"" help:"Let pairs of users write to each other."`
	Presence  presenceCommand  `cmd:"" help:"Change presence and count what the contacts get."`
	Prepare   prepareCommand   `cmd:"" help:"Make accounts and mutual contacts through XMPP."`
	Provision provisionCommand `cmd:"" help:"Write accounts and contacts as files that servers import."`
	Relay     relayCommand     `cmd:"" help:"Serve as the floor: a TLS relay that does nothing else."`
	Report    reportCommand    `cmd:"" help:"Make one table of the medians of many results."`
}

// targetFlags say which server to load.
type targetFlags struct {
	Cluster     string        `help:"Read addresses, users and process ids from this cluster.json." type:"existingfile" placeholder:"FILE"`
	Node        string        `help:"Use only this node of the cluster file."`
	Address     string        `help:"The server, host:port." placeholder:"HOST:PORT"`
	Users       string        `help:"Accounts, such as user%d@example.test:password; instead of those of the cluster file, if there is one." placeholder:"PATTERN"`
	First       int           `help:"Number of the first account." default:"1"`
	Accounts    int           `help:"How many accounts the pattern stands for." default:"100"`
	PID         string        `help:"Process ids of the server, separated by commas; children are counted too." name:"pid"`
	Transport   string        `help:"How to connect: direct TLS, STARTTLS, or the relay's protocol." enum:"direct,starttls,relay" default:"direct"`
	CA          string        `help:"Check certificates against this PEM file; without it they are not checked." type:"existingfile" name:"ca" placeholder:"FILE"`
	Mechanism   string        `help:"SASL mechanism." enum:"SCRAM-SHA-1,SCRAM-SHA-256,PLAIN" default:"SCRAM-SHA-1"`
	Flow        string        `help:"How to log in after TLS: as RFC 6120 has it, with SASL2 and Bind 2, or with a token in one round trip (got by a login that is not measured)." enum:"classic,inline,token" default:"classic"`
	PostQuantum bool          `help:"Exchange keys with X25519MLKEM768 instead of X25519."`
	Workers     int           `help:"Logins under way at once." default:"8"`
	Sources     int           `help:"Spread connections over so many addresses 127.0.0.x." default:"0"`
	Timeout     time.Duration `help:"Limit for one login." default:"30s"`
	Drain       time.Duration `help:"How long stanzas may be under way at the end before they count as lost." default:"10s"`
	Label       string        `help:"The server's name in results." default:"server"`
	JSON        bool          `help:"Print the result as JSON." name:"json"`
}

// env builds what scenarios need from the flags.
func (f *targetFlags) env() (*load.Env, error) {
	t, err := f.target()
	if err != nil {
		return nil, err
	}
	pids, err := proc.Parse(f.PID)
	if err != nil {
		return nil, err
	}
	if f.PID == "" {
		pids = t.PIDs()
	}
	ca, domain := f.CA, ""
	if ca == "" {
		ca = t.CA
	}
	if len(t.Users) > 0 {
		domain = t.Users[0].Domain
	}
	transport := client.Transport(f.Transport)
	config, err := client.TLSConfig(ca, domain, transport, f.PostQuantum)
	if err != nil {
		return nil, err
	}
	e := &load.Env{
		Target: t, Tree: proc.New("/proc", pids...), Workers: f.Workers, Sources: f.Sources, Drain: f.Drain,
		Options: client.Options{Transport: transport, TLS: config, Mechanism: f.Mechanism, Resource: "bench", Timeout: f.Timeout,
			Flow: client.Flow(f.Flow), Wallet: new(client.Wallet)},
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)).With("target", f.Label),
	}
	return e, e.Check()
}

// target reads the cluster file, or takes address and pattern from the flags.
func (f *targetFlags) target() (*target.Target, error) {
	if f.Cluster != "" {
		t, err := target.Load(f.Cluster)
		if err == nil && f.Node != "" {
			err = t.Only(f.Node)
		}
		if err == nil && f.Users != "" {
			t.Users, err = target.Expand(f.Users, f.First, f.Accounts)
		}
		return t, err
	}
	if f.Address == "" || f.Users == "" {
		return nil, fault.New(fault.BadRequest, "musterbench", "", "give a target: --cluster FILE, or --address HOST:PORT with --users PATTERN")
	}
	users, err := target.Expand(f.Users, f.First, f.Accounts)
	if err != nil {
		return nil, err
	}
	return &target.Target{Users: users, Nodes: []target.Node{{Name: f.Label, DirectTLS: f.Address, StartTLS: f.Address}}}, nil
}

// scenario is what the loading subcommands run.
type scenario interface {
	Run(ctx context.Context, e *load.Env) (load.Result, error)
}

// run runs s against the target and prints the result.
func (f *targetFlags) run(ctx context.Context, s scenario) error {
	e, err := f.env()
	if err != nil {
		return err
	}
	r, err := s.Run(ctx, e)
	if err != nil {
		return err
	}
	r.Label = f.Label
	if f.JSON {
		return json.NewEncoder(os.Stdout).Encode(r)
	}
	_, err = fmt.Print(r)
	return err
}

func main() {
	raiseFileLimit()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var c cli
	parser := kong.Parse(&c, kong.Name("musterbench"), kong.UsageOnError(),
		kong.Description("Load generator and sizing tool for XMPP servers."), kong.BindTo(ctx, (*context.Context)(nil)))
	if err := parser.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "musterbench:", err)
		stop()
		os.Exit(1)
	}
}

// raiseFileLimit allows as many connections as the system lets this process have.
func raiseFileLimit() {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) == nil {
		limit.Cur = limit.Max
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	}
}
