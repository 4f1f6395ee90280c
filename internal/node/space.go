package node

import (
	"context"
	"crypto/tls"
	"os"
	"time"

	"muster/edges/http"
	"muster/edges/http/adminapi"
	"muster/fsm/config"
	"muster/internal/disk"
	"muster/internal/fault"
	"muster/internal/store"
	"muster/monitor"
	"muster/replication"
)

// diskReserve is what the levels of package disk are parts of. 256 MiB are a
// few minutes of a full load of messages, and more than tables that are being
// rewritten, memtables and a snapshot need beside it.
var diskReserve = config.Int("disk.reserve", 256, 64, 1<<20, config.Node,
	"How many MiB of the data folder's disk should stay free. Below it a node hands on what it leads and its users; below half of it it takes no messages, below a quarter no changes.")

// alarmDisk stands while the disk is full or nearly so.
const alarmDisk = "disk-space"

// roomStep is the pause between looks of a node that waits for room to start.
const roomStep = time.Second

// openSpace puts the guard of free space below all that the node writes, and
// waits until there is room to open it: a store that is opened on a full disk
// fails, and a supervisor would start the node again and again.
func (n *Node) openSpace() error {
	data := n.o.Config.Data
	dirs := []string{data, replication.LogDir(data, replication.ControlLog), replication.LogDir(data, replication.MessageLog)}
	for _, dir := range dirs {
		if err := n.o.FS.MkdirAll(dir, 0o700); err != nil {
			return &fault.Error{Code: fault.Forbidden, Op: "node.open", Subject: data, Text: "the data folder " + data + " cannot be written", Err: err}
		}
	}
	n.space = disk.New(disk.Options{FS: n.o.FS, Dirs: dirs, Reserve: n.reserveBytes, Logger: n.logger, OnChange: n.onSpace})
	n.o.FS = n.space.FS()
	if s := n.space.State(); s.Level != disk.Plenty {
		n.onSpace(s)
	}
	return n.awaitSpace()
}

// reserveBytes is the setting in force; before the state is open, its default.
func (n *Node) reserveBytes() int64 {
	if live := n.spaceLive.Load(); live != nil {
		return live.Int(diskReserve) << 20
	}
	return 256 << 20
}

// awaitSpace returns when there is room to open the stores. Meanwhile the health page says why the node waits.
func (n *Node) awaitSpace() error {
	s := n.space.State()
	if s.Level == disk.Spent && n.space.Release() {
		s = n.space.Look()
	}
	if s.Level != disk.Spent {
		return nil
	}
	n.logger.Error("start_waits_for_room", "reason", s.Reason())
	page := n.serveWaiting()
	for s.Level == disk.Spent && n.pause(roomStep) {
		s = n.space.Look()
	}
	if page != nil {
		ctx, cancel := context.WithTimeout(context.Background(), killTime)
		defer cancel()
		_ = page.Stop(ctx) // what a reader of the page misses is that it is over
	}
	n.logger.Info("start_goes_on", "free", s.Free, "dir", s.Dir)
	return n.ctx.Err()
}

// serveWaiting opens the health page of a node that waits for room; nil if that does not work.
func (n *Node) serveWaiting() *http.Server {
	address := n.o.Config.HTTPSListen
	if address == "" {
		return nil
	}
	ln, err := n.o.Listen(address)
	if err != nil {
		n.logger.Warn("health_page_not_opened", "address", address, "error", err)
		return nil
	}
	return http.Serve(ln, http.Public(waiting{n}, n.spaceSamples), &tls.Config{
		MinVersion: tls.VersionTLS12, GetCertificate: n.certs.GetCertificate}, n.logger)
}

// waiting is what the health pages show of a node that waits for room.
type waiting struct{ n *Node }

var _ http.Health = waiting{}

// Live implements http.Health: the process works, and would do no better after a restart.
func (waiting) Live() error { return nil }

// Ready implements http.Health.
func (w waiting) Ready() (bool, string) { return false, w.n.space.State().Reason() }

// Replication implements http.Health.
func (w waiting) Replication(context.Context) (adminapi.Replication, error) {
	return adminapi.Replication{}, fault.New(fault.Unavailable, "node.replication", "", "this node waits to start: "+w.n.space.State().Reason())
}

