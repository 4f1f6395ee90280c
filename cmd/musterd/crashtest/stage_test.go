//go:build crash && linux

package crashtest

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"muster/edges/http/adminapi"
)

// stage is a cluster with people on all of its nodes who are all each other's contacts.
type stage struct {
	*testCluster
	people []*person
}

// newStage makes count users, and logs each in at a node such that every pair of home node and session node occurs.
func newStage(t *testing.T, c *testCluster, count int) *stage {
	t.Helper()
	s := &stage{testCluster: c}
	var users []adminapi.NewUser
	for i := range count {
		users = append(users, adminapi.NewUser{JID: fmt.Sprintf("p%02d@%s", i, domain), Password: fmt.Sprintf("secret-%02d", i)})
	}
	var outcomes []adminapi.Outcome
	c.nodes[0].must(http.MethodPost, "/users", users, &outcomes)
	mustSucceed(t, outcomes)
	var pairs []adminapi.Pair
	for i := range count {
		for j := range i {
			pairs = append(pairs, adminapi.Pair{User: users[i].JID, Contact: users[j].JID})
		}
	}
	c.nodes[0].must(http.MethodPost, "/contacts", pairs, &outcomes)
	mustSucceed(t, outcomes)
	atHome := map[string]int{}
	for i, u := range users {
		var shown adminapi.User
		c.nodes[0].must(http.MethodGet, "/users/"+u.JID, nil, &shown)
		home := slices.IndexFunc(c.nodes, func(n *node) bool { return n.name == shown.Home })
		if home < 0 {
			t.Fatalf("%s has the home %q", u.JID, shown.Home)
		}
		p := newPerson(fmt.Sprintf("p%02d", i), u.Password, c.nodes[(home+atHome[shown.Home])%len(c.nodes)])
		p.home = shown.Home
		atHome[shown.Home]++
		s.people = append(s.people, p)
	}
	return s
}

func mustSucceed(t *testing.T, outcomes []adminapi.Outcome) {
	t.Helper()
	for _, o := range outcomes {
		if o.Code != "" {
			t.Fatalf("%s: %s %s", o.Subject, o.Code, o.Text)
		}
	}
}

// enter logs everybody in.
func (s *stage) enter() {
	for _, p := range s.people {
		go p.live()
	}
	s.t.Cleanup(func() {
		var wg sync.WaitGroup
		for _, p := range s.people {
			wg.Go(p.leave)
		}
		wg.Wait()
	})
	if _, problems := s.awaitPresence(nil, time.Now(), 30*time.Second, true); len(problems) > 0 {
		s.t.Fatalf("at the beginning: %d problems: %v", len(problems), first(problems))
	}
}

// presenceProblems lists who sees whom wrongly, among clients on nodes that are not hit. With
// all, everybody must be online and see also the others' status texts.
func (s *stage) presenceProblems(hit []*node, all bool) []string {
	var out []string
	for _, w := range s.people {
		if slices.Contains(hit, w.node) {
			continue
		}
		if !w.online() {
			if all {
				out = append(out, fmt.Sprintf("%v is offline", w))
			}
			continue
		}
		for _, v := range s.people {
			if v == w {
				continue
			}
			got, sees := w.sees(v.full())
			want := v.online() && !slices.Contains(hit, v.node)
			v.mu.Lock()
			status := v.status
			v.mu.Unlock()
			switch {
			case sees != want:
				out = append(out, fmt.Sprintf("%v (home %s) sees %v (home %s) available: %v", w, w.home, v, v.home, sees))
			case all && want && got.status != status:
				out = append(out, fmt.Sprintf("%v (home %s) sees %v (home %s) with status %q, not %q", w, w.home, v, v.home, got.status, status))
			}
		}
	}
	return out
}

// awaitPresence waits until presence is right, at most until limit after from, and returns when it was, after from.
func (s *stage) awaitPresence(hit []*node, from time.Time, limit time.Duration, all bool) (time.Duration, []string) {
	var problems []string
	eventually(time.Until(from.Add(limit)), 25*time.Millisecond, func() bool {
		problems = s.presenceProblems(hit, all)
		return len(problems) == 0
	})
	return time.Since(from), problems
}

