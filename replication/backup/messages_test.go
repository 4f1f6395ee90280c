package backup_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	message "muster/feature/message/state"
	"muster/fsm"
	"muster/fsm/cluster"
	"muster/fsm/config"
	"muster/fsm/user"
	"muster/internal/fault"
	"muster/internal/modules"
	"muster/internal/node"
	"muster/internal/store"
	"muster/log"
	"muster/replication"
	"muster/replication/backup"
	"muster/replication/pki"
)

const (
	alice = "alice@example.com"
	bob   = "bob@example.com"
)

var pass = pki.Secret("correct horse battery")

// state is one log's store and machine on the disk, as a node has them.
type state struct {
	t     *testing.T
	store *store.DB
	m     *fsm.Machine
}

func openState(t *testing.T, dir string, name log.Name, mods []fsm.Module) *state {
	t.Helper()
	db, err := store.Open(dir, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	m, err := fsm.New(db, name, mods...)
	if err != nil {
		t.Fatal(err)
	}
	return &state{t, db, m}
}

func (s *state) apply(entries ...*log.Entry) {
	s.t.Helper()
	for _, e := range entries {
		if e.Node == 0 {
			e.Node, e.Time = 1, time.Now()
		}
	}
	record, err := log.Encode(entries)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, r := range s.m.Apply(s.m.Applied()+1, record) {
		if r.Err != nil {
			s.t.Fatal(r.Err)
		}
	}
}

// world is what a node saves: users in one log, messages in the other.
type world struct {
	t                 *testing.T
	identity          *pki.Identity
	control, messages *state
	temp              string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	f, err := replication.Found("Old", cluster.Member{Name: "n1", ClusterAddr: "127.0.0.1:1", NewestVersion: log.NewestVersion}, 1, "")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, identity: f.Identity, temp: t.TempDir()}
	w.control = openState(t, filepath.Join(w.temp, "control"), log.Control, modules.Control())
	w.messages = openState(t, filepath.Join(w.temp, "message"), log.Message, modules.Message())
	w.control.apply(append(f.Entries, config.AddDomainEntry("example.com"))...)
	for _, name := range []string{alice, bob} {
		w.control.apply(user.CreateEntry(user.User{Name: name, IM: true, Presence: true}))
	}
	for i := range 40 {
		w.messages.apply(message.PutEntry(message.Put{From: alice, To: bob, XML: fmt.Appendf(nil, "<message><body>canary %d</body></message>", i),
			SenderID: uint64(1000 + i), RecipientID: uint64(2000 + i), KeepSent: true, KeepReceived: true, Limit: 100, Session: 5, Input: uint64(i + 1)}))
	}
	for id := range uint64(3) {
		w.messages.apply(message.SessionEntry(message.Session{ID: 7 + id, User: alice, Resource: "phone", Key: []byte("key"), Node: 1, Incarnation: 3, Timeout: time.Hour}, nil))
	}
	return w
}

func (w *world) source() backup.Source {
	return backup.Source{Control: w.control.store, Message: w.messages.store, Machines: node.BackupMachines(), Identity: w.identity, Temp: w.temp, Software: "test"}
}

// save writes a backup and returns its file.
func (w *world) save(src backup.Source) (string, *backup.Manifest) {
	w.t.Helper()
	var b bytes.Buffer
	var announced, last, total int64
	src.Begin = func(size int64) { announced = size }
	m, err := backup.Write(w.t.Context(), &b, pass, src, func(d, n int64) { last, total = d, n })
	if err != nil {
		w.t.Fatal(err)
	}
	if announced != int64(b.Len()) || last != total || total != m.Total() {
		w.t.Errorf("%d bytes were announced and %d written; progress ended at %d of %d, the states have %d", announced, b.Len(), last, total, m.Total())
	}
	if left, _ := filepath.Glob(filepath.Join(w.temp, "backup-*")); len(left) > 0 {
		w.t.Errorf("left behind: %v", left)
	}
	path := filepath.Join(w.t.TempDir(), "b")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path, m
}

func restore(t *testing.T, path string) (dir string, r *backup.Report, err error) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "data")
	r, _, err = backup.Restore(t.Context(), backup.RestoreOptions{Path: path, Passphrase: pass, Dir: dir, Machines: node.BackupMachines(),
		Node: cluster.Member{Name: "fresh", ClusterAddr: "127.0.0.1:1", NewestVersion: log.NewestVersion}})
	return dir, r, err
}

func counts(r *backup.Report) map[string]uint64 {
	out := map[string]uint64{}
	for _, c := range r.Counts {
		out[c.Name] = c.Count
	}
	return out
}

