package load

import (
	"context"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"muster/cmd/musterbench/client"
	"muster/cmd/musterbench/proc"
	"muster/cmd/musterbench/stat"
	"muster/cmd/musterbench/target"
	"muster/cmd/musterbench/wire"
	"muster/internal/fault"
)

// Bounds and times of a herd.
const (
	maxHerd    = 100_000
	probeEvery = 100 * time.Millisecond // a probe writes to itself
	probeFor   = 3 * time.Second        // before the break, for comparison
	firstRetry = 250 * time.Millisecond // a client's pause after an attempt that failed; it doubles
	lastRetry  = 4 * time.Second
)

// Break is how a herd loses its connections.
type Break string

// The ways.
const (
	Kill Break = "kill" // the node's process is killed (kill -9)
	Drop Break = "drop" // the clients' connections are closed without a word; the node lives
	Wait Break = "wait" // somebody else sees to it
)

// Herd opens sessions on one node, breaks their connections all at once, and lets all clients come back at the other nodes.
type Herd struct {
	Sessions int
	At       string        // node that has the sessions; "" is the first
	Break    Break         //
	Anew     bool          // log in anew, as the Env's flow has it, with contacts and presence; else resume (XEP-0198)
	Probes   int           // sessions on the other nodes that write to themselves all the while: what the herd does to others
	Patience time.Duration // for a client to be back; for Wait also until the connections break
}

// Return says how a herd came back.
type Return struct {
	Resumed uint64       `json:"resumed"`
	Anew    uint64       `json:"anew"`           // logged in anew, as asked for or because the session was gone
	Gone    uint64       `json:"gone"`           // sessions that the server said are gone
	Stuck   uint64       `json:"stuck"`          // clients that were not back in time
	Retries uint64       `json:"retries"`        // attempts that failed
	First   float64      `json:"first_back_s"`   // after the break
	Median  float64      `json:"median_back_s"`  //
	Last    float64      `json:"last_back_s"`    //
	Best    int          `json:"best_second"`    // clients that came back within one second, the best one
	Before  stat.Latency `json:"probe_before"`   // of the probes' messages
	During  stat.Latency `json:"probe_during"`   // until the last client was back
	Lost    uint64       `json:"probes_waiting"` // messages of probes that did not come back
}

// member is a client of the herd.
type member struct {
	user    target.User
	conn    *client.Conn
	id      string        // for resumption
	handled atomic.Uint32 // stanzas since it was given
	broken  chan struct{} // closed when the first connection is lost
}

// herd is a running Herd.
type herd struct {
	Herd
	env     *Env
	at      target.Node
	others  []target.Node
	members []member
	probes  []*probe
	open    sync.WaitGroup // readers
	epoch   time.Time

	mu   sync.Mutex
	back []time.Duration // when clients were back, after the break
	r    Return
	done atomic.Uint64

	number  int                            // of this run, in the probes' messages
	latency atomic.Pointer[stat.Histogram] // of the probes' messages, since it was last asked for
	why     atomic.Pointer[error]          // why the first attempt failed
}

// Run opens the sessions, breaks their connections and measures the return. One operation is a client that is back.
func (h Herd) Run(ctx context.Context, e *Env) (Result, error) {
	r := Result{Scenario: "herd", Unit: "clients back", Sessions: h.Sessions}
	run, err := h.prepare(e)
	if err != nil {
		return r, err
	}
	defer run.close()
	if err := parallel(e.Workers, h.Sessions, func(i int) error { return run.arrive(ctx, i) }); err != nil {
		return r, err
	}
	if err := run.openProbes(ctx); err != nil {
		return r, err
	}
	e.Log.Info("sessions_open", "sessions", h.Sessions, "node", run.at.Name)
	if err := pause(ctx, probeFor); err != nil {
		return r, err
	}
	run.r.Before = run.turnProbes()
	tree := run.survivors()
	m, err := begin(tree, &run.done)
	if err != nil {
		return r, err
	}
	if err := run.breakAll(ctx); err != nil {
		return r, err
	}
	run.comeBack(ctx)
	if err := m.end(&r); err != nil {
		return r, err
	}
	run.report(&r)
	if why := run.why.Load(); why != nil {
		e.Log.Warn("attempts_failed", "failed", run.r.Retries, "first", *why)
	}
	return r, ctx.Err()
}

