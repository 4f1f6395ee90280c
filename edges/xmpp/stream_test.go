package xmpp

import (
	"crypto/tls"
	"net"
	"strings"
	"testing"
	"time"

	"muster/router/stanza"
)

func TestLoginBindAndMessage(t *testing.T) {
	f := start(t)
	alice, bob := f.online("alice", "desk"), f.online("bob", "phone")
	if alice.full != "alice@example.com/desk" || bob.full != "bob@example.com/phone" {
		t.Fatalf("bound %s and %s", alice.full, bob.full)
	}
	alice.send(`<message to='bob@example.com/phone' type='chat' id='m1'><body>hello &amp; welcome</body></message>`)
	got := bob.expect(`<message .*</message>`)
	want := `<message from="alice@example.com/desk" to="bob@example.com/phone" type="chat" id="m1"><body>hello &amp; welcome</body></message>`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	bob.send(`</stream:stream>`)
	bob.expect(`</stream:stream>`)
	s := f.router.session("bob@example.com/phone")
	s.wait(t)
	if !s.clean || len(s.undelivered) != 0 {
		t.Errorf("clean %v, undelivered %d", s.clean, len(s.undelivered))
	}
	if m := f.srv.Metrics(); m.Logins != 2 || m.StanzasIn != 1 || m.StanzasOut != 1 {
		t.Errorf("metrics %+v", m)
	}
}

func TestDirectTLS(t *testing.T) {
	f := start(t)
	for _, tt := range []struct {
		name   string
		protos []string
		ok     bool
	}{
		{"with the protocol's name", []string{"xmpp-client"}, true},
		{"without one", nil, true},
		{"with another protocol's", []string{"h2"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := f.in(t)
			c := f.dialTo(1)
			conf := f.tlsConfig()
			conf.NextProtos = tt.protos
			conn := tls.Client(c.conn, conf)
			if err := conn.Handshake(); (err == nil) != tt.ok {
				t.Fatalf("handshake: %v", err)
			}
			if !tt.ok {
				return
			}
			c.conn = conn
			c.send(openStream)
			features := c.expect(`<stream:features>.*</stream:features>`)
			for _, want := range []string{"SCRAM-SHA-256-PLUS</mechanism><mechanism>SCRAM-SHA-1-PLUS</mechanism><mechanism>SCRAM-SHA-256</mechanism><mechanism>SCRAM-SHA-1</mechanism><mechanism>PLAIN",
				"channel-binding type='tls-exporter'", "channel-binding type='tls-server-end-point'", "<max-bytes>10240</max-bytes>"} {
				if !strings.Contains(features, want) {
					t.Errorf("no %s in %s", want, features)
				}
			}
			c.login("alice")
		})
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	f := start(t)
	c := f.dialTo(1)
	conf := f.tlsConfig()
	conf.MinVersion, conf.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	if err := tls.Client(c.conn, conf).Handshake(); err == nil {
		t.Error("TLS 1.1 was accepted")
	}
	f.until("the failure is counted", func() bool { return f.srv.Metrics().TLSFailed == 1 })
}

func TestFeaturesAfterLogin(t *testing.T) {
	f := start(t)
	c := f.dial()
	c.startTLS(f)
	c.send(plainLogin("alice", testPassword))
	c.expect(`<success [^>]*/>`)
	c.send(openStream)
	features := c.expect(`<stream:features>.*</stream:features>`)
	for _, want := range []string{"<bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/>", "<session xmlns='urn:ietf:params:xml:ns:xmpp-session'><optional/></session>",
		"<sm xmlns='urn:xmpp:sm:3'/>", "<csi xmlns='urn:xmpp:csi:0'/>", "urn:xmpp:features:rosterver", "<max-bytes>262144</max-bytes><idle-seconds>660</idle-seconds>"} {
		if !strings.Contains(features, want) {
			t.Errorf("no %s in %s", want, features)
		}
	}
	if strings.Contains(features, "mechanism") || strings.Contains(features, "starttls") {
		t.Errorf("features of an earlier stage: %s", features)
	}
}

// header is a stream header with parts replaced.
func header(replace ...string) string { return strings.NewReplacer(replace...).Replace(openStream) }

func TestStreamErrorsBeforeLogin(t *testing.T) {
	f := start(t)
	for _, tt := range []struct{ name, send, want string }{
		{"unknown host", header("example.com", "elsewhere.example"), "host-unknown"},
		{"no host", header("to='example.com'", ""), "host-unknown"},
		{"no version", header("version='1.0'>", ">"), "unsupported-version"},
		{"old version", header("version='1.0'>", "version='0.9'>"), "unsupported-version"},
		{"wrong stream namespace", header("http://etherx.jabber.org/streams", "http://example.com/"), "invalid-namespace"},
		{"server namespace", header("jabber:client", "jabber:server"), "invalid-namespace"},
		{"not a stream", header("stream:stream", "stream:flood"), "bad-format"},
		{"garbage", "GET / HTTP/1.1\r\n\r\n", "not-well-formed"},
		{"binary", "\x16\x03\x01\x02\x00", "not-well-formed"},
		{"document type", `<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b "c">]>` + openStream, "restricted-xml"},
		{"comment", openStream + "<!-- hello -->", "restricted-xml"},
		{"processing instruction", openStream + "<?php ?>", "restricted-xml"},
		{"entity", openStream + "<starttls>&bomb;</starttls>", "restricted-xml"},
		{"login in clear", openStream + plainLogin("alice", testPassword), "policy-violation"},
		{"stanza in clear", openStream + "<message to='bob@example.com'><body>x</body></message>", "policy-violation"},
		{"second header", openStream + "<stream:stream/>", "policy-violation"},
		{"too large before login", openStream + "<starttls>" + strings.Repeat("x", 11<<10), "policy-violation"},
		{"too deep before login", openStream + strings.Repeat("<a>", 20), "policy-violation"},
		{"not UTF-8", openStream + "<a>\xff\xfe</a>", "unsupported-encoding|not-well-formed|bad-format"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := f.in(t)
			c := f.dial()
			c.send(tt.send)
			c.expect(`^<\?xml version='1.0'\?><stream:stream [^>]*id='[^']{20,}'[^>]*from="example.com"[^>]*>`)
			c.expect(`<stream:error><(` + tt.want + `) xmlns="urn:ietf:params:xml:ns:xmpp-streams"`)
			if rest := c.closed(); !strings.HasSuffix(rest, "</stream:stream>") {
				t.Errorf("the stream was not closed: %q", rest)
			}
		})
	}
	if n := f.srv.Metrics().Panics; n != 0 {
		t.Errorf("%d panics", n)
	}
}

