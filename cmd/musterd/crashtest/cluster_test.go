//go:build (crash || chaos) && linux

package crashtest

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"muster/edges/http/adminapi"
	"muster/internal/certs"
)

// domain is the IM domain of every cluster here.
const domain = "example.test"

// Times of a node's process.
const (
	commandTime = 30 * time.Second // of one muster command
	readyTime   = 40 * time.Second // from a start until the node serves clients
	stopTime    = 20 * time.Second // from SIGTERM to the process's end
)

// bin is the folder of the binaries under test.
var bin string

func TestMain(m *testing.M) {
	status, err := prepare(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

// prepare builds the binaries and runs the tests.
func prepare(m *testing.M) (int, error) {
	if bin = os.Getenv("MUSTER_BIN"); bin != "" {
		abs, err := filepath.Abs(bin)
		bin = abs
		if err != nil {
			return 1, err
		}
		return m.Run(), nil
	}
	dir, err := os.MkdirTemp("", "muster-bin")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	bin = dir
	build := exec.Command("go", "build", "-o", dir+"/", "muster/cmd/musterd", "muster/cmd/muster")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 1, fmt.Errorf("build: %w\n%s", err, out)
	}
	return m.Run(), nil
}

// testCluster is a cluster of processes.
type testCluster struct {
	t      *testing.T // of the test that is running now
	dir    string
	ca     *certs.CA
	caFile string
	nodes  []*node
	web    *http.Client
	front  func(n *node) string // address at which the others reach a new node; nil: its own

	mu    sync.Mutex
	procs []*process
}

// process is one life of a node.
type process struct {
	node   string
	logged int64 // bytes of the log when it began
	cmd    *exec.Cmd
	exited chan struct{} // closed when it has ended
}

// node is one process of a cluster, or its folder.
type node struct {
	cluster *testCluster
	name    string
	dir     string
	data    string
	config  string
	logFile string

	clientAddr, tlsAddr, httpsAddr, clusterAddr string

	env   []string // besides the test's own
	wrap  []string // command that the process is started by; empty: none
	admin *adminapi.Client
	*process
}

// newCluster founds a cluster of nodes with these names, as an operator does, and waits until it serves.
func newCluster(t *testing.T, names ...string) *testCluster {
	t.Helper()
	c := newFolder(t)
	c.found(t, names...)
	return c
}

func (c *testCluster) found(t *testing.T, names ...string) {
	t.Helper()
	for i, name := range names {
		n := c.lay(t, name)
		if i == 0 {
			n.mustMuster("cluster", "init", "--name", "crash", "--domain", domain)
		} else {
			n.join(c.nodes[0])
		}
		n.start()
		n.awaitReady(readyTime)
	}
	c.awaitVoters()
}

// awaitVoters waits until every node votes: until then the cluster survives the loss of fewer nodes.
func (c *testCluster) awaitVoters() {
	c.t.Helper()
	for _, n := range c.nodes {
		if !eventually(readyTime, 100*time.Millisecond, func() bool { return c.votes(n) }) {
			c.t.Fatalf("%s does not become a voter\n%s", n.name, n.lastWords())
		}
	}
}

// votes reports whether a node votes as it is to in the end.
func (c *testCluster) votes(n *node) bool {
	m, err := n.metrics()
	return err == nil && m[`muster_log_voter{log="control"}`] == 1 && (len(c.nodes) > 3 || m[`muster_log_voter{log="message"}`] == 1)
}

func (c *testCluster) allVote() bool {
	return !slices.ContainsFunc(c.nodes, func(n *node) bool { return !c.votes(n) })
}

// newFolder makes the folder and the authority of a cluster that has no nodes yet.
func newFolder(t *testing.T) *testCluster {
	t.Helper()
	dir, err := os.MkdirTemp("", "mct") // short: a socket's path has at most 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	ca, err := certs.NewCA("crash test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c := &testCluster{t: t, dir: dir, ca: ca, caFile: filepath.Join(dir, "ca.pem")}
	if err := os.WriteFile(c.caFile, ca.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	c.web = &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: ca.Pool(), ServerName: domain}, MaxIdleConnsPerHost: 2,
	}}
	t.Cleanup(func() {
		c.end()
		if t.Failed() {
			t.Logf("the cluster's folder is kept: %s", dir)
			return
		}
		os.RemoveAll(dir)
	})
	return c
}

