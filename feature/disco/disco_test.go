package disco

import (
	"strings"
	"testing"

	"muster/fsm/config"
	"muster/fsm/fsmtest"
	"muster/internal/modules"
	"muster/router"
)

// exodus is the simple example of XEP-0115 section 5.2, psi the complex one of section 5.3.
var (
	exodus = router.Disco{
		Identities: []router.Identity{{Category: "client", Type: "pc", Name: "Exodus 0.9.1"}},
		Features:   []string{"http://jabber.org/protocol/caps", "http://jabber.org/protocol/disco#info", "http://jabber.org/protocol/disco#items", "http://jabber.org/protocol/muc"},
	}
	form = `<x xmlns="jabber:x:data" type="result"><field var="os"><value>Mac</value></field>` +
		`<field var="FORM_TYPE" type="hidden"><value>urn:xmpp:dataforms:softwareinfo</value></field>` +
		`<field var="ip_version" type="text-multi"><value>ipv6</value><value>ipv4</value></field></x>`
)

func TestCapsHash(t *testing.T) {
	if got := capsHash(exodus); got != "QgayPKawpkPSDYmwT/WM94uAlu0=" { // as the XEP has it
		t.Errorf("the example of XEP-0115 hashes to %s", got)
	}
	d := exodus
	d.Forms = [][]byte{[]byte(form)}
	with := capsHash(d)
	if with == capsHash(exodus) {
		t.Error("a form does not change the hash")
	}
	d.Forms = [][]byte{[]byte("<x xmlns='jabber:x:data'><field var='a'/></x>"), []byte("<broken"), []byte(form)}
	if capsHash(d) != with {
		t.Error("forms without a type are hashed")
	}
	lines := strings.Join(sortedForms(d.Forms)[0], "<")
	if lines != "urn:xmpp:dataforms:softwareinfo<ip_version<ipv4<ipv6<os<Mac" {
		t.Errorf("the form is hashed as %s", lines)
	}
}

func TestRender(t *testing.T) {
	d := router.Disco{Identities: []router.Identity{{Category: "server", Type: "im", Name: "M & M"}}, Features: []string{"a", "b"}, Forms: [][]byte{[]byte(form)}}
	want := `<query xmlns="http://jabber.org/protocol/disco#info" node="n"><identity category="server" type="im" name="M &amp; M"/><feature var="a"/><feature var="b"/>` + form + `</query>`
	if got := string(renderInfo("n", d)); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	if got := string(renderItems("", nil)); got != `<query xmlns="http://jabber.org/protocol/disco#items"/>` {
		t.Errorf("no items: %s", got)
	}
}

func TestContactForm(t *testing.T) {
	rig := fsmtest.New(t, modules.Control()...)
	live := config.NewLive(rig.M, 1)
	if got := contactForm(live); got != nil {
		t.Errorf("nothing is set: %s", got)
	}
	rig.Must(config.SetEntry("contact.abuse", "mailto:a@example.com  xmpp:b@example.com", 0), config.SetEntry("contact.status", "https://status.example.com", 0))
	live.Reload()
	want := `<x xmlns="jabber:x:data" type="result"><field var="FORM_TYPE" type="hidden"><value>http://jabber.org/network/serverinfo</value></field>` +
		`<field var="abuse-addresses" type="list-multi"><value>mailto:a@example.com</value><value>xmpp:b@example.com</value></field>` +
		`<field var="status-addresses" type="list-multi"><value>https://status.example.com</value></field></x>`
	if got := string(contactForm(live)); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

func TestContactAddresses(t *testing.T) {
	for list, ok := range map[string]bool{
		"": true, "mailto:a@b": true, "mailto:a@b https://c/d tel:+123": true, "a@b": false, "mailto:a@b, help": false, "://": false,
	} {
		if err := config.ValidateSetting("contact.abuse", list); (err == nil) != ok {
			t.Errorf("%q: %v", list, err)
		}
	}
}
