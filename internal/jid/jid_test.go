package jid

import (
	"strings"
	"testing"

	mjid "mellium.im/xmpp/jid"
)

func TestParse(t *testing.T) {
	tests := []struct {
		in, want string
		bad      bool
	}{
		{in: "alice@example.com", want: "alice@example.com"},
		{in: "Alice@Example.COM/Phone", want: "alice@example.com/Phone"},
		{in: "example.com", want: "example.com"},
		{in: "example.com/res", want: "example.com/res"},
		{in: "a@b.c/d/e@f", want: "a@b.c/d/e@f"},
		{in: "jürgen@bücher.example/Büro", want: "jürgen@bücher.example/Büro"},
		{in: "", bad: true},
		{in: "@example.com", bad: true},
		{in: "alice@", bad: true},
		{in: "alice@example.com/", bad: true},
		{in: "al ice@example.com", bad: true},
		{in: "al\"ice@example.com", bad: true},
		{in: "alice@example.com/\x01", bad: true},
		{in: strings.Repeat("a", 1024) + "@example.com", bad: true},
		{in: "alice@" + strings.Repeat("a.", 512) + "com", bad: true},
	}
	for _, tt := range tests {
		t.Run(tt.in, func(t *testing.T) {
			j, err := Parse(tt.in)
			if (err != nil) != tt.bad {
				t.Fatalf("Parse: %v, want an error: %v", err, tt.bad)
			}
			if err == nil && (j.String() != tt.want || string(j.Append(nil)) != tt.want) {
				t.Errorf("got %q, want %q", j, tt.want)
			}
		})
	}
}

// FuzzParse holds the fast path against mellium's parser, and parsing against rendering.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"alice@example.com/r", "A@B/C", "example.com", "a@b.c/d@e/f", "ſ@ſ/ſ", "a@1.2.3.4", "a@[::1]", "a@x-.y"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		j, err := Parse(s)
		m, merr := mjid.Parse(s)
		if merr == nil && (m.Domainpart() == "" || strings.HasSuffix(m.Domainpart(), ".")) {
			t.Skip("mellium keeps trailing dots; we do not")
		}
		if (err == nil) != (merr == nil) {
			t.Fatalf("%q: ours %v, mellium's %v", s, err, merr)
		}
		if err != nil {
			return
		}
		if j.String() != m.String() {
			t.Fatalf("%q: ours %q, mellium's %q", s, j, m)
		}
		again, err := Parse(j.String())
		if err != nil || again != j {
			t.Fatalf("%q does not parse back: %v, %v", j, again, err)
		}
	})
}
