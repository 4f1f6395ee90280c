package node

import (
	"context"
	"io"
	"time"

	"muster/edges/http/adminapi"
	messagestate "muster/feature/message/state"
	"muster/fsm"
	"muster/fsm/user"
	"muster/internal/fault"
	"muster/internal/modules"
	"muster/log"
	"muster/replication"
	"muster/replication/backup"
	"muster/replication/pki"
)

// BackupMachines are what reads and restores the states in a backup, with all modules.
func BackupMachines() backup.Machines {
	return backup.Machines{
		Control: func(s fsm.Store) (*fsm.Machine, error) { return fsm.New(s, log.Control, modules.Control()...) },
		Message: func(s fsm.Store) (*fsm.Machine, error) { return fsm.New(s, log.Message, modules.Message()...) },
		Forget:  forgetSessions,
		Counted: []backup.Counted{
			{Name: "users", Table: user.Table},
			{Name: "messages", Table: messagestate.Messages},
			{Name: "users for whom messages wait", Table: messagestate.Inboxes},
			{Name: "sessions on record", Table: messagestate.Sessions},
		},
	}
}

// Bounds of the records that forget a restored state's sessions.
const (
	forgetEntry  = 4096 // sessions that one entry forgets: some 40 KiB
	forgetRecord = 16   // entries of one record: some ten thousand rows that it writes
)

// forgetSessions returns the records that end all sessions of a state. Their
// ids were sealed with the old cluster's key and their nodes are gone: nobody
// can resume one, and each would wait for its client's time to end. What they had
// not confirmed is in the inboxes.
func forgetSessions(r fsm.Reader) (records [][]*log.Entry) {
	var all []messagestate.Ended
	flush := func() {
		if len(all) == 0 {
			return
		}
		e := messagestate.ForgetEntry(all...)
		if n := len(records); n > 0 && len(records[n-1]) < forgetRecord {
			records[n-1] = append(records[n-1], e)
		} else {
			records = append(records, []*log.Entry{e})
		}
		all = nil
	}
	messagestate.EachSession(r, func(id uint64) {
		if all = append(all, messagestate.Ended{Session: id, Claims: messagestate.AnyClaim}); len(all) == forgetEntry {
			flush()
		}
	})
	flush()
	return records
}

// backupCatchUp is for how long a backup waits for what was confirmed before it; a cluster without a majority is backed up as this node has it.
const backupCatchUp = 5 * time.Second

// backup writes an encrypted backup of the cluster's state; the node goes on meanwhile.
func (n *Node) backup(ctx context.Context, w io.Writer, req adminapi.BackupRequest, begin func(size int64)) error {
	if !n.backingUp.TryLock() {
		return fault.New(fault.Conflict, "node.backup", "", "this node is writing a backup already; wait until it is finished")
	}
	defer n.backingUp.Unlock()
	src := backup.Source{Control: n.state, Machines: BackupMachines(), Identity: n.identity, Temp: n.o.Config.Data, Software: n.o.Release, Begin: begin}
	groups := []*replication.Group{n.group}
	if !req.NoMessages {
		src.Message, groups = n.messageState, append(groups, n.messages)
	}
	for _, g := range groups {
		if err := reach(ctx, g); err != nil {
			n.logger.Warn("backup_without_leader", "log", g.Name(), "error", err)
			src.Alone = true
		}
	}
	m, err := backup.Write(ctx, w, pki.Secret(req.Passphrase), src, nil)
	if err != nil {
		n.logger.Error("backup_failed", "error", err)
		return err
	}
	messages := uint64(0)
	if m.Messages != nil {
		messages = m.Messages.Index
	}
	n.logger.Info("backup_written", "index", m.Index, "message_index", messages, "bytes", m.Total(), "alone", m.Alone)
	return nil
}

// reach waits until this node has applied all that a log had confirmed so far.
func reach(ctx context.Context, g *replication.Group) error {
	ctx, cancel := context.WithTimeout(ctx, backupCatchUp)
	defer cancel()
	index, err := g.ReadIndex(ctx)
	if err == nil {
		err = g.WaitIndex(ctx, index)
	}
	return err
}
