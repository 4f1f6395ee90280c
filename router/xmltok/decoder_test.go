package xmltok

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"muster/internal/fault"
)

const header = `<?xml version='1.0'?><stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' to='example.com' version='1.0'>`

// chat is the 300-byte stanza of the benchmarks.
const chat = `<message type="chat" to="romeo.montague@example.net/balcony" id="ac7b3f8e-52d1" xml:lang="en">` +
	`<body>Art thou not Romeo, and a Montague? Neither, fair saint.</body>` +
	`<active xmlns="http://jabber.org/protocol/chatstates"/><request xmlns="urn:xmpp:receipts"/>` +
	`<origin-id xmlns="urn:xmpp:sid:0" id="ac7b3f8e-52d1"/></message>`

// feed gives the decoder in in pieces of size bytes, and renders every item.
func feed(d *Decoder, in string, size int) (items []string, err error) {
	for len(in) > 0 {
		piece := []byte(in[:min(size, len(in))])
		in = in[len(piece):]
		for {
			n, item, err := d.Next(piece)
			if err != nil {
				return items, err
			}
			piece = piece[n:]
			if item.Kind == None {
				if len(piece) > 0 {
					return items, fmt.Errorf("None with %d bytes left", len(piece))
				}
				break
			}
			items = append(items, render(&item))
		}
	}
	return items, nil
}

// render shows an item as one line; runs of white space are one keep-alive or several, by how they arrive.
func render(i *Item) string {
	switch i.Kind {
	case StreamOpen:
		return "open {" + i.Space + "}" + i.Local + " of " + i.Default + string(AppendAttrs(nil, i.Attrs))
	case StreamClose:
		return "close"
	case Whitespace:
		return "space"
	}
	s := string(i.AppendTo(nil, nsClient))
	for _, c := range i.Children {
		s += fmt.Sprintf(" [{%s}%s %s]", c.Space, c.Local, i.Inner[c.Start:c.End])
	}
	return s
}

func stream(t *testing.T, o *Options) *Decoder {
	t.Helper()
	d := NewDecoder(o)
	if _, err := feed(d, header, 1<<20); err != nil {
		t.Fatalf("header: %v", err)
	}
	return d
}

func TestStream(t *testing.T) {
	in := "\uFEFF" + header + " \n" + chat + "<presence/> <r xmlns='urn:xmpp:sm:3'/></stream:stream>ignored<"
	want := []string{
		`open {http://etherx.jabber.org/streams}stream of jabber:client to="example.com" version="1.0"`,
		"space",
		chat + ` [{jabber:client}body <body>Art thou not Romeo, and a Montague? Neither, fair saint.</body>]` +
			` [{http://jabber.org/protocol/chatstates}active <active xmlns="http://jabber.org/protocol/chatstates"/>]` +
			` [{urn:xmpp:receipts}request <request xmlns="urn:xmpp:receipts"/>]` +
			` [{urn:xmpp:sid:0}origin-id <origin-id xmlns="urn:xmpp:sid:0" id="ac7b3f8e-52d1"/>]`,
		"<presence/>",
		"space",
		`<r xmlns="urn:xmpp:sm:3"/>`,
		"close",
	}
	for size := 1; size <= len(in); size++ {
		got, err := feed(NewDecoder(nil), in, size)
		if err != nil {
			t.Fatalf("in pieces of %d: %v", size, err)
		}
		if size < 3 { // the two bytes of white space may come as two items
			got = dropRepeated(got)
		}
		if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w && strings.Join(dropRepeated(got), "\n") != w {
			t.Fatalf("in pieces of %d:\n%s\nwant\n%s", size, g, w)
		}
	}
}

func dropRepeated(items []string) (out []string) {
	for i, s := range items {
		if s != "space" || i == 0 || items[i-1] != "space" {
			out = append(out, s)
		}
	}
	return out
}

