package hot

import (
	"time"

	"muster/internal/fault"
	"muster/internal/jid"
)

// Put writes a row of this node: it sets Node, Incarnation and Version. It
// returns the operation's position, or TooLarge for a presence stanza beyond MaxPresence.
func (s *Store) Put(r Row) (Position, error) {
	if len(r.Presence) > MaxPresence {
		return Position{}, fault.New(fault.TooLarge, "hot.put", r.User.String(), "the presence is too large")
	}
	sh := s.shard(r.User)
	sh.emit.Lock()
	defer sh.emit.Unlock()

	s.own.mu.Lock()
	s.own.seq++
	r.Node, r.Incarnation, r.Version = s.self, s.own.inc, s.own.seq
	b := s.batch()
	known := s.succeed(sh, b, &r)
	before := sh.insert(s, &r)
	s.own.record(&operation{kind: opPut, row: r})
	s.own.mu.Unlock()

	b.put(&r)
	b.commit()
	if known {
		return Position{r.Incarnation, r.Version}, nil
	}
	s.tell(Change{User: r.User, Resource: r.Resource, Before: s.before(before), After: &r})
	return Position{r.Incarnation, r.Version}, nil
}

// Linger makes the row of a session of this node one that lingers. Watchers learn nothing of it.
func (s *Store) Linger(user jid.JID, resource string, session uint64) {
	sh := s.shard(user)
	sh.emit.Lock()
	defer sh.emit.Unlock()
	s.own.mu.Lock()
	defer s.own.mu.Unlock()
	sl := sh.find(user, resource, s.self)
	if sl == nil || sl.Session != session || sl.Lingers {
		return
	}
	r, ok := s.fill(sl)
	if !ok {
		return
	}
	s.own.seq++
	r.Lingers, r.Version = true, s.own.seq
	sh.insert(s, &r)
	s.own.record(&operation{kind: opPut, row: r})
	b := s.batch()
	b.put(&r)
	b.commit()
}

// Delete removes the row of a session of this node, if it is there. farewell
// is the client's own unavailable presence and status its text; both may be
// empty. It returns the operation's position; the zero one if there was no such row.
func (s *Store) Delete(user jid.JID, resource string, session uint64, farewell []byte, status string) Position {
	sh := s.shard(user)
	sh.emit.Lock()
	defer sh.emit.Unlock()

	s.own.mu.Lock()
	victim := sh.find(user, resource, s.self)
	if victim == nil || victim.Session != session {
		s.own.mu.Unlock()
		return Position{}
	}
	s.own.seq++
	at := Position{s.own.inc, s.own.seq}
	op := &operation{kind: opDelete, farewell: farewell, status: status,
		row: Row{User: user, Resource: resource, Session: session, Version: s.own.seq, Since: time.Now()}}
	change, told := s.take(sh, victim, op)
	s.own.record(op)
	s.own.mu.Unlock()

	b := s.batch()
	b.remove(&victim.Row)
	b.seen(user, op.row.Since, status)
	b.commit()
	if told {
		s.tell(change)
	}
	return at
}

// DropNode removes all rows that node wrote up to incarnation, and keeps late
// ones out. Those that linger stay for that long, so that nobody is told of an
// end while their clients go on at other nodes, whose rows take their place.
func (s *Store) DropNode(node uint32, incarnation uint64, linger time.Duration) {
	s.origins.drop(node, incarnation)
	left := false
	s.eachShard(func(sh *shard) {
		s.removeIf(sh, node, func(sl *slot) bool {
			if sl.Incarnation > incarnation {
				return false
			}
			stays := sl.Lingers && linger > 0
			left = left || stays
			return !stays
		})
	})
	if left {
		time.AfterFunc(linger, func() {
			s.eachShard(func(sh *shard) {
				s.removeIf(sh, node, func(sl *slot) bool { return sl.Incarnation <= incarnation })
			})
		})
	}
}

// Retain removes the rows of every other origin for which alive is false; for the start, before links bring new ones.
func (s *Store) Retain(alive func(node uint32, incarnation uint64) bool) {
	for node, inc := range s.origins.incarnations() {
		if node != s.self && !alive(node, inc) {
			s.DropNode(node, inc, 0)
		}
	}
}

