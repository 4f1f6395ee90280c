package roster

import (
	"fmt"
	"strings"
	"testing"

	"muster/feature/roster/state"
	"muster/internal/jid"
	"muster/router/stanza"
)

func packet(t testing.TB, inner string) *stanza.Packet {
	t.Helper()
	p, err := stanza.ParsePacket([]byte("<iq type='set' id='1'><query xmlns='jabber:iq:roster'>" + inner + "</query></iq>"))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestParseSet(t *testing.T) {
	groups := func(n int) (s string) {
		for i := range n {
			s += fmt.Sprintf("<group>g%d</group>", i)
		}
		return s
	}
	cases := []struct {
		name, inner string
		want        string // of a change
		refused     stanza.Condition
	}{
		{"plain", "<item jid='bob@example.com'/>", "bob@example.com  [] false", ""},
		{"name and groups", "<item jid='bob@example.com' name='Bob'><group>A</group><group>B &amp; C</group></item>", "bob@example.com Bob [A B & C] false", ""},
		{"resource is cut off", "<item jid='bob@example.com/pad'/>", "bob@example.com  [] false", ""},
		{"address is normalised", "<item jid='BOB@Example.COM'/>", "bob@example.com  [] false", ""},
		{"a domain", "<item jid='gateway.example.com'/>", "gateway.example.com  [] false", ""},
		{"removal", "<item jid='bob@example.com' subscription='remove'/>", "bob@example.com  [] true", ""},
		{"removal ignores the rest", "<item jid='bob@example.com' subscription='remove'><group/></item>", "bob@example.com  [] true", ""},
		{"subscription is the server's", "<item jid='bob@example.com' subscription='both' ask='subscribe'/>", "bob@example.com  [] false", ""},
		{"no item", "", "", stanza.BadRequest},
		{"two items", "<item jid='a@b'/><item jid='c@d'/>", "", stanza.BadRequest},
		{"no address", "<item name='x'/>", "", stanza.BadRequest},
		{"malformed address", "<item jid='a@@b'/>", "", stanza.JIDMalformed},
		{"group twice", "<item jid='a@b'><group>x</group><group>x</group></item>", "", stanza.BadRequest},
		{"empty group", "<item jid='a@b'><group></group></item>", "", stanza.NotAcceptable},
		{"name too long", "<item jid='a@b' name='" + strings.Repeat("x", state.MaxName+1) + "'/>", "", stanza.NotAcceptable},
		{"group too long", "<item jid='a@b'><group>" + strings.Repeat("x", state.MaxGroup+1) + "</group></item>", "", stanza.NotAcceptable},
		{"as many groups as may be", "<item jid='a@b'>" + groups(state.MaxGroups) + "</item>", "", ""},
		{"a group too many", "<item jid='a@b'>" + groups(state.MaxGroups+1) + "</item>", "", stanza.NotAcceptable},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			ch, refusal := parseSet(packet(t, tc.inner))
			switch {
			case tc.refused != "":
				if refusal == nil || refusal.Condition != tc.refused {
					t.Errorf("refused with %v, want %s", refusal, tc.refused)
				}
			case refusal != nil:
				t.Errorf("refused with %v", refusal)
			case tc.want != "":
				if got := fmt.Sprintf("%v %s %v %v", ch.contact, ch.name, ch.groups, ch.remove); got != tc.want && !ch.remove {
					t.Errorf("got %q, want %q", got, tc.want)
				}
				if ch.remove != strings.HasSuffix(tc.want, "true") {
					t.Errorf("removal: %v", ch.remove)
				}
			}
		})
	}
}

func TestItems(t *testing.T) {
	bob := jid.MustParse("bob@example.com")
	cases := []struct {
		item state.Item
		want string
	}{
		{state.Item{Contact: bob}, `<item jid="bob@example.com" subscription="none"/>`},
		{state.Item{Contact: bob, Name: `A"<`, Sub: state.To}, `<item jid="bob@example.com" name="A&quot;&lt;" subscription="to"/>`},
		{state.Item{Contact: bob, Ask: true, Sub: state.From}, `<item jid="bob@example.com" subscription="from" ask="subscribe"/>`},
		{state.Item{Contact: bob, Approved: true, Groups: []string{"x", "y"}}, `<item jid="bob@example.com" subscription="none" approved="true"><group>x</group><group>y</group></item>`},
	}
	for _, tc := range cases {
		b := stanza.NewBuilder("").Open("query", stanza.NSRoster)
		appendItem(b, tc.item)
		if got := string(b.Bytes()); got != `<query xmlns="jabber:iq:roster">`+tc.want+`</query>` {
			t.Errorf("got %s\nwant %s", got, tc.want)
		}
	}
}

// FuzzParseSet: what is accepted is what the state accepts, too.
func FuzzParseSet(f *testing.F) {
	f.Add("<item jid='bob@example.com' name='Bob'><group>A</group></item>")
	f.Add("<item jid='x' subscription='remove'/><item/>")
	f.Add("<item jid=''><group/><group>\u00e9</group></item>")
	f.Fuzz(func(t *testing.T, inner string) {
		p, err := stanza.ParsePacket([]byte("<iq type='set' id='1'><query xmlns='jabber:iq:roster'>" + inner + "</query></iq>"))
		if err != nil || len(p.Children) != 1 {
			return
		}
		ch, refusal := parseSet(p)
		if refusal != nil {
			return
		}
		if !ch.contact.IsBare() || ch.contact.IsZero() {
			t.Errorf("contact %v", ch.contact)
		}
		if !ch.remove && state.CheckItem(ch.name, ch.groups) != nil {
			t.Errorf("accepted %q %q", ch.name, ch.groups)
		}
	})
}
