package replication

import (
	"time"

	"github.com/hashicorp/raft"
)

// defaults of Timing; see there.
var defaultTiming = Timing{
	Heartbeat: 400 * time.Millisecond, Election: 400 * time.Millisecond, Lease: 400 * time.Millisecond,
	Commit: 10 * time.Millisecond, RPC: 5 * time.Second, // a change made at a follower waits for one to two of these; retell spares an idle log most of them
	NoQuorum: 4500 * time.Millisecond, Propose: 15 * time.Second,
	StallWarn: 3 * time.Second, StallExit: 5 * time.Second,
	Reconcile: 500 * time.Millisecond, DeadVoter: 5 * time.Minute, VerifyStep: 500 * time.Millisecond,
	SnapshotInterval: 2 * time.Minute, SnapshotThreshold: 8192, TrailingLogs: 10240,
}

func (t *Timing) fill() {
	d := defaultTiming
	for _, f := range []struct{ have, want *time.Duration }{
		{&t.Heartbeat, &d.Heartbeat}, {&t.Election, &d.Election}, {&t.Lease, &d.Lease}, {&t.Commit, &d.Commit},
		{&t.RPC, &d.RPC}, {&t.NoQuorum, &d.NoQuorum}, {&t.Propose, &d.Propose}, {&t.StallWarn, &d.StallWarn},
		{&t.StallExit, &d.StallExit}, {&t.Reconcile, &d.Reconcile}, {&t.DeadVoter, &d.DeadVoter},
		{&t.VerifyStep, &d.VerifyStep}, {&t.SnapshotInterval, &d.SnapshotInterval},
	} {
		if *f.have == 0 {
			*f.have = *f.want
		}
	}
	if t.SnapshotThreshold == 0 {
		t.SnapshotThreshold = d.SnapshotThreshold
	}
	if t.TrailingLogs == 0 {
		t.TrailingLogs = d.TrailingLogs
	}
}

// Raft's batching.
const (
	maxAppend = 512 // log entries of one request to a follower, and of one batch to the machine
	logCache  = 512 // recent log entries in memory, so that followers are not served from the disk
)

func (cfg *Config) raftConfig() *raft.Config {
	t := cfg.Timing
	rc := raft.DefaultConfig()
	rc.LocalID = serverID(cfg.NodeID)
	rc.HeartbeatTimeout, rc.ElectionTimeout, rc.LeaderLeaseTimeout = t.Heartbeat, t.Election, t.Lease
	rc.CommitTimeout = t.Commit
	rc.MaxAppendEntries = maxAppend
	rc.BatchApplyCh = true
	rc.ShutdownOnRemove = false
	rc.TrailingLogs, rc.SnapshotInterval, rc.SnapshotThreshold = t.TrailingLogs, t.SnapshotInterval, t.SnapshotThreshold
	rc.NoSnapshotRestoreOnStart = true
	rc.NoLegacyTelemetry = true
	rc.Logger = raftLogger(cfg.Logger, cfg.Name)
	return rc
}
