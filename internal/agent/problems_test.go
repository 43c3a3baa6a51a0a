package agent

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/config"
	"lifeboat/internal/manifest"
	"lifeboat/internal/status"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestProblems keeps what an agent says in each plight in a file, worst first.
func TestProblems(t *testing.T) {
	const h, day = time.Hour, 24 * time.Hour
	good := func(ago time.Duration) func(time.Time) status.InStore {
		return func(now time.Time) status.InStore {
			at := now.Add(-ago)
			return status.InStore{Head: 9, RecoveryPoint: at, Newest: at, NewestWhole: at, NewestProved: at, Valid: true}
		}
	}
	but := func(f func(time.Time) status.InStore, change func(*status.InStore)) func(time.Time) status.InStore {
		return func(now time.Time) status.InStore { in := f(now); change(&in); return in }
	}
	type stores []map[manifest.Chain]func(time.Time) status.InStore // nil: does not answer
	var out strings.Builder
	for _, c := range []struct {
		name   string
		least  int
		skew   time.Duration
		stores stores
		expire []time.Duration
		runs   []status.Run
	}{
		{"all is well", 1, 0, stores{{main: good(h)}}, []time.Duration{300 * day}, nil},
		{"no backup at all", 1, 0, stores{{}}, nil, nil},
		{"one missed slot is no alarm yet", 1, 0, stores{{main: good(5 * h)}}, nil, nil},
		{"two are", 1, 0, stores{{main: good(15 * h)}}, nil, nil},
		{"one store of two is silent", 1, 0, stores{{main: good(h)}, nil}, nil, nil},
		{"too few stores answer", 2, 0, stores{{main: good(h)}, nil}, nil, nil},
		{"no store answers", 1, 0, stores{nil, nil}, nil, nil},
		{"one store of two lags", 1, 0, stores{{main: good(h)}, {main: good(15 * h)}}, nil, nil},
		{"too few stores hold a new one", 2, 0, stores{{main: good(h)}, {main: good(15 * h)}}, nil, nil},
		{"degraded", 1, 0, stores{{main: but(good(h), func(in *status.InStore) { in.NewestWhole, in.NewestProved = time.Time{}, time.Time{} })}}, nil, nil},
		{"not proved", 1, 0, stores{{main: but(good(h), func(in *status.InStore) { in.NewestProved = in.Newest.Add(-12 * h) })}}, nil, nil},
		{"of a member that lags", 1, 0, stores{{main: but(good(h), func(in *status.InStore) {
			in.RecoveryPoint, in.NewestWhole = in.Newest.Add(-30*h), in.Newest.Add(-30*h)
		})}}, nil, nil},
		{"from the future", 1, 0, stores{{main: good(-72 * h)}}, nil, nil},
		{"rolled back", 1, 0, stores{{main: but(good(h), func(in *status.InStore) {
			in.Regressed, in.Valid, in.Failures = true, false, []string{"manifest 12 was seen and is gone"}
		})}}, nil, nil},
		{"does not verify", 1, 0, stores{{main: but(good(h), func(in *status.InStore) { in.Valid, in.Failures = false, []string{"hole at 7"} })}}, nil, nil},
		{"another node's chain is late", 1, 0, stores{{main: good(h), "hosts/cp2": but(good(20*h), func(in *status.InStore) { in.Late = in.Newest.Add(12 * h) })}}, nil, nil},
		{"but not in every store", 1, 0, stores{{main: good(h), "hosts/cp2": but(good(20*h), func(in *status.InStore) { in.Late = in.Newest.Add(12 * h) })}, {main: good(h), "hosts/cp2": good(h)}}, nil, nil},
		{"and of a node that is long gone not for ever", 1, 0, stores{{main: good(h), "hosts/cp2": but(good(90*day), func(in *status.InStore) { in.Late = in.Newest.Add(12 * h) })}}, nil, nil},
		{"another etcd's chain does not verify", 1, 0, stores{{main: good(h), "etcd/old": but(good(h), func(in *status.InStore) { in.Valid = false })}}, nil, nil},
		{"clocks differ", 1, -6 * time.Minute, stores{{main: good(h)}}, nil, nil},
		{"certificates", 1, 0, stores{{main: good(h)}}, []time.Duration{29 * day, 6 * day, -h, 31 * day}, nil},
		{"the last run failed", 1, 0, stores{{main: good(h)}}, nil, []status.Run{{Kind: status.Full, Target: "etcd/main", Result: status.Failed, Reason: status.EtcdDown, Message: "no member gives a snapshot"}}},
		{"a run that was told to stop is no failure", 1, 0, stores{{main: good(h)}}, nil, []status.Run{{Kind: status.Full, Target: "etcd/main", Result: status.Failed, Reason: status.Interrupted}}},
		{"stored bytes are damaged", 1, 0, stores{{main: good(h)}}, nil, []status.Run{{Kind: status.Verify, Result: status.Failed, Reason: status.Verification, Message: "object-damaged"}}},
	} {
		synctest.Test(t, func(t *testing.T) {
			time.Sleep(2*h + 30*time.Minute) // between two slots
			now := time.Now()
			p := &Picture{}
			for i, held := range c.stores {
				s := StorePicture{URL: fmt.Sprintf("s3://%c", 'a'+i), Skew: c.skew, SkewKnown: c.skew != 0}
				if held == nil {
					s.Err = errors.New("connection refused")
				} else {
					s.Chains = map[manifest.Chain]status.InStore{}
					for name, in := range held {
						s.Chains[name] = in(now)
					}
				}
				p.Stores = append(p.Stores, s)
			}
			config := testConfig(t)
			config.MinStores = c.least
			config.Schedule.Verify = "30 4 * * *"
			config.Stores = config.Stores[:0:0]
			for _, s := range p.Stores {
				config.Stores = append(config.Stores, defaultStore(s.URL))
			}
			f := &fake{picture: func() (*Picture, error) { return p, nil }}
			for i, left := range c.expire {
				f.certs = append(f.certs, status.Certificate{Name: fmt.Sprintf("/pki/%d.crt", i), Subject: fmt.Sprintf("CN=%d", i), NotAfter: now.Add(left)})
			}
			a, err := newAgent(Options{Config: config, Works: f}, &shelfInMemory{})
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range c.runs {
				r.Started = now.Add(-h)
				a.journal.add(r, false)
			}
			a.lookNow(t.Context())
			a.readCertificates(t.Context())
			fmt.Fprintf(&out, "%s\n", c.name)
			for _, p := range a.Status().Problems {
				fmt.Fprintf(&out, "    %s: %s: %s\n", p.Severity, p.Subject, p.Message)
			}
		})
	}
	file := filepath.Join("testdata", "problems.txt")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), out.String()); diff != "" {
		t.Errorf("%s (-want +got, -update rewrites it):\n%s", file, diff)
	}
}

func defaultStore(url string) config.Store { return config.DefaultStore(url) }

// TestAnOverdueChainIsToldByTheMonotonicClockToo: a clock that was set back must
// not silence it.
func TestAnOverdueChainIsToldByTheMonotonicClockToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		taken := time.Now()
		f := &fake{
			picture: func() (*Picture, error) {
				return &Picture{Stores: []StorePicture{holding("s3://a", map[manifest.Chain]time.Time{main: taken})}}, nil
			},
		}
		c := testConfig(t)
		a, err := newAgent(Options{Config: c, Works: f, Wall: func() time.Time { return time.Now().Add(-30 * 24 * time.Hour) }}, &shelfInMemory{})
		if err != nil {
			t.Fatal(err)
		}
		a.lookNow(t.Context())
		overdue := func() bool {
			return strings.Contains(strings.Join(problemsOf(a.Status(), "etcd/main"), "\n"), "a later one is overdue")
		}
		time.Sleep(12 * time.Hour)
		if overdue() {
			t.Error("too early")
		}
		time.Sleep(time.Hour)
		if !overdue() {
			t.Error("nothing is said")
		}
	})
}
