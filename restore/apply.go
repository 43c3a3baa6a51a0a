package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"filippo.io/age"

	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/snapdb"
	"lifeboat/restore/materialize"
)

// SegmentError says whose data of a route is lost or damaged. Another route to
// the same state may do without it.
type SegmentError struct {
	ID  manifest.ID
	Err error
}

func (e *SegmentError) Error() string { return fmt.Sprintf("segment %s: %v", e.ID, e.Err) }

// Unwrap gives what was wrong.
func (e *SegmentError) Unwrap() error { return e.Err }

// Applied is what applying a route's segments has shown.
type Applied struct {
	Segments int
	Events   int64 // changes behind the base
	Skipped  int64 // of them and of the base's: superseded by a compaction at or below the point
	MadeUp   int   // leases whose time to live is made up, since nothing is known of them
	Bytes    int64 // of the database file
	Compact  int64 // its compact revision

	// ProvedAt is the newest recorded HashKV that the database agrees with; nil:
	// none was recorded behind the base, and only the base's was compared.
	ProvedAt *manifest.HashKV

	// BaseHash says that the base has a HashKV to compare. One that was streamed
	// without scratch has none.
	BaseHash bool
}

// String says it in a line.
func (a *Applied) String() string {
	text := fmt.Sprintf("%s of %s", count(a.Events, "change"), count(int64(a.Segments), "segment"))
	if a.ProvedAt != nil {
		return text + fmt.Sprintf("; HashKV at revision %d is the one that %s gave", a.ProvedAt.Revision, memberCount(len(a.ProvedAt.Members)))
	}
	if !a.BaseHash {
		return text + "; no HashKV was recorded among them or of the full: none that etcd gave could be compared"
	}
	return text + "; no HashKV was recorded among them, the full's was compared again"
}

