package state

import (
	"fmt"
	"strings"
	"testing"
)

// The nine states of RFC 6121 appendix A.1.
var states = map[string]State{
	"None":       {},
	"None+PO":    {Ask: true},
	"None+PI":    {PendingIn: true},
	"None+PO+PI": {Ask: true, PendingIn: true},
	"To":         {Sub: To},
	"To+PI":      {Sub: To, PendingIn: true},
	"From":       {Sub: From},
	"From+PO":    {Sub: From, Ask: true},
	"Both":       {Sub: Both},
}

// transitions is RFC 6121 appendix A.2 and A.3: for each state the eight
// stanzas, out first. "pass" is route or deliver, "approve" a pre-approval
// noted, "!x" an automatic answer; the state follows where it changes.
const transitions = `
None       | pass None+PO    | pass         | approve         | -            | pass None+PI    | -                         | -            | -
None+PO    | pass            | pass None    | approve         | -            | pass None+PO+PI | -                         | pass To      | pass None
None+PI    | pass None+PO+PI | pass         | pass From       | pass None    | -               | pass None !unsubscribed   | -            | -
None+PO+PI | pass            | pass None+PI | pass From+PO    | pass None+PO | -               | pass None+PO !unsubscribed | pass To+PI  | pass None+PI
To         | pass            | pass None    | approve         | -            | pass To+PI      | -                         | -            | pass None
To+PI      | pass            | pass None+PI | pass Both       | pass To      | -               | pass To !unsubscribed     | -            | pass None+PI
From       | pass From+PO    | pass         | -               | pass None    | !subscribed     | pass None !unsubscribed   | -            | -
From+PO    | pass            | pass From    | -               | pass None+PO | !subscribed     | pass None+PO !unsubscribed | pass Both   | pass From
Both       | pass            | pass From    | -               | pass To      | !subscribed     | pass To !unsubscribed     | -            | pass From
`

var columns = []struct {
	d Direction
	t Type
}{
	{Out, Subscribe}, {Out, Unsubscribe}, {Out, Subscribed}, {Out, Unsubscribed},
	{In, Subscribe}, {In, Unsubscribe}, {In, Subscribed}, {In, Unsubscribed},
}

func TestNextFollowsTheRFC(t *testing.T) {
	rows := 0
	for line := range strings.Lines(strings.TrimSpace(transitions)) {
		cells := strings.Split(line, "|")
		name := strings.TrimSpace(cells[0])
		for i, c := range columns {
			t.Run(fmt.Sprintf("%s/%d-%v", name, c.d, c.t), func(t *testing.T) {
				want, action := parseCell(t, states[name], cells[i+1])
				got, act := Next(states[name], c.d, c.t)
				if got != want || act != action {
					t.Errorf("got %+v %+v, want %+v %+v", got, act, want, action)
				}
			})
			rows++
		}
	}
	if rows != len(states)*len(columns) {
		t.Fatalf("%d transitions tested, want %d", rows, len(states)*len(columns))
	}
}

func parseCell(t *testing.T, from State, cell string) (State, Action) {
	t.Helper()
	state, act := from, Action{}
	for _, word := range strings.Fields(cell) {
		switch {
		case word == "-":
		case word == "pass":
			act.Pass = true
		case word == "approve":
			state.Approved = true
		case word[0] == '!':
			act.Reply, _ = ParseType(word[1:])
		default:
			next, ok := states[word]
			if !ok {
				t.Fatalf("unknown word %q", word)
			}
			state = next
		}
	}
	return state, act
}

func TestPreApproval(t *testing.T) {
	tests := []struct {
		name string
		from State
		d    Direction
		t    Type
		want State
		act  Action
	}{
		{"none is answered at once", State{Approved: true}, In, Subscribe, State{Sub: From, Approved: true}, Action{Reply: Subscribed}},
		{"pending out is answered at once", State{Ask: true, Approved: true}, In, Subscribe, State{Sub: From, Ask: true, Approved: true}, Action{Reply: Subscribed}},
		{"to becomes both", State{Sub: To, Approved: true}, In, Subscribe, State{Sub: Both, Approved: true}, Action{Reply: Subscribed}},
		{"approving twice changes nothing", State{Approved: true}, Out, Subscribed, State{Approved: true}, Action{}},
		{"cancelled without a word", State{Approved: true}, Out, Unsubscribed, State{}, Action{}},
		{"cancelled with the subscription", State{Sub: From, Approved: true}, Out, Unsubscribed, State{}, Action{Pass: true}},
		{"kept when the contact leaves", State{Sub: From, Approved: true}, In, Unsubscribe, State{Approved: true}, Action{Pass: true, Reply: Unsubscribed}},
		{"kept when asking", State{Approved: true}, Out, Subscribe, State{Ask: true, Approved: true}, Action{Pass: true}},
		{"unknown type out", State{Sub: To}, Out, 9, State{Sub: To}, Action{}},
		{"unknown type in", State{Sub: To}, In, 0, State{Sub: To}, Action{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, act := Next(tt.from, tt.d, tt.t)
			if got != tt.want || act != tt.act {
				t.Errorf("got %+v %+v, want %+v %+v", got, act, tt.want, tt.act)
			}
		})
	}
}

// TestOnlyTheNineStatesAreReachable walks the machine from "None" and demands that it stays inside appendix A.1.
func TestOnlyTheNineStatesAreReachable(t *testing.T) {
	known := map[State]string{}
	for name, s := range states {
		known[s] = name
	}
	seen := map[State]bool{}
	todo := []State{{}}
	for len(todo) > 0 {
		s := todo[0]
		todo = todo[1:]
		if seen[s] {
			continue
		}
		seen[s] = true
		plain := s
		plain.Approved = false
		if known[plain] == "" {
			t.Fatalf("state %+v is not one of the nine", s)
		}
		for _, c := range columns {
			next, _ := Next(s, c.d, c.t)
			todo = append(todo, next)
		}
	}
	if len(seen) < len(states) {
		t.Errorf("only %d states were reached", len(seen))
	}
}

func TestNames(t *testing.T) {
	for typ, name := range map[Type]string{Subscribe: "subscribe", Subscribed: "subscribed", Unsubscribe: "unsubscribe", Unsubscribed: "unsubscribed"} {
		if got, ok := ParseType(name); !ok || got != typ || typ.String() != name {
			t.Errorf("%s: parsed %v %v, printed %q", name, got, ok, typ)
		}
	}
	for _, bad := range []string{"", "probe", "unavailable"} {
		if got, ok := ParseType(bad); ok {
			t.Errorf("%q parsed as %v", bad, got)
		}
	}
	if Type(9).String() != "" {
		t.Error("an unknown type has a name")
	}
	for sub, want := range map[Sub]string{None: "none", To: "to", From: "from", Both: "both"} {
		if sub.String() != want || sub.HasTo() != strings.Contains("to both", want) || sub.HasFrom() != strings.Contains("from both", want) {
			t.Errorf("%v: %v %v", sub, sub.HasTo(), sub.HasFrom())
		}
	}
}
