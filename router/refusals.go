package router

import (
	"slices"
	"sync"

	"muster/router/stanza"
)

// Refusals. A message that is refused counts as handled, as one that is kept
// does, so its error must reach the client whatever becomes of this node: what
// is written to the message log of a session on record, and counts inputs as
// handled, carries the errors that the client has not confirmed. It gets them
// again where it resumes (XEP-0198 section 5).

// maxRefusals is how many errors are remembered for a session; of more, the latest.
const maxRefusals = 256

// refusals are the errors for a session's messages that its client is not known to have, the oldest first.
type refusals struct {
	mu sync.Mutex
	ps []*stanza.Packet
}

func sameRefusal(a, b *stanza.Packet) bool { return a.ID == b.ID && a.From == b.From }

// note adds an error that is not there yet.
func (rs *refusals) note(p *stanza.Packet) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if slices.ContainsFunc(rs.ps, func(have *stanza.Packet) bool { return sameRefusal(have, p) }) {
		return
	}
	if len(rs.ps) == maxRefusals {
		rs.ps = slices.Delete(rs.ps, 0, 1)
	}
	rs.ps = append(rs.ps, p)
}

// heard removes an error; false if it is not there.
func (rs *refusals) heard(p *stanza.Packet) bool {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	n := len(rs.ps)
	rs.ps = slices.DeleteFunc(rs.ps, func(have *stanza.Packet) bool { return sameRefusal(have, p) })
	return len(rs.ps) < n
}

func (rs *refusals) set(ps []*stanza.Packet) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.ps = slices.Clone(ps)
}

func (rs *refusals) list() []*stanza.Packet {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return slices.Clone(rs.ps)
}

// Refusals returns the errors for the session's messages that its client is not known to have.
func (at *Attached) Refusals() []*stanza.Packet { return at.refusals.list() }

// ForgetRefusals is for a session that is not on record: its client's confirmations are not told.
func (at *Attached) ForgetRefusals() { at.refusals.set(nil) }

// heard notes that the client has an error, here and at the home; false if that was known.
func (s *Session) heard(p *stanza.Packet) bool {
	if !s.refusals.heard(p) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.state != attached: // the next home is told what is left
	case s.at != nil:
		s.at.refusals.heard(p)
	default:
		_ = s.r.links.Send(s.home, kindHeard, stanza.AppendBinary(appendUint64(nil, s.id), p), true)
	}
	return true
}

func (r *Router) takeHeard(peer uint32, b []byte) error {
	s := &scanner{b: b}
	at := r.remote.get(s.uint64())
	p, err := s.packet()
	if err == nil && at != nil && at.Node == peer {
		at.refusals.heard(p)
	}
	return err
}
