package xmltok

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

// seeds is the corpus that every fuzz target begins with.
func seeds(f *testing.F) {
	for _, c := range rejections {
		if len(c.in) < 1000 {
			f.Add([]byte(c.in))
		}
	}
	for _, s := range []string{
		chat, `<presence/>`, `<a xmlns:p='u:1' xmlns='u:0'><p:b p:x='1' y="2"><c xmlns=''/></p:b>t&amp;x<![CDATA[<]]>]]&gt;</a>`,
		"<a b='1\n2&#10;3'>\r\n\r<é/>😀</a>", `<iq type='set' id='1'><query xmlns='jabber:iq:roster'><item jid='a@b'/></query></iq>`,
	} {
		f.Add([]byte(s))
	}
}

// Whatever we take, the standard library takes with the same meaning, and so it does with what we write.
func FuzzAgainstStandardLibrary(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		item, err := Parse(in, nil)
		if err != nil {
			if !errors.As(err, new(*Error)) {
				t.Fatalf("%T %v", err, err)
			}
			return
		}
		canonical := item.AppendTo(nil, nsClient)
		want, err := standardTree(in)
		if err != nil {
			t.Fatalf("encoding/xml refuses what we take: %v", err)
		}
		for name, tree := range map[string]func([]byte) (string, error){"standard": standardTree, "own": readerTree} {
			got, err := tree(canonical)
			if err != nil || got != want {
				t.Fatalf("%s tree of %s: %v\n%s\nwant\n%s", name, canonical, err, got, want)
			}
		}
	})
}

// Reading what we wrote changes nothing.
func FuzzRoundTrip(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		first, err := Parse(in, nil)
		if err != nil {
			return
		}
		canonical := first.AppendTo(nil, nsClient)
		second, err := Parse(canonical, unlimited)
		if err != nil {
			t.Fatalf("our own form is refused: %v\n%s", err, canonical)
		}
		if again := second.AppendTo(nil, nsClient); !bytes.Equal(again, canonical) || !bytes.Equal(first.Inner, second.Inner) {
			t.Fatalf("changed:\n%s\n%s", canonical, again)
		}
		children, err := AppendChildren(nil, first.Inner, first.Space)
		if err != nil || fmt.Sprint(children) != fmt.Sprint(first.Children) {
			t.Fatalf("children %v %v, want %v", children, err, first.Children)
		}
	})
}

// How the bytes are cut into pieces makes no difference.
func FuzzPieces(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 2000 {
			return
		}
		in = append([]byte(header), in...)
		whole, wholeErr := feed(NewDecoder(nil), string(in), len(in))
		for _, size := range []int{1, 2, 3, 5, 11} {
			d := NewDecoder(nil)
			pieces, err := feed(d, string(in), size)
			a, b := strings.Join(dropRepeated(whole), "\n"), strings.Join(dropRepeated(pieces), "\n")
			late := err == nil && d.Pending() > 0 // an unfinished tag is looked at again only when it may be complete
			if a != b || !late && fmt.Sprint(err) != fmt.Sprint(wholeErr) {
				t.Fatalf("in pieces of %d: %v\n%s\nwhole: %v\n%s", size, err, b, wholeErr, a)
			}
		}
	})
}

// The readers of canonical bytes trust nobody either.
func FuzzReader(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		if children, err := AppendChildren(nil, in, nsClient); err == nil {
			for _, c := range children {
				if c.Start < 0 || c.End <= c.Start || c.End > len(in) {
					t.Fatalf("child %+v of %d bytes", c, len(in))
				}
			}
		}
		r := NewReader(in, nsClient)
		for n := 0; ; n++ {
			if _, err := r.Next(); err != nil {
				break
			}
			if n > 2*len(in) {
				t.Fatal("the reader does not advance")
			}
		}
	})
}

// standardTree renders what encoding/xml reads, where jabber:client is the default namespace in scope.
func standardTree(b []byte) (string, error) {
	const open, end = `<root xmlns="` + nsClient + `">`, `</root>`
	b = bytes.TrimSpace(bytes.TrimPrefix(b, []byte("\uFEFF")))
	if bytes.HasPrefix(b, []byte("<?xml")) {
		_, b, _ = bytes.Cut(b, []byte("?>"))
	}
	d := xml.NewDecoder(strings.NewReader(open + string(b) + end))
	tree := &strings.Builder{}
	for {
		tok, err := d.Token()
		if err == io.EOF {
			return inRoot(tree.String()), nil
		}
		if err != nil {
			return "", err
		}
		switch tok := tok.(type) {
		case xml.StartElement:
			fmt.Fprintf(tree, "<{%s}%s", tok.Name.Space, tok.Name.Local)
			for _, a := range tok.Attr {
				if a.Name.Space != "xmlns" && (a.Name.Space != "" || a.Name.Local != "xmlns") {
					fmt.Fprintf(tree, " {%s}%s=%q", a.Name.Space, a.Name.Local, normalised(a.Value))
				}
			}
			tree.WriteString(">")
		case xml.EndElement:
			tree.WriteString("</>")
		case xml.CharData:
			fmt.Fprintf(tree, "%s", quoted(string(tok)))
		}
	}
}

// quoted renders text so that pieces of it join without a seam.
func quoted(s string) string {
	q := fmt.Sprintf("%q", s)
	return strings.ReplaceAll(q[1:len(q)-1], "<", `\<`)
}

// normalised undoes the one difference: encoding/xml does not normalise white space in attribute values.
func normalised(s string) string {
	return strings.NewReplacer("\n", " ", "\t", " ", "\r", " ").Replace(s)
}

func inRoot(tree string) string {
	tree = strings.TrimSuffix(strings.TrimPrefix(tree, "<{"+nsClient+"}root>"), "</>")
	return strings.TrimSpace(tree)
}

// readerTree renders what our Reader reads.
func readerTree(b []byte) (string, error) {
	r := NewReader(b, nsClient)
	tree := &strings.Builder{}
	for {
		tok, err := r.Next()
		if err == io.EOF {
			return tree.String(), nil
		}
		if err != nil {
			return "", err
		}
		switch tok.Kind {
		case StartTag:
			fmt.Fprintf(tree, "<{%s}%s", tok.Space, tok.Local)
			for _, a := range tok.Attrs {
				space := a.Space
				fmt.Fprintf(tree, " {%s}%s=%q", space, a.Local, normalised(a.Value))
			}
			tree.WriteString(">")
		case EndTag:
			tree.WriteString("</>")
		case Text:
			tree.WriteString(quoted(tok.Text))
		}
	}
}
