package xmpp

import (
	"encoding/base64"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"muster/router/stanza"
)

// bombs are what no client sends by mistake (S1).
var bombs = map[string]string{
	"document type": `<!DOCTYPE x>`,
	"entities":      `<!DOCTYPE lolz [<!ENTITY a "` + strings.Repeat("lol", 1000) + `"><!ENTITY b "&a;&a;&a;&a;">]>`,
	"instruction":   `<?xml-stylesheet href="x"?>`,
	"comment":       `<!-- ` + strings.Repeat("x", 2000) + ` -->`,
	"marked data":   `<![CDATA[x]]>`,
	"entity":        `<message>&lol;</message>`,
}

// stages bring a client to each stage of a stream.
func (f *fixture) stages() map[string]func() *client {
	return map[string]func() *client{
		"before TLS":   func() *client { c := f.dial(); c.send(openStream); c.expect(`</stream:features>`); return c },
		"before login": func() *client { c, _ := f.beforeLogin(); return c },
		"before bind":  func() *client { return f.returning("alice") },
		"in a session": func() *client { return f.online("alice", "") },
	}
}

// TestBombsAreRefusedAtOnce: the stream is closed within 100 ms (S1). The median of several tries counts: the machine may be busy.
func TestBombsAreRefusedAtOnce(t *testing.T) {
	f := start(t, "c2s.unlimited_networks", "127.0.0.0/8")
	for stage, reach := range f.stages() {
		for name, bomb := range bombs {
			t.Run(name+" "+stage, func(t *testing.T) {
				f.in(t)
				var took []time.Duration
				for range 5 {
					c := reach()
					begin := time.Now()
					c.send(bomb)
					c.expect(`<stream:error><(restricted-xml|not-well-formed) `)
					if rest := c.closed(); !strings.HasSuffix(rest, closeTag) {
						t.Fatalf("not closed: %q", rest)
					}
					took = append(took, time.Since(begin))
					c.conn.Close()
				}
				if slices.Sort(took); took[len(took)/2] > 100*time.Millisecond {
					t.Errorf("took %v", took)
				}
			})
		}
	}
	f.until("nothing is left", func() bool { return f.srv.Metrics().Connections == 0 })
}

// heap returns the bytes in use after collection.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// TestBombsLeaveNothing: after thousands of bombs less than 1 MiB more is in use (S1).
func TestBombsLeaveNothing(t *testing.T) {
	f := start(t, "c2s.unlimited_networks", "127.0.0.0/8")
	throw := func(n int) {
		for range n {
			c := f.dial()
			c.send(openStream + bombs["entities"])
			c.expect(`<restricted-xml `)
			c.conn.Close()
		}
		f.until("all are gone", func() bool { return f.srv.Metrics().Connections == 0 })
	}
	throw(200) // what is made once
	f.srv.workers.sweep(time.Now().Add(time.Hour))
	before := heap()
	throw(1000)
	f.srv.workers.sweep(time.Now().Add(time.Hour))
	if grown := heap() - before; grown > 1<<20 {
		t.Errorf("%d bytes more in use", grown)
	}
}

// TestStanzaSizes: what is advertised is accepted to the byte, and no byte more (S3).
func TestStanzaSizes(t *testing.T) {
	f := start(t, "c2s.byte_burst", "10000000")
	wrap := func(size int) string {
		open, end := `<message to='bob@example.com/x'><body>`, `</body></message>`
		return open + strings.Repeat("x", size-len(open)-len(end)) + end
	}
	c := f.online("alice", "desk")
	c.send(wrap(MaxStanzaBytes))
	f.until("the largest stanza arrives", func() bool { return len(f.router.packets()) == 1 })
	_, _ = c.conn.Write([]byte(wrap(MaxStanzaBytes + 1)))
	c.expect(`<stream:error><policy-violation `)
	if n := len(f.router.packets()); n != 1 {
		t.Errorf("%d stanzas arrived", n)
	}
}

// TestSlowStanza: a stanza that never ends is given up (S3).
func TestSlowStanza(t *testing.T) {
	f := start(t)
	c := f.online("alice", "desk")
	c.send(`<message><body>`)
	var st *stream
	f.until("it has begun", func() bool {
		st = f.srv.running().streams.all()[0]
		return st.partial.Load() != 0
	})
	p := patience{now: time.Now().Add(partialTimeout / 2), idle: time.Hour, probe: time.Hour}
	st.check(p)
	if st.ending.Load() {
		t.Fatal("given up too early")
	}
	p.now = p.now.Add(partialTimeout)
	st.check(p)
	c.expect(`<stream:error><policy-violation .*too long`)
}

