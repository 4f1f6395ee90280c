//go:build crash && linux

package crashtest

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"muster/cmd/musterbench/wire"
	"muster/edges/http/adminapi"
	"muster/replication/mesh"
	"muster/replication/pki"
)

// passphrase of the backups here.
const passphrase = "canary-passphrase-6b1f"

// TestBackup saves a cluster of three, restores it elsewhere, and lets nodes go and come back.
func TestBackup(t *testing.T) {
	c := newCluster(t, "one", "two", "three")
	s := newStage(t, c, 9)
	s.enter()
	report := newTable("Backup, restore and membership (3 nodes)", "case", "outcome", "time")
	b := &archive{stage: s, root: t, report: report, file: filepath.Join(c.dir, "cluster.backup"), key: filepath.Join(c.dir, "passphrase")}
	if err := os.WriteFile(b.key, []byte(passphrase+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name string
		do   func()
	}{
		{"backup under load", b.take}, {"verify", b.verify}, {"no secret is readable", b.secrets}, {"damaged files", b.damaged},
		{"wrong passphrase", b.wrongPassphrase}, {"restore into one node", b.restore}, {"foreign node", b.foreign},
		{"removed node comes back", b.removed}, {"wiped node comes back", b.wiped},
	} {
		t.Run(step.name, func(t *testing.T) {
			s.t = t
			b.outcome = "as specified"
			begun := time.Now()
			step.do()
			if t.Failed() {
				b.outcome = "FAILED"
			}
			report.row(step.name, b.outcome, time.Since(begun))
		})
	}
	s.t = t
	report.print(t)
}

// archive is a backup with what it was taken from.
type archive struct {
	*stage
	root    *testing.T // of the whole test: what is made with it lives until its end
	report  *table
	file    string
	key     string
	rosters map[string]string // by user
	history []string          // both archives of what the first person wrote to the last one, who was away
	setting string
	heir    *node // of the cluster that was restored
	outcome string
}

// newFolder makes a cluster's folder that lives as long as the test.
func (b *archive) newFolder() *testCluster {
	c := newFolder(b.root)
	c.t = b.t
	return c
}

// take writes a backup while people change their rosters, and one of what then stands still.
func (b *archive) take() {
	l := b.startLoad()
	time.Sleep(2 * time.Second)
	b.nodes[1].set("contact.abuse", "mailto:abuse@example.test")
	b.setting = "mailto:abuse@example.test"
	b.nodes[2].mustMuster("backup", b.file, "-q", "--passphrase-file", b.key)
	l.stop()
	if lost := l.lost(); len(lost) > 0 {
		b.t.Errorf("the backup lost changes: %v", first(lost))
	}
	b.history = b.writeToAbsent()
	os.Remove(b.file) // now a second one of a state that stands still, to compare with
	b.nodes[2].mustMuster("backup", b.file, "-q", "--passphrase-file", b.key)
	b.rosters = map[string]string{}
	for _, p := range b.people {
		roster, err := p.fetchItems(p.node)
		if err != nil {
			b.t.Fatal(err)
		}
		b.rosters[p.user.JID()] = roster
	}
	if info, err := os.Stat(b.file); err != nil || info.Mode().Perm()&0o077 != 0 {
		b.t.Errorf("the backup's mode: %v %v", info.Mode(), err)
	} else {
		b.outcome = fmt.Sprintf("%d bytes, %d users", info.Size(), len(b.people))
	}
	if _, _, status := b.nodes[2].muster("backup", b.file, "-q", "--passphrase-file", b.key); status == 0 {
		b.t.Error("a backup replaced a file that was there")
	}
}

// absent is somebody whose client is gone when the backup is taken; writer wrote to them.
func (b *archive) absent() *person { return b.people[len(b.people)-1] }
func (b *archive) writer() *person { return b.people[0] }

// kept is how many messages wait for absent.
const kept = 25

// writeToAbsent has one client leave and another write to it, and returns what both archives hold then.
func (b *archive) writeToAbsent() []string {
	b.absent().leave()
	for i := range kept {
		if err := b.writer().send(fmt.Sprintf(`<message type='chat' to='%s'><body>while away %d</body></message>`, b.absent().user.JID(), i)); err != nil {
			b.t.Fatal(err)
		}
	}
	var found []string
	if !eventually(replyTime, 50*time.Millisecond, func() bool { found = b.archives(b.nodes[1]); return len(found) == 2*kept }) {
		b.t.Fatalf("the archives hold %q", found)
	}
	return found
}

// archives reads what absent and writer exchanged from both archives at a node: ids and bodies, in order.
func (b *archive) archives(n *node) []string {
	out, err := b.writer().fetchHistory(n, b.absent())
	if err != nil {
		b.t.Fatal(err)
	}
	theirs, err := b.absent().fetchHistory(n, b.writer())
	if err != nil {
		b.t.Fatal(err)
	}
	return append(out, theirs...)
}

var (
	resultPattern = regexp.MustCompile(`<result [^>]*id=['"]([^'"]*)`)
	bodyPattern   = regexp.MustCompile(`<body>(while away [^<]*)`) // what the load wrote is not looked at
)

// fetchHistory logs in at n and reads one archive page of what p exchanged with another.
func (p *person) fetchHistory(n *node, with *person) (found []string, err error) {
	conn, err := login(n, p.user, "history-"+n.name)
	if err != nil {
		return nil, err
	}
	defer conn.Logout(2 * time.Second)
	_ = conn.SetDeadline(time.Now().Add(replyTime))
	err = conn.Send([]byte(`<iq type='set' id='history'><query xmlns='urn:xmpp:mam:2'><x xmlns='jabber:x:data' type='submit'>` +
		`<field var='FORM_TYPE'><value>urn:xmpp:mam:2</value></field><field var='with'><value>` + with.user.JID() + `</value></field></x>` +
		`<set xmlns='http://jabber.org/protocol/rsm'><max>100</max></set></query></iq>`))
	if err != nil {
		return nil, err
	}
	answer, err := conn.Await(func(f []byte) bool {
		if id, body := resultPattern.FindSubmatch(f), bodyPattern.FindSubmatch(f); id != nil && body != nil {
			found = append(found, string(id[1])+" "+string(body[1]))
		}
		return string(wire.Attr(f, "id")) == "history"
	})
	if err == nil && string(wire.Attr(answer, "type")) != "result" {
		err = fmt.Errorf("the archive of %s at %s: %.200s", p.user.JID(), n.name, answer)
	}
	return found, err
}

// deliver lets absent come back at n and counts what waited.
func (b *archive) deliver(n *node) {
	conn, err := login(n, b.absent().user, "desk")
	if err != nil {
		b.t.Fatal(err)
	}
	defer conn.Logout(2 * time.Second)
	_ = conn.SetDeadline(time.Now().Add(replyTime))
	if err := conn.Send([]byte(`<presence/>`)); err != nil {
		b.t.Fatal(err)
	}
	next := 0
	_, err = conn.Await(func(f []byte) bool {
		if body := bodyPattern.FindSubmatch(f); wire.Named(f, "message") && body != nil {
			if want := fmt.Sprint("while away ", next); string(body[1]) != want {
				b.t.Errorf("%q came, want %q", body[1], want)
			}
			next++
		}
		return next == kept
	})
	if err != nil {
		b.t.Errorf("%d of %d messages came to whom they waited for: %v", next, kept, err)
	}
}

func (b *archive) verify() {
	out := b.nodes[0].mustMuster("backup", "verify", "-q", b.file, "--passphrase-file", b.key)
	for _, want := range []string{fmt.Sprint(len(b.people), " users,"), "1 users for whom messages wait", "message log at index"} {
		if !strings.Contains(out, want) {
			b.t.Errorf("%q is not in %s", want, out)
		}
	}
	b.outcome = strings.Join(strings.Fields(strings.TrimPrefix(out, b.file+" ")), " ")
}

// secrets looks for what must not be readable: passwords and keys nowhere, users not in the backup.
func (b *archive) secrets() {
	canaries := []string{passphrase, "PRIVATE KEY", "while away"}
	for _, p := range b.people {
		canaries = append(canaries, string(p.user.Password))
	}
	b.without(b.file, append([]string{b.people[0].user.JID(), domain}, canaries...))
	for _, n := range b.nodes {
		b.without(n.logFile, canaries)
	}
}

func (b *archive) without(file string, canaries []string) {
	content, err := os.ReadFile(file)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, secret := range canaries {
		if bytes.Contains(content, []byte(secret)) {
			b.t.Errorf("%s holds %q", filepath.Base(file), secret)
		}
	}
}

// damaged flips bytes, cuts and lengthens the file: each is refused and leaves the folder as it was.
func (b *archive) damaged() {
	whole, err := os.ReadFile(b.file)
	if err != nil {
		b.t.Fatal(err)
	}
	type damage struct {
		name    string
		content []byte
	}
	var all []damage
	for _, at := range []int{0, 9, len(whole) / 3, len(whole) / 2, len(whole) - 40, len(whole) - 1} {
		bad := bytes.Clone(whole)
		bad[at] ^= 0x10
		all = append(all, damage{fmt.Sprintf("a bit of byte %d flipped", at), bad})
	}
	for _, n := range []int{0, 7, len(whole) / 4, len(whole) - 1} {
		all = append(all, damage{fmt.Sprintf("cut to %d bytes", n), whole[:n]})
	}
	all = append(all, damage{"a byte more", append(bytes.Clone(whole), 0)})
	target := b.newFolder().lay(b.t, "nobody")
	before := fingerprint(b.t, target.dir)
	for _, d := range all {
		file := filepath.Join(b.dir, "damaged.backup")
		if err := os.WriteFile(file, d.content, 0o600); err != nil {
			b.t.Fatal(err)
		}
		for _, command := range [][]string{{"backup", "verify"}, {"restore"}} {
			out, errs, status := target.muster(append(command, "-q", file, "--passphrase-file", b.key)...)
			if status == 0 || strings.TrimSpace(errs) == "" {
				b.t.Errorf("%s: %v accepted it: %s%s", d.name, command, out, errs)
			}
		}
		if after := fingerprint(b.t, target.dir); after != before {
			b.t.Errorf("%s: the refused restore changed the folder:\n%s", d.name, after)
			before = after
		}
	}
	b.outcome = fmt.Sprintf("%d of %d refused, nothing changed", len(all), len(all))
}

func (b *archive) wrongPassphrase() {
	target := b.newFolder().lay(b.t, "nobody")
	key := filepath.Join(target.dir, "wrong")
	if err := os.WriteFile(key, []byte("not it\n"), 0o600); err != nil {
		b.t.Fatal(err)
	}
	before := fingerprint(b.t, target.dir)
	_, errs, status := target.muster("restore", "-q", b.file, "--passphrase-file", key)
	if status == 0 || !strings.Contains(errs, "passphrase") || fingerprint(b.t, target.dir) != before {
		b.t.Errorf("status %d: %s", status, errs)
	}
	b.outcome = strings.TrimSpace(errs)
}

// fingerprint lists a folder's files with their hashes.
func fingerprint(t *testing.T, dir string) string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		line := path
		if d.Type().IsRegular() {
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %x", sha256.Sum256(content))
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

// restore makes a cluster of one node of another name; users log in with their old passwords and have their rosters.
func (b *archive) restore() {
	elsewhere := b.newFolder()
	n := elsewhere.lay(b.t, "phoenix")
	n.mustMuster("restore", "-q", b.file, "--name", "heirs", "--passphrase-file", b.key)
	n.start()
	n.awaitReady(readyTime)
	for _, p := range b.people {
		roster, err := p.fetchItems(n)
		if err != nil {
			b.t.Errorf("%s at the restored node: %v", p.user.JID(), err)
			continue
		}
		if want := b.rosters[p.user.JID()]; roster != want || roster == "" {
			b.t.Errorf("the roster of %s: %s\nwant %s", p.user.JID(), roster, want)
		}
	}
	if got := b.archives(n); !slices.Equal(got, b.history) {
		b.t.Errorf("the archives hold %q\nwant %q", got, b.history)
	}
	b.deliver(n)
	if got, err := n.setting(replyTime, "contact.abuse"); err != nil || got != b.setting {
		b.t.Errorf("the setting is %q, %v", got, err)
	}
	var nodes []adminapi.Node
	n.must(http.MethodGet, "/nodes", nil, &nodes)
	if len(nodes) != 1 || nodes[0].Name != "phoenix" || nodes[0].Users != len(b.people) {
		b.t.Errorf("the restored cluster's nodes: %+v", nodes)
	}
	var old, restored adminapi.Status
	b.nodes[0].must(http.MethodGet, "/status", nil, &old)
	n.must(http.MethodGet, "/status", nil, &restored)
	if restored.ClusterID == old.ClusterID || restored.Cluster != "heirs" {
		b.t.Errorf("the restored cluster is %s %s, the old one %s", restored.Cluster, restored.ClusterID, old.ClusterID)
	}
	b.heir = n
	b.introduce(n)
	b.outcome = fmt.Sprintf("%d users logged in, rosters equal, %d archived messages with their ids, %d delivered", len(b.people), len(b.history), kept)
	n.stop()
}

// introduce lets the restored cluster's identity knock at the old cluster's port: it is told why it is refused.
func (b *archive) introduce(n *node) {
	id, err := pki.Load(n.data)
	if err != nil {
		b.t.Fatal(err)
	}
	member := b.nodes[0]
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", member.clusterAddr, &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{mesh.ALPN}, Certificates: []tls.Certificate{*id.TLSCertificate()},
		InsecureSkipVerify: true, // the intruder trusts everybody
	})
	if err == nil {
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		_, err = conn.Write([]byte("\x03rpc"))
		answer := make([]byte, 256)
		got, readErr := conn.Read(answer)
		if err == nil && readErr == nil && (got < 1 || answer[0] == 0) {
			b.t.Errorf("a foreign node was taken in: %q", answer[:got])
		}
		conn.Close()
	}
	if !eventually(5*time.Second, 50*time.Millisecond, func() bool { return strings.Contains(member.lastWords(), "mesh_peer_refused") }) {
		b.t.Errorf("the log of %s does not say that it refused a foreign node:\n%s", member.name, member.lastWords())
	}
}

