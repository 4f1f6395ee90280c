package replication

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"muster/fsm"
	"muster/internal/fault"
	"muster/log"
	"muster/replication/pki"
)

// Limits of proposing.
const (
	maxInFlight = 4           // records of this node on their way at a time; meanwhile proposals gather
	maxQueued   = 4096        // proposals that wait; more wait outside, under their own contexts
	enqueueTime = time.Second // for Raft's main loop to take a record
	maxBackoff  = 250 * time.Millisecond
	keyBytes    = 12 // of a random idempotency key
)

// errNotLeader makes a proposer look for another leader. It never leaves the package.
var errNotLeader = fault.New(fault.Stale, "replication.leader", "", "this node is not the leader")

var errClosed = fault.New(fault.Unavailable, "replication.propose", "", "this node is stopping")

// proposal is what one caller wants written, on its way through the queue.
type proposal struct {
	ctx     context.Context
	entries []*log.Entry
	size    int
	remote  bool         // came from another node, which took this one for the leader: not forwarded again
	out     chan applied // one outcome, buffered
	stage   atomic.Int32 // queued, then underway or withdrawn
}

// Stages of a proposal.
const (
	queued    = iota
	underway  // from here on it may be written, whatever its proposer hears
	withdrawn // its proposer has gone before
)

// Propose has entries written to the log as one record, from any node, and
// returns one result per entry when this node's machine has applied them. An
// entry that the machine rejected has its fault in Result.Err; err is about
// the proposal as a whole: NoQuorum (no leader took it within 5 s: nothing was
// written), Timeout (a leader may have taken it: it may be written, even
// later; a retry with the same Key is safe), Unavailable (machine halted, group
// closed). Entries without a Key get a random one, so that
// retries inside Propose never apply twice (kinds that are Keyless get none:
// their handlers recognise a retry); Node and Time are filled in where
// they are zero. Two proposals that are under way together have no order.
func (g *Group) Propose(ctx context.Context, entries ...*log.Entry) ([]fsm.Result, error) {
	if len(entries) == 0 {
		return nil, nil
	}
	if err := g.cfg.Machine.Halted(); err != nil {
		return nil, &fault.Error{Code: fault.Unavailable, Op: "replication.propose", Text: "this node has stopped applying: " + haltText(err), Err: err}
	}
	if err := g.mayWrite("replication.propose"); err != nil {
		return nil, err
	}
	out, err := g.propose(ctx, g.prepare(entries))
	return out.results, err
}

// prepare completes entries without touching the caller's.
func (g *Group) prepare(entries []*log.Entry) []*log.Entry {
	own := make([]*log.Entry, len(entries))
	for i, e := range entries {
		c := *e
		c.Key = keyFor(c.Key, g.cfg.Machine.Keyless(c.Kind))
		if c.Node == 0 {
			c.Node = g.cfg.NodeID
		}
		if c.Time.IsZero() {
			c.Time = time.Now()
		}
		own[i] = &c
	}
	return own
}

// keyFor returns the idempotency key of an entry that came with this one: a
// random one if it came with none, and none where the handler needs none.
func keyFor(own string, keyless bool) string {
	switch {
	case keyless:
		return ""
	case own == "":
		return base64.RawURLEncoding.EncodeToString(pki.NewSecret(keyBytes))
	}
	return own
}

// propose writes one record and returns when it is applied here.
func (g *Group) propose(ctx context.Context, entries []*log.Entry) (out applied, err error) {
	ctx, cancel := context.WithTimeout(ctx, g.cfg.Timing.Propose)
	defer cancel()
	const op = "replication.propose"
	taken := false
	err = g.persist(ctx, op, func(ctx context.Context) error {
		out = g.attempt(ctx, entries, false)
		taken = taken || out.taken
		return out.err
	})
	switch {
	case err != nil && taken && fault.CodeOf(err).Retryable():
		return applied{}, g.uncertain(op, err)
	case err != nil:
		return applied{}, err
	}
	return out, g.WaitIndex(ctx, out.index)
}