func TestCanonicalForm(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"as it is", `<message><body>hi</body></message>`, ``},
		{"single quotes", `<message to='a@b' ><body a='x"y'/></message >`, `<message to="a@b"><body a="x&quot;y"/></message>`},
		{"empty element", `<message><body></body></message>`, `<message><body/></message>`},
		{"empty top", `<message></message>`, `<message/>`},
		{"references", `<a>&#65;&#x42;&lt;&gt;&amp;&quot;&apos;&#13;&#x1F600;</a>`, `<a>AB&lt;&gt;&amp;"'&#13;😀</a>`},
		{"references in a value", `<a b="&#10;&#9;&#13;&lt;&gt;&amp;&quot;&apos;é"/>`, `<a b="&#10;&#9;&#13;&lt;&gt;&amp;&quot;'é"/>`},
		{"white space in a value", "<a b='1\n2\t3\r\n4\r5'/>", `<a b="1 2 3 4 5"/>`},
		{"line ends", "<a>1\r\n2\r3\n4</a>", "<a>1\n2\n3\n4</a>"},
		{"greater-than", `<a>x > y ]] &gt;</a>`, `<a>x &gt; y ]] &gt;</a>`},
		{"CDATA", `<a>1<![CDATA[<b>&amp;]]]]><![CDATA[>]]>2</a>`, `<a>1&lt;b&gt;&amp;amp;]]&gt;2</a>`},
		{"CDATA only", `<a><![CDATA[]]></a>`, `<a/>`},
		{"CDATA line ends", "<a><![CDATA[x\r\ny\rz\r]]></a>", "<a>x\ny\nz\n</a>"},
		{"default namespaces", `<a><b xmlns='u:1'><c/><d xmlns='u:2'/></b></a>`, `<a><b xmlns="u:1"><c/><d xmlns="u:2"/></b></a>`},
		{"needless declaration", `<a xmlns='jabber:client'><b xmlns='jabber:client' xmlns:q='unused'/></a>`, `<a><b/></a>`},
		{"no namespace", `<a><b xmlns=''><c/></b></a>`, `<a><b xmlns=""><c/></b></a>`},
		{"prefixed elements", `<a xmlns:p='u:1'><p:b><p:c/><d/></p:b></a>`, `<a><b xmlns="u:1"><c/><d xmlns="jabber:client"/></b></a>`},
		{"prefix of the stream", `<stream:features><x/></stream:features>`,
			`<features xmlns="http://etherx.jabber.org/streams"><x xmlns="jabber:client"/></features>`},
		{"prefixed attributes", `<a xmlns:p='u:1' xmlns:q='u:2'><b p:x='1' y='2' q:x='3' p:z='4' xml:lang='de'/></a>`,
			`<a><b xmlns:p="u:1" p:x="1" y="2" xmlns:q="u:2" q:x="3" p:z="4" xml:lang="de"/></a>`},
		{"prefix rebound", `<a xmlns:p='u:1'><p:b xmlns:p='u:2'><p:c/></p:b><p:d/></a>`, `<a><b xmlns="u:2"><c/></b><d xmlns="u:1"/></a>`},
		{"declaration ends with its element", `<a><b xmlns='u:1'/><c/></a>`, `<a><b xmlns="u:1"/><c/></a>`},
		{"names beyond ASCII", `<a><bé:é xmlns:bé='u:1' dé='x'/></a>`, `<a><é xmlns="u:1" dé="x"/></a>`},
		{"xml declared as itself", `<a><b xmlns:xml='http://www.w3.org/XML/1998/namespace' xml:space='preserve'/></a>`, `<a><b xml:space="preserve"/></a>`},
		{"namespace with escapes", `<a><b xmlns='u:1?a=1&amp;b="'/></a>`, `<a><b xmlns="u:1?a=1&amp;b=&quot;"/></a>`},
		{"text around children", `<a> <b/>x<c/> </a>`, ``},
		{"white space in tags", "<a\n\tb = '1'\r\n>\n<c\n/></a\n>", "<a b=\"1\">\n<c/></a>"},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := c.want
			if want == "" {
				want = c.in
			}
			for size := 1; size <= len(c.in); size++ {
				d := stream(t, nil)
				var got []byte
				for in := []byte(c.in); len(in) > 0; in = in[min(size, len(in)):] {
					n, item, err := d.Next(in[:min(size, len(in))])
					if err != nil {
						t.Fatalf("in pieces of %d: %v", size, err)
					}
					if item.Kind == Element {
						got = item.AppendTo(nil, nsClient)
					}
					if item.Kind != None && len(in) > size || n != min(size, len(in)) {
						t.Fatalf("in pieces of %d: item after %d bytes too early", size, n)
					}
				}
				if string(got) != want {
					t.Fatalf("in pieces of %d: got %s, want %s", size, got, want)
				}
			}
			again, err := Parse([]byte(want), nil)
			if err != nil || string(again.AppendTo(nil, nsClient)) != want {
				t.Errorf("not a fixed point: %s, %v", again.AppendTo(nil, nsClient), err)
			}
		})
	}
}

