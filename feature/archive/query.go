package archive

import (
	"strconv"
	"strings"
	"time"

	message "muster/feature/message/state"
	"muster/internal/jid"
	"muster/router/stanza"
)

// request is what a client asks for.
type request struct {
	message.Query
	id   string // of the query, which comes back in each result
	flip bool   // the page's messages are sent in reverse order
}

// fields are the fields of the query's form (XEP-0313 section 4.1) and their types.
var fields = []struct{ name, kind string }{
	{"with", "jid-single"}, {"start", "text-single"}, {"end", "text-single"}, {"before-id", "text-single"}, {"after-id", "text-single"},
	{"ids", "list-multi"}, {"include-groupchat", "boolean"},
}

// queryForm renders the form (XEP-0313 section 4.1.6).
func queryForm() []byte {
	b := stanza.NewBuilder("").Open("query", stanza.NSMAM).Open("x", stanza.NSData, "type", "form")
	b.Open("field", "", "type", "hidden", "var", "FORM_TYPE").TextElement("value", "", stanza.NSMAM).Close()
	for _, f := range fields {
		b.Open("field", "", "type", f.kind, "var", f.name)
		if f.kind == "list-multi" { // any value may be given, and none is listed
			b.Open("validate", "http://jabber.org/protocol/xdata-validate", "datatype", "xs:string").Leaf("open", "").Close()
		}
		b.Close()
	}
	return b.Bytes()
}

func badRequest(text string) *stanza.Error { return stanza.NewError(stanza.BadRequest, text) }

// parseQuery reads a <query/> for owner's archive.
func parseQuery(el *stanza.Element, owner jid.JID, pageSize int) (*request, *stanza.Error) {
	if el.Attr("node") != "" {
		return nil, stanza.NewError(stanza.ItemNotFound, "a user's archive has no nodes")
	}
	req := &request{id: el.Attr("queryid"), flip: el.Find(stanza.NSMAM, "flip-page") != nil}
	req.Owner, req.MaxBytes = owner.String(), pageBytes
	if x := el.Find(stanza.NSData, "x"); x != nil {
		if refusal := req.readForm(x, owner); refusal != nil {
			return nil, refusal
		}
	}
	if refusal := req.readSet(el.Find(stanza.NSRSM, "set"), pageSize); refusal != nil {
		return nil, refusal
	}
	return req, nil
}

// readForm reads the filter.
func (req *request) readForm(x *stanza.Element, owner jid.JID) *stanza.Error {
	if x.Attr("type") != "submit" {
		return badRequest("a query's form is of type submit")
	}
	values := map[string][]string{}
	for _, f := range x.All(stanza.NSData, "field") {
		name := f.Attr("var")
		if _, twice := values[name]; twice {
			return badRequest("the form has the field " + name + " twice")
		}
		values[name] = nil
		for _, v := range f.All(stanza.NSData, "value") {
			if text := strings.TrimSpace(v.Text()); text != "" {
				values[name] = append(values[name], text)
			}
		}
		if len(values[name]) > 1 && name != "ids" {
			return badRequest("the form's field " + name + " has several values")
		}
	}
	if t := values["FORM_TYPE"]; len(t) == 0 || t[0] != stanza.NSMAM {
		return badRequest("the form is not a query of an archive")
	}
	delete(values, "FORM_TYPE")
	// order: refusals differ only in which of several mistakes they name
	for name, list := range values {
		if refusal := req.setField(name, list, owner); refusal != nil {
			return refusal
		}
	}
	return nil
}

func (req *request) setField(name string, list []string, owner jid.JID) *stanza.Error {
	value := ""
	if len(list) > 0 {
		value = list[0]
	}
	switch name {
	case "with":
		return req.setWith(value, owner)
	case "start":
		return setTime(&req.Start, value, 0)
	case "end":
		return setTime(&req.End, value, precision-1)
	case "before-id":
		req.BeforeID = value
	case "after-id":
		req.AfterID = value
	case "ids":
		if len(list) == 0 || len(list) > MaxPage {
			return badRequest("name the messages that you want, " + strconv.Itoa(MaxPage) + " at the most")
		}
		req.IDs = list
	case "include-groupchat": // rooms keep their own archives: there is nothing to include
		switch value {
		case "", "0", "1", "true", "false":
		default:
			return badRequest("the form's field " + name + " is true or false")
		}
	default:
		return stanza.NewError(stanza.FeatureNotImplemented, "the form's field "+name+" is not known here")
	}
	return nil
}

// setWith restricts the query to messages with one address. A bare one stands
// for all of its resources; the own one for what was sent to oneself (XEP-0313 section 4.1.1).
func (req *request) setWith(value string, owner jid.JID) *stanza.Error {
	if value == "" {
		return nil
	}
	with, err := jid.Parse(value)
	if err != nil {
		return stanza.NewError(stanza.JIDMalformed, "the address in the form's field with is malformed")
	}
	if with.Bare() != owner || with.IsBare() {
		req.With = with.Bare().String()
	}
	if !with.IsBare() {
		req.Match = func(m *message.Message) bool {
			p, err := stanza.ParsePacket(m.XML)
			return err == nil && (p.From == with || p.To == with)
		}
	}
	return nil
}

// precision is that of the times that clients see: a message belongs to a range
// that ends with the time that it was shown with.
const precision = time.Microsecond

// setTime reads a DateTime of XEP-0082 section 3.2.
func setTime(t *time.Time, value string, more time.Duration) *stanza.Error {
	if value == "" {
		return nil
	}
	parsed, err := time.Parse(time.RFC3339Nano, value)
	if err != nil {
		return badRequest("the time " + value + " is not as in 2026-01-31T12:00:00Z")
	}
	*t = parsed.UTC().Truncate(precision).Add(more)
	return nil
}

// readSet reads what page is wanted (XEP-0059 sections 2.1 to 2.7).
func (req *request) readSet(set *stanza.Element, pageSize int) *stanza.Error {
	req.Max = pageSize
	if text := strings.TrimSpace(set.Find(stanza.NSRSM, "max").Text()); text != "" {
		n, err := strconv.ParseUint(text, 10, 31)
		if err != nil {
			return badRequest("the greatest number of messages is not a number")
		}
		req.Max = min(int(n), MaxPage)
	}
	if set.Find(stanza.NSRSM, "index") != nil {
		return stanza.NewError(stanza.FeatureNotImplemented, "pages are found by ids, not by numbers")
	}
	req.After = strings.TrimSpace(set.Find(stanza.NSRSM, "after").Text())
	before := set.Find(stanza.NSRSM, "before")
	req.Before, req.Last = strings.TrimSpace(before.Text()), before != nil
	return nil
}
