package demo

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"muster/edges/http/adminapi"
	"muster/internal/bootstrap"
	"muster/internal/fault"
	"muster/internal/node"
)

// TestMain lets this binary be the server that the tests run: a node without features.
func TestMain(m *testing.M) {
	if os.Getenv("DEMO_SERVER") == "" {
		os.Exit(m.Run())
	}
	if err := serve(os.Args[len(os.Args)-1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(config string) error {
	c, err := bootstrap.Load(config)
	if err != nil {
		return err
	}
	n, err := node.Open(node.Options{Config: c, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	if err := n.Start(context.Background()); err != nil {
		return err
	}
	<-stop
	return n.Stop(context.Background())
}

// output is a writer that can be read meanwhile.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) { o.mu.Lock(); defer o.mu.Unlock(); return o.b.Write(p) }
func (o *output) String() string              { o.mu.Lock(); defer o.mu.Unlock(); return o.b.String() }

func (o *output) await(t *testing.T, text string) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if strings.Contains(o.String(), text) {
			return
		}
	}
	t.Fatalf("%q was not said:\n%s", text, o)
}

// freePorts returns an offset at which the ports of two nodes are free.
func freePorts(t *testing.T) int {
	t.Helper()
	for range 100 {
		offset := 20_000 + rand.IntN(30_000)
		free := true
		for _, base := range []int{5222, 5223, 8443, 7400} {
			for i := range 2 {
				ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", base+offset+i*step))
				if err != nil {
					free = false
					continue
				}
				ln.Close()
			}
		}
		if free {
			return offset
		}
	}
	t.Fatal("no free ports")
	return 0
}

// folder is short, for the sockets in it.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "demo")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "run")
}

// begin runs the plan in the background; end stops it and returns Run's error.
func begin(t *testing.T, p Plan) (out *output, end func() error) {
	t.Helper()
	t.Setenv("DEMO_SERVER", "1")
	ctx, cancel := context.WithCancel(t.Context())
	out = &output{}
	done := make(chan error, 1)
	go func() { done <- (&Runner{Plan: p, Binary: os.Args[0], Release: "test", Out: out}).Run(ctx) }()
	var once sync.Once
	end = func() (err error) {
		once.Do(func() { cancel(); err = <-done })
		return err
	}
	t.Cleanup(func() { _ = end() })
	return out, end
}

func TestRunKillRestartClean(t *testing.T) {
	p := Plan{Dir: folder(t), Domain: "demo.test", Nodes: 2, Users: 3, Ports: freePorts(t)}
	out, end := begin(t, p)
	out.await(t, "What to do next")
	c, err := Load(p.Dir)
	if err != nil {
		t.Fatal(err)
	}
	checkDescription(t, p, c)
	if err := Clean(p.Dir); !fault.Is(err, fault.Conflict) {
		t.Errorf("cleaning below running nodes gives %v", err)
	}

	if err := syscall.Kill(c.Nodes[1].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	out.await(t, "node2 (process ")
	out.await(t, "make run-node NODE=2 starts it again")
	again := &output{}
	if err := RunNode(t.Context(), p.Dir, os.Args[0], 2, again); err != nil {
		t.Fatal(err)
	}
	again.await(t, "node2 is up (process ")
	out.await(t, "node2 runs again (process ")
	if err := RunNode(t.Context(), p.Dir, os.Args[0], 2, again); !fault.Is(err, fault.Conflict) {
		t.Errorf("starting a running node gives %v", err)
	}
	if err := RunNode(t.Context(), p.Dir, os.Args[0], 3, again); !fault.Is(err, fault.NotFound) {
		t.Errorf("starting a node that is none gives %v", err)
	}
	if err := end(); err != nil {
		t.Fatalf("the end: %v\n%s", err, out)
	}
	c2, err := Load(p.Dir)
	if err != nil || c2.Nodes[1].PID == c.Nodes[1].PID || alive(c2.Nodes[0].PID) || alive(c2.Nodes[1].PID) {
		t.Errorf("after the end: %v, %+v", err, c2)
	}

	p.Nodes = 3 // what is there wins
	out, end = begin(t, p)
	out.await(t, "holds a cluster of 2 nodes for demo.test")
	out.await(t, "What to do next")
	if c3, err := Load(p.Dir); err != nil || c3.Admin != c.Admin || c3.Nodes[0].PID == c.Nodes[0].PID {
		t.Errorf("the second run: %v, %+v", err, c3)
	}
	if err := end(); err != nil {
		t.Fatalf("the second end: %v\n%s", err, out)
	}
	if err := Clean(p.Dir); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(p.Dir); !os.IsNotExist(err) {
		t.Errorf("after cleaning: %v", err)
	}
}

func checkDescription(t *testing.T, p Plan, c *Cluster) {
	t.Helper()
	if c.Domain != p.Domain || len(c.Nodes) != 2 || len(c.Users) != 3 || c.Users[2].JID != "user3@demo.test" || c.Admin.JID != "admin@demo.test" {
		t.Errorf("the description is %+v", c)
	}
	if pem, err := os.ReadFile(c.CA); err != nil || !bytes.Contains(pem, []byte("BEGIN CERTIFICATE")) {
		t.Errorf("the authority's file: %v", err)
	}
	if info, err := os.Stat(file(p.Dir)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the description's mode: %v, %v", info.Mode(), err)
	}
	for i, n := range c.Nodes {
		if n.ID != uint32(i+1) || !alive(n.PID) || !n.running() {
			t.Errorf("node %d: %+v", i+1, n)
		}
		for _, address := range []string{n.Addresses.Client, n.Addresses.ClientTLS, n.Addresses.HTTPS, n.Addresses.Cluster} {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Errorf("node %d does not listen on %s", i+1, address)
				continue
			}
			conn.Close()
		}
	}
	var admin adminapi.User
	if err := c.Nodes[1].client().Call(t.Context(), http.MethodGet, "/users/"+c.Admin.JID, nil, &admin); err != nil || !admin.Admin {
		t.Errorf("the administrator: %v, %+v", err, admin)
	}
}

func TestPlanRefuses(t *testing.T) {
	for _, tc := range []struct {
		name string
		plan Plan
		code fault.Code
	}{
		{"no nodes", Plan{Nodes: 0}, fault.NotAcceptable},
		{"too many nodes", Plan{Nodes: 7}, fault.NotAcceptable},
		{"too many users", Plan{Nodes: 1, Users: MaxUsers + 1}, fault.NotAcceptable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := tc.plan.lay(); !fault.Is(err, tc.code) {
				t.Errorf("got %v", err)
			}
		})
	}
	unfinished := Plan{Dir: folder(t), Domain: "demo.test", Nodes: 1}
	if _, err := unfinished.lay(); err != nil {
		t.Fatal(err)
	}
	if _, err := unfinished.lay(); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "CLEAN=1") {
		t.Errorf("a folder that was not finished gives %v", err)
	}
}

