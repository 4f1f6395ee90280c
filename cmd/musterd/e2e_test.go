package main

import (
	"context"
	"crypto/tls"
	"encoding/xml"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"mellium.im/sasl"
	"mellium.im/xmlstream"
	"mellium.im/xmpp"
	mjid "mellium.im/xmpp/jid"
	"mellium.im/xmpp/stanza"

	"muster/edges/http/adminapi"
	messagestate "muster/feature/message/state"
	"muster/fsm/cluster"
	"muster/internal/bootstrap"
	"muster/internal/certs"
	"muster/internal/fault"
	"muster/internal/node"
	"muster/internal/node/operate"
	"muster/log"
	"muster/monitor"
	"muster/replication"
	"muster/replication/backup"
	"muster/replication/pki"
)

const domain = "example.test"

// rig is a cluster of real nodes in this process, on free ports of 127.0.0.1.
type rig struct {
	t     *testing.T
	ca    *certs.CA
	dir   string
	confs []bootstrap.Config
	nodes []*node.Node
}

// freePort returns an address that nobody listened on a moment ago.
func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func newRig(t *testing.T, n int) *rig {
	t.Helper()
	ca, err := certs.NewCA("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "e2e") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, ca: ca, dir: dir, nodes: make([]*node.Node, n)}
	t.Cleanup(r.close)
	for i := range n {
		name := fmt.Sprint("n", i+1)
		c := bootstrap.Default()
		c.Data, c.Name = filepath.Join(dir, name), name
		c.ClusterListen, c.ClientListen, c.ClientTLSListen, c.HTTPSListen = freePort(t), freePort(t), freePort(t), freePort(t)
		c.ClusterAdvertise = c.ClusterListen
		r.confs = append(r.confs, c)
		r.enrol(i)
		r.start(i)
		r.ready(i)
	}
	return r
}

// enrol gives node i its identity: the first founds the cluster, the others join.
func (r *rig) enrol(i int) {
	r.t.Helper()
	c := r.confs[i]
	me := cluster.Member{Name: c.Name, ClusterAddr: c.ClusterAdvertise, Addrs: c.Listeners(), Software: version, NewestVersion: log.NewestVersion}
	var err error
	if i == 0 {
		_, err = replication.Init(replication.InitOptions{Dir: c.Data, ClusterName: "e2e", Node: me, Domain: domain})
	} else {
		var invitation adminapi.Token
		r.call(0, http.MethodPost, "/tokens", nil, &invitation)
		var token pki.Token
		if token, err = pki.ParseToken(invitation.Token); err == nil {
			_, err = replication.Join(r.t.Context(), replication.JoinOptions{Dir: c.Data, Addr: r.confs[0].ClusterListen, Token: token, Node: me})
		}
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) start(i int) {
	r.t.Helper()
	source, err := r.ca.IssueSource(time.Now(), domain)
	if err != nil {
		r.t.Fatal(err)
	}
	out := io.Discard
	if os.Getenv("E2E_LOG") != "" {
		out = os.Stderr
	}
	n, err := node.Open(node.Options{Config: r.confs[i], Release: version, Features: features(), Certs: source,
		Logger: slog.New(slog.NewTextHandler(out, nil)), Exit: func(reason string) { r.t.Errorf("node %d gives up: %s", i+1, reason) }})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := n.Start(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	r.nodes[i] = n
}

func (r *rig) close() {
	for _, n := range r.nodes {
		if n != nil {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			if err := n.Stop(ctx); err != nil {
				r.t.Errorf("stop: %v", err)
			}
			cancel()
		}
	}
	os.RemoveAll(r.dir)
}

// eventually polls until check returns "" and fails the test with what it returned last after 30 s.
func eventually(t *testing.T, what string, check func() string) {
	t.Helper()
	var why string
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if why = check(); why == "" {
			return
		}
	}
	t.Fatalf("%s: %s", what, why)
}

func (r *rig) ready(i int) {
	r.t.Helper()
	eventually(r.t, fmt.Sprint("node ", i+1, " is not ready"), func() string {
		_, why := r.nodes[i].Runner().Ready()
		return why
	})
}

// call uses node i's administrative socket.
func (r *rig) call(i int, method, path string, in, out any) {
	r.t.Helper()
	if err := adminapi.NewClient(r.confs[i].Data).Call(r.t.Context(), method, path, in, out); err != nil {
		r.t.Fatalf("%s %s: %v", method, path, err)
	}
}

func (r *rig) users(names ...string) {
	r.t.Helper()
	var batch []adminapi.NewUser
	for _, n := range names {
		batch = append(batch, adminapi.NewUser{JID: n + "@" + domain, Password: "pw-" + n})
	}
	var got []adminapi.Outcome
	r.call(0, http.MethodPost, "/users", batch, &got)
	for _, o := range got {
		if o.Code != "" {
			r.t.Fatalf("%+v", o)
		}
	}
}

// person is a foreign client.
type person struct {
	t        *testing.T
	session  *xmpp.Session
	messages chan chatMessage
	presence chan stanza.Presence
}

type chatMessage struct {
	stanza.Message
	Body string `xml:"body"`
}

// login connects a client of another library by STARTTLS or direct TLS.
func (r *rig) login(i int, name string, direct bool) *person {
	r.t.Helper()
	p, err := r.tryLogin(i, name, direct)
	if err != nil {
		r.t.Fatalf("login of %s at node %d: %v", name, i+1, err)
	}
	return p
}

func (r *rig) tryLogin(i int, name string, direct bool) (*person, error) {
	ctx, cancel := context.WithTimeout(r.t.Context(), 10*time.Second)
	defer cancel()
	conf := &tls.Config{RootCAs: r.ca.Pool(), ServerName: domain, MinVersion: tls.VersionTLS12, NextProtos: []string{"xmpp-client"}}
	var conn net.Conn
	var err error
	features := []xmpp.StreamFeature{xmpp.SASL("", "pw-"+name, sasl.ScramSha256Plus, sasl.ScramSha256), xmpp.BindResource()}
	var state xmpp.SessionState
	if direct {
		conn, err = (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", r.confs[i].ClientTLSListen)
		state = xmpp.Secure
	} else {
		conf.NextProtos = nil
		conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", r.confs[i].ClientListen)
		features = append([]xmpp.StreamFeature{xmpp.StartTLS(conf)}, features...)
	}
	if err != nil {
		return nil, err
	}
	me := mjid.MustParse(name + "@" + domain)
	session, err := xmpp.NewSession(ctx, me.Domain(), me, conn, state, xmpp.NewNegotiator(func(*xmpp.Session, *xmpp.StreamConfig) xmpp.StreamConfig {
		return xmpp.StreamConfig{Features: features}
	}))
	if err != nil {
		conn.Close()
		return nil, err
	}
	p := &person{t: r.t, session: session, messages: make(chan chatMessage, 100), presence: make(chan stanza.Presence, 100)}
	go session.Serve(p) // it returns when the connection ends
	r.t.Cleanup(func() { conn.Close() })
	return p, nil
}

// HandleXMPP implements xmpp.Handler.
func (p *person) HandleXMPP(t xmlstream.TokenReadEncoder, start *xml.StartElement) error {
	d := xml.NewTokenDecoder(xmlstream.MultiReader(xmlstream.Token(*start), t))
	switch start.Name.Local {
	case "message":
		var m chatMessage
		if err := d.Decode(&m); err != nil {
			return err
		}
		p.messages <- m
	case "presence":
		var pr stanza.Presence
		if err := d.Decode(&pr); err != nil {
			return err
		}
		p.presence <- pr
	}
	return nil
}

func (p *person) send(r xml.TokenReader) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 5*time.Second)
	defer cancel()
	if err := p.session.Send(ctx, r); err != nil {
		p.t.Fatal(err)
	}
}

func (p *person) available() { p.t.Helper(); p.send(stanza.Presence{}.Wrap(nil)) }

func (p *person) say(to, text string) {
	p.t.Helper()
	body := xmlstream.Wrap(xmlstream.Token(xml.CharData(text)), xml.StartElement{Name: xml.Name{Local: "body"}})
	p.send(stanza.Message{To: mjid.MustParse(to), Type: stanza.ChatMessage}.Wrap(body))
}

// address is the full address that the server gave.
func (p *person) address() string { return p.session.LocalAddr().String() }

// hears waits for a message with that text and fails on an error message.
func (p *person) hears(text string) {
	p.t.Helper()
	for {
		select {
		case m := <-p.messages:
			if m.Type == stanza.ErrorMessage {
				p.t.Fatalf("an error came instead of %q: %+v", text, m)
			}
			if m.Body == text {
				return
			}
		case <-time.After(15 * time.Second):
			p.t.Fatalf("%q did not come", text)
		}
	}
}

// sees waits for presence of that type from an address.
func (p *person) sees(from string, kind stanza.PresenceType) {
	p.t.Helper()
	for {
		select {
		case pr := <-p.presence:
			if pr.From.String() == from && pr.Type == kind {
				return
			}
		case <-time.After(15 * time.Second):
			p.t.Fatalf("presence %q of %s did not come", kind, from)
		}
	}
}

func TestOneNode(t *testing.T) {
	r := newRig(t, 1)
	r.users("alice", "bob")
	alice, bob := r.login(0, "alice", false), r.login(0, "bob", true)
	alice.available()
	bob.available()
	alice.say(bob.address(), "hello")
	bob.hears("hello")
	bob.say("alice@"+domain, "hi")
	alice.hears("hi")
	if _, err := r.tryLogin(0, "carol", false); err == nil {
		t.Error("an unknown user logs in")
	}
	r.publicPages(0)
}

// publicPages checks what the HTTPS listener shows.
func (r *rig) publicPages(i int) {
	r.t.Helper()
	for path, want := range map[string]string{
		"/health/live": `"ok"`, "/health/ready": `"ok"`, "/health/replication": `"detail": "Setup Completed"`,
		"/metrics": "muster_sessions ",
	} {
		if body, status := r.get(i, path); status != http.StatusOK || !strings.Contains(body, want) {
			r.t.Errorf("%s: %d: %q is not in %s", path, status, want, body)
		}
	}
}

// get reads a public page of node i.
func (r *rig) get(i int, path string) (body string, status int) {
	r.t.Helper()
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: r.ca.Pool(), ServerName: domain, MinVersion: tls.VersionTLS12}}}
	defer client.CloseIdleConnections()
	resp, err := client.Get("https://" + r.confs[i].HTTPSListen + path)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return string(b), resp.StatusCode
}

