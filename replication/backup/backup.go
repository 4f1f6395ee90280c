// Package backup saves a cluster's state, that of the control log and that of
// the message log, to one encrypted file, checks such files, and founds a new
// cluster on one.
//
// Callers: the operator's commands in cmd, through the admin surface.
//
// Invariants: of each log a backup holds one consistent state (a checkpoint;
// the machine is not stopped) with its index and its tables' digests, both of
// the same moment but for milliseconds; nothing of it is readable without the
// passphrase; a file that was changed, cut short or opened with a wrong
// passphrase is refused before anything is changed; files pass through in
// pieces, however large they are; a restored cluster has a new id, authority
// and keys, and its logs go on above the backup's indexes, so that revisions
// and ids that clients remember stay valid.
package backup

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"muster/fsm"
	"muster/fsm/cluster"
	"muster/internal/fault"
	"muster/internal/store"
	"muster/log"
	"muster/replication/pki"
)

// Limits of what is read from a backup.
const (
	maxManifest = 16 << 20 // bytes
	maxFiles    = 100_000  // of one log's state
)

// Manifest describes a backup.
type Manifest struct {
	Format      int       `json:"format"`
	Created     time.Time `json:"created"`
	Software    string    `json:"software"`
	ClusterID   string    `json:"cluster_id"`
	ClusterName string    `json:"cluster_name"`
	Alone       bool      `json:"alone,omitempty"` // the node heard no leader: what others confirmed may be missing
	State                 // of the control log
	Messages    *State    `json:"messages,omitempty"` // of the message log; nil: left out
}

// State is one log's state in a backup.
type State struct {
	Index  uint64            `json:"index"` // of the last entry that the state contains
	Tables []fsm.TableDigest `json:"tables"`
	Files  []File            `json:"files"`
}

// File is one file of a state.
type File struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
}

// Size is the state's size in bytes.
func (s *State) Size() (n int64) {
	for _, f := range s.Files {
		n += f.Size
	}
	return n
}

// Total is the size of all states in bytes.
func (m *Manifest) Total() (n int64) {
	for _, p := range m.parts() {
		n += p.Size()
	}
	return n
}

// parts are the states in the order in which their files stand in the backup.
func (m *Manifest) parts() []*State {
	if m.Messages == nil {
		return []*State{&m.State}
	}
	return []*State{&m.State, m.Messages}
}

// sealedManifest is the manifest as it stands in the file, with what nobody is shown.
type sealedManifest struct {
	Manifest
	ClusterKey string `json:"cluster_key"` // hex; opens the secrets in the state
}

// The formats. A release that knows only the first one refuses the second, and
// reads a backup without messages.
const (
	formatControl  = 1 // the control log's state
	formatMessages = 2 // and the message log's
)

// OpenMachine makes a log's machine, with all modules, over a store.
type OpenMachine func(fsm.Store) (*fsm.Machine, error)

// Machines are what reads the states of a backup.
type Machines struct {
	Control, Message OpenMachine
	// Forget returns the records with which a restored message log begins: what
	// ends that was bound to the old cluster's nodes and connections.
	Forget func(message fsm.Reader) [][]*log.Entry
	// Counted are the tables whose rows Verify and Restore count, under these names.
	Counted []Counted
}

// Counted is a table whose rows are told of.
type Counted struct {
	Name  string // for people: "users"
	Table *fsm.Table
}

// Count says how many there are of something.
type Count struct {
	Name  string `json:"name"`
	Count uint64 `json:"count"`
}

// Report is what was found in a backup.
type Report struct {
	Manifest
	Counts []Count `json:"counts"`
}

// Progress hears how many bytes of how many are done; it may be nil.
type Progress func(done, total int64)

// Checkpointer is a store that can be copied at one moment (internal/store.DB).
type Checkpointer interface{ Checkpoint(dir string) error }

