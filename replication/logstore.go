package replication

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"

	"muster/internal/fault"
	"muster/internal/store"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// logStore is where a group keeps its log and its votes.
type logStore interface {
	raft.LogStore
	raft.StableStore
	io.Closer
}

// openLogStore opens a log's own store in its folder. The control log has a
// bolt file: few records, and a format with many tools. All others have a
// journal, which takes a fifth of the time for a write (docs/DEPENDENCIES.md);
// fatal hears of what goes wrong in it outside of any call (store.Options.Fatal).
func openLogStore(files vfs.FS, dir, name string, logger *slog.Logger, fatal func(*fault.Error)) (logStore, error) {
	if name == ControlLog {
		return openBolt(files.PathJoin(dir, logFile))
	}
	return openJournal(files, files.PathJoin(dir, journalDir), logger, fatal)
}

// guardedLog is the log and vote store that Raft sees. It seals each record and
// vote with a checksum of its own (bbolt checks no value), refuses to give out a
// damaged one, times every write, and ends the process when a write fails:
// after a failed fsync nobody knows what is on the disk, so a retry could
// acknowledge what is not there.
type guardedLog struct {
	logs   raft.LogStore
	stable raft.StableStore
	watch  *watchdog
	exit   func(reason string) // nil: failures are only returned
	broken atomic.Pointer[fault.Error]
	sizes  logSizes

	where   string                // folder, for people
	room    func() (Room, string) // nil: there is room
	relieve func()                // makes room on a full disk; nil: nothing does
	owed    atomic.Bool           // the tail was cut for records that are about to come: they are taken without room, too
}

const sealSize = 4 // bytes of checksum in front of a record's extensions

func recordSum(l *raft.Log, extensions []byte) uint32 {
	var head [17]byte
	binary.BigEndian.PutUint64(head[0:], l.Index)
	binary.BigEndian.PutUint64(head[8:], l.Term)
	head[16] = byte(l.Type)
	sum := crc32.Update(0, castagnoli, head[:])
	sum = crc32.Update(sum, castagnoli, extensions)
	return crc32.Update(sum, castagnoli, l.Data)
}

// FirstIndex implements raft.LogStore.
func (g *guardedLog) FirstIndex() (uint64, error) { return g.logs.FirstIndex() }

// LastIndex implements raft.LogStore.
func (g *guardedLog) LastIndex() (uint64, error) { return g.logs.LastIndex() }

// GetLog implements raft.LogStore. A damaged record ends the process: it must neither be applied nor sent to another node.
func (g *guardedLog) GetLog(index uint64, out *raft.Log) error {
	err := g.read(index, out)
	if err != nil && fault.Is(err, fault.Internal) && !errors.Is(err, raft.ErrLogNotFound) {
		g.fail("reading", err)
	}
	return err
}

// read gets and checks one record.
func (g *guardedLog) read(index uint64, out *raft.Log) (err error) {
	defer surviveDamage(g.where, index, &err)()
	var l raft.Log
	if err := g.logs.GetLog(index, &l); err != nil {
		if errors.Is(err, raft.ErrLogNotFound) {
			return err
		}
		return damagedRecord(g.where, index, err)
	}
	if err := unseal(g.where, &l, index); err != nil {
		return err
	}
	*out = l
	return nil
}

// unseal checks a record's checksum and takes it off.
func unseal(where string, l *raft.Log, index uint64) error {
	if l.Index != index || len(l.Extensions) < sealSize {
		return damagedRecord(where, index, errors.New("it has no checksum"))
	}
	extensions := l.Extensions[sealSize:]
	if recordSum(l, extensions) != binary.BigEndian.Uint32(l.Extensions) {
		return damagedRecord(where, index, errors.New("its checksum is wrong"))
	}
	if l.Extensions = extensions; len(extensions) == 0 {
		l.Extensions = nil
	}
	return nil
}

// surviveDamage makes an error of what bbolt does on a damaged page: it panics,
// or follows a page number out of the mapped file, which is a memory fault.
func surviveDamage(where string, index uint64, err *error) (deferred func()) {
	before := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(before)
		if p := recover(); p != nil {
			*err = damagedRecord(where, index, fmt.Errorf("%v", p))
		}
	}
}

// damagedRecord says that a log store is damaged, at which record (0: none in particular), and what to do.
func damagedRecord(where string, index uint64, err error) error {
	what := "the log store"
	if where != "" {
		what += " " + where
	}
	if index > 0 {
		what += fmt.Sprintf(" (record %d)", index)
	}
	return &fault.Error{Code: fault.Internal, Op: "replication.log", Subject: where, Text: what + " is damaged; " + store.Remedy, Err: err}
}