// removeIf removes one origin's rows from a shard, as if their sessions had ended just now.
func (s *Store) removeIf(sh *shard, node uint32, cond func(*slot) bool) {
	sh.emit.Lock()
	defer sh.emit.Unlock()
	var changes []Change
	b := s.batch()
	now := time.Now()
	for _, sl := range sh.of(node) {
		if !cond(sl) {
			continue
		}
		op := &operation{kind: opDelete, row: Row{Since: now}}
		if change, told := s.take(sh, sl, op); told {
			changes = append(changes, change)
		}
		b.remove(&sl.Row)
		b.seen(sl.User, now, "")
	}
	b.commit()
	for _, c := range changes {
		s.tell(c)
	}
}

// succeed lets the row of a session take the place of the one that it had at
// another node. known: it says what watchers know already. The caller holds sh.emit.
func (s *Store) succeed(sh *shard, b batch, r *Row) (known bool) {
	for _, sl := range sh.sessionRows(r) {
		known = known || s.same(sl, r)
		sh.mu.Lock()
		sh.unlink(s, sl)
		sh.mu.Unlock()
		b.remove(&sl.Row)
	}
	return known
}

// sessionRows returns the visible rows of r's session at other nodes.
func (sh *shard) sessionRows(r *Row) (out []*slot) {
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	for _, sl := range sh.users[r.User] {
		if sl.Session == r.Session && sl.Resource == r.Resource && sl.Node != r.Node && visible(sh.users[r.User], r.Resource) == sl {
			out = append(out, sl)
		}
	}
	return out
}

// take removes a slot from the index and returns the change, if the row was the visible one. The caller holds sh.emit.
func (s *Store) take(sh *shard, victim *slot, op *operation) (Change, bool) {
	full, _ := s.fill(victim)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	was := visible(sh.users[victim.User], victim.Resource)
	sh.unlink(s, victim)
	if was != victim {
		return Change{}, false
	}
	c := Change{User: victim.User, Resource: victim.Resource, Before: &full, Farewell: op.farewell}
	if full.User.IsZero() { // its stanza could not be read
		c.Before = &victim.Row
	}
	if now := visible(sh.users[victim.User], victim.Resource); now != nil {
		c.After, c.Farewell = &now.Row, nil
	} else {
		sh.bury(tombstone{victim.User, Gone{victim.Resource, op.row.Since}})
	}
	return c, true
}

// insert puts a row into the index and returns the slot that was visible before.
func (sh *shard) insert(s *Store, r *Row) (before *slot) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	before = visible(sh.users[r.User], r.Resource)
	for _, sl := range sh.users[r.User] {
		if sl.Node == r.Node && sl.Resource == r.Resource {
			sh.unlink(s, sl)
			break
		}
	}
	sl := &slot{Row: *r, size: len(r.Presence)}
	if s.resident.Load()+int64(sl.size) > s.limit {
		sl.Presence = nil
	} else {
		s.resident.Add(int64(sl.size))
	}
	s.count.Add(1)
	sh.users[r.User] = append(sh.users[r.User], sl)
	return before
}

// unlink removes a slot from the map. The caller holds mu.
func (sh *shard) unlink(s *Store, victim *slot) {
	rows := sh.users[victim.User]
	for i, sl := range rows {
		if sl != victim {
			continue
		}
		s.count.Add(-1)
		if sl.Presence != nil {
			s.resident.Add(-int64(sl.size))
		}
		rest := append(append(make([]*slot, 0, len(rows)), rows[:i]...), rows[i+1:]...)
		if len(rest) == 0 {
			delete(sh.users, victim.User)
		} else {
			sh.users[victim.User] = rest
		}
		return
	}
}

func (sh *shard) bury(t tombstone) {
	if len(sh.gone) == maxRecent {
		sh.gone = append(sh.gone[:0], sh.gone[maxRecent/8:]...)
	}
	old := 0
	for old < len(sh.gone) && t.At.Sub(sh.gone[old].At) > RecentFor {
		old++
	}
	if old == len(sh.gone) {
		sh.gone = nil // gives the memory of a mass removal back
	}
	sh.gone = append(sh.gone[min(old, len(sh.gone)):], t)
}

// find returns the slot of one origin for a resource, or nil.
func (sh *shard) find(user jid.JID, resource string, node uint32) *slot {
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	for _, sl := range sh.users[user] {
		if sl.Node == node && sl.Resource == resource {
			return sl
		}
	}
	return nil
}

// before returns the row of a slot for a Change. Its stanza is only there if it was in memory.
func (s *Store) before(sl *slot) *Row {
	if sl == nil {
		return nil
	}
	return &sl.Row
}

func (s *Store) tell(c Change) {
	for _, fn := range s.watchers {
		fn(c)
	}
}
