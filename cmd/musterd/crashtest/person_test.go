//go:build crash && linux

package crashtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"muster/cmd/musterbench/client"
	"muster/cmd/musterbench/target"
	"muster/cmd/musterbench/wire"
)

// Times of a client.
const (
	loginTime = 10 * time.Second
	replyTime = 20 * time.Second // longer than the server's own limit for a change
	retryTime = 200 * time.Millisecond
)

// event is one presence that a client was sent.
type event struct {
	at        time.Time
	from      string // full JID
	available bool
	status    string
}

// person is a user with one client, which comes back by itself when its connection is lost.
type person struct {
	user     target.User
	node     *node  // where it logs in
	resource string // of its session
	home     string // name of the home node

	mu     sync.Mutex
	chat   *chat        // gets the messages; may be nil
	conn   *client.Conn // nil: offline
	since  time.Time    // when the session's presence was sent
	waits  map[string]chan []byte
	events []event
	view   map[string]event // last presence by full JID
	losses []time.Time      // when a connection was lost that the client had not closed
	status string
	ids    atomic.Int64

	left sync.Once
	quit chan struct{}
	gone chan struct{} // closed when the client has ended for good
}

func newPerson(local, password string, n *node) *person {
	return &person{
		user: target.User{Local: local, Domain: domain, Password: target.Secret(password)}, node: n, resource: "desk",
		waits: map[string]chan []byte{}, view: map[string]event{}, quit: make(chan struct{}), gone: make(chan struct{}),
	}
}

// full is the address of the session.
func (p *person) full() string { return p.user.JID() + "/" + p.resource }

// login logs in once at n, by direct TLS.
func login(n *node, user target.User, resource string) (*client.Conn, error) {
	conf, err := client.TLSConfig(n.cluster.caFile, domain, client.Direct, false)
	if err != nil {
		return nil, err
	}
	return client.Login(context.Background(), client.Options{
		Address: n.tlsAddr, Transport: client.Direct, TLS: conf, Mechanism: "SCRAM-SHA-1", Resource: resource, Timeout: loginTime,
	}, user)
}

// live keeps the client online until leave.
func (p *person) live() {
	defer close(p.gone)
	for {
		if conn, err := login(p.node, p.user, p.resource); err == nil {
			p.session(conn)
		}
		select {
		case <-p.quit:
			return
		case <-time.After(retryTime):
		}
	}
}

// session runs one connection to its end.
func (p *person) session(conn *client.Conn) {
	ended := make(chan struct{})
	p.mu.Lock()
	p.conn, p.view = conn, map[string]event{}
	p.mu.Unlock()
	go func() {
		defer close(ended)
		_ = conn.Serve(p.handle)
	}()
	go p.begin(conn)
	select {
	case <-ended:
	case <-p.quit:
		conn.Close()
		<-ended
	}
	conn.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conn, p.since = nil, time.Time{}
	for id, w := range p.waits {
		close(w)
		delete(p.waits, id)
	}
	select {
	case <-p.quit:
	default:
		p.losses = append(p.losses, time.Now())
	}
}

// begin is what a client does first: fetch the roster, send presence. Where that fails it connects anew.
func (p *person) begin(conn *client.Conn) {
	answer, err := p.iq("get", `<query xmlns='jabber:iq:roster'/>`)
	if err != nil || refusal(answer) != "" {
		conn.Close()
		return
	}
	p.mu.Lock()
	status := p.status
	p.since = time.Now()
	p.mu.Unlock()
	_ = p.send(presenceOf(status))
}

func presenceOf(status string) string {
	if status == "" {
		return `<presence/>`
	}
	return `<presence><status>` + status + `</status></presence>`
}

// leave ends the client for good; a second time does nothing.
func (p *person) leave() {
	p.left.Do(func() { close(p.quit) })
	<-p.gone
}

var errOffline = errors.New("offline")

func (p *person) send(stanza string) error {
	p.mu.Lock()
	conn := p.conn
	p.mu.Unlock()
	if conn == nil {
		return errOffline
	}
	_ = conn.SetWriteDeadline(time.Now().Add(replyTime))
	return conn.Send([]byte(stanza))
}

// say changes the status text of the client's presence.
func (p *person) say(status string) {
	p.mu.Lock()
	p.status = status
	online := !p.since.IsZero()
	p.mu.Unlock()
	if online {
		_ = p.send(presenceOf(status)) // a lost connection sends it again with the next
	}
}

// iq sends a request and returns the answer; an error if none came.
func (p *person) iq(kind, payload string) ([]byte, error) {
	id := fmt.Sprintf("q%d", p.ids.Add(1))
	wait := make(chan []byte, 1)
	p.mu.Lock()
	p.waits[id] = wait
	p.mu.Unlock()
	if err := p.send(fmt.Sprintf(`<iq type='%s' id='%s'>%s</iq>`, kind, id, payload)); err != nil {
		return nil, err
	}
	select {
	case frame, ok := <-wait:
		if !ok {
			return nil, errOffline
		}
		return frame, nil
	case <-time.After(replyTime):
		return nil, fmt.Errorf("%s: no answer within %v", p.full(), replyTime)
	}
}

