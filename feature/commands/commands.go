// Package commands lets administrators run the server from their chat client:
// the ad-hoc command protocol (XEP-0050) and the commands of service
// administration (XEP-0133). cmd/musterd hands it to the router, and to
// service discovery as the tree of command nodes.
//
// Invariants: only an administrator (user.User.Admin, asked at each step) can
// run or see a command; every change goes through the log with the
// administrator's name; a password can be set but never read; a command that
// is left half done is forgotten.
package commands

import (
	"muster/fsm/user"
	"muster/internal/jid"
	"muster/router"
	"muster/router/stanza"
)

// command is one row of the table of commands.
type command struct {
	node string // its name below NSAdmin: "add-user"
	name string // for people
	ask  string // what the form is for; "" if the command needs none
	form []field
	run  func(c *router.Ctx, in values, finish finish)
}

// finish ends a command, in the actor. A command calls it exactly once.
type finish func(c *router.Ctx, out outcome)

// outcome is what a command has to say at its end.
type outcome struct {
	err    error         // a *fault.Error or nil
	note   string        // what was done
	fields []resultField // what was asked for
	extra  []byte        // a further payload of the form of fields, canonical
}

// Feature runs commands.
type Feature struct {
	reg    *router.Registry
	all    []*command // in order of the list that clients see
	byNode map[string]*command
}

var _ router.Feature = (*Feature)(nil)

// New returns the feature.
func New() *Feature {
	f := &Feature{byNode: map[string]*command{}}
	for _, table := range [][]command{accountCommands(), listCommands(), serviceCommands()} {
		for i := range table {
			f.all = append(f.all, &table[i])
			f.byNode[table[i].fullNode()] = &table[i]
		}
	}
	return f
}

func (cmd *command) fullNode() string { return stanza.NSAdmin + "#" + cmd.node }

// Name implements router.Feature.
func (*Feature) Name() string { return "commands" }

// Setup implements router.Feature.
func (f *Feature) Setup(reg *router.Registry) error {
	f.reg = reg
	reg.HandleIQ(router.Domain, stanza.NSCommands, "command", f.handle)
	reg.Advertise(router.Domain, stanza.NSCommands)
	return nil
}

// isAdmin reports whether the actor's user may administer the cluster.
func isAdmin(c *router.Ctx) bool {
	u, ok := user.Get(c.State(), c.User().String())
	return ok && u.Admin
}

// Info describes the list of commands, and each command to those who may run it.
func (f *Feature) Info(c *router.Ctx, node string) (router.Disco, bool) {
	if node == stanza.NSCommands {
		return router.Disco{
			Identities: []router.Identity{{Category: "automation", Type: "command-list", Name: "Commands"}},
			Features:   []string{stanza.NSDiscoInfo, stanza.NSDiscoItems},
		}, true
	}
	cmd := f.byNode[node]
	if cmd == nil || !isAdmin(c) {
		return router.Disco{}, false
	}
	return router.Disco{
		Identities: []router.Identity{{Category: "automation", Type: "command-node", Name: cmd.name}},
		Features:   []string{stanza.NSCommands, stanza.NSDiscoInfo, stanza.NSData},
	}, true
}

// Items lists the commands that the asking user may run.
func (f *Feature) Items(c *router.Ctx, node string) ([]router.Item, bool) {
	if node != stanza.NSCommands {
		return nil, f.byNode[node] != nil && isAdmin(c)
	}
	if !isAdmin(c) {
		return nil, true
	}
	items := make([]router.Item, len(f.all))
	for i, cmd := range f.all {
		items[i] = router.Item{JID: jid.JID{Domain: c.User().Domain}, Node: cmd.fullNode(), Name: cmd.name}
	}
	return items, true
}
