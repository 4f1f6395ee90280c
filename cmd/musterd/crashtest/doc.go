// Package crashtest runs real clusters of real processes and breaks them:
// kill -9, SIGSTOP, full and rolling restarts, backup and restore, and hostile
// clients, all under load, with checkers that hold what was confirmed.
//
// It has no callers and no code besides its tests, which need a minute or more
// and Linux, and therefore a build tag:
//
//	go test -tags crash -v ./cmd/musterd/crashtest          (all, at most 8 minutes)
//	go test -tags crash -v -short ./cmd/musterd/crashtest   (for every change, at most 3)
//
// With the tag chaos it is the fault matrix instead: every fault that the
// machine can inject, under load from clients that use stream management
// (XEP-0198) and hold each message that was acknowledged; docs/chaos.md.
//
//	go test -tags chaos -v -timeout 90m -run '^TestChaos$' ./cmd/musterd/crashtest
//
// CHAOS_ONLY names cases ("F3,F12"), CHAOS_CLIENTS how many clients there are (40),
// CHAOS_LOG the level of the nodes' logs.
//
// The binaries are built first, or taken from the folder that MUSTER_BIN names.
// Each group ends with a table of figures; MUSTER_REPORT names a file that gets
// the tables too. Invariants: traffic stays on 127.0.0.0/8; every process that
// is started ends with the test; the folder of a cluster is kept when its test failed.
package crashtest
