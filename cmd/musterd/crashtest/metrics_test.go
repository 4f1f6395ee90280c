//go:build (crash || chaos) && linux

package crashtest

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// metrics are the values of a node's /metrics page, by name with labels.
type metrics map[string]float64

func (n *node) metrics() (metrics, error) {
	status, body, err := n.get("/metrics")
	if err != nil {
		return nil, err
	}
	if status != 200 {
		return nil, fmt.Errorf("status %d", status)
	}
	m := metrics{}
	for line := range bytes.Lines(body) {
		name, value, ok := strings.Cut(strings.TrimSpace(string(line)), " ")
		if i := strings.LastIndexByte(value, ' '); i >= 0 { // a label's value had a space
			name, value = name+" "+value[:i], value[i+1:]
		}
		if v, err := strconv.ParseFloat(value, 64); ok && err == nil && name[0] != '#' {
			m[name] = v
		}
	}
	return m, nil
}

// leads reports whether the node says that it leads the control log, and in which term.
func (n *node) leads() (yes bool, term float64) {
	m, err := n.metrics()
	if err != nil {
		return false, 0
	}
	return m[`muster_log_leader{log="control"}`] == 1, m[`muster_log_term{log="control"}`]
}

// leader returns the node that leads in the highest term; nil if none says so.
func leader(nodes []*node) (who *node, term float64) {
	for _, n := range nodes {
		if yes, at := n.leads(); yes && at > term {
			who, term = n, at
		}
	}
	return who, term
}

// mustLeader waits for a leader.
func (c *testCluster) mustLeader() (who *node, term float64) {
	if !eventually(10*time.Second, 50*time.Millisecond, func() bool { who, term = leader(c.nodes); return who != nil }) {
		c.t.Fatal("no leader")
	}
	return who, term
}

// resident is the process's resident memory of its own, in bytes. Pages of
// mapped files, such as the log's, belong to the system, which takes them back when it needs them.
func (n *node) resident() int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				return 0
			}
			return kib << 10
		}
	}
	return 0
}