// end ends every process.
func (c *testCluster) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.web.CloseIdleConnections()
	for _, p := range c.procs {
		_ = p.cmd.Process.Signal(syscall.SIGCONT)
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
}

// lay makes the folder, certificate and bootstrap file of a new node.
func (c *testCluster) lay(t *testing.T, name string) *node {
	t.Helper()
	n := &node{cluster: c, name: name, dir: filepath.Join(c.dir, name)}
	n.data, n.config, n.logFile = filepath.Join(n.dir, "data"), filepath.Join(n.dir, "musterd.yaml"), filepath.Join(n.dir, "musterd.log")
	for _, a := range []*string{&n.clientAddr, &n.tlsAddr, &n.httpsAddr, &n.clusterAddr} {
		*a = freeAddress(t)
	}
	if err := os.MkdirAll(n.data, 0o700); err != nil {
		t.Fatal(err)
	}
	cert, key, err := c.ca.Issue(time.Now(), domain, name)
	if err == nil {
		err = certs.WriteFiles(filepath.Join(n.dir, "cert.pem"), filepath.Join(n.dir, "key.pem"), cert, key)
	}
	if err != nil {
		t.Fatal(err)
	}
	conf := fmt.Sprintf("data: data\nname: %s\ncluster:\n  listen: %s\nclient:\n  listen: %s\n  tls_listen: %s\nhttps:\n  listen: %s\ncertificates:\n  cert: cert.pem\n  key: key.pem\n",
		name, n.clusterAddr, n.clientAddr, n.tlsAddr, n.httpsAddr)
	if level := os.Getenv("CHAOS_LOG"); level != "" {
		conf += "log:\n  level: " + level + "\n"
	}
	if c.front != nil {
		conf = strings.Replace(conf, "cluster:\n", "cluster:\n  advertise: "+c.front(n)+"\n", 1)
	}
	if err := os.WriteFile(n.config, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	n.admin = adminapi.NewClient(n.data)
	c.nodes = append(c.nodes, n)
	return n
}

// usedPorts are those that this process has given out.
var usedPorts sync.Map

// freeAddress finds a port below those that the system gives to outgoing connections.
func freeAddress(t *testing.T) string {
	t.Helper()
	for range 1000 {
		port := 20_000 + rand.IntN(12_000)
		address := fmt.Sprintf("127.0.0.1:%d", port)
		if _, taken := usedPorts.LoadOrStore(port, true); taken {
			continue
		}
		if ln, err := net.Listen("tcp", address); err == nil {
			ln.Close()
			return address
		}
	}
	t.Fatal("no free port")
	return ""
}

// join makes n a member through the node via, with a token of it.
func (n *node) join(via *node) {
	n.cluster.t.Helper()
	token := strings.TrimSpace(via.mustMuster("node", "token"))
	out, errs, status := n.musterIn(token+"\n", "node", "join", via.clusterAddr, "--token-file", "-")
	if status != 0 {
		n.cluster.t.Fatalf("%s joins: %s%s", n.name, out, errs)
	}
}

// muster runs the operator's tool for this node.
func (n *node) muster(args ...string) (out, errs string, status int) {
	return n.musterIn("", args...)
}

func (n *node) musterIn(input string, args ...string) (out, errs string, status int) {
	ctx, cancel := context.WithTimeout(context.Background(), commandTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "muster"), append([]string{"--config", n.config}, args...)...)
	cmd.Env = append(os.Environ(), n.env...)
	var o, e bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &o, &e
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		status = exit.ExitCode()
	case err != nil:
		n.cluster.t.Errorf("muster %v: %v", args, err)
		status = -1
	}
	return o.String(), e.String(), status
}

// mustMuster runs the tool and fails the test if it fails. It returns its output.
func (n *node) mustMuster(args ...string) string {
	n.cluster.t.Helper()
	out, errs, status := n.muster(args...)
	if status != 0 {
		n.cluster.t.Fatalf("muster %s on %s: status %d\n%s%s", strings.Join(args, " "), n.name, status, out, errs)
	}
	return out
}