// onSpace tells of a change of the level.
func (n *Node) onSpace(s disk.State) {
	n.logger.Warn("disk_space", "level", s.Level.String(), "free", s.Free, "dir", s.Dir)
	n.spaceAlarm()
	if n.runner != nil {
		n.runner.Poke()
	}
}

// spaceAlarm keeps the alarm true to what the guard found.
func (n *Node) spaceAlarm() {
	if n.space == nil {
		return
	}
	switch s := n.space.State(); s.Level {
	case disk.Plenty:
		n.alarms.Clear(alarmDisk)
	case disk.Low:
		n.alarms.Raise(monitor.Alarm{Name: alarmDisk, Severity: monitor.Warning, Since: s.Since, Reason: s.Reason()})
	default:
		n.alarms.Raise(monitor.Alarm{Name: alarmDisk, Severity: monitor.Critical, Since: s.Since, Reason: s.Reason()})
	}
}

// diskFull says that the disk is full; "" while it is not.
func (n *Node) diskFull() string {
	if s := n.space.State(); s.Level >= disk.Full {
		return s.Reason()
	}
	return ""
}

// ready reports whether this node serves clients in full; if not, why.
func (n *Node) ready() (bool, string) {
	if why := n.diskFull(); why != "" {
		return false, why
	}
	return n.runner.Ready()
}

// served is the runner as operators see it.
type served struct {
	*monitor.Runner
	n *Node
}

// Ready implements operate.Services.
func (s served) Ready() (bool, string) { return s.n.ready() }

// Levels at which a log of the node lacks room. The control log holds out
// longer: by it a full node learns that its users were given to others, and an
// administrator changes settings.
var roomEnds = map[string][2]disk.Level{
	replication.MessageLog: {disk.Full, disk.Critical},
	replication.ControlLog: {disk.Critical, disk.Spent},
}

// room is replication.Config.Room for one of the logs.
func (n *Node) room(log string) func() (replication.Room, string) {
	ends := roomEnds[log]
	return func() (replication.Room, string) {
		s := n.space.State()
		switch {
		case s.Level >= ends[1]:
			return replication.NoRoom, s.Reason()
		case s.Level >= ends[0]:
			return replication.RoomToFollow, s.Reason()
		}
		return replication.RoomForAll, ""
	}
}

func (n *Node) spaceSamples() []http.Sample {
	s := n.space.State()
	return []http.Sample{
		gauge("muster_disk_free_bytes", "Free space of the fullest file system of the data folder.", float64(s.Free)),
		gauge("muster_disk_reserve_bytes", "Free space below which the node writes less and less (disk.reserve).", float64(s.Reserve)),
		gauge("muster_disk_full", "1 while the node writes less because its disk is full.", flag(s.Level >= disk.Full)),
	}
}

// storeFailed ends the process: a store is damaged, or a write to it failed. It
// comes from any goroutine, once or several times.
func (n *Node) storeFailed(f *fault.Error) {
	if n.gaveUp.CompareAndSwap(false, true) {
		n.logger.Error("store_giving_up", "store", f.Subject, "reason", fault.Public(f))
		if n.o.Exit == nil {
			os.Exit(replication.ExitStatus)
		}
		n.o.Exit(fault.Public(f))
	}
	if n.o.Exit == nil {
		select {} // the process is ending, and the store must not go on meanwhile
	}
}

// openPresence opens the store of presence. One that is damaged is made anew:
// all in it is known to the other nodes, or is over.
func (n *Node) openPresence(dir string) (err error) {
	open := func() (err error) {
		n.presence, err = store.Open(dir, store.Options{FS: n.o.FS, Logger: n.logger, Fatal: n.presenceFailed})
		return err
	}
	if err = open(); store.Damaged(err) {
		n.logger.Error("presence_store_damaged", "store", dir, "remedy", "none is needed: it is made anew", "error", err)
		if err = n.o.FS.RemoveAll(dir); err == nil {
			err = open()
		}
	}
	return err
}

// presenceFailed removes a damaged store of presence, so that the next start makes it anew, and ends the process.
func (n *Node) presenceFailed(f *fault.Error) {
	if store.Damaged(f) {
		_ = n.o.FS.RemoveAll(f.Subject) // else the next start finds it damaged
		f = fault.New(f.Code, f.Op, f.Subject, "the store of presence, "+f.Subject+", was damaged ("+f.Err.Error()+"); it was removed and is made anew when the node is started again")
	}
	n.storeFailed(f)
}
