// Package disco answers service discovery (XEP-0030) for the domain and for
// accounts, and computes the server's capabilities hash (XEP-0115). What is
// shown is what the features registered; this package adds nothing of its own
// but itself. cmd/musterd hands it to the router.
//
// Invariants: an account shows itself to its owner and to those whom it lets
// see its presence; for all others the answer is the one for an account that
// does not exist. The hash in the stream features is that of the domain's info.
package disco

import (
	"strings"

	"muster/feature/roster/state"
	"muster/internal/jid"
	"muster/router"
	"muster/router/stanza"
)

// Tree is a part of the nodes of the domain, or of an account, that another feature answers for.
type Tree interface {
	// Info describes a node to the asking user; false if it is not the tree's or not for that user.
	Info(c *router.Ctx, node string) (router.Disco, bool)
	// Items lists what is below a node; false if it is not the tree's or not for that user.
	Items(c *router.Ctx, node string) ([]router.Item, bool)
}

// Feature is the XEP-0030 and XEP-0115 server side.
type Feature struct {
	trees   []Tree // of the domain
	account []Tree
	reg     *router.Registry
}

var _ router.Feature = (*Feature)(nil)

// New returns the feature; trees answer for the domain's nodes.
func New(trees ...Tree) *Feature { return &Feature{trees: trees} }

// Account adds trees that answer for every account's nodes.
func (f *Feature) Account(trees ...Tree) *Feature {
	f.account = append(f.account, trees...)
	return f
}

// treesOf returns the trees of a scope.
func (f *Feature) treesOf(scope router.Scope) []Tree {
	if scope == router.Account {
		return f.account
	}
	return f.trees
}

// Name implements router.Feature.
func (*Feature) Name() string { return "disco" }

// Setup implements router.Feature.
func (f *Feature) Setup(reg *router.Registry) error {
	f.reg = reg
	for _, scope := range []router.Scope{router.Domain, router.Account} {
		reg.HandleIQ(scope, stanza.NSDiscoInfo, "query", f.info(scope))
		reg.HandleIQ(scope, stanza.NSDiscoItems, "query", f.items(scope))
		reg.Advertise(scope, stanza.NSDiscoInfo, stanza.NSDiscoItems)
	}
	reg.Identity(router.Domain, "server", "im", "Muster")
	reg.Identity(router.Account, "account", "registered", "")
	reg.Advertise(router.Domain, stanza.NSCaps)
	reg.LiveStreamFeature(func() []byte { return capsElement(reg.Disco(router.Domain)) })
	reg.DiscoForm(router.Domain, func() []byte { return contactForm(reg.Router().Live()) })
	return nil
}

func (f *Feature) info(scope router.Scope) router.IQHandler {
	return func(c *router.Ctx, iq *stanza.Packet) {
		node, ok := f.admit(c, iq, scope)
		if !ok {
			return
		}
		d, ok := f.find(c, scope, node)
		if !ok {
			c.Reply(iq.ErrorReply(stanza.NewError(stanza.ItemNotFound, "no such node")))
			return
		}
		c.Reply(iq.Result(renderInfo(node, d)))
	}
}

func (f *Feature) find(c *router.Ctx, scope router.Scope, node string) (router.Disco, bool) {
	d := f.reg.Disco(scope)
	if node == "" {
		return d, true
	}
	if ver, ok := strings.CutPrefix(node, capsNode+"#"); ok && scope == router.Domain {
		return d, ver == capsHash(d)
	}
	for _, t := range f.treesOf(scope) {
		if d, ok := t.Info(c, node); ok {
			return d, true
		}
	}
	return d, false
}

func (f *Feature) items(scope router.Scope) router.IQHandler {
	return func(c *router.Ctx, iq *stanza.Packet) {
		node, ok := f.admit(c, iq, scope)
		if !ok {
			return
		}
		list, ok := f.list(c, scope, node)
		if !ok {
			c.Reply(iq.ErrorReply(stanza.NewError(stanza.ItemNotFound, "no such node")))
			return
		}
		c.Reply(iq.Result(renderItems(node, list)))
	}
}

func (f *Feature) list(c *router.Ctx, scope router.Scope, node string) ([]router.Item, bool) {
	if node == "" {
		var all []router.Item
		for _, from := range f.reg.Disco(scope).Items {
			all = append(all, from(c)...)
		}
		return all, true
	}
	for _, t := range f.treesOf(scope) {
		if list, ok := t.Items(c, node); ok {
			return list, true
		}
	}
	return nil, false
}

// admit checks the request and whether its sender may see the scope; if not, it has answered.
func (f *Feature) admit(c *router.Ctx, iq *stanza.Packet, scope router.Scope) (node string, ok bool) {
	if scope == router.Account && !c.Own() && !watches(c, iq.From) {
		c.Reply(iq.ErrorReply(stanza.NewError(stanza.ServiceUnavailable, "")))
		return "", false
	}
	if iq.Type != stanza.TypeGet {
		c.Reply(iq.ErrorReply(stanza.NewError(stanza.BadRequest, "service discovery is of type get")))
		return "", false
	}
	query, _ := iq.Payload()
	return iq.Element(query).Attr("node"), true
}

// watches reports whether the actor's user lets from see its presence.
func watches(c *router.Ctx, from jid.JID) bool {
	item, _ := state.Get(c.State(), c.User(), from)
	return item.Sub.HasFrom()
}