// rejections is every refusal, by what stands where a stanza may stand.
var rejections = []struct {
	name, in string
	want     *Error
}{
	{"comment", `<!-- x -->`, ErrRestricted},
	{"comment inside", `<a><!-- x --></a>`, ErrRestricted},
	{"processing instruction", `<?php x?>`, ErrRestricted},
	{"processing instruction inside", `<a><?x y?></a>`, ErrRestricted},
	{"second XML declaration", `<?xml version='1.0'?>`, ErrRestricted},
	{"document type", `<!DOCTYPE x [<!ENTITY lol "lol">]>`, ErrRestricted},
	{"document type inside", `<a><!DOCTYPE x></a>`, ErrRestricted},
	{"CDATA outside", `<![CDATA[x]]>`, ErrRestricted},
	{"nearly CDATA", `<a><![CDATX[x]]></a>`, ErrRestricted},
	{"entity", `<a>&lol;</a>`, ErrRestricted},
	{"entity in a value", `<a b='&lol;'/>`, ErrRestricted},
	{"named entity of HTML", `<a>&nbsp;</a>`, ErrRestricted},
	{"ampersand", `<a>fish & chips</a>`, ErrNotWellFormed},
	{"ampersand at the end", `<a>x&</a>`, ErrNotWellFormed},
	{"empty reference", `<a>&;</a>`, ErrNotWellFormed},
	{"long reference", `<a>&aaaaaaaaaaaaaaaaaaaa;</a>`, ErrNotWellFormed},
	{"reference to a surrogate", `<a>&#xD800;</a>`, ErrNotWellFormed},
	{"reference to zero", `<a>&#0;</a>`, ErrNotWellFormed},
	{"reference to a control character", `<a>&#1;</a>`, ErrNotWellFormed},
	{"reference to a non-character", `<a>&#xFFFE;</a>`, ErrNotWellFormed},
	{"reference beyond Unicode", `<a>&#x110000;</a>`, ErrNotWellFormed},
	{"reference that overflows", `<a>&#99999999999;</a>`, ErrNotWellFormed},
	{"reference without digits", `<a>&#;</a>`, ErrNotWellFormed},
	{"reference without hex digits", `<a>&#x;</a>`, ErrNotWellFormed},
	{"reference with capital X", `<a>&#X41;</a>`, ErrNotWellFormed},
	{"reference with letters", `<a>&#4a;</a>`, ErrNotWellFormed},
	{"wrong end tag", `<a></b>`, ErrNotWellFormed},
	{"longer end tag", `<a></ab>`, ErrNotWellFormed},
	{"end tag with another prefix", `<a xmlns:p='u' xmlns:q='u'><p:b></q:b></a>`, ErrNotWellFormed},
	{"end tag with an attribute", `<a></a b='c'>`, ErrNotWellFormed},
	{"wrong end of stream", `</stream>`, ErrNotWellFormed},
	{"text between stanzas", `hello`, ErrNotWellFormed},
	{"control character", "<a>\x01</a>", ErrNotWellFormed},
	{"zero byte", "<a>\x00</a>", ErrNotWellFormed},
	{"control character in a value", "<a b='\x02'/>", ErrNotWellFormed},
	{"control character in CDATA", "<a><![CDATA[\x03]]></a>", ErrNotWellFormed},
	{"non-character", "<a>\uFFFF</a>", ErrNotWellFormed},
	{"invalid UTF-8", "<a>\xFF</a>", ErrBadEncoding},
	{"overlong UTF-8", "<a>\xC0\xAF</a>", ErrBadEncoding},
	{"surrogate in UTF-8", "<a>\xED\xA0\x80</a>", ErrBadEncoding},
	{"cut UTF-8", "<a>\xE2\x82</a>", ErrBadEncoding},
	{"cut UTF-8 in CDATA", "<a><![CDATA[\xE2\x82]]></a>", ErrBadEncoding},
	{"invalid UTF-8 in a value", "<a b='\x80'/>", ErrBadEncoding},
	{"invalid UTF-8 between stanzas", "\xFF\xFF\xFF\xFF", ErrBadEncoding},
	{"invalid UTF-8 in a name", "<a\xFF/>", ErrNotWellFormed},
	{"end of CDATA in text", `<a>x]]>y</a>`, ErrNotWellFormed},
	{"end of CDATA after a bracket", `<a>]]]></a>`, ErrNotWellFormed},
	{"name with a digit first", `<1a/>`, ErrNotWellFormed},
	{"name with a hyphen first", `<-a/>`, ErrNotWellFormed},
	{"no name", `< a/>`, ErrNotWellFormed},
	{"colon first", `<:a/>`, ErrNotWellFormed},
	{"colon last", `<a:/>`, ErrNotWellFormed},
	{"two colons", `<a:b:c/>`, ErrNotWellFormed},
	{"local name with a digit first", `<a xmlns:p='u'><p:1/></a>`, ErrNotWellFormed},
	{"name with a symbol", `<a×/>`, ErrNotWellFormed},
	{"attribute without value", `<a b/>`, ErrNotWellFormed},
	{"attribute without quotes", `<a b=c/>`, ErrNotWellFormed},
	{"attributes without a space", `<a b='1'c='2'/>`, ErrNotWellFormed},
	{"less-than in a value", `<a b='<'/>`, ErrNotWellFormed},
	{"less-than in a tag", `<a <b/>`, ErrNotWellFormed},
	{"slash in a tag", `<a / >`, ErrNotWellFormed},
	{"duplicate attribute", `<a b='1' b='2'/>`, ErrNotWellFormed},
	{"duplicate by expanded name", `<a xmlns:p='u' xmlns:q='u' p:b='1' q:b='2'/>`, ErrNotWellFormed},
	{"duplicate declaration", `<a xmlns='u' xmlns='u'/>`, ErrNotWellFormed},
	{"undeclared prefix", `<p:a/>`, ErrBadNamespacePrefix},
	{"undeclared prefix of an attribute", `<a p:b='1'/>`, ErrBadNamespacePrefix},
	{"prefix out of scope", `<a><b xmlns:p='u'/><p:c/></a>`, ErrBadNamespacePrefix},
	{"prefix undeclared", `<a xmlns:p=''/>`, ErrBadNamespacePrefix},
	{"xml redeclared", `<a xmlns:xml='u'/>`, ErrBadNamespacePrefix},
	{"xml by another name", `<a xmlns:p='http://www.w3.org/XML/1998/namespace'/>`, ErrBadNamespacePrefix},
	{"xml as default", `<a xmlns='http://www.w3.org/XML/1998/namespace'/>`, ErrBadNamespacePrefix},
	{"element named xml:", `<a><xml:b/></a>`, ErrBadNamespacePrefix},
	{"element named xmlns", `<a><xmlns/></a>`, ErrBadNamespacePrefix},
	{"long name with two colons", "<a:" + strings.Repeat("b", 300) + ":c/>", ErrTooLarge},
	{"xmlns declared", `<a xmlns:xmlns='u'/>`, ErrBadNamespacePrefix},
	{"xmlns by another name", `<a xmlns:p='http://www.w3.org/2000/xmlns/'/>`, ErrBadNamespacePrefix},
	{"xmlns as a prefix", `<xmlns:a/>`, ErrBadNamespacePrefix},
	{"too deep", strings.Repeat("<a>", 33), ErrTooLarge},
	{"too many attributes", "<a" + attributes("b", 65) + "/>", ErrTooLarge},
	{"too many declarations", "<a><b" + attributes("xmlns:p", 20) + "/><c" + attributes("xmlns:p", 13) + "/></a>", ErrTooLarge},
	{"too many elements", "<a>" + strings.Repeat("<b/>", 4096) + "</a>", ErrTooLarge},
	{"name too long", "<" + strings.Repeat("a", 257) + "/>", ErrTooLarge},
	{"attribute name too long", "<a " + strings.Repeat("a", 257) + "='1'/>", ErrTooLarge},
	{"too many bytes", "<a>" + strings.Repeat("x", DefaultMaxBytes) + "</a>", ErrTooLarge},
	{"too many bytes in a value", "<a b='" + strings.Repeat("x", DefaultMaxBytes) + "'/>", ErrTooLarge},
	{"too many spaces in an end tag", "<a></a" + strings.Repeat(" ", DefaultMaxBytes) + ">", ErrTooLarge},
}

