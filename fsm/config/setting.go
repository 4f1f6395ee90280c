package config

import (
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"muster/fsm"
	"muster/internal/fault"
	"muster/log"
)

// Limits of settings.
const (
	maxName  = 64   // bytes of a setting's name
	maxValue = 4096 // bytes of a setting's value: room for an announcement
)

// Scope says for whom a setting can have a value of its own.
type Scope string

// The scopes.
const (
	Cluster Scope = "cluster" // one value for all nodes
	Node    Scope = "node"    // a value for the cluster, and one for each node that differs
)

// Declaration is all there is to know about a setting.
type Declaration struct {
	Name    string             `json:"name"`
	Type    string             `json:"type"` // "int", "bool", "duration", "string", "enum"
	Default string             `json:"default"`
	Min     string             `json:"min,omitempty"`    // lowest value of an int or a duration
	Max     string             `json:"max,omitempty"`    // highest value of an int or a duration, or greatest length of a string
	Values  []string           `json:"values,omitempty"` // the values of an enum
	Scope   Scope              `json:"scope"`
	Since   log.ClusterVersion `json:"since"` // lowest cluster version that knows it
	Doc     string             `json:"doc"`

	parse func(value string) (any, error)
	def   any
}

var registry = map[string]*Declaration{}

// All returns every declared setting, by name.
func All() []Declaration {
	out := make([]Declaration, 0, len(registry))
	// order: sorted below
	for _, d := range registry {
		out = append(out, *d)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// ValidateSetting checks a value as the machine will: NotFound for an unknown
// name, NotAcceptable for a value outside the declared bounds.
func ValidateSetting(name, value string) error {
	d := registry[name]
	if d == nil {
		return unknown(name)
	}
	return d.check(value)
}

// Effective returns a setting's value in force on node as text, and where it
// comes from: "node", "cluster" or "default". ok is false for an unknown name.
func Effective(r fsm.Reader, name string, node uint32) (value, source string, ok bool) {
	d := registry[name]
	if d == nil {
		return "", "", false
	}
	if node != 0 && d.Scope == Node {
		if b, ok := r.Get(SettingTable, settingKey(name, node)); ok {
			return string(b), "node", true
		}
	}
	if b, ok := r.Get(SettingTable, settingKey(name, 0)); ok {
		return string(b), "cluster", true
	}
	return d.Default, "default", true
}

func (d *Declaration) check(value string) error {
	if len(value) > maxValue || !utf8.ValidString(value) {
		return fault.New(fault.NotAcceptable, "setting.set", d.Name, "the value is too long or not UTF-8")
	}
	if _, err := d.parse(value); err != nil {
		return fault.New(fault.NotAcceptable, "setting.set", d.Name, err.Error())
	}
	return nil
}

// read returns the parsed value in force. A stored value that this release can no longer parse counts as not set.
func (d *Declaration) read(r fsm.Reader, node uint32) any {
	text, _, _ := Effective(r, d.Name, node)
	v, err := d.parse(text)
	if err != nil {
		return d.def
	}
	return v
}

// declare registers d. It panics on a bad declaration: that is a bug at start-up.
func declare(d *Declaration) *Declaration {
	if registry[d.Name] != nil || d.Name == "" || len(d.Name) > maxName || strings.ContainsAny(d.Name, "\x00 ") || d.Doc == "" {
		panic("config: bad or double declaration of " + d.Name)
	}
	def, err := d.parse(d.Default)
	if err != nil || d.Scope != Cluster && d.Scope != Node {
		panic(fmt.Sprintf("config: bad default or scope of %s: %v", d.Name, err))
	}
	if d.Since == 0 {
		d.Since = 1
	}
	d.def = def
	registry[d.Name] = d
	return d
}

// IntSetting is a whole number.
type IntSetting struct{ d *Declaration }

// Int declares a whole number between min and max inclusive.
func Int(name string, def, min, max int64, scope Scope, doc string) *IntSetting {
	parse := func(s string) (any, error) {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n < min || n > max {
			return nil, fmt.Errorf("must be a whole number from %d to %d", min, max)
		}
		return n, nil
	}
	return &IntSetting{declare(&Declaration{
		Name: name, Type: "int", Default: strconv.FormatInt(def, 10), Min: strconv.FormatInt(min, 10),
		Max: strconv.FormatInt(max, 10), Scope: scope, Doc: doc, parse: parse,
	})}
}

// Get returns the value in force on node (0: the cluster's).
func (s *IntSetting) Get(r fsm.Reader, node uint32) int64 { return s.d.read(r, node).(int64) }

// Name returns the setting's name.
func (s *IntSetting) Name() string { return s.d.Name }

// BoolSetting is a switch.
type BoolSetting struct{ d *Declaration }

// Bool declares a switch: "true" or "false".
func Bool(name string, def bool, scope Scope, doc string) *BoolSetting {
	parse := func(s string) (any, error) {
		if s != "true" && s != "false" {
			return nil, fmt.Errorf("must be true or false")
		}
		return s == "true", nil
	}
	return &BoolSetting{declare(&Declaration{
		Name: name, Type: "bool", Default: strconv.FormatBool(def), Scope: scope, Doc: doc, parse: parse,
	})}
}

// Get returns the value in force on node (0: the cluster's).
func (s *BoolSetting) Get(r fsm.Reader, node uint32) bool { return s.d.read(r, node).(bool) }

// Name returns the setting's name.
func (s *BoolSetting) Name() string { return s.d.Name }

// DurationSetting is a span of time, written as "90s" or "1h30m".
type DurationSetting struct{ d *Declaration }

// Duration declares a span of time between min and max inclusive.
func Duration(name string, def, min, max time.Duration, scope Scope, doc string) *DurationSetting {
	parse := func(s string) (any, error) {
		v, err := time.ParseDuration(s)
		if err != nil || v < min || v > max {
			return nil, fmt.Errorf("must be a duration such as 90s, from %v to %v", min, max)
		}
		return v, nil
	}
	return &DurationSetting{declare(&Declaration{
		Name: name, Type: "duration", Default: def.String(), Min: min.String(), Max: max.String(),
		Scope: scope, Doc: doc, parse: parse,
	})}
}

// Get returns the value in force on node (0: the cluster's).
func (s *DurationSetting) Get(r fsm.Reader, node uint32) time.Duration {
	return s.d.read(r, node).(time.Duration)
}

// Name returns the setting's name.
func (s *DurationSetting) Name() string { return s.d.Name }

// StringSetting is a text.
type StringSetting struct{ d *Declaration }

// String declares a text. check, if not nil, says what is wrong with a value; it must be pure.
func String(name, def string, check func(string) error, scope Scope, doc string) *StringSetting {
	parse := func(s string) (any, error) {
		if check != nil {
			if err := check(s); err != nil {
				return nil, err
			}
		}
		return s, nil
	}
	return &StringSetting{declare(&Declaration{
		Name: name, Type: "string", Default: def, Max: strconv.Itoa(maxValue), Scope: scope, Doc: doc, parse: parse,
	})}
}

// Enum declares a text that is one of values.
func Enum(name, def string, values []string, scope Scope, doc string) *StringSetting {
	values = slices.Clone(values)
	parse := func(s string) (any, error) {
		if !slices.Contains(values, s) {
			return nil, fmt.Errorf("must be one of %s", strings.Join(values, ", "))
		}
		return s, nil
	}
	return &StringSetting{declare(&Declaration{
		Name: name, Type: "enum", Default: def, Values: values, Scope: scope, Doc: doc, parse: parse,
	})}
}

// Get returns the value in force on node (0: the cluster's).
func (s *StringSetting) Get(r fsm.Reader, node uint32) string { return s.d.read(r, node).(string) }

// Name returns the setting's name.
func (s *StringSetting) Name() string { return s.d.Name }
