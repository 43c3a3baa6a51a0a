package agent

import (
	"errors"
	"testing"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/internal/status"
)

const main = manifest.Chain("etcd/main")

// see is a Look at three stores; nil is one that does not answer.
func see(b *board, mono time.Duration, newest ...*time.Time) {
	p := &Picture{}
	for i, at := range newest {
		url := string(rune('a' + i))
		switch {
		case at == nil:
			p.Stores = append(p.Stores, StorePicture{URL: url, Err: errors.New("down")})
		case at.IsZero():
			p.Stores = append(p.Stores, StorePicture{URL: url, Chains: map[manifest.Chain]status.InStore{}})
		default:
			p.Stores = append(p.Stores, holding(url, map[manifest.Chain]time.Time{main: *at}))
		}
	}
	b.take(p, time.Unix(0, 0).Add(mono), mono)
}

func TestWhatEnoughStoresHold(t *testing.T) {
	day := func(n int) *time.Time { at := time.Date(2026, 1, n, 0, 0, 0, 0, time.UTC); return &at }
	none := &time.Time{}
	for name, c := range map[string]struct {
		before, now []*time.Time
		least       int
		want        *time.Time
	}{
		"one of one":                       {nil, []*time.Time{day(3)}, 1, day(3)},
		"the newest of all":                {nil, []*time.Time{day(1), day(3), day(2)}, 1, day(3)},
		"what two have":                    {nil, []*time.Time{day(1), day(3), day(2)}, 2, day(2)},
		"what all have":                    {nil, []*time.Time{day(1), day(3), day(2)}, 3, day(1)},
		"nothing where one is empty":       {nil, []*time.Time{day(1), none}, 2, none},
		"who is silent does not count":     {[]*time.Time{day(3), day(1)}, []*time.Time{nil, day(1)}, 1, day(1)},
		"unless too few answer":            {[]*time.Time{day(3), day(2)}, []*time.Time{nil, day(2)}, 2, day(2)},
		"nothing known of the silent ones": {nil, []*time.Time{nil, nil}, 1, none},
		"fewer stores than wanted":         {nil, []*time.Time{day(1)}, 2, none},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBoard(nil)
			if c.before != nil {
				see(b, time.Hour, c.before...)
			}
			see(b, 2*time.Hour, c.now...)
			if got := b.newest(main, c.least); !got.Equal(*c.want) {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

func TestABackupThatArrivesIsNoticed(t *testing.T) {
	first, second := time.Unix(1000, 0), time.Unix(2000, 0)
	b := newBoard([]string{"a"})
	see(b, time.Hour, &first)
	if got := b.arrived(main, 1); got != 0 {
		t.Errorf("what was there at the start arrived at %s", got)
	}
	see(b, 2*time.Hour, &first)
	see(b, 3*time.Hour, nil)
	see(b, 4*time.Hour, &first)
	if got := b.arrived(main, 1); got != 0 {
		t.Errorf("a store that came back brought something new at %s", got)
	}
	see(b, 5*time.Hour, &second)
	see(b, 6*time.Hour, &second)
	if got := b.arrived(main, 1); got != 5*time.Hour {
		t.Errorf("it arrived at %s", got)
	}
}

func TestAChainThatVanishesIsARollback(t *testing.T) {
	at := time.Unix(1000, 0)
	b := newBoard([]string{"a"})
	see(b, time.Hour, &at)
	see(b, 2*time.Hour, &time.Time{})
	see(b, 3*time.Hour, &time.Time{})
	in := b.stores[0].chains[main].InStore
	if !in.Regressed || in.Valid || len(in.Failures) != 1 || len(b.chains()) != 1 {
		t.Errorf("%+v", in)
	}
	see(b, 4*time.Hour, &at)
	if in := b.stores[0].chains[main].InStore; in.Regressed || !in.Valid {
		t.Errorf("when it is back: %+v", in)
	}
}

func TestTheSteward(t *testing.T) {
	late := time.Unix(5000, 0)
	chain := func(late time.Time) status.InStore {
		return status.InStore{Head: 3, Expected: time.Unix(9500, 0), Late: late}
	}
	type chains = map[manifest.Chain]status.InStore
	for name, c := range map[string]struct {
		stores []StorePicture
		want   string
	}{
		"nobody is known":                            {[]StorePicture{{URL: "a", Chains: chains{main: chain(time.Time{})}}}, ""},
		"the first by name":                          {[]StorePicture{{URL: "a", Chains: chains{"hosts/cp2": chain(time.Time{}), "hosts/cp1": chain(time.Time{})}}}, "cp1"},
		"that is not late":                           {[]StorePicture{{URL: "a", Chains: chains{"hosts/cp2": chain(time.Time{}), "hosts/cp1": chain(late)}}}, "cp2"},
		"nobody if all are late":                     {[]StorePicture{{URL: "a", Chains: chains{"hosts/cp2": chain(late), "hosts/cp1": chain(late)}}}, ""},
		"whoever was backed up by hand once is none": {[]StorePicture{{URL: "a", Chains: chains{"hosts/admin": {Head: 3}, "hosts/cp1": chain(time.Time{})}}}, "cp1"},
		"in time in one store is enough":             {[]StorePicture{{URL: "a", Chains: chains{"hosts/cp1": chain(late)}}, {URL: "b", Chains: chains{"hosts/cp1": chain(time.Time{})}}}, "cp1"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBoard(nil)
			b.take(&Picture{Stores: c.stores}, time.Unix(9000, 0), time.Hour)
			if got := b.steward(); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// TestAStewardWhoseStoreWentSilentIsNotWaitedFor: what a silent store held last
// says nothing about who works now.
func TestAStewardWhoseStoreWentSilentIsNotWaitedFor(t *testing.T) {
	type chains = map[manifest.Chain]status.InStore
	b := newBoard(nil)
	good := status.InStore{Head: 3, Expected: time.Unix(9500, 0)}
	b.take(&Picture{Stores: []StorePicture{{URL: "a", Chains: chains{"hosts/cp1": good}}, {URL: "b", Chains: chains{"hosts/cp2": good}}}}, time.Unix(1, 0), 1)
	if got := b.steward(); got != "cp1" {
		t.Fatalf("%q", got)
	}
	b.take(&Picture{Stores: []StorePicture{{URL: "a", Err: errors.New("down")}, {URL: "b", Chains: chains{"hosts/cp2": good}}}}, time.Unix(2, 0), 2)
	if got := b.steward(); got != "cp2" {
		t.Errorf("%q", got)
	}
}
