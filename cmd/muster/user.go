package main

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"muster/edges/http/adminapi"
	"muster/internal/fault"
)

type userCmd struct {
	Create  userCreateCmd  `cmd:"" help:"Create a user; the password is asked for, read from the input with --stdin, or made and shown."`
	Delete  userDeleteCmd  `cmd:"" help:"Delete a user and all of its data."`
	Enable  userEnableCmd  `cmd:"" help:"Let a user log in and have presence."`
	Disable userDisableCmd `cmd:"" help:"Keep a user from logging in; its data stays."`
	Passwd  userPasswdCmd  `cmd:"" help:"Set a user's password."`
	List    userListCmd    `cmd:"" help:"List users."`
	Show    userShowCmd    `cmd:"" help:"Show a user."`
	Import  userImportCmd  `cmd:"" help:"Create users from a CSV file."`
}

// secretFlags say where a password comes from.
type secretFlags struct {
	Stdin    bool `help:"Read the password from the first line of the input." xor:"secret"`
	Generate bool `help:"Make a random password and show it (the default of create)." xor:"secret"`
	Ask      bool `help:"Ask for the password." xor:"secret"`
}

// read returns the password and whether it was made here and must be shown.
func (s secretFlags) read(a *app, generate bool) (password string, made bool, err error) {
	if s.Generate || generate && !s.Stdin && !s.Ask {
		return newPassword(), true, nil
	}
	password, err = a.readSecret("password")
	return password, false, err
}

type userCreateCmd struct {
	User  string `arg:"" help:"Address, name@domain; the domain may be left out if the cluster has one."`
	Name  string `help:"Display name."`
	Email string `help:"E-mail address."`
	Admin bool   `help:"May administer the cluster."`
	secretFlags
}

// Run creates the user.
func (c *userCreateCmd) Run(a *app) error {
	jid, err := a.address(c.User)
	if err != nil {
		return err
	}
	password, made, err := c.read(a, true)
	if err != nil {
		return err
	}
	var got []adminapi.Outcome
	err = a.node.Call(a.ctx, http.MethodPost, "/users", []adminapi.NewUser{{JID: jid, Password: password, DisplayName: c.Name, Email: c.Email, Admin: c.Admin}}, &got)
	if err != nil {
		return err
	}
	if len(got) == 1 && got[0].Code != "" {
		return outcomeFault(got[0])
	}
	if made {
		fmt.Fprintf(a.out, "%s created with password %s\n", jid, password)
	} else {
		fmt.Fprintf(a.out, "%s created\n", jid)
	}
	return nil
}

// outcomeFault turns one subject's outcome into the fault that it stands for.
func outcomeFault(o adminapi.Outcome) error {
	for _, c := range fault.Codes() {
		if c.String() == o.Code {
			return fault.New(c, "admin", o.Subject, o.Subject+": "+o.Text)
		}
	}
	return fault.New(fault.Internal, "admin", o.Subject, o.Subject+": "+o.Text)
}

// address completes a user's name with the domain if there is one only.
func (a *app) address(user string) (string, error) {
	for _, r := range user {
		if r == '@' {
			return user, nil
		}
	}
	domain, err := a.onlyDomain()
	return user + "@" + domain, err
}

// onlyDomain returns the cluster's IM domain if there is exactly one.
func (a *app) onlyDomain() (string, error) {
	var domains []string
	if err := a.node.Call(a.ctx, http.MethodGet, "/domains", nil, &domains); err != nil {
		return "", err
	}
	if len(domains) != 1 {
		return "", fault.New(fault.BadRequest, "user", "", fmt.Sprintf("the cluster has %d domains: write name@domain", len(domains)))
	}
	return domains[0], nil
}

// userPath is a user's path in the API, with an optional page below it.
func (a *app) userPath(user string) (string, error) {
	jid, err := a.address(user)
	return "/users/" + url.PathEscape(jid), err
}

type userDeleteCmd struct {
	User string `arg:"" help:"Address of the user."`
}

