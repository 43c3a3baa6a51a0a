package restore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/snapdb"
	"lifeboat/restore/datadir"
	"lifeboat/restore/salvage"
)

// Survivor is a data directory whose state takes the place of a backup's.
type Survivor struct {
	Found   *salvage.Found
	Take    salvage.Take
	Through uint64 // the last index of its log that is applied; Found.Log.Applied: none is

	Against    *Against // the newest state that is backed up; nil: it was not compared
	Uncompared string   // why

	Applied *salvage.Applied // by the step; nil: nothing of the log had to be
}

// Revision is what the new member will hold at most: each change of the log makes
// one revision or none.
func (s *Survivor) Revision() (least, most int64) {
	least, most = s.Found.Database.Revision, s.Found.Database.Revision
	if s.Through > s.Found.Log.Applied {
		most += s.Found.Log.Changes
	}
	return least, most
}

// planSurvivor plans a restore from opts.FromDataDir. repo may be nil: then there
// is nothing to compare it with.
func planSurvivor(ctx context.Context, repo *repository.Repository, opts EtcdOptions) (*EtcdPlan, error) {
	if err := opts.name(); err != nil {
		return nil, err
	}
	if opts.Placed {
		return planPlaced(ctx, repo, opts)
	}
	source, err := openSource(opts.FromDataDir)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	found, err := source.Inspect(ctx, nil)
	if err != nil {
		return nil, sourceError(err)
	}
	if opts.Log == "" {
		opts.Log = salvage.TakeAll
	}
	db := found.Database
	s := &Survivor{Found: found, Take: opts.Log, Through: found.Log.Through(opts.Log)}
	p := &EtcdPlan{
		Plan: &Plan{chain: string(opts.Chain), now: opts.Now}, Survivor: s, RestoreID: opts.RestoreID, Token: opts.Token, Store: found.Dir,
		Choice: Choice{Chain: opts.Chain, Revision: manifest.Revision(db.Revision), At: found.Written, ClusterID: found.ClusterID()},
		quota:  quotaFor(opts.Quota, &manifest.Manifest{Etcd: &manifest.Etcd{DBBytes: db.DBBytes}}),
	}
	p.abort = p.Discard
	if err := checkTarget(opts.TargetVersion, opts.TargetFrom, db.StorageVersion, db.ClusterVersion, ""); err != nil {
		return nil, err
	}
	if err := overQuota(db.DBBytes, p.quota, "is"); err != nil {
		return nil, err
	}
	tip := place{0, p.Choice.Revision, found.Written, 0}
	if repo == nil {
		s.Uncompared = cmp.Or(opts.Uncompared, "no backup was asked for")
	} else if err := p.compareSurvivor(ctx, repo, opts, source, &tip); err != nil {
		return nil, err
	}
	safe := defaultBump(place{tip.epoch, p.Choice.Revision, found.Written, tip.rate}, tip, opts.Now())
	if p.Bump = safe; opts.Bump != nil {
		p.Bump = *opts.Bump
	}
	// Until the plan is executed nothing keeps an etcd from starting on it. It may be
	// the very directory that is to be replaced.
	if err := source.Close(); err != nil {
		return nil, err
	}
	target := datadir.Options{
		DataDir: opts.DataDir, Name: opts.Name, PeerURLs: opts.PeerURLs, InitialCluster: opts.InitialCluster,
		Token: p.Token, Bump: p.Bump, ID: p.RestoreID, AsideDir: opts.AsideDir, Owner: opts.Owner, Live: opts.Live,
		Size: db.Size + salvage.TrailerBytes, Extra: 3 * found.Log.Bytes, Progress: func(done int64) { p.progress("fetch")(done) },
	}
	if err := refused(datadir.Preflight(target)); err != nil {
		return nil, err
	}
	last, err := p.lastSteps(target)
	if err != nil {
		return nil, err
	}
	p.survivorSteps(opts, target, last)
	if p.Bump > 0 && p.Bump < safe {
		p.warn("the revision bump %d is below %d, which is safe: clients that have seen newer revisions may take the past for the present", p.Bump, safe)
	}
	p.adviseSurvivor(opts)
	return p, nil
}

