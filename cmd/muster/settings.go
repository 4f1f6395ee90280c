package main

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"muster/edges/http/adminapi"
	"muster/internal/fault"
)

type settingsCmd struct {
	List  settingsListCmd  `cmd:"" default:"withargs" help:"List the settings with their values."`
	Get   settingsGetCmd   `cmd:"" help:"Show one setting's value, and with --verbose all about it."`
	Set   settingsSetCmd   `cmd:"" help:"Set a setting; it takes effect at once on every node."`
	Reset settingsResetCmd `cmd:"" help:"Take a setting back to its default."`
}

func (a *app) settings(node string) (list []adminapi.Setting, err error) {
	return list, a.node.Call(a.ctx, http.MethodGet, "/settings?node="+url.QueryEscape(node), nil, &list)
}

type settingsListCmd struct {
	Prefix  string `arg:"" optional:"" help:"Only names that begin so."`
	Node    string `help:"Values in force on this node (default: the cluster's)."`
	Changed bool   `help:"Only those that differ from their default."`
	Verbose bool   `short:"v" help:"With bounds and description."`
	JSON    bool   `help:"Print JSON."`
}

// Run lists settings.
func (c *settingsListCmd) Run(a *app) error {
	list, err := a.settings(c.Node)
	if err != nil {
		return err
	}
	kept := list[:0]
	for _, s := range list {
		if strings.HasPrefix(s.Name, c.Prefix) && (!c.Changed || s.Source != "default") {
			kept = append(kept, s)
		}
	}
	switch {
	case c.JSON:
		return printJSON(a.out, kept)
	case c.Verbose:
		for _, s := range kept {
			describeSetting(a, s)
		}
		return nil
	}
	t := newTable(a.out, "SETTING", "VALUE", "SOURCE", "DEFAULT")
	for _, s := range kept {
		t.row(s.Name, orDash(s.Value), s.Source, orDash(s.Default))
	}
	return t.flush()
}

func describeSetting(a *app, s adminapi.Setting) {
	bounds := s.Type
	switch {
	case len(s.Values) > 0:
		bounds += ": " + strings.Join(s.Values, ", ")
	case s.Min != "":
		bounds += fmt.Sprintf(" from %s to %s", s.Min, s.Max)
	}
	fmt.Fprintf(a.out, "%s = %s (%s)\n  %s\n  %s; default %s; for each %s\n", s.Name, orDash(s.Value), s.Source, s.Doc, bounds, orDash(s.Default), s.Scope)
}

type settingsGetCmd struct {
	Name    string `arg:"" help:"Name of the setting."`
	Node    string `help:"Value in force on this node (default: the cluster's)."`
	Verbose bool   `short:"v" help:"With bounds and description."`
}

// Run shows one setting.
func (c *settingsGetCmd) Run(a *app) error {
	list, err := a.settings(c.Node)
	if err != nil {
		return err
	}
	for _, s := range list {
		switch {
		case s.Name != c.Name:
		case c.Verbose:
			describeSetting(a, s)
			return nil
		default:
			fmt.Fprintln(a.out, s.Value)
			return nil
		}
	}
	return fault.New(fault.NotFound, "settings.get", c.Name, "no setting "+c.Name+"; muster settings list shows them")
}

type settingsSetCmd struct {
	Name  string `arg:"" help:"Name of the setting."`
	Value string `arg:"" help:"New value."`
	Node  string `help:"For this node only."`
}

// Run sets a setting.
func (c *settingsSetCmd) Run(a *app) error {
	return a.change(http.MethodPut, "/settings/"+url.PathEscape(c.Name), adminapi.SettingChange{Value: c.Value, Node: c.Node}, c.Name+" = "+c.Value)
}

type settingsResetCmd struct {
	Name string `arg:"" help:"Name of the setting."`
	Node string `help:"For this node only."`
}

// Run resets a setting.
func (c *settingsResetCmd) Run(a *app) error {
	return a.change(http.MethodDelete, "/settings/"+url.PathEscape(c.Name)+"?node="+url.QueryEscape(c.Node), nil, c.Name+" is at its default")
}

type domainCmd struct {
	List   domainListCmd   `cmd:"" default:"1" help:"List the IM domains."`
	Add    domainAddCmd    `cmd:"" help:"Serve another IM domain."`
	Remove domainRemoveCmd `cmd:"" help:"Stop serving an IM domain that has no users."`
}

type domainListCmd struct{}

// Run lists the domains.
func (domainListCmd) Run(a *app) error {
	var domains []string
	if err := a.node.Call(a.ctx, http.MethodGet, "/domains", nil, &domains); err != nil {
		return err
	}
	for _, d := range domains {
		fmt.Fprintln(a.out, d)
	}
	return nil
}

