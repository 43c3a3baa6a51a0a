package repository

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/storage"
	broken "lifeboat/storage/fault"
)

// shortPaged makes a repository whose pages and lists are short, so that a chain of
// a few dozen is a long one.
func shortPaged(r *Repository) *Repository {
	r.listEvery, r.page = 8, 5
	return r
}

// long makes a chain of n segments with a full now and then, as appenders do.
func (w *world) long(n int, fullEvery int) *Repository {
	w.t.Helper()
	r := shortPaged(w.open())
	w.full(r, at(1))
	a := r.Appender(etcdMain)
	for i := range n {
		rev := manifest.Revision(2 + i)
		w.append(a, rev, rev)
		if fullEvery > 0 && i%fullEvery == fullEvery-1 {
			w.full(r, at(rev))
		}
	}
	return r
}

// listsAll hides that a store can list from a name.
type listsAll struct{ storage.Store }

// same compares what two loads say of a chain.
func same(t *testing.T, what string, got, want *View) {
	t.Helper()
	if (got.Head == nil) != (want.Head == nil) || got.Head != nil && (got.Head.Sequence != want.Head.Sequence || got.Head.Hash != want.Head.Hash) {
		t.Errorf("%s: another head: %+v, want %+v", what, got.Head, want.Head)
	}
	if len(got.st.live) != len(want.st.live) {
		t.Errorf("%s: %d live entries, want %d", what, len(got.st.live), len(want.st.live))
		return
	}
	for i, e := range want.st.live {
		g := got.st.live[i]
		if g.Sequence != e.Sequence || g.Hash != e.Hash || g.ID != e.ID || g.Kind != e.Kind || !sameReach(g.Reach, e.Reach) {
			t.Errorf("%s: entry %+v, want %+v", what, g, e)
			return
		}
	}
}

func TestALongChainOpensFromItsEnd(t *testing.T) {
	for _, n := range []int{0, 1, 3, 4, 5, 6, 9, 30, 100} {
		for _, fullEvery := range []int{0, 25} {
			w := newWorld(t, nil)
			r := w.long(n, fullEvery)
			want := w.everything(w.open())
			if len(want.Problems) > 0 {
				t.Fatal(want.Problems)
			}
			for how, r := range map[string]*Repository{
				"by a new process": shortPaged(w.open()), "by one that saw the head": r,
				"without ranges": on(shortPaged(w.open()), listsAll{w.store}),
			} {
				f := broken.New(r.store)
				if how != "without ranges" {
					r = shortPaged(on(r, f))
				}
				for _, d := range []depth{{}, {tail: true, since: w.clock.now()}} {
					v, err := r.load(t.Context(), etcdMain, d)
					if err != nil || len(v.Problems) > 0 {
						t.Fatal(err, v.Problems)
					}
					same(t, fmt.Sprintf("%d segments, %s, %+v", n, how, d), v, want)
				}
				if ops := f.Count(); n == 100 && how != "without ranges" && ops > 2*100 {
					t.Errorf("%s: %d operations to open %d segments twice", how, ops, n)
				}
			}
		}
	}
}

func TestAPrunedChainThatWasSeenOpensInAFewRequests(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	fulls := w.fulls(r, 20)
	var old []manifest.ID
	for _, full := range fulls[:18] {
		old = append(old, full.Manifest.ID)
	}
	w.prune(r, etcdMain, old...)
	w.clock.forward(ManifestGrace + ObjectGrace)
	w.sweep(w.open())
	w.full(r)
	f := broken.New(w.store)
	seen := on(w.open(func(o *Options) {
		o.Seen = map[manifest.Chain]manifest.Head{}
		for _, head := range r.Heads() {
			o.Seen[head.Chain] = head
		}
	}), f)
	v, err := seen.load(t.Context(), etcdMain, depth{tail: true, since: w.clock.now()})
	if err != nil || v.Head.Sequence != 22 || len(v.Problems) > 0 {
		t.Fatalf("%+v, %v", v, err)
	}
	same(t, "by one that saw the head", v, w.everything(w.open()))
	lists := 0
	for _, call := range f.Trace() {
		if call.Op == broken.List {
			lists++
		}
	}
	if f.Count() > 10 || lists != 1 {
		t.Errorf("opened by %v", f.Trace())
	}
}

