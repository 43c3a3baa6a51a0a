package transfer

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"slices"
	"testing"
	"time"

	"filippo.io/age"

	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/storage/fault"
	"lifeboat/storage/memory"
)

// blob commits one part of images to the source, sealed for the old key.
func (w *world) blob(plain []byte) manifest.ID {
	w.t.Helper()
	return w.sealed(plain, "blob.zst.age", manifest.RoleBlob, &manifest.Manifest{
		Chain: manifest.ImagesChain, Kind: manifest.KindBlob, Blob: &manifest.Blob{SHA256: sha256.Sum256(plain)},
	})
}

// images commits images that need blobs of these plain bytes.
func (w *world) images(node string, blobs ...string) manifest.ID {
	w.t.Helper()
	id, err := manifest.NewID(rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	body := &manifest.Images{Node: node, Platform: "linux/amd64", Images: []manifest.Image{{
		Names: []string{"registry.k8s.io/etcd:3"}, SHA256: sha256.Sum256([]byte(blobs[0])), MediaType: "m", Size: 1,
	}}}
	for _, text := range blobs {
		body.Blobs = append(body.Blobs, sha256.Sum256([]byte(text)))
	}
	slices.SortFunc(body.Blobs, func(a, b manifest.Hash) int { return bytes.Compare(a[:], b[:]) })
	_, err = w.from.Commit(w.t.Context(), &manifest.Manifest{
		Chain: manifest.ImagesChain, Kind: manifest.KindImages, ID: id, Created: time.Now(), Writer: manifest.Writer{Node: node, Version: "0.1.0"}, Images: body,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

// opens fails the test unless a repository verifies and every blob in it opens to
// its plain bytes. It returns how many there are, and how many images.
func (w *world) opens(r *repository.Repository, id age.Identity) (blobs, images int) {
	w.t.Helper()
	w.verifies(r)
	stored, err := r.Blobs(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, b := range stored.All() {
		if manifest.Hash(sha256.Sum256(w.unsealed(r, b.Objects[0], id))) != b.Blob.SHA256 {
			w.t.Fatalf("blob %s opens to other bytes", b.ID)
		}
	}
	return len(stored.All()), len(stored.Images)
}

func TestImagesAreCopiedWithWhatTheyNeedAlone(t *testing.T) {
	w := newWorld(t, 0)
	for _, text := range []string{"base", "etcd 1", "etcd 2", "left over"} {
		w.blob([]byte(text))
	}
	w.images("cp1", "etcd 1", "base")
	second := w.images("cp1", "etcd 2", "base")

	one := memory.New()
	report, err := w.copyTo(one, func(o *CopyOptions) { o.IDs = []string{string(second)} })
	if err != nil || len(report.Copies) != 3 {
		t.Fatalf("%+v, %v", report, err)
	}
	if blobs, images := w.opens(w.repo(one, "memory:to"), w.old); blobs != 2 || images != 1 {
		t.Errorf("%d blobs, %d images", blobs, images)
	}
	all := memory.New()
	if _, err := w.copyTo(all); err != nil {
		t.Fatal(err)
	}
	if blobs, images := w.opens(w.repo(all, "memory:to"), w.old); blobs != 3 || images != 2 {
		t.Errorf("%d blobs, %d images", blobs, images)
	}
	if report, err := w.copyTo(all); err != nil || report.Bytes != 0 {
		t.Errorf("again: %+v, %v", report, err)
	}
}

func TestBlobsOfImagesThatAreRefusedAreNotCopied(t *testing.T) {
	w := newWorld(t, 0)
	w.blob([]byte("base"))
	w.blob([]byte("etcd 1"))
	refused := w.images("cp1", "etcd 1", "base")
	w.blob([]byte("etcd 2"))
	newer := w.images("cp1", "etcd 2", "base")
	to := memory.New()
	if _, err := w.copyTo(to, func(o *CopyOptions) { o.IDs = []string{string(newer)} }); err != nil {
		t.Fatal(err)
	}
	report, err := w.copyTo(to)
	if !errors.Is(err, repository.ErrOrder) || report.Bytes != 0 {
		t.Errorf("%d bytes, %v", report.Bytes, err)
	}
	if i := slices.IndexFunc(report.Copies, func(c Copied) bool { return c.Manifest.ID == refused }); i < 0 || report.Copies[i].Fate != repository.FateOld {
		t.Errorf("%+v", report.Copies)
	}
	if blobs, images := w.opens(w.repo(to, "memory:to"), w.old); blobs != 2 || images != 1 {
		t.Errorf("%d blobs, %d images", blobs, images)
	}
}

func TestACopyOfImagesThatDiesAtAnyStepIsWholeAfterTheNext(t *testing.T) {
	w := newWorld(t, 0)
	w.blob([]byte("base"))
	w.blob([]byte("etcd"))
	w.images("cp1", "etcd", "base")
	counted := fault.New(memory.New())
	if _, err := w.copyTo(counted); err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= counted.Count(); n++ {
		for _, when := range fault.Moments {
			inner := memory.New()
			f := fault.New(inner)
			f.CrashAt(n, when)
			_, _ = w.copyTo(f) // it may have died
			w.opens(w.repo(inner, "memory:to"), w.old)
			if _, err := w.copyTo(inner); err != nil {
				t.Fatalf("crash %v step %d: the next copy: %v", when, n, err)
			}
			if blobs, images := w.opens(w.repo(inner, "memory:to"), w.old); blobs != 2 || images != 1 {
				t.Errorf("crash %v step %d: %d blobs, %d images", when, n, blobs, images)
			}
		}
	}
}

func TestBlobsAreSealedAnew(t *testing.T) {
	w := newWorld(t, 0)
	w.blob([]byte("base"))
	w.blob([]byte("etcd"))
	w.images("cp1", "etcd", "base")
	blobs, err := w.from.Blobs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	o := RekeyOptions{
		Repository: w.from, Backups: append(slices.Clone(blobs.Images), blobs.All()...), Identities: []age.Identity{w.old},
		Recipients: []age.Recipient{w.new.Recipient()}, RecipientNames: []string{w.new.Recipient().String()},
		Writer: manifest.Writer{Node: "cp1", Version: "0.1.0"}, Now: time.Now, Rand: rand.Reader,
	}
	list, err := Rekey(t.Context(), o)
	if err != nil || len(list) != 2 {
		t.Fatalf("%+v, %v", list, err)
	}
	w.opens(w.from, w.new)

	// What does not unseal to the blob that it claims to be is not sealed anew.
	forged := w.blob([]byte("something"))
	stored, err := w.from.Blobs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(stored.All(), func(b repository.Backup) bool { return b.ID == forged })
	lie := *stored.All()[i].Manifest
	lie.Blob = &manifest.Blob{SHA256: manifest.Hash{1}}
	b := stored.All()[i]
	b.Manifest = &lie
	o.Backups = []repository.Backup{b}
	if _, err := Rekey(t.Context(), o); !errors.Is(err, repository.ErrVerification) {
		t.Errorf("a blob of other bytes: %v", err)
	}
}