// attempt sends a proposal through the queue once.
func (g *Group) attempt(ctx context.Context, entries []*log.Entry, remote bool) applied {
	p := &proposal{ctx: ctx, entries: entries, remote: remote, out: make(chan applied, 1)}
	for _, e := range entries {
		p.size += len(e.Body)
	}
	select {
	case g.queue <- p:
	case <-ctx.Done():
		return applied{err: ctx.Err()}
	case <-g.ctx.Done():
		return applied{err: errClosed}
	}
	select {
	case out := <-p.out:
		return out
	case <-ctx.Done():
		return applied{err: ctx.Err(), taken: !p.stage.CompareAndSwap(queued, withdrawn)}
	case <-g.ctx.Done():
		return applied{err: errClosed, taken: !p.stage.CompareAndSwap(queued, withdrawn)}
	}
}

// electionPatience is how long a proposal waits for another leader when the one
// that it had is heard no more. A leader with a hung disk is heard until its
// watchdog ends it, which takes longer than the NoQuorum time.
const electionPatience = 3 * time.Second

// persist tries until it succeeds, fails for good, the context ends, or no
// leader has been heard for the NoQuorum time, or since electionPatience where there was one meanwhile.
func (g *Group) persist(ctx context.Context, op string, try func(context.Context) error) error {
	giveUp := time.Now().Add(g.cfg.Timing.NoQuorum)
	for backoff := 10 * time.Millisecond; ; backoff = min(2*backoff, maxBackoff) {
		step, cancel := context.WithTimeout(ctx, max(time.Until(giveUp), g.cfg.Timing.NoQuorum/4))
		err := try(step)
		cancel()
		if late := time.Now().Add(electionPatience - g.LeaderContact()); late.After(giveUp) {
			giveUp = late
		}
		switch {
		case err == nil:
			return nil
		case g.ctx.Err() != nil:
			return errClosed
		case g.removed.Load():
			return fault.New(fault.Gone, op, "", "this node was removed from the cluster")
		case !fault.CodeOf(err).Retryable():
			return err
		case ctx.Err() != nil:
			return g.gaveUp(op, err)
		case !time.Now().Before(giveUp) && !g.leaderHeard():
			return noQuorum(op, err)
		}
		t := time.NewTimer(backoff)
		select {
		case <-t.C:
		case <-ctx.Done():
		case <-g.ctx.Done():
		}
		t.Stop()
	}
}

// leaderHeard reports whether there is a leader now, as far as this node can tell.
func (g *Group) leaderHeard() bool {
	return g.Leader() != 0 && g.LeaderContact() < 2*(g.cfg.Timing.Heartbeat+g.cfg.Timing.Election)
}

func (g *Group) gaveUp(op string, err error) error {
	if !g.leaderHeard() {
		return noQuorum(op, err)
	}
	return g.uncertain(op, err)
}

// uncertain is the fault for a record that may be written or not.
func (g *Group) uncertain(op string, err error) error {
	text := "no answer in time; the change may have been made or not"
	if !g.leaderHeard() {
		text = "this node reaches no majority of the cluster's nodes; the change may have been made or not"
	}
	return &fault.Error{Code: fault.Timeout, Op: op, Text: text, Err: err}
}

func noQuorum(op string, err error) error {
	return &fault.Error{Code: fault.NoQuorum, Op: op,
		Text: "this node reaches no majority of the cluster's nodes; nothing can be changed until it does, try again later", Err: err}
}

// dispatch gathers waiting proposals into records and sends them on. An idle
// node's proposal goes at once; under load they gather while others are on their way.
func (g *Group) dispatch() {
	for {
		var first *proposal
		select {
		case first = <-g.queue:
		case <-g.ctx.Done():
			return
		}
		select {
		case g.slots <- struct{}{}:
		case <-g.ctx.Done():
			return
		}
		if batch := g.gather(first); len(batch) > 0 {
			g.send(batch)
		} else {
			<-g.slots
		}
	}
}

// begin takes a proposal up; false: its proposer has gone.
func (p *proposal) begin() bool { return p.stage.CompareAndSwap(queued, underway) }

// gather takes up a proposal, what waits already, and what comes within the batch's delay, up to its limits.
func (g *Group) gather(first *proposal) []*proposal {
	limit := g.cfg.Batch()
	var late <-chan time.Time
	if limit.Delay > 0 {
		t := time.NewTimer(limit.Delay)
		defer t.Stop()
		late = t.C
	}
	var batch []*proposal
	entries, size := 0, 0
	for p := first; p != nil; p = g.next(late) {
		if !p.begin() {
			continue
		}
		batch, entries, size = append(batch, p), entries+len(p.entries), size+p.size
		if entries >= limit.Entries || size >= limit.Bytes {
			break
		}
	}
	return batch
}

