package replication

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// TestKnows: a follower is spared what it took a moment ago, and nothing else.
func TestKnows(t *testing.T) {
	took := position{term: 3, last: 7, lastTerm: 2, commit: 6}
	tr := newHeardTransport(time.Now(), nil)
	tr.told[2] = told{time.Second, took, raft.AppendEntriesResponse{Term: 3, LastLog: 7, Success: true}}
	for _, tc := range []struct {
		name string
		node uint32
		what position
		at   time.Duration
		want bool
	}{
		{"the same", 2, took, time.Second + retell/2, true},
		{"the same, long after", 2, took, time.Second + retell, false},
		{"another follower", 3, took, time.Second, false},
		{"a new term", 2, position{term: 4, last: 7, lastTerm: 2, commit: 6}, time.Second, false},
		{"a new entry", 2, position{term: 3, last: 8, lastTerm: 3, commit: 6}, time.Second, false},
		{"another entry in its place", 2, position{term: 3, last: 7, lastTerm: 3, commit: 6}, time.Second, false},
		{"a new commit", 2, position{term: 3, last: 7, lastTerm: 2, commit: 7}, time.Second, false},
	} {
		var answer raft.AppendEntriesResponse
		if got := tr.knows(tc.node, tc.what, tc.at, &answer); got != tc.want || got && (!answer.Success || answer.LastLog != 7) {
			t.Errorf("%s: %v, %+v", tc.name, got, answer)
		}
	}
}

// TestRepeatedAnswersProveNothing: what a leader takes the followers to have
// answered, while nothing gets through, does not make it sure that it leads.
func TestRepeatedAnswersProveNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, Timing{})
		lead := c.settle(3)
		for range 20 {
			time.Sleep(507 * time.Millisecond) // all is told; and each time another moment between two commit timeouts
			c.net.silence(func() {
				ctx, cancel := context.WithTimeout(t.Context(), retell)
				defer cancel()
				if index, err := lead.ReadIndex(ctx); err == nil {
					t.Errorf("a leader that hears nobody answers %d", index)
				}
			})
			lead = c.settle(3)
		}
	})
}

// TestIdleLogIsQuiet: a log to which nothing is written asks little of its followers.
func TestIdleLogIsQuiet(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := newCluster(t, 3, Timing{})
		lead := c.settle(3)
		time.Sleep(time.Second)
		retold, sent := 0, map[uint32]time.Duration{}
		for range 1000 { // ten seconds
			lead.trans.mu.Lock()
			for n, have := range lead.trans.told {
				if have.sent != sent[n] {
					sent[n] = have.sent
					retold++
				}
			}
			lead.trans.mu.Unlock()
			time.Sleep(10 * time.Millisecond)
		}
		if most := 2 * int(10*time.Second/retell); retold > most+2 || retold < most/3 {
			t.Errorf("two followers were told the same %d times in ten seconds, want %d at the most", retold, most)
		}
		lead.must("a", "1")
		c.until("all have it", 100*time.Millisecond, func() bool {
			return c.nodes[1].get("a") == "1" && c.nodes[2].get("a") == "1" && c.nodes[3].get("a") == "1"
		})
	})
}

// TestBackAfterLong: a follower that could not be reached for long is sent what it missed as soon as it can be.
func TestBackAfterLong(t *testing.T) {
	for _, tc := range []struct {
		name   string
		cut    bool // else it is down
		timing Timing
	}{{"cut off", true, Timing{}}, {"down", false, Timing{}}, {"behind a snapshot", true, often}} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				c := newCluster(t, 3, tc.timing)
				lead := c.settle(3)
				away := c.follower()
				if tc.cut {
					c.isolate(away.id, true)
				} else {
					away.crash()
				}
				for i := range 60 {
					lead.must("a", strconv.Itoa(i))
					time.Sleep(time.Second)
				}
				if tc.cut {
					c.isolate(away.id, false)
				} else {
					away.start()
				}
				c.until("it has all", time.Second, func() bool { return away.get("a") == "59" })
			})
		})
	}
}
