package config_test

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"muster/fsm"
	"muster/fsm/config"
	"muster/fsm/fsmtest"
	"muster/internal/fault"
	"muster/log"
)

var (
	number  = config.Int("test.number", 5, 1, 10, config.Cluster, "A number.")
	perNode = config.Int("test.per_node", 7, 0, 100, config.Node, "A number for each node.")
	flag    = config.Bool("test.flag", true, config.Cluster, "A switch.")
	span    = config.Duration("test.span", time.Minute, time.Second, time.Hour, config.Cluster, "A time.")
	text    = config.String("test.text", "abc", func(s string) error {
		if strings.Contains(s, "x") {
			return errors.New("must not hold an x")
		}
		return nil
	}, config.Cluster, "A text.")
	choice = config.Enum("test.choice", "red", []string{"red", "green"}, config.Cluster, "A colour.")
)

func TestValidateSetting(t *testing.T) {
	tests := []struct {
		name, value string
		code        fault.Code
	}{
		{"test.number", "1", 0}, {"test.number", "10", 0},
		{"test.number", "0", fault.NotAcceptable}, {"test.number", "11", fault.NotAcceptable},
		{"test.number", "", fault.NotAcceptable}, {"test.number", "1.5", fault.NotAcceptable},
		{"test.flag", "true", 0}, {"test.flag", "false", 0}, {"test.flag", "yes", fault.NotAcceptable},
		{"test.span", "90s", 0}, {"test.span", "1h", 0}, {"test.span", "2h", fault.NotAcceptable}, {"test.span", "90", fault.NotAcceptable},
		{"test.text", "", 0}, {"test.text", "ax", fault.NotAcceptable}, {"test.text", "\xff", fault.NotAcceptable},
		{"test.text", strings.Repeat("a", 4097), fault.NotAcceptable},
		{"test.choice", "green", 0}, {"test.choice", "blue", fault.NotAcceptable},
		{"test.unknown", "1", fault.NotFound}, {"", "", fault.NotFound}, {strings.Repeat("n", 1000), "", fault.NotFound},
	}
	for _, tt := range tests {
		t.Run(tt.name+"="+tt.value[:min(10, len(tt.value))], func(t *testing.T) {
			if got := fault.CodeOf(config.ValidateSetting(tt.name, tt.value)); got != tt.code {
				t.Errorf("proposing: got %v, want %v", got, tt.code)
			}
			r := fsmtest.New(t, config.Module())
			if tt.code == 0 {
				r.Must(config.SetEntry(tt.name, tt.value, 0))
			} else if tt.value != "\xff" { // the constructor replaces bytes that are not UTF-8
				r.Refused(config.SetEntry(tt.name, tt.value, 0), tt.code)
			}
		})
	}
}

