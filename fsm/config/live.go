package config

import (
	"sync/atomic"
	"time"

	"muster/fsm"
)

// Live keeps the settings of one node in memory, so that hot paths read them
// without I/O or locks. Update it from the machine's change feed; call Reload
// after the state was replaced by a snapshot.
type Live struct {
	r      fsm.Reader
	node   uint32
	values atomic.Pointer[map[string]any] // only those that differ from the default
}

// NewLive reads node's settings from r, which is also what Reload reads again.
func NewLive(r fsm.Reader, node uint32) *Live {
	l := &Live{r: r, node: node}
	l.Reload()
	return l
}

// Reload reads all settings again.
func (l *Live) Reload() {
	values := map[string]any{}
	l.r.Scan(SettingTable, nil, nil, func(k, _ []byte) bool {
		if d := registry[fsm.SplitKey(k)[0]]; d != nil {
			values[d.Name] = nil
		}
		return true
	})
	// order: each value goes to its own place
	for name := range values {
		values[name] = registry[name].read(l.r, l.node)
	}
	l.values.Store(&values)
}

// Update takes in what an entry changed and reports whether a setting was among it. Calls must not overlap.
func (l *Live) Update(changes []fsm.Change) bool {
	for _, c := range changes {
		if c.Table == SettingTable {
			l.Reload()
			return true
		}
	}
	return false
}

func (l *Live) value(d *Declaration) any {
	if v, ok := (*l.values.Load())[d.Name]; ok {
		return v
	}
	return d.def
}

// Int returns the value of s in force.
func (l *Live) Int(s *IntSetting) int64 { return l.value(s.d).(int64) }

// Bool returns the value of s in force.
func (l *Live) Bool(s *BoolSetting) bool { return l.value(s.d).(bool) }

// Duration returns the value of s in force.
func (l *Live) Duration(s *DurationSetting) time.Duration { return l.value(s.d).(time.Duration) }

// String returns the value of s in force.
func (l *Live) String(s *StringSetting) string { return l.value(s.d).(string) }
