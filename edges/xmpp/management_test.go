package xmpp

import (
	"fmt"
	"strings"
	"testing"

	"muster/internal/fault"
	"muster/internal/jid"
	"muster/router"
	"muster/router/stanza"
)

const enableResume = `<enable xmlns='urn:xmpp:sm:3' resume='true'/>`

// managed returns a session with stream management and its resumption id.
func (f *fixture) managed(user, resource string) (*client, string) {
	f.tb.Helper()
	c := f.online(user, resource)
	c.send(enableResume)
	return c, c.expect(`<enabled xmlns='urn:xmpp:sm:3' resume='true' id='([^']+)' max='300'/>`)
}

// returning returns a client that is logged in and has not bound.
func (f *fixture) returning(user string) *client {
	f.tb.Helper()
	c := f.dial()
	c.startTLS(f)
	c.login(user)
	return c
}

func resumeElement(id string, h int) string {
	return fmt.Sprintf(`<resume xmlns='urn:xmpp:sm:3' previd='%s' h='%d'/>`, id, h)
}

func (f *fixture) deliver(full, id string) error {
	f.tb.Helper()
	to := jid.MustParse(full)
	return f.router.session(full).sink.Deliver(stanza.WithInner(stanza.KindMessage, stanza.TypeChat, id, jid.MustParse("bob@example.com/x"), to, []byte("<body>hi</body>")))
}

// drop cuts the client's connection and waits until the server has noticed.
func (f *fixture) drop(c *client) {
	f.tb.Helper()
	before := f.srv.Metrics().Hibernated
	c.conn.Close()
	f.until("the connection counts as lost", func() bool { return f.srv.Metrics().Hibernated == before+1 })
}

func TestAcknowledgements(t *testing.T) {
	f := start(t)
	c, _ := f.managed("alice", "desk")
	c.send(`<r xmlns='urn:xmpp:sm:3'/>`)
	c.expect(`<a xmlns='urn:xmpp:sm:3' h='0'/>`)
	c.send(`<message to='bob@example.com/x'><body>1</body></message>` + `<iq type='get' id='bad'/>` + `<presence/>` + ` ` + `<r xmlns='urn:xmpp:sm:3'/>`)
	c.expect(`<a xmlns='urn:xmpp:sm:3' h='3'/>`)
	for i := range askEvery {
		if err := f.deliver(c.full, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	c.expect(`<r xmlns='urn:xmpp:sm:3'/>`) // soon, without waiting for the sweeper
	c.send(fmt.Sprintf(`<a xmlns='urn:xmpp:sm:3' h='%d'/>`, askEvery+1))
	s := f.router.session(c.full).sink.(*session)
	f.until("all is acknowledged", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.sm.unacked) == 0 && s.bytes == 0
	})
	c.send(`</stream:stream>`)
	c.expect(`<a xmlns='urn:xmpp:sm:3' h='3'/></stream:stream>`)
}

func TestFewStanzasAreAcknowledgedToo(t *testing.T) {
	f := start(t, "c2s.probe_timeout", "900ms") // makes the sweeper quick
	c, _ := f.managed("alice", "desk")
	if err := f.deliver(c.full, "only"); err != nil {
		t.Fatal(err)
	}
	c.expect(`id="only"`)
	c.expect(`<r xmlns='urn:xmpp:sm:3'/>`)
}

func TestResume(t *testing.T) {
	f := start(t)
	c, id := f.managed("alice", "desk")
	full := c.full
	c.send(`<message to='bob@example.com/x' id='in1'><body>1</body></message>`)
	if err := f.deliver(full, "one"); err != nil {
		t.Fatal(err)
	}
	c.expect(`id="one"`)
	f.until("the message is in", func() bool { return len(f.router.packets()) == 1 })
	f.drop(c)
	for _, m := range []string{"two", "three"} {
		if err := f.deliver(full, m); err != nil {
			t.Fatal(err)
		}
	}
	back := f.returning("alice")
	back.send(resumeElement(id, 1))
	back.expect(`^<resumed xmlns='urn:xmpp:sm:3' h='1' previd='` + id + `'/><message [^>]*id="two".*<message [^>]*id="three"`)
	back.send(`<iq type='get' id='p'><ping xmlns='urn:xmpp:ping'/></iq>`)
	back.expect(`to="alice@example.com/desk" type="result" id="p"`)
	select {
	case <-f.router.session(full).ended:
		t.Error("the session was ended")
	default:
	}
	f.drop(back)
	again := f.returning("alice") // it had read neither of the last three
	again.send(resumeElement(id, 1))
	again.expect(`<resumed [^>]*h='2'[^>]*/><message [^>]*id="two".*id="three".*id="p"`)
	if m := f.srv.Metrics(); m.Resumed != 2 || m.Hibernated != 0 || m.Sessions != 1 {
		t.Errorf("metrics %+v", m)
	}
}

