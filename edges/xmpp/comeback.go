package xmpp

import (
	"context"
	"sync/atomic"
	"time"

	"muster/internal/fault"
	"muster/router"
	"muster/router/stanza"
)

// Times of resuming a session that another node holds, or held.
const (
	resumeWait  = 8 * time.Second        // for the cluster to hand it over: longer than a node's death takes to be noticed and settled
	resumeRetry = 250 * time.Millisecond // between attempts when the cluster cannot do so just now
)

// comeback is a client's request for a session that is on record in the cluster.
type comeback struct {
	st    *stream
	s     *session
	q     router.ResumeRequest
	h     uint32 // what the client has handled
	until time.Time
	done  chan struct{} // closed when there is an outcome, unless nobody waits for it
	left  atomic.Bool   // the outcome is known, or nobody waits for it: whichever comes first

	// The outcome, before done is closed.
	bound Session
	at    router.Resumed
	err   error
}

// resumeRecorded goes on with a session that is on record in the cluster: its node is gone, or the client has come
// to this one. An error says that there is none; handled is what was handled of it, if that is known. A session that
// cannot be had now, for want of a majority, may be there all the same: a client that was told that there is none would
// give up what it keeps for it, so the stream is ended instead, and the client tries again, here or at another node.
func (st *stream) resumeRecorded(previd string, h uint32, say func(*session, []byte) []byte) (handled *uint32, err error) {
	id, key, ok := parseResumeID(st.run.srv.o.Key, previd, st.user)
	if !ok {
		return nil, fault.New(fault.NotFound, "xmpp.resume", st.user.String(), "not an id of this user")
	}
	c := &comeback{st: st, h: h, until: time.Now().Add(st.run.srv.resumeWait), done: make(chan struct{}), q: router.ResumeRequest{
		User: st.user, ID: id, Key: key, Transport: transport, Remote: st.wire.RemoteAddr().String()}}
	go c.run(previd)
	wait := time.NewTimer(time.Until(c.until))
	defer wait.Stop()
	select {
	case <-c.done:
	case <-wait.C:
		if c.left.CompareAndSwap(false, true) {
			st.notNow()
			return nil, nil
		}
		<-c.done
	}
	switch {
	case c.err == nil:
		c.begin(say)
	case isGone(c.err):
		st.run.srv.o.Logger.Debug("session_not_resumed", "user", st.user, "error", c.err)
		if c.at.Known {
			n := uint32(c.at.Handled - c.at.Base)
			handled = &n
		}
		return handled, c.err
	default:
		st.notNow()
	}
	return nil, nil
}

// notNow ends the stream of a client whose session cannot be had now.
func (st *stream) notNow() {
	st.run.srv.counters.resumePut.Add(1)
	st.end(stanza.StreamResourceConstraint, "the session cannot be resumed now; try again", nil)
}

// isGone reports whether the cluster knows that there is no such session.
func isGone(err error) bool {
	code := fault.CodeOf(err)
	return code == fault.NotFound || code == fault.Conflict || code == fault.BadRequest
}

// run asks for the session until there is an answer. One that comes when nobody waits any more leaves
// the session here, where it waits for its client as if it had been here when the connection was lost.
func (c *comeback) run(previd string) {
	run := c.st.run
	ctx, cancel := context.WithTimeout(run.ctx, max(run.srv.o.Live.Duration(setResumeTimeout), run.srv.resumeWait))
	defer cancel()
	for {
		c.s = newSession(c.st)
		c.s.sm = &management{id: previd, acked: c.h}
		c.q.Sink = c.s
		c.bound, c.at, c.err = run.srv.o.Router.Resume(ctx, c.q)
		if c.err == nil || isGone(c.err) || c.left.Load() || ctx.Err() != nil || time.Now().Add(resumeRetry).After(c.until) {
			break
		}
		pause(ctx, resumeRetry)
	}
	switch {
	case c.left.CompareAndSwap(false, true):
		close(c.done)
	case c.err == nil:
		c.leave()
	}
}

// settle makes the session what the record says. s.mu is held.
func (c *comeback) settle() {
	s := c.s
	c.st.run.srv.counters.sessions.Add(1)
	s.bound, s.full = c.bound, c.bound.JID()
	s.given, s.done, s.lasting, s.sm.base = c.at.Handled, max(s.done, c.at.Handled), max(s.lasting, c.at.Handled), c.at.Base
	s.sm.unseen = true
	s.run.resumable.add(s)
}

// begin goes on with the session on the client's stream.
func (c *comeback) begin(say func(*session, []byte) []byte) {
	st, s := c.st, c.s
	st.run.srv.counters.resumed.Add(1)
	st.live(s)
	s.mu.Lock()
	defer s.mu.Unlock()
	c.settle()
	s.st = st
	s.welcome(st, say)
	early, text := s.cond, s.text
	s.kick()
	if early != "" {
		go st.end(early, text, nil)
	}
}

// leave keeps the session for its client, which has gone and will try again.
func (c *comeback) leave() {
	s := c.s
	s.mu.Lock()
	c.settle()
	kept := !s.over && !s.run.stopping.Load() && s.hibernate()
	s.mu.Unlock()
	if !kept && !c.bound.Suspend() {
		s.end(false)
	}
}