func TestGet(t *testing.T) {
	r := fsmtest.New(t, config.Module())
	type values struct {
		number, perNode, perNode2 int64
		flag                      bool
		span                      time.Duration
		text, choice              string
	}
	l := config.NewLive(r.M, 2)
	stored := func() values {
		return values{number.Get(r.M, 2), perNode.Get(r.M, 1), perNode.Get(r.M, 2), flag.Get(r.M, 0), span.Get(r.M, 0), text.Get(r.M, 0), choice.Get(r.M, 0)}
	}
	live := func() values {
		return values{l.Int(number), perNode.Get(r.M, 1), l.Int(perNode), l.Bool(flag), l.Duration(span), l.String(text), l.String(choice)}
	}
	steps := []struct {
		name  string
		entry []string // name, value, node; without a value: reset
		want  values
	}{
		{"defaults", nil, values{5, 7, 7, true, time.Minute, "abc", "red"}},
		{"number", []string{"test.number", "9", "0"}, values{9, 7, 7, true, time.Minute, "abc", "red"}},
		{"cluster", []string{"test.per_node", "20", "0"}, values{9, 20, 20, true, time.Minute, "abc", "red"}},
		{"node", []string{"test.per_node", "30", "2"}, values{9, 20, 30, true, time.Minute, "abc", "red"}},
		{"reset cluster", []string{"test.per_node", "", "0"}, values{9, 7, 30, true, time.Minute, "abc", "red"}},
		{"reset node", []string{"test.per_node", "", "2"}, values{9, 7, 7, true, time.Minute, "abc", "red"}},
		{"flag", []string{"test.flag", "false", "0"}, values{9, 7, 7, false, time.Minute, "abc", "red"}},
		{"span", []string{"test.span", "3s", "0"}, values{9, 7, 7, false, 3 * time.Second, "abc", "red"}},
		{"text", []string{"test.text", "words", "0"}, values{9, 7, 7, false, 3 * time.Second, "words", "red"}},
		{"choice", []string{"test.choice", "green", "0"}, values{9, 7, 7, false, 3 * time.Second, "words", "green"}},
	}
	for _, s := range steps {
		t.Run(s.name, func(t *testing.T) {
			if s.entry != nil {
				node := uint32(s.entry[2][0] - '0')
				if s.entry[1] == "" {
					r.Must(config.ResetEntry(s.entry[0], node))
				} else {
					r.Must(config.SetEntry(s.entry[0], s.entry[1], node))
				}
				if !l.Update(r.Changes) {
					t.Error("the change was not noticed")
				}
			}
			if got := stored(); got != s.want {
				t.Errorf("stored %+v, want %+v", got, s.want)
			}
			if got := live(); got != s.want {
				t.Errorf("live %+v, want %+v", got, s.want)
			}
		})
	}
	if l.Update(nil) {
		t.Error("nothing changed, and a change was noticed")
	}
}

func TestEffectiveNamesTheSource(t *testing.T) {
	r := fsmtest.New(t, config.Module())
	check := func(wantValue, wantSource string) {
		t.Helper()
		value, source, ok := config.Effective(r.M, "test.per_node", 3)
		if value != wantValue || source != wantSource || !ok {
			t.Errorf("got %q from %q, want %q from %q", value, source, wantValue, wantSource)
		}
	}
	check("7", "default")
	r.Must(config.SetEntry("test.per_node", "8", 0))
	check("8", "cluster")
	r.Must(config.SetEntry("test.per_node", "9", 3))
	check("9", "node")
	if _, _, ok := config.Effective(r.M, "test.unknown", 0); ok {
		t.Error("an unknown setting has a value")
	}
	r.Refused(config.SetEntry("test.number", "3", 1), fault.NotAcceptable)
	r.Refused(config.ResetEntry("test.number", 1), fault.NotAcceptable)
	r.Refused(config.ResetEntry("test.unknown", 0), fault.NotFound)
}

// TestValueOfAnotherReleaseFallsBack stores what this release cannot parse, as a newer one might have.
func TestValueOfAnotherReleaseFallsBack(t *testing.T) {
	r := fsmtest.New(t, config.Module())
	raw := func(table *fsm.Table, key, value string) {
		full := append(append([]byte(table.Name()), 0), key...)
		if err := r.Store.Apply([]fsm.Op{{Key: full, Value: []byte(value)}}); err != nil {
			t.Fatal(err)
		}
	}
	raw(config.SettingTable, "test.number\x000", "1000")
	raw(config.SettingTable, "test.newer\x000", "1")
	l := config.NewLive(r.M, 0)
	if number.Get(r.M, 0) != 5 || l.Int(number) != 5 {
		t.Errorf("got %d and %d, want the default", number.Get(r.M, 0), l.Int(number))
	}
}

func TestAllIsSortedAndComplete(t *testing.T) {
	var names []string
	for _, d := range config.All() {
		names = append(names, d.Name)
		if d.Doc == "" || d.Type == "" || d.Since != 1 || config.ValidateSetting(d.Name, d.Default) != nil {
			t.Errorf("declaration %+v", d)
		}
	}
	if !slices.IsSorted(names) {
		t.Errorf("not sorted: %v", names)
	}
	for _, s := range []interface{ Name() string }{number, perNode, flag, span, text, choice} {
		if !slices.Contains(names, s.Name()) {
			t.Errorf("%s is missing", s.Name())
		}
	}
}