func TestStreamErrorsInASession(t *testing.T) {
	f := start(t, "c2s.byte_burst", "1000000")
	for _, tt := range []struct{ name, send, want string }{
		{"forged sender", `<message from='bob@example.com' to='alice@example.com/x'><body>x</body></message>`, "invalid-from"},
		{"another resource's sender", `<message from='alice@example.com/other' to='x@example.com'/>`, "invalid-from"},
		{"malformed sender", `<message from='@' to='x@example.com'/>`, "invalid-from"},
		{"sender in the server's name", `<iq from='example.com' type='set' id='1'><query xmlns='jabber:iq:roster'/></iq>`, "invalid-from"},
		{"unknown element", `<telegram xmlns='urn:x'/>`, "unsupported-stanza-type"},
		{"unknown stanza", `<telegram/>`, "unsupported-stanza-type"},
		{"login again", plainLogin("alice", testPassword), "unsupported-stanza-type"},
		{"new stream", openStream, "not-well-formed|not-authorized|restricted-xml"},
		{"document type", `<!DOCTYPE a>`, "restricted-xml"},
		{"comment", `<message><!-- x --></message>`, "restricted-xml"},
		{"mismatched tag", `<message></presence>`, "not-well-formed"},
		{"undeclared prefix", `<message><a:b/></message>`, "bad-namespace-prefix|not-well-formed"},
		{"twice the same attribute", `<message a='1' a='2'/>`, "not-well-formed"},
		{"200,000 nested elements", `<message>` + strings.Repeat("<a>", 200_000), "policy-violation"},
		{"a huge stanza", `<message><body>` + strings.Repeat("x", 300_000), "policy-violation"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := f.in(t)
			bystander := f.online("bob", "")
			c := f.online("alice", "")
			session := f.router.session(c.full)
			_, _ = c.conn.Write([]byte(tt.send)) // the server may hang up meanwhile
			c.expect(`<stream:error><(` + tt.want + `) xmlns="urn:ietf:params:xml:ns:xmpp-streams"`)
			c.expect(`</stream:stream>`)
			session.wait(t)
			bystander.send(`<iq type='get' id='p'><ping xmlns='urn:xmpp:ping'/></iq>`)
			bystander.expect(`<iq [^>]*type="result" id="p"`)
		})
	}
	if n := f.srv.Metrics().Panics; n != 0 {
		t.Errorf("%d panics: %s", n, f.logs.String())
	}
	for _, p := range f.router.packets() {
		if !p.Has(stanza.NSPing, "ping") {
			t.Errorf("%s reached the router", p.AppendTo(nil))
		}
	}
}