// prepare checks the request and picks the nodes.
func (h Herd) prepare(e *Env) (*herd, error) {
	run := &herd{Herd: h, env: e, number: rand.N(1_000_000), members: make([]member, max(0, min(h.Sessions, maxHerd)))}
	for _, n := range e.Target.Nodes {
		if run.at.Name == "" && (h.At == "" || n.Name == h.At) {
			run.at = n
		} else {
			run.others = append(run.others, n)
		}
	}
	users, err := e.users(h.Sessions + h.Probes)
	switch {
	case err != nil:
		return nil, err
	case h.Sessions < 1 || h.Sessions > maxHerd:
		return nil, fault.New(fault.BadRequest, "load.herd", "sessions", fmt.Sprintf("the number of sessions must be 1 to %d", maxHerd))
	case run.at.Name == "" || len(run.others) == 0:
		return nil, fault.New(fault.BadRequest, "load.herd", h.At, "a herd needs a node to lose and another one to go to: give a cluster file")
	case h.Break == Kill && run.at.PID <= 0:
		return nil, fault.New(fault.BadRequest, "load.herd", run.at.Name, "the process id of the node is not known: give a cluster file")
	case e.Options.Flow == client.Inline && !h.Anew:
		return nil, fault.New(fault.BadRequest, "load.herd", "flow", "a herd resumes with the flow classic or token")
	case e.isRelay():
		return nil, fault.New(fault.BadRequest, "load.herd", "transport", "a relay knows no sessions")
	}
	for i := range run.members {
		run.members[i].user, run.members[i].broken = users[i], make(chan struct{})
	}
	for _, u := range users[h.Sessions:] {
		run.probes = append(run.probes, &probe{user: u, run: run})
	}
	run.latency.Store(new(stat.Histogram))
	return run, nil
}

// survivors returns the processes that go on: the CPU time of one that is killed cannot be read.
func (run *herd) survivors() *proc.Tree {
	if run.Break != Kill || run.env.Tree.Empty() {
		return run.env.Tree
	}
	var pids []int
	for _, n := range run.others {
		if n.PID > 0 {
			pids = append(pids, n.PID)
		}
	}
	return proc.New("/proc", pids...)
}

// options returns how client i connects to a node.
func (run *herd) options(i int, n target.Node) client.Options {
	o := run.env.options(i, nil)
	o.Address = run.env.address(n)
	return o
}

// arrive opens the session of client i.
func (run *herd) arrive(ctx context.Context, i int) error {
	m := &run.members[i]
	conn, err := client.Login(ctx, run.options(i, run.at), m.user)
	if err != nil {
		return err
	}
	if !run.Anew {
		if m.id, err = conn.Enable(); err != nil {
			_ = conn.Close()
			return err
		}
	}
	m.conn = conn
	run.serve(m, conn, m.broken)
	return settle(conn)
}

// settle does what a client does when it has a session: asks for the contacts and becomes available.
func settle(conn *client.Conn) error { return conn.Send(slices.Concat(rosterGet, available)) }

// serve reads a client's connection until it ends.
func (run *herd) serve(m *member, conn *client.Conn, ended chan struct{}) {
	run.open.Go(func() {
		_ = conn.Serve(func(frame []byte) {
			if wire.Named(frame, "presence") || wire.Named(frame, "iq") || wire.Named(frame, "message") {
				m.handled.Add(1)
				pong(conn, frame)
			}
		})
		if ended != nil {
			close(ended)
		}
	})
}

// breakAll ends the connections. The clock starts here.
func (run *herd) breakAll(ctx context.Context) error {
	run.epoch = time.Now()
	switch run.Break {
	case Kill:
		if err := syscall.Kill(run.at.PID, syscall.SIGKILL); err != nil {
			return fault.Wrap(err, fault.Unavailable, "load.herd", run.at.Name)
		}
	case Drop:
		for i := range run.members {
			abort(run.members[i].conn)
		}
	default:
		run.env.Log.Info("break_the_connections", "node", run.at.Name, "within", run.Patience)
		select {
		case <-run.members[0].broken:
		case <-ctx.Done():
		case <-time.After(run.Patience):
			return fault.New(fault.Timeout, "load.herd", run.at.Name, "the connections did not break")
		}
		run.epoch = time.Now()
	}
	return nil
}

// abort closes a connection without the end of its stream.
func abort(conn *client.Conn) {
	if secured, ok := conn.Conn.(*tls.Conn); ok {
		_ = secured.NetConn().Close()
		return
	}
	_ = conn.Close()
}

