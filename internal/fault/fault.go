// Package fault holds the error type that every part of the server speaks.
//
// A fault says what failed (Op), on what (Subject), why (Code), and keeps the
// cause (Err) for the log. Edges translate a Code into their own protocol's
// vocabulary (an XMPP condition, an HTTP status, an exit code) with one table
// each, and never put Err on the wire. The list of codes is append-only: a
// code's number may be stored in a log entry's result.
package fault

import (
	"context"
	"errors"
	"strings"
)

// Code says why an operation failed, in terms that every edge can translate.
type Code uint8

// The codes. Append only; never renumber.
const (
	Internal      Code = iota + 1 // a bug or a broken invariant; details only in the log
	BadRequest                    // the request is malformed or breaks a rule
	Unauthorized                  // the caller did not prove who it is
	Forbidden                     // the caller is known, and may not
	NotFound                      // the subject does not exist
	Conflict                      // the subject exists already, or changed meanwhile
	NotAllowed                    // the operation never applies to this subject
	NotAcceptable                 // a value is outside what policy accepts
	TooLarge                      // a limit on size or number was hit
	Unavailable                   // the service cannot serve this now; retrying later may help
	NoQuorum                      // no majority of the log's members can be reached; retry later
	Timeout                       // no answer within the time allowed; the outcome is unknown
	Overloaded                    // a queue or a rate limit is full; retry later
	NotSupported                  // nobody here implements this
	Gone                          // the subject existed and has moved or ended
	Stale                         // the caller acted on an outdated epoch or revision
)

var names = [...]string{
	Internal: "internal", BadRequest: "bad-request", Unauthorized: "unauthorized",
	Forbidden: "forbidden", NotFound: "not-found", Conflict: "conflict",
	NotAllowed: "not-allowed", NotAcceptable: "not-acceptable", TooLarge: "too-large",
	Unavailable: "unavailable", NoQuorum: "no-quorum", Timeout: "timeout",
	Overloaded: "overloaded", NotSupported: "not-supported", Gone: "gone", Stale: "stale",
}

// String returns the code's stable name, as logs and JSON show it.
func (c Code) String() string {
	if int(c) < len(names) && names[c] != "" {
		return names[c]
	}
	return "unknown"
}

// Codes returns every code, in order. The mapping tests of the edges range over it.
func Codes() []Code {
	all := make([]Code, 0, len(names)-1)
	for c := Internal; int(c) < len(names); c++ {
		all = append(all, c)
	}
	return all
}

// Retryable reports whether the same request may succeed later without a change by its sender.
func (c Code) Retryable() bool {
	switch c {
	case Unavailable, NoQuorum, Timeout, Overloaded, Stale:
		return true
	}
	return false
}

// Error is a failed operation.
type Error struct {
	Code    Code
	Op      string // what was tried, "roster.set"
	Subject string // on what, "alice@example.com"; may be empty
	Text    string // what to tell the caller: what is wrong and what to do; safe to show
	Err     error  // the cause, for the log only; may be nil
}

// New returns a fault. text is shown to callers: it says what is wrong and what to do.
func New(code Code, op, subject, text string) *Error {
	return &Error{Code: code, Op: op, Subject: subject, Text: text}
}

// Wrap returns a fault with a cause. It returns nil if err is nil.
func Wrap(err error, code Code, op, subject string) error {
	if err == nil {
		return nil
	}
	return &Error{Code: code, Op: op, Subject: subject, Err: err}
}

// Error renders the whole fault, cause included. It is for logs and operators, not for the wire.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Subject != "" {
		b.WriteString(" " + e.Subject)
	}
	b.WriteString(": " + e.Code.String())
	if e.Text != "" {
		b.WriteString(": " + e.Text)
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Public returns what may be shown to a remote caller: the text, or the code's name.
func (e *Error) Public() string {
	if e.Text != "" {
		return e.Text
	}
	return e.Code.String()
}

// CodeOf returns the code of the first fault in err's chain; Timeout for an
// expired context; Internal for any other error, and 0 for nil.
func CodeOf(err error) Code {
	var f *Error
	switch {
	case err == nil:
		return 0
	case errors.As(err, &f):
		return f.Code
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return Timeout
	}
	return Internal
}

// Public returns what may be shown to a remote caller about err.
func Public(err error) string {
	var f *Error
	if errors.As(err, &f) {
		return f.Public()
	}
	return CodeOf(err).String()
}

// Is reports whether err carries code.
func Is(err error, code Code) bool { return CodeOf(err) == code }
