package simnode

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	messagestate "muster/feature/message/state"
	"muster/feature/roster/state"
	"muster/fsm"
	"muster/fsm/config"
	"muster/fsm/user"
	"muster/internal/jid"
	"muster/log"
	"muster/replication"
	"muster/router/stanza"
)

func subscription(a, b jid.JID) []*log.Entry {
	return []*log.Entry{
		state.SubscriptionEntry(state.Request{From: a, To: b, Type: state.Subscribe}),
		state.SubscriptionEntry(state.Request{From: b, To: a, Type: state.Subscribed}),
	}
}

// Figures are what a run measured.
type Figures struct {
	Serve      time.Duration // from the last fault's end until all nodes served
	Presence   time.Duration // from then until everybody's presence was right
	Leaderless time.Duration // longest time that a connected majority was without a leader
	Chats      int
	Doubtful   int // of them: a fault excuses that they came twice, out of order, or not at all
	Confirmed  int // changes
	Unknown    int // changes whose outcome was not confirmed
}

// Settle ends all faults, waits for the cluster to be whole, and checks every promise.
func (c *Cluster) Settle(ld *Load) (f Figures) {
	c.t.Helper()
	ld.Calm()
	c.Heal()
	c.adopt()
	for _, h := range c.Hosts() {
		h.Start()
	}
	f.Serve = c.Until("all nodes serve", 30*time.Second, func() bool { c.adopt(); return c.allReady() && c.Leader() != nil })
	f.Presence = c.awaitPresence()
	ld.work.Wait()
	ld.Stop()
	time.Sleep(10 * time.Second) // for the last errors and deliveries
	c.converge(10 * time.Second)
	for _, what := range c.wrongPresence() {
		c.History.Violate("presence is wrong again: %s", what)
	}
	c.checkTables()
	c.checkRegisters()
	c.checkRows()
	f.Chats = c.checkChats()
	f.Doubtful = c.History.doubtful
	c.checkFarewells()
	for _, ops := range c.History.ops {
		for _, o := range ops {
			if o.ok && !o.read {
				f.Confirmed++
			} else if !o.ok {
				f.Unknown++
			}
		}
	}
	return f
}

