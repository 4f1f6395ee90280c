// Package private serves private XML storage (XEP-0049): elements that a
// user's clients keep on the server, for their owner only. cmd/musterd hands it
// to the router.
package private

import (
	"strings"

	"muster/feature/private/state"
	"muster/fsm"
	"muster/log"
	"muster/router"
	"muster/router/stanza"
)

// Feature serves private storage.
type Feature struct{}

var _ router.Feature = (*Feature)(nil)

// New returns the feature.
func New() *Feature { return &Feature{} }

// Name implements router.Feature.
func (*Feature) Name() string { return "private" }

// Setup implements router.Feature.
func (*Feature) Setup(reg *router.Registry) error {
	reg.HandleIQ(router.Account, stanza.NSPrivate, "query", handle)
	reg.Advertise(router.Domain, stanza.NSPrivate)
	reg.Advertise(router.Account, stanza.NSPrivate)
	return nil
}

func handle(c *router.Ctx, iq *stanza.Packet) {
	if !c.Own() {
		c.Reply(iq.ErrorReply(stanza.NewError(stanza.Forbidden, "private storage is for its owner only")))
		return
	}
	query, _ := iq.Payload()
	elements := iq.Element(query).Elements()
	if refusal := check(iq.Type, elements); refusal != nil {
		c.Reply(iq.ErrorReply(refusal))
		return
	}
	if iq.Type == stanza.TypeGet {
		get(c, iq, elements[0])
		return
	}
	set(c, iq, elements)
}

// check wants one element to get, one or more to set, and none of a namespace
// that the protocol gives another meaning (XEP-0049 section 2).
func check(typ string, elements []*stanza.Element) *stanza.Error {
	if len(elements) == 0 || typ == stanza.TypeGet && len(elements) > 1 {
		return stanza.NewError(stanza.BadRequest, "name the element that you want")
	}
	if len(elements) > state.MaxElements {
		return stanza.NewError(stanza.PolicyViolation, "too many elements")
	}
	for _, el := range elements {
		if el.Space == "" || strings.HasPrefix(el.Space, "jabber:") || el.Space == stanza.NSVCard {
			return stanza.NewError(stanza.NotAcceptable, "the element's namespace is reserved")
		}
	}
	return nil
}

func get(c *router.Ctx, iq *stanza.Packet, want *stanza.Element) {
	stored, ok := state.Get(c.State(), c.User(), want.Local, want.Space)
	b := stanza.NewBuilder("").Open("query", stanza.NSPrivate)
	if ok {
		b.Raw(stored)
	} else {
		b.Leaf(want.Local, want.Space)
	}
	c.Reply(iq.Result(b.Bytes()))
}

// set stores the elements. A namespace other than the query's stands on each
// of them, so that the canonical bytes fit again into an answer.
func set(c *router.Ctx, iq *stanza.Packet, elements []*stanza.Element) {
	entries := make([]*log.Entry, len(elements))
	for i, el := range elements {
		entries[i] = state.SetEntry(c.User(), el.Local, el.Space, el.Append(nil))
	}
	c.Propose(func(c *router.Ctx, res fsm.Result) {
		if res.Err != nil {
			c.Reply(iq.ErrorReply(stanza.FromFault(res.Err)))
			return
		}
		c.Reply(iq.Result(nil))
	}, entries...)
}
