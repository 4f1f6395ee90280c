package stanza

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"muster/internal/fault"
	"muster/internal/jid"
	"muster/router/xmltok"
)

const chat = `<message from="juliet@example.com/garden" to="romeo@example.net/balcony" type="chat" id="ac7b3f8e" xml:lang="en">` +
	`<body>Art thou not Romeo?</body><active xmlns="http://jabber.org/protocol/chatstates"/><request xmlns="urn:xmpp:receipts"/></message>`

func mustParse(t testing.TB, s string) *Packet {
	t.Helper()
	p, err := ParsePacket([]byte(s))
	if err != nil {
		t.Fatalf("%s: %v", s, err)
	}
	return p
}

func TestParsePacket(t *testing.T) {
	p := mustParse(t, chat)
	if p.Kind != KindMessage || p.Type != TypeChat || p.ID != "ac7b3f8e" || p.Lang != "en" {
		t.Errorf("head %+v", p)
	}
	if p.From != jid.MustParse("juliet@example.com/garden") || p.To != jid.MustParse("romeo@example.net/balcony") {
		t.Errorf("addresses %v, %v", p.From, p.To)
	}
	if len(p.Children) != 3 || !p.Has(NSReceipts, "request") || !p.Has(NSChatStates, "") || p.Has(NSReceipts, "received") || p.Has("", "body") {
		t.Errorf("children %+v", p.Children)
	}
	body, ok := p.Child(NSClient, "body")
	if !ok || string(p.ChildBytes(body)) != "<body>Art thou not Romeo?</body>" || p.Element(body).Text() != "Art thou not Romeo?" {
		t.Errorf("body %+v", body)
	}
	if got := string(p.AppendTo(nil)); got != chat {
		t.Errorf("written: %s", got)
	}
	if got, size := len(chat), p.Size(); size < got-40 || size > got+80 {
		t.Errorf("size %d of %d bytes", size, got)
	}
}

func TestWriting(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"nothing in it", `<presence/>`, `<presence/>`},
		{"no head", `<presence><show>away</show></presence>`, `<presence><show>away</show></presence>`},
		{"order", `<iq id='1' type='get' to='example.com'><ping xmlns='urn:xmpp:ping'/></iq>`,
			`<iq to="example.com" type="get" id="1"><ping xmlns="urn:xmpp:ping"/></iq>`},
		{"normalised address", `<message to='Romeo@EXAMPLE.net/O&apos;Brien &amp; "x"'/>`, `<message to="romeo@example.net/O'Brien &amp; &quot;x&quot;"/>`},
		{"domain and resource", `<message to='example.net/x'/>`, `<message to="example.net/x"/>`},
		{"escapes", `<message id='&lt;&quot;&#10;' type='&amp;'/>`, `<message type="&amp;" id="&lt;&quot;&#10;"/>`},
		{"other attributes", `<message xmlns:x='u' x:to='a@b' foo='bar' id='1'/>`, `<message id="1"/>`},
		{"many children", `<message><a/><b/><c/><d/><e/><f/></message>`, `<message><a/><b/><c/><d/><e/><f/></message>`},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := mustParse(t, c.in)
			if got := string(p.AppendTo(nil)); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
			same := WithInner(p.Kind, p.Type, p.ID, p.From, p.To, p.Inner)
			if got := string(same.AppendTo(nil)); got != c.want || len(same.Children) != len(p.Children) {
				t.Errorf("built: %s with %d children, want %d", got, len(same.Children), len(p.Children))
			}
		})
	}
}