// Whatever somebody does to the places of a long chain, opening it from its end
// says no less than opening it from its whole listing.
func TestOpeningFromTheEndHidesNothing(t *testing.T) {
	for seed := range uint64(25) {
		rng := rand.New(rand.NewPCG(seed, 7))
		w := newWorld(t, nil)
		r := w.long(20+rng.IntN(40), 5+rng.IntN(60))
		if rng.IntN(3) == 0 {
			v := w.everything(r)
			var old []manifest.ID
			for _, e := range v.st.live[:len(v.st.live)/3] {
				if e.Kind == manifest.KindSegment {
					old = append(old, e.ID)
				}
			}
			w.prune(r, etcdMain, old...)
			w.clock.forward(ManifestGrace + ObjectGrace)
			w.sweep(w.open())
			a := r.Appender(etcdMain)
			for i := range 15 + rng.IntN(20) {
				w.append(a, manifest.Revision(500+i), manifest.Revision(500+i))
			}
		}
		places := w.manifests()
		top := places[len(places)-1]
		var done []string
		for range rng.IntN(4) {
			seq := places[rng.IntN(len(places))]
			if rng.IntN(2) == 0 { // mostly near the end
				seq = places[len(places)-1-rng.IntN(min(12, len(places)))]
			}
			name := w.stored(r, etcdMain, seq)
			switch what := rng.IntN(5); what {
			case 0:
				remove(t, w.store, name)
				done = append(done, fmt.Sprintf("removed %d", seq))
			case 1:
				set(t, w.store, name, []byte("junk"))
				done = append(done, fmt.Sprintf("overwrote %d", seq))
			case 2:
				ahead := top + 1 + manifest.Sequence(rng.IntN(3))
				set(t, w.store, w.stored(r, etcdMain, ahead), []byte("junk ahead"))
				done = append(done, fmt.Sprintf("junk at %d", ahead))
			case 3:
				ahead := top + 1<<rng.IntN(41)
				set(t, w.store, w.stored(r, etcdMain, ahead), []byte("far ahead"))
				done = append(done, fmt.Sprintf("junk at %d", ahead))
			case 4:
				var from string
				if all := names(t, w.store, testCluster+"/etcd/main/manifests/"); len(all) > 0 {
					from = all[rng.IntN(len(all))]
				}
				set(t, w.store, name, get(t, w.store, from))
				done = append(done, fmt.Sprintf("replayed %s at %d", from[len(from)-4:], seq))
			}
		}
		want, err := shortPaged(on(w.open(), listsAll{w.store})).Load(t.Context(), etcdMain)
		if err != nil {
			t.Fatal(err)
		}
		seen := w.open(func(o *Options) {
			seq := 1 + manifest.Sequence(rng.IntN(int(top)))
			v := want.at(seq)
			if v != nil {
				o.Seen = map[manifest.Chain]manifest.Head{etcdMain: {Store: "memory:", Chain: etcdMain, Sequence: seq, Hash: v.Hash}}
			}
		})
		for how, r := range map[string]*Repository{"new": shortPaged(w.open()), "seen": shortPaged(seen)} {
			got, err := r.Load(t.Context(), etcdMain)
			if err != nil {
				t.Fatal(err)
			}
			what := fmt.Sprintf("seed %d, %s, %v", seed, how, done)
			same(t, what, got, want)
			// What lies in a place that only a list names is asked for by no
			// opening; with the whole listing at hand its absence shows, and here
			// where it was listed. All else must show.
			for _, p := range want.Problems {
				if p.Kind == Hole && got.st.unread(p.Sequence) || p.Kind == Hole && got.st.slots[p.Sequence] == nil && indexedSegment(got, p.Sequence) {
					continue
				}
				if !slices.ContainsFunc(got.Problems, func(g Problem) bool { return g.Object == p.Object && g.Kind == p.Kind }) {
					t.Errorf("%s: %v does not show; got %v", what, p, got.Problems)
				}
			}
		}
		// And all of it to a verification.
		all := w.everything(w.open())
		for _, p := range want.Failures() {
			if !slices.ContainsFunc(all.Problems, func(g Problem) bool { return g.Object == p.Object }) {
				t.Errorf("seed %d, %v: %v does not show when everything is read: %v", seed, done, p, all.Problems)
			}
		}
		if t.Failed() {
			return
		}
	}
}

func indexedSegment(v *View, seq manifest.Sequence) bool {
	e, ok := v.st.indexed(seq)
	return ok && e.Reach != nil
}

