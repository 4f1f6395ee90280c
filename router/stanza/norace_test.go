//go:build !race

package stanza

// packetAllocations is how many allocations a packet may cost from bytes to packet.
const packetAllocations = 3
