package restore

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/snapdb"
	"lifeboat/restore/datadir"
)

// lockedMember is a data directory as an etcd that runs has it.
func lockedMember(t *testing.T) (dataDir string, stop func()) {
	t.Helper()
	dataDir = t.TempDir()
	db := filepath.Join(dataDir, "member", "snap", "db")
	if err := os.MkdirAll(filepath.Dir(db), 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(db)
	if err == nil {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dataDir, func() { f.Close() }
}

func names(t *testing.T, dir string) (out []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestAMemberIsStagedBesideALiveEtcdAndInstalledWhenItHasStopped(t *testing.T) {
	f := newFixture(t)
	m := f.full(t, snapshotFile(t), nil)
	dataDir, stop := lockedMember(t)
	defer stop()
	opts := f.etcdOptions(dataDir)
	if _, err := PlanEtcd(t.Context(), f.repo, opts); !errors.Is(err, ErrRefused) || !errors.Is(err, datadir.ErrInUse) {
		t.Fatalf("a plan that is not live: %v", err)
	}
	opts.Live, opts.RestoreID = true, "r-1"
	plan, err := PlanEtcd(t.Context(), f.repo, opts)
	if err != nil {
		t.Fatal(err)
	}
	if plan.RestoreID != "r-1" || plan.DBPath() != "" {
		t.Errorf("restore %q, database %q", plan.RestoreID, plan.DBPath())
	}
	if err := plan.Install(t.Context()); err == nil {
		t.Error("nothing was staged, and it was installed")
	}
	var stages []string
	err = plan.Stage(t.Context(), func(e events.Event) {
		if done, ok := e.(events.StageDone); ok {
			stages = append(stages, done.Stage)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(stages, []string{"fetch", "check", "edit"}) {
		t.Errorf("stages %v", stages)
	}
	facts, err := snapdb.Inspect(t.Context(), plan.DBPath(), snapdb.Options{})
	if err != nil || facts.Revision != int64(m.Etcd.Revision)+minBump {
		t.Errorf("the staged database: %+v, %v", facts, err)
	}
	if err := plan.Install(t.Context()); !errors.Is(err, ErrRefused) || !errors.Is(err, datadir.ErrInUse) {
		t.Fatalf("install beside an etcd: %v", err)
	}
	if is, err := datadir.Installed(dataDir, "", "r-1"); is || !errors.Is(err, datadir.ErrInUse) {
		t.Errorf("while it is staged, others are told %v, %v", is, err)
	}
	stop()
	if err := plan.Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(dataDir, ".lifeboat-aside", "r-1", "member"); plan.Result.Aside != want || plan.Result.Last != int64(m.Etcd.Revision) {
		t.Errorf("result %+v", plan.Result)
	}
	for range 2 {
		if err := plan.Discard(); err != nil || plan.DBPath() != "" {
			t.Errorf("discard after install: %v, %q", err, plan.DBPath())
		}
	}
	if is, err := datadir.Installed(dataDir, "", "r-1"); !is || err != nil {
		t.Errorf("installed: %v, %v", is, err)
	}
	if err := plan.Install(t.Context()); err == nil {
		t.Error("it was installed twice")
	}
}

func TestWhatIsStagedCanBeDiscarded(t *testing.T) {
	f := newFixture(t)
	f.full(t, snapshotFile(t), nil)
	dataDir, stop := lockedMember(t)
	defer stop()
	opts := f.etcdOptions(dataDir)
	opts.Live = true
	for range 2 { // the second begins where nothing is left of the first
		plan, err := PlanEtcd(t.Context(), f.repo, opts)
		if err != nil {
			t.Fatal(err)
		}
		if plan.RestoreID == "" {
			t.Error("no fresh id")
		}
		if err := plan.Discard(); err != nil {
			t.Errorf("before anything is staged: %v", err)
		}
		if err := plan.Stage(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := plan.Discard(); err != nil {
				t.Fatal(err)
			}
		}
		if got := names(t, dataDir); !slices.Equal(got, []string{"member"}) {
			t.Errorf("leftovers: %v", got)
		}
		if err := plan.Install(t.Context()); err == nil {
			t.Error("what was discarded was installed")
		}
	}
}

func TestStagingThatFailsLeavesNothing(t *testing.T) {
	for name, stop := range map[string]struct {
		manifest func(*manifest.Manifest)
		at       string // the context ends when this stage begins
		want     error
		text     string
	}{
		"a database that is not the manifest's": {manifest: func(m *manifest.Manifest) { m.Etcd.HashKV++ }, want: repository.ErrVerification, text: "step 2, check: "},
		"interrupted while it fetches":          {at: "fetch", want: context.Canceled, text: "step 1, fetch: "},
		"interrupted before the last edit":      {at: "edit", want: context.Canceled, text: "step 3, edit: "},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.full(t, snapshotFile(t), stop.manifest)
			dataDir, unlock := lockedMember(t)
			defer unlock()
			opts := f.etcdOptions(dataDir)
			opts.Live = true
			plan, err := PlanEtcd(t.Context(), f.repo, opts)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			err = plan.Stage(ctx, func(e events.Event) {
				if started, ok := e.(events.StageStarted); ok && started.Stage == stop.at {
					cancel()
				}
			})
			if !errors.Is(err, stop.want) || !strings.HasPrefix(err.Error(), stop.text) {
				t.Errorf("error %v, want %q and %v", err, stop.text, stop.want)
			}
			if got := names(t, dataDir); !slices.Equal(got, []string{"member"}) || plan.DBPath() != "" {
				t.Errorf("leftovers: %v, %q", got, plan.DBPath())
			}
		})
	}
}
