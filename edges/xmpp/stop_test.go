package xmpp

import (
	"context"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"muster/router/stanza"
)

// TestStopInTheMiddle: whatever its connections are about, the server stops in
// time, ends every session, and leaves no goroutine of a stream behind.
func TestStopInTheMiddle(t *testing.T) {
	var waiting atomic.Int64
	busy := func(ctx context.Context) {
		waiting.Add(1)
		<-ctx.Done()
	}
	for name, begin := range map[string]func(f *fixture){
		"binding": func(f *fixture) {
			c := f.returning("alice")
			f.router.mu.Lock()
			f.router.bindWait = busy
			f.router.mu.Unlock()
			c.send(`<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>`)
			f.until("it binds", func() bool { return waiting.Load() == 1 })
		},
		"a handshake": func(f *fixture) {
			c := f.dialTo(1)
			c.send("\x16\x03\x01\x02\x00\x01")
			f.until("it is in", func() bool { return f.srv.Metrics().Connections == 1 })
		},
		"a late answer to a failed login": func(f *fixture) {
			for range accountFailures + 5 {
				f.srv.guard.failed("alice@example.com", "")
			}
			c, _ := f.beforeLogin()
			c.send(plainLogin("alice", "wrong"))
			f.until("it waits", func() bool { return f.srv.Metrics().LoginsFailed == 1 })
		},
		"a client that reads nothing": func(f *fixture) {
			c := f.online("alice", "desk")
			if _, err := f.stuff(f.router.session(c.full)); err != nil {
				f.tb.Fatal(err)
			}
		},
		"a busy router": func(f *fixture) {
			c := f.online("alice", "desk")
			f.router.mu.Lock()
			f.router.receive = func(*fakeSession, *stanza.Packet) error { busy(f.srv.running().ctx); return context.Canceled }
			f.router.mu.Unlock()
			c.send(`<presence/>`)
			f.until("it waits", func() bool { return waiting.Load() == 1 })
		},
		"a lost client": func(f *fixture) {
			c, _ := f.managed("alice", "desk")
			f.drop(c)
		},
		"half a stanza": func(f *fixture) {
			f.online("alice", "desk").send(`<message><body>`)
		},
		"a throttled flood": func(f *fixture) {
			f.set("c2s.byte_rate", "1024")
			c := f.online("alice", "desk")
			go func() { _, _ = io.WriteString(c.conn, strings.Repeat(" ", 1<<20)) }()
		},
	} {
		t.Run(name, func(t *testing.T) {
			waiting.Store(0)
			f := start(t, "c2s.queue_bytes", "100000000")
			begin(f)
			sessions := f.router.everyone()
			began := time.Now()
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			if err := f.srv.Stop(ctx); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took > closeTimeout+2*time.Second {
				t.Errorf("took %v", took)
			}
			for _, s := range append(sessions, f.router.everyone()...) {
				s.wait(t)
			}
			f.until("no session is counted", func() bool { m := f.srv.Metrics(); return m.Sessions == 0 && m.Hibernated == 0 })
			if err := f.srv.Start(context.Background()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// everyone returns all sessions that were ever bound.
func (r *fakeRouter) everyone() []*fakeSession {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]*fakeSession(nil), r.bound...)
}

func TestDrainWithoutAnotherHost(t *testing.T) {
	f := start(t)
	c := f.online("alice", "desk")
	if err := f.srv.Drain(t.Context(), "", time.Millisecond); err != nil {
		t.Fatal(err)
	}
	c.expect(`<stream:error><system-shutdown .*drained`)
	f.stop()
	if err := f.srv.Drain(t.Context(), "", time.Millisecond); err != nil {
		t.Errorf("draining a stopped server: %v", err)
	}
}

func TestDrainGivesUpWithItsContext(t *testing.T) {
	f := start(t)
	f.online("alice", "desk")
	f.online("bob", "desk")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := f.srv.Drain(ctx, "node2.example.com", time.Hour); err == nil {
		t.Error("an hour passed in no time")
	}
}

// TestRecordsAreWeighed: bytes that come one to a TLS record count as what they cost on the wire.
func TestRecordsAreWeighed(t *testing.T) {
	f := start(t, "c2s.byte_rate", "10000", "c2s.byte_burst", "4096")
	c := f.online("alice", "desk")
	begin := time.Now()
	for range 500 { // 11,500 bytes on the wire
		c.send(" ")
	}
	c.send(`<iq type='get' id='p'><ping xmlns='urn:xmpp:ping'/></iq>`)
	c.expect(`type="result" id="p"`)
	if took := time.Since(begin); took < 500*time.Millisecond {
		t.Errorf("took %v", took)
	}
}

// TestStopOfADepartingNode: sessions that can go on at another node are left to it, connected or not; the others are ended.
func TestStopOfADepartingNode(t *testing.T) {
	f := start(t)
	plain := f.online("alice", "phone")
	connected, _ := f.managed("alice", "desk")
	away, _ := f.managed("bob", "desk")
	f.drop(away)
	f.until("one waits for its client", func() bool { return f.srv.Metrics().Hibernated == 1 })
	all := f.router.everyone()
	f.router.mu.Lock()
	f.router.departing = true
	f.router.mu.Unlock()
	f.stop()
	plain.expect(`<stream:error><system-shutdown`)
	if rest := connected.closed(); strings.Contains(rest, "</stream:stream>") || strings.Contains(rest, "<stream:error>") {
		t.Errorf("a stream that goes on elsewhere was ended: %s", rest)
	}
	for _, s := range all {
		select {
		case <-s.ended:
			if s.full.Resource != "phone" {
				t.Errorf("the session of %s was ended", s.full)
			}
		default:
			if s.full.Resource == "phone" {
				t.Errorf("the session of %s, which can go on nowhere, was not ended", s.full)
			}
		}
	}
	if m := f.srv.Metrics(); m.Sessions != 0 || m.Hibernated != 0 {
		t.Errorf("metrics %+v", m)
	}
}