func TestAListedSegmentThatIsGoneShowsWhereTheChainIsListed(t *testing.T) {
	w := newWorld(t, nil)
	r := w.long(60, 0)
	remove(t, w.store, w.stored(r, etcdMain, 5))
	whole, err := on(w.open(), listsAll{w.store}).Load(t.Context(), etcdMain)
	if err != nil {
		t.Fatal(err)
	}
	wantProblem(t, whole.Problems, w.stored(r, etcdMain, 5), Hole)
	wantProblem(t, w.failures(w.open()), w.stored(r, etcdMain, 5), Hole)
}

func TestAListIsBelievedOfThoseWhoMaySignFullsOnly(t *testing.T) {
	w := newWorld(t, nil)
	recorder := w.newSigner("recorder")
	w.trust.Verifiers = append(w.trust.Verifiers, manifest.Verifier{
		Key: recorder.VerifierText(), Chains: []string{"etcd/*"}, Kinds: []string{string(manifest.KindSegment)},
	})
	r := w.open()
	hidden := w.full(r, at(200))
	// A list that calls the full a segment, by a key for segments alone.
	v := w.everything(r)
	lie := func(by *manifest.Signer) {
		t.Helper()
		m, data := w.segmentDraft(201, 201)
		if err := put(t.Context(), r, m, data); err != nil {
			t.Fatal(err)
		}
		m.Format, m.Cluster, m.Epoch, m.Sequence, m.Previous = 1, testCluster, 1, v.Head.Sequence+1, v.Head.Hash
		m.Recent = []manifest.Entry{
			{Sequence: hidden.Sequence, Hash: hidden.Hash, Kind: manifest.KindSegment, ID: w.id(), Reach: &manifest.Reach{Epoch: 1, First: 1, Last: 1, LastTime: whole(m.Created)}},
		}
		signed, err := manifest.Sign(m, by)
		if err != nil {
			t.Fatal(err)
		}
		set(t, w.store, w.stored(r, etcdMain, m.Sequence), signed)
	}
	lie(recorder)
	got, err := w.open().Load(t.Context(), etcdMain)
	if err != nil || got.Find(hidden.Manifest.ID) == nil || len(got.st.recent) > 0 {
		t.Errorf("%v; the full is hidden, or the list believed: %v", err, got.st.recent)
	}
	if m, err := w.open().Resolve(t.Context(), etcdMain, Point{}); err != nil || m.ID != hidden.Manifest.ID {
		t.Errorf("the latest is %v, %v", m, err)
	}

	// By a key that may sign fulls the lie shows as soon as the place is read.
	lie(w.signer)
	wantProblem(t, w.failures(w.open()), w.stored(r, etcdMain, 2), Unlinked)
}

func TestAListThatDoesNotFitItsChainShows(t *testing.T) {
	for name, change := range map[string]func(*manifest.Entry){
		"another hash": func(e *manifest.Entry) { e.Hash = manifest.Hash{9} },
		"another span": func(e *manifest.Entry) {
			e.Reach = &manifest.Reach{Epoch: 1, First: 1, Last: 99, LastTime: e.Reach.LastTime}
		},
		"another time": func(e *manifest.Entry) {
			reach := *e.Reach
			reach.LastTime = reach.LastTime.Add(time.Second)
			e.Reach = &reach
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			r := w.open()
			w.full(r, at(100))
			a := r.Appender(etcdMain)
			for rev := range manifest.Revision(5) {
				w.append(a, 101+rev, 101+rev)
			}
			v := w.everything(r)
			m, data := w.segmentDraft(106, 106)
			if err := put(t.Context(), r, m, data); err != nil {
				t.Fatal(err)
			}
			m.Format, m.Cluster, m.Epoch, m.Sequence, m.Previous = 1, testCluster, 1, v.Head.Sequence+1, v.Head.Hash
			m.Recent = slices.Clone(v.st.live[1:])
			change(&m.Recent[2])
			signed, err := manifest.Sign(m, w.signer)
			if err != nil {
				t.Fatal(err)
			}
			set(t, w.store, w.stored(r, etcdMain, m.Sequence), signed)
			wantProblem(t, w.failures(w.open()), w.stored(r, etcdMain, m.Sequence), Unlinked)
		})
	}
}

