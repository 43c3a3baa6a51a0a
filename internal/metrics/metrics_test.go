package metrics

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"lifeboat/internal/events"
	"lifeboat/internal/status"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func ago(d time.Duration) time.Time { return noon.Add(-d) }

// loaded is a status with something of everything.
func loaded() *status.Status {
	const s3, disk = "s3://backups/prod", "file:///mnt/backups"
	return &status.Status{
		Cluster: "prod-eu1.1f2e3d4c", Node: "cp1", Version: "v1.2.3", Now: noon, Started: ago(time.Hour), Loaded: true,
		Chains: []status.Chain{
			{Name: "etcd/main", Ours: true, Interval: 6 * time.Hour, RecoveryPoint: ago(2 * time.Hour), InStores: []status.InStore{
				{Store: s3, Read: noon, Head: 42, RecoveryPoint: ago(2 * time.Hour), Newest: ago(2 * time.Hour), NewestWhole: ago(2 * time.Hour), NewestProved: ago(8 * time.Hour),
					Revision: 123456, Keys: 4000, PlainBytes: 50 << 20, StoredBytes: 9 << 20, Previous: 8 << 20, Backups: 30, TotalBytes: 300 << 20,
					RetainUntil: noon.Add(720 * time.Hour), Valid: true},
				{Store: disk, Read: ago(time.Minute), Head: 40, Keys: -1, RecoveryPoint: ago(8 * time.Hour), Newest: ago(8 * time.Hour), Late: ago(time.Hour), Regressed: true, Failures: []string{"gone"}},
			}},
			{Name: "hosts/cp1", Ours: true, Interval: 6 * time.Hour, InStores: []status.InStore{{Store: s3, Read: noon, Valid: true}, {Store: disk}}},
			{Name: "hosts/cp2", RecoveryPoint: ago(20 * time.Hour), InStores: []status.InStore{{Store: disk}}}, // not read yet
		},
		Stores: []status.Store{
			{URL: s3, Answered: noon, Skew: -1500 * time.Millisecond, SkewKnown: true},
			{URL: disk, Error: "open /mnt/backups: no such file or directory"},
		},
		Jobs: []status.Job{
			{Kind: status.Full, Target: "etcd/main", Schedule: "@every 6h", Interval: 6 * time.Hour, Running: true, Due: noon.Add(4 * time.Hour), LastAttempt: ago(2 * time.Hour), LastSuccess: ago(2 * time.Hour)},
			{Kind: status.Files, Target: "hosts/cp1", Schedule: "@every 6h", Interval: 6 * time.Hour},
			{Kind: status.Verify, Schedule: "@daily", Interval: 24 * time.Hour, Due: noon.Add(time.Hour), LastSuccess: ago(20 * time.Hour)},
			{Kind: status.Prune, Schedule: "@daily", Interval: 24 * time.Hour, LastSuccess: ago(30 * time.Hour)},
			{Kind: status.Drill, Schedule: "@weekly", Interval: 168 * time.Hour},
		},
		Recorders: []status.Recorder{{
			Chain: "etcd/main", Interval: 2 * time.Second, Running: true, Active: true, Revision: 123999, Recorded: ago(time.Second),
			SpoolBytes: 5 << 20, SpoolLimit: 1 << 30, Gaps: 1, Wanted: "there was a gap", Stores: []status.RecorderStore{
				{Store: s3, Epoch: 2, Revision: 123990, RecoveryPoint: ago(3 * time.Second), Behind: 1000, Segments: 900, RollUps: 1},
				{Store: disk, Behind: 5 << 20, Waiting: "it needs a full"},
			},
		}},
		Runs: []status.Run{
			{Kind: status.Full, Target: "etcd/main", Result: status.Failed, Duration: time.Hour, Reason: status.EtcdDown},
			{Kind: status.Full, Target: "etcd/main", Result: status.Succeeded, Duration: 90 * time.Second},
			{Kind: status.Full, Target: "etcd/main", Result: status.Succeeded, Duration: 60 * time.Second},
			{Kind: status.Drill, Result: status.Succeeded, Duration: 10 * time.Minute},
		},
		Certificates: []status.Certificate{
			{Name: "/etc/kubernetes/pki/apiserver.crt", NotAfter: noon.Add(240 * time.Hour)},
			{Name: "/etc/kubernetes/pki/ca.crt", NotAfter: noon.Add(24000 * time.Hour), CA: true},
			{Name: "/etc/kubernetes/pki/apiserver.crt", NotAfter: noon.Add(480 * time.Hour)}, // a second one in the same file
		},
		Problems: []status.Problem{{Severity: status.Critical}, {Severity: status.Warning}, {Severity: status.Warning}},
	}
}

