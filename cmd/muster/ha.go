package main

import (
	"fmt"
	"net/http"
	"net/url"
	"time"

	"muster/edges/http/adminapi"
	"muster/internal/fault"
	"muster/monitor"
)

type haCmd struct {
	Status   haStatusCmd   `cmd:"" default:"withargs" help:"Show each node's and group's state, why, since when, what comes next, and the latest transitions."`
	Failover haFailoverCmd `cmd:"" help:"Have a node's users served by their backups until muster ha fallback."`
	Fallback haFallbackCmd `cmd:"" help:"Bring a node's users back, in steps."`
}

type haStatusCmd struct {
	JSON bool `help:"Print JSON."`
}

// Run shows the state and how it came to be.
func (c *haStatusCmd) Run(a *app) error {
	got, err := a.ha()
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(a.out, got)
	}
	return printHA(a, got)
}

func (a *app) ha() (got adminapi.HA, err error) {
	return got, a.node.Call(a.ctx, http.MethodGet, "/ha", nil, &got)
}

func printHA(a *app, got adminapi.HA) error {
	if got.Unheard != "" {
		fmt.Fprintf(a.out, "This may be outdated: %s\n\n", got.Unheard)
	}
	t := newTable(a.out, "GROUP", "HA", "STATE", "REASON", "PROTECTED")
	for _, g := range got.Groups {
		protected := yes(g.Protected)
		if g.Text != "" {
			protected += ": " + g.Text
		}
		t.row(g.Group, map[bool]string{true: "on", false: "off"}[g.HA], string(g.State), g.Reason, protected)
	}
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintln(a.out)
	t = newTable(a.out, "NODE", "GROUP", "STATE", "REASON", "SINCE", "BY", "USERS", "AT HOME", "WHAT IS GOING ON", "NEXT")
	for _, n := range got.Nodes {
		t.row(n.Node, orDash(n.Group), string(n.State), n.Reason, clock(n.Since), orDash(n.By), fmt.Sprint(n.Users), fmt.Sprint(n.Home, " %"), orDash(n.Text), orDash(n.Next))
	}
	if err := t.flush(); err != nil {
		return err
	}
	if r := got.Rebalance; r != nil {
		fmt.Fprintf(a.out, "\nRebalancing since %s by %s: %d users left to move, at most %d a second, while no node is down or failed over\n", clock(r.Since), orDash(r.By), r.Left, r.Rate)
	}
	fmt.Fprintln(a.out, "\nLatest transitions:")
	for _, h := range got.History {
		line := fmt.Sprintf("%s  %s %s: %s", clock(h.At), h.Node, h.Event, h.Reason)
		if h.Detail != "" {
			line += " (" + h.Detail + ")"
		}
		fmt.Fprintln(a.out, line+", by "+orDash(h.By))
	}
	if len(got.History) == 0 {
		fmt.Fprintln(a.out, "none")
	}
	return nil
}

type haFailoverCmd struct {
	Node string `arg:"" help:"Name of the node."`
}

// Run fails the node over.
func (c *haFailoverCmd) Run(a *app) error {
	return a.change(http.MethodPost, "/ha/"+url.PathEscape(c.Node)+"/failover", nil, c.Node+" is failed over; muster ha fallback "+c.Node+" brings its users back")
}

type haFallbackCmd struct {
	Node   string `arg:"" help:"Name of the node."`
	NoWait bool   `help:"Do not wait until all users are back."`
}

// progressStep is how often a fallback's progress is looked at.
const progressStep = 500 * time.Millisecond

// Run orders the fallback and shows its progress. Breaking off ends the watching, not the fallback.
func (c *haFallbackCmd) Run(a *app) error {
	var d adminapi.Done
	if err := a.node.Call(a.ctx, http.MethodPost, "/ha/"+url.PathEscape(c.Node)+"/fallback", nil, &d); err != nil {
		return err
	}
	if c.NoWait {
		fmt.Fprintf(a.out, "%s: its users are coming back; see muster ha status (log index %d)\n", c.Node, d.Index)
		return nil
	}
	for shown := ""; ; {
		n, err := a.availability(c.Node)
		if err != nil {
			return err
		}
		if n.State != monitor.HATakingBack {
			fmt.Fprintf(a.out, "%s: %s (%s)\n", c.Node, n.State, n.Reason)
			return nil
		}
		if line := fmt.Sprintf("%s: %s; %s", c.Node, n.Text, n.Next); line != shown {
			fmt.Fprintln(a.errs, line)
			shown = line
		}
		select {
		case <-time.After(progressStep):
		case <-a.ctx.Done():
			return &outcome{partStatus, "the fallback goes on; see muster ha status"}
		}
	}
}

// availability returns one node's state.
func (a *app) availability(node string) (monitor.NodeAvailability, error) {
	got, err := a.ha()
	if err != nil {
		return monitor.NodeAvailability{}, err
	}
	for _, n := range got.Nodes {
		if n.Node == node {
			return n, nil
		}
	}
	return monitor.NodeAvailability{}, fault.New(fault.Gone, "muster.ha", node, node+" was removed meanwhile")
}
