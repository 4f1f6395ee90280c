package node

import (
	"context"
	"time"

	"muster/feature/message"
	"muster/fsm/cluster"
	"muster/fsm/user"
)

// openRetention sets up what removes messages and lost sessions; it works where the message log's leader is.
func (n *Node) openRetention() error {
	n.retention = message.NewRetention(message.RetentionConfig{
		Messages: n.messageMachine, Live: n.live, Keeper: keeper{n}, Logger: n.logger,
		Leads: func() bool { return n.messages != nil && n.messages.IsLeader() },
		Holder: func(owner string) (since time.Time, ok bool) {
			u, ok := user.Get(n.machine, owner)
			return u.Created, ok
		},
		CatchUp: func(ctx context.Context) error {
			index, err := n.group.ReadIndex(ctx)
			if err != nil {
				return err
			}
			return n.group.WaitIndex(ctx, index)
		},
		DiskUsage: n.messageState.DiskUsage,
		Gone: func(node uint32, incarnation uint64) (since time.Time, gone bool) {
			peer, ok := cluster.NodeByID(n.machine, node)
			return peer.Since, !ok || !peer.Up || peer.Incarnation != incarnation
		},
	})
	return nil
}
