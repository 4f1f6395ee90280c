package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sort"
	"strings"
	"time"

	"muster/edges/http/adminapi"
	"muster/replication"
)

type statusCmd struct {
	JSON bool `help:"Print JSON."`
}

// Run shows the cluster's summary.
func (c *statusCmd) Run(a *app) error {
	var s adminapi.Status
	if err := a.node.Call(a.ctx, http.MethodGet, "/status", nil, &s); err != nil {
		return err
	}
	if c.JSON {
		return printJSON(a.out, s)
	}
	ready := "ready"
	if !s.Ready {
		ready = "not ready: " + s.Reason
	}
	fmt.Fprintf(a.out, "Cluster %s (%s), seen from %s (muster %s), which is %s\n", s.Cluster, s.ClusterID, s.Node, s.Version, ready)
	fmt.Fprintf(a.out, "Domains %s; %d users, %d sessions available; assignment %s\n", orDash(strings.Join(s.Domains, ", ")), s.Users, s.Sessions, s.Mode)
	if !s.Complete {
		fmt.Fprintln(a.out, "Installation is not complete:", s.Missing)
	}
	fmt.Fprintln(a.out)
	if err := printNodes(a.out, s.Nodes); err != nil {
		return err
	}
	if err := printLogs(a.out, s.Logs); err != nil {
		return err
	}
	fmt.Fprintln(a.out)
	if err := printCertificates(a, s.Certs); err != nil || len(s.Alarms) == 0 {
		return err
	}
	fmt.Fprintln(a.out)
	return printAlarms(a, s.Alarms)
}

func printNodes(out io.Writer, nodes []adminapi.ReplicationNode) error {
	t := newTable(out, "NODE", "ROLE", "UP", "REACHED", "VOTER", "TERM", "COMMIT", "APPLIED", "LAG", "DISK P99", "RELEASE", "REPLICATION")
	for _, n := range nodes {
		role := n.Role
		if n.Publisher {
			role += ", publisher"
		}
		state := fmt.Sprintf("(%d) %s", n.State, n.Detail)
		if n.Reason != "" {
			state += ": " + n.Reason
		}
		t.row(n.Name, strings.TrimPrefix(role, ", "), yes(n.Up), yes(n.Reachable), yes(n.Voter), fmt.Sprint(n.Term), fmt.Sprint(n.Commit), fmt.Sprint(n.Applied),
			fmt.Sprint(n.Lag), fmt.Sprintf("%.1f ms", n.DiskP99MS), orDash(n.Version), state)
	}
	return t.flush()
}

