package xmpp

import (
	"sync"
	"time"

	"muster/internal/fault"
	"muster/internal/jid"
	"muster/router/stanza"
)

// item is one piece of output: a stanza, or bytes that no count includes.
type item struct {
	p   *stanza.Packet
	raw []byte
}

// session is a bound client. It has a stream while the client is connected, and
// with stream management it waits for another one after that.
type session struct {
	run   *run
	user  jid.JID // bare
	full  jid.JID
	bound Session

	input sync.Mutex // held while a stanza of the client is handed to the router

	mu      sync.Mutex
	st      *stream                // nil: before attach, and while the connection is lost
	pending []item                 // to be written
	bytes   int                    // of stanzas in pending, or with stream management of those not acknowledged
	sm      *management            // nil: stream management is off
	given   uint64                 // stanzas of the client that the router was given, or told of
	done    uint64                 // of them: those that it has finished with
	lasting uint64                 // of them: those that another node knows to be finished with
	strays  []*stanza.Packet       // failed to be written just when stream management began
	held    []*stanza.Packet       // what an inactive client need not see yet
	quiet   bool                   // the client says that nobody looks (XEP-0352)
	clean   bool                   // the client ended the stream itself
	over    bool                   // takes no stanzas any more
	ended   bool                   // the router has been told
	cond    stanza.StreamCondition // why the router ended it before it was attached
	text    string
}

func newSession(st *stream) *session {
	return &session{run: st.run, user: st.user}
}

// beginning is how a session begins.
type beginning struct {
	first []byte      // what the client is told before all else
	sm    *management // nil: stream management is off
	quiet bool        // nobody looks at the client
}

// attach begins the session's output with the answer to the bind request.
func (s *session) attach(st *stream, bound Session, b beginning) {
	s.mu.Lock()
	s.bound, s.full, s.st, s.quiet = bound, bound.JID(), st, b.quiet
	if b.sm != nil && !s.over {
		s.manageFrom(b.sm)
	}
	s.pending = append([]item{{raw: b.first}}, s.pending...)
	early, text := s.cond, s.text
	s.kick()
	s.mu.Unlock()
	s.record()
	s.run.srv.counters.sessions.Add(1)
	if early != "" {
		st.end(early, text, nil)
	}
}

// Deliver implements Sink.
func (s *session) Deliver(p *stanza.Packet) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return fault.New(fault.Gone, "xmpp.deliver", s.full.String(), "the session has ended")
	}
	if s.tooMuch(p) {
		s.overflow()
		return fault.New(fault.Overloaded, "xmpp.deliver", s.full.String(), "the client does not read what is sent to it")
	}
	if (s.quiet || s.st == nil && s.bound != nil) && holdable(p) {
		s.hold(p)
		return nil
	}
	s.releaseHeld()
	s.push(p)
	s.kick()
	return nil
}

// tooMuch reports whether p is more than may wait.
func (s *session) tooMuch(p *stanza.Packet) bool {
	live := s.run.srv.o.Live
	count, stanzas, bytes := len(s.pending), setQueueStanzas, setQueueBytes
	if s.sm != nil {
		count = len(s.sm.unacked)
	}
	if resuming := s.bound == nil && s.sm != nil; s.st == nil && !resuming {
		stanzas, bytes = setResumeStanzas, setResumeBytes
	}
	return int64(count+len(s.held)) >= live.Int(stanzas) || int64(s.bytes+p.Size()) > live.Int(bytes)
}

// overflow ends a session whose client does not keep up. What waits for it goes elsewhere.
func (s *session) overflow() {
	s.run.srv.counters.overflows.Add(1)
	s.over = true
	if s.bound == nil {
		s.cond, s.text = stanza.StreamPolicyViolation, unread // attach ends it
		return
	}
	if st := s.st; st != nil {
		go st.end(stanza.StreamPolicyViolation, unread, nil)
		time.AfterFunc(closeTimeout, st.kill)
		if s.sm == nil && st.writing {
			return // only the end of that tells what was not written; then the session ends
		}
	}
	go s.end(false)
}

const unread = "too much waits for you to read it"

// push queues a stanza; it is counted from here on.
func (s *session) push(p *stanza.Packet) {
	s.bytes += p.Size()
	if s.sm != nil {
		s.sm.unacked = append(s.sm.unacked, p)
		if s.st == nil {
			return // sent again after resumption
		}
	}
	s.pending = append(s.pending, item{p: p})
}

