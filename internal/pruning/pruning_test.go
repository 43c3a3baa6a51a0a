package pruning

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"lifeboat/internal/config"
	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/retention"
	"lifeboat/storage"
	"lifeboat/storage/memory"
)

var two = Options{Policy: retention.Policy{Minimum: 2}}

func (w *world) run(o Options) *Report {
	w.t.Helper()
	report, err := Run(w.t.Context(), w.open(), o)
	if err != nil {
		w.t.Fatal(err)
	}
	return report
}

// stored lists the names that hold data.
func (w *world) stored() (data, manifests int) {
	w.t.Helper()
	for info, err := range w.store.List(w.t.Context(), cluster+"/") {
		if err != nil {
			w.t.Fatal(err)
		}
		switch {
		case containsFolder(info.Name, "data"):
			data++
		case containsFolder(info.Name, "manifests"):
			manifests++
		}
	}
	return data, manifests
}

func TestAPolicyIsAppliedToEveryChainAndKeptInTime(t *testing.T) {
	w := newWorld(t, memory.New())
	var stay []manifest.ID
	for i := range 5 {
		full, files := w.backup(etcdMain), w.backup(hostsCP1)
		if i >= 3 {
			stay = append(stay, full.ID, files.ID)
		}
	}
	before := w.listed()
	dry := two
	dry.DryRun = true
	said := w.run(dry)
	if len(w.listed()) != len(before) {
		t.Error("a dry run removed something")
	}
	did := w.run(two)
	for i, chain := range []manifest.Chain{etcdMain, hostsCP1} {
		for about, c := range map[string]Chain{"said": said.Chains[i], "did": did.Chains[i]} {
			if c.Chain != chain || c.Removed != 3 || len(c.Backups) != 5 || !c.Changes || c.Freed == 0 || c.Err != nil {
				t.Errorf("%s %+v", about, c)
			}
		}
		if said.Chains[i].Committed != 0 || did.Chains[i].Committed != 6 {
			t.Errorf("committed %d, dry %d", did.Chains[i].Committed, said.Chains[i].Committed)
		}
		for j, b := range did.Chains[i].Backups {
			if b.Keep != (j < 2) || b.StoredBytes == 0 || (b.Revision != 0) != (chain == etcdMain) {
				t.Errorf("%+v", b)
			}
		}
	}
	if did.Swept.Waiting != 12 || did.Swept.Objects != 0 {
		t.Errorf("swept %+v", did.Swept)
	}
	left := w.listed()
	for _, id := range stay {
		if _, ok := left[id]; !ok {
			t.Errorf("%s is gone", id)
		}
	}
	if len(left) != 4 {
		t.Errorf("%d are listed", len(left))
	}
	w.forward(25 * time.Hour)
	if again := w.run(two); again.Swept.Objects != 6 || again.Swept.Manifests != 0 || again.Chains[0].Committed != 0 {
		t.Errorf("a day later %+v", again.Swept)
	}
	w.forward(7 * 24 * time.Hour)
	if again := w.run(two); again.Swept.Objects != 0 || again.Swept.Manifests != 6 {
		t.Errorf("a week later %+v", again.Swept)
	}
	if data, _ := w.stored(); data != 4 || len(w.listed()) != 4 {
		t.Errorf("%d data objects, %d backups", data, len(w.listed()))
	}
}

func TestOnlySomeChainsWhenAsked(t *testing.T) {
	w := newWorld(t, memory.New())
	for range 4 {
		w.backup(etcdMain)
		w.backup(hostsCP1)
	}
	some := two
	some.Chains = []manifest.Chain{hostsCP1}
	if report := w.run(some); len(report.Chains) != 1 || report.Chains[0].Removed != 2 || report.Swept.Waiting != 4 {
		t.Errorf("%+v", report)
	}
	some.Chains = []manifest.Chain{"hosts/cp9"}
	if report, err := Run(t.Context(), w.open(), some); !errors.Is(err, repository.ErrNothing) || len(report.Chains) != 0 {
		t.Errorf("%+v, %v", report, err)
	}
}

