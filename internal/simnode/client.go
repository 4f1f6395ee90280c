package simnode

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"muster/internal/jid"
	"muster/router"
	"muster/router/stanza"
)

// Client is one device of one user. It reaches every host whose node serves:
// partitions are between hosts only.
type Client struct {
	c        *Cluster
	User     jid.JID
	Resource string
	rng      *rand.Rand // of the goroutine that drives the client

	mu   sync.Mutex
	life *life // the present session; nil: offline
	past []*life
	over bool
}

// life is one session as its client knows it. Fields are under Client.mu.
type life struct {
	cl      *Client
	host    *Host
	proc    *process
	session *router.Session
	start   time.Time
	ended   time.Time // zero: it lives
	how     string    // it ended
	online  bool      // presence was sent
	status  string    // that presence's
	view    map[string]string
	told    []sight
	waits   map[string]chan *stanza.Packet
	inputs  uint64            // stanzas that the session took
	chats   map[uint64]string // of them: messages that are not acknowledged yet
	got     []*stanza.Packet  // kept messages, and errors, that are to be confirmed

	sending sync.Mutex // one stanza at a time
}

// sight is one presence of another session that a client was told.
type sight struct {
	at     time.Time
	from   string
	status string
	gone   bool
}

var (
	_ router.Sink         = (*life)(nil)
	_ router.Counter      = (*life)(nil)
	_ router.Disconnecter = (*life)(nil)
)

// NewClient returns an offline client: user "alice", device "phone".
func (c *Cluster) NewClient(user, device string) *Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	cl := &Client{c: c, User: User(user), Resource: device, rng: rand.New(rand.NewPCG(c.o.Seed, uint64(len(c.clients))+7))}
	c.clients = append(c.clients, cl)
	return cl
}

// Clients returns all clients.
func (c *Cluster) Clients() []*Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]*Client(nil), c.clients...)
}

// Name returns "alice/phone".
func (cl *Client) Name() string { return cl.User.Local + "/" + cl.Resource }

const bindTime = 10 * time.Second

// Connect binds a session at a host. The error is the router's, or that the host does not serve.
func (cl *Client) Connect(h *Host) error {
	p := h.proc.Load()
	if p == nil || !h.Ready() {
		return errDead
	}
	l := &life{cl: cl, host: h, proc: p, start: time.Now(), view: map[string]string{}, waits: map[string]chan *stanza.Packet{}, chats: map[uint64]string{}}
	ctx, cancel := within(bindTime)
	defer cancel()
	s, err := p.node.Router().Bind(ctx, router.BindRequest{User: cl.User, Resource: cl.Resource, Sink: l, Transport: "sim", Remote: "client"})
	if err != nil {
		return err
	}
	cl.mu.Lock()
	l.session = s
	if p.dead.Load() || cl.over {
		l.end("lost")
	}
	if !l.ended.IsZero() {
		cl.mu.Unlock()
		s.End(false, nil)
		return errDead
	}
	cl.life = l
	cl.mu.Unlock()
	cl.c.Trace.Notef("%s connects to %s", cl.Name(), h.Name)
	return nil
}

// end marks a session as over. The caller holds mu.
func (l *life) end(how string) {
	if !l.ended.IsZero() {
		return
	}
	l.ended, l.how = time.Now(), how
	for id, ch := range l.waits {
		close(ch)
		delete(l.waits, id)
	}
	l.cl.past = append(l.cl.past, l)
	if l.cl.life == l {
		l.cl.life = nil
		l.cl.c.Trace.Notef("%s is off: %s", l.cl.Name(), how)
	}
}

// End implements router.Sink.
func (l *life) End(cond stanza.StreamCondition, text string) {
	l.cl.mu.Lock()
	l.end(string(cond))
	s := l.session
	l.cl.mu.Unlock()
	if s != nil {
		go s.End(false, nil)
	}
}

// Disconnect implements router.Disconnecter. The client has no stream management: its session ends.
func (l *life) Disconnect() { l.End("disconnected", "") }

// lose ends all sessions of a process that is dead.
func (c *Cluster) lose(p *process) {
	for _, cl := range c.Clients() {
		cl.mu.Lock()
		if cl.life != nil && cl.life.proc == p {
			cl.life.end("lost")
		}
		cl.mu.Unlock()
	}
}