func TestResumeFromALiveConnection(t *testing.T) {
	f := start(t)
	c, id := f.managed("alice", "desk")
	back := f.returning("alice")
	back.send(resumeElement(id, 0))
	back.expect(`<resumed `)
	c.expect(`<stream:error><conflict`)
	c.closed()
	back.send(`<iq type='get' id='p'><ping xmlns='urn:xmpp:ping'/></iq>`)
	back.expect(`type="result" id="p"`)
}

func TestResumeRefused(t *testing.T) {
	f := start(t)
	c, id := f.managed("alice", "desk")
	f.drop(c)
	for _, tt := range []struct {
		name, user, id string
		h              string
		want           string
	}{
		{"unknown id", "alice", "nonsense", "0", `<failed xmlns='urn:xmpp:sm:3'><item-not-found xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></failed>`},
		{"another user", "bob", id, "0", `<failed xmlns='urn:xmpp:sm:3'><item-not-found `},
		{"another node's id", "alice", newResumeID(testKey, 2, jid.MustParse("alice@example.com")), "0", `<failed xmlns='urn:xmpp:sm:3'><item-not-found `},
		{"no count", "alice", id, "x", `<failed xmlns='urn:xmpp:sm:3'><bad-request `},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := f.in(t)
			back := f.returning(tt.user)
			back.send(`<resume xmlns='urn:xmpp:sm:3' previd='` + tt.id + `' h='` + tt.h + `'/>`)
			back.expect(tt.want)
			back.bind("after-" + strings.ReplaceAll(tt.name, " ", "-")) // a refused resumption does not end the stream
		})
	}
	t.Run("too high a count", func(t *testing.T) {
		back := f.in(t).returning("alice")
		back.send(resumeElement(id, 7))
		back.expect(`<stream:error><undefined-condition .*<handled-count-too-high xmlns="urn:xmpp:sm:3" h="7" send-count="0"/>`)
	})
	t.Run("the session is still there", func(t *testing.T) {
		back := f.in(t).returning("alice")
		back.send(resumeElement(id, 0))
		back.expect(`<resumed `)
	})
}

func TestAcknowledgedTooMuch(t *testing.T) {
	f := start(t)
	c, _ := f.managed("alice", "desk")
	c.send(`<a xmlns='urn:xmpp:sm:3' h='1'/>`)
	c.expect(`<stream:error><undefined-condition .*<handled-count-too-high xmlns="urn:xmpp:sm:3" h="1" send-count="0"/>`)
}

func TestEnableTwice(t *testing.T) {
	f := start(t)
	c, _ := f.managed("alice", "desk")
	c.send(enableResume)
	c.expect(`<failed xmlns='urn:xmpp:sm:3'><unexpected-request [^>]*/></failed><stream:error>`)
}

func TestExpiryHandsBackWhatWasNotDelivered(t *testing.T) {
	f := start(t, "c2s.resume_timeout", "1s")
	c := f.online("alice", "desk")
	c.send(enableResume)
	id := c.expect(`id='([^']+)' max='1'`)
	full := c.full
	c.send(`<presence/><presence/>`)
	f.until("both are in", func() bool { return len(f.router.packets()) == 2 })
	f.drop(c)
	if err := f.deliver(full, "late"); err != nil {
		t.Fatal(err)
	}
	s := f.router.session(full)
	s.wait(t)
	if s.clean || len(s.undelivered) != 1 || s.undelivered[0].ID != "late" {
		t.Errorf("clean %v, undelivered %v", s.clean, s.undelivered)
	}
	if err := s.sink.Deliver(s.undelivered[0]); !fault.Is(err, fault.Gone) {
		t.Errorf("delivery to an ended session: %v", err)
	}
	back := f.returning("alice")
	back.send(resumeElement(id, 0))
	back.expect(`<failed xmlns='urn:xmpp:sm:3' h='2'><item-not-found `) // the count is still known
	if m := f.srv.Metrics(); m.Hibernated != 0 || m.Sessions != 0 || m.ResumeFailed != 1 {
		t.Errorf("metrics %+v", m)
	}
}

