package repository

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/storage"
	"lifeboat/storage/memory"
)

const (
	testCluster = "prod-eu1-k3x9m2q7"
	etcdMain    = manifest.Chain("etcd/main")
	hostsCP1    = manifest.Chain("hosts/cp1")
	drills      = manifest.Chain("drills")
)

// clock is a clock that a test moves.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) forward(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// lockedRand is a random source for several goroutines.
type lockedRand struct {
	mu sync.Mutex
	r  *rand.ChaCha8
}

func (l *lockedRand) Read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.r.Read(p)
}

// world is a cluster's store, keys and clock.
type world struct {
	t      testing.TB
	clock  *clock
	rand   io.Reader
	store  storage.Store
	signer *manifest.Signer
	trust  *manifest.Trust

	mu       sync.Mutex
	warnings []events.Warning
	revision manifest.Revision
}

func newWorld(t testing.TB, store storage.Store) *world {
	t.Helper()
	w := &world{t: t, clock: &clock{t: time.Now()}, rand: &lockedRand{r: rand.NewChaCha8([32]byte{1})}}
	if store == nil {
		store = memory.New(memory.WithClock(w.clock.now))
	}
	w.store = store
	w.signer = w.newSigner("cp1")
	w.trust = w.trusting(testCluster, w.signer)
	return w
}

