package deadman

import (
	"testing"
	"time"

	"lifeboat/internal/status"
)

func TestHealthy(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	good := func() *status.Status {
		in := func(store string) status.InStore {
			return status.InStore{Store: store, Read: now, Newest: ago(time.Hour), Valid: true}
		}
		return &status.Status{
			Now: now, Loaded: true,
			Stores: []status.Store{{URL: "a", Answered: now}, {URL: "b", Answered: now}},
			Chains: []status.Chain{
				{Name: "etcd/main", Ours: true, Interval: 6 * time.Hour, InStores: []status.InStore{in("a"), in("b")}},
				{Name: "hosts/cp1", Ours: true, Interval: 6 * time.Hour, InStores: []status.InStore{in("a"), in("b")}},
				{Name: "hosts/cp2", InStores: []status.InStore{{Store: "a", Newest: ago(1000 * time.Hour)}}},
			},
		}
	}
	for name, c := range map[string]struct {
		change    func(*status.Status)
		minStores int
		want      bool
	}{
		"all is well":                      {func(*status.Status) {}, 2, true},
		"nothing is known yet":             {func(s *status.Status) { s.Loaded = false }, 1, false},
		"one store of two, one is enough":  {func(s *status.Status) { s.Stores[1].Error = "no answer" }, 1, true},
		"one store of two, two are needed": {func(s *status.Status) { s.Stores[1].Error = "no answer" }, 2, false},
		"a store that was never asked":     {func(s *status.Status) { s.Stores[1].Answered = time.Time{} }, 2, false},
		"no store":                         {func(s *status.Status) { s.Stores = nil }, 0, false},
		"a chain that is late":             {func(s *status.Status) { s.Chains[1].InStores = late(ago(12*time.Hour + time.Second)) }, 1, false},
		"a chain that is just in time":     {func(s *status.Status) { s.Chains[1].InStores = late(ago(12 * time.Hour)) }, 1, true},
		"late in one store of two":         {func(s *status.Status) { s.Chains[0].InStores[1].Newest = ago(20 * time.Hour) }, 2, false},
		"late in one store, one is enough": {func(s *status.Status) { s.Chains[0].InStores[1].Newest = ago(20 * time.Hour) }, 1, true},
		"a broken chain does not count":    {func(s *status.Status) { s.Chains[0].InStores[1].Valid = false }, 2, false},
		"a rolled back one does not, too":  {func(s *status.Status) { s.Chains[0].InStores[1].Regressed = true }, 2, false},
		"no backup yet":                    {func(s *status.Status) { s.Chains[0].InStores = late(time.Time{}) }, 1, false},
		"a backup from the future":         {func(s *status.Status) { s.Chains[0].InStores = late(ago(-6 * time.Minute)) }, 1, false},
		"clocks a little apart":            {func(s *status.Status) { s.Chains[0].InStores = late(ago(-4 * time.Minute)) }, 1, true},
		"nothing is scheduled":             {func(s *status.Status) { s.Chains[0].Interval, s.Chains[1].Interval = 0, 0 }, 1, false},
		"one chain is not scheduled":       {func(s *status.Status) { s.Chains[1].Interval, s.Chains[1].InStores = 0, nil }, 2, true},
		"a long run is given its time": {func(s *status.Status) {
			s.Chains[0].InStores = late(ago(12*time.Hour + 30*time.Minute))
			s.Runs = []status.Run{
				{Kind: status.Full, Target: "etcd/main", Result: status.Failed, Duration: time.Second},
				{Kind: status.Full, Target: "etcd/main", Result: status.Succeeded, Duration: 40 * time.Minute},
			}
		}, 1, true},
		"another chain's run is not": {func(s *status.Status) {
			s.Chains[0].InStores = late(ago(12*time.Hour + 30*time.Minute))
			s.Runs = []status.Run{{Kind: status.Full, Target: "etcd/events", Result: status.Succeeded, Duration: 40 * time.Minute}}
		}, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := good()
			c.change(s)
			if got := Healthy(s, c.minStores); got != c.want {
				t.Errorf("healthy: %v, want %v", got, c.want)
			}
		})
	}
	if Healthy(nil, 1) {
		t.Error("without a status")
	}
}

func late(newest time.Time) []status.InStore {
	return []status.InStore{{Store: "a", Newest: newest, Valid: true}}
}
