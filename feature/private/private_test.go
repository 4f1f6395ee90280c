package private

import (
	"strings"
	"testing"

	"muster/feature/private/state"
	"muster/router/stanza"
)

func TestCheck(t *testing.T) {
	cases := []struct {
		name, typ, inner string
		want             stanza.Condition
	}{
		{"get one", "get", "<a xmlns='urn:a'/>", ""},
		{"get none", "get", "", stanza.BadRequest},
		{"get two", "get", "<a xmlns='urn:a'/><b xmlns='urn:b'/>", stanza.BadRequest},
		{"set two", "set", "<a xmlns='urn:a'/><b xmlns='urn:b'/>", ""},
		{"set none", "set", "text", stanza.BadRequest},
		{"no name space of its own", "set", "<a/>", stanza.NotAcceptable},
		{"roster", "set", "<query xmlns='jabber:iq:roster'/>", stanza.NotAcceptable},
		{"vCard", "set", "<vCard xmlns='vcard-temp'/>", stanza.NotAcceptable},
		{"bookmarks", "set", "<storage xmlns='storage:bookmarks'/>", ""},
		{"too many", "set", strings.Repeat("<a:a/>", state.MaxElements+1), stanza.PolicyViolation},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			el, err := stanza.ParseElement([]byte("<query xmlns='jabber:iq:private' xmlns:a='urn:a'>" + tc.inner + "</query>"))
			if err != nil {
				t.Fatal(err)
			}
			refusal := check(tc.typ, el.Elements())
			if got := conditionOf(refusal); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func conditionOf(e *stanza.Error) stanza.Condition {
	if e == nil {
		return ""
	}
	return e.Condition
}
