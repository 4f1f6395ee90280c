package entitytime

import (
	"testing"
	"time"
)

func TestRender(t *testing.T) {
	at := time.Date(2026, 3, 1, 1, 30, 0, 250_000_000, time.UTC)
	cases := []struct {
		name string
		zone *time.Location
		tzo  string
	}{
		{"UTC", time.UTC, "+00:00"},
		{"east", time.FixedZone("", 5*3600+1800), "+05:30"},
		{"west", time.FixedZone("", -7*3600), "-07:00"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			want := `<time xmlns="urn:xmpp:time"><tzo>` + tc.tzo + `</tzo><utc>2026-03-01T01:30:00.250Z</utc></time>`
			if got := string(render(at.In(tc.zone))); got != want {
				t.Errorf("got %s\nwant %s", got, want)
			}
		})
	}
}
