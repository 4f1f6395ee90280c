package commands

import (
	"crypto/rand"
	"time"

	"muster/router"
	"muster/router/stanza"
)

// Limits of half-done commands.
const (
	maxOpen  = 16               // of one administrator
	openTime = 10 * time.Minute // after which a form can no longer be submitted
)

// open is a command whose form was sent and not yet submitted.
type open struct {
	cmd     *command
	client  string // full address of the client that began it
	expires time.Time
}

// opens are one administrator's half-done commands by session id, kept with the actor.
type opens map[string]open

type opensKey struct{}

func opensOf(c *router.Ctx) opens {
	return *router.Value(c.Actor, opensKey{}, func() *opens { return &opens{} })
}

// begin notes a command and returns its session id; the oldest makes room.
func (o opens) begin(cmd *command, client string, now time.Time) string {
	var oldest string
	for id, one := range o {
		if now.After(one.expires) {
			delete(o, id)
		} else if oldest == "" || one.expires.Before(o[oldest].expires) {
			oldest = id
		}
	}
	if len(o) >= maxOpen {
		delete(o, oldest)
	}
	id := rand.Text()
	o[id] = open{cmd, client, now.Add(openTime)}
	return id
}

// take ends the session if it is that client's and that command's, and still open.
func (o opens) take(id string, cmd *command, client string, now time.Time) bool {
	one, ok := o[id]
	if !ok || one.cmd != cmd || one.client != client {
		return false
	}
	delete(o, id)
	return !now.After(one.expires)
}

// handle runs one step of a command (XEP-0050 section 2).
func (f *Feature) handle(c *router.Ctx, iq *stanza.Packet) {
	payload, _ := iq.Payload()
	el := iq.Element(payload)
	cmd := f.byNode[el.Attr("node")]
	switch {
	case iq.Type != stanza.TypeSet:
		refuse(c, iq, stanza.BadRequest, "", "commands are run by a set")
	case !isAdmin(c):
		refuse(c, iq, stanza.Forbidden, "", "this is for administrators")
	case cmd == nil:
		refuse(c, iq, stanza.ItemNotFound, "", "no such command")
	default:
		f.step(c, iq, el, cmd)
	}
}

func (f *Feature) step(c *router.Ctx, iq *stanza.Packet, el *stanza.Element, cmd *command) {
	session, action := el.Attr("sessionid"), el.Attr("action")
	if session == "" {
		switch {
		case action != "" && action != "execute":
			refuse(c, iq, stanza.BadRequest, "bad-action", "begin with execute")
		case cmd.ask == "":
			f.run(c, iq, cmd, rand.Text(), nil)
		default:
			id := opensOf(c).begin(cmd, iq.From.String(), time.Now())
			c.Reply(iq.Result(render(cmd, id, "executing", func(b *stanza.Builder) {
				b.Open("actions", "", "execute", "complete").Leaf("complete", "").Close()
				b.Raw(question(cmd))
			})))
		}
		return
	}
	f.proceed(c, iq, el, cmd, session, action)
}

func (f *Feature) proceed(c *router.Ctx, iq *stanza.Packet, el *stanza.Element, cmd *command, session, action string) {
	switch action {
	case "", "execute", "complete", "next", "cancel":
	default:
		refuse(c, iq, stanza.BadRequest, "bad-action", "the command has one step")
		return
	}
	in := submitted(el)
	if action != "cancel" {
		if err := cmd.check(in); err != nil {
			e := stanza.FromFault(err)
			e.Extra = condition("bad-payload")
			c.Reply(iq.ErrorReply(e)) // the session stays open: submit a better form
			return
		}
	}
	if !opensOf(c).take(session, cmd, iq.From.String(), time.Now()) {
		refuse(c, iq, stanza.NotAllowed, "session-expired", "begin the command again")
		return
	}
	if action == "cancel" {
		c.Reply(iq.Result(render(cmd, session, "canceled", nil)))
		return
	}
	f.run(c, iq, cmd, session, in)
}

func (f *Feature) run(c *router.Ctx, iq *stanza.Packet, cmd *command, session string, in values) {
	cmd.run(c, in, func(c *router.Ctx, out outcome) {
		if out.err != nil {
			c.Reply(iq.ErrorReply(stanza.FromFault(out.err)))
			return
		}
		c.Reply(iq.Result(render(cmd, session, "completed", func(b *stanza.Builder) {
			if out.note != "" {
				b.TextElement("note", "", out.note, "type", "info")
			}
			if out.fields != nil {
				b.Raw(answer(cmd, out.fields, out.extra))
			}
		})))
	})
}

// render writes the <command/> of an answer.
func render(cmd *command, session, status string, inside func(*stanza.Builder)) []byte {
	b := stanza.NewBuilder("").Open("command", stanza.NSCommands, "node", cmd.fullNode(), "sessionid", session, "status", status)
	if inside != nil {
		inside(b)
	}
	return b.Bytes()
}

// refuse answers with an error; detail is one of XEP-0050's own conditions, or "".
func refuse(c *router.Ctx, iq *stanza.Packet, cond stanza.Condition, detail, text string) {
	e := stanza.NewError(cond, text)
	if detail != "" {
		e.Extra = condition(detail)
	}
	c.Reply(iq.ErrorReply(e))
}

func condition(name string) []byte {
	return stanza.NewBuilder("").Leaf(name, stanza.NSCommands).Bytes()
}
