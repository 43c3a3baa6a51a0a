package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"lifeboat/backup/etcd"
	"lifeboat/internal/durable"
	"lifeboat/internal/events"
	"lifeboat/internal/follow"
	"lifeboat/internal/manifest"
	"lifeboat/internal/patience"
)

// snapshotFile is a full's data object: what it becomes as each layer is
// taken off can be read from its name.
const snapshotFile = "snapshot.db.zst.age"

// Etcd takes one full backup of the cluster. The result says what each store
// did, also when an error says that too few of them did it.
func (r *Runner) Etcd(ctx context.Context, config etcd.Config, limits etcd.Limits) (*Result, error) {
	if err := r.anyOpen(); err != nil {
		return nil, fmt.Errorf("back up %s: %w", config.Chain(), err)
	}
	cluster, err := etcd.Open(config, limits, r.Events)
	if err != nil {
		return nil, err
	}
	defer cluster.Close()
	cluster.MarkWith(r.Marker)
	created := r.now()
	survey, err := cluster.Survey(ctx)
	if err != nil {
		return nil, err
	}
	taken, err := r.takeSnapshot(ctx, cluster, config.Chain(), survey)
	if err != nil {
		return nil, fmt.Errorf("back up %s: %w", config.Chain(), err)
	}
	draft := r.draft(config.Chain(), manifest.KindFull, taken.id, created)
	draft.Epoch = r.Epoch
	draft.Etcd, draft.Degraded, draft.Unproved = &taken.capture.Etcd, taken.capture.Degraded, taken.capture.Unproved
	before := r.newestFulls(ctx, draft, taken.data)
	draft.Etcd.Rate = rate(draft, before)
	if r.Unattended {
		for i, m := range before {
			if m != nil && m.Epoch >= r.Epoch && overtakes(m, draft, r.now()) {
				taken.data.errs[i] = fmt.Errorf("%w: backup %s of %s", ErrOvertaken, m.ID, m.Created.Format(time.RFC3339))
			}
		}
	}
	return r.commit(ctx, draft, taken.data)
}

// anyOpen fails unless a store could be opened: with none, the source is not
// worth asking. One is enough to take a backup that fails for want of others: it
// is better than none.
func (r *Runner) anyOpen() error {
	errs := []error{fmt.Errorf("%w: none of %d answers", ErrTooFewStores, len(r.Stores))}
	for _, store := range r.Stores {
		if store.Err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", store.URL, store.Err))
	}
	return errors.Join(errs...)
}

// taken is a snapshot whose data object is durable in at least one store.
type taken struct {
	id      manifest.ID
	capture *etcd.Capture
	data    sealed
}

// takeSnapshot tries the members, best first. One whose snapshot speaks
// against it is passed over for the next; when all are bad, the first is taken
// as it is and marked degraded.
func (r *Runner) takeSnapshot(ctx context.Context, cluster *etcd.Cluster, chain manifest.Chain, survey *etcd.Survey) (*taken, error) {
	candidates := survey.Sources()
	if len(candidates) == 0 {
		return nil, errors.New("no member answers that is not a learner")
	}
	lastResort := candidates[0]
	lastResort.Tolerate = true
	var passedOver []error
	var bads []*etcd.BadSourceError
	for _, source := range append(candidates, lastResort) {
		t, err := r.snapshotFrom(ctx, cluster, chain, survey, source)
		var bad *etcd.BadSourceError
		switch {
		case err == nil:
			for _, bad := range bads {
				if !slices.Contains(t.capture.Etcd.Dissenting, bad.Member) {
					t.capture.Etcd.Dissenting = append(t.capture.Etcd.Dissenting, bad.Member)
				}
				// Those who spoke against it may have gone since; it is no better for that.
				if bad.Member == source.Member() && len(t.capture.Degraded) == 0 {
					t.capture.Degraded = append(t.capture.Degraded, bad.Error())
				}
			}
			return t, nil
		case errors.Is(err, ErrNoStore), ctx.Err() != nil:
			return nil, err
		case errors.As(err, &bad) && bad.Dissents:
			bads = append(bads, bad)
		}
		passedOver = append(passedOver, err)
		r.Events.Emit(events.Warning{Chain: string(chain), Subject: "member " + source.Member().String(), Message: "passed over: " + err.Error()})
	}
	return nil, errors.Join(passedOver...)
}

