//go:build !race

package xmltok

// stanzaAllocations is how many allocations a stanza may cost, whatever its size.
const stanzaAllocations = 2
