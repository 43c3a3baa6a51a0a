package restore

import (
	"bytes"
	"context"
	"crypto/rand"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"filippo.io/age"

	"lifeboat/internal/etcdtest"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/seal"
	"lifeboat/internal/snapdb"
	"lifeboat/storage/memory"
)

// fixture is a repository in memory with its keys.
type fixture struct {
	repo  *repository.Repository
	store *memory.Store
	id    *age.X25519Identity
	now   time.Time
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	cluster, err := manifest.NewCluster(rand.Reader, "test")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := manifest.GenerateSigner(rand.Reader, cluster)
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{store: memory.New(), id: id, now: time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)}
	f.repo, err = repository.Open(f.store, repository.Options{
		Trust:  &manifest.Trust{Cluster: cluster, Verifiers: []manifest.Verifier{{Key: signer.VerifierText(), Chains: []string{"*"}, Kinds: []string{"*"}}}},
		Signer: signer, Name: "memory", Now: func() time.Time { return f.now },
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// commit seals plain and commits it under the draft.
func (f *fixture) commit(t *testing.T, draft *manifest.Manifest, role manifest.Role, file string, plain []byte) *manifest.Manifest {
	t.Helper()
	id, err := manifest.NewID(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var sealed bytes.Buffer
	w, err := seal.NewWriter(&sealed, []age.Recipient{f.id.Recipient()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	name := repository.ObjectName(draft.Chain, id, file)
	if err := f.repo.PutObject(t.Context(), name, bytes.NewReader(sealed.Bytes()), time.Time{}); err != nil {
		t.Fatal(err)
	}
	sums := w.Sums()
	draft.ID, draft.Created = id, f.now
	draft.Writer = manifest.Writer{Node: "cp1", Version: "test"}
	draft.Objects = []manifest.Object{{Name: name, Role: role, Size: sums.StoredSize, SHA256: sums.StoredSHA256, PlainSize: sums.PlainSize}}
	done, err := f.repo.Commit(t.Context(), draft)
	if err != nil {
		t.Fatal(err)
	}
	return done.Manifest
}

// full commits the snapshot at path; edit may falsify the manifest.
func (f *fixture) full(t *testing.T, path string, edit func(*manifest.Manifest)) *manifest.Manifest {
	t.Helper()
	plain, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	facts, err := snapdb.Inspect(t.Context(), path, snapdb.Options{})
	if err != nil {
		t.Fatal(err)
	}
	draft := &manifest.Manifest{
		Chain: DefaultChain, Kind: manifest.KindFull,
		Etcd: &manifest.Etcd{
			Version: "3.7.3", StorageVersion: facts.StorageVersion, ClusterVersion: facts.ClusterVersion,
			ClusterID: 1, MemberID: 2,
			Revision: manifest.Revision(facts.Revision), CompactRevision: manifest.Revision(max(0, facts.CompactRevision)), // -1: never compacted
			HashKV: facts.HashKV, DBBytes: facts.DBBytes, Keys: facts.Keys,
			ComparedWith: []manifest.EtcdID{2},
			Members:      []manifest.Member{{ID: 2, Name: "m0", PeerURLs: []string{"http://127.0.0.1:2380"}}},
		},
	}
	if edit != nil {
		edit(draft)
	}
	return f.commit(t, draft, manifest.RoleSnapshot, "snapshot.db.zst.age", plain)
}

func (f *fixture) etcdOptions(dataDir string) EtcdOptions {
	return EtcdOptions{
		Identities: []age.Identity{f.id}, DataDir: dataDir, Name: "m0", PeerURLs: []string{"http://127.0.0.1:2380"},
		Now: func() time.Time { return f.now }, Rand: rand.Reader,
	}
}

var builtSnapshot = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "lifeboat-restore-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "snapshot.db")
	_, err = etcdtest.BuildDB(path, etcdtest.BuildOptions{Objects: 600, Trailer: true, Storage: "3.7.0"})
	return path, err
})

func snapshotFile(t *testing.T) string {
	t.Helper()
	path, err := builtSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := builtSnapshot(); err == nil {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// overwrite replaces the bytes of a stored object behind the repository's back.
func (f *fixture) overwrite(t *testing.T, m *manifest.Manifest, edit func([]byte) []byte) {
	t.Helper()
	r, err := f.repo.OpenStored(t.Context(), m.Objects[0])
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := b.ReadFrom(r); err != nil {
		t.Fatal(err)
	}
	r.Close()
	if err := f.store.Put(context.Background(), f.repo.Cluster()+"/"+m.Objects[0].Name, bytes.NewReader(edit(b.Bytes())), putOptions); err != nil {
		t.Fatal(err)
	}
}
