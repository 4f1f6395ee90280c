package hot

import (
	"bytes"
	"encoding/binary"
	"maps"
	"sync"

	"muster/internal/fault"
	"muster/internal/jid"
)

// The frames of a stream of operations.
const (
	frameOps   = 1 // incarnation, operations
	frameBegin = 2 // incarnation: a full set begins
	frameEnd   = 3 // incarnation, sequence: the full set is complete; rows not seen since its begin are gone
)

// A full set is sent in chunks, so that the origin's own writes go on in between.
const (
	chunkRows  = 64
	chunkBytes = 64 << 10
)

// Stream takes the frames for one peer.
type Stream interface {
	// Send queues a frame, in order. It never blocks; false means that the stream has ended.
	Send(frame []byte) bool
	// Wait blocks until the queue has room for a chunk of a full set; false means that the stream has ended.
	Wait() bool
}

// own is what this node writes as an origin.
type own struct {
	mu    sync.Mutex
	inc   uint64
	seq   uint64
	ring  [][]byte // frames of the operations up to seq, oldest first
	bytes int      // of the ring
	peers map[uint32]*subscription
}

type subscription struct{ to Stream }

func (o *own) restart(incarnation uint64) {
	o.inc, o.seq, o.ring, o.bytes = incarnation, 0, nil, 0
	clear(o.peers)
}

// record keeps an operation for peers that reconnect, and sends it to those that listen. The caller holds mu.
func (o *own) record(op *operation) {
	frame := appendOperation(o.header(make([]byte, 0, 128+len(op.row.Presence)+len(op.farewell))), op)
	o.ring = append(o.ring, frame)
	o.bytes += len(frame)
	for len(o.ring) > maxRing || o.bytes > maxRingBytes && len(o.ring) > 1 {
		o.bytes -= len(o.ring[0])
		o.ring[0] = nil
		o.ring = o.ring[1:]
	}
	for node, sub := range o.peers {
		if !sub.to.Send(frame) {
			delete(o.peers, node)
		}
	}
}

func (o *own) header(b []byte) []byte {
	return binary.BigEndian.AppendUint64(append(b, frameOps), o.inc)
}

// Subscribe sends a peer what it lacks of this node's rows, and then every
// operation, until its stream ends. have is the peer's Position of this node.
func (s *Store) Subscribe(peer uint32, have Position, to Stream) {
	s.own.mu.Lock()
	defer s.own.mu.Unlock()
	sub := &subscription{to}
	s.own.peers[peer] = sub
	oldest := s.own.seq - uint64(len(s.own.ring))
	if have.Incarnation == s.own.inc && have.Sequence >= oldest && have.Sequence <= s.own.seq {
		for _, frame := range s.own.ring[have.Sequence-oldest:] {
			to.Send(frame)
		}
		return
	}
	to.Send(binary.BigEndian.AppendUint64([]byte{frameBegin}, s.own.inc))
	go s.fullSet(peer, sub, s.own.inc)
}

// Unsubscribe ends a peer's stream.
func (s *Store) Unsubscribe(peer uint32) {
	s.own.mu.Lock()
	defer s.own.mu.Unlock()
	delete(s.own.peers, peer)
}

// fullSet sends all own rows in chunks. Rows that change meanwhile are sent by record as well; the versions tell which is newer.
func (s *Store) fullSet(peer uint32, sub *subscription, incarnation uint64) {
	var keys []*slot
	s.eachShard(func(sh *shard) { keys = append(keys, sh.of(s.self)...) })
	for len(keys) > 0 {
		if !sub.to.Wait() {
			return
		}
		n := min(chunkRows, len(keys))
		if keys, n = keys[n:], s.sendChunk(peer, sub, incarnation, keys[:n]); n < 0 {
			return
		}
	}
	s.own.mu.Lock()
	defer s.own.mu.Unlock()
	if s.own.peers[peer] == sub && s.own.inc == incarnation {
		end := binary.BigEndian.AppendUint64([]byte{frameEnd}, incarnation)
		sub.to.Send(binary.BigEndian.AppendUint64(end, s.own.seq))
	}
}

// sendChunk sends the present rows of keys; -1 if the subscription has ended.
func (s *Store) sendChunk(peer uint32, sub *subscription, incarnation uint64, keys []*slot) int {
	s.own.mu.Lock()
	defer s.own.mu.Unlock()
	if s.own.peers[peer] != sub || s.own.inc != incarnation {
		return -1
	}
	frame := s.own.header(nil)
	empty := len(frame)
	for _, k := range keys {
		sl := s.shard(k.User).find(k.User, k.Resource, s.self)
		if sl == nil {
			continue
		}
		if r, ok := s.fill(sl); ok {
			frame = appendOperation(frame, &operation{kind: opPut, row: r})
		}
		if len(frame) > chunkBytes {
			sub.to.Send(frame)
			frame = s.own.header(nil)
		}
	}
	if len(frame) > empty {
		sub.to.Send(frame)
	}
	return len(keys)
}

// origins is what this node knows of the others as origins.
type origins struct {
	mu    sync.Mutex
	known map[uint32]*origin
}

type origin struct {
	mu    sync.Mutex // held while a frame is taken in: one at a time per origin
	pos   Position
	floor uint64           // incarnations up to here are down
	seen  map[rowID]uint64 // during a full set: the rows that arrived, with the version of their last operation
	last  uint64           // during a full set: the highest version so far
}

type rowID struct {
	user     jid.JID
	resource string
}