// start runs the node's process.
func (n *node) start() {
	n.cluster.t.Helper()
	log, err := os.OpenFile(n.logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		n.cluster.t.Fatal(err)
	}
	defer log.Close()
	begins, err := log.Stat()
	if err != nil {
		n.cluster.t.Fatal(err)
	}
	command := append(slices.Clone(n.wrap), filepath.Join(bin, "musterd"), "--config", n.config)
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = append(os.Environ(), n.env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		n.cluster.t.Fatal(err)
	}
	p := &process{node: n.name, logged: begins.Size(), cmd: cmd, exited: make(chan struct{})}
	go func() { _ = cmd.Wait(); close(p.exited) }()
	n.process = p
	n.cluster.mu.Lock()
	defer n.cluster.mu.Unlock()
	n.cluster.procs = append(n.cluster.procs, p)
}

func (n *node) signal(s syscall.Signal) {
	n.cluster.t.Helper()
	if err := n.cmd.Process.Signal(s); err != nil {
		n.cluster.t.Fatalf("%s: %v: %v", n.name, s, err)
	}
}

// kill is kill -9.
func (n *node) kill() {
	n.cluster.t.Helper()
	n.signal(syscall.SIGKILL)
	<-n.exited
}

// stop asks the process to end, and waits until it has.
func (n *node) stop() {
	n.cluster.t.Helper()
	n.signal(syscall.SIGTERM)
	select {
	case <-n.exited:
		if status := n.cmd.ProcessState.ExitCode(); status != 0 {
			n.cluster.t.Errorf("%s ended with status %d", n.name, status)
		}
	case <-time.After(stopTime):
		n.cluster.t.Errorf("%s did not stop within %v", n.name, stopTime)
		n.kill()
	}
}

// running reports whether the process has not ended.
func (n *node) running() bool {
	select {
	case <-n.exited:
		return false
	default:
		return true
	}
}

// get fetches a page of the HTTPS listener.
func (n *node) get(path string) (status int, body []byte, err error) {
	resp, err := n.cluster.web.Get("https://" + n.httpsAddr + path)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	return resp.StatusCode, body, err
}

// ready asks the ready page; reason is why not, or that nothing answers.
func (n *node) ready() (ok bool, status int, reason string) {
	status, body, err := n.get("/health/ready")
	if err != nil {
		return false, 0, "no answer"
	}
	var page struct {
		Status string `json:"status"`
		Reason string `json:"reason"`
	}
	if err := json.Unmarshal(body, &page); err != nil {
		return false, status, "not JSON: " + string(body)
	}
	return status == http.StatusOK, status, page.Reason
}

// awaitReady waits until the node serves clients.
func (n *node) awaitReady(limit time.Duration) {
	n.cluster.t.Helper()
	reason := ""
	if !eventually(limit, 20*time.Millisecond, func() (ok bool) { ok, _, reason = n.ready(); return ok || !n.running() }) {
		n.cluster.t.Fatalf("%s is not ready after %v: %s\n%s", n.name, limit, reason, n.lastWords())
	}
	if !n.running() {
		n.cluster.t.Fatalf("%s has ended:\n%s", n.name, n.lastWords())
	}
}

// lastWords is the end of the node's log.
func (n *node) lastWords() string {
	b, err := os.ReadFile(n.logFile)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4000):])
}

// call uses the node's administrative socket.
func (n *node) call(limit time.Duration, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return n.admin.Call(ctx, method, path, in, out)
}

// must is call that may not fail.
func (n *node) must(method, path string, in, out any) {
	n.cluster.t.Helper()
	if err := n.call(commandTime, method, path, in, out); err != nil {
		n.cluster.t.Fatalf("%s %s on %s: %v", method, path, n.name, err)
	}
}

// set changes a setting of the whole cluster.
func (n *node) set(name, value string) {
	n.cluster.t.Helper()
	n.must(http.MethodPut, "/settings/"+name, adminapi.SettingChange{Value: value}, nil)
}

// setting returns a setting's value as this node has it.
func (n *node) setting(limit time.Duration, name string) (string, error) {
	var list []adminapi.Setting
	if err := n.call(limit, http.MethodGet, "/settings", nil, &list); err != nil {
		return "", err
	}
	for _, s := range list {
		if s.Name == name {
			return s.Value, nil
		}
	}
	return "", fmt.Errorf("no setting %s", name)
}

// eventually polls until check is true or the time is over.
func eventually(limit, step time.Duration, check func() bool) bool {
	end := time.Now().Add(limit)
	for !check() {
		if time.Now().After(end) {
			return false
		}
		time.Sleep(step)
	}
	return true
}
