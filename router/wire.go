package router

import (
	"encoding/binary"
	"sort"
	"time"

	"muster/internal/fault"
	"muster/internal/jid"
	"muster/router/hot"
	"muster/router/link"
	"muster/router/stanza"
)

// The frames between routers. Numbers are for ever.
const (
	kindHot         = link.FirstKind + iota // hot store: operations of the sender's rows
	kindRoute                               // a stanza for a user of the receiver: epoch, hops, dependency, packet
	kindAttach                              // session → home: take this session
	kindInput                               // session → home: id, number, packet
	kindUndelivered                         // session → home: id, packet that the client did not get
	kindUnbind                              // session → home: id, clean; if another home took leave of it: input finished there
	kindReturn                              // session's node → home: user, packet for a session that is no more
	kindAttached                            // home → session: id, attempt, fault code, done, resource or text
	kindDeliver                             // home → session: id, packet
	kindCredit                              // home → session: id, input finished
	kindPublish                             // home → session: id, count, packet or nothing
	kindMark                                // home → session: id, key, value
	kindEnd                                 // home → session: id, condition, text
	kindRelease                             // home → session: id: the home is done with it
	kindEndUser                             // anybody → home: user, resource, condition, text
	kindPublished                           // session → home: id, count, position of the row
	kindResumed                             // home → session: id, attempt, what a resumed session is made of
	kindToken                               // home → home: session and input of a kept message that follows what was sent before
	kindMore                                // session → home: id: its client has confirmed kept messages
	kindHeard                               // session → home: id, packet: its client has that error
)

func appendUint64(b []byte, v uint64) []byte { return binary.BigEndian.AppendUint64(b, v) }

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// scanner takes a payload apart. After a short read bad is set and all further values are zero.
type scanner struct {
	b   []byte
	bad bool
}

func (s *scanner) take(n uint64) []byte {
	if s.bad || n > uint64(len(s.b)) {
		s.bad = true
		return nil
	}
	out := s.b[:n]
	s.b = s.b[n:]
	return out
}

