package web

import (
	"testing"
	"time"

	"lifeboat/internal/status"
	"lifeboat/internal/web/webtest"
)

func TestVerdictsOnChains(t *testing.T) {
	now := webtest.Now
	hours := func(n time.Duration) time.Time { return now.Add(-n * time.Hour) }
	for _, test := range []struct {
		name   string
		change func(*status.Chain)
		down   bool
		want   verdict
	}{
		{"well", func(c *status.Chain) {}, false, verdict{good, "Well"}},
		{"another agent's, well", func(c *status.Chain) { c.Ours, c.Interval = false, 0 }, false, verdict{good, "Well"}},
		{"a promise that was over a minute ago is not late yet", func(c *status.Chain) {
			c.InStores[0].Late, c.InStores[1].Late = now.Add(-time.Minute), now.Add(-time.Minute)
		}, false, verdict{good, "Well"}},
		{"where backups come every 20 s, a minute is late", func(c *status.Chain) { c.Interval = 20 * time.Second }, false, verdict{bad, "Late"}},
		{"late in both", func(c *status.Chain) { c.InStores[0].Late, c.InStores[1].Late = hours(1), hours(1) }, false, verdict{bad, "Late"}},
		{"late in one", func(c *status.Chain) { c.InStores[0].Late = hours(1) }, false, verdict{warn, "Late in one store"}},
		{"missing in one", func(c *status.Chain) {
			c.InStores[1] = status.InStore{Store: c.InStores[1].Store, Read: now, Valid: true}
		}, false, verdict{warn, "No backup in one store"}},
		{"another agent's, late", func(c *status.Chain) {
			c.Ours, c.Interval, c.InStores[0].Late, c.InStores[1].Late = false, 0, hours(1), hours(1)
		}, false, verdict{warn, "Late"}},
		{"of a node that is gone", func(c *status.Chain) {
			c.Ours, c.Interval, c.InStores[0].Late, c.InStores[1].Late = false, 0, hours(31*24), hours(31*24)
		}, false, verdict{unknown, "Ended"}},
		{"degraded", func(c *status.Chain) { c.InStores[0].NewestWhole = hours(9) }, false, verdict{warn, "Degraded"}},
		{"broken in one", func(c *status.Chain) { c.InStores[1].Valid = false }, false, verdict{bad, "Broken"}},
		{"broken in both", func(c *status.Chain) { c.InStores[0].Valid, c.InStores[1].Valid = false, false }, false, verdict{bad, "Broken"}},
		{"failures without a word on validity", func(c *status.Chain) { c.InStores[1].Failures = []string{"x"} }, false, verdict{bad, "Broken"}},
		{"rolled back", func(c *status.Chain) { c.InStores[0].Regressed = true }, false, verdict{bad, "Rolled back"}},
		{"a store is down", func(c *status.Chain) {}, true, verdict{warn, "Not every store answers"}},
		{"a store is down, and what it held was broken", func(c *status.Chain) { c.InStores[0].Valid = false }, true, verdict{bad, "Broken"}},
		{"a store never answered", func(c *status.Chain) { c.InStores[0] = status.InStore{Store: c.InStores[0].Store} }, true, verdict{warn, "Not every store answers"}},
		{"nothing was read", func(c *status.Chain) {
			c.RecoveryPoint, c.InStores[0], c.InStores[1] = time.Time{}, status.InStore{}, status.InStore{}
		}, false, verdict{unknown, "Not read yet"}},
		{"no store at all", func(c *status.Chain) { c.RecoveryPoint, c.InStores = time.Time{}, nil }, false, verdict{unknown, "Not read yet"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := webtest.Well().Chains[1]
			test.change(&c)
			down := map[string]bool{}
			if test.down {
				down[c.InStores[0].Store] = true
			}
			if got := judgeChain(&c, now, down); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestThePointIsInDoubtWhenNoSoundStoreHoldsIt(t *testing.T) {
	c := webtest.Well().Chains[1]
	c.InStores[0].Valid = false
	if got := judgePoint(&c, webtest.Now); got.Level != good {
		t.Errorf("the other store holds it too: %v", got)
	}
	c.InStores[1].RecoveryPoint = c.InStores[1].RecoveryPoint.Add(-6 * time.Hour)
	if got := judgePoint(&c, webtest.Now); got.Level != bad {
		t.Errorf("the other store holds only an older one: %v", got)
	}
}

func TestVerdictsOnJobs(t *testing.T) {
	now := webtest.Now
	job := status.Job{Schedule: "@hourly", LastAttempt: now, LastSuccess: now}
	behind := job
	behind.LastSuccess = now.Add(-time.Hour)
	for _, test := range []struct {
		name string
		job  status.Job
		last *status.Run
		want verdict
	}{
		{"in order", job, nil, verdict{good, "In order"}},
		{"running", status.Job{Running: true}, &status.Run{Result: status.Failed}, verdict{good, "Running"}},
		{"failed, as far as the times tell", behind, nil, verdict{warn, "Last try failed"}},
		{"overtaken is no failure", behind, &status.Run{Result: status.Overtaken}, verdict{good, "In order"}},
		{"failed", job, &status.Run{Result: status.Failed}, verdict{warn, "Last try failed"}},
		{"no schedule", status.Job{}, nil, verdict{unknown, "Off"}},
		{"others serve its slots", status.Job{Schedule: "@hourly"}, nil, verdict{unknown, "Not run here yet"}},
	} {
		if got := judgeJob(&test.job, test.last); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

func TestVerdictsOnClocksAndCertificates(t *testing.T) {
	for skew, want := range map[time.Duration]verdict{
		0: {good, "in step"}, time.Second: {good, "in step"}, 12 * time.Second: {good, "12 s ahead"}, -90 * time.Second: {warn, "1 min 30 s behind"}, 6 * time.Minute: {bad, "6 min ahead"},
	} {
		got := judgeSkew(status.Store{Skew: skew, SkewKnown: true})
		if got.Word = plain(got.Word); got != want {
			t.Errorf("%s: %v, want %v", skew, got, want)
		}
	}
	if got := judgeSkew(status.Store{}); got != (verdict{unknown, "not known"}) {
		t.Errorf("unknown skew: %v", got)
	}
	for left, want := range map[time.Duration]level{-time.Second: bad, 0: bad, 6 * day: bad, 20 * day: warn, 31 * day: good} {
		if got := judgeCertificate(&status.Certificate{NotAfter: webtest.Now.Add(left)}, webtest.Now); got.Level != want {
			t.Errorf("%s left: %v, want %s", left, got, want)
		}
	}
}

func TestHeadlineIsTheOldestOfWhatMattersMost(t *testing.T) {
	s := webtest.Well()
	if c, of := headline(s.Chains); c.Name != "etcd/main" || of != 2 {
		t.Errorf("%s of %d", c.Name, of)
	}
	s.Chains[0].RecoveryPoint = time.Time{} // none is the oldest
	if c, _ := headline(s.Chains); c.Name != "etcd/events" {
		t.Errorf("%s, and etcd/events has nothing", c.Name)
	}
	s.Chains[0].Ours = false
	if c, of := headline(s.Chains); c.Name != "etcd/main" || of != 1 {
		t.Errorf("%s of %d, and only etcd/main is ours", c.Name, of)
	}
	if c, of := headline(s.Chains[2:]); c.Name != "hosts/cp2" || of != 1 {
		t.Errorf("%s of %d among hosts", c.Name, of)
	}
	if c, _ := headline(nil); c != nil {
		t.Errorf("%s of none", c.Name)
	}
}

func TestKeysThatNobodyCountedAreNotCalledNone(t *testing.T) {
	s := webtest.Well()
	in := &s.Chains[1].InStores[0]
	for keys, want := range map[int64]string{-1: "keys not counted", 0: "0 keys", 1: "1 key", 12: "12 keys"} {
		in.Keys = keys
		b := builder{now: webtest.Now}
		if got := b.inStore(&s.Chains[1], in).Keys; got != want {
			t.Errorf("%d: %q, want %q", keys, got, want)
		}
	}
}
