package wire

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"muster/internal/fault"
)

const header = `<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' from='a>b'>`

// collect feeds text in pieces of the given size and returns the frames.
func collect(t *testing.T, s *Scanner, text string, size int) []string {
	t.Helper()
	var frames []string
	for chunk := range slices.Chunk([]byte(text), size) {
		err := s.Feed(chunk, func(frame []byte) error {
			frames = append(frames, string(frame))
			return nil
		})
		if err != nil {
			t.Fatalf("Feed: %v", err)
		}
	}
	return frames
}

func TestFeed(t *testing.T) {
	cases := []struct {
		name, text string
		want       []string
	}{
		{"header only", header, []string{header}},
		{"declaration before the header", `<?xml version='1.0'?>` + header, []string{header}},
		{"empty stanza", header + `<r xmlns='urn:xmpp:sm:3'/>`, []string{header, `<r xmlns='urn:xmpp:sm:3'/>`}},
		{"nested", header + `<a><b><c/></b>x</a>`, []string{header, `<a><b><c/></b>x</a>`}},
		{"white space between stanzas", header + " \n<a/> <b></b> ", []string{header, `<a/>`, `<b></b>`}},
		{"angle in an attribute", header + `<a b='>' c="/>"><d e="'>"/></a><f/>`, []string{header, `<a b='>' c="/>"><d e="'>"/></a>`, `<f/>`}},
		{"closing", header + `<a/></stream:stream>`, []string{header, `<a/>`, `</stream:stream>`}},
		{"unfinished stanza", header + `<a><b>`, []string{header}},
		{"unfinished tag", header + `<a b='`, []string{header}},
	}
	for _, c := range cases {
		for _, size := range []int{1, 2, 7, 4096} {
			if got := collect(t, new(Scanner), c.text, size); !slices.Equal(got, c.want) {
				t.Errorf("%s in pieces of %d: got %q, want %q", c.name, size, got, c.want)
			}
		}
	}
}

func TestFeedAfterReset(t *testing.T) {
	s := new(Scanner)
	collect(t, s, header+`<success/>`, 5)
	s.Reset()
	if got := collect(t, s, header+`<a/>`, 5); !slices.Equal(got, []string{header, `<a/>`}) {
		t.Errorf("after Reset: %q", got)
	}
}

func TestNewInside(t *testing.T) {
	if got := collect(t, NewInside(), `<ok/><message>x</message>`, 3); !slices.Equal(got, []string{`<ok/>`, `<message>x</message>`}) {
		t.Errorf("got %q", got)
	}
}

func TestFeedStopsAtAnError(t *testing.T) {
	want := errors.New("enough")
	calls := 0
	err := NewInside().Feed([]byte(`<a/><b/>`), func([]byte) error { calls++; return want })
	if !errors.Is(err, want) || calls != 1 {
		t.Errorf("got %v after %d calls", err, calls)
	}
}

func TestFeedBoundsAStanza(t *testing.T) {
	s := NewInside()
	ignore := func([]byte) error { return nil }
	if err := s.Feed([]byte(`<a>`), ignore); err != nil {
		t.Fatal(err)
	}
	filler := bytes.Repeat([]byte("x"), 1<<20)
	var err error
	for range 5 {
		if err = s.Feed(filler, ignore); err != nil {
			break
		}
	}
	if !fault.Is(err, fault.TooLarge) {
		t.Errorf("five MiB in one stanza: got %v, want too-large", err)
	}
}

func TestFeedKeepsLittle(t *testing.T) {
	s := NewInside()
	stanza := `<message><body>` + strings.Repeat("x", 300) + `</body></message>`
	for range 10_000 {
		collect(t, s, stanza, len(stanza))
	}
	if cap(s.pending) > 4096 {
		t.Errorf("the scanner holds %d bytes after the last stanza was handed out", cap(s.pending))
	}
}

