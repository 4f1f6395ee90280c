package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"muster/edges/http/adminapi"
	"muster/fsm"
	"muster/internal/fault"
	"muster/replication"
)

// clusterHealth is what two nodes in good health report.
func clusterHealth() []replication.NodeHealth {
	digests := []fsm.TableDigest{{Table: "user.users", Digest: 1}, {Table: "roster.items", Digest: 2}}
	status := func(id uint32, role string) replication.Status {
		return replication.Status{Node: id, Role: role, Voter: true, Term: 3, Leader: 1, Commit: 40, Applied: 40, FirstLog: 1, DiskP99: 3 * time.Millisecond}
	}
	return []replication.NodeHealth{
		{Node: 1, Name: "node1", Reachable: true, Version: "1.0", Status: status(1, "leader"), Ping: 20 * time.Microsecond, Index: 38, Digests: digests},
		{Node: 2, Name: "node2", Reachable: true, Version: "1.0", Status: status(2, "follower"), Ping: 256 * time.Microsecond, Index: 38, Digests: digests},
	}
}

// TestRuntimestateLayout holds the layout that scripts for the reference product read, column by column.
func TestRuntimestateLayout(t *testing.T) {
	at := time.Date(2024, 4, 2, 15, 16, 4, 0, time.Local)
	r := adminapi.Replication{Time: at, Node: "imp1", Version: "1.2.3", Tables: 24, Equal: true, Nodes: []adminapi.ReplicationNode{
		{ID: 2, Name: "imp1", Address: "198.18.133.3:7400", PingMS: 0.02, Applied: 9, Reachable: true, Monitor: true, State: 2, Detail: "Setup Completed"},
		{ID: 5, Name: "imp2", Address: "198.18.133.33:7400", PingMS: 0.256, Applied: 9, Reachable: true, Monitor: true, Lag: 579, State: 2, Detail: "Setup Completed"},
	}}
	var out bytes.Buffer
	writeRuntimestate(&out, r)
	want := `
Server Time: ` + at.Format("Mon Jan _2 15:04:05 MST 2006") + `

Cluster Replication State: BROADCAST SYNC ended at: 2024-04-02-15-16
     Sync Result: SYNC COMPLETED on 24 tables out of 24
     Sync Status: All Tables are in sync
     Use CLI to see detail: 'muster replication status'

DB Version: muster_1_2_3

Repltimeout set to: 300s
PROCESS option set to: 1

Cluster Detailed View from imp1 (2 Servers):

                                      PING      DB/RPC/   REPL.    Replication    REPLICATION SETUP
SERVER-NAME         IP ADDRESS        (msec)    DbMon?    QUEUE    Group ID       (RTMT) & Details
-----------         ----------        ------    -------   -----    -----------    ------------------
imp1                198.18.133.3      0.020     Y/Y/Y     0        (g_2)          (2) Setup Completed
imp2                198.18.133.33     0.256     Y/Y/Y     579      (g_5)          (2) Setup Completed
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

func TestRuntimestateOfATroubledCluster(t *testing.T) {
	s := newShell(t)
	s.w.Health = clusterHealth()
	contains(t, s.must("replication", "runtimestate"), "All Tables are in sync", "SYNC COMPLETED on 2 tables out of 2", "Y/Y/Y", "(2) Setup Completed")
	s.w.Health[1].Digests = []fsm.TableDigest{{Table: "user.users", Digest: 9}, {Table: "roster.items", Digest: 2}}
	contains(t, s.must("replication", "runtimestate"), "Errors or Mismatches Were Found!!! (user.users)", "SYNC COMPLETED on 1 tables out of 2", "(3) Mismatched / suspended")
	s.w.Health[1] = replication.NodeHealth{Node: 2, Name: "node2", Reason: "connection refused"}
	contains(t, s.must("replication", "runtimestate"), "N/N/N", "(4) Setup Failed/Dropped", "40 ")
	var r adminapi.Replication
	if err := json.Unmarshal([]byte(s.must("replication", "runtimestate", "--json")), &r); err != nil {
		t.Fatal(err)
	}
	if r.State != 4 || r.Leader != "node1" || r.Nodes[1].Reason != "connection refused" || r.Nodes[0].State != 2 || r.Nodes[1].Lag != 40 {
		t.Errorf("JSON: %+v", r)
	}
}

// messageHealth is what the two nodes report of the message log.
func messageHealth() []replication.NodeHealth {
	nodes := clusterHealth()
	for i := range nodes {
		nodes[i].Status.Commit, nodes[i].Status.Applied, nodes[i].Status.DiskBytes = 900, 900, 5<<20
		nodes[i].Digests = []fsm.TableDigest{{Table: "idempotency", Digest: 1}}
	}
	nodes[0].Status.Role, nodes[1].Status.Role = "follower", "leader"
	return nodes
}

// TestMessageLogIsShown: every command that shows the control log's replication shows the message log's, below it.
func TestMessageLogIsShown(t *testing.T) {
	s := newShell(t)
	s.w.Health, s.w.Messages.Nodes = clusterHealth(), messageHealth()
	row := []string{"MESSAGE LOG", "ON DISK", "node2", "leader", "900", "5 MiB"}
	contains(t, s.must("status"), row...)
	out := s.must("replication", "runtimestate")
	contains(t, out, row...)
	if servers, messages, ok := strings.Cut(out, "MESSAGE LOG"); !ok || strings.Count(servers, "Y/Y/Y") != 2 || strings.Contains(messages, "Y/Y/Y") {
		t.Errorf("the servers' table is not what scripts read:\n%s", out)
	}
	s.w.Messages.Nodes[1].Status.Applied, s.w.Messages.Nodes[1].Status.Halted = 700, "kind 99"
	contains(t, s.must("status"), "200", "(4) Setup Failed/Dropped: kind 99", "Installation is not complete: not caught up: node2")
	var r adminapi.Replication
	if err := json.Unmarshal([]byte(s.must("replication", "runtimestate", "--json")), &r); err != nil {
		t.Fatal(err)
	}
	if r.State != 4 || r.Leader != "node1" || len(r.Logs) != 1 || r.Logs[0].Log != "message" || r.Logs[0].Leader != "node2" || r.Logs[0].Nodes[1].Lag != 200 || r.Nodes[1].State != 2 {
		t.Errorf("JSON: %+v", r)
	}

	s.w.Report = replication.Report{Index: 40, Equal: true}
	s.w.Messages.Digests = replication.Report{Index: 900, Equal: false, Tables: []replication.TableReport{{Table: "archive", Digests: map[uint32]uint64{1: 7, 2: 9}}}}
	out, errs, status := s.run("replication", "status")
	if status != differStatus {
		t.Errorf("a difference in the message log exits with %d", status)
	}
	contains(t, out, "No Errors or Mismatches found.", "The message log:", "at log index 900", "MISMATCH", "node1=0000000000000007 node2=0000000000000009")
	contains(t, errs, "1 tables differ")
	s.w.Messages.Digests = replication.Report{Index: 900, Equal: true, Missing: []uint32{2}}
	if _, errs, status = s.run("replication", "status", "--json"); status != differStatus {
		t.Errorf("a node that is missing in the message log exits with %d", status)
	}
	contains(t, errs, "no answer from node2")
}

func TestReplicationStatus(t *testing.T) {
	s := newShell(t)
	s.w.Report = replication.Report{Index: 40, Equal: true, Tables: []replication.TableReport{
		{Table: "user.users", Equal: true, Digests: map[uint32]uint64{1: 7, 2: 7}}, {Table: "roster.items", Equal: true, Digests: map[uint32]uint64{1: 8, 2: 8}}}}
	contains(t, s.must("replication", "status"), "COMPLETED. Checked 2 tables out of 2 at log index 40", "No Errors or Mismatches found.", "0000000000000007", "Last Completed Table: roster.items")
	s.w.Report.Tables[0] = replication.TableReport{Table: "user.users", Digests: map[uint32]uint64{1: 7, 2: 9}}
	out, errs, status := s.run("replication", "status")
	if status != differStatus {
		t.Errorf("a difference exits with %d", status)
	}
	contains(t, out, "Errors or Mismatches Were Found!!!", "MISMATCH", "node1=0000000000000007 node2=0000000000000009")
	contains(t, errs, "1 tables differ")
	s.w.Report = replication.Report{Index: 40, Equal: true, Missing: []uint32{2, 7}}
	out, errs, status = s.run("replication", "status", "--json")
	if status != differStatus || !strings.Contains(out, `"missing"`) {
		t.Errorf("a missing node: status %d, %s", status, out)
	}
	contains(t, errs, "no answer from node2, node 7")
}

func TestStatus(t *testing.T) {
	s := newShell(t)
	s.w.Health = clusterHealth()
	contains(t, s.must("status"), "Cluster Test (c-1), seen from node1", "not ready: client-connections", "Domains example.test; 0 users",
		"leader, publisher", "follower", "3.0 ms", "(2) Setup Completed")
	s.w.Health[1].Version = "1.1"
	contains(t, s.must("status"), "Installation is not complete: nodes run different releases (1.0 and 1.1)")
	s.w.Services = s.w.Services[:1]
	contains(t, s.must("status"), "which is ready")
	var got adminapi.Status
	if err := json.Unmarshal([]byte(s.must("status", "--json")), &got); err != nil || !got.Ready || got.Complete || got.ClusterID != "c-1" || len(got.Groups) == 0 {
		t.Errorf("JSON: %v, %+v", err, got)
	}
}

func TestOutcomeFaultKeepsTheCode(t *testing.T) {
	for _, c := range fault.Codes() {
		if got := outcomeFault(adminapi.Outcome{Subject: "s", Code: c.String(), Text: "t"}); !fault.Is(got, c) {
			t.Errorf("%s became %v", c, got)
		}
	}
	if got := outcomeFault(adminapi.Outcome{Code: "of a newer release"}); !fault.Is(got, fault.Internal) {
		t.Errorf("got %v", got)
	}
}
