package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/internal/oci"
	"lifeboat/internal/repository"
	"lifeboat/restore"
	"lifeboat/restore/images"
)

// verifyDeep unseals one backup after the other, and goes on past bad ones. With
// a route it makes that state alone; else of each full the furthest that the
// segments behind it lead to, before the next.
func (a *app) verifyDeep(ctx context.Context, repo *repository.Repository, prover *manifest.Writer, ids []string, route *repository.Route, options restore.DeepOptions, result *verifyJSON) error {
	backups, _, err := repo.Backups(ctx)
	if err != nil {
		return err
	}
	var errs []error
	checked := map[oci.Digest]int64{} // blobs that several images share
	for _, b := range backups {
		if len(ids) > 0 && !begins(string(b.ID), ids) {
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		d := deepJSON{ID: b.ID, Chain: b.Chain, Warnings: []string{}}
		if b.Images != nil {
			if _, _, err := images.Check(ctx, images.Options{Repository: repo, Backup: b.Manifest, Identities: options.Identities}, checked); err != nil {
				d.Error = err.Error()
				errs = append(errs, err)
			}
			d.OK = d.Error == ""
			result.Deep = append(result.Deep, d)
			continue
		}
		options.Route = route
		if route == nil {
			options.Route, err = restore.RouteBeyond(ctx, repo, b.Manifest, nextFull(backups, b)-1)
			if err != nil { // the full itself may be good
				errs = append(errs, err)
				d.Warnings = append(d.Warnings, err.Error())
			}
		}
		whole := err == nil
		report, err := restore.DeepVerify(ctx, repo, b.Manifest, options)
		if d.OK = err == nil && whole; err != nil {
			d.Error = err.Error()
			errs = append(errs, err)
		} else {
			d.Warnings = append(d.Warnings, report.Warnings...)
			d.reached(report, options.Route)
			if report.Proof != nil && prover != nil && !b.Proved {
				d.Proved, err = true, a.commitProof(ctx, repo, *prover, b, report.Proof)
				errs = append(errs, err)
			}
		}
		if !d.OK && d.Error == "" {
			d.Error = "the segments behind it can't be read"
		}
		result.Deep = append(result.Deep, d)
	}
	return errors.Join(errs...)
}

// reached tells which state was made.
func (d *deepJSON) reached(report *restore.DeepReport, route *repository.Route) {
	if route == nil {
		return
	}
	choice := restore.ChoiceOf(route)
	point := describePoint(choice)
	d.Point, d.Applied = &point, describeApplied(report.Applied)
	d.beyond = fmt.Sprintf("; made %s", choice)
	if report.Applied != nil {
		d.beyond += ": " + report.Applied.String()
	}
}

// nextFull is the revision of the full that follows one in its history; 0: none
// does.
func nextFull(backups []repository.Backup, b repository.Backup) (next manifest.Revision) {
	for _, other := range backups {
		if b.Etcd == nil || other.Etcd == nil || other.Chain != b.Chain || other.Epoch != b.Epoch || other.Etcd.Revision <= b.Etcd.Revision {
			continue
		}
		if next == 0 || other.Etcd.Revision < next {
			next = other.Etcd.Revision
		}
	}
	return next
}

// commitProof appends to the chain that a backup was proved after its commit.
func (a *app) commitProof(ctx context.Context, repo *repository.Repository, prover manifest.Writer, b repository.Backup, proof *manifest.Proof) error {
	id, err := manifest.NewID(a.rand)
	if err != nil {
		return err
	}
	_, err = repo.Commit(ctx, &manifest.Manifest{
		Chain: b.Chain, Kind: manifest.KindProof, ID: id, Writer: prover, Proof: proof,
		Created: a.now().UTC().Truncate(time.Millisecond),
	})
	if err != nil {
		return fmt.Errorf("commit the proof of %s: %w", b.ID, err)
	}
	return nil
}
