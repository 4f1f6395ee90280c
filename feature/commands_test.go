package feature_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"muster/fsm/user"
	"muster/internal/scram"
	"muster/router/stanza"
)

const adminNode = "http://jabber.org/protocol/admin#"

// ask sends an IQ to the domain and returns the answer.
func (c *client) ask(typ, payload string) *stanza.Packet {
	c.w.t.Helper()
	c.take()
	c.send("<iq type='" + typ + "' id='q' to='" + domain + "'>" + payload + "</iq>")
	for _, p := range c.take() {
		if p.Kind == stanza.KindIQ && p.ID == "q" {
			return p
		}
	}
	c.w.t.Fatalf("no answer to %s", payload)
	return nil
}

func (c *client) command(node, attrs, inside string) *stanza.Packet {
	return c.ask("set", fmt.Sprintf("<command xmlns='%s' node='%s' %s>%s</command>", stanza.NSCommands, adminNode+node, attrs, inside))
}

// begin executes a command that has a form, and returns its session id and the form.
func (c *client) begin(node string) (string, *stanza.Element) {
	c.w.t.Helper()
	p := c.command(node, "action='execute'", "")
	payload, _ := p.Payload()
	el := p.Element(payload)
	if p.Type != stanza.TypeResult || el.Attr("status") != "executing" {
		c.w.t.Fatalf("%s began with %s", node, p.AppendTo(nil))
	}
	return el.Attr("sessionid"), el.Find(stanza.NSData, "x")
}

// run runs a command to its end; fields are name, value, …
func (c *client) run(node string, fields ...string) *stanza.Packet {
	c.w.t.Helper()
	session, _ := c.begin(node)
	p := c.command(node, "action='complete' sessionid='"+session+"'", submit(fields...))
	time.Sleep(time.Second) // of the bubble: work outside the actor
	synctest.Wait()
	return p
}

func submit(fields ...string) string {
	var b strings.Builder
	b.WriteString("<x xmlns='jabber:x:data' type='submit'><field var='FORM_TYPE'><value>http://jabber.org/protocol/admin</value></field>")
	for i := 0; i < len(fields); i += 2 {
		fmt.Fprintf(&b, "<field var='%s'><value>%s</value></field>", fields[i], fields[i+1])
	}
	return b.String() + "</x>"
}

// completed fails the test unless the command ended well, and returns the values of a result field.
func completed(t *testing.T, p *stanza.Packet, field string) []string {
	t.Helper()
	payload, _ := p.Payload()
	el := p.Element(payload)
	if p.Type != stanza.TypeResult || el.Attr("status") != "completed" {
		t.Fatalf("the command ended with %s", p.AppendTo(nil))
	}
	var values []string
	for _, f := range el.Find(stanza.NSData, "x").All(stanza.NSData, "field") {
		if f.Attr("var") == field {
			for _, v := range f.All(stanza.NSData, "value") {
				values = append(values, v.Text())
			}
		}
	}
	return values
}

func inWorld(t *testing.T, test func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		test(t, w)
	})
}

func TestAdministerAccounts(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.addUser("root", true)
		root := w.login("root/console")
		get := func(name string) user.User {
			u, _ := user.Get(w.machine, name+"@"+domain)
			return u
		}

		completed(t, root.run("add-user", "accountjid", "dora@example.com", "password", "sesame", "password-verify", "sesame",
			"given_name", "Dora", "surname", "Diaz", "email", "dora@example.org"), "")
		if u := get("dora"); u.DisplayName != "Dora Diaz" || u.Email != "dora@example.org" || !u.IM || u.Admin || !matches(u, "sesame") {
			t.Errorf("the added user is %+v", u)
		}
		completed(t, root.run("change-user-password", "accountjid", "dora@example.com", "password", "other"), "")
		if !matches(get("dora"), "other") {
			t.Error("the password did not change")
		}
		dora := w.login("dora/phone")
		completed(t, root.run("disable-user", "accountjids", "dora@example.com"), "")
		if get("dora").IM || !strings.Contains(dora.ended, "disabled") {
			t.Errorf("disabled: IM %v, session ended with %q", get("dora").IM, dora.ended)
		}
		completed(t, root.run("reenable-user", "accountjids", "dora@example.com"), "")
		if !get("dora").IM {
			t.Error("the user is still disabled")
		}
		one, two := w.login("dora/one"), w.login("dora/two")
		completed(t, root.run("end-user-session", "accountjids", "dora@example.com/one"), "")
		if one.ended == "" || two.ended != "" {
			t.Errorf("ended one session: %q, %q", one.ended, two.ended)
		}
		completed(t, root.run("end-user-session", "accountjids", "dora@example.com"), "")
		if two.ended == "" {
			t.Error("the other session is still there")
		}
		completed(t, root.run("delete-user", "accountjids", "dora@example.com"), "")
		if user.Exists(w.machine, "dora@example.com") {
			t.Error("the user is still there")
		}
	})
}

