package router

import (
	"testing"
	"testing/synctest"
	"time"

	"muster/fsm/cluster"
	"muster/log"
)

// TestStartDeclaredDown: a node that was declared down asks for a start; where that is declared down as well before
// the node's log comes to it, the node never sees itself up, and has to ask once more.
func TestStartDeclaredDown(t *testing.T) {
	simulate(t, 2, func(g *rig) {
		g.users(1, "alice")
		g.users(2, "bob")
		g.befriend("bob", "alice")
		time.Sleep(time.Second)
		alice := g.online(1, "alice/a")
		g.online(2, "bob/b")
		alice.want("presence - bob/b ")
		n2 := g.nodes[2]
		g.down(2)
		alice.want("presence unavailable bob/b ")
		next := uint64(len(g.records) + 1) // the start's index is the incarnation
		g.must(cluster.StartEntry(2, "test", log.NewestVersion), cluster.DownEntry(2, next))
		synctest.Wait()
		if n2.fenced != 2 {
			t.Errorf("two incarnations are down, and the node was asked for another start %d times", n2.fenced)
		}
		g.must(cluster.StartEntry(2, "test", log.NewestVersion))
		time.Sleep(time.Second)
		if st := n2.r.Status(); st.Fenced || st.Isolated {
			t.Errorf("the node is up, and fenced: %v, isolated: %v", st.Fenced, st.Isolated)
		}
		alice.want("presence - bob/b ")
	})
}

// TestStartUnseen: rows of a node's new incarnation may come before the log tells of its start. Where the log then
// tells of the start and of its end at once, as a snapshot does, they go.
func TestStartUnseen(t *testing.T) {
	simulate(t, 2, func(g *rig) {
		g.users(1, "alice")
		g.users(2, "bob")
		g.befriend("bob", "alice")
		time.Sleep(time.Second)
		alice := g.online(1, "alice/a")
		g.online(2, "bob/b")
		alice.want("presence - bob/b ")
		n1, n2 := g.nodes[1], g.nodes[2]
		n1.deaf.Store(true)
		n2.inc = cluster.IncarnationResult(g.must(cluster.StartEntry(2, "test", log.NewestVersion)).Value)
		time.Sleep(time.Second)
		if row, _ := n1.hot.Row(addr("bob"), "b"); row.Incarnation != n2.inc {
			t.Fatalf("node 1 has a row of incarnation %d, not of %d", row.Incarnation, n2.inc)
		}
		alice.take()
		g.down(2)
		n1.catchUpUnheard()
		alice.want("presence unavailable bob/b ")
	})
}
