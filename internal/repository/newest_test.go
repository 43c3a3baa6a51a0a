package repository

import (
	"testing"
	"time"

	"lifeboat/internal/manifest"
)

func TestOnlyAWholeCaptureAfterTheNewestTellsThatHistoryWentBack(t *testing.T) {
	type capture struct {
		minute   int // when it began
		cluster  manifest.EtcdID
		rev      manifest.Revision
		degraded bool
		epoch    uint64 // wanted
	}
	for name, captures := range map[string][]capture{
		"two captures commit in the opposite order":             {{10, 1, 120, false, 1}, {5, 1, 110, false, 1}, {20, 1, 125, false, 1}},
		"what is committed late hides no step back":             {{10, 1, 120, false, 1}, {5, 1, 110, false, 1}, {20, 1, 115, false, 2}},
		"a degraded one is of a member that lags":               {{10, 1, 120, false, 1}, {20, 1, 90, true, 1}, {30, 1, 130, false, 1}},
		"the lagging member became the cluster":                 {{10, 1, 120, false, 1}, {20, 1, 90, true, 1}, {30, 1, 95, false, 2}},
		"degraded for days, then the lagging one won":           {{0, 1, 120, false, 1}, {300, 1, 90, true, 1}, {600, 1, 90, true, 1}, {900, 1, 90, true, 1}, {1200, 1, 99, false, 2}},
		"the same revision again is no step back":               {{10, 1, 120, false, 1}, {20, 1, 120, false, 1}},
		"another cluster is another history, whole or degraded": {{10, 1, 120, false, 1}, {11, 2, 130, true, 2}},
		"the revisions of the history before do not count":      {{10, 1, 120, false, 1}, {20, 2, 50, false, 2}, {30, 2, 60, false, 2}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			r := w.open()
			begin := w.clock.now()
			for i, c := range captures {
				began := begin.Add(time.Duration(c.minute) * time.Minute)
				if behind := began.Sub(w.clock.now()); behind > 0 {
					w.clock.forward(behind)
				}
				done := w.full(r, func(m *manifest.Manifest) {
					m.Created, m.Etcd.ClusterID, m.Etcd.Revision = began, c.cluster, c.rev
					if c.degraded {
						m.Degraded = []string{"no quorum"}
					}
				})
				if done.Manifest.Epoch != c.epoch {
					t.Fatalf("capture %d: epoch %d, want %d", i, done.Manifest.Epoch, c.epoch)
				}
			}
			newest, err := r.NewestFull(t.Context(), etcdMain)
			last := captures[len(captures)-1]
			if err != nil || newest.Etcd.Revision != last.rev {
				t.Errorf("the newest full is %+v, error %v; want the one at %d", newest, err, last.rev)
			}
			w.clean(r)
		})
	}
}

func TestTheNewestFullOfAnEmptyChainIsNone(t *testing.T) {
	w := newWorld(t, nil)
	if m, err := w.open().NewestFull(t.Context(), etcdMain); m != nil || err != nil {
		t.Errorf("got %v, %v", m, err)
	}
}