func attributes(name string, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, " %s%d='u%d'", name, i, i)
	}
	return b.String()
}

func TestRejections(t *testing.T) {
	for _, c := range rejections {
		t.Run(c.name, func(t *testing.T) {
			sizes := []int{len(c.in), 1, 2, 3, 7, 4096}
			for _, size := range sizes {
				d := stream(t, nil)
				_, err := feed(d, c.in, size)
				if !errors.Is(err, c.want) {
					t.Fatalf("in pieces of %d: %v, want %v", size, err, c.want)
				}
				if _, _, again := d.Next([]byte("<a/>")); again != err {
					t.Errorf("after the error: %v", again)
				}
				if d.w != nil {
					t.Error("a broken stream holds a buffer")
				}
			}
		})
	}
}

func TestAtTheLimit(t *testing.T) {
	for _, c := range []struct{ name, in string }{
		{"depth", strings.Repeat("<a>", 32) + strings.Repeat("</a>", 32)},
		{"attributes", "<a" + attributes("b", 64) + "/>"},
		{"declarations", "<a" + attributes("xmlns:p", 32) + "/>"},
		{"elements", "<a>" + strings.Repeat("<b/>", 4095) + "</a>"},
		{"name", "<" + strings.Repeat("a", 256) + "/>"},
		{"bytes", "<a>" + strings.Repeat("x", DefaultMaxBytes-7) + "</a>"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, size := range []int{len(c.in), 1, 1000} {
				d := stream(t, nil)
				items, err := feed(d, c.in+c.in, size)
				if err != nil || len(items) != 2 {
					t.Fatalf("in pieces of %d: %d items, %v", size, len(items), err)
				}
			}
		})
	}
}

