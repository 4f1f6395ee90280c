package xmltok

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

func TestReader(t *testing.T) {
	in := `text &amp; &#13;more<a x="1" xml:lang="de" xmlns:p="v" p:y="&lt;&quot;"><b xmlns="u"><c/>t</b></a><d xmlns="">é</d>`
	want := []Token{
		{Kind: Text, Text: "text & \rmore"},
		{Kind: StartTag, Space: nsClient, Local: "a", Attrs: []Attr{{"", "x", "1"}, {nsXML, "lang", "de"}, {"v", "y", `<"`}}},
		{Kind: StartTag, Space: "u", Local: "b"},
		{Kind: StartTag, Space: "u", Local: "c"},
		{Kind: EndTag, Space: "u", Local: "c"},
		{Kind: Text, Text: "t"},
		{Kind: EndTag, Space: "u", Local: "b"},
		{Kind: EndTag, Space: nsClient, Local: "a"},
		{Kind: StartTag, Local: "d"},
		{Kind: Text, Text: "é"},
		{Kind: EndTag, Local: "d"},
	}
	r := NewReader([]byte(in), nsClient)
	for i, w := range want {
		got, err := r.Next()
		if err != nil || fmt.Sprint(got) != fmt.Sprint(w) {
			t.Fatalf("token %d: %+v, %v; want %+v", i, got, err, w)
		}
	}
	for range 2 {
		if tok, err := r.Next(); err != io.EOF {
			t.Fatalf("after the end: %+v, %v", tok, err)
		}
	}
}

// The readers of canonical bytes are given only what we wrote, and say so when they are not.
func TestNotCanonical(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     error
		children bool // AppendChildren sees it too
	}{
		{"incomplete tag", `<a`, ErrNotWellFormed, true},
		{"incomplete element", `<a>`, ErrNotWellFormed, true},
		{"incomplete child", `<a><b></a>`, ErrNotWellFormed, true},
		{"end tag alone", `</a>`, ErrNotWellFormed, true},
		{"empty tag", `<>`, ErrNotWellFormed, true},
		{"wrong end tag", `<a></b>`, ErrNotWellFormed, false},
		{"incomplete end tag", `<a></a`, ErrNotWellFormed, true},
		{"prefix of an element", `<p:a xmlns:p="u"/>`, ErrBadNamespacePrefix, true},
		{"prefix from around", `<a xmlns:p="u"><b p:c="1"/></a>`, ErrBadNamespacePrefix, false},
		{"incomplete reference", `&am`, ErrNotWellFormed, false},
		{"unknown reference", `&foo;`, ErrRestricted, false},
		{"not UTF-8", "\xff", ErrBadEncoding, false},
		{"comment", `<!-- -->`, ErrNotWellFormed, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := NewReader([]byte(c.in), nsClient)
			var err error
			for err == nil {
				_, err = r.Next()
			}
			if !errors.Is(err, c.want) {
				t.Errorf("reader: %v, want %v", err, c.want)
			}
			if _, err := AppendChildren(nil, []byte(c.in), nsClient); c.children && !errors.Is(err, c.want) {
				t.Errorf("children: %v, want %v", err, c.want)
			}
		})
	}
}

func TestAppendChildren(t *testing.T) {
	in := `x<a y="1"><b><a/></b></a> <c xmlns="u"/><d xmlns=""></d>z`
	children, err := AppendChildren(nil, []byte(in), nsClient)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range children {
		got = append(got, "{"+c.Space+"}"+c.Local+" "+in[c.Start:c.End])
	}
	want := []string{`{jabber:client}a <a y="1"><b><a/></b></a>`, `{u}c <c xmlns="u"/>`, `{}d <d xmlns=""></d>`}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("%q", got)
	}
	if none, err := AppendChildren(nil, []byte("only text"), nsClient); err != nil || len(none) != 0 {
		t.Errorf("%v, %v", none, err)
	}
}

func TestAppendAttrs(t *testing.T) {
	var attrs []Attr
	for i := range 12 {
		attrs = append(attrs, Attr{fmt.Sprintf("u:%d", i), "a", "1"})
	}
	attrs = append(attrs, Attr{"u:0", "b", "2"}, Attr{"", "c", "<"}, Attr{nsXML, "lang", "en"})
	item, err := Parse([]byte("<x"+string(AppendAttrs(nil, attrs))+"/>"), nil)
	if err != nil || fmt.Sprint(item.Attrs) != fmt.Sprint(attrs) {
		t.Errorf("%v, %v", item.Attrs, err)
	}
}
