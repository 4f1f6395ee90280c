package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"muster/internal/fault"
)

func testCA(t testing.TB) *CA {
	ca, err := NewCA("c1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func testIdentity(t testing.TB) *Identity {
	ca := testCA(t)
	id := &Identity{ClusterID: "c1", NodeID: 3, Name: "n3", Peers: []Peer{{1, "127.0.0.1:1"}}, CA: ca.Cert, ClusterKey: NewSecret(KeySize)}
	if err := id.Certify(ca, time.Now()); err != nil {
		t.Fatal(err)
	}
	return id
}

func TestSecretsDoNotPrint(t *testing.T) {
	s := Secret("hunter2hunter2hunter2hunter2")
	tok := Token{Secret: s}
	doc, err := json.Marshal(map[string]any{"s": s, "p": &s})
	if err != nil {
		t.Fatal(err)
	}
	for _, shown := range []string{s.String(), fmt.Sprint(s), fmt.Sprintf("%v %+v %#v %s %q %x %d", s, s, s, s, s, s, s), fmt.Sprint(tok), string(doc)} {
		if strings.Contains(shown, "hunter") || strings.Contains(shown, "68756e") || strings.Contains(shown, "104") {
			t.Errorf("a secret shows: %s", shown)
		}
	}
}

func TestNodeCertificate(t *testing.T) {
	id := testIdentity(t)
	cluster, node, err := NodeOf(id.Cert)
	if err != nil || cluster != "c1" || node != 3 {
		t.Errorf("the certificate names %q, %d, %v", cluster, node, err)
	}
	if uri := id.Cert.URIs[0].String(); uri != "muster://c1/node/3" {
		t.Errorf("SAN %s", uri)
	}
	roots := x509.NewCertPool()
	roots.AddCert(id.CA)
	for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		if _, err := id.Cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{use}}); err != nil {
			t.Error(err)
		}
	}
	if _, _, err := NodeOf(id.CA); err == nil {
		t.Error("the authority's own certificate names a node")
	}
}

func TestSignRefuses(t *testing.T) {
	ca := testCA(t)
	big, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	other, err := Request(big, "x")
	if err != nil {
		t.Fatal(err)
	}
	good, _ := NewNodeKey()
	fine, _ := Request(good, "x")
	forged := bytes.Clone(fine)
	forged[len(forged)-1] ^= 1
	for name, csr := range map[string][]byte{"another curve": other, "garbage": []byte("zzz"), "a bad signature": forged, "too large": make([]byte, MaxRequest+1), "nothing": nil} {
		if _, err := ca.Sign(csr, "c1", 1, "x", time.Now()); err == nil {
			t.Errorf("%s was signed", name)
		}
	}
	if _, err := ca.Sign(fine, "c1", 1, "x", time.Now()); err != nil {
		t.Error(err)
	}
}

func TestSealedAuthority(t *testing.T) {
	ca, key := testCA(t), NewSecret(KeySize)
	sealed, err := ca.SealedKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenCA(ca.PEM(), sealed, key); err != nil {
		t.Error(err)
	}
	if _, err := OpenCA(ca.PEM(), sealed, NewSecret(KeySize)); !fault.Is(err, fault.Unauthorized) {
		t.Errorf("with another key: %v", err)
	}
	if _, err := OpenCA(testCA(t).PEM(), sealed, key); err == nil {
		t.Error("another authority's key was taken")
	}
	if _, err := OpenCA([]byte("no PEM"), sealed, key); err == nil {
		t.Error("a malformed certificate was taken")
	}
}

func TestSeal(t *testing.T) {
	key := NewSecret(KeySize)
	sealed, err := Seal(key, []byte("plain"), "a")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Open(key, sealed, "a"); string(got) != "plain" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := Open(key, sealed, "b"); err == nil {
		t.Error("opened under another label")
	}
	for i := range sealed {
		bad := bytes.Clone(sealed)
		bad[i] ^= 1
		if _, err := Open(key, bad, "a"); err == nil {
			t.Errorf("a changed byte at %d was not noticed", i)
		}
		if _, err := Open(key, sealed[:i], "a"); err == nil {
			t.Errorf("opened when cut at %d", i)
		}
	}
	if _, err := Seal(key[:16], nil, "a"); err == nil {
		t.Error("a short key was taken")
	}
}

