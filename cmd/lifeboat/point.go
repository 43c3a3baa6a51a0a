package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/when"
	"lifeboat/restore"
)

// pointFlags are how every verb aims at a point.
type pointFlags struct {
	backup   string
	revision int64
	at       string
	time     time.Time // what at means
	epoch    uint64
	etcd     string
}

// add adds the flags of a verb that aims at a node's files.
func (f *pointFlags) add(a *app, cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.backup, "backup", "", "a backup's id, or its beginning; default is the latest")
	cmd.Flags().StringVar(&f.at, "at", "", "the newest backup at or before this time, such as \"yesterday 14:00\" or RFC 3339")
	cmd.MarkFlagsMutuallyExclusive("backup", "at")
	_ = cmd.RegisterFlagCompletionFunc("backup", a.completeIDs)
	check(cmd, func() (err error) {
		// An empty variable in a script must not become "the latest".
		for _, flag := range []string{"backup", "at"} {
			if cmd.Flags().Changed(flag) && cmd.Flags().Lookup(flag).Value.String() == "" {
				return fmt.Errorf("%w: --%s is given, and empty; leave it out for the latest", errUsage, flag)
			}
		}
		if f.at == "" {
			return nil
		}
		if f.time, err = when.Parse(f.at, a.now(), time.Local); err != nil {
			return fmt.Errorf("%w: --at: %w", errUsage, err)
		}
		f.time = f.time.Truncate(time.Millisecond) // as manifests have times
		return nil
	})
}

// addEtcd adds the flags of a verb that aims at a state of etcd.
func (f *pointFlags) addEtcd(a *app, cmd *cobra.Command) {
	f.add(a, cmd)
	cmd.Flags().Lookup("backup").Usage = "exactly this full backup, by its id or the id's beginning; default is the latest recorded state"
	cmd.Flags().Lookup("at").Usage = "the state at this time: \"10 minutes ago\", \"yesterday 14:00\", \"14:05\", \"2026-11-21 14:05:03\" local, or RFC 3339"
	cmd.Flags().Int64Var(&f.revision, "revision", 0, "the state at exactly this etcd revision")
	cmd.Flags().Uint64Var(&f.epoch, "epoch", 0, "with --at or --revision: in this epoch of etcd's history (default: the newest that has it)")
	cmd.MarkFlagsMutuallyExclusive("backup", "revision", "at")
	cmd.MarkFlagsMutuallyExclusive("backup", "epoch")
	f.addCluster(cmd)
	check(cmd, func() error {
		if cmd.Flags().Changed("revision") && f.revision < 1 {
			return fmt.Errorf("%w: --revision %d: etcd's revisions begin with 1; leave it out for the latest", errUsage, f.revision)
		}
		if f.epoch > 0 && f.revision == 0 && f.at == "" {
			return fmt.Errorf("%w: --epoch says in which history --at or --revision is meant; give one of them", errUsage)
		}
		return nil
	})
}

func (f *pointFlags) addCluster(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.etcd, "etcd", "main", "which etcd cluster: chain etcd/NAME")
}

// given reports whether a point was named.
func (f *pointFlags) given() bool { return f.backup != "" || f.at != "" || f.revision != 0 }

// chain is the chain of etcd that is meant.
func (f *pointFlags) chain() manifest.Chain { return manifest.Chain("etcd/" + f.etcd) }

// point resolves the flags; an id's beginning is enough, and an id leads to
// its own chain.
func (f *pointFlags) point(ctx context.Context, repo *repository.Repository, chain manifest.Chain) (repository.Point, manifest.Chain, error) {
	switch {
	case f.backup != "":
		b, err := repo.Find(ctx, f.backup)
		if err != nil {
			return repository.Point{}, "", err
		}
		return repository.Point{Backup: b.ID}, b.Chain, nil
	case f.at != "":
		return repository.Point{Time: f.time, Epoch: f.epoch}, chain, nil
	}
	return repository.Point{Revision: manifest.Revision(f.revision), Epoch: f.epoch}, chain, nil
}

// pointJSON is which state of etcd was chosen, and what lies after it.
type pointJSON struct {
	Chain    manifest.Chain    `json:"chain"`
	Epoch    uint64            `json:"epoch"`
	Revision manifest.Revision `json:"revision"`
	At       time.Time         `json:"at"`       // as of when the revision held all that etcd had acknowledged
	Backup   manifest.ID       `json:"backup"`   // the full to begin with
	Segments int               `json:"segments"` // to apply to it
	After    afterJSON         `json:"after"`
}

// afterJSON is what lies behind a state and is left out.
type afterJSON struct {
	Revisions int64             `json:"revisions"`
	Revision  manifest.Revision `json:"revision"` // the last one
	Until     time.Time         `json:"until"`
	Epoch     uint64            `json:"epoch"` // the newest
}

func describePoint(c restore.Choice) pointJSON {
	return pointJSON{
		Chain: c.Chain, Epoch: c.Epoch, Revision: c.Revision, At: c.At.UTC(), Backup: c.Base, Segments: c.Segments,
		After: afterJSON{c.After.Revisions, c.After.Revision, c.After.Until.UTC(), c.After.Epoch},
	}
}

// around calls do until no segment is found lost or damaged that there is a way
// around: without holds those found so far.
func (a *app) around(without []manifest.ID, do func(without []manifest.ID) error) error {
	for {
		err := do(without)
		lost := lostSegment(err, without)
		if lost == nil {
			return err
		}
		a.warn("%v; looking for a way around it", err)
		without = append(without, lost.ID)
	}
}

// lostSegment is the segment because of whose stored bytes something failed; nil
// if none is, or if it should not even have been read.
func lostSegment(err error, without []manifest.ID) *restore.SegmentError {
	var lost *restore.SegmentError
	if !errors.As(err, &lost) || !isDamage(err) {
		return nil
	}
	for _, id := range without {
		if id == lost.ID {
			return nil
		}
	}
	return lost
}
