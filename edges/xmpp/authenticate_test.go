package xmpp

import (
	"crypto/tls"
	"encoding/base64"
	"strings"
	"testing"

	msasl "mellium.im/sasl"

	"muster/fsm/token"
	"muster/internal/fault"
	"muster/router/stanza"
	"muster/router/xmltok"
)

const (
	agentOne = "d4565fa7-4d72-4749-b3d3-740edbf87770"
	agentTwo = "01234567-89ab-4cde-8f01-23456789abcd"
	smResume = `<enable xmlns='urn:xmpp:sm:3' resume='true'/>`
)

// streamFrom returns a stream header with that 'from'; "" is none.
func streamFrom(from string) string {
	if from == "" {
		return openStream
	}
	return strings.Replace(openStream, "<stream:stream ", "<stream:stream from='"+from+"' ", 1)
}

// secured returns a client that is offered a login, and the features.
func (f *fixture) secured(from string) (*client, string) {
	f.tb.Helper()
	c := f.dialTo(1)
	c.conn = tlsClient(f, c)
	c.send(streamFrom(from))
	return c, c.expect(`<stream:features>.*</stream:features>`)
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// authenticate returns a login with what else it asks for; "-" is no initial response.
func authenticate(mechanism, initial string, more ...string) string {
	response := `<initial-response>` + b64(initial) + `</initial-response>`
	if initial == "-" {
		response = ""
	}
	return `<authenticate xmlns='urn:xmpp:sasl:2' mechanism='` + mechanism + `'>` + response + strings.Join(more, "") + `</authenticate>`
}

func plain(user string, more ...string) string {
	return authenticate("PLAIN", "\x00"+user+"\x00"+testPassword, more...)
}

func userAgent(id string) string {
	return `<user-agent id='` + id + `'><software>Muster's test</software><device>desk</device></user-agent>`
}

func bind2(inner ...string) string {
	return `<bind xmlns='urn:xmpp:bind:0'>` + strings.Join(inner, "") + `</bind>`
}

// welcomed reads <success/> and what follows.
func (c *client) welcomed() string {
	c.tb.Helper()
	return c.expect(`<success xmlns='urn:xmpp:sasl:2'>.*</success>(?:<stream:features>.*</stream:features>)?`)
}

func TestAuthenticationIsOffered(t *testing.T) {
	site := newTokenSite(t, 1)
	f := site.nodes[0]
	_, got := f.secured("")
	const mechanisms = `<mechanism>SCRAM-SHA-256-PLUS</mechanism><mechanism>SCRAM-SHA-1-PLUS</mechanism><mechanism>SCRAM-SHA-256</mechanism><mechanism>SCRAM-SHA-1</mechanism><mechanism>PLAIN</mechanism>`
	const before = `<authentication xmlns='urn:xmpp:sasl:2'>` + mechanisms + `<inline><sm xmlns='urn:xmpp:sm:3'/><bind xmlns='urn:xmpp:bind:0'><inline>` +
		`<feature var='urn:xmpp:sm:3'/><feature var='urn:xmpp:csi:0'/><feature var='urn:xmpp:carbons:2'/></inline></bind>`
	const fast = `<fast xmlns='urn:xmpp:fast:0'><mechanism>HT-SHA-256-EXPR</mechanism><mechanism>HT-SHA-256-ENDP</mechanism><mechanism>HT-SHA-256-NONE</mechanism></fast>`
	if want := before + fast + `</inline></authentication>`; !strings.Contains(got, want) {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if !strings.Contains(got, `<mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>`+mechanisms) || !strings.Contains(got, `<sasl-channel-binding`) {
		t.Errorf("the profile of RFC 6120 is gone: %s", got)
	}
	if _, other := f.secured("nobody@example.com"); other != got {
		t.Errorf("the features depend on who asks: %s", other)
	}
	t.Run("nothing before TLS", func(t *testing.T) {
		c := f.in(t).dial()
		c.send(openStream)
		if got := c.expect(`</stream:features>`); strings.Contains(got, "sasl") {
			t.Errorf("got %s", got)
		}
	})
	t.Run("TLS 1.2 has no exporter", func(t *testing.T) {
		c := f.in(t).dialTo(1)
		conf := f.tlsConfig()
		conf.MaxVersion = tls.VersionTLS12
		c.conn = tls.Client(c.conn, conf)
		c.send(openStream)
		if got := c.expect(`<fast .*</fast>`); strings.Contains(got, "EXPR") || !strings.Contains(got, "ENDP") {
			t.Errorf("got %s", got)
		}
	})
	t.Run("tokens turned off", func(t *testing.T) {
		f.set("c2s.token_lifetime", "0s")
		if _, got := f.in(t).secured(""); !strings.Contains(got, before+`</inline></authentication>`) {
			t.Errorf("got %s", got)
		}
	})
}

func TestAuthenticate(t *testing.T) {
	f := start(t)
	c, _ := f.secured("alice@example.com")
	c.send(plain("alice"))
	got := c.welcomed()
	const want = `<success xmlns='urn:xmpp:sasl:2'><authorization-identifier>alice@example.com</authorization-identifier></success>` +
		`<stream:features><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/>`
	if !strings.HasPrefix(got, want) {
		t.Errorf("got  %s\nwant %s…", got, want)
	}
	c.bind("desk") // as RFC 6120 has it, and without a new stream
	c.send(`<iq type='get' id='p'><ping xmlns='urn:xmpp:ping'/></iq>`)
	c.expect(`<iq [^>]*id="p"`)
	c.send(plain("alice")) // XEP-0388 section 4.7: once only
	c.expect(`<stream:error><unsupported-stanza-type`)
}

// TestAuthenticateBySteps uses another project's SCRAM, whose last step checks the additional data.
func TestAuthenticateBySteps(t *testing.T) {
	f := start(t)
	for _, m := range []msasl.Mechanism{msasl.ScramSha256Plus, msasl.ScramSha1Plus, msasl.ScramSha256, msasl.ScramSha1} {
		t.Run(m.Name, func(t *testing.T) {
			c, _ := f.in(t).secured("")
			state := c.conn.(*tls.Conn).ConnectionState()
			mechanisms := []string{"SCRAM-SHA-256", "SCRAM-SHA-1"}
			if strings.HasSuffix(m.Name, "PLUS") {
				mechanisms = append(mechanisms, m.Name)
			}
			n := msasl.NewClient(m, msasl.Credentials(func() ([]byte, []byte, []byte) { return []byte("alice"), []byte(testPassword), nil }),
				msasl.TLSState(state), msasl.RemoteMechanisms(mechanisms...))
			if !strings.HasSuffix(m.Name, "PLUS") {
				n = msasl.NewClient(m, msasl.Credentials(func() ([]byte, []byte, []byte) { return []byte("alice"), []byte(testPassword), nil }))
			}
			step := func(in []byte) string {
				more, out, err := n.Step(in)
				if err != nil {
					t.Fatal(more, err)
				}
				return string(out)
			}
			c.send(authenticate(m.Name, step(nil)))
			challenge, err := base64.StdEncoding.DecodeString(c.expect(`<challenge xmlns='urn:xmpp:sasl:2'>([^<]*)</challenge>`))
			if err != nil {
				t.Fatal(err)
			}
			c.send(`<response xmlns='urn:xmpp:sasl:2'>` + b64(step(challenge)) + `</response>`)
			final, err := base64.StdEncoding.DecodeString(c.expect(`<success xmlns='urn:xmpp:sasl:2'><additional-data>([^<]*)</additional-data><authorization-identifier>alice@example.com</authorization-identifier></success>`))
			if err != nil {
				t.Fatal(err)
			}
			step(final)
		})
	}
}

func TestAuthenticateFails(t *testing.T) {
	f := start(t, "c2s.unlimited_networks", "127.0.0.0/8") // free of lock-out
	for _, tt := range []struct {
		name, from, send, want string
	}{
		{"wrong password", "", authenticate("PLAIN", "\x00alice\x00pen"), "not-authorized"},
		{"disabled", "", plain("carol"), "account-disabled"},
		{"somebody else's stream", "bob@example.com", plain("alice"), "invalid-authzid"},
		{"somebody else's identity", "", authenticate("PLAIN", "bob@example.com\x00alice\x00"+testPassword), "invalid-authzid"},
		{"unknown mechanism", "", authenticate("X-OURS", "abc"), "invalid-mechanism"},
		{"no mechanism", "", `<authenticate xmlns='urn:xmpp:sasl:2'/>`, "invalid-mechanism"},
		{"a token that nobody offered", "", authenticate("HT-SHA-256-NONE", "alice\x00"+strings.Repeat("x", 32), userAgent(agentOne), `<fast xmlns='urn:xmpp:fast:0'/>`), "invalid-mechanism"},
		{"not base64", "", `<authenticate xmlns='urn:xmpp:sasl:2' mechanism='PLAIN'><initial-response>@@@</initial-response></authenticate>`, "incorrect-encoding"},
		{"the old profile's empty response", "", `<authenticate xmlns='urn:xmpp:sasl:2' mechanism='PLAIN'><initial-response>=</initial-response></authenticate>`, "incorrect-encoding"},
		{"element for base64", "", `<authenticate xmlns='urn:xmpp:sasl:2' mechanism='PLAIN'><initial-response><a/></initial-response></authenticate>`, "incorrect-encoding"},
		{"empty response", "", authenticate("PLAIN", ""), "malformed-request"},
		{"user agent without a version", "", plain("alice", userAgent("d4565fa7-4d72-1749-b3d3-740edbf87770")), "malformed-request"},
		{"user agent with a name", "", plain("alice", userAgent("phone")), "malformed-request"},
		{"user agent with an empty id", "", plain("alice", userAgent("")), "malformed-request"},
		{"user agent with a long id", "", plain("alice", userAgent(strings.Repeat("f", 5000))), "malformed-request"},
		{"token without a user agent", "", plain("alice", `<fast xmlns='urn:xmpp:fast:0'/>`), "malformed-request"},
		{"count", "", plain("alice", userAgent(agentOne), `<fast xmlns='urn:xmpp:fast:0' count='-1'/>`), "malformed-request"},
		{"invalidate", "", plain("alice", userAgent(agentOne), `<fast xmlns='urn:xmpp:fast:0' invalidate='yes'/>`), "malformed-request"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, _ := f.in(t).secured(tt.from)
			c.send(strings.Replace(tt.send, "</authenticate>", bind2()+"</authenticate>", 1))
			c.expect(`^<failure xmlns="urn:xmpp:sasl:2"><` + tt.want + ` xmlns="urn:ietf:params:xml:ns:xmpp-sasl"/>(?:<text xml:lang="en">[^<]*</text>)?</failure>`)
			if len(f.router.bound) != 0 {
				t.Fatal("what goes with a failed login was done")
			}
			if tt.from == "" { // the stream is as it was
				c.send(plainLogin("alice", testPassword))
				c.expect(`<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'`)
			}
		})
	}
}

func TestAuthenticateIsAborted(t *testing.T) {
	f := start(t)
	c, _ := f.secured("")
	c.send(authenticate("PLAIN", "-"))
	c.expect(`<challenge xmlns='urn:xmpp:sasl:2'/>`)
	c.send(`<abort xmlns='urn:xmpp:sasl:2'><text>never mind</text></abort>`)
	c.expect(`<failure xmlns="urn:xmpp:sasl:2"><aborted xmlns="urn:ietf:params:xml:ns:xmpp-sasl"/></failure>`)
	c.send(` `) // none is under way
	c.send(authenticate("PLAIN", "-"))
	c.expect(`<challenge xmlns='urn:xmpp:sasl:2'/>`)
	c.send(`<response xmlns='urn:xmpp:sasl:2'>` + b64("\x00alice\x00"+testPassword) + `</response>`)
	c.welcomed()
}

// TestAuthenticateTriesAreCounted: with those of the other profile, and lock-out is the same.
func TestAuthenticateTriesAreCounted(t *testing.T) {
	f := start(t)
	c, _ := f.secured("")
	for i := range maxTries {
		if i%2 == 0 {
			c.send(authenticate("PLAIN", "\x00alice\x00pen"))
			c.expect(`<failure xmlns="urn:xmpp:sasl:2"><not-authorized `)
		} else {
			c.send(plainLogin("alice", "pen"))
			c.expect(`<failure xmlns="urn:ietf:params:xml:ns:xmpp-sasl"><not-authorized/>`)
		}
	}
	c.expect(`<stream:error><policy-violation `)
	c, _ = f.secured("")
	c.send(plain("alice"))
	c.expect(`<failure xmlns="urn:xmpp:sasl:2"><temporary-auth-failure [^>]*/><text xml:lang="en">too many failed logins`)
}

func TestNothingElseDuringAuthentication(t *testing.T) {
	f := start(t)
	for name, what := range map[string]string{
		"white space":        " ",
		"a stanza":           `<presence/>`,
		"the other profile":  plainLogin("alice", testPassword),
		"another attempt":    plain("alice"),
		"an unknown element": `<next xmlns='urn:xmpp:sasl:2' task='x'/>`,
		"a stream header":    `<stream:stream xmlns:stream='http://etherx.jabber.org/streams'/>`,
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := f.in(t).secured("")
			c.send(authenticate("PLAIN", "-"))
			c.expect(`<challenge xmlns='urn:xmpp:sasl:2'/>`)
			c.send(what)
			c.send(`<response xmlns='urn:xmpp:sasl:2'>` + b64("\x00alice\x00"+testPassword) + `</response>`)
			if rest := c.closed(); !strings.HasPrefix(rest, "<stream:error>") || strings.Contains(rest, "success") {
				t.Errorf("got %s", rest)
			}
		})
	}
	t.Run("an answer to nothing", func(t *testing.T) {
		for _, el := range []string{"response", "abort"} {
			c, _ := f.in(t).secured("")
			c.send(`<` + el + ` xmlns='urn:xmpp:sasl:2'/>`)
			c.expect(`^<stream:error><policy-violation `)
		}
	})
}

