package node

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"muster/fsm"
	"muster/fsm/config"
	"muster/internal/fault"
	"muster/internal/modules"
	"muster/internal/store"
	"muster/log"
	"muster/monitor"
	"muster/replication"
)

// How messages are gathered into records of the message log.
var (
	batchSize = config.Int("message.batch_size", 64, 1, 1024, config.Cluster,
		"How many messages one record of the message log gathers at most. They gather while an earlier record is under way.")
	batchDelay = config.Duration("message.batch_delay", 0, 0, 100*time.Millisecond, config.Cluster,
		"How long a record of the message log waits for more messages though none is under way. Saves syncs on a slow disk, and delays every message.")
)

// batchBytes ends the gathering of a record of messages: what follows it must not wait long for one write, and 64 usual messages are a tenth of it.
const batchBytes = 256 << 10

// messageVoters is how many nodes vote in the message log: each message is
// synced by two of three; a fifth voter would only make it wait for more disks (ADR 12).
const messageVoters = 3

// messageCache is the block cache of the message log's state, in bytes, with
// Pebble's memtables in it as with stateCache. A page of history is some 20 KiB
// in a handful of blocks: 32 MiB beside a memtable keep the newest pages of about a
// thousand conversations, and the filter and index blocks of some gigabytes of older ones.
const messageCache = messageTable + 32<<20

// messageTable is the size of a memtable of the message log's state, in bytes. Rows of
// a message go to all parts of the archives, so that each table makes Pebble write
// most of the tables of the next level anew: four times as much at once costs a
// message a fifth less CPU than the usual 4 MiB.
const messageTable = 16 << 20

// The message log is bounded by bytes: its records hold one message or a batch
// of them. What a loss of power may take from the state is applied again from
// the log: 32 MiB of messages are some 60,000, a few seconds' work. Behind a
// snapshot stay 64 MiB, so that a node that was away for minutes under full
// load, or hours in the usual one, needs no copy of the whole archive.
const (
	messageSnapshot = 32 << 20
	messageTrailing = 64 << 20
)

// messageCommit is how soon followers learn of a commit. Most recipients are at
// home on one: with 10 ms, as the control log has it, 1 % of the messages took
// longer than 31 ms on three idle nodes of one machine, with 5 ms longer than
// 15. It costs each node half a percent of a processor.
const messageCommit = 5 * time.Millisecond

// messageTiming is the timing of the message log, where t, which the control log has, says nothing else.
func messageTiming(t replication.Timing) replication.Timing {
	if t.Commit == 0 {
		t.Commit = messageCommit
	}
	if t.SnapshotThreshold == 0 {
		t.SnapshotThreshold, t.TrailingLogs = 1<<18, 1<<16
	}
	t.SnapshotBytes, t.TrailingBytes = messageSnapshot, messageTrailing
	return t
}

// progress is how far this node is on its way to what one log's leader had committed when it was first heard.
type progress struct {
	name string

	mu        sync.Mutex
	wanted    uint64
	done      bool
	problem   string
	unhealthy atomic.Pointer[string] // what the group says is wrong with this node
}

func (p *progress) set(wanted uint64, done bool, problem string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wanted, p.done, p.problem = max(p.wanted, wanted), done, problem
}

func (p *progress) caughtUp() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done
}

// facts is what the data monitor wants to know of the log.
func (p *progress) facts(m *fsm.Machine) monitor.LogFacts {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := monitor.LogFacts{Name: p.name, Applied: m.Applied(), Wanted: p.wanted, CaughtUp: p.done, Problem: p.problem}
	if err := m.Halted(); err != nil {
		f.Halted = err.Error()
	}
	if s := p.unhealthy.Load(); s != nil && *s != "" {
		f.Problem = *s
	}
	return f
}

// openMessageState opens the state of the message log.
func (n *Node) openMessageState() (err error) {
	fs, data := n.o.FS, n.o.Config.Data
	n.messageState, err = store.Open(replication.StateDir(data, replication.MessageLog), store.Options{
		FS: fs, Logger: n.logger, CacheBytes: messageCache, MemTable: messageTable, Fatal: n.storeFailed})
	if err != nil {
		return err
	}
	if n.messageMachine, err = fsm.New(n.messageState, log.Message, modules.Message()...); err != nil {
		return err
	}
	n.messageMachine.OnApply(func(index uint64, changes []fsm.Change) {
		if n.routing.Load() {
			n.router.MessageChanges(index, changes)
		}
	})
	return nil
}