// snapshotFrom takes one snapshot through scratch, or straight through where
// there is no room for scratch.
func (r *Runner) snapshotFrom(ctx context.Context, cluster *etcd.Cluster, chain manifest.Chain, survey *etcd.Survey, source etcd.Source) (*taken, error) {
	why := r.noScratch(source)
	if why == "" {
		t, err := r.throughScratch(ctx, cluster, chain, survey, source)
		if !errors.Is(err, errScratch) {
			return t, err
		}
		why = err.Error() // full, read-only, failing: no reason to go without a backup
	}
	r.Events.Emit(events.Warning{Chain: string(chain), Subject: "scratch", Message: why + "; streaming straight to the stores, unproved"})
	return r.straightThrough(ctx, cluster, chain, survey, source, why)
}

// scratchMargin is the free space that a scratch file must leave on its file
// system, which may be etcd's own.
const scratchMargin = 64 << 20

// noScratch says why scratch can't be used, or "".
func (r *Runner) noScratch(source etcd.Source) string {
	if r.Scratch == "" {
		return "no scratch folder is configured"
	}
	if err := os.MkdirAll(r.Scratch, 0o700); err != nil {
		return "scratch folder: " + err.Error()
	}
	free, err := durable.FreeSpace(r.Scratch)
	if err != nil {
		return "scratch folder: " + err.Error()
	}
	if need := source.DBSize() + scratchMargin; free < need {
		return fmt.Sprintf("the snapshot needs %d bytes of scratch, %d are free", need, free)
	}
	return ""
}

var (
	errScratch = errors.New("scratch")

	// ErrNoStore says that not one store took the data.
	ErrNoStore = errors.New("every store failed")
)

// throughScratch streams into a scratch file at full speed while the sealer
// follows behind. The stores get the end of the object only after the proof,
// so a snapshot from a bad member never becomes visible.
func (r *Runner) throughScratch(ctx context.Context, cluster *etcd.Cluster, chain manifest.Chain, survey *etcd.Survey, source etcd.Source) (*taken, error) {
	scratch, err := durable.OpenScratch(r.Scratch)
	if err != nil {
		return nil, fmt.Errorf("%w: open a folder: %w", errScratch, err)
	}
	defer scratch.Close()
	file, err := scratch.Create("snapshot.db")
	if err != nil {
		return nil, fmt.Errorf("%w: create a file: %w", errScratch, err)
	}
	defer file.Close()
	spool := follow.New(file)
	return r.captureAndSpread(ctx, chain, func(ctx context.Context) io.Reader { return spool.Reader(ctx) },
		func(ctx context.Context) (*etcd.Capture, error) {
			return cluster.Capture(ctx, survey, source, scratchWriter{spool}, file.Name())
		}, spool.Finish)
}

// scratchWriter marks the scratch file's failures as such.
type scratchWriter struct{ w io.Writer }

func (s scratchWriter) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	if err != nil {
		err = fmt.Errorf("%w: write: %w", errScratch, err)
	}
	return n, err
}

// straightThrough needs no scratch: what comes from the member goes to the
// sealer. The trailer is checked before the object's end is given out.
func (r *Runner) straightThrough(ctx context.Context, cluster *etcd.Cluster, chain manifest.Chain, survey *etcd.Survey, source etcd.Source, why string) (*taken, error) {
	reader, writer := io.Pipe()
	t, err := r.captureAndSpread(ctx, chain, func(ctx context.Context) io.Reader {
		context.AfterFunc(ctx, func() { reader.CloseWithError(context.Cause(ctx)) })
		return reader
	}, func(ctx context.Context) (*etcd.Capture, error) {
		return cluster.Capture(ctx, survey, source, writer, "")
	}, func(err error) { writer.CloseWithError(err) })
	if err == nil {
		t.capture.Unproved = []string{"no scratch: " + manifest.Line(why)}
	}
	return t, err
}

