package load

import (
	"context"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"muster/cmd/musterbench/client"
	"muster/cmd/musterbench/stat"
	"muster/cmd/musterbench/target"
	"muster/cmd/musterbench/wire"
	"muster/internal/fault"
)

// Presence is fan-out: users with mutual contacts, all online, who change their
// presence; an operation is one presence delivered to one contact.
type Presence struct {
	Users    int           // online
	Ring     int           // accounts in the ring of contacts, as prepare or provision made it; 0: Users
	Contacts int           // of each user on that ring
	Active   int           // closed loop: changes under way at once, the users taking turns; 0: one for each user
	Changes  int           // closed loop: of each user, the first not measured; 0: as many as the time allows. Servers limit them
	Rate     float64       // open loop: changes per second over all; 0 means closed loop
	Warmup   time.Duration // not measured; with Changes the first round is the warm-up
	Duration time.Duration // measured; with Changes the longest
}

// watched is one user whose presence changes.
type watched struct {
	conn    *client.Conn
	mu      sync.Mutex
	stanza  []byte
	at      int
	changes uint64
	missing atomic.Int64 // deliveries that are still to come
	active  atomic.Int64 // changes under way
}

// fanout is a running Presence.
type fanout struct {
	Presence
	epoch     time.Time
	users     []*watched
	contacts  [][]int
	latency   *stat.Histogram
	measuring atomic.Bool
	stopping  atomic.Bool
	started   atomic.Bool
	turn      atomic.Int64 // changes begun in a closed loop
	limit     atomic.Int64 // of turn
	delivered atomic.Uint64
	errors    atomic.Uint64
}

func (p Presence) check() error {
	if p.Users <= p.Contacts || p.Contacts < 2 || p.Contacts%2 != 0 || p.Ring < p.Users {
		return fault.New(fault.BadRequest, "load.presence", "", "contacts must be an even number from 2, and users more than contacts and not more than accounts")
	}
	return nil
}

// Run changes presence and measures what arrives.
func (p Presence) Run(ctx context.Context, e *Env) (Result, error) {
	if p.Ring == 0 {
		p.Ring = p.Users
	}
	r := Result{Scenario: "presence", Unit: "presences delivered", Sessions: p.Users}
	if err := p.check(); err != nil {
		return r, err
	}
	run := &fanout{Presence: p, epoch: time.Now(), latency: new(stat.Histogram)}
	for i := range p.Users {
		ring := target.Contacts(i, p.Ring, p.Contacts)
		online := slices.DeleteFunc(ring, func(j int) bool { return j >= p.Users })
		run.contacts = append(run.contacts, online)
	}
	f, err := e.assemble(ctx, p.Users, func(i int) []string { return run.names(e.Target.Users, i) }, run.receive)
	if err != nil {
		return r, err
	}
	defer f.close()
	for _, conn := range f.conns {
		stanza, at := announcement()
		run.users = append(run.users, &watched{conn: conn, stanza: stanza, at: at})
	}
	run.started.Store(true)
	done := run.drive(ctx)
	err = run.measure(ctx, e, &r)
	run.stopping.Store(true)
	done.Wait()
	if err != nil {
		return r, err
	}
	waitFor(ctx, e.Drain, func() bool { return run.missing() == 0 })
	r.Errors = run.errors.Load() + run.missing() + f.ended.Load()
	r.Latency = run.latency.Latency()
	if run.delivered.Load() == 0 {
		return r, fault.New(fault.NotFound, "load.presence", "", "no presence was delivered: have the users each other as contacts? (musterbench prepare)")
	}
	return r, nil
}

// names returns the addresses of user i's contacts.
func (run *fanout) names(users []target.User, i int) []string {
	var names []string
	for _, j := range run.contacts[i] {
		names = append(names, users[j].JID())
	}
	return names
}

