package stanza

import (
	"encoding/xml"
	"errors"
	"io"
	"testing"

	"mellium.im/xmpp/disco/info"

	"muster/internal/jid"
	"muster/router/xmltok"
)

const form = `<query xmlns="jabber:iq:register"><x xmlns="jabber:x:data" type="submit">` +
	`<field var="a"><value>1</value></field><field var="b"><value>2</value><value>3 &amp; 4</value></field></x></query>`

func TestElement(t *testing.T) {
	e, err := ParseElement([]byte(form))
	if err != nil {
		t.Fatal(err)
	}
	x := e.Find(NSData, "x")
	if x.Attr("type") != "submit" || x.Attr("none") != "" || e.Find(NSData, "y") != nil || e.Find(NSData, "") != x {
		t.Errorf("%+v", x)
	}
	fields := x.All(NSData, "field")
	if len(fields) != 2 || len(x.All(NSData, "")) != 2 || fields[1].Attr("var") != "b" {
		t.Fatalf("%+v", fields)
	}
	values := fields[1].Elements()
	if len(values) != 2 || values[1].Text() != "3 & 4" {
		t.Errorf("%+v", values)
	}
	if _, ok := x.LookupAttr("type"); !ok {
		t.Error("an attribute is lost")
	}
	if got := string(e.Append(nil)); got != form {
		t.Error(got)
	}
}

func TestElementIsForgiving(t *testing.T) {
	var none *Element
	if none.Attr("a") != "" || none.Find("u", "a") != nil || none.All("u", "a") != nil || none.Text() != "" || none.Elements() != nil {
		t.Error("a missing element has content")
	}
	p := mustParse(t, `<message><a/></message>`)
	for _, c := range []Child{{}, {Start: 1, End: 4}, {Start: 0, End: 99}, {Start: -1, End: 2}} {
		if p.Element(c) != nil {
			t.Errorf("%+v is no child", c)
		}
	}
}

func TestElementText(t *testing.T) {
	for in, want := range map[string]string{
		`<a/>`: "", `<a>x</a>`: "x", `<a>x<b>no</b>y</a>`: "xy", `<a><b>no</b></a>`: "", `<a><![CDATA[<]]>&gt;</a>`: "<>",
	} {
		e, err := ParseElement([]byte(in))
		if err != nil || e.Text() != want {
			t.Errorf("%s: %q, %v", in, e.Text(), err)
		}
	}
	if _, err := ParseElement([]byte(`<a>`)); !errors.Is(err, xmltok.ErrNotWellFormed) {
		t.Error(err)
	}
}

func TestElementWriting(t *testing.T) {
	e := &Element{Space: "u", Local: "a", Attrs: []Attr{{Space: NSXML, Local: "lang", Value: "de"}, {Space: "v", Local: "b", Value: `"<`}},
		Children: []Node{{Text: "<&"}, {Elem: &Element{Space: "u", Local: "c"}}, {Elem: &Element{Space: NSClient, Local: "d", Children: []Node{{Text: "x"}}}}}}
	want := `<a xmlns="u" xml:lang="de" xmlns:p0="v" p0:b="&quot;&lt;">&lt;&amp;<c/><d xmlns="jabber:client">x</d></a>`
	if got := string(e.Append(nil)); got != want {
		t.Error(got)
	}
	again, err := ParseElement([]byte(want))
	if err != nil || string(again.Append(nil)) != want {
		t.Errorf("%s, %v", again.Append(nil), err)
	}
}

func TestBuilder(t *testing.T) {
	inner := NewBuilder("").
		Open("query", NSRoster, "ver", "12", "empty", "").
		Leaf("item", "", "jid", "a@b", "name", `"Ann" <&>`).
		Open("item", "").Attr("name", "").TextElement("group", "", "Friends & others").Close().
		Close().
		Text("x < y").
		TextElement("body", NSClient, "hi", "xml:lang", "en").
		Open("error", "").Leaf("gone", NSStanzas).Raw([]byte("<z/>")).
		Bytes()
	want := `<query xmlns="jabber:iq:roster" ver="12"><item jid="a@b" name="&quot;Ann&quot; &lt;&amp;&gt;"/>` +
		`<item name=""><group>Friends &amp; others</group></item></query>x &lt; y<body xml:lang="en">hi</body>` +
		`<error><gone xmlns="urn:ietf:params:xml:ns:xmpp-stanzas"/><z/></error>`
	if string(inner) != want {
		t.Errorf("got  %s\nwant %s", inner, want)
	}
	if p := WithInner(KindMessage, "", "", jid.JID{}, jid.JID{}, inner); len(p.Children) != 3 || string(mustParse(t, string(p.AppendTo(nil))).Inner) != want {
		t.Error("what was built is not canonical")
	}
	if got := string(NewBuilder(NSStream).Leaf("r", NSSM).Bytes()); got != `<r xmlns="urn:xmpp:sm:3"/>` {
		t.Error(got)
	}
	if got := string(NewBuilder("").Open("a", "u").Text("").Raw(nil).Bytes()); got != `<a xmlns="u"/>` {
		t.Error(got)
	}
}

