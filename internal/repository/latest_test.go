package repository

import (
	"errors"
	"testing"
	"time"

	"lifeboat/internal/manifest"
)

func TestTheLatestIsTheOneThatGoesFurthest(t *testing.T) {
	type capture struct {
		minute   int // when it began
		cluster  manifest.EtcdID
		rev      manifest.Revision
		degraded bool
	}
	for name, c := range map[string]struct {
		captures []capture
		want     manifest.Sequence
		asOf     int // minute
		at       int // resolved at this minute as well
		wantAt   manifest.Sequence
	}{
		"each goes on from the one before":                   {[]capture{{0, 1, 100, false}, {10, 1, 110, false}}, 2, 10, 5, 1},
		"a writer that was stopped commits late":             {[]capture{{10, 1, 120, false}, {5, 1, 110, false}}, 1, 10, 7, 2},
		"the latest capture is of a member that lags":        {[]capture{{0, 1, 120, false}, {10, 1, 90, true}}, 1, 0, 15, 1},
		"nothing was written, and the later one is degraded": {[]capture{{0, 1, 120, false}, {10, 1, 120, true}}, 1, 10, 15, 1},
		"nothing was written, and the later one is whole":    {[]capture{{0, 1, 120, true}, {10, 1, 120, false}}, 2, 10, 15, 2},
		"all are degraded":                                   {[]capture{{0, 1, 120, true}, {10, 1, 125, true}}, 2, 10, 5, 1},
		"a new etcd begins below":                            {[]capture{{0, 1, 120, false}, {10, 2, 5, false}}, 2, 10, 5, 1},
		"a clock was a day ahead":                            {[]capture{{1440, 1, 100, false}, {10, 1, 110, false}}, 2, 10, 20, 2},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			r := w.open()
			begin := whole(w.clock.now())
			minute := func(n int) time.Time { return begin.Add(time.Duration(n) * time.Minute) }
			for _, c := range c.captures {
				if behind := minute(c.minute).Sub(w.clock.now()); behind > 0 && c.minute < 1440 {
					w.clock.forward(behind)
				}
				w.full(r, func(m *manifest.Manifest) {
					m.Created, m.Etcd.ClusterID, m.Etcd.Revision = minute(c.minute), c.cluster, c.rev
					if c.degraded {
						m.Degraded = []string{"no quorum"}
					}
				})
			}
			m, err := r.Resolve(t.Context(), etcdMain, Point{})
			if err != nil || m.Sequence != c.want {
				t.Errorf("the latest is %+v, %v; want manifest %d", m, err, c.want)
			}
			if m, err = r.Resolve(t.Context(), etcdMain, Point{Time: minute(c.at)}); err != nil || m.Sequence != c.wantAt {
				t.Errorf("at minute %d it was %+v, %v; want manifest %d", c.at, m, err, c.wantAt)
			}
			view, err := r.Load(t.Context(), etcdMain)
			if err != nil {
				t.Fatal(err)
			}
			backups := view.Backups()
			b, asOf := Latest(backups)
			if b.Sequence != c.want || !asOf.Equal(minute(c.asOf)) {
				t.Errorf("the latest is manifest %d as of %s, want %d as of %s", b.Sequence, asOf, c.want, minute(c.asOf))
			}
			for i, b := range backups {
				if b.Sequence != manifest.Sequence(i+1) {
					t.Error("the list of backups was put into another order")
				}
			}
			if _, err := r.Prune(t.Context(), etcdMain, []manifest.ID{b.ID}, PruneOptions{}); !errors.Is(err, ErrRefused) {
				t.Errorf("a prune of the latest: %v", err)
			}
		})
	}
	if b, asOf := Latest(nil); b != nil || !asOf.IsZero() {
		t.Errorf("the latest of nothing: %v, %s", b, asOf)
	}
}

func TestTheLatestOfANodesFilesIsTheLastOfTheChain(t *testing.T) {
	w := newWorld(t, nil)
	r := w.open()
	w.backup(r, hostsCP1, manifest.KindFiles)
	last := w.backup(r, hostsCP1, manifest.KindFiles, func(m *manifest.Manifest) {
		m.Created, m.Degraded = m.Created.Add(-30*time.Minute), []string{"/etc/kubernetes/pki/ca.key: permission denied"}
	})
	if m, err := r.Resolve(t.Context(), hostsCP1, Point{}); err != nil || m.ID != last.Manifest.ID {
		t.Errorf("%+v, %v", m, err)
	}
}
