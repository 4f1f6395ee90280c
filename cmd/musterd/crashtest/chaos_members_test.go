//go:build chaos && linux

package crashtest

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"muster/cmd/musterbench/target"
	"muster/edges/http/adminapi"
)

// removeAndRejoin takes a node out for good, and it comes back with an empty folder.
func removeAndRejoin(c *trial) {
	n := c.removable()
	via := c.others(n)[0]
	c.at = time.Now()
	via.mustMuster("node", "remove", n.name)
	if !eventually(readyTime, 50*time.Millisecond, func() bool { ok, _, _ := n.ready(); return !ok }) {
		c.t.Errorf("%s serves on though it was removed", n.name)
	}
	time.Sleep(3 * time.Second)
	if n.running() {
		n.kill()
	}
	wipe(c.t, n.data)
	begun := time.Now()
	n.join(via)
	n.start()
	n.awaitReady(readyTime)
	c.awaitVoters()
	c.remark("a voter again in %.1f s", time.Since(begun).Seconds())
}

// behindSnapshot keeps a node away until the others' logs begin after what it has.
func behindSnapshot(c *trial) {
	n := c.follower()
	m, err := n.metrics()
	if err != nil {
		c.t.Fatal(err)
	}
	applied := m[`muster_log_applied_index{log="message"}`]
	const trailing = 10_240 // entries stay behind a snapshot
	c.during(n, func() {
		n.kill()
		other := c.others(n)[0]
		behind := 0.0
		ok := eventually(8*time.Minute, time.Second, func() bool {
			m, err := other.metrics()
			behind = m[`muster_log_snapshot_index{log="message"}`] - trailing - applied
			return err == nil && behind > 0
		})
		if !ok {
			c.remark("the log was not cut within 8 minutes (%.0f entries missing)", -behind)
		}
	})
	c.revive(n)
}

// backupAndRestore takes a backup under load, which another cluster begins with.
func backupAndRestore(c *trial) {
	c.at = time.Now()
	file, key := filepath.Join(c.dir, fmt.Sprintf("%s.backup", c.books.tag)), filepath.Join(c.dir, "passphrase")
	if err := os.WriteFile(key, []byte("a passphrase of some length\n"), 0o600); err != nil {
		c.t.Fatal(err)
	}
	n := c.follower()
	n.mustMuster("backup", file, "-q", "--passphrase-file", key)
	n.mustMuster("backup", "verify", "-q", file, "--passphrase-file", key)
	c.remark("backup in %.1f s", time.Since(c.at).Seconds())
	elsewhere := newFolder(c.t)
	heir := elsewhere.lay(c.t, "phoenix")
	heir.mustMuster("restore", "-q", file, "--name", "heirs", "--passphrase-file", key)
	heir.start()
	heir.awaitReady(readyTime)
	var users adminapi.UserPage
	heir.must(http.MethodGet, "/users", nil, &users)
	if len(users.Users) < crowdSize {
		c.t.Errorf("the restored cluster has %d users", len(users.Users))
	}
	c.remark("%d users elsewhere", len(users.Users))
	elsewhere.end()
}

// herdSize is how many further clients the killed node of a herd has.
const herdSize = 300

// herd makes the clients that only wait, all at the node that will be hit.
func (a *arena) herd(t *testing.T) []*device {
	t.Helper()
	var made []adminapi.NewUser
	var users []target.User
	for i := range herdSize {
		u := target.User{Local: fmt.Sprintf("h%03d", i), Domain: domain, Password: target.Secret(fmt.Sprintf("secret-%03d", i))}
		users = append(users, u)
		made = append(made, adminapi.NewUser{JID: u.JID(), Password: string(u.Password)})
	}
	for chunk := range slices.Chunk(made, 100) {
		var outcomes []adminapi.Outcome
		a.nodes[0].must(http.MethodPost, "/users", chunk, &outcomes)
	}
	herd := devicesFor(t, users, a.devices[0].places, a.caFile, "SCRAM-SHA-256")
	victim := slices.Index(a.nodes, a.follower())
	for _, d := range herd {
		d.seat, d.partners = victim, nil
	}
	return herd
}

// killHerded kills the node that the herd is at.
func killHerded(c *trial) { c.killFor(c.nodes[c.herded[0].seat], downTime) }