func TestLayWritesGoodBootstrapFiles(t *testing.T) {
	c, err := Plan{Dir: folder(t), Domain: "demo.test", Nodes: 3, Ports: 1000}.lay()
	if err != nil {
		t.Fatal(err)
	}
	conf, err := bootstrap.Load(c.Nodes[2].Config)
	if err != nil {
		t.Fatal(err)
	}
	if conf.Name != "node3" || conf.ClientListen != "127.0.0.1:6242" || conf.ClientTLSListen != "127.0.0.1:6243" ||
		conf.HTTPSListen != "127.0.0.1:9463" || conf.ClusterAdvertise != "127.0.0.1:8420" || conf.Data != c.Nodes[2].Data {
		t.Errorf("node 3 is %+v", conf)
	}
}

func TestCleanLeavesStrangersAlone(t *testing.T) {
	dir := folder(t)
	if err := Clean(dir); err != nil {
		t.Errorf("nothing to clean gives %v", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	precious := filepath.Join(dir, "thesis.txt")
	if err := os.WriteFile(precious, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Clean(dir); !fault.Is(err, fault.Forbidden) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}
}

func TestLoadErrors(t *testing.T) {
	dir := t.TempDir()
	if _, err := Load(dir); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "make run") {
		t.Errorf("nothing there gives %v", err)
	}
	if err := os.WriteFile(file(dir), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); !fault.Is(err, fault.BadRequest) || !strings.Contains(err.Error(), "CLEAN=1") {
		t.Errorf("a damaged description gives %v", err)
	}
	if err := RunNode(t.Context(), filepath.Join(dir, "none"), "x", 1, io.Discard); !fault.Is(err, fault.NotFound) {
		t.Errorf("a node of no cluster gives %v", err)
	}
}

func TestAServerThatCannotStart(t *testing.T) {
	p := Plan{Dir: folder(t), Domain: "demo.test", Nodes: 1, Ports: freePorts(t)}
	r := &Runner{Plan: p, Binary: filepath.Join(p.Dir, "nothing"), Out: io.Discard}
	if err := r.Run(t.Context()); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "make build") {
		t.Errorf("no server gives %v", err)
	}
	if err := Clean(p.Dir); err != nil {
		t.Fatal(err)
	}
	r.Binary = "/bin/false"
	if err := r.Run(t.Context()); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "its messages are in") {
		t.Errorf("a server that ends at once gives %v", err)
	}
}

func TestPassword(t *testing.T) {
	a, b := password(), password()
	if a == b || len(a) != 15 || strings.ContainsAny(a+b, "lo01") {
		t.Errorf("passwords are %s and %s", a, b)
	}
}
