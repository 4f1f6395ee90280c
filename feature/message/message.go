// Package message makes acknowledged messages last: it decides which messages
// are kept, writes them to the message log before their senders are told, and
// offers them to their recipients until a client has them (XEP-0160, XEP-0313
// section 5.1.1, XEP-0334, XEP-0359). cmd/musterd hands it to the router.
//
// Invariants: a kept message is the server's once it stands in the log, and its
// sender gets exactly one error if it does not come to stand there; it is
// offered to every client that should have it, in the log's order, from the log
// and by no other way; it waits until one client has confirmed it.
package message

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"slices"
	"time"

	"muster/feature/message/state"
	"muster/fsm"
	"muster/fsm/config"
	"muster/internal/fault"
	"muster/internal/jid"
	"muster/log"
	"muster/router"
	"muster/router/stanza"
)

// MaxWaiting is the setting for the size of the offline queue.
var MaxWaiting = config.Int("offline.max_messages", 1000, 1, 10_000, config.Cluster,
	"How many messages may wait for a user; the senders of further ones get an error.")

// Archiving says whether an account's archive keeps a message that is from or to another address.
type Archiving func(control fsm.Reader, owner, other jid.JID) bool

// Feature keeps messages.
type Feature struct {
	reg     *router.Registry
	archive Archiving
	taken   *collector
	passing passing
}

var _ router.Feature = (*Feature)(nil)

// New returns the feature; archive nil: every account keeps everything.
func New(archive Archiving) *Feature {
	if archive == nil {
		archive = func(fsm.Reader, jid.JID, jid.JID) bool { return true }
	}
	return &Feature{archive: archive}
}

// Name implements router.Feature.
func (*Feature) Name() string { return "message" }

// Setup implements router.Feature.
func (f *Feature) Setup(reg *router.Registry) error {
	r := reg.Router()
	if r.Keeper() == nil {
		return nil // no message log: all messages are live
	}
	f.reg, f.taken = reg, newCollector(r.Keeper().Propose)
	reg.OnMessageSend(f.send)
	reg.OnMessageReceive(f.receive)
	reg.OnReady(f.ready)
	reg.OnMissed(f.missed)
	reg.OnUnbind(f.ended)
	reg.OnTaken(f.taken.add)
	reg.SetRecorder(recorder{f.taken})
	reg.OnStop(f.taken.stop)
	reg.Watch(state.Messages, f.arrived)
	reg.Advertise(router.Domain, stanza.NSOffline)
	reg.Advertise(router.Account, stanza.NSStanzaID)
	return nil
}

// send keeps a message that must last; false for one that is only live.
func (f *Feature) send(c *router.Ctx, p *stanza.Packet) bool {
	r := f.reg.Router()
	how := lasting(p)
	if how == live || p.To.Local == "" || !r.IsLocalDomain(p.To.Domain) {
		return false
	}
	to := p.To.Bare()
	if !r.IsUser(to) || p.MessageType() == stanza.TypeNormal && p.To.Resource != "" && !f.online(p.To) {
		return false // refused, as RFC 6121 section 8.5 has it
	}
	if !r.ScreenStored(to, p).Passes() {
		return false // the recipient's home, which may know better, screens it again and keeps it if it may pass
	}
	c.ProposeMessage(func(c *router.Ctx, res fsm.Result) { f.sent(c, p, res) }, f.entry(c, p, how == archived))
	return true
}

// receive keeps a message that its sender's home did not: by what that one
// knows it is not wanted, by what this one knows it is.
func (f *Feature) receive(c *router.Ctx, p *stanza.Packet) bool {
	how := lasting(p)
	if how == live || p.Number != 0 {
		return false
	}
	c.ProposeMessage(func(c *router.Ctx, res fsm.Result) {
		if reply := p.ErrorReply(stanza.FromFault(res.Err)); res.Err != nil && reply != nil {
			c.Reply(reply)
		}
	}, f.entry(&router.Ctx{Actor: c.Actor}, p, how == archived))
	return true
}

