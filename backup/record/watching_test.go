package record

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"lifeboat/internal/manifest"
)

func TestNoMomentTellsOfChangesThatCameAfterIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.etcd.puts(t, 10, "before")
		w.etcd.compact(w.etcd.head())
		began := time.Now()
		w.etcd.slow = sync.OnceFunc(func() {
			time.Sleep(5 * time.Second)
			w.etcd.puts(t, 10, "while it was asked how far it is")
			w.etcd.compact(w.etcd.head())
		})
		_, stop := w.start()
		time.Sleep(6 * time.Second)
		w.chains[0].addFull(w.etcd, 0, "")
		w.etcd.puts(t, 10, "afterwards")
		time.Sleep(10 * time.Second)
		stop()
		moments := 0
		for _, m := range w.chains[0].segments(false) {
			for _, at := range m.Span.Moments() {
				moments++
				if at.At.Sub(began) < 5*time.Second && at.AtLeast > 11 {
					t.Errorf("revision %d had been made %s after the beginning", at.AtLeast, at.At.Sub(began))
				}
			}
		}
		if last := w.chains[0].tip(); moments == 0 || last.Last != manifest.Revision(w.etcd.head()) {
			t.Errorf("%d moments, %+v", moments, last)
		}
	})
}
