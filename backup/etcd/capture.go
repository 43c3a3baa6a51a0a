package etcd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/segment"
	"lifeboat/internal/snapdb"
)

// Capture is one database as it was taken from a member.
type Capture struct {
	Etcd     manifest.Etcd
	Size     int64    // bytes of the snapshot, trailer included
	Degraded []string // why this is less than a backup should be
	Unproved []string // why HashKV was not compared
}

// BadSourceError says that a member's snapshot should not be trusted while
// another member may have a good one.
type BadSourceError struct {
	Member manifest.EtcdID
	Why    string

	// Dissents says that the member's data is not what the others hold: it is
	// corrupt. A member that merely lags or can't be reached does not dissent.
	Dissents bool
}

func (e *BadSourceError) Error() string {
	return fmt.Sprintf("member %s is not a good source: %s", e.Member, e.Why)
}

// Source is a member to take a snapshot from, as Cluster.Sources lists them.
type Source struct {
	state MemberState
	// Tolerate takes the snapshot even when the proof speaks against the
	// member; it becomes a degraded one. Used when no better source is left,
	// since a backup is never skipped because the cluster is ill.
	Tolerate bool
}

// Member is the source's member id.
func (s Source) Member() manifest.EtcdID { return s.state.ID }

// DBSize is the size in bytes of the member's database file: what a scratch
// file of it will need.
func (s Source) DBSize() int64 { return s.state.DBSize }

// Sources lists the members that a snapshot may come from, best first.
func (s *Survey) Sources() []Source {
	var list []Source
	for _, state := range sources(s) {
		list = append(list, Source{state: state})
	}
	return list
}

// Capture streams the source's database into dst and proves it. path names the
// file that dst writes to; with an empty path there is no file to prove and
// the capture is unproved, its revision a lower bound.
//
// A *BadSourceError asks the caller to try another member. Failures of dst are
// returned as they are.
func (c *Cluster) Capture(ctx context.Context, survey *Survey, source Source, dst io.Writer, path string) (*Capture, error) {
	if survey.FloorErr == nil {
		if err := c.catchUp(ctx, source, survey.Floor); err != nil && !source.Tolerate {
			return nil, err
		}
	}
	stream, err := c.streamStage(ctx, source, dst)
	if err != nil {
		return nil, err
	}
	capture := &Capture{Size: stream.Size, Etcd: surveyFacts(survey, source)}
	if stream.ServerVersion != "" {
		capture.Etcd.StorageVersion = stream.ServerVersion
	}
	if survey.FloorErr != nil {
		capture.Degraded = append(capture.Degraded, "no linearizable read: "+manifest.Line(survey.FloorErr.Error()))
	}
	if path == "" {
		capture.Etcd.Revision = lowerBound(survey)
		capture.Etcd.DBBytes = stream.Size - trailerSize
		capture.Unproved = append(capture.Unproved, "no scratch space: the snapshot was streamed straight to the stores")
		return capture, nil
	}
	if err := c.proveStage(ctx, survey, source, path, capture); err != nil {
		return nil, err
	}
	return capture, nil
}

// lowerBound is what can be said of a snapshot's revision without its file.
// etcd's revisions begin at 1.
func lowerBound(survey *Survey) manifest.Revision { return max(1, survey.Floor) }

// trailerSize is the SHA-256 that ends every snapshot stream.
const trailerSize = 32

// catchUp waits until the source itself has applied the floor revision. A
// follower may lag behind the member that told the floor; a linearizable read
// through it returns when it does no more.
func (c *Cluster) catchUp(ctx context.Context, source Source, floor manifest.Revision) error {
	revision, err := c.readRevision(ctx, source.state.Endpoint)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return &BadSourceError{Member: source.state.ID, Why: manifest.Line(err.Error())}
	case revision < floor:
		return &BadSourceError{Member: source.state.ID, Why: fmt.Sprintf("it is at revision %d, the cluster was at %d before", revision, floor)}
	}
	return nil
}

func (c *Cluster) streamStage(ctx context.Context, source Source, dst io.Writer) (streamInfo, error) {
	chain, start := string(c.config.Chain()), time.Now()
	info, err := c.stream(ctx, source.state.Endpoint, dst,
		func(size int64) { c.events.Emit(events.StageStarted{Stage: "snapshot", Chain: chain, Total: size}) },
		func(done int64) { c.events.Emit(events.StageProgress{Stage: "snapshot", Chain: chain, Done: done}) })
	c.events.Emit(events.StageDone{Stage: "snapshot", Chain: chain, Duration: time.Since(start), Bytes: info.Size, Err: err})
	return info, err
}

