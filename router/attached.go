package router

import (
	"sort"
	"strconv"
	"strings"
	"time"

	"muster/internal/fault"
	"muster/internal/jid"
	"muster/router/hot"
	"muster/router/stanza"
)

// Attached is a session as its user's actor sees it. Only code in the actor may use it.
type Attached struct {
	JID       jid.JID        // full
	Node      uint32         // that holds the connection
	ID        uint64         // the session's number
	Presence  *stanza.Packet // last published; nil: not available
	Priority  int8           // of Presence
	Transport string         // "c2s"
	Remote    string         // the client's network address

	actor       *Actor
	number      uint64   // in order of becoming able to get messages to all
	session     *Session // on this node, else nil
	incarnation uint64   // of Node
	ctx         Ctx
	reattached  bool
	claims      uint64 // how often it was resumed at another node; its input is numbered as of the last time
	began       time.Time
	gone        bool // ended, replaced or moved
	marks       marks
	data        map[any]any

	held       int              // proposals and other work that the input waits for
	pending    []event          // input that waits
	current    uint64           // number of the input that is being handled; 0: none
	done       uint64           // number of the last input that is finished
	credited   uint64           // told to the session
	lasting    uint64           // number of the last input that is a kept message
	sent       uint64           // number of the last input that another home may have begun to handle
	ordinal    int              // proposals made during the present input
	missed     []*stanza.Packet // what the client did not get, until the session has ended
	aside      []*stanza.Packet // what the session's node was not sent: it ends, or the link is congested
	replaced   bool             // it was resumed by another connection, from which what nobody finished with comes again
	detached   bool             // it has another home, or will have: what it sent and nobody finished with goes there
	over       bool             // its node's incarnation is over
	ending     bool             // its end is here, perhaps behind input that is held
	published  uint64           // presence changes so far
	publishing []byte           // the last one, until the session's node has confirmed it: the input is held
	row        hot.Position     // of the last one that it confirmed
	stored     uint64           // number of the last message of this session that was kept
	live       map[uint32]bool  // nodes to which stanzas went by their links since the last kept message
	offered    uint64           // up to which kept messages were offered to it
	given      map[uint64]bool  // kept messages that it got although it was not ready
	single     singles          // kept messages to one resource that it got
	refusals   refusals         // of its messages, that its client is not known to have
}

// Available reports whether the session has published presence.
func (at *Attached) Available() bool { return at.Presence != nil }

// Reattached reports whether the session came here because its home moved: its client knows nothing of it.
func (at *Attached) Reattached() bool { return at.reattached }

// Claims returns how often the session was resumed at another node.
func (at *Attached) Claims() uint64 { return at.claims }

// Began returns when the session was bound, or earlier.
func (at *Attached) Began() time.Time { return at.began }

// Gone reports whether the session is no longer attached here.
func (at *Attached) Gone() bool { return at.gone }

// Mark returns a mark of the session; "" if it is not set. Marks are what a
// session carries to a new home: "carbons", "interested", "directed/bob@example.com".
func (at *Attached) Mark(key string) string { return at.marks.m[key] }

// Marks calls fn for the marks whose key begins with prefix, in order of key.
func (at *Attached) Marks(prefix string, fn func(key, value string)) {
	var keys []string
	for k := range at.marks.m {
		if strings.HasPrefix(k, prefix) {
			keys = append(keys, k)
		}
	}
	sort.Strings(keys)
	for _, k := range keys {
		fn(k, at.marks.m[k])
	}
}

// Data returns what SetData keeps with the session on this home; nil if there is nothing.
func (at *Attached) Data(key any) any { return at.data[key] }

// SetData keeps a feature's value with the session; it does not move to a new home (see SetMark).
func (at *Attached) SetData(key, value any) {
	if at.data == nil {
		at.data = map[any]any{}
	}
	at.data[key] = value
}

// marks is a bounded set of names with values.
type marks struct {
	m     map[string]string
	bytes int
}

func (m *marks) set(key, value string) error {
	old, had := m.m[key]
	if value == "" {
		if had {
			delete(m.m, key)
			m.bytes -= len(key) + len(old)
		}
		return nil
	}
	size := m.bytes + len(value) - len(old)
	if !had {
		size += len(key)
	}
	if size > MaxMarkBytes || !had && len(m.m) >= MaxMarks {
		return fault.New(fault.TooLarge, "session.mark", key, "the session has too many marks")
	}
	if m.m == nil {
		m.m = map[string]string{}
	}
	m.m[key], m.bytes = value, size
	return nil
}

// SetMark sets a mark, or for "" removes it. It returns TooLarge beyond MaxMarks or MaxMarkBytes.
func (a *Actor) SetMark(at *Attached, key, value string) error {
	if at.Mark(key) == value {
		return nil
	}
	if err := at.marks.set(key, value); err != nil {
		return err
	}
	if at.session != nil {
		at.session.mark(key, value)
		return nil
	}
	a.r.toSession(at, kindMark, appendText(appendText(nil, key), value))
	return nil
}

