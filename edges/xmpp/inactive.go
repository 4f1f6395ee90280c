package xmpp

import (
	"muster/router/stanza"
)

// maxHeld is how many stanzas an inactive client is spared at once; then it gets them.
const maxHeld = 500

// setQuiet takes the client's word that somebody, or nobody, looks at it (XEP-0352).
func (s *session) setQuiet(quiet bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.quiet = quiet
	if !quiet {
		s.releaseHeld()
		s.kick()
	}
}

// holdable reports whether a client that nobody looks at can do without the stanza for now.
func holdable(p *stanza.Packet) bool {
	switch p.Kind {
	case stanza.KindPresence:
		return p.Type == "" || p.Type == stanza.TypeUnavailable
	case stanza.KindMessage:
		return p.Type != stanza.TypeError && onlyChatState(p)
	}
	return false
}

// onlyChatState reports whether a message says no more than that somebody is typing (XEP-0085 section 5.5).
func onlyChatState(p *stanza.Packet) bool {
	state := false
	for _, c := range p.Children {
		switch {
		case c.Space == stanza.NSChatStates:
			state = true
		case c.Space == stanza.NSHints, c.Space == stanza.NSStanzaID, c.Space == stanza.NSDelay:
		case c.Space == stanza.NSClient && c.Local == "thread":
		default:
			return false
		}
	}
	return state
}

// hold keeps a stanza back; it replaces an earlier one that it makes obsolete. s.mu is held.
func (s *session) hold(p *stanza.Packet) {
	for i, q := range s.held {
		if obsolete(q, p) {
			s.bytes -= q.Size()
			s.held = append(s.held[:i], s.held[i+1:]...)
			break
		}
	}
	s.held = append(s.held, p)
	s.bytes += p.Size()
	if len(s.held) >= maxHeld && s.st != nil {
		s.releaseHeld()
		s.kick()
	}
}

// obsolete reports whether a client that gets p needs q no more. Presence in rooms carries
// what happened besides what is, so that each counts.
func obsolete(q, p *stanza.Packet) bool {
	if q.Kind != p.Kind || q.From != p.From || q.To != p.To {
		return false
	}
	if p.Kind == stanza.KindMessage {
		return q.Type == p.Type
	}
	return !q.Has(stanza.NSMUCUser, "") && !p.Has(stanza.NSMUCUser, "")
}

// releaseHeld queues what was held back, in order. s.mu is held.
func (s *session) releaseHeld() {
	if len(s.held) == 0 {
		return
	}
	held := s.held
	s.held = nil
	for _, p := range held {
		s.bytes -= p.Size()
		s.push(p)
	}
}
