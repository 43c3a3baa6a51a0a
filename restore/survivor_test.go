package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/manifest"
	"lifeboat/internal/segment"
	"lifeboat/internal/snapdb"
	"lifeboat/restore/datadir"
	"lifeboat/restore/salvage"
)

// survivor is a member that was killed, with what a recorder had of it.
type survivor struct {
	*recorded
	dir     string
	version string
	last    int64 // the revision that was acknowledged last
}

// killed runs an etcd that commits its database rarely: a full of 30 revisions,
// n more of which the recorder has the first known, and SIGKILL.
func killed(t *testing.T, version string, n, known int) *survivor {
	t.Helper()
	c := cluster.StartBinary(t, version, cluster.Options{Args: []string{"--backend-batch-interval", "30s", "--backend-batch-limit", "1000000"}})
	client, ctx := c.Client(), t.Context()
	put := func(i int) int64 {
		res, err := client.Put(ctx, fmt.Sprintf("/registry/k%02d", i%17), strings.Repeat(fmt.Sprint(i), 40))
		if err != nil {
			t.Fatal(err)
		}
		return res.Header.Revision
	}
	s := &survivor{recorded: &recorded{snapshot: filepath.Join(t.TempDir(), "full.db"), hash: map[int64]uint32{}}, version: version}
	for i := range 30 {
		s.first = put(i) + 1
	}
	stream, err := client.Snapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(stream)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.snapshot, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		s.last = put(100 + i)
	}
	watching, stop := context.WithCancel(ctx)
	for res := range client.Watch(watching, "\x00", clientv3.WithFromKey(), clientv3.WithRev(s.first)) {
		for _, e := range res.Events {
			if len(s.events) < known {
				s.events = append(s.events, []segment.Record{eventRecord(t, e)})
			}
		}
		if res.Err() != nil || len(res.Events) > 0 && res.Events[len(res.Events)-1].Kv.ModRevision == s.last {
			break
		}
	}
	stop()
	list, err := client.MemberList(ctx)
	if err != nil {
		t.Fatal(err)
	}
	s.cluster = manifest.EtcdID(list.Header.ClusterId)
	c.Kill(0)
	s.dir = filepath.Join(t.TempDir(), "old")
	if out, err := exec.Command("cp", "-a", c.Members[0].Dir, s.dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return s
}

// backedUp commits the survivor's full and what the recorder had.
func (s *survivor) backedUp(t *testing.T, segments bool) *fixture {
	t.Helper()
	f := newFixture(t)
	f.now = time.Now().Add(-time.Minute)
	f.full(t, s.snapshot, func(m *manifest.Manifest) { m.Etcd.ClusterID, m.Etcd.Version = s.cluster, s.version+".0" })
	if segments {
		f.segment(t, s.recorded, s.first, s.first+int64(len(s.events))-1, f.now.Add(3*time.Second), false)
	}
	f.now = time.Now()
	return f
}

