package replication

import (
	"bytes"
	"fmt"
	"syscall"
	"time"

	"github.com/hashicorp/raft"

	"muster/internal/fault"
)

// room is what the disk has room for, and why not for everything.
func (cfg *Config) room() (Room, string) {
	if cfg.Room == nil {
		return RoomForAll, ""
	}
	return cfg.Room()
}

// mayWrite refuses what this node has no room to keep. The others may have it,
// but a proposal's outcome is told when it is applied here.
func (g *Group) mayWrite(op string) error {
	if room, why := g.cfg.room(); room == NoRoom {
		return fault.New(fault.Unavailable, op, "", "this server takes nothing new now: "+why)
	}
	return nil
}

// errNoRoom is a full disk as far as Raft can tell: a follower's leader tries again later, a leader steps down.
var errNoRoom = fmt.Errorf("the disk is kept from running full: %w", syscall.ENOSPC)

// admit refuses records that there is no room for. Those of Raft itself are
// small and few, and without them nobody could lead a cluster whose disks are all full.
func (g *guardedLog) admit(logs []*raft.Log) error {
	if room, _ := g.roomNow(); room != NoRoom {
		return nil
	}
	for _, l := range logs {
		if l.Type == raft.LogCommand && !bytes.Equal(l.Data, emptyRecord) {
			return errNoRoom
		}
	}
	return nil
}

// patience is by how much a node that lacks room waits longer than others for a leader before it stands for election itself.
const patience = 4

// setPatience has the Raft library wait as long as the node's room says.
func (g *Group) setPatience() error {
	rc, t := g.raft.ReloadableConfig(), g.cfg.Timing
	heartbeat, election := t.Heartbeat, t.Election
	if room, _ := g.cfg.room(); room != RoomForAll {
		heartbeat, election = patience*heartbeat, patience*election
	}
	if rc.HeartbeatTimeout == heartbeat && rc.ElectionTimeout == election {
		return nil
	}
	rc.HeartbeatTimeout, rc.ElectionTimeout = heartbeat, election
	return g.raft.ReloadConfig(rc)
}

// makeRoom has another node lead if this one's disk lacks room and another's has more.
func (g *Group) makeRoom() {
	room, why := g.cfg.room()
	if room == RoomForAll {
		return
	}
	to := g.roomier(room)
	if to == 0 {
		return
	}
	id := serverID(to)
	err := g.within(changeTime, g.raft.LeadershipTransferToServer(id, raft.ServerAddress(id)))
	g.cfg.Logger.Warn("leadership_handed_on", "log", g.cfg.Name, "to", to, "reason", why, "err", err)
}

// roomier is a voter that is well, is level with this leader and has more room than that; 0: none.
func (g *Group) roomier(than Room) (best uint32) {
	voters, _ := g.servers()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, n := range voters {
		if p, ok := g.peers[n]; ok && n != g.cfg.NodeID && p.steady > 0 && p.room < than {
			best, than = n, p.room
		}
	}
	return best
}

// lacks is what Status says of a lack of room; since is kept here, as the caller of Room keeps none.
func (g *Group) lacks() (why string, since time.Time) {
	room, why := g.cfg.room()
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case room == RoomForAll:
		g.narrow = time.Time{}
		return "", g.narrow
	case g.narrow.IsZero():
		g.narrow = time.Now()
	}
	return why, g.narrow
}
