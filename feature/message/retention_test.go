package message

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"muster/feature/message/state"
	"muster/fsm"
	"muster/fsm/cluster"
	"muster/fsm/config"
	"muster/fsm/fsmtest"
	"muster/fsm/user"
	"muster/internal/fault"
	"muster/log"
)

// keeping is a Retention over two machines in memory.
type keeping struct {
	t                 *testing.T
	control, messages *fsmtest.Rig
	r                 *Retention
	leads             atomic.Bool
	usage             atomic.Uint64
	proposals         atomic.Int64
	failing           atomic.Bool
	unknown           map[string]bool // users that Holder does not know before CatchUp
	ctx               context.Context
	died              atomic.Int64 // when deadNode did, in Unix nanoseconds; 0: it lives
	applying          sync.Mutex   // a log has one order
}

// keep runs a retention in a synctest bubble until the test ends.
func keep(t *testing.T, test func(k *keeping)) {
	prepare(t, func(k *keeping) {
		k.start()
		test(k)
	})
}

func (k *keeping) start() { go k.r.Run(k.ctx) }

// prepare is keep for a retention that does not run yet.
func prepare(t *testing.T, test func(k *keeping)) {
	synctest.Test(t, func(t *testing.T) {
		k := &keeping{t: t, control: fsmtest.New(t, cluster.Module(), config.Module(), user.Module()), messages: fsmtest.NewMessage(t, state.Module()), unknown: map[string]bool{}}
		k.must(config.AddDomainEntry("example.com"))
		live := config.NewLive(k.control.M, 1)
		k.r = NewRetention(RetentionConfig{
			Messages: k.messages.M, Live: live, Keeper: k, Leads: k.leads.Load, DiskUsage: k.usage.Load, Gone: func(node uint32, _ uint64) (time.Time, bool) {
				return time.Unix(0, k.died.Load()), node == deadNode && k.died.Load() > 0
			}, Logger: slog.New(slog.DiscardHandler),
			Holder: func(owner string) (time.Time, bool) {
				u, ok := user.Get(k.control.M, owner)
				return u.Created, ok && !k.unknown[owner]
			},
			CatchUp: func(context.Context) error {
				clear(k.unknown)
				return nil
			},
		})
		k.control.M.OnApply(func(_ uint64, changes []fsm.Change) {
			live.Update(changes)
			k.r.ControlChanges(changes)
		})
		var cancel context.CancelFunc
		k.ctx, cancel = context.WithCancel(t.Context())
		defer cancel()
		k.leads.Store(true)
		test(k)
	})
}

func (k *keeping) must(entries ...*log.Entry) {
	for _, e := range entries {
		e.Time = time.Now()
		k.control.Must(e)
	}
}

// Propose implements router.Proposer.
func (k *keeping) Propose(_ context.Context, entries ...*log.Entry) ([]fsm.Result, error) {
	if k.failing.Load() {
		return nil, fault.New(fault.NoQuorum, "test", "", "")
	}
	k.proposals.Add(1)
	for _, e := range entries {
		e.Time = time.Now()
	}
	k.applying.Lock()
	defer k.applying.Unlock()
	return k.messages.Apply(entries...), nil
}

// put keeps n messages of alice to a user, and returns their numbers.
func (k *keeping) put(n int, to string) (numbers []uint64) {
	k.t.Helper()
	for range n {
		res, err := k.Propose(context.Background(), state.PutEntry(state.Put{From: "alice@example.com", To: to, XML: []byte("<message/>"), KeepSent: true, KeepReceived: true, Limit: 10_000}))
		if err = errors.Join(err, res[0].Err); err != nil {
			k.t.Fatal(err)
		}
		number, _ := state.PutResult(res[0].Value)
		numbers = append(numbers, number)
	}
	return numbers
}

func (k *keeping) users(names ...string) {
	for _, name := range names {
		k.must(user.CreateEntry(user.User{Name: name + "@example.com"}))
	}
}

func (k *keeping) wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// archive returns the numbers of an owner's messages.
func (k *keeping) archive(owner string) (numbers []uint64) {
	p, err := state.Read(k.messages.M, state.Query{Owner: owner + "@example.com", Max: 1 << 20})
	if err != nil {
		k.t.Fatal(err)
	}
	for _, m := range p.Messages {
		numbers = append(numbers, m.Number)
	}
	return numbers
}

func (k *keeping) want(owner string, numbers ...uint64) {
	k.t.Helper()
	if got := k.archive(owner); !slices.Equal(got, numbers) {
		k.t.Errorf("%s has %d messages %v, want %d", owner, len(got), got[:min(len(got), 5)], len(numbers))
	}
}

