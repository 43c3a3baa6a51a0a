package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"filippo.io/age"

	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/snapdb"
	"lifeboat/restore/datadir"
	"lifeboat/restore/salvage"
)

// DefaultChain is the chain of a cluster's main etcd.
const DefaultChain manifest.Chain = "etcd/main"

// EtcdOptions says which backup goes into which data directory.
type EtcdOptions struct {
	Chain      manifest.Chain   // DefaultChain if empty
	Point      repository.Point // the latest if zero
	Without    []manifest.ID    // segments whose data is known to be lost or damaged
	Identities []age.Identity   // one must fit; found out before anything changes

	// FromDataDir is a member's data directory that has survived: its state takes the
	// place of a backup's, and Point and Without mean nothing. The newest backup is
	// only compared with it; without a repository nothing is, and without an identity less.
	FromDataDir string
	Log         salvage.Take // how much of its write-ahead log counts; default all
	Uncompared  string       // why there is no repository, for the plan
	// Placed says that the member was made and put in place before: the directory is
	// not looked at, and the plan has nothing left to do. Point is what was restored.
	Placed bool

	DataDir  string   // of etcd; see datadir.Options
	Name     string   // of the member
	PeerURLs []string // of the member

	// InitialCluster lists all voting members; empty means this one alone.
	InitialCluster string

	// Token is the cluster token; empty makes a fresh random one. All members
	// of one cluster need the same.
	Token string

	// Bump is added to the last revision; nil is a default that is safe for
	// the backup's age. 0 neither bumps nor marks anything compacted. All
	// members of one cluster need the same.
	Bump *uint64

	// TargetVersion is the etcd version, or image tag, that will start from
	// the data directory; empty means the one that the snapshot was made by.
	TargetVersion string
	// TargetFrom says for people where TargetVersion comes from, and how another is
	// had. It ends a refusal.
	TargetFrom string

	// Quota is the size in bytes that the database must not exceed, 0 for any; nil
	// is etcd's own default of 2 GiB, or 8 GiB where the full is larger than that.
	Quota *int64

	AsideDir string // where the old member is kept; see datadir.Options
	Live     bool   // an etcd may run on DataDir until the member is installed

	RestoreID string // one path element, which names what the restore keeps; a fresh one if empty

	Owner *datadir.Owner

	Now  func() time.Time
	Rand io.Reader // makes the token, and the restore's id if none is given
}

// EtcdPlan is a Plan for one etcd member. Execute does it all. Who has
// something to do between the making of the member and the moment that it takes
// its place calls Stage and Install instead, and Discard in the end.
type EtcdPlan struct {
	*Plan
	Choice    Choice             // what will be restored
	Without   []manifest.ID      // as in EtcdOptions
	Backup    *manifest.Manifest // the full that it begins with
	Store     string             // where it comes from
	RestoreID string
	Token     string
	Bump      uint64
	ClusterID manifest.EtcdID // that the new cluster will have
	MemberID  manifest.EtcdID // that this member will have in it

	// Result is filled by the last step.
	Result  datadir.Result
	Applied *Applied // by the step before; nil: there are no segments

	// Survivor is the data directory that the state comes from; nil: it is a backup's.
	// With it, Backup is the newest full, only compared with, and may be nil.
	Survivor *Survivor

	route   *repository.Route
	quota   int64
	members int              // of the new cluster
	staging *datadir.Staging // from the first step on
	source  *salvage.Source  // that is copied; open while it is needed
}