func (w *world) newSigner(name string) *manifest.Signer {
	w.t.Helper()
	s, err := manifest.GenerateSigner(w.rand, name)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (w *world) trusting(cluster string, signers ...*manifest.Signer) *manifest.Trust {
	t := &manifest.Trust{Cluster: cluster}
	for _, s := range signers {
		t.Verifiers = append(t.Verifiers, manifest.Verifier{Key: s.VerifierText(), Chains: []string{"*"}, Kinds: []string{"*"}})
	}
	return t
}

// open opens the repository as a process would that has just started.
func (w *world) open(change ...func(*Options)) *Repository {
	w.t.Helper()
	opts := Options{
		Trust: w.trust, Signer: w.signer, Name: "memory:", Now: w.clock.now, Rand: w.rand,
		Writer: manifest.Writer{Node: "cp1", Version: "0.1.0"},
		Events: func(e events.Event) {
			if warning, ok := e.(events.Warning); ok {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.warnings = append(w.warnings, warning)
			}
		},
	}
	for _, f := range change {
		f(&opts)
	}
	r, err := Open(w.store, opts)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// on makes a repository work on another store, keeping everything else.
func on(r *Repository, store storage.Store) *Repository {
	other, err := Open(store, r.opts)
	if err != nil {
		panic(err)
	}
	return other
}

func (w *world) id() manifest.ID {
	id, err := manifest.NewID(w.rand)
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

// draft is a backup with its objects' bytes, as a capture would make it.
func (w *world) draft(chain manifest.Chain, kind manifest.Kind) (*manifest.Manifest, map[string][]byte) {
	id := w.id()
	m := &manifest.Manifest{
		Chain: chain, Kind: kind, ID: id, Created: w.clock.now(), Writer: manifest.Writer{Node: "cp1", Version: "0.1.0"},
	}
	w.mu.Lock()
	if kind == manifest.KindFull {
		w.revision += 10
	}
	revision := w.revision
	w.mu.Unlock()
	files := map[string]manifest.Role{}
	switch kind {
	case manifest.KindFull:
		m.Etcd = &manifest.Etcd{ClusterID: 7, MemberID: 1, Version: "3.6.16", Revision: revision, HashKV: 77, ComparedWith: []manifest.EtcdID{2}}
		files["snapshot.db.zst.age"] = manifest.RoleSnapshot
	case manifest.KindFiles:
		m.Host = &manifest.Host{Node: strings.TrimPrefix(string(chain), "hosts/"), Files: 3}
		files["files.tar.zst.age"] = manifest.RoleFiles
	case manifest.KindDrill:
		files["report.json"], files["report.html"] = "report", "page"
	}
	bytes := map[string][]byte{}
	for file, role := range files {
		data := []byte(fmt.Sprintf("sealed bytes of %s in %s, revision %d", file, id, revision))
		name := ObjectName(chain, id, file)
		bytes[name] = data
		m.Objects = append(m.Objects, manifest.Object{
			Name: name, Role: role, Size: int64(len(data)), SHA256: sha256.Sum256(data), PlainSize: int64(len(data)),
		})
	}
	slices.SortFunc(m.Objects, func(a, b manifest.Object) int { return strings.Compare(a.Name, b.Name) })
	return m, bytes
}

// put stores a draft's objects, stopping at the first failure.
func put(ctx context.Context, r *Repository, m *manifest.Manifest, data map[string][]byte) error {
	for _, o := range m.Objects {
		if err := r.PutObject(ctx, o.Name, bytes.NewReader(data[o.Name]), time.Time{}); err != nil {
			return err
		}
	}
	return nil
}

// backup makes one whole backup and moves the clock a minute on.
func (w *world) backup(r *Repository, chain manifest.Chain, kind manifest.Kind, change ...func(*manifest.Manifest)) *Committed {
	w.t.Helper()
	m, data := w.draft(chain, kind)
	for _, f := range change {
		f(m)
	}
	if err := put(w.t.Context(), r, m, data); err != nil {
		w.t.Fatal(err)
	}
	done, err := r.Commit(w.t.Context(), m)
	if err != nil {
		w.t.Fatal(err)
	}
	w.clock.forward(time.Minute)
	return done
}

func (w *world) full(r *Repository, change ...func(*manifest.Manifest)) *Committed {
	w.t.Helper()
	return w.backup(r, etcdMain, manifest.KindFull, change...)
}

// failures verifies as a fresh reader and returns what is wrong.
func (w *world) failures(r *Repository) []Problem {
	w.t.Helper()
	rep, err := r.Verify(w.t.Context(), VerifyOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	failures := Failures(rep.Problems)
	if err := rep.Err(); (err != nil) != (len(failures) > 0) || err != nil && !errors.Is(err, ErrVerification) {
		w.t.Fatalf("report with %d failures gives error %v", len(failures), err)
	}
	return failures
}

func (w *world) clean(r *Repository) {
	w.t.Helper()
	if failures := w.failures(r); len(failures) > 0 {
		w.t.Fatalf("failures: %v", failures)
	}
}

func (w *world) ids(r *Repository) []manifest.ID {
	w.t.Helper()
	backups, _, err := r.Backups(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	ids := []manifest.ID{}
	for _, b := range backups {
		ids = append(ids, b.ID)
	}
	return ids
}

func (w *world) stored(r *Repository, chain manifest.Chain, seq manifest.Sequence) string {
	return r.stored(ManifestName(chain, seq))
}

func get(t testing.TB, s storage.Store, name string) []byte {
	t.Helper()
	body, _, err := s.Open(t.Context(), name, storage.Range{})
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	data, err := io.ReadAll(body)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func set(t testing.TB, s storage.Store, name string, data []byte) {
	t.Helper()
	if err := s.Put(t.Context(), name, bytes.NewReader(data), storage.PutOptions{}); err != nil {
		t.Fatal(err)
	}
}

func remove(t testing.TB, s storage.Store, name string) {
	t.Helper()
	if err := s.Delete(t.Context(), name); err != nil {
		t.Fatal(err)
	}
}

func names(t testing.TB, s storage.Store, prefix string) []string {
	t.Helper()
	var list []string
	for info, err := range s.List(t.Context(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, info.Name)
	}
	return list
}

// wantKinds checks that an object was reported with a kind.
func wantProblem(t testing.TB, problems []Problem, object string, kind Kind) {
	t.Helper()
	if !slices.ContainsFunc(problems, func(p Problem) bool { return p.Object == object && p.Kind == kind }) {
		t.Errorf("no problem %q about %s; got %v", kind, object, problems)
	}
}
