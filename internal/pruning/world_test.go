package pruning

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"io"
	"iter"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/storage"
)

const (
	cluster  = "prod-k3x9m2q7"
	etcdMain = manifest.Chain("etcd/main")
	hostsCP1 = manifest.Chain("hosts/cp1")
)

// world is one cluster in one store, in a time that the test moves.
type world struct {
	t      testing.TB
	store  storage.Store
	signer *manifest.Signer
	trust  *manifest.Trust

	offset   atomic.Int64 // of the world's time from the real one's start
	revision atomic.Int64
}

var start = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func newWorld(t testing.TB, inner storage.Store) *world {
	t.Helper()
	w := &world{t: t}
	w.store = &timed{Store: inner, now: w.now, put: map[string]time.Time{}}
	w.signer = w.newSigner("cp1")
	w.trust = &manifest.Trust{Cluster: cluster, Verifiers: []manifest.Verifier{verifier(w.signer, "*")}}
	return w
}

func (w *world) newSigner(name string) *manifest.Signer {
	w.t.Helper()
	s, err := manifest.GenerateSigner(rand.Reader, name)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func verifier(s *manifest.Signer, kinds ...string) manifest.Verifier {
	return manifest.Verifier{Key: s.VerifierText(), Chains: []string{"*"}, Kinds: kinds}
}

func (w *world) now() time.Time          { return start.Add(time.Duration(w.offset.Load())) }
func (w *world) forward(d time.Duration) { w.offset.Add(int64(d)) }

// open opens the repository as a process would that has just started.
func (w *world) open(change ...func(*repository.Options)) *repository.Repository {
	return w.on(w.store, change...)
}

func (w *world) on(store storage.Store, change ...func(*repository.Options)) *repository.Repository {
	opts := repository.Options{
		Trust: w.trust, Signer: w.signer, Name: "store", Now: w.now, Writer: manifest.Writer{Node: "cp1", Version: "test"},
	}
	for _, f := range change {
		f(&opts)
	}
	r, err := repository.Open(store, opts)
	if err != nil {
		panic(err)
	}
	return r
}

// draft is a backup as a capture at this moment makes it, with its one object's
// bytes.
func (w *world) draft(chain manifest.Chain) (*manifest.Manifest, string) {
	id, err := manifest.NewID(rand.Reader)
	if err != nil {
		panic(err)
	}
	body := strings.Repeat("sealed bytes of "+string(id)+"\n", 100)
	m := &manifest.Manifest{
		Chain: chain, Kind: manifest.KindFull, ID: id, Created: w.now(), Writer: manifest.Writer{Node: "cp1", Version: "test"},
		Objects: []manifest.Object{{
			Name: repository.ObjectName(chain, id, "data.zst.age"), Role: manifest.RoleSnapshot,
			Size: int64(len(body)), PlainSize: int64(len(body)), SHA256: sha256.Sum256([]byte(body)),
		}},
	}
	if chain == etcdMain {
		m.Etcd = &manifest.Etcd{ClusterID: 7, MemberID: 1, Version: "3.6.0", Revision: manifest.Revision(w.revision.Add(1)), HashKV: 7}
	} else {
		m.Kind, m.Host, m.Objects[0].Role = manifest.KindFiles, &manifest.Host{Node: "cp1", Files: 1}, manifest.RoleFiles
	}
	return m, body
}

func commit(ctx context.Context, repo *repository.Repository, m *manifest.Manifest, body string) error {
	if err := repo.PutObject(ctx, m.Objects[0].Name, strings.NewReader(body), time.Time{}); err != nil {
		return err
	}
	_, err := repo.Commit(ctx, m)
	return err
}

// backup makes one backup, an hour after whatever was before.
func (w *world) backup(chain manifest.Chain, change ...func(*manifest.Manifest)) *manifest.Manifest {
	w.t.Helper()
	w.forward(time.Hour)
	m, body := w.draft(chain)
	for _, f := range change {
		f(m)
	}
	if err := commit(w.t.Context(), w.open(), m, body); err != nil {
		w.t.Fatal(err)
	}
	return m
}

// listed are the backups that a fresh reader finds, which must verify.
func (w *world) listed() map[manifest.ID]repository.Backup {
	w.t.Helper()
	repo := w.open()
	report, err := repo.Verify(w.t.Context(), repository.VerifyOptions{})
	if err == nil {
		err = report.Err()
	}
	if err != nil {
		w.t.Fatal(err)
	}
	backups, _, err := repo.Backups(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	listed := map[manifest.ID]repository.Backup{}
	for _, b := range backups {
		listed[b.ID] = b
	}
	return listed
}

// timed is a store that lives in the world's time.
type timed struct {
	storage.Store
	now func() time.Time

	mu  sync.Mutex
	put map[string]time.Time
}

func (s *timed) Now(ctx context.Context) (time.Time, error) { return s.now(), ctx.Err() }

func (s *timed) Put(ctx context.Context, name string, r io.Reader, opts storage.PutOptions) error {
	err := s.Store.Put(ctx, name, r, opts)
	if err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.put[name] = s.now()
	}
	return err
}

func (s *timed) in(info storage.Info) storage.Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, known := s.put[info.Name]
	if !known { // seen before its Put returned
		at = s.now()
	}
	info.Modified = at
	return info
}

func (s *timed) Open(ctx context.Context, name string, rng storage.Range) (io.ReadCloser, storage.Info, error) {
	body, info, err := s.Store.Open(ctx, name, rng)
	return body, s.in(info), err
}

func (s *timed) List(ctx context.Context, prefix string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		for info, err := range s.Store.List(ctx, prefix) {
			if !yield(s.in(info), err) {
				return
			}
		}
	}
}

// noPuts refuses every Put.
type noPuts struct {
	*timed
	err   error
	tries int
}

func (s *noPuts) Put(context.Context, string, io.Reader, storage.PutOptions) error {
	s.tries++
	return s.err
}

func containsFolder(name, folder string) bool { return strings.Contains(name, "/"+folder+"/") }