// scan reads every record, so that a damaged log is refused before anything
// runs on it. Records may be missing only up to index covered, where a snapshot stands for them.
func (g *guardedLog) scan(covered uint64) (err error) {
	defer surviveDamage(g.where, 0, &err)()
	first, err := g.logs.FirstIndex()
	if err != nil {
		return damagedRecord(g.where, 0, err)
	}
	last, err := g.logs.LastIndex()
	if err != nil {
		return damagedRecord(g.where, 0, err)
	}
	next, term := first, uint64(0)
	err = g.each(first, last, func(l *raft.Log) error {
		if l.Index > next && l.Index-1 > covered {
			return damagedRecord(g.where, max(next, covered+1), errors.New("it is missing"))
		}
		next, term = l.Index+1, l.Term
		g.sizes.add(l.Index, len(l.Data))
		return nil
	})
	if err == nil && last > 0 && next <= last {
		err = damagedRecord(g.where, next, errors.New("it is missing"))
	}
	if err == nil {
		err = g.checkTerm(term)
	}
	return err
}

// checkTerm holds the term that is kept against that of the last record: a
// node that had forgotten its term might vote twice in one.
func (g *guardedLog) checkTerm(last uint64) error {
	if g.stable == nil {
		return nil
	}
	term, err := g.GetUint64(keyTerm)
	switch {
	case err != nil && err.Error() == errNoVote.Error():
		term = 0
	case err != nil:
		return damagedRecord(g.where, 0, err)
	}
	if term < last {
		return damagedRecord(g.where, 0, fmt.Errorf("the term is %d, a record's is %d", term, last))
	}
	return nil
}

// each calls fn for the records that there are between first and last, in order and checked.
func (g *guardedLog) each(first, last uint64, fn func(l *raft.Log) error) error {
	if j, ok := g.logs.(interface {
		each(fn func(l *raft.Log) error) error
	}); ok {
		return j.each(func(l *raft.Log) error {
			if err := unseal(g.where, l, l.Index); err != nil {
				return err
			}
			return fn(l)
		})
	}
	for i := first; i <= last && i > 0; i++ {
		var l raft.Log
		err := g.read(i, &l)
		if err == nil {
			err = fn(&l)
		}
		if err != nil && !errors.Is(err, raft.ErrLogNotFound) {
			return err
		}
	}
	return nil
}

// StoreLog implements raft.LogStore.
func (g *guardedLog) StoreLog(l *raft.Log) error { return g.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore.
func (g *guardedLog) StoreLogs(logs []*raft.Log) error {
	if !g.owed.Swap(false) {
		if err := g.admit(logs); err != nil {
			return err
		}
	}
	sealed := make([]*raft.Log, len(logs))
	for i, l := range logs {
		c := *l
		c.Extensions = binary.BigEndian.AppendUint32(make([]byte, 0, sealSize+len(l.Extensions)), recordSum(l, l.Extensions))
		c.Extensions = append(c.Extensions, l.Extensions...)
		sealed[i] = &c
	}
	err := g.write("the log", func() error { return g.logs.StoreLogs(sealed) })
	if err == nil {
		for _, l := range logs {
			g.sizes.add(l.Index, len(l.Data))
		}
	}
	return err
}

// DeleteRange implements raft.LogStore.
func (g *guardedLog) DeleteRange(lo, hi uint64) error {
	if last, err := g.logs.LastIndex(); err == nil && hi >= last {
		// A follower's tail goes for other records. The library (v1.7.3) does not stand it when the tail is gone and those are refused.
		if room, _ := g.roomNow(); room == NoRoom {
			return errNoRoom
		}
		g.owed.Store(true)
	}
	err := g.write("the log", func() error { return g.logs.DeleteRange(lo, hi) })
	if err == nil {
		g.sizes.cut(lo, hi)
	}
	return err
}

// Set implements raft.StableStore.
func (g *guardedLog) Set(key, val []byte) error {
	return g.write("the vote store", func() error { return g.stable.Set(key, sealVote(key, val)) })
}

// SetUint64 implements raft.StableStore.
func (g *guardedLog) SetUint64(key []byte, val uint64) error {
	return g.Set(key, be64(val))
}

// Get implements raft.StableStore.
func (g *guardedLog) Get(key []byte) (val []byte, err error) {
	defer surviveDamage(g.where, 0, &err)()
	sealed, err := g.stable.Get(key)
	if err != nil {
		return nil, err
	}
	return unsealVote(key, sealed)
}

// GetUint64 implements raft.StableStore.
func (g *guardedLog) GetUint64(key []byte) (uint64, error) {
	val, err := g.Get(key)
	if err == nil && len(val) != 8 {
		err = fmt.Errorf("the vote %q is damaged", key)
	}
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint64(val), nil
}

// sealVote puts a checksum behind a term or a vote: a node whose bits turned must not vote by them.
func sealVote(key, val []byte) []byte {
	return binary.BigEndian.AppendUint32(append(make([]byte, 0, len(val)+sealSize), val...), voteSum(key, val))
}

func voteSum(key, val []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, val)
}

