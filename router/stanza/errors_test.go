package stanza

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"muster/internal/fault"
	"muster/internal/jid"
	"muster/router/xmltok"
)

func TestEveryFaultHasACondition(t *testing.T) {
	for _, code := range fault.Codes() {
		entry, ok := fromCode[code]
		if !ok {
			t.Errorf("%v: no condition", code)
			continue
		}
		if _, ok := usualType[entry.condition]; !ok {
			t.Errorf("%v: unknown condition %q", code, entry.condition)
		}
		if wait := entry.kind == Wait; wait != code.Retryable() {
			t.Errorf("%v: type %s, but retryable is %t", code, entry.kind, code.Retryable())
		}
	}
	if len(fromCode) != len(fault.Codes()) {
		t.Error("a condition for a code that does not exist")
	}
}

func TestFromFault(t *testing.T) {
	cause := errors.New("pebble: /var/lib/muster: disk I/O error")
	for _, c := range []struct {
		name string
		err  error
		want Error
	}{
		{"text is shown", fault.New(fault.NotFound, "roster.remove", "a@b", "no such contact"), Error{Type: Cancel, Condition: ItemNotFound, Text: "no such contact"}},
		{"cause is not", fault.Wrap(cause, fault.Unavailable, "roster.set", "a@b"), Error{Type: Wait, Condition: ResourceConstraint}},
		{"internal text is not", fault.New(fault.Internal, "x", "y", "nil map in row 7"), Error{Type: Cancel, Condition: InternalServerError}},
		{"foreign error", cause, Error{Type: Cancel, Condition: InternalServerError}},
		{"wrapped", fmt.Errorf("while: %w", fault.New(fault.NoQuorum, "x", "", "no majority")), Error{Type: Wait, Condition: ResourceConstraint, Text: "no majority"}},
		{"deadline", context.DeadlineExceeded, Error{Type: Wait, Condition: ResourceConstraint}},
		{"stanza error", fmt.Errorf("x: %w", NewError(JIDMalformed, "bad")), Error{Type: Modify, Condition: JIDMalformed, Text: "bad"}},
		{"unknown code", fault.New(fault.Code(99), "x", "", ""), Error{Type: Cancel, Condition: InternalServerError}},
	} {
		got := FromFault(c.err)
		if got == nil || got.Type != c.want.Type || got.Condition != c.want.Condition || got.Text != c.want.Text {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
		if b := string(got.Append(nil)); strings.Contains(b, "pebble") || strings.Contains(b, "nil map") {
			t.Errorf("%s: shows internals: %s", c.name, b)
		}
	}
	if FromFault(nil) != nil {
		t.Error("an error out of nothing")
	}
}

func TestErrorForm(t *testing.T) {
	e := &Error{Type: Cancel, Condition: NotAcceptable, Text: "a < b", By: jid.MustParse("example.com"), Extra: []byte(`<blocked xmlns="urn:xmpp:blocking:errors"/>`)}
	want := `<error by="example.com" type="cancel"><not-acceptable xmlns="urn:ietf:params:xml:ns:xmpp-stanzas"/>` +
		`<text xmlns="urn:ietf:params:xml:ns:xmpp-stanzas" xml:lang="en">a &lt; b</text><blocked xmlns="urn:xmpp:blocking:errors"/></error>`
	if got := string(e.Append(nil)); got != want {
		t.Error(got)
	}
	if e.Error() != "stanza error not-acceptable (cancel): a < b" || NewError(Gone, "").Error() != "stanza error gone (cancel)" {
		t.Error(e.Error())
	}
}

func TestStreamError(t *testing.T) {
	for _, c := range []struct {
		cond  StreamCondition
		text  string
		extra []byte
		want  string
	}{
		{StreamConflict, "", nil, `<stream:error><conflict xmlns="urn:ietf:params:xml:ns:xmpp-streams"/></stream:error>`},
		{StreamPolicyViolation, "too <big>", nil, `<stream:error><policy-violation xmlns="urn:ietf:params:xml:ns:xmpp-streams"/>` +
			`<text xmlns="urn:ietf:params:xml:ns:xmpp-streams" xml:lang="en">too &lt;big&gt;</text></stream:error>`},
		{StreamSeeOtherHost, "[::1]:5222", nil, `<stream:error><see-other-host xmlns="urn:ietf:params:xml:ns:xmpp-streams">[::1]:5222</see-other-host></stream:error>`},
		{StreamUndefinedCondition, "", []byte(`<x xmlns="u"/>`), `<stream:error><undefined-condition xmlns="urn:ietf:params:xml:ns:xmpp-streams"/><x xmlns="u"/></stream:error>`},
	} {
		if got := string(StreamError(c.cond, c.text, c.extra)); got != c.want {
			t.Errorf("%s: %s", c.cond, got)
		}
	}
}

func TestStreamConditionOf(t *testing.T) {
	for err, want := range map[error]StreamCondition{
		xmltok.ErrNotWellFormed: StreamNotWellFormed, xmltok.ErrBadNamespacePrefix: StreamNotWellFormed,
		xmltok.ErrRestricted: StreamRestrictedXML, xmltok.ErrTooLarge: StreamPolicyViolation,
		xmltok.ErrBadEncoding: StreamUnsupportedEncoding, errors.New("x"): StreamInternalServerError,
	} {
		if got := StreamConditionOf(err); got != want {
			t.Errorf("%v: %s, want %s", err, got, want)
		}
	}
}

func TestValidateClient(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     Condition
	}{
		{"get", `<iq type='get' id='1'><a/></iq>`, ""},
		{"set with text around", `<iq type='set' id='1'> <a/> </iq>`, ""},
		{"empty result", `<iq type='result' id='1'/>`, ""},
		{"result", `<iq type='result' id='1'><a/></iq>`, ""},
		{"error", `<iq type='error' id='1'><a/><error/></iq>`, ""},
		{"no id", `<iq type='get'><a/></iq>`, BadRequest},
		{"no type", `<iq id='1'><a/></iq>`, BadRequest},
		{"unknown type", `<iq type='push' id='1'><a/></iq>`, BadRequest},
		{"get without child", `<iq type='get' id='1'/>`, BadRequest},
		{"set with two", `<iq type='set' id='1'><a/><b/></iq>`, BadRequest},
		{"result with two", `<iq type='result' id='1'><a/><b/></iq>`, BadRequest},
		{"huge id", `<iq type='get' id='` + strings.Repeat("x", 1025) + `'><a/></iq>`, PolicyViolation},
		{"huge id of a message", `<message id='` + strings.Repeat("x", 1025) + `'/>`, PolicyViolation},
		{"message of unknown type", `<message type='odd'/>`, ""},
		{"available", `<presence/>`, ""},
		{"subscribe", `<presence type='subscribe' to='a@b'/>`, ""},
		{"presence of unknown type", `<presence type='available'/>`, BadRequest},
	} {
		got := ValidateClient(mustParse(t, c.in))
		if c.want == "" && got != nil || c.want != "" && (got == nil || got.Condition != c.want) {
			t.Errorf("%s: %v, want %q", c.name, got, c.want)
		}
	}
}