// Source is what a backup is made of.
type Source struct {
	Control  Checkpointer
	Message  Checkpointer // nil: messages are left out
	Machines Machines
	Identity *pki.Identity
	Temp     string           // folder on the stores' file system, for the checkpoints' hard links
	Software string           // release, for the manifest
	Alone    bool             // Manifest.Alone
	Begin    func(size int64) // hears the size of the whole file before its first byte; may be nil
}

// tempPrefix begins the names of the folders of checkpoints in Source.Temp.
const tempPrefix = "backup-"

// Sweep removes what a backup left in its folder when the process ended during
// it. The links would keep the disk space of tables that are long gone.
func Sweep(temp string) error {
	entries, err := os.ReadDir(temp)
	if err != nil {
		return nil // there is no such folder on this disk
	}
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), tempPrefix) {
			if err := os.RemoveAll(filepath.Join(temp, e.Name())); err != nil {
				return fault.Wrap(err, fault.Internal, "backup.sweep", e.Name())
			}
		}
	}
	return nil
}

// Write makes a backup. The cluster goes on meanwhile; each log's state is that of one moment.
func Write(ctx context.Context, w io.Writer, passphrase pki.Secret, src Source, progress Progress) (*Manifest, error) {
	if err := checkPassphrase(passphrase); err != nil {
		return nil, err
	}
	dirs, err := take(src)
	defer os.RemoveAll(dirs.root)
	if err != nil {
		return nil, err
	}
	m, err := describe(dirs, src)
	if err != nil {
		return nil, err
	}
	doc, err := json.Marshal(m)
	if err != nil {
		return nil, writeFault(err)
	}
	if src.Begin != nil {
		src.Begin(sealedSize(4 + int64(len(doc)) + m.Total()))
	}
	s, err := newSealer(w, passphrase, cost)
	if err != nil {
		return nil, err
	}
	if err := writeContent(ctx, s, dirs, m, doc, progress); err != nil {
		return nil, writeFault(err)
	}
	return &m.Manifest, writeFault(s.Close())
}

// folders are where the states' files are.
type folders struct{ root, control, message string }

func foldersIn(root string) folders {
	return folders{root, filepath.Join(root, "control"), filepath.Join(root, "message")}
}

// of lists the folders of a backup's parts, in their order.
func (f folders) of(m *Manifest) []string { return []string{f.control, f.message}[:len(m.parts())] }

// take makes the checkpoints, one right after the other. That of the control
// log comes first: an archive of a user whom it does not know yet is removed by
// the restored cluster, a user without an archive would be there for good.
func take(src Source) (folders, error) {
	dirs := foldersIn(filepath.Join(src.Temp, tempPrefix+hex.EncodeToString(pki.NewSecret(8))))
	if err := os.Mkdir(dirs.root, 0o700); err != nil {
		return dirs, fault.Wrap(err, fault.Internal, "backup.write", dirs.root)
	}
	if err := src.Control.Checkpoint(dirs.control); err != nil {
		return dirs, err
	}
	if src.Message == nil {
		return dirs, nil
	}
	return dirs, src.Message.Checkpoint(dirs.message)
}

func writeFault(err error) error {
	if _, ok := err.(*fault.Error); ok || err == nil {
		return err
	}
	return &fault.Error{Code: fault.CodeOf(err), Op: "backup.write", Text: "the backup could not be written completely", Err: err}
}

// describe lists the checkpoints' files and reads their indexes and digests.
func describe(dirs folders, src Source) (*sealedManifest, error) {
	m := &sealedManifest{Manifest: Manifest{Format: formatControl, Created: time.Now().UTC().Truncate(time.Second), Software: src.Software, Alone: src.Alone},
		ClusterKey: hex.EncodeToString(src.Identity.ClusterKey)}
	var err error
	m.State, err = look(dirs.control, src.Machines.Control, func(machine *fsm.Machine) error {
		info, ok := cluster.Get(machine)
		if !ok {
			return fault.New(fault.Unavailable, "backup.write", "", "this node has not caught up yet")
		}
		m.ClusterID, m.ClusterName = info.ID, info.Name
		return nil
	})
	if err != nil || src.Message == nil {
		return m, err
	}
	messages, err := look(dirs.message, src.Machines.Message, nil)
	m.Format, m.Messages = formatMessages, &messages
	return m, err
}

