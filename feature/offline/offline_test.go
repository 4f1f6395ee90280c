package offline

import (
	"slices"
	"testing"

	"muster/router/stanza"
)

func TestWanted(t *testing.T) {
	waiting := []uint64{0x1000, 0x2000, 0x3000}
	cases := []struct {
		name, typ, inner string
		want             []uint64
		refusal          stanza.Condition
	}{
		{"view", "get", "<item action='view' node='0000000000002000'/><item action='view' node='0000000000001000'/>", []uint64{0x2000, 0x1000}, ""},
		{"fetch", "get", "<fetch/>", waiting, ""},
		{"remove", "set", "<item action='remove' node='0000000000003000'/>", []uint64{0x3000}, ""},
		{"purge", "set", "<purge/>", waiting, ""},
		{"nothing", "get", "", nil, stanza.BadRequest},
		{"to remove is a set", "get", "<item action='remove' node='0000000000003000'/>", nil, stanza.BadRequest},
		{"to view is a get", "set", "<item action='view' node='0000000000003000'/>", nil, stanza.BadRequest},
		{"to purge is a set", "get", "<purge/>", nil, stanza.BadRequest},
		{"to fetch is a get", "set", "<fetch/>", nil, stanza.BadRequest},
		{"unknown", "set", "<item action='remove' node='0000000000003000'/><item action='remove' node='0000000000004000'/>", nil, stanza.ItemNotFound},
		{"no node", "set", "<item action='remove'/>", nil, stanza.ItemNotFound},
		{"more than there are", "set", "<item action='remove' node='0000000000003000'/><item/><item/><item/>", nil, stanza.ItemNotFound},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			el, err := stanza.ParseElement([]byte("<offline xmlns='http://jabber.org/protocol/offline'>" + tc.inner + "</offline>"))
			if err != nil {
				t.Fatal(err)
			}
			got, refusal := wanted(tc.typ, el, waiting)
			if !slices.Equal(got, tc.want) || (refusal == nil) != (tc.refusal == "") || refusal != nil && refusal.Condition != tc.refusal {
				t.Errorf("got %x, refused %v; want %x, %q", got, refusal, tc.want, tc.refusal)
			}
		})
	}
}

func TestNodesSortAsMessagesDo(t *testing.T) {
	var nodes []string
	for _, n := range []uint64{0, 9, 10, 0xfff, 0x1000, 1 << 40, 1<<64 - 1} {
		nodes = append(nodes, nodeOf(n))
	}
	if !slices.IsSorted(nodes) {
		t.Errorf("the order is lost: %q", nodes)
	}
}
