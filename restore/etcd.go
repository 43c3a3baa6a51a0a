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
	"lifeboat/restore/datadir"
)

// DefaultChain is the chain of a cluster's main etcd.
const DefaultChain manifest.Chain = "etcd/main"

// EtcdOptions says which backup goes into which data directory.
type EtcdOptions struct {
	Chain      manifest.Chain   // DefaultChain if empty
	Point      repository.Point // the newest if zero
	Identities []age.Identity   // one must fit; found out before anything changes

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

	AsideDir string // where the old member is kept; see datadir.Options
	Owner    *datadir.Owner

	Now  func() time.Time
	Rand io.Reader // makes the restore's id and the token
}

// EtcdPlan is a Plan for one etcd member.
type EtcdPlan struct {
	*Plan
	Backup    *manifest.Manifest // what will be restored
	Store     string             // where it comes from
	RestoreID string
	Token     string
	Bump      uint64

	// Result is filled by the last step.
	Result datadir.Result

	members int // of the new cluster
}

// PlanEtcd verifies the chain, finds the backup that the point means, and
// plans its restore into a data directory. It changes nothing. Errors wrap
// repository.ErrNothing, repository.ErrVerification, ErrRefused,
// seal.ErrNoIdentity or datadir.ErrInvalid.
func PlanEtcd(ctx context.Context, repo *repository.Repository, opts EtcdOptions) (*EtcdPlan, error) {
	if opts.Chain == "" {
		opts.Chain = DefaultChain
	}
	m, head, err := resolveFull(ctx, repo, opts.Chain, opts.Point)
	if err != nil {
		return nil, err
	}
	object, err := objectOf(m, manifest.RoleSnapshot)
	if err != nil {
		return nil, err
	}
	if err := checkTarget(opts.TargetVersion, m.Etcd.StorageVersion, m.Etcd.ClusterVersion, m.Etcd.Version); err != nil {
		return nil, err
	}
	if err := canUnseal(ctx, repo, object, opts.Identities); err != nil {
		return nil, err
	}
	id, err := manifest.NewID(opts.Rand)
	if err != nil {
		return nil, fmt.Errorf("make an id for the restore: %w", err)
	}
	if opts.Token == "" {
		token, err := manifest.NewID(opts.Rand)
		if err != nil {
			return nil, fmt.Errorf("make a cluster token: %w", err)
		}
		opts.Token = "lifeboat-" + string(token)
	}
	p := &EtcdPlan{
		Plan:   &Plan{chain: string(opts.Chain), now: opts.Now},
		Backup: m, Store: repo.Name(), RestoreID: string(id), Token: opts.Token,
	}
	if opts.Bump != nil {
		p.Bump = *opts.Bump
	} else {
		p.Bump = defaultBump(m, head, opts.Now())
	}
	target := datadir.Options{
		DataDir: opts.DataDir, Name: opts.Name, PeerURLs: opts.PeerURLs, InitialCluster: opts.InitialCluster,
		Token: p.Token, Bump: p.Bump, ID: p.RestoreID, AsideDir: opts.AsideDir, Owner: opts.Owner,
		Size: object.PlainSize, Progress: func(done int64) { p.progress("fetch")(done) },
	}
	if err := refused(datadir.Preflight(target)); err != nil {
		return nil, err
	}
	if err := p.fill(ctx, repo, opts, target, object); err != nil {
		return nil, err
	}
	if safe := defaultBump(m, head, opts.Now()); p.Bump > 0 && p.Bump < safe {
		p.warn("the revision bump %d is below %d, which is safe for the backup's age: clients that have seen newer revisions may take the past for the present", p.Bump, safe)
	}
	p.advise(opts, head)
	return p, nil
}

