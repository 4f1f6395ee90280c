package router

import (
	"hash/maphash"
	"time"

	"muster/router/stanza"
)

// recentMessages is how many messages to all sessions an actor remembers: more
// than a client leaves unconfirmed. An older one is taken to have arrived.
const recentMessages = 64

// youngFor is how long after taking sessions over an actor may meet messages that the user's earlier home
// gave to sessions. It cannot know to which: twice is better than never (decision 8).
const youngFor = 10 * time.Second

// recent remembers who was given the latest messages to all sessions of a
// user. A session that is lost gives back what its client did not confirm: the
// others have it, those that became available since have not, and nobody gets two errors.
type recent struct {
	ring []given
	next int
}

// given is one message, the highest number of a session then, and how many
// sessions have it and did not give it back; answered: its sender got an error.
type given struct {
	key      uint64
	bound    uint64
	copies   int
	answered bool
}

var recentSeed = maphash.MakeSeed()

func messageKey(p *stanza.Packet) uint64 {
	var h maphash.Hash
	h.SetSeed(recentSeed)
	_, _ = h.WriteString(p.From.Local)
	_, _ = h.WriteString(p.From.Resource)
	_, _ = h.WriteString(p.ID)
	_, _ = h.Write(p.Inner)
	return h.Sum64()
}

// find returns what is known of a message; nil for nothing.
func (r *recent) find(p *stanza.Packet) *given {
	if len(r.ring) == 0 {
		return nil
	}
	key := messageKey(p)
	for i := range r.ring {
		if r.ring[i].key == key {
			return &r.ring[i]
		}
	}
	return nil
}

// note remembers a message that so many sessions are given.
func (r *recent) note(p *stanza.Packet, bound uint64, copies int) {
	g := given{key: messageKey(p), bound: bound, copies: copies}
	if have := r.find(p); have != nil {
		*have = g
		return
	}
	if len(r.ring) < recentMessages {
		r.ring = append(r.ring, g)
		return
	}
	r.ring[r.next] = g
	r.next = (r.next + 1) % recentMessages
}

// doubt makes nobody count as having a message who has left: what a node had when it died may not have reached its clients.
func (r *recent) doubt() {
	for i := range r.ring {
		r.ring[i].copies = 0
	}
}

// lostMessage takes up a message that a session did not get. A session whose
// end waits behind its input here is nobody who has it: its client is gone. It
// may be the very one that gives it back, and then no other end comes that
// would take the message up.
func (a *Actor) lostMessage(p *stanza.Packet) {
	g := a.recent.find(p)
	staying := a.staying()
	switch {
	case g != nil && g.answered:
		return
	case g != nil:
		var to []*Attached
		for _, at := range staying {
			if at.number > g.bound {
				to = append(to, at)
			}
		}
		g.bound, g.copies = a.bound, max(0, g.copies-1)+len(to)
		if len(to) > 0 {
			a.deliver(&a.self, p, to)
		}
		if len(staying) > 0 || g.copies > 0 {
			return // the others have it, or give it back themselves
		}
		g.answered = true
	case p.To.Resource == "" && len(staying) > 0 && time.Since(a.tookOver) > youngFor:
		return // the other sessions have it
	}
	a.perform(&a.self, p, decide(p.Kind, p.MessageType(), targetGone, a.presence()))
}

// staying returns the eligible sessions whose end has not come here.
func (a *Actor) staying() []*Attached {
	var out []*Attached
	for _, at := range a.eligible() {
		if !at.ending {
			out = append(out, at)
		}
	}
	return out
}
