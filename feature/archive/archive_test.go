package archive

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"muster/feature/archive/state"
	message "muster/feature/message/state"
	"muster/internal/jid"
	"muster/router/stanza"
)

var (
	alice = jid.MustParse("alice@example.com")
	phone = jid.MustParse("alice@example.com/phone")
)

// form makes a query's form of fields, each "name=value" or "name=value|value".
func form(fields ...string) string {
	var b strings.Builder
	b.WriteString("<x xmlns='jabber:x:data' type='submit'><field var='FORM_TYPE' type='hidden'><value>urn:xmpp:mam:2</value></field>")
	for _, f := range fields {
		name, values, _ := strings.Cut(f, "=")
		fmt.Fprintf(&b, "<field var='%s'>", name)
		for _, v := range strings.Split(values, "|") {
			fmt.Fprintf(&b, "<value>%s</value>", v)
		}
		b.WriteString("</field>")
	}
	return b.String() + "</x>"
}

func set(inner string) string {
	return "<set xmlns='http://jabber.org/protocol/rsm'>" + inner + "</set>"
}

func element(tb testing.TB, xml string) *stanza.Element {
	tb.Helper()
	el, err := stanza.ParseElement([]byte(xml))
	if err != nil {
		tb.Fatal(err)
	}
	return el
}

func TestParseQuery(t *testing.T) {
	usual := message.Query{Owner: alice.String(), MaxBytes: pageBytes, Max: 50}
	with := func(change func(q *message.Query)) message.Query {
		q := usual
		change(&q)
		return q
	}
	at := func(s string) time.Time {
		v, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			t.Fatal(err)
		}
		return v.UTC()
	}
	cases := []struct {
		name, inner string
		want        message.Query
	}{
		{"everything", "", usual},
		{"an empty form", form(), usual},
		{"empty fields", form("with=", "start=", "end=", "before-id=", "after-id=", "include-groupchat="), usual},
		{"without rooms", form("include-groupchat=false"), usual},
		{"with", form("with=Bob@Example.com"), with(func(q *message.Query) { q.With = "bob@example.com" })},
		{"with oneself", form("with=alice@example.com"), with(func(q *message.Query) { q.With = "alice@example.com" })},
		{"with a server", form("with=example.org"), with(func(q *message.Query) { q.With = "example.org" })},
		{"start", form("start=2010-06-07T00:00:00Z"), with(func(q *message.Query) { q.Start = at("2010-06-07T00:00:00Z") })},
		{"start elsewhere", form("start=2010-06-07T02:00:00.5+02:00"), with(func(q *message.Query) { q.Start = at("2010-06-07T00:00:00.5Z") })},
		{"start, too exactly", form("start=2010-06-07T00:00:00.123456789Z"), with(func(q *message.Query) { q.Start = at("2010-06-07T00:00:00.123456Z") })},
		{"end", form("end=2010-06-07T00:00:00Z"), with(func(q *message.Query) { q.End = at("2010-06-07T00:00:00.000000999Z") })},
		{"ids", form("before-id=b", "after-id=a", "ids=1|2| |3"), with(func(q *message.Query) { q.BeforeID, q.AfterID, q.IDs = "b", "a", []string{"1", "2", "3"} })},
		{"max", set("<max>10</max>"), with(func(q *message.Query) { q.Max = 10 })},
		{"none", set("<max> 0 </max>"), with(func(q *message.Query) { q.Max = 0 })},
		{"too many", set("<max>1000000</max>"), with(func(q *message.Query) { q.Max = MaxPage })},
		{"an empty set", set(""), usual},
		{"after", set("<max>5</max><after>x</after>"), with(func(q *message.Query) { q.Max, q.After = 5, "x" })},
		{"after nothing", set("<after/>"), usual},
		{"before", set("<before>x</before>"), with(func(q *message.Query) { q.Before, q.Last = "x", true })},
		{"the last page", set("<before/>"), with(func(q *message.Query) { q.Last = true })},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			req, refusal := parseQuery(element(t, "<query xmlns='urn:xmpp:mam:2' queryid='q1'>"+tc.inner+"</query>"), alice, 50)
			if refusal != nil {
				t.Fatal(refusal)
			}
			if !reflect.DeepEqual(req.Query, tc.want) || req.id != "q1" || req.flip {
				t.Errorf("got %+v, want %+v", req.Query, tc.want)
			}
		})
	}
	req, _ := parseQuery(element(t, "<query xmlns='urn:xmpp:mam:2'><flip-page/></query>"), alice, 50)
	if !req.flip || req.id != "" {
		t.Errorf("flipped: %v, id %q", req.flip, req.id)
	}
}

