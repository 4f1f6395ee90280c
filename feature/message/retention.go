package message

import (
	"context"
	"log/slog"
	"math"
	"sync"
	"time"

	"muster/feature/message/state"
	"muster/fsm"
	"muster/fsm/config"
	"muster/fsm/user"
	"muster/internal/fault"
	"muster/log"
	"muster/router"
)

// Settings of retention.
var (
	MaxAge = config.Duration("archive.max_age", 0, 0, 100*365*24*time.Hour, config.Cluster,
		"How long messages are kept, such as 8760h for a year; 0 for ever. Older ones leave all archives, and also if they still wait for somebody.")
	MaxBytes = config.Int("archive.max_bytes", 0, 0, math.MaxInt64, config.Cluster,
		"How many bytes the messages may take on each node's disk; 0 for no limit. Beyond it the oldest ones leave all archives.")
)

// Bounds of retention's work. It goes on beside the messages' own traffic, which must not notice it.
const (
	lookEvery  = 5 * time.Second        // for the log's leadership, and for deleted users
	trimEvery  = time.Minute            // for messages to trim
	stepPause  = 100 * time.Millisecond // between entries, each of which removes state.MaxSweep messages
	stepTry    = 10 * time.Second       // for one entry to be written
	maxIdle    = 4096                   // sessions that one entry forgets
	maxWeighed = 20_000                 // messages that one round trims for their size
	maxDeleted = 10_000                 // deleted users that wait; beyond it all owners are looked through
	clockTrust = 7 * 24 * time.Hour     // a clock that is further ahead of the newest message than that does not count
	clockSlack = time.Minute            // that the nodes' clocks may differ
)

// RetentionConfig says what a Retention works with. All fields are required.
type RetentionConfig struct {
	Messages fsm.Reader      // the message log's machine
	Live     *config.Live    // settings
	Keeper   router.Proposer // writes to the message log
	Leads    func() bool     // whether this node leads the message log
	// Holder returns since when an address has its present holder; false if it has none.
	Holder func(owner string) (since time.Time, ok bool)
	// CatchUp waits until Holder knows all that the control log had committed when it was called.
	CatchUp   func(ctx context.Context) error
	DiskUsage func() uint64 // bytes that the messages take on this node
	// Gone reports whether the log says that an incarnation of a node is over, and since when at
	// the latest; the zero time if that is not known.
	Gone   func(node uint32, incarnation uint64) (since time.Time, gone bool)
	Logger *slog.Logger
}

// Retention removes messages: those that are too old or too many, and those of
// deleted users. It runs on every node and works where the message log's leader
// is, in small steps with pauses. What it does is repeated without harm, so it
// keeps no state of its own: a new leader looks through all owners once.
//
// A wrong clock cannot empty the archives: it counts only as far as clockTrust
// beyond the newest message. In a cluster that is idle for longer, messages
// leave later than the setting says.
type Retention struct {
	RetentionConfig

	mu      sync.Mutex
	deleted map[string]uint64 // users to purge → number of the first message that stays
	all     bool              // look through all owners

	trimmed time.Time // of the last look
	usage   uint64    // at the last look
	credit  uint64    // bytes that were trimmed and are not yet free
}

// NewRetention returns a retention that does nothing yet.
func NewRetention(c RetentionConfig) *Retention {
	return &Retention{RetentionConfig: c, deleted: map[string]uint64{}}
}

// ControlChanges takes in what an entry of the control log changed; node calls it from that machine's OnApply.
func (t *Retention) ControlChanges(changes []fsm.Change) {
	for _, c := range changes {
		if c.Table != user.Table || c.After != nil {
			continue
		}
		before := state.Last(t.Messages) + 1
		t.mu.Lock()
		if t.deleted[string(c.Key)] = before; len(t.deleted) > maxDeleted {
			t.deleted, t.all = map[string]uint64{}, true
		}
		t.mu.Unlock()
	}
}

// ControlReplaced says that the control log's state was replaced by a snapshot: nobody was told of what it changed.
func (t *Retention) ControlReplaced() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all = true
}

// Run works until ctx ends.
func (t *Retention) Run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	leads := false
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		was := leads
		if leads = t.Leads(); !leads {
			t.forget(!was)
			continue
		}
		if !was {
			t.forget(false)
			t.usage, t.credit, t.trimmed = 0, 0, time.Time{}
		}
		if err := t.round(ctx); err != nil && ctx.Err() == nil {
			t.Logger.Warn("retention_interrupted", "error", err)
		}
	}
}

// forget drops the deletions that this node saw: whoever leads looks through
// all owners first. keep: it is not this node's turn, nothing is to be looked through.
func (t *Retention) forget(keep bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.deleted = map[string]uint64{}
	t.all = !keep
}

// round does what is to be done now. An error ends it; the next round begins where it ended.
func (t *Retention) round(ctx context.Context) error {
	if err := t.purge(ctx); err != nil {
		return err
	}
	if time.Since(t.trimmed) < trimEvery {
		return nil
	}
	t.trimmed = time.Now()
	if err := t.forgetLost(ctx); err != nil {
		return err
	}
	if err := t.trimAge(ctx); err != nil {
		return err
	}
	return t.trimSize(ctx)
}

