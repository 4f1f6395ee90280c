//go:build race

package xmltok

// stanzaAllocations is how many allocations a stanza may cost, whatever its
// size; the race detector makes pools forget at random.
const stanzaAllocations = 12