func (s *scanner) byte() byte {
	if b := s.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (s *scanner) uint64() uint64 {
	if b := s.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (s *scanner) text() string {
	return string(s.take(s.uvarint()))
}

func (s *scanner) uvarint() uint64 {
	v, n := binary.Uvarint(s.b)
	if n <= 0 || s.bad {
		s.bad = true
		return 0
	}
	s.take(uint64(n))
	return v
}

// refusals reads the errors that a session's client is not known to have.
func (s *scanner) refusals() (ps []*stanza.Packet, err error) {
	n := s.uvarint()
	if n > maxRefusals {
		s.bad = true
	}
	for ; n > 0 && !s.bad; n-- {
		p, err := stanza.DecodeBinary([]byte(s.text()))
		if err != nil {
			return nil, err
		}
		ps = append(ps, p)
	}
	return ps, s.err()
}

// packet reads the rest as a packet.
func (s *scanner) packet() (*stanza.Packet, error) {
	if s.bad {
		return nil, s.err()
	}
	return stanza.DecodeBinary(s.b)
}

func (s *scanner) user() jid.JID {
	j, err := jid.Parse(s.text())
	if err != nil || !j.IsBare() || j.Local == "" {
		s.bad = true
	}
	return j
}

func (s *scanner) err() error {
	if s.bad {
		return fault.New(fault.BadRequest, "router.frame", "", "malformed frame")
	}
	return nil
}

// dependency is what a stanza must not overtake: the last presence and the last
// kept message of the session that sent it, and a change that it tells of.
type dependency struct {
	node uint32 // the row's origin; 0: none
	row  hot.Position

	stored uint64 // number of a kept message that it must not overtake either; 0: none
	change uint64 // index in the control log, which on a link is part of the epoch; 0: none
}

func appendRoute(epoch uint64, hops uint8, after dependency, p *stanza.Packet) []byte {
	b := appendUint64(make([]byte, 0, 41+p.Size()), epoch)
	b = binary.BigEndian.AppendUint32(appendUint64(append(b, hops), after.stored), after.node)
	if after.node != 0 {
		b = appendUint64(appendUint64(b, after.row.Incarnation), after.row.Sequence)
	}
	return stanza.AppendBinary(b, p)
}

func parseRoute(b []byte) (epoch uint64, hops uint8, after dependency, p *stanza.Packet, err error) {
	s := &scanner{b: b}
	epoch, hops, after.stored = s.uint64(), s.byte(), s.uint64()
	if node := s.take(4); node != nil {
		after.node = binary.BigEndian.Uint32(node)
	}
	if after.node != 0 {
		after.row = hot.Position{Incarnation: s.uint64(), Sequence: s.uint64()}
	}
	p, err = s.packet()
	return epoch, hops, after, p, err
}

// The flags of an attachment.
const (
	flagReattached = 1 << iota
	flagResume
)

func appendAttachment(b []byte, epoch uint64, a *attachment) []byte {
	b = appendUint64(appendUint64(b, epoch), a.id)
	b = appendUint64(appendUint64(b, uint64(a.attempt)), a.incarnation)
	b = appendText(appendText(b, a.user.String()), a.resource)
	b = appendText(appendText(b, a.transport), a.remote)
	flags := byte(0)
	if a.reattached {
		flags |= flagReattached
	}
	if a.resume != nil {
		flags |= flagResume
	}
	b = appendUint64(appendUint64(appendUint64(append(b, flags), a.claims), a.done), a.sent)
	b = appendUint64(appendUint64(appendUint64(b, a.published), a.offered), uint64(a.age))
	b = appendUint64(appendUint64(b, a.row.Incarnation), a.row.Sequence)
	var presence []byte
	if a.presence != nil {
		presence = stanza.AppendBinary(nil, a.presence)
	}
	b = appendText(b, string(presence))
	b = binary.AppendUvarint(b, uint64(len(a.refusals)))
	for _, p := range a.refusals {
		b = appendText(b, string(stanza.AppendBinary(nil, p)))
	}
	if a.resume != nil {
		b = appendText(b, string(a.resume))
	}
	keys := make([]string, 0, len(a.marks))
	for k := range a.marks {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		b = appendText(appendText(b, k), a.marks[k])
	}
	return b
}

func parseAttachment(b []byte) (epoch uint64, a *attachment, err error) {
	s := &scanner{b: b}
	epoch = s.uint64()
	a = &attachment{id: s.uint64(), attempt: uint32(s.uint64()), incarnation: s.uint64(), user: s.user()}
	a.resource, a.transport, a.remote = s.text(), s.text(), s.text()
	flags := s.byte()
	a.reattached = flags&flagReattached != 0
	a.claims, a.done, a.sent = s.uint64(), s.uint64(), s.uint64()
	a.published, a.offered, a.age = s.uint64(), s.uint64(), time.Duration(s.uint64())
	a.row = hot.Position{Incarnation: s.uint64(), Sequence: s.uint64()}
	presence := s.text()
	if a.refusals, err = s.refusals(); err != nil {
		return 0, nil, err
	}
	if flags&flagResume != 0 {
		a.resume = []byte(s.text())
	}
	var m marks
	for len(s.b) > 0 && !s.bad {
		k, v := s.text(), s.text()
		if err := m.set(k, v); err != nil {
			return 0, nil, err
		}
	}
	a.marks = m.m
	if err := s.err(); err != nil {
		return 0, nil, err
	}
	if _, err := jid.New(a.user.Local, a.user.Domain, a.resource); err != nil || (a.resource == "") != (a.resume != nil) {
		return 0, nil, fault.New(fault.BadRequest, "router.frame", "", "malformed resource")
	}
	if presence != "" {
		a.presence, err = stanza.DecodeBinary([]byte(presence))
	}
	return epoch, a, err
}

// appendGreeting is what a node tells at the start of a connection: what it has of the peer's rows.
func appendGreeting(b []byte, incarnation uint64, have hot.Position) []byte {
	return appendUint64(appendUint64(appendUint64(b, incarnation), have.Incarnation), have.Sequence)
}

func parseGreeting(b []byte) (incarnation uint64, have hot.Position, err error) {
	s := &scanner{b: b}
	incarnation = s.uint64()
	have = hot.Position{Incarnation: s.uint64(), Sequence: s.uint64()}
	return incarnation, have, s.err()
}
