// Command muster is the operator's tool: it sets up clusters and nodes, and
// steers a running node through the administrative socket in its data folder.
//
// Invariants: whatever fails says what is wrong and what to do, and exits with
// the status that exit.go gives to the fault's code; no password is needed or
// shown in an argument.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/alecthomas/kong"

	"muster/edges/http/adminapi"
	"muster/internal/bootstrap"
	"muster/internal/fault"
)

// version is the release; the linker sets it.
var version = "dev"

// cli is the grammar of the command line.
type cli struct {
	Data   string `short:"d" env:"MUSTER_DATA" placeholder:"DIR" help:"Data folder of the node (default: that of --config, else /var/lib/muster)."`
	Config string `short:"c" env:"MUSTER_CONFIG" placeholder:"FILE" help:"Bootstrap file of the node."`

	Cluster     clusterCmd     `cmd:"" help:"Found a cluster."`
	Node        nodeCmd        `cmd:"" help:"Invite, join, list and remove nodes."`
	Publisher   publisherCmd   `cmd:"" help:"Move the publisher role."`
	Status      statusCmd      `cmd:"" help:"Show the cluster as this node sees it."`
	Replication replicationCmd `cmd:"" help:"Show and compare the nodes' replicated state."`
	HA          haCmd          `cmd:"" name:"ha" help:"Show high availability; fail a node over, or bring its users back."`
	Services    servicesCmd    `cmd:"" help:"List, start and stop this node's services."`
	Override    overrideCmd    `cmd:"" help:"Open this node's gates for a while, or end that."`
	Alarms      alarmsCmd      `cmd:"" help:"Show this node's alarms."`
	Sessions    sessionsCmd    `cmd:"" help:"List and end client sessions."`
	User        userCmd        `cmd:"" help:"Manage users."`
	Roster      rosterCmd      `cmd:"" help:"Manage contacts in bulk."`
	Domain      domainCmd      `cmd:"" help:"Manage IM domains."`
	Settings    settingsCmd    `cmd:"" help:"Manage replicated settings."`
	Group       groupCmd       `cmd:"" help:"Manage presence redundancy groups."`
	Assign      assignCmd      `cmd:"" help:"Manage the home nodes of users."`
	Certs       certsCmd       `cmd:"" help:"Manage this node's certificates."`
	Backup      backupCmd      `cmd:"" help:"Back up the cluster, or verify a backup."`

	Restore restoreCmd `cmd:"" help:"Restore a backup as a new cluster of this node. Start musterd afterwards."`
	Demo    demoCmd    `cmd:"" help:"Run a cluster on this machine (make run)."`
	Version versionCmd `cmd:"" help:"Show the release."`
}

// app is what commands work with.
type app struct {
	ctx    context.Context
	in     io.Reader
	out    io.Writer
	errs   io.Writer // progress and prompts
	data   string
	config string
	node   *adminapi.Client
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is main without the process around it. It returns the exit status.
func run(ctx context.Context, args []string, in io.Reader, out, errs io.Writer) int {
	var c cli
	status := -1
	parser, err := kong.New(&c, kong.Name("muster"), kong.UsageOnError(), kong.Writers(out, errs),
		kong.Description("The operator's tool of Muster. Commands about a running node use the socket in its data folder."),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}), kong.Exit(func(code int) { status = code }))
	if err != nil {
		fmt.Fprintln(errs, "muster:", err)
		return exitStatus(err)
	}
	cmd, err := parser.Parse(args)
	if status >= 0 {
		return status // help was asked for
	}
	if err != nil {
		fmt.Fprintf(errs, "muster: %v; see muster --help\n", err)
		return usageStatus
	}
	a := &app{ctx: ctx, in: in, out: out, errs: errs, config: c.Config}
	if a.data, err = dataFolder(c.Data, c.Config); err == nil {
		a.node = adminapi.NewClient(a.data)
		err = cmd.Run(a)
	}
	if err != nil {
		fmt.Fprintln(errs, "muster:", describe(err))
	}
	return exitStatus(err)
}

// dataFolder is the folder named, or that of the bootstrap file.
func dataFolder(data, config string) (string, error) {
	if data != "" {
		return data, nil
	}
	if config == "" {
		return bootstrap.Default().Data, nil
	}
	c, err := bootstrap.Load(config)
	return c.Data, err
}

type versionCmd struct{}

// Run shows the release and what it was built from.
func (versionCmd) Run(a *app) error {
	fmt.Fprintln(a.out, "muster", version)
	if info, ok := debug.ReadBuildInfo(); ok {
		fmt.Fprintln(a.out, info.GoVersion)
	}
	return nil
}

// describe renders an error for an operator.
func describe(err error) string {
	text := fault.Public(err)
	if text == fault.Internal.String() || text == fault.CodeOf(err).String() {
		return err.Error()
	}
	return text
}