func TestParseQueryRefuses(t *testing.T) {
	cases := []struct {
		name, inner string
		want        stanza.Condition
	}{
		{"not submitted", "<x xmlns='jabber:x:data' type='form'><field var='FORM_TYPE'><value>urn:xmpp:mam:2</value></field></x>", stanza.BadRequest},
		{"no form type", "<x xmlns='jabber:x:data' type='submit'><field var='with'><value>a@b</value></field></x>", stanza.BadRequest},
		{"another form", "<x xmlns='jabber:x:data' type='submit'><field var='FORM_TYPE'><value>urn:xmpp:mam:1</value></field></x>", stanza.BadRequest},
		{"unknown field", form("{urn:x}text=hello"), stanza.FeatureNotImplemented},
		{"a field twice", form("with=a@b", "with=c@d"), stanza.BadRequest},
		{"two values", form("with=a@b|c@d"), stanza.BadRequest},
		{"no address", form("with=@"), stanza.JIDMalformed},
		{"no date", form("start=now"), stanza.BadRequest},
		{"no time", form("end=2010-06-07"), stanza.BadRequest},
		{"no time zone", form("end=2010-06-07T00:00:00"), stanza.BadRequest},
		{"no ids", form("ids="), stanza.BadRequest},
		{"too many ids", form("ids=" + strings.Repeat("x|", MaxPage) + "x"), stanza.BadRequest},
		{"neither true nor false", form("include-groupchat=maybe"), stanza.BadRequest},
		{"max is no number", set("<max>ten</max>"), stanza.BadRequest},
		{"negative max", set("<max>-1</max>"), stanza.BadRequest},
		{"by index", set("<max>10</max><index>20</index>"), stanza.FeatureNotImplemented},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			_, refusal := parseQuery(element(t, "<query xmlns='urn:xmpp:mam:2'>"+tc.inner+"</query>"), alice, 50)
			if refusal == nil || refusal.Condition != tc.want {
				t.Errorf("refused with %v, want %s", refusal, tc.want)
			}
		})
	}
	if _, refusal := parseQuery(element(t, "<query xmlns='urn:xmpp:mam:2' node='x'/>"), alice, 50); refusal == nil || refusal.Condition != stanza.ItemNotFound {
		t.Errorf("a node: %v", refusal)
	}
}

// TestFullAddress: only messages from or to that very client match.
func TestFullAddress(t *testing.T) {
	between := func(from, to string) *message.Message {
		return &message.Message{XML: []byte("<message from='" + from + "' to='" + to + "'/>")}
	}
	for _, tc := range []struct {
		with, bare string
		yes, no    *message.Message
	}{
		{"bob@example.com/pad", "bob@example.com", between("bob@example.com/pad", "alice@example.com"), between("bob@example.com/tab", "alice@example.com/pad")},
		{"bob@example.com/pad", "bob@example.com", between("alice@example.com/phone", "bob@example.com/pad"), between("alice@example.com/phone", "bob@example.com")},
		{"alice@example.com/phone", "", between("alice@example.com/phone", "bob@example.com"), between("bob@example.com/phone", "alice@example.com")},
	} {
		req, refusal := parseQuery(element(t, "<query xmlns='urn:xmpp:mam:2'>"+form("with="+tc.with)+"</query>"), alice, 50)
		if refusal != nil || req.With != tc.bare || req.Match == nil {
			t.Fatalf("%s: with %q, %v", tc.with, req.With, refusal)
		}
		if !req.Match(tc.yes) || req.Match(tc.no) || req.Match(&message.Message{XML: []byte("<")}) {
			t.Errorf("%s: %s matches %v, %s %v", tc.with, tc.yes.XML, req.Match(tc.yes), tc.no.XML, req.Match(tc.no))
		}
	}
}