// next returns the next proposal; nil: none waits, or none came before late.
func (g *Group) next(late <-chan time.Time) *proposal {
	select {
	case p := <-g.queue:
		return p
	default:
		if late == nil {
			return nil
		}
	}
	select {
	case p := <-g.queue:
		return p
	case <-late:
	case <-g.ctx.Done():
	}
	return nil
}

// send writes a batch here if this node leads, and otherwise has the leader do it.
func (g *Group) send(batch []*proposal) {
	if g.raft.State() != raft.Leader {
		batch = slices.DeleteFunc(batch, func(p *proposal) bool {
			if p.remote {
				p.out <- applied{err: errNotLeader}
			}
			return p.remote
		})
	}
	var entries []*log.Entry
	for _, p := range batch {
		entries = append(entries, p.entries...)
	}
	record, err := log.Encode(entries)
	if err == nil && g.raft.State() == raft.Leader {
		err = g.mayWrite("replication.write") // or Raft would find no room, and step down
	}
	var wait func() applied
	switch leader := g.Leader(); {
	case err != nil:
		wait = func() applied { return applied{err: err} }
	case g.raft.State() == raft.Leader:
		f := g.raft.Apply(record, enqueueTime)
		wait = func() applied { return g.written(f) }
	case leader == 0 || leader == g.cfg.NodeID:
		wait = func() applied { return applied{err: errNotLeader} }
	default:
		wait = func() applied { return g.forward(leader, record, len(entries)) }
	}
	g.done.Add(1)
	go func() {
		defer g.done.Done()
		out := wait()
		<-g.slots
		share(batch, out)
	}()
}

// share gives each proposal of a batch its part of the outcome.
func share(batch []*proposal, out applied) {
	for _, p := range batch {
		own := applied{index: out.index, err: out.err, taken: out.taken}
		if out.err == nil {
			own.results, out.results = out.results[:len(p.entries):len(p.entries)], out.results[len(p.entries):]
		}
		p.out <- own
	}
}

// written waits for a record that this node wrote as the leader.
func (g *Group) written(f raft.ApplyFuture) applied {
	if err := g.within(g.cfg.Timing.Propose, f); err != nil {
		code := leaderCode(err)
		return applied{err: &fault.Error{Code: code, Op: "replication.write", Err: err}, taken: code != fault.Stale}
	}
	out, ok := f.Response().(applied)
	if !ok {
		return applied{err: fault.New(fault.Internal, "replication.write", "", "")}
	}
	return out
}

// leaderCode says whether an error of the Raft library is worth another try:
// Stale if the library did not take the record, Timeout if that may still be written.
func leaderCode(err error) fault.Code {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrEnqueueTimeout):
		return fault.Stale
	case errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrAbortedByRestore):
		return fault.Timeout
	case errors.Is(err, raft.ErrRaftShutdown):
		return fault.Unavailable
	case errors.Is(err, errWait):
		return fault.Timeout
	}
	return fault.Unavailable // for example a full disk
}

// forward has the leader write a record.
func (g *Group) forward(leader uint32, record []byte, entries int) applied {
	answer, err := g.askLeader(g.ctx, leader, "propose", record)
	if err != nil {
		return applied{err: err, taken: !fault.Is(err, fault.Stale) && !errors.Is(err, errUnsent)}
	}
	out, err := decodeApplied(answer)
	if err == nil && len(out.results) != entries {
		err = fault.New(fault.Internal, "replication.forward", fmt.Sprint(leader), "the leader's answer has the wrong length")
	}
	out.err = err
	return out
}

// askLeader asks the leader, as long as it is the leader.
func (g *Group) askLeader(ctx context.Context, leader uint32, name string, body []byte) ([]byte, error) {
	until, cancel := g.untilLeaderChanges(g.cfg.Timing.NoQuorum)
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	answer, err := g.rpc.call(until, leader, name, body)
	g.dialFailed(err)
	return answer, err
}

