package pruning

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"slices"
	"testing"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/retention"
	"lifeboat/storage/memory"
)

// saved commits images of a node, with those of their blobs that are not there.
func (w *world) saved(node string, blobs ...string) manifest.ID {
	w.t.Helper()
	w.forward(time.Hour)
	repo := w.open()
	there, err := repo.Blobs(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	draft := func(kind manifest.Kind) *manifest.Manifest {
		id, err := manifest.NewID(rand.Reader)
		if err != nil {
			w.t.Fatal(err)
		}
		return &manifest.Manifest{Chain: manifest.ImagesChain, Kind: kind, ID: id, Created: w.now(), Writer: manifest.Writer{Node: node, Version: "test"}}
	}
	images := draft(manifest.KindImages)
	images.Images = &manifest.Images{Node: node, Platform: "linux/amd64", Images: []manifest.Image{{
		Names: []string{"registry.k8s.io/etcd:3"}, SHA256: sha256.Sum256([]byte(blobs[0])), MediaType: "m", Size: 1,
	}}}
	for _, text := range blobs {
		sum := manifest.Hash(sha256.Sum256([]byte(text)))
		images.Images.Blobs = append(images.Images.Blobs, sum)
		if _, held := there.Of(sum); held {
			continue
		}
		m := draft(manifest.KindBlob)
		m.Recipients, m.Blob = []string{"age1x"}, &manifest.Blob{SHA256: sum}
		m.Objects = []manifest.Object{{
			Name: repository.ObjectName(m.Chain, m.ID, "blob.zst.age"), Role: manifest.RoleBlob, Size: int64(len(text)), PlainSize: 1, SHA256: sum,
		}}
		if err := commit(context.Background(), repo, m, text); err != nil {
			w.t.Fatal(err)
		}
	}
	slices.SortFunc(images.Images.Blobs, func(a, b manifest.Hash) int { return bytes.Compare(a[:], b[:]) })
	if _, err := repo.Commit(w.t.Context(), images); err != nil {
		w.t.Fatal(err)
	}
	return images.ID
}

func TestOneNodesImagesPushOutNothingOfAnothers(t *testing.T) {
	w := newWorld(t, memory.New())
	rare := w.saved("cp1", "arm base", "arm etcd")
	var busy []manifest.ID
	for _, text := range []string{"etcd 1", "etcd 2", "etcd 3"} {
		busy = append(busy, w.saved("cp2", "base", text))
	}
	w.forward(2 * time.Hour)
	report := w.run(Options{Policy: retention.Policy{Minimum: 1}})
	i := slices.IndexFunc(report.Chains, func(c Chain) bool { return c.Chain == manifest.ImagesChain })
	if i < 0 || report.Chains[i].Removed != 2 || len(report.Chains[i].Backups) != 4 {
		t.Fatalf("%+v", report.Chains)
	}
	kept := w.listed()
	if _, ok := kept[rare]; !ok || len(kept) != 2 {
		t.Errorf("kept %v", kept)
	}
	if _, ok := kept[busy[2]]; !ok {
		t.Errorf("the newest of cp2 is gone: %v", kept)
	}
	w.forward(repository.ManifestGrace + time.Hour)
	w.run(Options{Policy: retention.Policy{Minimum: 1}})
	blobs, err := w.open().Blobs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]bool{"arm base": true, "arm etcd": true, "base": true, "etcd 3": true, "etcd 1": false, "etcd 2": false} {
		if _, held := blobs.Of(sha256.Sum256([]byte(text))); held != want {
			t.Errorf("blob %q is there: %v", text, held)
		}
	}
	w.listed()
}