func count(n int64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func memberCount(n int) string {
	if n == 1 {
		return "a member"
	}
	return fmt.Sprintf("%d members", n)
}

// apply brings the database of a route's base to the route's revision. facts
// are what was found in it. An error leaves a file that is of no use.
func apply(ctx context.Context, repo *repository.Repository, route *repository.Route, ids []age.Identity, path, scratch string, facts *snapdb.Facts, progress func(int64)) (*Applied, error) {
	m := route.Base.Manifest
	if facts.Revision > int64(route.Revision) { // a full that was streamed without scratch may be further than it knows
		return nil, fmt.Errorf("%w: the full %s turns out to hold revision %d, behind the revision %d that was asked for: aim at that or a later one",
			ErrRefused, m.ID, facts.Revision, route.Revision)
	}
	options := materialize.Options{
		To: int64(route.Revision), Segments: len(route.Segments), Hashes: route.Hashes, Scratch: scratch,
		Base: manifest.HashKV{Revision: m.Etcd.Revision, CompactRevision: m.Etcd.CompactRevision, HashKV: m.Etcd.HashKV},
		Open: func(ctx context.Context, i int) (io.ReadCloser, error) {
			return openSegment(ctx, repo, route.Segments[i], ids)
		},
	}
	if total := stepBytes(route); total > 0 {
		revisions := max(int64(route.Revision)-facts.Revision, 1)
		options.Progress = func(done int64) { progress(int64(float64(total) * min(float64(done)/float64(revisions), 1))) }
	}
	res, err := materialize.Append(ctx, path, options)
	if err != nil {
		return nil, verification(err)
	}
	return &Applied{
		Segments: len(route.Segments), Events: res.Events, Skipped: res.Skipped + res.Removed, MadeUp: res.MadeUp, Bytes: res.Bytes, Compact: res.CompactRevision, ProvedAt: res.ProvedAt, BaseHash: m.Etcd.HashKV != 0,
	}, nil
}

// openSegment opens the plain bytes of a segment. What is wrong with them says
// whose they are.
func openSegment(ctx context.Context, repo *repository.Repository, s repository.Segment, ids []age.Identity) (io.ReadCloser, error) {
	o, err := objectOf(s.Manifest, manifest.RoleEvents)
	if err != nil {
		return nil, &SegmentError{s.ID, err}
	}
	r, err := unseal(ctx, repo, o, ids)
	if err != nil {
		return nil, &SegmentError{s.ID, err}
	}
	return &namedReader{r, s.ID}, nil
}

type namedReader struct {
	io.ReadCloser
	id manifest.ID
}

func (n *namedReader) Read(p []byte) (int, error) {
	read, err := n.ReadCloser.Read(p)
	if err != nil && err != io.EOF && !errors.Is(err, context.Canceled) {
		err = &SegmentError{n.id, verification(err)}
	}
	return read, err
}

// stepBytes are the plain bytes of a route's segments.
func stepBytes(route *repository.Route) (n int64) {
	for _, s := range route.Segments {
		for _, o := range s.Objects {
			n += o.PlainSize
		}
	}
	return n
}

// storedBytes are the bytes of a route's segments as they lie in the store.
func storedBytes(route *repository.Route) (n int64) {
	for _, s := range route.Segments {
		for _, o := range s.Objects {
			n += o.Size
		}
	}
	return n
}

// changeBytes is what materializing keeps of one change for a while, on disk.
const changeBytes = 24

// roomFor is how much larger than its base a materialized database and what it
// takes to make it can become.
func roomFor(route *repository.Route) int64 {
	room := stepBytes(route) / 2 * 3 // pages are not full, and keys stand beside values
	for _, s := range route.Segments {
		room += s.Span.Events * changeBytes
	}
	return room
}

// canUnsealAll finds out whether the identities fit everything that a route
// needs: one object of each set of recipients is asked, by its header.
func canUnsealAll(ctx context.Context, repo *repository.Repository, route *repository.Route, base manifest.Object, ids []age.Identity) error {
	if err := canUnseal(ctx, repo, base, ids); err != nil {
		return err
	}
	known := []string{recipientsOf(route.Base.Manifest)}
	for _, s := range route.Segments {
		sealedFor := recipientsOf(s.Manifest)
		if slices.Contains(known, sealedFor) {
			continue
		}
		known = append(known, sealedFor)
		o, err := objectOf(s.Manifest, manifest.RoleEvents)
		if err == nil {
			err = canUnseal(ctx, repo, o, ids)
		}
		if err != nil {
			return &SegmentError{s.ID, err}
		}
	}
	return nil
}

func recipientsOf(m *manifest.Manifest) string {
	return strings.Join(slices.Sorted(slices.Values(m.Recipients)), " ")
}

// quotaFor is the quota to hold a database to: the one that was given, 0 being
// none; else the one that the full's cluster is assumed to have.
func quotaFor(given *int64, base *manifest.Manifest) int64 {
	if given != nil {
		return *given
	}
	return base.Etcd.AssumedQuota()
}

// overQuota refuses a database that would keep its member from taking any
// write.
func overQuota(bytes, quota int64, how string) error {
	if quota <= 0 || bytes <= quota {
		return nil
	}
	return fmt.Errorf("%w: the database %s %s, and etcd with a quota of %s takes no more writes then: raise --quota here and etcd's --quota-backend-bytes, or aim at an earlier point",
		ErrRefused, how, size(bytes), size(quota))
}

// least is the size that a route's database will surely have: what no
// compaction that is known has superseded is written, and a database file does
// not shrink.
func least(route *repository.Route) int64 {
	compact := route.Base.Etcd.CompactRevision
	for _, h := range route.Hashes {
		compact = max(compact, h.CompactRevision)
	}
	total, reached := route.Base.Etcd.DBBytes, max(compact, route.Base.Etcd.Revision)
	for _, s := range route.Segments {
		if s.Span.First <= reached || s.Span.Last > route.Revision || s.Span.Events == 0 {
			continue
		}
		reached = s.Span.Last
		for _, o := range s.Objects {
			total += o.PlainSize / 10 * 9 // the rest may be times and leases
		}
	}
	return total
}