// Run deletes the user.
func (c *userDeleteCmd) Run(a *app) error {
	path, err := a.userPath(c.User)
	if err != nil {
		return err
	}
	return a.change(http.MethodDelete, path, nil, c.User+" deleted")
}

// change sends a change and says that it is done.
func (a *app) change(method, path string, in any, done string) error {
	var d adminapi.Done
	if err := a.node.Call(a.ctx, method, path, in, &d); err != nil {
		return err
	}
	if d.Index > 0 {
		done += fmt.Sprintf(" (log index %d)", d.Index)
	}
	fmt.Fprintln(a.out, done)
	return nil
}

func (a *app) changeUser(user string, c adminapi.UserChange, done string) error {
	path, err := a.userPath(user)
	if err != nil {
		return err
	}
	return a.change(http.MethodPatch, path, c, user+" "+done)
}

type userEnableCmd struct {
	User string `arg:"" help:"Address of the user."`
}

// Run lets the user in.
func (c *userEnableCmd) Run(a *app) error {
	on := true
	return a.changeUser(c.User, adminapi.UserChange{IM: &on, Presence: &on}, "enabled")
}

type userDisableCmd struct {
	User string `arg:"" help:"Address of the user."`
}

// Run keeps the user out.
func (c *userDisableCmd) Run(a *app) error {
	off := false
	return a.changeUser(c.User, adminapi.UserChange{IM: &off, Presence: &off}, "disabled")
}

type userPasswdCmd struct {
	User string `arg:"" help:"Address of the user."`
	secretFlags
}

// Run sets the password.
func (c *userPasswdCmd) Run(a *app) error {
	password, made, err := c.read(a, false)
	if err != nil {
		return err
	}
	done := "has a new password"
	if made {
		done += ": " + password
	}
	return a.changeUser(c.User, adminapi.UserChange{Password: &password}, done)
}

type userListCmd struct {
	Prefix string `arg:"" optional:"" help:"Only addresses that begin so."`
	JSON   bool   `help:"Print JSON, a user a line."`
}

// Run lists all users, page by page.
func (c *userListCmd) Run(a *app) error {
	t := newTable(a.out, "USER", "NAME", "IM", "PRESENCE", "ADMIN", "HOME", "BACKUP")
	for after := ""; ; {
		var page adminapi.UserPage
		if err := a.node.Call(a.ctx, http.MethodGet, "/users?prefix="+url.QueryEscape(c.Prefix)+"&after="+url.QueryEscape(after), nil, &page); err != nil {
			return err
		}
		for _, u := range page.Users {
			if c.JSON {
				if err := printLine(a.out, u); err != nil {
					return err
				}
				continue
			}
			t.row(u.JID, orDash(u.DisplayName), yes(u.IM), yes(u.Presence), yes(u.Admin), orDash(u.Home), orDash(u.Backup))
		}
		if after = page.Next; after == "" {
			break
		}
	}
	if c.JSON {
		return nil
	}
	return t.flush()
}

type userShowCmd struct {
	User string `arg:"" help:"Address of the user."`
	JSON bool   `help:"Print JSON."`
}

// Run shows one user with its sessions.
func (c *userShowCmd) Run(a *app) error {
	path, err := a.userPath(c.User)
	if err != nil {
		return err
	}
	var u adminapi.User
	if err := a.node.Call(a.ctx, http.MethodGet, path, nil, &u); err != nil {
		return err
	}
	if c.JSON {
		return printJSON(a.out, u)
	}
	fmt.Fprintf(a.out, "%s\n  name      %s\n  e-mail    %s\n  IM        %s\n  presence  %s\n  admin     %s\n  created   %s\n  home      %s\n  backup    %s\n  sessions  %d\n",
		u.JID, orDash(u.DisplayName), orDash(u.Email), yes(u.IM), yes(u.Presence), yes(u.Admin), clock(u.Created), orDash(u.Home), orDash(u.Backup), len(u.Sessions))
	for _, s := range u.Sessions {
		fmt.Fprintf(a.out, "    %s on %s since %s, priority %s\n", s.JID, s.Node, clock(s.Since), strconv.Itoa(s.Priority))
	}
	return nil
}
