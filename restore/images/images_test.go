package images_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"lifeboat/internal/containerd/containerdtest"
	"lifeboat/internal/hostfacts"
	"lifeboat/internal/manifest"
	"lifeboat/internal/oci"
	"lifeboat/internal/repository"
	"lifeboat/internal/seal"
	"lifeboat/restore/images"
	"lifeboat/storage"
)

const (
	etcd  = "registry.k8s.io/etcd:3.6.4-0"
	pause = "registry.k8s.io/pause:3.10"
)

// node is one with two images.
func node(t testing.TB) *containerdtest.Store {
	t.Helper()
	s := containerdtest.NewStore()
	s.Image(t, etcd, platform, "base", strings.Repeat("etcd's program ", 100_000))
	i := s.Image(t, pause, platform, "pause")
	i.Pinned = true
	s.Names[pause] = i
	return s
}

func (w *world) node(from *containerdtest.Store) *manifest.Manifest {
	w.t.Helper()
	o := w.saving(from)
	o.Static = []hostfacts.Image{{Pod: "etcd", Image: etcd}, {Pod: "x", Image: pause}}
	return w.save(o)
}

func load(t *testing.T, o images.Options) (*images.Plan, images.Loaded, error) {
	t.Helper()
	plan, err := images.Prepare(t.Context(), o)
	if err != nil {
		return nil, images.Loaded{}, err
	}
	done, err := plan.Execute(t.Context())
	return plan, done, err
}

func TestAnEmptyStoreGetsAllThatTheImagesNeed(t *testing.T) {
	w := newWorld(t)
	from, to := node(t), containerdtest.NewStore()
	m := w.node(from)
	plan, done, err := load(t, w.loading(m, to))
	if blobs, size, err := images.Check(t.Context(), w.loading(m, nil), nil); err != nil || blobs != done.Blobs || size != done.Bytes {
		t.Errorf("checked %d blobs of %d bytes, %v", blobs, size, err)
	}
	if err != nil || done.Images != 2 || done.Blobs != len(m.Images.Blobs) || done.Bytes != plan.Bytes {
		t.Fatalf("%+v, %v", done, err)
	}
	kept := to.Kept()
	for _, sum := range m.Images.Blobs {
		d := oci.DigestOf(sum)
		if !bytes.Equal(to.Blobs[d], from.Blobs[d]) || !kept[d] {
			t.Errorf("%s: the same %v, kept by the collector %v", d, bytes.Equal(to.Blobs[d], from.Blobs[d]), kept[d])
		}
	}
	if len(to.Unleased) > 0 || len(to.Leases) > 0 {
		t.Errorf("written without a lease: %v; left: %v", to.Unleased, to.Leases)
	}
	if to.Names[etcd].Target.Digest != from.Names[etcd].Target.Digest || !to.Names[pause].Pinned || to.Names[etcd].Pinned {
		t.Errorf("%+v", to.Names)
	}
	var ids int // as the CRI plugin calls them
	for name, i := range to.Names {
		if strings.HasPrefix(name, "sha256:") && to.Blobs[oci.Digest(name)] != nil && i.Target.Digest != oci.Digest(name) {
			ids++
		}
	}
	if ids != 2 {
		t.Errorf("names %+v", to.Names)
	}
	again, done, err := load(t, w.loading(m, to))
	if err != nil || done.Blobs != 0 || again.Blobs != 0 || !again.Images[0].Present {
		t.Errorf("again: %+v, %v", done, err)
	}
}

