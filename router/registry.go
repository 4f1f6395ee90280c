package router

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"time"

	"muster/fsm"
	"muster/internal/jid"
	"muster/router/hot"
	"muster/router/stanza"
)

// Scope says what an IQ handler or an advertised ability belongs to.
type Scope uint8

// The scopes.
const (
	Domain  Scope = iota // a served domain: 'to' is the domain
	Account              // a user: 'to' is absent, the sender's bare address, or another user's
)

// Feature is one of the server's abilities, in a folder of its own.
type Feature interface {
	// Name returns the feature's name, as the logs show it.
	Name() string
	// Setup registers what the feature does. It runs once, before the router starts.
	Setup(reg *Registry) error
}

// IQHandler answers an IQ request. It runs in an actor: the sender's for the
// domain and for the sender's own account, else the recipient's (c.Own() is
// false). It answers with c.Reply, now or after c.Propose or c.Async.
type IQHandler func(c *Ctx, iq *stanza.Packet)

// Verdict is what a screen says about an inbound stanza. The zero value is Pass.
type Verdict struct {
	drop bool
	err  *stanza.Error
}

// The verdicts without a reason.
var (
	Pass = Verdict{}           // go on
	Drop = Verdict{drop: true} // forget the stanza silently
)

// Bounce answers the stanza with err, or drops it where no error may be sent.
func Bounce(err *stanza.Error) Verdict { return Verdict{drop: true, err: err} }

// Identity is a service discovery identity (XEP-0030 section 3.1).
type Identity struct{ Category, Type, Name string }

// Item is a service discovery item (XEP-0030 section 4.1).
type Item struct {
	JID        jid.JID
	Node, Name string
}

// Disco is what service discovery shows of a scope; identities and features are sorted and without duplicates.
type Disco struct {
	Identities []Identity
	Features   []string
	Forms      [][]byte            // canonical extension forms (XEP-0128)
	Items      []func(*Ctx) []Item // each adds items for the asking user
}

// conditional is a service discovery feature that is advertised only while on says so.
type conditional struct {
	feature string
	on      func() bool
}

type iqKey struct {
	scope        Scope
	space, local string
}

// Registry is where features register. It is complete before the router starts and never changes after that.
type Registry struct {
	router         *Router
	iq             map[iqKey]IQHandler
	identities     [2][]Identity
	features       [2][]string
	forms          [2][]func() []byte
	items          [2][]func(*Ctx) []Item
	streamXML      []func() []byte
	atBind         map[Wish]Mark
	sometimes      [2][]conditional
	onBind         []func(*Ctx)
	onMoved        []func(*Moved)
	onUnbind       []func(*Ctx, bool)
	screenOut      []func(*Ctx, *stanza.Packet) *stanza.Error
	screenIn       []func(*Ctx, *stanza.Packet) Verdict
	presenceOut    []func(*Ctx, *stanza.Packet) bool
	presenceIn     []func(*Ctx, *stanza.Packet) bool
	messageSend    []func(*Ctx, *stanza.Packet) bool
	messageReceive []func(*Ctx, *stanza.Packet) bool
	messageOut     []func(*Ctx, *stanza.Packet)
	messageIn      []func(*Ctx, *stanza.Packet, []*Attached)
	undeliverable  []func(*Ctx, *stanza.Packet) bool
	onReady        []func(*Ctx)
	onMissed       []func(*Ctx)
	onStop         []func(context.Context)
	screenStored   []func(fsm.Reader, jid.JID, *stanza.Packet) Verdict
	onTaken        []func(Taken)
	recorder       Recorder
	onRow          []func(hot.Change)
	watches        map[*fsm.Table][]func(fsm.Change) // of both logs: no two tables have one name
}

func newRegistry(r *Router) *Registry {
	return &Registry{router: r, iq: map[iqKey]IQHandler{}, atBind: map[Wish]Mark{}, watches: map[*fsm.Table][]func(fsm.Change){}}
}

// Router returns the router that the feature will run on. It is not started yet.
func (g *Registry) Router() *Router { return g.router }

