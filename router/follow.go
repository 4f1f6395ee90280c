package router

import (
	"sync"
	"time"

	"muster/internal/jid"
	"muster/router/stanza"
)

// Order of kept messages behind live stanzas. A session's presence and requests
// reach the recipient's home by the link, its kept messages by the log, which
// may be faster. A kept message that follows a live stanza to another node
// therefore leaves a token on the link, behind that stanza, and is handed over
// when the token is there; or after a second, since the link may be cut.

// Token names an input of a session. The zero Token names none.
type Token struct{ Session, Input uint64 }

// Bounds of waiting for tokens.
const (
	maxTokens     = 4096 // that came before their messages; beyond it the oldest are forgotten
	tokenPatience = time.Second
)

// tokens are those that came over links, and the actors that wait for some.
type tokens struct {
	mu      sync.Mutex
	seen    map[Token]bool
	order   []Token // of seen
	waiting map[Token]*Actor
}

// note takes in a token. It returns the actor that waits for it, or nil.
func (t *tokens) note(k Token) *Actor {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.seen == nil {
		t.seen = map[Token]bool{}
	}
	if len(t.order) >= maxTokens {
		delete(t.seen, t.order[0])
		t.order = t.order[1:]
	}
	t.seen[k] = true
	t.order = append(t.order, k)
	a := t.waiting[k]
	delete(t.waiting, k)
	return a
}

// here reports whether a token has come; if not, the actor will be told when it does.
func (t *tokens) here(k Token, a *Actor) bool {
	if k == (Token{}) {
		return true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.seen[k] {
		return true
	}
	if t.waiting == nil {
		t.waiting = map[Token]*Actor{}
	}
	t.waiting[k] = a
	return false
}

// forget ends the waiting for a token.
func (t *tokens) forget(k Token) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.waiting, k)
}

// noteLive remembers that a stanza of the session went to a node by its link.
func (at *Attached) noteLive(node uint32) {
	if at.live == nil {
		at.live = map[uint32]bool{}
	}
	at.live[node] = true
}

// Follow returns the token that a message to a user, which is about to be kept,
// must wait for at the recipient's home; zero if no live stanza went there before it.
func (c *Ctx) Follow(to jid.JID) Token {
	at := c.Session
	if at == nil || len(at.live) == 0 {
		return Token{}
	}
	home, where := c.r.locate(to.Bare())
	if where != elsewhere || !at.live[home.Node] {
		return Token{}
	}
	delete(at.live, home.Node)
	k := Token{at.ID, at.current}
	_ = c.r.links.Send(home.Node, kindToken, appendUint64(appendUint64(nil, k.Session), k.Input), true)
	return k
}

func (r *Router) takeToken(b []byte) error {
	s := &scanner{b: b}
	k := Token{s.uint64(), s.uint64()}
	if s.bad {
		return s.err()
	}
	if a := r.tokens.note(k); a != nil {
		a.post(event{call: (*Actor).handBehind})
	}
	return nil
}

// behind is a kept message that waits for a token, or for one that does.
type behind struct {
	p     *stanza.Packet
	token Token
	until time.Time
	then  []event // stanzas that follow it
}

// followsBehind has a stanza wait for the last kept message of its session that it follows, if such a one waits for its token.
func (a *Actor) followsBehind(e *event) bool {
	if e.seq == 0 || a.moved {
		return false
	}
	for i := len(a.behind) - 1; i >= 0; i-- {
		if b := &a.behind[i]; b.p.Number <= e.seq && b.p.From == e.p.From {
			b.then = append(b.then, *e)
			return true
		}
	}
	return false
}

// ReceiveStored hands a kept message to the sessions that it is for, by RFC 6121
// section 8.5, once its token is here. One that is for none waits in the log.
func (c *Ctx) ReceiveStored(p *stanza.Packet, follows Token) {
	a := c.Actor
	if len(a.behind) == 0 && a.r.tokens.here(follows, a) {
		a.receiveStored(p)
		return
	}
	a.behind = append(a.behind, behind{p: p, token: follows, until: time.Now().Add(tokenPatience)})
	if len(a.behind) == 1 {
		a.waitBehind()
	}
}

// waitBehind looks again when the first message has waited long enough.
func (a *Actor) waitBehind() {
	a.busy.Add(1)
	time.AfterFunc(time.Until(a.behind[0].until), func() {
		a.post(event{call: func(a *Actor) { a.busy.Add(-1); a.handBehind() }})
	})
}

// handBehind hands over what need not wait any longer, in order.
func (a *Actor) handBehind() {
	waited := len(a.behind) > 0
	for len(a.behind) > 0 {
		b := a.behind[0]
		if late := !time.Now().Before(b.until); !late && !a.r.tokens.here(b.token, a) {
			break
		}
		a.r.tokens.forget(b.token)
		a.behind[0] = behind{}
		if a.behind = a.behind[1:]; !a.moved {
			a.receiveStored(b.p)
		}
		a.handleAll(b.then)
	}
	if waited && len(a.behind) > 0 {
		a.waitBehind()
	}
}

// leaveBehind forgets what waits: the user's next home offers it from the log.
func (a *Actor) leaveBehind() {
	waiting := a.behind
	a.behind = nil
	for _, b := range waiting {
		a.r.tokens.forget(b.token)
		a.handleAll(b.then) // they go on to the next home
	}
}

func (a *Actor) handleAll(events []event) {
	for i := range events {
		a.handle(&events[i])
	}
}