func TestWithoutResumptionALostConnectionEndsTheSession(t *testing.T) {
	f := start(t)
	for _, enable := range []string{"", `<enable xmlns='urn:xmpp:sm:3'/>`} {
		c := f.online("alice", "desk")
		if enable != "" {
			c.send(enable)
			c.expect(`<enabled xmlns='urn:xmpp:sm:3'/>`)
		}
		s := f.router.session(c.full)
		c.conn.Close()
		s.wait(t)
		if s.clean {
			t.Error("a lost connection counts as a clean end")
		}
	}
}

// TestDisconnected: a client that the router disconnects resumes its session, and without resumption the session ends.
func TestDisconnected(t *testing.T) {
	f := start(t)
	c, id := f.managed("alice", "desk")
	c.send(`<presence/>`)
	f.until("the presence is in", func() bool { return len(f.router.packets()) == 1 })
	sink := f.router.session(c.full).sink.(router.Disconnecter)
	sink.Disconnect()
	if rest := c.closed(); rest != "" {
		t.Errorf("the client was told %q", rest)
	}
	f.until("the connection counts as lost", func() bool { return f.srv.Metrics().Hibernated == 1 })
	sink.Disconnect() // nobody is there
	back := f.returning("alice")
	back.send(resumeElement(id, 0))
	back.expect(`<resumed [^>]*h='1'`)
	plain := f.online("bob", "desk")
	s := f.router.session(plain.full)
	s.sink.(router.Disconnecter).Disconnect()
	plain.closed()
	if s.wait(t); s.clean {
		t.Error("a broken connection counts as a clean end")
	}
}

