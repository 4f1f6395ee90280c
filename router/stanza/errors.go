package stanza

import (
	"errors"

	"muster/internal/fault"
	"muster/internal/jid"
)

// ErrorType says what the receiver of an error can do about it (RFC 6120 section 8.3.2).
type ErrorType string

// The error types.
const (
	Auth     ErrorType = "auth"     // retry after providing credentials
	Cancel   ErrorType = "cancel"   // do not retry
	Continue ErrorType = "continue" // only a warning
	Modify   ErrorType = "modify"   // retry after changing what was sent
	Wait     ErrorType = "wait"     // retry after waiting
)

// Condition is the defined condition of a stanza error (RFC 6120 section 8.3.3).
type Condition string

// The defined conditions.
const (
	BadRequest            Condition = "bad-request"
	Conflict              Condition = "conflict"
	FeatureNotImplemented Condition = "feature-not-implemented"
	Forbidden             Condition = "forbidden"
	Gone                  Condition = "gone"
	InternalServerError   Condition = "internal-server-error"
	ItemNotFound          Condition = "item-not-found"
	JIDMalformed          Condition = "jid-malformed"
	NotAcceptable         Condition = "not-acceptable"
	NotAllowed            Condition = "not-allowed"
	NotAuthorized         Condition = "not-authorized"
	PolicyViolation       Condition = "policy-violation"
	RecipientUnavailable  Condition = "recipient-unavailable"
	Redirect              Condition = "redirect"
	RegistrationRequired  Condition = "registration-required"
	RemoteServerNotFound  Condition = "remote-server-not-found"
	RemoteServerTimeout   Condition = "remote-server-timeout"
	ResourceConstraint    Condition = "resource-constraint"
	ServiceUnavailable    Condition = "service-unavailable"
	SubscriptionRequired  Condition = "subscription-required"
	UndefinedCondition    Condition = "undefined-condition"
	UnexpectedRequest     Condition = "unexpected-request"
)

// Error is a stanza error (RFC 6120 section 8.3).
type Error struct {
	Type      ErrorType
	Condition Condition
	Text      string  // for people; may be empty
	By        jid.JID // who made the error; may be zero
	Extra     []byte  // canonical application-specific condition element; may be nil
}

// usualType is the type that RFC 6120 section 8.3.3 recommends for each condition.
var usualType = map[Condition]ErrorType{
	BadRequest: Modify, Conflict: Cancel, FeatureNotImplemented: Cancel, Forbidden: Auth, Gone: Cancel,
	InternalServerError: Cancel, ItemNotFound: Cancel, JIDMalformed: Modify, NotAcceptable: Modify,
	NotAllowed: Cancel, NotAuthorized: Auth, PolicyViolation: Modify, RecipientUnavailable: Wait,
	Redirect: Modify, RegistrationRequired: Auth, RemoteServerNotFound: Cancel, RemoteServerTimeout: Wait,
	ResourceConstraint: Wait, ServiceUnavailable: Cancel, SubscriptionRequired: Auth,
	UndefinedCondition: Modify, UnexpectedRequest: Wait,
}

// NewError returns an error with the type that RFC 6120 recommends for its condition.
func NewError(c Condition, text string) *Error {
	return &Error{Type: usualType[c], Condition: c, Text: text}
}

// Error renders the error for logs; it makes *Error an error.
func (e *Error) Error() string {
	s := "stanza error " + string(e.Condition) + " (" + string(e.Type) + ")"
	if e.Text != "" {
		s += ": " + e.Text
	}
	return s
}

// Append appends the <error/> element, for a place where jabber:client is the default namespace.
func (e *Error) Append(dst []byte) []byte {
	b := NewBuilder(NSClient).Open("error", NSClient, "by", e.By.String(), "type", string(e.Type))
	b.Leaf(string(e.Condition), NSStanzas)
	if e.Text != "" {
		b.TextElement("text", NSStanzas, e.Text, "xml:lang", "en")
	}
	b.Raw(e.Extra)
	return append(dst, b.Bytes()...)
}

// fromCode is this edge's half of the promise of package fault: a condition for every code.
var fromCode = map[fault.Code]struct {
	kind      ErrorType
	condition Condition
}{
	fault.Internal:      {Cancel, InternalServerError},
	fault.BadRequest:    {Modify, BadRequest},
	fault.Unauthorized:  {Auth, NotAuthorized},
	fault.Forbidden:     {Auth, Forbidden},
	fault.NotFound:      {Cancel, ItemNotFound},
	fault.Conflict:      {Cancel, Conflict},
	fault.NotAllowed:    {Cancel, NotAllowed},
	fault.NotAcceptable: {Modify, NotAcceptable},
	fault.TooLarge:      {Modify, PolicyViolation},
	fault.Unavailable:   {Wait, ResourceConstraint},
	fault.NoQuorum:      {Wait, ResourceConstraint},
	fault.Timeout:       {Wait, ResourceConstraint},
	fault.Overloaded:    {Wait, ResourceConstraint},
	fault.NotSupported:  {Cancel, ServiceUnavailable},
	fault.Gone:          {Cancel, Gone},
	fault.Stale:         {Wait, ResourceConstraint},
}

// FromFault returns the stanza error for a fault: the condition by its code, and of its words only those that
// are meant for the caller. A *Error in err's chain is returned as it is; nil gives nil.
func FromFault(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	entry, ok := fromCode[fault.CodeOf(err)]
	if !ok {
		entry = fromCode[fault.Internal]
	}
	e = &Error{Type: entry.kind, Condition: entry.condition}
	var f *fault.Error
	if errors.As(err, &f) && f.Code != fault.Internal {
		e.Text = f.Text
	}
	return e
}