// Disconnect ends the session: clean closes the stream, else the connection breaks.
func (cl *Client) Disconnect(clean bool) {
	cl.mu.Lock()
	l := cl.life
	if l != nil {
		l.end("left")
	}
	cl.mu.Unlock()
	if l != nil {
		l.session.End(clean, nil)
	}
}

// quit ends the client for good.
func (cl *Client) quit() {
	cl.mu.Lock()
	cl.over = true
	cl.mu.Unlock()
	cl.Disconnect(true)
}

// Session returns the session's host; nil if the client is offline.
func (cl *Client) Session() *Host {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if cl.life == nil {
		return nil
	}
	return cl.life.host
}

// lives returns all sessions so far. Called with nobody else at work.
func (cl *Client) lives() []*life {
	if cl.life == nil {
		return cl.past
	}
	return append(cl.past[:len(cl.past):len(cl.past)], cl.life)
}

// livesOf returns all sessions that a user had. Called with nobody else at work.
func (c *Cluster) livesOf(user jid.JID) (out []*life) {
	for _, cl := range c.Clients() {
		if cl.User == user {
			out = append(out, cl.lives()...)
		}
	}
	return out
}

// Online reports whether the client has a session with presence.
func (cl *Client) Online() bool {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	return cl.life != nil && cl.life.online
}

// Ended returns how the latest session that ended did so, and when; "" if there was none.
func (cl *Client) Ended() (how string, at time.Time) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if n := len(cl.past); n > 0 {
		return cl.past[n-1].how, cl.past[n-1].ended
	}
	return "", time.Time{}
}

// Sees returns the presence that the client has of a full address: its status, "" for offline.
func (cl *Client) Sees(other *Client) string {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if cl.life == nil {
		return ""
	}
	return cl.life.view[other.full()]
}

// address returns the client's bare or full address.
func (cl *Client) address(full bool) jid.JID {
	if full {
		return cl.User.WithResource(cl.Resource)
	}
	return cl.User
}

func (cl *Client) full() string { return cl.User.WithResource(cl.Resource).String() }

// current returns the present session.
func (cl *Client) current() *life {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	return cl.life
}

const sendTime = 5 * time.Second // for the server to take a stanza

// send hands in a stanza as an edge would.
func (l *life) send(xml string) error {
	l.sending.Lock()
	defer l.sending.Unlock()
	p, err := stanza.ParsePacket([]byte(xml))
	if err != nil {
		panic(fmt.Sprintf("simnode: %v in %s", err, xml))
	}
	p.From = l.session.JID()
	if e := stanza.ValidateClient(p); e != nil {
		panic(fmt.Sprintf("simnode: %v in %s", e, xml))
	}
	ctx, cancel := within(sendTime)
	defer cancel()
	l.cl.mu.Lock()
	l.inputs++
	if p.Kind == stanza.KindMessage {
		l.chats[l.inputs] = p.ID
	}
	l.cl.mu.Unlock()
	if err := l.session.Receive(ctx, p); err != nil {
		l.cl.mu.Lock()
		delete(l.chats, l.inputs)
		l.inputs--
		l.cl.mu.Unlock()
		return err
	}
	return nil
}

// Handled implements router.Counter: what the server is done with is acknowledged.
func (l *life) Handled(n, _ uint64) {
	l.cl.mu.Lock()
	defer l.cl.mu.Unlock()
	for seq, id := range l.chats {
		if seq <= n && l.ended.IsZero() { // else nobody is told
			l.cl.c.History.chatAcked(id)
			delete(l.chats, seq)
		}
	}
}

// confirmEvery is how long a client takes to confirm kept messages.
const confirmEvery = 80 * time.Millisecond

// confirm tells the server which kept messages the client has. The caller holds mu.
func (l *life) confirm(p *stanza.Packet) {
	if l.got = append(l.got, p); len(l.got) > 1 {
		return
	}
	time.AfterFunc(confirmEvery, func() {
		l.cl.mu.Lock()
		got, s := l.got, l.session
		l.got = nil
		if l.how == "lost" || l.proc.dead.Load() {
			s = nil
		}
		l.cl.mu.Unlock()
		if s != nil {
			s.Taken(got)
		}
	})
}