// entry is the log entry for a message.
func (f *Feature) entry(c *router.Ctx, p *stanza.Packet, archive bool) *log.Entry {
	from, to := p.From.Bare(), p.To.Bare()
	var ids [16]byte
	_, _ = rand.Read(ids[:]) // never fails
	put := state.Put{
		From: from.String(), To: to.String(), XML: p.AppendTo(make([]byte, 0, p.Size())), OriginID: originID(p),
		SenderID: binary.BigEndian.Uint64(ids[:8]), RecipientID: binary.BigEndian.Uint64(ids[8:]),
		Limit: int(MaxWaiting.Get(c.State(), 0)),
	}
	if archive {
		put.KeepSent, put.KeepReceived = f.archive(c.State(), from, p.To), f.archive(c.State(), to, p.From)
	}
	if c.Session != nil {
		put.Session, put.Input, put.Claims = c.Session.ID, c.Session.Input(), c.Session.Claims()
		put.Follows = c.Follow(to) != router.Token{}
		put.Refusals = refusals(c)
	}
	f.passing.put(put.SenderID, p)
	return state.PutEntry(put)
}

// refusals returns what the session's client may not have of errors for its
// messages: the message that is kept now counts them as handled.
func refusals(c *router.Ctx) [][]byte {
	ps := c.Session.Refusals()
	if len(ps) == 0 {
		return nil
	}
	if !state.Recorded(c.Messages(), c.Session.ID) {
		c.Session.ForgetRefusals()
		return nil
	}
	return written(ps)
}

// online reports whether a resource is available anywhere.
func (f *Feature) online(full jid.JID) bool {
	for _, row := range f.reg.Router().Hot().Heads(full.Bare()) {
		if row.Resource == full.Resource {
			return true
		}
	}
	return false
}

// sent tells the sender what came of a message.
func (f *Feature) sent(c *router.Ctx, p *stanza.Packet, res fsm.Result) {
	number, repeat := state.PutResult(res.Value)
	if fault.Is(res.Err, fault.Stale) {
		c.ResumedElsewhere() // its client sends it there, and hears there what comes of it
		return
	}
	if res.Err != nil {
		var kept bool
		if number, kept = f.keptAll(c, p); !kept {
			c.Reply(p.ErrorReply(stanza.FromFault(res.Err)))
			return
		}
	}
	if repeat == state.SameOrigin {
		return // the client sent it again; who should have it has it
	}
	if len(c.Sessions()) > 1 {
		if m, ok := state.ByNumber(c.Messages(), number); ok {
			p = withID(p, c.User(), m.ID(c.User().String()))
		}
	}
	c.Sent(p, number)
}

// keptAll finds a message whose proposal failed and that stands in the log all
// the same: its outcome was not known, or the client sent it before.
func (f *Feature) keptAll(c *router.Ctx, p *stanza.Packet) (number uint64, ok bool) {
	if c.Session != nil {
		if number, ok = state.ByInput(c.Messages(), c.Session.ID, c.Session.Input()); ok {
			return number, true
		}
	}
	if id := originID(p); id != "" {
		return state.ByOrigin(c.Messages(), p.From.Bare().String(), id)
	}
	return 0, false
}

// ended forgets a session, which may be on record.
func (f *Feature) ended(c *router.Ctx, _ bool) {
	if !c.Session.NodeOver() { // else its client may go on at another node
		f.taken.forget(c.Session.ID, c.Session.Claims())
	}
}

// arrived hands a new message to its recipient's actor, if this node has one.
// Without one there is no client here to offer it to.
func (f *Feature) arrived(ch fsm.Change) {
	m, ok := state.DecodeNew(ch)
	if !ok {
		return
	}
	to, err := jid.Parse(m.To)
	if err != nil {
		return
	}
	p := f.passing.take(m.SenderID())
	f.reg.Router().Active(to, func(c *router.Ctx) {
		if p == nil {
			p, _ = stanza.ParsePacket(m.XML) // it was valid when it was taken
		}
		if p != nil && !outOfTurn(c, &m, p.To) {
			c.ReceiveStored(ofArchive(p, &m, c.User()), router.Token{Session: m.Session, Input: m.Input})
		}
	})
}

// outOfTurn reports whether a message is addressed to a client that is not available yet, while earlier ones of the same
// sender wait for a client: it waits with them, since messages of one sender to one user come in order (RFC 6120 section 10.1).
func outOfTurn(c *router.Ctx, m *state.Message, to jid.JID) bool {
	if to.Resource == "" {
		return false
	}
	at := c.SessionByResource(to.Resource)
	if at == nil || at.Available() || slices.ContainsFunc(c.Sessions(), (*router.Attached).Able) {
		return false
	}
	return slices.ContainsFunc(state.Inbox(c.Messages(), c.User().String()), func(n uint64) bool {
		earlier, ok := state.ByNumber(c.Messages(), n)
		return ok && n < m.Number && !at.Holds(n) && earlier.From == m.From
	})
}

