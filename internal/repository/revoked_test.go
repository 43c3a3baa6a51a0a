package repository

import (
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"testing"

	"lifeboat/internal/manifest"
)

// limited is a key that may sign one kind only, and trust that knows it.
func (w *world) limited(kind manifest.Kind) *manifest.Signer {
	s := w.newSigner("limited")
	w.trust.Verifiers = append(w.trust.Verifiers, manifest.Verifier{
		Key: s.VerifierText(), Chains: []string{"*"}, Kinds: []string{string(kind)},
	})
	return s
}

// entries lists what an index behind a chain of fulls would.
func (w *world) entries(r *Repository) ([]manifest.Entry, *Loaded) {
	w.t.Helper()
	v, err := r.Load(w.t.Context(), etcdMain)
	if err != nil {
		w.t.Fatal(err)
	}
	return slices.Clone(v.st.live), v.Head
}

// forge overwrites the manifest in a place with one that no trusted key signed,
// and returns what an index has to say to vouch for it.
func (w *world) forge(r *Repository, old manifest.Entry) manifest.Entry {
	w.t.Helper()
	v, err := r.Load(w.t.Context(), etcdMain)
	if err != nil {
		w.t.Fatal(err)
	}
	m := *v.at(old.Sequence).Manifest
	etcd := *m.Etcd
	etcd.Revision++
	m.Etcd = &etcd
	signed, err := manifest.Sign(&m, w.newSigner("stranger"))
	if err != nil {
		w.t.Fatal(err)
	}
	set(w.t, w.store, w.stored(r, etcdMain, m.Sequence), signed)
	old.Hash, _ = manifest.TextHash(signed)
	return old
}

func TestAKeyThatMayNotSignFullsCanNotVouchForThem(t *testing.T) {
	for name, kind := range map[string]manifest.Kind{"a key for proofs": manifest.KindProof, "a key for prunes": manifest.KindPrune} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			thief := w.limited(kind)
			r := w.open()
			fulls := w.fulls(r, 12)
			live, head := w.entries(r)
			// Everything behind the third is left out, and the third is another.
			live = live[:3]
			live[2] = w.forge(r, live[2])
			m := &manifest.Manifest{
				Format: 1, Cluster: testCluster, Chain: etcdMain, Epoch: 1, Sequence: 13, Previous: head.Hash, Kind: kind,
				ID: w.id(), Created: whole(w.clock.now()), Writer: manifest.Writer{Node: "x", Version: "1"}, Index: live,
			}
			if kind == manifest.KindProof {
				m.Proof = &manifest.Proof{Of: fulls[0].Manifest.ID, Revision: 10, HashKV: 77, How: "drill"}
			} else {
				m.Prune = &manifest.Prune{Base: 1}
			}
			signed, err := manifest.Sign(m, thief)
			if err != nil {
				if kind == manifest.KindProof && errors.Is(err, manifest.ErrMalformed) {
					return // such a manifest does not exist
				}
				t.Fatal(err)
			}
			set(t, w.store, w.stored(r, etcdMain, 13), signed)
			forged := w.stored(r, etcdMain, 3)
			if m, err := w.open().Resolve(t.Context(), etcdMain, Point{}); !errors.Is(err, ErrVerification) || !strings.Contains(err.Error(), forged) {
				t.Errorf("the latest is %+v, %v", m, err)
			}
			if m, err := w.open().Resolve(t.Context(), etcdMain, Point{Backup: fulls[2].Manifest.ID}); !errors.Is(err, ErrVerification) {
				t.Errorf("by its id: %+v, %v", m, err)
			}
			if b, err := w.open().Find(t.Context(), string(fulls[2].Manifest.ID)); err == nil {
				t.Errorf("found %+v", b.Manifest)
			}
			wantProblem(t, w.failures(w.open()), forged, Unsigned)
		})
	}
}

func TestAnIndexVouchesOnlyForWhatItsSignerMaySign(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.fulls(r, 12)
	v, err := r.Load(t.Context(), etcdMain)
	if err != nil {
		t.Fatal(err)
	}
	data := get(t, w.store, w.stored(r, etcdMain, 3))
	text := data[:strings.LastIndex(string(data), "\n\n")+1]
	unsigned := append(text[:len(text):len(text)], "\n— stranger AAAAAAAA\n"...)
	hash := manifest.Hash(sha256.Sum256(text))
	rd := r.reader(etcdMain)
	may := v.st.anchor.signers
	for name, test := range map[string]struct {
		seq  manifest.Sequence
		by   []manifest.Verifier
		good bool
	}{
		"a key that may":                   {3, may, true},
		"no key":                           {3, nil, false},
		"a key for another kind":           {3, []manifest.Verifier{{Key: may[0].Key, Chains: []string{"*"}, Kinds: []string{"proof"}}}, false},
		"a key for another chain":          {3, []manifest.Verifier{{Key: may[0].Key, Chains: []string{"hosts/*"}, Kinds: []string{"*"}}}, false},
		"a key that had retired by then":   {3, []manifest.Verifier{{Key: may[0].Key, Chains: []string{"*"}, Kinds: []string{"*"}, Until: v.Manifests[0].Created}}, false},
		"one of two keys":                  {3, []manifest.Verifier{{Key: may[0].Key, Chains: []string{"*"}, Kinds: []string{"proof"}}, may[0]}, true},
		"a key that may, of another place": {4, may, false},
	} {
		m, _, _, err := rd.judge(unsigned, test.seq, claim{hash: hash, by: test.by})
		if (m != nil) != test.good || (err == nil) != test.good {
			t.Errorf("%s: %v, %v", name, m, err)
		}
	}
}

