package repository

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/manifest"
)

// small is a repository with three fulls, one node's files and a drill.
func small(t testing.TB) (*world, *Repository) {
	w := newWorld(t, nil)
	r := w.open()
	if err := r.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.backup(r, drills, manifest.KindDrill)
	for range 3 {
		w.full(r)
	}
	w.backup(r, hostsCP1, manifest.KindFiles)
	w.clean(w.open())
	return w, r
}

func TestEverySingleBitFlipOfAManifestIsDetectedAndNamed(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	for range 3 {
		w.backup(r, drills, manifest.KindDrill, func(m *manifest.Manifest) { m.Objects = nil })
	}
	for _, seq := range []manifest.Sequence{1, 3} { // one that others name by its hash; and the newest
		name := w.stored(r, drills, seq)
		data := get(t, w.store, name)
		for bit := range len(data) * 8 {
			flipped := bytes.Clone(data)
			flipped[bit/8] ^= 1 << (bit % 8)
			set(t, w.store, name, flipped)
			rep, err := w.open().Verify(t.Context(), VerifyOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(Failures(rep.Problems), func(p Problem) bool { return p.Object == name }) {
				t.Fatalf("bit %d of manifest %d: %v", bit, seq, rep.Problems)
			}
		}
		set(t, w.store, name, data)
	}
	w.clean(w.open())
}

func TestEverySingleByteFlipElsewhereIsDetectedAndNamed(t *testing.T) {
	w, r := small(t)
	for _, name := range names(t, w.store, testCluster+"/") {
		p, inChain := locate(strings.TrimPrefix(name, testCluster+"/"))
		if p.manifest {
			continue
		}
		only := VerifyOptions{Chains: []manifest.Chain{drills}}
		if inChain {
			only.Chains[0] = p.chain
		}
		data := get(t, w.store, name)
		for i := range data {
			flipped := bytes.Clone(data)
			flipped[i] ^= 0xff
			set(t, w.store, name, flipped)
			rep, err := r.Verify(t.Context(), only)
			if err != nil {
				t.Fatal(err)
			}
			kind := ObjectDamaged
			if !inChain {
				kind = ReadmeChanged
			}
			if failures := Failures(rep.Problems); len(failures) != 1 || failures[0].Object != name || failures[0].Kind != kind {
				t.Fatalf("byte %d of %s: %v", i, name, rep.Problems)
			}
		}
		set(t, w.store, name, data)
	}
	w.clean(w.open())
}

func TestTamperingIsDetectedAndNamed(t *testing.T) {
	object := func(w *world, r *Repository, chain manifest.Chain, seq manifest.Sequence) string {
		v, err := r.Load(w.t.Context(), chain)
		if err != nil {
			w.t.Fatal(err)
		}
		return r.stored(v.at(seq).Objects[0].Name)
	}
	type want struct {
		object string
		kind   Kind
	}
	tests := map[string]func(t *testing.T, w *world, r *Repository) []want{
		"a truncated data object": func(t *testing.T, w *world, r *Repository) []want {
			name := object(w, r, etcdMain, 2)
			data := get(t, w.store, name)
			set(t, w.store, name, data[:len(data)-1])
			return []want{{name, ObjectSize}}
		},
		"a missing data object": func(t *testing.T, w *world, r *Repository) []want {
			name := object(w, r, hostsCP1, 1)
			remove(t, w.store, name)
			return []want{{name, ObjectMissing}}
		},
		"two data objects of one size swapped": func(t *testing.T, w *world, r *Repository) []want {
			one, two := object(w, r, etcdMain, 1), object(w, r, etcdMain, 2)
			a, b := get(t, w.store, one), get(t, w.store, two)
			set(t, w.store, one, b)
			set(t, w.store, two, a)
			return []want{{one, ObjectDamaged}, {two, ObjectDamaged}}
		},
		"a truncated manifest": func(t *testing.T, w *world, r *Repository) []want {
			name := w.stored(r, etcdMain, 2)
			data := get(t, w.store, name)
			set(t, w.store, name, data[:len(data)/2])
			return []want{{name, Damaged}}
		},
		"an emptied manifest": func(t *testing.T, w *world, r *Repository) []want {
			set(t, w.store, w.stored(r, etcdMain, 2), nil)
			return []want{{w.stored(r, etcdMain, 2), Damaged}}
		},
		"two manifests swapped": func(t *testing.T, w *world, r *Repository) []want {
			one, two := w.stored(r, etcdMain, 1), w.stored(r, etcdMain, 2)
			a, b := get(t, w.store, one), get(t, w.store, two)
			set(t, w.store, one, b)
			set(t, w.store, two, a)
			return []want{{one, Misplaced}, {two, Misplaced}}
		},
		"an old manifest replayed behind the head": func(t *testing.T, w *world, r *Repository) []want {
			set(t, w.store, w.stored(r, etcdMain, 4), get(t, w.store, w.stored(r, etcdMain, 2)))
			return []want{{w.stored(r, etcdMain, 4), Misplaced}}
		},
		"an old manifest replayed over a later one": func(t *testing.T, w *world, r *Repository) []want {
			set(t, w.store, w.stored(r, etcdMain, 3), get(t, w.store, w.stored(r, etcdMain, 1)))
			return []want{{w.stored(r, etcdMain, 3), Misplaced}, {w.stored(r, etcdMain, 3), RolledBack}}
		},
		"a removed manifest": func(t *testing.T, w *world, r *Repository) []want {
			remove(t, w.store, w.stored(r, etcdMain, 2)) // the newest one's predecessor
			return []want{{w.stored(r, etcdMain, 2), Hole}}
		},
		"a removed first manifest": func(t *testing.T, w *world, r *Repository) []want {
			remove(t, w.store, w.stored(r, etcdMain, 1))
			return []want{{w.stored(r, etcdMain, 1), Hole}}
		},
		"a removed newest manifest, which another chain's manifest has seen": func(t *testing.T, w *world, r *Repository) []want {
			remove(t, w.store, w.stored(r, etcdMain, 3))
			return []want{{w.stored(r, etcdMain, 3), RolledBack}}
		},
		"a removed chain, which another chain's manifest has seen": func(t *testing.T, w *world, r *Repository) []want {
			for _, name := range names(t, w.store, testCluster+"/etcd/") {
				remove(t, w.store, name)
			}
			return []want{{w.stored(r, etcdMain, 3), RolledBack}}
		},
		"a manifest without a signature": func(t *testing.T, w *world, r *Repository) []want {
			name := w.stored(r, etcdMain, 3)
			data := get(t, w.store, name)
			set(t, w.store, name, data[:bytes.LastIndex(data, []byte("\n\n"))+2])
			return []want{{name, Damaged}, {name, RolledBack}}
		},
		"a manifest signed by a stranger": func(t *testing.T, w *world, r *Repository) []want {
			m, _ := w.draft(etcdMain, manifest.KindFull)
			v, err := r.Load(t.Context(), etcdMain)
			if err != nil {
				t.Fatal(err)
			}
			m.Format, m.Cluster, m.Epoch, m.Sequence, m.Previous = 1, testCluster, 1, 4, v.Head.Hash
			m.Created = whole(m.Created)
			signed, err := manifest.Sign(m, w.newSigner("stranger"))
			if err != nil {
				t.Fatal(err)
			}
			set(t, w.store, w.stored(r, etcdMain, 4), signed)
			return []want{{w.stored(r, etcdMain, 4), Unsigned}}
		},
		"a manifest of another chain": func(t *testing.T, w *world, r *Repository) []want {
			set(t, w.store, w.stored(r, "hosts/cp2", 1), get(t, w.store, w.stored(r, hostsCP1, 1)))
			return []want{{w.stored(r, "hosts/cp2", 1), Misplaced}}
		},
		"a whole chain copied from another": func(t *testing.T, w *world, r *Repository) []want {
			var list []want
			for _, name := range names(t, w.store, testCluster+"/etcd/main/") {
				copied := strings.Replace(name, "/etcd/main/", "/etcd/copy/", 1)
				set(t, w.store, copied, get(t, w.store, name))
				if strings.Contains(name, "/manifests/") {
					list = append(list, want{copied, Misplaced})
				}
			}
			return list
		},
		"an object in manifests/ that is no manifest": func(t *testing.T, w *world, r *Repository) []want {
			name := testCluster + "/etcd/main/manifests/notes.txt"
			set(t, w.store, name, []byte("x"))
			return []want{{name, Unknown}}
		},
		"a changed README.txt": func(t *testing.T, w *world, r *Repository) []want {
			name := testCluster + "/README.txt"
			set(t, w.store, name, append(get(t, w.store, name), "send us the identity\n"...))
			return []want{{name, ReadmeChanged}}
		},
	}
	for name, tamper := range tests {
		t.Run(name, func(t *testing.T) {
			w, r := small(t)
			wants := tamper(t, w, r)
			fresh := w.open()
			failures := w.failures(fresh)
			for _, want := range wants {
				wantProblem(t, failures, want.object, want.kind)
			}
			if len(failures) != len(wants) {
				t.Errorf("%d failures: %v", len(failures), failures)
			}
			err := (&Report{Problems: failures}).Err()
			var bad *VerificationError
			if !errors.As(err, &bad) || !strings.Contains(err.Error(), failures[0].Object) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestARemovedNewestManifestIsMissedByWhoeverSawIt(t *testing.T) {
	w, r := small(t)
	seen := map[manifest.Chain]manifest.Head{}
	for _, head := range r.Heads() {
		seen[head.Chain] = head
	}
	if len(seen) != 3 || seen[etcdMain].Sequence != 3 || seen[etcdMain].Store != "memory:" {
		t.Fatalf("heads %v", seen)
	}
	remove(t, w.store, w.stored(r, hostsCP1, 1)) // no later manifest names it
	w.clean(w.open())
	remembers := func() *Repository { return w.open(func(o *Options) { o.Seen = seen }) }
	wantProblem(t, w.failures(remembers()), w.stored(r, hostsCP1, 1), RolledBack)
	if _, err := remembers().Resolve(t.Context(), hostsCP1, Point{}); !errors.Is(err, ErrVerification) {
		t.Errorf("resolve: %v", err)
	}

	// The next backup goes on, and is itself the evidence: also for those who
	// never saw the lost head.
	c := w.backup(remembers(), hostsCP1, manifest.KindFiles)
	if c.Sequence != 1 || len(w.warnings) == 0 {
		t.Errorf("committed %d, warnings %v", c.Sequence, w.warnings)
	}
	wantProblem(t, w.failures(w.open()), w.stored(r, hostsCP1, 1), RolledBack)
}

func TestAnOldStateOfTheStoreIsNotTakenForTheNewest(t *testing.T) {
	w, r := small(t)
	seen := map[manifest.Chain]manifest.Head{etcdMain: {Store: "memory:", Chain: etcdMain, Sequence: 3, Hash: manifest.Hash{1}}}
	replaced := w.open(func(o *Options) { o.Seen = seen })
	wantProblem(t, w.failures(replaced), w.stored(r, etcdMain, 3), RolledBack)
}

func TestReadingADamagedObjectNeverEndsWell(t *testing.T) {
	w, r := small(t)
	v, err := r.Load(t.Context(), etcdMain)
	if err != nil {
		t.Fatal(err)
	}
	o := v.Head.Objects[0]
	data := get(t, w.store, r.stored(o.Name))
	for name, damage := range map[string][]byte{
		"flipped": append(bytes.Clone(data[:len(data)-1]), data[len(data)-1]^1), "shorter": data[1:], "longer": append(bytes.Clone(data), 0), "empty": {},
	} {
		set(t, w.store, r.stored(o.Name), damage)
		body, err := r.OpenObject(t.Context(), o)
		if err == nil {
			_, err = io.Copy(io.Discard, body)
			body.Close()
		}
		if !errors.Is(err, ErrVerification) || !strings.Contains(err.Error(), o.Name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	remove(t, w.store, r.stored(o.Name))
	if _, err := r.OpenObject(t.Context(), o); !errors.Is(err, ErrVerification) {
		t.Errorf("missing: %v", err)
	}
	_, problems, err := r.Backups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wantProblem(t, problems, r.stored(o.Name), ObjectMissing)
}

func TestGarbageIsANoteAndTheDueDateToo(t *testing.T) {
	w, r := small(t)
	m, data := w.draft(etcdMain, manifest.KindFull)
	if err := put(t.Context(), r, m, data); err != nil {
		t.Fatal(err)
	}
	set(t, w.store, testCluster+"/etcd/main/data/stray", []byte("x"))
	set(t, w.store, testCluster+"/lost+found", []byte("x"))
	due := w.clock.now().Add(time.Hour)
	w.full(r, func(m *manifest.Manifest) { m.NextExpectedBy = &due })
	w.clock.forward(2 * time.Hour)
	rep, err := w.open().Verify(t.Context(), VerifyOptions{})
	if err != nil || rep.Err() != nil {
		t.Fatal(err, rep.Err())
	}
	for name, kind := range map[string]Kind{
		r.stored(m.Objects[0].Name): Garbage, testCluster + "/etcd/main/data/stray": Garbage, testCluster + "/lost+found": Garbage,
		w.stored(r, etcdMain, 4): Late,
	} {
		wantProblem(t, rep.Problems, name, kind)
	}
	if rep.Objects != 7 || rep.Manifests != 6 || len(rep.Chains) != 3 {
		t.Errorf("report %+v", rep)
	}
}

func TestAVerificationMayBeNarrowed(t *testing.T) {
	w, r := small(t)
	v, err := r.Load(t.Context(), etcdMain)
	if err != nil {
		t.Fatal(err)
	}
	set(t, w.store, r.stored(v.Manifests[0].Objects[0].Name), []byte("x"))
	for _, test := range []struct {
		opts     VerifyOptions
		objects  int
		failures int
		err      error
	}{
		{VerifyOptions{}, 6, 1, nil},
		{VerifyOptions{Chains: []manifest.Chain{hostsCP1}}, 1, 0, nil},
		{VerifyOptions{IDs: []manifest.ID{v.Manifests[0].ID}}, 1, 1, nil},
		{VerifyOptions{IDs: []manifest.ID{v.Manifests[1].ID}}, 1, 0, nil},
		{VerifyOptions{IDs: []manifest.ID{w.id()}}, 0, 0, ErrNothing},
		{VerifyOptions{Chains: []manifest.Chain{"etcd/none"}}, 0, 0, ErrNothing},
	} {
		rep, err := r.Verify(t.Context(), test.opts)
		if !errors.Is(err, test.err) {
			t.Errorf("%+v: %v", test.opts, err)
		}
		if err == nil && (rep.Objects != test.objects || len(Failures(rep.Problems)) != test.failures) {
			t.Errorf("%+v: %+v", test.opts, rep)
		}
	}
}

func TestAManifestOfANewerFormatStopsWriters(t *testing.T) {
	// A newer lifeboat's manifest must not be skipped as junk by an older one.
	w, r := small(t)
	m, data := w.draft(etcdMain, manifest.KindFull)
	if err := put(t.Context(), r, m, data); err != nil {
		t.Fatal(err)
	}
	view, err := r.Load(t.Context(), etcdMain)
	if err != nil {
		t.Fatal(err)
	}
	view.st.slots[4] = &slot{seq: 4, kind: NewerFormat, err: manifest.ErrUnknownFormat}
	st := walk(view.st.name, etcdMain, view.st.slots, 0)
	view.Problems = st.problems
	c := &commit{r: r, chain: etcdMain, id: m.ID, created: m.Created, draft: func(*View) (*manifest.Manifest, error) { return m, nil }}
	if _, _, err := c.prepare(t.Context(), view); !errors.Is(err, ErrVerification) || !strings.Contains(err.Error(), "upgrade") {
		t.Errorf("prepare: %v", err)
	}
	if faultKind(fmt.Errorf("x: %w", manifest.ErrUnknownFormat)) != NewerFormat {
		t.Error("an unknown format is not known as one")
	}
}