// PlanEtcd verifies the chain, finds the way to the state that the point means,
// and plans its restore into a data directory. It changes nothing. repo may be nil if
// the state is a surviving directory's. Errors wrap
// repository.ErrNothing, repository.ErrVerification, repository.ErrUnreachable,
// ErrRefused, seal.ErrNoIdentity or datadir.ErrInvalid.
func PlanEtcd(ctx context.Context, repo *repository.Repository, opts EtcdOptions) (*EtcdPlan, error) {
	if opts.Chain == "" {
		opts.Chain = DefaultChain
	}
	if opts.FromDataDir != "" {
		return planSurvivor(ctx, repo, opts)
	}
	route, head, err := resolve(ctx, repo, opts.Chain, opts.Point, opts.Without)
	if err != nil {
		return nil, err
	}
	m := route.Base.Manifest
	object, err := objectOf(m, manifest.RoleSnapshot)
	if err != nil {
		return nil, err
	}
	if err := checkTarget(opts.TargetVersion, opts.TargetFrom, m.Etcd.StorageVersion, m.Etcd.ClusterVersion, m.Etcd.Version); err != nil {
		return nil, err
	}
	quota := quotaFor(opts.Quota, m)
	if err := overQuota(least(route), quota, "would be at least"); err != nil {
		return nil, err
	}
	if err := canUnsealAll(ctx, repo, route, object, opts.Identities); err != nil {
		return nil, err
	}
	if err := opts.name(); err != nil {
		return nil, err
	}
	p := &EtcdPlan{
		Plan:   &Plan{chain: string(opts.Chain), now: opts.Now},
		Choice: ChoiceOf(route), Without: opts.Without, Backup: m, route: route, quota: quota, Store: repo.Name(), RestoreID: opts.RestoreID, Token: opts.Token,
	}
	safe := defaultBump(placeOf(route), tipOf(route, head), opts.Now())
	p.Bump = safe
	if opts.Bump != nil {
		p.Bump = *opts.Bump
	}
	target := datadir.Options{
		DataDir: opts.DataDir, Name: opts.Name, PeerURLs: opts.PeerURLs, InitialCluster: opts.InitialCluster,
		Token: p.Token, Bump: p.Bump, ID: p.RestoreID, AsideDir: opts.AsideDir, Owner: opts.Owner, Live: opts.Live,
		Size: object.PlainSize, Extra: roomFor(route), Progress: func(done int64) { p.progress("fetch")(done) },
	}
	if err := refused(datadir.Preflight(target)); err != nil {
		return nil, err
	}
	if err := p.fill(ctx, repo, opts, target, object); err != nil {
		return nil, err
	}
	if p.Bump > 0 && p.Bump < safe {
		p.warn("the revision bump %d is below %d, which is safe for the point's age: clients that have seen newer revisions may take the past for the present", p.Bump, safe)
	}
	p.advise(opts, head)
	return p, nil
}

// name makes what is random and was not given.
func (o *EtcdOptions) name() error {
	if o.RestoreID == "" {
		id, err := manifest.NewID(o.Rand)
		if err != nil {
			return fmt.Errorf("make an id for the restore: %w", err)
		}
		o.RestoreID = string(id)
	}
	if o.Token == "" {
		token, err := manifest.NewID(o.Rand)
		if err != nil {
			return fmt.Errorf("make a cluster token: %w", err)
		}
		o.Token = "lifeboat-" + string(token)
	}
	return nil
}