// Publish makes p the session's presence: the row at the session's node. nil,
// or presence of type unavailable, removes the row; the latter's children reach
// the watchers (hot.Change.Farewell).
func (a *Actor) Publish(at *Attached, p *stanza.Packet) {
	if at.gone {
		return
	}
	available := p != nil && p.Type == ""
	if !available && at.Presence == nil {
		return
	}
	at.published++
	was := at.able()
	if !was {
		a.bound++
		at.number = a.bound
	}
	at.Presence, at.Priority = nil, 0
	if available {
		at.Presence, at.Priority = p, priority(p)
	}
	defer func() {
		if !was && at.able() {
			a.ready(at)
		}
	}()
	if at.session != nil {
		at.session.publish(at.published, p)
		return
	}
	b := appendUint64(nil, at.published)
	if p != nil {
		b = stanza.AppendBinary(b, p)
	}
	if at.publishing == nil {
		at.held++
	}
	at.publishing = b
	a.r.toSession(at, kindPublish, b)
}

// confirm notes that the session's node has written the row of the nth presence
// change. What the session sends after it must not overtake it on its way to
// the third node, so its input was held, and its stanzas name the row.
func (a *Actor) confirm(at *Attached, n uint64, row hot.Position) {
	if at.publishing == nil || n < at.published {
		return
	}
	at.row = row
	a.unpublished(at)
}

// publishAgain takes up a presence change that the session's node has not
// confirmed, when that node tells its row as of the nth change: it may have
// written it, and only the confirmation is lost. Or it has not, since the node
// was isolated and took no word of this home; then it must be asked again.
func (a *Actor) publishAgain(at *Attached, n uint64) {
	if at.publishing != nil && n < at.published {
		a.r.toSession(at, kindPublish, at.publishing)
		return
	}
	a.confirm(at, at.published, at.row)
}

// unpublished lets the input go on that waits for a presence change.
func (a *Actor) unpublished(at *Attached) {
	if at.publishing != nil {
		at.publishing = nil
		a.release(at)
	}
}

// priority returns the priority of a presence; 0 if it has none or a bad one (RFC 6121 section 4.7.2.3).
func priority(p *stanza.Packet) int8 {
	c, ok := p.Child(stanza.NSClient, "priority")
	if !ok {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(p.Element(c).Text()), 10, 8)
	if err != nil {
		return 0
	}
	return int8(n)
}

// Deliver sends a stanza to one attached session. One that cannot take it is ended.
func (a *Actor) Deliver(at *Attached, p *stanza.Packet) {
	if at.ending && len(at.aside) < MaxMailbox {
		at.aside = append(at.aside, p) // to give it to the session would bring it back here, again and again
		return
	}
	a.r.count.delivered[p.Kind&3].Add(1)
	if p.IsRefusal() {
		at.refusals.note(p)
	}
	if p.Number != 0 && p.To.Resource != "" {
		at.single.note(p.Number)
	}
	if at.session != nil {
		at.session.deliver(p)
		return
	}
	a.r.toSession(at, kindDeliver, stanza.AppendBinary(nil, p))
}

// Route sends a stanza anywhere by p.To; p.From must be set. An error comes back as a stanza to p.From.
func (a *Actor) Route(p *stanza.Packet) { a.RouteChange(p, 0) }

// RouteChange is Route for a stanza that tells of a change of the control log at
// index: the recipient's home hands it on when it knows that change itself.
func (a *Actor) RouteChange(p *stanza.Packet, index uint64) {
	after := dependency{change: index}
	if at := a.sender; at != nil {
		if after.stored = at.stored; at.session == nil && at.row.Sequence != 0 {
			after.node, after.row = at.Node, at.row
		}
	}
	a.r.routeAfter(p, 0, after, a)
}

// Reply sends a result or an error; it is Route, and a nil p (an ErrorReply that may not be sent) does nothing.
// An answer to an own session that is attached here is delivered at once.
func (a *Actor) Reply(p *stanza.Packet) {
	if p == nil {
		return
	}
	if at := a.sender; at != nil && p.IsRefusal() && p.To == at.JID {
		at.refusals.note(p) // it may have no place here any more
	}
	if p.To.Local == a.user.Local && p.To.Domain == a.user.Domain && p.To.Resource != "" && !a.moved {
		if at := a.SessionByResource(p.To.Resource); at != nil {
			a.Deliver(at, p)
			return
		}
	}
	a.Route(p)
}

// remove takes a session off the list.
func (a *Actor) remove(at *Attached) {
	for i, have := range a.sessions {
		if have == at {
			a.sessions = append(a.sessions[:i:i], a.sessions[i+1:]...)
			a.busy.Add(-1)
			return
		}
	}
}

// credit tells the sessions how much of their input is finished.
func (a *Actor) flushCredits() {
	for i, at := range a.credits {
		a.credits[i] = nil
		if at.credited == at.done || a.moved || at.detached {
			continue
		}
		at.credited = at.done
		if at.session != nil {
			at.session.credit(at.done, at.lasting)
		} else {
			a.r.toSession(at, kindCredit, appendUint64(appendUint64(nil, at.done), at.lasting))
		}
	}
	a.credits = a.credits[:0]
}