func TestARevokedKeysBackupsAreNotRestored(t *testing.T) {
	// An index by a good key vouches for what a stolen key had committed.
	w := newWorld(t, nil)
	stolen := w.newSigner("cp2")
	w.trust = w.trusting(testCluster, w.signer, stolen)
	r, thief := w.open(), w.open(func(o *Options) { o.Signer = stolen })
	w.fulls(r, 2)
	false3 := w.full(thief)
	good := w.fulls(r, 12)
	at := false3.Manifest.Created
	if m, err := w.open().Resolve(t.Context(), etcdMain, Point{Time: at}); err != nil || m.Sequence != 3 {
		t.Fatal(m, err)
	}

	w.trust = w.trusting(testCluster, w.signer) // revoked
	name := w.stored(r, etcdMain, 3)
	for what, point := range map[string]Point{"its time": {Time: at}, "its id": {Backup: false3.Manifest.ID}, "its revision": {Revision: false3.Manifest.Etcd.Revision}} {
		m, err := w.open().Resolve(t.Context(), etcdMain, point)
		if !errors.Is(err, ErrVerification) || !strings.Contains(err.Error(), name) {
			t.Errorf("by %s: %v, %v", what, m, err)
		}
		if point.Backup == "" && !strings.Contains(err.Error(), "can be had by its id") {
			t.Errorf("by %s: no way out: %v", what, err)
		}
	}
	if b, err := w.open().Find(t.Context(), string(false3.Manifest.ID)); !errors.Is(err, ErrVerification) || !strings.Contains(err.Error(), name) {
		t.Errorf("find: %v, %v", b, err)
	}
	if m, err := w.open().Resolve(t.Context(), etcdMain, Point{}); err != nil || m.Sequence != good[11].Sequence {
		t.Errorf("the latest: %v, %v", m, err)
	}
	m, err := w.open().Resolve(t.Context(), etcdMain, Point{Backup: good[0].Manifest.ID})
	if err != nil || len(m.Index) != 3 {
		t.Errorf("a vouched one: %v, %v", m, err)
	}
	if b, err := w.open().Find(t.Context(), string(good[0].Manifest.ID)); err != nil || len(b.Index) != 3 {
		t.Errorf("find: %v, %v", b, err)
	}
	wantProblem(t, w.failures(w.open()), name, Unsigned)
}

func TestTamperingFarBehindTheHeadIsRefusedByResolve(t *testing.T) {
	for name, tamper := range map[string]func(t *testing.T, name, other string, w *world){
		"a truncated manifest": func(t *testing.T, name, _ string, w *world) {
			data := get(t, w.store, name)
			set(t, w.store, name, data[:len(data)/2])
		},
		"an emptied manifest": func(t *testing.T, name, _ string, w *world) { set(t, w.store, name, nil) },
		"a removed manifest":  func(t *testing.T, name, _ string, w *world) { remove(t, w.store, name) },
		"another's manifest":  func(t *testing.T, name, other string, w *world) { set(t, w.store, name, get(t, w.store, other)) },
		"a flipped bit of the text": func(t *testing.T, name, _ string, w *world) {
			data := get(t, w.store, name)
			data[len(data)/3] ^= 1
			set(t, w.store, name, data)
		},
		"no signature": func(t *testing.T, name, _ string, w *world) {
			data := get(t, w.store, name)
			set(t, w.store, name, data[:strings.LastIndex(string(data), "\n\n")+2])
		},
		"a stranger's signature": func(t *testing.T, name, _ string, w *world) {
			data := get(t, w.store, name)
			m, err := manifest.Open(data, w.trust)
			if err != nil {
				t.Fatal(err)
			}
			signed, err := manifest.Sign(m, w.newSigner("stranger"))
			if err != nil {
				t.Fatal(err)
			}
			set(t, w.store, name, signed)
		},
		"a flipped bit of the signature": func(t *testing.T, name, _ string, w *world) {
			data := get(t, w.store, name)
			data[len(data)-20] ^= 1
			set(t, w.store, name, data)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			r := w.open()
			fulls := w.fulls(r, 40)
			object := w.stored(r, etcdMain, 5)
			tamper(t, object, w.stored(r, etcdMain, 4), w)
			for what, point := range map[string]Point{"by id": {Backup: fulls[4].Manifest.ID}, "by time": {Time: fulls[4].Manifest.Created}, "by revision": {Revision: fulls[4].Manifest.Etcd.Revision}} {
				m, err := w.open().Resolve(t.Context(), etcdMain, point)
				if !errors.Is(err, ErrVerification) || !strings.Contains(err.Error(), object) {
					t.Errorf("%s: %v, %v", what, m, err)
				}
			}
			if b, err := w.open().Find(t.Context(), string(fulls[4].Manifest.ID)); err == nil {
				t.Errorf("found %v", b)
			}
			for _, point := range []Point{{}, {Backup: fulls[3].Manifest.ID}, {Backup: fulls[5].Manifest.ID}} {
				if _, err := w.open().Resolve(t.Context(), etcdMain, point); err != nil {
					t.Errorf("%s: %v", point, err)
				}
			}
		})
	}
}