func TestStreamOfAnotherDomain(t *testing.T) {
	f := start(t)
	c := f.dialTo(1)
	c.conn = tlsClient(f, c)
	c.send(streamFrom("alice@example.net"))
	c.expect(`<stream:error><invalid-from `)
}

// boundAs logs in with a bind request, and returns the client with its full address and what it was told.
func (f *fixture) boundAs(user string, more ...string) (c *client, full, told string) {
	f.tb.Helper()
	c, _ = f.secured(user + "@example.com")
	c.send(plain(user, more...))
	told = c.welcomed()
	el, err := stanza.ParseElement([]byte(strings.Split(told, "<stream:features>")[0]))
	if err != nil {
		f.tb.Fatal(err)
	}
	c.full = el.Find(stanza.NSSASL2, "authorization-identifier").Text()
	return c, c.full, told
}

func TestBindAtLogin(t *testing.T) {
	f := start(t)
	c, full, told := f.boundAs("alice", bind2(`<tag>Test</tag>`, `<enable xmlns='urn:xmpp:carbons:2'/>`), userAgent(agentOne))
	want := `<success xmlns='urn:xmpp:sasl:2'><authorization-identifier>` + full + `</authorization-identifier><bound xmlns='urn:xmpp:bind:0'></bound></success>` +
		`<stream:features><sm xmlns='urn:xmpp:sm:3'/><csi xmlns='urn:xmpp:csi:0'/><ver xmlns="urn:xmpp:features:rosterver"/><limits`
	if !strings.HasPrefix(told, want) {
		t.Errorf("got  %s\nwant %s…", told, want)
	}
	if w := f.router.wishes[0]; len(w) != 1 || w[0] != (Wish{Space: stanza.NSCarbons, Local: "enable"}) {
		t.Errorf("wishes %v", w)
	}
	c.send(`<iq type='get' id='p'><ping xmlns='urn:xmpp:ping'/></iq>`)
	c.expect(`<iq [^>]*to="` + full + `"[^>]*id="p"`)
	c.send(`<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>`)
	c.expect(`<iq [^>]*type="error"[^>]*id="b".*<not-allowed `)
	c.send(enableResume) // later, as without
	c.expect(`<enabled [^>]*resume='true'`)
}

