package router

import (
	"muster/internal/fault"
	"muster/router/hot"
	"muster/router/stanza"
)

// Incarnation implements link.Handler.
func (r *Router) Incarnation() uint64 { return r.incarnation.Load() }

// Hello implements link.Handler.
func (r *Router) Hello(peer uint32) []byte {
	return appendGreeting(nil, r.incarnation.Load(), r.hot.Position(peer))
}

// Admit implements link.Handler: a node that the log knows as down, or in a later incarnation, must start anew first.
func (r *Router) Admit(peer uint32, incarnation uint64) bool {
	n, ok := r.homes.node(peer)
	return ok && (incarnation > n.Incarnation || incarnation == n.Incarnation && n.Up)
}

// Up implements link.Handler: a connection stands. On a new channel the peer needs this node's rows.
func (r *Router) Up(peer uint32, extra []byte, fresh bool) {
	incarnation, have, err := parseGreeting(extra)
	if err != nil {
		return
	}
	r.greeted.note(peer, incarnation)
	if !fresh {
		return
	}
	if stream := r.links.Stream(peer, kindHot); stream != nil {
		r.hot.Subscribe(peer, have, stream)
	}
}

// Frame implements link.Handler. A frame that makes no sense is counted and
// dropped: it can only come from a node of another release, and must not stop the others.
func (r *Router) Frame(peer uint32, kind byte, payload []byte) {
	var err error
	switch kind {
	case kindHot:
		err = r.hot.Apply(peer, payload)
		r.order.reached(r, peer)
	case kindRoute:
		err = r.takeRoute(payload)
	case kindAttach:
		err = r.takeAttach(peer, payload)
	case kindEndUser:
		r.endUser(payload)
	case kindReturn:
		s := &scanner{b: payload}
		if user := s.user(); s.err() == nil {
			r.returned(user, s.b)
		}
	case kindPublished:
		err = r.takePublished(peer, payload)
	case kindResumed:
		err = r.takeResumed(payload)
	case kindToken:
		err = r.takeToken(payload)
	case kindMore:
		err = r.takeMore(payload)
	case kindHeard:
		err = r.takeHeard(peer, payload)
	case kindInput, kindUndelivered, kindUnbind:
		err = r.fromSession(peer, kind, payload)
	case kindAttached, kindDeliver, kindCredit, kindPublish, kindMark, kindEnd, kindRelease:
		err = r.fromHome(peer, kind, payload)
	default:
		err = fault.New(fault.NotSupported, "router.frame", "", "unknown frame")
	}
	if err != nil {
		r.count.badFrames.Add(1)
		r.logger.Warn("frame_refused", "peer", peer, "kind", kind, "error", err)
	}
}

func (r *Router) takeRoute(b []byte) error {
	epoch, hops, after, p, err := parseRoute(b)
	if err != nil {
		return err
	}
	r.order.take(r, after, func() { r.takeStanza(p, hops, epoch, after.stored) })
	return nil
}

func (r *Router) takeStanza(p *stanza.Packet, hops uint8, epoch, stored uint64) {
	if p.To.Local == "" || !r.IsLocalDomain(p.To.Domain) {
		r.forward(p, hops, stored)
		return
	}
	if epoch <= r.applied.Load() {
		if _, where := r.locate(p.To.Bare()); where != here {
			r.count.stale.Add(1)
			r.forward(p, hops, stored)
			return
		}
	}
	r.arrive(p.To.Bare(), p, hops, epoch, stored, nil)
}

func (r *Router) takeAttach(peer uint32, b []byte) error {
	epoch, req, err := parseAttachment(b)
	if err != nil {
		return err
	}
	req.node = peer
	r.attachHere(req, epoch)
	return nil
}

// fromSession takes what another node sends for a session of its own that is
// attached here. A node from which the session was resumed elsewhere may not know
// that yet, or its frames come late: they must not touch the session as it is now,
// which has its client's word for all that was not finished with.
func (r *Router) fromSession(peer uint32, kind byte, b []byte) error {
	s := &scanner{b: b}
	id := s.uint64()
	at := r.remote.get(id)
	moved := at != nil && at.Node != peer
	if moved {
		at = nil
	}
	e := event{kind: eventInput, at: at}
	switch kind {
	case kindUnbind:
		e.end = &unbinding{clean: s.byte() == 1}
		if len(s.b) > 0 {
			e.end.elsewhere, e.end.done = true, s.uint64()
		}
		if err := s.err(); err != nil {
			return err
		}
	case kindInput:
		if e.seq = s.uint64(); len(s.b) == 0 && !s.bad {
			break // answered by the edge
		}
		fallthrough
	default:
		p, err := s.packet()
		if err != nil {
			return err
		}
		e.p = p
	}
	switch {
	case kind == kindUnbind && moved:
		_ = r.hand(peer, kindRelease, appendUint64(nil, id), true)
	case kind == kindUndelivered && moved && e.p.Number != 0: // it was offered where the session is now
	case kind == kindUndelivered && at == nil:
		r.giveBack(e.p.To.Bare(), e.p)
	case kind == kindUndelivered:
		at.actor.finish(func(a *Actor) { a.later(at, e.p) })
	case at != nil:
		at.actor.post(e)
	}
	return nil
}

