//go:build crash && linux

package crashtest

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"
)

// letter is one message under way.
type letter struct {
	from, to  *person
	sent      time.Time
	delivered []time.Time
	bounced   []time.Time
	why       string // condition of the bounce
}

// chat sends messages among people and holds what becomes of each.
type chat struct {
	mu      sync.Mutex
	letters map[string]*letter
	next    int
}

func newChat() *chat { return &chat{letters: map[string]*letter{}} }

// arrived takes a message that p's client got.
func (c *chat) arrived(p *person, id string, bounce bool, frame []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.letters[id]
	switch now := time.Now(); {
	case l == nil:
	case bounce && p == l.from:
		l.bounced, l.why = append(l.bounced, now), refusal(frame)
	case p == l.to:
		l.delivered = append(l.delivered, now)
	}
}

// write sends one message. A client that is offline sends nothing.
func (c *chat) write(from, to *person) {
	if !from.online() {
		return
	}
	l := &letter{from: from, to: to, sent: time.Now()}
	c.mu.Lock()
	c.next++
	id := fmt.Sprintf("m%d", c.next)
	c.letters[id] = l
	c.mu.Unlock()
	err := from.send(`<message type='chat' id='` + id + `' to='` + to.full() + `'><body>` + strings.Repeat("x", 80) + `</body></message>`)
	if err != nil { // never accepted
		c.mu.Lock()
		delete(c.letters, id)
		c.mu.Unlock()
	}
}

// run lets everybody write to everybody in turn, each once a step, until ctx ends.
func (c *chat) run(ctx context.Context, people []*person, step time.Duration) {
	tick := time.NewTicker(step / time.Duration(len(people)))
	defer tick.Stop()
	for i := 0; ; i++ {
		from := people[i%len(people)]
		distance := 1 + i/len(people)%(len(people)-1)
		c.write(from, people[(i+distance)%len(people)])
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// settle waits until every message has an outcome, at most so long.
func (c *chat) settle(limit time.Duration) {
	eventually(limit, 50*time.Millisecond, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, l := range c.letters {
			if len(l.delivered)+len(l.bounced) == 0 {
				return false
			}
		}
		return true
	})
}

// chatReport is what became of the messages.
type chatReport struct {
	sent, delivered, bounced int
	silent                   int            // neither delivered nor bounced
	silentWhole              int            // of these: sender, recipient and their homes were all on nodes that nothing happened to
	bouncedWhole             int            // bounced likewise
	silentBetween            int            // neither, between sessions on surviving nodes
	twice                    int            // delivered more than once
	both                     int            // delivered and bounced
	whole                    time.Duration  // from the fault until all messages between sessions on surviving nodes arrived again
	again                    time.Duration  // likewise from the moment when the hit nodes were brought back
	p99                      time.Duration  // latency between sessions on surviving nodes
	refused                  map[string]int // messages between sessions on surviving nodes that did not arrive, by condition
	problems                 []string
}

// report judges the messages sent. hit are the names of the nodes that the fault hit.
func (c *chat) report(fault, healed time.Time, hit []string) chatReport {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := chatReport{refused: map[string]int{}}
	var waits []time.Duration
	for id, l := range c.letters {
		r.sent++
		survivors := !slices.Contains(hit, l.from.node.name) && !slices.Contains(hit, l.to.node.name)
		untouched := survivors && !slices.Contains(hit, l.from.home) && !slices.Contains(hit, l.to.home)
		r.count(l, untouched)
		if len(l.delivered) == 0 && survivors || len(l.delivered) > 1 || len(l.delivered)*len(l.bounced) > 0 || len(l.delivered)+len(l.bounced) == 0 {
			r.problems = append(r.problems, fmt.Sprintf("delivered %d, bounced %d %s: %s from %v (home %s) to %v (home %s), %.2f s after the fault",
				len(l.delivered), len(l.bounced), l.why, id, l.from, l.from.home, l.to, l.to.home, l.sent.Sub(fault).Seconds()))
		}
		if !survivors || !l.sent.After(fault.Add(-time.Second)) {
			continue
		}
		switch since := l.sent.Sub(healed); {
		case len(l.delivered) > 0:
			waits = append(waits, l.delivered[0].Sub(l.sent))
			continue
		case since > 0:
			r.again = max(r.again, since)
		default:
			r.whole = max(r.whole, l.sent.Sub(fault))
		}
		if r.refused[orDash(l.why)]++; len(l.bounced) == 0 {
			r.silentBetween++
		}
	}
	if len(waits) > 0 {
		slices.Sort(waits)
		r.p99 = waits[len(waits)*99/100]
	}
	sort.Strings(r.problems) // silent ones first
	return r
}

func (r *chatReport) count(l *letter, untouched bool) {
	if len(l.delivered) > 0 {
		r.delivered++
	}
	if len(l.delivered) > 1 {
		r.twice++
	}
	if len(l.bounced) > 0 {
		r.bounced++
		if untouched {
			r.bouncedWhole++
		}
		if len(l.delivered) > 0 {
			r.both++
		}
	}
	if len(l.delivered)+len(l.bounced) == 0 {
		r.silent++
		if untouched {
			r.silentWhole++
		}
	}
}
