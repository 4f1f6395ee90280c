package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"muster/edges/http/adminapi"
	"muster/internal/fault"
)

// Times of a node's process.
const (
	answerTime = 30 * time.Second // from its start to an answer on its socket
	readyTime  = 60 * time.Second // from then until it serves clients
	stopTime   = 20 * time.Second // from SIGTERM to its end
	lookStep   = 100 * time.Millisecond
)

// running reports whether something answers on the node's administrative socket.
func (n Node) running() bool {
	c, err := net.DialTimeout("unix", filepath.Join(n.Data, adminapi.SocketName), time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// start runs the node's process in a session of its own, so that a Ctrl-C
// reaches only the caller. exited gets its end.
func (n Node) start(binary string) (pid int, exited <-chan error, err error) {
	if n.running() {
		return 0, nil, fault.New(fault.Conflict, "demo.start", n.Name, fmt.Sprintf("%s runs already (process %d)", n.Name, n.PID))
	}
	out, err := os.OpenFile(n.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, nil, fault.Wrap(err, fault.Forbidden, "demo.start", n.Log)
	}
	defer out.Close()
	cmd := exec.Command(binary, "--config", n.Config)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return 0, nil, &fault.Error{Code: fault.NotFound, Op: "demo.start", Subject: binary, Text: "cannot run " + binary + "; make build makes it", Err: err}
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	return cmd.Process.Pid, done, nil
}

// client returns a client of the node's administrative socket.
func (n Node) client() *adminapi.Client { return adminapi.NewClient(n.Data) }

// await polls until check returns true, the process ends, or the time is over.
func (n Node) await(ctx context.Context, limit time.Duration, exited <-chan error, what string, check func(context.Context) bool) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for !check(ctx) {
		select {
		case err := <-exited:
			return fault.New(fault.Unavailable, "demo.start", n.Name, fmt.Sprintf("%s ended (%v); its messages are in %s", n.Name, exitText(err), n.Log))
		case <-ctx.Done():
			return fault.New(fault.Timeout, "demo.start", n.Name, fmt.Sprintf("%s %s within %s; its messages are in %s", n.Name, what, limit, n.Log))
		case <-time.After(lookStep):
		}
	}
	return nil
}

func exitText(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}

// answers reports whether the node's API works.
func (n Node) answers(ctx context.Context) bool {
	var s adminapi.Services
	return n.client().Call(ctx, http.MethodGet, "/services", nil, &s) == nil
}

// serves reports whether every service of the node runs.
func (n Node) serves(ctx context.Context) bool {
	var list adminapi.Services
	if n.client().Call(ctx, http.MethodGet, "/services", nil, &list) != nil {
		return false
	}
	for _, s := range list.Services {
		if s.State != "STARTED" {
			return false
		}
	}
	return len(list.Services) > 0
}

// stop ends the node's process if it runs: politely, and after stopTime by force.
func (n Node) stop() error {
	if n.PID == 0 || !n.running() {
		return nil
	}
	if err := syscall.Kill(n.PID, syscall.SIGTERM); err != nil {
		if errors.Is(err, syscall.ESRCH) {
			return nil
		}
		return fault.Wrap(err, fault.Forbidden, "demo.stop", n.Name)
	}
	for end := time.Now().Add(stopTime); time.Now().Before(end); time.Sleep(lookStep) {
		if !alive(n.PID) {
			return nil
		}
	}
	_ = syscall.Kill(n.PID, syscall.SIGKILL) // it is gone or goes now
	return fault.New(fault.Timeout, "demo.stop", n.Name, fmt.Sprintf("%s did not stop within %s and was killed", n.Name, stopTime))
}

// alive reports whether a process exists and is no zombie that only its parent can bury.
func alive(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true // no such file system: the signal's word counts
	}
	for i := len(b) - 1; i > 0; i-- { // the state follows the command's closing parenthesis
		if b[i] == ')' {
			return i+2 >= len(b) || b[i+2] != 'Z'
		}
	}
	return true
}