func TestToken(t *testing.T) {
	tok := NewToken(Fingerprint(testCA(t).Cert))
	for _, s := range []string{tok.Reveal(), strings.ToUpper(tok.Reveal()), "  " + tok.Reveal() + "\n"} {
		got, err := ParseToken(s)
		if err != nil || !bytes.Equal(got.Secret, tok.Secret) || got.Fingerprint != tok.Fingerprint {
			t.Errorf("ParseToken(%q): %v", s, err)
		}
	}
	for _, s := range []string{"", "muster-join-", tok.Reveal()[:40], tok.Reveal() + "a", strings.Replace(tok.Reveal(), "muster", "mister", 1), strings.Repeat("a", 10_000), "muster-join-!!!"} {
		if _, err := ParseToken(s); !fault.Is(err, fault.BadRequest) {
			t.Errorf("ParseToken(%.20q): %v", s, err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(NewToken([32]byte{1}).Reveal())
	f.Add("muster-join-aaaa")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		if err != nil {
			return
		}
		again, err := ParseToken(tok.Reveal())
		if err != nil || !bytes.Equal(again.Secret, tok.Secret) {
			t.Errorf("%q does not survive: %v", s, err)
		}
	})
}

func TestIdentitySurvivesTheDisk(t *testing.T) {
	dir, id := t.TempDir(), testIdentity(t)
	if Exists(dir) {
		t.Error("an empty folder has an identity")
	}
	if _, err := Load(dir); !fault.Is(err, fault.NotFound) {
		t.Errorf("Load of an empty folder: %v", err)
	}
	if err := id.Save(dir); err != nil {
		t.Fatal(err)
	}
	got, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got.ClusterID != "c1" || got.NodeID != 3 || got.Name != "n3" || len(got.Peers) != 1 || !got.Key.Equal(id.Key) ||
		!got.Cert.Equal(id.Cert) || !got.CA.Equal(id.CA) || !bytes.Equal(got.ClusterKey, id.ClusterKey) || !Exists(dir) {
		t.Errorf("came back as %+v", got)
	}
	names, _ := os.ReadDir(dir)
	for _, f := range names {
		if st, _ := f.Info(); st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", f.Name(), st.Mode())
		}
	}
}

func TestBadIdentityFilesAreRefused(t *testing.T) {
	other := testIdentity(t)
	otherDir := t.TempDir()
	if err := other.Save(otherDir); err != nil {
		t.Fatal(err)
	}
	swap := func(file string) func(string) {
		return func(dir string) {
			b, _ := os.ReadFile(filepath.Join(otherDir, file))
			_ = os.WriteFile(filepath.Join(dir, file), b, 0o600)
		}
	}
	write := func(file, text string) func(string) {
		return func(dir string) { _ = os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600) }
	}
	tests := []struct {
		name  string
		spoil func(dir string)
		want  string
	}{
		{"key readable by others", func(d string) { _ = os.Chmod(filepath.Join(d, fileKey), 0o644) }, "chmod 600"},
		{"cluster key readable by the group", func(d string) { _ = os.Chmod(filepath.Join(d, fileClusterKey), 0o640) }, "chmod 600"},
		{"another node's key", swap(fileKey), "damaged"},
		{"another authority", swap(fileCA), "damaged"},
		{"another certificate", swap(fileCert), "damaged"},
		{"key no PEM", write(fileKey, "zzz"), "damaged"},
		{"certificate cut", write(fileCert, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), "damaged"},
		{"cluster key short", write(fileClusterKey, "abcd"), "damaged"},
		{"identity no JSON", write(fileIdentity, "{"), "damaged"},
		{"identity of another node", write(fileIdentity, `{"cluster_id":"c1","node_id":4}`), "damaged"},
		{"identity huge", write(fileIdentity, strings.Repeat(" ", maxIdentityFile+1)), "damaged"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := testIdentity(t).Save(dir); err != nil {
				t.Fatal(err)
			}
			tt.spoil(dir)
			if _, err := Load(dir); err == nil || !strings.Contains(fault.Public(err), tt.want) {
				t.Errorf("Load: %v, want a fault with %q", err, tt.want)
			}
		})
	}
}

func TestRenewal(t *testing.T) {
	id, now := testIdentity(t), time.Now()
	for _, tt := range []struct {
		at   time.Duration
		want bool
	}{{0, false}, {NodeLife / 2, false}, {NodeLife * 7 / 10, true}, {2 * NodeLife, true}} {
		if got := NeedsRenewal(id.Cert, now.Add(tt.at)); got != tt.want {
			t.Errorf("after %v: %v", tt.at, got)
		}
	}
	ca := testCA(t)
	id.CA = ca.Cert
	key, old := id.Key, id.Cert
	if err := id.Certify(ca, now.Add(NodeLife)); err != nil {
		t.Fatal(err)
	}
	if id.Key != key || id.Cert.Equal(old) || NeedsRenewal(id.Cert, now.Add(NodeLife)) {
		t.Error("the renewed certificate is not a fresh one for the same key")
	}
}