// HandleIQ registers the handler of requests whose payload is <local xmlns='space'/>.
// It panics if the payload has a handler in this scope already.
func (g *Registry) HandleIQ(scope Scope, space, local string, h func(c *Ctx, iq *stanza.Packet)) {
	k := iqKey{scope, space, local}
	if g.iq[k] != nil {
		panic(fmt.Sprintf("router: two handlers for {%s}%s", space, local))
	}
	g.iq[k] = h
}

// Advertise adds service discovery features to a scope.
func (g *Registry) Advertise(scope Scope, features ...string) {
	g.features[scope] = append(g.features[scope], features...)
}

// AdvertiseWhile adds a service discovery feature that is shown only while on returns true, which it is asked at each query.
func (g *Registry) AdvertiseWhile(on func() bool, scope Scope, feature string) {
	g.sometimes[scope] = append(g.sometimes[scope], conditional{feature, on})
}

// Identity adds a service discovery identity to a scope.
func (g *Registry) Identity(scope Scope, category, typ, name string) {
	g.identities[scope] = append(g.identities[scope], Identity{category, typ, name})
}

// DiscoForm adds an extension form (XEP-0128); form is called at each query and may return nil for none.
func (g *Registry) DiscoForm(scope Scope, form func() []byte) {
	g.forms[scope] = append(g.forms[scope], form)
}

// DiscoItem adds a source of service discovery items; it runs in the asking user's actor.
func (g *Registry) DiscoItem(scope Scope, items func(c *Ctx) []Item) {
	g.items[scope] = append(g.items[scope], items)
}

// StreamFeature adds an element to the stream features that are sent after authentication.
func (g *Registry) StreamFeature(xml []byte) { g.LiveStreamFeature(func() []byte { return xml }) }

// LiveStreamFeature is StreamFeature for an element that changes; xml is called for each stream.
func (g *Registry) LiveStreamFeature(xml func() []byte) { g.streamXML = append(g.streamXML, xml) }

// Wish is an element with which a client asks, while it binds, to have a feature on from the start (XEP-0386 section 3.2).
type Wish struct{ Space, Local string }

// Mark is a name and a value that a session carries, see Ctx.SetMark.
type Mark struct{ Key, Value string }

// EnableAtBind lets a client turn a feature on while it binds: the wish sets the mark. It panics if the wish is taken.
func (g *Registry) EnableAtBind(w Wish, m Mark) {
	if g.atBind[w] != (Mark{}) {
		panic(fmt.Sprintf("router: two features for {%s}%s at the binding", w.Space, w.Local))
	}
	g.atBind[w] = m
}

// bindFeatures returns the namespaces of what can be turned on while binding, sorted.
func (g *Registry) bindFeatures() []string {
	var all []string
	for w := range g.atBind {
		all = append(all, w.Space)
	}
	sort.Strings(all)
	return slices.Compact(all)
}

// streamFeatures returns the elements that features add to the stream features after authentication.
func (g *Registry) streamFeatures() []byte {
	var all []byte
	for _, xml := range g.streamXML {
		all = append(all, xml()...)
	}
	return all
}

// Disco returns what the scope advertises now.
func (g *Registry) Disco(scope Scope) Disco {
	d := Disco{Identities: slices.Clone(g.identities[scope]), Features: slices.Clone(g.features[scope]), Items: g.items[scope]}
	for _, c := range g.sometimes[scope] {
		if c.on() {
			d.Features = append(d.Features, c.feature)
		}
	}
	sort.Slice(d.Identities, func(i, j int) bool { return less(d.Identities[i], d.Identities[j]) })
	d.Identities = slices.Compact(d.Identities)
	sort.Strings(d.Features)
	d.Features = slices.Compact(d.Features)
	for _, f := range g.forms[scope] {
		if form := f(); form != nil {
			d.Forms = append(d.Forms, form)
		}
	}
	return d
}

func less(a, b Identity) bool {
	if a.Category != b.Category {
		return a.Category < b.Category
	}
	if a.Type != b.Type {
		return a.Type < b.Type
	}
	return a.Name < b.Name
}

