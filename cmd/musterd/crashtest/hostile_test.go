//go:build crash && linux

package crashtest

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"muster/cmd/musterbench/client"
	"muster/cmd/musterbench/target"
	"muster/cmd/musterbench/wire"
	"muster/edges/http/adminapi"
)

// attacks are in the order of reliability-security.md S1 to S15.
var attacks = []attack{
	{name: "DTD before the header", want: `^stream error restricted-xml$`, do: plainly(`<!DOCTYPE stream [<!ENTITY a "b">]>` + openStream)},
	{name: "DTD in a session", want: `^stream error restricted-xml$`, do: inSession(`<!DOCTYPE x><message/>`)},
	{name: "entity bomb", want: `^stream error restricted-xml$`, do: inSession(entityBomb())},
	{name: "undeclared entity", want: `^stream error (restricted-xml|not-well-formed)$`, do: inSession(`<message><body>&lol;</body></message>`)},
	{name: "comment", want: `^stream error restricted-xml$`, do: inSession(`<!-- hello -->`)},
	{name: "processing instruction", want: `^stream error restricted-xml$`, do: inSession(`<?php x?>`)},
	{name: "200,000 nested elements", want: `^stream error policy-violation$`, do: inSession(`<message>` + strings.Repeat("<a>", 200_000))},
	{name: "200,000 nested elements before login", want: `^stream error policy-violation$`, do: beforeLogin(strings.Repeat("<a>", 200_000))},
	{name: "100,000 namespace declarations", want: `^stream error policy-violation$`, do: inSession(declarations(100_000))},
	{name: "duplicate attribute", want: `^stream error not-well-formed$`, do: inSession(`<message id='a' id='b'/>`)},
	{name: "undeclared prefix", want: `^stream error not-well-formed$`, do: inSession(`<message><x:a/></message>`)},
	{name: "invalid UTF-8", want: `^stream error (unsupported-encoding|not-well-formed)$`, do: inSession("<message><body>\xc0\xaf</body></message>")},
	{name: "stanza of 1 MiB", want: `^stream error policy-violation$`, do: inSession(`<message><body>` + strings.Repeat("x", 1<<20))},
	{name: "stanza of 64 KiB before login", want: `^stream error policy-violation$`, do: beforeLogin(`<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>` + strings.Repeat("A", 64<<10))},
	{name: "forged from", want: `^stream error invalid-from$`, do: inSession(`<message from='p00@example.test/desk' to='p01@example.test/desk' id='forged'><body>x</body></message>`)},
	{name: "message before login", want: `^stream error not-authorized$`, do: beforeLogin(`<message to='p01@example.test/desk'><body>x</body></message>`)},
	{name: "message before STARTTLS", want: `^stream error (policy-violation|not-authorized)$`, do: plainly(openStream + `<message to='p01@example.test/desk'><body>x</body></message>`)},
	{name: "stanza before bind", want: `^stream error not-authorized$`, do: stanzaBeforeBind},
	{name: "second bind", want: `^error not-allowed, the session goes on$`, do: secondBind},
	{name: "300 resources", want: `^10 bound, 290 refused resource-constraint$`, do: manyResources},
	{name: "1,400 connections that say nothing or half a header", want: `^all closed$`, do: abandoned},
	{name: "100 half-open connections of one address", want: `^100 held, the next closed without a word$`, do: halfOpen},
	{name: "garbage on 5222, 5223, cluster and HTTPS ports", want: `^200 of 200 closed$`, do: garbage},
	{name: "HTTPS: a head of 1 MiB", want: `^431`, do: largeHead},
	{name: "cluster port without a certificate", want: `^refused`, do: noCertificate},
	{name: "brute force", want: `^5 not-authorized, then temporary-auth-failure; others log in; after 20 the address is closed without a word$`, do: bruteForce},
	{name: "roster beyond its limit", want: `^1000 taken, \d+ refused policy-violation$`, do: hugeRoster},
}

// TestHostile attacks one node while people on all nodes chat.
func TestHostile(t *testing.T) {
	c := newCluster(t, "one", "two", "three")
	s := &siege{stage: newStage(t, c, 9), victim: c.nodes[0], chat: newChat(),
		report: newTable("Hostile clients against one node, while 9 sessions on three nodes chat", "attack", "reaction", "time", "others unaffected", "resident after")}
	s.prepare()
	s.enter()
	for _, p := range s.people {
		p.mu.Lock()
		p.chat = s.chat
		p.mu.Unlock()
	}
	ctx, cancel := context.WithCancel(context.Background())
	talk := make(chan struct{})
	go func() { defer close(talk); s.chat.run(ctx, s.people, chatStep) }()
	defer func() { cancel(); <-talk }()
	s.settle()
	drips := s.startDrips()
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			s.t = t
			s.run(a)
		})
	}
	t.Run("a byte a second", func(t *testing.T) {
		s.t = t
		s.run(attack{name: "a byte a second", want: `^2 of 2 connection-timeout`, do: func(*siege) string { return drips() }})
	})
	s.t = t
	s.recovered(t)
	s.report.print(t)
}