func TestResult(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 678_901_234, time.UTC)
	for _, tc := range []struct{ name, stored, forwarded string }{
		{"a body", `<message from="bob@example.com/x" to="alice@example.com" type="chat" id="a&amp;b"><body>1 &lt; 2</body><x xmlns="urn:x"><y/></x></message>`,
			`<message xmlns="jabber:client" from="bob@example.com/x" to="alice@example.com" type="chat" id="a&amp;b"><body>1 &lt; 2</body><x xmlns="urn:x"><y/></x><stanza-id xmlns="urn:xmpp:sid:0" by="alice@example.com" id="ID"/></message>`},
		{"nothing inside", `<message from="bob@example.com/x" to="alice@example.com"/>`,
			`<message xmlns="jabber:client" from="bob@example.com/x" to="alice@example.com"><stanza-id xmlns="urn:xmpp:sid:0" by="alice@example.com" id="ID"/></message>`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := &message.Message{Number: 5, Time: at, From: "bob@example.com", To: "alice@example.com", XML: []byte(tc.stored)}
			got := string(result(m, "q<", alice, phone).AppendTo(nil))
			want := `<message from="alice@example.com" to="alice@example.com/phone"><result xmlns="urn:xmpp:mam:2" queryid="q&lt;" id="ID"><forwarded xmlns="urn:xmpp:forward:0"><delay xmlns="urn:xmpp:delay" stamp="2026-01-02T03:04:05.678901Z"/>` +
				tc.forwarded + `</forwarded></result></message>`
			if want = strings.ReplaceAll(want, "ID", m.ID("alice@example.com")); got != want {
				t.Errorf("got\n%s, want\n%s", got, want)
			}
			if string(m.XML) != tc.stored {
				t.Error("the stored bytes were changed")
			}
			if _, err := stanza.ParsePacket([]byte(got)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestFin(t *testing.T) {
	for _, tc := range []struct {
		name           string
		page           message.Page
		back, unstable bool
		want           string
	}{
		{"empty", message.Page{Complete: true, Counted: true}, false, false,
			`<fin xmlns="urn:xmpp:mam:2" complete="true"><set xmlns="http://jabber.org/protocol/rsm"><count>0</count></set></fin>`},
		{"counted, from the end", message.Page{First: "a", Last: "b", Counted: true, Count: 9, Index: 3}, true, false,
			`<fin xmlns="urn:xmpp:mam:2"><set xmlns="http://jabber.org/protocol/rsm"><first>a</first><last>b</last><count>9</count></set></fin>`},
		{"counted", message.Page{First: "a", Last: "b", Counted: true, Count: 9, Index: 3}, false, false,
			`<fin xmlns="urn:xmpp:mam:2"><set xmlns="http://jabber.org/protocol/rsm"><first index="3">a</first><last>b</last><count>9</count></set></fin>`},
		{"large, on a node that is cut off", message.Page{First: "a", Last: "b", Complete: true}, false, true,
			`<fin xmlns="urn:xmpp:mam:2" complete="true" stable="false"><set xmlns="http://jabber.org/protocol/rsm"><first>a</first><last>b</last></set></fin>`},
	} {
		if got := string(fin(&tc.page, tc.back, tc.unstable)); got != tc.want {
			t.Errorf("%s: got\n%s, want\n%s", tc.name, got, tc.want)
		}
	}
}

func TestPreferences(t *testing.T) {
	p, refusal := parsePrefs(element(t, "<prefs xmlns='urn:xmpp:mam:2' default='roster'><always><jid> Bob@example.com </jid><jid>a@b</jid><jid>bob@example.com</jid></always></prefs>"))
	if refusal != nil || p.Default != state.Roster || !slices.Equal(p.Always, []string{"a@b", "bob@example.com"}) || p.Never != nil {
		t.Errorf("read as %+v, %v", p, refusal)
	}
	if got, want := string(renderPrefs(p)), `<prefs xmlns="urn:xmpp:mam:2" default="roster"><always><jid>a@b</jid><jid>bob@example.com</jid></always><never/></prefs>`; got != want {
		t.Errorf("shown as %s, want %s", got, want)
	}
	for inner, want := range map[string]stanza.Condition{
		"": stanza.BadRequest, "default='x'": stanza.BadRequest, "default='always'><never><jid/></never": stanza.JIDMalformed,
	} {
		if inner == "" || !strings.Contains(inner, "<") {
			inner += "/"
		} else {
			inner += "></prefs"
		}
		if _, refusal := parsePrefs(element(t, "<prefs xmlns='urn:xmpp:mam:2' "+inner+">")); refusal == nil || refusal.Condition != want {
			t.Errorf("%s is refused with %v, want %s", inner, refusal, want)
		}
	}
}

// FuzzParseQuery: whatever a client sends is read or refused, and what is read stays within the bounds.
func FuzzParseQuery(f *testing.F) {
	f.Add("<query xmlns='urn:xmpp:mam:2' queryid='q'>" + form("with=a@b/c", "start=2010-06-07T00:00:00Z", "end=2010-06-07T00:00:00+02:00", "ids=a|b") +
		set("<max>10</max><after>x</after><before/>") + "<flip-page/></query>")
	f.Add("<query xmlns='urn:xmpp:mam:2'>" + form("before-id=x", "x=y") + set("<index>1</index>") + "</query>")
	f.Add("<prefs xmlns='urn:xmpp:mam:2' default='never'><always><jid>a@b</jid></always></prefs>")
	f.Fuzz(func(t *testing.T, xml string) {
		el, err := stanza.ParseElement([]byte(xml))
		if err != nil {
			return
		}
		req, refusal := parseQuery(el, alice, 50)
		if (req == nil) == (refusal == nil) {
			t.Fatalf("read %v, refused %v", req, refusal)
		}
		if req != nil && (req.Max < 0 || req.Max > MaxPage || len(req.IDs) > MaxPage || req.Owner != alice.String() || req.MaxBytes != pageBytes) {
			t.Fatalf("out of bounds: %+v", req.Query)
		}
		if p, refusal := parsePrefs(el); refusal == nil {
			again, refusal := parsePrefs(element(t, string(renderPrefs(p))))
			if refusal != nil || !reflect.DeepEqual(p, again) {
				t.Fatalf("%+v is read again as %+v, %v", p, again, refusal)
			}
		}
	})
}
