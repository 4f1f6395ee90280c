package disco

import (
	"muster/router"
	"muster/router/stanza"
)

func renderInfo(node string, d router.Disco) []byte {
	b := stanza.NewBuilder("").Open("query", stanza.NSDiscoInfo, "node", node)
	for _, id := range d.Identities {
		b.Leaf("identity", "", "category", id.Category, "type", id.Type, "name", id.Name)
	}
	for _, feature := range d.Features {
		b.Leaf("feature", "", "var", feature)
	}
	for _, form := range d.Forms {
		b.Raw(form) // declares its own namespace
	}
	return b.Bytes()
}

func renderItems(node string, items []router.Item) []byte {
	b := stanza.NewBuilder("").Open("query", stanza.NSDiscoItems, "node", node)
	for _, it := range items {
		b.Leaf("item", "", "jid", it.JID.String(), "node", it.Node, "name", it.Name)
	}
	return b.Bytes()
}
