//go:build chaos && linux

package crashtest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"muster/cmd/musterbench/target"
	"muster/internal/certs"
)

// peerRounds is how often each server's node is killed.
const peerRounds = 3

// TestChaosPeers kills a node of ejabberd's cluster of two as TestChaos kills one of Muster's, with the same clients and load.
func TestChaosPeers(t *testing.T) {
	report := newReport(fmt.Sprintf("kill -9 of one node (%d clients, %.0f messages a second)", crowdSize, float64(crowdSize)/sayStep.Seconds()))
	defer func() { report.print(t) }()
	a, err := newArena(t, plain)
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range []chaos{{id: "Muster", name: "one of 3, which leads the log", strike: killLeader, home: true}, {id: "Muster", name: "one of 3, which does not", strike: killHome, home: true}} {
		for round := range peerRounds {
			t.Run(fmt.Sprint(f.name, round), func(t *testing.T) { f.run(t, a, report, i*peerRounds+round) })
		}
	}
	a.end()
	for round := range peerRounds {
		killEjabberd(t, report, round)
	}
}

// killEjabberd runs one round against a fresh cluster. What it loses is reported, not judged.
func killEjabberd(t *testing.T, report *table, round int) {
	e := newEjabberd(t)
	defer e.end()
	b := newBooks(fmt.Sprintf("e%d", round))
	c := &trial{}
	var at time.Time
	stuck := crowdAround(t, e.devices, b, func() {
		at = time.Now()
		victim := e.nodes[1]
		_ = victim.cmd.Process.Kill()
		<-victim.exited
		time.Sleep(downTime)
		e.start(t, victim, "")
		e.await(t, victim)
	})
	back := comebacks(e.devices, at)
	drain(e.devices, b)
	addChaosRow(report, "ejabberd", fmt.Sprintf("%s, one of 2", e.version), b.sum(), back, stuck, c)
}

// ejabberd is a cluster of two from the Debian package, on 127.0.0.1 with an epmd of its own.
type ejabberd struct {
	dir, version, libs string
	epmdPort           int
	epmd               *exec.Cmd
	nodes              []*peerNode
	devices            []*device
}

type peerNode struct {
	name, dir string
	port      int
	cmd       *exec.Cmd
	exited    chan struct{}
}

const ejabberdConfig = `hosts: ["` + domain + `"]
loglevel: warning
certfiles: ["%[1]s/cert.pem", "%[1]s/key.pem"]
listen:
  - {port: %[2]d, ip: "127.0.0.1", module: ejabberd_c2s, tls: true, backlog: 4096, max_stanza_size: 262144, shaper: none, access: all}
auth_method: internal
auth_password_format: scram
auth_scram_hash: sha
shaper_rules: {max_user_sessions: 10, max_user_offline_messages: 5000}
modules:
  mod_carboncopy: {}
  mod_disco: {}
  mod_offline: {access_max_user_messages: max_user_offline_messages}
  mod_ping: {}
  mod_roster: {versioning: true}
  mod_stream_mgmt: {resend_on_timeout: true, resume_timeout: 300, max_ack_queue: 5000}
`

func newEjabberd(t *testing.T) *ejabberd {
	t.Helper()
	files, err := command("dpkg", "-L", "ejabberd")
	if err != nil {
		t.Fatalf("ejabberd is not installed (apt-get install ejabberd): %v", err)
	}
	e := &ejabberd{}
	for line := range strings.Lines(files) {
		if strings.HasSuffix(strings.TrimSpace(line), "/ebin") && e.libs == "" {
			e.libs = filepath.Dir(filepath.Dir(strings.TrimSpace(line)))
		}
	}
	version, err := command("dpkg-query", "-W", "-f", "${Version}", "ejabberd")
	if err == nil {
		e.version = version
		e.dir, err = os.MkdirTemp("", "mej")
	}
	if err != nil {
		t.Fatal(err)
	}
	e.epmdPort = portOf(freeAddress(t))
	e.epmd = exec.Command("epmd", "-address", "127.0.0.1", "-port", strconv.Itoa(e.epmdPort))
	e.epmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := e.epmd.Start(); err != nil {
		t.Fatal(err)
	}
	ca, err := certs.NewCA("crash test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ej1", "ej2"} {
		e.lay(t, name, ca)
	}
	e.found(t, ca)
	return e
}

func portOf(address string) int {
	port, _ := strconv.Atoi(address[strings.LastIndexByte(address, ':')+1:])
	return port
}

