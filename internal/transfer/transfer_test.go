package transfer

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"testing"
	"time"

	"filippo.io/age"

	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/s3test"
	"lifeboat/internal/seal"
	"lifeboat/storage"
	"lifeboat/storage/fault"
	"lifeboat/storage/local"
	"lifeboat/storage/memory"
	"lifeboat/storage/open"
	"lifeboat/storage/s3"
)

const etcdMain = manifest.Chain("etcd/main")

// world is a cluster's keys and a source with backups.
type world struct {
	t        testing.TB
	signer   *manifest.Signer
	trust    *manifest.Trust
	old, new *age.X25519Identity
	plain    map[manifest.ID][]byte
	from     *repository.Repository
	store    storage.Store
}

func newWorld(t testing.TB, backups int) *world {
	t.Helper()
	w := &world{t: t, plain: map[manifest.ID][]byte{}, store: memory.New()}
	var err error
	if w.signer, err = manifest.GenerateSigner(rand.Reader, "cp1"); err != nil {
		t.Fatal(err)
	}
	w.trust = &manifest.Trust{Cluster: "prod-eu1-k3x9m2q7", Verifiers: []manifest.Verifier{{
		Key: w.signer.VerifierText(), Chains: []string{"*"}, Kinds: []string{"*"},
	}}}
	for _, id := range []**age.X25519Identity{&w.old, &w.new} {
		if *id, err = age.GenerateX25519Identity(); err != nil {
			t.Fatal(err)
		}
	}
	w.from = w.repo(w.store, "memory:from")
	for i := range backups {
		data := make([]byte, 5000+i)
		_, _ = rand.Read(data)
		sum := sha256.Sum256(data)
		w.backup(append(data, sum[:]...))
	}
	return w
}

