package message

import (
	"reflect"
	"testing"

	"muster/feature/message/state"
)

// TestPutBack: what could not be written is written later, of the same session, and what came since is newer.
func TestPutBack(t *testing.T) {
	refusal := [][]byte{[]byte("<message type='error'/>")}
	tests := []struct {
		name           string
		old, now, want state.Step
	}{
		{"nothing since", state.Step{Session: 7, Confirmed: 5, Told: true, Refusals: refusal}, state.Step{},
			state.Step{Session: 7, Confirmed: 5, Told: true, Refusals: refusal}},
		{"more since", state.Step{Session: 7, Confirmed: 5, Told: true, Refusals: refusal}, state.Step{Session: 7, Confirmed: 9},
			state.Step{Session: 7, Confirmed: 9, Told: true, Refusals: refusal}},
		{"errors were confirmed since", state.Step{Session: 7, Confirmed: 5, Told: true, Refusals: refusal}, state.Step{Session: 7, Told: true},
			state.Step{Session: 7, Confirmed: 5, Told: true}},
		{"claimed since", state.Step{Session: 7, Confirmed: 8}, state.Step{Session: 7, Claims: 1, Confirmed: 5},
			state.Step{Session: 7, Claims: 1, Confirmed: 5}},
		{"of a later claim", state.Step{Session: 7, Claims: 1, Confirmed: 5}, state.Step{Session: 7, Confirmed: 9},
			state.Step{Session: 7, Claims: 1, Confirmed: 5}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g, old := newGathered(), newGathered()
			old.steps[7] = tt.old
			if tt.now.Session != 0 {
				g.steps[7] = tt.now
			}
			g.putBack(&old)
			if got := g.steps[7]; !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}