// awaitPresence waits until every client's view is right.
func (c *Cluster) awaitPresence() time.Duration {
	start := time.Now()
	for {
		wrong := c.wrongPresence()
		d := time.Since(start)
		if len(wrong) == 0 {
			return d
		}
		if d > presenceTime {
			c.History.Violate("%s: presence is not right after %v: %s\n%s", c.at(time.Now()), presenceTime, strings.Join(wrong, "\n"), c.describeHomes())
			return d
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// describeHomes tells where each client's session and home are, and what rows the nodes hold of it.
func (c *Cluster) describeHomes() string {
	var b strings.Builder
	for _, cl := range c.Clients() {
		fmt.Fprintf(&b, "%s:", cl.Name())
		if h := cl.Session(); h != nil {
			fmt.Fprintf(&b, " on %s", h.Name)
		}
		for _, h := range c.Running() {
			r := h.Node().Router()
			home, ok := r.HomeOf(cl.User)
			fmt.Fprintf(&b, "; %s: home %d %v epoch %d", h.Name, home.Node, ok, home.Epoch)
			if row, ok := r.Hot().Row(cl.User, cl.Resource); ok {
				fmt.Fprintf(&b, " row of %d", row.Node)
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

// wrongPresence compares what each available client was told with what is.
func (c *Cluster) wrongPresence() (wrong []string) {
	truth := map[string]string{}
	users := map[string]jid.JID{}
	for _, cl := range c.Clients() {
		cl.mu.Lock()
		if l := cl.life; l != nil && l.online {
			truth[cl.full()] = l.status
			users[cl.full()] = cl.User
		}
		cl.mu.Unlock()
	}
	lead := c.Leader()
	if lead == nil {
		return []string{"there is no leader"}
	}
	for _, cl := range c.Clients() {
		cl.mu.Lock()
		l := cl.life
		if l == nil || !l.online {
			cl.mu.Unlock()
			continue
		}
		for full, status := range truth {
			if full == cl.full() || !sees(lead.Node().State(), cl.User, users[full]) {
				continue
			}
			if got, ok := l.view[full]; !ok || got != status {
				wrong = append(wrong, fmt.Sprintf("%s on %s since %s sees %s as %q, it is %q; it was told:%s", cl.Name(), l.host.Name, c.at(l.start), full, got, status, c.sights(l, full, time.Now())))
			}
		}
		for full, got := range l.view {
			if _, ok := truth[full]; !ok {
				wrong = append(wrong, fmt.Sprintf("%s on %s since %s sees %s as %q, it is offline; it was told:%s", cl.Name(), l.host.Name, c.at(l.start), full, got, c.sights(l, full, time.Now())))
			}
		}
		cl.mu.Unlock()
	}
	return wrong
}

// sees reports whether a user gets another's presence.
func sees(r fsm.Reader, who, whose jid.JID) bool {
	if who == whose {
		return true
	}
	item, ok := state.Get(r, who, whose)
	return ok && item.Sub.HasTo()
}

// checkTables compares the nodes' tables at one index, and each node's tables with its own digests.
func (c *Cluster) checkTables() {
	n := c.Leader().Node()
	for _, g := range []*replication.Group{n.Group(), n.Messages()} {
		ctx, cancel := within(20 * time.Second)
		report, err := g.CompareDigests(ctx)
		cancel()
		switch {
		case err != nil:
			c.History.Violate("digests of the %s log cannot be compared: %v", g.Name(), err)
		case !report.Equal:
			c.History.Violate("tables of the %s log differ: %+v", g.Name(), report.Tables)
		case len(report.Missing) > 0:
			c.History.Violate("no digests of the %s log from %v", g.Name(), report.Missing)
		}
	}
	for _, h := range c.Running() {
		for _, m := range []*fsm.Machine{h.Node().State(), h.Node().MessageState()} {
			if err := m.VerifyDigests(); err != nil {
				c.History.Violate("%s: %v", h.Name, err)
			}
		}
	}
}

// checkRegisters reads every register on every node and checks its history.
func (c *Cluster) checkRegisters() {
	keys := c.History.keys()
	slices.Sort(keys)
	for _, key := range keys {
		for _, h := range c.Running() {
			c.History.saw(key, lookup(h.Node().State(), key), time.Now())
		}
		if !c.History.linearizable(key) {
			c.History.Violate("the history of %q is not linearizable:\n%s", key, c.History.describe(key))
		}
	}
}

// lookup reads a register by its name in the history.
func lookup(r fsm.Reader, key string) string {
	kind, rest, _ := strings.Cut(key, " ")
	switch kind {
	case "setting":
		if value, source, _ := config.Effective(r, rest, 0); source != "default" {
			return value
		}
		return ""
	case "user":
		if user.Exists(r, rest) {
			return "exists"
		}
		return ""
	}
	item, _ := state.Get(r, jid.MustParse(kind), jid.MustParse(rest))
	return item.Name
}

// checkRows compares what the nodes hold of everybody's presence.
func (c *Cluster) checkRows() {
	var first, name string
	for _, h := range c.Running() {
		var rows []string
		for _, n := range c.Running() {
			for _, cl := range c.Clients() {
				if row, ok := h.Node().Router().Hot().Row(cl.User, cl.Resource); ok && row.Node == n.ID {
					rows = append(rows, fmt.Sprint(row.User, "/", row.Resource, " on ", row.Node, " inc ", row.Incarnation, " session ", row.Session))
				}
			}
		}
		slices.Sort(rows)
		all := strings.Join(rows, ", ")
		if name != "" && all != first {
			c.History.Violate("rows differ: %s has %s; %s has %s", name, first, h.Name, all)
		}
		first, name = all, h.Name
	}
}

// checkChats checks that each message came to one end, in order.
func (c *Cluster) checkChats() int {
	h := c.History
	c.readKept()
	h.mu.Lock()
	chats := h.order
	h.mu.Unlock()
	last := map[[2]*life]*chat{}
	for _, m := range chats {
		for _, what := range h.judge(m, last) {
			h.Violate("message %s of %s from %s to %s, sent at %s on %s: %s%s", m.id, m.from.cl.Name(), m.from.host.Name, m.to, c.at(m.sent), m.from.host.Name, what, c.fate(m))
		}
	}
	return len(chats)
}

// readKept notes what the message log has of each message.
func (c *Cluster) readKept() {
	r, h := c.Leader().Node().MessageState(), c.History
	h.mu.Lock()
	defer h.mu.Unlock()
	number := map[uint64]*chat{}
	r.Scan(messagestate.Messages, nil, nil, func(k, _ []byte) bool {
		if m, ok := messagestate.ByNumber(r, binary.BigEndian.Uint64(k)); ok {
			if p, err := stanza.ParsePacket(m.XML); err == nil && h.chats[p.ID] != nil {
				h.chats[p.ID].kept++
				number[m.Number] = h.chats[p.ID]
			}
		}
		return true
	})
	for _, cl := range c.Clients() {
		for _, n := range messagestate.Inbox(r, cl.User.String()) {
			if m := number[n]; m != nil {
				m.waiting = true
			}
		}
	}
}

// Excuses for a message's fate.
const (
	// disruptionReach is how long a fault has its effects: a node is noticed to be down after 3 s, and may be isolated as long.
	disruptionReach = 10 * time.Second
	// deathReach is how long a message may be under way to or from a node that then dies with it.
	deathReach = 6 * time.Second
	// noticeReach is how much later than a session's node another one may notice that homes move.
	noticeReach = 100 * time.Millisecond
	// lagReach is how long a node may be behind the log, cut off in one direction, before it is isolated.
	lagReach = 3 * time.Second
)

// judge says what is wrong with a message's fate. What a process had taken over
// may die with it, and what a node was given whose home moved may come twice;
// nothing else is excused. Called with nobody else at work.
func (h *History) judge(m *chat, last map[[2]*life]*chat) (wrong []string) {
	got := map[*life]int{}
	end := m.sent
	for _, e := range m.errors {
		end = later(end, e)
	}
	for _, a := range m.arrived {
		end = later(end, a.at)
		if got[a.l]++; got[a.l] > 1 {
			wrong = append(wrong, "delivered twice")
			continue
		}
		before := last[[2]*life{m.from, a.l}]
		if before != nil && before.firstAt(a.l).After(a.at) && !m.detour(before, a) {
			wrong, end = append(wrong, "delivered before the earlier "+before.id), later(end, before.firstAt(a.l))
		}
	}
	for l := range got {
		last[[2]*life{m.from, l}] = m
	}
	switch {
	case m.refused && len(m.errors) > 0:
		return append(wrong, "refused and answered with an error")
	case m.refused:
	case len(m.errors) > 1:
		wrong = append(wrong, fmt.Sprintf("answered with %d errors", len(m.errors)))
	case m.kept > 1:
		return append(wrong, fmt.Sprintf("kept %d times", m.kept))
	case m.acked && m.kept == 0 && len(m.errors) == 0 && !h.errorMayBeLost(m):
		return append(wrong, "acknowledged, not kept, and no error came")
	case m.kept > 0 && len(m.arrived) == 0 && !m.waiting:
		return append(wrong, "kept, and neither delivered nor waiting")
	case len(m.errors) == 1 && m.kept > 0:
		wrong = append(wrong, "kept, and answered with an error")
	case m.kept == 0 && len(m.arrived) > 0:
		return append(wrong, "delivered and not kept")
	case len(m.errors) == 0 && m.kept == 0 && m.from.ended.IsZero():
		// The cluster took the session of a node that was declared down for ended: an error for it is nobody's. Nor is
		// one for a session that is attached where its home was, by a log that lags behind the home's by more than seconds.
		if !h.errorMayBeLost(m) {
			return append(wrong, "silence")
		}
		h.doubtful++
	}
	if len(wrong) > 0 && (h.had(move, m.sent.Add(-disruptionReach), end.Add(noticeReach)) || h.had(death, m.sent, end)) {
		h.doubtful++
		return nil
	}
	return wrong
}

// errorMayBeLost reports whether a fault excuses that an error for a message did not come to its sender.
func (h *History) errorMayBeLost(m *chat) bool {
	return h.had(death, m.sent, m.sent.Add(deathReach)) || h.hadOn(m.from.host.Name, isolation, m.sent, m.sent.Add(disruptionReach)) ||
		h.hadOn(m.from.host.Name, move, m.sent, m.sent.Add(lagReach))
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// detour reports whether an earlier message was given to another session of the
// recipient first, which ended without having taken it: it comes late then.
func (m *chat) detour(before *chat, a arrival) bool {
	for _, l := range a.l.cl.c.livesOf(a.l.cl.User) {
		if !l.ended.IsZero() && l.ended.After(before.sent.Add(-disruptionReach)) && l.ended.Before(before.firstAt(a.l)) {
			return true
		}
	}
	return false
}

func (m *chat) firstAt(l *life) time.Time {
	for _, a := range m.arrived {
		if a.l == l {
			return a.at
		}
	}
	return time.Time{}
}

// fate tells what happened to a message.
func (c *Cluster) fate(m *chat) string {
	var s string
	for _, a := range m.arrived {
		s += fmt.Sprintf("; arrived at %s at %s on %s", a.l.cl.Name(), c.at(a.at), a.l.host.Name)
		if !a.l.ended.IsZero() {
			s += fmt.Sprintf(" (ended %s at %s)", a.l.how, c.at(a.l.ended))
		}
	}
	for _, e := range m.errors {
		s += "; error at " + c.at(e)
	}
	return s
}

// checkFarewells checks that no client was told twice that somebody has gone.
// Where the watcher's home moved, the new home does not know what the old one
// told, and repeats what happened lately.
func (c *Cluster) checkFarewells() {
	for _, cl := range c.Clients() {
		for _, l := range cl.lives() {
			there := map[string]bool{}
			for _, s := range l.told {
				if s.gone && !there[s.from] && s.from != cl.full() && !c.History.had(disruption, s.at.Add(-disruptionReach), s.at) &&
					!c.History.had(move, s.at.Add(-disruptionReach), s.at) {
					c.History.Violate("%s on %s since %s was told at %s that %s is gone, which it was already:%s", cl.Name(), l.host.Name, c.at(l.start), c.at(s.at), s.from, c.sights(l, s.from, s.at))
				}
				there[s.from] = !s.gone
			}
		}
	}
}

// sights lists what a client was told of a peer up to a time.
func (c *Cluster) sights(l *life, from string, to time.Time) string {
	var out string
	for _, o := range l.told {
		if o.from == from && !o.at.After(to) {
			out += fmt.Sprintf(" %s %q", c.at(o.at), o.status)
		}
	}
	return out
}

// describe lists a key's history.
func (h *History) describe(key string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var b strings.Builder
	for _, o := range h.ops[key] {
		what := "write"
		if o.read {
			what = "read"
		}
		fmt.Fprintf(&b, "  %.3f-%.3f %s %q ok %v\n", o.call.Sub(h.start).Seconds(), o.done.Sub(h.start).Seconds(), what, o.value, o.ok)
	}
	return b.String()
}