// servePropose is the leader's side of forward: one attempt, no further forwarding.
func (g *Group) servePropose(ctx context.Context, _ uint32, record []byte) ([]byte, error) {
	if g.raft.State() != raft.Leader {
		return nil, errNotLeader
	}
	entries, err := log.Decode(record)
	if err != nil {
		return nil, err
	}
	out := g.attempt(ctx, entries, true)
	if out.err != nil {
		return nil, out.err
	}
	return encodeApplied(out), nil
}

// encodeApplied writes an outcome: index, count, and per result index, code, text, value.
func encodeApplied(a applied) []byte {
	b := binary.BigEndian.AppendUint64(nil, a.index)
	b = binary.BigEndian.AppendUint32(b, uint32(len(a.results)))
	for _, r := range a.results {
		var text string
		if r.Err != nil {
			text = fault.Public(r.Err)
		}
		text = text[:min(len(text), math.MaxUint16)]
		b = binary.BigEndian.AppendUint64(b, r.Index)
		b = append(b, byte(fault.CodeOf(r.Err)))
		b = binary.BigEndian.AppendUint16(b, uint16(len(text)))
		b = append(b, text...)
		b = binary.BigEndian.AppendUint32(b, uint32(len(r.Value)))
		b = append(b, r.Value...)
	}
	return b
}

// decodeApplied undoes encodeApplied.
func decodeApplied(b []byte) (applied, error) {
	bad := fault.New(fault.Internal, "replication.forward", "", "the leader's answer is malformed")
	r := reader{b: b}
	a := applied{index: r.u64()}
	n := r.u32()
	if r.bad || uint64(n)*15 > uint64(len(b)) {
		return applied{}, bad
	}
	for range n {
		res := fsm.Result{Index: r.u64()}
		code, text := fault.Code(r.u8()), string(r.bytes(int(r.u16())))
		if code != 0 {
			res.Err = fault.New(code, "log.propose", "", text)
		}
		if v := r.bytes(int(r.u32())); len(v) > 0 {
			res.Value = v
		}
		a.results = append(a.results, res)
	}
	if r.bad || len(r.b) != 0 {
		return applied{}, bad
	}
	return a, nil
}

// ReadIndex returns an index that contains everything confirmed before the
// call; after WaitIndex on it a local read is linearizable.
func (g *Group) ReadIndex(ctx context.Context) (index uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, g.cfg.Timing.Propose)
	defer cancel()
	err = g.persist(ctx, "replication.read", func(ctx context.Context) (err error) {
		leader := g.Leader()
		if g.raft.State() == raft.Leader || leader == g.cfg.NodeID || leader == 0 {
			index, err = g.leaderIndex(ctx)
			return err
		}
		answer, err := g.askLeader(ctx, leader, "read-index", nil)
		if err == nil {
			r := reader{b: answer}
			index = r.u64()
		}
		return err
	})
	return index, err
}

// leaderIndex returns the commit index, once a majority has confirmed that this node leads.
func (g *Group) leaderIndex(ctx context.Context) (uint64, error) {
	if !g.IsLeader() {
		return 0, errNotLeader
	}
	index := g.raft.CommitIndex()
	if err := g.verify(g.remaining(ctx, g.cfg.Timing.NoQuorum)); err != nil {
		return 0, err
	}
	return index, nil
}

const verifyPause = 5 * time.Millisecond // between questions while no majority of the voters has answered by itself

// verify has a majority of the voters confirm that this node leads. The library
// (v1.7.3) takes the answers of non-voters for votes, and so it would those that
// heardTransport repeats: a leader that reaches nobody would prove itself until its lease ends.
func (g *Group) verify(most time.Duration) error {
	asked := time.Since(g.opened)
	for {
		left := most - (time.Since(g.opened) - asked)
		if err := g.within(left, g.raft.VerifyLeader()); err != nil {
			return &fault.Error{Code: leaderCode(err), Op: "replication.verify", Err: err}
		}
		if voters, _ := g.servers(); g.trans.majority(g.cfg.NodeID, voters, asked) {
			g.verified.Store(int64(asked))
			return nil
		}
		t := time.NewTimer(verifyPause)
		select {
		case <-t.C:
		case <-g.ctx.Done():
			t.Stop()
			return errClosed
		}
	}
}