type domainAddCmd struct {
	Domain string `arg:"" help:"Domain name."`
}

// Run adds a domain.
func (c *domainAddCmd) Run(a *app) error {
	return a.change(http.MethodPut, "/domains/"+url.PathEscape(c.Domain), nil, c.Domain+" is served; its certificate must cover the name")
}

type domainRemoveCmd struct {
	Domain string `arg:"" help:"Domain name."`
}

// Run removes a domain.
func (c *domainRemoveCmd) Run(a *app) error {
	return a.change(http.MethodDelete, "/domains/"+url.PathEscape(c.Domain), nil, c.Domain+" is not served any more")
}

type groupCmd struct {
	List   groupListCmd   `cmd:"" default:"1" help:"List the redundancy groups."`
	Put    groupPutCmd    `cmd:"" help:"Create a redundancy group or change its nodes, which leave the groups that they were in."`
	Remove groupRemoveCmd `cmd:"" help:"Remove an empty redundancy group."`
}

type groupListCmd struct {
	JSON bool `help:"Print JSON."`
}

// Run lists the groups.
func (c *groupListCmd) Run(a *app) error {
	var groups []adminapi.Group
	if err := a.node.Call(a.ctx, http.MethodGet, "/groups", nil, &groups); err != nil {
		return err
	}
	if c.JSON {
		return printJSON(a.out, groups)
	}
	t := newTable(a.out, "GROUP", "NODES", "HIGH AVAILABILITY")
	for _, g := range groups {
		t.row(g.Name, orDash(strings.Join(g.Nodes, ", ")), yes(g.HA))
	}
	return t.flush()
}

type groupPutCmd struct {
	Name  string   `arg:"" help:"Name of the group."`
	Nodes []string `arg:"" optional:"" help:"Its one or two nodes; in mode active-standby the first is the active one."`
	NoHA  bool     `name:"no-ha" help:"Users have no backup node."`
}

// Run creates or changes the group.
func (c *groupPutCmd) Run(a *app) error {
	return a.change(http.MethodPut, "/groups/"+url.PathEscape(c.Name), adminapi.Group{Name: c.Name, Nodes: c.Nodes, HA: !c.NoHA},
		"group "+c.Name+": "+orDash(strings.Join(c.Nodes, ", ")))
}

type groupRemoveCmd struct {
	Name string `arg:"" help:"Name of the group."`
}

// Run removes the group.
func (c *groupRemoveCmd) Run(a *app) error {
	return a.change(http.MethodDelete, "/groups/"+url.PathEscape(c.Name), nil, "group "+c.Name+" removed")
}

type assignCmd struct {
	Mode      assignModeCmd `cmd:"" help:"Set how new users get a home: balanced, manual or active-standby."`
	User      assignUserCmd `cmd:"" help:"Give users a home node."`
	Rebalance rebalanceCmd  `cmd:"" help:"Move users until the nodes have equal counts, in the background at a limited rate."`
}

type assignModeCmd struct {
	Mode string `arg:"" enum:"balanced,manual,active-standby" help:"balanced, manual or active-standby."`
}

// Run sets the mode.
func (c *assignModeCmd) Run(a *app) error {
	return a.change(http.MethodPut, "/assignment/mode/"+c.Mode, nil, "mode "+c.Mode+"; users keep their homes until muster assign rebalance")
}

type assignUserCmd struct {
	Users    []string `arg:"" help:"Addresses."`
	Node     string   `help:"Their new home (default: as the balanced rule chooses)."`
	Unassign bool     `help:"No home: they cannot log in."`
}

// Run assigns users.
func (c *assignUserCmd) Run(a *app) error {
	req := adminapi.Assign{Node: c.Node, Unassign: c.Unassign}
	for _, u := range c.Users {
		jid, err := a.address(u)
		if err != nil {
			return err
		}
		req.Users = append(req.Users, jid)
	}
	return a.change(http.MethodPost, "/assignment/users", req, fmt.Sprintf("%d assigned", len(req.Users)))
}

type rebalanceCmd struct {
	Stop bool `help:"Call it off."`
}

// Run orders a rebalancing, which goes on in the background.
func (c *rebalanceCmd) Run(a *app) error {
	if c.Stop {
		return a.change(http.MethodDelete, "/assignment/rebalance", nil, "no more users are moved")
	}
	var d adminapi.Done
	if err := a.node.Call(a.ctx, http.MethodPost, "/assignment/rebalance", nil, &d); err != nil {
		return err
	}
	fmt.Fprintf(a.out, "%d users are to be moved, in the background at assign.rebalance_rate; muster ha status shows the progress\n", d.Count)
	return nil
}