func (o *origins) get(node uint32) *origin {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.known[node] == nil {
		o.known[node] = &origin{}
	}
	return o.known[node]
}

func (o *origins) drop(node uint32, incarnation uint64) {
	or := o.get(node)
	or.mu.Lock()
	defer or.mu.Unlock()
	or.floor = max(or.floor, incarnation)
	if or.pos.Incarnation <= incarnation {
		or.pos, or.seen = Position{}, nil
	}
}

func (o *origins) incarnations() map[uint32]uint64 {
	o.mu.Lock()
	known := maps.Clone(o.known)
	o.mu.Unlock()
	out := map[uint32]uint64{}
	for node, or := range known {
		or.mu.Lock()
		out[node] = or.pos.Incarnation
		or.mu.Unlock()
	}
	return out
}

// Position returns how much of an origin's rows is here: what Subscribe there should continue from.
func (s *Store) Position(node uint32) Position {
	o := s.origins.get(node)
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.pos
}

// Reached reports whether the store has taken in an origin's rows up to a
// position, or whether that no longer matters: the incarnation is over.
func (s *Store) Reached(node uint32, p Position) bool {
	if node == s.self {
		return true
	}
	o := s.origins.get(node)
	o.mu.Lock()
	defer o.mu.Unlock()
	return p.Incarnation <= o.floor || p.Incarnation < o.pos.Incarnation ||
		p.Incarnation == o.pos.Incarnation && p.Sequence <= o.pos.Sequence
}

// Apply takes in a frame of another origin's stream. A malformed frame is a BadRequest fault.
func (s *Store) Apply(node uint32, frame []byte) error {
	r := &reader{b: frame}
	kind, inc := r.byte(), r.uint64()
	if r.bad || node == s.self {
		return fault.New(fault.BadRequest, "hot.apply", "", "malformed frame")
	}
	o := s.origins.get(node)
	o.mu.Lock()
	defer o.mu.Unlock()
	if inc <= o.floor || inc < o.pos.Incarnation {
		return nil // of an incarnation that is down
	}
	switch kind {
	case frameBegin:
		o.pos, o.seen, o.last = Position{Incarnation: inc}, map[rowID]uint64{}, 0
		return nil
	case frameEnd:
		seq := r.uint64()
		if r.bad || o.seen == nil {
			return fault.New(fault.BadRequest, "hot.apply", "", "the end of a full set that did not begin")
		}
		s.complete(node, o, Position{inc, seq})
		return nil
	case frameOps:
		return s.applyOps(node, inc, o, r)
	}
	return fault.New(fault.BadRequest, "hot.apply", "", "unknown frame")
}

func (s *Store) applyOps(node uint32, inc uint64, o *origin, r *reader) error {
	for len(r.b) > 0 {
		op, err := r.operation()
		if err != nil {
			return err
		}
		op.row.Node, op.row.Incarnation = node, inc
		if o.pos.Incarnation < inc {
			o.pos = Position{Incarnation: inc}
		}
		if o.seen != nil {
			id := rowID{op.row.User, op.row.Resource}
			if op.row.Version < o.seen[id] {
				continue // a chunk of the full set that is older than what came already
			}
			o.seen[id] = op.row.Version
		} else {
			o.pos.Sequence = max(o.pos.Sequence, op.row.Version)
		}
		s.applyOne(op, o.pos)
	}
	return nil
}

// applyOne takes in one operation of another origin.
func (s *Store) applyOne(op *operation, pos Position) {
	sh := s.shard(op.row.User)
	sh.emit.Lock()
	defer sh.emit.Unlock()
	b := s.batch()
	defer b.commit()
	b.position(op.row.Node, pos)
	have := sh.find(op.row.User, op.row.Resource, op.row.Node)
	if have != nil && have.Incarnation == op.row.Incarnation && have.Version >= op.row.Version {
		return
	}
	if op.kind == opPut {
		b.put(&op.row)
		if have != nil && have.Incarnation == op.row.Incarnation && have.Session == op.row.Session && have.Since.Equal(op.row.Since) && s.same(have, &op.row) {
			sh.insert(s, &op.row) // only the version is new: nobody need be told
			return
		}
		known := s.succeed(sh, b, &op.row)
		before := sh.insert(s, &op.row)
		if known {
			return
		}
		s.tell(Change{User: op.row.User, Resource: op.row.Resource, Before: s.before(before), After: &op.row})
		return
	}
	if have == nil || have.Session != op.row.Session {
		return
	}
	change, told := s.take(sh, have, op)
	b.remove(&have.Row)
	b.seen(op.row.User, op.row.Since, op.status)
	if told {
		s.tell(change)
	}
}

// same reports whether a row that arrived in a full set says what is known already.
func (s *Store) same(have *slot, r *Row) bool {
	if have.Priority != r.Priority {
		return false
	}
	full, ok := s.fill(have)
	return ok && bytes.Equal(full.Presence, r.Presence)
}

// complete ends a full set: what did not arrive in it is gone.
func (s *Store) complete(node uint32, o *origin, pos Position) {
	seen := o.seen
	o.pos, o.seen = pos, nil
	s.eachShard(func(sh *shard) {
		s.removeIf(sh, node, func(sl *slot) bool {
			_, arrived := seen[rowID{sl.User, sl.Resource}]
			return !arrived || sl.Incarnation < pos.Incarnation
		})
	})
	b := s.batch()
	b.position(node, pos)
	b.commit()
}
