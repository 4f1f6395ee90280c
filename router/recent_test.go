package router

import (
	"context"
	"testing"
	"time"

	"muster/router/stanza"
)

// TestGivenBackBeforeTheEnd: a session's end waits at its home behind a change
// that is under way, and what its client did not get is back before it. The
// sender hears of it exactly if nobody has the message.
func TestGivenBackBeforeTheEnd(t *testing.T) {
	const wire = 500 * time.Millisecond // from and to node 2
	hold := func(reg *Registry) {
		reg.HandleIQ(Account, testSpace, "query", func(c *Ctx, _ *stanza.Packet) {
			c.Async(func(context.Context) error { time.Sleep(6 * wire); return nil }, func(*Ctx, error) {})
		})
	}
	for _, tc := range []struct {
		name  string
		other func(g *rig) (end func()) // another device of the same user
		want  []string                  // what the sender gets
	}{
		{"the only session", func(*rig) func() { return func() {} },
			[]string{"message error bob m service-unavailable"}},
		{"another one stays", func(g *rig) func() {
			g.online(1, "bob/other")
			return func() {}
		}, nil},
		{"another one has it, and leaves", func(g *rig) func() {
			other := g.online(1, "bob/other")
			return func() {
				other.want("message chat alice/a m")
				other.send(request("set", "", "hold", testSpace))
				other.s.End(true, nil)
			}
		}, nil},
		{"another one leaves without it", func(g *rig) func() {
			other := g.online(1, "bob/other")
			return func() {
				other.want("message chat alice/a m")
				other.send(request("set", "", "hold", testSpace))
				m := message("chat", "bob", "m")
				m.From = addr("alice/a")
				other.s.End(false, []*stanza.Packet{m})
			}
		}, []string{"message error bob m service-unavailable"}},
		{"another one's node dies", func(g *rig) func() {
			g.online(3, "bob/other")
			return func() {
				time.Sleep(wire + wire/2) // it has the message, and that is acknowledged
				g.kill(3)
				g.down(3)
			}
		}, []string{"message error bob m service-unavailable"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			simulateWith(t, 3, hold, func(g *rig) {
				g.net.SetDelay(func(from, to string) (base, jitter time.Duration) {
					if from == "n2" || to == "n2" {
						return wire, 0
					}
					return time.Millisecond, 0
				})
				g.users(1, "alice", "bob")
				time.Sleep(5 * time.Second)
				alice, bob := g.online(1, "alice/a"), g.online(2, "bob/b")
				end := tc.other(g)
				time.Sleep(4 * wire)
				bob.send(request("set", "", "hold", testSpace))
				time.Sleep(2 * wire)
				alice.message("bob", "m")
				bob.s.End(false, nil) // the message is on its way to it
				end()
				time.Sleep(20 * wire)
				bob.want()
				alice.want(tc.want...)
			})
		})
	}
}