func TestOldMessagesGo(t *testing.T) {
	keep(t, func(k *keeping) {
		k.users("alice", "bob")
		k.put(600, "bob@example.com")
		time.Sleep(48 * time.Hour)
		young := k.put(3, "bob@example.com")
		k.wait(10 * time.Minute)
		if n := len(k.archive("bob")); n != 603 {
			t.Fatalf("%d messages are left, and nothing was to be trimmed", n)
		}
		k.must(config.SetEntry("archive.max_age", "36h", 0))
		before := k.proposals.Load()
		k.wait(2 * time.Minute)
		k.want("bob", young...)
		k.want("alice", young...)
		if steps := k.proposals.Load() - before; steps != 3 {
			t.Errorf("600 messages went in %d steps", steps)
		}
		k.wait(time.Hour)
		if steps := k.proposals.Load() - before; steps != 3 {
			t.Errorf("%d entries, although there was nothing to do", steps)
		}
	})
}

// TestWrongClockDoesNotEmptyTheArchive: a node whose clock is years ahead comes to lead.
func TestWrongClockDoesNotEmptyTheArchive(t *testing.T) {
	prepare(t, func(k *keeping) {
		k.users("alice", "bob")
		k.must(config.SetEntry("archive.max_age", "720h", 0))
		numbers := k.put(5, "bob@example.com")
		time.Sleep(10 * 365 * 24 * time.Hour)
		k.start()
		k.wait(5 * time.Minute)
		k.want("bob", numbers...)
		fresh := k.put(1, "bob@example.com") // these years were real after all
		k.wait(2 * time.Minute)
		k.want("bob", fresh...)
	})
}

func TestTooManyMessagesGo(t *testing.T) {
	keep(t, func(k *keeping) {
		k.users("alice", "bob")
		numbers := k.put(1000, "bob@example.com")
		k.must(config.SetEntry("archive.max_bytes", "1000000", 0))
		k.usage.Store(900_000)
		k.wait(5 * time.Minute)
		k.want("bob", numbers...)
		k.usage.Store(1_050_000)
		k.wait(2 * time.Minute)
		left := len(k.archive("bob"))
		if left > 900 || left < 700 {
			t.Errorf("%d messages are left", left)
		}
		k.wait(time.Hour) // the disk does not get free, which is no reason to trim again
		if n := len(k.archive("bob")); n != left {
			t.Errorf("%d more messages went because the disk did not get free at once", left-n)
		}
		k.usage.Store(990_000) // it did
		k.wait(5 * time.Minute)
		if n := len(k.archive("bob")); n != left {
			t.Errorf("%d messages went although there is room", left-n)
		}
		k.usage.Store(1_040_000)
		k.wait(5 * time.Minute)
		if n := len(k.archive("bob")); n >= left {
			t.Error("no messages went although there was too much again")
		}
	})
}

func TestMessagesOfDeletedUsersGo(t *testing.T) {
	keep(t, func(k *keeping) {
		k.users("alice", "bob", "carol")
		k.wait(lookEvery * 2)
		bobs := k.put(700, "bob@example.com")
		carols := k.put(2, "carol@example.com")
		k.must(user.DeleteEntry("bob@example.com"))
		k.wait(lookEvery * 2)
		k.want("bob")
		k.want("carol", carols...)
		k.want("alice", append(bobs, carols...)...)
		if len(state.Inbox(k.messages.M, "bob@example.com")) > 0 {
			t.Error("messages still wait for bob")
		}
		k.must(user.DeleteEntry("alice@example.com"))
		k.wait(lookEvery * 2)
		k.want("alice")
		k.want("carol", carols...)
		if n := len(k.archive("carol")); n != 2 {
			t.Errorf("carol has %d messages", n)
		}
	})
}

// TestNewHolderOfAName keeps what came since: the deletion is worked off later than the name is given again.
func TestNewHolderOfAName(t *testing.T) {
	keep(t, func(k *keeping) {
		k.users("alice", "bob")
		k.wait(lookEvery * 2)
		k.put(3, "bob@example.com")
		k.failing.Store(true)
		k.must(user.DeleteEntry("bob@example.com"))
		k.wait(time.Hour) // the message log takes nothing
		k.users("bob")
		k.failing.Store(false)
		mine := k.put(2, "bob@example.com")
		k.wait(lookEvery * 2)
		k.want("bob", mine...)
	})
}

// TestANewLeaderLooksThroughAllOwners: deletions that nobody worked off, and a
// user that the new leader has not heard of yet.
func TestANewLeaderLooksThroughAllOwners(t *testing.T) {
	keep(t, func(k *keeping) {
		k.leads.Store(false)
		k.users("alice", "bob", "carol")
		k.put(3, "bob@example.com")
		carols := k.put(3, "carol@example.com")
		k.must(user.DeleteEntry("bob@example.com"))
		k.wait(time.Minute)
		if n := len(k.archive("bob")); n != 3 {
			t.Errorf("a node that does not lead removed messages: %d are left", n)
		}
		k.unknown["carol@example.com"] = true
		k.leads.Store(true)
		k.wait(lookEvery * 2)
		k.want("bob")
		k.want("carol", carols...)
	})
}

