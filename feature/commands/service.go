package commands

import (
	"context"
	"strconv"
	"strings"
	"time"

	rosterstate "muster/feature/roster/state"
	"muster/fsm/cluster"
	"muster/fsm/user"
	"muster/internal/fault"
	"muster/internal/jid"
	"muster/router"
	"muster/router/stanza"
)

// serviceCommands are those about one account, and about the service as a whole.
func serviceCommands() []command {
	return []command{
		{node: "get-user-roster", name: "Get User Roster", ask: "Whose roster?", form: []field{manyAccounts}, run: getRoster},
		{node: "get-user-lastlogin", name: "Get User Last Login Time", ask: "Whose last login?", form: []field{manyAccounts}, run: lastLogin},
		{node: "user-stats", name: "Get User Statistics", ask: "Whose statistics?", form: []field{oneAccount}, run: userStats},
		{node: "get-server-stats", name: "Get Server Statistics", run: serverStats},
		{node: "announce", name: "Send Announcement to Online Users", ask: "What should everybody who is online be told?", run: announce,
			form: []field{
				{name: "subject", kind: textSingle, label: "Subject"},
				{name: "announcement", kind: textMulti, label: "Announcement", required: true},
			}},
	}
}

// known returns the one account of the form's field if it exists. XEP-0133 lets
// several be asked for at once, but has no way to tell whose answer is whose.
func known(c *router.Ctx, in values, field string) (jid.JID, error) {
	if len(in[field]) > 1 {
		return jid.JID{}, fault.New(fault.NotAcceptable, "command.run", field, "ask for one account at a time")
	}
	account, err := in.account(field)
	if err == nil && !user.Exists(c.State(), account.String()) {
		err = fault.New(fault.NotFound, "command.run", account.String(), "no such account")
	}
	return account, err
}

// getRoster answers with the roster inside the form (XEP-0133 section 4.8).
func getRoster(c *router.Ctx, in values, finish finish) {
	account, err := known(c, in, "accountjids")
	if err != nil {
		finish(c, outcome{err: err})
		return
	}
	b := stanza.NewBuilder(stanza.NSData).Open("query", stanza.NSRoster)
	for _, item := range rosterstate.Items(c.State(), account) {
		b.Open("item", "", "jid", item.Contact.String(), "name", item.Name, "subscription", item.Sub.String())
		for _, g := range item.Groups {
			b.TextElement("group", "", g)
		}
		b.Close()
	}
	finish(c, outcome{fields: []resultField{{"accountjids", jidMulti, "Account", []string{account.String()}}}, extra: b.Bytes()})
}

// lastLogin answers with the time of the presence of who is online, else with
// the end of the last session: no more is kept. For who was never there it has no value.
func lastLogin(c *router.Ctx, in values, finish finish) {
	account, err := known(c, in, "accountjids")
	if err != nil {
		finish(c, outcome{err: err})
		return
	}
	var last []string
	note := account.String() + " has never been online."
	if at, _, ok := c.Router().Hot().LastSeen(account); ok {
		last, note = []string{at.UTC().Format(time.RFC3339)}, ""
	}
	for _, row := range c.Router().Hot().Rows(account) {
		last, note = []string{row.Since.UTC().Format(time.RFC3339)}, account.String()+" is online."
	}
	finish(c, outcome{note: note, fields: []resultField{
		{"accountjids", jidMulti, "Account", []string{account.String()}},
		{"lastlogin", textSingle, "Last login", last},
	}})
}

func userStats(c *router.Ctx, in values, finish finish) {
	account, err := known(c, in, "accountjid")
	if err != nil {
		finish(c, outcome{err: err})
		return
	}
	var resources []string
	for _, row := range c.Router().Hot().Rows(account) {
		resources = append(resources, row.Resource+" (node "+strconv.FormatUint(uint64(row.Node), 10)+")")
	}
	contacts := len(rosterstate.Items(c.State(), account))
	finish(c, outcome{fields: []resultField{
		{"accountjid", jidSingle, "Account", []string{account.String()}},
		{"rostersize", textSingle, "Contacts", []string{strconv.Itoa(contacts)}},
		{"onlineresources", textMulti, "Clients online", resources},
	}})
}

func serverStats(c *router.Ctx, _ values, finish finish) {
	finish(c, outcome{fields: []resultField{
		{"registeredusersnum", textSingle, "Registered accounts", []string{strconv.Itoa(user.Count(c.State()))}},
		{"onlinesessionsnum", textSingle, "Clients online", []string{strconv.Itoa(c.Router().Hot().Count())}},
		{"nodesnum", textSingle, "Nodes", []string{strconv.Itoa(len(cluster.Nodes(c.State())))}},
	}})
}

// announce sends a headline to everybody who is online, wherever they are.
func announce(c *router.Ctx, in values, finish finish) {
	b := stanza.NewBuilder("")
	if s := in.one("subject"); s != "" {
		b.TextElement("subject", "", s)
	}
	b.TextElement("body", "", strings.Join(in["announcement"], "\n"))
	inner, from, r := b.Bytes(), jid.JID{Domain: c.User().Domain}, c.Router()
	sent := 0
	c.Async(func(ctx context.Context) error {
		for _, to := range present(c) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			r.RoutePacket(stanza.WithInner(stanza.KindMessage, stanza.TypeHeadline, "", from, to, inner))
			sent++
		}
		return nil
	}, func(c *router.Ctx, err error) {
		finish(c, outcome{err: err, note: "Sent to " + strconv.Itoa(sent) + " users."})
	})
}
