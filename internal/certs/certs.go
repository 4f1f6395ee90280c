// Package certs loads the server's certificates and keeps them fresh: a Source
// reads a certificate and key file, watches them, and hands the newest good
// pair to TLS listeners, so that a renewed certificate needs no restart and
// drops no connection. The edges and the node's HTTPS listener use it; the
// generator in this package serves `make run` and tests.
//
// Invariants: a pair is swapped in whole or not at all; a file that cannot be
// parsed leaves the old pair in use and shows in Status.
package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"muster/internal/fault"
)

// PollInterval is how often a Source looks whether its files changed.
const PollInterval = 2 * time.Second

// maxFile bounds what is read as a certificate or key: a chain of a dozen certificates has 30 KiB.
const maxFile = 1 << 20

// Source serves the certificate of a pair of files. Its methods may be called from any goroutine.
type Source struct {
	certFile, keyFile string
	logger            *slog.Logger
	current           atomic.Pointer[loaded]

	mu     sync.Mutex // held while loading
	seen   stamp      // of the files at the last try
	failed failure
}

type loaded struct {
	cert *tls.Certificate
	at   time.Time
}

type failure struct {
	text string
	at   time.Time
}

// stamp tells whether a pair of files changed.
type stamp struct {
	certTime, keyTime time.Time
	certSize, keySize int64
}

// Open loads the pair. The error is a fault that names the file and the remedy.
func Open(certFile, keyFile string, logger *slog.Logger) (*Source, error) {
	s := &Source{certFile: certFile, keyFile: keyFile, logger: logger}
	if err := s.Reload(); err != nil {
		return nil, err
	}
	return s, nil
}

// Static returns a source of one certificate that never changes, for tests and generated clusters.
func Static(cert tls.Certificate) (*Source, error) {
	s := &Source{}
	if err := s.adopt(cert); err != nil {
		return nil, err
	}
	return s, nil
}

// GetCertificate is for tls.Config.GetCertificate.
func (s *Source) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return s.Certificate(), nil
}

// Certificate returns the pair in use; its Leaf is parsed.
func (s *Source) Certificate() *tls.Certificate { return s.current.Load().cert }

// Reload reads the files now. On an error the old pair stays in use.
func (s *Source) Reload() error {
	if s.certFile == "" {
		return nil // static
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = s.stat()
	cert, err := readPair(s.certFile, s.keyFile)
	if err == nil {
		err = s.adopt(cert)
	}
	if err != nil {
		s.failed = failure{text: fault.Public(err), at: time.Now()}
		return err
	}
	s.failed = failure{}
	return nil
}

func readPair(certFile, keyFile string) (tls.Certificate, error) {
	for _, f := range []string{certFile, keyFile} {
		info, err := os.Stat(f)
		if err != nil {
			return tls.Certificate{}, unusable(f, "cannot be read: check that it exists and that the server's user may read it", err)
		}
		if info.Size() > maxFile {
			return tls.Certificate{}, unusable(f, "is too large for a certificate or key", nil)
		}
	}
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return tls.Certificate{}, unusable(certFile, "is no PEM certificate that fits the key "+keyFile, err)
	}
	return cert, nil
}

func unusable(file, text string, cause error) error {
	return &fault.Error{Code: fault.BadRequest, Op: "certs.load", Subject: file, Text: file + " " + text, Err: cause}
}

func (s *Source) adopt(cert tls.Certificate) error {
	if cert.Leaf == nil {
		leaf, err := x509.ParseCertificate(cert.Certificate[0])
		if err != nil {
			return unusable(s.certFile, "holds a certificate that cannot be parsed", err)
		}
		cert.Leaf = leaf
	}
	s.current.Store(&loaded{cert: &cert, at: time.Now()})
	return nil
}

// Run watches the files until ctx ends.
func (s *Source) Run(ctx context.Context) {
	tick := time.NewTicker(PollInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.poll()
		}
	}
}

// poll reloads if the files changed since the last try.
func (s *Source) poll() {
	s.mu.Lock()
	changed := s.certFile != "" && s.stat() != s.seen
	s.mu.Unlock()
	if !changed {
		return
	}
	if err := s.Reload(); err != nil {
		s.log(slog.LevelError, "certificate_reload_failed", "file", s.certFile, "error", err.Error())
		return
	}
	s.log(slog.LevelInfo, "certificate_reloaded", "file", s.certFile, "not_after", s.Certificate().Leaf.NotAfter)
}

func (s *Source) log(level slog.Level, msg string, args ...any) {
	if s.logger != nil {
		s.logger.Log(context.Background(), level, msg, args...)
	}
}

func (s *Source) stat() stamp {
	var out stamp
	if i, err := os.Stat(s.certFile); err == nil {
		out.certTime, out.certSize = i.ModTime(), i.Size()
	}
	if i, err := os.Stat(s.keyFile); err == nil {
		out.keyTime, out.keySize = i.ModTime(), i.Size()
	}
	return out
}

// Status says what a source serves and what is wrong with its files.
type Status struct {
	File     string    `json:"file,omitempty"`
	Subject  string    `json:"subject"`
	Names    []string  `json:"names"`
	NotAfter time.Time `json:"notAfter"`
	Loaded   time.Time `json:"loaded"`
	Error    string    `json:"error,omitempty"`   // why the files of now are not in use
	ErrorAt  time.Time `json:"errorAt,omitzero"`  // when they were tried
	Warning  string    `json:"warning,omitempty"` // expiry, by the alarm steps
}

// alarmDays are the steps at which a certificate's expiry is warned of, in days (reliability-security section 3).
var alarmDays = []int{1, 7, 14, 30}

// Status returns the state of the source at the time now.
func (s *Source) Status(now time.Time) Status {
	l := s.current.Load()
	leaf := l.cert.Leaf
	st := Status{File: s.certFile, Subject: leaf.Subject.String(), NotAfter: leaf.NotAfter, Loaded: l.at, Warning: warning(leaf, now)}
	st.Names = append(st.Names, leaf.DNSNames...)
	for _, ip := range leaf.IPAddresses {
		st.Names = append(st.Names, ip.String())
	}
	s.mu.Lock()
	st.Error, st.ErrorAt = s.failed.text, s.failed.at
	s.mu.Unlock()
	return st
}

func warning(leaf *x509.Certificate, now time.Time) string {
	left := leaf.NotAfter.Sub(now)
	if left <= 0 {
		return "the certificate has expired"
	}
	for _, days := range alarmDays {
		if left <= time.Duration(days)*24*time.Hour {
			return "the certificate expires within " + plural(days)
		}
	}
	return ""
}
