package repository

import (
	"context"
	"errors"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/storage"
)

// rolledUp is a chain of which a recorder's prune takes the segments in places 2,
// 3 and 6. The index in place 5 lists those before it.
func rolledUp(t *testing.T) (*world, *Repository, []*Committed) {
	w := newWorld(t, nil)
	r := w.open()
	return w, r, []*Committed{
		nil, // so that each lies in its place
		w.full(r, at(100)),
		w.segment(r, 101, 110),
		w.segment(r, 111, 120),
		w.segment(r, 101, 120, rollUp),
		w.full(r, at(120)),
		w.segment(r, 121, 130),
		w.segment(r, 121, 130, rollUp),
		w.segment(r, 131, 140),
	}
}

// resign puts a manifest in a place that differs from the one there, but for what
// says where it belongs.
func (w *world) resign(r *Repository, seq manifest.Sequence, by *manifest.Signer) {
	w.t.Helper()
	name := w.stored(r, etcdMain, seq)
	m, err := manifest.Open(get(w.t, w.store, name), w.trust)
	if err != nil {
		w.t.Fatal(err)
	}
	m.Writer.Node = "another"
	signed, err := manifest.Sign(m, by)
	if err != nil {
		w.t.Fatal(err)
	}
	set(w.t, w.store, name, signed)
}

// lossesOf are ways to harm a manifest.
var lossesOf = map[string]func(*world, *Repository, manifest.Sequence){
	"is gone": func(w *world, r *Repository, seq manifest.Sequence) { remove(w.t, w.store, w.stored(r, etcdMain, seq)) },
	"is damaged": func(w *world, r *Repository, seq manifest.Sequence) {
		data := get(w.t, w.store, w.stored(r, etcdMain, seq))
		data[len(data)/3] ^= 1
		set(w.t, w.store, w.stored(r, etcdMain, seq), data)
	},
	"is another's": func(w *world, r *Repository, seq manifest.Sequence) {
		set(w.t, w.store, w.stored(r, etcdMain, seq), get(w.t, w.store, w.stored(r, etcdMain, seq-1)))
	},
	"is forged": func(w *world, r *Repository, seq manifest.Sequence) { w.resign(r, seq, w.newSigner("stranger")) },
	"is a genuine one that the chain does not name": func(w *world, r *Repository, seq manifest.Sequence) {
		w.resign(r, seq, w.signer)
	},
}

// knowing opens the repository as one does that has seen a head.
func (w *world) knowing(head *Committed) *Repository {
	return w.open(func(o *Options) { o.Seen = map[manifest.Chain]manifest.Head{etcdMain: head.Head("memory:")} })
}

// fresh opens the repository anew each time, and as one who has seen the head
// only if it is the head that is harmed: else the list of a chain begins there.
func (w *world) fresh(head *Committed, harmed manifest.Sequence) func() *Repository {
	return func() *Repository {
		if harmed == head.Sequence {
			return w.knowing(head)
		}
		return w.open()
	}
}

func TestARecorderDoesNotPruneAChainThatHasFailures(t *testing.T) {
	w, r, made := rolledUp(t)
	for what, places := range map[string][]manifest.Sequence{
		"is gone":      {1, 2, 4, 5, 6, 7, 8},
		"is damaged":   {1, 5, 6, 7, 8}, // of segments that an index lists nobody reads more than goes
		"is another's": {5, 6, 7, 8},
		"is forged":    {1, 5, 6, 7, 8},
		"is a genuine one that the chain does not name": {1, 5, 6, 7, 8},
	} {
		for _, seq := range places {
			name := w.stored(r, etcdMain, seq)
			kept := get(t, w.store, name)
			lossesOf[what](w, r, seq)
			before := names(t, w.store, testCluster+"/")
			fresh := w.fresh(made[8], seq)
			failures := w.failures(fresh())
			for _, dry := range []bool{true, false} {
				p, err := fresh().Prune(t.Context(), etcdMain, nil, PruneOptions{RolledUp: true, DryRun: dry})
				if !errors.Is(err, ErrVerification) || !strings.Contains(err.Error(), "a chain with failures is not pruned") {
					t.Errorf("manifest %d %s: %+v, %v", seq, what, p, err)
				}
			}
			if now := names(t, w.store, testCluster+"/"); !slices.Equal(now, before) {
				t.Fatalf("manifest %d %s: the store holds %v, held %v", seq, what, now, before)
			}
			if now := w.failures(fresh()); len(now) == 0 || !slices.Equal(now, failures) {
				t.Errorf("manifest %d %s: %v is wrong, and was %v", seq, what, now, failures)
			}
			set(t, w.store, name, kept)
		}
	}
	w.clean(w.open())
	if p := w.pruneRolledUp(w.open()); p.Segments != 3 {
		t.Errorf("whole again: %+v", p)
	}
	w.clean(w.open())
}