// openGroups opens both logs. The control log comes first: its state says who the members of both are.
func (n *Node) openGroups() (err error) {
	data, members := n.o.Config.Data, replication.ClusterMembers(n.machine)
	n.group, err = replication.Open(replication.Config{
		Name: replication.ControlLog, NodeID: n.identity.NodeID, FS: n.o.FS, Dir: replication.LogDir(data, replication.ControlLog),
		Store: n.state, Machine: n.machine, Mesh: n.mesh, Logger: n.logger, Version: n.o.Release,
		LogStore: n.o.LogStore, StableStore: n.o.StableStore, Members: members, Timing: n.o.Raft,
		// A removed node leaves the control log last: only from there it hears that it has to hand over the message log.
		Hold: func(id uint32) bool { return n.directory.Listed(id, replication.MessageLog) },
		Room: n.room(replication.ControlLog), Relieve: n.space.Strike,
		Exit: n.o.Exit, OnUnhealthy: func(reason string) { n.onUnhealthy(&n.controlProgress, alarmReplication, reason) },
		OnRemoved: n.onRemoved, OnReplaced: n.onReplaced, Service: n.criticalDown,
	})
	if err != nil {
		return err
	}
	n.directory.Watch(n.group)
	n.messages, err = replication.Open(replication.Config{
		Name: replication.MessageLog, NodeID: n.identity.NodeID, FS: n.o.FS, Dir: replication.LogDir(data, replication.MessageLog),
		Store: n.messageState, Machine: n.messageMachine, Mesh: n.mesh, Logger: n.logger, Version: n.o.Release,
		LogStore: n.o.MessageLogStore, StableStore: n.o.MessageStableStore, Members: members, MaxVoters: messageVoters, Timing: messageTiming(n.o.Raft), Batch: n.messageBatch,
		Room: n.room(replication.MessageLog), Relieve: n.space.Strike,
		Exit: n.o.Exit, OnUnhealthy: func(reason string) { n.onUnhealthy(&n.messageProgress, alarmMessages, reason) },
		OnRemoved: n.onRemoved, OnReplaced: n.onMessagesReplaced,
	})
	if err != nil {
		return err
	}
	n.directory.Watch(n.messages)
	return n.checkSeed()
}

// messageBatch is how messages gather now; it is asked for each record.
func (n *Node) messageBatch() replication.Batch {
	return replication.Batch{Entries: int(n.live.Int(batchSize)), Bytes: batchBytes, Delay: n.live.Duration(batchDelay)}
}

// checkSeed refuses a founder's folder without a message log. A node that
// joined begins with an empty one and gets it from the others; the first node
// of a cluster has nobody to get it from, and would wait for ever.
func (n *Node) checkSeed() error {
	if s := n.messages.Status(); len(n.identity.Peers) == 0 && s.LastLog == 0 {
		return fault.New(fault.Internal, "node.start", n.o.Config.Data, "the data folder has no message log though this node founded its cluster: "+
			"the folder "+replication.LogDir(n.o.Config.Data, replication.MessageLog)+" is missing or emptied; bring it back, or restore a backup into an empty data folder")
	}
	return nil
}

// trackCatchUp learns from a log's leader what is committed and waits until it is applied here.
func (n *Node) trackCatchUp(g *replication.Group, p *progress) {
	for n.ctx.Err() == nil {
		ctx, cancel := context.WithTimeout(n.ctx, 5*time.Second)
		index, err := g.ReadIndex(ctx)
		cancel()
		if err == nil {
			p.set(index, false, "")
			err = g.WaitIndex(n.ctx, index)
		}
		if err == nil {
			p.set(index, true, "")
			n.logger.Info("caught_up", "log", p.name, "index", index)
			n.runner.Poke()
			return
		}
		p.set(0, false, fault.Public(err))
		n.pause(retryStep)
	}
}

// onUnhealthy keeps what is wrong with a log on this node, and since when.
func (n *Node) onUnhealthy(p *progress, alarm, reason string) {
	p.unhealthy.Store(&reason)
	if reason == "" {
		n.alarms.Clear(alarm)
		return
	}
	n.alarms.Raise(monitor.Alarm{Name: alarm, Severity: monitor.Critical, Reason: p.name + " log: " + reason})
}

// onMessagesReplaced has the router offer what a snapshot of the message log brought.
func (n *Node) onMessagesReplaced(index uint64) {
	if n.routing.Load() {
		n.router.ReloadMessages()
	}
	n.logger.Info("state_replaced", "log", replication.MessageLog, "index", index)
}

// handOn has another node take over the logs that this one leads, as far as that works at once.
func (n *Node) handOn(ctx context.Context) {
	for _, g := range []*replication.Group{n.messages, n.group} {
		if !g.IsLeader() || len(g.Status().Voters) < 2 {
			continue
		}
		if err := g.TransferLeadership(ctx); err != nil {
			n.logger.Info("leadership_not_handed_on", "log", g.Name(), "error", err)
		}
	}
}
