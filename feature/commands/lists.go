package commands

import (
	"context"
	"slices"
	"sort"
	"strconv"

	"muster/fsm"
	"muster/fsm/cluster"
	"muster/fsm/user"
	"muster/internal/jid"
	"muster/router"
	"muster/router/hot"
	"muster/router/stanza"
)

// maxListed is the longest list that one answer holds: it has to fit into a stanza.
const maxListed = 2000

var howMany = field{name: "max_items", kind: listSingle, label: "How many to show",
	options: []string{"25", "50", "100", "200", "500", "1000", strconv.Itoa(maxListed)}}

// listCommands are those that count and list accounts (XEP-0133 sections 4.10 to 4.22).
func listCommands() []command {
	kinds := []struct {
		node, name, count, list, label string
		collect                        func(*router.Ctx) []string
	}{
		{"registered-users", "Registered Users", "registeredusersnum", "registereduserjids", "registered accounts", registered},
		{"disabled-users", "Disabled Users", "disabledusersnum", "disableduserjids", "disabled accounts", disabled},
		{"online-users", "Online Users", "onlineusersnum", "onlineuserjids", "users online", online},
		{"active-users", "Active Users", "activeusersnum", "activeuserjids", "users online and not away", active},
		{"idle-users", "Idle Users", "idleusersnum", "idleuserjids", "users online and away", idle},
	}
	var all []command
	for _, k := range kinds {
		all = append(all, command{node: "get-" + k.node + "-num", name: "Get Number of " + k.name,
			run: counted(k.count, "Number of "+k.label, k.collect)})
	}
	for _, k := range kinds {
		node := "get-" + k.node + "-list"
		if k.node == "active-users" || k.node == "idle-users" {
			node = "get-" + k.node // as XEP-0133 names them
		}
		all = append(all, command{node: node, name: "Get List of " + k.name, ask: "How many should be shown?",
			form: []field{howMany}, run: listed(k.list, "The "+k.label, k.collect)})
	}
	return all
}

// counted finishes with the number of what collect finds.
func counted(name, label string, collect func(*router.Ctx) []string) func(*router.Ctx, values, finish) {
	return gathered(collect, func(_ values, found []string) resultField {
		return resultField{name, textSingle, label, []string{strconv.Itoa(len(found))}}
	})
}

// listed finishes with the first of what collect finds.
func listed(name, label string, collect func(*router.Ctx) []string) func(*router.Ctx, values, finish) {
	return gathered(collect, func(in values, found []string) resultField {
		most, err := strconv.Atoi(in.one("max_items"))
		if err != nil || most <= 0 || most > maxListed {
			most = maxListed
		}
		return resultField{name, jidMulti, label, found[:min(most, len(found))]}
	})
}

// gathered collects outside the actor: there may be many thousands.
func gathered(collect func(*router.Ctx) []string, show func(values, []string) resultField) func(*router.Ctx, values, finish) {
	return func(c *router.Ctx, in values, finish finish) {
		var found []string
		c.Async(func(context.Context) error {
			found = collect(c)
			return nil
		}, func(c *router.Ctx, err error) {
			finish(c, outcome{err: err, fields: []resultField{show(in, found)}})
		})
	}
}

func registered(c *router.Ctx) []string {
	return accounts(c.State(), func(user.User) bool { return true })
}

func disabled(c *router.Ctx) []string {
	return accounts(c.State(), func(u user.User) bool { return !u.IM })
}

func accounts(r fsm.Reader, want func(user.User) bool) []string {
	var names []string
	user.Scan(r, "", "", func(u user.User) bool {
		if want(u) {
			names = append(names, u.Name)
		}
		return true
	})
	return names
}

// present returns the users who have a row in the hot store, in order of address.
func present(c *router.Ctx) []jid.JID {
	seen := map[jid.JID]bool{}
	for _, n := range cluster.Nodes(c.State()) {
		c.Router().Hot().Each(n.ID, func(row hot.Row) bool {
			seen[row.User] = true
			return true
		})
	}
	users := make([]jid.JID, 0, len(seen))
	for j := range seen {
		users = append(users, j)
	}
	sort.Slice(users, func(i, k int) bool { return users[i].String() < users[k].String() })
	return users
}

func online(c *router.Ctx) []string { return names(present(c)) }

func names(users []jid.JID) []string {
	out := make([]string, len(users))
	for i, j := range users {
		out[i] = j.String()
	}
	return out
}

func active(c *router.Ctx) []string {
	return names(slices.DeleteFunc(present(c), func(j jid.JID) bool { return away(c, j) }))
}

func idle(c *router.Ctx) []string {
	return names(slices.DeleteFunc(present(c), func(j jid.JID) bool { return !away(c, j) }))
}

// away reports whether every client of the user says away or extended away.
func away(c *router.Ctx, j jid.JID) bool {
	for _, row := range c.Router().Hot().Rows(j) {
		p, err := stanza.ParsePacket(row.Presence)
		if err != nil {
			return false
		}
		show, ok := p.Child(stanza.NSClient, "show")
		if !ok {
			return false
		}
		if s := p.Element(show).Text(); s != "away" && s != "xa" {
			return false
		}
	}
	return true
}
