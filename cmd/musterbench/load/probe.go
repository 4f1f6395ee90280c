package load

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"muster/cmd/musterbench/client"
	"muster/cmd/musterbench/stat"
	"muster/cmd/musterbench/target"
	"muster/cmd/musterbench/wire"
)

// probe is a session that writes to itself at a steady rate, to see what others' load does to its messages.
type probe struct {
	user   target.User
	run    *herd
	conn   *client.Conn
	epoch  time.Time
	sent   atomic.Uint64
	got    atomic.Uint64
	cancel context.CancelFunc
}

// openProbes logs the probes in, at the nodes that stay, and starts their clocks.
func (run *herd) openProbes(ctx context.Context) error {
	return parallel(run.env.Workers, len(run.probes), func(i int) error {
		p := run.probes[i]
		conn, err := client.Login(ctx, run.options(i, run.others[i%len(run.others)]), p.user)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(ctx)
		p.conn, p.epoch, p.cancel = conn, time.Now(), cancel
		run.open.Go(func() { _ = conn.Serve(p.receive) })
		run.open.Go(func() { p.write(ctx) })
		return conn.Send(available)
	})
}

// write sends a message in each interval; one that cannot be sent in time is sent late and counts from when it was due.
func (p *probe) write(ctx context.Context) {
	head := []byte(`<message type='chat' to='` + p.conn.JID + `'><body>`)
	mine := slices.Concat(head, make([]byte, markSize), []byte(`</body></message>`))
	for due := time.Now(); ; due = due.Add(probeEvery) {
		if pause(ctx, time.Until(due)) != nil {
			return
		}
		mark{sent: due.Sub(p.epoch), sequence: p.sent.Add(1), sender: p.run.number}.put(mine[len(head):])
		if p.conn.Send(mine) != nil {
			return
		}
	}
}

func (p *probe) receive(frame []byte) {
	if !wire.Named(frame, "message") || string(wire.Attr(frame, "type")) == "error" {
		pong(p.conn, frame)
		return
	}
	if m, ok := findMark(frame); ok && m.sender == p.run.number { // not what an earlier run left
		p.got.Add(1)
		p.run.latency.Load().Record(time.Since(p.epoch) - m.sent)
	}
}

func (p *probe) stop() {
	if p.conn != nil {
		p.cancel()
		_ = p.conn.Close()
	}
}

// turnProbes returns the latency of all probes since the last call.
func (run *herd) turnProbes() stat.Latency {
	return run.latency.Swap(new(stat.Histogram)).Latency()
}