func TestStripForged(t *testing.T) {
	local := func(domain string) bool { return domain == "example.com" || domain == "rooms.example.com" }
	for _, c := range []struct{ name, in, want string }{
		{"honest", `<message><body>x</body><origin-id xmlns="urn:xmpp:sid:0" id="1"/></message>`, "="},
		{"stanza-id by our account", `<message><body>x</body><stanza-id xmlns="urn:xmpp:sid:0" id="1" by="a@example.com"/></message>`, `<body>x</body>`},
		{"stanza-id by our domain", `<message><stanza-id xmlns="urn:xmpp:sid:0" id="1" by="EXAMPLE.com"/><body>x</body></message>`, `<body>x</body>`},
		{"stanza-id by nobody", `<message><stanza-id xmlns="urn:xmpp:sid:0" id="1"/></message>`, ``},
		{"stanza-id by a stranger", `<message><stanza-id xmlns="urn:xmpp:sid:0" id="1" by="other.org"/></message>`, "="},
		{"delay from our domain", `<message><delay xmlns="urn:xmpp:delay" from="example.com" stamp="2002-09-10T23:08:25Z"/><a/></message>`, `<a/>`},
		{"old delay from our room", `<message><x xmlns="jabber:x:delay" from="r@rooms.example.com"/><a/></message>`, `<a/>`},
		{"delay from another user", `<message><delay xmlns="urn:xmpp:delay" from="b@example.com/x"/></message>`, ``},
		{"delay from nonsense", `<message><delay xmlns="urn:xmpp:delay" from="@"/></message>`, ``},
		{"delay of one's own", `<presence><delay xmlns="urn:xmpp:delay" from="a@example.com/phone"/></presence>`, "="},
		{"delay from nobody", `<presence><delay xmlns="urn:xmpp:delay" stamp="2002-09-10T23:08:25Z"/></presence>`, "="},
		{"occupant-id", `<message><occupant-id xmlns="urn:xmpp:occupant-id:0" id="x"/></message>`, ``},
		{"carbon", `<message><sent xmlns="urn:xmpp:carbons:2"><forwarded xmlns="urn:xmpp:forward:0"/></sent></message>`, ``},
		{"received carbon", `<message><received xmlns="urn:xmpp:carbons:2"/></message>`, ``},
		{"private", `<message><private xmlns="urn:xmpp:carbons:2"/></message>`, "="},
		{"carbons request", `<iq id="1" type="set"><enable xmlns="urn:xmpp:carbons:2"/></iq>`, "="},
		{"archive result", `<message><result xmlns="urn:xmpp:mam:2" id="1"/><body>x</body></message>`, `<body>x</body>`},
		{"archive end", `<message><fin xmlns="urn:xmpp:mam:2"/></message>`, ``},
		{"archive query", `<iq id="1" type="set"><query xmlns="urn:xmpp:mam:2"/></iq>`, "="},
		{"room status", `<presence><x xmlns="http://jabber.org/protocol/muc#user"><status code="110"/></x></presence>`, ``},
		{"empty room element", `<message><x xmlns="http://jabber.org/protocol/muc#user"/></message>`, ``},
		{"invitation", `<message><x xmlns="http://jabber.org/protocol/muc#user"><invite to="b@example.com"/></x></message>`, "="},
		{"invitation with a status", `<message><x xmlns="http://jabber.org/protocol/muc#user"><invite to="b@c"/><status code="104"/></x></message>`, ``},
		{"forwarded", `<message><forwarded xmlns="urn:xmpp:forward:0"><message xmlns="jabber:client"/></forwarded></message>`, "="},
		{"several", `<message>t<sent xmlns="urn:xmpp:carbons:2"/><a/><received xmlns="urn:xmpp:carbons:2"/><b/></message>`, `<a/><b/>`},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := mustParse(t, c.in)
			p.From = jid.MustParse("a@example.com/desk")
			p.Lang = "de"
			got := StripForged(p, local)
			if c.want == "=" {
				if got != p {
					t.Errorf("changed to %s", got.AppendTo(nil))
				}
				return
			}
			if got == p || string(got.Inner) != c.want || got.From != p.From || got.Lang != "de" || got.Kind != p.Kind {
				t.Errorf("got %s, want %s", got.AppendTo(nil), c.want)
			}
			if string(p.AppendTo(nil)) == string(got.AppendTo(nil)) {
				t.Error("the original changed")
			}
		})
	}
}

func TestNeverRelayed(t *testing.T) {
	for in, want := range map[string]bool{
		`<iq type='set' id='1'><query xmlns='jabber:iq:roster'><item jid='evil@example.com'/></query></iq>`: true,
		`<iq type='set' id='1'><block xmlns='urn:xmpp:blocking'><item jid='b@c'/></block></iq>`:             true,
		`<iq type='get' id='1'><query xmlns='jabber:iq:roster'/></iq>`:                                      false,
		`<iq type='set' id='1'><query xmlns='jabber:iq:private'/></iq>`:                                     false,
		`<message><query xmlns='jabber:iq:roster'/></message>`:                                              false,
	} {
		if got := NeverRelayed(mustParse(t, in)); got != want {
			t.Errorf("%s: %t", in, got)
		}
	}
}
