// Package offline lets a client look through the messages that wait for its
// user and take them one by one, instead of getting them all as soon as it
// becomes available (XEP-0013). cmd/musterd hands it to the router, and to
// service discovery as what answers for the account's node.
//
// Invariants: only the user's own clients see what waits; a message waits until
// a client removes it or has it by the ordinary way; a client that has looked
// gets what waited only as it asks for it.
package offline

import (
	"fmt"
	"strconv"

	"muster/feature/message/state"
	"muster/fsm"
	"muster/internal/jid"
	"muster/router"
	"muster/router/stanza"
)

// HandledMark is set on a session whose client looks after what waits by
// itself: the message feature does not offer it then (XEP-0013 section 2.2).
const HandledMark = "offline-handled"

// Bounds of one answer. Both fit into every session's queue.
const (
	maxHeaders = 2000      // messages that are listed, the oldest first; the others follow when some were removed
	maxBytes   = 384 << 10 // of the messages viewed or fetched
)

// Feature serves what waits.
type Feature struct{}

var _ router.Feature = (*Feature)(nil)

// New returns the feature.
func New() *Feature { return &Feature{} }

// Name implements router.Feature.
func (*Feature) Name() string { return "offline" }

// Setup implements router.Feature.
func (*Feature) Setup(reg *router.Registry) error {
	if reg.Router().Messages() == nil {
		return nil // no message log: nothing waits
	}
	reg.HandleIQ(router.Account, stanza.NSOfflineNodes, "offline", handle)
	reg.Advertise(router.Domain, stanza.NSOfflineNodes)
	reg.Advertise(router.Account, stanza.NSOfflineNodes)
	return nil
}

// Info describes the node, with the number of messages (XEP-0013 section 2.2).
func (*Feature) Info(c *router.Ctx, node string) (router.Disco, bool) {
	if !mine(c, node) {
		return router.Disco{}, false
	}
	looked(c)
	b := stanza.NewBuilder("").Open("x", stanza.NSData, "type", "result")
	b.Open("field", "", "var", "FORM_TYPE", "type", "hidden").TextElement("value", "", stanza.NSOfflineNodes).Close()
	b.Open("field", "", "var", "number_of_messages").TextElement("value", "", strconv.Itoa(len(state.Inbox(c.Messages(), c.User().String())))).Close()
	return router.Disco{
		Identities: []router.Identity{{Category: "automation", Type: "message-list"}},
		Features:   []string{stanza.NSOfflineNodes},
		Forms:      [][]byte{b.Bytes()},
	}, true
}

// Items lists the messages' senders (XEP-0013 section 2.3).
func (*Feature) Items(c *router.Ctx, node string) ([]router.Item, bool) {
	if !mine(c, node) {
		return nil, false
	}
	looked(c)
	var items []router.Item
	waiting := state.Inbox(c.Messages(), c.User().String())
	for _, n := range waiting[:min(len(waiting), maxHeaders)] {
		if p := load(c, n); p != nil {
			items = append(items, router.Item{JID: c.User(), Node: nodeOf(n), Name: p.From.String()})
		}
	}
	return items, true
}

func mine(c *router.Ctx, node string) bool {
	return c.Own() && node == stanza.NSOfflineNodes && c.Messages() != nil
}

// looked notes that the session's client asks for what waits.
func looked(c *router.Ctx) { _ = c.SetMark(c.Session, HandledMark, "yes") } // a few bytes: there is room

// nodeOf names a message; names sort as the messages do.
func nodeOf(n uint64) string { return fmt.Sprintf("%016x", n) }

// load returns a message as it was sent.
func load(c *router.Ctx, n uint64) *stanza.Packet {
	m, ok := state.ByNumber(c.Messages(), n)
	if !ok {
		return nil
	}
	p, err := stanza.ParsePacket(m.XML)
	if err != nil {
		return nil
	}
	return p
}

