//go:build soak && linux

package xmpp

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Clients connect and leave so often, after half a round to warm up.
const (
	soakCycles = 20_000
	soakRounds = 3
)

// resident returns the process's resident bytes after giving back what is free.
func resident(t *testing.T) int64 {
	t.Helper()
	debug.FreeOSMemory()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

// abandon connects, goes some way, and leaves without a word.
func abandon(f *fixture, n int) {
	c := f.dialTo(n & 1)
	defer func() { c.tcp().Close() }()
	if n&1 == 0 {
		switch n / 2 % 4 {
		case 0: // at once
		case 1:
			_, _ = io.WriteString(c.conn, openStream[:40])
		case 2:
			c.send(openStream)
			c.expect(`</stream:features>`)
		case 3:
			c.send(openStream + `<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>`)
			c.expect(`<proceed [^>]*/>`)
			_, _ = c.conn.Write([]byte("\x16\x03\x01\x02\x00\x01"))
		}
		return
	}
	c.conn = tlsClient(f, c)
	if n/2%5 == 0 {
		return
	}
	c.send(openStream)
	c.expect(`</stream:features>`)
	switch n / 2 % 5 {
	case 1:
		c.send(`<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='SCRAM-SHA-256'>eSwsbj1hbGljZSxyPWFiYw==</auth>`)
	case 2:
		c.login("alice")
	case 3:
		c.login("alice")
		c.bind(fmt.Sprint("r", n))
	case 4:
		c.login("alice")
		c.bind(fmt.Sprint("r", n))
		c.send(enableResume)
		c.expect(`<enabled `)
	}
}

// TestAbandonedConnections: connecting and leaving, over and over and at every stage, leaves
// nothing behind: memory is back to within 5 % (S14). Run it with
//
//	go test -tags soak -run Abandoned -v -timeout 30m ./edges/xmpp
func TestAbandonedConnections(t *testing.T) {
	f := start(t, "c2s.unlimited_networks", "127.0.0.0/8", "c2s.resume_timeout", "1s")
	var total atomic.Int64
	cycles := func(n int) {
		var clients sync.WaitGroup
		next := make(chan int)
		for range 8 {
			clients.Go(func() {
				for i := range next {
					mine := &fixture{tb: &quietTB{TB: t}, srv: f.srv, router: f.router, rig: f.rig, live: f.live, logs: f.logs, ca: f.ca}
					abandon(mine, i)
				}
			})
		}
		for range n {
			next <- int(total.Add(1))
		}
		close(next)
		clients.Wait()
		f.until("all are gone", func() bool { m := f.srv.Metrics(); return m.Connections == 0 && m.Sessions == 0 })
		f.forgetSessions()
		f.srv.workers.sweep(time.Now().Add(time.Hour))
		f.srv.running().gate.sweep(time.Now().Add(time.Hour))
		r := f.srv.running().resumable
		r.mu.Lock()
		clear(r.stale) // the counts of ended sessions, which are bounded
		r.order = nil
		r.mu.Unlock()
	}
	cycles(soakCycles / 2) // what is made once: buffers, the heap's size, TLS tickets
	files, goroutines, before := descriptors(t), runtime.NumGoroutine(), resident(t)
	var after int64
	for round := range soakRounds {
		begin := time.Now()
		cycles(soakCycles)
		after = resident(t)
		t.Logf("%d cycles in %v: %.1f MiB resident before, %.1f after (%+.1f %%), %d files, %d goroutines", (round+1)*soakCycles, time.Since(begin).Round(time.Second),
			float64(before)/(1<<20), float64(after)/(1<<20), 100*float64(after-before)/float64(before), descriptors(t), runtime.NumGoroutine())
	}
	if after > before+before/20 {
		t.Errorf("%d bytes resident before, %d after", before, after)
	}
	if n := descriptors(t); n > files {
		t.Errorf("%d files open before, %d after", files, n)
	}
	if n := runtime.NumGoroutine(); n > goroutines+2 {
		t.Errorf("%d goroutines before, %d after", goroutines, n)
	}
}

// quietTB keeps no list of what to clean up: the test closes its connections itself.
type quietTB struct{ testing.TB }

func (*quietTB) Cleanup(func()) {}

// forgetSessions empties the stand-in router's record, which is no part of the server.
func (f *fixture) forgetSessions() {
	f.router.mu.Lock()
	defer f.router.mu.Unlock()
	clear(f.router.sessions)
	f.router.bound, f.router.received = nil, nil
	f.logs.mu.Lock()
	f.logs.b.Reset()
	f.logs.mu.Unlock()
}
