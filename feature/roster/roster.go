// Package roster serves the contact list to its owner's clients (RFC 6121
// section 2): fetching, with versioning; changing; pushes. cmd/musterd hands it
// to the router.
//
// Invariants: a roster's version is the log index of its last visible change;
// pushes follow from the change feed alone, so that a change made on any node
// and through any surface reaches every client that fetched the roster, once,
// in log order, on the node where the user's actor is. A contact that only
// asked to subscribe is never shown.
package roster

import (
	"crypto/rand"
	"strconv"

	"muster/feature/roster/state"
	"muster/fsm"
	"muster/router"
	"muster/router/stanza"
)

// mark is set on a session whose client fetched the roster and wants pushes
// (an "interested resource"). Its value is the last version that was sent; a
// session that moves to a new home takes it along, and gets what it missed.
const mark = "interested"

// Feature serves rosters.
type Feature struct{ reg *router.Registry }

var _ router.Feature = (*Feature)(nil)

// New returns the feature.
func New() *Feature { return &Feature{} }

// Name implements router.Feature.
func (*Feature) Name() string { return "roster" }

// Setup implements router.Feature.
func (f *Feature) Setup(reg *router.Registry) error {
	f.reg = reg
	reg.HandleIQ(router.Account, stanza.NSRoster, "query", handle)
	reg.Advertise(router.Domain, stanza.NSRoster)
	reg.Advertise(router.Account, stanza.NSRoster)
	b := stanza.NewBuilder("")
	b.Open("ver", stanza.NSRosterVer).Close()
	b.Open("sub", stanza.NSPreApproval).Close()
	reg.StreamFeature(b.Bytes())
	reg.Watch(state.Rosters, f.changed)
	reg.OnBind(catchUp)
	return nil
}

func handle(c *router.Ctx, iq *stanza.Packet) {
	switch {
	case !c.Own(): // as for a user who does not exist; the router refuses sets
		c.Reply(iq.ErrorReply(stanza.NewError(stanza.ServiceUnavailable, "")))
	case iq.Type == stanza.TypeGet:
		get(c, iq)
	default:
		set(c, iq)
	}
}

// get answers a fetch. With a version that is still known it answers that
// nothing came, and pushes what changed since (RFC 6121 section 2.6.3).
func get(c *router.Ctx, iq *stanza.Packet) {
	query, _ := iq.Payload()
	el := iq.Element(query)
	version := state.Version(c.State(), c.User())
	if err := c.SetMark(c.Session, mark, format(version)); err != nil {
		c.Reply(iq.ErrorReply(stanza.FromFault(err)))
		return
	}
	have, versioned := el.LookupAttr("ver") // ver='' asks for versioning without having anything
	if since, err := strconv.ParseUint(have, 10, 64); versioned && err == nil && since > 0 {
		if deltas, ok := state.Changed(c.State(), c.User(), since); ok {
			c.Reply(iq.Result(nil))
			for _, d := range deltas {
				push(c, c.Session, d)
			}
			return
		}
	}
	b := stanza.NewBuilder("").Open("query", stanza.NSRoster)
	if versioned {
		b.Attr("ver", format(version))
	}
	for _, item := range state.Items(c.State(), c.User()) {
		appendItem(b, item)
	}
	c.Reply(iq.Result(b.Bytes()))
}

func set(c *router.Ctx, iq *stanza.Packet) {
	ch, refusal := parseSet(iq)
	if refusal != nil {
		c.Reply(iq.ErrorReply(refusal))
		return
	}
	entry := state.SetEntry(c.User(), ch.contact, ch.name, ch.groups)
	if ch.remove {
		entry = state.RemoveEntry(c.User(), ch.contact)
	}
	c.Propose(func(c *router.Ctx, res fsm.Result) {
		if res.Err != nil {
			c.Reply(iq.ErrorReply(stanza.FromFault(res.Err)))
			return
		}
		if ch.remove {
			passOn(c, res)
		}
		c.Reply(iq.Result(nil))
	}, entry)
}

// passOn sends the stanzas that end a removed contact's subscriptions.
func passOn(c *router.Ctx, res fsm.Result) {
	outcome, err := state.DecodeOutcome(res.Value)
	if err != nil {
		return // the entry's own handler wrote it; the rosters are right in any case
	}
	for _, s := range outcome.Stanzas {
		c.RouteChange(stanza.WithInner(stanza.KindPresence, s.Type.String(), "", s.From, s.To, nil), res.Index)
	}
}

// changed pushes one change to the owner's interested clients, if the owner is active on this node.
func (f *Feature) changed(ch fsm.Change) {
	owner, before, after, _ := state.DecodeChange(ch)
	var d state.Delta
	switch seen := before != nil && !before.Hidden; {
	case after != nil && !after.Hidden && (!seen || after.Revision != before.Revision):
		d.Item = *after
	case seen && (after == nil || after.Hidden):
		d = state.Delta{Item: state.Item{Contact: before.Contact, Revision: ch.Index}, Removed: true}
	default:
		return
	}
	f.reg.Router().Active(owner, func(c *router.Ctx) {
		for _, at := range c.Sessions() {
			if at.Mark(mark) != "" {
				push(c, at, d)
			}
		}
	})
}

// catchUp pushes what a session missed while its user had no home.
func catchUp(c *router.Ctx) {
	have := c.Session.Mark(mark)
	if !c.Session.Reattached() || have == "" {
		return
	}
	since, _ := strconv.ParseUint(have, 10, 64)
	deltas, ok := state.Changed(c.State(), c.User(), since)
	if !ok { // too far back: what is there now; a removed contact stays until the client's next login
		for _, item := range state.Items(c.State(), c.User()) {
			deltas = append(deltas, state.Delta{Item: item})
		}
	}
	for _, d := range deltas {
		push(c, c.Session, d)
	}
}

// push tells one client of one contact (RFC 6121 section 2.1.6).
func push(c *router.Ctx, at *router.Attached, d state.Delta) {
	version := format(d.Item.Revision)
	b := stanza.NewBuilder("").Open("query", stanza.NSRoster, "ver", version)
	if d.Removed {
		b.Leaf("item", "", "jid", d.Item.Contact.String(), "subscription", "remove")
	} else {
		appendItem(b, d.Item)
	}
	iq := stanza.WithInner(stanza.KindIQ, stanza.TypeSet, "push-"+rand.Text(), c.User(), at.JID, b.Bytes())
	if err := c.SetMark(at, mark, version); err == nil {
		c.Deliver(at, iq)
	}
}

func appendItem(b *stanza.Builder, item state.Item) {
	b.Open("item", "", "jid", item.Contact.String(), "name", item.Name)
	b.Attr("subscription", item.Sub.String()) // also "none": some clients need it
	if item.Ask {
		b.Attr("ask", "subscribe")
	}
	if item.Approved {
		b.Attr("approved", "true")
	}
	for _, g := range item.Groups {
		b.TextElement("group", "", g)
	}
	b.Close()
}

func format(version uint64) string { return strconv.FormatUint(version, 10) }