// captureAndSpread runs a capture and the sealing of what it captures side by
// side. finish tells plain's reader how the capture ended. Each side ends the
// other when it fails, and the error is that of the first.
func (r *Runner) captureAndSpread(ctx context.Context, chain manifest.Chain, plain func(context.Context) io.Reader,
	capture func(context.Context) (*etcd.Capture, error), finish func(error)) (*taken, error) {
	id, err := manifest.NewID(r.Rand)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	t := &taken{id: id}
	spreadDone := make(chan error, 1)
	go func() {
		var err error
		t.data, err = r.spread(ctx, chain, id, manifest.RoleSnapshot, snapshotFile, plain(ctx))
		if err != nil {
			err = fmt.Errorf("%w: %w", ErrNoStore, err)
			cancel(err)
		}
		spreadDone <- err
	}()
	var captureErr error
	t.capture, captureErr = capture(ctx)
	if captureErr != nil {
		cancel(captureErr) // before the reader hears of it, so that ours is the first
	}
	finish(captureErr)
	spreadErr := <-spreadDone
	switch {
	case spreadErr != nil && context.Cause(ctx) == spreadErr:
		return nil, spreadErr
	case captureErr != nil:
		return nil, captureErr
	case spreadErr != nil:
		return nil, spreadErr
	}
	return t, nil
}

// newestFulls looks up the chain's newest full in every store that holds the
// data, all at once; nil where there is none of the same etcd cluster, or no
// answer: the commit will tell.
func (r *Runner) newestFulls(ctx context.Context, draft *manifest.Manifest, data sealed) []*manifest.Manifest {
	newest := make([]*manifest.Manifest, len(r.Stores))
	var running sync.WaitGroup
	for i, store := range r.Stores {
		if data.errs[i] != nil {
			continue
		}
		running.Go(func() {
			m, err := patience.Within(ctx, r.StoreStall, r.farewell(), func(ctx context.Context) (*manifest.Manifest, error) {
				return store.Repository.NewestFull(ctx, draft.Chain)
			})
			if err == nil && m != nil && m.Etcd.ClusterID == draft.Etcd.ClusterID {
				newest[i] = m
			}
		})
	}
	running.Wait()
	return newest
}

// rate is how many revisions a second the cluster has made since the chain's
// last full, for the revision bump of a later restore; 0 when unknown.
func rate(draft *manifest.Manifest, before []*manifest.Manifest) float64 {
	for _, last := range before {
		if last == nil {
			continue
		}
		seconds := draft.Created.Sub(last.Created).Seconds()
		if revisions := draft.Etcd.Revision - last.Etcd.Revision; revisions > 0 && seconds >= 1 {
			return float64(revisions) / seconds
		}
	}
	return 0
}

// clocksApart is how far another machine's clock may be ahead of ours where its
// times are believed.
const clocksApart = 10 * time.Minute

// overtakes reports whether a full of the same etcd cluster makes the draft
// pointless: its capture began later and reached no less. One that is less than
// it should be makes nothing pointless that is whole. One from the future was
// dated by a clock that was wrong: it may be of long ago, from before an etcd
// that went back, and would hold up every full until its date.
func overtakes(newer, draft *manifest.Manifest, now time.Time) bool {
	return newer.Created.After(draft.Created) && !newer.Created.After(now.Add(clocksApart)) &&
		newer.Etcd.Revision >= draft.Etcd.Revision && (len(newer.Degraded) == 0 || len(draft.Degraded) > 0)
}