// foreign lets a node join with another cluster's token, and with a folder that belongs to another cluster.
func (b *archive) foreign() {
	b.heir.cluster.t = b.t
	token := strings.TrimSpace(b.nodes[0].mustMuster("node", "token"))
	_, errs, status := b.heir.musterIn(token, "node", "join", b.nodes[0].clusterAddr, "--token-file", "-")
	if status == 0 || !strings.Contains(errs, "belongs to") {
		b.t.Errorf("a folder of another cluster joined: %d %s", status, errs)
	}
	other := b.newFolder()
	founder := other.lay(b.t, "founder")
	founder.mustMuster("cluster", "init", "--domain", domain)
	founder.start()
	founder.awaitReady(readyTime)
	stranger := other.lay(b.t, "stranger")
	_, errs, status = stranger.musterIn(token, "node", "join", founder.clusterAddr, "--token-file", "-")
	if status == 0 || !strings.Contains(errs, "another cluster") {
		b.t.Errorf("a token of another cluster: %d %s", status, errs)
	}
	b.outcome = strings.TrimSpace(errs)
}

// removed removes a node, which says so, and lets it come back with a new token and an empty folder.
func (b *archive) removed() {
	n := b.nodes[2]
	b.nodes[0].mustMuster("node", "remove", n.name)
	if !eventually(10*time.Second, 50*time.Millisecond, func() bool { return strings.Contains(n.lastWords(), "node_removed") }) {
		b.t.Errorf("%s does not say that it was removed:\n%s", n.name, n.lastWords())
	}
	if n.running() {
		n.kill()
	}
	b.comeBack(n)
}

