package xmpp

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"muster/internal/fault"
	"muster/internal/jid"
	"muster/router"
	"muster/router/stanza"
)

// elsewhere is a session of alice that another node has on record; resume answers for the router.
func elsewhere(t *testing.T, wait time.Duration, resume func(ctx context.Context, q router.ResumeRequest) (Session, router.Resumed, error)) (f *fixture, id string) {
	t.Helper()
	f = start(t)
	f.srv.resumeWait = wait
	f.router.resume = resume
	return f, newResumeID(testKey, 77, jid.MustParse("alice@example.com"))
}

// takeOver is what the router gives for the session when it can be had.
func takeOver(f *fixture, q router.ResumeRequest) (Session, router.Resumed, error) {
	return &fakeSession{r: f.router, number: q.ID, full: q.User.WithResource("desk"), sink: q.Sink, ended: make(chan struct{})},
		router.Resumed{Base: 2, Handled: 5}, nil
}

// resumable is a session of alice on this node, which the router gives to whoever resumes it elsewhere, too.
func resumable(t *testing.T) (f *fixture, c *client, id string) {
	t.Helper()
	f = start(t)
	f.router.resume = func(_ context.Context, q router.ResumeRequest) (Session, router.Resumed, error) {
		return takeOver(f, q)
	}
	c, id = f.managed("alice", "desk")
	return f, c, id
}

// deliverKept gives a session three kept messages: 1 to 3, with the ids "0" to "2".
func deliverKept(t *testing.T, s *fakeSession) {
	t.Helper()
	for n := range uint64(3) {
		p := stanza.WithInner(stanza.KindMessage, stanza.TypeChat, fmt.Sprint(n), jid.MustParse("bob@example.com/x"), s.full, []byte("<body>hi</body>"))
		p.Number = n + 1
		if err := s.sink.Deliver(p); err != nil {
			t.Error(err)
		}
	}
}

func noQuorum() error { return fault.New(fault.NoQuorum, "fake.resume", "", "no majority") }

// TestResumeWaitsForTheCluster: a cluster that has no majority for a moment costs the client a moment.
func TestResumeWaitsForTheCluster(t *testing.T) {
	var f *fixture
	asked := 0
	f, id := elsewhere(t, testPatience, func(_ context.Context, q router.ResumeRequest) (Session, router.Resumed, error) {
		if asked++; asked < 3 {
			return nil, router.Resumed{}, noQuorum()
		}
		return takeOver(f, q)
	})
	back := f.returning("alice")
	back.send(resumeElement(id, 0))
	back.expect(`^<resumed xmlns='urn:xmpp:sm:3' h='3' previd='` + id + `'/>`)
	if m := f.srv.Metrics(); m.Resumed != 1 || m.ResumePutOff != 0 || m.ResumeFailed != 0 || m.Sessions != 1 {
		t.Errorf("metrics %+v", m)
	}
}

// TestResumeIsPutOff: a session that nobody can look up now is not said not to exist.
func TestResumeIsPutOff(t *testing.T) {
	f, id := elsewhere(t, 10*time.Millisecond, func(context.Context, router.ResumeRequest) (Session, router.Resumed, error) {
		return nil, router.Resumed{}, noQuorum()
	})
	back := f.returning("alice")
	back.send(resumeElement(id, 0))
	back.expect(`^<stream:error><resource-constraint `)
	back.closed()
	if m := f.srv.Metrics(); m.Resumed != 0 || m.ResumePutOff != 1 || m.ResumeFailed != 0 || m.Sessions != 0 {
		t.Errorf("metrics %+v", m)
	}
}

// TestResumedTooLate: what the cluster hands over after the client was put off waits for it here. Meanwhile the client
// was at another node: what it has got since is not what it is to get here.
func TestResumedTooLate(t *testing.T) {
	var f *fixture
	proceed, late := make(chan struct{}), make(chan *fakeSession, 1)
	f, id := elsewhere(t, 10*time.Millisecond, func(ctx context.Context, q router.ResumeRequest) (Session, router.Resumed, error) {
		select {
		case <-proceed:
		case <-ctx.Done():
			return nil, router.Resumed{}, ctx.Err()
		}
		s, at, err := takeOver(f, q)
		late <- s.(*fakeSession)
		return s, at, err
	})
	first := f.returning("alice")
	first.send(resumeElement(id, 4))
	first.expect(`^<stream:error><resource-constraint `)
	close(proceed)
	f.until("the session is here", func() bool { return f.srv.Metrics().Hibernated == 1 })
	s := <-late
	deliverKept(t, s)
	back := f.returning("alice")
	back.send(resumeElement(id, 6))
	back.expect(`^<resumed xmlns='urn:xmpp:sm:3' h='3' previd='` + id + `'/>`)
	for n := range 3 {
		back.expect(fmt.Sprintf(`^<message [^>]*id="%d".*?</message>`, n))
	}
	if n := s.confirmed(); len(n) != 0 {
		t.Errorf("confirmed before they were sent: %d", n)
	}
	back.send(`<a xmlns='urn:xmpp:sm:3' h='8'/>`)
	f.until("two are confirmed", func() bool { return slices.Equal(s.confirmed(), []uint64{1, 2}) })
	if m := f.srv.Metrics(); m.Resumed != 1 || m.Hibernated != 0 || m.Sessions != 1 {
		t.Errorf("metrics %+v", m)
	}
}

