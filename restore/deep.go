package restore

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"time"

	"filippo.io/age"

	"lifeboat/internal/durable"
	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/snapdb"
	"lifeboat/restore/datadir"
)

// DeepOptions says how to look inside a backup.
type DeepOptions struct {
	Identities []age.Identity
	Scratch    string // folder to unseal databases in; made 0700 if missing

	// Route, if set, leads from the backup to a later state: its segments are
	// applied and proved as well.
	Route *repository.Route

	Now    func() time.Time
	Events events.Listener
}

// DeepReport is what unsealing a backup has shown. All of it was checked: what
// is wrong comes as an error.
type DeepReport struct {
	Backup *manifest.Manifest

	// Of a backup of etcd.
	Facts *snapdb.Facts

	Applied *Applied // the route's segments; nil: there were none

	// Proof is set if the backup is unproved and this verification makes up
	// for it: commit it in a manifest of kind proof.
	Proof *manifest.Proof

	// Of a backup of files.
	Files    int
	Bytes    int64
	Pairs    int      // certificates that were compared with their keys
	Warnings []string // what fits the signed manifest and still looks wrong
}

// DeepVerify unseals a backup and checks all that a restore would check: of
// etcd the hash trailer, every page, the exact revision and HashKV; of files
// every entry of the archive, the counts in the manifest, and that
// certificates belong to their keys. It leaves nothing in scratch. An error
// that wraps repository.ErrVerification means that the backup is not good.
func DeepVerify(ctx context.Context, repo *repository.Repository, m *manifest.Manifest, opts DeepOptions) (*DeepReport, error) {
	report := &DeepReport{Backup: m}
	var err error
	switch m.Kind {
	case manifest.KindFull:
		err = report.database(ctx, repo, opts)
	case manifest.KindFiles:
		err = report.archive(ctx, repo, opts)
	default:
		return nil, fmt.Errorf("backup %s of %s is a %s: nothing to look into", m.ID, m.Chain, m.Kind)
	}
	if err != nil {
		return nil, fmt.Errorf("verify backup %s of %s: %w", m.ID, m.Chain, err)
	}
	return report, nil
}

func (d *DeepReport) database(ctx context.Context, repo *repository.Repository, opts DeepOptions) (err error) {
	m := d.Backup
	object, err := objectOf(m, manifest.RoleSnapshot)
	if err != nil {
		return err
	}
	scratch, err := durable.OpenScratch(opts.Scratch)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, scratch.Close()) }()
	free, err := durable.FreeSpace(scratch.Path())
	if err != nil {
		return err
	}
	need := object.PlainSize
	if opts.Route != nil {
		need += roomFor(opts.Route)
	}
	if free < need {
		return fmt.Errorf("%w: %s has %d bytes left, the database takes %d", ErrRefused, opts.Scratch, free, need)
	}
	path := filepath.Join(scratch.Path(), string(m.ID)+".db")
	plan := &Plan{chain: string(m.Chain), now: opts.Now}
	plan.Steps = []Step{
		{Stage: "fetch", Total: object.PlainSize, Run: func(ctx context.Context) error {
			r, err := unseal(ctx, repo, object, opts.Identities)
			if err != nil {
				return err
			}
			defer r.Close()
			_, _, err = datadir.Receive(ctx, path, r, object.PlainSize, plan.progress("fetch"))
			return verification(err)
		}},
		{Stage: "check", Total: m.Etcd.DBBytes, Run: func(ctx context.Context) (err error) {
			d.Facts, err = checkDatabase(ctx, path, m, plan.progress("check"))
			return err
		}},
	}
	if route := opts.Route; route != nil && len(route.Segments) > 0 {
		plan.Steps = append(plan.Steps, Step{Stage: "apply", Total: stepBytes(route), Run: func(ctx context.Context) (err error) {
			d.Applied, err = apply(ctx, repo, route, opts.Identities, path, scratch.Path(), d.Facts, plan.progress("apply"))
			return err
		}})
	}
	if err := plan.Execute(ctx, opts.Events); err != nil {
		return err
	}
	if len(m.Unproved) > 0 {
		d.Proof = &manifest.Proof{Of: m.ID, Revision: manifest.Revision(d.Facts.Revision), HashKV: d.Facts.HashKV, How: "deep verification"}
	}
	return nil
}

// RouteBeyond finds the segments that go on from a full: to a revision, or if
// that is below 1, as far as they reach; in both cases not beyond a gap. It is
// nil if none do, or if another full is nearer.
func RouteBeyond(ctx context.Context, repo *repository.Repository, m *manifest.Manifest, to manifest.Revision) (*repository.Route, error) {
	if m.Etcd == nil {
		return nil, nil
	}
	if to < 1 {
		to = math.MaxInt64
	}
	point := repository.Point{Revision: to, Epoch: m.Epoch}
	if point.Revision <= m.Etcd.Revision {
		return nil, nil
	}
	route, err := repo.Route(ctx, m.Chain, point)
	var not *repository.UnreachableError
	if errors.As(err, &not) {
		if not.Before == nil || not.Before.Epoch != m.Epoch || not.Before.Revision < m.Etcd.Revision {
			return nil, nil
		}
		route, err = repo.Route(ctx, m.Chain, repository.Point{Revision: not.Before.Revision, Epoch: m.Epoch})
	}
	if err != nil {
		return nil, fmt.Errorf("find the segments behind backup %s of %s: %w", m.ID, m.Chain, err)
	}
	if route.Base.ID != m.ID || len(route.Segments) == 0 {
		return nil, nil
	}
	return route, nil
}

func (d *DeepReport) archive(ctx context.Context, repo *repository.Repository, opts DeepOptions) error {
	m := d.Backup
	object, err := objectOf(m, manifest.RoleFiles)
	if err != nil {
		return err
	}
	plan := &Plan{chain: string(m.Chain), now: opts.Now}
	plan.Steps = []Step{{Stage: "check", Total: object.PlainSize, Run: func(ctx context.Context) error {
		r, err := unseal(ctx, repo, object, opts.Identities)
		if err != nil {
			return err
		}
		defer r.Close()
		return verification(d.readArchive(ctx, r))
	}}}
	return plan.Execute(ctx, opts.Events)
}