// prepare makes eve and mallory, and lifts the limits that would only make the test slow:
// those of rates, not of sizes and counts. The victim collects garbage more
// often than usual, so that what it really holds shows soon.
func (s *siege) prepare() {
	s.eve = target.User{Local: "eve", Domain: domain, Password: "eve's secret"}
	var outcomes []adminapi.Outcome
	s.mallory = target.User{Local: "mallory", Domain: domain, Password: "mallory's secret"}
	s.victim.must(http.MethodPost, "/users", []adminapi.NewUser{{JID: s.eve.JID(), Password: string(s.eve.Password)},
		{JID: s.mallory.JID(), Password: string(s.mallory.Password)}}, &outcomes)
	mustSucceed(s.t, outcomes)
	for name, value := range map[string]string{
		"c2s.connection_rate_per_address": "100000", "c2s.byte_rate": "1000000000", "c2s.byte_burst": "1000000000",
		"c2s.stanza_rate": "1000000", "c2s.stanza_burst": "1000000",
	} {
		s.victim.set(name, value)
	}
	s.victim.stop()
	s.victim.env = []string{"GOGC=25"}
	s.victim.start()
	s.victim.awaitReady(readyTime)
}

// settle notes what the victim holds when all is quiet, after it has once done
// what the attacks make it do, so that its caches are as full as they get.
func (s *siege) settle() {
	s.fillRoster(s.mallory, 3000)
	for range 3 {
		inSession(`<message><body>` + strings.Repeat("x", 1<<20))(s)
		crowd(40, 20, func(int) string { return plainly(openStream + `<message/>`)(s) })
	}
	time.Sleep(3 * time.Second)
	s.base = s.victim.footprint(s.t)
}

// recovered checks that the victim lets go of everything.
func (s *siege) recovered(t *testing.T) {
	begun := time.Now()
	var now footprint
	ok := eventually(90*time.Second, 500*time.Millisecond, func() bool {
		now = s.victim.footprint(t)
		return now.within(s.base)
	})
	if !ok {
		t.Errorf("the victim held %v before and holds %v", s.base, now)
		s.explain(t)
	}
	s.report.row("afterwards", fmt.Sprintf("before: %v; peak: %.1f MiB; after: %v", s.base, float64(s.peak.Load())/(1<<20), now), time.Since(begun), ok, fmt.Sprintf("%.1f MiB", float64(now.resident)/(1<<20)))
	m, err := s.victim.metrics()
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range m {
		if strings.Contains(name, "panics") && v > 0 {
			t.Errorf("%s = %v", name, v)
		}
	}
	if bytes.Contains([]byte(s.victim.lastWords()), []byte("panic")) {
		t.Errorf("a panic in the log:\n%s", s.victim.lastWords())
	}
}

// explain shows what the victim's memory is used for.
func (s *siege) explain(t *testing.T) {
	m, err := s.victim.metrics()
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range m {
		if strings.HasPrefix(name, "go_memstats_") && strings.HasSuffix(name, "_bytes") {
			t.Logf("%s %.1f MiB", name, v/(1<<20))
		}
	}
}

// entityBomb is the billion laughs.
func entityBomb() string {
	var b strings.Builder
	b.WriteString(`<!DOCTYPE lolz [<!ENTITY lol0 "lol">`)
	for i := range 9 {
		fmt.Fprintf(&b, `<!ENTITY lol%d "%s">`, i+1, strings.Repeat(fmt.Sprintf("&lol%d;", i), 10))
	}
	b.WriteString(`]><message><body>&lol9;</body></message>`)
	return b.String()
}

// declarations is an element with n namespace declarations.
func declarations(n int) string {
	var b strings.Builder
	b.WriteString("<message")
	for i := range n {
		fmt.Fprintf(&b, " xmlns:n%d='u'", i)
	}
	return b.String() + "/>"
}

func stanzaBeforeBind(s *siege) string {
	c := s.secured()
	_ = c.SetDeadline(time.Now().Add(assaultTime))
	_, _ = io.WriteString(c, openStream+plainLogin(s.eve))
	b := make([]byte, 8<<10)
	var got []byte
	for !bytes.Contains(got, []byte("<success")) {
		n, err := c.Read(b)
		if err != nil {
			return fmt.Sprintf("no login: %v %s", err, got)
		}
		got = append(got, b[:n]...)
	}
	return assault(c, openStream+`<message to='p01@example.test/desk'><body>x</body></message>`)
}