func TestParseErrors(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     error
	}{
		{"other name", `<messages/>`, nil},
		{"other namespace", `<message xmlns='jabber:server'/>`, nil},
		{"malformed to", `<message to='@example.com'/>`, &Error{}},
		{"malformed from", `<message from='a@'/>`, &Error{}},
		{"empty to", `<message to=''/>`, &Error{}},
		{"malformed XML", `<message>`, xmltok.ErrNotWellFormed},
		{"DTD", `<!DOCTYPE x><message/>`, xmltok.ErrRestricted},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := ParsePacket([]byte(c.in))
			if p != nil || err == nil {
				t.Fatalf("%+v, %v", p, err)
			}
			var se *Error
			switch {
			case c.want == nil && fault.CodeOf(err) != fault.BadRequest:
				t.Error(err)
			case errors.As(c.want, &se) && (!errors.As(err, &se) || se.Condition != JIDMalformed):
				t.Error(err)
			case errors.As(c.want, new(*xmltok.Error)) && !errors.Is(err, c.want):
				t.Error(err)
			}
		})
	}
}

// A stanza with a malformed address must be answered, and so its head is needed.
func TestMalformedAddressKeepsThePacket(t *testing.T) {
	item, err := xmltok.Parse([]byte(`<iq to='a@@b' id='7' type='get'><q xmlns='u'/></iq>`), nil)
	if err != nil {
		t.Fatal(err)
	}
	p, err := FromElement(&item)
	var e *Error
	if p == nil || !errors.As(err, &e) {
		t.Fatalf("%v, %v", p, err)
	}
	want := `<iq type="error" id="7"><error type="modify"><jid-malformed xmlns="urn:ietf:params:xml:ns:xmpp-stanzas"/>` +
		`<text xmlns="urn:ietf:params:xml:ns:xmpp-stanzas" xml:lang="en">malformed address</text></error></iq>`
	if got := string(p.ErrorReply(e).AppendTo(nil)); got != want {
		t.Error(got)
	}
}

// What is kept of a stanza must not keep all of it.
func TestHugeHead(t *testing.T) {
	p := mustParse(t, `<message junk='`+strings.Repeat("x", 5000)+`' to='romeo@example.net' id='1'/>`)
	if p.To.String() != "romeo@example.net" || p.ID != "1" || p.Size() > 200 {
		t.Errorf("%+v", p)
	}
}

func TestHelpers(t *testing.T) {
	p := mustParse(t, chat)
	to := jid.MustParse("romeo@example.net")
	if got := string(p.AppendWithTo(nil, to)); got != strings.Replace(chat, "romeo@example.net/balcony", "romeo@example.net", 1) {
		t.Error(got)
	}
	if got := string(p.AppendWithTo(nil, jid.JID{})); strings.Contains(got, " to=") {
		t.Error(got)
	}
	c := p.Clone()
	c.To, c.ID = to, "2"
	if p.ID != "ac7b3f8e" || p.To == to || &c.Inner[0] != &p.Inner[0] {
		t.Error("a clone's head is not its own, or its body is not shared")
	}
	for typ, want := range map[string]string{"": "normal", "chat": "chat", "headline": "headline", "groupchat": "groupchat", "error": "error", "odd": "normal"} {
		if got := (&Packet{Kind: KindMessage, Type: typ}).MessageType(); got != want {
			t.Errorf("type %q means %q, want %q", typ, got, want)
		}
	}
	if Kind(0).String() != "" || Kind(9).String() != "" || KindIQ.String() != "iq" {
		t.Error("kinds have wrong names")
	}
}

func TestWith(t *testing.T) {
	p := mustParse(t, `<message from="a@x/1" to="b@x" type="chat" id="7" xml:lang="de"><body>a</body><a xmlns="u:1"/><b xmlns="u:2"/></message>`)
	p.Number = 9
	got := p.With([]byte(`<c xmlns="u:3"><d/></c><e xmlns="u:4"/>`))
	want := mustParse(t, `<message from="a@x/1" to="b@x" type="chat" id="7" xml:lang="de"><body>a</body><a xmlns="u:1"/><b xmlns="u:2"/><c xmlns="u:3"><d/></c><e xmlns="u:4"/></message>`)
	want.Number = 9
	if string(got.AppendTo(nil)) != string(want.AppendTo(nil)) || !slices.Equal(got.Children, want.Children) || got.Number != want.Number {
		t.Errorf("got %s %v, want %s %v", got.AppendTo(nil), got.Children, want.AppendTo(nil), want.Children)
	}
	if len(p.Children) != 3 || p.Has("u:3", "") {
		t.Error("the packet itself was changed")
	}
}

