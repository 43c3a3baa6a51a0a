package metrics

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"lifeboat/internal/status"
)

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, f := range families {
		ch <- f.desc
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	if m.options.Status == nil {
		return
	}
	s := m.options.Status()
	if s == nil {
		return
	}
	e := &exposition{out: ch, cluster: text(s.Cluster), node: text(s.Node), seen: map[*family]map[string]bool{}}
	e.agent(s)
	m.expect(s)
	m.counted(e)
	if s.Loaded {
		e.jobs(s)
		e.chains(s)
		e.recorders(s)
		e.stores(s)
		e.certificates(s)
		e.gauge(omitted, float64(e.left))
	}
}

// exposition is one answer to Prometheus.
type exposition struct {
	out           chan<- prometheus.Metric
	cluster, node string
	seen          map[*family]map[string]bool
	left          int
}

// gauge shows one series. A second one of the same labels is dropped: it would
// make the whole scrape fail.
func (e *exposition) gauge(f *family, value float64, labels ...string) {
	if all, ok := e.labels(f, labels); ok {
		e.out <- prometheus.MustNewConstMetric(f.desc, f.valueType(), value, all...)
	}
}

func (e *exposition) labels(f *family, own []string) ([]string, bool) {
	all := append(make([]string, 0, 2+len(own)), e.cluster, e.node)
	for _, label := range own {
		all = append(all, text(label))
	}
	key := strings.Join(all, "\xff")
	if e.seen[f][key] {
		return nil, false
	}
	if e.seen[f] == nil {
		e.seen[f] = map[string]bool{}
	}
	e.seen[f][key] = true
	return all, true
}

// time shows a time; the zero one is 0.
func (e *exposition) time(f *family, at time.Time, labels ...string) {
	e.gauge(f, seconds(at), labels...)
}

