package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"muster/internal/fault"
)

func testCA(t *testing.T) *CA {
	t.Helper()
	ca, err := NewCA("test authority", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// files writes a new pair for names and returns its file names.
func files(t *testing.T, ca *CA, dir string, names ...string) (certFile, keyFile string) {
	t.Helper()
	certPEM, keyPEM, err := ca.Issue(time.Now(), names...)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	if err := WriteFiles(certFile, keyFile, certPEM, keyPEM); err != nil {
		t.Fatal(err)
	}
	return certFile, keyFile
}

func TestIssuedCertificatesVerify(t *testing.T) {
	ca := testCA(t)
	s, err := ca.IssueSource(time.Now(), "example.com", "10.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		ok   bool
	}{{"example.com", true}, {"localhost", true}, {"127.0.0.1", true}, {"127.0.0.8", true}, {"::1", true}, {"10.0.0.1", true}, {"127.0.0.9", false}, {"example.org", false}} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := s.Certificate().Leaf.Verify(x509.VerifyOptions{DNSName: tt.name, Roots: ca.Pool()})
			if (err == nil) != tt.ok {
				t.Errorf("got %v", err)
			}
		})
	}
	if _, err := s.Certificate().Leaf.Verify(x509.VerifyOptions{DNSName: "example.com", Roots: testCA(t).Pool()}); err == nil {
		t.Error("another authority vouches for it")
	}
	if !bytes.Contains(ca.PEM(), []byte("BEGIN CERTIFICATE")) {
		t.Error("no PEM")
	}
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := files(t, testCA(t), dir, "example.com")
	s, err := Open(certFile, keyFile, nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.GetCertificate(&tls.ClientHelloInfo{})
	if err != nil || c.Leaf.DNSNames[0] != "example.com" {
		t.Errorf("got %v, %v", c, err)
	}
	if info, err := os.Stat(keyFile); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key can be read by others: %v, %v", info.Mode(), err)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := files(t, testCA(t), dir, "example.com")
	_, otherKey := files(t, testCA(t), t.TempDir(), "example.com")
	garbage := filepath.Join(dir, "garbage.pem")
	large := filepath.Join(dir, "large.pem")
	for name, content := range map[string][]byte{garbage: []byte("not a certificate"), large: make([]byte, maxFile+1)} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct{ name, cert, key, want string }{
		{"no certificate", filepath.Join(dir, "none.pem"), keyFile, "none.pem cannot be read"},
		{"no key", certFile, filepath.Join(dir, "none.pem"), "none.pem cannot be read"},
		{"garbage", garbage, keyFile, "garbage.pem is no PEM certificate"},
		{"another key", certFile, otherKey, "that fits the key"},
		{"too large", large, keyFile, "too large"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Open(tt.cert, tt.key, nil)
			if !fault.Is(err, fault.BadRequest) || !strings.Contains(fault.Public(err), tt.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestReload(t *testing.T) {
	dir, ca := t.TempDir(), testCA(t)
	certFile, keyFile := files(t, ca, dir, "one.example")
	var logs bytes.Buffer
	s, err := Open(certFile, keyFile, slog.New(slog.NewTextHandler(&logs, nil)))
	if err != nil {
		t.Fatal(err)
	}
	name := func() string { return s.Certificate().Leaf.DNSNames[0] }
	s.poll()
	if logs.Len() != 0 {
		t.Errorf("reloaded without a change: %s", logs.String())
	}
	files(t, ca, dir, "two.example.com")
	s.poll()
	if name() != "two.example.com" {
		t.Errorf("serves %s after the change", name())
	}
	if err := os.WriteFile(certFile, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.poll()
	st := s.Status(time.Now())
	if name() != "two.example.com" || !strings.Contains(st.Error, "is no PEM certificate") || st.ErrorAt.IsZero() {
		t.Errorf("serves %s, status %+v", name(), st)
	}
	if !strings.Contains(logs.String(), "certificate_reload_failed") {
		t.Errorf("log %s", logs.String())
	}
	before := logs.Len()
	s.poll()
	if logs.Len() != before {
		t.Error("the same broken file is reported again and again")
	}
	files(t, ca, dir, "three.example")
	if err := s.Reload(); err != nil || name() != "three.example" || s.Status(time.Now()).Error != "" {
		t.Errorf("serves %s, %v, %+v", name(), err, s.Status(time.Now()))
	}
}

func TestRunWatches(t *testing.T) {
	dir, ca := t.TempDir(), testCA(t)
	certFile, keyFile := files(t, ca, dir, "one.example")
	s, err := Open(certFile, keyFile, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { s.Run(ctx); close(done) }()
	files(t, ca, dir, "two.example.com")
	for end := time.Now().Add(3 * PollInterval); s.Certificate().Leaf.DNSNames[0] != "two.example.com"; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the change was not noticed")
		}
	}
	cancel()
	<-done
}

func TestStatusWarns(t *testing.T) {
	s, err := testCA(t).IssueSource(time.Now(), "example.com")
	if err != nil {
		t.Fatal(err)
	}
	end := s.Certificate().Leaf.NotAfter
	for _, tt := range []struct {
		before time.Duration
		want   string
	}{
		{31 * 24 * time.Hour, ""}, {30 * 24 * time.Hour, "within 30 days"}, {10 * 24 * time.Hour, "within 14 days"},
		{6 * 24 * time.Hour, "within 7 days"}, {time.Hour, "within 1 day"}, {-time.Second, "has expired"},
	} {
		if got := s.Status(end.Add(-tt.before)).Warning; tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
			t.Errorf("%v before: %q", tt.before, got)
		}
	}
	st := s.Status(time.Now())
	if !strings.Contains(strings.Join(st.Names, " "), "example.com localhost 127.0.0.1") || !st.NotAfter.Equal(end) {
		t.Errorf("status %+v", st)
	}
	if err := s.Reload(); err != nil {
		t.Errorf("a source without files cannot be reloaded: %v", err)
	}
}

func TestWriteFilesRefuses(t *testing.T) {
	if err := WriteFiles("/nonexistent/c.pem", "/nonexistent/k.pem", nil, nil); !fault.Is(err, fault.BadRequest) {
		t.Errorf("got %v", err)
	}
}
