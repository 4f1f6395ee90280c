package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"muster/cmd/musterbench/load"
	"muster/cmd/musterbench/provision"
	"muster/cmd/musterbench/relay"
	"muster/cmd/musterbench/report"
	"muster/cmd/musterbench/target"
	"muster/internal/fault"
)

type loginCommand struct {
	targetFlags
	Count    int     `help:"Logins to make." default:"1000"`
	Rate     float64 `help:"Open loop: logins per second; 0 keeps all workers busy."`
	Roster   bool    `help:"Fetch the contact list." default:"true" negatable:""`
	Presence bool    `help:"Become available." default:"true" negatable:""`
}

// Run is called by the command line parser.
func (c *loginCommand) Run(ctx context.Context) error {
	return c.run(ctx, load.Login{Count: c.Count, Rate: c.Rate, Roster: c.Roster, Presence: c.Presence})
}

type idleCommand struct {
	targetFlags
	Sessions int           `help:"Sessions to hold, each of another account." default:"1000"`
	Rate     float64       `help:"Open loop: logins per second; 0 keeps all workers busy."`
	Roster   bool          `help:"Fetch the contact list." default:"true" negatable:""`
	Presence bool          `help:"Become available." default:"true" negatable:""`
	Settle   time.Duration `help:"Rest before memory is read." default:"5s"`
}

// Run is called by the command line parser.
func (c *idleCommand) Run(ctx context.Context) error {
	return c.run(ctx, load.Login{Count: c.Sessions, Rate: c.Rate, Roster: c.Roster, Presence: c.Presence, Hold: true, Settle: c.Settle})
}

type herdCommand struct {
	targetFlags
	Sessions int           `help:"Sessions, each of another account." default:"500"`
	At       string        `help:"Node that has them (default: the first of the cluster file)." placeholder:"NODE"`
	Break    string        `help:"How they lose their connections: kill -9 of the node's process, clients that drop theirs, or wait for somebody else to do something." enum:"kill,drop,wait" default:"drop"`
	Anew     bool          `help:"Log in anew, by the flow given, with contacts and presence; without it the clients resume their streams (flow classic or token)."`
	Probes   int           `help:"Sessions at the other nodes that write to themselves ten times a second: what the herd does to others." default:"10"`
	Patience time.Duration `help:"Time for all to be back; a client that is not is stuck." default:"60s"`
}

// Run is called by the command line parser.
func (c *herdCommand) Run(ctx context.Context) error {
	return c.run(ctx, load.Herd{Sessions: c.Sessions, At: c.At, Break: load.Break(c.Break), Anew: c.Anew, Probes: c.Probes, Patience: c.Patience})
}

type chatCommand struct {
	targetFlags
	Pairs    int           `help:"Pairs of users." default:"50"`
	Size     int           `help:"Bytes of a message stanza on the wire." default:"300"`
	Window   int           `help:"Closed loop: messages under way in each direction." default:"1"`
	Rate     float64       `help:"Open loop: messages per second over all pairs."`
	Warmup   time.Duration `help:"Time before measuring starts." default:"2s"`
	Duration time.Duration `help:"Time measured." default:"10s"`
	ToFull   bool          `help:"Address full JIDs instead of bare ones."`
	Live     bool          `help:"Ask the server to keep no copy of the messages (XEP-0334, no-store)."`
}

// Run is called by the command line parser.
func (c *chatCommand) Run(ctx context.Context) error {
	return c.run(ctx, load.Chat{Pairs: c.Pairs, Size: c.Size, Window: c.Window, Rate: c.Rate, Warmup: c.Warmup, Duration: c.Duration, ToFull: c.ToFull, Live: c.Live})
}

type presenceCommand struct {
	targetFlags
	Online   int           `help:"Users online." default:"500"`
	Ring     int           `help:"Accounts in the ring of contacts; 0 is the users online."`
	Contacts int           `help:"Mutual contacts of each user." default:"20"`
	Active   int           `help:"Closed loop: changes under way; 0 is one for each user." default:"50"`
	Changes  int           `help:"Changes of each user, the first of them not measured; 0 is as many as the time allows. Muster passes on 10 in 10 seconds." default:"8"`
	Rate     float64       `help:"Open loop: changes per second over all users."`
	Warmup   time.Duration `help:"Time before measuring starts." default:"2s"`
	Duration time.Duration `help:"Time measured; with --changes the longest." default:"10s"`
}

// Run is called by the command line parser.
func (c *presenceCommand) Run(ctx context.Context) error {
	return c.run(ctx, load.Presence{Users: c.Online, Ring: c.Ring, Contacts: c.Contacts, Active: c.Active, Changes: c.Changes, Rate: c.Rate, Warmup: c.Warmup, Duration: c.Duration})
}

type prepareCommand struct {
	targetFlags
	Count    int  `help:"Accounts to make." default:"100"`
	Contacts int  `help:"Mutual contacts of each account, on a ring; an even number." default:"20"`
	Register bool `help:"Register accounts in-band (XEP-0077); otherwise they must exist." default:"true" negatable:""`
}

// Run is called by the command line parser.
func (c *prepareCommand) Run(ctx context.Context) error {
	return c.run(ctx, load.Prepare{Users: c.Count, Contacts: c.Contacts, Register: c.Register})
}

type provisionCommand struct {
	Users    string `help:"Accounts, such as user%d@example.test:password." required:"" placeholder:"PATTERN"`
	First    int    `help:"Number of the first account." default:"1"`
	Accounts int    `help:"How many accounts." default:"100"`
	Contacts int    `help:"Mutual contacts of each account, on a ring." default:"20"`
	Format   string `help:"What to write." enum:"csv,ejabberd,prosody" default:"csv"`
	Out      string `help:"Folder to write into." required:"" placeholder:"DIR"`
}

// Run is called by the command line parser.
func (c *provisionCommand) Run() error {
	users, err := target.Expand(c.Users, c.First, c.Accounts)
	if err != nil {
		return err
	}
	return provision.Write(provision.Format(c.Format), c.Out, users, c.Contacts)
}

type relayCommand struct {
	Listen string `help:"Address to serve." default:"127.0.0.1:15220"`
	Domain string `help:"Name in the certificate." default:"bench.test"`
}

// Run is called by the command line parser.
func (c *relayCommand) Run(ctx context.Context) error {
	server, err := relay.New(c.Domain)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return fault.Wrap(err, fault.Unavailable, "relay.listen", c.Listen)
	}
	return server.Serve(ctx, listener)
}

type reportCommand struct {
	Dir       string `arg:"" help:"Folder with results (*.json)." type:"existingdir"`
	Baselines string `help:"Servers that the others are compared with, separated by commas." default:"ejabberd,relay"`
}

// Run is called by the command line parser.
func (c *reportCommand) Run() error {
	results, err := report.Read(c.Dir)
	if err != nil {
		return err
	}
	if err := report.Markdown(os.Stdout, results, strings.Split(c.Baselines, ",")); err != nil {
		return err
	}
	for _, r := range results {
		if r.Errors > 0 {
			return fault.New(fault.Internal, "report", r.Label, fmt.Sprintf("the %s run had %d errors: its figures do not count", r.Scenario, r.Errors))
		}
	}
	return nil
}
