package router

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"muster/fsm"
	"muster/internal/fault"
	"muster/log"
	"muster/router/stanza"
)

// keeping is a message log in a test: it notes what is proposed, and answers as told.
type keeping struct {
	mu       sync.Mutex
	proposed []string // records: the texts of their entries
	answer   func(call int, texts []string) error
}

func (k *keeping) Propose(ctx context.Context, entries ...*log.Entry) ([]fsm.Result, error) {
	k.mu.Lock()
	var texts []string
	for _, e := range entries {
		texts = append(texts, string(e.Body))
	}
	k.proposed = append(k.proposed, strings.Join(texts, " "))
	call := len(k.proposed)
	k.mu.Unlock()
	if err := k.answer(call, texts); err != nil {
		return nil, err
	}
	return make([]fsm.Result, len(entries)), nil
}

func (k *keeping) seen() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.proposed)
}

// keepAll makes each message an entry of the message log, whose body is its id; outcomes are noted.
func keepAll(mu *sync.Mutex, outcomes *[]string) func(reg *Registry) {
	return func(reg *Registry) {
		reg.OnMessageSend(func(c *Ctx, p *stanza.Packet) bool {
			c.ProposeMessage(func(c *Ctx, res fsm.Result) {
				mu.Lock()
				*outcomes = append(*outcomes, fmt.Sprintf("%s:%v", p.ID, fault.CodeOf(res.Err)))
				mu.Unlock()
				if res.Err != nil {
					c.Reply(p.ErrorReply(stanza.FromFault(res.Err)))
				}
			}, &log.Entry{Kind: log.MessagePut, Body: []byte(p.ID)})
			return true
		})
	}
}

var (
	inDoubt  = fault.New(fault.Timeout, "test", "", "")
	noLeader = fault.New(fault.NoQuorum, "test", "", "")
)

// TestDoubtIsNotAnswered: what may have been written is written again until the log says what came of it; what was not is refused.
func TestDoubtIsNotAnswered(t *testing.T) {
	tests := []struct {
		name     string
		answers  []error // of the proposals in turn; then they succeed
		want     []string
		proposed int
	}{
		{"written", nil, []string{"1:unknown", "2:unknown"}, 2},
		{"refused", []error{noLeader}, []string{"1:no-quorum", "2:unknown"}, 2},
		{"in doubt, then written", []error{inDoubt, noLeader, noLeader, inDoubt}, []string{"1:unknown", "2:unknown"}, 6},
		{"in doubt, then refused by the log", []error{inDoubt, fault.New(fault.TooLarge, "test", "", "")}, []string{"1:too-large", "2:unknown"}, 3},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var mu sync.Mutex
			var outcomes []string
			simulateWith(t, 1, keepAll(&mu, &outcomes), func(g *rig) {
				k := &keeping{answer: func(call int, _ []string) error {
					if call <= len(tt.answers) {
						return tt.answers[call-1]
					}
					return nil
				}}
				g.users(1, "alice", "bob")
				g.nodes[1].r.keeper = k
				alice := g.online(1, "alice/a")
				alice.message("bob", "1")
				alice.message("bob", "2") // waits for the first one's outcome: nothing overtakes it
				time.Sleep(5 * time.Second)
				synctest.Wait()
				if !slices.Equal(outcomes, tt.want) || len(k.seen()) != tt.proposed {
					t.Errorf("outcomes %v after the proposals %v", outcomes, k.seen())
				}
			})
		})
	}
}

// TestDoubtMovesWithTheSession: the next home writes what an earlier one may have written, and does not refuse it either.
func TestDoubtMovesWithTheSession(t *testing.T) {
	var mu sync.Mutex
	var outcomes []string
	simulateWith(t, 3, keepAll(&mu, &outcomes), func(g *rig) {
		g.users(1, "alice", "bob")
		home := g.homes(t, "alice")
		old := &keeping{answer: func(int, []string) error { return inDoubt }}
		next := &keeping{answer: func(call int, texts []string) error {
			if call == 1 {
				return noLeader
			}
			return nil
		}}
		g.nodes[home[0]].r.keeper, g.nodes[home[1]].r.keeper = old, next
		time.Sleep(time.Second)
		alice := g.online(3, "alice/a")
		alice.message("bob", "1")
		time.Sleep(time.Second)
		before := len(old.seen())
		if before < 2 || len(outcomes) != 0 {
			t.Fatalf("the first home proposed %v: %v", old.seen(), outcomes)
		}
		g.kill(home[0])
		g.down(home[0])
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if got := next.seen(); !slices.Equal(got, []string{"1", "1"}) || !slices.Equal(outcomes, []string{"1:unknown"}) {
			t.Errorf("the next home proposed %v: %v", got, outcomes)
		}
		alice.want()
		next.answer = func(int, []string) error { return noLeader }
		alice.message("bob", "2") // no other home knows of this one
		alice.want("message error bob 2 resource-constraint")
	})
}