func (c *Cluster) proveStage(ctx context.Context, survey *Survey, source Source, path string, capture *Capture) error {
	chain, start := string(c.config.Chain()), time.Now()
	c.events.Emit(events.StageStarted{Stage: "prove", Chain: chain, Total: capture.Size})
	err := c.prove(ctx, survey, source, path, capture)
	var bad *BadSourceError
	if errors.As(err, &bad) && source.Tolerate {
		capture.Degraded = append(capture.Degraded, bad.Error())
		err = nil
	}
	c.events.Emit(events.StageDone{Stage: "prove", Chain: chain, Duration: time.Since(start), Bytes: capture.Size, Err: err})
	return err
}

// surveyFacts are the facts that the survey knows without the file.
func surveyFacts(survey *Survey, source Source) manifest.Etcd {
	facts := manifest.Etcd{
		ClusterID:      survey.ClusterID,
		MemberID:       source.state.ID,
		Version:        source.state.Version,
		StorageVersion: source.state.StorageVer,
		RaftTerm:       source.state.RaftTerm,
		RaftIndex:      source.state.Applied,
	}
	for _, m := range survey.Members {
		facts.Members = append(facts.Members, m.Member)
	}
	return facts
}

// prove checks the file itself, then compares it with the members. The facts
// of the file land in the capture whatever the comparison says.
func (c *Cluster) prove(ctx context.Context, survey *Survey, source Source, path string, capture *Capture) error {
	chain := string(c.config.Chain())
	mark := ""
	facts, err := snapdb.Inspect(ctx, path, snapdb.Options{
		Progress: func(done, _ int64) {
			c.events.Emit(events.StageProgress{Stage: "prove", Chain: chain, Done: done})
		},
		LastRevision: func(main int64, records []snapdb.LastRecord) { mark = c.mark(main, records) },
	})
	if errors.Is(err, snapdb.ErrCorrupt) {
		capture.Etcd.Revision = lowerBound(survey)
		capture.Etcd.DBBytes = capture.Size - trailerSize
		capture.Unproved = append(capture.Unproved, "the database file is corrupt, its HashKV was not computed")
		return &BadSourceError{Member: source.state.ID, Dissents: true, Why: manifest.Line(err.Error())}
	}
	if err != nil {
		return err
	}
	FileFacts(&capture.Etcd, facts)
	capture.Etcd.Mark = mark
	if capture.Etcd.Revision < survey.Floor {
		capture.Unproved = append(capture.Unproved, "the snapshot is older than the cluster's revision when it was asked for")
		return &BadSourceError{Member: source.state.ID,
			Why: fmt.Sprintf("its snapshot ends at revision %d, the cluster was at %d before", capture.Etcd.Revision, survey.Floor)}
	}
	return c.compare(ctx, survey, source, path, capture)
}

// mark is that of a revision as a watch would tell of it; empty without a marker.
func (c *Cluster) mark(main int64, records []snapdb.LastRecord) string {
	if c.marker == nil {
		return ""
	}
	list := make([]segment.Event, len(records))
	for i, r := range records {
		list[i] = segment.Event{Delete: r.Tombstone, KV: r.KV}
	}
	return c.marker.Of(main, list)
}

// FileFacts copies what only the file knows into a manifest's facts.
func FileFacts(etcd *manifest.Etcd, facts *snapdb.Facts) {
	etcd.Revision = manifest.Revision(facts.Revision)
	etcd.CompactRevision = compactRevision(facts.CompactRevision)
	etcd.HashKV = facts.HashKV
	etcd.AuthRevision = facts.AuthRevision
	etcd.RaftIndex = facts.ConsistentIndex
	etcd.RaftTerm = facts.Term
	etcd.Keys = facts.Keys
	etcd.DBBytes = facts.DBBytes
	etcd.ClusterVersion = manifest.Line(facts.ClusterVersion)
	if facts.StorageVersion != "" {
		etcd.StorageVersion = manifest.Line(facts.StorageVersion)
	}
	for _, alarm := range facts.Alarms {
		etcd.Alarms = append(etcd.Alarms, manifest.Line(alarm.Kind+" on member "+manifest.EtcdID(alarm.Member).String()))
	}
	for _, use := range facts.Encryption {
		etcd.Encryption = append(etcd.Encryption, manifest.KeyUse{
			Provider: manifest.Line(use.Provider), Key: manifest.Line(use.Key), Objects: use.Count, Example: manifest.Line(use.Example),
		})
	}
}

// compactRevision is etcd's as a manifest has it: etcd says -1 where nothing
// was ever compacted, a manifest 0.
func compactRevision(revision int64) manifest.Revision { return manifest.Revision(max(0, revision)) }

// StoredMember is a member as the database file knows it.
func StoredMember(m snapdb.Member) manifest.Member {
	return manifest.Member{
		ID: manifest.EtcdID(m.ID), Name: manifest.Line(m.Name),
		PeerURLs: lines(m.PeerURLs), ClientURLs: lines(m.ClientURLs), Learner: m.Learner,
	}
}