// busy is a Metrics that counted something of everything.
func busy(s *status.Status) *Metrics {
	m := New(Options{Status: func() *status.Status { return s }})
	listen := m.Listener()
	listen.Emit(events.StageDone{Stage: "snapshot", Chain: "etcd/main", Duration: 3 * time.Second})
	listen.Emit(events.StageDone{Stage: "snapshot", Chain: "etcd/main", Duration: 20 * time.Second, Err: io.EOF})
	listen.Emit(events.StageDone{Stage: "a stage that nobody declared", Duration: time.Hour})
	listen.Emit(events.Warning{Message: "something"})
	listen.Emit(events.Committed{Chain: "etcd/main", Store: "s3://backups/prod"})
	listen.Emit(events.StoreFailed{Store: "file:///mnt/backups", Err: io.EOF}) // not ready: the chain's own failure follows
	listen.Emit(events.StoreFailed{Chain: "etcd/main", Store: "file:///mnt/backups", Err: io.EOF})
	m.OnRun(status.Run{Kind: status.Full, Target: "etcd/main", Result: status.Succeeded, Mismatches: 1})
	m.OnRun(status.Run{Kind: status.Full, Target: "etcd/main", Result: status.Overtaken})
	m.OnRun(status.Run{Kind: status.Full, Target: "etcd/main", Result: status.Failed, Reason: status.StoreDown})
	m.OnRequest("s3://backups/prod", "put", "ok")
	m.OnRequest("s3://backups/prod", "put", "permission")
	m.OnReload(ago(time.Hour), nil)
	m.OnReload(noon, errors.New("no such key"))
	m.WatchDeadMan()
	m.OnPing(noon, true)
	m.OnPing(noon, false)
	return m
}

// scrape is what Prometheus gets, without what the process and Go say.
func scrape(t testing.TB, m *Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	var ours strings.Builder
	for line := range strings.Lines(w.Body.String()) {
		if strings.HasPrefix(strings.TrimPrefix(strings.TrimPrefix(line, "# HELP "), "# TYPE "), "lifeboat_") {
			ours.WriteString(line)
		}
	}
	return ours.String()
}

func TestTheExposition(t *testing.T) {
	for name, m := range map[string]*Metrics{
		"busy":       busy(loaded()),
		"not-loaded": busy(func() *status.Status { s := loaded(); s.Loaded = false; return s }()),
	} {
		golden := filepath.Join("testdata", name+".txt")
		got := scrape(t, m)
		if *update {
			if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s differs from %s; run with -update and read the difference. Got:\n%s", name, golden, got)
		}
	}
}

