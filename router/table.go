package router

import "muster/router/stanza"

// target is what an address means to the actor of its user (RFC 6121 section 8.5).
type target uint8

const (
	targetBare    target = iota // the account
	targetSession               // a resource that is attached
	targetMissing               // a resource that is not attached
	targetGone                  // a resource that was, when the stanza was sent to it
)

// presenceState is what sessions the user has.
type presenceState uint8

const (
	stateNone     presenceState = iota // no available session
	stateNegative                      // only available sessions of negative priority
	stateReady                         // an available session of priority 0 or more
)

// action is what to do with a stanza for a user.
type action uint8

const (
	doIgnore  action = iota // forget it
	doAnswer                // the server answers for the account
	doDeliver               // to the session addressed
	doAll                   // to all sessions of priority 0 or more
	doEvery                 // to all available sessions, whatever their priority
	doStore                 // to whoever takes undeliverable messages, else refuse
	doRefuse                // service-unavailable to the sender
)

// decide is the table of RFC 6121 section 8.5 for a user of ours. typ is a
// message's MessageType, else the stanza's type. Where the table leaves a
// choice: messages of type normal and chat go to all sessions of priority 0 or
// more, and nobody is left without an answer. A user that does not exist is
// treated by refuseUnknown, so that it looks like one without sessions.
func decide(kind stanza.Kind, typ string, to target, have presenceState) action {
	switch kind {
	case stanza.KindMessage:
		return decideMessage(typ, to, have)
	case stanza.KindPresence:
		return decidePresence(typ, to, have)
	}
	request := typ == stanza.TypeGet || typ == stanza.TypeSet
	switch {
	case to == targetSession:
		return doDeliver
	case !request:
		return doIgnore
	case to == targetBare:
		return doAnswer
	}
	return doRefuse
}

func decideMessage(typ string, to target, have presenceState) action {
	if to == targetSession {
		return doDeliver
	}
	switch typ {
	case stanza.TypeError:
		return doIgnore
	case stanza.TypeGroupchat:
		return doRefuse
	case stanza.TypeHeadline:
		if to == targetBare && have == stateReady {
			return doAll
		}
		return doIgnore
	case stanza.TypeNormal:
		if to == targetMissing {
			return doRefuse // RFC 6121 section 8.5.3.2.1: ignore or refuse
		}
	}
	if have == stateReady {
		return doAll
	}
	return doStore
}

func decidePresence(typ string, to target, have presenceState) action {
	switch typ {
	case "", stanza.TypeUnavailable:
		switch {
		case to == targetSession:
			return doDeliver
		case to == targetBare && have != stateNone:
			return doEvery
		}
	case stanza.TypeError:
		if to == targetSession {
			return doDeliver
		}
	}
	return doIgnore // subscriptions and probes are a feature's
}

// refuseUnknown reports whether a stanza for a user that does not exist is
// answered with service-unavailable: exactly when one for a user without any
// session is, so that nobody learns who exists (RFC 6121 section 8.5.1).
func refuseUnknown(kind stanza.Kind, typ string) bool {
	switch kind {
	case stanza.KindMessage:
		return typ != stanza.TypeError && typ != stanza.TypeHeadline
	case stanza.KindIQ:
		return typ == stanza.TypeGet || typ == stanza.TypeSet
	}
	return false
}
