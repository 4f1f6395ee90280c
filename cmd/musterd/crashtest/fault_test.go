//go:build crash && linux

package crashtest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// What a fault may cost (DESIGN.md section 1, reliability-security.md F1-F6).
const (
	leaderLimit   = 3 * time.Second
	presenceLimit = 5 * time.Second
	writeLimit    = 5 * time.Second
	pauseTime     = 5 * time.Second
	warmUp        = 2 * time.Second        // of load before a fault
	coolDown      = 2 * time.Second        // and after all is well again
	calm          = 150 * time.Millisecond // a machine that is never later than this has no reason to lose its leader by itself
)

// fault is one way to break a running cluster.
type fault struct {
	name   string
	short  bool // part of the short run
	hit    func(s *stage, leader *node) []*node
	strike func(n *node)
	heal   func(o *ordeal) // brings the hit nodes back
	halted bool            // too few are left to change anything, or to declare anybody down
}

func theLeader(_ *stage, leader *node) []*node { return []*node{leader} }

// aFollower is the last node that does not lead.
func aFollower(s *stage, leader *node) []*node {
	for i := len(s.nodes) - 1; ; i-- {
		if s.nodes[i] != leader {
			return []*node{s.nodes[i]}
		}
	}
}

func theFollowers(s *stage, leader *node) []*node { return s.survivors([]*node{leader}) }

func everyNode(s *stage, _ *node) []*node { return s.nodes }

var faults = []fault{
	{name: "kill -9 of the leader", short: true, hit: theLeader, strike: (*node).kill, heal: (*ordeal).restart},
	{name: "kill -9 of a follower", hit: aFollower, strike: (*node).kill, heal: (*ordeal).restart},
	{name: "SIGSTOP of the leader, 5 s", short: true, hit: theLeader, strike: (*node).pause, heal: (*ordeal).resume},
	{name: "SIGSTOP of a follower, 5 s", hit: aFollower, strike: (*node).pause, heal: (*ordeal).resume},
	{name: "SIGSTOP of both followers, 5 s", hit: theFollowers, strike: (*node).pause, heal: (*ordeal).resume, halted: true},
	{name: "kill -9 of all at once", short: true, hit: everyNode, strike: (*node).kill, heal: (*ordeal).restartAll},
	{name: "rolling restart", hit: func(*stage, *node) []*node { return nil }, heal: (*ordeal).roll},
}

func (n *node) pause() { n.signal(syscall.SIGSTOP) }

// TestFaults breaks one cluster in every way, one after the other, under load.
func TestFaults(t *testing.T) {
	s := newStage(t, newCluster(t, "one", "two", "three"), 18)
	s.enter()
	report := newTable("Faults under load (about 40 changes, 90 messages and 4 changes of presence a second; 3 nodes, 18 sessions, all contacts of each other)",
		"fault", "confirmed", "unknown", "lost", "history", "leader after", "write after", "presence right after", "left once", "flicker",
		"messages", "delivered", "bounced", "silent", "twice", "both", "chat whole after", "and after the return", "p99", "ready again", "machine late by", "gate")
	for _, f := range faults {
		if testing.Short() && !f.short {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			s.t = t
			(&ordeal{stage: s, fault: f, report: report}).run()
		})
	}
	s.t = t
	report.print(t)
}

// ordeal is one fault, from the load before to the checks after.
type ordeal struct {
	*stage
	fault  fault
	report *table
	load   *load

	hit        []*node
	leader     *node
	term       float64
	at         time.Time     // of the strike
	newLeader  time.Duration // until another node led, after the strike; 0: the leader was not hit
	healed     time.Time     // when the hit nodes were brought back
	readyAgain time.Duration // until they served, after that
	gates      []string      // reasons that waiting nodes gave
	right      time.Duration // until presence was right without the hit nodes, after the strike
	once       string
	flicker    int
	strain     *strain
}

// strain is how late the machine lets this process run: what the nodes, which
// are no better off, may be late too. On an idle machine it is nothing.
type strain struct {
	mu    sync.Mutex
	worst time.Duration
	quit  chan struct{}
}

