//go:build race

package stanza

// packetAllocations is how many allocations a packet may cost from bytes to
// packet; the race detector makes pools forget at random.
const packetAllocations = 13