func TestABlobThatSavesShareIsCheckedOnce(t *testing.T) {
	w := newWorld(t)
	from := node(t)
	first := w.node(from)
	from.Image(t, etcd, platform, "base", "etcd's next program")
	second := w.node(from)
	checked := map[oci.Digest]int64{}
	if blobs, _, err := images.Check(t.Context(), w.loading(first, nil), checked); err != nil || blobs != len(first.Images.Blobs) {
		t.Fatal(blobs, err)
	}
	if blobs, _, err := images.Check(t.Context(), w.loading(second, nil), checked); err != nil || blobs != 4 { // index, manifest, configuration, one layer
		t.Errorf("of the second, %d blobs were checked, %v", blobs, err)
	}
	for name := range w.objects() {
		if err := w.store.Put(t.Context(), name, strings.NewReader("junk"), storage.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	checked = map[oci.Digest]int64{}
	for range 2 { // what is bad is not remembered as good
		if _, _, err := images.Check(t.Context(), w.loading(second, nil), checked); !errors.Is(err, repository.ErrVerification) || len(checked) > 0 {
			t.Errorf("%v, %d are good", err, len(checked))
		}
	}
}

func TestALoadGoesOnWhereOneEnded(t *testing.T) {
	w := newWorld(t)
	to := containerdtest.NewStore()
	m := w.node(node(t))
	wrote := 0
	to.Fail = func(doing string, _ oci.Digest) error {
		if doing == "write" {
			if wrote++; wrote == 4 {
				return errors.New("no space left on device")
			}
		}
		return nil
	}
	if _, _, err := load(t, w.loading(m, to)); err == nil || len(to.Names) > 0 || len(to.Leases) > 0 {
		t.Fatalf("%v; named already: %v; leases %v", err, to.Names, to.Leases)
	}
	to.Fail = nil
	plan, done, err := load(t, w.loading(m, to))
	if err != nil || done.Blobs != len(m.Images.Blobs)-3 || plan.Images[0].Present || len(to.Unleased) > 0 {
		t.Errorf("%+v, %v", done, err)
	}
}

func TestOneImageOfSeveral(t *testing.T) {
	w := newWorld(t)
	to := containerdtest.NewStore()
	o := w.loading(w.node(node(t)), to)
	o.Only = []string{pause}
	if _, done, err := load(t, o); err != nil || done.Images != 1 || done.Blobs != 4 {
		t.Errorf("%+v, %v", done, err)
	}
	o.Only = []string{"registry.k8s.io/nothing:1"}
	if _, _, err := load(t, o); !errors.Is(err, images.ErrNoImage) {
		t.Error(err)
	}
}

func TestANameOfAnotherImageIsNotTaken(t *testing.T) {
	w := newWorld(t)
	to := containerdtest.NewStore()
	other := to.Image(t, etcd, platform, "another etcd")
	o := w.loading(w.node(node(t)), to)
	plan, err := images.Prepare(t.Context(), o)
	if err != nil || !errors.Is(plan.Conflict(), images.ErrRefused) || !strings.Contains(plan.Conflict().Error(), etcd) {
		t.Fatalf("%v, %v", plan, err)
	}
	before := len(to.Blobs)
	if _, err := plan.Execute(t.Context()); !errors.Is(err, images.ErrRefused) || len(to.Blobs) != before || to.Names[etcd].Target.Digest != other.Target.Digest {
		t.Errorf("%v, %d blobs more", err, len(to.Blobs)-before)
	}
	o.Replace = true
	if _, _, err := load(t, o); err != nil || to.Names[etcd].Target.Digest == other.Target.Digest {
		t.Error(err)
	}
}

func TestWhatIsWrongWithTheMachineOrTheKey(t *testing.T) {
	w := newWorld(t)
	to := containerdtest.NewStore()
	m := w.node(node(t))
	o := w.loading(m, to)
	o.Platform.Architecture = "arm64"
	if _, _, err := load(t, o); !errors.Is(err, images.ErrRefused) || !strings.Contains(err.Error(), "linux/arm64") {
		t.Errorf("another platform: %v", err)
	}
	stranger, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	o = w.loading(m, to)
	o.Identities = []age.Identity{stranger}
	if _, _, err := load(t, o); !errors.Is(err, seal.ErrNoIdentity) {
		t.Errorf("another key: %v", err)
	}
	// A blob that the machine has, and has damaged.
	if _, _, err := load(t, w.loading(m, to)); err != nil {
		t.Fatal(err)
	}
	for d, data := range to.Blobs {
		if string(data) == "pause" {
			to.Blobs[d] = []byte("pausE")
		}
	}
	_, _, err = load(t, w.loading(m, to))
	if !errors.Is(err, oci.ErrDamaged) || errors.Is(err, repository.ErrVerification) || !strings.Contains(err.Error(), "content rm") {
		t.Errorf("the machine's damage: %v", err)
	}
}

// objects are the stored objects of the blobs.
func (w *world) objects() map[string][]byte {
	w.t.Helper()
	list := map[string][]byte{}
	for info, err := range w.store.List(w.t.Context(), "") {
		if err != nil {
			w.t.Fatal(err)
		}
		if !strings.Contains(info.Name, "/images/data/") {
			continue
		}
		body, _, err := w.store.Open(w.t.Context(), info.Name, storage.Range{})
		if err != nil {
			w.t.Fatal(err)
		}
		if list[info.Name], err = io.ReadAll(body); err != nil {
			w.t.Fatal(err)
		}
		body.Close()
	}
	return list
}

func TestEveryFlippedByteOfTheStoreIsFound(t *testing.T) {
	w := newWorld(t)
	m := w.node(node(t))
	objects := w.objects()
	if len(objects) != len(m.Images.Blobs) {
		t.Fatalf("%d objects", len(objects))
	}
	for name, data := range objects {
		for _, at := range []int{0, len(data) / 2, len(data) - 1} {
			bad := bytes.Clone(data)
			bad[at] ^= 0x10
			if err := w.store.Put(t.Context(), name, bytes.NewReader(bad), storage.PutOptions{}); err != nil {
				t.Fatal(err)
			}
			to := containerdtest.NewStore()
			if _, _, err := load(t, w.loading(m, to)); !errors.Is(err, repository.ErrVerification) || len(to.Names) > 0 {
				t.Errorf("byte %d of %s: %v", at, name, err)
			}
		}
		if err := w.store.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		to := containerdtest.NewStore()
		if _, _, err := load(t, w.loading(m, to)); !errors.Is(err, repository.ErrVerification) || len(to.Names) > 0 || !strings.Contains(err.Error(), "sha256:") {
			t.Errorf("without %s: %v", name, err)
		}
		if err := w.store.Put(t.Context(), name, bytes.NewReader(data), storage.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := load(t, w.loading(m, containerdtest.NewStore())); err != nil {
		t.Error(err)
	}
}

// forge commits a blob that claims to be of a SHA-256, as one could who has the
// signing key, and images that need it.
func (w *world) forge(claimed manifest.Hash, plain []byte) {
	w.t.Helper()
	var sealed bytes.Buffer
	s, err := seal.NewWriter(&sealed, []age.Recipient{w.identity.Recipient()})
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := s.Write(plain); err != nil {
		w.t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		w.t.Fatal(err)
	}
	id, err := manifest.NewID(bytes.NewReader(append(plain, make([]byte, 16)...)))
	if err != nil {
		w.t.Fatal(err)
	}
	sums := s.Sums()
	name := repository.ObjectName(manifest.ImagesChain, id, "blob.zst.age")
	if err := w.repo.PutObject(w.t.Context(), name, &sealed, time.Time{}); err != nil {
		w.t.Fatal(err)
	}
	_, err = w.repo.Commit(w.t.Context(), &manifest.Manifest{
		Chain: manifest.ImagesChain, Kind: manifest.KindBlob, ID: id, Created: time.Now(), Writer: manifest.Writer{Node: "cp1", Version: "0.1.0"},
		Recipients: []string{"x"}, Blob: &manifest.Blob{SHA256: claimed},
		Objects: []manifest.Object{{Name: name, Role: manifest.RoleBlob, Size: sums.StoredSize, SHA256: sums.StoredSHA256, PlainSize: sums.PlainSize}},
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

func TestBlobsThatAreNotWhatTheirManifestsSay(t *testing.T) {
	for _, c := range []struct {
		name string
		of   func(*containerdtest.Store) []byte // the plain bytes of a blob
		as   func([]byte) []byte
	}{
		{"another layer of the same size", layer("pause"), func([]byte) []byte { return []byte("PAUSE") }},
		{"a shorter layer", layer("pause"), func([]byte) []byte { return []byte("p") }},
		{"a longer layer", layer("base"), func([]byte) []byte { return []byte("base and more") }},
		{"another manifest", ofType(oci.TypeManifest), func(b []byte) []byte { return bytes.Replace(b, []byte(`"size":5`), []byte(`"size":6`), 1) }},
		{"a manifest that is none", ofType(oci.TypeManifest), func(b []byte) []byte { return bytes.Repeat([]byte("{"), len(b)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			from := node(t)
			m := w.node(from)
			plain := c.of(from)
			w.forge(sha256.Sum256(plain), c.as(bytes.Clone(plain))) // the newest of that SHA-256 is used
			to := containerdtest.NewStore()
			if _, _, err := load(t, w.loading(m, to)); !errors.Is(err, repository.ErrVerification) || len(to.Names) > 0 {
				t.Errorf("%v", err)
			}
			if _, _, err := images.Check(t.Context(), w.loading(m, nil), nil); !errors.Is(err, repository.ErrVerification) {
				t.Errorf("a check: %v", err)
			}
		})
	}
}

func layer(text string) func(*containerdtest.Store) []byte {
	return func(*containerdtest.Store) []byte { return []byte(text) }
}

func ofType(mediaType string) func(*containerdtest.Store) []byte {
	return func(s *containerdtest.Store) []byte {
		var all []string
		for _, data := range s.Blobs {
			if bytes.Contains(data, []byte(`"mediaType":"`+mediaType+`","schemaVersion"`)) && bytes.Contains(data, []byte(`"size":5`)) {
				all = append(all, string(data))
			}
		}
		slices.Sort(all)
		return []byte(all[0])
	}
}

func TestImagesThatNeedMoreThanTheyName(t *testing.T) {
	w := newWorld(t)
	m := *w.node(node(t))
	hostile := *m.Images
	m.Images = &hostile
	all := hostile.Blobs
	for i := range all { // each in turn is not named, but for those that stand for whole images
		hostile.Blobs = slices.Delete(slices.Clone(all), i, i+1)
		to := containerdtest.NewStore()
		if _, _, err := load(t, w.loading(&m, to)); !errors.Is(err, repository.ErrVerification) || len(to.Names) > 0 {
			t.Errorf("without %s: %v", all[i], err)
		}
	}
	hostile.Blobs = all
	for name, edit := range map[string]func(*manifest.Image){
		"a size that lies":       func(i *manifest.Image) { i.Size++ },
		"a size beyond all":      func(i *manifest.Image) { i.Size = 1 << 50 },
		"another media type":     func(i *manifest.Image) { i.MediaType = oci.TypeManifest },
		"no type that is known":  func(i *manifest.Image) { i.MediaType = "text/plain" },
		"the SHA-256 of another": func(i *manifest.Image) { i.SHA256 = manifest.Hash{1} },
	} {
		hostile.Images = slices.Clone(w.node(node(t)).Images.Images)
		edit(&hostile.Images[0])
		to := containerdtest.NewStore()
		if _, _, err := load(t, w.loading(&m, to)); !errors.Is(err, repository.ErrVerification) || len(to.Names) > 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	hostile.Images, hostile.Platform = w.node(node(t)).Images.Images, "nonsense"
	if _, _, err := load(t, w.loading(&m, containerdtest.NewStore())); !errors.Is(err, repository.ErrVerification) {
		t.Errorf("a platform that is none: %v", err)
	}
}

// TestOfABlobsCopiesOneIsEnough: the newest may be for other recipients, or signed by
// a key that is trusted no more.
func TestOfABlobsCopiesOneIsEnough(t *testing.T) {
	whole := func(t *testing.T, o images.Options, m *manifest.Manifest) {
		t.Helper()
		to := containerdtest.NewStore()
		o.Target = to
		if _, done, err := load(t, o); err != nil || done.Blobs != len(m.Images.Blobs) {
			t.Errorf("%+v, %v", done, err)
		}
		if blobs, _, err := images.Check(t.Context(), o, nil); err != nil || blobs != len(m.Images.Blobs) {
			t.Errorf("a check: %d, %v", blobs, err)
		}
	}
	t.Run("for others", func(t *testing.T) {
		w := newWorld(t)
		old := w.identity
		m := w.node(node(t))
		next, err := age.GenerateX25519Identity()
		if err != nil {
			t.Fatal(err)
		}
		w.identity = next
		again := w.node(node(t))
		if got := len(w.objects()); got != 2*len(m.Images.Blobs) {
			t.Fatalf("%d objects", got)
		}
		whole(t, w.loading(again, nil), again)
		o := w.loading(m, nil)
		o.Identities = []age.Identity{old}
		whole(t, o, m)
		stranger, err := age.GenerateX25519Identity()
		if err != nil {
			t.Fatal(err)
		}
		o.Identities = []age.Identity{stranger}
		if _, _, err := load(t, o); !errors.Is(err, seal.ErrNoIdentity) || errors.Is(err, repository.ErrVerification) {
			t.Errorf("another key: %v", err)
		}
	})
	t.Run("by others", func(t *testing.T) {
		w := newWorld(t)
		m := w.node(node(t))
		own, first := w.signer, w.trust
		next, err := manifest.GenerateSigner(rand.Reader, "cp2")
		if err != nil {
			t.Fatal(err)
		}
		both := *first
		both.Verifiers = append(slices.Clone(first.Verifiers), manifest.Verifier{Key: next.VerifierText(), Chains: []string{"*"}, Kinds: []string{"*"}})
		w.trust, w.signer = &both, next
		w.repo = w.on(w.store)
		o := w.saving(node(t))
		o.Node, o.All, o.Anew = "cp2", true, true
		w.save(o)
		w.signer = own
		w.repo = w.on(w.store)
		o = w.saving(node(t))
		o.Node, o.All = "cp3", true
		w.save(o) // its index vouches for what came before
		w.trust = first
		w.repo = w.on(w.store)
		whole(t, w.loading(m, nil), m)
	})
}