func TestPayload(t *testing.T) {
	p := mustParse(t, `<iq type='error' id='1'><error type='cancel'/><query xmlns='u'/></iq>`)
	if c, ok := p.Payload(); !ok || c.Space != "u" || !p.IsError() || p.IsRequest() {
		t.Errorf("%+v", c)
	}
	if _, ok := mustParse(t, `<iq type='result' id='1'/>`).Payload(); ok {
		t.Error("a payload from nowhere")
	}
}

func TestReplies(t *testing.T) {
	iq := mustParse(t, `<iq type='get' id='x1' from='a@b/c' to='d@e'><ping xmlns='urn:xmpp:ping'/></iq>`)
	if !iq.IsRequest() {
		t.Error("a get is a request")
	}
	if got := string(iq.Result(nil).AppendTo(nil)); got != `<iq from="d@e" to="a@b/c" type="result" id="x1"/>` {
		t.Error(got)
	}
	r := iq.Result(NewBuilder("").Leaf("query", NSVersion).Bytes())
	if got := string(r.AppendTo(nil)); got != `<iq from="d@e" to="a@b/c" type="result" id="x1"><query xmlns="jabber:iq:version"/></iq>` || !r.Has(NSVersion, "query") {
		t.Error(got)
	}
	e := iq.ErrorReply(NewError(ServiceUnavailable, ""))
	if got := string(e.AppendTo(nil)); got != `<iq from="d@e" to="a@b/c" type="error" id="x1"><error type="cancel">`+
		`<service-unavailable xmlns="urn:ietf:params:xml:ns:xmpp-stanzas"/></error></iq>` {
		t.Error(got)
	}
	if e.ErrorReply(NewError(BadRequest, "")) != nil || r.ErrorReply(NewError(BadRequest, "")) != nil {
		t.Error("an error or a result was answered with an error")
	}
}

func TestEscape(t *testing.T) {
	if got := string(Escape([]byte("x:"), "<a b=\"1\">&\x00")); got != "x:&lt;a b=&quot;1&quot;&gt;&amp;\uFFFD" {
		t.Error(got)
	}
}

func TestBinary(t *testing.T) {
	for _, s := range []string{
		chat, `<presence/>`, `<presence from='a@b/c' type='unavailable'/>`, `<message> <a/> x <b xmlns='u'>y</b> </message>`,
		`<message><a/><b/><c/><d/><e/><f/></message>`, `<message>only text</message>`,
	} {
		p := mustParse(t, s)
		b := AppendBinary([]byte("before"), p)[len("before"):]
		got, err := DecodeBinary(b)
		if err != nil {
			t.Fatalf("%s: %v", s, err)
		}
		if !bytes.Equal(got.AppendTo(nil), p.AppendTo(nil)) || len(got.Children) != len(p.Children) {
			t.Errorf("%s became %s", s, got.AppendTo(nil))
		}
		for i := range p.Children {
			if p.Children[i] != got.Children[i] {
				t.Errorf("%s: child %+v, want %+v", s, got.Children[i], p.Children[i])
			}
		}
		for cut := range len(b) {
			if _, err := DecodeBinary(b[:cut]); fault.CodeOf(err) != fault.BadRequest {
				t.Fatalf("%s cut to %d bytes: %v", s, cut, err)
			}
		}
	}
}

