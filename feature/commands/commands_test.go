package commands

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"muster/internal/fault"
	"muster/router/stanza"
)

// TestTable: every command can be found, asked for and run, and none gives passwords away.
func TestTable(t *testing.T) {
	f := New()
	wanted := []string{
		"add-user", "delete-user", "disable-user", "reenable-user", "end-user-session", "change-user-password",
		"get-user-roster", "get-user-lastlogin", "user-stats", "get-registered-users-num", "get-registered-users-list",
		"get-disabled-users-num", "get-disabled-users-list", "get-online-users-num", "get-online-users-list",
		"get-active-users-num", "get-active-users", "get-idle-users-num", "get-idle-users", "announce", "get-server-stats",
	}
	for _, node := range wanted {
		if f.byNode[stanza.NSAdmin+"#"+node] == nil {
			t.Errorf("there is no command %s", node)
		}
	}
	if len(f.byNode) != len(f.all) {
		t.Error("two commands have one name")
	}
	for _, cmd := range f.all {
		if cmd.run == nil || cmd.name == "" || (cmd.ask == "") != (len(cmd.form) == 0) {
			t.Errorf("%s is not complete", cmd.node)
		}
		if strings.Contains(cmd.node, "get-user-password") {
			t.Error("passwords can be read")
		}
	}
}

func TestQuestion(t *testing.T) {
	cmd := &command{name: "Do", ask: "Fill in.", form: []field{
		{name: "a", kind: jidSingle, label: "A", required: true},
		{name: "b", kind: listSingle, label: "B", options: []string{"1", "2"}},
	}}
	want := `<x xmlns="jabber:x:data" type="form"><title>Do</title><instructions>Fill in.</instructions>` +
		`<field var="FORM_TYPE" type="hidden"><value>http://jabber.org/protocol/admin</value></field>` +
		`<field var="a" type="jid-single" label="A"><required/></field>` +
		`<field var="b" type="list-single" label="B"><value>1</value><option label="1"><value>1</value></option><option label="2"><value>2</value></option></field></x>`
	if got := string(question(cmd)); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

func element(t testing.TB, inside string) *stanza.Element {
	t.Helper()
	el, err := stanza.ParseElement([]byte("<command xmlns='http://jabber.org/protocol/commands'>" + inside + "</command>"))
	if err != nil {
		t.Fatal(err)
	}
	return el
}

func TestSubmitted(t *testing.T) {
	cmd := &command{form: []field{{name: "a", required: true}, {name: "b"}}}
	cases := []struct {
		name, inside string
		ok           bool
	}{
		{"complete", "<x xmlns='jabber:x:data' type='submit'><field var='a'><value>1</value></field></x>", true},
		{"with its type", "<x xmlns='jabber:x:data' type='submit'><field var='FORM_TYPE'><value>http://jabber.org/protocol/admin</value></field><field var='a'><value>1</value></field></x>", true},
		{"of another type", "<x xmlns='jabber:x:data' type='submit'><field var='FORM_TYPE'><value>urn:x</value></field><field var='a'><value>1</value></field></x>", false},
		{"lacks a field", "<x xmlns='jabber:x:data' type='submit'><field var='b'><value>1</value></field></x>", false},
		{"empty field", "<x xmlns='jabber:x:data' type='submit'><field var='a'><value/></field></x>", false},
		{"no form", "", false},
		{"the form itself", "<x xmlns='jabber:x:data' type='form'><field var='a'><value>1</value></field></x>", false},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			if err := cmd.check(submitted(element(t, tc.inside))); (err == nil) != tc.ok || err != nil && !fault.Is(err, fault.BadRequest) {
				t.Errorf("%v", err)
			}
		})
	}
	many := strings.Repeat("<value>x</value>", 3*maxLines)
	if v := submitted(element(t, "<x xmlns='jabber:x:data' type='submit'><field var='a'>"+many+"</field></x>")); len(v["a"]) != maxLines {
		t.Errorf("%d values are kept", len(v["a"]))
	}
}

func TestAddresses(t *testing.T) {
	cases := []struct {
		name string
		in   []string
		want string
	}{
		{"one", []string{"a@b"}, "[a@b]"},
		{"resources stay", []string{"a@b/c", "D@e"}, "[a@b/c d@e]"},
		{"none", nil, "bad-request"},
		{"a domain", []string{"b"}, "bad-request"},
		{"malformed", []string{"a@b", "@"}, "bad-request"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			list, err := values{"x": tc.in}.addresses("x")
			got := fmt.Sprint(list)
			if err != nil {
				got = fault.CodeOf(err).String()
			}
			if got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}

func TestOpens(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	one, two := &command{node: "one"}, &command{node: "two"}
	o := opens{}
	id := o.begin(one, "a@b/c", now)
	if o.take(id, two, "a@b/c", now) || o.take(id, one, "a@b/d", now) || o.take("other", one, "a@b/c", now) {
		t.Error("somebody else's session was taken")
	}
	if !o.take(id, one, "a@b/c", now) || o.take(id, one, "a@b/c", now) {
		t.Error("a session is taken once")
	}
	id = o.begin(one, "a@b/c", now)
	if o.take(id, one, "a@b/c", now.Add(openTime+time.Second)) {
		t.Error("an expired session was taken")
	}
	first := o.begin(one, "a@b/c", now)
	for i := range 3 * maxOpen {
		o.begin(one, "a@b/c", now.Add(time.Duration(i+1)*time.Second))
		if len(o) > maxOpen {
			t.Fatalf("%d sessions are open", len(o))
		}
	}
	if o.take(first, one, "a@b/c", now) {
		t.Error("the oldest session did not make room")
	}
	o.begin(one, "a@b/c", now.Add(time.Hour))
	if len(o) != 1 {
		t.Errorf("%d sessions are open, those before have expired", len(o))
	}
}

// FuzzSubmitted: no form, however odd, breaks the reading of it.
func FuzzSubmitted(f *testing.F) {
	f.Add("<x xmlns='jabber:x:data' type='submit'><field var='accountjid'><value>a@b</value></field></x>")
	f.Add("<x xmlns='jabber:x:data' type='submit'><field><value/></field><field var='a'/></x>")
	all := New().all
	f.Fuzz(func(t *testing.T, inside string) {
		el, err := stanza.ParseElement([]byte("<command xmlns='http://jabber.org/protocol/commands'>" + inside + "</command>"))
		if err != nil {
			return
		}
		v := submitted(el)
		for _, cmd := range all {
			_ = cmd.check(v)
		}
		if list, err := v.addresses("accountjids"); err == nil && len(list) == 0 {
			t.Error("no address and no error")
		}
	})
}