func unsealVote(key, sealed []byte) ([]byte, error) {
	n := len(sealed) - sealSize
	if n < 0 || voteSum(key, sealed[:n]) != binary.BigEndian.Uint32(sealed[n:]) {
		return nil, fmt.Errorf("the vote %q is damaged: its checksum is wrong", key)
	}
	return sealed[:n:n], nil
}

// write runs one write under the watchdog. A full disk is reported and may be
// tried again, at once if room can be made for it, since bbolt changed nothing
// then; any other failure is final.
func (g *guardedLog) write(what string, fn func() error) error {
	if f := g.broken.Load(); f != nil {
		g.fail("writing "+what, f)
		return f
	}
	done := g.watch.guard(what)
	err := g.survive(fn)
	if errors.Is(err, syscall.ENOSPC) && g.relieve != nil {
		g.relieve()
		err = g.survive(fn)
	}
	done()
	switch {
	case err == nil:
		g.watch.trouble.clear("disk")
	case errors.Is(err, syscall.ENOSPC):
		g.watch.trouble.set("disk", "the disk is full; free some space")
	default:
		g.fail("writing "+what, err)
	}
	return err
}

// survive runs a write that may come upon a damaged page.
func (g *guardedLog) survive(fn func() error) (err error) {
	defer surviveDamage(g.where, 0, &err)()
	return fn()
}

// roomNow is what the disk has room for.
func (g *guardedLog) roomNow() (Room, string) {
	if g.room == nil {
		return RoomForAll, ""
	}
	return g.room()
}

// fail ends the process. Where Exit returns, as in a simulation, the goroutine
// that needed the disk ends, since the Raft library would go on or panic.
func (g *guardedLog) fail(doing string, err error) {
	f := &fault.Error{Code: fault.Internal, Op: "replication.log", Text: "the log store failed", Err: err}
	if g.broken.CompareAndSwap(nil, f) {
		g.watch.trouble.set("disk", "the log store failed: "+fault.Public(err))
	}
	if g.exit != nil {
		g.exit(doing + ": " + whyFailed(err))
		runtime.Goexit()
	}
}

// whyFailed is what a failure says to people, and its cause.
func whyFailed(err error) string {
	if f, ok := err.(*fault.Error); ok && f.Text != "" {
		if f.Err != nil {
			return f.Text + ": " + f.Err.Error()
		}
		return f.Text
	}
	return err.Error()
}

const boltLockWait = time.Second // for another process to let go of the log file

// openBolt opens the log file.
func openBolt(path string) (bolt *raftboltdb.BoltStore, err error) {
	defer surviveDamage(path, 0, &err)()
	if err := checkLength(path); err != nil {
		return nil, err
	}
	bolt, err = raftboltdb.New(raftboltdb.Options{Path: path, MsgpackUseNewTimeFormat: true,
		BoltOptions: &bbolt.Options{Timeout: boltLockWait, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType}})
	if errors.Is(err, bbolterrors.ErrTimeout) {
		return nil, fault.New(fault.Conflict, "replication.log", path, "another process has this data folder open")
	}
	if err != nil {
		return nil, boltFailed(path, err)
	}
	return bolt, nil
}

// boltFailed says why the log file cannot be opened.
func boltFailed(path string, err error) error {
	switch {
	case store.Full(err):
		return &fault.Error{Code: fault.Internal, Op: "replication.log", Subject: path, Text: "the disk of " + path + " is full", Err: err}
	case errors.Is(err, fs.ErrPermission):
		return &fault.Error{Code: fault.Forbidden, Op: "replication.log", Subject: path, Text: path + " cannot be read or written", Err: err}
	}
	return damagedRecord(path, 0, err)
}

// checkLength refuses a log file that was cut short. bbolt maps the file and
// believes what it says of itself; reading past its end is a memory fault.
func checkLength(path string) error {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && st.Size() == 0 {
		return nil // a new one
	}
	if err != nil {
		return boltFailed(path, err)
	}
	bolt, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: boltLockWait})
	if err != nil {
		if errors.Is(err, bbolterrors.ErrTimeout) {
			return nil // the opening that follows says so
		}
		return boltFailed(path, err)
	}
	defer bolt.Close()
	return bolt.View(func(tx *bbolt.Tx) error {
		if want := tx.Size(); st.Size() < want {
			return damagedRecord(path, 0, fmt.Errorf("it is cut short: it has %d bytes and should have %d", st.Size(), want))
		}
		return nil
	})
}
