package xmltok

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"
)

// BenchmarkTokenizer reads, validates and rewrites one chat stanza of 300 bytes.
func BenchmarkTokenizer(b *testing.B) {
	d := NewDecoder(nil)
	if _, err := feed(d, header, 1<<20); err != nil {
		b.Fatal(err)
	}
	in := []byte(chat)
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		n, item, err := d.Next(in)
		if err != nil || item.Kind != Element || n != len(in) {
			b.Fatal(n, item.Kind, err)
		}
		if n, item, err = d.Next(nil); err != nil || item.Kind != None || n != 0 { // as a reader does before it waits
			b.Fatal(n, item.Kind, err)
		}
	}
}

// BenchmarkStandardLibrary reads the same stanza with encoding/xml, tokens only.
func BenchmarkStandardLibrary(b *testing.B) {
	in := []byte(chat)
	src := &repeated{text: in}
	d := xml.NewDecoder(src)
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		for depth, seen := 0, false; depth > 0 || !seen; {
			tok, err := d.Token()
			if err != nil {
				b.Fatal(err)
			}
			switch tok.(type) {
			case xml.StartElement:
				depth, seen = depth+1, true
			case xml.EndElement:
				depth--
			}
		}
	}
}

// repeated is a stanza again and again.
type repeated struct {
	text []byte
	at   int
}

func (r *repeated) Read(p []byte) (int, error) {
	n := copy(p, r.text[r.at:])
	r.at = (r.at + n) % len(r.text)
	return n, nil
}

func (r *repeated) ReadByte() (byte, error) {
	c := r.text[r.at]
	r.at = (r.at + 1) % len(r.text)
	return c, nil
}

var _ io.ByteReader = (*repeated)(nil) // so that encoding/xml adds no buffer

// A stanza costs its head string, and nothing per token.
func TestAllocations(t *testing.T) {
	d := stream(t, nil)
	in := []byte(chat)
	if n := testing.AllocsPerRun(200, func() {
		if _, item, err := d.Next(in); err != nil || item.Kind != Element {
			t.Fatal(err)
		}
		if _, _, err := d.Next(nil); err != nil {
			t.Fatal(err)
		}
	}); n > stanzaAllocations {
		t.Errorf("%v allocations for a stanza, at most %v wanted", n, stanzaAllocations)
	}
	many := []byte("<message>" + strings.Repeat(`<x xmlns="jabber:x:data">text<y/><z a="&amp;">é</z></x>`, 30) + "</message>")
	if n := testing.AllocsPerRun(200, func() {
		if _, item, err := d.Next(many); err != nil || item.Kind != Element {
			t.Fatal(err)
		}
	}); n > stanzaAllocations {
		t.Errorf("%v allocations for 90 elements, at most %v wanted", n, stanzaAllocations)
	}
}

// bombs are inputs that cost other parsers dearly (reliability: S1 and S2).
var bombs = []struct {
	name string
	in   func() []byte
	want error
}{
	{"200,000 nested elements", func() []byte { return bytes.Repeat([]byte("<a>"), 200_000) }, ErrTooLarge},
	{"100,000 attributes", func() []byte { return []byte("<a" + attributes("b", 100_000) + "/>") }, ErrTooLarge},
	{"100,000 declarations", func() []byte { return []byte("<a" + attributes("xmlns:b", 100_000) + "/>") }, ErrTooLarge},
	{"a million empty elements", func() []byte { return append([]byte("<a>"), bytes.Repeat([]byte("<b/>"), 1_000_000)...) }, ErrTooLarge},
	{"entity bomb", func() []byte {
		return []byte(`<!DOCTYPE lolz [<!ENTITY lol "lol"><!ENTITY lol2 "` + strings.Repeat("&lol;", 100_000) + `">]><lolz>&lol2;</lolz>`)
	}, ErrRestricted},
	{"ten megabytes of text", func() []byte { return append([]byte("<a>"), bytes.Repeat([]byte("x"), 10<<20)...) }, ErrTooLarge},
	{"ten megabytes of a name", func() []byte { return append([]byte("<"), bytes.Repeat([]byte("x"), 10<<20)...) }, ErrTooLarge},
	{"ten megabytes of a value", func() []byte { return append([]byte("<a b='"), bytes.Repeat([]byte(">"), 10<<20)...) }, ErrTooLarge},
	{"ten megabytes of references", func() []byte { return append([]byte("<a>"), bytes.Repeat([]byte("&#65;"), 2<<20)...) }, ErrTooLarge},
}

func TestBombs(t *testing.T) {
	for _, c := range bombs {
		t.Run(c.name, func(t *testing.T) {
			in := c.in()
			for _, size := range []int{len(in), 4096, 1} {
				d := stream(t, nil)
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				began := time.Now()
				err := explode(d, in, size)
				took := time.Since(began)
				runtime.ReadMemStats(&after)
				if !errors.Is(err, c.want) {
					t.Fatalf("in pieces of %d: %v", size, err)
				}
				if grown := after.TotalAlloc - before.TotalAlloc; grown > 4<<20 {
					t.Errorf("in pieces of %d: %d bytes allocated", size, grown)
				}
				if took > 5*time.Second { // milliseconds are usual; quadratic reading would take minutes
					t.Errorf("in pieces of %d: %v", size, took)
				}
			}
		})
	}
}

// explode feeds until the error.
func explode(d *Decoder, in []byte, size int) error {
	for len(in) > 0 {
		n, _, err := d.Next(in[:min(size, len(in))])
		if err != nil {
			return err
		}
		in = in[n:]
	}
	return nil
}
