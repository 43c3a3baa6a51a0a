package repository

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"lifeboat/internal/manifest"
)

// randomHistory commits fulls, segments, roll-ups, gaps and new histories, and
// returns the committed ones and times at which something was made.
func (w *world) randomHistory(r *Repository, rnd *rand.Rand, steps int) (made []*Committed, times []time.Time) {
	w.t.Helper()
	cluster, rev, recorded := manifest.EtcdID(7), manifest.Revision(50), manifest.Revision(50)
	begun := rev
	made = append(made, w.full(r, at(rev)))
	for range steps {
		w.clock.forward(time.Duration(1+rnd.IntN(600)) * time.Second)
		times = append(times, whole(w.clock.now()))
		rev += manifest.Revision(rnd.IntN(4))
		switch n := rnd.IntN(20); {
		case n < 11:
			made = append(made, w.segment(r, recorded+1, rev, inEpoch(cluster)))
			recorded = rev
		case n < 13: // a second recorder
			made = append(made, w.segment(r, max(begun, recorded-3)+1, rev, inEpoch(cluster)))
			recorded = rev
		case n < 15:
			if recorded > begun {
				upTo := max(begun, recorded-manifest.Revision(rnd.IntN(6))) // another recorder goes on while it is sealed
				made = append(made, w.segment(r, max(begun, upTo-20)+1, upTo, inEpoch(cluster), rollUp))
			}
		case n < 18:
			made = append(made, w.full(r, at(max(begun, rev-manifest.Revision(rnd.IntN(5)))), inEpoch(cluster))) // some are recorded beyond
		case n < 19:
			rev += 2
			recorded = rev
		default:
			w.clock.forward(time.Hour)
			cluster++
			rev = max(1, rev-manifest.Revision(rnd.IntN(30)))
			recorded, begun = rev, rev
			made = append(made, w.full(r, at(rev), inEpoch(cluster)))
		}
	}
	return made, times
}

func TestNoLossOrDamageOfManifestsMovesAPoint(t *testing.T) {
	for seed := range uint64(8) {
		w := newWorld(t, nil)
		r := w.open()
		rnd := rand.New(rand.NewPCG(seed, 9))
		made, times := w.randomHistory(r, rnd, 30)
		head := made[len(made)-1]
		seen := func(o *Options) { o.Seen = map[manifest.Chain]manifest.Head{etcdMain: head.Head("memory:")} }

		points := []Point{{}, {Epoch: 1}}
		for range 12 {
			points = append(points,
				Point{Revision: 30 + manifest.Revision(rnd.IntN(80))},
				Point{Revision: 30 + manifest.Revision(rnd.IntN(80)), Epoch: 1 + rnd.Uint64N(head.Manifest.Epoch)},
				Point{Time: times[rnd.IntN(len(times))].Add(time.Duration(rnd.IntN(100)) * time.Second)})
		}
		answer := func(p Point) (string, error) {
			route, err := w.open(seen).Route(t.Context(), etcdMain, p)
			if err != nil {
				return "", err
			}
			return fmt.Sprintf("%d/%d", route.Epoch, route.Revision), nil
		}
		before := make([]string, len(points))
		for i, p := range points {
			var err error
			if before[i], err = answer(p); err != nil && !errors.Is(err, ErrUnreachable) {
				t.Fatalf("seed %d: %s: %v", seed, p, err)
			}
		}
		lost := map[manifest.Sequence]bool{}
		for range 1 + rnd.IntN(3) {
			c := made[rnd.IntN(len(made))]
			lost[c.Sequence] = true
			if name := w.stored(r, etcdMain, c.Sequence); rnd.IntN(2) == 0 {
				remove(t, w.store, name)
			} else {
				set(t, w.store, name, []byte("junk"))
			}
		}
		refused := 0
		for i, p := range points {
			got, err := answer(p)
			switch {
			case err == nil && got != before[i]:
				t.Errorf("seed %d: %s was %q, and without %v it is %s", seed, p, before[i], lost, got)
			case err != nil && before[i] == "" && errors.Is(err, ErrUnreachable):
			case err != nil && !errors.Is(err, ErrVerification):
				t.Errorf("seed %d: %s was %s, and without %v: %v", seed, p, before[i], lost, err)
			case err != nil:
				refused++
			}
		}
		if refused == len(points) && !slices.Contains(before, "") && len(lost) == 1 {
			t.Errorf("seed %d: without %v everything is refused", seed, lost)
		}
	}
}