func TestChainsAreFoundWithoutListingTheirFolders(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	if err := r.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	found := func(r *Repository) []manifest.Chain {
		chains, err := r.chainsOf(t.Context(), r.store.(storage.Ranger))
		if err != nil {
			t.Fatal(err)
		}
		return chains
	}
	if got := found(r); len(got) != 0 {
		t.Errorf("an empty cluster has %v", got)
	}
	for range 3 {
		w.full(r)
		w.backup(r, hostsCP1, manifest.KindFiles)
		w.backup(r, "hosts/cp10", manifest.KindFiles)
		w.backup(r, "etcd/events", manifest.KindFull)
		w.backup(r, drills, manifest.KindDrill)
	}
	for _, name := range []string{"etcd/main/data.old/x", "etcd/main/manifests0", "etcd/stray", "zzz/manifests/x", "other/y", "hosts/cp0/data/x"} {
		set(t, w.store, testCluster+"/"+name, []byte("stray"))
	}
	l, err := w.open().list(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f := broken.New(w.store)
	fresh := on(w.open(), f)
	if got := found(fresh); !slices.Equal(got, l.names()) || len(got) < 5 {
		t.Errorf("found %v, listed %v", got, l.names())
	}
	if f.Count() > 2*len(l.names())+3 {
		t.Errorf("%d operations for %d chains", f.Count(), len(l.names()))
	}
	gone := w.open(func(o *Options) {
		o.Seen = map[manifest.Chain]manifest.Head{"hosts/gone": {Store: "memory:", Chain: "hosts/gone", Sequence: 3, Hash: manifest.Hash{1}}}
	})
	if got := found(gone); !slices.Contains(got, "hosts/gone") {
		t.Errorf("a chain that was seen is not among %v", got)
	}
}

func TestAnOpeningThatCannotListFails(t *testing.T) {
	w := newWorld(t, nil)
	w.long(30, 0)
	for n := 1; ; n++ {
		f := broken.New(w.store)
		r := shortPaged(on(w.open(), f))
		f.FailAt(n, broken.Before, nil)
		v, err := r.Load(t.Context(), etcdMain)
		if f.Count() < n {
			if err != nil || v.Head.Sequence != 31 {
				t.Errorf("%v, %v", v, err)
			}
			break
		}
		if !errors.Is(err, broken.ErrInjected) {
			t.Fatalf("operation %d fails, and the opening says %v", n, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := shortPaged(w.open()).Load(ctx, etcdMain); !errors.Is(err, context.Canceled) {
		t.Errorf("under a cancelled context: %v", err)
	}
}

// lagging leaves what was put last out of its lists.
type lagging struct {
	storage.Store
	after string
}

func (l lagging) ListAfter(ctx context.Context, prefix, after string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		for info, err := range storage.ListAfter(ctx, l.Store, prefix, after) {
			if (!strings.Contains(info.Name, "/manifests/") || info.Name <= l.after) && !yield(info, err) {
				return
			}
		}
	}
}

func TestAListThatLagsBehindHidesNoHead(t *testing.T) {
	w := newWorld(t, nil)
	r := w.long(50, 0)
	for _, last := range []manifest.Sequence{1, 2, 20, 45, 50} {
		stale := shortPaged(on(w.open(), lagging{w.store, w.stored(r, etcdMain, last)}))
		v, err := stale.Load(t.Context(), etcdMain)
		if err != nil || v.Head == nil || v.Head.Sequence != 51 || len(v.Problems) > 0 {
			t.Errorf("listed up to %d: %+v, %v", last, v, err)
		}
	}
	w.clock.forward(time.Hour)
}

func TestALostFullShowsHoweverManyManifestsLieBehindTheIndex(t *testing.T) {
	for _, behind := range []manifest.Revision{0, 2, 3, 4, 19} { // a reader takes 4, 16, ... at a time
		w := newWorld(t, nil)
		r := w.open()
		w.full(r, at(100))
		lost := w.full(r, at(110))
		w.full(r, at(90), inEpoch(8)) // lists the others
		for rev := manifest.Revision(91); rev < 91+behind; rev++ {
			w.segment(r, rev, rev, inEpoch(8))
		}
		remove(t, w.store, w.stored(r, etcdMain, lost.Sequence))
		v, err := w.open().Load(t.Context(), etcdMain)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(v.Failures(), func(p Problem) bool { return p.Sequence == lost.Sequence && p.Kind == Hole }) {
			t.Errorf("with %d segments behind the index: %v", behind, v.Problems)
		}
		if _, err := w.open().Route(t.Context(), etcdMain, Point{Revision: 110}); !errors.Is(err, ErrVerification) {
			t.Errorf("with %d segments behind the index, a revision that only the lost full has: %v", behind, err)
		}
	}
}
