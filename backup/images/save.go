package images

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"time"

	"lifeboat/backup"
	"lifeboat/internal/containerd"
	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/oci"
	"lifeboat/internal/repository"
)

// Saved is what became of a save.
type Saved struct {
	ID     manifest.ID // of the images in the stores that committed them now
	Stores []InStore   // in the configured order
}

// InStore is one store's part.
type InStore struct {
	URL       string
	Manifest  *manifest.Manifest // nil when it failed
	Unchanged bool               // the node's newest images there are these, and all of their blobs are there
	Put       int                // blobs that were put
	PutBytes  int64              // of their plain bytes
	Err       error
}

// rounds bounds how often a save looks again when a prune has taken blobs that it
// counted on.
const rounds = 3

// Save puts into each store the blobs that it lacks, and then commits the images, in
// all stores at once. What is stored stays there when it ends early, and another save
// goes on from it, within a prune's patience of an hour. A blob whose bytes in the
// image store are damaged leaves its images out, of the plan too; ErrNotWhole says so
// at the end. The result is never nil.
func (p *Plan) Save(ctx context.Context) (*Saved, error) {
	saved := &Saved{}
	id, err := manifest.NewID(p.o.Rand)
	if err != nil {
		return saved, err
	}
	saved.ID = id
	meter, moment := &meter{events: p.o.Events, now: p.o.Now}, &moment{}
	var savers []*saver
	var running sync.WaitGroup
	for _, store := range p.o.Stores {
		s := &saver{p: p.clone(), store: store, id: id, moment: moment, meter: meter, put: map[manifest.Hash]manifest.ID{}, in: InStore{URL: store.URL, Err: store.Err}}
		savers = append(savers, s)
		if store.Err == nil {
			running.Go(func() { s.in.Err = s.save(ctx) })
		}
	}
	running.Wait()
	committed := 0
	var errs []error
	for _, s := range savers {
		for _, d := range s.dropped {
			p.drop(d.sum, d.why)
		}
		saved.Stores = append(saved.Stores, s.in)
		if s.in.Err == nil {
			committed++
			continue
		}
		p.o.Events.Emit(events.StoreFailed{Store: s.in.URL, Chain: string(manifest.ImagesChain), Err: s.in.Err})
		errs = append(errs, fmt.Errorf("%s: %w", s.in.URL, s.in.Err))
	}
	meter.end(errors.Join(errs...))
	if committed < max(1, p.o.MinStores) {
		return saved, errors.Join(append([]error{fmt.Errorf("save images: %w: %d of %d, at least %d needed",
			backup.ErrTooFewStores, committed, len(p.o.Stores), max(1, p.o.MinStores))}, errs...)...)
	}
	if len(p.LeftOut) > 0 {
		return saved, fmt.Errorf("%w: %d left out, such as %s: %s", ErrNotWhole, len(p.LeftOut), p.LeftOut[0].Image, p.LeftOut[0].Why)
	}
	return saved, nil
}

// saver brings the images into one store.
type saver struct {
	p       *Plan // its own: a blob that is damaged here may be whole in another store already
	store   backup.Store
	id      manifest.ID
	moment  *moment
	meter   *meter
	put     map[manifest.Hash]manifest.ID // blobs that this save has put
	dropped []dropped
	in      InStore
}

// dropped is a blob that the image store could not give.
type dropped struct {
	sum manifest.Hash
	why error
}

func (s *saver) save(ctx context.Context) (err error) {
	for _, kind := range []manifest.Kind{manifest.KindBlob, manifest.KindImages} {
		if err := s.store.Repository.MayCommit(manifest.ImagesChain, kind); err != nil {
			return err
		}
	}
	for range rounds {
		if err = s.try(ctx); !errors.Is(err, repository.ErrIncomplete) {
			return err
		}
	}
	return err
}

// try puts what the store lacks and commits.
func (s *saver) try(ctx context.Context) error {
	there, err := s.p.look(ctx, s.store, s.put)
	if err != nil {
		return err
	}
	s.meter.expect(there.bytes)
	for _, sum := range there.lacking {
		d, wanted := s.p.blobs[sum]
		if !wanted { // an image that needed it was dropped meanwhile
			continue
		}
		id, err := s.blob(ctx, sum, d)
		if errors.Is(err, oci.ErrDamaged) || errors.Is(err, containerd.ErrNotFound) {
			s.dropped = append(s.dropped, dropped{sum, err})
			s.p.drop(sum, err)
			continue
		}
		if err != nil {
			return err
		}
		s.put[sum] = id
		s.in.Put++
		s.in.PutBytes += d.Size
	}
	if len(s.p.Images) == 0 {
		return fmt.Errorf("%w%s", ErrNone, s.p.whyNone())
	}
	body := s.p.body()
	if newest := there.newest; s.in.Put == 0 && newest != nil && len(newest.Degraded) == 0 && len(s.p.LeftOut) == 0 && reflect.DeepEqual(newest.Images, body) {
		s.in.Manifest, s.in.Unchanged = newest.Manifest, true
		return nil
	}
	committed, err := s.store.Commit(ctx, &manifest.Manifest{
		Chain: manifest.ImagesChain, Kind: manifest.KindImages, ID: s.id, Created: s.moment.at(s.p.now()), Writer: s.p.o.Writer, Heads: s.p.o.Heads,
		Images: body, Degraded: s.p.degraded(),
	}, s.p.o.StoreStall)
	if err != nil {
		return err
	}
	s.in.Manifest = committed.Manifest
	return nil
}

// moment is the time of a save's images. It is that of the first commit, and not of
// the first blob: that may be hours ago, and a commit is refused that is more than
// an hour old. The stores agree on it, so that none looks the fresher one to
// readers, but for one that comes much later.
type moment struct {
	mu    sync.Mutex
	first time.Time
}

func (m *moment) at(now time.Time) time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.first.IsZero() || now.Sub(m.first) > repository.GiveUpAfter/2 {
		m.first = now
	}
	return m.first
}

// now is the clock in a manifest's resolution.
func (p *Plan) now() time.Time { return p.o.Now().UTC().Truncate(time.Millisecond) }

// clone is a plan to drop images from.
func (p *Plan) clone() *Plan {
	c := &Plan{Images: slices.Clone(p.Images), LeftOut: slices.Clone(p.LeftOut), o: p.o, blobs: map[manifest.Hash]oci.Descriptor{}}
	c.count()
	return c
}

// meter tells of the bytes of all stores as of one stage, which grows with each store
// that has said what it lacks.
type meter struct {
	events events.Listener
	now    func() time.Time

	mu          sync.Mutex
	began       time.Time
	total, done int64
}

func (m *meter) expect(bytes int64) {
	if bytes == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.total == 0 {
		m.began = m.now()
	}
	m.total += bytes
	m.events.Emit(events.StageStarted{Stage: "save", Chain: string(manifest.ImagesChain), Total: m.total})
}

func (m *meter) add(bytes int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done += int64(bytes)
	m.events.Emit(events.StageProgress{Stage: "save", Chain: string(manifest.ImagesChain), Done: m.done})
}

func (m *meter) end(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.total > 0 {
		m.events.Emit(events.StageDone{Stage: "save", Chain: string(manifest.ImagesChain), Duration: m.now().Sub(m.began), Bytes: m.done, Err: err})
	}
}
