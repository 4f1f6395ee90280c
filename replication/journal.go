package replication

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"muster/internal/fault"
	"muster/internal/store"
)

// journal is a log and vote store on Pebble, for a log of many records: an
// append is one write to Pebble's own log and one sync, where bbolt rewrites
// pages and syncs twice. Records that a snapshot stands for go by one range
// deletion; the files that held only those are removed whole.
//
// A power loss takes the tail that was not synced, and nothing else: damage
// before a synced position is an error when the journal is opened or read.
// After a failed write Pebble cannot go on; the error is final.
type journal struct {
	store *store.DB
	db    *pebble.DB

	mu          sync.Mutex
	first, last uint64 // 0, 0: empty
}

var (
	_ raft.LogStore    = (*journal)(nil)
	_ raft.StableStore = (*journal)(nil)
)

const (
	journalDir = "log" // in Config.Dir

	// journalCache is the journal's block cache in bytes, which its memtables
	// (twice 4 MiB) are taken out of. Records are read when the group opens and
	// by followers that are further behind than the library's own cache.
	journalCache = 12 << 20
)

// openJournal opens the journal in a folder and makes it if there is none.
func openJournal(fs vfs.FS, dir string, logger *slog.Logger, fatal func(*fault.Error)) (j *journal, err error) {
	defer contain("opening", &err)
	db, err := store.Open(dir, store.Options{FS: fs, CacheBytes: journalCache, Logger: logger, Fatal: fatal})
	if err != nil {
		return nil, &fault.Error{Code: fault.CodeOf(err), Op: "replication.log", Subject: dir, Text: "the log store cannot be opened: " + fault.Public(err), Err: err}
	}
	j = &journal{store: db, db: db.Pebble()}
	if err := j.measure(); err != nil {
		_ = db.Close()
		return nil, damagedRecord(dir, 0, err)
	}
	return j, nil
}

// contain makes an error of Pebble's panic after a failed write: it calls it fatal, and the caller ends the process in order.
func contain(doing string, err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("%s the log store: %v", doing, p)
	}
}

var (
	recordPrefix = []byte{'l'} // then the index, 8 bytes
	recordEnd    = []byte{'m'}
	votePrefix   = []byte{'v'} // then the library's key
)

func recordKey(index uint64) []byte {
	return binary.BigEndian.AppendUint64(recordPrefix[:1:1], index)
}

func voteKey(key []byte) []byte { return append(votePrefix[:1:1], key...) }

// measure finds the first and the last record.
func (j *journal) measure() error {
	it, err := j.db.NewIter(&pebble.IterOptions{LowerBound: recordPrefix, UpperBound: recordEnd})
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.first, j.last = 0, 0; it.First() {
		j.first = binary.BigEndian.Uint64(it.Key()[1:])
	}
	if it.Last() {
		j.last = binary.BigEndian.Uint64(it.Key()[1:])
	}
	return errors.Join(it.Error(), it.Close())
}

// FirstIndex implements raft.LogStore.
func (j *journal) FirstIndex() (uint64, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.first, nil
}

// LastIndex implements raft.LogStore.
func (j *journal) LastIndex() (uint64, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.last, nil
}

// A record's value: term (8 bytes), time in Unix nanoseconds (8, 0 for none),
// type (1), length of the extensions (2), extensions, data.
const recordHead = 8 + 8 + 1 + 2

func decodeRecord(v []byte, index uint64, out *raft.Log) error {
	if len(v) < recordHead {
		return errors.New("it is cut short")
	}
	n := int(binary.BigEndian.Uint16(v[17:]))
	if len(v) < recordHead+n {
		return errors.New("it is cut short")
	}
	own := append([]byte(nil), v[recordHead:]...) // v is Pebble's
	*out = raft.Log{Index: index, Term: binary.BigEndian.Uint64(v), Type: raft.LogType(v[16]), Extensions: own[:n:n], Data: own[n:]}
	if nanos := binary.BigEndian.Uint64(v[8:]); nanos != 0 {
		out.AppendedAt = time.Unix(0, int64(nanos))
	}
	return nil
}