// TestFloodBeforeLogin: who does not log in may not go on sending, whatever it sends.
func TestFloodBeforeLogin(t *testing.T) {
	for name, piece := range map[string]string{
		"white space": strings.Repeat(" ", 4000),
		"headers":     strings.Repeat(`<abort xmlns='urn:ietf:params:xml:ns:xmpp-sasl' x='`+strings.Repeat("y", 900)+`'/>`, 4),
	} {
		t.Run(name, func(t *testing.T) {
			f := start(t)
			c, _ := f.beforeLogin()
			for range 2 * maxBytesBefore / 4000 {
				if _, err := io.WriteString(c.conn, piece); err != nil {
					break
				}
			}
			c.expect(`<stream:error><policy-violation `)
		})
	}
}

// TestStartTLSOnce: TLS is not offered, and not begun, under TLS (S10).
func TestStartTLSOnce(t *testing.T) {
	f := start(t)
	c, features := f.beforeLogin()
	if strings.Contains(features, "starttls") {
		t.Errorf("offered: %s", features)
	}
	c.send(`<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>`)
	c.expect(`^<stream:error><not-authorized `)
}

// TestNothingButTLSInClear: neither mechanisms nor anything else is offered before it (S10).
func TestNothingButTLSInClear(t *testing.T) {
	f := start(t)
	c := f.dial()
	c.send(openStream)
	got := c.expect(`<stream:features>(.*)</stream:features>`)
	if got != `<starttls xmlns='`+stanza.NSTLS+`'><required/></starttls>` {
		t.Errorf("offered: %s", got)
	}
}

// TestDowngrade: a client that would have bound the channel and saw no such mechanism was deceived (S11).
func TestDowngrade(t *testing.T) {
	f := start(t)
	for _, tt := range []struct{ name, mechanism, first, want string }{
		{"it could, and thinks we cannot", "SCRAM-SHA-256", "y,,n=alice,r=abcdefgh", `<failure `},
		{"it cannot", "SCRAM-SHA-256", "n,,n=alice,r=abcdefgh", `<challenge `},
		{"bound by another mechanism", "SCRAM-SHA-256", "p=tls-exporter,,n=alice,r=abcdefgh", `<failure `},
		{"not bound where it must be", "SCRAM-SHA-256-PLUS", "n,,n=alice,r=abcdefgh", `<failure `},
		{"unknown binding", "SCRAM-SHA-256-PLUS", "p=tls-unique,,n=alice,r=abcdefgh", `<failure `},
		{"no such mechanism", "DIGEST-MD5", "", `<failure [^>]*><invalid-mechanism`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, _ := f.in(t).beforeLogin()
			c.send(`<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='` + tt.mechanism + `'>` + base64.StdEncoding.EncodeToString([]byte(tt.first)) + `</auth>`)
			c.expect(`^` + tt.want)
		})
	}
}

// TestHundredUnauthenticated: the default limit of one address (S14).
func TestHundredUnauthenticated(t *testing.T) {
	f := start(t)
	f.online("alice", "desk")
	open := make([]net.Conn, 0, 100)
	for range 100 {
		open = append(open, f.dial().conn)
	}
	f.until("all are in", func() bool { return f.srv.Metrics().Unauthenticated == 100 })
	if got := f.dial().closed(); got != "" {
		t.Errorf("one more was answered: %s", got)
	}
	if m := f.srv.Metrics(); m.Refused[string(refusedAddress)] != 1 || m.Unauthenticated != 100 {
		t.Errorf("metrics %+v", m)
	}
	for _, c := range open {
		c.Close()
	}
	f.until("all are gone", func() bool { return f.srv.Metrics().Connections == 1 })
	f.online("bob", "desk")
}

// TestPanicsWhileWriting: what breaks while a client is written to ends its stream only (S28).
func TestPanicsWhileWriting(t *testing.T) {
	f, c, trap := trapped(t)
	trap(func([]byte) (int, error) { panic("written to") })
	s := f.router.session(c.full)
	if err := f.deliver(c.full, "m"); err != nil {
		t.Fatal(err)
	}
	s.wait(t)
	c.closed()
	f.until("the stream is gone", func() bool { m := f.srv.Metrics(); return m.Connections == 0 && m.Sessions == 0 })
	bystander := f.online("bob", "desk")
	bystander.send(`<iq type='get' id='p'><ping xmlns='urn:xmpp:ping'/></iq>`)
	bystander.expect(`type="result" id="p"`)
	if m := f.srv.Metrics(); m.Panics == 0 {
		t.Error("not counted")
	}
}
