package presence

import (
	"strconv"
	"strings"

	"muster/router/stanza"
)

// check holds a client's presence to RFC 6121 section 4.7.2: at most one
// <show/> with a known value, at most one <priority/> from -128 to 127. It
// returns the priority.
func check(p *stanza.Packet) (int8, *stanza.Error) {
	var (
		priority     int8
		shows, prios int
	)
	for _, c := range p.Children {
		if c.Space != stanza.NSClient {
			continue
		}
		switch c.Local {
		case "show":
			if shows++; shows > 1 || !knownShow(text(p, c)) {
				return 0, stanza.NewError(stanza.BadRequest, "show is one of away, chat, dnd, xa")
			}
		case "priority":
			n, err := strconv.ParseInt(text(p, c), 10, 8)
			if prios++; prios > 1 || err != nil {
				return 0, stanza.NewError(stanza.BadRequest, "priority is a whole number from -128 to 127")
			}
			priority = int8(n)
		}
	}
	return priority, nil
}

func knownShow(s string) bool { return s == "away" || s == "chat" || s == "dnd" || s == "xa" }

func text(p *stanza.Packet, c stanza.Child) string { return strings.TrimSpace(p.Element(c).Text()) }
