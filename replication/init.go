package replication

import (
	"encoding/hex"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"muster/fsm/cluster"
	"muster/fsm/config"
	"muster/internal/fault"
	"muster/internal/jid"
	"muster/log"
	"muster/replication/pki"
)

// Init founds a cluster of one node in an empty data folder: cluster id,
// authority, cluster key, the node's identity, and the first records of both
// logs (in the control log: cluster, first node, IM domain, secrets), which
// the node commits when it starts.
func Init(opts InitOptions) (*pki.Identity, error) {
	if err := EmptyFolder(opts.Dir); err != nil {
		return nil, err
	}
	domain, err := jid.Parse(opts.Domain)
	if err != nil || !domain.IsDomain() {
		return nil, fault.New(fault.BadRequest, "replication.init", opts.Domain, "the IM domain is not a domain name")
	}
	f, err := Found(opts.ClusterName, opts.Node, 1, "")
	if err != nil {
		return nil, err
	}
	if err := SeedLog(opts.Dir, MessageLog, 1, nil); err != nil {
		return nil, err
	}
	if err := SeedLog(opts.Dir, ControlLog, 1, append(f.Entries, config.AddDomainEntry(domain.String()))); err != nil {
		return nil, err
	}
	return f.Identity, f.Identity.Save(opts.Dir)
}

// Foundation is what a new cluster begins with.
type Foundation struct {
	Identity *pki.Identity
	Entries  []*log.Entry // cluster.init and the secrets
}

// Found makes the authority, the keys and the first node's identity of a new
// cluster. replaces is the id of the cluster whose state it takes over from a backup, or "".
func Found(name string, first cluster.Member, node uint32, replaces string) (*Foundation, error) {
	now := time.Now()
	id := &pki.Identity{ClusterID: hex.EncodeToString(pki.NewSecret(16)), NodeID: node, Name: first.Name, ClusterKey: pki.NewSecret(pki.KeySize)}
	ca, err := pki.NewCA(id.ClusterID, now)
	if err != nil {
		return nil, err
	}
	id.CA = ca.Cert
	if err := id.Certify(ca, now); err != nil {
		return nil, err
	}
	sealed, err := ca.SealedKey(id.ClusterKey)
	if err != nil {
		return nil, err
	}
	f := &Foundation{Identity: id, Entries: []*log.Entry{
		cluster.InitEntry(cluster.Init{ID: id.ClusterID, Name: name, CACert: ca.PEM(), Node: first, Replaces: replaces}),
		cluster.SecretEntry(pki.SecretCAKey, sealed),
		cluster.SecretEntry(pki.SecretFakeSalt, pki.NewSecret(32)),
	}}
	for _, e := range f.Entries {
		e.Node, e.Time, e.Actor, e.Surface = node, now, "system", "system"
	}
	return f, nil
}

// EmptyFolder makes a data folder and the logs' folders in it, and refuses one that is in use.
func EmptyFolder(dir string) error {
	if pki.Exists(dir) {
		return fault.New(fault.Conflict, "replication.init", dir, "this data folder belongs to a cluster already; choose another, or empty it")
	}
	logs := []string{LogDir(dir, ControlLog), LogDir(dir, MessageLog)}
	for _, d := range logs {
		if left, err := os.ReadDir(d); err == nil && len(left) > 0 {
			return fault.New(fault.Conflict, "replication.init", dir, "this data folder holds the remains of an attempt that did not finish; empty it")
		}
	}
	for _, d := range append([]string{dir}, logs...) {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return &fault.Error{Code: fault.Internal, Op: "replication.init", Subject: d, Text: "the data folder cannot be made", Err: err}
		}
	}
	return nil
}

// SeedLog writes the first records of a log in a data folder: at index 1 a
// configuration with node as the only voter, then entries, if any, as one record.
func SeedLog(data, name string, node uint32, entries []*log.Entry) error {
	return seed(data, name, func(g *guardedLog) error { return bootstrapLog(g, node, entries...) })
}

// SeedSnapshot begins a log with the state in a checkpoint folder, which is
// moved: a snapshot at index with node as the only voter, and behind it a
// record of each list of entries. The node takes the state over when it starts.
func SeedSnapshot(data, name, checkpoint string, index uint64, node uint32, records [][]*log.Entry) error {
	snaps, err := openSnapStore(vfs.Default, filepath.Join(LogDir(data, name), "snapshots"), slog.Default())
	if err != nil {
		return err
	}
	sink, err := snaps.Create(1, index, 1, soleVoter(node), index, nil)
	if err == nil {
		err = sink.(*snapSink).adopt(checkpoint, index)
	}
	if err == nil {
		err = sink.Close()
	}
	if err != nil {
		return fault.Wrap(err, fault.Internal, "replication.seed", data)
	}
	var logs []*raft.Log
	for i, entries := range records {
		record, err := log.Encode(entries)
		if err != nil {
			return err
		}
		logs = append(logs, &raft.Log{Index: index + 1 + uint64(i), Term: 1, Type: raft.LogCommand, Data: record})
	}
	return seed(data, name, func(g *guardedLog) error { return beginLog(g, logs) })
}

func seed(data, name string, fn func(*guardedLog) error) error {
	own, err := openLogStore(vfs.Default, LogDir(data, name), name, slog.Default(), nil)
	if err != nil {
		return err
	}
	return errors.Join(fn(quietLog(own, own)), own.Close())
}

// quietLog is a guarded log for tools that run before the group: a failure is only returned.
func quietLog(logs raft.LogStore, stable raft.StableStore) *guardedLog {
	return &guardedLog{logs: logs, stable: stable,
		watch: &watchdog{warn: defaultTiming.StallWarn, limit: defaultTiming.StallExit, trouble: &trouble{}, exit: func(string) {}}}
}

// bootstrapLog writes the first records of a new log: a configuration with one
// voter and, if there are any, the first entries as one record. The node
// commits them when it starts.
func bootstrapLog(g *guardedLog, node uint32, entries ...*log.Entry) error {
	records := []*raft.Log{{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(soleVoter(node))}}
	if len(entries) > 0 {
		data, err := log.Encode(entries)
		if err != nil {
			return err
		}
		records = append(records, &raft.Log{Index: 2, Term: 1, Type: raft.LogCommand, Data: data})
	}
	return beginLog(g, records)
}

func soleVoter(node uint32) raft.Configuration {
	return raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: serverID(node), Address: raft.ServerAddress(serverID(node))}}}
}

func beginLog(g *guardedLog, records []*raft.Log) error {
	if last, err := g.LastIndex(); err != nil || last != 0 {
		return fault.New(fault.Conflict, "replication.init", "", "the data folder already holds a log")
	}
	if err := g.SetUint64(keyTerm, 1); err != nil {
		return fault.Wrap(err, fault.Internal, "replication.init", "")
	}
	return fault.Wrap(g.StoreLogs(records), fault.Internal, "replication.init", "")
}

// keyTerm is where the Raft library keeps the current term.
var keyTerm = []byte("CurrentTerm")
