package replication

import (
	"github.com/hashicorp/raft"

	"muster/log"
)

// SeedStores is SeedLog for stores that the caller brings (Config.LogStore and
// Config.StableStore), as simulations do. They must be empty.
func SeedStores(logs raft.LogStore, stable raft.StableStore, node uint32, entries []*log.Entry) error {
	return bootstrapLog(quietLog(logs, stable), node, entries...)
}