func TestBuilderMisuse(t *testing.T) {
	for name, f := range map[string]func(){
		"close without open": func() { NewBuilder("").Close() },
		"late attribute":     func() { NewBuilder("").Open("a", "").Text("x").Attr("b", "c") },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
}

func TestEmbed(t *testing.T) {
	p := mustParse(t, `<message to='a@b'><body>x</body></message>`)
	b := NewBuilder("").Open("sent", NSCarbons).Open("forwarded", NSForward).Embed(p).Bytes()
	want := `<sent xmlns="urn:xmpp:carbons:2"><forwarded xmlns="urn:xmpp:forward:0">` +
		`<message xmlns="jabber:client" to="a@b"><body>x</body></message></forwarded></sent>`
	if string(b) != want {
		t.Error(string(b))
	}
	if got := string(NewBuilder("").Open("x", "").Embed(p).Bytes()); got != `<x><message to="a@b"><body>x</body></message></x>` {
		t.Error(got)
	}
}

// The tokens must be those that encoding/xml makes of the same bytes.
func TestTokenReader(t *testing.T) {
	p := mustParse(t, `<iq id='1' type='result'><query xmlns='http://jabber.org/protocol/disco#info' xmlns:p='u' node='n'>`+
		`<identity category='server' type='im' name='M &amp; Co' xml:lang='en' p:x='y'/><feature var='urn:xmpp:ping'/></query>text</iq>`)
	got, want := xml.NewTokenDecoder(TokenReader(p.Inner)), xml.NewDecoder(&reader{p.Inner})
	for {
		g, gotErr := got.Token()
		w, wantErr := want.Token()
		if gotErr != wantErr {
			t.Fatalf("%v, want %v", gotErr, wantErr)
		}
		if wantErr == io.EOF {
			break
		}
		if name(g) != name(w) {
			t.Errorf("%s, want %s", name(g), name(w))
		}
	}
	var decoded info.Feature
	d := xml.NewTokenDecoder(TokenReader([]byte(`<feature xmlns="http://jabber.org/protocol/disco#info" var="urn:xmpp:ping"/>`)))
	if err := d.Decode(&decoded); err != nil || decoded.Var != NSPing {
		t.Errorf("%+v, %v", decoded, err)
	}
	if _, err := TokenReader([]byte(`<a`)).Token(); !errors.Is(err, xmltok.ErrNotWellFormed) {
		t.Error(err)
	}
}

type reader struct{ b []byte }

func (r *reader) Read(p []byte) (int, error) {
	if len(r.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.b)
	r.b = r.b[n:]
	return n, nil
}

// name renders a token without the declarations, which encoding/xml counts among the attributes.
func name(t xml.Token) string {
	switch t := t.(type) {
	case xml.StartElement:
		s := "<" + t.Name.Space + " " + t.Name.Local
		for _, a := range t.Attr {
			if a.Name.Space != "xmlns" && a.Name.Local != "xmlns" {
				s += " " + a.Name.Space + ":" + a.Name.Local + "=" + a.Value
			}
		}
		return s
	case xml.EndElement:
		return "</" + t.Name.Local
	case xml.CharData:
		return string(t)
	}
	return "?"
}

func FuzzElement(f *testing.F) {
	f.Add([]byte(form))
	f.Add([]byte(`<a xmlns:p='u'><p:b p:c='1' xml:lang='x'>t<c xmlns=''/></p:b></a>`))
	f.Fuzz(func(t *testing.T, in []byte) {
		e, err := ParseElement(in)
		if err != nil {
			return
		}
		first := e.Append(nil)
		item, err := xmltok.Parse(first, &xmltok.Options{MaxBytes: 8 << 20, MaxDecls: 1 << 20, MaxAttrs: 1 << 20})
		if err != nil {
			t.Fatalf("our own form is refused: %v\n%s", err, first)
		}
		again, err := ElementOf(&item)
		if err != nil || string(again.Append(nil)) != string(first) {
			t.Fatalf("changed, %v:\n%s", err, first)
		}
	})
}