// planPlaced is the plan of a restore whose member is in its place.
func planPlaced(ctx context.Context, repo *repository.Repository, opts EtcdOptions) (*EtcdPlan, error) {
	_, head, err := resolve(ctx, repo, opts.Chain, repository.Point{}, nil)
	if err != nil {
		return nil, err
	}
	p := &EtcdPlan{
		Plan:   &Plan{chain: string(opts.Chain), now: opts.Now},
		Choice: Choice{Chain: opts.Chain, Revision: opts.Point.Revision, At: opts.Point.Time}, Backup: head,
		RestoreID: opts.RestoreID, Token: opts.Token, Store: opts.FromDataDir,
	}
	if opts.Bump != nil {
		p.Bump = *opts.Bump
	}
	cluster, err := datadir.Members(opts.Name, opts.PeerURLs, opts.InitialCluster, opts.Token)
	if err != nil {
		return nil, err
	}
	p.members, p.ClusterID, p.MemberID = len(cluster.Members()), manifest.EtcdID(cluster.ID()), manifest.EtcdID(cluster.MemberByName(opts.Name).ID)
	p.Summary = fmt.Sprintf("The member that was made from the data directory %s is in %s.", opts.FromDataDir, opts.DataDir)
	p.Steps = []Step{{Stage: "install", Title: "Put the new member in place", Run: p.Install}}
	return p, nil
}

// openSource opens a data directory that has survived.
func openSource(dir string) (*salvage.Source, error) {
	source, err := salvage.Open(dir)
	return source, sourceError(err)
}

