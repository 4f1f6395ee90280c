package message

import (
	"maps"
	"slices"

	"muster/feature/message/state"
	"muster/fsm"
	"muster/router"
	"muster/router/stanza"
)

// recorder keeps sessions in the message log, so that they outlive their nodes (XEP-0198 section 5).
type recorder struct{ c *collector }

var _ router.Recorder = recorder{}

// Record implements router.Recorder.
func (r recorder) Record(s router.Recorded) {
	row := state.Session{ID: s.ID, User: s.User.String(), Resource: s.Resource, Key: s.Key, Base: s.Base, Node: s.Node,
		Incarnation: s.Incarnation, Timeout: s.Timeout, Claims: s.Claims, Published: s.Published, Marks: s.Marks}
	if s.Presence != nil {
		row.Presence = s.Presence.AppendTo(nil)
	}
	r.c.record(s.ID, state.SessionEntry(row, slices.Sorted(maps.Keys(s.Marks))))
}

// Confirm implements router.Recorder.
func (r recorder) Confirm(p router.Progress, done func()) {
	r.c.confirm(state.Step{Session: p.Session, Claims: p.Claims, Confirmed: p.Handled, Told: true, Refusals: written(p.Refusals)}, done)
}

// written returns stanzas as they are kept.
func written(ps []*stanza.Packet) (out [][]byte) {
	for _, p := range ps {
		out = append(out, p.AppendTo(nil))
	}
	return out
}

// Claim implements router.Recorder. The entry is applied here when it is
// answered, and all that was written before it: what the record says then is the last word.
func (r recorder) Claim(c *router.Ctx, session uint64, key []byte, node uint32, incarnation uint64, done func(router.Recorded, error)) {
	c.ProposeMessage(func(c *router.Ctx, res fsm.Result) {
		if res.Err != nil {
			done(router.Recorded{}, res.Err)
			return
		}
		done(recorded(c, session))
	}, state.ClaimEntry(session, c.User().String(), key, node, incarnation))
}

func recorded(c *router.Ctx, session uint64) (got router.Recorded, err error) {
	row, at, _ := state.SessionByID(c.Messages(), session)
	got = router.Recorded{ID: row.ID, User: c.User(), Resource: row.Resource, Node: row.Node, Incarnation: row.Incarnation,
		Claims: row.Claims, Published: row.Published, Marks: row.Marks, Handled: at.Handled, Offered: at.Cursor}
	got.Key, got.Base, got.Timeout = row.Key, row.Base, row.Timeout
	for _, xml := range at.Refusals {
		if p, err := stanza.ParsePacket(xml); err == nil {
			got.Refusals = append(got.Refusals, p)
		}
	}
	if len(row.Presence) > 0 {
		got.Presence, err = stanza.ParsePacket(row.Presence)
	}
	return got, err
}
