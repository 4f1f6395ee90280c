package xmpp

import (
	"encoding/base64"
	"strconv"

	"muster/fsm/token"
	"muster/router/stanza"
	"muster/router/xmltok"
)

// maxWishes is how many features one bind request may turn on.
const maxWishes = 8

// loginRequest is what a client asks for with its login.
type loginRequest struct {
	mechanism  string
	initial    []byte // nil: none
	initialOK  bool   // it is base64, or absent
	agent      token.Agent
	token      bool        // it says that it uses a token
	invalidate bool        // and that it does so for the last time
	wanted     string      // the mechanism for which it wants a token
	resume     *resumption // the session that it wants back
	bind       *bindWish   // the session that it wants else
}

// bindWish is what a client wants its session to be.
type bindWish struct {
	tag    string // of its resource
	manage bool   // with stream management
	resume string // and that with resumption
	quiet  bool   // nobody looks at it
	wishes []Wish // features of the router's
}

// readLogin reads <authenticate/>; problem says what is wrong with it.
func readLogin(item *xmltok.Item) (q *loginRequest, problem string) {
	q = &loginRequest{mechanism: item.Attr("mechanism"), initialOK: true}
	el, err := stanza.ElementOf(item)
	if err != nil {
		return q, "malformed"
	}
	if initial := el.Find(stanza.NSSASL2, "initial-response"); initial != nil {
		q.initial, err = base64.StdEncoding.Strict().DecodeString(initial.Text())
		q.initialOK = err == nil && len(initial.Elements()) == 0
		if q.initial == nil {
			q.initial = []byte{} // an empty response is not none
		}
	}
	if id, given := el.Find(stanza.NSSASL2, "user-agent").LookupAttr("id"); given {
		if q.agent, given = token.ParseAgent(id); !given {
			return q, "the id of a user agent is a UUID of version 4"
		}
	}
	if r := el.Find(stanza.NSSM, "resume"); r != nil {
		q.resume = &resumption{previd: r.Attr("previd"), h: r.Attr("h")}
	}
	if b := el.Find(stanza.NSBind2, "bind"); b != nil {
		q.bind = readBind(b)
	}
	q.wanted = el.Find(stanza.NSFAST, "request-token").Attr("mechanism")
	return q, q.readToken(el)
}

// readToken reads what the client says about the token that it uses. count counts logins for servers that take
// them with the first bytes of a TLS connection, where they could be replayed; this one does not.
func (q *loginRequest) readToken(el *stanza.Element) (problem string) {
	fast := el.Find(stanza.NSFAST, "fast")
	if q.token = fast != nil; !q.token {
		return ""
	}
	if count, given := fast.LookupAttr("count"); given {
		if _, err := strconv.ParseUint(count, 10, 31); err != nil {
			return "count is a number"
		}
	}
	switch fast.Attr("invalidate") {
	case "true", "1":
		q.invalidate = true
	case "", "false", "0":
	default:
		return "invalidate is true or false"
	}
	if q.agent == (token.Agent{}) {
		return "a token belongs to a user agent with an id"
	}
	return ""
}

func readBind(b *stanza.Element) *bindWish {
	w := &bindWish{tag: b.Find(stanza.NSBind2, "tag").Text()}
	for _, el := range b.Elements() {
		switch {
		case el.Space == stanza.NSSM && el.Local == "enable":
			w.manage, w.resume = true, el.Attr("resume")
		case el.Space == stanza.NSCSI:
			w.quiet = el.Local == "inactive"
		case el.Space != stanza.NSBind2 && len(w.wishes) < maxWishes:
			w.wishes = append(w.wishes, Wish{Space: el.Space, Local: el.Local})
		}
	}
	return w
}
