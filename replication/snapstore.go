package replication

import (
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"muster/internal/fault"
)

// snapStore keeps snapshots as folders: a checkpoint of the store and a file
// that describes it. Taking one copies nothing; it is turned into a stream
// only when a follower needs it. Only the newest is kept, and older ones as
// long as they are being read.
type snapStore struct {
	fs  vfs.FS
	dir string
	log *slog.Logger

	room func() (Room, string) // nil: there is room

	mu      sync.Mutex
	metas   []*snapMeta // newest first
	readers map[string]int
	seq     int
}

// snapMeta describes a snapshot; it is stored beside it.
type snapMeta struct {
	ID                 string             `json:"id"`
	Index              uint64             `json:"index"` // last log index that the snapshot stands for
	Term               uint64             `json:"term"`
	Configuration      raft.Configuration `json:"configuration"`
	ConfigurationIndex uint64             `json:"configuration_index"`
	StateIndex         uint64             `json:"state_index"` // what the machine in it has applied; the rest up to Index is empty
	Files              []snapFile         `json:"files"`
	Created            time.Time          `json:"created"`
}

const (
	snapMetaFile  = "meta.json"
	snapStateDir  = "state"
	snapTmpPrefix = "tmp-"
)

func (m *snapMeta) header() *streamHeader {
	return &streamHeader{Version: streamVersion, ID: m.ID, StateIndex: m.StateIndex, Files: m.Files}
}

func (m *snapMeta) raft() *raft.SnapshotMeta {
	return &raft.SnapshotMeta{Version: 1, ID: m.ID, Index: m.Index, Term: m.Term, Configuration: m.Configuration,
		ConfigurationIndex: m.ConfigurationIndex, Size: m.header().size()}
}

// openSnapStore reads what snapshots there are and removes unfinished ones.
func openSnapStore(fs vfs.FS, dir string, log *slog.Logger) (*snapStore, error) {
	s := &snapStore{fs: fs, dir: dir, log: log, readers: map[string]int{}}
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.Wrap(err, fault.Internal, "replication.snapshot", dir)
	}
	names, err := fs.List(dir)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "replication.snapshot", dir)
	}
	for _, name := range names {
		if strings.HasPrefix(name, snapTmpPrefix) {
			_ = fs.RemoveAll(fs.PathJoin(dir, name))
			continue
		}
		m, err := s.readMeta(name)
		if err != nil {
			log.Warn("snapshot_unreadable", "snapshot", name, "err", err)
			continue
		}
		s.metas = append(s.metas, m)
	}
	s.sort()
	return s, nil
}

func (s *snapStore) sort() {
	slices.SortFunc(s.metas, func(a, b *snapMeta) int {
		if a.Index != b.Index {
			return int(int64(b.Index - a.Index))
		}
		return b.Created.Compare(a.Created)
	})
}

func (s *snapStore) readMeta(name string) (*snapMeta, error) {
	f, err := s.fs.Open(s.fs.PathJoin(s.dir, name, snapMetaFile))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxHeader))
	if err != nil {
		return nil, err
	}
	m, err := decodeMeta(text)
	if err == nil && m.ID != name {
		err = streamFault("its name is wrong")
	}
	return m, err
}

// encodeMeta writes a checksum line and the JSON document.
func encodeMeta(m *snapMeta) []byte {
	doc, _ := json.Marshal(m) // strings and numbers only
	return append(fmt.Appendf(nil, "%08x\n", crc32.Checksum(doc, castagnoli)), doc...)
}

func decodeMeta(text []byte) (*snapMeta, error) {
	sum, doc, ok := strings.Cut(string(text), "\n")
	if !ok || sum != fmt.Sprintf("%08x", crc32.Checksum([]byte(doc), castagnoli)) {
		return nil, streamFault("the checksum of its description is wrong")
	}
	var m snapMeta
	if err := json.Unmarshal([]byte(doc), &m); err != nil {
		return nil, streamFault("its description is malformed")
	}
	return &m, nil
}

// latest returns the newest snapshot, or nil.
func (s *snapStore) latest() *snapMeta {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.metas) == 0 {
		return nil
	}
	return s.metas[0]
}

// covered is the last log index that a snapshot stands for; 0 without one.
func (s *snapStore) covered() uint64 {
	if m := s.latest(); m != nil {
		return m.Index
	}
	return 0
}

// List implements raft.SnapshotStore.
func (s *snapStore) List() ([]*raft.SnapshotMeta, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*raft.SnapshotMeta, len(s.metas))
	for i, m := range s.metas {
		out[i] = m.raft()
	}
	return out, nil
}

// find returns the snapshot and keeps it from being removed until release.
func (s *snapStore) find(id string) (*snapMeta, string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.metas {
		if m.ID == id {
			s.readers[id]++
			return m, s.fs.PathJoin(s.dir, id, snapStateDir), nil
		}
	}
	return nil, "", fault.New(fault.NotFound, "replication.snapshot", id, "there is no such snapshot any more")
}

func (s *snapStore) release(id string) {
	s.mu.Lock()
	s.readers[id]--
	s.mu.Unlock()
	s.reap()
}

