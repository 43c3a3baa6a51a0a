// Package replay proves that any recorded second comes back exactly. It runs a
// real etcd of three members under random work and trouble, keeps a memory of
// its own of everything that happened (oracle_test.go), lets the program record
// it, and holds what the program restores to that memory: every key with its
// create and mod revision, version and lease, the leases' granted times, and
// HashKV against what the live members answered.
//
// The judge shares no code with the recorder: it watches with etcd's own
// client, and it reads a restored database file with bbolt.
//
// Each run prints its seed. LIFEBOAT_SEED repeats the plan of one: the same
// work and trouble in the same order, though not the same interleaving. A plain
// "go test" is a short run; "make test-replay" is the proof, and "make soak" a
// long one. LIFEBOAT_POINTS is how many revisions of each etcd version come back,
// LIFEBOAT_ROUNDS how often all kinds of trouble come, LIFEBOAT_KILLS how many
// processes are killed.
//
// The package holds tests only.
package replay
