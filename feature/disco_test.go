package feature_test

import (
	"crypto/sha1"
	"encoding/base64"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"muster/fsm/config"
	"muster/router/stanza"
)

// requests has one request for every payload that some feature handles, by the
// feature that says so in service discovery.
var requests = map[string]struct{ typ, payload string }{
	stanza.NSDiscoInfo:    {"get", "<query xmlns='http://jabber.org/protocol/disco#info'/>"},
	stanza.NSDiscoItems:   {"get", "<query xmlns='http://jabber.org/protocol/disco#items'/>"},
	stanza.NSRoster:       {"get", "<query xmlns='jabber:iq:roster'/>"},
	stanza.NSBlocking:     {"get", "<blocklist xmlns='urn:xmpp:blocking'/>"},
	stanza.NSCarbons:      {"set", "<enable xmlns='urn:xmpp:carbons:2'/>"},
	stanza.NSPrivate:      {"get", "<query xmlns='jabber:iq:private'><x xmlns='urn:x'/></query>"},
	stanza.NSVCard:        {"get", "<vCard xmlns='vcard-temp'/>"},
	stanza.NSPing:         {"get", "<ping xmlns='urn:xmpp:ping'/>"},
	stanza.NSVersion:      {"get", "<query xmlns='jabber:iq:version'/>"},
	stanza.NSTime:         {"get", "<time xmlns='urn:xmpp:time'/>"},
	stanza.NSLast:         {"get", "<query xmlns='jabber:iq:last'/>"},
	stanza.NSCommands:     {"set", "<command xmlns='http://jabber.org/protocol/commands' node='x'/>"},
	stanza.NSRegister:     {"get", "<query xmlns='jabber:iq:register'/>"},
	stanza.NSOfflineNodes: {"get", "<offline xmlns='http://jabber.org/protocol/offline'><fetch/></offline>"},
	stanza.NSMAM:          {"get", "<metadata xmlns='urn:xmpp:mam:2'/>"},
}

// elsewhere are the features that are no requests, with where they are to be found.
var elsewhere = map[string]string{
	stanza.NSCaps:                     "stream features, and a node of the domain",
	stanza.NSOffline:                  "messages for who has no client",
	stanza.NSStanzaID:                 "messages that are kept",
	stanza.NSRSM:                      "pages of an archive",
	stanza.NSMAM + "#extended":        "an archive's query",
	stanza.NSMAM + "#groupchat-field": "an archive's query",
}

// accountOnly are features of accounts that the domain shows too, since some clients look only there.
var accountOnly = []string{stanza.NSRoster, stanza.NSBlocking, stanza.NSCarbons, stanza.NSPrivate, stanza.NSVCard, stanza.NSMAM, stanza.NSOfflineNodes}

// TestAdvertisedIsThere: what service discovery shows is answered, and what is answered is shown.
func TestAdvertisedIsThere(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.addUser("alice", false)
		w.must(config.SetEntry("register.enabled", "true", 0))
		alice := w.login("alice/phone")
		alice.send("<presence/>")
		domainHas, accountHas := alice.features(domain), alice.features("")
		for feature, r := range requests {
			atDomain := alice.answers(domain, r.typ, r.payload)
			atAccount := alice.answers("", r.typ, r.payload)
			shown := slices.Contains(domainHas, feature)
			switch {
			case shown && !atDomain && !(atAccount && slices.Contains(accountOnly, feature)):
				t.Errorf("the domain shows %s and does not answer it", feature)
			case !shown && atDomain:
				t.Errorf("the domain answers %s and does not show it", feature)
			}
			if feature == stanza.NSRegister {
				continue // the account answers it too: XEP-0077 shows it on the domain
			}
			if shown := slices.Contains(accountHas, feature); shown != atAccount {
				t.Errorf("%s on the account: shown %v, answered %v", feature, shown, atAccount)
			}
		}
		for _, feature := range append(domainHas, accountHas...) {
			if _, ok := requests[feature]; !ok && elsewhere[feature] == "" {
				t.Errorf("%s is shown, and this test does not know how to try it", feature)
			}
		}
	})
}

// features returns what an address shows.
func (c *client) features(to string) []string {
	var out []string
	p := c.request(to, "get", requests[stanza.NSDiscoInfo].payload)
	payload, _ := p.Payload()
	for _, f := range p.Element(payload).All(stanza.NSDiscoInfo, "feature") {
		out = append(out, f.Attr("var"))
	}
	if !slices.IsSorted(out) || len(slices.Compact(slices.Clone(out))) != len(out) || len(out) == 0 {
		c.w.t.Errorf("features of %q are not sorted and unique: %v", to, out)
	}
	return out
}

