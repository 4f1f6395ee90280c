package router

import (
	"bytes"
	"reflect"
	"testing"
	"time"

	"muster/internal/fault"
	"muster/router/hot"
	"muster/router/link"
	"muster/router/stanza"
)

func TestAttachmentRoundTrip(t *testing.T) {
	p := presence("", 3)
	p.From = addr("alice/a")
	tests := []struct {
		name string
		a    attachment
	}{
		{"new", attachment{id: 1, attempt: 2, incarnation: 3, user: addr("alice"), resource: "ä/b", transport: "c2s", remote: "192.0.2.1:5"}},
		{"moved", attachment{id: 1 << 63, attempt: 1 << 31, incarnation: 9, user: addr("alice"), resource: "r", reattached: true, claims: 3, done: 77,
			published: 4, row: hot.Position{Incarnation: 9, Sequence: 12}, presence: p, marks: map[string]string{"a": "1", "b": "2"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			epoch, got, err := parseAttachment(appendAttachment(nil, 5, &tt.a))
			if err != nil || epoch != 5 {
				t.Fatal(epoch, err)
			}
			if tt.a.presence != nil {
				if got.presence == nil || !bytes.Equal(got.presence.AppendTo(nil), tt.a.presence.AppendTo(nil)) {
					t.Errorf("presence %+v", got.presence)
				}
				got.presence, tt.a.presence = nil, nil
			}
			if !reflect.DeepEqual(*got, tt.a) {
				t.Errorf("got %+v\nwant %+v", *got, tt.a)
			}
		})
	}
}

func TestRouteRoundTrip(t *testing.T) {
	p := message("chat", "bob", "1")
	p.From = addr("alice/a")
	for _, after := range []dependency{{}, {node: 3, row: hot.Position{Incarnation: 1, Sequence: 2}}} {
		epoch, hops, got, q, err := parseRoute(appendRoute(9, 2, after, p))
		if err != nil || epoch != 9 || hops != 2 || got != after || !bytes.Equal(p.AppendTo(nil), q.AppendTo(nil)) {
			t.Errorf("%d %d %+v %v", epoch, hops, got, err)
		}
	}
}

// frames returns one well-formed payload of every kind.
func frames() map[byte][]byte {
	p := message("chat", "bob", "1")
	p.From = addr("alice/a")
	packet := stanza.AppendBinary(nil, p)
	id := appendUint64(nil, 1)
	with := func(parts ...[]byte) []byte { return bytes.Join(append([][]byte{id}, parts...), nil) }
	user := appendText(nil, addr("bob").String())
	return map[byte][]byte{
		kindHot:         {1, 0, 0, 0, 0, 0, 0, 0, 9},
		kindRoute:       appendRoute(1, 0, dependency{}, p),
		kindAttach:      appendAttachment(nil, 1, &attachment{id: 1, user: addr("bob"), resource: "r"}),
		kindInput:       with(id, packet),
		kindUndelivered: with(packet),
		kindUnbind:      with([]byte{1}),
		kindReturn:      append(bytes.Clone(user), packet...),
		kindAttached:    with(id, []byte{0}, id, appendText(nil, "r")),
		kindDeliver:     with(packet),
		kindHeard:       with(packet),
		kindCredit:      with(id),
		kindPublish:     with(id, packet),
		kindMark:        with(appendText(nil, "k"), appendText(nil, "v")),
		kindEnd:         with(appendText(nil, "conflict"), appendText(nil, "text")),
		kindRelease:     with(),
		kindEndUser:     bytes.Join([][]byte{user, appendText(nil, "r"), appendText(nil, "conflict"), appendText(nil, "")}, nil),
		kindPublished:   with(id, id, id),
	}
}

// TestEveryFrameCutShort: no prefix of a frame, and no frame about what does not exist, does any harm.
func TestEveryFrameCutShort(t *testing.T) {
	simulate(t, 2, func(g *rig) {
		g.users(1, "alice", "bob")
		alice := g.online(1, "alice/a")
		r := g.nodes[1].r
		for kind, payload := range frames() {
			for n := range len(payload) + 1 {
				r.Frame(2, kind, payload[:n])
			}
		}
		r.Frame(2, 200, nil)
		time.Sleep(5 * time.Second)
		alice.take()
		if st := r.Stats(); st.Panics != 0 || st.BadFrames == 0 {
			t.Errorf("%d panics, %d bad frames", st.Panics, st.BadFrames)
		}
		alice.message("alice", "still here")
		alice.want("message chat alice/a still here")
	})
}

func TestGreeting(t *testing.T) {
	inc, have, err := parseGreeting(appendGreeting(nil, 5, hot.Position{Incarnation: 6, Sequence: 7}))
	if err != nil || inc != 5 || have != (hot.Position{Incarnation: 6, Sequence: 7}) {
		t.Error(inc, have, err)
	}
	if _, _, err := parseGreeting([]byte{1}); !fault.Is(err, fault.BadRequest) {
		t.Error(err)
	}
}

// FuzzFrame feeds any frame to a router with a session: it must not panic, and the session must go on.
func FuzzFrame(f *testing.F) {
	for kind, payload := range frames() {
		f.Add(kind, payload)
	}
	g := newRig(f, 1)
	f.Cleanup(g.stopBench)
	g.users(1, "alice", "bob")
	r := g.nodes[1].r
	f.Fuzz(func(t *testing.T, kind byte, payload []byte) {
		r.Frame(2, kind, payload)
		r.retake(2, link.Frame{Kind: kind, Payload: payload})
		if n := r.Stats().Panics; n != 0 {
			t.Fatalf("%d panics", n)
		}
	})
}
