package stanza

// MaxID is the longest stanza id taken from a client, in bytes: an id comes back in every answer and
// acknowledgement, and no client needs more.
const MaxID = 1024

// ValidateClient checks a stanza from a client against RFC 6120 section 8 and
// RFC 6121 sections 4.7.1 and 5.2.2. It returns the error to answer with, or
// nil. An unknown type of message is no error: it means normal.
func ValidateClient(p *Packet) *Error {
	switch {
	case len(p.ID) > MaxID:
		return NewError(PolicyViolation, "id too long")
	case p.Kind == KindIQ:
		return validateIQ(p)
	case p.Kind == KindPresence:
		return validatePresence(p)
	}
	return nil
}

func validateIQ(p *Packet) *Error {
	switch {
	case p.ID == "":
		return NewError(BadRequest, "an iq needs an id")
	case p.Type == TypeGet || p.Type == TypeSet:
		if len(p.Children) != 1 {
			return NewError(BadRequest, "a request needs exactly one child element")
		}
	case p.Type == TypeResult:
		if len(p.Children) > 1 {
			return NewError(BadRequest, "a result has at most one child element")
		}
	case p.Type == TypeError:
	default:
		return NewError(BadRequest, "unknown type of iq")
	}
	return nil
}

func validatePresence(p *Packet) *Error {
	switch p.Type {
	case "", TypeUnavailable, TypeError, TypeProbe, TypeSubscribe, TypeSubscribed, TypeUnsubscribe, TypeUnsubscribed:
		return nil
	}
	return NewError(BadRequest, "unknown type of presence")
}