// voters waits until all nodes vote, so that any one may go.
func (r *rig) voters() {
	r.t.Helper()
	eventually(r.t, "not all nodes vote", func() string {
		for _, g := range []*replication.Group{r.nodes[0].Group(), r.nodes[0].Messages()} {
			if got := len(g.Status().Voters); got != len(r.nodes) {
				return fmt.Sprint(got, " voters of the ", g.Name(), " log")
			}
		}
		return ""
	})
}

func TestThreeNodes(t *testing.T) {
	r := newRig(t, 3)
	r.users("alice", "bob", "carol", "dave")
	var got []adminapi.Outcome
	r.call(0, http.MethodPost, "/contacts", []adminapi.Pair{{User: "alice@" + domain, Contact: "bob@" + domain}, {User: "alice@" + domain, Contact: "carol@" + domain}}, &got)
	if got[0].Code != "" || got[1].Code != "" {
		t.Fatalf("contacts: %+v", got)
	}
	r.voters()
	alice, bob := r.login(0, "alice", false), r.login(1, "bob", true)
	alice.available()
	bob.available()
	alice.sees(bob.address(), "")
	bob.sees(alice.address(), "")
	alice.say("bob@"+domain, "one")
	bob.hears("one")
	bob.say("alice@"+domain, "two")
	alice.hears("two")

	carol := r.login(2, "carol", false)
	carol.available()
	alice.sees(carol.address(), "")
	r.nodes[2].Kill()
	alice.sees(carol.address(), stanza.UnavailablePresence)
	alice.say("bob@"+domain, "three")
	bob.hears("three")
	bob.say("alice@"+domain, "four")
	alice.hears("four")
	r.users("erin") // two of three are a majority
	carol = r.login(1, "carol", false)
	carol.available()
	alice.sees(carol.address(), "")

	r.start(2)
	r.ready(2)
	erin := r.login(2, "erin", false)
	erin.available()
	erin.say("bob@"+domain, "five")
	bob.hears("five")
	r.digestsAgree()
}