func TestAttr(t *testing.T) {
	cases := []struct{ name, frame, attr, want string }{
		{"single quotes", `<iq type='get' id='x'/>`, "id", "x"},
		{"double quotes", `<iq type="get" id="x"/>`, "type", "get"},
		{"not the suffix of another name", `<iq xid='1' id='2'/>`, "id", "2"},
		{"only the first tag", `<iq type='get'><q id='1'/></iq>`, "id", ""},
		{"a name in a value", `<iq a='id=' id='3'/>`, "id", "3"},
		{"absent", `<iq/>`, "id", ""},
		{"an unfinished tag", `<iq id='x'`, "id", ""},
	}
	for _, c := range cases {
		if got := string(Attr([]byte(c.frame), c.attr)); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

func TestNamed(t *testing.T) {
	cases := []struct {
		frame, name string
		want        bool
	}{
		{`<iq/>`, "iq", true}, {`<iq type='x'/>`, "iq", true}, {`<iq>`, "iq", true}, {"<iq\n a='b'/>", "iq", true},
		{`<iqx/>`, "iq", false}, {`<i/>`, "iq", false}, {``, "iq", false}, {`</stream:stream>`, "/stream:stream", true},
	}
	for _, c := range cases {
		if got := Named([]byte(c.frame), c.name); got != c.want {
			t.Errorf("Named(%q, %q) = %v", c.frame, c.name, got)
		}
	}
}

func TestText(t *testing.T) {
	cases := []struct{ name, frame, element, want string }{
		{"plain", `<a><jid>u@d/r</jid></a>`, "jid", "u@d/r"},
		{"with attributes", `<a><jid x='>'>u</jid></a>`, "jid", "u"},
		{"absent", `<a/>`, "jid", ""},
		{"cut off", `<a><jid`, "jid", ""},
		{"never closed", `<a><jid>u`, "jid", ""},
	}
	for _, c := range cases {
		if got := string(Text([]byte(c.frame), c.element)); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

// FuzzFeed checks that any bytes in any pieces do no harm, and that pieces do not matter.
func FuzzFeed(f *testing.F) {
	f.Add([]byte(header+`<a><b/></a><c d='>'/></stream:stream>`), uint8(3))
	f.Add([]byte(`<<>></></`), uint8(1))
	f.Add([]byte(`</a></b><c/>`), uint8(2))
	f.Fuzz(func(t *testing.T, text []byte, size uint8) {
		frames := func(size int) (all []string, failed bool) {
			s := new(Scanner)
			for chunk := range slices.Chunk(text, size) {
				if s.Feed(chunk, func(frame []byte) error { all = append(all, string(frame)); return nil }) != nil {
					return all, true
				}
			}
			return all, false
		}
		whole, _ := frames(len(text) + 1)
		pieces, _ := frames(int(size) + 1)
		if !slices.Equal(whole, pieces) {
			t.Errorf("whole %q, in pieces %q", whole, pieces)
		}
		for _, frame := range whole {
			Attr([]byte(frame), "id")
			Text([]byte(frame), "body")
		}
	})
}

// TestFramesAreElements compares with encoding/xml: each stanza frame is one well-formed element.
func TestFramesAreElements(t *testing.T) {
	text := header
	for i := range 50 {
		text += `<message to="x" id='` + strings.Repeat("&amp;", i%4) + `'><body>` + strings.Repeat("<b/>&lt;", i%5) + `</body></message>`
	}
	frames := collect(t, new(Scanner), text, 11)
	if len(frames) != 51 {
		t.Fatalf("got %d frames, want 51", len(frames))
	}
	for _, frame := range frames[1:] {
		decoder := xml.NewDecoder(strings.NewReader(frame))
		for {
			if _, err := decoder.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("frame %q: %v", frame, err)
			}
		}
	}
}

func BenchmarkFeed(b *testing.B) {
	stanza := []byte(`<message to='user2@example.test' from="user1@example.test/bench" type='chat' id='m1'><body>` + strings.Repeat("x", 200) + `</body></message>`)
	s := NewInside()
	b.ReportAllocs()
	b.SetBytes(int64(len(stanza)))
	for b.Loop() {
		if err := s.Feed(stanza, func([]byte) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
