// Package containerdtest has image stores for tests: one in memory, which can hold
// what no containerd would, and a real containerd of the test's own.
package containerdtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"lifeboat/internal/containerd"
	"lifeboat/internal/oci"
)

// Store is an image store in memory. Its fields may be changed between calls.
type Store struct {
	Blobs      map[oci.Digest][]byte
	Labels     map[oci.Digest]map[string]string
	Names      map[string]containerd.Image
	Containers []containerd.Used
	Leases     map[string]bool
	Unleased   []oci.Digest // blobs that were written, or written again, without a lease
	Fail       func(doing string, d oci.Digest) error

	mu sync.Mutex
}

// NewStore makes an empty one.
func NewStore() *Store {
	return &Store{
		Blobs: map[oci.Digest][]byte{}, Labels: map[oci.Digest]map[string]string{}, Names: map[string]containerd.Image{}, Leases: map[string]bool{},
	}
}

func (s *Store) fail(doing string, d oci.Digest) error {
	if s.Fail == nil {
		return nil
	}
	return s.Fail(doing, d)
}

// Add puts a blob and returns its descriptor.
func (s *Store) Add(mediaType string, data []byte) oci.Descriptor {
	d := oci.Descriptor{MediaType: mediaType, Digest: oci.DigestOf(sha256.Sum256(data)), Size: int64(len(data))}
	s.Blobs[d.Digest] = data
	return d
}

// AddJSON is Add for what is written as JSON.
func (s *Store) AddJSON(t testing.TB, mediaType string, v any) oci.Descriptor {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return s.Add(mediaType, data)
}

// Manifest puts an image's manifest with its configuration and layers.
func (s *Store) Manifest(t testing.TB, layers ...string) oci.Descriptor {
	t.Helper()
	var list []oci.Descriptor
	for _, text := range layers {
		list = append(list, s.Add("application/vnd.oci.image.layer.v1.tar+gzip", []byte(text)))
	}
	config := s.AddJSON(t, "application/vnd.oci.image.config.v1+json", map[string]any{"architecture": "amd64", "os": "linux", "layers": layers})
	return s.AddJSON(t, oci.TypeManifest, map[string]any{"schemaVersion": 2, "mediaType": oci.TypeManifest, "config": config, "layers": list})
}

// Image puts an image of two platforms under a name, as a registry would give it:
// of the second, only the index tells.
func (s *Store) Image(t testing.TB, name string, p oci.Platform, layers ...string) containerd.Image {
	t.Helper()
	here := s.Manifest(t, layers...)
	here.Platform = &p
	other := oci.Descriptor{
		MediaType: oci.TypeManifest, Digest: oci.DigestOf(sha256.Sum256([]byte("another platform's " + name))), Size: 500,
		Platform: &oci.Platform{OS: "linux", Architecture: "other"},
	}
	index := s.AddJSON(t, oci.TypeIndex, map[string]any{"schemaVersion": 2, "mediaType": oci.TypeIndex, "manifests": []oci.Descriptor{other, here}})
	i := containerd.Image{Name: name, Target: index}
	s.Names[name] = i
	return i
}

// Images implements backup/images.Inventory.
func (s *Store) Images(context.Context) ([]containerd.Image, error) {
	return slices.Collect(maps.Values(s.Names)), s.fail("images", "")
}

// Used implements backup/images.Inventory.
func (s *Store) Used(context.Context) ([]containerd.Used, error) {
	return slices.Clone(s.Containers), s.fail("used", "")
}

// Has implements oci.Source.
func (s *Store) Has(_ context.Context, d oci.Digest) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.Blobs[d]
	return ok, s.fail("has", d)
}

// Open implements backup/images.Source.
func (s *Store) Open(_ context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, ok := s.Blobs[d.Digest]
	if err := s.fail("open", d.Digest); err != nil {
		return nil, err
	}
	if !ok {
		return nil, containerd.ErrNotFound
	}
	return io.NopCloser(oci.Verified(bytes.NewReader(data), d)), nil
}

// Document implements oci.Source.
func (s *Store) Document(ctx context.Context, d oci.Descriptor) ([]byte, error) {
	r, err := s.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

type leased struct{}

// Lease implements restore/images.Target.
func (s *Store) Lease(ctx context.Context, id string, _ time.Time) (context.Context, func() error, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Leases[id] = true
	return context.WithValue(ctx, leased{}, id), func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.Leases, id)
		return nil
	}, s.fail("lease", "")
}

// Write implements restore/images.Target.
func (s *Store) Write(ctx context.Context, _ string, d oci.Descriptor, labels map[string]string, open func() (io.ReadCloser, error)) (bool, error) {
	if ctx.Value(leased{}) == nil {
		s.mu.Lock()
		s.Unleased = append(s.Unleased, d.Digest)
		s.mu.Unlock()
	}
	if has, _ := s.Has(ctx, d.Digest); has {
		r, err := s.Open(ctx, d)
		if err == nil {
			_, err = io.Copy(io.Discard, r)
		}
		if err != nil {
			return false, err
		}
		s.label(d, labels)
		return false, nil
	}
	r, err := open()
	if err != nil {
		return false, err
	}
	data, err := io.ReadAll(oci.Verified(r, d))
	if err := errors.Join(err, r.Close(), s.fail("write", d.Digest)); err != nil {
		return false, err
	}
	s.mu.Lock()
	s.Blobs[d.Digest] = data
	s.mu.Unlock()
	s.label(d, labels)
	return true, nil
}

func (s *Store) label(d oci.Descriptor, labels map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.Labels[d.Digest] == nil {
		s.Labels[d.Digest] = map[string]string{}
	}
	maps.Copy(s.Labels[d.Digest], labels)
}

// ByName implements restore/images.Target.
func (s *Store) ByName(_ context.Context, name string) (containerd.Image, error) {
	i, ok := s.Names[name]
	if !ok {
		return i, containerd.ErrNotFound
	}
	return i, nil
}

// SetImage implements restore/images.Target.
func (s *Store) SetImage(_ context.Context, i containerd.Image, replace bool) error {
	if old, ok := s.Names[i.Name]; ok && old.Target.Digest != i.Target.Digest && !replace {
		return containerd.ErrOtherImage
	}
	s.Names[i.Name] = i
	return s.fail("name", i.Target.Digest)
}

// Kept are the blobs that containerd's collector would keep: what images and labels
// lead to.
func (s *Store) Kept() map[oci.Digest]bool {
	kept := map[oci.Digest]bool{}
	var keep func(oci.Digest)
	keep = func(d oci.Digest) {
		if kept[d] {
			return
		}
		kept[d] = true
		for key, child := range s.Labels[d] {
			if strings.HasPrefix(key, "containerd.io/gc.ref.content") {
				keep(oci.Digest(child))
			}
		}
	}
	for _, i := range s.Names {
		keep(i.Target.Digest)
	}
	return kept
}