// digestsAgree has all nodes compare their tables.
func (r *rig) digestsAgree() {
	r.t.Helper()
	var d adminapi.Digests
	r.call(0, http.MethodGet, "/replication/digests", nil, &d)
	if !d.Equal || len(d.Missing) > 0 || len(d.Tables) == 0 {
		r.t.Errorf("digests: %+v", d)
	}
}

// TestWaitingNode: a node without a majority waits visibly, refuses clients, and opens when the others come.
func TestWaitingNode(t *testing.T) {
	r := newRig(t, 3)
	r.users("alice")
	r.voters()
	for i, n := range r.nodes {
		if err := n.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.nodes[i] = nil
	}
	r.start(2)
	eventually(t, "the node does not say that it waits", func() string {
		var s adminapi.Services
		r.call(2, http.MethodGet, "/services", nil, &s)
		for _, v := range s.Services {
			if v.Name == operate.Essential && v.State == "STARTING" && strings.Contains(v.Reason, "waits for the control log") {
				return ""
			}
		}
		return fmt.Sprintf("%+v", s.Services)
	})
	if body, status := r.get(2, "/health/ready"); status != http.StatusServiceUnavailable || !strings.Contains(body, "waits for the control log") {
		t.Errorf("the ready page: %d %s", status, body)
	}
	if _, status := r.get(2, "/health/live"); status != http.StatusOK {
		t.Errorf("the live page: %d", status)
	}
	if conn, err := net.Dial("tcp", r.confs[2].ClientListen); err == nil {
		conn.Close()
		t.Error("a waiting node takes clients")
	}
	r.start(1)
	r.ready(2)
	r.ready(1)
	r.login(2, "alice", true).available()
}

