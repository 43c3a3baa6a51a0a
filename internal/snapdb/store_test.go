package snapdb_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/pkg/v3/traceutil"
	"go.etcd.io/etcd/server/v3/lease"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.uber.org/zap"

	"lifeboat/internal/snapdb"
)

// store is etcd's own, as the oracle: it answers HashKV by etcd's code.
type store struct {
	t  testing.TB
	be backend.Backend
	kv mvcc.KV
	at int64 // its compact revision, -1 for none
}

func openStore(t testing.TB, path string) *store {
	t.Helper()
	be := backend.NewDefaultBackend(zap.NewNop(), path)
	return &store{t: t, be: be, kv: mvcc.NewStore(zap.NewNop(), be, &lease.FakeLessor{}, mvcc.StoreConfig{}), at: -1}
}

func (s *store) close() {
	if err := s.kv.Close(); err != nil {
		s.t.Error(err)
	}
	if err := s.be.Close(); err != nil {
		s.t.Error(err)
	}
}

func (s *store) hash(rev int64) mvcc.KeyValueHash {
	s.t.Helper()
	h, _, err := s.kv.HashStorage().HashByRev(rev)
	if err != nil {
		s.t.Fatalf("etcd's hash at %d: %v", rev, err)
	}
	return h
}

func (s *store) compact(rev int64) {
	s.t.Helper()
	done, err := s.kv.Compact(traceutil.TODO(), rev)
	if err != nil {
		s.t.Fatal(err)
	}
	<-done
	s.at = rev
}

// snapshot copies the database as the maintenance API would.
func (s *store) snapshot(name string) string {
	s.t.Helper()
	s.kv.Commit()
	path := filepath.Join(s.t.TempDir(), name)
	f, err := os.Create(path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	snap := s.be.Snapshot()
	if _, err := snap.WriteTo(f); err != nil {
		s.t.Fatal(err)
	}
	if err := snap.Close(); err != nil {
		s.t.Fatal(err)
	}
	return path
}

func (s *store) revision() int64 { return s.kv.Rev() }

// live counts the keys by asking etcd.
func (s *store) live() int64 {
	s.t.Helper()
	r, err := s.kv.Range(s.t.Context(), []byte{0}, []byte{}, mvcc.RangeOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	return int64(r.Count)
}

// random does n random transactions over few keys.
func (s *store) random(rng *rand.Rand, n, keys int) {
	for range n {
		tx := s.kv.Write(traceutil.TODO())
		used := map[int]bool{}
		for range 1 + rng.IntN(3)*rng.IntN(2) {
			k := rng.IntN(keys)
			if used[k] {
				continue
			}
			used[k] = true
			key := fmt.Appendf(nil, "/registry/k%d", k)
			if rng.IntN(3) == 0 {
				tx.DeleteRange(key, nil)
			} else {
				tx.Put(key, fmt.Appendf(nil, "value %d", rng.Uint64()), lease.NoLease)
			}
		}
		tx.End()
	}
}

func TestHashKVEqualsEtcdsOverRandomHistories(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			s := openStore(t, filepath.Join(t.TempDir(), "db"))
			defer s.close()
			keys := 1 + rng.IntN(30)
			s.random(rng, 20+rng.IntN(60), keys)
			var before string // a snapshot that is compacted less far than the store
			for range rng.IntN(3) {
				before = s.snapshot("before.db")
				if next := s.at + 1 + rng.Int64N(s.revision()-max(s.at, 0)+1); next > 0 && next <= s.revision() {
					s.compact(next)
				}
				if rng.IntN(4) != 0 {
					s.random(rng, rng.IntN(40), keys)
				}
			}
			if rng.IntN(8) == 0 { // nothing alive
				tx := s.kv.Write(traceutil.TODO())
				tx.DeleteRange([]byte("/"), []byte("0"))
				tx.End()
			}
			compareAll(t, s, s.snapshot("now.db"))
			if before == "" {
				return
			}
			// The same hash from a file taken before the last compaction.
			facts := inspect(t, before)
			if facts.Revision >= s.at {
				want := s.hash(facts.Revision)
				got, err := snapdb.HashKV(t.Context(), before, want.Revision, want.CompactRevision)
				if err != nil || got != want.Hash {
					t.Errorf("from before the compaction at %d, at revision %d: %x, %v; etcd has %x", s.at, want.Revision, got, err, want.Hash)
				}
			}
		})
	}
}

