package state

// Sub is the state of a subscription (RFC 6121 section 2.1.2.5), from the roster owner's side.
type Sub uint8

// The subscription states.
const (
	None Sub = iota
	To       // the owner receives the contact's presence
	From     // the contact receives the owner's presence
	Both
)

// String returns the value of the roster item's subscription attribute.
func (s Sub) String() string { return [...]string{"none", "to", "from", "both"}[s&3] }

// HasTo reports whether the owner receives the contact's presence.
func (s Sub) HasTo() bool { return s&To != 0 }

// HasFrom reports whether the contact receives the owner's presence.
func (s Sub) HasFrom() bool { return s&From != 0 }

// Type is the type of a subscription stanza (RFC 6121 section 3).
type Type uint8

// The types; the numbers are stored.
const (
	Subscribe Type = iota + 1
	Subscribed
	Unsubscribe
	Unsubscribed
)

var typeNames = [...]string{"", "subscribe", "subscribed", "unsubscribe", "unsubscribed"}

// String returns the value of the presence stanza's type attribute.
func (t Type) String() string {
	if int(t) < len(typeNames) {
		return typeNames[t]
	}
	return ""
}

// ParseType returns the type of a presence stanza's type attribute; ok is false if it is not about subscriptions.
func ParseType(s string) (t Type, ok bool) {
	for i, name := range typeNames {
		if name == s && i > 0 {
			return Type(i), true
		}
	}
	return 0, false
}

// Direction is where a stanza comes from, seen from the roster that it changes.
type Direction uint8

// The directions.
const (
	Out Direction = iota // from the roster's owner
	In                   // from the contact
)

// State is a subscription state (RFC 6121 appendix A.1) with the pre-approval of section 3.4.
type State struct {
	Sub       Sub
	Ask       bool // pending out
	PendingIn bool
	Approved  bool
}

// Action is what a stanza causes besides the new state.
type Action struct {
	Pass  bool // out: route it to the contact; in: deliver it to the owner
	Reply Type // what the server answers by itself, in the owner's name; 0 for nothing
}

// Next is the subscription state machine (RFC 6121 appendix A.2 and A.3): the
// state after a stanza, and what to do with it.
func Next(s State, d Direction, t Type) (State, Action) {
	if d == Out {
		return nextOut(s, t)
	}
	return nextIn(s, t)
}

func nextOut(s State, t Type) (State, Action) {
	switch t {
	case Subscribe:
		s.Ask = s.Ask || !s.Sub.HasTo()
		return s, Action{Pass: true}
	case Unsubscribe:
		s.Sub &^= To
		s.Ask = false
		return s, Action{Pass: true}
	case Subscribed:
		if s.PendingIn {
			s.PendingIn = false
			s.Sub |= From
			return s, Action{Pass: true}
		}
		if !s.Sub.HasFrom() {
			s.Approved = true
		}
		return s, Action{}
	case Unsubscribed:
		pass := s.PendingIn || s.Sub.HasFrom()
		s.PendingIn, s.Approved = false, false
		s.Sub &^= From
		return s, Action{Pass: pass}
	}
	return s, Action{}
}

func nextIn(s State, t Type) (State, Action) {
	switch t {
	case Subscribe:
		switch {
		case s.Sub.HasFrom():
			return s, Action{Reply: Subscribed}
		case s.PendingIn:
			return s, Action{}
		case s.Approved:
			s.Sub |= From
			return s, Action{Reply: Subscribed}
		}
		s.PendingIn = true
		return s, Action{Pass: true}
	case Unsubscribe:
		if !s.PendingIn && !s.Sub.HasFrom() {
			return s, Action{}
		}
		s.PendingIn = false
		s.Sub &^= From
		return s, Action{Pass: true, Reply: Unsubscribed}
	case Subscribed:
		if !s.Ask || s.Sub.HasTo() {
			return s, Action{}
		}
		s.Ask = false
		s.Sub |= To
		return s, Action{Pass: true}
	case Unsubscribed:
		if !s.Ask && !s.Sub.HasTo() {
			return s, Action{}
		}
		s.Ask = false
		s.Sub &^= To
		return s, Action{Pass: true}
	}
	return s, Action{}
}