func secondBind(s *siege) string {
	c := s.mustSession("attack")
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(assaultTime))
	_ = c.Send([]byte(`<iq type='set' id='again'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>other</resource></bind></iq>`))
	answer, err := c.Await(func(f []byte) bool { return string(wire.Attr(f, "id")) == "again" })
	if err != nil {
		return err.Error()
	}
	_ = c.Send([]byte(`<iq type='get' id='ping'><ping xmlns='urn:xmpp:ping'/></iq>`))
	pong, err := c.Await(func(f []byte) bool { return string(wire.Attr(f, "id")) == "ping" })
	if err != nil || string(wire.Attr(pong, "type")) != "result" {
		return fmt.Sprintf("then %s %v", pong, err)
	}
	return "error " + refusal(answer) + ", the session goes on"
}

// manyResources binds 300 resources of one user; ten may stay.
func manyResources(s *siege) string {
	held := make(chan net.Conn, 300)
	defer func() {
		close(held)
		for c := range held {
			c.Close()
		}
		eventually(5*time.Second, 50*time.Millisecond, func() bool {
			c, err := s.session(s.eve, "after", home) // the server has noticed that they are gone
			if err == nil {
				c.Close()
			}
			return err == nil
		})
	}()
	got := crowd(300, 20, func(i int) string {
		c, err := s.session(s.eve, fmt.Sprintf("r%d", i), home)
		if err != nil {
			if m := conditionPattern.FindStringSubmatch(err.Error()); m != nil {
				return m[1]
			}
			return err.Error()
		}
		held <- c
		return "bound"
	})
	bound, refused := got["bound"], got["resource-constraint"]
	if bound+refused != 300 {
		return fmt.Sprint(got)
	}
	return fmt.Sprintf("%d bound, %d refused resource-constraint", bound, refused)
}

// abandoned connects and goes away at once, in all stages before the login.
func abandoned(s *siege) string {
	got := crowd(1400, 40, func(i int) string {
		c := s.dial([]string{s.victim.clientAddr, s.victim.tlsAddr}[i%2], net.IPv4(127, 0, 1, byte(1+i%200)))
		_ = c.SetDeadline(time.Now().Add(assaultTime))
		_, _ = io.WriteString(c, []string{"", openStream, openStream[:40], "\x16\x03\x01\x02\x00\x01"}[i%4])
		c.Close()
		return "closed"
	})
	if got["closed"] != 1400 {
		return fmt.Sprint(got)
	}
	return "all closed"
}

// halfOpen holds the connections that one address may have before it has logged in.
func halfOpen(s *siege) string {
	from := net.IPv4(127, 0, 0, 66)
	var held []net.Conn
	defer func() {
		for _, c := range held {
			c.Close()
		}
	}()
	for range 100 {
		c := s.dial(s.victim.clientAddr, from)
		held = append(held, c)
		_, _ = io.WriteString(c, openStream)
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Read(make([]byte, 10)); err != nil {
			return fmt.Sprintf("connection %d: %v", len(held), err)
		}
	}
	return "100 held, the next " + assault(s.dial(s.victim.clientAddr, from), openStream)
}

// garbage sends noise to every port; each connection is to be closed, whatever is said.
func garbage(s *siege) string {
	ports := []string{s.victim.clientAddr, s.victim.tlsAddr, s.victim.clusterAddr, s.victim.httpsAddr}
	got := crowd(200, 25, func(i int) string {
		noise := make([]byte, 16<<10)
		random := rand.New(rand.NewPCG(uint64(i), 1))
		for j := range noise {
			noise[j] = byte(random.Uint32())
		}
		answer := assault(s.dial(ports[i%4], net.IPv4(127, 0, 2, byte(1+i))), string(noise))
		if strings.HasPrefix(answer, "no end") {
			return ports[i%4] + " " + answer
		}
		return "closed"
	})
	if got["closed"] != 200 {
		return fmt.Sprint(got)
	}
	return "200 of 200 closed"
}

func largeHead(s *siege) string {
	req, err := http.NewRequest(http.MethodGet, "https://"+s.victim.httpsAddr+"/health/live", nil)
	if err != nil {
		return err.Error()
	}
	req.Header.Set("X-Large", strings.Repeat("x", 1<<20))
	resp, err := s.web.Do(req)
	if err != nil {
		return "431 or a reset: " + err.Error() // HTTP/2 ends the stream instead
	}
	defer resp.Body.Close()
	return resp.Status
}

// noCertificate knocks at the cluster port as a member without a certificate.
func noCertificate(s *siege) string {
	c := tls.Client(s.dial(s.victim.clusterAddr, home), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"muster/1"}, MinVersion: tls.VersionTLS13})
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(assaultTime))
	if err := c.Handshake(); err != nil {
		return "refused: " + err.Error()
	}
	_, _ = c.Write([]byte("\x0craft/control"))
	b := make([]byte, 300)
	n, err := c.Read(b)
	if err != nil {
		return "refused: " + err.Error()
	}
	if n > 0 && b[0] != 0 {
		return fmt.Sprintf("refused: %q", b[1:n])
	}
	return fmt.Sprintf("taken in: %q", b[:n])
}