func (w *world) repo(store storage.Store, name string) *repository.Repository {
	w.t.Helper()
	r, err := repository.Open(store, repository.Options{
		Trust: w.trust, Signer: w.signer, Name: name, Writer: manifest.Writer{Node: "cp1", Version: "0.1.0"},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// backup commits a full of this plaintext to the source.
func (w *world) backup(plain []byte) manifest.ID {
	w.t.Helper()
	return w.sealed(plain, "snapshot.db.zst.age", manifest.RoleSnapshot, &manifest.Manifest{
		Chain: etcdMain, Kind: manifest.KindFull, Etcd: &manifest.Etcd{ClusterID: 7, MemberID: 1, Revision: manifest.Revision(10 + len(w.plain)), HashKV: 7},
	})
}

// sealed puts this plaintext into the source, sealed for the old key, and commits a
// manifest with it.
func (w *world) sealed(plain []byte, file string, role manifest.Role, m *manifest.Manifest) manifest.ID {
	w.t.Helper()
	id, err := manifest.NewID(rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	name := repository.ObjectName(m.Chain, id, file)
	sums, err := seal.Into([]age.Recipient{w.old.Recipient()}, bytes.NewReader(plain), func(sealed io.Reader) error {
		return w.from.PutObject(w.t.Context(), name, sealed, time.Time{})
	})
	if err != nil {
		w.t.Fatal(err)
	}
	m.ID, m.Created, m.Writer = id, time.Now(), manifest.Writer{Node: "cp1", Version: "0.1.0"}
	m.Recipients = []string{w.old.Recipient().String()}
	m.Objects = []manifest.Object{{Name: name, Role: role, Size: sums.StoredSize, SHA256: sums.StoredSHA256, PlainSize: sums.PlainSize}}
	if _, err := w.from.Commit(w.t.Context(), m); err != nil {
		w.t.Fatal(err)
	}
	w.plain[id] = plain
	return id
}

// unsealed fails the test unless an object opens with the identity. It returns the
// plaintext.
func (w *world) unsealed(r *repository.Repository, object manifest.Object, id age.Identity) []byte {
	w.t.Helper()
	body, err := r.OpenObject(w.t.Context(), object)
	if err != nil {
		w.t.Fatal(err)
	}
	defer body.Close()
	plain, err := seal.NewReader(body, seal.Sums{PlainSize: object.PlainSize, StoredSize: object.Size, StoredSHA256: object.SHA256}, id)
	if err != nil {
		w.t.Fatal(err)
	}
	defer plain.Close()
	got, err := io.ReadAll(plain)
	if err != nil {
		w.t.Fatalf("open %s: %v", object.Name, err)
	}
	return got
}

// verifies fails the test unless a repository does.
func (w *world) verifies(r *repository.Repository) {
	w.t.Helper()
	report, err := r.Verify(w.t.Context(), repository.VerifyOptions{})
	if err != nil || report.Err() != nil {
		w.t.Fatal(err, report.Err())
	}
}

// holds fails the test unless the repository verifies, and each of its backups
// opens with the identity to the plaintext that it had. It returns how many.
func (w *world) holds(r *repository.Repository, id func(repository.Backup) age.Identity) int {
	w.t.Helper()
	w.verifies(r)
	backups, _, err := r.Backups(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, b := range backups {
		if !bytes.Equal(w.unsealed(r, b.Objects[0], id(b)), w.plain[b.ID]) {
			w.t.Fatalf("backup %s opens to other bytes", b.ID)
		}
	}
	return len(backups)
}

func (w *world) always(id age.Identity) func(repository.Backup) age.Identity {
	return func(repository.Backup) age.Identity { return id }
}

func (w *world) copyTo(to storage.Store, change ...func(*CopyOptions)) (*CopyReport, error) {
	o := CopyOptions{From: w.from, To: w.repo(to, "memory:to"), Now: time.Now}
	for _, f := range change {
		f(&o)
	}
	return Copy(w.t.Context(), o)
}

func TestACopyThatDiesAtAnyStepIsWholeAfterTheNext(t *testing.T) {
	w := newWorld(t, 2)
	counted := fault.New(memory.New())
	if _, err := w.copyTo(counted); err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= counted.Count(); n++ {
		for _, when := range fault.Moments {
			inner := memory.New()
			f := fault.New(inner)
			f.CrashAt(n, when)
			report, err := w.copyTo(f)
			if err == nil && f.Crashed() && when != fault.After {
				t.Errorf("it crashed %v step %d of %d and copied all: %+v", when, n, counted.Count(), report)
			}
			w.holds(w.repo(inner, "memory:to"), w.always(w.old)) // nothing half-copied is listed
			if _, err := w.copyTo(inner); err != nil {
				t.Fatalf("after a crash %v step %d: %v", when, n, err)
			}
			if got := w.holds(w.repo(inner, "memory:to"), w.always(w.old)); got != 2 {
				t.Fatalf("after a crash %v step %d: %d backups", when, n, got)
			}
		}
	}
}

func TestACopyThatIsLeftOutBecauseAPruneGaveItUpIsAnError(t *testing.T) {
	w := newWorld(t, 2)
	originals, _, err := w.from.Originals(t.Context(), etcdMain)
	if err != nil {
		t.Fatal(err)
	}
	late := time.Duration(0)
	now := func() time.Time { return time.Now().Add(late) }
	store := memory.New(memory.WithClock(now))
	to, err := repository.Open(store, repository.Options{Trust: w.trust, Signer: w.signer, Name: "memory:to", Now: now, Writer: manifest.Writer{Node: "cp1", Version: "0.1.0"}})
	if err != nil {
		t.Fatal(err)
	}
	object := originals[0].Objects[0]
	if err := to.CopyObject(t.Context(), w.from, object, object.Name, time.Time{}, func(int) {}); err != nil {
		t.Fatal(err) // and here it is interrupted
	}
	late = 3 * time.Hour
	if p, err := to.Prune(t.Context(), etcdMain, nil, repository.PruneOptions{}); err != nil || len(p.Dropped) != 1 {
		t.Fatal(p, err)
	}
	report, err := w.copyTo(store, func(o *CopyOptions) { o.To = to })
	if !errors.Is(err, repository.ErrSuperseded) {
		t.Errorf("a gap that nobody is told of: %v", err)
	}
	if len(report.Copies) != 2 || report.Copies[0].Fate != repository.FateDropped || report.Copies[1].Fate != repository.FateCopied {
		t.Errorf("%+v", report.Copies)
	}
}

func (w *world) rekey(store storage.Store, change ...func(*RekeyOptions)) ([]Rekeyed, error) {
	w.t.Helper()
	r := w.repo(store, "memory:from")
	backups, _, err := r.Backups(w.t.Context())
	if err != nil {
		return nil, err
	}
	if backups, err = r.Confirmed(w.t.Context(), backups); err != nil {
		return nil, err
	}
	o := RekeyOptions{
		Repository: r, Backups: backups, Identities: []age.Identity{w.old}, Recipients: []age.Recipient{w.new.Recipient()},
		RecipientNames: []string{w.new.Recipient().String()}, Writer: manifest.Writer{Node: "cp1", Version: "0.1.0"}, Now: time.Now, Rand: rand.Reader,
	}
	for _, f := range change {
		f(&o)
	}
	return Rekey(w.t.Context(), o)
}

func TestARekeyThatDiesAtAnyStepIsWholeAfterTheNext(t *testing.T) {
	w := newWorld(t, 2)
	steps := fault.New(w.store)
	if _, err := w.rekey(steps); err != nil {
		t.Fatal(err)
	}
	either := func(b repository.Backup) age.Identity {
		if b.Rekeyed == "" {
			return w.old
		}
		return w.new
	}
	for n := 1; n <= steps.Count(); n++ {
		for _, when := range fault.Moments {
			w := newWorld(t, 2)
			either := func(b repository.Backup) age.Identity {
				if b.Rekeyed == "" {
					return w.old
				}
				return w.new
			}
			f := fault.New(w.store)
			f.CrashAt(n, when)
			_, _ = w.rekey(f)
			if got := w.holds(w.from, either); got != 2 {
				t.Fatalf("after a crash %v step %d: %d backups", when, n, got)
			}
			if _, err := w.rekey(w.store); err != nil {
				t.Fatalf("after a crash %v step %d: %v", when, n, err)
			}
			w.holds(w.from, w.always(w.new))
		}
	}
	w.holds(w.from, either)
	list, err := w.rekey(w.store)
	for _, r := range list {
		if r.Wanted || err != nil {
			t.Errorf("%s is to be sealed anew once more: %v", r.Backup.ID, err)
		}
	}
}

func TestRekeyCommitsNothingWhereSomethingIsWrong(t *testing.T) {
	stranger, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		before func(*world)
		change func(*RekeyOptions)
		want   error
	}{
		"a wrong identity": {func(*world) {}, func(o *RekeyOptions) { o.Identities = []age.Identity{stranger} }, seal.ErrNoIdentity},
		"a snapshot without its hash trailer": {
			func(w *world) { w.backup(bytes.Repeat([]byte("x"), 4096)) }, func(*RekeyOptions) {}, repository.ErrVerification,
		},
		"a snapshot shorter than a trailer": {
			func(w *world) { w.backup([]byte("short")) }, func(*RekeyOptions) {}, repository.ErrVerification,
		},
		"a key that may not": {
			func(w *world) { w.trust.Verifiers[0].Kinds = []string{"full"} }, func(*RekeyOptions) {}, repository.ErrMayNotRekey,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 0)
			w.backup(trailedText("good"))
			c.before(w)
			list, err := w.rekey(w.store, c.change)
			if !errors.Is(err, c.want) {
				t.Fatalf("%v, want %v", err, c.want)
			}
			for _, r := range list {
				if r.Err != nil && r.ID != "" {
					t.Errorf("%s failed and has a rekey", r.Backup.ID)
				}
			}
			backups, _, err := w.from.Backups(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, b := range backups { // but for the good one, where another is bad
				if b.Rekeyed != "" && !bytes.Equal(w.plain[b.ID], trailedText("good")) {
					t.Errorf("%s was sealed anew", b.ID)
				}
			}
		})
	}
}

func trailedText(s string) []byte {
	sum := sha256.Sum256([]byte(s))
	return append([]byte(s), sum[:]...)
}

func TestAFlippedByteIsNotSealedAnew(t *testing.T) {
	w := newWorld(t, 1)
	backups, _, err := w.from.Backups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f := fault.New(w.store)
	f.FlipBit(w.from.Cluster()+"/"+backups[0].Objects[0].Name, 8*3000)
	list, err := w.rekey(f)
	if !errors.Is(err, seal.ErrDamaged) || list[0].ID != "" {
		t.Errorf("%v", err)
	}
	w.holds(w.from, w.always(w.old))
}

func TestACopyToAFullStoreFailsAndWhatWasCopiedCounts(t *testing.T) {
	w := newWorld(t, 3)
	f := fault.New(memory.New())
	f.FailOn(fault.Put, 4, fault.Partial, storage.ErrFull) // README, data, manifest, data
	report, err := w.copyTo(f)
	if !errors.Is(err, storage.ErrFull) {
		t.Fatalf("%v; %+v", err, report)
	}
	if got := w.holds(w.repo(f, "memory:to"), w.always(w.old)); got != 1 {
		t.Errorf("%d backups count, want 1", got)
	}
	for i, want := range []repository.Fate{repository.FateCopied, repository.FateFailed, repository.FateFailed} {
		if got := report.Copies[i].Fate; got != want {
			t.Errorf("copy %d is %s, want %s", i, got, want)
		}
	}
	if _, err := w.copyTo(f); err != nil { // there is room again
		t.Fatal(err)
	}
	if got := w.holds(w.repo(f, "memory:to"), w.always(w.old)); got != 3 {
		t.Errorf("%d backups count, want 3", got)
	}
}

func TestBackupsAreCopiedFromAFolderToS3AndBack(t *testing.T) {
	server := s3test.Start(t, s3test.Options{ObjectLock: true})
	t.Setenv("AWS_ACCESS_KEY_ID", server.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", server.SecretKey)
	c := s3.Config{Endpoint: server.Endpoint, Region: "us-east-1", PathStyle: "true"}
	c.ObjectLock.Mode, c.ObjectLock.Days = "governance", 5
	bucket, err := open.Store(t.Context(), "s3://"+server.Bucket+"/prefix", c)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, 2)
	if _, err := w.copyTo(bucket, func(o *CopyOptions) { o.RetainDays = 5 }); err != nil {
		t.Fatal(err)
	}
	there := w.repo(bucket, "s3:")
	if got := w.holds(there, w.always(w.old)); got != 2 {
		t.Errorf("%d backups in the bucket", got)
	}
	backups, _, err := there.Backups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range backups {
		if b.RetainUntil == nil || time.Until(*b.RetainUntil) < 4*24*time.Hour {
			t.Errorf("%s is locked until %v", b.ID, b.RetainUntil)
		}
	}
	if list, err := w.rekey(bucket); err != nil || list[0].ID == "" {
		t.Fatal(list, err)
	}
	folder, err := local.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.copyTo(folder, func(o *CopyOptions) { o.From = there }); err != nil {
		t.Fatal(err)
	}
	if got := w.holds(w.repo(folder, "file:"), w.always(w.new)); got != 2 {
		t.Errorf("%d backups came back", got)
	}
}
