package backup_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"

	"lifeboat/backup"
	"lifeboat/backup/etcd"
	"lifeboat/internal/etcdtest"
	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/events"
	"lifeboat/internal/freeport"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/restore"
	"lifeboat/storage"
	"lifeboat/storage/local"
)

const node = "cp1"

// busy is what a machine with other work may take to end what was cancelled; less
// than any limit that would end it without that.
const busy = 8 * time.Second

// world is the keys of one cluster, and a node that backs it up.
type world struct {
	identity *age.X25519Identity
	signer   *manifest.Signer
	trust    *manifest.Trust
	scratch  string
	events   recorder
}

func newWorld(t testing.TB) *world {
	t.Helper()
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	name, err := manifest.NewCluster(rand.Reader, "test")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := manifest.GenerateSigner(rand.Reader, node)
	if err != nil {
		t.Fatal(err)
	}
	return &world{
		identity: identity, signer: signer, scratch: filepath.Join(t.TempDir(), "scratch"),
		trust: &manifest.Trust{Cluster: name, Verifiers: []manifest.Verifier{
			{Key: signer.VerifierText(), Chains: []string{"*"}, Kinds: []string{"*"}},
		}},
	}
}

// open opens the repository in a store as a process would that has just
// started: nothing is remembered.
func (w *world) open(t testing.TB, store storage.Store) *repository.Repository {
	t.Helper()
	repo, err := repository.Open(store, repository.Options{
		Trust: w.trust, Signer: w.signer, Name: "store", Now: time.Now, Rand: rand.Reader,
		Writer: manifest.Writer{Node: node, Version: "test"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return repo
}

// runner backs up into the given stores, named a, b, c ...
func (w *world) runner(t testing.TB, stores ...storage.Store) *backup.Runner {
	t.Helper()
	r := &backup.Runner{
		MinStores: 1, Recipients: []age.Recipient{w.identity.Recipient()}, RecipientNames: []string{w.identity.Recipient().String()},
		Writer: manifest.Writer{Node: node, Version: "test"}, Scratch: w.scratch, StoreStall: 20 * time.Second,
		Now: time.Now, Rand: rand.Reader, Events: w.events.listen,
	}
	for i, store := range stores {
		r.Stores = append(r.Stores, backup.Store{URL: string(rune('a' + i)), Repository: w.open(t, store)})
	}
	return r
}

// recorder keeps the warnings and failures that a backup tells.
type recorder struct {
	mu   sync.Mutex
	told []string
	hook events.Listener // may be nil
}

func (r *recorder) listen(e events.Event) {
	r.mu.Lock()
	switch e := e.(type) {
	case events.Warning:
		r.told = append(r.told, e.Subject+": "+e.Message)
	case events.StoreFailed:
		r.told = append(r.told, e.Store+": "+e.Err.Error())
	}
	hook := r.hook
	r.mu.Unlock()
	hook.Emit(e)
}

func (r *recorder) all() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.told, "\n")
}

// verified fails the test unless a fresh reader finds nothing wrong.
func (w *world) verified(t testing.TB, store storage.Store) {
	t.Helper()
	report, err := w.open(t, store).Verify(t.Context(), repository.VerifyOptions{})
	if err != nil {
		t.Fatalf("verify: %v", err)
	}
	if failures := repository.Failures(report.Problems); len(failures) > 0 {
		t.Fatalf("verify found %v", failures)
	}
}

// backups lists what a fresh reader can restore, newest first, and fails the
// test if anything is wrong with it.
func (w *world) backups(t testing.TB, store storage.Store) []repository.Backup {
	t.Helper()
	list, problems, err := w.open(t, store).Backups(t.Context())
	if err != nil {
		t.Fatalf("list: %v", err)
	}
	if failures := repository.Failures(problems); len(failures) > 0 {
		t.Fatalf("list found %v", failures)
	}
	return list
}

func ids(list []repository.Backup) []manifest.ID {
	all := []manifest.ID{}
	for _, b := range list {
		all = append(all, b.ID)
	}
	return all
}

// restored restores the newest full into a new data directory for a member m0,
// as in the disaster.
func (w *world) restored(t testing.TB, store storage.Store, want *manifest.Manifest) (dataDir, peerURL string) {
	t.Helper()
	port, err := freeport.Take()
	if err != nil {
		t.Fatal(err)
	}
	zero := uint64(0)
	dataDir, peerURL = filepath.Join(t.TempDir(), "etcd"), fmt.Sprintf("http://127.0.0.1:%d", port)
	plan, err := restore.PlanEtcd(t.Context(), w.open(t, store), restore.EtcdOptions{
		Identities: []age.Identity{w.identity}, DataDir: dataDir, Name: "m0",
		PeerURLs: []string{peerURL}, Bump: &zero, Now: time.Now, Rand: rand.Reader,
	})
	if err != nil {
		t.Fatalf("plan a restore: %v", err)
	}
	if plan.Backup.ID != want.ID {
		t.Fatalf("the restore would take backup %s, the newest is %s", plan.Backup.ID, want.ID)
	}
	if err := plan.Execute(t.Context(), nil); err != nil {
		t.Fatalf("restore: %v", err)
	}
	if plan.Result.Revision != int64(want.Etcd.Revision) {
		t.Fatalf("restored up to revision %d, the backup holds %d", plan.Result.Revision, want.Etcd.Revision)
	}
	return dataDir, peerURL
}

// opened unseals a backup and checks all of it.
func (w *world) opened(t testing.TB, store storage.Store, m *manifest.Manifest) *restore.DeepReport {
	t.Helper()
	report, err := restore.DeepVerify(t.Context(), w.open(t, store), m, restore.DeepOptions{
		Identities: []age.Identity{w.identity}, Scratch: t.TempDir(), Now: time.Now,
	})
	if err != nil {
		t.Fatalf("open backup %s: %v", m.ID, err)
	}
	return report
}

// noScratch fails the test if a backup left something in its scratch folder.
func (w *world) noScratch(t testing.TB) {
	t.Helper()
	entries, err := os.ReadDir(w.scratch)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for _, entry := range entries {
		t.Errorf("left in scratch: %s", entry.Name())
	}
}

// objects lists a store.
func objects(t testing.TB, store storage.Store) []string {
	t.Helper()
	var names []string
	for info, err := range store.List(context.Background(), "") {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, info.Name)
	}
	return names
}