func TestNothingGoesThatWasNotConfirmed(t *testing.T) {
	w := newWorld(t, memory.New())
	var ids []manifest.ID
	for range 4 {
		ids = append(ids, w.backup(etcdMain).ID)
	}
	bound := two
	bound.Only = map[manifest.ID]bool{ids[0]: true, "of-another-plan": true}
	w.backup(etcdMain) // meanwhile: now the policy would let a third go
	report := w.run(bound)
	if left := w.listed(); report.Chains[0].Removed != 1 || len(left) != 4 {
		t.Errorf("%+v", report.Chains[0])
	}
	bound.Only = map[manifest.ID]bool{}
	if report := w.run(bound); report.Chains[0].Removed != 0 || len(w.listed()) != 4 {
		t.Errorf("%+v", report.Chains[0])
	}
}

func TestAChainWithFailuresIsLeftAloneAndTheOthersArePruned(t *testing.T) {
	w := newWorld(t, memory.New())
	for range 4 {
		w.backup(etcdMain)
		w.backup(hostsCP1)
	}
	lost := cluster + "/" + repository.ManifestName(etcdMain, 2)
	if err := w.store.Delete(t.Context(), lost); err != nil {
		t.Fatal(err)
	}
	report, err := Run(t.Context(), w.open(), two)
	if !errors.Is(err, repository.ErrVerification) || len(report.Chains) != 2 {
		t.Fatalf("%+v, %v", report, err)
	}
	if c := report.Chains[0]; !errors.Is(c.Err, repository.ErrVerification) || c.Committed != 0 || c.Removed != 0 {
		t.Errorf("%+v", c)
	}
	if c := report.Chains[1]; c.Err != nil || c.Removed != 2 {
		t.Errorf("%+v", c)
	}
	if len(report.Swept.Problems) == 0 || report.Swept.Waiting != 4 {
		t.Errorf("%+v", report.Swept)
	}
}

func TestAStoreThatLostWhatWasSeenIsNotAnEmptyOne(t *testing.T) {
	w := newWorld(t, memory.New())
	w.backup(etcdMain)
	seen := w.open()
	if _, _, err := seen.Backups(t.Context()); err != nil {
		t.Fatal(err)
	}
	heads := map[manifest.Chain]manifest.Head{}
	for _, head := range seen.Heads() {
		heads[head.Chain] = head
	}
	repo := w.on(memory.New(memory.WithClock(w.now)), func(o *repository.Options) { o.Seen = heads })
	if report, err := Run(t.Context(), repo, two); !errors.Is(err, repository.ErrVerification) {
		t.Errorf("%+v, %v", report, err)
	}
}

func TestWhoeverMayNotPruneIsToldSoAndSweepsAllTheSame(t *testing.T) {
	w := newWorld(t, memory.New())
	for range 4 {
		w.backup(etcdMain)
	}
	w.run(two)
	for range 2 {
		w.backup(etcdMain)
	}
	w.forward(48 * time.Hour)
	writer := w.newSigner("writer")
	w.trust.Verifiers = append(w.trust.Verifiers, verifier(writer, "full", "files", "proof"))
	report, err := Run(t.Context(), w.open(func(o *repository.Options) { o.Signer = writer }), two)
	if !errors.Is(err, repository.ErrMayNotPrune) || report.Swept == nil || report.Swept.Objects != 2 {
		t.Errorf("%+v, %v", report.Swept, err)
	}
	if len(w.listed()) != 4 {
		t.Errorf("%d are listed", len(w.listed()))
	}
}

func TestClocksThatDifferEndItBeforeItBegins(t *testing.T) {
	w := newWorld(t, memory.New())
	for range 4 {
		w.backup(etcdMain)
	}
	for _, by := range []time.Duration{time.Hour, -time.Hour} {
		report, err := Run(t.Context(), w.open(func(o *repository.Options) { o.Now = func() time.Time { return w.now().Add(by) } }), two)
		if !errors.Is(err, repository.ErrClock) || len(report.Chains) != 0 || report.Swept != nil {
			t.Errorf("%s: %+v, %v", by, report, err)
		}
	}
}