func newStrain() *strain {
	s := &strain{quit: make(chan struct{})}
	go func() {
		const step = 20 * time.Millisecond
		for {
			begun := time.Now()
			select {
			case <-s.quit:
				return
			case <-time.After(step):
			}
			s.mu.Lock()
			s.worst = max(s.worst, time.Since(begun)-step)
			s.mu.Unlock()
		}
	}()
	return s
}

// late is the longest that this process had to wait for a processor.
func (s *strain) late() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.worst
}

// within is a limit on this machine: an election needs three messages there and back.
func (o *ordeal) within(limit time.Duration) time.Duration { return limit + 6*o.strain.late() }

func (o *ordeal) run() {
	o.strain = newStrain()
	defer close(o.strain.quit)
	if _, problems := o.awaitPresence(nil, time.Now(), 20*time.Second, true); len(problems) > 0 {
		o.t.Fatalf("before the fault: %v", first(problems))
	}
	o.leader, o.term = o.mustLeader()
	o.load = o.startLoad()
	time.Sleep(warmUp)
	o.strike()
	o.fault.heal(o)
	back, problems := o.awaitPresence(nil, time.Now(), 20*time.Second, false)
	if len(problems) > 0 {
		o.t.Errorf("presence is not right again %v after the nodes came back: %v", back, first(problems))
	}
	time.Sleep(coolDown)
	o.load.stop()
	o.check()
}

// strike hits the nodes and watches what the others do about it.
func (o *ordeal) strike() {
	o.hit = o.fault.hit(o.stage, o.leader)
	o.at = time.Now()
	var all sync.WaitGroup
	for _, n := range o.hit {
		all.Go(func() { o.fault.strike(n) })
	}
	all.Wait()
	left := o.survivors(o.hit)
	switch {
	case len(left) == 0 || len(o.hit) == 0:
		return
	case o.fault.halted:
		time.Sleep(time.Until(o.at.Add(pauseTime)))
		return
	}
	var elected sync.WaitGroup
	if o.hit[0] == o.leader {
		elected.Go(func() { o.awaitLeader(left, 10*time.Second) })
	}
	var problems []string
	if o.right, problems = o.awaitPresence(o.hit, o.at, 3*presenceLimit, false); len(problems) > 0 || o.right > o.within(presenceLimit) {
		o.t.Errorf("presence is right only %v after the fault: %d problems: %v", o.right, len(problems), first(problems))
	}
	elected.Wait()
	time.Sleep(time.Until(o.at.Add(pauseTime)))
}

// awaitLeader notes how long it took until another node led in a later term.
func (o *ordeal) awaitLeader(among []*node, limit time.Duration) {
	ok := eventually(limit, 25*time.Millisecond, func() bool {
		n, term := leader(among)
		return n != nil && term > o.term
	})
	o.newLeader = time.Since(o.at)
	if !ok || o.newLeader > o.within(leaderLimit) {
		o.t.Errorf("no new leader within %v: it took %v", o.within(leaderLimit), o.newLeader)
	}
}

// judgeDepartures counts what the others were told of the sessions on hit nodes, before those come back.
func (o *ordeal) judgeDepartures() {
	right, wanted, flicker, problems := o.exactlyOnce(o.hit, o.at)
	o.once, o.flicker = fmt.Sprintf("%d of %d", right, wanted), flicker
	if len(problems) > 0 {
		o.t.Errorf("departures: %d problems: %v", len(problems), first(problems))
	}
	for _, p := range o.people {
		if n := p.lossesSince(o.at); n > 0 && !contains(o.hit, p.node) {
			o.t.Errorf("%v lost its connection %d times", p, n)
		}
	}
}

func contains(nodes []*node, n *node) bool {
	for _, m := range nodes {
		if m == n {
			return true
		}
	}
	return false
}

// restart brings a killed node back and watches its gate.
func (o *ordeal) restart() {
	o.judgeDepartures()
	o.healed = time.Now()
	for _, n := range o.hit {
		n.start()
		o.watchGate(n)
	}
	o.readyAgain = time.Since(o.healed)
}