// resolveFull finds the full that a point means and the chain's latest one.
func resolveFull(ctx context.Context, repo *repository.Repository, chain manifest.Chain, point repository.Point) (m, head *manifest.Manifest, err error) {
	if m, err = repo.Resolve(ctx, chain, point); err != nil {
		return nil, nil, err
	}
	if m.Kind != manifest.KindFull || m.Etcd == nil {
		return nil, nil, fmt.Errorf("backup %s of %s is not one of etcd: %w", m.ID, m.Chain, repository.ErrNothing)
	}
	view, err := repo.Load(ctx, chain)
	if err != nil {
		return nil, nil, err
	}
	if latest, _ := repository.Latest(view.Backups()); latest != nil {
		head = latest.Manifest
	}
	return m, head, nil
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
	aside, err := datadir.Aside(target.DataDir, target.AsideDir, target.ID)
	if err != nil {
		return err
	}
	cluster, err := datadir.Members(target.Name, target.PeerURLs, target.InitialCluster, target.Token)
	if err != nil {
		return err
	}
	p.members = len(cluster.Members())
	var members []string
	for _, member := range cluster.Members() {
		members = append(members, fmt.Sprintf("%s=%s", member.Name, strings.Join(member.PeerURLs, ",")))
	}
	slices.Sort(members) // the library's order is by random ids
	p.Summary = fmt.Sprintf("Restore backup %s of %s (revision %d of %s, %s) into %s as member %s.",
		m.ID, m.Chain, m.Etcd.Revision, m.Created.Format(time.RFC3339), size(m.Etcd.DBBytes), target.DataDir, target.Name)

	var staging *datadir.Staging
	p.abort = func() error {
		if staging == nil {
			return nil
		}
		return staging.Abort()
	}
	revision := "The revision stays as it is, and nothing is marked compacted."
	if p.Bump > 0 {
		revision = fmt.Sprintf("Revision bump %d, to %d; all before it is marked compacted.", p.Bump, uint64(m.Etcd.Revision)+p.Bump)
	}
	install := fmt.Sprintf("%s/member does not exist yet.", target.DataDir)
	if aside != "" {
		install = fmt.Sprintf("%s/member is moved to %s, where it stays.\nNothing is deleted; to go back, move it back.", target.DataDir, aside)
	}
	p.Steps = []Step{
		{
			Stage: "fetch", Title: "Fetch, unseal and write the database to a staging folder", Total: object.PlainSize,
			Detail: fmt.Sprintf("%s, %s stored, from %s.\nThe hash of the stored bytes is checked against the signed manifest on the way.", object.Name, size(object.Size), repo.Name()),
			Run: func(ctx context.Context) (err error) {
				if staging, err = datadir.Begin(ctx, target); err != nil {
					return refused(err)
				}
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
			Run: func(ctx context.Context) error {
				facts, err := checkDatabase(ctx, staging.DBPath(), m, p.progress("check"))
				if err != nil {
					if terr := staging.Verified(); terr != nil {
						return verification(errors.Join(terr, err)) // explains whatever else was found
					}
					return err
				}
				if err := verification(staging.Verified()); err != nil {
					return err
				}
				// What the file says of itself beats the manifest's word.
				return checkTarget(opts.TargetVersion, facts.StorageVersion, facts.ClusterVersion, "")
			},
		},
		{
			Stage: "edit", Title: "Make it the database of a new cluster",
			Detail: fmt.Sprintf("Members: %s.\nCluster token %s, cluster id %s.\n%s", strings.Join(members, "  "), p.Token, cluster.ID(), revision),
			Run:    func(ctx context.Context) error { return verification(staging.Finish(ctx)) },
		},
		{
			Stage: "install", Title: "Put the new member in place", Detail: install,
			Run: func(ctx context.Context) (err error) {
				p.Result, err = staging.Install(ctx)
				return refused(err)
			},
		},
	}
	return nil
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
	if head != nil {
		if head.ID != m.ID {
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
		p.note("The other members need the same backup, members, token and bump, before any of them is started:\n--backup %s --initial-cluster %s --token %s --bump %d", m.ID, opts.InitialCluster, p.Token, p.Bump)
	} else if voters(m) > 1 {
		p.note("The backed-up cluster had %d members, this one begins with one: add the others to it as new members, with empty data directories.", voters(m))
	}
	p.note("Start it with %s; --initial-cluster and its like no longer matter then.", startWith(opts.TargetVersion, m))
	p.note("A write-ahead log in a folder of its own (--wal-dir) is not looked at: point etcd to %s/member/wal, or move that.", opts.DataDir)
	p.note("Take a full backup at once: this begins a new history.")
}

// startWith says which etcd the data is for. Of an imported snapshot it is
// known only as far as the file tells.
func startWith(target string, m *manifest.Manifest) string {
	if target == "" {
		target = m.Etcd.Version
	}
	if target != "" {
		return "etcd " + target + " or newer of the same minor version"
	}
	if oldest, ok, err := oldestTarget(m.Etcd.StorageVersion, m.Etcd.ClusterVersion, ""); err == nil && ok {
		return fmt.Sprintf("an etcd %s, or the version that the snapshot was made by", oldest)
	}
	return "the etcd version that the snapshot was made by"
}

// voters counts the members of the backed-up cluster that were no learners.
func voters(m *manifest.Manifest) (n int) {
	for _, member := range m.Etcd.Members {
		if !member.Learner {
			n++
		}
	}
	return n
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