// Show broadcasts presence with a status; "" broadcasts that the client is unavailable.
func (cl *Client) Show(status string) error {
	l := cl.current()
	if l == nil {
		return errDead
	}
	xml := "<presence><status>" + status + "</status></presence>"
	if status == "" {
		xml = "<presence type='unavailable'/>"
	}
	cl.mu.Lock()
	wasOnline, was := l.online, l.status
	l.online, l.status = status != "", status
	cl.mu.Unlock()
	err := l.send(xml)
	cl.c.Trace.Notef("%s on %s shows %q %v", cl.Name(), l.host.Name, status, err)
	if err != nil {
		cl.mu.Lock()
		l.online, l.status = wasOnline, was
		cl.mu.Unlock()
	}
	return err
}

// Chat sends a message to a bare or full address and notes it if the server took it.
func (cl *Client) Chat(to jid.JID) (id string, err error) {
	l := cl.current()
	if l == nil {
		return "", errDead
	}
	id = cl.c.History.chatSent(l, to)
	if err = l.send(fmt.Sprintf("<message type='chat' id='%s' to='%s'><body>%s</body></message>", id, to, id)); err != nil {
		cl.c.History.chatRefused(id)
		return "", err
	}
	return id, nil
}

// ask sends an IQ and waits for its answer; nil if the session ends before.
func (l *life) ask(xml string, id string, most time.Duration) (*stanza.Packet, error) {
	ch := make(chan *stanza.Packet, 1)
	l.cl.mu.Lock()
	if !l.ended.IsZero() {
		l.cl.mu.Unlock()
		return nil, errDead
	}
	l.waits[id] = ch
	l.cl.mu.Unlock()
	if err := l.send(xml); err != nil {
		return nil, err
	}
	ctx, cancel := within(most)
	defer cancel()
	select {
	case p := <-ch:
		return p, nil
	case <-ctx.Done():
		return nil, context.DeadlineExceeded
	}
}

// SetContact writes a contact's name into the user's roster and notes the outcome. It returns nil if that was confirmed.
func (cl *Client) SetContact(contact, name string) error {
	l := cl.current()
	if l == nil {
		return errDead
	}
	op := cl.c.History.begin(cl.User.String()+" "+contact, name)
	id := fmt.Sprint("r", op.id)
	p, err := l.ask(fmt.Sprintf("<iq type='set' id='%s'><query xmlns='jabber:iq:roster'><item jid='%s' name='%s'/></query></iq>", id, contact, name), id, answerTime)
	switch {
	case err == context.DeadlineExceeded:
		cl.c.History.Violate("%s: no answer to a roster change in %v, sent at %s on %s", cl.Name(), answerTime, cl.c.at(op.call), l.host.Name)
	case err != nil:
	case p == nil:
		err = errDead
	case p.Type == stanza.TypeResult:
		cl.c.History.end(op, true)
		return nil
	default:
		err = fmt.Errorf("refused: %s", p.Inner)
		cl.c.History.refused(op, l, string(p.Inner))
	}
	cl.c.History.end(op, false)
	return err
}

const answerTime = 20 * time.Second // within which a living session must have an answer

// Deliver implements router.Sink.
func (l *life) Deliver(p *stanza.Packet) error {
	l.cl.mu.Lock()
	defer l.cl.mu.Unlock()
	if !l.ended.IsZero() && l.how == "lost" {
		return nil // nobody is there any more
	}
	switch p.Kind {
	case stanza.KindPresence:
		l.sawPresence(p)
	case stanza.KindMessage:
		if p.Type == stanza.TypeError {
			l.cl.c.History.chatFailed(p.ID, l)
			l.confirm(p)
		} else {
			l.cl.c.History.chatArrived(p.ID, l)
			if p.Number != 0 {
				l.confirm(p)
			}
		}
	case stanza.KindIQ:
		if ch := l.waits[p.ID]; ch != nil && (p.Type == stanza.TypeResult || p.Type == stanza.TypeError) {
			delete(l.waits, p.ID)
			ch <- p
		}
	}
	return nil
}

// sawPresence keeps what the client shows of others.
func (l *life) sawPresence(p *stanza.Packet) {
	if p.From.Resource == "" {
		return
	}
	from := p.From.String()
	switch p.Type {
	case "":
		status := ""
		if c, ok := p.Child(stanza.NSClient, "status"); ok {
			status = p.Element(c).Text()
		}
		l.view[from] = status
		l.told = append(l.told, sight{time.Now(), from, status, false})
	case stanza.TypeUnavailable:
		delete(l.view, from)
		l.told = append(l.told, sight{time.Now(), from, "", true})
	}
}
