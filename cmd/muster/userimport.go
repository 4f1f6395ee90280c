package main

import (
	"context"
	"crypto/rand"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"muster/edges/http/adminapi"
	"muster/internal/fault"
	"muster/internal/scram"
)

// Limits of an import.
const (
	inFlight     = 4                      // batches under way at once: enough to hide the round trip
	batchRetries = 20                     // attempts for a batch while the cluster changes its leader
	retryPause   = 500 * time.Millisecond // between them
	showProblems = 20                     // lines whose problem is shown; the rest is counted
	maxLine      = 8 << 10                // bytes of a line of CSV that is worth reading
)

type userImportCmd struct {
	File       string `arg:"" help:"CSV file: user,password[,display name]; - for the input."`
	Domain     string `help:"Domain of users without one (default: the cluster's only one)."`
	Iterations int    `default:"4096" help:"SCRAM iterations of the verifiers; at least 4096."`
	Quiet      bool   `short:"q" help:"No progress line."`
}

// line is one user of the file.
type line struct {
	number         int
	user, password string
	name           string
}

// Run creates the users of the file. Those that exist already are counted and
// left alone, so that an import that broke off can simply be run again.
func (c *userImportCmd) Run(a *app) error {
	if c.Iterations < scram.MinIterations {
		return fault.New(fault.NotAcceptable, "user.import", "", fmt.Sprintf("--iterations must be at least %d", scram.MinIterations))
	}
	lines, err := c.read(a)
	if err != nil {
		return err
	}
	p := newProgress(a.errs, "users", len(lines), c.Quiet)
	derive := func(l line) (adminapi.NewUser, error) { return deriveUser(l, c.Iterations) }
	send := func(ctx context.Context, batch []adminapi.NewUser) ([]adminapi.Outcome, error) {
		var got []adminapi.Outcome
		return got, a.node.Call(ctx, http.MethodPost, "/users", batch, &got)
	}
	if err := runImport(a.ctx, lines, derive, send, p); err != nil {
		p.end()
		return err
	}
	return p.summary(a.out, "created", "existed already")
}

// read takes in the whole file, so that a mistake in it is found before anything is created.
func (c *userImportCmd) read(a *app) ([]line, error) {
	records, err := readCSV(a, c.File, 2, 3)
	if err != nil {
		return nil, err
	}
	domain := c.Domain
	var lines []line
	for _, r := range records {
		l := line{number: r.number, user: strings.TrimSpace(r.fields[0]), password: r.fields[1]}
		if len(r.fields) > 2 {
			l.name = strings.TrimSpace(r.fields[2])
		}
		if l.number == 1 && strings.EqualFold(l.user, "user") && strings.EqualFold(l.password, "password") {
			continue // a head
		}
		if !strings.Contains(l.user, "@") {
			if domain == "" {
				if domain, err = a.onlyDomain(); err != nil {
					return nil, err
				}
			}
			l.user += "@" + domain
		}
		lines = append(lines, l)
	}
	return lines, nil
}

// deriveUser does the costly part: both verifiers of the password.
func deriveUser(l line, iterations int) (adminapi.NewUser, error) {
	salt := make([]byte, scram.SaltSize)
	_, _ = rand.Read(salt) // never fails
	v256, v1, err := scram.Derive(l.password, salt, iterations)
	if err != nil {
		return adminapi.NewUser{}, fmt.Errorf("line %d: %s: %s", l.number, l.user, fault.Public(err))
	}
	return adminapi.NewUser{JID: l.user, DisplayName: l.name, SHA256: verifier(v256), SHA1: verifier(v1)}, nil
}

func verifier(v scram.Verifier) *adminapi.Verifier {
	return &adminapi.Verifier{Iterations: v.Iterations, Salt: v.Salt, StoredKey: v.StoredKey, ServerKey: v.ServerKey}
}

// record is one line of a CSV file.
type record struct {
	number int
	fields []string
}

// readCSV reads a CSV file whose lines have between least and most fields. Empty lines and those that begin with # are left out.
func readCSV(a *app, file string, least, most int) ([]record, error) {
	in := a.in
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, &fault.Error{Code: fault.NotFound, Op: "import", Subject: file, Text: "cannot read " + file, Err: err}
		}
		defer f.Close()
		in = f
	}
	r := csv.NewReader(in)
	r.Comment, r.FieldsPerRecord = '#', -1
	var out []record
	for {
		fields, err := r.Read()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, &fault.Error{Code: fault.BadRequest, Op: "import", Subject: file, Text: file + ": " + err.Error() + "; nothing was imported", Err: err}
		}
		number, _ := r.FieldPos(0)
		if len(fields) < least || len(fields) > most || len(strings.Join(fields, "")) > maxLine || fields[0] == "" {
			return nil, fault.New(fault.BadRequest, "import", file, fmt.Sprintf("%s, line %d: %d to %d fields are wanted, the first not empty; nothing was imported", file, number, least, most))
		}
		out = append(out, record{number, fields})
	}
}

