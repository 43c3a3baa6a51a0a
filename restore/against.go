package restore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/snapdb"
	"lifeboat/restore/salvage"
)

// Freshness is how a surviving data directory compares with the newest backup.
type Freshness string

// The comparisons, of the directory.
const (
	Ahead     Freshness = "fresher"   // it holds changes that the backup lacks
	Level     Freshness = "equal"     // it ends where the backup does
	Behind    Freshness = "older"     //
	Undecided Freshness = "undecided" // the backup ends among the changes of its log
)

// History says whether a data directory and a backup tell of the same past.
type History string

// The answers.
const (
	HistorySame    History = "same"
	HistoryOther   History = "different"
	HistoryUnknown History = "unknown"
)

// Against is the newest state that is backed up, beside a data directory.
type Against struct {
	Backup    manifest.ID       // the full that it begins with
	Epoch     uint64            //
	Revision  manifest.Revision //
	At        time.Time         // as of when
	Freshness Freshness         //
	Least     int64             // revisions that the one has and the other lacks,
	Most      int64             // and at most, with the log's changes

	History    History
	HistoryHow string
}

// String says which is fresher, and by how much.
func (a *Against) String() string {
	text := fmt.Sprintf("The newest backup is at revision %d, as of %s: ", a.Revision, zulu(a.At))
	by := fmt.Sprintf("%d", a.Least)
	switch {
	case a.Least == 0:
		by = fmt.Sprintf("up to %d", a.Most)
	case a.Most != a.Least:
		by += fmt.Sprintf(" to %d", a.Most)
	}
	by += " revisions"
	if a.Least == 1 && a.Most == 1 {
		by = "1 revision"
	}
	switch a.Freshness {
	case Ahead:
		text += "the directory is fresher by " + by
	case Behind:
		text += "the backup is fresher by " + by
	case Level:
		text += "the directory ends there too"
	default:
		text += "it lies among the changes of the directory's log, so which is fresher shows when that is applied"
	}
	return text + ".\n" + a.HistoryHow + "."
}

// compareLimit bounds how long the comparison waits for a store's chain.
const compareLimit = time.Minute

// compareSurvivor fills Survivor.Against. tip becomes the furthest that clients are
// known to have seen. A store that can't be read is no error: a directory must do without.
func (p *EtcdPlan) compareSurvivor(ctx context.Context, repo *repository.Repository, opts EtcdOptions, source *salvage.Source, tip *place) error {
	s := p.Survivor
	limited, cancel := context.WithTimeoutCause(ctx, compareLimit, fmt.Errorf("%s did not answer within %s", repo.Name(), compareLimit))
	defer cancel()
	route, head, err := resolve(limited, repo, opts.Chain, repository.Point{}, nil)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		s.Uncompared = err.Error()
		return nil
	}
	m := route.Base.Manifest
	p.Backup = m
	if mine, theirs := s.Found.ClusterID(), m.Etcd.ClusterID; mine != 0 && theirs != 0 && mine != theirs {
		return fmt.Errorf("%w: the data directory %s is of etcd cluster %s, and the backups of %s are of %s. Is it another cluster's? One that was restored has another id than before: then this is an older history. If you want it all the same, give --without-backups", ErrRefused, s.Found.Dir, mine, opts.Chain, theirs)
	}
	a := &Against{Backup: m.ID, Epoch: route.Epoch, Revision: route.Revision, At: route.At}
	s.Against = a
	least, most := s.Revision()
	a.weigh(least, most)
	seen := tipOf(route, head)
	if seen.revision > tip.revision {
		tip.revision = seen.revision
	}
	if seen.at.After(tip.at) {
		tip.at = seen.at
	}
	tip.rate = seen.rate
	if a.History, a.HistoryHow, err = history(ctx, repo, opts, source, s.Found, route); err != nil {
		return err
	}
	if a.History == HistoryUnknown && s.Found.ClusterID() == m.Etcd.ClusterID && m.Etcd.ClusterID != 0 {
		a.HistoryHow = fmt.Sprintf("Both are of cluster %s. %s", m.Etcd.ClusterID, a.HistoryHow)
	}
	return nil
}

func (a *Against) weigh(least, most int64) {
	at := int64(a.Revision)
	switch {
	case at < least, at == least && most > at:
		a.Freshness, a.Least, a.Most = Ahead, least-at, most-at
	case at > most:
		a.Freshness, a.Least, a.Most = Behind, at-most, at-least
	case least == most:
		a.Freshness = Level
	default:
		a.Freshness, a.Most = Undecided, max(most-at, at-least)
	}
}

// history holds the directory's database to what was recorded of revisions that it
// has: etcd's hashes, and the changes themselves where an identity opens them.
func history(ctx context.Context, repo *repository.Repository, opts EtcdOptions, source *salvage.Source, found *salvage.Found, route *repository.Route) (History, string, error) {
	db, why := found.Database, "Whether they tell the same past could not be seen: no hash was recorded of a revision that the directory still has whole"
	base := route.Base.Manifest.Etcd
	hashes := append([]manifest.HashKV{{Revision: base.Revision, CompactRevision: base.CompactRevision, HashKV: base.HashKV}}, route.Hashes...)
	for i := len(hashes) - 1; i >= 0; i-- {
		h := hashes[i]
		if h.HashKV == 0 || int64(h.Revision) > db.Revision || max(int64(h.CompactRevision), 0) < max(db.CompactRevision, 0) {
			continue
		}
		got, same, err := snapdb.CheckHashKV(ctx, source.Database(), int64(h.Revision), int64(h.CompactRevision), h.HashKV)
		switch {
		case errors.Is(err, snapdb.ErrCompacted), errors.Is(err, snapdb.ErrFuture):
			continue
		case err != nil:
			return "", "", verification(err)
		case same:
			return HistorySame, fmt.Sprintf("They tell the same past: HashKV at revision %d is the one that was backed up", h.Revision), nil
		}
		return HistoryOther, fmt.Sprintf("They do NOT tell the same past, or one is corrupt: HashKV at revision %d, compacted at %d, is %08x, and %08x was backed up", h.Revision, h.CompactRevision, got, h.HashKV), nil
	}
	for i := len(route.Segments) - 1; i >= 0; i-- {
		span := route.Segments[i].Span
		if int64(span.First) > db.Revision || span.Last < span.First {
			continue
		}
		if int64(span.Last) <= db.CompactRevision {
			break
		}
		if len(opts.Identities) == 0 {
			return HistoryUnknown, why + ", and without an identity the recorded changes can't be read", nil
		}
		c, err := compareSegment(ctx, repo, opts, source, found, route.Segments[i])
		switch {
		case ctx.Err() != nil:
			return "", "", context.Cause(ctx)
		case err != nil:
			return HistoryUnknown, fmt.Sprintf("%s, and the recorded changes can't be read: %v", why, err), nil
		case c.Differs != 0:
			return HistoryOther, fmt.Sprintf("They do NOT tell the same past: revision %d is another one in the backup", c.Differs), nil
		case c.Events > 0:
			return HistorySame, fmt.Sprintf("They tell the same past: %s up to revision %d are the same", count(c.Events, "change"), c.Last), nil
		}
		break
	}
	return HistoryUnknown, why, nil
}

func compareSegment(ctx context.Context, repo *repository.Repository, opts EtcdOptions, source *salvage.Source, found *salvage.Found, s repository.Segment) (*salvage.Compared, error) {
	r, err := openSegment(ctx, repo, s, opts.Identities)
	if err != nil {
		return nil, err
	}
	c, err := source.Compare(ctx, found, r)
	return c, errors.Join(err, r.Close())
}
