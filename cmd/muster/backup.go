package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"muster/edges/http/adminapi"
	"muster/internal/fault"
	"muster/internal/node"
	"muster/replication/backup"
	"muster/replication/pki"
)

type backupCmd struct {
	Create backupCreateCmd `cmd:"" default:"withargs" help:"Write a backup of the running cluster (the word create may be left out)."`
	Verify backupVerifyCmd `cmd:"" help:"Check a backup: every byte, and every table's digest."`
}

// passphraseFlag says where a backup's passphrase comes from, besides MUSTER_PASSPHRASE and the terminal.
type passphraseFlag struct {
	PassphraseFile string `type:"path" placeholder:"FILE" help:"File whose first line is the passphrase (default: $$MUSTER_PASSPHRASE, else it is asked for)."`
}

type backupCreateCmd struct {
	File string `arg:"" help:"File to write; it must not exist."`
	passphraseFlag
	NoMessages bool `help:"Leave archives and waiting messages out: users, rosters and settings are small, archives may not be."`
	Quiet      bool `short:"q" help:"No progress line."`
}

// Run takes a backup of the running cluster.
func (c *backupCreateCmd) Run(a *app) error {
	if _, err := os.Lstat(c.File); err == nil {
		return fault.New(fault.Conflict, "backup", c.File, c.File+" exists already; choose another name")
	}
	passphrase, err := a.passphrase(c.PassphraseFile, true)
	if err != nil {
		return err
	}
	body, total, err := a.node.Stream(a.ctx, http.MethodPost, "/backup", adminapi.BackupRequest{Passphrase: passphrase, NoMessages: c.NoMessages})
	if err != nil {
		return err
	}
	defer body.Close()
	size, err := c.save(a, body, total)
	if err == nil {
		fmt.Fprintf(a.out, "%s: %s\n", c.File, humanBytes(size))
	}
	return err
}

// save writes the stream beside its place and moves it there when it is complete and on disk.
func (c *backupCreateCmd) save(a *app, in io.Reader, total int64) (int64, error) {
	tmp, err := os.CreateTemp(filepath.Dir(c.File), ".backup-*")
	if err != nil {
		return 0, &fault.Error{Code: fault.Forbidden, Op: "backup", Subject: c.File, Text: "cannot write to " + filepath.Dir(c.File), Err: err}
	}
	defer os.Remove(tmp.Name()) // after the rename there is nothing of that name
	size, err := io.Copy(tmp, &meter{in: in, out: a.errs, quiet: c.Quiet, total: total})
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), c.File)
	}
	if err != nil {
		return 0, &fault.Error{Code: fault.Unavailable, Op: "backup", Subject: c.File, Text: "the backup broke off and was thrown away: " + err.Error() + "; see the node's log", Err: err}
	}
	return size, nil
}

// meter shows how much has been read.
type meter struct {
	in    io.Reader
	out   io.Writer
	quiet bool
	total int64 // that are to come; not positive: unknown
	n     int64
	shown time.Time
}

// Read implements io.Reader.
func (m *meter) Read(p []byte) (int, error) {
	n, err := m.in.Read(p)
	m.n += int64(n)
	if done := err != nil; !m.quiet && (done || time.Since(m.shown) > 200*time.Millisecond) {
		m.shown = time.Now()
		fmt.Fprintf(m.out, "\r%s ", humanBytes(m.n))
		if m.total > 0 {
			fmt.Fprintf(m.out, "of %s ", humanBytes(m.total))
		}
		if done {
			fmt.Fprintln(m.out)
		}
	}
	return n, err
}

type backupVerifyCmd struct {
	File string `arg:"" help:"The backup."`
	passphraseFlag
	JSON  bool `help:"Print JSON."`
	Quiet bool `short:"q" help:"No progress line."`
}

// Run verifies the backup.
func (c *backupVerifyCmd) Run(a *app) error {
	passphrase, err := a.passphrase(c.PassphraseFile, false)
	if err != nil {
		return err
	}
	m, err := backup.Verify(a.ctx, c.File, pki.Secret(passphrase), node.BackupMachines(), a.progress(c.Quiet))
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(a.out, m)
	}
	fmt.Fprintf(a.out, "%s is whole: %s", c.File, describeBackup(m))
	return nil
}

// describeBackup says in one line per log what is in a backup.
func describeBackup(r *backup.Report) string {
	text := fmt.Sprintf("cluster %s (%s) of %s, written by release %s\n  control log at index %d, %d tables, %s\n",
		r.ClusterName, r.ClusterID, clock(r.Created), r.Software, r.Index, len(r.Tables), humanBytes(r.Size()))
	if m := r.Messages; m != nil {
		text += fmt.Sprintf("  message log at index %d, %d tables, %s\n", m.Index, len(m.Tables), humanBytes(m.Size()))
	} else {
		text += "  no messages\n"
	}
	var counts []string
	for _, c := range r.Counts {
		counts = append(counts, fmt.Sprintf("%d %s", c.Count, c.Name))
	}
	if text += "  " + strings.Join(counts, ", ") + "\n"; r.Alone {
		text += "  the node heard no leader when it was taken: what the others had confirmed may be missing\n"
	}
	return text
}

// progress shows how many bytes of how many are done.
func (a *app) progress(quiet bool) backup.Progress {
	if quiet {
		return nil
	}
	var shown time.Time
	return func(done, total int64) {
		if done < total && time.Since(shown) < 200*time.Millisecond {
			return
		}
		shown = time.Now()
		fmt.Fprintf(a.errs, "\r%s of %s ", humanBytes(done), humanBytes(total))
		if done >= total {
			fmt.Fprintln(a.errs)
		}
	}
}

type restoreCmd struct {
	File string `arg:"" help:"The backup."`
	Name string `help:"Name of the new cluster (default: as before)."`
	passphraseFlag
	Quiet bool `short:"q" help:"No progress line."`
}

// Run founds a new cluster of this node on the backup.
func (c *restoreCmd) Run(a *app) error {
	conf, err := a.bootstrapFile()
	if err != nil {
		return err
	}
	passphrase, err := a.passphrase(c.PassphraseFile, false)
	if err != nil {
		return err
	}
	r, id, err := backup.Restore(a.ctx, backup.RestoreOptions{Path: c.File, Passphrase: pki.Secret(passphrase), Dir: conf.Data,
		Node: member(conf), Name: c.Name, Machines: node.BackupMachines(), Progress: a.progress(c.Quiet)})
	if err != nil {
		return err
	}
	fmt.Fprintf(a.out, "restored: %snew cluster %s with this node; all users are at home on %s\nnext: start musterd --config %s, then invite the other nodes with muster node token\n",
		describeBackup(r), id.ClusterID, conf.Name, a.config)
	return nil
}