// refused makes the data directory's objections ErrRefused.
func refused(err error) error {
	if errors.Is(err, datadir.ErrInUse) || errors.Is(err, datadir.ErrNoSpace) {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return verification(err)
}

// fill writes the plan's steps. The staging is what they hand on.
func (p *EtcdPlan) fill(ctx context.Context, repo *repository.Repository, opts EtcdOptions, target datadir.Options, object manifest.Object) error {
	m := p.Backup
	last, err := p.lastSteps(target)
	if err != nil {
		return err
	}
	p.Summary = fmt.Sprintf("Restore backup %s of %s (revision %d of %s, %s) into %s as member %s.",
		m.ID, m.Chain, m.Etcd.Revision, m.Created.Format(time.RFC3339), size(m.Etcd.DBBytes), target.DataDir, target.Name)
	if n := len(p.route.Segments); n > 0 {
		p.Summary = fmt.Sprintf("Restore %s to %s (backup %s and the changes of %s) into %s as member %s.",
			m.Chain, p.Choice, m.ID, count(int64(n), "segment"), target.DataDir, target.Name)
	}
	p.Summary += fmt.Sprintf("\nThis is %s: %s.", p.Choice, p.Choice.Behind())

	var facts *snapdb.Facts // by the check
	p.abort = p.Discard
	p.Steps = []Step{
		{
			Stage: "fetch", Title: "Fetch, unseal and write the database to a staging folder", Total: object.PlainSize,
			Detail: fmt.Sprintf("%s, %s stored, from %s.\nThe hash of the stored bytes is checked against the signed manifest on the way.", object.Name, size(object.Size), repo.Name()),
			Run: func(ctx context.Context) error {
				staging, err := datadir.Begin(ctx, target)
				if err != nil {
					return refused(err)
				}
				p.staging = staging
				for _, said := range staging.Recovered {
					p.listen.Emit(events.Warning{Chain: p.chain, Subject: target.DataDir, Message: said})
				}
				r, err := unseal(ctx, repo, object, opts.Identities)
				if err != nil {
					return err
				}
				defer r.Close()
				return verification(staging.Receive(ctx, r))
			},
		},
		{
			Stage: "check", Title: "Check the database", Total: m.Etcd.DBBytes,
			Detail: "Every page, the exact revision, etcd's own hash at the end, and HashKV against the manifest." + unprovedText(m),
			Run: func(ctx context.Context) (err error) {
				if facts, err = checkDatabase(ctx, p.staging.DBPath(), m, p.progress("check")); err != nil {
					if terr := p.staging.Verified(); terr != nil {
						return verification(errors.Join(terr, err)) // explains whatever else was found
					}
					return err
				}
				if err := verification(p.staging.Verified()); err != nil {
					return err
				}
				// What the file says of itself beats the manifest's word.
				if err := checkTarget(opts.TargetVersion, opts.TargetFrom, facts.StorageVersion, facts.ClusterVersion, ""); err != nil {
					return err
				}
				return overQuota(facts.DBBytes, p.quota, "is")
			},
		},
		p.applyStep(repo, opts, &facts),
	}
	p.Steps = append(p.Steps, last...)
	if len(p.route.Segments) == 0 {
		p.Steps = slices.DeleteFunc(p.Steps, func(s Step) bool { return s.Stage == "apply" })
	}
	return nil
}

// lastSteps make the staged database a new cluster's and put it in place, wherever
// it came from.
func (p *EtcdPlan) lastSteps(target datadir.Options) ([]Step, error) {
	aside, err := datadir.Aside(target.DataDir, target.AsideDir, target.ID)
	if err != nil {
		return nil, err
	}
	cluster, err := datadir.Members(target.Name, target.PeerURLs, target.InitialCluster, target.Token)
	if err != nil {
		return nil, err
	}
	p.members, p.ClusterID, p.MemberID = len(cluster.Members()), manifest.EtcdID(cluster.ID()), manifest.EtcdID(cluster.MemberByName(target.Name).ID)
	var members []string
	for _, member := range cluster.Members() {
		members = append(members, fmt.Sprintf("%s=%s", member.Name, strings.Join(member.PeerURLs, ",")))
	}
	slices.Sort(members) // the library's order is by random ids
	revision := "The revision stays as it is, and nothing is marked compacted."
	if p.Bump > 0 {
		revision = fmt.Sprintf("Revision bump %d, to %d; all before it is marked compacted.", p.Bump, uint64(p.Choice.Revision)+p.Bump)
	}
	if s := p.Survivor; s != nil && p.Bump > 0 && s.Through > s.Found.Log.Applied {
		revision = fmt.Sprintf("Revision bump %d, beyond what the log will give; all before it is marked compacted.", p.Bump)
	}
	install := fmt.Sprintf("%s/member does not exist yet.", target.DataDir)
	if aside != "" {
		install = fmt.Sprintf("%s/member is moved to %s, where it stays.\nNothing is deleted; to go back, move it back.", target.DataDir, aside)
	}
	return []Step{
		{
			Stage: "edit", Title: "Make it the database of a new cluster",
			Detail: fmt.Sprintf("Members: %s.\nCluster token %s, cluster id %s.\n%s", strings.Join(members, "  "), p.Token, cluster.ID(), revision),
			Run:    func(ctx context.Context) error { return verification(p.staging.Finish(ctx)) },
		},
		{
			Stage: "install", Title: "Put the new member in place", Detail: install,
			Run: p.Install,
		},
	}, nil
}

// applyStep is the step that applies the route's segments to what the steps
// before have made.
func (p *EtcdPlan) applyStep(repo *repository.Repository, opts EtcdOptions, facts **snapdb.Facts) Step {
	total := stepBytes(p.route)
	return Step{
		Stage: "apply", Title: fmt.Sprintf("Apply the changes of revisions %d to %d", p.Backup.Etcd.Revision+1, p.Choice.Revision), Total: total,
		Detail: fmt.Sprintf("%s, %s stored, from %s. Revisions, versions and leases become exactly what they were.\n%s", count(int64(len(p.route.Segments)), "segment"), size(storedBytes(p.route)), p.Store, proofText(p.route)),
		Run: func(ctx context.Context) (err error) {
			if p.Applied, err = apply(ctx, repo, p.route, opts.Identities, p.staging.DBPath(), p.staging.Scratch(), *facts, p.progress("apply")); err != nil {
				return err
			}
			return overQuota(p.Applied.Bytes, p.quota, "has become")
		},
	}
}

// Stage takes all steps but the last: it makes the new member in a staging folder
// and checks it, and changes nothing of the one in place. It emits what Execute
// does, and its errors are Execute's; after one, nothing is staged. The staged
// member keeps other restores off the data directory until Install or Discard.
func (p *EtcdPlan) Stage(ctx context.Context, listen events.Listener) (err error) {
	p.listen = listen
	if err = p.run(ctx, p.Steps[:len(p.Steps)-1]); err == nil {
		return nil
	}
	if derr := p.Discard(); derr != nil {
		err = errors.Join(err, fmt.Errorf("clean up: %w", derr))
	}
	return err
}

// DBPath is the path of the staged database, which after Stage is finished: what
// etcd will start from. It is empty if nothing is staged.
func (p *EtcdPlan) DBPath() string {
	if p.staging == nil {
		return ""
	}
	return p.staging.DBPath()
}

// Install puts the staged member in place and fills Result. It emits nothing.
// ErrRefused with datadir.ErrInUse if an etcd runs on the data directory; the
// member stays staged then, and Install may be called again.
func (p *EtcdPlan) Install(ctx context.Context) (err error) {
	if p.staging == nil {
		return errors.New("install a member: none is staged")
	}
	if p.Result, err = p.staging.Install(ctx); err != nil {
		return refused(err)
	}
	p.staging = nil
	return nil
}

// Discard removes what is staged and gives the data directory free. It may be
// called at any time and again, and does nothing after Install.
func (p *EtcdPlan) Discard() error {
	err := p.closeSource()
	if p.staging == nil {
		return err
	}
	err = errors.Join(err, p.staging.Abort())
	p.staging = nil
	return err
}

// proofText says what the result will be compared with.
func proofText(route *repository.Route) string {
	if n := len(route.Hashes); n > 0 {
		h := route.Hashes[n-1]
		return fmt.Sprintf("HashKV must be what %s gave at revision %d.", memberCount(len(h.Members)), h.Revision)
	}
	if route.Base.Manifest.Etcd.HashKV == 0 {
		return "No HashKV was recorded on the way, and the full has none: none that etcd gave can be compared."
	}
	return "No HashKV was recorded on the way; the full's own must still be right afterwards."
}

func unprovedText(m *manifest.Manifest) string {
	if m.Etcd.HashKV == 0 {
		return "\nThis backup was streamed without scratch space: there is no HashKV to compare with."
	}
	return ""
}

// advise says what the plan can't do or what looks wrong.
func (p *EtcdPlan) advise(opts EtcdOptions, head *manifest.Manifest) {
	m := p.Backup
	for _, why := range m.Degraded {
		p.warn("the backup is degraded: %s", why)
	}
	for _, why := range m.Unproved {
		p.warn("the backup was not proved against the live cluster: %s", why)
	}
	for _, alarm := range m.Etcd.Alarms {
		p.warn("the database holds an alarm, %s: compact, defragment and disarm it after the start", alarm)
	}
	for _, problem := range p.route.Problems {
		p.warn("%s; there is a way around it", problem)
	}
	if p.Choice.After.Revisions > 0 {
		p.warn("this is not the latest: %s", p.Choice.Behind())
	}
	if head != nil {
		if head.ID != m.ID && len(p.route.Segments) == 0 {
			p.warn("this is not the newest backup: %s of %s is", head.ID, head.Created.Format(time.RFC3339))
		}
		if late := head.NextExpectedBy; late != nil && opts.Now().After(*late) {
			p.warn("the newest backup is of %s and the next was expected by %s: newer ones are missing or were never made", head.Created.Format(time.RFC3339), late.Format(time.RFC3339))
		}
	}
	if p.Bump == 0 {
		p.warn("without a revision bump, clients that have seen newer revisions (every controller's watch) take the past for the present: restart them all")
	}
	for _, member := range m.Etcd.Members {
		if member.Learner {
			p.note("%s was a learner and is not restored as one: add it to the running cluster", member.Name)
		}
	}
	if p.members > 1 {
		p.note("The other members need the same point, members, token and bump, before any of them is started:\n%s --initial-cluster %s --token %s --bump %d", p.Choice.Flags(), opts.InitialCluster, p.Token, p.Bump)
	} else if voters(m) > 1 {
		p.note("The backed-up cluster had %d members, this one begins with one: add the others to it as new members, with empty data directories.", voters(m))
	}
	p.note("Start it with %s; --initial-cluster and its like no longer matter then.", startWith(opts.TargetVersion, m))
	p.note("A write-ahead log in a folder of its own (--wal-dir) is not looked at: point etcd to %s/member/wal, or move that.", opts.DataDir)
	p.note("Take a full backup at once: this begins a new history.")
}

// size writes bytes for people, in the binary units of all tables.
func size(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/unit, 0
	for ; f >= unit && i < 4; i++ {
		f /= unit
	}
	return fmt.Sprintf("%.1f %ciB", f, "KMGTP"[i])
}
