// Package archive lets users read their message archives (XEP-0313 with its
// extensions, XEP-0059) and say what is archived for them (XEP-0441).
// cmd/musterd hands it to the router.
//
// Invariants: only its owner's clients read an archive; a page's messages come
// in order, from one consistent view and before the answer that ends it; they
// are what was archived, byte by byte, with the archive's id added. Reading
// happens outside the actor, and its work and its size are bounded.
package archive

import (
	"context"

	"muster/feature/archive/state"
	message "muster/feature/message/state"
	roster "muster/feature/roster/state"
	"muster/fsm"
	"muster/fsm/config"
	"muster/internal/jid"
	"muster/router"
	"muster/router/stanza"
)

// The name spaces of service discovery besides the protocol's own (XEP-0313 section 8).
const (
	nsExtended  = stanza.NSMAM + "#extended"
	nsGroupchat = stanza.NSMAM + "#groupchat-field"
)

// PageSize is the setting for pages whose size the client leaves open.
var PageSize = config.Int("archive.page_size", 50, 1, MaxPage, config.Cluster,
	"How many archived messages a client gets at a time if it does not say how many it wants.")

// Bounds of a page.
const (
	MaxPage   = 250       // messages; a client that wants more gets so many
	pageBytes = 256 << 10 // of stanzas, unless the first alone is larger: it fits into every session's queue
)

// Feature serves archives.
type Feature struct{}

var _ router.Feature = (*Feature)(nil)

// New returns the feature.
func New() *Feature { return &Feature{} }

// Name implements router.Feature.
func (*Feature) Name() string { return "archive" }

// Setup implements router.Feature.
func (*Feature) Setup(reg *router.Registry) error {
	if reg.Router().Messages() == nil {
		return nil // no message log: nothing is archived
	}
	for name, h := range map[string]router.IQHandler{"query": query, "metadata": metadata, "prefs": prefs} {
		reg.HandleIQ(router.Account, stanza.NSMAM, name, ownOnly(h))
	}
	for _, scope := range []router.Scope{router.Domain, router.Account} { // some clients look at one only
		reg.Advertise(scope, stanza.NSMAM, nsExtended, nsGroupchat)
	}
	reg.Advertise(router.Account, stanza.NSRSM)
	return nil
}

// Keeps reports whether owner's archive keeps a message that is from or to
// another address, a full one if the message names it.
func Keeps(control fsm.Reader, owner, other jid.JID) bool {
	return state.Keeps(control, owner.Bare().String(), other, func() bool {
		item, ok := roster.Get(control, owner, other)
		return ok && !item.Hidden
	})
}

// ownOnly keeps others out (XEP-0313 section 9.1).
func ownOnly(h router.IQHandler) router.IQHandler {
	return func(c *router.Ctx, iq *stanza.Packet) {
		if !c.Own() {
			c.Reply(iq.ErrorReply(stanza.NewError(stanza.Forbidden, "an archive is for its owner only")))
			return
		}
		h(c, iq)
	}
}

func query(c *router.Ctx, iq *stanza.Packet) {
	payload, _ := iq.Payload()
	el := iq.Element(payload)
	if iq.Type == stanza.TypeGet {
		c.Reply(iq.Result(queryForm()))
		return
	}
	req, refusal := parseQuery(el, c.User(), int(PageSize.Get(c.State(), 0)))
	if refusal != nil {
		c.Reply(iq.ErrorReply(refusal))
		return
	}
	var page message.Page
	read(c, iq, func(r fsm.Reader) (err error) {
		page, err = message.Read(r, req.Query)
		return err
	}, func(c *router.Ctx) {
		for _, p := range results(&page, req, c.User(), iq.From) {
			c.Deliver(c.Session, p)
		}
		c.Reply(iq.Result(fin(&page, req.Last, c.ReadOnly())))
	})
}

func metadata(c *router.Ctx, iq *stanza.Packet) {
	if iq.Type != stanza.TypeGet {
		c.Reply(iq.ErrorReply(stanza.NewError(stanza.BadRequest, "metadata can only be read")))
		return
	}
	var (
		first, last message.Message
		ok          bool
	)
	owner := c.User().String()
	read(c, iq, func(r fsm.Reader) error {
		first, last, ok = message.Ends(r, owner)
		return nil
	}, func(c *router.Ctx) {
		b := stanza.NewBuilder("").Open("metadata", stanza.NSMAM)
		if ok {
			b.Leaf("start", "", "id", first.ID(owner), "timestamp", stamp(first.Time))
			b.Leaf("end", "", "id", last.ID(owner), "timestamp", stamp(last.Time))
		}
		c.Reply(iq.Result(b.Bytes()))
	})
}

// read runs work on one view of the message log, outside the actor: the disk
// may be slow. done runs if it succeeded; if not, the request is refused.
func read(c *router.Ctx, iq *stanza.Packet, work func(r fsm.Reader) error, done func(c *router.Ctx)) {
	messages := c.Messages()
	c.Async(func(context.Context) error {
		r, release, err := fsm.Consistent(messages)
		if err != nil {
			return err
		}
		err = work(r)
		if late := release(); err == nil {
			err = late
		}
		return err
	}, func(c *router.Ctx, err error) {
		if err != nil {
			c.Reply(iq.ErrorReply(stanza.FromFault(err)))
			return
		}
		done(c)
	})
}

func prefs(c *router.Ctx, iq *stanza.Packet) {
	owner := c.User().String()
	answer := func(c *router.Ctx) { c.Reply(iq.Result(renderPrefs(state.Get(c.State(), owner)))) }
	if iq.Type == stanza.TypeGet {
		answer(c)
		return
	}
	payload, _ := iq.Payload()
	p, refusal := parsePrefs(iq.Element(payload))
	if refusal != nil {
		c.Reply(iq.ErrorReply(refusal))
		return
	}
	c.Propose(func(c *router.Ctx, res fsm.Result) {
		if res.Err != nil {
			c.Reply(iq.ErrorReply(stanza.FromFault(res.Err)))
			return
		}
		answer(c)
	}, state.SetEntry(c.User(), p))
}