// End implements Sink.
func (s *session) End(cond stanza.StreamCondition, text string) {
	s.mu.Lock()
	st := s.st
	attached := s.bound != nil
	if !attached && !s.over {
		s.cond, s.text = cond, text // attach ends it
	}
	s.over = true
	s.mu.Unlock()
	switch {
	case st != nil:
		st.end(cond, text, nil)
	case attached:
		go s.end(false)
	}
}

// reply queues a stanza from the edge itself, after what waits already, and counts the one that it
// answers; unless the session lives on another stream, where the client sends that again.
func (s *session) reply(st *stream, p *stanza.Packet) {
	s.mu.Lock()
	if s.st != st {
		s.mu.Unlock()
		return
	}
	s.given++
	switch {
	case p == nil || s.over:
	case s.tooMuch(p):
		s.overflow()
	default:
		s.releaseHeld()
		s.push(p)
		s.kick()
	}
	s.mu.Unlock()
	s.bound.Skip()
}

// answer refuses a stanza of the client; where no error may be sent it is only counted.
func (s *session) answer(st *stream, p *stanza.Packet, e *stanza.Error) { s.reply(st, p.ErrorReply(e)) }

// sendRaw queues bytes that are no stanza.
func (s *session) sendRaw(b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pushRaw(b)
}

// pushRaw is sendRaw. s.mu is held.
func (s *session) pushRaw(b []byte) {
	switch {
	case s.st == nil || s.over:
	case int64(len(s.pending)) >= s.run.srv.o.Live.Int(setQueueStanzas):
		s.overflow()
	default:
		s.pending = append(s.pending, item{raw: b})
		s.kick()
	}
}

// receive hands a stanza of the client to the router; the client is held up while the router is busy.
func (s *session) receive(st *stream, p *stanza.Packet) {
	s.input.Lock()
	defer s.input.Unlock()
	if !s.count(st) {
		return // resumed on another stream, where the client sends it again; or ended
	}
	err := s.bound.Receive(s.run.ctx, p)
	if err == nil || fault.Is(err, fault.Gone) {
		return
	}
	s.uncount()
	s.answer(st, p, stanza.FromFault(err))
}

// closing notes that the client ends its stream, and acknowledges what it sent (XEP-0198 section 3).
func (s *session) closing(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.st != st {
		return
	}
	s.clean = true
	if s.sm != nil {
		s.pending = append(s.pending, item{raw: s.ack()})
	}
}

// farewell queues the last bytes of the stream. After them the session has ended.
func (s *session) farewell(st *stream, b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.st != st { // the session lives on another stream
		go func() {
			st.write(b)
			st.closeWrite()
		}()
		return
	}
	s.over = true
	st.hangUp = true
	s.pending = append(s.pending, item{raw: b})
	s.kick()
}

// lost is called when a stream's connection is closed: the session waits for resumption or ends.
func (s *session) lost(st *stream) {
	s.mu.Lock()
	if s.st != st {
		s.mu.Unlock()
		return
	}
	s.st = nil
	if !s.over && !s.run.stopping.Load() && s.hibernate() {
		s.mu.Unlock()
		return
	}
	s.over = true
	clean := s.clean
	st.leaving = st.writing // its writing fails now, and ends the session with what it could not write
	leaving := st.leaving
	s.mu.Unlock()
	if !leaving {
		s.end(clean)
	}
}

// end tells the router that the session is over, once, and what was not delivered.
func (s *session) end(clean bool) {
	s.mu.Lock()
	if s.ended || s.bound == nil {
		s.mu.Unlock()
		return
	}
	s.over, s.ended = true, true
	undelivered := s.undelivered()
	sm := s.sm
	switch {
	case sm == nil:
	case s.bound.Moved():
		s.run.resumable.forget(sm)
	default:
		s.run.resumable.expire(sm, s.handled())
	}
	s.pending, s.held, s.strays, s.bytes = nil, nil, nil, 0
	if sm != nil && !sm.until.IsZero() {
		s.run.srv.counters.hibernated.Add(-1)
	}
	s.mu.Unlock()
	s.run.srv.counters.sessions.Add(-1)
	s.bound.End(clean, undelivered)
}

// undelivered returns the stanzas that the client has not confirmed, or without stream management those not written.
func (s *session) undelivered() []*stanza.Packet {
	out := s.strays
	if s.sm != nil {
		out = append(out, s.sm.unacked...)
	} else {
		for _, i := range s.pending {
			if i.p != nil {
				out = append(out, i.p)
			}
		}
	}
	return append(out, s.held...)
}
