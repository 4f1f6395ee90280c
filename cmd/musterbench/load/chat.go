package load

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"muster/cmd/musterbench/client"
	"muster/cmd/musterbench/stat"
	"muster/cmd/musterbench/target"
	"muster/cmd/musterbench/wire"
	"muster/internal/fault"
)

// Bounds of a chat run.
const (
	maxPairs   = 100_000
	maxWindow  = 1000
	minMessage = 160 // bytes; shorter ones do not hold addresses and the mark
	maxMessage = 64 << 10
	maxSenders = 8 // goroutines of an open loop
)

// Chat is one-to-one conversation: pairs of users who write to each other, both ways at once.
type Chat struct {
	Pairs    int
	Size     int           // of a message stanza on the wire, in bytes
	Window   int           // closed loop: messages under way in each direction
	Rate     float64       // open loop: messages per second over all; 0 means closed loop
	Warmup   time.Duration // not measured
	Duration time.Duration // measured
	ToFull   bool          // address full JIDs instead of bare ones
	Live     bool          // ask the server to keep no copy (XEP-0334, no-store)
}

// direction is one way of a conversation.
type direction struct {
	sender   int // index of the sending user
	conn     *client.Conn
	mu       sync.Mutex // orders numbers and writes
	stanza   []byte
	at       int // where the mark stands in stanza
	sent     uint64
	expected uint64 // next number; touched by the receiver's goroutine only
}

// conversation is a running Chat.
type conversation struct {
	Chat
	epoch      time.Time
	directions []*direction // by sender's index
	latency    *stat.Histogram
	measuring  atomic.Bool
	stopping   atomic.Bool
	started    atomic.Bool
	received   atomic.Uint64
	errors     atomic.Uint64
}

func (c Chat) check() error {
	switch {
	case c.Pairs < 1 || c.Pairs > maxPairs:
		return fault.New(fault.BadRequest, "load.chat", "pairs", fmt.Sprintf("the number of pairs must be 1 to %d", maxPairs))
	case c.Size < minMessage || c.Size > maxMessage:
		return fault.New(fault.BadRequest, "load.chat", "size", fmt.Sprintf("a message has %d to %d bytes", minMessage, maxMessage))
	case c.Rate == 0 && (c.Window < 1 || c.Window > maxWindow):
		return fault.New(fault.BadRequest, "load.chat", "window", fmt.Sprintf("the window must be 1 to %d", maxWindow))
	}
	return nil
}

// Run lets the pairs talk and measures them.
func (c Chat) Run(ctx context.Context, e *Env) (Result, error) {
	r := Result{Scenario: "chat", Unit: "messages", Sessions: 2 * c.Pairs}
	if err := c.check(); err != nil {
		return r, err
	}
	if c.Live {
		r.Scenario += "-live"
	}
	if c.Rate > 0 {
		r.Scenario += "-open"
	}
	run := &conversation{Chat: c, epoch: time.Now(), latency: new(stat.Histogram)}
	peer := func(i int) []string { return []string{e.Target.Users[i^1].JID()} }
	f, err := e.assemble(ctx, 2*c.Pairs, peer, run.receive)
	if err != nil {
		return r, err
	}
	defer f.close()
	if err := run.introduce(f, e.Target.Users); err != nil {
		return r, err
	}
	run.started.Store(true)
	done := run.drive(ctx)
	err = run.measure(ctx, e, &r)
	run.stopping.Store(true)
	done.Wait()
	if err != nil {
		return r, err
	}
	waitFor(ctx, e.Drain, func() bool { return run.outstanding() == 0 })
	r.Errors = run.errors.Load() + run.outstanding() + f.ended.Load()
	r.Latency = run.latency.Latency()
	return r, nil
}

// measure waits for the warm-up, then reads the server over the measured time.
func (run *conversation) measure(ctx context.Context, e *Env, r *Result) error {
	if err := pause(ctx, run.Warmup); err != nil {
		return err
	}
	m, err := begin(e.Tree, &run.received)
	if err != nil {
		return err
	}
	run.measuring.Store(true)
	if err := pause(ctx, run.Duration); err != nil {
		return err
	}
	run.measuring.Store(false)
	return m.end(r)
}