// look describes one state in a folder.
func look(dir string, open OpenMachine, more func(*fsm.Machine) error) (s State, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return s, fault.Wrap(err, fault.Internal, "backup.write", dir)
	}
	for _, e := range entries {
		st, err := e.Info()
		if err != nil {
			return s, fault.Wrap(err, fault.Internal, "backup.write", dir)
		}
		s.Files = append(s.Files, File{e.Name(), st.Size()})
	}
	return s, inspect(dir, open, func(machine *fsm.Machine) (err error) {
		if s.Index, s.Tables, err = machine.Digests(); err == nil && more != nil {
			err = more(machine)
		}
		return err
	})
}

// inspect opens the state in a folder without changing it.
func inspect(dir string, open OpenMachine, fn func(*fsm.Machine) error) error {
	db, err := store.Open(dir, store.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	defer db.Close()
	m, err := open(db)
	if err != nil {
		return err
	}
	return fn(m)
}

func writeContent(ctx context.Context, w io.Writer, dirs folders, m *sealedManifest, doc []byte, progress Progress) error {
	if _, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(doc))), doc...)); err != nil {
		return err
	}
	meter := &meter{ctx: ctx, total: m.Total(), tell: progress}
	for i, dir := range dirs.of(&m.Manifest) {
		for _, f := range m.parts()[i].Files {
			if err := copyIn(io.MultiWriter(w, meter), filepath.Join(dir, f.Name), f.Size); err != nil {
				return err
			}
		}
	}
	return nil
}

func copyIn(w io.Writer, path string, size int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := io.Copy(w, io.LimitReader(f, size))
	if err == nil && n != size {
		err = fmt.Errorf("%s is shorter than it was", path)
	}
	return err
}

// meter counts what passes, and stops when the context has ended.
type meter struct {
	ctx         context.Context
	done, total int64
	tell        Progress
}

// Write implements io.Writer.
func (m *meter) Write(p []byte) (int, error) {
	if err := m.ctx.Err(); err != nil {
		return 0, err
	}
	m.done += int64(len(p))
	if m.tell != nil {
		m.tell(m.done, m.total)
	}
	return len(p), nil
}

// Verify reads a whole backup, recomputes every table's digest and counts what
// is in it. It needs room for the states in the system's temporary folder
// (TMPDIR), and changes nothing.
func Verify(ctx context.Context, path string, passphrase pki.Secret, machines Machines, progress Progress) (*Report, error) {
	root, err := os.MkdirTemp("", "muster-verify-")
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "backup.verify", path)
	}
	defer os.RemoveAll(root)
	dirs := foldersIn(root)
	m, err := unpack(ctx, path, passphrase, dirs, progress)
	if err != nil {
		return nil, err
	}
	return check(dirs, m, machines, nil)
}

// unpack authenticates a backup and writes its files into the folders, which it makes.
func unpack(ctx context.Context, path string, passphrase pki.Secret, dirs folders, progress Progress) (*sealedManifest, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, &fault.Error{Code: fault.NotFound, Op: "backup.open", Subject: path, Text: "the backup cannot be read", Err: err}
	}
	defer f.Close()
	o, err := newOpener(f, passphrase)
	if err != nil {
		return nil, err
	}
	m, err := readManifest(o)
	if err != nil {
		return nil, err
	}
	meter := &meter{ctx: ctx, total: m.Total(), tell: progress}
	for i, dir := range dirs.of(&m.Manifest) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, readFault(path, err)
		}
		for _, file := range m.parts()[i].Files {
			if err := copyOut(io.TeeReader(o, meter), filepath.Join(dir, file.Name), file.Size); err != nil {
				return nil, readFault(path, err)
			}
		}
	}
	if n, err := o.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		return nil, readFault(path, errChanged)
	}
	return m, nil
}

