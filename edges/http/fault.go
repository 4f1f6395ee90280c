package http

import (
	"encoding/json"
	nethttp "net/http"

	"muster/edges/http/adminapi"
	"muster/internal/fault"
)

// statuses is the one table from fault codes to HTTP statuses (RFC 9110 section 15).
var statuses = map[fault.Code]int{
	fault.Internal:      nethttp.StatusInternalServerError,
	fault.BadRequest:    nethttp.StatusBadRequest,
	fault.Unauthorized:  nethttp.StatusUnauthorized,
	fault.Forbidden:     nethttp.StatusForbidden,
	fault.NotFound:      nethttp.StatusNotFound,
	fault.Conflict:      nethttp.StatusConflict,
	fault.NotAllowed:    nethttp.StatusMethodNotAllowed,
	fault.NotAcceptable: nethttp.StatusUnprocessableEntity,
	fault.TooLarge:      nethttp.StatusRequestEntityTooLarge,
	fault.Unavailable:   nethttp.StatusServiceUnavailable,
	fault.NoQuorum:      nethttp.StatusServiceUnavailable,
	fault.Timeout:       nethttp.StatusGatewayTimeout,
	fault.Overloaded:    nethttp.StatusTooManyRequests,
	fault.NotSupported:  nethttp.StatusNotImplemented,
	fault.Gone:          nethttp.StatusGone,
	fault.Stale:         nethttp.StatusPreconditionFailed,
}

// retryAfter is what a client is told to wait before it repeats a request that may succeed later, in seconds.
const retryAfter = "2"

// Status returns the HTTP status of a fault code.
func Status(c fault.Code) int {
	if s, ok := statuses[c]; ok {
		return s
	}
	return nethttp.StatusInternalServerError
}

// writeError answers with err's public part.
func writeError(w nethttp.ResponseWriter, err error) {
	code := fault.CodeOf(err)
	if code.Retryable() {
		w.Header().Set("Retry-After", retryAfter)
	}
	writeJSON(w, Status(code), adminapi.Error{Code: code.String(), Text: fault.Public(err)})
}

func writeJSON(w nethttp.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(v) // the client went away: nobody is left to tell
}
