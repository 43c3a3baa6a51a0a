package repository

import (
	"errors"
	"testing"
	"time"

	"lifeboat/internal/manifest"
)

func TestOnlyAWholeCaptureAfterTheNewestTellsThatHistoryWentBack(t *testing.T) {
	const tomorrow = 24 * 60 // by a wrong clock
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
		"a capture that began first took its snapshot last":     {{10, 1, 200, false, 1}, {12, 1, 110, false, 1}, {20, 1, 210, false, 1}},
		"history went back while the newest is from the future": {{0, 1, 100, false, 1}, {tomorrow, 1, 120, false, 1}, {20, 1, 60, false, 2}},
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
				if behind := began.Sub(w.clock.now()); behind > 0 && c.minute < tomorrow {
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

// An agent that slept while etcd was restored must not put the old history over
// the new one. The restored etcd's own backups count, however wrong a clock is.
func TestALateFullOfTheEtcdBeforeIsRefused(t *testing.T) {
	const old, restored = 1, 2
	type capture struct {
		minute  int
		cluster manifest.EtcdID
	}
	for name, c := range map[string]struct {
		before []capture
		last   capture
		want   error
		epoch  uint64
	}{
		"of the etcd before, begun before":            {[]capture{{0, old}, {20, restored}}, capture{10, old}, ErrReplaced, 0},
		"of the etcd before, begun after":             {[]capture{{0, old}, {20, restored}}, capture{25, old}, nil, 3},
		"of the restored one, by a clock that lags":   {[]capture{{0, old}, {20, old}}, capture{10, restored}, nil, 2},
		"of the etcd before, and one from the future": {[]capture{{0, old}, {600, restored}}, capture{10, old}, nil, 3},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			r := w.open()
			begin := w.clock.now()
			w.clock.forward(30 * time.Minute)
			take := func(c capture) func(*manifest.Manifest) {
				return func(m *manifest.Manifest) {
					m.Created, m.Etcd.ClusterID = begin.Add(time.Duration(c.minute)*time.Minute), c.cluster
				}
			}
			for _, c := range c.before {
				w.full(r, take(c))
			}
			draft, data := w.draft(etcdMain, manifest.KindFull)
			take(c.last)(draft)
			if err := put(t.Context(), r, draft, data); err != nil {
				t.Fatal(err)
			}
			done, err := r.Commit(t.Context(), draft)
			if !errors.Is(err, c.want) || err == nil && done.Manifest.Epoch != c.epoch {
				t.Errorf("%+v, %v; want epoch %d, %v", done, err, c.epoch, c.want)
			}
		})
	}
}

// A history that forked under one cluster id shows neither in the id nor, once
// the new one has come as far, in the revision.
func TestALateFullOfAHistoryThatForkedIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		minute int
		want   error
	}{
		"begun before the fork was known": {10, ErrReplaced},
		"begun after":                     {25, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			r := w.open()
			begin := w.clock.now()
			w.clock.forward(30 * time.Minute)
			at := func(minute int) time.Time { return begin.Add(time.Duration(minute) * time.Minute) }
			w.full(r, func(m *manifest.Manifest) { m.Created, m.Etcd.Revision = at(0), 100 })
			w.full(r, func(m *manifest.Manifest) { m.Created, m.Etcd.Revision, m.Epoch = at(20), 200, 2 })
			draft, data := w.draft(etcdMain, manifest.KindFull)
			draft.Created, draft.Etcd.Revision = at(c.minute), 300
			if err := put(t.Context(), r, draft, data); err != nil {
				t.Fatal(err)
			}
			done, err := r.Commit(t.Context(), draft)
			if !errors.Is(err, c.want) || err == nil && done.Manifest.Epoch != 2 {
				t.Errorf("%+v, %v; want epoch 2, %v", done, err, c.want)
			}
		})
	}
}

func TestTheNewestFullOfAnEmptyChainIsNone(t *testing.T) {
	w := newWorld(t, nil)
	if m, err := w.open().NewestFull(t.Context(), etcdMain); m != nil || err != nil {
		t.Errorf("got %v, %v", m, err)
	}
}
