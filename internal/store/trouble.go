package store

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"muster/internal/fault"
)

// Remedy is what an administrator does about a store that is damaged. Nothing
// less is safe: what is missing may have been acknowledged, and only the other nodes have it.
const Remedy = "remove this node from the cluster (muster node remove, on another node), empty its data folder and join it again with a new token"

var errDamaged = errors.New("damaged")

// Damaged reports whether err says that files of a store are damaged, rather
// than that they cannot be reached, are locked, or the disk is full.
func Damaged(err error) bool {
	return err != nil && (errors.Is(err, errDamaged) || pebble.IsCorruptionError(err) || strings.Contains(err.Error(), sizeMismatch))
}

// sizeMismatch is how Pebble (v2.1) says that a table was cut short, without calling it damage.
const sizeMismatch = "object size mismatch"

// openFailed says what is wrong with a store that cannot be opened.
func openFailed(dir string, err error) error {
	f := &fault.Error{Code: fault.Internal, Op: "store.open", Subject: dir, Err: err}
	switch {
	case Full(err):
		f.Text = "the disk of " + dir + " is full"
	case errors.Is(err, syscall.EAGAIN) || strings.Contains(err.Error(), "lock held"):
		f.Code, f.Text = fault.Conflict, "another process has "+dir+" open"
	case errors.Is(err, fs.ErrPermission):
		f.Code, f.Text = fault.Forbidden, dir+" cannot be read or written"
	case Damaged(err) || errors.Is(err, fs.ErrNotExist):
		f.Text = damagedText(dir, err)
	default:
		f.Text = "the store " + dir + " cannot be opened: " + oneLine(err.Error())
	}
	return f
}

// Full reports whether err says that the disk is full.
func Full(err error) bool { return errors.Is(err, syscall.ENOSPC) }

func damagedText(file string, why error) string {
	return fmt.Sprintf("%s is damaged (%s); %s", file, oneLine(why.Error()), Remedy)
}

// oneLine makes a text fit into one line of a log that people read.
func oneLine(s string) string {
	const most = 400 // bytes: a stack of wrapped errors says no more at its end
	s = strings.Join(strings.Fields(s), " ")
	return s[:min(len(s), most)]
}

// listener hears what Pebble's own goroutines come upon. Left to itself, Pebble
// calls damage fatal, which in a goroutine of its own is a panic that nobody can contain.
func (d *DB) listener(path string) *pebble.EventListener {
	return &pebble.EventListener{DataCorruption: func(info pebble.DataCorruptionInfo) {
		file := info.Path
		if file == "" {
			file = path
		}
		d.tell(&fault.Error{Code: fault.Internal, Op: "store.read", Subject: d.dir, Text: damagedText(file, info.Details), Err: fmt.Errorf("%w: %s", errDamaged, oneLine(info.Details.Error()))})
	}}
}

// tell hands on what the store cannot go on with.
func (d *DB) tell(f *fault.Error) {
	if d.opts.Fatal != nil {
		d.opts.Fatal(f)
	}
}

const repeatTime = time.Second // between two lines about errors of one store: a flush that fails is tried again at once

// quiet is Pebble's logger: events are dropped, errors kept, a few of them, and
// a fatal one ends the process, because what was applied may be lost.
type quiet struct {
	d    *DB
	last atomic.Int64 // when an error was logged, Unix nanoseconds
}

func (d *DB) quiet() *quiet { return &quiet{d: d} }

// Infof implements pebble.Logger.
func (*quiet) Infof(string, ...any) {}

// Errorf implements pebble.Logger.
func (q *quiet) Errorf(format string, args ...any) {
	now, last := time.Now().UnixNano(), q.last.Load()
	if now-last < int64(repeatTime) || !q.last.CompareAndSwap(last, now) {
		return
	}
	q.d.opts.Logger.Warn("store_error", "store", q.d.dir, "error", oneLine(fmt.Sprintf(format, args...)))
}

// Fatalf implements pebble.Logger. Pebble relies on its not returning.
func (q *quiet) Fatalf(format string, args ...any) {
	f := &fault.Error{Code: fault.Internal, Op: "store.write", Subject: q.d.dir, Text: "a write to the store " + q.d.dir + " failed: " + oneLine(fmt.Sprintf(format, args...))}
	q.d.tell(f)
	panic(f)
}