// TestDeletionInASnapshot: the leader hears of it in no change.
func TestDeletionInASnapshot(t *testing.T) {
	keep(t, func(k *keeping) {
		k.users("alice", "bob")
		k.put(3, "bob@example.com")
		k.put(3, "gone@example.com") // who was never created here
		k.wait(lookEvery * 2)
		k.put(3, "gone@example.com")
		k.wait(time.Hour)
		if n := len(k.archive("gone")); n != 3 {
			t.Fatalf("%d messages are there before the snapshot", n)
		}
		k.r.ControlReplaced()
		k.wait(lookEvery * 2)
		k.want("gone")
		if n := len(k.archive("bob")); n != 3 {
			t.Errorf("bob has %d messages", n)
		}
	})
}

func TestInterruptedPurgeGoesOn(t *testing.T) {
	keep(t, func(k *keeping) {
		k.users("alice", "bob")
		k.wait(lookEvery * 2)
		k.put(2000, "bob@example.com")
		k.must(user.DeleteEntry("bob@example.com"))
		k.wait(lookEvery + 3*stepPause)
		if n := len(k.archive("bob")); n == 0 || n == 2000 {
			t.Fatalf("%d messages are left at once", n)
		}
		k.failing.Store(true)
		k.wait(time.Minute)
		k.failing.Store(false)
		k.wait(time.Minute)
		k.want("bob")
	})
}

// TestManyDeletions: more than are remembered one by one.
func TestManyDeletions(t *testing.T) {
	r := NewRetention(RetentionConfig{Messages: fsmtest.NewMessage(t, state.Module()).M})
	var changes []fsm.Change
	for i := range maxDeleted + 1 {
		changes = append(changes, fsm.Change{Table: user.Table, Key: fmt.Append(nil, "u", i), Before: []byte{}})
	}
	r.ControlChanges(append(changes, fsm.Change{Table: user.Table, Key: []byte("new"), After: []byte{}}))
	if len(r.deleted) > maxDeleted || !r.all {
		t.Errorf("%d deletions wait, all owners are looked through: %v", len(r.deleted), r.all)
	}
}

// deadNode is the node whose sessions are lost in these tests.
const deadNode = 9

// TestLostSessionsAreForgotten: a session is forgotten when its node is gone and its client's time is over, not before.
func TestLostSessionsAreForgotten(t *testing.T) {
	keep(t, func(k *keeping) {
		for id, node := range map[uint64]uint32{1: deadNode, 2: 1} {
			e := state.SessionEntry(state.Session{ID: id, User: "alice@example.com", Resource: "r", Key: []byte("k"), Node: node, Timeout: 5 * time.Minute}, nil)
			if res, err := k.Propose(context.Background(), e); err != nil || res[0].Err != nil {
				t.Fatal(err, res[0].Err)
			}
		}
		known := func(id uint64) bool {
			_, _, ok := state.SessionByID(k.messages.M, id)
			return ok
		}
		time.Sleep(time.Hour)
		if !known(1) || !known(2) {
			t.Fatal("the session of a living node was forgotten")
		}
		k.died.Store(time.Now().UnixNano())
		time.Sleep(4 * time.Minute)
		if !known(1) || !known(2) {
			t.Fatal("a session was forgotten before its client's time was over")
		}
		time.Sleep(4 * time.Minute)
		if known(1) {
			t.Error("the lost session is still on record")
		}
		if !known(2) {
			t.Error("the session of a living node was forgotten")
		}
	})
}

// TestIdleInputsAreForgotten: the input of a session that is not on record is forgotten when no retry of it can be under way, not before.
func TestIdleInputsAreForgotten(t *testing.T) {
	keep(t, func(k *keeping) {
		propose := func(e *log.Entry) {
			if res, err := k.Propose(context.Background(), e); err != nil || res[0].Err != nil {
				t.Fatal(err, res[0].Err)
			}
		}
		send := func(session uint64) {
			propose(state.PutEntry(state.Put{From: "alice@example.com", To: "bob@example.com", XML: []byte("<message/>"), KeepSent: true, Session: session, Input: 1}))
		}
		remembered := func() (ids []uint64) {
			state.EachSession(k.messages.M, func(id uint64) { ids = append(ids, id) })
			return ids
		}
		propose(state.SessionEntry(state.Session{ID: 3, User: "alice@example.com", Resource: "r", Key: []byte("k"), Node: 1, Timeout: 5 * time.Minute}, nil))
		send(1)
		send(3)
		time.Sleep(4 * time.Minute)
		if got := remembered(); !slices.Equal(got, []uint64{1, 3}) {
			t.Fatalf("at first the sessions %v are remembered", got)
		}
		k.messages.M.Skip(k.messages.M.Applied() + 1<<14)
		send(2)
		time.Sleep(4 * time.Minute)
		if got := remembered(); !slices.Equal(got, []uint64{2, 3}) {
			t.Errorf("of a session that is idle for long, one that is not, and one on record, %v are remembered", got)
		}
	})
}
