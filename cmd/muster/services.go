package main

import (
	"fmt"
	"net/http"
	"net/url"
	"time"

	"muster/edges/http/adminapi"
	"muster/monitor"
)

type servicesCmd struct {
	List  servicesListCmd `cmd:"" default:"withargs" help:"Show each service's state, what it waits for and since when."`
	Start serviceStartCmd `cmd:"" help:"Let a service run again."`
	Stop  serviceStopCmd  `cmd:"" help:"Stop a service until it is started again, also over restarts."`
}

type servicesListCmd struct {
	JSON bool `help:"Print JSON."`
}

// Run lists the services.
func (c *servicesListCmd) Run(a *app) error {
	var s adminapi.Services
	if err := a.node.Call(a.ctx, http.MethodGet, "/services", nil, &s); err != nil {
		return err
	}
	if c.JSON {
		return printJSON(a.out, s)
	}
	t := newTable(a.out, "SERVICE", "STATE", "SINCE", "REASON")
	for _, v := range s.Services {
		t.row(v.Name, "["+v.State+"]", clock(v.Since), orDash(v.Reason))
	}
	if err := t.flush(); err != nil || len(s.Alarms) == 0 {
		return err
	}
	fmt.Fprintln(a.out)
	return printAlarms(a, s.Alarms)
}

type serviceStartCmd struct {
	Name string `arg:"" help:"Name of the service."`
	Node string `help:"On this node (default: the one that is asked)."`
}

// Run lets a service run.
func (c *serviceStartCmd) Run(a *app) error { return a.setService(c.Name, c.Node, "start") }

type serviceStopCmd struct {
	Name string `arg:"" help:"Name of the service."`
	Node string `help:"On this node (default: the one that is asked)."`
}

// Run stops a service.
func (c *serviceStopCmd) Run(a *app) error { return a.setService(c.Name, c.Node, "stop") }

func (a *app) setService(name, node, verb string) error {
	return a.change(http.MethodPost, "/services/"+url.PathEscape(name)+"/"+verb+"?node="+url.QueryEscape(node), nil, name+": "+verb+" is ordered")
}

type overrideCmd struct {
	For    time.Duration `default:"15m" help:"How long the gates stay open."`
	Reason string        `help:"Why, for the record."`
	Node   string        `help:"On this node (default: the one that is asked)."`
	End    bool          `help:"End an override now."`
}

// Run opens the gates.
func (c *overrideCmd) Run(a *app) error {
	q := url.Values{"node": {c.Node}, "reason": {c.Reason}, "for": {c.For.String()}}
	if c.End {
		return a.change(http.MethodDelete, "/override?"+q.Encode(), nil, "the override has ended")
	}
	return a.change(http.MethodPost, "/override?"+q.Encode(), nil, "gates are open for "+c.For.String())
}

type alarmsCmd struct {
	History bool `help:"Also those of the past, newest last."`
	JSON    bool `help:"Print JSON."`
}

// Run shows alarms.
func (c *alarmsCmd) Run(a *app) error {
	var got adminapi.Alarms
	if err := a.node.Call(a.ctx, http.MethodGet, "/alarms", nil, &got); err != nil {
		return err
	}
	if c.JSON {
		return printJSON(a.out, got)
	}
	if c.History {
		for _, e := range got.History {
			verb := "cleared"
			if e.Raised {
				verb = "raised "
			}
			fmt.Fprintf(a.out, "%s  %s  %s: %s\n", clock(e.At), verb, e.Alarm.Name, e.Alarm.Reason)
		}
		fmt.Fprintln(a.out)
	}
	if len(got.Active) == 0 {
		fmt.Fprintf(a.out, "no alarm on %s\n", got.Node)
		return nil
	}
	return printAlarms(a, got.Active)
}

func printAlarms(a *app, list []monitor.Alarm) error {
	t := newTable(a.out, "ALARM", "SEVERITY", "SINCE", "INDEX", "LEFT", "REASON")
	for _, m := range list {
		index, left := "-", "-"
		if m.IndexWanted > 0 {
			index = fmt.Sprintf("%d/%d", m.IndexNow, m.IndexWanted)
		}
		if m.Estimate > 0 {
			left = m.Estimate.String()
		}
		t.row(m.Name, string(m.Severity), clock(m.Since), index, left, m.Reason)
	}
	return t.flush()
}

type sessionsCmd struct {
	List sessionsListCmd `cmd:"" default:"withargs" help:"List the available sessions of the cluster."`
	End  sessionsEndCmd  `cmd:"" help:"End a user's sessions, or one of them."`
}

type sessionsListCmd struct {
	User  string `arg:"" optional:"" help:"Only this user's."`
	Limit int    `default:"1000" help:"At most so many."`
	JSON  bool   `help:"Print JSON."`
}

// Run lists sessions.
func (c *sessionsListCmd) Run(a *app) error {
	user := c.User
	if user != "" {
		var err error
		if user, err = a.address(user); err != nil {
			return err
		}
	}
	var got adminapi.Sessions
	if err := a.node.Call(a.ctx, http.MethodGet, fmt.Sprintf("/sessions?limit=%d&user=%s", c.Limit, url.QueryEscape(user)), nil, &got); err != nil {
		return err
	}
	if c.JSON {
		return printJSON(a.out, got)
	}
	t := newTable(a.out, "SESSION", "NODE", "PRESENCE SINCE", "PRIORITY")
	for _, s := range got.Sessions {
		t.row(s.JID, s.Node, clock(s.Since), fmt.Sprint(s.Priority))
	}
	if got.More {
		t.row("… and more: use --limit", "", "", "")
	}
	return t.flush()
}

type sessionsEndCmd struct {
	Address string `arg:"" help:"name@domain for all of a user's sessions, name@domain/resource for one."`
}

// Run ends sessions.
func (c *sessionsEndCmd) Run(a *app) error {
	return a.change(http.MethodDelete, "/sessions?address="+url.QueryEscape(c.Address), nil, "sessions of "+c.Address+" are being ended")
}

type certsCmd struct {
	Reload certsReloadCmd `cmd:"" help:"Read the certificate files again; connections stay."`
}

type certsReloadCmd struct{}

// Run reloads certificates.
func (certsReloadCmd) Run(a *app) error {
	var list []adminapi.Certificate
	if err := a.node.Call(a.ctx, http.MethodPost, "/certificates/reload", nil, &list); err != nil {
		return err
	}
	return printCertificates(a, list)
}

func printCertificates(a *app, list []adminapi.Certificate) error {
	t := newTable(a.out, "CERTIFICATE", "VALID UNTIL", "PROBLEM")
	for _, c := range list {
		name := "-"
		if len(c.Names) > 0 {
			name = c.Names[0]
		}
		t.row(name, clock(c.NotAfter), orDash(c.Problem))
	}
	return t.flush()
}
