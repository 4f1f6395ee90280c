package account

import (
	"testing"

	"muster/fsm/user"
)

func TestReason(t *testing.T) {
	on, off := &user.User{IM: true}, &user.User{}
	other := &user.User{IM: true, SHA256: user.Verifier{StoredKey: []byte("new")}}
	cases := []struct {
		name          string
		before, after *user.User
		onPassword    bool
		ends          bool
	}{
		{"created", nil, on, true, false},
		{"deleted", on, nil, false, true},
		{"disabled", on, off, false, true},
		{"enabled", off, on, false, false},
		{"renamed", on, &user.User{IM: true, DisplayName: "x"}, true, false},
		{"new password", on, other, false, false},
		{"new password, and the setting is on", on, other, true, true},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			if got := reason(tc.before, tc.after, tc.onPassword); (got != "") != tc.ends {
				t.Errorf("reason %q", got)
			}
		})
	}
}