// TestPublisherTimeout: the publisher starts without a majority after its timeout, read-only, and becomes whole when one is there.
func TestPublisherTimeout(t *testing.T) {
	r := newRig(t, 3)
	r.users("alice", "bob")
	r.call(0, http.MethodPut, "/settings/monitor.publisher_timeout", adminapi.SettingChange{Value: "1s"}, nil)
	r.voters()
	for i := range r.nodes {
		r.nodes[i].Kill()
		r.nodes[i] = nil
	}
	r.start(0)
	r.ready(0)
	var alarms adminapi.Alarms
	r.call(0, http.MethodGet, "/alarms", nil, &alarms)
	if len(alarms.Active) == 0 || alarms.Active[0].Name != monitor.AlarmTimeout {
		t.Errorf("alarms: %+v", alarms.Active)
	}
	alice := r.login(0, "alice", false)
	err := adminapi.NewClient(r.confs[0].Data).Call(t.Context(), http.MethodDelete, "/users/bob@"+domain, nil, nil)
	if !fault.Is(err, fault.NoQuorum) {
		t.Errorf("a change without a majority gives %v", err)
	}
	r.start(1)
	r.ready(1)
	bob := r.login(1, "bob", true)
	bob.available()
	eventually(t, "alice stays isolated", func() string {
		if r.nodes[0].Router().Status().Isolated {
			return "isolated"
		}
		return ""
	})
	alice.available()
	bob.say(alice.address(), "whole again")
	alice.hears("whole again")
}