func TestResources(t *testing.T) {
	f := start(t)
	res := func(user string, more ...string) string {
		_, full, _ := f.boundAs(user, more...)
		_, r, _ := strings.Cut(full, "/")
		return r
	}
	tag := func(s string) string { return bind2("<tag>" + s + "</tag>") }
	one := res("alice", tag("A"), userAgent(agentOne))
	if !strings.HasPrefix(one, "A/") || len(one) != 2+16 || strings.Contains(one, agentOne[:8]) {
		t.Fatalf("resource %q", one)
	}
	id := one[2:]
	for _, tt := range []struct{ name, got, want string }{
		{"again", res("alice", tag("A"), userAgent(agentOne)), one},
		{"id in capitals", res("alice", tag("A"), userAgent(strings.ToUpper(agentOne))), one},
		{"other tag", res("alice", tag("B"), userAgent(agentOne)), "B/" + id},
		{"no tag", res("alice", bind2(), userAgent(agentOne)), id},
		{"tag that is no resource", res("alice", tag("\u00ad"), userAgent(agentOne)), id},
		{"long tag", res("alice", tag(strings.Repeat("x", maxTag+1)), userAgent(agentOne)), id},
		{"longest tag", res("alice", tag(strings.Repeat("x", maxTag)), userAgent(agentOne)), strings.Repeat("x", maxTag) + "/" + id},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, tt.got, tt.want)
		}
	}
	seen := map[string]bool{id: true}
	for _, r := range []string{
		res("alice", tag("A"), userAgent(agentTwo)), res("bob", tag("A"), userAgent(agentOne)), res("alice", tag("A")), res("alice", tag("A")),
	} {
		if r = strings.TrimPrefix(r, "A/"); seen[r] || len(r) != 16 {
			t.Errorf("another client has the resource %q", r)
		}
		seen[r] = true
	}
	if r := res("alice", bind2()); !strings.HasPrefix(r, "made-") {
		t.Errorf("the router did not make %q", r)
	}
}