func TestBadDeclarationsPanic(t *testing.T) {
	tests := map[string]func(){
		"double":       func() { config.Bool("test.flag", true, config.Cluster, "Again.") },
		"bad default":  func() { config.Int("test.bad", 11, 1, 10, config.Cluster, "Doc.") },
		"no doc":       func() { config.Bool("test.nodoc", true, config.Cluster, "") },
		"no name":      func() { config.Bool("", true, config.Cluster, "Doc.") },
		"space":        func() { config.Bool("a b", true, config.Cluster, "Doc.") },
		"bad scope":    func() { config.Bool("test.scope", true, "galaxy", "Doc.") },
		"not a choice": func() { config.Enum("test.enum", "z", []string{"a"}, config.Cluster, "Doc.") },
	}
	for name, fn := range tests {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("it was accepted")
				}
			}()
			fn()
		})
	}
}

func TestDomains(t *testing.T) {
	busy := func(_ *fsm.Tx, domain string) error {
		if domain == "busy.example" {
			return fault.New(fault.Conflict, "domain.remove", domain, "in use")
		}
		return nil
	}
	r := fsmtest.New(t, config.Module(busy))
	r.Must(config.AddDomainEntry("example.org"), config.AddDomainEntry("busy.example"), config.AddDomainEntry("bücher.example"))
	for _, bad := range []string{"", "Example.com", "a@b.c", "b.c/d", "x y", "trailing.example.", "-a.example"} {
		r.Refused(config.AddDomainEntry(bad), fault.BadRequest)
	}
	r.Refused(config.AddDomainEntry("example.org"), fault.Conflict)
	r.Refused(config.RemoveDomainEntry("example.net"), fault.NotFound)
	r.Refused(config.RemoveDomainEntry("busy.example"), fault.Conflict)
	r.Must(config.RemoveDomainEntry("example.org"))
	if d, added, ok := config.DecodeDomain(r.Changes[0]); d != "example.org" || added || !ok {
		t.Errorf("change decoded as %q %v %v", d, added, ok)
	}
	if got := config.Domains(r.M); !reflect.DeepEqual(got, []string{"busy.example", "bücher.example"}) {
		t.Errorf("domains %v", got)
	}
	if !config.IsDomain(r.M, "busy.example") || config.IsDomain(r.M, "example.org") || config.IsDomain(r.M, "") {
		t.Error("IsDomain is wrong")
	}
	for i := len(config.Domains(r.M)); i < config.MaxDomains; i++ {
		r.Must(config.AddDomainEntry(fmt.Sprintf("d%d.example", i)))
	}
	r.Refused(config.AddDomainEntry("one.too.many"), fault.TooLarge)
	r.Verify()
}

func TestDecodeSetting(t *testing.T) {
	r := fsmtest.New(t, config.Module())
	r.Must(config.SetEntry("test.per_node", "12", 4))
	name, node, value, set, ok := config.DecodeSetting(r.Changes[0])
	if name != "test.per_node" || node != 4 || value != "12" || !set || !ok {
		t.Errorf("set: %q %d %q %v %v", name, node, value, set, ok)
	}
	if _, _, ok := config.DecodeDomain(r.Changes[0]); ok {
		t.Error("a setting was taken for a domain")
	}
	r.Must(config.ResetEntry("test.per_node", 4))
	if _, _, _, set, ok := config.DecodeSetting(r.Changes[0]); set || !ok {
		t.Errorf("reset: %v %v", set, ok)
	}
}

func TestGarbageBodiesAreRejected(t *testing.T) {
	r := fsmtest.New(t, config.Module())
	for _, k := range []log.Kind{log.DomainAdd, log.DomainRemove, log.SettingSet, log.SettingReset} {
		r.Refused(&log.Entry{Kind: k, Body: []byte{0xff}}, fault.BadRequest)
	}
}
