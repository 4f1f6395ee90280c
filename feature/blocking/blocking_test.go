package blocking

import (
	"fmt"
	"testing"

	"muster/internal/jid"
	"muster/router/stanza"
)

func TestParse(t *testing.T) {
	cases := []struct {
		name, inner, want string
		refused           stanza.Condition
	}{
		{"none", "", "[]", ""},
		{"one", "<item jid='a@b'/>", "[a@b]", ""},
		{"kinds", "<item jid='A@B/r'/><item jid='b'/><item jid='b/r'/>", "[a@b/r b b/r]", ""},
		{"others are left aside", "<item xmlns='urn:x' jid='a@b'/><x/>", "[]", ""},
		{"no address", "<item/>", "", stanza.JIDMalformed},
		{"malformed", "<item jid='a@b'/><item jid='@'/>", "", stanza.JIDMalformed},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			p, err := stanza.ParsePacket([]byte("<iq type='set' id='1'><block xmlns='urn:xmpp:blocking'>" + tc.inner + "</block></iq>"))
			if err != nil {
				t.Fatal(err)
			}
			jids, refusal := parse(p)
			if tc.refused != "" {
				if refusal == nil || refusal.Condition != tc.refused {
					t.Errorf("refused with %v", refusal)
				}
				return
			}
			if got := fmt.Sprint(jids); refusal != nil || got != tc.want {
				t.Errorf("got %s, %v", got, refusal)
			}
		})
	}
}

func TestRender(t *testing.T) {
	want := `<block xmlns="urn:xmpp:blocking"><item jid="a@b"/><item jid="c"/></block>`
	if got := string(render("block", []jid.JID{jid.MustParse("a@b"), jid.MustParse("c")})); got != want {
		t.Errorf("got %s", got)
	}
}

// FuzzParse: whatever is accepted is a list of addresses in their normal form.
func FuzzParse(f *testing.F) {
	f.Add("<item jid='a@b/c'/>")
	f.Add("<item jid=''/><item jid='\u00df@b'/>")
	f.Fuzz(func(t *testing.T, inner string) {
		p, err := stanza.ParsePacket([]byte("<iq type='set' id='1'><block xmlns='urn:xmpp:blocking'>" + inner + "</block></iq>"))
		if err != nil || len(p.Children) != 1 {
			return
		}
		jids, _ := parse(p)
		for _, j := range jids {
			if again, err := jid.Parse(j.String()); err != nil || again != j {
				t.Errorf("%v is not normal: %v, %v", j, again, err)
			}
		}
	})
}