func TestARecorderSweepsNoChainThatHasFailures(t *testing.T) {
	w, r, _ := rolledUp(t)
	if p := w.pruneRolledUp(r); p.Segments != 3 || p.Commit.Sequence != 9 {
		t.Fatalf("%+v", p)
	}
	w.clock.forward(RolledUpGrace + skewMargin + time.Second)
	w.segment(r, 141, 150)
	head := w.segment(r, 151, 160)
	for what, places := range map[string][]manifest.Sequence{
		"is gone":      {1, 4, 5, 7, 8, 10, 11},
		"is damaged":   {1, 5, 10, 11},
		"is another's": {5, 10, 11},
		"is forged":    {1, 5, 10, 11},
		"is a genuine one that the chain does not name": {1, 5, 10, 11},
	} {
		for _, seq := range places {
			name := w.stored(r, etcdMain, seq)
			kept := get(t, w.store, name)
			lossesOf[what](w, r, seq)
			before := names(t, w.store, testCluster+"/")
			s := w.sweepRolledUp(w.fresh(head, seq)())
			if s.Objects+s.Manifests != 0 || len(s.Problems) == 0 {
				t.Errorf("manifest %d %s: %+v", seq, what, s)
			}
			if now := names(t, w.store, testCluster+"/"); !slices.Equal(now, before) {
				t.Fatalf("manifest %d %s: the store holds %v, held %v", seq, what, now, before)
			}
			set(t, w.store, name, kept)
		}
	}
	if s := w.sweepRolledUp(w.open()); s.Objects != 3 || s.Manifests != 3 || len(s.Problems) != 0 {
		t.Errorf("whole again: %+v", s)
	}
	w.clean(w.open())
	w.wantWay(w.open(), Point{Revision: 125}, "1/120: 121-130r = 125")
}

// One who knows the chain's head does not look at the segments that an index
// lists. What it reads of them to prune must be what the index says.
func TestARecorderPrunesNothingForARollUpThatIsNotTheChains(t *testing.T) {
	for what, harm := range lossesOf {
		w, r, made := rolledUp(t)
		harm(w, r, 4)
		p := w.pruneRolledUp(w.knowing(made[8]))
		if p.Segments != 1 || len(p.Objects) != 1 || p.Objects[0] != made[6].Manifest.Objects[0].Name {
			t.Errorf("the roll-up %s: %+v", what, p)
		}
		if failures := w.failures(w.open()); !slices.ContainsFunc(failures, func(p Problem) bool { return p.Sequence == 4 }) {
			t.Errorf("the roll-up %s: it is not missed any more: %v", what, failures)
		}
		w.clock.forward(RolledUpGrace + skewMargin + time.Second)
		w.sweepRolledUp(w.knowing(p.Commit))
		w.wantWay(w.open(), Point{Revision: 115}, "1/100: 101-110 111-120 = 115")
	}
}

func TestASmallSegmentThatIsNotTheChainsIsMissedAfterItsRollUpWasPrunedFor(t *testing.T) {
	for what, harm := range lossesOf {
		w, r, made := rolledUp(t)
		harm(w, r, 2)
		p := w.pruneRolledUp(w.knowing(made[8]))
		if p.Segments != 2 || len(p.Objects) != 2 || slices.Contains(p.Objects, made[2].Manifest.Objects[0].Name) {
			t.Errorf("the segment %s: %+v", what, p)
		}
		if failures := w.failures(w.open()); !slices.ContainsFunc(failures, func(p Problem) bool { return p.Sequence == 2 }) {
			t.Errorf("the segment %s: it is not missed any more: %v", what, failures)
		}
		w.wantWay(w.open(), Point{Revision: 115}, "1/100: 101-120r = 115")
	}
}

// without leaves one name out of its lists.
type without struct {
	storage.Store
	name string
}

func (s without) List(ctx context.Context, prefix string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		for info, err := range s.Store.List(ctx, prefix) {
			if info.Name != s.name && !yield(info, err) {
				return
			}
		}
	}
}

func TestARollUpByARevokedKeyReplacesNothing(t *testing.T) {
	w := newWorld(t, nil)
	other := w.newSigner("cp2")
	good := w.trust
	w.trust = w.trusting(testCluster, w.signer, other)
	r := w.open()
	w.full(r, at(100))
	w.segment(r, 101, 110)
	roll := w.segment(w.open(func(o *Options) { o.Signer = other }), 101, 110, rollUp)
	w.full(r, at(110))                                    // lists it
	for rev := manifest.Revision(111); rev < 114; rev++ { // as many as a reader takes at first
		w.segment(r, rev, rev)
	}
	w.trust = good
	for what, store := range map[string]storage.Store{
		"listed": w.store,
		// Then it is read when the chain is, by the word of the index.
		"not listed": without{w.store, w.stored(r, etcdMain, roll.Sequence)},
	} {
		if p := w.pruneRolledUp(on(w.open(), store)); p.Commit != nil {
			t.Errorf("%s: %+v", what, p)
		}
	}
	w.trust = w.trusting(testCluster, w.signer, other)
	if p := w.pruneRolledUp(w.open()); p.Segments != 1 {
		t.Errorf("by a key that counts: %+v", p)
	}
}

func TestAPruneOfWhatRollUpsReplacedAcceptsNoLosses(t *testing.T) {
	_, r, _ := rolledUp(t)
	if pruned, err := r.Prune(t.Context(), etcdMain, nil, PruneOptions{RolledUp: true, AcceptLosses: true}); err == nil {
		t.Errorf("pruned %+v", pruned)
	}
}