func seconds(at time.Time) float64 {
	if at.IsZero() {
		return 0
	}
	return float64(at.UnixMilli()) / 1000
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (e *exposition) agent(s *status.Status) {
	e.gauge(agentInfo, 1, s.Version)
	e.time(agentStarted, s.Started)
	e.time(clockNow, s.Now)
	e.gauge(agentLoaded, truth(s.Loaded))
	count := map[status.Severity]int{}
	for _, p := range s.Problems {
		count[p.Severity]++
	}
	for _, severity := range []status.Severity{status.Critical, status.Warning} {
		e.gauge(problems, float64(count[severity]), string(severity))
	}
}

// The words of the counters' labels that are shown from the start, so that
// the first one counted is an increase.
var (
	reasons = []status.Reason{
		status.EtcdDown, status.StoreDown, status.Timeout, status.Verification, status.Clock, status.Config,
		status.Interrupted, status.Other,
	}
	usualOps   = []string{"put", "open", "list", "delete"}
	usualCodes = []string{"ok", "error"}
)

// expect makes the series known that this agent's jobs and stores can count.
func (m *Metrics) expect(s *status.Status) {
	m.tally.add(warnings, 0)
	for i := range s.Jobs {
		if s.Jobs[i].Schedule == "" {
			continue
		}
		kind, chain := string(s.Jobs[i].Kind), s.Jobs[i].Target
		m.tally.add(attempts, 0, kind, chain, string(status.Succeeded), "")
		for _, reason := range reasons {
			m.tally.add(attempts, 0, kind, chain, string(status.Failed), string(reason))
		}
		if s.Jobs[i].Kind == status.Full {
			m.tally.add(attempts, 0, kind, chain, string(status.Overtaken), "")
			m.tally.add(hashMismatches, 0, chain)
		}
	}
	for i := range s.Stores {
		for _, op := range usualOps {
			for _, code := range usualCodes {
				m.tally.add(requests, 0, s.Stores[i].URL, op, code)
			}
		}
		for j := range s.Chains {
			if s.Chains[j].Ours {
				m.tally.add(commits, 0, s.Chains[j].Name, s.Stores[i].URL, "success")
				m.tally.add(commits, 0, s.Chains[j].Name, s.Stores[i].URL, "failure")
			}
		}
	}
}

// counted shows the tally.
func (m *Metrics) counted(e *exposition) {
	m.tally.mu.Lock()
	defer m.tally.mu.Unlock()
	for f, series := range m.tally.series {
		for _, p := range series {
			e.gauge(f, p.value, p.labels...)
		}
	}
	for stage, h := range m.tally.stages {
		if all, ok := e.labels(stageDuration, []string{stage}); ok {
			e.out <- prometheus.MustNewConstHistogram(stageDuration.desc, h.count, h.sum, maps.Clone(h.buckets), all...)
		}
	}
}

func (e *exposition) jobs(s *status.Status) {
	for i := range s.Jobs {
		j := &s.Jobs[i]
		kind := string(j.Kind)
		if j.Schedule == "" {
			continue // it never runs: nothing of it can be late
		}
		// The intervals of backups go with their chains, below.
		if j.Kind != status.Full && j.Kind != status.Files && j.Interval > 0 {
			e.gauge(interval, j.Interval.Seconds(), kind, j.Target)
		}
		if !j.Due.IsZero() {
			e.time(due, j.Due, kind, j.Target)
		}
		e.gauge(running, truth(j.Running), kind, j.Target)
		e.time(lastAttempt, j.LastAttempt, kind, j.Target)
		switch j.Kind {
		case status.Verify:
			e.time(verified, j.LastSuccess, "stored")
		case status.Prune:
			e.time(pruned, j.LastSuccess)
		case status.Drill:
			e.time(drilled, j.LastSuccess, j.Target)
		}
	}
	for i := range s.Runs { // newest first: the others of the same labels are dropped
		r := &s.Runs[i]
		if r.Result != status.Succeeded {
			continue
		}
		e.gauge(lastDuration, r.Duration.Seconds(), string(r.Kind), r.Target)
		if r.Kind == status.Drill {
			e.gauge(drillRTO, r.Duration.Seconds(), r.Target)
		}
	}
}

// At most so many are shown. Nodes that are gone leave chains behind.
const (
	maxChains       = 250
	maxCertificates = 250
)

func (e *exposition) chains(s *status.Status) {
	order := make([]*status.Chain, 0, len(s.Chains))
	for i := range s.Chains {
		order = append(order, &s.Chains[i])
	}
	slices.SortStableFunc(order, func(a, b *status.Chain) int { return cmp.Compare(truth(b.Ours), truth(a.Ours)) })
	e.left += max(0, len(order)-maxChains)
	for _, c := range order[:min(len(order), maxChains)] {
		e.chain(c)
	}
}

func (e *exposition) chain(c *status.Chain) {
	etcd := strings.HasPrefix(c.Name, "etcd/")
	if c.Interval > 0 {
		kind := status.Files
		if etcd {
			kind = status.Full
		}
		e.gauge(interval, c.Interval.Seconds(), string(kind), c.Name)
	}
	read := false
	for i := range c.InStores {
		in := &c.InStores[i]
		if in.Read.IsZero() {
			continue // not known, which is not the same as empty
		}
		read = true
		e.inStore(c.Name, etcd, in)
	}
	if read {
		e.time(recoveryPoint, c.RecoveryPoint, c.Name)
	}
}

func (e *exposition) inStore(chain string, etcd bool, in *status.InStore) {
	store := in.Store
	e.time(lastSuccess, in.Newest, chain, store)
	e.time(lastWhole, in.NewestWhole, chain, store)
	e.gauge(headSequence, float64(in.Head), chain, store)
	e.gauge(chainValid, truth(in.Valid), chain, store)
	e.gauge(chainRegress, truth(in.Regressed), chain, store)
	e.gauge(chainLate, truth(!in.Late.IsZero()), chain, store)
	e.gauge(backups, float64(in.Backups), chain, store)
	e.gauge(chainBytes, float64(in.TotalBytes), chain, store)
	if etcd {
		e.time(lastProved, in.NewestProved, chain, store)
		e.gauge(revision, float64(in.Revision), chain, store)
		if in.Keys >= 0 { // else it would look like a loss
			e.gauge(keys, float64(in.Keys), chain, store)
		}
	}
	e.gauge(size, float64(in.PlainBytes), chain, store, "plain")
	e.gauge(size, float64(in.StoredBytes), chain, store, "stored")
	if in.Previous > 0 {
		e.gauge(previousSize, float64(in.Previous), chain, store)
	}
	if !in.RetainUntil.IsZero() {
		e.time(lockedUntil, in.RetainUntil, chain, store)
	}
}

func (e *exposition) recorders(s *status.Status) {
	for i := range s.Recorders {
		r := &s.Recorders[i]
		e.gauge(recorderActive, truth(r.Active && r.Running), r.Chain)
		e.gauge(recorderRevision, float64(r.Revision), r.Chain)
		e.time(recorderRecorded, r.Recorded, r.Chain)
		e.gauge(recorderSpool, float64(r.SpoolBytes), r.Chain)
		e.gauge(recorderLimit, float64(r.SpoolLimit), r.Chain)
		e.gauge(recorderWanted, truth(r.Wanted != ""), r.Chain)
		e.gauge(recorderGaps, float64(r.Gaps), r.Chain)
		for j := range r.Stores {
			in := &r.Stores[j]
			e.time(recorderPoint, in.RecoveryPoint, r.Chain, in.Store)
			e.gauge(recorderEpoch, float64(in.Epoch), r.Chain, in.Store)
			e.gauge(recorderBehind, float64(in.Behind), r.Chain, in.Store)
			e.gauge(recorderSegments, float64(in.Segments), r.Chain, in.Store, "segment")
			e.gauge(recorderSegments, float64(in.RollUps), r.Chain, in.Store, "rollup")
		}
	}
}

func (e *exposition) stores(s *status.Status) {
	for i := range s.Stores {
		o := &s.Stores[i]
		e.gauge(storeUp, truth(o.Error == "" && !o.Answered.IsZero()), o.URL)
		e.time(storeAnswered, o.Answered, o.URL)
		if o.SkewKnown {
			e.gauge(clockSkew, o.Skew.Seconds(), o.URL)
		}
	}
}

func (e *exposition) certificates(s *status.Status) {
	e.left += max(0, len(s.Certificates)-maxCertificates)
	for i := range s.Certificates[:min(len(s.Certificates), maxCertificates)] {
		c := &s.Certificates[i] // soonest to expire first: that one stands for a file with several
		e.time(certificate, c.NotAfter, c.Name, strconv.FormatBool(c.CA))
	}
}