// printLogs shows the logs beside the control log, a table each.
func printLogs(out io.Writer, logs []adminapi.LogReplication) error {
	for _, l := range logs {
		fmt.Fprintln(out)
		t := newTable(out, strings.ToUpper(l.Log)+" LOG", "ROLE", "VOTER", "TERM", "COMMIT", "APPLIED", "LAG", "DISK P99", "ON DISK", "REPLICATION")
		for _, n := range l.Nodes {
			state := fmt.Sprintf("(%d) %s", n.State, n.Detail)
			if n.Reason != "" {
				state += ": " + n.Reason
			}
			t.row(n.Name, n.Role, yes(n.Voter), fmt.Sprint(n.Term), fmt.Sprint(n.Commit), fmt.Sprint(n.Applied), fmt.Sprint(n.Lag),
				fmt.Sprintf("%.1f ms", n.DiskP99MS), humanBytes(n.DiskBytes), state)
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	return nil
}

type replicationCmd struct {
	Runtimestate runtimestateCmd      `cmd:"" help:"Show the replication state of every node, in the reference product's table."`
	Status       replicationStatusCmd `cmd:"" help:"Compare every table of every node at one log index."`
}

type runtimestateCmd struct {
	JSON bool `help:"Print JSON."`
}

// Run shows the table.
func (c *runtimestateCmd) Run(a *app) error {
	var r adminapi.Replication
	if err := a.node.Call(a.ctx, http.MethodGet, "/replication", nil, &r); err != nil {
		return err
	}
	if c.JSON {
		return printJSON(a.out, r)
	}
	writeRuntimestate(a.out, r)
	return printLogs(a.out, r.Logs) // below what scripts read
}

// writeRuntimestate writes the layout that monitoring scripts of the reference
// product read: they look for "Y/Y/Y" and "(2) Setup Completed".
func writeRuntimestate(w io.Writer, r adminapi.Replication) {
	fmt.Fprintf(w, "\nServer Time: %s\n\n", r.Time.Local().Format("Mon Jan _2 15:04:05 MST 2006"))
	ended, status := r.Time.Local().Format("2006-01-02-15-04"), "All Tables are in sync"
	synced := r.Tables - len(r.Differ)
	if !r.Equal {
		status = "Errors or Mismatches Were Found!!! (" + strings.Join(r.Differ, ", ") + ")"
	}
	fmt.Fprintf(w, "Cluster Replication State: BROADCAST SYNC ended at: %s\n", ended)
	fmt.Fprintf(w, "     Sync Result: SYNC COMPLETED on %d tables out of %d\n", synced, r.Tables)
	fmt.Fprintf(w, "     Sync Status: %s\n", status)
	fmt.Fprintf(w, "     Use CLI to see detail: 'muster replication status'\n\n")
	fmt.Fprintf(w, "DB Version: muster_%s\n\n", strings.NewReplacer(".", "_", "-", "_").Replace(r.Version))
	fmt.Fprintf(w, "Repltimeout set to: 300s\nPROCESS option set to: 1\n\n")
	fmt.Fprintf(w, "Cluster Detailed View from %s (%d Servers):\n\n", r.Node, len(r.Nodes))
	name, ip := len("SERVER-NAME"), len("IP ADDRESS")
	for _, n := range r.Nodes {
		name, ip = max(name, len(n.Name)), max(ip, len(hostOf(n.Address)))
	}
	name, ip = max(name, 16), max(ip, 14)
	row := fmt.Sprintf("%%-%ds    %%-%ds    %%-6s    %%-7s   %%-5s    %%-11s    %%s\n", name, ip)
	fmt.Fprintf(w, row, "", "", "PING", "DB/RPC/", "REPL.", "Replication", "REPLICATION SETUP")
	fmt.Fprintf(w, row, "SERVER-NAME", "IP ADDRESS", "(msec)", "DbMon?", "QUEUE", "Group ID", "(RTMT) & Details")
	fmt.Fprintf(w, row, "-----------", "----------", "------", "-------", "-----", "-----------", "------------------")
	for _, n := range r.Nodes {
		fmt.Fprintf(w, row, n.Name, hostOf(n.Address), fmt.Sprintf("%.3f", n.PingMS), reach(n), fmt.Sprint(n.Lag), fmt.Sprintf("(g_%d)", n.ID),
			fmt.Sprintf("(%d) %s", n.State, n.Detail))
	}
}

// reach renders the DB/RPC/DbMon column: the node answers, its state is known, it reports nothing wrong.
func reach(n adminapi.ReplicationNode) string {
	letter := func(ok bool) string {
		if ok {
			return "Y"
		}
		return "N"
	}
	return letter(n.Reachable) + "/" + letter(n.Reachable && n.Applied > 0) + "/" + letter(n.Reachable && n.Monitor)
}

func hostOf(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return address
}

type replicationStatusCmd struct {
	JSON bool `help:"Print JSON."`
}

// Run compares digests; a difference in any log makes the command fail.
func (c *replicationStatusCmd) Run(a *app) error {
	begun := time.Now()
	var d adminapi.Digests
	if err := a.node.Call(a.ctx, http.MethodGet, "/replication/digests", nil, &d); err != nil {
		return err
	}
	if c.JSON {
		if err := printJSON(a.out, d); err != nil {
			return err
		}
	}
	differ := 0
	var missing []string
	for _, l := range append([]adminapi.Digests{d}, d.Logs...) {
		n := differing(l)
		differ += n
		for _, name := range l.Missing {
			if !slices.Contains(missing, name) {
				missing = append(missing, name)
			}
		}
		if !c.JSON {
			printDigests(a.out, l, begun, n)
		}
	}
	switch {
	case differ > 0:
		return &outcome{differStatus, fmt.Sprintf("%d tables differ between nodes", differ)}
	case len(missing) > 0:
		return &outcome{differStatus, "no answer from " + strings.Join(missing, ", ")}
	}
	return nil
}

func differing(d adminapi.Digests) (n int) {
	for _, t := range d.Tables {
		if !t.Equal {
			n++
		}
	}
	return n
}

func printDigests(w io.Writer, d adminapi.Digests, begun time.Time, differ int) {
	if d.Log != replication.ControlLog {
		fmt.Fprintf(w, "\nThe %s log:\n", d.Log)
	}
	fmt.Fprintf(w, "Replication status command started at: %s\n", begun.Local().Format("2006-01-02-15-04"))
	fmt.Fprintf(w, "Replication status command COMPLETED. Checked %d tables out of %d at log index %d\n", len(d.Tables), len(d.Tables), d.Index)
	if n := len(d.Tables); n > 0 {
		fmt.Fprintf(w, "Last Completed Table: %s\n", d.Tables[n-1].Table)
	}
	if differ == 0 {
		fmt.Fprintln(w, "No Errors or Mismatches found.")
	} else {
		fmt.Fprintln(w, "Errors or Mismatches Were Found!!!")
	}
	if len(d.Missing) > 0 {
		fmt.Fprintln(w, "No answer from:", strings.Join(d.Missing, ", "))
	}
	fmt.Fprintln(w)
	t := newTable(w, "TABLE", "RESULT", "DIGESTS")
	for _, v := range d.Tables {
		t.row(v.Table, map[bool]string{true: "match", false: "MISMATCH"}[v.Equal], digestsOf(v))
	}
	_ = t.flush() // the terminal went away
}

// digestsOf renders the one digest, or who has which.
func digestsOf(t adminapi.TableDigest) string {
	names := make([]string, 0, len(t.Digests))
	for n := range t.Digests {
		names = append(names, n)
	}
	sort.Strings(names)
	if t.Equal && len(names) > 0 {
		return t.Digests[names[0]]
	}
	for i, n := range names {
		names[i] = n + "=" + t.Digests[n]
	}
	return strings.Join(names, " ")
}
