package feature_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/tools/txtar"

	"muster/fsm/cluster"
	"muster/fsm/config"
	"muster/fsm/user"
	"muster/router"
	"muster/router/stanza"
)

// TestScenarios plays every feature's scenarios: */testdata/*.txtar. A scenario
// is an archive of one file, "script", whose lines are:
//
//	nodes 3                  as the first line: the cluster has so many, else one
//	home alice 2             make a node a user's home
//	kill 2                   a node dies, and the others learn of it; "die" and "down" are the two parts of that
//	users alice bob          create users; "admin root" creates an administrator
//	set NAME VALUE           give a setting a value
//	befriend alice bob       make them each other's contacts, subscribed both ways
//	login alice/phone 2      bind a session, on the second node if that is said
//	online alice/phone 2     bind, send <presence/>, and forget what comes in answer; with namespaces
//	                         after the node: turn on what has an <enable/> of them
//	alice/phone > XML        the client sends
//	alice/phone < XML        the client got this, at any place among what it got
//	alice/phone << XML       the client got this next
//	quiet alice/phone        the client got nothing else; "quiet" alone: nor did anybody
//	forget                   forget what everybody got
//	close alice/phone        the client closes its stream; "lose" loses the connection
//	ended alice/phone TEXT   the server ended the session, with that in the stream error
//	disable, delete alice    the administrator's tool does it
//	wait 10s                 time passes
//
// A line that begins with a blank goes on the line before it; # begins a comment. In expected XML an
// attribute or text "*" matches anything, an id that is not given is not compared, and a "..." as last
// content means that more may follow.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("*/testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no scenarios found", err)
	}
	for _, name := range files {
		archive, err := txtar.ParseFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range archive.Files {
			t.Run(strings.TrimSuffix(strings.Replace(name, "/testdata", "", 1), ".txtar")+"/"+f.Name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { play(t, string(f.Data)) })
			})
		}
	}
}

func play(t *testing.T, script string) {
	all, n := lines(script), 1
	if count, ok := strings.CutPrefix(all[0], "nodes "); ok {
		n, _ = strconv.Atoi(count)
		all = all[1:]
	}
	w := newCluster(t, uint32(n))
	defer w.close()
	w.settle()
	for _, line := range all {
		w.step(line)
		if t.Failed() {
			t.Logf("at: %s", line)
			return
		}
	}
}

// lines joins continued lines and drops comments.
func lines(script string) []string {
	var out []string
	for _, l := range strings.Split(script, "\n") {
		switch {
		case strings.TrimSpace(l) == "" || strings.HasPrefix(strings.TrimSpace(l), "#"):
		case (l[0] == ' ' || l[0] == '\t') && len(out) > 0:
			out[len(out)-1] += strings.TrimSpace(l)
		default:
			out = append(out, strings.TrimSpace(l))
		}
	}
	return out
}

func (w *world) step(line string) {
	w.t.Helper()
	word, rest, _ := strings.Cut(line, " ")
	if strings.Contains(word, "/") && strings.ContainsAny(rest[:min(1, len(rest))], "<>") {
		op, xml, _ := strings.Cut(rest, " ")
		w.exchange(word, op, xml)
		return
	}
	args := strings.Fields(rest)
	switch word {
	case "users", "admin":
		for _, name := range args {
			w.addUser(name, word == "admin")
		}
	case "set":
		w.must(config.SetEntry(args[0], strings.Join(args[1:], " "), 0))
	case "befriend":
		w.befriend(args[0], args[1])
	case "login":
		w.loginAt(number(args, 1), args[0])
	case "online":
		w.loginAt(number(args, 1), args[0], wishes(args)...).send("<presence/>")
		w.client(args[0]).take()
	case "home":
		w.must(cluster.AssignEntry([]string{args[0] + "@" + domain}, number(args, 1)))
	case "kill":
		w.die(number(args, 0))
		w.down(number(args, 0))
	case "die":
		w.die(number(args, 0))
	case "down":
		w.down(number(args, 0))
	case "disable":
		no := false
		w.must(user.UpdateEntry(args[0]+"@"+domain, user.Update{IM: &no}))
	case "delete":
		w.must(user.DeleteEntry(args[0] + "@" + domain))
	case "confirm":
		w.client(args[0]).confirm()
	case "close", "lose":
		w.client(args[0]).session.End(word == "close", nil)
	case "wait":
		d, err := time.ParseDuration(args[0])
		if err != nil {
			w.t.Fatal(err)
		}
		time.Sleep(d)
	default:
		w.expect(word, args)
	}
	w.settle()
}

// number returns the argument at i as the number of a node; 1 if there is none.
func number(args []string, i int) uint32 {
	if i >= len(args) {
		return 1
	}
	n, _ := strconv.Atoi(args[i])
	return uint32(n)
}