func TestASurvivingDirectoryBecomesAMemberWithAllThatWasAcknowledged(t *testing.T) {
	for _, version := range cluster.Versions {
		t.Run(version, func(t *testing.T) {
			s := killed(t, version, 80, 40)
			f := s.backedUp(t, true)
			opts := f.etcdOptions(filepath.Join(t.TempDir(), "etcd"))
			opts.FromDataDir, opts.TargetVersion = s.dir, version
			plan, err := PlanEtcd(t.Context(), f.repo, opts)
			if err != nil {
				t.Fatal(err)
			}
			var text strings.Builder
			if err := plan.Print(&text); err != nil {
				t.Fatal(err)
			}
			a := plan.Survivor.Against
			if a.History != HistorySame || int64(a.Revision) != s.first+39 {
				t.Errorf("against the backup: %+v", a)
			}
			if _, most := plan.Survivor.Revision(); most != s.last {
				t.Errorf("at most revision %d is planned, %d was acknowledged", most, s.last)
			}
			for _, want := range []string{s.dir, "at most", "the same past", "Apply the write-ahead log", fmt.Sprintf("at revision %d, as of", s.first+39)} {
				if !strings.Contains(text.String(), want) {
					t.Errorf("the plan lacks %q:\n%s", want, &text)
				}
			}
			if err := plan.Execute(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			if plan.Result.Last != s.last || plan.Survivor.Applied == nil || int64(plan.Choice.Revision) != s.last {
				t.Errorf("result %+v, applied %+v; %d was acknowledged", plan.Result, plan.Survivor.Applied, s.last)
			}
			c := cluster.StartBinary(t, version, cluster.Options{DataDir: opts.DataDir, Name: opts.Name, PeerURL: opts.PeerURLs[0]})
			got, err := c.Client().Get(t.Context(), "/registry/", clientv3.WithPrefix())
			if err != nil {
				t.Fatal(err)
			}
			if got.Count != 17 || got.Header.Revision < s.last+int64(plan.Bump) || manifest.EtcdID(got.Header.ClusterId) == s.cluster {
				t.Errorf("%d keys at revision %d in cluster %x", got.Count, got.Header.Revision, got.Header.ClusterId)
			}
			newest := int64(0)
			for _, kv := range got.Kvs {
				newest = max(newest, kv.ModRevision)
			}
			if newest != s.last {
				t.Errorf("the newest key is of revision %d, %d was acknowledged", newest, s.last)
			}
		})
	}
}

func TestADirectoryCanBeReplacedByWhatIsMadeOfIt(t *testing.T) {
	s := killed(t, "3.6", 20, 0)
	f := newFixture(t)
	opts := f.etcdOptions(s.dir)
	opts.FromDataDir, opts.Identities, opts.AsideDir = s.dir, nil, filepath.Join(t.TempDir(), "aside")
	plan, err := PlanEtcd(t.Context(), nil, opts)
	if err != nil {
		t.Fatal(err)
	}
	if plan.Backup != nil || plan.Survivor.Against != nil || plan.Survivor.Uncompared == "" {
		t.Errorf("compared with nothing: %+v", plan.Survivor)
	}
	before, err := salvage.Open(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	before.Close()
	if err := plan.Execute(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	facts, err := snapdb.Inspect(t.Context(), filepath.Join(plan.Result.Aside, "snap", "db"), snapdb.Options{})
	if err != nil || plan.Result.Last != s.last || facts.HashKV != plan.Survivor.Found.Database.HashKV {
		t.Errorf("%+v; aside: %+v, %v", plan.Result, facts, err)
	}
}

func TestHowADirectoryComparesWithTheBackup(t *testing.T) {
	s := killed(t, "3.6", 40, 40)
	plan := func(t *testing.T, f *fixture, edit func(*EtcdOptions)) (*EtcdPlan, error) {
		opts := f.etcdOptions(filepath.Join(t.TempDir(), "etcd"))
		opts.FromDataDir = s.dir
		if edit != nil {
			edit(&opts)
		}
		return PlanEtcd(t.Context(), f.repo, opts)
	}
	warned := func(p *EtcdPlan, what string) bool { return strings.Contains(strings.Join(p.Warnings, "\n"), what) }
	t.Run("a full that is older", func(t *testing.T) {
		p, err := plan(t, s.backedUp(t, false), nil)
		if err != nil {
			t.Fatal(err)
		}
		// What the snapshot made the member commit is all that the directory has whole.
		if a := p.Survivor.Against; a.History != HistorySame || a.Freshness != Undecided && a.Freshness != Ahead || a.Most != s.last-(s.first-1) {
			t.Errorf("%+v", a)
		}
	})
	t.Run("a backup that is as far, without the log", func(t *testing.T) {
		p, err := plan(t, s.backedUp(t, true), func(o *EtcdOptions) { o.Log = salvage.TakeNone })
		if err != nil {
			t.Fatal(err)
		}
		a := p.Survivor.Against
		if a.Freshness != Behind || a.Least != s.last-p.Survivor.Found.Database.Revision || !warned(p, "leave --from-data-dir out") || !warned(p, "left out (--wal none) and lost") {
			t.Errorf("%+v, %q", a, p.Warnings)
		}
		if n := p.Survivor.Found.Log.Changes; n != s.last-p.Survivor.Found.Database.Revision {
			t.Errorf("%d changes are told, %d were acknowledged", n, s.last-p.Survivor.Found.Database.Revision)
		}
		if !strings.Contains(strings.Join(p.Notes, "\n"), "--force-new-cluster") {
			t.Errorf("no other way is offered: %q", p.Notes)
		}
	})
	t.Run("another hash at a revision of both", func(t *testing.T) {
		f := newFixture(t)
		f.full(t, s.snapshot, func(m *manifest.Manifest) { m.Etcd.ClusterID, m.Etcd.HashKV = s.cluster, 12345 })
		p, err := plan(t, f, nil)
		if err != nil || p.Survivor.Against.History != HistoryOther || !warned(p, "do NOT tell the same past") {
			t.Errorf("%+v, %v", p, err)
		}
	})
	t.Run("another cluster", func(t *testing.T) {
		f := newFixture(t)
		f.full(t, s.snapshot, nil)
		if _, err := plan(t, f, nil); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "of etcd cluster") {
			t.Errorf("%v", err)
		}
	})
	t.Run("no backup at all", func(t *testing.T) {
		p, err := plan(t, newFixture(t), nil)
		if err != nil || p.Survivor.Against != nil || !warned(p, "not compared") {
			t.Errorf("%+v, %v", p, err)
		}
	})
	t.Run("an etcd that is too old", func(t *testing.T) {
		if _, err := plan(t, newFixture(t), func(o *EtcdOptions) { o.TargetVersion = "3.4" }); !errors.Is(err, ErrRefused) {
			t.Errorf("%v", err)
		}
	})
	t.Run("changed after the plan", func(t *testing.T) {
		p, err := plan(t, newFixture(t), nil)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now().Add(time.Second)
		if err := os.Chtimes(filepath.Join(s.dir, "member", "snap", "db"), now, now); err != nil {
			t.Fatal(err)
		}
		if err := p.Execute(t.Context(), nil); !errors.Is(err, ErrRefused) || !errors.Is(err, salvage.ErrChanged) {
			t.Errorf("%v", err)
		}
	})
	t.Run("in use", func(t *testing.T) {
		dir, stop := lockedMember(t)
		defer stop()
		f := newFixture(t)
		opts := f.etcdOptions(filepath.Join(t.TempDir(), "etcd"))
		opts.FromDataDir = dir
		if _, err := PlanEtcd(t.Context(), nil, opts); !errors.Is(err, ErrRefused) || !errors.Is(err, salvage.ErrInUse) {
			t.Errorf("%v", err)
		}
	})
}

func TestADifferentSegmentIsSeen(t *testing.T) {
	s := killed(t, "3.6", 40, 40)
	// The member's database must have some of what was recorded: it is started and
	// stopped in order, which commits all.
	c := cluster.StartBinary(t, "3.6", cluster.Options{DataDir: s.dir})
	c.Stop(0)
	for i, want := range []History{HistorySame, HistoryOther} {
		if want == HistoryOther {
			other := slices.Clone(s.events[30][0].KV)
			other[len(other)-1] ^= 1
			s.events[30][0].KV = other
		}
		f := newFixture(t)
		// A full that is compacted less far than it says can't be compared by hash.
		f.full(t, s.snapshot, func(m *manifest.Manifest) {
			m.Etcd.ClusterID, m.Etcd.HashKV, m.Unproved = s.cluster, 0, []string{"test"}
		})
		f.segment(t, s.recorded, s.first, s.first+39, f.now.Add(3*time.Second), false)
		opts := f.etcdOptions(filepath.Join(t.TempDir(), "etcd"))
		opts.FromDataDir = s.dir
		p, err := PlanEtcd(t.Context(), f.repo, opts)
		if err != nil {
			t.Fatal(err)
		}
		a := p.Survivor.Against
		if a.History != want || want == HistoryOther && !strings.Contains(a.HistoryHow, fmt.Sprint(s.first+30)) {
			t.Errorf("%d: %+v", i, a)
		}
	}
}

func TestASalvageThatFailsLeavesBothDirectoriesAlone(t *testing.T) {
	s := killed(t, "3.6", 20, 0)
	f := newFixture(t)
	for _, stage := range []string{"fetch", "check", "apply", "edit"} {
		opts := f.etcdOptions(filepath.Join(t.TempDir(), "etcd"))
		opts.FromDataDir = s.dir
		plan, err := PlanEtcd(t.Context(), nil, opts)
		if err != nil {
			t.Fatal(err)
		}
		boom := errors.New("boom")
		for i := range plan.Steps {
			if plan.Steps[i].Stage == stage {
				run := plan.Steps[i].Run
				plan.Steps[i].Run = func(ctx context.Context) error { return errors.Join(run(ctx), boom) }
			}
		}
		if err := plan.Execute(t.Context(), nil); !errors.Is(err, boom) {
			t.Errorf("%s: %v", stage, err)
		}
		if _, err := os.Stat(opts.DataDir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the target is there: %v", stage, err)
		}
		if err := datadir.InUse(s.dir); err != nil {
			t.Errorf("%s: the source is not given free: %v", stage, err)
		}
	}
}

func TestOneOfThreeIsToldForWhatItIs(t *testing.T) {
	c := cluster.StartBinary(t, "3.6", cluster.Options{Members: 3})
	for i := range 5 {
		if _, err := c.Client().Put(t.Context(), fmt.Sprint(i), "x"); err != nil {
			t.Fatal(err)
		}
	}
	for i := range c.Members {
		c.Kill(i)
	}
	f := newFixture(t)
	opts := f.etcdOptions(filepath.Join(t.TempDir(), "etcd"))
	opts.FromDataDir = c.Members[1].Dir
	p, err := PlanEtcd(t.Context(), nil, opts)
	if err != nil {
		t.Fatal(err)
	}
	notes, l := strings.Join(p.Notes, "\n"), p.Survivor.Found.Log
	for _, want := range []string{"one of 3 members", fmt.Sprintf("term %d at index %d", l.Term, l.Last), "The cluster had 3 members, this one begins with one"} {
		if !strings.Contains(notes, want) {
			t.Errorf("the notes lack %q: %s", want, notes)
		}
	}
	if told := strings.Contains(strings.Join(p.Warnings, "\n"), "may or may not have been acknowledged"); told != (l.Uncertain > 0) {
		t.Errorf("uncertain entries are told of: %v; %+v", told, l)
	}
}
