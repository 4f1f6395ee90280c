// Package state is the replicated half of the roster feature: contacts and
// subscriptions (RFC 6121 sections 2 and 3 and appendix A).
//
// Callers: the roster and presence features propose entries with the
// constructors here, read with Items, Get, Changed and Pending, and learn of
// changes from the machine's feed through DecodeChange.
//
// Invariants: a change of a subscription between two local users changes both
// rosters in one entry, so that they never drift apart; a roster's version
// rises with each change of what its user may see, and each item carries the
// version that it changed at (the log index, unless several changes share a
// record); an item that is only somebody's request is hidden; the counters of
// a roster's row equal its items.
package state

import (
	"muster/feature/roster/state/rosterpb"
	"muster/fsm"
	"muster/fsm/config"
	"muster/internal/jid"
	"muster/log"
)

// Limits of a roster.
const (
	MaxName    = 1023    // bytes of a contact's name
	MaxGroup   = 1023    // bytes of a group's name
	MaxGroups  = 64      // groups of one contact
	MaxRequest = 4 << 10 // bytes of a stored subscription request
	MaxRemoved = 256     // removals remembered, for roster versioning
)

// Settings of this module.
var (
	MaxContacts = config.Int("roster.max_contacts", 1000, 0, 100_000, config.Cluster,
		"How many contacts a user's roster may hold; 0 for no limit.")
	MaxRequests = config.Int("roster.max_requests", 1000, 1, 100_000, config.Cluster,
		"How many subscription requests from people outside the roster are kept for a user; more are dropped.")
)

// Tables of this module.
var (
	Rosters      = fsm.NewTable("roster.items")   // user, contact → item
	rosterTable  = fsm.NewTable("roster.rosters") // user → version and counters
	removedTable = fsm.NewTable("roster.removed") // user, revision (eight bytes, big-endian) → contact
)

// Module returns the module of rosters.
func Module() fsm.Module {
	return fsm.Module{
		Name:   "feature/roster/state",
		Tables: []*fsm.Table{Rosters, rosterTable, removedTable},
		Handlers: map[log.Kind]fsm.Handler{
			log.RosterSet:    setItem,
			log.RosterRemove: removeItem,
			log.Subscription: subscribe,
		},
	}
}

// Item is a contact in a user's roster.
type Item struct {
	Contact   jid.JID // bare
	Name      string
	Groups    []string
	Sub       Sub
	Ask       bool   // the user has asked and not been answered (RFC 6121: ask='subscribe')
	Approved  bool   // a request of the contact will be accepted by itself (RFC 6121 section 3.4)
	PendingIn bool   // the contact has asked and not been answered
	Request   []byte // the contact's complete request; empty without PendingIn
	Revision  uint64 // roster version of the item's last change
	Hidden    bool   // only a request: not part of the roster that clients see
}

// State returns the item's subscription state.
func (i Item) State() State {
	return State{Sub: i.Sub, Ask: i.Ask, PendingIn: i.PendingIn, Approved: i.Approved}
}

// SetEntry creates or replaces name and groups of a contact; its subscription stays.
func SetEntry(user, contact jid.JID, name string, groups []string) *log.Entry {
	body := &rosterpb.Set{User: user.Bare().String(), Contact: contact.Bare().String(), Name: fsm.Text(name)}
	for _, g := range groups {
		body.Groups = append(body.Groups, fsm.Text(g))
	}
	return log.New(log.RosterSet, body)
}

// RemoveEntry removes a contact and both subscriptions. The result is an Outcome.
func RemoveEntry(user, contact jid.JID) *log.Entry {
	return log.New(log.RosterRemove, &rosterpb.Remove{User: user.Bare().String(), Contact: contact.Bare().String()})
}

// Request is a presence stanza that changes a subscription.
type Request struct {
	From, To jid.JID // made bare
	Type     Type
	Payload  []byte // the complete stanza, of which at most MaxRequest bytes are kept: a longer one is kept without it
	Blocked  bool   // the recipient's blocking list refuses the sender: only the sender's roster changes
}

// SubscriptionEntry applies a subscription stanza to the rosters of both sides,
// as far as their domains are the cluster's. The result is an Outcome.
func SubscriptionEntry(r Request) *log.Entry {
	if len(r.Payload) > MaxRequest {
		r.Payload = nil
	}
	return log.New(log.Subscription, &rosterpb.Subscription{
		From: r.From.Bare().String(), To: r.To.Bare().String(), Type: uint32(r.Type), Payload: r.Payload, Blocked: r.Blocked,
	})
}

// Outcome says what the runtime has to do after a subscription entry or a removal.
type Outcome struct {
	Stanzas []Stanza // presence stanzas to deliver or to send on, in order
	Gained  []Watch  // who now receives whose presence
	Lost    []Watch  // who no longer does
	Stored  bool     // the request is kept, and delivered again at each login until it is answered
}

// Stanza is a subscription stanza between bare addresses that has to be passed on.
type Stanza struct {
	Type     Type
	From, To jid.JID
	Local    bool // To is a user of the cluster: deliver to its available sessions; else route to To's domain
	Auto     bool // made by the server; the first stanza of an entry is the client's own, if it is listed at all
}

// Watch is a pair of bare addresses: Watcher receives Subject's presence.
type Watch struct{ Watcher, Subject jid.JID }

// Get returns a contact of a user's roster, hidden or not.
func Get(r fsm.Reader, user, contact jid.JID) (Item, bool) {
	b, ok := r.Get(Rosters, itemKey(user, contact))
	if !ok {
		return Item{}, false
	}
	return decodeItem(contact.Bare(), b), true
}

// Version returns the version of a user's roster; 0 if it never held anything.
func Version(r fsm.Reader, user jid.JID) uint64 { return loadRoster(r, user).Version }

// Items returns the contacts of a user's roster by address, without the hidden ones.
func Items(r fsm.Reader, user jid.JID) []Item {
	return collect(r, user, func(i *Item) bool { return !i.Hidden })
}

// Pending returns the items that hold an unanswered request, hidden ones
// included. It is quick if there are none.
func Pending(r fsm.Reader, user jid.JID) []Item {
	if loadRoster(r, user).Requests == 0 {
		return nil
	}
	return collect(r, user, func(i *Item) bool { return i.PendingIn })
}

// DecodeChange tells whose roster changed and the item before and after (nil:
// none). Hidden items are reported too. ok is false for a change of another table.
func DecodeChange(c fsm.Change) (user jid.JID, before, after *Item, ok bool) {
	if c.Table != Rosters {
		return jid.JID{}, nil, nil, false
	}
	user, contact := splitItemKey(c.Key)
	if c.Before != nil {
		i := decodeItem(contact, c.Before)
		before = &i
	}
	if c.After != nil {
		i := decodeItem(contact, c.After)
		after = &i
	}
	return user, before, after, true
}
