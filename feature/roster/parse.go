package roster

import (
	"muster/feature/roster/state"
	"muster/internal/jid"
	"muster/router/stanza"
)

// change is what a client wants done to a contact.
type change struct {
	contact jid.JID
	name    string
	groups  []string
	remove  bool
}

// parseSet reads a roster set. Of the subscription attribute only "remove"
// counts, ask and approved are ignored: they are the server's (RFC 6121 section 2.1.2).
func parseSet(iq *stanza.Packet) (change, *stanza.Error) {
	query, _ := iq.Payload()
	items := iq.Element(query).All(stanza.NSRoster, "item")
	if len(items) != 1 {
		return change{}, stanza.NewError(stanza.BadRequest, "a roster set holds exactly one item")
	}
	item := items[0]
	address := item.Attr("jid")
	if address == "" {
		return change{}, stanza.NewError(stanza.BadRequest, "the item has no jid")
	}
	contact, err := jid.Parse(address)
	if err != nil {
		return change{}, stanza.NewError(stanza.JIDMalformed, "the item's jid is malformed")
	}
	ch := change{contact: contact.Bare(), name: item.Attr("name"), remove: item.Attr("subscription") == "remove"}
	for _, g := range item.All(stanza.NSRoster, "group") {
		ch.groups = append(ch.groups, g.Text())
		if len(ch.groups) > state.MaxGroups {
			return change{}, stanza.NewError(stanza.NotAcceptable, "the contact is in too many groups")
		}
	}
	if ch.remove {
		return ch, nil
	}
	if err := state.CheckItem(ch.name, ch.groups); err != nil {
		return change{}, stanza.FromFault(err)
	}
	return ch, nil
}
