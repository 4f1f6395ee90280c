package backup

import (
	"context"
	"encoding/hex"
	"os"
	"path/filepath"
	"time"

	"muster/fsm"
	"muster/fsm/cluster"
	"muster/fsm/cluster/clusterpb"
	"muster/internal/fault"
	"muster/log"
	"muster/replication"
	"muster/replication/pki"
)

// RestoreOptions say what to restore and where.
type RestoreOptions struct {
	Path       string // the backup
	Passphrase pki.Secret
	Dir        string         // data folder of the new node, empty
	Node       cluster.Member // the new cluster's first node
	Name       string         // the new cluster's name; "" keeps the old one
	Machines   Machines
	Progress   Progress
}

// Restore founds a new cluster of one node on a backup: users, rosters,
// settings, archives and what waits for absent users are the backup's, with the
// ids that they had; the nodes are forgotten and users get the new node as their
// home, secrets are sealed anew, sessions of clients end. If the backup holds no
// messages the message log begins empty. Other nodes join as always. A backup that
// does not verify leaves the folder as it was.
func Restore(ctx context.Context, opts RestoreOptions) (*Report, *pki.Identity, error) {
	if err := replication.EmptyFolder(opts.Dir); err != nil {
		return nil, nil, err
	}
	r, id, err := restore(ctx, opts)
	if err != nil {
		_ = os.RemoveAll(replication.LogDir(opts.Dir, replication.ControlLog))
		_ = os.RemoveAll(replication.LogDir(opts.Dir, replication.MessageLog))
		return nil, nil, err
	}
	return r, id, nil
}

func restore(ctx context.Context, opts RestoreOptions) (*Report, *pki.Identity, error) {
	dirs := folders{control: filepath.Join(replication.LogDir(opts.Dir, replication.ControlLog), "restoring"),
		message: filepath.Join(replication.LogDir(opts.Dir, replication.MessageLog), "restoring")}
	m, err := unpack(ctx, opts.Path, opts.Passphrase, dirs, opts.Progress)
	if err != nil {
		return nil, nil, err
	}
	oldKey, err := hex.DecodeString(m.ClusterKey)
	if err != nil {
		return nil, nil, fault.New(fault.BadRequest, "backup.restore", opts.Path, "the backup's manifest is malformed")
	}
	var f *replication.Foundation
	report, err := check(dirs, m, opts.Machines, func(machine *fsm.Machine) (err error) {
		f, err = found(machine, m, oldKey, opts)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	if err := begin(opts, replication.ControlLog, dirs.control, m.Index, f, [][]*log.Entry{f.Entries}); err != nil {
		return nil, nil, err
	}
	if err := beginMessages(opts, dirs.message, m.Messages, f); err != nil {
		return nil, nil, err
	}
	return report, f.Identity, f.Identity.Save(opts.Dir)
}

// begin makes an unpacked state the beginning of a log.
func begin(opts RestoreOptions, name, dir string, index uint64, f *replication.Foundation, records [][]*log.Entry) error {
	_ = os.Remove(filepath.Join(dir, "LOCK")) // of having looked inside
	return replication.SeedSnapshot(opts.Dir, name, dir, index, f.Identity.NodeID, records)
}

// beginMessages begins the message log, with the backup's state if it has one.
// What belongs to the old cluster's connections ends with the first records: the
// state itself is taken over as it was, so that its digests are checked once more.
func beginMessages(opts RestoreOptions, dir string, state *State, f *replication.Foundation) error {
	if state == nil {
		return replication.SeedLog(opts.Dir, replication.MessageLog, f.Identity.NodeID, nil)
	}
	var records [][]*log.Entry
	err := inspect(dir, opts.Machines.Message, func(machine *fsm.Machine) error {
		if opts.Machines.Forget != nil {
			records = opts.Machines.Forget(machine)
		}
		return nil
	})
	if err != nil {
		return err
	}
	now := time.Now()
	for _, record := range records {
		for _, e := range record {
			e.Node, e.Time, e.Actor, e.Surface = f.Identity.NodeID, now, "system", "restore"
		}
	}
	if len(records) == 0 {
		records = [][]*log.Entry{nil} // the first node of a cluster has a log with something in it
	}
	return begin(opts, replication.MessageLog, dir, state.Index, f, records)
}

// found prepares the new cluster's identity and the entries that turn the old state into its own.
func found(machine *fsm.Machine, m *sealedManifest, oldKey pki.Secret, opts RestoreOptions) (*replication.Foundation, error) {
	var info clusterpb.InfoRow
	if !fsm.Load(machine, cluster.InfoTable, nil, &info) {
		return nil, fault.New(fault.BadRequest, "backup.restore", opts.Path, "the backup holds no cluster")
	}
	name := opts.Name
	if name == "" {
		name = m.ClusterName
	}
	f, err := replication.Found(name, opts.Node, info.LastNode+1, m.ClusterID)
	if err != nil {
		return nil, err
	}
	if err := machine.Check(f.Entries[0]); err != nil {
		return nil, err
	}
	resealed, err := reseal(machine, oldKey, f.Identity)
	f.Entries = append(f.Entries, resealed...)
	return f, err
}

// reseal carries the secrets over. What the old cluster key opens is sealed
// with the new one; what was not sealed is kept as it is. The CA's key is not
// carried over: a new cluster has its own authority. The salt of unknown users
// is, so that nobody can tell them apart by a change.
func reseal(r fsm.Reader, oldKey pki.Secret, id *pki.Identity) (out []*log.Entry, err error) {
	now := time.Now()
	r.Scan(cluster.SecretTable, nil, nil, func(k, v []byte) bool {
		name := string(k)
		if name == pki.SecretCAKey {
			return true
		}
		value := append([]byte(nil), v...)
		if plain, oerr := pki.Open(oldKey, value, name); oerr == nil {
			if value, err = pki.Seal(id.ClusterKey, plain, name); err != nil {
				return false
			}
		}
		e := cluster.SecretEntry(name, value)
		e.Node, e.Time, e.Actor, e.Surface = id.NodeID, now, "system", "restore"
		out = append(out, e)
		return true
	})
	return out, err
}
