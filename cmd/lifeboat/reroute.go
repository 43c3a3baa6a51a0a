package main

import (
	"context"
	"fmt"

	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/session"
	"lifeboat/restore"
)

// rerouting does something with a state of etcd, and where stored bytes turn out
// to be damaged or gone, around them or with the same state from another store.
type rerouting struct {
	app   *app
	s     *session.Session
	doing string // what, for people: "restore"
	used  tried
	do    func(ctx context.Context, repo *repository.Repository, at aim) error
}

// aim is a point in a store, and which segments of that store are known to be lost.
type aim struct {
	chain   manifest.Chain
	point   repository.Point
	without []manifest.ID
}

// from does it with what the flags mean in the store that has the most.
func (r *rerouting) from(ctx context.Context, flags pointFlags) error {
	var meant *restore.Choice
	var store string
	err := r.app.read(ctx, r.s, flags.chain(), func(repo *repository.Repository) (err error) {
		var at aim
		if at.point, at.chain, err = flags.point(ctx, repo, flags.chain()); err != nil {
			return err
		}
		if err = r.around(ctx, repo, at); err != nil && isDamage(err) {
			store = repo.Name()
			meant, _ = restore.Choose(ctx, repo, at.chain, at.point) // nil: it is the chain that is damaged
		}
		return err
	})
	if err == nil || meant == nil {
		return err
	}
	return r.elsewhere(ctx, *meant, store, err)
}

// around does it without the segments whose data turn out to be lost, if there is
// a way.
func (r *rerouting) around(ctx context.Context, repo *repository.Repository, at aim) error {
	return r.app.around(at.without, func(without []manifest.ID) error {
		at.without = without
		return r.do(ctx, repo, at)
	})
}

// elsewhere does it with the same state from a store that was not tried yet, since
// this one can't give it.
func (r *rerouting) elsewhere(ctx context.Context, c restore.Choice, store string, damage error) error {
	r.used[store] = true
	what := "the same backup"
	if c.Segments > 0 {
		what = "the same revision"
	}
	reason := fmt.Errorf("%s %s from %s: %w", r.doing, subjectOf(c), store, damage)
	next, err := r.app.elsewhereIf(ctx, r.s, what, r.used, reason, func(ctx context.Context, repo *repository.Repository) error {
		other, err := restore.Choose(ctx, repo, c.Chain, c.Point())
		if err == nil && other.ClusterID != c.ClusterID {
			err = fmt.Errorf("epoch %d there is of another etcd", c.Epoch)
		}
		return err
	})
	if err != nil {
		return err
	}
	if err = r.around(ctx, next, aim{chain: c.Chain, point: c.Point()}); err != nil && isDamage(err) {
		return r.elsewhere(ctx, c, next.Name(), err)
	}
	return err
}

func subjectOf(c restore.Choice) string {
	if c.Segments == 0 {
		return "backup " + string(c.Base)
	}
	return fmt.Sprintf("revision %d", c.Revision)
}

// planning plans a restore of etcd into plan.
func (a *app) planning(s *session.Session, options restore.EtcdOptions, used tried, plan **restore.EtcdPlan) *rerouting {
	return &rerouting{a, s, "restore", used, func(ctx context.Context, repo *repository.Repository, at aim) (err error) {
		options.Chain, options.Point, options.Without = at.chain, at.point, at.without
		*plan, err = restore.PlanEtcd(ctx, repo, options)
		return err
	}}
}

// planEtcd plans the restore of what the flags mean.
func (a *app) planEtcd(ctx context.Context, s *session.Session, flags pointFlags, options restore.EtcdOptions, used tried) (plan *restore.EtcdPlan, err error) {
	err = a.planning(s, options, used, &plan).from(ctx, flags)
	return plan, err
}

// replanEtcd plans the restore of the same state once more after stored bytes
// were found damaged: around the segment concerned, else from another store.
func (a *app) replanEtcd(ctx context.Context, s *session.Session, failed *restore.EtcdPlan, options restore.EtcdOptions, used tried, damage error) (plan *restore.EtcdPlan, err error) {
	err = a.planning(s, options, used, &plan).again(ctx, failed, damage)
	return plan, err
}

// again does it once more for a plan whose stored bytes were found damaged.
func (r *rerouting) again(ctx context.Context, failed *restore.EtcdPlan, damage error) error {
	if lost := lostSegment(damage, failed.Without); lost != nil && ctx.Err() == nil {
		around := aim{failed.Choice.Chain, failed.Choice.Point(), append(failed.Without, lost.ID)}
		for _, o := range r.s.Stores {
			if o.URL != failed.Store || o.Err != nil {
				continue
			}
			if err := r.around(ctx, o.Repository, around); err == nil {
				r.app.warn("%v; going on around it", damage)
				return nil
			}
		}
	}
	return r.elsewhere(ctx, failed.Choice, failed.Store, damage)
}
