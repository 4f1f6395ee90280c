package node

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	nethttp "net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"muster/edges/http"
	"muster/feature/message/state"
	"muster/fsm/config"
	"muster/internal/fault"
	"muster/internal/store"
	"muster/replication"
)

// smallDisk is the disk with another free space.
type smallDisk struct {
	vfs.FS
	free atomic.Int64
}

func (d *smallDisk) GetDiskUsage(string) (vfs.DiskUsage, error) {
	return vfs.DiskUsage{AvailBytes: uint64(d.free.Load()), TotalBytes: 1 << 40}, nil
}

const mib = 1 << 20

// TestStartWaitsForRoom: a node that is started on a full disk neither opens
// anything nor ends; its health page says why; it goes on when there is room.
func TestStartWaitsForRoom(t *testing.T) {
	c, ca := founded(t)
	d := &smallDisk{FS: vfs.Default}
	d.free.Store(20 * mib)
	address := make(chan string, 4)
	listen := func(a string) (net.Listener, error) {
		ln, err := net.Listen("tcp", a)
		if err == nil {
			address <- ln.Addr().String()
		}
		return ln, err
	}
	if err := os.WriteFile(filepath.Join(c.Data, "reserve"), nil, 0o600); err != nil { // of an earlier process
		t.Fatal(err)
	}
	type outcome struct {
		n   *Node
		err error
	}
	opened := make(chan outcome, 1)
	go func() {
		n, err := Open(Options{Config: c, FS: d, Listen: listen, Logger: quiet()})
		opened <- outcome{n, err}
	}()
	web := &nethttp.Client{Timeout: 5 * time.Second, Transport: &nethttp.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool(), ServerName: "x.test"}}}
	at := <-address
	for path, want := range map[string]int{"/health/live": 200, "/health/ready": 503, "/health/replication": 503, "/metrics": 200} {
		resp, err := web.Get("https://" + at + path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != want || err != nil || want == 503 && !strings.Contains(string(b), "disk full: free 20 MB in "+c.Data) {
			t.Errorf("%s: %d %s %v", path, resp.StatusCode, b, err)
		}
	}
	web.CloseIdleConnections()
	if _, err := os.Stat(filepath.Join(c.Data, "reserve")); !os.IsNotExist(err) {
		t.Errorf("the reserve of an earlier process was kept: %v", err)
	}
	if _, err := os.Stat(replication.StateDir(c.Data, replication.ControlLog)); !os.IsNotExist(err) {
		t.Errorf("the state was opened on a full disk: %v", err)
	}
	d.free.Store(10 << 30)
	out := <-opened
	if out.err != nil {
		t.Fatal(out.err)
	}
	defer out.n.Kill()
	if active := out.n.alarms.Active(); len(active) != 0 {
		t.Errorf("alarms with room: %v", active)
	}
}