// duplicate copies every object of a store into an empty one.
func duplicate(t testing.TB, from, to storage.Store) {
	t.Helper()
	for _, name := range objects(t, from) {
		body, _, err := from.Open(t.Context(), name, storage.Range{})
		if err != nil {
			t.Fatal(err)
		}
		if err := to.Put(t.Context(), name, body, storage.PutOptions{}); err != nil {
			t.Fatal(err)
		}
		body.Close()
	}
}

func directory(t testing.TB) storage.Store {
	t.Helper()
	store, err := local.New(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	return store
}

var limits = etcd.Limits{Call: 5 * time.Second, NoProgress: 10 * time.Second, MaxStall: time.Second}

// shared is one small etcd for all tests that don't change it.
var shared struct {
	sync.Once
	dir    string
	member *etcdtest.Member
	err    error
}

func sharedEtcd(t testing.TB) etcd.Config {
	t.Helper()
	shared.Do(func() {
		if shared.dir, shared.err = os.MkdirTemp("", "lifeboat-backup-"); shared.err != nil {
			return
		}
		if shared.member, shared.err = etcdtest.StartEmbedded(shared.dir, etcdtest.EmbeddedOptions{NoSync: true}); shared.err != nil {
			return
		}
		client, err := shared.member.Client()
		if err != nil {
			shared.err = err
			return
		}
		defer client.Close()
		_, shared.err = etcdtest.Fill(context.Background(), client, etcdtest.FillOptions{Objects: 30, Seed: 1})
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return etcd.Config{Name: "main", Endpoints: []string{shared.member.Endpoint}}
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.dir != "" {
		_ = shared.member.Close()
		if err := os.RemoveAll(shared.dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	os.Exit(code)
}

// configOf is how a backup reaches a cluster of real servers.
func configOf(c *cluster.Cluster) etcd.Config {
	return etcd.Config{Name: "main", Endpoints: c.Endpoints(), CAFile: c.CAFile, CertFile: c.CertFile, KeyFile: c.KeyFile}
}

// mustEtcd takes a backup that must succeed.
func mustEtcd(t testing.TB, r *backup.Runner, config etcd.Config) *manifest.Manifest {
	t.Helper()
	result, err := r.Etcd(t.Context(), config, limits)
	if err != nil {
		t.Fatalf("back up: %v", err)
	}
	return result.Manifest
}

func has(list []string, text string) bool {
	return slices.ContainsFunc(list, func(s string) bool { return strings.Contains(s, text) })
}