// compareAll compares the facts and every hash that etcd still answers. etcd
// serves a hash that it kept of a compaction revision, which is as of an
// earlier compaction: those can't be told from the file.
func compareAll(t *testing.T, s *store, path string) {
	t.Helper()
	facts := inspect(t, path)
	if facts.Revision != s.revision() || facts.CompactRevision != s.at || facts.Keys != s.live() {
		t.Errorf("revision %d, compact revision %d, %d keys; etcd has %d, %d, %d",
			facts.Revision, facts.CompactRevision, facts.Keys, s.revision(), s.at, s.live())
	}
	for rev := max(s.at, 1); rev <= s.revision(); rev++ {
		want := s.hash(rev)
		got, err := snapdb.HashKV(t.Context(), path, rev, want.CompactRevision)
		if want.CompactRevision < s.at {
			if !errors.Is(err, snapdb.ErrCompacted) {
				t.Errorf("hash at %d, %d of a file compacted at %d: %v", rev, want.CompactRevision, s.at, err)
			}
			continue
		}
		if err != nil || got != want.Hash {
			t.Errorf("at revision %d, compact revision %d: %x, %v; etcd has %x", rev, want.CompactRevision, got, err, want.Hash)
		}
		if rev == s.revision() && facts.HashKV != want.Hash {
			t.Errorf("Inspect has %x, etcd %x", facts.HashKV, want.Hash)
		}
	}
	for _, p := range [][2]int64{{s.revision() + 1, s.at}, {max(s.at, 1), s.revision() + 1}} {
		if _, err := snapdb.HashKV(t.Context(), path, p[0], p[1]); !errors.Is(err, snapdb.ErrFuture) && !errors.Is(err, snapdb.ErrCompacted) {
			t.Errorf("a hash at revision %d, compact revision %d: %v", p[0], p[1], err)
		}
	}
}

func TestHashKVOfAnUnfinishedCompactionEqualsEtcds(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 2))
			s := openStore(t, filepath.Join(t.TempDir(), "db"))
			keys := 1 + rng.IntN(20)
			s.random(rng, 40, keys)
			if rng.IntN(2) == 0 {
				s.compact(1 + rng.Int64N(s.revision()))
				s.random(rng, 40, keys)
			}
			scheduled := max(s.at, 1) + rng.Int64N(s.revision()-max(s.at, 1)+1)
			path := s.snapshot("before.db")
			whole := s
			unfinished := edit(t, path, func(tx *bbolt.Tx) error {
				if err := tx.Bucket([]byte("meta")).Put([]byte("scheduledCompactRev"), revisionKey(scheduled, 0, false)); err != nil {
					return err
				}
				return nil
			})
			facts := inspect(t, unfinished)
			if facts.CompactRevision != scheduled || facts.Revision != whole.revision() || facts.Keys != whole.live() {
				t.Errorf("%+v; want revision %d, compact revision %d, %d keys", facts, whole.revision(), scheduled, whole.live())
			}
			whole.close()

			if want := resumedHash(t, unfinished, facts, scheduled); facts.HashKV != want.Hash {
				t.Errorf("%x, etcd has %x", facts.HashKV, want.Hash)
			}
		})
	}
}

// resumedHash is etcd's hash of a file with an unfinished compaction, as of
// that. etcd goes on with it when it opens the file, and once it is done
// serves the hash that it kept of the compacted revision instead, which is as
// of an earlier compaction: then it was too fast, and opens the file once more.
func resumedHash(t *testing.T, path string, facts *snapdb.Facts, scheduled int64) mvcc.KeyValueHash {
	t.Helper()
	const tries = 50
	var want mvcc.KeyValueHash
	for range tries {
		resumed := openStore(t, copyFile(t, path))
		if facts.Keys == 0 {
			// Then the hash depends on how far the compaction is.
			for inspect(t, resumed.snapshot("progress.db")).UnfinishedCompaction() {
				time.Sleep(time.Millisecond)
			}
		}
		want = resumed.hash(facts.Revision)
		resumed.close()
		if want.CompactRevision == scheduled || !facts.UnfinishedCompaction() {
			return want
		}
	}
	t.Fatalf("etcd serves a hash as of %d in %d tries, want %d", want.CompactRevision, tries, scheduled)
	return want
}

func copyFile(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "copy.db")
	if err := os.WriteFile(to, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return to
}