// reap removes all snapshots but the newest that nobody reads.
func (s *snapStore) reap() {
	s.mu.Lock()
	defer s.mu.Unlock()
	keep := s.metas[:0:0]
	for i, m := range s.metas {
		if i == 0 || s.readers[m.ID] > 0 {
			keep = append(keep, m)
			continue
		}
		if err := s.fs.RemoveAll(s.fs.PathJoin(s.dir, m.ID)); err != nil {
			s.log.Warn("snapshot_remove_failed", "snapshot", m.ID, "err", err)
		}
		delete(s.readers, m.ID)
	}
	s.metas = keep
}

// Open implements raft.SnapshotStore: the snapshot as a stream.
func (s *snapStore) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	m, dir, err := s.find(id)
	if err != nil {
		return nil, nil, err
	}
	pr, pw := io.Pipe()
	go func() {
		_ = pw.CloseWithError(pack(pw, s.fs, dir, m.header()))
		s.release(id)
	}()
	return m.raft(), pr, nil
}

// Create implements raft.SnapshotStore.
func (s *snapStore) Create(version raft.SnapshotVersion, index, term uint64, conf raft.Configuration,
	confIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	if version != 1 {
		return nil, fault.New(fault.NotSupported, "replication.snapshot", "", fmt.Sprintf("snapshot version %d", version))
	}
	s.mu.Lock()
	s.seq++
	id := fmt.Sprintf("%d-%d-%d-%d", term, index, time.Now().UnixMilli(), s.seq)
	s.mu.Unlock()
	tmp := s.fs.PathJoin(s.dir, snapTmpPrefix+id)
	state := s.fs.PathJoin(tmp, snapStateDir)
	if err := s.fs.MkdirAll(tmp, 0o700); err != nil {
		return nil, err
	}
	return &snapSink{store: s, tmp: tmp, state: state,
		meta: &snapMeta{ID: id, Index: index, Term: term, Configuration: conf, ConfigurationIndex: confIndex, Created: time.Now().UTC()}}, nil
}

// snapSink takes one snapshot: a local checkpoint by adopt, or a leader's stream by Write.
type snapSink struct {
	store  *snapStore
	tmp    string
	state  string
	meta   *snapMeta
	unpack *unpacker
	ended  bool
}

// ID implements raft.SnapshotSink.
func (k *snapSink) ID() string { return k.meta.ID }

// adopt makes a checkpoint folder the snapshot.
func (k *snapSink) adopt(dir string, stateIndex uint64) error {
	fs := k.store.fs
	if err := fs.Rename(dir, k.state); err != nil {
		return err
	}
	names, err := fs.List(k.state)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		st, err := fs.Stat(fs.PathJoin(k.state, name))
		if err != nil {
			return err
		}
		k.meta.Files = append(k.meta.Files, snapFile{name, st.Size()})
	}
	k.meta.StateIndex = stateIndex
	return nil
}

// Write implements raft.SnapshotSink.
func (k *snapSink) Write(p []byte) (int, error) {
	if k.store.room != nil {
		if room, _ := k.store.room(); room == NoRoom {
			return 0, errNoRoom
		}
	}
	if k.unpack == nil {
		if err := k.store.fs.MkdirAll(k.state, 0o700); err != nil {
			return 0, err
		}
		k.unpack = &unpacker{fs: k.store.fs, dir: k.state}
	}
	return k.unpack.Write(p)
}

// Close implements raft.SnapshotSink: the snapshot is complete and durable, or there is none.
func (k *snapSink) Close() error {
	if k.ended {
		return nil
	}
	if err := k.finish(); err != nil {
		_ = k.Cancel()
		return err
	}
	k.ended = true
	k.store.mu.Lock()
	k.store.metas = append(k.store.metas, k.meta)
	k.store.sort()
	k.store.mu.Unlock()
	k.store.reap()
	return nil
}

func (k *snapSink) finish() error {
	if k.unpack != nil {
		if err := k.unpack.done(); err != nil {
			return err
		}
		k.meta.Files, k.meta.StateIndex = k.unpack.header.Files, k.unpack.header.StateIndex
	}
	fs := k.store.fs
	f, err := fs.Create(fs.PathJoin(k.tmp, snapMetaFile), "muster-snapshot")
	if err != nil {
		return err
	}
	_, err = f.Write(encodeMeta(k.meta))
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = syncDir(fs, k.tmp)
	}
	if err == nil {
		err = fs.Rename(k.tmp, fs.PathJoin(k.store.dir, k.meta.ID))
	}
	if err != nil {
		return err
	}
	return syncDir(fs, k.store.dir)
}

// Cancel implements raft.SnapshotSink.
func (k *snapSink) Cancel() error {
	if k.ended {
		return nil
	}
	k.ended = true
	if k.unpack != nil {
		k.unpack.abort()
	}
	return k.store.fs.RemoveAll(k.tmp)
}

// cloneState copies a snapshot's files to a new folder: tables, which never
// change, by hard link, the few small others by content, since a store may write to them.
func cloneState(fs vfs.FS, from, to string) error {
	if err := fs.RemoveAll(to); err != nil {
		return err
	}
	if err := fs.MkdirAll(to, 0o700); err != nil {
		return err
	}
	names, err := fs.List(from)
	if err != nil {
		return err
	}
	for _, name := range names {
		src, dst := fs.PathJoin(from, name), fs.PathJoin(to, name)
		if strings.HasSuffix(name, ".sst") || strings.HasSuffix(name, ".blob") {
			err = fs.Link(src, dst)
		} else {
			err = vfs.Copy(fs, src, dst)
		}
		if err != nil {
			return err
		}
	}
	return syncDir(fs, to)
}