func handle(c *router.Ctx, iq *stanza.Packet) {
	if !c.Own() {
		c.Reply(iq.ErrorReply(stanza.NewError(stanza.Forbidden, "what waits is for its owner only")))
		return
	}
	payload, _ := iq.Payload()
	numbers, refusal := wanted(iq.Type, iq.Element(payload), state.Inbox(c.Messages(), c.User().String()))
	switch {
	case refusal != nil:
		c.Reply(iq.ErrorReply(refusal))
	case iq.Type == stanza.TypeGet:
		show(c, iq, numbers)
	default:
		remove(c, iq, numbers)
	}
}

// wanted returns which of the waiting messages a request is about (XEP-0013 sections 2.4 to 2.7).
func wanted(typ string, el *stanza.Element, waiting []uint64) ([]uint64, *stanza.Error) {
	all, action := "fetch", "view"
	if typ == stanza.TypeSet {
		all, action = "purge", "remove"
	}
	items := el.All(stanza.NSOfflineNodes, "item")
	if el.Find(stanza.NSOfflineNodes, all) != nil {
		return waiting, nil
	}
	if len(items) == 0 || len(items) > len(waiting) {
		if len(items) > 0 {
			return nil, stanza.NewError(stanza.ItemNotFound, "not all of these messages wait")
		}
		return nil, stanza.NewError(stanza.BadRequest, "name the messages to "+action+", or "+all+" all")
	}
	byNode := make(map[string]uint64, len(waiting))
	for _, n := range waiting {
		byNode[nodeOf(n)] = n
	}
	var numbers []uint64
	for _, item := range items {
		n, ok := byNode[item.Attr("node")]
		switch {
		case item.Attr("action") != action:
			return nil, stanza.NewError(stanza.BadRequest, "the action is "+action)
		case !ok:
			return nil, stanza.NewError(stanza.ItemNotFound, "no such message waits")
		}
		numbers = append(numbers, n)
	}
	return numbers, nil
}

// show sends messages. They wait on: the client removes them when it likes, so
// what does not fit into one answer is refused instead of left out.
func show(c *router.Ctx, iq *stanza.Packet, numbers []uint64) {
	looked(c)
	var out []*stanza.Packet
	size := 0
	for _, n := range numbers {
		m, ok := state.ByNumber(c.Messages(), n)
		if !ok {
			continue
		}
		if size += len(m.XML); size > maxBytes && len(out) > 0 {
			c.Reply(iq.ErrorReply(stanza.NewError(stanza.ResourceConstraint, "this is too much at once; view the messages one by one")))
			return
		}
		if p, err := stanza.ParsePacket(m.XML); err == nil {
			out = append(out, viewed(p, &m, c.User()))
		}
	}
	for _, p := range out {
		c.Deliver(c.Session, p)
	}
	c.Reply(iq.Result(nil))
}

// viewed is a message with its node, and with when the server got it (XEP-0013 section 2.4, XEP-0203).
func viewed(p *stanza.Packet, m *state.Message, owner jid.JID) *stanza.Packet {
	b := stanza.NewBuilder("").Leaf("stanza-id", stanza.NSStanzaID, "by", owner.String(), "id", m.ID(owner.String()))
	b.Leaf("delay", stanza.NSDelay, "from", owner.Domain, "stamp", m.Time.UTC().Format("2006-01-02T15:04:05.000Z"))
	b.Open("offline", stanza.NSOfflineNodes).Leaf("item", "", "node", nodeOf(m.Number)).Close()
	return p.With(b.Bytes())
}

func remove(c *router.Ctx, iq *stanza.Packet, numbers []uint64) {
	owner := c.User().String()
	if len(numbers) == 0 {
		c.Reply(iq.Result(nil))
		return
	}
	c.ProposeMessage(func(c *router.Ctx, res fsm.Result) {
		if res.Err != nil {
			c.Reply(iq.ErrorReply(stanza.FromFault(res.Err)))
			return
		}
		c.Reply(iq.Result(nil))
	}, state.TakenEntry([]state.Taken{{Owner: owner, Numbers: numbers}}, nil))
}
