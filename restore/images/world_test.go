package images_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"testing"
	"time"

	"filippo.io/age"

	"lifeboat/backup"
	saving "lifeboat/backup/images"
	"lifeboat/internal/containerd/containerdtest"
	"lifeboat/internal/manifest"
	"lifeboat/internal/oci"
	"lifeboat/internal/repository"
	"lifeboat/restore/images"
	"lifeboat/storage"
	"lifeboat/storage/memory"
)

var platform = oci.Platform{OS: "linux", Architecture: "amd64"}

// world is a cluster's keys and a store.
type world struct {
	t        testing.TB
	signer   *manifest.Signer
	trust    *manifest.Trust
	identity *age.X25519Identity
	store    storage.Store
	repo     *repository.Repository
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, store: memory.New()}
	var err error
	if w.signer, err = manifest.GenerateSigner(rand.Reader, "cp1"); err != nil {
		t.Fatal(err)
	}
	w.trust = &manifest.Trust{Cluster: "prod-eu1-k3x9m2q7", Verifiers: []manifest.Verifier{{
		Key: w.signer.VerifierText(), Chains: []string{"*"}, Kinds: []string{"*"},
	}}}
	if w.identity, err = age.GenerateX25519Identity(); err != nil {
		t.Fatal(err)
	}
	w.repo = w.on(w.store)
	return w
}

func (w *world) on(store storage.Store) *repository.Repository {
	w.t.Helper()
	r, err := repository.Open(store, repository.Options{
		Trust: w.trust, Signer: w.signer, Name: "memory:", Writer: manifest.Writer{Node: "cp1", Version: "0.1.0"},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func (w *world) saving(from saving.Source) saving.Options {
	return saving.Options{
		Source: from, Node: "cp1", Platform: platform,
		Stores:     []backup.Store{{URL: "memory:", Repository: w.repo}},
		Recipients: []age.Recipient{w.identity.Recipient()}, RecipientNames: []string{w.identity.Recipient().String()},
		Writer: manifest.Writer{Node: "cp1", Version: "0.1.0"}, StoreStall: 20 * time.Second, Now: time.Now, Rand: rand.Reader,
	}
}

func (w *world) saved(o saving.Options) *saving.Saved {
	w.t.Helper()
	plan, err := saving.Look(w.t.Context(), o)
	if err != nil {
		w.t.Fatal(err)
	}
	saved, err := plan.Save(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return saved
}

func (w *world) save(o saving.Options) *manifest.Manifest {
	w.t.Helper()
	return w.saved(o).Stores[0].Manifest
}

func (w *world) loading(m *manifest.Manifest, to images.Target) images.Options {
	return images.Options{
		Repository: w.repo, Backup: m, Identities: []age.Identity{w.identity}, Target: to, Platform: platform, Now: time.Now, Rand: rand.Reader,
	}
}

// reading opens a blob of a store, raw without its check.
func reading(s *containerdtest.Store, d oci.Descriptor) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return s.Open(context.Background(), d) }
}

func raw(s *containerdtest.Store, d oci.Descriptor) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) {
		data, ok := s.Blobs[d.Digest]
		if !ok {
			return nil, errors.New("no such blob")
		}
		return io.NopCloser(bytes.NewReader(data)), nil
	}
}