// Moved is a session of this node whose user's home is now on another node that started a short while ago.
type Moved struct {
	s      *Session
	before time.Time
}

// Before returns until when the home may have missed what happened: a moment after its start.
func (m *Moved) Before() time.Time { return m.before }

// Began returns since when the session's client may have believed what it was told.
func (m *Moved) Began() time.Time {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	return time.Now().Add(-m.s.age())
}

// Router returns the router of this node.
func (m *Moved) Router() *Router { return m.s.r }

// Session returns the session's full address.
func (m *Moved) Session() jid.JID { return m.s.full }

// Deliver gives the client a stanza before anything that the new home sends.
func (m *Moved) Deliver(p *stanza.Packet) { m.s.deliver(p) }

// Shown reports whether the client was told since then that a resource is available.
func (m *Moved) Shown(from jid.JID, since time.Time) bool {
	m.s.out.Lock()
	defer m.s.out.Unlock()
	return slices.ContainsFunc(m.s.shown, func(s shown) bool { return s.from == from && s.at.After(since) })
}

// settledAfter is how long after a session was attached anew its home may not know all that its client was told.
const settledAfter = 10 * time.Second

// EachUnsettled calls fn for the available sessions of a user on this node,
// bound before a time, whose home is another node that may not know what their
// clients were told: it started a short while ago, or has just got them.
func (r *Router) EachUnsettled(user jid.JID, bound time.Time, fn func(m *Moved)) {
	for _, s := range r.sessions.of(user) {
		s.mu.Lock()
		home, ok := s.home, s.state == attached && s.at == nil && s.presence != nil && s.since.Before(bound)
		fresh := time.Since(s.homed) < settledAfter
		s.mu.Unlock()
		if ok && (fresh || r.births.lately(home)) {
			fn(&Moved{s, r.births.of(home).Add(SilentAfter)})
		}
	}
}

// Unsettled reports whether there may be such a session.
func (r *Router) Unsettled() bool {
	return time.Since(time.Unix(0, r.rehomed.Load())) < settledAfter || r.births.any()
}

// OnMoved registers fn to run on the node of an available session that was
// attached to such a home, outside any actor. What happened before its start the home cannot know.
func (g *Registry) OnMoved(fn func(m *Moved)) { g.onMoved = append(g.onMoved, fn) }

// OnBind registers fn to run in the actor when a session of the user was
// attached: bound by its client, or re-attached after the user's home moved (c.Session.Reattached()).
func (g *Registry) OnBind(fn func(c *Ctx)) { g.onBind = append(g.onBind, fn) }

// OnUnbind registers fn to run in the actor when a session of the user ended;
// clean tells whether its client closed the stream. The session's row is
// removed after that, so what follows from the row (unavailable to watchers) is not fn's to do.
// A session that only moves to another home is not unbound.
func (g *Registry) OnUnbind(fn func(c *Ctx, clean bool)) { g.onUnbind = append(g.onUnbind, fn) }

// ScreenOut registers a screen on what an own client sends, before it is
// handled. An error refuses it: a request or message is answered, presence is dropped silently.
func (g *Registry) ScreenOut(fn func(c *Ctx, p *stanza.Packet) *stanza.Error) {
	g.screenOut = append(g.screenOut, fn)
}

// ScreenIn registers a screen on what others send to this user, before delivery.
func (g *Registry) ScreenIn(fn func(c *Ctx, p *stanza.Packet) Verdict) {
	g.screenIn = append(g.screenIn, fn)
}

// OnPresenceOut registers a handler of presence from an own session, directed
// or not; true means handled. What nobody handles is routed if it has a 'to', else published.
func (g *Registry) OnPresenceOut(fn func(c *Ctx, p *stanza.Packet) bool) {
	g.presenceOut = append(g.presenceOut, fn)
}

// OnPresenceIn registers a handler of presence addressed to this user, bare or
// full; true means handled. What nobody handles is delivered by RFC 6121 section 8.5.
func (g *Registry) OnPresenceIn(fn func(c *Ctx, p *stanza.Packet) bool) {
	g.presenceIn = append(g.presenceIn, fn)
}