func (e *ejabberd) lay(t *testing.T, name string, ca *certs.CA) {
	t.Helper()
	n := &peerNode{name: name, dir: filepath.Join(e.dir, name), port: portOf(freeAddress(t))}
	err := os.MkdirAll(filepath.Join(n.dir, "spool"), 0o755)
	if err == nil {
		cert, key, e := ca.Issue(time.Now(), domain)
		if err = e; err == nil {
			err = certs.WriteFiles(filepath.Join(n.dir, "cert.pem"), filepath.Join(n.dir, "key.pem"), cert, key)
		}
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(n.dir, "ejabberd.yml"), fmt.Appendf(nil, ejabberdConfig, n.dir, n.port), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	e.nodes = append(e.nodes, n)
}

// found starts both, makes the accounts and joins them.
func (e *ejabberd) found(t *testing.T, ca *certs.CA) {
	t.Helper()
	caFile := filepath.Join(e.dir, "ca.pem")
	if err := os.WriteFile(caFile, ca.PEM(), 0o644); err != nil {
		t.Fatal(err)
	}
	var users []target.User
	var register strings.Builder
	for i := range crowdSize {
		u := target.User{Local: fmt.Sprintf("p%02d", i), Domain: domain, Password: target.Secret(fmt.Sprintf("secret-%02d", i))}
		users = append(users, u)
		fmt.Fprintf(&register, "ejabberd_auth:try_register(<<\"%s\">>, <<\"%s\">>, <<\"%s\">>), ", u.Local, domain, string(u.Password))
	}
	first, second := e.nodes[0], e.nodes[1]
	e.start(t, first, register.String()+e.done(first))
	e.awaitFile(t, first)
	e.start(t, second, `ok = ejabberd_cluster:join('ej1@localhost'), true = lists:member('ej1@localhost', nodes()), `+e.done(second))
	e.awaitFile(t, second)
	var places []place
	for _, n := range e.nodes {
		e.await(t, n)
		places = append(places, place{n.name, func() string { return fmt.Sprintf("127.0.0.1:%d", n.port) }})
	}
	e.devices = devicesFor(t, users, places, caFile, "SCRAM-SHA-1")
}

// done is the end of what a node evaluates when it has started.
func (e *ejabberd) done(n *peerNode) string {
	return fmt.Sprintf("ok = file:write_file(\"%s/done\", <<\"done\">>).", n.dir)
}

// start runs a node; eval is evaluated once ejabberd runs.
func (e *ejabberd) start(t *testing.T, n *peerNode, eval string) {
	t.Helper()
	args := []string{"-noinput", "+K", "true", "-sname", n.name + "@localhost", "-setcookie", "chaos", "-kernel", "inet_dist_use_interface", "{127,0,0,1}",
		"-mnesia", "dir", `"` + filepath.Join(n.dir, "spool") + `"`, "-s", "ejabberd"}
	if eval != "" {
		args = append(args, "-eval", "timer:sleep(1500), "+eval)
	}
	out, err := os.OpenFile(filepath.Join(n.dir, "out.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	n.cmd = exec.Command("erl", args...)
	n.cmd.Dir, n.cmd.Stdout, n.cmd.Stderr = n.dir, out, out
	n.cmd.Env = append(os.Environ(), "HOME="+n.dir, "ERL_LIBS="+e.libs, "ERL_EPMD_PORT="+strconv.Itoa(e.epmdPort),
		"EJABBERD_CONFIG_PATH="+filepath.Join(n.dir, "ejabberd.yml"), "EJABBERD_LOG_PATH="+filepath.Join(n.dir, "ejabberd.log"),
		"ERL_CRASH_DUMP="+filepath.Join(n.dir, "crash.dump"))
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	n.exited = make(chan struct{})
	go func(cmd *exec.Cmd, exited chan struct{}) { _ = cmd.Wait(); close(exited) }(n.cmd, n.exited)
}

func (e *ejabberd) awaitFile(t *testing.T, n *peerNode) {
	t.Helper()
	if !eventually(time.Minute, 100*time.Millisecond, func() bool { _, err := os.Stat(filepath.Join(n.dir, "done")); return err == nil }) {
		t.Fatalf("%s did not get ready: %s", n.name, e.words(n))
	}
}

func (e *ejabberd) await(t *testing.T, n *peerNode) {
	t.Helper()
	if !eventually(time.Minute, 100*time.Millisecond, func() bool { return reachable(n.port) }) {
		t.Fatalf("%s does not listen: %s", n.name, e.words(n))
	}
}

func reachable(port int) bool {
	_, err := command("bash", "-c", fmt.Sprintf("exec 3<>/dev/tcp/127.0.0.1/%d", port))
	return err == nil
}

func (e *ejabberd) words(n *peerNode) string {
	var all []byte
	for _, f := range []string{"out.log", "ejabberd.log"} {
		b, _ := os.ReadFile(filepath.Join(n.dir, f)) // may not be there
		all = append(all, b[max(0, len(b)-2000):]...)
	}
	return string(bytes.TrimSpace(all))
}

func (e *ejabberd) end() {
	for _, n := range e.nodes {
		if n.cmd != nil {
			_ = n.cmd.Process.Kill()
			<-n.exited
		}
	}
	_ = e.epmd.Process.Kill()
	_ = e.epmd.Wait()
	_ = os.RemoveAll(e.dir)
}