func TestHeaders(t *testing.T) {
	const root = `<stream:stream xmlns:stream='http://etherx.jabber.org/streams'`
	for _, c := range []struct {
		name, in string
		want     error
		items    int
	}{
		{"plain", root + ">", nil, 1},
		{"declaration", `<?xml version="1.0" encoding='utf-8' standalone="yes" ?>` + "\n" + root + ">", nil, 1},
		{"spaces before the declaration", " \r\n" + header, nil, 1},
		{"other root", `<foo>`, nil, 1},
		{"root that looks like a declaration", `<xmlfoo>`, nil, 1},
		{"empty root", root + "/>", nil, 2},
		{"Latin-1", `<?xml version='1.0' encoding='ISO-8859-1'?>` + root, ErrBadEncoding, 0},
		{"UTF-16 mark", "\xFF\xFE<\x00", ErrBadEncoding, 0},
		{"XML 1.1", `<?xml version='1.1'?>` + root, ErrNotWellFormed, 0},
		{"declaration without version", `<?xml encoding='UTF-8'?>` + root, ErrNotWellFormed, 0},
		{"declaration out of order", `<?xml encoding='UTF-8' version='1.0'?>` + root, ErrNotWellFormed, 0},
		{"declaration with a bad word", `<?xml version='1.0' standalone='perhaps'?>` + root, ErrNotWellFormed, 0},
		{"declaration without quotes", `<?xml version=1.0?>` + root, ErrNotWellFormed, 0},
		{"declaration without end", `<?xml version='1.0'` + strings.Repeat(" ", 200), ErrNotWellFormed, 0},
		{"declaration unfinished value", `<?xml version='1.0?>` + root, ErrNotWellFormed, 0},
		{"two declarations", `<?xml version='1.0'?><?xml version='1.0'?>` + root, ErrRestricted, 0},
		{"style sheet", `<?xml-stylesheet href='x'?>` + root, ErrRestricted, 0},
		{"document type", `<!DOCTYPE stream>` + root, ErrRestricted, 0},
		{"comment", `<!---->` + root, ErrRestricted, 0},
		{"HTTP", "GET / HTTP/1.1\r\n", ErrNotWellFormed, 0},
		{"TLS hello", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", ErrNotWellFormed, 0},
		{"end tag", `</stream:stream>`, ErrNotWellFormed, 0},
		{"undeclared prefix", `<stream:stream>`, ErrBadNamespacePrefix, 0},
		{"endless spaces", strings.Repeat(" ", DefaultMaxBytes+1), ErrTooLarge, 0},
		{"endless header", root + strings.Repeat(" ", DefaultMaxBytes), ErrTooLarge, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, size := range []int{len(c.in), 1, 2, 5} {
				items, err := feed(NewDecoder(nil), c.in, size)
				if !errors.Is(err, c.want) || len(items) != c.items {
					t.Fatalf("in pieces of %d: %d items, %v; want %d, %v", size, len(items), err, c.items, c.want)
				}
			}
		})
	}
}