// watchGate notes what a starting node says until it is ready. While it is not, clients must not get in.
func (o *ordeal) watchGate(n *node) {
	seen := map[string]bool{}
	ok := eventually(readyTime, 5*time.Millisecond, func() bool {
		ready, status, reason := n.ready()
		if !ready && status == 503 && !seen[reason] {
			seen[reason] = true
			o.gates = append(o.gates, reason)
		}
		return ready || !n.running()
	})
	if !ok || !n.running() {
		o.t.Fatalf("%s did not come back: %v\n%s", n.name, o.gates, n.lastWords())
	}
	if len(seen) == 0 {
		o.t.Errorf("%s never said that it waits", n.name)
	}
}

// resume lets a stopped node go on. What it was asked meanwhile it must not confirm as the leader that it was.
func (o *ordeal) resume() {
	if !o.fault.halted {
		o.judgeDepartures()
	}
	o.healed = time.Now()
	for _, n := range o.hit {
		n.signal(syscall.SIGCONT)
	}
	for _, n := range o.hit {
		n.awaitReady(readyTime)
	}
	o.readyAgain = time.Since(o.healed)
	took, problems := o.awaitPresence(nil, o.healed, 3*presenceLimit, false)
	if len(problems) > 0 || took > o.within(presenceLimit) {
		o.t.Errorf("presence is right only %v after the nodes went on: %d problems: %v", took, len(problems), first(problems))
	}
	if o.fault.halted {
		o.right = took
	}
}

// restartAll starts one node alone, which must wait and say so, and then the others.
func (o *ordeal) restartAll() {
	o.healed = time.Now()
	alone := o.nodes[len(o.nodes)-1]
	alone.start()
	reason := ""
	if !eventually(readyTime, 20*time.Millisecond, func() bool {
		ok, status, why := alone.ready()
		reason = why
		return !ok && status == 503 && why != ""
	}) {
		o.t.Errorf("a node without a majority does not say why it waits: %s", reason)
	}
	out := alone.mustMuster("services")
	if !strings.Contains(out, "[STARTING]") {
		o.t.Errorf("muster services does not show what waits:\n%s", out)
	}
	o.gates = append(o.gates, reason)
	refusedAtOnce(o.t, alone.clientAddr)
	if _, err := change(alone, registers[0], o.load.journal.value()); err == nil {
		o.t.Error("a node without a majority confirmed a change")
	}
	begun := time.Now()
	for _, n := range o.nodes[:len(o.nodes)-1] {
		n.start()
	}
	eventually(10*time.Second, 20*time.Millisecond, func() bool { n, _ := leader(o.nodes); return n != nil })
	o.newLeader = time.Since(begun)
	for _, n := range o.nodes {
		n.awaitReady(readyTime)
	}
	o.readyAgain = time.Since(begun)
	o.at = begun // gaps count from when a majority was there
}

// refusedAtOnce checks that a client port does not leave its clients waiting.
func refusedAtOnce(t *testing.T, address string) {
	t.Helper()
	begun := time.Now()
	conn, err := net.DialTimeout("tcp", address, 2*time.Second)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return
	}
	if err != nil {
		t.Errorf("%s: %v after %v, want a refusal", address, err, time.Since(begun))
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
	_, _ = io.WriteString(conn, openStream)
	b, err := io.ReadAll(conn)
	if err != nil || !strings.Contains(string(b), "see-other-host") {
		t.Errorf("%s leaves its client waiting: %.200s %v", address, b, err)
	}
}

// openStream is a client's stream header.
const openStream = `<?xml version='1.0'?><stream:stream to='` + domain + `' version='1.0' xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>`