func TestAStoreThatFailsEndsIt(t *testing.T) {
	w := newWorld(t, memory.New())
	for range 4 {
		w.backup(etcdMain)
		w.backup(hostsCP1)
	}
	broken := &noPuts{timed: w.store.(*timed), err: storage.ErrPermission}
	report, err := Run(t.Context(), w.on(broken), two)
	if !errors.Is(err, storage.ErrPermission) || len(report.Chains) != 1 || report.Swept != nil {
		t.Errorf("%+v, %v", report, err)
	}
	if broken.tries > 1 {
		t.Errorf("%d tries", broken.tries)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if report, err := Run(ctx, w.open(), two); !errors.Is(err, context.Canceled) || len(report.Chains) != 0 {
		t.Errorf("%+v, %v", report, err)
	}
}

func TestWhatARestoreOfTheLatestGivesBackStaysWhileALaggingMemberIsBackedUp(t *testing.T) {
	w := newWorld(t, memory.New())
	degraded := func(revision manifest.Revision) func(*manifest.Manifest) {
		return func(m *manifest.Manifest) { m.Degraded, m.Etcd.Revision = []string{"no quorum"}, revision }
	}
	whole := w.backup(etcdMain, degraded(100), func(m *manifest.Manifest) { m.Degraded = nil })
	furthest := w.backup(etcdMain, degraded(120))
	w.backup(etcdMain, degraded(110))
	newest := w.backup(etcdMain, degraded(111))
	report := w.run(Options{Policy: retention.Policy{Minimum: 1}})
	left := w.listed()
	for _, m := range []*manifest.Manifest{whole, furthest, newest} {
		if _, ok := left[m.ID]; !ok {
			t.Errorf("revision %d is gone", m.Etcd.Revision)
		}
	}
	if len(left) != 3 || report.Chains[0].Removed != 1 {
		t.Errorf("%+v", report.Chains[0])
	}
	if m, err := w.open().Resolve(t.Context(), etcdMain, repository.Point{}); err != nil || m.ID != furthest.ID {
		t.Errorf("the latest is %+v, %v", m, err)
	}
}

func TestWhatIsLockedImportedOrUnprovedReachesThePolicy(t *testing.T) {
	w := newWorld(t, memory.New())
	until := start.Add(1000 * time.Hour)
	locked := w.backup(etcdMain, func(m *manifest.Manifest) { m.RetainUntil = &until })
	imported := w.backup(etcdMain, func(m *manifest.Manifest) { m.Imported = "a tool" })
	w.backup(etcdMain)
	degraded := w.backup(etcdMain, func(m *manifest.Manifest) { m.Degraded = []string{"no quorum"} })
	unproved := w.backup(etcdMain, func(m *manifest.Manifest) { m.Unproved = []string{"no scratch"} })
	report := w.run(Options{})
	reasons := map[manifest.ID][]string{}
	for _, b := range report.Chains[0].Backups {
		reasons[manifest.ID(b.ID)] = b.Reasons
		if b.Degraded != (manifest.ID(b.ID) == degraded.ID) || b.Imported != (manifest.ID(b.ID) == imported.ID) {
			t.Errorf("%+v", b)
		}
	}
	for id, want := range map[manifest.ID]string{
		locked.ID: "locked until 2027-01-02T04:00:00Z", imported.ID: "imported", unproved.ID: "newest of all",
	} {
		if !slices.Contains(reasons[id], want) {
			t.Errorf("want %q, got %q", want, reasons[id])
		}
	}
	left := w.listed()
	if _, ok := left[degraded.ID]; ok || len(left) != 4 { // and the newest proved one
		t.Errorf("%d are left", len(left))
	}
	all := Options{Policy: retention.Policy{Imported: true}}
	if report := w.run(all); report.Chains[0].Removed != 1 {
		t.Errorf("%+v", report.Chains[0])
	}
	if _, ok := w.listed()[imported.ID]; ok {
		t.Error("the imported one is still there")
	}
}

func TestStagesAreToldAsTheyBeginAndEnd(t *testing.T) {
	w := newWorld(t, memory.New())
	for range 4 {
		w.backup(etcdMain)
	}
	var told []string
	listen := func(e events.Event) {
		switch e := e.(type) {
		case events.StageStarted:
			told = append(told, e.Stage+" begins")
		case events.StageDone:
			told = append(told, e.Stage+" ends")
		}
	}
	o := two
	o.Events = listen
	w.run(o)
	w.forward(48 * time.Hour)
	if _, err := Run(t.Context(), w.open(func(r *repository.Options) { r.Events = listen }), two); err != nil {
		t.Fatal(err)
	}
	if want := []string{"prune begins", "prune ends", "sweep begins", "sweep ends"}; !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
}

func TestThePolicyIsTheConfigurations(t *testing.T) {
	got := PolicyOf(config.Retention{Hourly: 1, Daily: 2, Weekly: 3, Monthly: 4, Minimum: 5, PointInTime: config.Duration(6 * time.Hour)})
	if want := (retention.Policy{Hourly: 1, Daily: 2, Weekly: 3, Monthly: 4, Minimum: 5, PointInTime: 6 * time.Hour}); got != want {
		t.Errorf("got %+v", got)
	}
}

// TestAKeyForPrunesAloneDoesForAChainOfOthers has nodes whose keys may not
// prune, and one key that may do nothing else.
func TestAKeyForPrunesAloneDoesForAChainOfOthers(t *testing.T) {
	w := newWorld(t, memory.New())
	key := w.newSigner("prunes")
	w.trust.Verifiers = []manifest.Verifier{verifier(w.signer, "full", "files", "proof"), verifier(key, "prune")}
	pruner := func() *repository.Repository { return w.open(func(o *repository.Options) { o.Signer = key }) }
	for round, removed := range []int{1, 3, 3} {
		for range 3 {
			w.backup(etcdMain)
		}
		report, err := Run(t.Context(), pruner(), two)
		if err != nil || report.Chains[0].Removed != removed {
			t.Errorf("round %d: %+v, %v", round, report.Chains[0], err)
		}
		if n := len(w.listed()); n != 2 {
			t.Errorf("round %d: %d are listed", round, n)
		}
		w.forward(9 * 24 * time.Hour)
	}
	latest, err := w.open().Resolve(t.Context(), etcdMain, repository.Point{})
	if err != nil || latest.Etcd.Revision != 9 {
		t.Errorf("the latest is %+v, %v", latest, err)
	}
	m, body := w.draft(etcdMain)
	if err := commit(t.Context(), pruner(), m, body); err == nil {
		t.Error("the key for prunes commits a full")
	}
}

func TestWhatGoesFurthestStaysWhateverIsNewer(t *testing.T) {
	w := newWorld(t, memory.New())
	member := func(revision manifest.Revision) func(*manifest.Manifest) {
		return func(m *manifest.Manifest) { m.Etcd.Revision, m.Degraded = revision, []string{"no quorum"} }
	}
	before := w.backup(etcdMain, member(90))
	furthest := w.backup(etcdMain, member(100))
	w.backup(etcdMain, member(80))
	last := w.backup(etcdMain, member(85))
	report := w.run(Options{})
	if r := report.Chains[0]; r.Err != nil || r.Removed != 2 {
		t.Errorf("%+v", r)
	}
	listed := w.listed()
	if _, there := listed[before.ID]; there || len(listed) != 2 || listed[furthest.ID].Manifest == nil || listed[last.ID].Manifest == nil {
		t.Errorf("left: %v", listed)
	}
	if m, err := w.open().Resolve(t.Context(), etcdMain, repository.Point{}); err != nil || m.ID != furthest.ID {
		t.Errorf("the latest is %v, %v", m, err)
	}
}