// wiped destroys a node's disk and lets it come back under its name.
func (b *archive) wiped() {
	n := b.nodes[1]
	n.kill()
	empty(b.t, n.data)
	n.start()
	select {
	case <-n.exited:
		if n.cmd.ProcessState.ExitCode() == 0 {
			b.t.Error("musterd ends without a complaint on an empty folder")
		}
	case <-time.After(10 * time.Second):
		b.t.Error("musterd runs on an empty folder")
		n.kill()
	}
	b.nodes[0].mustMuster("node", "remove", n.name)
	b.comeBack(n)
}

func empty(t *testing.T, dir string) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
}

// comeBack joins a node anew; users log in there, and all tables are equal.
func (b *archive) comeBack(n *node) {
	empty(b.t, n.data)
	n.join(b.nodes[0])
	n.start()
	n.awaitReady(readyTime)
	b.awaitVoters()
	if differ := b.digests(10 * time.Second); differ != "" {
		b.t.Errorf("tables differ: %s", differ)
	}
	for _, p := range b.people {
		roster, err := p.fetchItems(n)
		if err != nil {
			b.t.Errorf("%s at %s: %v", p.user.JID(), n.name, err)
		} else if roster != b.rosters[p.user.JID()] {
			b.t.Errorf("the roster of %s at %s differs", p.user.JID(), n.name)
		}
	}
	var nodes []adminapi.Node
	n.must(http.MethodGet, "/nodes", nil, &nodes)
	for _, m := range nodes {
		if m.Name == n.name {
			b.outcome = fmt.Sprintf("back with id %d, voter, tables and rosters equal", m.ID)
		}
	}
}