// sourceError gives an error of salvage the meaning that it has here.
func sourceError(err error) error {
	if errors.Is(err, salvage.ErrInUse) || errors.Is(err, salvage.ErrNoMember) || errors.Is(err, salvage.ErrChanged) {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if errors.Is(err, salvage.ErrDamaged) || errors.Is(err, salvage.ErrUnknown) {
		return fmt.Errorf("%w: %w", repository.ErrVerification, err)
	}
	return verification(err)
}

// survivorSteps writes the plan's steps.
func (p *EtcdPlan) survivorSteps(opts EtcdOptions, target datadir.Options, last []Step) {
	s, f := p.Survivor, p.Survivor.Found
	p.Summary = fmt.Sprintf("Make a member %s in %s from the data directory %s, which has survived.\n%s", target.Name, target.DataDir, f.Dir, s.holds())
	p.Steps = []Step{
		{
			Stage: "fetch", Title: "Copy the database to a staging folder", Total: f.Database.DBBytes,
			Detail: fmt.Sprintf("%s, %s. It is opened to read alone, and locked so that no etcd starts on it meanwhile.\nNothing of %s is written.", f.Dir+"/member/snap/db", size(f.Database.DBBytes), f.Dir),
			Run:    func(ctx context.Context) error { return p.copySurvivor(ctx, target) },
		},
		{
			Stage: "check", Title: "Check the database", Total: f.Database.DBBytes,
			Detail: fmt.Sprintf("Every page, the exact revision %d, and HashKV %08x, as they were read for this plan.", f.Database.Revision, f.Database.HashKV),
			Run:    func(ctx context.Context) error { return p.checkSurvivor(ctx, opts) },
		},
	}
	if s.Through > f.Log.Applied {
		p.Steps = append(p.Steps, Step{
			Stage: "apply", Title: fmt.Sprintf("Apply the write-ahead log, indexes %d to %d", f.Log.Applied+1, s.Through), Total: f.Log.Bytes,
			Detail: "By the code with which etcd itself does it when it starts. Revisions, versions and leases become what they would be there.",
			Run:    p.applySurvivor,
		})
	}
	p.Steps = append(p.Steps, last...)
}

// copySurvivor is the step that begins.
func (p *EtcdPlan) copySurvivor(ctx context.Context, target datadir.Options) (err error) {
	if p.staging, err = datadir.Begin(ctx, target); err != nil {
		return refused(err)
	}
	for _, said := range p.staging.Recovered {
		p.listen.Emit(events.Warning{Chain: p.chain, Subject: target.DataDir, Message: said})
	}
	if p.source, err = openSource(p.Survivor.Found.Dir); err != nil {
		return err
	}
	if err := p.source.Unchanged(p.Survivor.Found); err != nil {
		return fmt.Errorf("%w; run this again, for a new plan", sourceError(err))
	}
	r, _, err := p.source.Snapshot()
	if err != nil {
		return err
	}
	return verification(p.staging.Receive(ctx, r))
}

func (p *EtcdPlan) checkSurvivor(ctx context.Context, opts EtcdOptions) error {
	want := p.Survivor.Found.Database
	got, err := snapdb.Inspect(ctx, p.staging.DBPath(), snapdb.Options{Progress: func(done, _ int64) { p.progress("check")(done) }})
	if err := errors.Join(p.staging.Verified(), err); err != nil {
		return verification(err)
	}
	if got.Revision != want.Revision || got.HashKV != want.HashKV || got.CompactRevision != want.CompactRevision || got.ConsistentIndex != want.ConsistentIndex {
		return fmt.Errorf("%w: the copy is at revision %d with HashKV %08x, and %s was at %d with %08x: it was read wrongly once, find out why its disk does that",
			repository.ErrVerification, got.Revision, got.HashKV, p.Survivor.Found.Dir, want.Revision, want.HashKV)
	}
	if p.Survivor.Through > p.Survivor.Found.Log.Applied {
		return nil
	}
	return p.closeSource()
}

func (p *EtcdPlan) applySurvivor(ctx context.Context) (err error) {
	s, total := p.Survivor, p.Survivor.Found.Log
	s.Applied, err = p.source.Apply(ctx, p.staging.DBPath(), s.Found, s.Through, func(done int64) {
		p.progress("apply")(total.Bytes * min(done, total.Entries) / max(total.Entries, 1))
	})
	if err != nil {
		return fmt.Errorf("%w; --wal none restores without the log, and loses what it holds", sourceError(err))
	}
	// Another look at what etcd's code has made: it is no less of a file to doubt.
	facts, err := snapdb.Inspect(ctx, p.staging.DBPath(), snapdb.Options{})
	if err != nil {
		return verification(err)
	}
	if facts.Revision != s.Applied.Revision {
		return fmt.Errorf("%w: the database is at revision %d after its log was applied up to %d", repository.ErrVerification, facts.Revision, s.Applied.Revision)
	}
	p.Choice.Revision = manifest.Revision(facts.Revision)
	if err := overQuota(facts.DBBytes, p.quota, "has become"); err != nil {
		return err
	}
	return p.closeSource()
}

// closeSource gives the data directory free; it may be the one that is replaced.
func (p *EtcdPlan) closeSource() error {
	if p.source == nil {
		return nil
	}
	err := p.source.Close()
	p.source = nil
	return err
}

// holds says what a data directory has, in two or three lines.
func (s *Survivor) holds() string {
	f, l := s.Found, s.Found.Log
	text := fmt.Sprintf("It was last written %s. Its database ends at revision %d.", f.Written.UTC().Format(time.RFC3339), f.Database.Revision)
	switch {
	case l.Entries > 0:
		text += fmt.Sprintf("\nIts write-ahead log holds %s more, %s of keys among them, so it ends at revision %d at most.", entries(l.Entries), count(l.Changes, "change"), f.Database.Revision+l.Changes)
	case l.Files > 0 && l.Broken == "":
		text += " Its write-ahead log holds nothing more."
	}
	if s.Against != nil {
		text += "\n" + s.Against.String()
	} else {
		text += "\nIt was not compared with any backup: " + s.Uncompared + "."
	}
	return text
}

func entries(n int64) string {
	if n == 1 {
		return "1 entry"
	}
	return fmt.Sprintf("%d entries", n)
}

// adviseSurvivor says what is lost, what is not certain, and what is left to do.
func (p *EtcdPlan) adviseSurvivor(opts EtcdOptions) {
	s, f, l := p.Survivor, p.Survivor.Found, p.Survivor.Found.Log
	if a := s.Against; a != nil && a.History == HistoryOther {
		p.warn("%s", a.HistoryHow)
	} else if a != nil && a.Freshness == Behind {
		p.warn("the newest backup holds more than this directory: leave --from-data-dir out to restore that")
	} else if a == nil {
		p.warn("this was not compared with any backup: %s", s.Uncompared)
	}
	if l.Broken != "" {
		p.warn("the write-ahead log is not whole: %s. It is taken up to index %d of term %d; what came after that is lost, and how much it was can't be known", l.Broken, l.Last, l.Term)
	}
	left := l.Entries
	if s.Through > l.Applied {
		left = int64(l.Last - s.Through)
	}
	switch {
	case l.Gap != "":
		p.warn("nothing of the write-ahead log can be applied, and up to %s are lost: %s", entries(left), l.Gap)
	case left > 0:
		p.warn("%s of the write-ahead log are left out (--wal %s) and lost, with up to %s of keys: all behind index %d", entries(left), s.Take, count(min(left, l.Changes), "change"), s.Through)
	}
	switch taken := l.Uncertain > 0 && s.Through > l.Commit; {
	case taken && f.Sole():
		p.note("What the log holds behind the commit index %d that the member had noted (%s) counts: it was the only member, and all that it acknowledged is in its log. It is applied, as the member does when it starts.", l.Commit, entries(l.Uncertain))
	case taken:
		p.warn("what the log holds behind index %d (%s) may or may not have been acknowledged to a client: the member, one of %d, did not know it to be committed. It is applied, as a member does that is elected; --wal committed leaves it out", l.Commit, entries(l.Uncertain), f.Voters())
	}
	if !f.Sole() {
		p.note("This is one of %d members, and another's directory may hold more: the one whose log has the higher term, and of equal terms the higher index, is to be taken. This one ends in term %d at index %d.", f.Voters(), l.Term, l.Last)
	}
	for _, a := range f.Database.Alarms {
		p.warn("the database holds an alarm, %s: compact, defragment and disarm it after the start", a.Kind)
	}
	if l.Gap != "" || l.Broken != "" || s.Take == salvage.TakeNone && l.Entries > 0 {
		p.note("etcd itself may come further, with a copy; it drops what lies behind the commit index:\n%s", strings.Join(salvage.ForceNewCluster(f.Dir), "\n"))
	}
	if p.Bump == 0 {
		p.warn("without a revision bump, clients that have seen newer revisions (every controller's watch) take the past for the present: restart them all")
	}
	if p.members > 1 {
		p.note("The other members need a copy of the same directory, and the same members, token, bump and --wal, before any of them is started:\n--initial-cluster %s --token %s --bump %d --wal %s", opts.InitialCluster, p.Token, p.Bump, s.Take)
	} else if n := f.Voters(); n > 1 {
		p.note("The cluster had %d members, this one begins with one: add the others to it as new members, with empty data directories.", n)
	}
	p.note("Start it with %s; --initial-cluster and its like no longer matter then.", startWith(opts.TargetVersion, &manifest.Manifest{Etcd: &manifest.Etcd{StorageVersion: f.Database.StorageVersion, ClusterVersion: f.Database.ClusterVersion}}))
	p.note("A write-ahead log in a folder of its own (--wal-dir) is not looked at: point etcd to %s/member/wal, or move that.", opts.DataDir)
	p.note("Take a full backup at once: this begins a new history.")
}
