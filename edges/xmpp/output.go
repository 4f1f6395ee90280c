package xmpp

import (
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"muster/router/stanza"
)

// Sizes of writing.
const (
	writeSize  = 16 << 10 // bytes gathered for one write: one TLS record
	keepBuffer = 64 << 10 // a larger buffer, grown for a large stanza, is not kept
	keepItems  = 4        // slots of an idle session's queue that are kept
)

var writeBuffers = sync.Pool{New: func() any { b := make([]byte, 0, 2<<10); return &b }}

// kick lets a goroutine write what is pending, unless one does. s.mu is held.
func (s *session) kick() {
	st := s.st
	if st == nil || st.writing || len(s.pending) == 0 {
		return
	}
	st.writing = true
	s.run.srv.workers.run(st, (*stream).writeOut)
}

// writeOut writes the session's queue until it is empty.
func (st *stream) writeOut() {
	defer st.containWriter()
	buf := writeBuffers.Get().(*[]byte)
	defer func() {
		if cap(*buf) <= keepBuffer {
			writeBuffers.Put(buf)
		}
	}()
	s := st.sess.Load()
	for {
		batch, managed, more := s.take(st)
		if !more {
			return
		}
		rest, err := st.writeBatch(batch, buf)
		s.written(batch[:len(batch)-len(rest)], rest, managed)
		if err != nil {
			st.kill()
			s.stopWriting(st)
			return
		}
	}
}

// take returns what is to be written now, and whether stream management counts it; more is
// false if there is nothing, and then nobody writes any more.
func (s *session) take(st *stream) (batch []item, managed, more bool) {
	s.mu.Lock()
	if s.st == st && len(s.pending) > 0 {
		defer s.mu.Unlock()
		batch, s.pending = s.pending, nil
		if s.sm != nil && s.sm.wantsAck() {
			batch = append(batch, item{raw: s.sm.ask(st)})
		}
		return batch, s.sm != nil, true
	}
	if st.hangUp && s.st == st {
		go st.finish(s)
	}
	s.leave(st)
	return nil, false, false
}

// finish ends the session and closes the sending side after the last bytes.
func (st *stream) finish(s *session) {
	s.mu.Lock()
	clean := s.clean
	s.mu.Unlock()
	s.end(clean)
	st.closeWrite()
}

// written forgets a batch; rest was not written. Without stream management it waits again; what stream
// management counts is not lost, and what it did not count when it was taken is kept as strays.
func (s *session) written(done, rest []item, managed bool) {
	s.mu.Lock()
	n := 0
	var taken []*stanza.Packet
	for _, i := range done {
		if i.p != nil {
			n++
			if s.sm == nil {
				s.bytes -= i.p.Size()
			}
			if !managed && i.p.Number != 0 {
				taken = append(taken, i.p)
			}
		}
	}
	s.run.srv.counters.stanzasOut.Add(int64(n))
	s.settleBatch(done, rest, managed)
	s.mu.Unlock()
	if len(taken) > 0 {
		s.bound.Taken(taken)
	}
}

// settleBatch is the end of written. s.mu is held.
func (s *session) settleBatch(done, rest []item, managed bool) {
	switch {
	case len(rest) > 0 && s.sm == nil:
		s.pending = append(rest, s.pending...)
		return
	case len(rest) > 0:
		if !managed {
			s.keepStrays(rest)
		}
		return
	}
	if whole := done[:0]; s.pending == nil && cap(whole) <= keepItems {
		clear(done)
		s.pending = whole
	}
}

// keepStrays remembers stanzas from before stream management began.
func (s *session) keepStrays(rest []item) {
	for _, i := range rest {
		if i.p != nil {
			s.strays = append(s.strays, i.p)
		}
	}
}

// stopWriting notes that nobody writes any more. If the connection was lost
// meanwhile, the session ends now: only now is it known what was not written.
func (s *session) stopWriting(st *stream) {
	s.mu.Lock()
	s.leave(st)
}

// leave is the end of stopWriting; it unlocks mu.
func (s *session) leave(st *stream) {
	ends, clean := st.leaving, s.clean
	st.writing, st.leaving = false, false
	s.mu.Unlock()
	if ends {
		s.end(clean)
	}
}

// writeBatch encodes and writes a batch, as few records as possible. It returns what it could not write.
func (st *stream) writeBatch(batch []item, buf *[]byte) (rest []item, err error) {
	b := (*buf)[:0]
	first := 0 // of the batch in b
	for i, it := range batch {
		if it.p != nil {
			b = it.p.AppendTo(b)
		} else {
			b = append(b, it.raw...)
		}
		if len(b) < writeSize && i < len(batch)-1 {
			continue
		}
		*buf = b
		if _, err := st.conn.Write(b); err != nil {
			return batch[first:], err
		}
		b, first = b[:0], i+1
	}
	return nil, nil
}

func (r *run) writeTimeout() time.Duration { return r.srv.o.Live.Duration(setWriteTimeout) }

// containWriter turns a panic while writing into the loss of the connection.
func (st *stream) containWriter() {
	e := recover()
	if e == nil {
		return
	}
	st.run.srv.counters.panics.Add(1)
	st.run.srv.o.Logger.Error("writer_panic", "user", st.user.String(), "panic", fmt.Sprint(e), "stack", string(debug.Stack()))
	st.end(stanza.StreamInternalServerError, "", nil)
	st.kill()
	st.sess.Load().stopWriting(st)
}
