package scram

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"muster/internal/fault"
)

func salt(t testing.TB, s string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// vectors are the examples of RFC 5802 section 5 and RFC 7677 section 3.
var vectors = []struct {
	name                                         string
	hash                                         Hash
	salt, nonce                                  string
	clientFirst, serverFirst, clientFinal, final string
}{
	{
		"RFC 5802", SHA1, "QSXCR+Q6sek8bf92", "3rfcNHYJY1ZVvWVs7j",
		"n,,n=user,r=fyko+d2lbbFgONRv9qkxdawL",
		"r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096",
		"c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
		"v=rmF9pqV8S7suAoZWja4dJRkFsKQ=",
	},
	{
		"RFC 7677", SHA256, "W22ZaJ0SNY7soEsUEjb6gQ==", "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0",
		"n,,n=user,r=rOprNGfwEbeRWgbNEkqO",
		"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
		"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
		"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
	},
}

func TestVectors(t *testing.T) {
	for _, v := range vectors {
		t.Run(v.name, func(t *testing.T) {
			v256, v1, err := Derive("pencil", salt(t, v.salt), 4096)
			if err != nil {
				t.Fatal(err)
			}
			own := v256
			if v.hash == SHA1 {
				own = v1
			}
			e := New(Params{Hash: v.hash, Lookup: func(user string) (Verifier, error) {
				if user != "user" {
					t.Errorf("looked up %q", user)
				}
				return own, nil
			}, Nonce: func() string { return v.nonce }})
			if got, err := e.First([]byte(v.clientFirst)); err != nil || string(got) != v.serverFirst {
				t.Fatalf("got %q, %v; want %q", got, err, v.serverFirst)
			}
			if got, err := e.Final([]byte(v.clientFinal)); err != nil || string(got) != v.final {
				t.Fatalf("got %q, %v; want %q", got, err, v.final)
			}
			if !own.Matches(v.hash, "pencil") || own.Matches(v.hash, "Pencil") || own.Matches(v.hash, "") {
				t.Error("Matches is wrong")
			}
		})
	}
}

func TestDeriveRefuses(t *testing.T) {
	for _, tt := range []struct {
		name, password string
		salt           []byte
		iterations     int
	}{
		{"empty password", "", []byte("salt"), 4096},
		{"control character", "a\x01b", []byte("salt"), 4096},
		{"not UTF-8", "a\xff", []byte("salt"), 4096},
		{"too long", strings.Repeat("x", MaxPassword+1), []byte("salt"), 4096},
		{"no salt", "pencil", nil, 4096},
		{"no iterations", "pencil", []byte("salt"), 0},
		{"too many iterations", "pencil", []byte("salt"), MaxIterations + 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, _, err := Derive(tt.password, tt.salt, tt.iterations); !fault.Is(err, fault.NotAcceptable) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestPasswordsAreNormalised: other forms of the same characters are the same password (RFC 8265 section 4.2.2).
func TestPasswordsAreNormalised(t *testing.T) {
	v, _, err := Derive("caf\u00e9 1", []byte("salt"), 10)
	if err != nil {
		t.Fatal(err)
	}
	for _, same := range []string{"cafe\u0301 1", "caf\u00e9\u00a01"} {
		if !v.Matches(SHA256, same) {
			t.Errorf("%q is another password", same)
		}
	}
	if v.Matches(SHA256, "CAF\u00c9 1") {
		t.Error("case does not matter")
	}
}

func TestFakeIsStableAndOpensNothing(t *testing.T) {
	a, b := Fake([]byte("key"), SHA256, "nobody", 10), Fake([]byte("key"), SHA256, "nobody", 10)
	if !bytes.Equal(a.Salt, b.Salt) || !a.Valid(SHA256) || a.Iterations != 10 {
		t.Error("a fake verifier is not stable or not valid")
	}
	for name, other := range map[string]Verifier{"other user": Fake([]byte("key"), SHA256, "anybody", 10), "other key": Fake([]byte("kex"), SHA256, "nobody", 10)} {
		if bytes.Equal(a.Salt, other.Salt) {
			t.Errorf("%s has the same salt", name)
		}
	}
	if sha1 := Fake([]byte("key"), SHA1, "nobody", 10); !bytes.Equal(a.Salt, sha1.Salt) || !sha1.Valid(SHA1) {
		t.Error("a real user has one salt for both hashes, a fake one has not")
	}
	if a.Matches(SHA256, "anything") {
		t.Error("a fake verifier matches")
	}
}

func TestVerifiersDoNotShow(t *testing.T) {
	v, _, err := Derive("pencil", []byte("salt"), 10)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{fmt.Sprint(v), fmt.Sprintf("%v", v), fmt.Sprintf("%+v", v), fmt.Sprintf("%#v", v)} {
		if s != "***" {
			t.Errorf("printed as %s", s)
		}
	}
}

// proof plays the client: it returns the client-final-message for what was exchanged.
func proof(h Hash, password, bare, first string, binding []byte) string {
	fields := strings.Split(first, ",")
	s, _ := base64.StdEncoding.DecodeString(fields[1][2:])
	var rounds int
	fmt.Sscanf(fields[2], "i=%d", &rounds)
	key := salted(h, password, s, rounds)
	client := h.mac(key, []byte("Client Key"))
	without := "c=" + base64.StdEncoding.EncodeToString(binding) + "," + fields[0]
	signature := h.mac(h.sum(client), []byte(bare+","+first+","+without))
	for i := range signature {
		signature[i] ^= client[i]
	}
	return without + ",p=" + base64.StdEncoding.EncodeToString(signature)
}

func TestExchange(t *testing.T) {
	v256, v1, err := Derive("pencil", []byte("salt"), 10)
	if err != nil {
		t.Fatal(err)
	}
	binding := func(kind string) ([]byte, bool) { return []byte("data of " + kind), kind == "tls-exporter" }
	for _, tt := range []struct {
		name          string
		plus, offered bool
		header, bare  string
		bound         string // client's view of the binding data
		password      string
		first, final  fault.Code
	}{
		{name: "without binding", header: "n,,", bare: "n=alice,r=abc", password: "pencil"},
		{name: "client could bind, server not", header: "y,,", bare: "n=alice,r=abc", password: "pencil"},
		{name: "downgrade", offered: true, header: "y,,", bare: "n=alice,r=abc", password: "pencil", first: fault.Unauthorized},
		{name: "with binding", plus: true, offered: true, header: "p=tls-exporter,,", bare: "n=alice,r=abc", bound: "data of tls-exporter", password: "pencil"},
		{name: "wrong binding", plus: true, offered: true, header: "p=tls-exporter,,", bare: "n=alice,r=abc", bound: "data of a relay", password: "pencil", final: fault.Unauthorized},
		{name: "unknown binding", plus: true, offered: true, header: "p=tls-unique,,", bare: "n=alice,r=abc", first: fault.NotAcceptable},
		{name: "plus without binding", plus: true, offered: true, header: "n,,", bare: "n=alice,r=abc", first: fault.BadRequest},
		{name: "binding without plus", offered: true, header: "p=tls-exporter,,", bare: "n=alice,r=abc", first: fault.BadRequest},
		{name: "wrong password", header: "n,,", bare: "n=alice,r=abc", password: "pen", final: fault.Unauthorized},
		{name: "other identity", header: "n,a=bob,", bare: "n=alice,r=abc", password: "pencil"},
		{name: "extension to ignore", header: "n,,", bare: "n=alice,r=abc,x=y", password: "pencil"},
		{name: "extension to obey", header: "n,,", bare: "m=new,n=alice,r=abc", first: fault.BadRequest},
		{name: "escaped name", header: "n,,", bare: "n=a=2Cb=3Dc,r=abc", password: "pencil"},
		{name: "badly escaped name", header: "n,,", bare: "n=a=2c,r=abc", first: fault.BadRequest},
		{name: "no name", header: "n,,", bare: "n=,r=abc", first: fault.BadRequest},
		{name: "no nonce", header: "n,,", bare: "n=alice", first: fault.BadRequest},
		{name: "empty nonce", header: "n,,", bare: "n=alice,r=", first: fault.BadRequest},
		{name: "no header", header: "", bare: "n=alice", first: fault.BadRequest},
		{name: "bad flag", header: "q,,", bare: "n=alice,r=abc", first: fault.BadRequest},
		{name: "bad identity", header: "n,b=x,", bare: "n=alice,r=abc", first: fault.BadRequest},
		{name: "too long", header: "n,,", bare: "n=" + strings.Repeat("a", maxMessage) + ",r=abc", first: fault.BadRequest},
		{name: "long nonce", header: "n,,", bare: "n=a,r=" + strings.Repeat("a", maxNonce+1), first: fault.BadRequest},
	} {
		for _, h := range []Hash{SHA256, SHA1} {
			t.Run(tt.name+" "+h.String(), func(t *testing.T) {
				own := v256
				if h == SHA1 {
					own = v1
				}
				e := New(Params{Hash: h, Plus: tt.plus, PlusOffered: tt.offered, Binding: binding, Lookup: func(string) (Verifier, error) { return own, nil }})
				first, err := e.First([]byte(tt.header + tt.bare))
				if fault.CodeOf(err) != tt.first {
					t.Fatalf("first: %v", err)
				}
				if err != nil {
					return
				}
				msg := proof(h, tt.password, tt.bare, string(first), append([]byte(tt.header), tt.bound...))
				final, err := e.Final([]byte(msg))
				if fault.CodeOf(err) != tt.final {
					t.Fatalf("final: %v", err)
				}
				if err == nil && !bytes.HasPrefix(final, []byte("v=")) {
					t.Errorf("final %q", final)
				}
			})
		}
	}
}

func TestUserAndIdentity(t *testing.T) {
	e := New(Params{Lookup: func(string) (Verifier, error) { return Fake(nil, SHA256, "x", 1), nil }})
	if _, err := e.First([]byte("n,a=bob=2C,n=a=3D=2Cb,r=abc")); err != nil {
		t.Fatal(err)
	}
	if e.User() != "a=,b" || e.Authzid() != "bob," {
		t.Errorf("got %q as %q", e.User(), e.Authzid())
	}
}

func TestFinalMessages(t *testing.T) {
	for _, tt := range []struct{ name, msg string }{
		{"empty", ""}, {"no proof", "c=biws,r=N"}, {"proof not base64", "c=biws,r=N,p=*"}, {"short proof", "c=biws,r=N,p=AAAA"},
		{"other nonce", "c=biws,r=other,p=" + strings.Repeat("A", 43) + "="}, {"no binding", "r=N,p=" + strings.Repeat("A", 43) + "="},
		{"binding not base64", "c=*,r=N,p=" + strings.Repeat("A", 43) + "="}, {"extension to obey", "c=biws,r=N,m=x,p=" + strings.Repeat("A", 43) + "="},
		{"too long", strings.Repeat("x", maxMessage+1)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := New(Params{Lookup: func(string) (Verifier, error) { return Fake(nil, SHA256, "x", 1), nil }, Nonce: func() string { return "" }})
			if _, err := e.Final([]byte("c=biws,r=N,p=")); !fault.Is(err, fault.BadRequest) {
				t.Errorf("final before first: %v", err)
			}
			if _, err := e.First([]byte("n,,n=x,r=N")); err != nil {
				t.Fatal(err)
			}
			if _, err := e.Final([]byte(tt.msg)); !fault.Is(err, fault.BadRequest) {
				t.Errorf("got %v", err)
			}
			if _, err := e.First([]byte("n,,n=x,r=N")); err == nil {
				t.Error("an exchange was used twice")
			}
		})
	}
}

func TestLookupErrorsArePassedOn(t *testing.T) {
	e := New(Params{Lookup: func(string) (Verifier, error) { return Verifier{}, fault.New(fault.Overloaded, "x", "", "") }})
	if _, err := e.First([]byte("n,,n=x,r=N")); !fault.Is(err, fault.Overloaded) {
		t.Errorf("got %v", err)
	}
}

func TestNoncesDiffer(t *testing.T) {
	a, b := randomNonce(), randomNonce()
	if a == b || len(a) < 24 || !printable(a) {
		t.Errorf("%q and %q", a, b)
	}
}

// FuzzExchange: no message makes the exchange panic or succeed without the password.
func FuzzExchange(f *testing.F) {
	for _, v := range vectors {
		f.Add([]byte(v.clientFirst), []byte(v.clientFinal))
	}
	f.Add([]byte("p=tls-exporter,a=x,n=a=2C,r=1,x"), []byte("c=,r=,p="))
	v, _, err := Derive("a password that no fuzzer finds", []byte("salt"), 1)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, first, final []byte) {
		for _, plus := range []bool{false, true} {
			e := New(Params{Plus: plus, PlusOffered: plus, Binding: func(string) ([]byte, bool) { return []byte("b"), true },
				Lookup: func(string) (Verifier, error) { return v, nil }, Nonce: func() string { return "fixed" }})
			if _, err := e.First(first); err != nil && !fault.Is(err, fault.BadRequest) && !fault.Is(err, fault.Unauthorized) {
				t.Errorf("first: %v", err)
			}
			if _, err := e.Final(final); err == nil {
				t.Error("the proof was accepted")
			}
		}
	})
}