// comeBack lets all clients come back, each as soon as it has lost its connection, and waits for them.
func (run *herd) comeBack(ctx context.Context) {
	ctx, cancel := context.WithDeadline(ctx, run.epoch.Add(run.Patience))
	defer cancel()
	var all sync.WaitGroup
	for i := range run.members {
		all.Go(func() {
			select {
			case <-run.members[i].broken:
				run.again(ctx, i)
			case <-ctx.Done():
				run.book(func(r *Return) { r.Stuck++ })
			}
		})
	}
	all.Wait()
}

// again tries the other nodes in turn until client i is back.
func (run *herd) again(ctx context.Context, i int) {
	m, anew, wait := &run.members[i], run.Anew, firstRetry
	for attempt := i; ; attempt++ {
		conn, err := run.attempt(ctx, i, run.others[attempt%len(run.others)], anew)
		if err == nil {
			run.book(func(r *Return) {
				if run.back = append(run.back, time.Since(run.epoch)); anew {
					r.Anew++
				} else {
					r.Resumed++
				}
			})
			run.done.Add(1)
			m.conn = conn
			run.serve(m, conn, nil)
			return
		}
		run.why.CompareAndSwap(nil, &err)
		if fault.Is(err, fault.NotFound) && !anew {
			anew = true
			run.book(func(r *Return) { r.Gone++ })
			continue
		}
		run.book(func(r *Return) { r.Retries++ })
		if pause(ctx, wait/2+rand.N(wait)) != nil {
			run.book(func(r *Return) { r.Stuck++ })
			return
		}
		wait = min(2*wait, lastRetry)
	}
}

func (run *herd) attempt(ctx context.Context, i int, n target.Node, anew bool) (*client.Conn, error) {
	m, o := &run.members[i], run.options(i, n)
	if !anew {
		return client.Resume(ctx, o, m.user, m.id, m.handled.Load())
	}
	conn, err := client.Login(ctx, o, m.user)
	if err != nil {
		return nil, err
	}
	if _, err = fetchRoster(conn, o.Timeout); err == nil {
		err = conn.Send(available)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

func (run *herd) book(fn func(*Return)) {
	run.mu.Lock()
	defer run.mu.Unlock()
	fn(&run.r)
}

// report fills in the result. The rate is that of the time between the break and the last client.
func (run *herd) report(r *Result) {
	run.r.During = run.turnProbes()
	for _, p := range run.probes {
		run.r.Lost += p.sent.Load() - p.got.Load()
	}
	slices.Sort(run.back)
	if n := len(run.back); n > 0 {
		run.r.First, run.r.Median, run.r.Last = run.back[0].Seconds(), run.back[n/2].Seconds(), run.back[n-1].Seconds()
		r.Seconds = run.r.Last
		r.Rate = float64(n) / r.Seconds
	}
	run.r.Best = bestSecond(run.back)
	r.Errors = run.r.Gone + run.r.Stuck
	r.Herd = &run.r
}

// bestSecond returns the most times within one second; times are sorted.
func bestSecond(times []time.Duration) int {
	best, first := 0, 0
	for i, t := range times {
		for t-times[first] >= time.Second {
			first++
		}
		best = max(best, i-first+1)
	}
	return best
}

func (run *herd) close() {
	for _, p := range run.probes {
		p.stop()
	}
	var all sync.WaitGroup
	for i := range run.members {
		if conn := run.members[i].conn; conn != nil {
			all.Go(func() {
				_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
				_ = conn.Send([]byte(`</stream:stream>`))
				_ = conn.Close()
			})
		}
	}
	all.Wait()
	run.open.Wait()
}

// String renders the return for a person.
func (t Return) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "  back         %d resumed, %d anew; %d sessions gone, %d clients stuck, %d attempts failed\n", t.Resumed, t.Anew, t.Gone, t.Stuck, t.Retries)
	fmt.Fprintf(&b, "  after        first %.2f  median %.2f  last %.2f s; %d in the best second\n", t.First, t.Median, t.Last, t.Best)
	if t.Before.Max > 0 {
		fmt.Fprintf(&b, "  other's messages, ms: before p50 %.1f p99 %.1f max %.1f; meanwhile p50 %.1f p99 %.1f max %.1f; %d under way at the end\n",
			t.Before.P50, t.Before.P99, t.Before.Max, t.During.P50, t.During.P99, t.During.Max, t.Lost)
	}
	return b.String()
}