func TestBinaryRefusals(t *testing.T) {
	good := AppendBinary(nil, mustParse(t, chat))
	change := func(at int, to byte) []byte {
		b := bytes.Clone(good)
		b[at] = to
		return b
	}
	for _, c := range []struct {
		name string
		in   []byte
	}{
		{"empty", nil},
		{"version", change(0, 9)},
		{"kind 0", change(1, 0)},
		{"kind 4", change(1, 4)},
		{"length beyond the end", change(3, 0x7f)},
		{"endless length", append([]byte{1, 1, 0}, bytes.Repeat([]byte{0xff}, 20)...)},
		{"more after it", append(bytes.Clone(good), 0)},
		{"too large", make([]byte, MaxBinary+1)},
		{"a million children", append(AppendBinary(nil, &Packet{Kind: KindMessage})[:13], 0xc0, 0x84, 0x3d)},
		{"child of nothing", append(AppendBinary(nil, &Packet{Kind: KindMessage})[:13], 1, 0, 0, 0, 0)},
		{"child that is text", AppendBinary(nil, &Packet{Kind: KindMessage, Inner: []byte("text"), Children: []Child{{Start: 1, End: 3}}})},
	} {
		if p, err := DecodeBinary(c.in); fault.CodeOf(err) != fault.BadRequest {
			t.Errorf("%s: %+v, %v", c.name, p, err)
		}
	}
}

func FuzzDecodeBinary(f *testing.F) {
	f.Add(AppendBinary(nil, mustParse(f, chat)))
	f.Add(AppendBinary(nil, mustParse(f, `<presence to='a@b'/>`)))
	f.Add(AppendBinary(nil, mustParse(f, `<iq id='1' type='set'>x<a/>y<b/><c/><d/><e/></iq>`)))
	f.Fuzz(func(t *testing.T, in []byte) {
		p, err := DecodeBinary(in)
		if err != nil {
			return
		}
		for _, c := range p.Children {
			if len(p.ChildBytes(c)) == 0 {
				t.Fatal("an empty child")
			}
			p.Element(c) // bytes of a broken peer are no reason to panic
		}
		again, err := DecodeBinary(AppendBinary(nil, p))
		if err != nil || !bytes.Equal(again.AppendTo(nil), p.AppendTo(nil)) {
			t.Fatalf("not the same again: %v", err)
		}
	})
}

func FuzzParsePacket(f *testing.F) {
	f.Add([]byte(chat))
	f.Add([]byte(`<presence to='Ünïcode@example.com/x y'><show>away</show></presence>`))
	f.Add([]byte(`<iq xmlns:p='u' id='&quot;' type='set'> <p:a p:b='c'/><p:c><d/></p:c></iq>`))
	f.Fuzz(func(t *testing.T, in []byte) {
		p, err := ParsePacket(in)
		if err != nil {
			return
		}
		first := p.AppendTo(nil)
		again, err := ParsePacket(first)
		if err != nil {
			var se *Error // a prepared address may fail its own preparation: mellium's bug, but no danger
			if errors.As(err, &se) {
				return
			}
			t.Fatalf("our own form is refused: %v\n%s", err, first)
		}
		if second := again.AppendTo(nil); !bytes.Equal(first, second) {
			t.Fatalf("changed:\n%s\n%s", first, second)
		}
		ValidateClient(p)
		StripForged(p, func(string) bool { return true })
		for _, c := range p.Children {
			if e := p.Element(c); e == nil || e.Local != c.Local || e.Space != c.Space {
				t.Fatalf("child %+v is %+v", c, e)
			}
		}
	})
}

// BenchmarkPacket makes a packet of the bytes of a chat message, and writes it for another recipient.
func BenchmarkPacket(b *testing.B) {
	d := xmltok.NewDecoder(&xmltok.Options{Framed: true})
	in := []byte(chat)
	to := jid.MustParse("romeo@example.net/other")
	var out []byte
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		_, item, err := d.Next(in)
		if err != nil {
			b.Fatal(err)
		}
		p, err := FromElement(&item)
		if err != nil {
			b.Fatal(err)
		}
		out = p.AppendWithTo(out[:0], to)
	}
}

func TestAllocations(t *testing.T) {
	d := xmltok.NewDecoder(&xmltok.Options{Framed: true})
	in := []byte(chat)
	n := testing.AllocsPerRun(200, func() {
		_, item, err := d.Next(in)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := FromElement(&item); err != nil {
			t.Fatal(err)
		}
	})
	if n > packetAllocations { // the strings of the head, the packet, its inner bytes
		t.Errorf("%v allocations for a packet, at most %v wanted", n, packetAllocations)
	}
}
