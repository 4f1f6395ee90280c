package xmpp

import (
	"maps"
	"sync"
	"sync/atomic"

	"muster/router/stanza"
)

// counters count since the server was made; they survive a restart of the service.
type counters struct {
	accepted, tlsFailed, panics, throttled, overflows atomic.Int64
	logins, tokenLogins, loginsFailed, lockedOut      atomic.Int64
	tokensIssued                                      atomic.Int64
	registrations, registrationsRefused               atomic.Int64
	sessions, hibernated                              atomic.Int64
	resumed, resumeFailed, resumePut                  atomic.Int64
	stanzasIn, stanzasOut                             atomic.Int64

	mu      sync.Mutex
	refused map[string]int64
	errors  map[string]int64
}

func (c *counters) count(m *map[string]int64, key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if *m == nil {
		*m = map[string]int64{}
	}
	(*m)[key]++
}

func (c *counters) refuse(why refusal)                      { c.count(&c.refused, string(why)) }
func (c *counters) streamError(cond stanza.StreamCondition) { c.count(&c.errors, string(cond)) }

// Metrics is a snapshot of the server's counters; those without "now" count since the process began.
type Metrics struct {
	Connections     int64            `json:"connections"`     // now
	Unauthenticated int64            `json:"unauthenticated"` // connections now that have not logged in
	LoginsWaiting   int64            `json:"loginsWaiting"`   // connections now that wait for their TLS handshake
	Sessions        int64            `json:"sessions"`        // bound now, lost connections included
	Hibernated      int64            `json:"hibernated"`      // sessions now whose connection is lost
	Accepted        int64            `json:"accepted"`
	Refused         map[string]int64 `json:"refused"` // connections, by limit
	TLSFailed       int64            `json:"tlsFailed"`
	Logins          int64            `json:"logins"`
	TokenLogins     int64            `json:"tokenLogins"`  // of those, by a token
	TokensIssued    int64            `json:"tokensIssued"` // to clients, renewals included
	LoginsFailed    int64            `json:"loginsFailed"`
	LockedOut       int64            `json:"lockedOut"`       // logins not tried because of lock-out
	Registrations   int64            `json:"registrations"`   // accounts that clients made
	RegisterRefused int64            `json:"registerRefused"` // accounts that clients asked for in vain
	Resumed         int64            `json:"resumed"`
	ResumeFailed    int64            `json:"resumeFailed"`
	ResumePutOff    int64            `json:"resumePutOff"` // resumptions whose client was told to try again
	StanzasIn       int64            `json:"stanzasIn"`
	StanzasOut      int64            `json:"stanzasOut"`
	BytesIn         int64            `json:"bytesIn"`  // on the wire, TLS included
	BytesOut        int64            `json:"bytesOut"` // likewise
	Throttled       int64            `json:"throttled"`
	Overflows       int64            `json:"overflows"` // sessions ended because their client did not read
	Panics          int64            `json:"panics"`
	StreamErrors    map[string]int64 `json:"streamErrors"` // sent, by condition
}

// carried returns the bytes of all connections since the server was made.
func (s *Server) carried() (in, out int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil {
		return 0, 0
	}
	in, out = s.last.streams.carried()
	return s.earlier.in + in, s.earlier.out + out
}

// Metrics returns the counters now.
func (s *Server) Metrics() Metrics {
	c := &s.counters
	m := Metrics{
		Sessions: c.sessions.Load(), Hibernated: c.hibernated.Load(), Accepted: c.accepted.Load(),
		TLSFailed: c.tlsFailed.Load(), Logins: c.logins.Load(), TokenLogins: c.tokenLogins.Load(), TokensIssued: c.tokensIssued.Load(),
		LoginsFailed: c.loginsFailed.Load(), LockedOut: c.lockedOut.Load(),
		Registrations: c.registrations.Load(), RegisterRefused: c.registrationsRefused.Load(),
		Resumed: c.resumed.Load(), ResumeFailed: c.resumeFailed.Load(), ResumePutOff: c.resumePut.Load(), StanzasIn: c.stanzasIn.Load(), StanzasOut: c.stanzasOut.Load(),
		Throttled: c.throttled.Load(), Overflows: c.overflows.Load(), Panics: c.panics.Load(),
	}
	m.BytesIn, m.BytesOut = s.carried()
	if r := s.running(); r != nil {
		m.Connections, m.Unauthenticated = int64(r.streams.count()), int64(r.gate.unauthenticated())
		m.LoginsWaiting = int64(r.turns.waitingNow())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	m.Refused, m.StreamErrors = maps.Clone(c.refused), maps.Clone(c.errors)
	return m
}
