package feature_test

import (
	"testing"
	"testing/synctest"
	"time"

	"muster/feature/message/state"
	"muster/fsm/config"
	"muster/router"
	"muster/router/stanza"
)

// lingering is a client whose connection is lost and whose edge has not noticed yet.
type lingering struct{ client }

// End implements router.Sink.
func (c *lingering) End(stanza.StreamCondition, string) {}

// TestGivenBackLate: a client that lost its connection logs in anew before its old session is over. What that
// one gives back then comes to whoever has not got it from the inbox meanwhile, once.
func TestGivenBackLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster(t, 1)
		defer w.close()
		w.addUser("alice", false)
		w.addUser("bob", false)
		w.settle()
		alice, tab := w.login("alice/desk"), w.login("bob/tab")
		old := &lingering{client{w: w}}
		var err error
		if old.session, err = w.router.Bind(t.Context(), router.BindRequest{User: tab.session.JID().Bare(), Resource: "pad", Sink: old}); err != nil {
			t.Fatal(err)
		}
		tab.send("<presence/>")
		const text = "<message type='chat' id='1' to='bob@example.com/pad'><body>one</body></message>"
		alice.send(text)
		lost := old.take()
		if len(lost) != 1 || lost[0].Number == 0 {
			t.Fatalf("the first session got %v", lost)
		}
		again := w.login("bob/pad")
		again.send("<presence/>")
		if n := count(again.take(), stanza.KindMessage); n != 1 {
			t.Fatalf("the new session got %d messages from the inbox", n)
		}
		old.session.End(false, lost)
		w.settle()
		if n := count(again.take(), stanza.KindMessage); n != 0 {
			t.Errorf("the new session got the message again, %d times", n)
		}
		if n := count(tab.take(), stanza.KindMessage); n != 1 {
			t.Errorf("the other client, which was not offered it, got it %d times", n)
		}
	})
}

func count(all []*stanza.Packet, kind stanza.Kind) (n int) {
	for _, p := range all {
		if p.Kind == kind {
			n++
		}
	}
	return n
}

// TestRefusedThenKept: a message that is kept counts an earlier one as handled that was refused; the record has the
// error until the client confirms it.
func TestRefusedThenKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCluster(t, 1)
		defer w.close()
		for _, name := range []string{"alice", "bob", "carol"} {
			w.addUser(name, false)
		}
		w.must(config.SetEntry("offline.max_messages", "1", 0))
		w.settle()
		alice := w.login("alice/desk")
		record := func(when string, handled uint64, refusals int) {
			t.Helper()
			time.Sleep(time.Second)
			_, p, ok := state.SessionByID(w.nodes[1].messages, alice.session.ID())
			if !ok || p.Handled != handled || len(p.Refusals) != refusals {
				t.Errorf("%s: handled %d, %d errors on record: %v", when, p.Handled, len(p.Refusals), ok)
			}
		}
		alice.session.Record(router.Record{Key: []byte("key"), Timeout: time.Minute})
		alice.send("<message type='chat' id='1' to='bob@example.com'><body>one</body></message>")
		alice.send("<message type='chat' id='2' to='bob@example.com'><body>two</body></message>")
		record("after the refusal", 1, 0)
		alice.send("<message type='chat' id='3' to='carol@example.com'><body>three</body></message>")
		record("after the next message", 3, 1)
		alice.session.Taken(alice.take())
		record("after the confirmation", 3, 0)
	})
}