// runImport prepares items on all processors and sends them in batches, a few at a time.
func runImport[L, T any](ctx context.Context, lines []L, prepare func(L) (T, error), send func(context.Context, []T) ([]adminapi.Outcome, error), p *progress) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	batches := make(chan []T)
	var senders sync.WaitGroup
	for range inFlight {
		senders.Go(func() {
			for b := range batches {
				if err := sendBatch(ctx, b, send, p); err != nil {
					cancel(err)
				}
			}
		})
	}
	for start := 0; start < len(lines) && ctx.Err() == nil; start += adminapi.MaxBatch {
		b := prepareBatch(lines[start:min(start+adminapi.MaxBatch, len(lines))], prepare, p)
		select {
		case batches <- b:
		case <-ctx.Done():
		}
	}
	close(batches)
	senders.Wait()
	return context.Cause(ctx)
}

// prepareBatch prepares a batch's items in parallel; those that fail are noted and left out.
func prepareBatch[L, T any](lines []L, prepare func(L) (T, error), p *progress) []T {
	items, errs := make([]T, len(lines)), make([]error, len(lines))
	var wg sync.WaitGroup
	workers := runtime.GOMAXPROCS(0)
	for w := range workers {
		wg.Go(func() {
			for i := w; i < len(lines); i += workers {
				items[i], errs[i] = prepare(lines[i])
			}
		})
	}
	wg.Wait()
	good := items[:0]
	for i, err := range errs {
		if err != nil {
			p.problem(err.Error())
			continue
		}
		good = append(good, items[i])
	}
	return good
}

// sendBatch sends one batch, again while the cluster cannot take it just now: items that
// got in unheard count as existing then.
func sendBatch[T any](ctx context.Context, b []T, send func(context.Context, []T) ([]adminapi.Outcome, error), p *progress) error {
	for attempt := 1; ; attempt++ {
		got, err := send(ctx, b)
		if err == nil {
			p.outcomes(got)
			return nil
		}
		if ctx.Err() != nil || attempt == batchRetries || !fault.CodeOf(err).Retryable() {
			return err
		}
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// progress counts outcomes and shows a line about them.
type progress struct {
	out   io.Writer // nil: quiet
	what  string
	total int
	begun time.Time

	mu       sync.Mutex
	done     int
	existed  int
	failed   int
	problems []string
	shown    time.Time
}

func newProgress(out io.Writer, what string, total int, quiet bool) *progress {
	p := &progress{what: what, total: total, begun: time.Now()}
	if !quiet {
		p.out = out
	}
	return p
}

func (p *progress) outcomes(list []adminapi.Outcome) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, o := range list {
		switch o.Code {
		case "":
			p.done++
		case fault.Conflict.String():
			p.existed++
		default:
			p.note(o.Subject + ": " + o.Text)
		}
	}
	p.show()
}

func (p *progress) problem(text string) { p.mu.Lock(); defer p.mu.Unlock(); p.note(text) }

func (p *progress) note(text string) {
	p.failed++
	if len(p.problems) < showProblems {
		p.problems = append(p.problems, text)
	}
}

// show rewrites the progress line, some times a second at most. p.mu is held.
func (p *progress) show() {
	n := p.done + p.existed + p.failed
	if p.out == nil || n < p.total && time.Since(p.shown) < 200*time.Millisecond {
		return
	}
	p.shown = time.Now()
	rate := float64(n) / max(time.Since(p.begun).Seconds(), 0.001)
	fmt.Fprintf(p.out, "\r%d of %d %s, %.0f a second ", n, p.total, p.what, rate)
}

func (p *progress) end() {
	if p.out != nil {
		fmt.Fprintln(p.out)
	}
}

// summary writes what became of everything; lines left out make the command fail.
func (p *progress) summary(out io.Writer, done, existed string) error {
	p.end()
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(out, "%d %s, %d %s, %d failed in %s\n", p.done, done, p.existed, existed, p.failed, time.Since(p.begun).Round(100*time.Millisecond))
	for _, t := range p.problems {
		fmt.Fprintln(out, "  "+t)
	}
	if p.failed > 0 {
		return &outcome{partStatus, fmt.Sprintf("%d of %d %s were left out", p.failed, p.total, p.what)}
	}
	return nil
}