// TestNodeOnFillingDisk takes a node through the levels and back: who is told
// what, what may still be written, and that all is well again by itself.
func TestNodeOnFillingDisk(t *testing.T) {
	c, _ := founded(t)
	d := &smallDisk{FS: vfs.Default}
	d.free.Store(10 << 30)
	n, err := Open(Options{Config: c, FS: d, Logger: quiet()})
	if err == nil {
		err = n.Start(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	defer n.Kill()
	eventually(t, "the node serves", func() bool { ok, _ := n.ready(); return ok && n.messages.IsLeader() })
	change := func(value string) error {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		_, err := n.propose(ctx, config.SetEntry("disk.reserve", value, 0))
		return err
	}
	message := func() error {
		_, err := keeper{n}.Propose(t.Context(), state.ForgetEntry(state.Ended{Session: 1}))
		return err
	}
	for _, s := range []struct {
		name              string
		free              int64
		ready             bool
		severity          string
		messages, control replication.Room
	}{
		{"low", 300, true, "warning", replication.RoomForAll, replication.RoomForAll},
		{"full", 200, false, "critical", replication.RoomToFollow, replication.RoomForAll},
		{"critical", 100, false, "critical", replication.NoRoom, replication.RoomToFollow},
		{"spent", 10, false, "critical", replication.NoRoom, replication.NoRoom},
		{"room again", 10 << 10, true, "", replication.RoomForAll, replication.RoomForAll},
	} {
		d.free.Store(s.free * mib)
		n.space.Look()
		n.spaceAlarm()
		severity := ""
		for _, a := range n.alarms.Active() {
			if a.Name == alarmDisk {
				severity = string(a.Severity)
			}
		}
		ok, why := n.ready()
		mr, _ := n.room(replication.MessageLog)()
		cr, _ := n.room(replication.ControlLog)()
		if ok != s.ready || severity != s.severity || mr != s.messages || cr != s.control || !ok && !strings.HasPrefix(why, "disk full: free ") {
			t.Errorf("%s: ready %v (%s), alarm %q, room %d and %d", s.name, ok, why, severity, mr, cr)
		}
		if got := n.criticalDown(); (got == "") != s.ready {
			t.Errorf("%s: the others hear %q", s.name, got)
		}
		if err := change("256"); (err == nil) != (s.control != replication.NoRoom) {
			t.Errorf("%s: a change: %v", s.name, err)
		}
		if err := message(); s.messages == replication.NoRoom != (fault.Is(err, fault.Unavailable) && strings.Contains(fault.Public(err), "disk full")) {
			t.Errorf("%s: a message: %v", s.name, err)
		}
		i := slices.IndexFunc(n.samples(), func(m http.Sample) bool { return m.Name == "muster_disk_full" })
		if v := n.samples()[i].Value; (v == 0) != s.ready {
			t.Errorf("%s: muster_disk_full is %v", s.name, v)
		}
	}
	d.free.Store(100 * mib) // what is little for one volume is plenty for another
	n.space.Look()
	if err := change("64"); err != nil {
		t.Fatal(err)
	}
	if n.space.Look(); n.diskFull() != "" {
		t.Errorf("100 MiB free and a reserve of 64: %s", n.diskFull())
	}
}

// TestDamagedStores: a damaged state ends the process with one line; a damaged
// store of presence is made anew, by this start or by the next.
func TestDamagedStores(t *testing.T) {
	c, _ := founded(t)
	var mu sync.Mutex
	var exits []string
	n, err := Open(Options{Config: c, Logger: quiet(), Exit: func(s string) { mu.Lock(); exits = append(exits, s); mu.Unlock() }})
	if err != nil {
		t.Fatal(err)
	}
	hot := filepath.Join(c.Data, hotDir)
	n.storeFailed(fault.New(fault.Internal, "store.read", "state", "it is damaged"))
	n.storeFailed(fault.New(fault.Internal, "store.read", "state", "it is damaged, says another"))
	if len(exits) != 1 || exits[0] != "it is damaged" {
		t.Errorf("exits: %q", exits)
	}
	n.Kill()
	manifests, _ := filepath.Glob(filepath.Join(hot, "gen-1", "MANIFEST-*"))
	if len(manifests) == 0 {
		t.Fatal("presence has no manifest")
	}
	if err := os.WriteFile(manifests[len(manifests)-1], []byte("this is no manifest, but it is long enough for one"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Open(hot, store.Options{Logger: quiet()}); !store.Damaged(err) {
		t.Fatalf("a spoilt store of presence: %v", err)
	}
	n, err = Open(Options{Config: c, Logger: quiet(), Exit: func(s string) { exits = append(exits, s) }})
	if err != nil {
		t.Fatalf("a node with a spoilt store of presence: %v", err)
	}
	defer n.Kill()
	n.presenceFailed(&fault.Error{Code: fault.Internal, Op: "store.read", Subject: hot, Err: damage(t)})
	if _, err := os.Stat(hot); !os.IsNotExist(err) || len(exits) != 2 || !strings.Contains(exits[1], "made anew") {
		t.Errorf("damage found later: %v, exits %q", err, exits)
	}
}

// damage is the error of a store that is damaged.
func damage(t *testing.T) error {
	t.Helper()
	dir := t.TempDir()
	db, err := store.Open(dir, store.Options{Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	_ = db.Close()
	files, _ := filepath.Glob(filepath.Join(dir, "gen-1", "MANIFEST-*"))
	for _, f := range files {
		if err := os.WriteFile(f, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err = store.Open(dir, store.Options{Logger: quiet()}); !store.Damaged(err) {
		t.Fatalf("not damaged: %v", err)
	}
	return err
}