// later takes up an undelivered stanza when the session's input before it is handled.
func (a *Actor) later(at *Attached, p *stanza.Packet) {
	at.missed = append(at.missed, p)
}

// fromHome takes what the home of a session of this node sends.
func (r *Router) fromHome(peer uint32, kind byte, b []byte) error {
	sc := &scanner{b: b}
	id := sc.uint64()
	s := r.sessions.get(id)
	if kind == kindDeliver {
		p, err := sc.packet()
		switch {
		case err != nil:
			return err
		case s != nil && p.Kind == stanza.KindMessage && p.Type == stanza.TypeError && s.isAttachedElsewhere(peer):
			// what that home refused, the present one was given as well
		case s != nil:
			s.deliver(p)
		case p.To.Local != "":
			r.giveBack(p.To.Bare(), p)
		}
		return nil
	}
	if s == nil {
		return sc.err()
	}
	switch kind {
	case kindAttached:
		return s.takeAnswer(peer, sc)
	case kindCredit:
		if n, lasting := sc.uint64(), sc.uint64(); !sc.bad && !s.isAttachedElsewhere(peer) {
			s.credit(n, lasting)
		}
	case kindPublish:
		return s.takePublish(peer, sc)
	case kindMark:
		if key, value := sc.text(), sc.text(); !sc.bad {
			s.mark(key, value)
		}
	case kindEnd:
		switch cond, text := sc.text(), sc.text(); {
		case sc.bad:
		case cond == "":
			s.resumedElsewhere()
		default:
			s.terminate(stanza.StreamCondition(cond), text)
		}
	case kindRelease:
		if s.isHome(peer) {
			s.finish()
		}
	}
	return sc.err()
}

// isHome reports whether the session is attached to that node.
func (s *Session) isHome(node uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.home == node
}

// isAttachedElsewhere reports whether another home than that node has the
// session and all its input that was not finished with.
func (s *Session) isAttachedElsewhere(node uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state == attached && s.home != node
}

func (s *Session) takeAnswer(peer uint32, sc *scanner) error {
	attempt, code := uint32(sc.uint64()), fault.Code(sc.byte())
	done, text := sc.uint64(), sc.text()
	if err := sc.err(); err != nil {
		return err
	}
	if attempt == 0 {
		s.letGo(peer, fault.New(code, "session.attach", s.user.String(), text))
	} else if code != 0 {
		var err error = fault.New(code, "session.attach", s.user.String(), text)
		if done > 0 {
			err = lapsed{err, done - 1}
		}
		s.notAttached(attempt, err)
	} else {
		s.attachedTo(attempt, nil, text, done)
	}
	return nil
}

// takePublish writes the row and confirms it to the home.
func (s *Session) takePublish(home uint32, sc *scanner) error {
	n := sc.uint64()
	if sc.bad {
		return sc.err()
	}
	var p *stanza.Packet
	if len(sc.b) > 0 {
		var err error
		if p, err = sc.packet(); err != nil {
			return err
		}
	}
	if !s.isHome(home) {
		return nil // the next home has the input that this came from
	}
	row, late := s.outdated(n)
	if !late {
		row = s.publish(n, p)
	}
	b := appendUint64(appendUint64(nil, s.id), n)
	_ = s.r.links.Send(home, kindPublished, appendUint64(appendUint64(b, row.Incarnation), row.Sequence), true)
	return nil
}

func (r *Router) takePublished(peer uint32, b []byte) error {
	s := &scanner{b: b}
	at, n := r.remote.get(s.uint64()), s.uint64()
	row := hot.Position{Incarnation: s.uint64(), Sequence: s.uint64()}
	if at != nil && at.Node == peer && !s.bad {
		at.actor.finish(func(a *Actor) {
			if !a.moved {
				a.confirm(at, n, row)
			}
		})
	}
	return s.err()
}