func TestTheLinterOfPrometheusIsContent(t *testing.T) {
	found, err := testutil.GatherAndLint(busy(loaded()).Gatherer())
	if err != nil {
		t.Fatal(err)
	}
	found = slices.DeleteFunc(found, func(p promlint.Problem) bool { return !strings.HasPrefix(p.Metric, "lifeboat_") })
	for _, p := range found {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestEveryFamilyIsExportedByABusyAgentWithItsLabels(t *testing.T) {
	gathered, err := busy(loaded()).Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, family := range gathered {
		seen[family.GetName()] = true
		if !strings.HasPrefix(family.GetName(), "lifeboat_") {
			continue
		}
		for _, series := range family.GetMetric() {
			labels := map[string]string{}
			for _, pair := range series.GetLabel() {
				labels[pair.GetName()] = pair.GetValue()
			}
			if labels["cluster"] != "prod-eu1.1f2e3d4c" || labels["node"] != "cp1" {
				t.Errorf("%s has the labels %v", family.GetName(), labels)
			}
		}
	}
	for _, f := range families {
		if !seen[f.name] {
			t.Errorf("%s is declared and not exported", f.name)
		}
	}
	for _, name := range []string{"go_goroutines", "process_resident_memory_bytes"} {
		if !seen[name] {
			t.Errorf("%s is missing", name)
		}
	}
}

func TestNothingOfTheStoresIsSaidBeforeTheyWereAsked(t *testing.T) {
	s := loaded()
	s.Loaded = false
	got := scrape(t, New(Options{Status: func() *status.Status { return s }}))
	for _, f := range []*family{recoveryPoint, lastSuccess, chainValid, storeUp, interval, certificate, verified, pruned, drilled, lastAttempt} {
		if strings.Contains(got, f.name) {
			t.Errorf("%s is exported", f.name)
		}
	}
	if !strings.Contains(got, `lifeboat_agent_loaded{cluster="prod-eu1.1f2e3d4c",node="cp1"} 0`) {
		t.Errorf("no word of loading in\n%s", got)
	}
	for _, m := range []*Metrics{New(Options{}), New(Options{Status: func() *status.Status { return nil }})} {
		if got := scrape(t, m); got != "" {
			t.Errorf("without a status: %s", got)
		}
	}
}

func TestNothingIsSaidOfAJobThatNeverRuns(t *testing.T) {
	s := loaded()
	s.Jobs = []status.Job{{Kind: status.Prune, Interval: time.Hour, LastSuccess: noon}}
	got := scrape(t, New(Options{Status: func() *status.Status { return s }}))
	if strings.Contains(got, pruned.name) || strings.Contains(got, `kind="prune"`) {
		t.Errorf("pruning without a schedule shows in\n%s", got)
	}
}

func TestAFirstCountIsAnIncrease(t *testing.T) {
	m := New(Options{Status: loaded})
	zeros := scrape(t, m)
	for _, series := range []string{
		`lifeboat_backup_attempts_total{chain="etcd/main",cluster="prod-eu1.1f2e3d4c",kind="full",node="cp1",reason="store",result="failure"} `,
		`lifeboat_backup_attempts_total{chain="",cluster="prod-eu1.1f2e3d4c",kind="verify",node="cp1",reason="verification",result="failure"} `,
		`lifeboat_hashkv_mismatch_total{chain="etcd/main",cluster="prod-eu1.1f2e3d4c",node="cp1"} `,
	} {
		if !strings.Contains(zeros, series+"0\n") {
			t.Errorf("no zero for %s in\n%s", series, zeros)
		}
	}
	m.OnRun(status.Run{Kind: status.Full, Target: "etcd/main", Result: status.Failed, Reason: status.StoreDown})
	m.OnRun(status.Run{Kind: status.Verify, Result: status.Failed, Reason: status.Verification})
	m.OnRun(status.Run{Kind: status.Full, Target: "etcd/main", Result: status.Succeeded, Mismatches: 2})
	counted := scrape(t, m)
	for _, series := range []string{
		`kind="full",node="cp1",reason="store",result="failure"} 1`, `kind="verify",node="cp1",reason="verification",result="failure"} 1`,
		`lifeboat_hashkv_mismatch_total{chain="etcd/main",cluster="prod-eu1.1f2e3d4c",node="cp1"} 2`,
	} {
		if !strings.Contains(counted, series+"\n") {
			t.Errorf("no %s in\n%s", series, counted)
		}
	}
	if before, after := strings.Count(zeros, "\n"), strings.Count(counted, "\n"); before != after {
		t.Errorf("counting made %d lines out of %d: a series was born above zero", after, before)
	}
}

func TestStrangeTextsAndDuplicatesDontFailTheScrape(t *testing.T) {
	s := loaded()
	s.Chains = append(s.Chains, s.Chains[0])
	s.Stores = append(s.Stores, s.Stores[0])
	s.Jobs = append(s.Jobs, s.Jobs[0])
	s.Certificates = append(s.Certificates, status.Certificate{Name: "bad \xff\xfe\n\"name\"", NotAfter: noon})
	s.Node = "cp\xff"
	m := busy(s)
	m.OnRun(status.Run{Kind: "\xff", Target: "\xff\"\n", Result: "odd", Reason: "\x00"})
	if _, err := m.Gatherer().Gather(); err != nil {
		t.Error(err)
	}
	if got := scrape(t, m); !strings.Contains(got, `name="bad ?\n\"name\""`) || !strings.Contains(got, `node="cp?"`) {
		t.Errorf("the texts are missing in\n%s", got)
	}
}

func TestTheNumberOfSeriesIsBounded(t *testing.T) {
	s := loaded()
	for i := range 1000 {
		s.Chains = append(s.Chains, status.Chain{Name: fmt.Sprintf("hosts/gone%d", i), InStores: s.Chains[0].InStores})
		s.Certificates = append(s.Certificates, status.Certificate{Name: fmt.Sprint(i), NotAfter: noon})
	}
	s.Chains = append(s.Chains, status.Chain{Name: "etcd/z", Ours: true, Interval: time.Hour, InStores: s.Chains[0].InStores})
	m := busy(s)
	for i := range 3 * maxSeries {
		m.OnRequest(fmt.Sprint(i), "put", "ok")
	}
	got := scrape(t, m)
	if n := strings.Count(got, "\n"); n > 20_000 {
		t.Errorf("%d lines", n)
	}
	if !strings.Contains(got, `lifeboat_recovery_point_timestamp_seconds{chain="etcd/z"`) {
		t.Error("a chain of ours was left out for one that is not")
	}
	if want := fmt.Sprintf(`lifeboat_omitted_series{cluster="prod-eu1.1f2e3d4c",node="cp1"} %d`, 1004-maxChains+1003-maxCertificates); !strings.Contains(got, want) {
		t.Errorf("want %s", want)
	}
}

func TestEverythingAtOnce(t *testing.T) {
	var mu sync.Mutex
	s := loaded()
	m := New(Options{Status: func() *status.Status { mu.Lock(); defer mu.Unlock(); return s }})
	listen := m.Listener()
	var group sync.WaitGroup
	for i := range 4 {
		group.Go(func() {
			for range 50 {
				mu.Lock()
				s = loaded()
				mu.Unlock()
				listen.Emit(events.StageDone{Stage: "seal", Duration: time.Second})
				listen.Emit(events.Committed{Chain: "etcd/main", Store: fmt.Sprint(i)})
				m.OnRun(status.Run{Kind: status.Full, Target: "etcd/main", Result: status.Succeeded})
				m.OnRequest("store", "put", "ok")
				m.OnReload(noon, nil)
				m.OnPing(noon, true)
				if _, err := m.Gatherer().Gather(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	got := scrape(t, m)
	for _, want := range []string{
		`lifeboat_backup_stage_duration_seconds_count{cluster="prod-eu1.1f2e3d4c",node="cp1",stage="seal"} 200`,
		`kind="full",node="cp1",reason="",result="success"} 200`,
		`lifeboat_deadman_pings_total{cluster="prod-eu1.1f2e3d4c",node="cp1",result="success"} 200`,
	} {
		if !strings.Contains(got, want+"\n") {
			t.Errorf("no %s", want)
		}
	}
}

func TestTheCollectorKeepsPrometheusRules(t *testing.T) {
	pedantic := prometheus.NewPedanticRegistry()
	if err := pedantic.Register(busy(loaded())); err != nil {
		t.Fatal(err)
	}
	if _, err := pedantic.Gather(); err != nil {
		t.Error(err)
	}
}

// BenchmarkScrape is one answer to Prometheus with three chains, two stores and
// two hundred runs.
func BenchmarkScrape(b *testing.B) {
	s := loaded()
	for len(s.Runs) < status.MaxRuns {
		s.Runs = append(s.Runs, s.Runs[1])
	}
	m := busy(s)
	handler := m.Handler()
	b.ReportAllocs()
	for b.Loop() {
		w := httptest.NewRecorder()
		w.Body = &bytes.Buffer{}
		handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	}
}
