package demo

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"muster/edges/http/adminapi"
	"muster/fsm/cluster"
	"muster/internal/bootstrap"
	"muster/internal/fault"
	"muster/internal/scram"
	"muster/log"
	"muster/replication"
	"muster/replication/pki"
)

// Runner runs a cluster in the foreground.
type Runner struct {
	Plan    Plan
	Binary  string    // musterd
	Release string    // as the nodes introduce themselves
	Out     io.Writer // what happens, for people

	cluster *Cluster
	exits   chan exit
}

// exit is the end of a node's process.
type exit struct {
	node int
	pid  int
	err  error
}

// Run brings the cluster up (the one in the folder, or a new one), says where
// it is, and stops it when ctx ends. A node that dies is reported and left dead.
func (r *Runner) Run(ctx context.Context) error {
	r.exits = make(chan exit, MaxNodes)
	binary, err := filepath.Abs(r.Binary)
	if err != nil {
		return fault.Wrap(err, fault.BadRequest, "demo.run", r.Binary)
	}
	r.Binary = binary
	r.cluster, err = Load(r.Plan.Dir)
	switch {
	case err == nil:
		err = r.restart(ctx)
	case fault.Is(err, fault.NotFound):
		err = r.found(ctx)
	}
	if err == nil {
		r.describe()
		r.watch(ctx)
	}
	if stopErr := r.stop(); err == nil {
		err = stopErr
	}
	if ctx.Err() != nil && fault.Is(err, fault.Timeout) {
		return nil // interrupted while coming up
	}
	return err
}

func (r *Runner) say(format string, args ...any) { fmt.Fprintf(r.Out, format+"\n", args...) }

// found makes a new cluster.
func (r *Runner) found(ctx context.Context) (err error) {
	if r.cluster, err = r.Plan.lay(); err != nil {
		return err
	}
	for i := range r.cluster.Nodes {
		if err := r.enrol(ctx, i); err != nil {
			return err
		}
		if err := r.launch(ctx, i); err != nil {
			return err
		}
		if err := r.ready(ctx, i); err != nil {
			return err
		}
	}
	if err := r.populate(ctx); err != nil {
		return err
	}
	if err := r.redundant(ctx); err != nil {
		return err
	}
	return r.cluster.save()
}

// redundant waits until so many nodes vote that any one may go: a new member gets its vote a moment after it joined.
func (r *Runner) redundant(ctx context.Context) error {
	want := min(len(r.cluster.Nodes), 5)
	if want%2 == 0 {
		want--
	}
	first := r.cluster.Nodes[0]
	return first.await(ctx, readyTime, nil, "does not report enough voters", func(ctx context.Context) bool {
		var got adminapi.Replication
		if first.client().Call(ctx, http.MethodGet, "/replication", nil, &got) != nil {
			return false
		}
		voters := 0
		for _, n := range got.Nodes {
			if n.Voter {
				voters++
			}
		}
		for _, l := range got.Logs {
			n := 0
			for _, row := range l.Nodes {
				if row.Voter {
					n++
				}
			}
			if n < min(want, 3) {
				return false
			}
		}
		return voters >= want
	})
}

// enrol gives a node its identity: the first founds the cluster, the others join it.
func (r *Runner) enrol(ctx context.Context, i int) error {
	n := &r.cluster.Nodes[i]
	conf, err := bootstrap.Load(n.Config)
	if err != nil {
		return err
	}
	me := cluster.Member{Name: n.Name, ClusterAddr: conf.ClusterAdvertise, Addrs: conf.Listeners(), Software: r.Release, NewestVersion: log.NewestVersion}
	var id *pki.Identity
	if i == 0 {
		id, err = replication.Init(replication.InitOptions{Dir: n.Data, ClusterName: "demo", Node: me, Domain: r.cluster.Domain})
	} else {
		id, err = r.join(ctx, n.Data, me)
	}
	if err == nil {
		n.ID = id.NodeID
	}
	return err
}

func (r *Runner) join(ctx context.Context, data string, me cluster.Member) (*pki.Identity, error) {
	first := r.cluster.Nodes[0]
	var invitation adminapi.Token
	if err := first.client().Call(ctx, http.MethodPost, "/tokens", nil, &invitation); err != nil {
		return nil, err
	}
	token, err := pki.ParseToken(invitation.Token)
	if err != nil {
		return nil, err
	}
	return replication.Join(ctx, replication.JoinOptions{Dir: data, Addr: first.Addresses.Cluster, Token: token, Node: me})
}

