package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"filippo.io/age"

	"lifeboat/backup"
	"lifeboat/internal/manifest"
	"lifeboat/internal/oci"
	"lifeboat/internal/repository"
	"lifeboat/storage"
	"lifeboat/storage/memory"
)

// recipient changes for whom the node's configuration has backups sealed.
func (w *world) recipient() {
	w.t.Helper()
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		w.t.Fatal(err)
	}
	w.o.Recipients, w.o.RecipientNames = []age.Recipient{identity.Recipient()}, []string{identity.Recipient().String()}
}

func TestBlobsForOtherRecipientsAreOfNoUse(t *testing.T) {
	w := newWorld(t)
	w.save()
	old, oldNames := w.o.Recipients, w.o.RecipientNames
	w.recipient()
	plan := w.look()
	if lack := plan.Missing(t.Context()); lack["memory:two"].Blobs != plan.Blobs {
		t.Errorf("a dry run: %+v", lack)
	}
	for _, in := range w.save().Stores {
		if in.Put != plan.Blobs || in.Unchanged {
			t.Errorf("the new identity opens nothing of it: %+v", in)
		}
		stored, err := w.repos[0].Blobs(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, sum := range in.Manifest.Images.Blobs {
			if b, ok := stored.Of(sum); !ok || !slices.Equal(b.Recipients, w.o.RecipientNames) {
				t.Errorf("blob %s is for %v", sum, b.Recipients)
			}
		}
	}
	for _, in := range w.save().Stores {
		if in.Put != 0 || !in.Unchanged {
			t.Errorf("once is enough: %+v", in)
		}
	}
	next, nextNames := w.o.Recipients, w.o.RecipientNames
	w.o.Recipients, w.o.RecipientNames = old, oldNames
	if in := w.save().Stores[0]; in.Put != 0 {
		t.Errorf("for those of before, whose blobs are there behind newer ones: %+v", in)
	}
	w.o.Recipients, w.o.RecipientNames = slices.Concat(old, next), slices.Concat(oldNames, nextNames)
	if in := w.save().Stores[0]; in.Put != plan.Blobs {
		t.Errorf("for one more: %+v", in)
	}
	w.o.Recipients, w.o.RecipientNames = w.o.Recipients[1:], w.o.RecipientNames[1:]
	if in := w.save().Stores[0]; in.Put != 0 {
		t.Errorf("for one less, who reads what is there: %+v", in)
	}
	w.clean()
}

func TestAllIsPutAnewWhenAsked(t *testing.T) {
	w := newWorld(t)
	first := w.save()
	w.o.Anew = true
	plan := w.look()
	if lack := plan.Missing(t.Context()); lack["memory:one"].Blobs != plan.Blobs {
		t.Errorf("a dry run: %+v", lack)
	}
	again := w.save()
	if in := again.Stores[1]; in.Put != plan.Blobs || in.Unchanged || again.ID == first.ID {
		t.Errorf("%+v", in)
	}
	w.clean()
}

func TestWhatAKeySignedThatIsTrustedNoMoreIsPutAnew(t *testing.T) {
	w := newWorld(t)
	w.only(1)
	store := memory.New()
	next, err := manifest.GenerateSigner(w.o.Rand, "cp2")
	if err != nil {
		t.Fatal(err)
	}
	open := func(trust *manifest.Trust, signer *manifest.Signer) {
		r, err := repository.Open(store, repository.Options{Trust: trust, Signer: signer, Name: "memory:one", Writer: w.o.Writer})
		if err != nil {
			t.Fatal(err)
		}
		w.repos[0], w.o.Stores[0].Repository = r, r
	}
	both := *w.trust
	both.Verifiers = append(slices.Clone(w.trust.Verifiers), manifest.Verifier{Key: next.VerifierText(), Chains: []string{"*"}, Kinds: []string{"*"}})
	open(&both, w.signer)
	first := w.save()
	open(&both, next)
	w.o.Node = "cp2"
	w.save() // its index vouches for what came before
	revoked := both
	revoked.Verifiers = both.Verifiers[1:]
	open(&revoked, next)
	w.o.Node = "cp1"
	plan := w.look()
	saved := w.save()
	if in := saved.Stores[0]; in.Put != plan.Blobs || in.Unchanged || saved.ID == first.ID {
		t.Errorf("%+v, want %d blobs", in, plan.Blobs)
	}
	stored, err := w.repos[0].Blobs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, sum := range saved.Stores[0].Manifest.Images.Blobs {
		b, _ := stored.Of(sum)
		if _, err := w.repos[0].Confirmed(t.Context(), []repository.Backup{b}); err != nil {
			t.Errorf("a load would not take it: %v", err)
		}
	}
	if in := w.save().Stores[0]; in.Put != 0 || !in.Unchanged {
		t.Errorf("once is enough: %+v", in)
	}
}

// TestASaveMayTakeHours: only what is committed must be fresh.
func TestASaveMayTakeHours(t *testing.T) {
	w := newWorld(t)
	w.only(1)
	var late atomic.Int64
	w.o.Now = func() time.Time { return time.Now().Add(time.Duration(late.Load())) }
	r, err := repository.Open(memory.New(memory.WithClock(w.o.Now)), repository.Options{
		Trust: w.trust, Signer: w.signer, Name: "memory:one", Writer: w.o.Writer, Now: w.o.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	w.repos[0], w.o.Stores[0].Repository = r, r
	plan := w.look()
	w.node.Fail = func(doing string, _ oci.Digest) error {
		if doing == "open" {
			late.Add(int64(repository.GiveUpAfter / 4))
		}
		return nil
	}
	if _, err := plan.Save(t.Context()); err != nil {
		t.Fatalf("after %s: %v", time.Duration(late.Load()), err)
	}
	w.clean()
}

// hung is a store on a server that is dead: some calls never return.
type hung struct {
	storage.Store
	lists, puts bool
	until       chan struct{}
}

func (h *hung) Put(ctx context.Context, name string, r io.Reader, o storage.PutOptions) error {
	if h.puts {
		<-h.until
	}
	return h.Store.Put(ctx, name, r, o)
}

func (h *hung) List(ctx context.Context, prefix string) iter.Seq2[storage.Info, error] {
	if h.lists {
		<-h.until
	}
	return h.Store.List(ctx, prefix)
}

func TestADeadStoreKeepsNoOtherWaiting(t *testing.T) {
	for name, dead := range map[string]*hung{"it lists nothing": {lists: true}, "it takes nothing": {puts: true}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				dead.Store, dead.until = memory.New(), make(chan struct{})
				r, err := repository.Open(dead, repository.Options{Trust: w.trust, Signer: w.signer, Name: "memory:one", Writer: w.o.Writer})
				if err != nil {
					t.Fatal(err)
				}
				w.repos[0], w.o.Stores[0] = r, backup.Store{URL: "memory:one", Repository: r}
				began := time.Now()
				saved, err := w.look().Save(t.Context())
				if err != nil || !errors.Is(saved.Stores[0].Err, storage.ErrStalled) || saved.Stores[1].Err != nil {
					t.Errorf("%+v, %v", saved.Stores, err)
				}
				if took := time.Since(began); took > backup.FinishStalls*w.o.StoreStall+time.Minute {
					t.Errorf("it took %s", took)
				}
				began = time.Now()
				if lack := w.look().Missing(t.Context()); dead.lists != errors.Is(lack["memory:one"].Err, storage.ErrStalled) || lack["memory:two"].Blobs != 0 {
					t.Errorf("a dry run, after %s: %+v", time.Since(began), lack)
				}
				close(dead.until)
				synctest.Wait()
				w.repos = w.repos[1:]
				w.clean()
			})
		})
	}
}