// After TLS and after SASL the connection starts a new stream.
func TestReset(t *testing.T) {
	d := stream(t, nil)
	if _, err := feed(d, "<a><b", 100); err != nil || d.Pending() != len("<a><b") {
		t.Fatalf("pending %d, %v", d.Pending(), err)
	}
	d.Reset()
	if d.w != nil || d.Pending() != 0 {
		t.Fatal("a reset decoder holds a buffer")
	}
	items, err := feed(d, "\n"+header+"<presence/>", 4)
	if err != nil || len(items) != 2 || items[1] != "<presence/>" {
		t.Fatalf("%q, %v", items, err)
	}
	d.Release()
	if items, err := feed(d, "<presence/>", 4); err != nil || len(items) != 0 {
		t.Errorf("after Release: %q, %v", items, err)
	}
}

// An idle connection must cost nothing.
func TestIdleHoldsNoBuffer(t *testing.T) {
	d := stream(t, nil)
	for _, in := range []string{chat, " ", "<presence/>\n", chat + chat} {
		if _, err := feed(d, in, len(in)); err != nil {
			t.Fatal(err)
		}
		if d.w != nil {
			t.Errorf("a buffer is held after %.20q", in)
		}
	}
	if _, err := feed(d, chat[:100], 100); err != nil || d.w == nil || d.Pending() != 100 {
		t.Errorf("partial stanza: pending %d, %v", d.Pending(), err)
	}
}

func TestOptionsChangeLive(t *testing.T) {
	before := Options{MaxBytes: UnauthenticatedMaxBytes}.WithDefaults()
	big := "<a>" + strings.Repeat("x", 20<<10) + "</a>"
	d := stream(t, before)
	if _, err := feed(d, big, 512); !errors.Is(err, ErrTooLarge) || fault.CodeOf(err) != fault.TooLarge {
		t.Errorf("before authentication: %v", err)
	}
	d = stream(t, before)
	d.SetOptions(&Options{MaxDepth: 128})
	if _, err := feed(d, big, 512); err != nil {
		t.Errorf("after authentication: %v", err)
	}
	if _, err := feed(d, strings.Repeat("<a>", 128)+strings.Repeat("</a>", 128), 512); err != nil {
		t.Errorf("depth 128: %v", err)
	}
	d.SetOptions(&Options{MaxBytes: 100})
	if _, err := feed(d, "<a>"+strings.Repeat("x", 100), 512); !errors.Is(err, ErrTooLarge) {
		t.Errorf("lowered: %v", err)
	}
}

func TestContentNamespace(t *testing.T) {
	d := NewDecoder(&Options{Content: "jabber:server"})
	in := strings.Replace(header, "jabber:client", "jabber:server", 1) + "<message><body>x</body><c xmlns='jabber:client'/></message>"
	items, err := feed(d, in, 10)
	if err != nil || len(items) != 2 || !strings.HasPrefix(items[1], "<message><body>x</body><c/></message>") {
		t.Errorf("%q, %v", items, err)
	}
}

