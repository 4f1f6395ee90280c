package fault

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestCodesAreNamedOnce(t *testing.T) {
	seen := map[string]Code{}
	for _, c := range Codes() {
		name := c.String()
		if name == "unknown" {
			t.Errorf("code %d has no name", c)
		}
		if other, dup := seen[name]; dup {
			t.Errorf("codes %d and %d share the name %q", c, other, name)
		}
		seen[name] = c
	}
}

func TestCodeOf(t *testing.T) {
	cause := errors.New("disk on fire at /secret/path")
	tests := []struct {
		name string
		err  error
		want Code
	}{
		{"nil", nil, 0},
		{"plain", cause, Internal},
		{"fault", New(NotFound, "user.get", "alice", ""), NotFound},
		{"wrapped fault", fmt.Errorf("outer: %w", New(Conflict, "user.create", "alice", "")), Conflict},
		{"deadline", fmt.Errorf("x: %w", context.DeadlineExceeded), Timeout},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := CodeOf(tt.err); got != tt.want {
				t.Errorf("CodeOf = %v, want %v", got, tt.want)
			}
		})
	}
}

func TestPublicHidesTheCause(t *testing.T) {
	err := Wrap(errors.New("disk on fire at /secret/path"), Internal, "store.put", "alice")
	if strings.Contains(Public(err), "secret") {
		t.Errorf("Public shows the cause: %q", Public(err))
	}
	if !strings.Contains(err.Error(), "secret") {
		t.Errorf("Error hides the cause from the log: %q", err)
	}
	if Wrap(nil, Internal, "x", "") != nil {
		t.Error("Wrap(nil) is not nil")
	}
}
