package xmpp

import (
	"sync"
	"time"

	"muster/internal/jid"
)

// maxStale is how many ended sessions' counts are remembered, so that their clients learn what was handled; about 3 MiB.
const maxStale = 20_000

// resumables finds sessions by resumption id.
type resumables struct {
	mu    sync.Mutex
	live  map[string]*session
	stale map[string]uint32 // what was handled of sessions that have ended
	order []string          // of stale, the oldest first
}

func newResumables() *resumables {
	return &resumables{live: map[string]*session{}, stale: map[string]uint32{}}
}

// add makes a session resumable. Its mu is held.
func (r *resumables) add(s *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.live[s.sm.id] = s
}

// findSession returns the user's session of that id on this node, or else, if it is known, what was handled of one that has ended.
func (r *run) findSession(id string, user jid.JID) (*session, *uint32) {
	if _, _, ok := parseResumeID(r.srv.o.Key, id, user); !ok {
		return nil, nil
	}
	r.resumable.mu.Lock()
	defer r.resumable.mu.Unlock()
	if s := r.resumable.live[id]; s != nil {
		return s, nil
	}
	if h, ok := r.resumable.stale[id]; ok {
		return nil, &h
	}
	return nil, nil
}

// expire takes a session that has ended out, and remembers its count. The session's mu is held.
func (r *resumables) expire(sm *management, handled uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.live[sm.id] == nil {
		return
	}
	delete(r.live, sm.id)
	if len(r.order) >= maxStale {
		delete(r.stale, r.order[0])
		r.order = r.order[1:]
	}
	r.stale[sm.id] = handled
	r.order = append(r.order, sm.id)
}

// forget takes a session out that goes on at another node: only the cluster knows what becomes of it.
func (r *resumables) forget(sm *management) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.live, sm.id)
}

// all returns the resumable sessions.
func (r *resumables) all() []*session {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*session, 0, len(r.live))
	for _, s := range r.live {
		out = append(out, s)
	}
	return out
}

// expired reports whether the session waited long enough for its client.
func (s *session) expired(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.st == nil && s.sm != nil && !s.sm.until.IsZero() && now.After(s.sm.until)
}