// TestTheSameClientReplacesItself: its earlier session ends when it binds again.
func TestTheSameClientReplacesItself(t *testing.T) {
	f := start(t)
	first, _, _ := f.boundAs("alice", bind2(`<tag>A</tag>`), userAgent(agentOne))
	f.boundAs("alice", bind2(`<tag>A</tag>`), userAgent(agentOne))
	first.expect(`<stream:error><conflict `)
}

func TestBindAtLoginRefused(t *testing.T) {
	f := start(t)
	f.router.bindErr = fault.New(fault.TooLarge, "session.bind", "alice", "too many sessions; close one first")
	c, full, told := f.boundAs("alice", bind2(smResume), userAgent(agentOne))
	if full != "alice@example.com" || strings.Contains(told, "<bound") || !strings.Contains(told, "<stream:features><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/>") {
		t.Fatalf("got %s", told)
	}
	c.send(`<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>`)
	c.expect(`<iq [^>]*type="error"[^>]*id="b".*<resource-constraint `)
	f.router.mu.Lock()
	f.router.bindErr = nil
	f.router.mu.Unlock()
	c.bind("desk")
}

func TestManagementFromTheStart(t *testing.T) {
	f := start(t)
	c, full, told := f.boundAs("alice", bind2(smResume), userAgent(agentOne))
	if !strings.Contains(told, `<bound xmlns='urn:xmpp:bind:0'><enabled xmlns='urn:xmpp:sm:3' resume='true' id='`) || strings.Contains(told, `<sm xmlns`) {
		t.Fatalf("got %s", told)
	}
	id := between(told, `id='`, `'`)
	if err := f.deliver(full, "one"); err != nil {
		t.Fatal(err)
	}
	c.expect(`id="one"`)
	c.send(`<message to='bob@example.com/x'><body>1</body></message><r xmlns='urn:xmpp:sm:3'/>`)
	c.expect(`<a xmlns='urn:xmpp:sm:3' h='1'/>`)
	f.drop(c)
	if err := f.deliver(full, "two"); err != nil {
		t.Fatal(err)
	}
	back, _ := f.secured("alice@example.com")
	back.send(plain("alice", resumeElement(id, 0), bind2(`<tag>new</tag>`), userAgent(agentTwo)))
	back.expect(`^<success xmlns='urn:xmpp:sasl:2'><authorization-identifier>` + full + `</authorization-identifier><resumed xmlns='urn:xmpp:sm:3' h='1' previd='` + id + `'/></success>` +
		`<message [^>]*id="one".*<message [^>]*id="two"`)
	back.send(`<iq type='get' id='p'><ping xmlns='urn:xmpp:ping'/></iq>`)
	if got := back.expect(`.*id="p"`); strings.Contains(got, "features") {
		t.Errorf("features after a resumption: %s", got)
	}
	if n := len(f.router.bound); n != 1 {
		t.Errorf("%d sessions were bound", n)
	}
}