// OnMessageSend registers a handler of a message from an own session before it
// is routed; true means that the handler is responsible for it: it calls
// Sent, or answers with an error.
func (g *Registry) OnMessageSend(fn func(c *Ctx, p *stanza.Packet) bool) {
	g.messageSend = append(g.messageSend, fn)
}

// OnMessageReceive registers a handler of a message to this user that came
// from its sender's actor or from elsewhere, screened and about to be delivered;
// true means that the handler is responsible for it.
func (g *Registry) OnMessageReceive(fn func(c *Ctx, p *stanza.Packet) bool) {
	g.messageReceive = append(g.messageReceive, fn)
}

// ScreenStored registers a screen on messages that are kept, asked in the
// sender's actor before they are, with the control log's state. It says what
// ScreenIn says in the recipient's actor, which does not see these messages before they are kept.
func (g *Registry) ScreenStored(fn func(state fsm.Reader, recipient jid.JID, p *stanza.Packet) Verdict) {
	g.screenStored = append(g.screenStored, fn)
}

// OnReady registers fn to run in the actor when a session becomes able to get
// messages to the account: available, with priority 0 or more.
func (g *Registry) OnReady(fn func(c *Ctx)) { g.onReady = append(g.onReady, fn) }

// OnMissed registers fn to run in the actor for a session that gets messages to
// the account and may not have been offered all that was kept after
// c.Session.Offered(): its home moved here, or the message log was replaced by a snapshot.
func (g *Registry) OnMissed(fn func(c *Ctx)) { g.onMissed = append(g.onMissed, fn) }

// OnStop registers fn to run when the router stops, after the sessions have left.
func (g *Registry) OnStop(fn func(ctx context.Context)) { g.onStop = append(g.onStop, fn) }

// OnTaken registers fn to hear on a session's node of kept messages that wait no
// longer. It may run outside any actor, and must not block.
func (g *Registry) OnTaken(fn func(Taken)) { g.onTaken = append(g.onTaken, fn) }

// Recorder keeps what other nodes need of this node's sessions.
type Recorder interface {
	// Record keeps a session's state in place of its earlier one. It never blocks.
	Record(s Recorded)
	// Confirm keeps how far a session has come, and calls done then. It never blocks.
	Confirm(p Progress, done func())
	// Claim moves a session to a node, runs in its user's actor, and calls done there with its state.
	// Faults: NotFound if there is no such session with that key.
	Claim(c *Ctx, session uint64, key []byte, node uint32, incarnation uint64, done func(s Recorded, err error))
}

// SetRecorder registers what keeps sessions; without one a session ends with its node.
func (g *Registry) SetRecorder(r Recorder) { g.recorder = r }

// OnMessageOut registers fn to run after an own session's message was routed.
func (g *Registry) OnMessageOut(fn func(c *Ctx, p *stanza.Packet)) {
	g.messageOut = append(g.messageOut, fn)
}

// OnMessageIn registers fn to run after a message to this user was delivered to the sessions named.
func (g *Registry) OnMessageIn(fn func(c *Ctx, p *stanza.Packet, delivered []*Attached)) {
	g.messageIn = append(g.messageIn, fn)
}

// Undeliverable registers fn to take a message that no session of the user may
// have; true means taken, else its sender gets an error. It runs in the recipient's actor.
func (g *Registry) Undeliverable(fn func(c *Ctx, p *stanza.Packet) bool) {
	g.undeliverable = append(g.undeliverable, fn)
}

// OnRow registers fn for every change of the hot store, in order per user. fn
// must only read and post to actors (Active): other changes wait for it.
func (g *Registry) OnRow(fn func(c hot.Change)) { g.onRow = append(g.onRow, fn) }

// Watch registers fn for the changes of a table, in log order, none left out.
// It runs on the router's own goroutine, not the machine's; fn must not block: it posts to actors.
func (g *Registry) Watch(t *fsm.Table, fn func(c fsm.Change)) {
	g.watches[t] = append(g.watches[t], fn)
}
