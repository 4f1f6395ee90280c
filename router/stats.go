package router

import (
	"sync/atomic"
	"time"

	"muster/router/link"
	"muster/router/stanza"
)

// counters count since the start. Those of stanzas are indexed by stanza.Kind.
type counters struct {
	routed, delivered                                 [4]atomic.Uint64
	bounced, ignored, screened, overloaded, forwarded atomic.Uint64
	stale, panics, overruns, async, badFrames, resets atomic.Uint64
	rowChanges                                        atomic.Uint64
}

// Stats is a snapshot of the router's counters and sizes.
type Stats struct {
	MessagesRouted    uint64 // stanzas that looked for their recipient on this node
	PresenceRouted    uint64
	IQsRouted         uint64
	MessagesDelivered uint64 // copies given to sessions by actors of this node
	PresenceDelivered uint64
	IQsDelivered      uint64
	Bounced           uint64 // errors sent to senders
	Ignored           uint64 // stanzas that RFC 6121 says to forget
	Screened          uint64 // refused by blocking or policy
	Overloaded        uint64 // refused for a full mailbox, link or client
	Forwarded         uint64 // routed again because the home moved
	Stale             uint64 // frames with an outdated epoch
	Panics            uint64 // handlers that panicked
	Overruns          uint64 // actors that gave their sessions up
	Async             uint64 // proposals and other work outside actors
	BadFrames         uint64 // frames from other nodes that made no sense
	LinkResets        uint64
	LinkFramesSent    uint64
	LinkFramesTaken   uint64
	RowChanges        uint64 // presence changes told
	Sessions          int    // of this node
	Attached          int    // to actors of this node
	Actors            int
	Rows              int   // of the hot store
	RowBytes          int64 // presence held in memory
}

// Stats returns the counters since the start and the present sizes.
func (r *Router) Stats() Stats {
	c := &r.count
	sent, taken := r.links.Frames()
	r.remote.mu.RLock()
	attached := len(r.remote.m)
	r.remote.mu.RUnlock()
	return Stats{
		MessagesRouted: c.routed[stanza.KindMessage].Load(), PresenceRouted: c.routed[stanza.KindPresence].Load(), IQsRouted: c.routed[stanza.KindIQ].Load(),
		MessagesDelivered: c.delivered[stanza.KindMessage].Load(), PresenceDelivered: c.delivered[stanza.KindPresence].Load(), IQsDelivered: c.delivered[stanza.KindIQ].Load(),
		Bounced: c.bounced.Load(), Ignored: c.ignored.Load(), Screened: c.screened.Load(), Overloaded: c.overloaded.Load(),
		Forwarded: c.forwarded.Load(), Stale: c.stale.Load(), Panics: c.panics.Load(), Overruns: c.overruns.Load(), Async: c.async.Load(),
		BadFrames: c.badFrames.Load(), LinkResets: c.resets.Load(), LinkFramesSent: sent, LinkFramesTaken: taken, RowChanges: c.rowChanges.Load(),
		Sessions: r.sessions.count(), Attached: attached, Actors: int(r.actors.count.Load()), Rows: r.hot.Count(), RowBytes: r.hot.ResidentBytes(),
	}
}

// Status is the router's state for the health page.
type Status struct {
	Sessions      int         `json:"sessions"`
	Actors        int         `json:"actors"`
	Rows          int         `json:"presence_rows"`
	Isolated      bool        `json:"isolated"`
	IsolatedSince *time.Time  `json:"isolated_since,omitempty"`
	Fenced        bool        `json:"fenced"`
	Incarnation   uint64      `json:"incarnation"`
	Links         []link.Peer `json:"links"`
}

// Status returns sessions, actors, isolation and the state of each link.
func (r *Router) Status() Status {
	st := Status{
		Sessions: r.sessions.count(), Actors: int(r.actors.count.Load()), Rows: r.hot.Count(),
		Fenced: r.fenced.Load() != 0, Incarnation: r.incarnation.Load(), Links: r.links.Peers(),
	}
	if isolated, since := r.Isolated(); isolated {
		st.Isolated, st.IsolatedSince = true, &since
	}
	return st
}

// SessionInfo describes a session of this node for the administrator's lists.
type SessionInfo struct {
	JID       string    `json:"jid"`
	Transport string    `json:"transport"`
	Remote    string    `json:"remote"`
	Home      uint32    `json:"home"`
	Available bool      `json:"available"`
	Since     time.Time `json:"since"`
}

// SessionList returns the sessions of this node, in no order, at most limit.
func (r *Router) SessionList(limit int) []SessionInfo {
	var out []SessionInfo
	for _, s := range r.sessions.all() {
		if len(out) >= limit {
			break
		}
		s.mu.Lock()
		if s.bound == nil && s.state != finished {
			out = append(out, SessionInfo{s.full.String(), s.transport, s.remote, s.home, s.presence != nil, s.since})
		}
		s.mu.Unlock()
	}
	return out
}
