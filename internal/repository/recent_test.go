package repository

import (
	"slices"
	"testing"

	"lifeboat/internal/manifest"
)

func TestASegmentThatSkippedSomethingIsInNoList(t *testing.T) {
	for name, c := range map[string]struct {
		fresh bool // each commit by a new process
		whole bool // and by the protocol's whole length
	}{
		"by one appender":         {},
		"by many":                 {fresh: true},
		"by commits that list it": {fresh: true, whole: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			open := func() *Repository {
				r := w.open()
				r.listEvery, r.page = 8, 5
				return r
			}
			r := open()
			w.full(r, at(100))
			a := r.Appender(etcdMain)
			rev := manifest.Revision(100)
			commit := func() *Committed {
				rev++
				if c.fresh {
					a = open().Appender(etcdMain)
				}
				if c.whole {
					return w.segment(open(), rev, rev)
				}
				return w.append(a, rev, rev)
			}
			commit()
			commit()
			junk := w.stored(r, etcdMain, 4)
			set(t, w.store, junk, []byte("junk"))
			by := commit()
			if by.Sequence != 5 || len(by.Manifest.Skipped) != 1 {
				t.Fatalf("committed %d, skipped %v", by.Sequence, by.Manifest.Skipped)
			}
			listed := map[manifest.Sequence]bool{}
			for range 20 {
				for _, e := range commit().Manifest.Recent {
					listed[e.Sequence] = true
				}
			}
			if listed[by.Sequence] || !listed[3] || !listed[6] {
				t.Errorf("lists name %v", listed)
			}
			v, err := open().Load(t.Context(), etcdMain)
			if err != nil || len(v.Failures()) > 0 || !slices.ContainsFunc(v.Problems, func(p Problem) bool { return p.Object == junk && p.Kind == Skipped }) {
				t.Errorf("%v, %v", v.Problems, err)
			}
			same(t, "by its lists", v, w.everything(w.open()))
			w.wantWay(open(), Point{Revision: 103}, "1/100: 101-101 102-102 103-103 = 103")
		})
	}
}

// A list may name a segment that nobody reads any more. What is bad is not listed
// as if it were good.
func TestASegmentWhoseLinkIsBrokenIsInNoList(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	r.listEvery = 8
	w.full(r, at(100))
	w.segment(r, 101, 101)
	broken := w.segment(r, 102, 102)
	w.segment(r, 103, 103)
	w.resign(r, broken.Sequence-1, w.signer) // so what follows it follows another
	for rev := manifest.Revision(104); rev < 130; rev++ {
		again := w.open()
		again.listEvery = 8
		if c := w.segment(again, rev, rev); slices.ContainsFunc(c.Manifest.Recent, func(e manifest.Entry) bool { return e.Sequence == broken.Sequence }) {
			t.Errorf("manifest %d lists it: %v", c.Sequence, c.Manifest.Recent)
		}
	}
	wantProblem(t, w.failures(w.open()), w.stored(r, etcdMain, broken.Sequence), Unlinked)
}