// measure waits for the warm-up, then reads the server until all is delivered or the time is over.
func (run *fanout) measure(ctx context.Context, e *Env, r *Result) error {
	counted := run.Changes > 0 && run.Rate == 0
	if counted {
		waitFor(ctx, run.Duration, run.finished)
	} else if err := pause(ctx, run.Warmup); err != nil {
		return err
	}
	m, err := begin(e.Tree, &run.delivered)
	if err != nil {
		return err
	}
	run.measuring.Store(true)
	if counted {
		run.limit.Store(int64(run.Changes) * int64(len(run.users)))
		run.turn.Store(int64(len(run.users)))
		run.loop()
	}
	waitFor(ctx, run.Duration, run.finished)
	run.measuring.Store(false)
	if err := ctx.Err(); err != nil {
		return fault.Wrap(err, fault.Timeout, "load.presence", "")
	}
	return m.end(r)
}

// finished reports whether as many changes as may be have been made and delivered.
func (run *fanout) finished() bool {
	return run.turn.Load() >= run.limit.Load() && run.missing() == 0
}

// announcement returns a presence stanza and the offset of its mark.
func announcement() ([]byte, int) {
	head := `<presence><show>away</show><status>`
	stanza := append([]byte(head), make([]byte, markSize)...)
	return append(stanza, `</status></presence>`...), len(head)
}

// drive starts the changes; the returned group ends after stopping is set.
func (run *fanout) drive(ctx context.Context) *sync.WaitGroup {
	wg := new(sync.WaitGroup)
	if run.Rate > 0 {
		run.limit.Store(math.MaxInt64)
		wg.Go(func() { run.schedule(ctx) })
		return wg
	}
	run.limit.Store(math.MaxInt64)
	if run.Changes > 0 {
		run.limit.Store(int64(len(run.users)))
	}
	run.loop()
	return wg
}

// loop sets the changes of a closed loop going.
func (run *fanout) loop() {
	active := run.Active
	if active <= 0 || active > len(run.users) {
		active = len(run.users)
	}
	for range active {
		run.next()
	}
}

// next begins the next change of a closed loop, if there may be one.
func (run *fanout) next() {
	if turn := run.turn.Add(1) - 1; turn < run.limit.Load() {
		run.change(int(turn%int64(len(run.users))), time.Since(run.epoch))
	}
}

// schedule changes presence at the moments that the rate sets.
func (run *fanout) schedule(ctx context.Context) {
	interval := time.Duration(float64(time.Second) / run.Rate)
	due := time.Since(run.epoch)
	for i := 0; !run.stopping.Load(); i++ {
		if pause(ctx, due-time.Since(run.epoch)) != nil {
			return
		}
		run.change(i%len(run.users), due)
		due += interval
	}
}

// change sends user i's next presence.
func (run *fanout) change(i int, at time.Duration) {
	w := run.users[i]
	w.mu.Lock()
	defer w.mu.Unlock()
	w.active.Add(1)
	w.missing.Add(int64(len(run.contacts[i])))
	mark{sent: at, sequence: w.changes, sender: i}.put(w.stanza[w.at : w.at+markSize])
	if w.conn.Send(w.stanza) != nil {
		run.errors.Add(1)
		return
	}
	w.changes++
}

// receive counts one frame of user i; the last contact's copy makes room for another change.
func (run *fanout) receive(i int, _ *client.Conn, frame []byte) {
	if !run.started.Load() || !wire.Named(frame, "presence") {
		return
	}
	m, ok := findMark(frame)
	if !ok || m.sender == i {
		return // a server may echo a user's own presence
	}
	if m.sender >= len(run.users) || !slices.Contains(run.contacts[i], m.sender) {
		run.errors.Add(1)
		return
	}
	if run.measuring.Load() {
		run.latency.Record(time.Since(run.epoch) - m.sent)
	}
	run.delivered.Add(1)
	sender := run.users[m.sender]
	if sender.missing.Add(-1) != 0 || run.Rate > 0 {
		return
	}
	for range sender.active.Swap(0) {
		if !run.stopping.Load() {
			run.next()
		}
	}
}

// missing returns how many deliveries have not come (a duplicate counts as much as a loss).
func (run *fanout) missing() uint64 {
	var sum uint64
	for _, w := range run.users {
		n := w.missing.Load()
		sum += uint64(max(n, -n))
	}
	return sum
}