func TestStanzaErrorsInASession(t *testing.T) {
	f := start(t)
	c := f.online("alice", "desk")
	for _, tt := range []struct{ name, send, want string }{
		{"malformed recipient", `<message to='@@' id='1'><body>x</body></message>`, `<message [^>]*type="error" id="1"[^>]*><error type="modify"><jid-malformed`},
		{"request without a child", `<iq type='get' id='2'/>`, `<iq [^>]*type="error" id="2".*<bad-request`},
		{"request with two", `<iq type='get' id='3'><a xmlns='u'/><b xmlns='u'/></iq>`, `<iq [^>]*type="error" id="3".*<bad-request`},
		{"second bind", `<iq type='set' id='4'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>`, `<iq [^>]*type="error" id="4"[^>]*><error type="cancel"><not-allowed`},
		{"session request", `<iq type='set' id='5'><session xmlns='urn:ietf:params:xml:ns:xmpp-session'/></iq>`, `<iq [^>]*type="result" id="5"`},
		{"own bare sender", `<iq from='alice@example.com' type='get' id='6'><ping xmlns='urn:xmpp:ping'/></iq>`, `<iq [^>]*type="result" id="6"`},
		{"own full sender", `<iq from='alice@example.com/desk' type='get' id='7'><ping xmlns='urn:xmpp:ping'/></iq>`, `<iq [^>]*type="result" id="7"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c.tb = t
			c.send(tt.send)
			c.expect(tt.want)
		})
	}
}

// TestLanguage: a stanza without a language has its stream's (RFC 6120 section 8.1.5).
func TestLanguage(t *testing.T) {
	long := strings.Repeat("x", maxLanguage+1)
	for _, tt := range []struct{ name, stream, stanza, want string }{
		{"the stream's", "de", "", "de"},
		{"the common one", "en", "", "en"},
		{"its own", "de", "fr", "fr"},
		{"none", "", "", ""},
		{"too long to be one", long, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := start(t)
			c := f.dial()
			c.startTLS(f)
			c.send(plainLogin("alice", testPassword))
			c.expect(`<success [^>]*/>`)
			c.send(strings.Replace(openStream, " to=", " xml:lang='"+tt.stream+"' to=", 1))
			c.expect(`</stream:features>`)
			c.bind("desk")
			lang := ""
			if tt.stanza != "" {
				lang = "xml:lang='" + tt.stanza + "'"
			}
			c.send(`<message to='bob@example.com/x' id='1' ` + lang + `><body>x</body></message>`)
			f.until("the message", func() bool { return len(f.router.packets()) == 1 })
			if p := f.router.packets()[0]; p.Lang != tt.want {
				t.Errorf("language %q, want %q", p.Lang, tt.want)
			}
		})
	}
}

func TestForgedChildrenAreStripped(t *testing.T) {
	f := start(t)
	c := f.online("alice", "desk")
	c.send(`<message to='bob@example.com/x' id='1'><body>x</body><stanza-id xmlns='urn:xmpp:sid:0' by='bob@example.com' id='1'/><received xmlns='urn:xmpp:carbons:2'/></message>`)
	f.until("the message", func() bool { return len(f.router.packets()) == 1 })
	p := f.router.packets()[0]
	if string(p.Inner) != "<body>x</body>" || p.From.String() != "alice@example.com/desk" {
		t.Errorf("got %s", p.AppendTo(nil))
	}
}

func TestNothingBeforeItsTime(t *testing.T) {
	f := start(t)
	t.Run("stanza before login", func(t *testing.T) {
		f := f.in(t)
		c := f.dial()
		c.startTLS(f)
		c.send(`<message to='bob@example.com'><body>x</body></message>`)
		c.expect(`<stream:error><not-authorized`)
	})
	t.Run("stanza before bind", func(t *testing.T) {
		f := f.in(t)
		c := f.dial()
		c.startTLS(f)
		c.login("alice")
		c.send(`<message to='bob@example.com'><body>x</body></message>`)
		c.expect(`<stream:error><not-authorized`)
	})
	t.Run("stream management before bind", func(t *testing.T) {
		f := f.in(t)
		c := f.dial()
		c.startTLS(f)
		c.login("alice")
		c.send(`<enable xmlns='urn:xmpp:sm:3'/>`)
		c.expect(`<failed xmlns='urn:xmpp:sm:3'><unexpected-request `)
		c.bind("desk")
	})
	t.Run("another domain after TLS", func(t *testing.T) {
		f := f.in(t)
		f.rig.Must(addDomain("other.example"))
		c := f.dial()
		c.send(openStream)
		c.expect(`</stream:features>`)
		c.send(`<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>`)
		c.expect(`<proceed [^>]*/>`)
		tc := tls.Client(c.conn, f.tlsConfig())
		if err := tc.Handshake(); err != nil {
			t.Fatal(err)
		}
		c.conn = tc
		c.send(header("example.com", "other.example"))
		c.expect(`<stream:error><host-unknown`)
	})
	t.Run("another sender after login", func(t *testing.T) {
		f := f.in(t)
		c := f.dial()
		c.startTLS(f)
		c.send(plainLogin("alice", testPassword))
		c.expect(`<success [^>]*/>`)
		c.send(header("to='", "from='bob@example.com' to='"))
		c.expect(`<stream:error><invalid-from`)
	})
	if got := f.router.packets(); len(got) != 0 {
		t.Errorf("%d stanzas reached the router", len(got))
	}
}

// TestCommandInjection: what arrives in clear together with <starttls/> is not taken for input under TLS (S10).
func TestCommandInjection(t *testing.T) {
	f := start(t)
	c := f.dial()
	c.send(openStream)
	c.expect(`</stream:features>`)
	c.send(`<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>` + openStream + plainLogin("alice", testPassword))
	c.expect(`<proceed [^>]*/>`)
	tc := tls.Client(c.conn, f.tlsConfig())
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	_ = tc.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := tc.Read(make([]byte, 100)); n != 0 || err == nil {
		t.Fatalf("the server answered what was sent in clear: %d bytes, %v", n, err)
	}
	if f.srv.Metrics().Logins != 0 {
		t.Error("logged in by what was sent in clear")
	}
}

func TestSeeOtherHost(t *testing.T) {
	f := start(t)
	f.srv.Redirect("node2.example.com:5222")
	c := f.dial()
	c.send(openStream)
	c.expect(`<required/></starttls></stream:features>`) // no redirection in clear
	c.send(`<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>`)
	c.expect(`<proceed [^>]*/>`)
	tc := tls.Client(c.conn, f.tlsConfig())
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	c.conn = tc
	c.send(openStream)
	c.expect(`<stream:stream [^>]*><stream:error><see-other-host xmlns="urn:ietf:params:xml:ns:xmpp-streams">node2.example.com:5222</see-other-host></stream:error></stream:stream>`)
	f.srv.Redirect("")
	f.online("alice", "desk")
}

func TestKeepAlive(t *testing.T) {
	f := start(t)
	c := f.online("alice", "desk")
	c.send(" ")
	c.send("\n \t")
	c.send(`<iq type='get' id='p'><ping xmlns='urn:xmpp:ping'/></iq>`)
	c.expect(`<iq [^>]*type="result" id="p"`)
}

// TestByteByByte: a stream may arrive in any pieces.
func TestByteByByte(t *testing.T) {
	f := start(t)
	c := f.online("alice", "desk")
	for _, b := range []byte(`<iq type='get' id='pieces'><ping xmlns='urn:xmpp:ping'/></iq>`) {
		c.send(string(b))
	}
	c.expect(`<iq [^>]*type="result" id="pieces"`)
}

func TestStopTellsEverybody(t *testing.T) {
	f := start(t)
	alice := f.online("alice", "desk")
	waiting := f.dial()
	waiting.send(openStream)
	waiting.expect(`</stream:features>`)
	silent := f.dial()
	addr := f.srv.Addresses()[0].String()
	f.until("all are connected", func() bool { return f.srv.Metrics().Connections == 3 })
	go f.stop()
	for name, c := range map[string]*client{"in a session": alice, "before TLS": waiting, "before the header": silent} {
		t.Run(name, func(t *testing.T) {
			c.tb = t
			c.expect(`<stream:error><system-shutdown`)
			c.closed()
			c.conn.Close()
		})
	}
	f.router.session("alice@example.com/desk").wait(t)
	f.until("the port is closed", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	if h := f.srv.Health(); h.State != "STOPPED" {
		t.Errorf("health %+v", h)
	}
}