func (c *client) request(to, typ, payload string) *stanza.Packet {
	c.w.t.Helper()
	c.take()
	if to != "" {
		to = "to='" + to + "'"
	}
	c.send("<iq type='" + typ + "' id='r' " + to + ">" + payload + "</iq>")
	for _, p := range c.take() {
		if p.Kind == stanza.KindIQ && p.ID == "r" {
			return p
		}
	}
	c.w.t.Fatalf("no answer to %s", payload)
	return nil
}

// answers reports whether a request is handled: refused for any other reason than that nobody does counts.
func (c *client) answers(to, typ, payload string) bool {
	p := c.request(to, typ, payload)
	return p.Type != stanza.TypeError || p.Element(p.Children[0]).Find(stanza.NSStanzas, string(stanza.ServiceUnavailable)) == nil
}

// TestRequestsAreComplete: the table above knows every payload that a feature registers.
func TestRequestsAreComplete(t *testing.T) {
	files, _ := filepath.Glob("*/*.go")
	names := regexp.MustCompile(`HandleIQ\([^,]*, stanza\.(NS\w+),`)
	this, err := os.ReadFile("disco_test.go")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, f := range files {
		source, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range names.FindAllStringSubmatch(string(source), -1) {
			found++
			if !strings.Contains(string(this), "stanza."+m[1]+":") {
				t.Errorf("%s handles %s, which is not in the table of requests", f, m[1])
			}
		}
	}
	if found < len(requests) {
		t.Errorf("only %d registrations found: is the pattern right?", found)
	}
}

// TestCapabilitiesMatch: the hash in the stream features is that of what the
// domain shows, computed here once more from the answer, and its node answers the same.
func TestCapabilitiesMatch(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.addUser("alice", false)
		alice := w.login("alice/phone")
		var before string
		for _, setting := range []string{"", "contact.support"} {
			if setting != "" {
				w.must(config.SetEntry(setting, "mailto:help@example.com", 0))
			}
			node, ver := w.capabilities(t)
			if ver == before {
				t.Error("the hash did not change with the form")
			}
			before = ver
			p := alice.request(domain, "get", requests[stanza.NSDiscoInfo].payload)
			payload, _ := p.Payload()
			info := p.Element(payload)
			if got := hashOf(info); got != ver {
				t.Errorf("the hash is %s, the info's %s", ver, got)
			}
			p = alice.request(domain, "get", "<query xmlns='http://jabber.org/protocol/disco#info' node='"+node+"#"+ver+"'/>")
			payload, _ = p.Payload()
			if el := p.Element(payload); el.Attr("node") != node+"#"+ver || hashOf(el) != ver {
				t.Errorf("the node answers %s", p.AppendTo(nil))
			}
		}
	})
}

func (w *world) capabilities(t *testing.T) (node, ver string) {
	all, err := stanza.ParseElement(append(append([]byte("<features>"), w.router.StreamFeatures()...), "</features>"...))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range [][2]string{{stanza.NSRosterVer, "ver"}, {stanza.NSPreApproval, "sub"}} {
		if all.Find(want[0], want[1]) == nil {
			t.Errorf("the stream features lack %s", want[0])
		}
	}
	c := all.Find(stanza.NSCaps, "c")
	if c == nil || c.Attr("hash") != "sha-1" || c.Attr("node") == "" {
		t.Fatalf("the stream features are %s", w.router.StreamFeatures())
	}
	return c.Attr("node"), c.Attr("ver")
}

// hashOf follows XEP-0115 section 5.1 over an info element whose parts are sorted already.
func hashOf(info *stanza.Element) string {
	var b strings.Builder
	for _, id := range info.All(stanza.NSDiscoInfo, "identity") {
		b.WriteString(id.Attr("category") + "/" + id.Attr("type") + "//" + id.Attr("name") + "<")
	}
	for _, f := range info.All(stanza.NSDiscoInfo, "feature") {
		b.WriteString(f.Attr("var") + "<")
	}
	if x := info.Find(stanza.NSData, "x"); x != nil {
		for _, f := range x.All(stanza.NSData, "field") {
			if f.Attr("var") != "FORM_TYPE" {
				b.WriteString(f.Attr("var") + "<")
			}
			for _, v := range f.All(stanza.NSData, "value") {
				b.WriteString(v.Text() + "<")
			}
		}
	}
	sum := sha1.Sum([]byte(b.String()))
	return base64.StdEncoding.EncodeToString(sum[:])
}