// GetLog implements raft.LogStore.
func (j *journal) GetLog(index uint64, out *raft.Log) error {
	v, closer, err := j.db.Get(recordKey(index))
	if errors.Is(err, pebble.ErrNotFound) {
		return raft.ErrLogNotFound
	}
	if err != nil {
		return err
	}
	return errors.Join(decodeRecord(v, index, out), closer.Close())
}

// each calls fn for all records in order: a scan, which reads each block once.
func (j *journal) each(fn func(l *raft.Log) error) error {
	it, err := j.db.NewIter(&pebble.IterOptions{LowerBound: recordPrefix, UpperBound: recordEnd})
	if err != nil {
		return err
	}
	for ok := it.First(); ok && err == nil; ok = it.Next() {
		var v []byte
		var l raft.Log
		if v, err = it.ValueAndErr(); err == nil {
			index := binary.BigEndian.Uint64(it.Key()[1:])
			if err = decodeRecord(v, index, &l); err != nil {
				err = damagedRecord("", index, err)
			} else {
				err = fn(&l)
			}
		}
	}
	return errors.Join(err, it.Error(), it.Close())
}

// StoreLog implements raft.LogStore.
func (j *journal) StoreLog(l *raft.Log) error { return j.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore: one batch, one sync.
func (j *journal) StoreLogs(logs []*raft.Log) (err error) {
	defer contain("writing", &err)
	b := j.db.NewBatch()
	defer b.Close()
	for _, l := range logs {
		if len(l.Extensions) > math.MaxUint16 {
			return fmt.Errorf("record %d: extensions of %d bytes", l.Index, len(l.Extensions))
		}
		op := b.SetDeferred(9, recordHead+len(l.Extensions)+len(l.Data))
		copy(op.Key, recordPrefix)
		binary.BigEndian.PutUint64(op.Key[1:], l.Index)
		binary.BigEndian.PutUint64(op.Value, l.Term)
		var nanos uint64
		if !l.AppendedAt.IsZero() {
			nanos = uint64(l.AppendedAt.UnixNano())
		}
		binary.BigEndian.PutUint64(op.Value[8:], nanos)
		op.Value[16] = byte(l.Type)
		binary.BigEndian.PutUint16(op.Value[17:], uint16(len(l.Extensions)))
		copy(op.Value[recordHead:], l.Extensions)
		copy(op.Value[recordHead+len(l.Extensions):], l.Data)
		if err := op.Finish(); err != nil {
			return err
		}
	}
	if err := b.Commit(pebble.Sync); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, l := range logs {
		if j.first == 0 || l.Index < j.first {
			j.first = l.Index
		}
		j.last = max(j.last, l.Index)
	}
	return nil
}

// DeleteRange implements raft.LogStore.
func (j *journal) DeleteRange(lo, hi uint64) (err error) {
	defer contain("cutting", &err)
	if err := j.db.DeleteRange(recordKey(lo), recordKey(hi+1), pebble.Sync); err != nil {
		return err
	}
	return j.measure()
}

// Set implements raft.StableStore.
func (j *journal) Set(key, val []byte) (err error) {
	defer contain("writing", &err)
	return j.db.Set(voteKey(key), val, pebble.Sync)
}

// Get implements raft.StableStore.
func (j *journal) Get(key []byte) ([]byte, error) {
	v, closer, err := j.db.Get(voteKey(key))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, errNoVote
	}
	if err != nil {
		return nil, err
	}
	return append([]byte{}, v...), closer.Close()
}

// errNoVote has the text by which the library knows a key that was never set.
var errNoVote = errors.New("not found")

// SetUint64 implements raft.StableStore.
func (j *journal) SetUint64(key []byte, val uint64) error { return j.Set(key, be64(val)) }

// GetUint64 implements raft.StableStore.
func (j *journal) GetUint64(key []byte) (uint64, error) {
	v, err := j.Get(key)
	if err != nil {
		return 0, err
	}
	if len(v) != 8 {
		return 0, fmt.Errorf("the vote %q is damaged", key)
	}
	return binary.BigEndian.Uint64(v), nil
}

// Close closes the journal.
func (j *journal) Close() error { return j.store.Close() }