// slow is a store that takes its time for each request, and answers.
type slow struct {
	storage.Store
	takes time.Duration
}

func (s *slow) Open(ctx context.Context, name string, r storage.Range) (io.ReadCloser, storage.Info, error) {
	select {
	case <-time.After(s.takes):
		return s.Store.Open(ctx, name, r)
	case <-ctx.Done():
		return nil, storage.Info{}, ctx.Err()
	}
}

func TestAStoreMayTakeItsTimeForManyBlobs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.only(1)
		dawdling := &slow{Store: memory.New()}
		open := func() {
			r, err := repository.Open(dawdling, repository.Options{Trust: w.trust, Signer: w.signer, Name: "memory:one", Writer: w.o.Writer})
			if err != nil {
				t.Fatal(err)
			}
			w.repos[0], w.o.Stores[0].Repository = r, r
		}
		open()
		first := w.save().Stores[0]
		open() // it remembers nothing
		limit := backup.FinishStalls * w.o.StoreStall
		dawdling.takes = limit / 8
		began := time.Now()
		lack := w.look().Missing(t.Context())["memory:one"]
		if lack.Err != nil || lack.Blobs != 0 {
			t.Errorf("of %d blobs: %+v", first.Put, lack)
		}
		if took := time.Since(began); took <= limit {
			t.Errorf("it took %s, which is no test of a limit of %s", took, limit)
		}
	})
}

// stream is an image store whose blobs come until nobody wants them.
type stream struct {
	Source
	asked chan struct{} // closed once a blob is read
}

func (s stream) Open(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	return io.NopCloser(waits{ctx, s.asked}), nil
}

type waits struct {
	ctx   context.Context
	asked chan struct{}
}

func (w waits) Read([]byte) (int, error) {
	close(w.asked)
	<-w.ctx.Done()
	return 0, fmt.Errorf("read a blob: %w", w.ctx.Err())
}

// full is a store that finds out while it takes data that it has no room.
type full struct {
	storage.Store
	after chan struct{}
}

var errFull = errors.New("no room")

func (f full) Put(ctx context.Context, name string, r io.Reader, o storage.PutOptions) error {
	if !strings.Contains(name, "/data/") {
		return f.Store.Put(ctx, name, r, o)
	}
	go func() { _, _ = io.Copy(io.Discard, r) }()
	<-f.after
	return errFull
}

func TestAFullStoreIsNotSaidToBeACanceledRead(t *testing.T) {
	w := newWorld(t)
	w.only(1)
	asked := make(chan struct{})
	r, err := repository.Open(full{memory.New(), asked}, repository.Options{Trust: w.trust, Signer: w.signer, Name: "memory:one", Writer: w.o.Writer})
	if err != nil {
		t.Fatal(err)
	}
	w.repos[0], w.o.Stores[0].Repository = r, r
	plan := w.look()
	plan.o.Source = stream{plan.o.Source, asked}
	saved, err := plan.Save(t.Context())
	if in := saved.Stores[0]; err == nil || !errors.Is(in.Err, errFull) || errors.Is(in.Err, context.Canceled) {
		t.Errorf("%v", in.Err)
	}
}
