package xmpp

import (
	"context"
	"crypto/tls"
	"encoding/xml"
	"net"
	"testing"
	"time"

	"mellium.im/sasl"
	"mellium.im/xmlstream"
	"mellium.im/xmpp"
	mjid "mellium.im/xmpp/jid"
	mstanza "mellium.im/xmpp/stanza"
)

// foreign logs in with mellium.im/xmpp, a client that this project did not write.
func foreign(t *testing.T, f *fixture, user, password string, mechanism sasl.Mechanism, conf *tls.Config) (*xmpp.Session, error) {
	t.Helper()
	conn, err := net.Dial("tcp", f.srv.Addresses()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), testPatience)
	defer cancel()
	return xmpp.NewClientSession(ctx, mjid.MustParse(user+"@"+testDomain+"/foreign"), conn,
		xmpp.StartTLS(conf), xmpp.SASL("", password, mechanism), xmpp.BindResource())
}

func TestForeignClientLogsIn(t *testing.T) {
	f := start(t)
	old := f.tlsConfig()
	old.MaxVersion = tls.VersionTLS12
	for _, tt := range []struct {
		name      string
		mechanism sasl.Mechanism
		conf      *tls.Config
		password  string
		ok        bool
	}{
		{"SCRAM-SHA-256-PLUS over TLS 1.3", sasl.ScramSha256Plus, f.tlsConfig(), testPassword, true},
		{"SCRAM-SHA-1-PLUS over TLS 1.3", sasl.ScramSha1Plus, f.tlsConfig(), testPassword, true},
		{"SCRAM-SHA-256 over TLS 1.3", sasl.ScramSha256, f.tlsConfig(), testPassword, true},
		{"SCRAM-SHA-1 over TLS 1.2", sasl.ScramSha1, old, testPassword, true},
		{"PLAIN", sasl.Plain, f.tlsConfig(), testPassword, true},
		{"wrong password", sasl.ScramSha256, f.tlsConfig(), "pen", false},
		{"wrong password with binding", sasl.ScramSha256Plus, f.tlsConfig(), "pen", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := foreign(t, f.in(t), "alice", tt.password, tt.mechanism, tt.conf)
			if (err == nil) != tt.ok {
				t.Fatalf("login: %v", err)
			}
			if err == nil && s.LocalAddr().String() != f.router.bound[len(f.router.bound)-1].full.String() {
				t.Errorf("bound %s", s.LocalAddr())
			}
		})
	}
}

func TestForeignClientsChat(t *testing.T) {
	f := start(t)
	alice, err := foreign(t, f, "alice", testPassword, sasl.ScramSha256, f.tlsConfig())
	if err != nil {
		t.Fatal(err)
	}
	bob, err := foreign(t, f, "bob", testPassword, sasl.ScramSha1, f.tlsConfig())
	if err != nil {
		t.Fatal(err)
	}
	type body struct {
		mstanza.Message
		Body string `xml:"body"`
	}
	got := make(chan string, 1)
	go func() {
		_ = bob.Serve(xmpp.HandlerFunc(func(r xmlstream.TokenReadEncoder, start *xml.StartElement) error {
			text := start.Name.Space + " " + start.Attr[0].Value + " "
			for {
				switch tok, err := r.Token(); {
				case tok != nil:
					if c, ok := tok.(xml.CharData); ok {
						text += string(c)
					}
				case err != nil:
					got <- text
					return nil
				}
			}
		}))
	}()
	ctx, cancel := context.WithTimeout(context.Background(), testPatience)
	defer cancel()
	want := "<ö> & so on"
	if err := alice.Encode(ctx, body{Message: mstanza.Message{To: bob.LocalAddr(), Type: mstanza.ChatMessage}, Body: want}); err != nil {
		t.Fatal(err)
	}
	select {
	case m := <-got:
		if m != "jabber:client "+alice.LocalAddr().String()+" "+want {
			t.Errorf("got %q", m)
		}
	case <-time.After(testPatience):
		for _, p := range f.router.packets() {
			t.Logf("%s", p.AppendTo(nil))
		}
		t.Fatal("no message")
	}
	if err := alice.Close(); err != nil {
		t.Error(err)
	}
}