func matches(u user.User, password string) bool {
	v := scram.Verifier{Salt: u.SHA256.Salt, Iterations: u.SHA256.Iterations, StoredKey: u.SHA256.StoredKey, ServerKey: u.SHA256.ServerKey}
	return v.Matches(scram.SHA256, password)
}

func TestCommandRefusals(t *testing.T) {
	cases := []struct {
		name, node string
		fields     []string
		want       stanza.Condition
	}{
		{"missing field", "add-user", []string{"accountjid", "x@example.com"}, stanza.BadRequest},
		{"different passwords", "add-user", []string{"accountjid", "x@example.com", "password", "a", "password-verify", "b"}, stanza.BadRequest},
		{"malformed address", "delete-user", []string{"accountjids", "@"}, stanza.BadRequest},
		{"domain for an account", "delete-user", []string{"accountjids", "example.com"}, stanza.BadRequest},
		{"account exists", "add-user", []string{"accountjid", "root@example.com", "password", "a", "password-verify", "a"}, stanza.Conflict},
		{"foreign domain", "add-user", []string{"accountjid", "x@example.net", "password", "a", "password-verify", "a"}, stanza.ItemNotFound},
		{"no such account", "change-user-password", []string{"accountjid", "x@example.com", "password", "a"}, stanza.ItemNotFound},
		{"roster of nobody", "get-user-roster", []string{"accountjids", "x@example.com"}, stanza.ItemNotFound},
		{"empty password", "change-user-password", []string{"accountjid", "root@example.com", "password", ""}, stanza.BadRequest},
		{"the own account", "disable-user", []string{"accountjids", "root@example.com"}, stanza.NotAllowed},
		{"another form", "user-stats", []string{"FORM_TYPE", "urn:x", "accountjid", "root@example.com"}, ""},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.addUser("root", true)
				p := w.login("root/console").run(tc.node, tc.fields...)
				if tc.want == "" {
					completed(t, p, "")
					return
				}
				if e := p.Element(p.Children[0]); p.Type != stanza.TypeError || e.Find(stanza.NSStanzas, string(tc.want)) == nil {
					t.Errorf("got %s, want %s", p.AppendTo(nil), tc.want)
				}
			})
		})
	}
}

func TestCommandSessions(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.addUser("root", true)
		root := w.login("root/console")
		form := submit("accountjid", "root@example.com")
		refused := func(p *stanza.Packet, why string) {
			t.Helper()
			if p.Type != stanza.TypeError || p.Element(p.Children[0]).Find(stanza.NSCommands, why) == nil {
				t.Errorf("got %s, want %s", p.AppendTo(nil), why)
			}
		}
		id, x := root.begin("user-stats")
		if x == nil || x.Attr("type") != "form" {
			t.Error("the command has no form")
		}
		refused(root.command("user-stats", "action='complete' sessionid='"+id+"'", ""), "bad-payload") // and may be tried again
		refused(root.command("user-stats", "action='complete' sessionid='"+id+"'", submit("FORM_TYPE", "x")), "bad-payload")
		refused(root.command("get-user-roster", "action='complete' sessionid='"+id+"'", submit("accountjids", "root@example.com")), "session-expired")
		completed(t, root.command("user-stats", "action='complete' sessionid='"+id+"'", form), "")
		refused(root.command("user-stats", "action='complete' sessionid='"+id+"'", form), "session-expired")
		refused(root.command("user-stats", "action='prev' sessionid='"+id+"'", form), "bad-action")

		id, _ = root.begin("user-stats")
		other := w.login("root/other")
		refused(other.command("user-stats", "action='complete' sessionid='"+id+"'", form), "session-expired")
		p := root.command("user-stats", "action='cancel' sessionid='"+id+"'", "")
		if payload, _ := p.Payload(); p.Element(payload).Attr("status") != "canceled" {
			t.Errorf("cancelled: %s", p.AppendTo(nil))
		}
		id, _ = root.begin("user-stats")
		time.Sleep(11 * time.Minute)
		refused(root.command("user-stats", "action='complete' sessionid='"+id+"'", form), "session-expired")
		first, _ := root.begin("user-stats")
		for range 16 { // the oldest makes room
			time.Sleep(time.Second)
			root.begin("user-stats")
		}
		refused(root.command("user-stats", "action='complete' sessionid='"+first+"'", form), "session-expired")
	})
}