// roll restarts one node after the other in good order.
func (o *ordeal) roll() {
	o.at = time.Now()
	for _, n := range o.nodes {
		was, term := o.mustLeader()
		at := time.Now()
		n.stop()
		if was == n {
			left := o.survivors([]*node{n})
			ok := eventually(o.within(leaderLimit), 25*time.Millisecond, func() bool { who, now := leader(left); return who != nil && now > term })
			if o.newLeader = max(o.newLeader, time.Since(at)); !ok {
				o.t.Errorf("no new leader %v after %s was asked to stop", leaderLimit, n.name)
			}
		}
		right, problems := o.awaitPresence([]*node{n}, at, stopTime, false)
		if len(problems) > 0 {
			o.t.Errorf("presence without %s is not right: %v", n.name, first(problems))
		}
		o.right = max(o.right, right)
		o.healed = time.Now()
		n.start()
		o.watchGate(n)
		o.readyAgain = max(o.readyAgain, time.Since(o.healed))
		if _, problems := o.awaitPresence(nil, time.Now(), 15*time.Second, false); len(problems) > 0 {
			o.t.Errorf("presence with %s again is not right: %v", n.name, first(problems))
		}
	}
	for _, p := range o.people {
		if n := p.lossesSince(o.at); n != 1 {
			o.t.Errorf("%v lost its connection %d times in a rolling restart", p, n)
		}
	}
}

// check reads everything back and adds the row.
func (o *ordeal) check() {
	if _, problems := o.awaitPresence(nil, time.Now(), presenceLimit, true); len(problems) > 0 {
		o.t.Errorf("presence at the end: %d problems: %v", len(problems), first(problems))
	}
	lost := o.load.lost()
	if len(lost) > 0 {
		o.t.Errorf("%d confirmed changes are lost: %v", len(lost), first(lost))
	}
	history := o.load.journal.linearizable()
	if history != porcupine.Ok {
		o.t.Errorf("the history of the registers is not linearizable: %v", history)
	}
	if bad := o.load.journal.misordered(); len(bad) > 0 {
		o.t.Errorf("indexes against real time: %v", first(bad))
	}
	if differ := o.digests(10 * time.Second); differ != "" {
		o.t.Errorf("tables differ: %s", differ)
	}
	left := o.survivors(o.hit)
	if len(left) == 0 {
		left = o.nodes
	}
	gap := o.load.journal.gap(left, o.at)
	if o.fault.halted {
		gap = o.load.journal.gap(o.nodes, o.healed)
	}
	if gap < 0 || gap > o.within(writeLimit) && len(o.hit) < len(o.nodes) {
		o.t.Errorf("no change was confirmed within %v after the fault: %v", writeLimit, gap)
	}
	for _, n := range o.hit {
		if k := o.load.journal.staleFrom(n, o.at, o.healed); k > 0 {
			o.t.Errorf("%s confirmed %d changes under its old term", n.name, k)
		}
	}
	o.addRow(len(lost), history, gap, o.checkChat())
}

// checkChat judges the messages. In an orderly or total restart every node counts as hit.
func (o *ordeal) checkChat() chatReport {
	var names []string
	for _, n := range o.hit {
		names = append(names, n.name)
	}
	if len(o.hit) == 0 {
		for _, n := range o.nodes {
			names = append(names, n.name)
		}
	}
	r := o.load.chat.report(o.at, o.healed, names)
	if r.silentWhole+r.silentBetween > 0 || r.delivered == 0 || r.again > o.within(presenceLimit) ||
		!o.fault.halted && (r.bouncedWhole > 0 && o.strain.late() < calm || r.whole > o.within(presenceLimit)) {
		o.t.Errorf("hit: %v; messages: between untouched nodes %d silent and %d bounced; between surviving sessions %d silent; whole after %v and %v: %v",
			names, r.silentWhole, r.bouncedWhole, r.silentBetween, r.whole, r.again, r.refused)
		for _, problem := range first(r.problems) {
			o.t.Log(problem)
		}
	}
	return r
}

func (o *ordeal) addRow(lost int, history porcupine.CheckResult, gap time.Duration, chat chatReport) {
	confirmed, unknown := o.load.counts()
	leader := "kept"
	if o.newLeader > 0 {
		leader = fmt.Sprintf("%.2f s", o.newLeader.Seconds())
	}
	gate := "-"
	if len(o.gates) > 0 {
		gate = o.gates[0]
	}
	o.report.row(o.fault.name, confirmed, unknown, lost, history, leader, gap, o.right, orDash(o.once), o.flicker,
		chat.sent, chat.delivered, chat.bounced, chat.silent, chat.twice, chat.both, chat.whole, chat.again, chat.p99, o.readyAgain, o.strain.late(), gate)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