func between(s, from, to string) string {
	_, s, _ = strings.Cut(s, from)
	s, _, _ = strings.Cut(s, to)
	return s
}

// TestWhatComesDuringTheBindingIsCounted: a stanza that the router delivers before the client knows its address.
func TestWhatComesDuringTheBindingIsCounted(t *testing.T) {
	f := start(t)
	f.router.onBind = func(s *fakeSession) {
		if err := s.sink.Deliver(presence("bob@example.com/x", "", "")); err != nil {
			t.Error(err)
		}
	}
	c, _, told := f.boundAs("alice", bind2(smResume), userAgent(agentOne))
	c.expect(`^<presence `)
	id := between(told, `id='`, `'`)
	f.drop(c)
	back, _ := f.secured("")
	back.send(plain("alice", resumeElement(id, 1)))
	back.expect(`<resumed [^>]*/></success>`)
	back.send(`<r xmlns='urn:xmpp:sm:3'/>`)
	if got := back.expect(`.*<a [^>]*/>`); strings.Contains(got, "presence") {
		t.Errorf("what the client has was sent again: %s", got)
	}
}

func TestResumeAtLoginRefused(t *testing.T) {
	f := start(t, "c2s.probe_timeout", "900ms") // makes the sweeper quick
	const failed = `<failed xmlns='urn:xmpp:sm:3'><item-not-found xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></failed>`
	t.Run("and a session is bound", func(t *testing.T) {
		_, full, told := f.in(t).boundAs("alice", resumeElement("nonsense", 0), bind2(smResume), userAgent(agentOne))
		if !strings.Contains(told, `</authorization-identifier>`+failed+`<bound xmlns='urn:xmpp:bind:0'><enabled `) || !strings.Contains(full, "/") {
			t.Errorf("got %s", told)
		}
	})
	t.Run("without another wish", func(t *testing.T) {
		f := f.in(t)
		c, full, told := f.boundAs("alice", resumeElement("nonsense", 0))
		if !strings.Contains(told, failed+`</success><stream:features><bind `) || full != "alice@example.com" {
			t.Errorf("got %s", told)
		}
		c.bind("desk")
	})
	t.Run("malformed", func(t *testing.T) {
		_, _, told := f.in(t).boundAs("alice", `<resume xmlns='urn:xmpp:sm:3' previd='x' h='none'/>`, bind2())
		if !strings.Contains(told, `<failed xmlns='urn:xmpp:sm:3'><bad-request `) || !strings.Contains(told, `<bound `) {
			t.Errorf("got %s", told)
		}
	})
	t.Run("of a session that has ended", func(t *testing.T) {
		f := f.in(t)
		c, id := f.managed("bob", "desk")
		c.send(`<presence/>`)
		f.until("the presence is in", func() bool { return len(f.router.packets()) > 0 })
		s := f.router.session(c.full)
		f.set("c2s.resume_timeout", "100ms")
		defer f.set("c2s.resume_timeout", "5m")
		f.drop(c)
		s.wait(t)
		_, _, told := f.boundAs("bob", resumeElement(id, 0), bind2())
		if !strings.Contains(told, `<failed xmlns='urn:xmpp:sm:3' h='1'><item-not-found `) || !strings.Contains(told, `<bound `) {
			t.Errorf("got %s", told)
		}
	})
	t.Run("of somebody else", func(t *testing.T) {
		f := f.in(t)
		_, id := f.managed("bob", "other")
		if _, _, told := f.boundAs("alice", resumeElement(id, 0), bind2()); !strings.Contains(told, failed) {
			t.Errorf("got %s", told)
		}
	})
	t.Run("too much acknowledged", func(t *testing.T) {
		f := f.in(t)
		_, id := f.managed("bob", "third")
		c, _ := f.secured("")
		c.send(plain("bob", resumeElement(id, 7), bind2()))
		if rest := c.closed(); !strings.HasPrefix(rest, `<stream:error><undefined-condition `) || !strings.Contains(rest, "handled-count-too-high") {
			t.Errorf("got %s", rest)
		}
	})
}

