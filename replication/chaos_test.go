package replication

import (
	"context"
	"fmt"
	"math/rand"
	"sync"
	"testing"
	"time"
)

// chaosRuns is how many seeds TestChaos tries; each is about half a virtual minute.
const chaosRuns = 8

// TestChaos cuts links, crashes nodes with their unsynced state lost, and
// takes snapshots, while four writers go on. The message log's records and votes are in the file system that the crash strikes. Afterwards every confirmed write
// is there, none was applied twice, and all nodes are equal.
func TestChaos(t *testing.T) {
	for _, name := range []string{ControlLog, MessageLog} {
		for seed := range int64(chaosRuns) {
			t.Run(fmt.Sprint(name, " seed ", seed), func(t *testing.T) {
				bubble(t, func(t *testing.T) { chaos(t, name, rand.New(rand.NewSource(seed))) })
			})
		}
	}
}

// writers propose until they are stopped, and remember what was confirmed.
type writers struct {
	wg        sync.WaitGroup
	stop      chan struct{}
	mu        sync.Mutex
	tried     int
	confirmed []string
}

func (w *writers) run(c *testCluster, name int) {
	for i := 0; ; i++ {
		select {
		case <-w.stop:
			return
		default:
		}
		key := fmt.Sprintf("w%d-%d", name, i)
		w.mu.Lock()
		w.tried++
		w.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		res, err := c.current(uint32((name+i)%5+1)).Propose(ctx, put(key, "v"))
		cancel()
		if err == nil && res[0].Err == nil {
			w.mu.Lock()
			w.confirmed = append(w.confirmed, key)
			w.mu.Unlock()
		}
		time.Sleep(30 * time.Millisecond)
	}
}

// current is the group that a node runs now.
func (c *testCluster) current(id uint32) *Group {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.groups[id]
}

func chaos(t *testing.T, name string, rnd *rand.Rand) {
	c := newClusterOf(t, name, 5, Timing{SnapshotInterval: time.Second, SnapshotThreshold: 20, TrailingLogs: 5})
	w := &writers{stop: make(chan struct{})}
	for name := range 4 {
		w.wg.Go(func() { w.run(c, name) })
	}
	for range 12 {
		a, b := c.nodes[uint32(rnd.Intn(5)+1)], c.nodes[uint32(rnd.Intn(5)+1)]
		switch rnd.Intn(4) {
		case 0:
			c.isolate(a.id, true)
			c.isolate(b.id, true)
		case 1:
			c.net.split(a.addr(), b.addr(), a != b)
		case 2:
			a.crash()
			time.Sleep(time.Duration(rnd.Intn(3000)) * time.Millisecond)
			a.start()
		case 3:
			for id := range c.nodes {
				c.isolate(id, false)
			}
		}
		time.Sleep(time.Duration(rnd.Intn(2500)) * time.Millisecond)
	}
	for id := range c.nodes {
		c.isolate(id, false)
	}
	time.Sleep(10 * time.Second) // healed, the cluster must work again
	close(w.stop)
	w.wg.Wait()
	lead := c.settle(5)
	c.equal(lead)
	for _, n := range c.nodes {
		for _, key := range w.confirmed {
			if n.get(key) != "v" {
				t.Fatalf("node %d lost the confirmed %s", n.id, key)
			}
		}
		if got := len(n.get("count")); got < len(w.confirmed) || got > w.tried {
			t.Errorf("node %d applied %d of %d tried and %d confirmed", n.id, got, w.tried, len(w.confirmed))
		}
		if err := n.machine.VerifyDigests(); err != nil {
			t.Errorf("node %d: %v", n.id, err)
		}
	}
	if len(w.confirmed) < 100 {
		t.Errorf("only %d writes were confirmed", len(w.confirmed))
	}
}