// TestResumedUnseen: a client that lost the connection before it knew that it has its session here counts from elsewhere
// when it comes back; one that knew counts from here.
func TestResumedUnseen(t *testing.T) {
	for name, knows := range map[string]bool{"lost before it knew": false, "lost after it knew": true} {
		t.Run(name, func(t *testing.T) {
			var f *fixture
			var s *fakeSession
			f, id := elsewhere(t, testPatience, func(_ context.Context, q router.ResumeRequest) (Session, router.Resumed, error) {
				got, at, err := takeOver(f, q)
				s = got.(*fakeSession)
				deliverKept(t, s)
				return got, at, err
			})
			c := f.returning("alice")
			c.send(resumeElement(id, 4))
			c.expect(`^<resumed .*id="2".*<r xmlns='urn:xmpp:sm:3'/>`)
			if knows {
				c.send(`<a xmlns='urn:xmpp:sm:3' h='5'/>`)
				f.until("one is confirmed", func() bool { return len(s.confirmed()) == 1 })
			}
			f.drop(c)
			back := f.returning("alice")
			back.send(resumeElement(id, 6))
			if knows {
				back.expect(`^<resumed [^>]*><message [^>]*id="2".*</message>`)
				f.until("two are confirmed", func() bool { return len(s.confirmed()) == 2 })
				return
			}
			back.expect(`^<resumed [^>]*><message [^>]*id="0".*id="1".*id="2".*<r xmlns='urn:xmpp:sm:3'/>`)
			if n := s.confirmed(); len(n) > 0 {
				t.Errorf("confirmed: %d", n)
			}
			back.send(`<a xmlns='urn:xmpp:sm:3' h='9'/>`)
			f.until("all are confirmed", func() bool { return len(s.confirmed()) == 3 })
		})
	}
}

func TestResumeSaysWhatWasHandled(t *testing.T) {
	for name, tt := range map[string]struct {
		at   router.Resumed
		want string
	}{
		"known":     {router.Resumed{Handled: 3, Known: true}, `<failed xmlns='urn:xmpp:sm:3' h='3'><item-not-found `},
		"nothing":   {router.Resumed{Known: true}, `<failed xmlns='urn:xmpp:sm:3' h='0'><item-not-found `},
		"not known": {router.Resumed{}, `<failed xmlns='urn:xmpp:sm:3'><item-not-found `},
	} {
		t.Run(name, func(t *testing.T) {
			f, id := elsewhere(t, testPatience, func(context.Context, router.ResumeRequest) (Session, router.Resumed, error) {
				return nil, tt.at, fault.New(fault.NotFound, "fake.resume", "", "")
			})
			back := f.returning("alice")
			back.send(resumeElement(id, 0))
			back.expect(tt.want)
			back.bind("anew")
		})
	}
}

// TestMovedWhileItIsTakenOver: a session that turns out to be at another node while its client resumes it here is asked for there.
func TestMovedWhileItIsTakenOver(t *testing.T) {
	f, c, id := resumable(t)
	s := f.router.session(c.full)
	busy, proceed := make(chan struct{}), make(chan struct{})
	f.router.receive = func(*fakeSession, *stanza.Packet) error {
		close(busy)
		<-proceed
		return fault.New(fault.Gone, "fake.receive", "", "")
	}
	c.send(`<message to='bob@example.com/x'><body>1</body></message>`)
	<-busy
	back := f.returning("alice")
	back.send(resumeElement(id, 0))
	time.Sleep(50 * time.Millisecond) // it has found the session by then, and waits for the stanza: nothing tells that. If it has not, the test proves less
	s.moved = true
	s.sink.End(stanza.StreamConflict, "the session was resumed elsewhere")
	close(proceed)
	back.expect(`^<resumed xmlns='urn:xmpp:sm:3' h='3' previd='` + id + `'/>`)
}

// TestComesBackToANodeThatItLeft: of a session that was resumed elsewhere only the cluster knows what became of it.
func TestComesBackToANodeThatItLeft(t *testing.T) {
	f, c, id := resumable(t)
	s := f.router.session(c.full)
	f.drop(c)
	s.moved = true
	s.sink.End(stanza.StreamConflict, "the session was resumed elsewhere")
	s.wait(t)
	back := f.returning("alice")
	back.send(resumeElement(id, 0))
	back.expect(`^<resumed xmlns='urn:xmpp:sm:3' h='3' previd='` + id + `'/>`)
}
