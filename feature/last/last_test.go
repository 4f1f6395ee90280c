package last

import (
	"testing"
	"time"
)

func TestRender(t *testing.T) {
	cases := []struct {
		name, text, want string
		ago              time.Duration
	}{
		{"now", "", `<query xmlns="jabber:iq:last" seconds="0"/>`, 0},
		{"whole seconds", "a < b", `<query xmlns="jabber:iq:last" seconds="61">a &lt; b</query>`, 61*time.Second + 900*time.Millisecond},
		{"a clock that went back", "", `<query xmlns="jabber:iq:last" seconds="0"/>`, -time.Hour},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			if got := string(render(tc.ago, tc.text)); got != tc.want {
				t.Errorf("got %s\nwant %s", got, tc.want)
			}
		})
	}
}
