//go:build crash && linux

package crashtest

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"regexp"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"muster/cmd/musterbench/client"
	"muster/cmd/musterbench/target"
	"muster/internal/store"
)

// siege is a cluster with people who chat, one node of which is attacked.
type siege struct {
	*stage
	victim  *node
	report  *table
	chat    *chat
	eve     target.User // a user of the cluster with bad intentions
	mallory target.User // another, who does the same before anything is measured
	base    footprint
	peak    atomic.Int64 // resident bytes, the most seen
}

// footprint is what a process holds.
type footprint struct {
	resident   int64
	goroutines float64
	files      float64
}

func (n *node) footprint(t *testing.T) footprint {
	t.Helper()
	m, err := n.metrics()
	if err != nil {
		t.Fatal(err)
	}
	return footprint{n.resident(), m["go_goroutines"], m["process_open_fds"]}
}

// slack is what a process may hold more after the attacks than before, besides a
// tenth: the store's block cache and memtable, which ten thousand changes fill, and some.
var slack = footprint{resident: store.DefaultCache + 4<<20, goroutines: 10, files: 8}

func (f footprint) within(base footprint) bool {
	return f.resident <= base.resident+base.resident/10+slack.resident &&
		f.goroutines <= base.goroutines*1.1+slack.goroutines && f.files <= base.files*1.1+slack.files
}

func (f footprint) String() string {
	return fmt.Sprintf("%.1f MiB, %.0f goroutines, %.0f files", float64(f.resident)/(1<<20), f.goroutines, f.files)
}

// attack is one thing that a hostile client does.
type attack struct {
	name string
	want string                      // pattern of the reaction
	do   func(s *siege) (got string) // does it and returns the reaction
}

// run does one attack while the others chat, and checks that they did not notice.
func (s *siege) run(a attack) {
	begun := time.Now()
	got := a.do(s)
	took := time.Since(begun)
	if !regexp.MustCompile(a.want).MatchString(got) {
		s.t.Errorf("%s: the reaction was %.300q, not %s", a.name, got, a.want)
	}
	time.Sleep(300 * time.Millisecond)
	unwell := s.unwell(begun)
	for _, p := range first(unwell) {
		s.t.Error(p)
	}
	s.peak.Store(max(s.peak.Load(), s.victim.resident()))
	s.report.row(a.name, fmt.Sprintf("%.90s", got), took, len(unwell) == 0, fmt.Sprintf("%.1f MiB", float64(s.victim.resident())/(1<<20)))
}

// unwell lists what happened to the others since a moment.
func (s *siege) unwell(since time.Time) []string {
	var out []string
	for _, n := range s.nodes {
		if !n.running() {
			s.t.Fatalf("%s has ended:\n%s", n.name, n.lastWords())
		}
	}
	for _, p := range s.people {
		if n := p.lossesSince(since); n > 0 {
			out = append(out, fmt.Sprintf("%v lost its connection", p))
		}
	}
	s.chat.settle(5 * time.Second)
	s.chat.mu.Lock()
	defer s.chat.mu.Unlock()
	for id, l := range s.chat.letters {
		if l.sent.After(since) && (len(l.delivered) != 1 || len(l.bounced) > 0) && time.Since(l.sent) > 5*time.Second {
			out = append(out, fmt.Sprintf("%s from %v to %v: delivered %d, bounced %d %s", id, l.from, l.to, len(l.delivered), len(l.bounced), l.why))
		}
	}
	return out
}

// home is the address that a peaceful client comes from; attacks that are counted by address have others.
var home = net.IPv4(127, 0, 0, 1)

// session logs a user in at the victim from an address.
func (s *siege) session(user target.User, resource string, from net.IP) (*client.Conn, error) {
	conf, err := client.TLSConfig(s.caFile, domain, client.Direct, false)
	if err != nil {
		return nil, err
	}
	return client.Login(context.Background(), client.Options{Address: s.victim.tlsAddr, Transport: client.Direct, TLS: conf,
		Mechanism: "SCRAM-SHA-1", Resource: resource, Source: from, Timeout: loginTime}, user)
}

// mustSession is session that may not fail.
func (s *siege) mustSession(resource string) *client.Conn {
	s.t.Helper()
	c, err := s.session(s.eve, resource, home)
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// inSession sends text in eve's bound session and returns all that comes back until the server closes.
func inSession(text string) func(*siege) string {
	return func(s *siege) string {
		c := s.mustSession("attack")
		return assault(c, text)
	}
}

// beforeLogin sends text after TLS and the stream header.
func beforeLogin(text string) func(*siege) string {
	return func(s *siege) string {
		c := s.secured()
		_ = c.SetDeadline(time.Now().Add(assaultTime))
		_, _ = io.WriteString(c, openStream)
		return assault(c, text)
	}
}

// plainly sends text to the STARTTLS port as the first thing.
func plainly(text string) func(*siege) string {
	return func(s *siege) string { return assault(s.dial(s.victim.clientAddr, home), text) }
}

// assaultTime is how long the server may take to end an assault.
const assaultTime = 10 * time.Second

// assault writes text and returns what comes back until the server closes.
func assault(c net.Conn, text string) string {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(assaultTime))
	written := make(chan struct{})
	go func() {
		defer close(written)
		_, _ = io.WriteString(c, text) // the server need not read all
	}()
	b, err := io.ReadAll(io.LimitReader(c, 1<<20))
	c.Close()
	<-written
	if e, ok := err.(net.Error); ok && e.Timeout() {
		return fmt.Sprintf("no end after %v: %s", assaultTime, b)
	}
	return lastWord(b)
}

var streamError = regexp.MustCompile(`(?s)<stream:error>.*?</stream:error>`)

// lastWord is the stream error in what the server sent, or what it sent at all.
func lastWord(b []byte) string {
	if m := streamError.Find(b); m != nil {
		if c := conditionPattern.FindSubmatch(m); c != nil {
			return "stream error " + string(c[1])
		}
	}
	if len(b) == 0 {
		return "closed without a word"
	}
	return string(b[max(0, len(b)-200):])
}

// dial connects from an address.
func (s *siege) dial(address string, from net.IP) net.Conn {
	s.t.Helper()
	d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: from}}
	c, err := d.Dial("tcp", address)
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// secured connects to the direct TLS port.
func (s *siege) secured() net.Conn {
	s.t.Helper()
	conf, err := client.TLSConfig(s.caFile, domain, client.Direct, false)
	if err != nil {
		s.t.Fatal(err)
	}
	c := tls.Client(s.dial(s.victim.tlsAddr, home), conf)
	_ = c.SetDeadline(time.Now().Add(assaultTime))
	if err := c.Handshake(); err != nil {
		s.t.Fatal(err)
	}
	return c
}

// crowd runs fn n times, width at a time, and counts the outcomes.
func crowd(n, width int, fn func(i int) string) map[string]int {
	var mu sync.Mutex
	out := map[string]int{}
	var wg sync.WaitGroup
	next := make(chan int)
	for range width {
		wg.Go(func() {
			for i := range next {
				got := fn(i)
				mu.Lock()
				out[got]++
				mu.Unlock()
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	return out
}