func (w *world) expect(word string, args []string) {
	w.t.Helper()
	switch {
	case word == "quiet" && len(args) > 0:
		w.client(args[0]).quiet(args[0])
	case word == "quiet":
		for name, c := range w.clients {
			c.quiet(name)
		}
	case word == "forget":
		for _, c := range w.clients {
			c.take()
		}
	case word == "ended":
		c, want := w.client(args[0]), strings.Join(args[1:], " ")
		if !strings.Contains(c.ended, want) || c.ended == "" {
			w.t.Errorf("%s ended with %q, want %q", args[0], c.ended, want)
		}
	default:
		w.t.Fatalf("unknown step %q", word)
	}
}

func (w *world) client(name string) *client {
	w.t.Helper()
	if w.clients[name] == nil {
		w.t.Fatalf("%s is not logged in", name)
	}
	return w.clients[name]
}

// befriend subscribes two users to each other, as an administrator's tool would.
func (w *world) befriend(a, b string) {
	w.t.Helper()
	for _, p := range [][2]string{{a, b}, {b, a}} {
		for _, e := range subscriptionEntries(p[0], p[1]) {
			w.must(e)
		}
	}
}

func (w *world) exchange(name, op, xml string) {
	w.t.Helper()
	c := w.client(name)
	switch op {
	case ">":
		c.send(xml)
	case "<", "<<":
		c.want(name, xml, op == "<<")
	default:
		w.t.Fatalf("unknown operation %q", op)
	}
}

// confirm says that the client has all that it got.
func (c *client) confirm() {
	c.mu.Lock()
	seen := slices.Clone(c.seen)
	c.mu.Unlock()
	c.session.Taken(seen)
}

func (c *client) quiet(name string) {
	c.w.t.Helper()
	for _, p := range c.take() {
		c.w.t.Errorf("%s got also %s", name, p.AppendTo(nil))
	}
}

// want removes the first stanza that matches from what the client got.
func (c *client) want(name, xml string, next bool) {
	c.w.t.Helper()
	pattern, err := stanza.ParseElement([]byte(xml))
	if err != nil {
		c.w.t.Fatalf("%v in %s", err, xml)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var why []string
	for i, p := range c.got {
		el, err := stanza.ParseElement(p.AppendTo(nil))
		if err != nil {
			c.w.t.Fatalf("%s got what is no XML: %v", name, err)
		}
		diff := compare(pattern, el, true)
		if diff == "" {
			c.got = append(c.got[:i:i], c.got[i+1:]...)
			return
		}
		why = append(why, fmt.Sprintf("%s\n      %s", p.AppendTo(nil), diff))
		if next {
			break
		}
	}
	c.w.t.Errorf("%s did not get\n   %s\nbut\n   %s", name, xml, strings.Join(why, "\n   "))
}

// compare says where got differs from the pattern; "" if it does not.
func compare(want, got *stanza.Element, top bool) string {
	if want.Local != got.Local || want.Space != got.Space {
		return fmt.Sprintf("{%s}%s instead of {%s}%s", got.Space, got.Local, want.Space, want.Local)
	}
	for _, a := range want.Attrs {
		v, ok := value(got, a)
		if !ok || a.Value != "*" && a.Value != v {
			return fmt.Sprintf("%s/@%s is %q, not %q", want.Local, a.Local, v, a.Value)
		}
	}
	for _, a := range got.Attrs {
		if _, ok := value(want, a); !ok && !(top && a.Local == "id") {
			return fmt.Sprintf("%s has %s=%q", got.Local, a.Local, a.Value)
		}
	}
	return compareContent(want, got)
}

func value(e *stanza.Element, name stanza.Attr) (string, bool) {
	for _, a := range e.Attrs {
		if a.Local == name.Local && a.Space == name.Space {
			return a.Value, true
		}
	}
	return "", false
}

func compareContent(want, got *stanza.Element) string {
	text, more := strings.CutSuffix(strings.TrimSpace(want.Text()), "...")
	if have := strings.TrimSpace(got.Text()); text != "*" && text != have && !more {
		return fmt.Sprintf("%s holds %q, not %q", want.Local, have, text)
	}
	w, g := want.Elements(), got.Elements()
	if want.Find(stanza.NSStanzaID, "stanza-id") == nil { // a pattern need not name it
		g = slices.DeleteFunc(g, func(e *stanza.Element) bool { return e.Space == stanza.NSStanzaID && e.Local == "stanza-id" })
	}
	if len(w) > len(g) || len(w) < len(g) && !more {
		return fmt.Sprintf("%s has %d children, not %d", want.Local, len(g), len(w))
	}
	for i := range w {
		if diff := compare(w[i], g[i], false); diff != "" {
			return diff
		}
	}
	return ""
}

// TestScenariosHaveStories: every archive says at its top what it is about, and holds a script.
func TestScenariosHaveStories(t *testing.T) {
	files, _ := filepath.Glob("*/testdata/*.txtar")
	for _, name := range files {
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if a := txtar.Parse(raw); len(strings.TrimSpace(string(a.Comment))) < 20 || len(a.Files) == 0 {
			t.Errorf("%s has no story or no script", name)
		}
	}
}

// wishes reads what a client turns on while it binds: the namespaces behind its name and node.
func wishes(args []string) (all []router.Wish) {
	for _, ns := range args[min(len(args), 2):] {
		all = append(all, router.Wish{Space: ns, Local: "enable"})
	}
	return all
}
