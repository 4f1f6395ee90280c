package stanza

import (
	"errors"

	"muster/router/xmltok"
)

// StreamCondition is the defined condition of a stream error (RFC 6120 section 4.9.3).
type StreamCondition string

// The defined conditions.
const (
	StreamBadFormat              StreamCondition = "bad-format"
	StreamBadNamespacePrefix     StreamCondition = "bad-namespace-prefix"
	StreamConflict               StreamCondition = "conflict"
	StreamConnectionTimeout      StreamCondition = "connection-timeout"
	StreamHostGone               StreamCondition = "host-gone"
	StreamHostUnknown            StreamCondition = "host-unknown"
	StreamImproperAddressing     StreamCondition = "improper-addressing"
	StreamInternalServerError    StreamCondition = "internal-server-error"
	StreamInvalidFrom            StreamCondition = "invalid-from"
	StreamInvalidNamespace       StreamCondition = "invalid-namespace"
	StreamInvalidXML             StreamCondition = "invalid-xml"
	StreamNotAuthorized          StreamCondition = "not-authorized"
	StreamNotWellFormed          StreamCondition = "not-well-formed"
	StreamPolicyViolation        StreamCondition = "policy-violation"
	StreamRemoteConnectionFailed StreamCondition = "remote-connection-failed"
	StreamReset                  StreamCondition = "reset"
	StreamResourceConstraint     StreamCondition = "resource-constraint"
	StreamRestrictedXML          StreamCondition = "restricted-xml"
	StreamSeeOtherHost           StreamCondition = "see-other-host"
	StreamSystemShutdown         StreamCondition = "system-shutdown"
	StreamUndefinedCondition     StreamCondition = "undefined-condition"
	StreamUnsupportedEncoding    StreamCondition = "unsupported-encoding"
	StreamUnsupportedFeature     StreamCondition = "unsupported-feature"
	StreamUnsupportedStanzaType  StreamCondition = "unsupported-stanza-type"
	StreamUnsupportedVersion     StreamCondition = "unsupported-version"
)

// StreamError renders <stream:error>…</stream:error> for a stream whose header
// declared the prefix stream. text is for people and may be empty; extra is a
// canonical application-specific condition, or nil. For see-other-host, text is
// the host to go to (RFC 6120 section 4.9.3.19).
func StreamError(cond StreamCondition, text string, extra []byte) []byte {
	b := NewBuilder(NSStream).Open("stream:error", NSStream)
	if cond == StreamSeeOtherHost {
		b.TextElement(string(cond), NSStreams, text)
		text = ""
	} else {
		b.Leaf(string(cond), NSStreams)
	}
	if text != "" {
		b.TextElement("text", NSStreams, text, "xml:lang", "en")
	}
	return b.Raw(extra).Bytes()
}

// StreamConditionOf returns the stream error for an error of the tokenizer
// (RFC 6120 section 4.9.3); internal-server-error for every other error.
func StreamConditionOf(err error) StreamCondition {
	switch {
	case errors.Is(err, xmltok.ErrNotWellFormed), errors.Is(err, xmltok.ErrBadNamespacePrefix):
		return StreamNotWellFormed
	case errors.Is(err, xmltok.ErrRestricted):
		return StreamRestrictedXML
	case errors.Is(err, xmltok.ErrTooLarge):
		return StreamPolicyViolation
	case errors.Is(err, xmltok.ErrBadEncoding):
		return StreamUnsupportedEncoding
	}
	return StreamInternalServerError
}