func TestBackupAndRestore(t *testing.T) {
	r := newRig(t, 2)
	r.users("alice", "bob")
	var got []adminapi.Outcome
	r.call(0, http.MethodPost, "/contacts", []adminapi.Pair{{User: "alice@" + domain, Contact: "bob@" + domain}}, &got)
	writer := r.login(0, "alice", false)
	writer.available()
	for i := range 5 {
		writer.say("bob@"+domain, fmt.Sprint("while away ", i))
	}
	n := r.nodes[0]
	eventually(t, "five messages wait", func() string {
		if len(messagestate.Inbox(n.MessageState(), "bob@"+domain)) == 5 {
			return ""
		}
		return "not yet"
	})
	record := messagestate.SessionEntry(messagestate.Session{ID: 77, User: "alice@" + domain, Resource: "phone", Key: []byte("key"), Node: 1, Incarnation: 1, Timeout: time.Hour}, nil)
	record.Node, record.Time = 1, time.Now()
	if _, err := n.Messages().Propose(t.Context(), record); err != nil {
		t.Fatal(err)
	}
	last, pages := messagestate.Last(n.MessageState()), archivesOf(t, n)
	other := restore(t, r.backup(adminapi.BackupRequest{Passphrase: "open sesame"}))
	heir := other.nodes[0]
	if got := archivesOf(t, heir); !slices.Equal(got, pages) || len(got) != 10 {
		t.Errorf("the archives are\n%q, they were\n%q", got, pages)
	}
	eventually(t, "the old session is forgotten", func() string {
		if _, _, there := messagestate.SessionByID(heir.MessageState(), 77); there {
			return "it is on record"
		}
		return ""
	})
	alice, bob := other.login(0, "alice", false), other.login(0, "bob", false)
	bob.available()
	for i := range 5 {
		bob.hears(fmt.Sprint("while away ", i))
	}
	alice.available()
	alice.sees(bob.address(), "") // the rosters are there
	alice.say("bob@"+domain, "still here")
	bob.hears("still here")
	if newest, ok := messagestate.Newest(heir.MessageState()); !ok || newest.Number <= last {
		t.Errorf("the new message has number %d, the backup ended at %d", newest.Number, last)
	}
	bare := restore(t, r.backup(adminapi.BackupRequest{Passphrase: "open sesame", NoMessages: true}))
	if _, any := messagestate.Newest(bare.nodes[0].MessageState()); any {
		t.Error("a backup without messages holds some")
	}
	bare.login(0, "alice", false)
}

// archivesOf lists the archives of alice and bob on a node: ids, numbers, stanzas.
func archivesOf(t *testing.T, n *node.Node) (out []string) {
	t.Helper()
	for _, name := range []string{"alice", "bob"} {
		owner := name + "@" + domain
		page, err := messagestate.Read(n.MessageState(), messagestate.Query{Owner: owner, Max: 100})
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range page.Messages {
			out = append(out, fmt.Sprint(owner, " ", m.ID(owner), " ", m.Number, " ", m.Time, " ", string(m.XML)))
		}
	}
	return out
}

// backup saves the cluster into a file.
func (r *rig) backup(req adminapi.BackupRequest) string {
	r.t.Helper()
	body, size, err := adminapi.NewClient(r.confs[0].Data).Stream(r.t.Context(), http.MethodPost, "/backup", req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer body.Close()
	file := filepath.Join(r.dir, fmt.Sprint("backup", req.NoMessages))
	f, err := os.Create(file)
	if err != nil {
		r.t.Fatal(err)
	}
	if got, err := io.Copy(f, body); err != nil || got != size {
		r.t.Fatalf("%d of %d bytes: %v", got, size, err)
	}
	if err := f.Close(); err != nil {
		r.t.Fatal(err)
	}
	return file
}

// restore founds a cluster of one node of another name on a backup.
func restore(t *testing.T, file string) *rig {
	t.Helper()
	ca, err := certs.NewCA("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "e2e")
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, ca: ca, dir: dir, nodes: make([]*node.Node, 1)}
	t.Cleanup(r.close)
	c := bootstrap.Default()
	c.Data, c.Name = filepath.Join(dir, "solo"), "solo"
	c.ClusterListen, c.ClientListen, c.ClientTLSListen, c.HTTPSListen = freePort(t), freePort(t), freePort(t), freePort(t)
	c.ClusterAdvertise = c.ClusterListen
	_, _, err = backup.Restore(t.Context(), backup.RestoreOptions{Path: file, Passphrase: pki.Secret("open sesame"), Dir: c.Data,
		Node: cluster.Member{Name: c.Name, ClusterAddr: c.ClusterAdvertise, NewestVersion: log.NewestVersion}, Machines: node.BackupMachines()})
	if err != nil {
		t.Fatal(err)
	}
	r.confs = append(r.confs, c)
	r.start(0)
	r.ready(0)
	return r
}
