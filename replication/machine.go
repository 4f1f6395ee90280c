package replication

import (
	"bytes"
	"fmt"
	"io"

	"github.com/hashicorp/raft"

	"muster/fsm"
	"muster/internal/fault"
	"muster/log"
)

// adapter makes the group's machine a Raft state machine.
type adapter struct{ g *Group }

var _ raft.BatchingFSM = adapter{}

// emptyRecord holds no entries. A new leader writes one, so that its machine's
// index reaches the log's; and each one is a mark at which all nodes note their digests.
var emptyRecord = func() []byte {
	b, err := log.Encode(nil)
	if err != nil {
		panic(err)
	}
	return b
}()

// applied is the outcome of one record, as Raft's future carries it.
type applied struct {
	index   uint64
	results []fsm.Result
	err     error
	taken   bool // with err: a leader may have taken the record, so that it may be written, even later
}

// Apply implements raft.FSM.
func (a adapter) Apply(l *raft.Log) any { return a.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch implements raft.BatchingFSM.
func (a adapter) ApplyBatch(logs []*raft.Log) []any {
	out := make([]any, len(logs))
	done := a.g.watch.start("the state")
	for i, l := range logs {
		out[i] = a.g.applyLog(l)
	}
	done()
	a.g.progress.advance(a.g.cfg.Machine.Applied())
	return out
}

func (g *Group) applyLog(l *raft.Log) (out applied) {
	out.index = l.Index
	defer func() {
		if p := recover(); p != nil { // the machine panics when its store fails
			out.err = fault.New(fault.Internal, "replication.apply", fmt.Sprint(l.Index), "the node's state cannot be written")
			g.exit(fmt.Sprintf("applying record %d: %v", l.Index, p))
		}
	}()
	m := g.cfg.Machine
	if l.Type == raft.LogCommand {
		out.results = m.Apply(l.Index, l.Data)
	} else {
		m.Skip(l.Index)
	}
	if err := m.Halted(); err != nil {
		out.err = &fault.Error{Code: fault.Unavailable, Op: "replication.apply", Text: "this node has stopped applying: " + haltText(err), Err: err}
		g.trouble.set("halt", haltText(err))
	} else if l.Type == raft.LogCommand && bytes.Equal(l.Data, emptyRecord) {
		g.digests.note(m)
	}
	return out
}

// haltText says why a machine halted, as far down as there is a text.
func haltText(err error) string {
	if f, ok := err.(*fault.Error); ok && f.Text == "" && f.Err != nil {
		return "record " + f.Subject + ": " + fault.Public(f.Err)
	}
	return fault.Public(err)
}

// Snapshot implements raft.FSM: a checkpoint by hard links. There is none past
// a halt, and none of a store that cannot be made durable: the log behind it would be cut.
func (a adapter) Snapshot() (raft.FSMSnapshot, error) {
	g := a.g
	if err := g.cfg.Machine.Halted(); err != nil {
		return nil, err
	}
	fs := g.cfg.FS
	dir := fs.PathJoin(g.cfg.Dir, "checkpoint")
	if err := fs.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := g.cfg.Store.Checkpoint(dir); err != nil {
		return nil, err
	}
	return &checkpoint{g: g, dir: dir, index: g.cfg.Machine.Applied()}, nil
}

// checkpoint is a snapshot that is taken and not stored yet.
type checkpoint struct {
	g     *Group
	dir   string
	index uint64
}

// Persist implements raft.FSMSnapshot: nothing is copied.
func (c *checkpoint) Persist(sink raft.SnapshotSink) error {
	if err := c.g.cfg.Store.Flush(); err != nil {
		return err
	}
	return sink.(*snapSink).adopt(c.dir, c.index)
}

// Release implements raft.FSMSnapshot.
func (c *checkpoint) Release() { _ = c.g.cfg.FS.RemoveAll(c.dir) }

// Restore implements raft.FSM. The stream's header names the local snapshot
// that it comes from; its files are taken from there, without another copy.
func (a adapter) Restore(rc io.ReadCloser) error {
	h, err := readHeader(rc)
	if err != nil {
		return err
	}
	return a.g.restore(h.ID)
}

// restore replaces the whole state by a local snapshot.
func (g *Group) restore(id string) error {
	meta, dir, err := g.snaps.find(id)
	if err != nil {
		return err
	}
	defer g.snaps.release(id)
	fs := g.cfg.FS
	incoming := fs.PathJoin(g.cfg.Dir, "incoming")
	if err := cloneState(fs, dir, incoming); err != nil {
		return fault.Wrap(err, fault.Internal, "replication.restore", id)
	}
	if err := g.cfg.Store.Replace(incoming); err != nil {
		return err
	}
	if err := g.cfg.Machine.Reload(); err != nil {
		return err
	}
	if got := g.cfg.Machine.Applied(); got != meta.StateIndex {
		return fault.New(fault.Internal, "replication.restore", id, fmt.Sprintf("the snapshot's state is at index %d, its description says %d", got, meta.StateIndex))
	}
	if err := g.cfg.Machine.VerifyDigests(); err != nil {
		g.trouble.set("digest", "the state received in a snapshot is damaged: "+fault.Public(err))
		return err
	}
	g.trouble.clear("digest")
	g.trouble.clear("halt")
	g.cfg.Logger.Info("snapshot_restored", "log", g.cfg.Name, "index", meta.Index, "files", len(meta.Files))
	g.progress.advance(g.cfg.Machine.Applied())
	if g.cfg.OnReplaced != nil {
		g.cfg.OnReplaced(g.cfg.Machine.Applied())
	}
	return nil
}
