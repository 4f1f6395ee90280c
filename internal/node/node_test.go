package node

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"muster/fsm/cluster"
	"muster/internal/bootstrap"
	"muster/internal/certs"
	"muster/internal/fault"
	"muster/log"
	"muster/replication"
)

// founded returns the configuration of a node in a new cluster, with a certificate in files.
func founded(t *testing.T) (bootstrap.Config, *certs.CA) {
	t.Helper()
	dir, err := os.MkdirTemp("", "node") // short, for the socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := bootstrap.Default()
	c.Data, c.Name, c.Cert, c.Key = filepath.Join(dir, "data"), "n1", filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	c.ClusterListen, c.ClientListen, c.ClientTLSListen, c.HTTPSListen = "127.0.0.1:0", "127.0.0.1:0", "", "127.0.0.1:0"
	c.ClusterAdvertise = "127.0.0.1:7400"
	_, err = replication.Init(replication.InitOptions{Dir: c.Data, ClusterName: "test", Domain: "x.test",
		Node: cluster.Member{Name: "n1", ClusterAddr: "127.0.0.1:1", NewestVersion: log.NewestVersion}})
	if err != nil {
		t.Fatal(err)
	}
	ca, err := certs.NewCA("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	writeCert(t, ca, c, "x.test")
	return c, ca
}

func writeCert(t *testing.T, ca *certs.CA, c bootstrap.Config, name string) {
	t.Helper()
	cert, key, err := ca.Issue(time.Now(), name)
	if err != nil {
		t.Fatal(err)
	}
	if err := certs.WriteFiles(c.Cert, c.Key, cert, key); err != nil {
		t.Fatal(err)
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestOpenSaysWhatIsMissing(t *testing.T) {
	good, _ := founded(t)
	for _, tc := range []struct {
		name   string
		change func(*bootstrap.Config)
		code   fault.Code
		want   string
	}{
		{"no identity", func(c *bootstrap.Config) { c.Data = filepath.Join(t.TempDir(), "none") }, fault.NotFound, ""},
		{"no certificate", func(c *bootstrap.Config) { c.Cert, c.Key = "", "" }, fault.BadRequest, "certificates.cert"},
		{"no certificate file", func(c *bootstrap.Config) { c.Cert += ".old" }, 0, ".old"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := good
			tc.change(&c)
			n, err := Open(Options{Config: c, Logger: quiet()})
			if err == nil {
				n.close()
				t.Fatal("it opens")
			}
			if tc.code != 0 && !fault.Is(err, tc.code) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v", err)
			}
		})
	}
	n, err := Open(Options{Config: good, Logger: quiet()}) // nothing that failed left a lock behind
	if err != nil {
		t.Fatal(err)
	}
	if err := n.close(); err != nil {
		t.Error(err)
	}
}

// eventually polls for up to 20 s until check reports true.
func eventually(t *testing.T, what string, check func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if check() {
			return
		}
	}
	t.Fatal(what)
}

func TestLife(t *testing.T) {
	c, ca := founded(t)
	n, err := Open(Options{Config: c, Logger: quiet(), Release: "7.7"})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is never ready", func() bool { ok, _ := n.Runner().Ready(); return ok })
	me, _ := cluster.NodeByID(n.State(), n.Identity().NodeID)
	if !me.Up || me.Incarnation == 0 || me.Software != "7.7" {
		t.Errorf("the log says of it %+v", me)
	}
	eventually(t, "its addresses are not announced", func() bool {
		me, _ := cluster.NodeByID(n.State(), n.Identity().NodeID)
		return me.ClusterAddr == c.ClusterAdvertise && me.Addrs["client"] == c.ClientListen
	})
	if n.HTTPS() == "" || len(n.Clients().Addresses()) != 1 || n.Group() == nil || n.Router() == nil || len(n.Alarms().Active()) != 0 {
		t.Errorf("it listens at %q and %v, alarms %v", n.HTTPS(), n.Clients().Addresses(), n.Alarms().Active())
	}
	for log, want := range map[string]int{"control": 11, "message": 11} {
		got := 0
		for _, s := range n.samples() {
			if len(s.Labels) > 0 && s.Labels[0].Name == "log" && s.Labels[0].Value == log {
				got++
			}
		}
		if got != want {
			t.Errorf("%d metrics of the %s log, want %d", got, log, want)
		}
	}
	if s := n.Messages().Status(); s.DiskBytes == 0 || s.Role != "leader" {
		t.Errorf("the message log: %+v", s)
	}
	for _, s := range n.samples() {
		if s.Name == "" || s.Help == "" || s.Counter != strings.HasSuffix(s.Name, "_total") {
			t.Errorf("a bad sample: %+v", s)
		}
	}
	checkReload(t, n, ca, c)
	if err := n.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if err := n.Stop(t.Context()); err != nil {
		t.Errorf("the second stop: %v", err)
	}
	n.Kill() // and this does nothing any more
}

func checkReload(t *testing.T, n *Node, ca *certs.CA, c bootstrap.Config) {
	t.Helper()
	writeCert(t, ca, c, "y.test")
	if err := n.ReloadCertificates(); err != nil {
		t.Error(err)
	}
	if got := n.certs.Certificate().Leaf.DNSNames; got[0] != "y.test" {
		t.Errorf("after the reload the names are %v", got)
	}
	if err := os.WriteFile(c.Cert, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.ReloadCertificates(); err == nil {
		t.Error("garbage is taken for a certificate")
	}
	if got := n.certs.Certificate().Leaf.DNSNames; got[0] != "y.test" {
		t.Errorf("a bad file changed the names to %v", got)
	}
	eventually(t, "a bad certificate raises no alarm", func() bool {
		for _, a := range n.Alarms().Active() {
			if a.Name == alarmCertificate {
				return true
			}
		}
		return false
	})
}

// TestFounderWithoutMessageLog: what the log held is lost, which must not pass for an empty archive.
func TestFounderWithoutMessageLog(t *testing.T) {
	c, _ := founded(t)
	if err := os.RemoveAll(replication.LogDir(c.Data, replication.MessageLog)); err != nil {
		t.Fatal(err)
	}
	n, err := Open(Options{Config: c, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "no message log") {
		t.Errorf("it starts: %v", err)
	}
}

func TestTwoOnOneFolder(t *testing.T) {
	c, _ := founded(t)
	n, err := Open(Options{Config: c, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Kill()
	if err := n.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	if second, err := Open(Options{Config: c, Logger: quiet()}); err == nil {
		second.close()
		t.Error("a second node opens the same folder")
	}
}

func TestKillAndStartAgain(t *testing.T) {
	c, _ := founded(t)
	incarnation := uint64(0)
	for range 2 {
		n, err := Open(Options{Config: c, Logger: quiet()})
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is never ready", func() bool { ok, _ := n.Runner().Ready(); return ok })
		if got := n.incarnation(); got <= incarnation {
			t.Errorf("the incarnation is %d after %d", got, incarnation)
		}
		incarnation = n.incarnation()
		n.Kill()
		n.Kill()
	}
}