func TestListsAndStatistics(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.addUser("root", true)
		for _, name := range []string{"alice", "bob", "carol"} {
			w.addUser(name, false)
		}
		w.befriend("alice", "bob")
		root := w.login("root/console")
		w.login("alice/phone").send("<presence/>")
		w.login("bob/pad").send("<presence><show>away</show></presence>")
		w.login("bob/tab").send("<presence><show>xa</show></presence>")
		w.step("disable carol")
		everybody := []string{"alice@example.com", "bob@example.com", "carol@example.com", "root@example.com"}
		for _, tc := range []struct {
			node, field string
			want        []string
		}{
			{"get-registered-users-list", "registereduserjids", everybody},
			{"get-disabled-users-list", "disableduserjids", everybody[2:3]},
			{"get-online-users-list", "onlineuserjids", everybody[:2]},
			{"get-active-users", "activeuserjids", everybody[:1]},
			{"get-idle-users", "idleuserjids", everybody[1:2]},
		} {
			if got := completed(t, root.run(tc.node, "max_items", "25"), tc.field); !slices.Equal(got, tc.want) {
				t.Errorf("%s: %v, want %v", tc.node, got, tc.want)
			}
		}
		if got := completed(t, root.run("user-stats", "accountjid", "alice@example.com"), "rostersize"); !slices.Equal(got, []string{"1"}) {
			t.Errorf("alice's roster has %v contacts", got)
		}
		if got := completed(t, root.run("user-stats", "accountjid", "bob@example.com"), "onlineresources"); len(got) != 2 {
			t.Errorf("bob's clients are %v", got)
		}
		if got := completed(t, root.run("get-user-lastlogin", "accountjids", "carol@example.com"), "lastlogin"); len(got) != 0 {
			t.Errorf("carol's last login was %v", got)
		}
		got := completed(t, root.run("get-user-lastlogin", "accountjids", "bob@example.com"), "lastlogin")
		if _, err := time.Parse(time.RFC3339, strings.Join(got, " ")); err != nil {
			t.Errorf("bob's last login is no time of XEP-0082: %v", err)
		}
		p := root.run("get-user-roster", "accountjids", "alice@example.com")
		payload, _ := p.Payload()
		if items := p.Element(payload).Find(stanza.NSData, "x").Find(stanza.NSRoster, "query").All(stanza.NSRoster, "item"); len(items) != 1 || items[0].Attr("subscription") != "both" {
			t.Errorf("alice's roster: %s", p.AppendTo(nil))
		}
		if got := completed(t, root.command("get-server-stats", "", ""), "onlinesessionsnum"); !slices.Equal(got, []string{"3"}) {
			t.Errorf("sessions online: %v", got)
		}
	})
}

func TestAnnounce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.addUser("root", true)
		w.addUser("alice", false)
		w.addUser("bob", false)
		root, alice, bob := w.login("root/console"), w.login("alice/phone"), w.login("bob/pad")
		alice.send("<presence/>")
		alice.take()
		completed(t, root.run("announce", "subject", "Tonight", "announcement", "We restart at 22:00."), "")
		alice.want("alice/phone", "<message type='headline' from='example.com' to='alice@example.com'><subject>Tonight</subject><body>We restart at 22:00.</body></message>", true)
		if got := bob.take(); len(got) != 0 {
			t.Errorf("bob, who is not online, got %d stanzas", len(got))
		}
	})
}
