package router

import (
	"muster/router/stanza"
)

// lastWordMark is the mark that carries a session's last word to its node.
const lastWordMark = "last-word"

// SetLastWord leaves p with the session's node: should the session end because
// its account is gone, its client gets p before the stream error. An entry that
// deletes the account reaches the session's node by another way than the
// actor's answers do, so that no answer could be sure to come in time; set
// before it is proposed, the last word is there long before it is committed. nil
// takes it back. It returns TooLarge beyond the bounds of SetMark.
func (a *Actor) SetLastWord(at *Attached, p *stanza.Packet) error {
	if p == nil {
		return a.SetMark(at, lastWordMark, "")
	}
	return a.SetMark(at, lastWordMark, string(p.AppendTo(nil)))
}

// lastWord returns what SetLastWord left, if the account is gone.
func (s *Session) lastWord() *stanza.Packet {
	s.mu.Lock()
	text := s.marks.m[lastWordMark]
	s.mu.Unlock()
	if text == "" {
		return nil
	}
	if _, where := s.r.locate(s.user); where != unknownUser {
		return nil
	}
	p, err := stanza.ParsePacket([]byte(text))
	if err != nil {
		return nil
	}
	return p
}