// purge removes the messages of users who are deleted.
func (t *Retention) purge(ctx context.Context) error {
	if err := t.findOrphans(ctx); err != nil {
		return err
	}
	for {
		owner, noted, ok := t.next()
		if !ok {
			return nil
		}
		before := noted
		if since, held := t.Holder(owner); held { // somebody new has the name: what came since is theirs
			before = min(before, state.FirstSince(t.Messages, since.Add(-clockSlack)))
		}
		if err := t.steps(ctx, func() *log.Entry { return state.PurgeEntry(owner, before) }); err != nil {
			return err
		}
		t.Logger.Info("messages_purged", "owner", owner)
		t.mu.Lock()
		if t.deleted[owner] == noted { // else deleted once more
			delete(t.deleted, owner)
		}
		t.mu.Unlock()
	}
}

func (t *Retention) next() (owner string, before uint64, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for owner, before = range t.deleted {
		return owner, before, true
	}
	return "", 0, false
}

// findOrphans looks for owners whose address nobody has any more. An address
// that seems free may be one that this node has not heard of yet: it asks again
// when it knows all that was committed before.
func (t *Retention) findOrphans(ctx context.Context) error {
	t.mu.Lock()
	all := t.all
	t.mu.Unlock()
	if !all {
		return nil
	}
	before := state.Last(t.Messages) + 1
	var orphans []string
	for owner, ok := state.NextOwner(t.Messages, ""); ok && len(orphans) < maxDeleted; owner, ok = state.NextOwner(t.Messages, owner) {
		if _, held := t.Holder(owner); !held {
			orphans = append(orphans, owner)
		}
	}
	if len(orphans) > 0 {
		try, cancel := context.WithTimeout(ctx, stepTry)
		err := t.CatchUp(try)
		cancel()
		if err != nil {
			return err
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, owner := range orphans {
		if _, held := t.Holder(owner); !held {
			t.deleted[owner] = before
		}
	}
	t.all = len(orphans) == maxDeleted // there may be more
	return nil
}

// forgetLost forgets sessions whose nodes are gone and whose clients did not
// come back in their time, and those of which nothing is left but an old input.
func (t *Retention) forgetLost(ctx context.Context) error {
	for {
		lost := state.Lost(t.Messages, time.Now(), state.MaxSweep, t.Gone)
		if len(lost) == 0 {
			lost = state.Idle(t.Messages, maxIdle)
		}
		if len(lost) == 0 {
			return nil
		}
		try, cancel := context.WithTimeout(ctx, stepTry)
		_, err := t.Keeper.Propose(try, state.ForgetEntry(lost...))
		cancel()
		if err != nil {
			return err
		}
		t.Logger.Info("sessions_forgotten", "count", len(lost))
	}
}

// trimAge removes what is too old.
func (t *Retention) trimAge(ctx context.Context) error {
	age := t.Live.Duration(MaxAge)
	newest, ok := state.Newest(t.Messages)
	if age == 0 || !ok {
		return nil
	}
	now := time.Now()
	if most := newest.Time.Add(clockTrust); now.After(most) {
		now = most
	}
	return t.trim(ctx, "age", state.FirstSince(t.Messages, now.Add(-age)))
}

// trimSize removes what is too much. The disk gets free only later, when the
// store compacts: what was trimmed is credited until then.
func (t *Retention) trimSize(ctx context.Context) error {
	limit, usage := uint64(t.Live.Int(MaxBytes)), t.DiskUsage()
	if usage < t.usage {
		t.credit -= min(t.credit, t.usage-usage)
	}
	t.usage = usage
	if limit == 0 || usage <= limit+t.credit {
		return nil
	}
	before, bytes := state.Weigh(t.Messages, maxWeighed, usage-t.credit-limit)
	t.credit += bytes
	return t.trim(ctx, "size", before)
}

// trim removes all messages below a number.
func (t *Retention) trim(ctx context.Context, why string, before uint64) error {
	oldest, ok := state.Oldest(t.Messages)
	if !ok || oldest.Number >= before {
		return nil
	}
	err := t.steps(ctx, func() *log.Entry { return state.TrimEntry(before) })
	t.Logger.Info("messages_trimmed", "reason", why, "before", before, "complete", err == nil)
	return err
}

// steps writes entries until one says that there is no more to do.
func (t *Retention) steps(ctx context.Context, entry func() *log.Entry) error {
	for t.Leads() {
		try, cancel := context.WithTimeout(ctx, stepTry)
		results, err := t.Keeper.Propose(try, entry())
		cancel()
		switch {
		case err != nil:
			return err
		case results[0].Err != nil:
			return results[0].Err
		case !state.More(results[0].Value):
			return nil
		}
		select {
		case <-time.After(stepPause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return fault.New(fault.Unavailable, "message.retention", "", "another node leads the log now")
}