// packet is a kept message as an owner's client gets it.
func packet(m *state.Message, owner jid.JID) *stanza.Packet {
	p, err := stanza.ParsePacket(m.XML)
	if err != nil {
		return nil
	}
	return ofArchive(p, m, owner)
}

// ofArchive is a stanza as the message of an owner's archive.
func ofArchive(p *stanza.Packet, m *state.Message, owner jid.JID) *stanza.Packet {
	p = withID(p, owner, m.ID(owner.String()))
	p.Number = m.Number
	return p
}

// withID adds the archive's id (XEP-0359 section 3).
func withID(p *stanza.Packet, by jid.JID, id string) *stanza.Packet {
	return p.With(stanza.NewBuilder("").Leaf("stanza-id", stanza.NSStanzaID, "by", by.String(), "id", id).Bytes())
}

// delayed adds when the server got the message (XEP-0203).
func delayed(p *stanza.Packet, m *state.Message, domain string) *stanza.Packet {
	return p.With(stanza.NewBuilder("").Leaf("delay", stanza.NSDelay, "from", domain, "stamp", m.Time.Format(stampFormat)).Bytes())
}

// stampFormat is XEP-0082's, with milliseconds.
const stampFormat = "2006-01-02T15:04:05.000Z"

const (
	backlog        = router.BacklogMark // its values:
	backlogInbox   = "inbox"            // what waits
	backlogAll     = "all"              // all that came
	handledOffline = "offline-handled"  // mark of a session whose client looks at what waits by itself (XEP-0013)
)

// ready offers what waits to a client that becomes able to get messages
// (XEP-0160 section 2), also where another client was offered it and has not
// confirmed it: that one may have lost its connection and nobody knows yet.
func (f *Feature) ready(c *router.Ctx) {
	if handled(c) {
		c.Session.SetOffered(state.Last(c.Messages()))
		return
	}
	f.offer(c, backlogInbox)
}

// handled reports whether one of the user's clients looks at what waits by itself.
func handled(c *router.Ctx) bool {
	for _, at := range c.Sessions() {
		if at.Mark(handledOffline) != "" {
			return true
		}
	}
	return false
}

// missed offers what came while the session had no home, or goes on with a backlog.
func (f *Feature) missed(c *router.Ctx) {
	mode := c.Session.Mark(backlog)
	if mode == "" {
		mode = backlogAll
	}
	f.offer(c, mode)
}

// A portion of a backlog: the next one follows when the client has confirmed some of it.
const (
	portion      = 200       // messages
	portionBytes = 512 << 10 // of their stanzas
)

// offer gives the session the next portion of what it was not offered yet.
func (f *Feature) offer(c *router.Ctx, mode string) {
	at, r, owner := c.Session, c.Messages(), c.User().String()
	last := state.Last(r)
	var numbers []uint64
	if mode == backlogInbox {
		numbers = state.Inbox(r, owner)
	} else {
		numbers = state.ReceivedSince(r, owner, at.Offered(), portion+1)
	}
	given, size, more := 0, 0, false
	for _, n := range numbers {
		if n <= at.Offered() || n > last || at.Holds(n) {
			continue
		}
		if more = given >= portion || size >= portionBytes; more {
			break
		}
		at.SetOffered(n)
		if m, ok := state.ByNumber(r, n); ok {
			if p := packet(&m, c.User()); p != nil && forSession(c, p) && c.Wants(p) {
				if mode == backlogInbox {
					p = delayed(p, &m, c.User().Domain)
				}
				c.Deliver(at, p)
				given, size = given+1, size+p.Size()
			}
		}
	}
	if !more {
		at.SetOffered(last)
		mode = ""
	}
	_ = c.SetMark(at, backlog, mode) // a few bytes: there is room
}

// forSession reports whether a message is for the account, for this session, or for one that is not there.
func forSession(c *router.Ctx, p *stanza.Packet) bool {
	return p.To.Resource == "" || p.To.Resource == c.Session.JID.Resource || c.SessionByResource(p.To.Resource) == nil
}

// flushTime is for the log to take a last batch when the node stops.
const flushTime = 2 * time.Second

// proposeFunc writes to the message log.
type proposeFunc func(ctx context.Context, entries ...*log.Entry) ([]fsm.Result, error)