func TestInactiveFromTheStart(t *testing.T) {
	f := start(t)
	c, full, _ := f.boundAs("alice", bind2(`<inactive xmlns='urn:xmpp:csi:0'/>`), userAgent(agentOne))
	sink := f.router.session(full).sink
	if err := sink.Deliver(presence("bob@example.com/x", "", "")); err != nil {
		t.Fatal(err)
	}
	c.send(`<iq type='get' id='p'><ping xmlns='urn:xmpp:ping'/></iq>`)
	c.expect(`^<presence .*id="p"`) // held until something else comes
	quiet := func() bool { s := sink.(*session); s.mu.Lock(); defer s.mu.Unlock(); return s.quiet }
	if !quiet() {
		t.Error("the session began active")
	}
	_, full, _ = f.boundAs("alice", bind2(`<active xmlns='urn:xmpp:csi:0'/>`), userAgent(agentTwo))
	if sink = f.router.session(full).sink; quiet() {
		t.Error("the session began inactive")
	}
}

// TestOneRoundTrip: a client that knows the features sends its header and its login at once.
func TestOneRoundTrip(t *testing.T) {
	f := start(t)
	c := f.dialTo(1)
	c.conn = tlsClient(f, c)
	c.send(streamFrom("alice@example.com") + plain("alice", bind2(smResume), userAgent(agentOne)))
	c.expect(`</stream:features><success .*<bound [^>]*><enabled [^>]*/></bound></success><stream:features>.*</stream:features>`)
	c.send(`<message to='bob@example.com/x'><body>` + strings.Repeat("x", 2*xmltok.UnauthenticatedMaxBytes) + `</body></message><r xmlns='urn:xmpp:sm:3'/>`)
	c.expect(`<a [^>]*h='1'/>`) // the limits are those of a session
}