// TestDoubtDisconnects: a client whose input is in doubt is sent to look for another node by the one that it is connected
// to, if that is cut off, and not more often than every ten seconds. Its session goes on, and the outcome comes.
func TestDoubtDisconnects(t *testing.T) {
	type after map[int]int // disconnections so far
	tests := []struct {
		name      string
		node, cut uint32 // of the session, whose home is node 1; and that is cut off
		when      int    // in seconds, as all times here
		settled   int    // when the log says what came of it
		want      after
	}{
		{"a session at home", 1, 1, 0, 22, after{9: 0, 11: 1, 19: 1, 21: 2}},
		{"a session away from home", 2, 2, 0, 22, after{9: 0, 11: 1, 19: 1, 21: 2}},
		{"cut off later", 1, 1, 15, 22, after{11: 0, 16: 0, 21: 1}},
		{"settled in time", 1, 1, 0, 9, after{11: 0, 21: 0}},
		{"only the home is cut off", 2, 1, 0, 22, after{11: 0, 21: 0}},
		{"no node is cut off", 1, 0, 0, 22, after{11: 0, 21: 0}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var mu sync.Mutex
			var outcomes []string
			simulateWith(t, 2, keepAll(&mu, &outcomes), func(g *rig) {
				var settled atomic.Bool
				k := &keeping{answer: func(int, []string) error {
					if !settled.Load() {
						return inDoubt
					}
					return nil
				}}
				g.users(1, "alice", "bob")
				g.nodes[1].r.keeper, g.nodes[2].r.keeper = k, k
				time.Sleep(time.Second)
				alice := g.online(tt.node, "alice/a")
				alice.message("bob", "1")
				synctest.Wait()
				for at := range 23 {
					settled.Store(at >= tt.settled)
					if cut := g.nodes[tt.cut]; cut != nil && at == tt.when {
						cut.r.LeaderContact(IsolationAfter + time.Millisecond)
					}
					if want, ok := tt.want[at]; ok && alice.disconnected() != want {
						t.Errorf("disconnected %d times after %d s, not %d", alice.disconnected(), at, want)
					}
					time.Sleep(time.Second)
				}
				if cut := g.nodes[tt.cut]; cut != nil {
					cut.r.LeaderContact(0)
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				if got := slices.Compact(outcomes); !slices.Equal(got, []string{"1:unknown"}) { // a home that the session left may be told, too
					t.Errorf("outcomes %v", got)
				}
				if n := alice.disconnected(); n != tt.want[21] || alice.ended() != "" {
					t.Errorf("disconnected %d times in the end, and ended: %q", n, alice.ended())
				}
				alice.want()
			})
		})
	}
}

// TestWritesGather: what comes while records are under way goes together, and nobody waits for the patience of others.
func TestWritesGather(t *testing.T) {
	var mu sync.Mutex
	var outcomes []string
	simulateWith(t, 1, keepAll(&mu, &outcomes), func(g *rig) {
		gate := make(chan struct{})
		k := &keeping{answer: func(call int, _ []string) error {
			if call <= writesAtOnce {
				<-gate
			}
			return nil
		}}
		const users = 10
		var names []string
		for i := range users {
			names = append(names, fmt.Sprint("u", i))
		}
		g.users(1, names...)
		g.nodes[1].r.keeper = k
		var clients []*client
		for _, n := range names {
			clients = append(clients, g.online(1, n+"/r"))
		}
		for i, c := range clients {
			c.message("u0", fmt.Sprint(i))
			synctest.Wait()
		}
		if got := len(k.seen()); got != writesAtOnce {
			t.Fatalf("%d records are under way: %v", got, k.seen())
		}
		time.Sleep(writeSlow + time.Millisecond)
		synctest.Wait()
		if got := k.seen(); len(got) != writesAtOnce+1 || got[writesAtOnce] != "4 5 6 7 8 9" {
			t.Fatalf("then %v", got)
		}
		close(gate)
		synctest.Wait()
		if len(outcomes) != users {
			t.Errorf("outcomes %v", outcomes)
		}
	})
}