func TestTooMuchForALostConnection(t *testing.T) {
	f := start(t, "c2s.resume_queue_stanzas", "10")
	c, _ := f.managed("alice", "desk")
	full := c.full
	f.drop(c)
	for i := range 10 {
		if err := f.deliver(full, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.deliver(full, "10"); !fault.Is(err, fault.Overloaded) {
		t.Fatalf("got %v", err)
	}
	s := f.router.session(full)
	s.wait(t)
	if len(s.undelivered) != 10 {
		t.Errorf("%d undelivered", len(s.undelivered))
	}
}

// TestAClientThatDoesNotRead is ended, and loses nothing that was accepted for it.
func TestAClientThatDoesNotRead(t *testing.T) {
	f := start(t, "c2s.queue_stanzas", "100")
	c, _ := f.managed("alice", "desk")
	s := f.router.session(c.full)
	body := []byte("<body>" + strings.Repeat("x", 16<<10) + "</body>")
	accepted := 0
	var err error
	for err == nil && accepted < 100_000 {
		err = s.sink.Deliver(stanza.WithInner(stanza.KindMessage, "chat", "", jid.MustParse("bob@example.com/x"), s.full, body))
		if err == nil {
			accepted++
		}
	}
	if !fault.Is(err, fault.Overloaded) {
		t.Fatalf("got %v after %d", err, accepted)
	}
	s.wait(t)
	if len(s.undelivered) != accepted {
		t.Errorf("%d accepted, %d handed back", accepted, len(s.undelivered))
	}
	if f.srv.Metrics().Overflows != 1 {
		t.Error("not counted")
	}
}

func TestConflictEndsTheOlderSession(t *testing.T) {
	f := start(t)
	old := f.online("alice", "desk")
	s := f.router.session(old.full)
	f.online("alice", "desk")
	old.expect(`<stream:error><conflict`)
	s.wait(t)
}

func TestARouterThatEndsALostSession(t *testing.T) {
	f := start(t)
	c, id := f.managed("alice", "desk")
	s := f.router.session(c.full)
	f.drop(c)
	s.sink.End(stanza.StreamNotAuthorized, "disabled")
	s.wait(t)
	back := f.returning("alice")
	back.send(resumeElement(id, 0))
	back.expect(`<failed `)
}

func TestIdleClientsAreAsked(t *testing.T) {
	f := start(t, "c2s.idle_timeout", "1s", "c2s.probe_timeout", "500ms")
	plain := f.online("alice", "plain")
	managed, _ := f.managed("bob", "managed")
	plain.expect(`<iq from="example.com" type="get" id="alive"><ping xmlns="urn:xmpp:ping"/></iq>`)
	managed.expect(`<r xmlns='urn:xmpp:sm:3'/>`)
	managed.send(`<a xmlns='urn:xmpp:sm:3' h='0'/>`) // alive; the other one says nothing
	f.router.session(plain.full).wait(t)
	managed.expect(`<r xmlns='urn:xmpp:sm:3'/>`)
}

func TestCountsWrapAround(t *testing.T) {
	s := &session{sm: &management{acked: 1<<32 - 2}}
	for range 4 {
		s.sm.unacked = append(s.sm.unacked, &stanza.Packet{})
	}
	if s.sm.sent() != 2 {
		t.Errorf("sent %d", s.sm.sent())
	}
	for _, tt := range []struct {
		h    uint32
		ok   bool
		left int
	}{{1<<32 - 2, true, 4}, {3, false, 4}, {1<<32 - 1, true, 3}, {1, true, 1}, {0, false, 1}, {2, true, 0}} {
		if _, ok := s.acknowledge(tt.h); ok != tt.ok || len(s.sm.unacked) != tt.left {
			t.Errorf("h=%d: %v, %d left; want %v, %d", tt.h, ok, len(s.sm.unacked), tt.ok, tt.left)
		}
	}
}

func TestResumeIDs(t *testing.T) {
	alice := jid.MustParse("alice@example.com")
	id := newResumeID(testKey, 7, alice)
	session, random, ok := parseResumeID(testKey, id, alice)
	if !ok || session != 7 || len(random) != resumeIDRandom {
		t.Errorf("session %d, key %x, %v", session, random, ok)
	}
	if other := newResumeID(testKey, 7, alice); other == id {
		t.Error("two ids are equal")
	}
	changed := []byte(id)
	changed[len(changed)/2] ^= 1
	for name, ok := range map[string]bool{
		"other user":    resumes(testKey, id, jid.MustParse("bob@example.com")),
		"other cluster": resumes([]byte("another key of a cluster"), id, alice),
		"changed":       resumes(testKey, string(changed), alice),
		"cut":           resumes(testKey, id[:20], alice),
		"empty":         resumes(testKey, "", alice),
	} {
		if ok {
			t.Errorf("%s: accepted", name)
		}
	}
}

func resumes(key []byte, id string, user jid.JID) bool {
	_, _, ok := parseResumeID(key, id, user)
	return ok
}

func TestStaleCountsAreBounded(t *testing.T) {
	r := newResumables()
	for i := range maxStale + 10 {
		sm := &management{id: fmt.Sprint(i)}
		r.live[sm.id] = &session{}
		r.expire(sm, 0)
	}
	if len(r.stale) != maxStale || len(r.order) != maxStale || len(r.live) != 0 {
		t.Errorf("%d, %d, %d", len(r.stale), len(r.order), len(r.live))
	}
	if _, ok := r.stale["0"]; ok {
		t.Error("the oldest is still there")
	}
}

func TestUnauthorisedClientsResumeNothing(t *testing.T) {
	f := start(t)
	c, id := f.managed("alice", "desk")
	f.drop(c)
	thief := f.dial()
	thief.startTLS(f)
	thief.send(resumeElement(id, 0))
	thief.expect(`<stream:error><not-authorized`)
}

func TestLocationIsTold(t *testing.T) {
	f := start(t)
	f.router.location = "node2.example.com:5222"
	c := f.online("alice", "desk")
	c.send(enableResume)
	c.expect(`<enabled xmlns='urn:xmpp:sm:3' resume='true' id='[^']+' max='300' location="node2.example.com:5222"/>`)
	other := f.online("alice", "phone")
	other.send(`<enable xmlns='urn:xmpp:sm:3'/>`) // which cannot be resumed anywhere
	other.expect(`<enabled xmlns='urn:xmpp:sm:3'/>`)
}