// handle takes one stanza from the server.
func (p *person) handle(frame []byte) {
	kind, id := string(wire.Attr(frame, "type")), string(wire.Attr(frame, "id"))
	switch {
	case wire.Named(frame, "presence"):
		p.notice(frame, kind)
	case wire.Named(frame, "message"):
		p.mu.Lock()
		c := p.chat
		p.mu.Unlock()
		if c != nil {
			c.arrived(p, id, kind == "error", frame)
		}
	case wire.Named(frame, "iq") && (kind == "set" || kind == "get"):
		_ = p.send(`<iq type='result' id='` + id + `'/>`)
	case wire.Named(frame, "iq"):
		p.mu.Lock()
		defer p.mu.Unlock()
		if w := p.waits[id]; w != nil {
			delete(p.waits, id)
			w <- bytes.Clone(frame)
		}
	}
}

func (p *person) notice(frame []byte, kind string) {
	if kind != "" && kind != "unavailable" {
		return
	}
	e := event{at: time.Now(), from: string(wire.Attr(frame, "from")), available: kind == "", status: string(wire.Text(frame, "status"))}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, e)
	p.view[e.from] = e
}

// online reports whether the session has been available for a moment.
func (p *person) online() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.since.IsZero()
}

// sees returns the last presence of a full JID.
func (p *person) sees(full string) (event, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e, ok := p.view[full]
	return e, ok && e.available
}

// unavailableSince counts the unavailable presences of a full JID after a moment.
func (p *person) unavailableSince(full string, at time.Time) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, e := range p.events {
		if e.from == full && !e.available && e.at.After(at) {
			n++
		}
	}
	return n
}

// lossesSince counts the connections lost after a moment.
func (p *person) lossesSince(at time.Time) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, l := range p.losses {
		if l.After(at) {
			n++
		}
	}
	return n
}

var (
	itemPattern = regexp.MustCompile(`<item [^>]*>`)
	jidPattern  = regexp.MustCompile(` jid=['"]([^'"]*)`)
	namePattern = regexp.MustCompile(` name=['"]([^'"]*)`)
)

// contacts reads the names of a roster answer, by address.
func contacts(answer []byte) map[string]string {
	out := map[string]string{}
	for _, item := range itemPattern.FindAll(answer, -1) {
		if j := jidPattern.FindSubmatch(item); j != nil {
			name := ""
			if n := namePattern.FindSubmatch(item); n != nil {
				name = string(n[1])
			}
			out[string(j[1])] = name
		}
	}
	return out
}

// fetchItems logs in at n beside the person's own session and returns its whole roster, to compare.
func (p *person) fetchItems(n *node) (string, error) {
	answer, err := p.rosterAnswer(n)
	if err != nil {
		return "", err
	}
	var items []string
	for _, item := range itemPattern.FindAll(answer, -1) {
		items = append(items, string(item))
	}
	slices.Sort(items)
	return strings.Join(items, "\n"), nil
}

// fetchRoster logs in at n beside the person's own session and returns the names of its contacts.
func (p *person) fetchRoster(n *node) (map[string]string, error) {
	answer, err := p.rosterAnswer(n)
	if err != nil {
		return nil, err
	}
	return contacts(answer), nil
}

func (p *person) rosterAnswer(n *node) ([]byte, error) {
	conn, err := login(n, p.user, "check-"+n.name)
	if err != nil {
		return nil, err
	}
	defer conn.Logout(2 * time.Second)
	_ = conn.SetDeadline(time.Now().Add(replyTime))
	if err := conn.Send([]byte(`<iq type='get' id='roster'><query xmlns='jabber:iq:roster'/></iq>`)); err != nil {
		return nil, err
	}
	answer, err := conn.Await(func(f []byte) bool { return string(wire.Attr(f, "id")) == "roster" })
	if err != nil {
		return nil, err
	}
	if string(wire.Attr(answer, "type")) != "result" {
		return nil, fmt.Errorf("roster of %s at %s: %.200s", p.user.JID(), n.name, answer)
	}
	return answer, nil
}

// refusal returns the condition of an error stanza, "" if it is none.
func refusal(frame []byte) string {
	if string(wire.Attr(frame, "type")) != "error" {
		return ""
	}
	if m := conditionPattern.FindSubmatch(frame); m != nil {
		return string(m[1])
	}
	return "an error without condition"
}

var conditionPattern = regexp.MustCompile(`<([a-z-]+)[^>]*xmlns=['"]urn:ietf:params:xml:ns:xmpp-(?:stanzas|streams|sasl)`)

// String names the session in messages.
func (p *person) String() string { return strings.TrimSuffix(p.full(), "/desk") + " at " + p.node.name }