// launch starts a node's process and waits until it answers on its socket.
func (r *Runner) launch(ctx context.Context, i int) error {
	n := &r.cluster.Nodes[i]
	pid, exited, err := n.start(r.Binary)
	if err != nil {
		return err
	}
	n.PID = pid
	seen := make(chan error, 1)
	go func() {
		err := <-exited
		seen <- err
		r.exits <- exit{i, pid, err}
	}()
	return n.await(ctx, answerTime, seen, "did not answer", n.answers)
}

func (r *Runner) ready(ctx context.Context, i int) error {
	n := r.cluster.Nodes[i]
	if err := n.await(ctx, readyTime, nil, "is not ready", n.serves); err != nil {
		return err
	}
	r.say("%s is up (process %d)", n.Name, n.PID)
	return nil
}

// restart starts all nodes of the cluster that is there; those that run already are left alone.
func (r *Runner) restart(ctx context.Context) error {
	if len(r.cluster.Nodes) != r.Plan.Nodes || r.cluster.Domain != r.Plan.Domain {
		r.say("%s holds a cluster of %d nodes for %s: it is started; CLEAN=1 makes a new one", r.Plan.Dir, len(r.cluster.Nodes), r.cluster.Domain)
	}
	for i, n := range r.cluster.Nodes {
		if n.running() {
			return fault.New(fault.Conflict, "demo.run", n.Name, fmt.Sprintf("%s runs already (process %d): stop that cluster first", n.Name, n.PID))
		}
		if err := r.launch(ctx, i); err != nil {
			return err
		}
	}
	if err := r.cluster.save(); err != nil {
		return err
	}
	for i := range r.cluster.Nodes {
		if err := r.ready(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// populate makes the administrator and the users.
func (r *Runner) populate(ctx context.Context) error {
	c := r.cluster
	c.Admin = User{"admin@" + c.Domain, password()}
	names := []string{"alice", "bob", "carol"}
	if r.Plan.Users > 0 {
		names = names[:0]
		for i := range r.Plan.Users {
			names = append(names, "user"+strconv.Itoa(i+1))
		}
	}
	for _, name := range names {
		c.Users = append(c.Users, User{name + "@" + c.Domain, password()})
	}
	all := append([]User{c.Admin}, c.Users...)
	for start := 0; start < len(all); start += adminapi.MaxBatch {
		part := all[start:min(start+adminapi.MaxBatch, len(all))]
		batch, err := newUsers(part)
		if err != nil {
			return err
		}
		if start == 0 {
			batch[0].Admin, batch[0].DisplayName = true, "Administrator"
		}
		var got []adminapi.Outcome
		if err := c.Nodes[0].client().Call(ctx, http.MethodPost, "/users", batch, &got); err != nil {
			return err
		}
		for _, o := range got {
			if o.Code != "" {
				return fault.New(fault.Internal, "demo.users", o.Subject, o.Subject+": "+o.Text)
			}
		}
	}
	return nil
}

// newUsers derives the users' verifiers on all processors, with the fewest iterations that clients accept: these are trial accounts.
func newUsers(users []User) ([]adminapi.NewUser, error) {
	out, errs := make([]adminapi.NewUser, len(users)), make([]error, len(users))
	var wg sync.WaitGroup
	workers := runtime.GOMAXPROCS(0)
	for w := range workers {
		wg.Go(func() {
			for i := w; i < len(users); i += workers {
				out[i], errs[i] = newUser(users[i])
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

func newUser(u User) (adminapi.NewUser, error) {
	salt := make([]byte, scram.SaltSize)
	_, _ = rand.Read(salt) // never fails
	v256, v1, err := scram.Derive(u.Password, salt, scram.MinIterations)
	local, _, _ := strings.Cut(u.JID, "@")
	as := func(v scram.Verifier) *adminapi.Verifier {
		return &adminapi.Verifier{Iterations: v.Iterations, Salt: v.Salt, StoredKey: v.StoredKey, ServerKey: v.ServerKey}
	}
	return adminapi.NewUser{JID: u.JID, DisplayName: strings.ToUpper(local[:1]) + local[1:], SHA256: as(v256), SHA1: as(v1)}, err
}

// password makes a random password of 75 bits without letters that look alike.
func password() string {
	const letters = "abcdefghijkmnpqrstuvwxyz23456789"
	var b [15]byte
	_, _ = rand.Read(b[:]) // never fails
	for i := range b {
		b[i] = letters[b[i]%32]
	}
	return string(b[:])
}

// describe says what there is and what to do next.
func (r *Runner) describe() {
	c := r.cluster
	r.say("\nCluster for %s with %d nodes:", c.Domain, len(c.Nodes))
	for _, n := range c.Nodes {
		r.say("  %s  STARTTLS %s  direct TLS %s  https://%s/health/ready  process %d", n.Name, n.Addresses.Client, n.Addresses.ClientTLS, n.Addresses.HTTPS, n.PID)
	}
	r.say("\nUsers:\n  %s  %s  (administrator)", c.Admin.JID, c.Admin.Password)
	const shown = 5
	for i, u := range c.Users {
		if i == shown {
			r.say("  … and %d more in %s", len(c.Users)-shown, file(c.dir))
			break
		}
		r.say("  %s  %s", u.JID, u.Password)
	}
	r.say("\nWhat to do next:")
	r.say("  log in with any XMPP client: address as above, server %s, and trust %s", c.Nodes[0].Addresses.Client, c.CA)
	r.say("  bin/muster --data %s status", c.Nodes[0].Data)
	r.say("  bin/muster --data %s replication runtimestate", c.Nodes[0].Data)
	r.say("  kill -9 a process and watch; make run-node NODE=2 starts node 2 again")
	r.say("Everything is described in %s. Ctrl-C stops the cluster; make run starts it again, make run CLEAN=1 a new one.", file(c.dir))
}

// watch reports nodes that end or come back until ctx ends.
func (r *Runner) watch(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-r.exits:
			n := r.cluster.Nodes[e.node]
			r.say("%s (process %d) has ended: %s. Its messages are in %s; make run-node NODE=%d starts it again", n.Name, e.pid, exitText(e.err), n.Log, e.node+1)
		case <-tick.C:
			r.reread()
		}
	}
}

// reread takes in what run-node wrote to the description.
func (r *Runner) reread() {
	c, err := Load(r.cluster.dir)
	if err != nil || len(c.Nodes) != len(r.cluster.Nodes) {
		return
	}
	for i, n := range c.Nodes {
		if n.PID != r.cluster.Nodes[i].PID {
			r.cluster.Nodes[i].PID = n.PID
			r.say("%s runs again (process %d)", n.Name, n.PID)
		}
	}
}

// stop ends all nodes at once.
func (r *Runner) stop() error {
	if r.cluster == nil {
		return nil
	}
	r.reread()
	r.say("stopping …")
	errs := make([]error, len(r.cluster.Nodes))
	var wg sync.WaitGroup
	for i, n := range r.cluster.Nodes {
		wg.Go(func() { errs[i] = n.stop() })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	r.say("stopped")
	return nil
}

// RunNode starts one node (counted from 1) of the cluster in dir again, notes
// its process in the description, and returns when it serves clients or says why it waits.
func RunNode(ctx context.Context, dir, binary string, number int, out io.Writer) error {
	c, err := Load(dir)
	if err != nil {
		return err
	}
	if number < 1 || number > len(c.Nodes) {
		return fault.New(fault.NotFound, "demo.node", strconv.Itoa(number), fmt.Sprintf("the cluster has the nodes 1 to %d: write NODE=2", len(c.Nodes)))
	}
	if binary, err = filepath.Abs(binary); err != nil {
		return fault.Wrap(err, fault.BadRequest, "demo.node", binary)
	}
	n := c.Nodes[number-1]
	pid, exited, err := n.start(binary)
	if err != nil {
		return err
	}
	if err := setPID(dir, number-1, pid); err != nil {
		return err
	}
	if err := n.await(ctx, answerTime, exited, "did not answer", n.answers); err != nil {
		return err
	}
	if err := n.await(ctx, readyTime, exited, "is not ready", n.serves); err != nil {
		if fault.Is(err, fault.Timeout) {
			fmt.Fprintf(out, "%s runs (process %d) and waits: see bin/muster --data %s services\n", n.Name, pid, n.Data)
			return nil
		}
		return err
	}
	fmt.Fprintf(out, "%s is up (process %d)\n", n.Name, pid)
	return nil
}