func readFault(path string, err error) error {
	if _, ok := err.(*fault.Error); ok {
		return err
	}
	return &fault.Error{Code: fault.CodeOf(err), Op: "backup.read", Subject: path, Text: "the backup could not be unpacked", Err: err}
}

func copyOut(r io.Reader, path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, io.LimitReader(r, size))
	if err == nil && n != size {
		err = errChanged
	}
	if serr := f.Sync(); err == nil {
		err = serr
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

var safeName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)

func readManifest(r io.Reader) (*sealedManifest, error) {
	bad := fault.New(fault.BadRequest, "backup.open", "", "the backup's manifest is malformed")
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, errChanged
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxManifest {
		return nil, bad
	}
	doc, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err != nil || len(doc) != int(n) {
		return nil, errChanged
	}
	var m sealedManifest
	if json.Unmarshal(doc, &m) != nil {
		return nil, bad
	}
	if m.Format != formatControl && m.Format != formatMessages {
		return nil, fault.New(fault.NotSupported, "backup.open", "", fmt.Sprintf("the backup's format %d is not known here; use the release that made it, or a newer one", m.Format))
	}
	if (m.Messages != nil) != (m.Format == formatMessages) {
		return nil, bad
	}
	for _, part := range m.parts() {
		if !part.sound() {
			return nil, bad
		}
	}
	return &m, nil
}

// sound reports whether the files of a state may be unpacked: names that stay in their folder, each once.
func (s *State) sound() bool {
	seen := map[string]bool{}
	for _, f := range s.Files {
		if !safeName.MatchString(f.Name) || f.Size < 0 || seen[f.Name] {
			return false
		}
		seen[f.Name] = true
	}
	return len(s.Files) <= maxFiles
}

// check opens the unpacked states, recomputes their digests, compares them with
// the manifest, counts, and hands the control log's on.
func check(dirs folders, m *sealedManifest, machines Machines, then func(control *fsm.Machine) error) (*Report, error) {
	r := &Report{Manifest: m.Manifest}
	err := checkState(dirs.control, &m.State, machines.Control, r, machines.Counted, func(machine *fsm.Machine) error {
		if info, _ := cluster.Get(machine); info.ID != m.ClusterID {
			return errMismatch
		}
		if then != nil {
			return then(machine)
		}
		return nil
	})
	if err == nil && m.Messages != nil {
		err = checkState(dirs.message, m.Messages, machines.Message, r, machines.Counted, nil)
	}
	return r, err
}

var errMismatch = fault.New(fault.BadRequest, "backup.verify", "", "the backup's state does not match its manifest")

func checkState(dir string, want *State, open OpenMachine, r *Report, counted []Counted, then func(*fsm.Machine) error) error {
	return inspect(dir, open, func(machine *fsm.Machine) error {
		rows, err := machine.CountRows()
		if err != nil {
			return err
		}
		index, tables, err := machine.Digests()
		if err != nil {
			return err
		}
		if index != want.Index || !sameTables(want.Tables, tables) {
			return errMismatch
		}
		for _, c := range counted {
			if i := slices.IndexFunc(rows, func(t fsm.TableRows) bool { return t.Table == c.Table.Name() }); i >= 0 {
				r.Counts = append(r.Counts, Count{c.Name, rows[i].Rows})
			}
		}
		if then != nil {
			return then(machine)
		}
		return nil
	})
}

// sameTables reports whether all tables of the backup are there and equal; a
// newer release may know more tables, which are empty then.
func sameTables(want, have []fsm.TableDigest) bool {
	for _, t := range want {
		if !slices.Contains(have, t) {
			return false
		}
	}
	return true
}