func TestMessagesAreSaved(t *testing.T) {
	w := newWorld(t)
	path, m := w.save(w.source())
	if m.Format != 2 || m.Index != w.control.m.Applied() || m.Messages == nil || m.Messages.Index != w.messages.m.Applied() {
		t.Fatalf("the manifest is %+v", m)
	}
	raw, _ := os.ReadFile(path)
	for _, canary := range []string{"canary", "alice", "message.messages"} {
		if bytes.Contains(raw, []byte(canary)) {
			t.Errorf("the backup shows %q", canary)
		}
	}
	r, err := backup.Verify(t.Context(), path, pass, node.BackupMachines(), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]uint64{"users": 2, "messages": 40, "users for whom messages wait": 1, "sessions on record": 3}
	if got := counts(r); !reflect.DeepEqual(got, want) {
		t.Errorf("counted %v, want %v", got, want)
	}
	dir, r, err := restore(t, path)
	if err != nil || !reflect.DeepEqual(counts(r), want) {
		t.Fatalf("restored %+v, %v", r, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "message", "restoring")); err == nil {
		t.Error("the unpacked state is still there")
	}
}

// TestMessagesCanBeLeftOut also holds that a release without messages in its backups can read such a one: its format is the first.
func TestMessagesCanBeLeftOut(t *testing.T) {
	w := newWorld(t)
	src := w.source()
	src.Message = nil
	path, m := w.save(src)
	if m.Format != 1 || m.Messages != nil {
		t.Errorf("the manifest is %+v", m)
	}
	r, err := backup.Verify(t.Context(), path, pass, node.BackupMachines(), nil)
	if want := (map[string]uint64{"users": 2}); err != nil || !reflect.DeepEqual(counts(r), want) {
		t.Errorf("counted %v, %v", counts(r), err)
	}
	if _, _, err := restore(t, path); err != nil {
		t.Error(err)
	}
}

// TestOldBackup restores a file that a release made whose backups held the control log's state only.
func TestOldBackup(t *testing.T) {
	r, err := backup.Verify(t.Context(), "testdata/format-1.mbk", pass, node.BackupMachines(), nil)
	if want := (map[string]uint64{"users": 1}); err != nil || r.Software != "0.9" || !reflect.DeepEqual(counts(r), want) {
		t.Fatalf("%+v, %v", r, err)
	}
	if _, _, err := restore(t, "testdata/format-1.mbk"); err != nil {
		t.Error(err)
	}
}

// TestDamagedMessages changes a backup in all its parts: no byte may be another one, none may be missing.
func TestDamagedMessages(t *testing.T) {
	w := newWorld(t)
	path, m := w.save(w.source())
	good, _ := os.ReadFile(path)
	inMessages := len(good) - int(m.Messages.Size())/2
	flip := func(at int) []byte {
		b := bytes.Clone(good)
		b[at] ^= 0x20
		return b
	}
	for name, data := range map[string][]byte{
		"a bit of the control log's state": flip(len(good) - int(m.Messages.Size()) - 500),
		"a bit of the messages":            flip(inMessages),
		"the last byte":                    flip(len(good) - 1),
		"the messages cut off":             good[:len(good)-int(m.Messages.Size())],
		"cut in the messages":              good[:inMessages],
		"one byte short":                   good[:len(good)-1],
		"one byte more":                    append(bytes.Clone(good), 0),
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "b")
			if err := os.WriteFile(file, data, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := backup.Verify(t.Context(), file, pass, node.BackupMachines(), nil); err == nil {
				t.Error("Verify accepts it")
			}
			dir, _, err := restore(t, file)
			if err == nil {
				t.Error("Restore accepts it")
			}
			if left, _ := os.ReadDir(dir); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// TestFalseStatesAreRefused seals, with the right passphrase, a message state that its digests do not fit.
func TestFalseStatesAreRefused(t *testing.T) {
	w := newWorld(t)
	if err := w.messages.store.Apply([]fsm.Op{{Key: []byte("message.messages\x00\x00\x00\x00\x00\x00\x00\x10\x00"), Value: []byte{}}}); err != nil {
		t.Fatal(err)
	}
	path, _ := w.save(w.source())
	if _, err := backup.Verify(t.Context(), path, pass, node.BackupMachines(), nil); err == nil || !strings.Contains(err.Error(), "message.messages") {
		t.Errorf("Verify says %v", err)
	}
	dir, _, err := restore(t, path)
	if left, _ := os.ReadDir(dir); err == nil || len(left) > 0 {
		t.Errorf("Restore says %v and leaves %v", err, left)
	}
}

func TestSweep(t *testing.T) {
	w := newWorld(t)
	if err := os.MkdirAll(filepath.Join(w.temp, "backup-0011", "control"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := backup.Sweep(w.temp); err != nil {
		t.Fatal(err)
	}
	left, _ := os.ReadDir(w.temp)
	if len(left) != 2 { // the two states
		t.Errorf("left: %v", left)
	}
	if err := backup.Sweep(filepath.Join(w.temp, "none")); err != nil {
		t.Errorf("a folder that is not there: %v", err)
	}
}

func TestWriteEnds(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var b bytes.Buffer
	if _, err := backup.Write(ctx, &b, pass, w.source(), nil); fault.CodeOf(err) != fault.Timeout && err != context.Canceled && !strings.Contains(fmt.Sprint(err), "canceled") {
		t.Errorf("a cancelled backup: %v", err)
	}
	if _, err := backup.Write(t.Context(), &b, pki.Secret("short"), w.source(), nil); !fault.Is(err, fault.NotAcceptable) {
		t.Errorf("a short passphrase: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(w.temp, "backup-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
