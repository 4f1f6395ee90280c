package main

import (
	"errors"

	"muster/internal/fault"
)

// exitStatuses is the one table from fault codes to exit statuses. Scripts rely on it: append only.
var exitStatuses = map[fault.Code]int{
	fault.Internal:      1,
	fault.BadRequest:    2,
	fault.Unauthorized:  3,
	fault.Forbidden:     4,
	fault.NotFound:      5,
	fault.Conflict:      6,
	fault.NotAllowed:    7,
	fault.NotAcceptable: 8,
	fault.TooLarge:      9,
	fault.Unavailable:   10,
	fault.NoQuorum:      11,
	fault.Timeout:       12,
	fault.Overloaded:    13,
	fault.NotSupported:  14,
	fault.Gone:          15,
	fault.Stale:         16,
}

// Statuses that are not a fault's.
const (
	usageStatus  = 2  // the command line is wrong, as BadRequest
	differStatus = 20 // a comparison found differences
	partStatus   = 21 // an import left some lines out
)

// outcome is an error that has a status of its own.
type outcome struct {
	status int
	text   string
}

// Error implements error.
func (o *outcome) Error() string { return o.text }

// exitStatus returns the process's exit status for err.
func exitStatus(err error) int {
	var o *outcome
	switch {
	case err == nil:
		return 0
	case errors.As(err, &o):
		return o.status
	}
	if s, ok := exitStatuses[fault.CodeOf(err)]; ok {
		return s
	}
	return exitStatuses[fault.Internal]
}
