package archive

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"time"

	"muster/feature/archive/state"
	message "muster/feature/message/state"
	"muster/internal/jid"
	"muster/router/stanza"
)

// stamp is a time as clients see it (XEP-0082), with all of its precision:
// clients give it back to ask for what came later.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000Z") }

// results are the stanzas that carry a page, in the order in which they are sent.
func results(page *message.Page, req *request, owner, to jid.JID) []*stanza.Packet {
	out := make([]*stanza.Packet, 0, len(page.Messages))
	for i := range page.Messages {
		out = append(out, result(&page.Messages[i], req.id, owner, to))
	}
	if req.flip {
		slices.Reverse(out)
	}
	return out
}

// result wraps one message (XEP-0313 section 4.2, XEP-0297).
func result(m *message.Message, queryID string, owner, to jid.JID) *stanza.Packet {
	id := m.ID(owner.String())
	b := stanza.NewBuilder("").Open("result", stanza.NSMAM, "queryid", queryID, "id", id).Open("forwarded", stanza.NSForward)
	b.Leaf("delay", stanza.NSDelay, "stamp", stamp(m.Time)).Raw(embedded(m.XML, owner, id))
	return stanza.WithInner(stanza.KindMessage, "", "", owner, to, b.Bytes())
}

// The ends of a canonical message.
var (
	head  = []byte("<message")
	tail  = []byte("</message>")
	empty = []byte("/>")
)

// embedded returns a stored message for a place where jabber:client is not the
// default name space, with the archive's id as its last child (XEP-0359) and
// otherwise as it was stored.
func embedded(xml []byte, owner jid.JID, id string) []byte {
	const decl = ` xmlns="` + stanza.NSClient + `"`
	mark := stanza.NewBuilder("").Leaf("stanza-id", stanza.NSStanzaID, "by", owner.String(), "id", id).Bytes()
	inside, full := bytes.CutSuffix(bytes.TrimPrefix(xml, head), tail)
	if !full {
		inside = append(slices.Clip(bytes.TrimSuffix(inside, empty)), '>')
	}
	return slices.Concat(head, []byte(decl), inside, mark, tail)
}

// fin ends a page (XEP-0313 section 4.3.2). An unstable one may lack what this
// node has not heard of. The index of the page is told forwards only: there are
// clients that read backwards and take the last page, known by index and count,
// for the end of all pages.
func fin(page *message.Page, back, unstable bool) []byte {
	complete, stable := "", ""
	if page.Complete {
		complete = "true"
	}
	if unstable {
		stable = "false"
	}
	b := stanza.NewBuilder("").Open("fin", stanza.NSMAM, "complete", complete, "stable", stable).Open("set", stanza.NSRSM)
	if page.First != "" {
		index := ""
		if page.Counted && !back {
			index = strconv.Itoa(page.Index)
		}
		b.TextElement("first", "", page.First, "index", index).TextElement("last", "", page.Last)
	}
	if page.Counted {
		b.TextElement("count", "", strconv.Itoa(page.Count))
	}
	return b.Bytes()
}

// parsePrefs reads preferences (XEP-0441 section 2.1). Addresses come out in their normal form, each once.
func parsePrefs(el *stanza.Element) (state.Prefs, *stanza.Error) {
	policy, ok := state.ParsePolicy(el.Attr("default"))
	if !ok {
		return state.Prefs{}, badRequest("the default is always, never or roster")
	}
	p := state.Prefs{Default: policy}
	for name, list := range map[string]*[]string{"always": &p.Always, "never": &p.Never} {
		for _, e := range el.Find(stanza.NSMAM, name).All(stanza.NSMAM, "jid") {
			j, err := jid.Parse(strings.TrimSpace(e.Text()))
			if err != nil {
				return p, stanza.NewError(stanza.JIDMalformed, "malformed address in the list "+name)
			}
			*list = append(*list, j.String())
		}
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	return p, nil
}

func renderPrefs(p state.Prefs) []byte {
	b := stanza.NewBuilder("").Open("prefs", stanza.NSMAM, "default", p.Default.String())
	for _, l := range []struct {
		name string
		list []string
	}{{"always", p.Always}, {"never", p.Never}} {
		b.Open(l.name, "")
		for _, j := range l.list {
			b.TextElement("jid", "", j)
		}
		b.Close()
	}
	return b.Bytes()
}