func TestParse(t *testing.T) {
	for _, c := range []struct {
		name, in, want string
		err            error
	}{
		{"one", " <message><body>x</body></message>\n", "<message><body>x</body></message> [{jabber:client}body <body>x</body>]", nil},
		{"namespace", `<q xmlns='u'><x/></q>`, `<q xmlns="u"><x/></q> [{u}x <x/>]`, nil},
		{"declaration", `<?xml version='1.0'?><a/>`, `<a/>`, nil},
		{"nothing", "", "", ErrNotWellFormed},
		{"spaces", "  ", "", ErrNotWellFormed},
		{"two", "<a/><b/>", "", ErrNotWellFormed},
		{"incomplete", "<a><b/>", "", ErrNotWellFormed},
		{"incomplete tag", "<a", "", ErrNotWellFormed},
		{"trailing text", "<a/>x", "", ErrNotWellFormed},
		{"end tag", "</a>", "", ErrNotWellFormed},
		{"comment", "<!-- --><a/>", "", ErrRestricted},
	} {
		t.Run(c.name, func(t *testing.T) {
			item, err := Parse([]byte(c.in), nil)
			if !errors.Is(err, c.err) {
				t.Fatalf("%v, want %v", err, c.err)
			}
			if err == nil && render(&item) != c.want {
				t.Errorf("%s, want %s", render(&item), c.want)
			}
		})
	}
}

func TestItemAttributes(t *testing.T) {
	item, err := Parse([]byte(`<message xmlns:p='u' p:to='wrong' to='a@b' xml:lang='de' id='1'/>`), nil)
	if err != nil {
		t.Fatal(err)
	}
	if item.Attr("to") != "a@b" || item.Lang() != "de" || item.Attr("id") != "1" || item.Attr("from") != "" {
		t.Errorf("%+v", item.Attrs)
	}
	if got := string(item.AppendTo(nil, nsClient)); got != `<message xmlns:p0="u" p0:to="wrong" to="a@b" xml:lang="de" id="1"/>` {
		t.Error(got)
	}
	if plain, err := Parse([]byte(`<a/>`), nil); err != nil || plain.Lang() != "" {
		t.Error(plain, err)
	}
}

func TestEscaping(t *testing.T) {
	for _, c := range []struct{ in, text, attr string }{
		{"plain", "plain", "plain"},
		{`a&b<c>d"e'f`, `a&amp;b&lt;c&gt;d"e'f`, `a&amp;b&lt;c&gt;d&quot;e'f`},
		{"1\n2\t3\r4", "1\n2\t3&#13;4", "1&#10;2&#9;3&#13;4"},
		{"é😀\uFFFD", "é😀\uFFFD", "é😀\uFFFD"},
		{"\x00\x1f\xff\xed\xa0\x80\uFFFE", "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD", "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD"},
	} {
		if got := string(AppendText(nil, c.in)); got != c.text {
			t.Errorf("text %q: %q, want %q", c.in, got, c.text)
		}
		if got := string(AppendAttr(nil, c.in)); got != c.attr {
			t.Errorf("attribute %q: %q, want %q", c.in, got, c.attr)
		}
	}
}

func TestErrorClasses(t *testing.T) {
	err := error(ErrTooLarge.because("too deep"))
	if !errors.Is(err, ErrTooLarge) || errors.Is(err, ErrRestricted) || errors.Is(err, fault.New(fault.TooLarge, "", "", "")) {
		t.Error("classes are confused")
	}
	if err.Error() != "limit exceeded: too deep" || ErrTooLarge.Error() != "limit exceeded" {
		t.Error(err)
	}
	if fault.CodeOf(ErrRestricted) != fault.BadRequest || fault.Public(err) != err.Error() {
		t.Error(fault.Public(err))
	}
}

func TestBytesNotKept(t *testing.T) {
	d := stream(t, nil)
	in := []byte(chat)
	_, item, err := d.Next(in)
	if err != nil {
		t.Fatal(err)
	}
	want := render(&item)
	copy(in, bytes.Repeat([]byte("#"), len(in)))
	if got := render(&item); got != want {
		t.Errorf("the item changed with the input: %s", got)
	}
}
