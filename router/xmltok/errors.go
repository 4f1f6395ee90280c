package xmltok

import (
	"errors"

	"muster/internal/fault"
)

// Error is a refusal of input. Compare it with errors.Is against the Err
// variables; an edge has a stream error for each. It carries a fault with
// code BadRequest or TooLarge.
type Error struct {
	Class string // the class's name, equal to the Err variable's
	Text  string // what is wrong; safe to show
	fault *fault.Error
}

// The classes of refusals.
var (
	ErrNotWellFormed      = class("not well-formed", fault.BadRequest)      // RFC 6120 section 4.9.3.13
	ErrRestricted         = class("restricted XML", fault.BadRequest)       // comment, PI, DTD, entity: RFC 6120 section 11.1
	ErrBadNamespacePrefix = class("bad namespace prefix", fault.BadRequest) // undeclared or misused: Namespaces in XML
	ErrTooLarge           = class("limit exceeded", fault.TooLarge)         // a limit of Options
	ErrBadEncoding        = class("bad encoding", fault.BadRequest)         // not UTF-8: RFC 6120 section 11.6
)

// errMore says that the token at hand is not complete; it never leaves the package.
var errMore = errors.New("xmltok: more input needed")

func class(name string, code fault.Code) *Error {
	return &Error{Class: name, fault: fault.New(code, "xml.parse", "", name)}
}

func (e *Error) because(text string) *Error {
	return &Error{Class: e.Class, Text: text, fault: fault.New(e.fault.Code, "xml.parse", "", e.Class+": "+text)}
}

// Error renders class and text.
func (e *Error) Error() string {
	if e.Text == "" {
		return e.Class
	}
	return e.Class + ": " + e.Text
}

// Is reports whether target is of the same class.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Class == e.Class && (t.Text == "" || t.Text == e.Text)
}

// Unwrap returns the fault.
func (e *Error) Unwrap() error { return e.fault }