// FuzzReadLogin: whatever a login asks for, reading it neither panics nor grows beyond its limits.
func FuzzReadLogin(f *testing.F) {
	f.Add(plain("alice", userAgent(agentOne), resumeElement("x", 1), bind2(`<tag>t</tag>`, smResume, `<inactive xmlns='urn:xmpp:csi:0'/>`, `<enable xmlns='urn:xmpp:carbons:2'/>`)))
	f.Add(authenticate("HT-SHA-256-NONE", "alice\x00x", userAgent(agentTwo), `<fast xmlns='urn:xmpp:fast:0' count='1' invalidate='1'/><request-token xmlns='urn:xmpp:fast:0' mechanism='HT-SHA-256-NONE'/>`))
	f.Add(bind2(strings.Repeat(`<x xmlns='y'/>`, 20)))
	f.Fuzz(func(t *testing.T, s string) {
		item, err := xmltok.Parse([]byte(s), &xmltok.Options{MaxBytes: xmltok.UnauthenticatedMaxBytes, MaxDepth: maxDepthBefore, MaxElements: maxElementsBefore})
		if err != nil {
			return
		}
		q, problem := readLogin(&item)
		switch {
		case q == nil:
			t.Fatal("nothing read")
		case problem == "" && q.token && q.agent == (token.Agent{}):
			t.Error("a token of nobody")
		case q.bind != nil && len(q.bind.wishes) > maxWishes:
			t.Errorf("%d wishes", len(q.bind.wishes))
		case q.initialOK && base64.StdEncoding.EncodedLen(len(q.initial)) > len(s):
			t.Error("a response from nowhere")
		}
	})
}