// bruteForce guesses passwords from one address until it is banned.
func bruteForce(s *siege) string {
	from := net.IPv4(127, 0, 0, 88)
	guess := func(user target.User) string {
		c, err := s.session(user, "guess", from)
		if err == nil {
			c.Close()
			return "let in"
		}
		for _, word := range []string{"not-authorized", "temporary-auth-failure"} {
			if strings.Contains(err.Error(), word) {
				return word
			}
		}
		return "closed without a word"
	}
	wrong := s.eve
	wrong.Password = "a guess"
	for i := range 5 {
		if got := guess(wrong); got != "not-authorized" {
			return fmt.Sprintf("guess %d: %s", i, got)
		}
	}
	locked := guess(s.eve)
	c, err := s.session(s.eve, "elsewhere", home)
	if err != nil {
		return "the account is locked for everybody: " + err.Error()
	}
	c.Close()
	for i := range 15 {
		guess(target.User{Local: fmt.Sprintf("nobody%d", i), Domain: domain, Password: "x"})
	}
	return fmt.Sprintf("5 not-authorized, then %s; others log in; after 20 the address is %s", locked, guess(s.eve))
}

// hugeRoster adds ten thousand contacts by as many sessions as a user may have; a thousand fit.
func hugeRoster(s *siege) string {
	count := 10_001
	if testing.Short() {
		count = 1_501
	}
	got := s.fillRoster(s.eve, count)
	if got[""]+got["policy-violation"] != count {
		return fmt.Sprint(got)
	}
	return fmt.Sprintf("%d taken, %d refused policy-violation", got[""], got["policy-violation"])
}

// fillRoster adds contacts and counts the answers by condition.
func (s *siege) fillRoster(user target.User, count int) map[string]int {
	const sessions = 10
	got := map[string]int{}
	var mu sync.Mutex
	var all sync.WaitGroup
	for i := range sessions {
		all.Go(func() {
			c, err := s.session(user, fmt.Sprintf("r%d", i), home)
			if err != nil {
				s.t.Error(err)
				return
			}
			part := addContacts(c, i, count, sessions)
			mu.Lock()
			defer mu.Unlock()
			for condition, n := range part {
				got[condition] += n
			}
		})
	}
	all.Wait()
	return got
}

// addContacts adds every step-th contact from first on and counts the answers by condition.
func addContacts(c *client.Conn, first, count, step int) map[string]int {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Minute))
	wanted := (count - first + step - 1) / step
	go func() {
		for i := first; i < count; i += step {
			if c.Send(fmt.Appendf(nil, `<iq type='set' id='r%d'><query xmlns='jabber:iq:roster'><item jid='many%d@elsewhere.test'/></query></iq>`, i, i)) != nil {
				return
			}
		}
	}()
	got := map[string]int{}
	n := 0
	_ = c.Serve(func(f []byte) {
		if !strings.HasPrefix(string(wire.Attr(f, "id")), "r") {
			return
		}
		got[refusal(f)]++
		if n++; n == wanted {
			c.Close()
		}
	})
	return got
}

// startDrips sends a byte a second in the header and before the login. The function it returns waits for the end.
func (s *siege) startDrips() (wait func() string) {
	drip := func(c net.Conn, text string) string {
		go func() {
			for i := range text {
				if _, err := io.WriteString(c, text[i:i+1]); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}()
		_ = c.SetReadDeadline(time.Now().Add(45 * time.Second))
		b, err := io.ReadAll(c)
		c.Close()
		if e, ok := err.(net.Error); ok && e.Timeout() {
			return "held for 45 s"
		}
		return lastWord(b)
	}
	results := make(chan string, 2)
	begun := time.Now()
	go func() { results <- drip(s.dial(s.victim.clientAddr, home), openStream) }()
	go func() {
		c := s.secured()
		_ = c.SetDeadline(time.Time{})
		_, _ = io.WriteString(c, openStream)
		results <- drip(c, "<auth>"+strings.Repeat("A", 100))
	}()
	return func() string {
		n := 0
		var all []string
		for range 2 {
			got := <-results
			all = append(all, got)
			if got == "stream error connection-timeout" {
				n++
			}
		}
		return fmt.Sprintf("%d of 2 connection-timeout within %.0f s: %v", n, time.Since(begun).Seconds(), all)
	}
}

// plainLogin is a SASL PLAIN request.
func plainLogin(u target.User) string {
	return `<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>` + base64.StdEncoding.EncodeToString([]byte("\x00"+u.Local+"\x00"+string(u.Password))) + `</auth>`
}