// chatter lets people change their status in turn until ctx ends.
func (s *stage) chatter(ctx context.Context, step time.Duration) {
	for i := 0; ; i++ {
		s.people[i%len(s.people)].say(fmt.Sprintf("s%d", i))
		select {
		case <-ctx.Done():
			return
		case <-time.After(step):
		}
	}
}

// exactlyOnce judges the unavailable presences since the fault: of sessions on
// hit nodes every other client is to get one, of all others none.
func (s *stage) exactlyOnce(hit []*node, since time.Time) (right, wanted, flicker int, problems []string) {
	for _, w := range s.people {
		if slices.Contains(hit, w.node) {
			continue
		}
		for _, v := range s.people {
			if v == w {
				continue
			}
			n := w.unavailableSince(v.full(), since)
			if !slices.Contains(hit, v.node) {
				flicker += n
				if n > 0 {
					problems = append(problems, fmt.Sprintf("%v saw %v leave %d times, who never left", w, v, n))
				}
				continue
			}
			wanted++
			if n == 1 {
				right++
			} else {
				problems = append(problems, fmt.Sprintf("%v (home %s) was told %d times that %v (home %s) left", w, w.home, n, v, v.home))
			}
		}
	}
	return right, wanted, flicker, problems
}

// survivors are the nodes that are not hit.
func (s *stage) survivors(hit []*node) []*node {
	var out []*node
	for _, n := range s.nodes {
		if !slices.Contains(hit, n) {
			out = append(out, n)
		}
	}
	return out
}

// digests runs the operator's comparison on every node until all tables of all nodes are equal.
func (s *testCluster) digests(limit time.Duration) string {
	last := ""
	for _, n := range s.nodes {
		ok := eventually(limit, 200*time.Millisecond, func() bool {
			out, errs, status := n.muster("replication", "status")
			last = n.name + ": " + out + errs
			return status == 0
		})
		if !ok {
			return last
		}
	}
	return ""
}

// first shortens a list for a message.
func first(list []string) []string {
	const shown = 8
	if len(list) > shown {
		return append(slices.Clone(list[:shown]), fmt.Sprintf("… and %d more", len(list)-shown))
	}
	return list
}

// load is what goes on around a fault.
type load struct {
	s        *stage
	journal  *journal
	rosters  []*rosterLoad
	chat     *chat
	cancel   context.CancelFunc
	finished sync.WaitGroup
}

// The load's pace: together about 40 changes, 90 messages and 4 changes of presence a second.
const (
	registerStep = 120 * time.Millisecond
	rosterStep   = 250 * time.Millisecond
	chatStep     = 200 * time.Millisecond
	statusStep   = 250 * time.Millisecond
	writers      = 6 // people who change their rosters
)

func (s *stage) startLoad() *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{s: s, journal: &journal{}, chat: newChat(), cancel: cancel}
	for _, p := range s.people {
		p.mu.Lock()
		p.chat = l.chat
		p.mu.Unlock()
	}
	for _, n := range s.nodes {
		l.finished.Go(func() { l.journal.run(ctx, n, registerStep) })
	}
	for _, p := range s.people[:writers] {
		r := newRosterLoad(p)
		l.rosters = append(l.rosters, r)
		l.finished.Go(func() { r.run(ctx, rosterStep) })
	}
	l.finished.Go(func() { l.chat.run(ctx, s.people, chatStep) })
	l.finished.Go(func() { s.chatter(ctx, statusStep) })
	return l
}

// stop ends the load and waits for what is under way.
func (l *load) stop() {
	l.cancel()
	l.finished.Wait()
	l.chat.settle(5 * time.Second)
}

// confirmed counts all confirmed changes and those of unknown outcome.
func (l *load) counts() (confirmed, unknown int) {
	confirmed, unknown = l.journal.counts()
	for _, r := range l.rosters {
		confirmed, unknown = confirmed+r.confirmed, unknown+r.unknown
	}
	return confirmed, unknown
}

// lost reads everything back at every node.
func (l *load) lost() []string {
	out := l.journal.lost(l.s.nodes)
	for _, r := range l.rosters {
		for _, n := range l.s.nodes {
			roster, err := r.p.fetchRoster(n)
			if err != nil {
				out = append(out, fmt.Sprintf("roster of %s at %s: %v", r.p.user.JID(), n.name, err))
				continue
			}
			out = append(out, r.lost(n.name, roster)...)
		}
	}
	return out
}