// introduce prepares each direction's stanza, now that full JIDs are known.
func (run *conversation) introduce(f *fleet, users []target.User) error {
	run.directions = make([]*direction, len(f.conns))
	for i, conn := range f.conns {
		to := users[i^1].JID()
		if run.ToFull {
			to = f.conns[i^1].JID
		}
		stanza, at, err := message(to, run.Size, run.Live)
		if err != nil {
			return err
		}
		run.directions[i] = &direction{sender: i, conn: conn, stanza: stanza, at: at}
	}
	return nil
}

// message returns a chat message of exactly size bytes and the offset of its mark.
func message(to string, size int, live bool) ([]byte, int, error) {
	head := fmt.Sprintf(`<message to='%s' type='chat' id='m%0*d'><body>`, to, sequenceDigits, 0)
	tail := `</body></message>`
	if live {
		tail = `</body><no-store xmlns='urn:xmpp:hints'/></message>`
	}
	filler := size - len(head) - markSize - len(tail)
	if filler < 0 {
		return nil, 0, fault.New(fault.BadRequest, "load.message", to, fmt.Sprintf("a message to so long an address needs %d bytes", size-filler))
	}
	stanza := make([]byte, 0, size)
	stanza = append(stanza, head...)
	at := len(stanza)
	stanza = append(stanza, make([]byte, markSize)...)
	for i := range filler {
		stanza = append(stanza, "the quick brown fox jumps over the lazy dog "[i%44])
	}
	return append(stanza, tail...), at, nil
}

// drive starts the traffic; the returned group ends after stopping is set.
func (run *conversation) drive(ctx context.Context) *sync.WaitGroup {
	wg := new(sync.WaitGroup)
	if run.Rate > 0 {
		senders := min(maxSenders, len(run.directions))
		for s := range senders {
			wg.Go(func() { run.schedule(ctx, s, senders) })
		}
		return wg
	}
	for _, d := range run.directions {
		for range run.Window {
			run.send(d, time.Since(run.epoch))
		}
	}
	return wg
}

// schedule sends at the moments that the rate sets, whatever the server does. A
// message that leaves late counts from the moment when it was due.
func (run *conversation) schedule(ctx context.Context, first, step int) {
	interval := time.Duration(float64(time.Second) * float64(step) / run.Rate)
	due := time.Since(run.epoch) + interval*time.Duration(first)/time.Duration(step)
	for i := first; !run.stopping.Load(); i += step {
		if pause(ctx, due-time.Since(run.epoch)) != nil {
			return
		}
		run.send(run.directions[i%len(run.directions)], due)
		due += interval
	}
}

// send writes the next message of d, stamped as sent at the given time since the epoch.
func (run *conversation) send(d *direction, at time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	mark{sent: at, sequence: d.sent, sender: d.sender}.put(d.stanza[d.at : d.at+markSize])
	digits(d.stanza[d.at-len(`'><body>`)-sequenceDigits:d.at-len(`'><body>`)], d.sent)
	if d.conn.Send(d.stanza) != nil {
		run.errors.Add(1)
		return
	}
	d.sent++
}

// receive checks one frame of user i and, in a closed loop, sends the next message.
func (run *conversation) receive(i int, _ *client.Conn, frame []byte) {
	if !run.started.Load() || !wire.Named(frame, "message") {
		return
	}
	if string(wire.Attr(frame, "type")) == "error" {
		run.errors.Add(1)
		return
	}
	m, ok := findMark(frame)
	if !ok || m.sender != i^1 {
		run.errors.Add(1)
		return
	}
	d := run.directions[m.sender]
	if m.sequence != d.expected {
		run.errors.Add(1)
	}
	d.expected = m.sequence + 1
	if run.measuring.Load() {
		run.latency.Record(time.Since(run.epoch) - m.sent)
	}
	run.received.Add(1)
	if run.Rate == 0 && !run.stopping.Load() {
		run.send(d, time.Since(run.epoch))
	}
}

// outstanding returns how many messages were sent and not received.
func (run *conversation) outstanding() uint64 {
	var sent uint64
	for _, d := range run.directions {
		d.mu.Lock()
		sent += d.sent
		d.mu.Unlock()
	}
	return sent - min(sent, run.received.Load())
}
