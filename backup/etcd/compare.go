package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/snapdb"
)

// compare asks the members, one after the other and only as many as a
// majority needs, for HashKV at the file's revision. A scan stalls the writes
// of the member that makes it, so followers are asked first, never two at
// once, and none whose predicted stall is over the limit.
func (c *Cluster) compare(ctx context.Context, survey *Survey, source Source, path string, capture *Capture) error {
	voters := survey.Voters()
	file := fileHash{path: path, revision: capture.Etcd.Revision, compact: capture.Etcd.CompactRevision, hash: capture.Etcd.HashKV}
	ask := scanners(survey, source.state)
	var votes []vote
	if voters == 1 {
		ask = []MemberState{source.state} // nobody else can speak for the file
	} else {
		votes = append(votes, vote{member: source.state.ID, hash: file.hash})
	}

	var reasons []string
	for i := 0; ; i++ {
		outcome, majority, dissenting := judge(voters, source.state.ID, votes, i == len(ask))
		switch {
		case voters == 1 && len(votes) == 1 && votes[0].hash != file.hash:
			capture.Unproved = append(capture.Unproved, "HashKV differs from the member's own")
			return &BadSourceError{Member: source.state.ID, Why: "the file's HashKV differs from the member's own"}
		case outcome == agreed:
			capture.Etcd.ComparedWith = without(majority, source.state.ID, voters > 1)
			c.dissent(capture, dissenting)
			c.compareCompaction(ctx, survey, source, capture)
			return nil
		case outcome == sourceIsBad:
			capture.Etcd.Dissenting = []manifest.EtcdID{source.state.ID}
			capture.Unproved = append(capture.Unproved, "HashKV differs from a majority of the members")
			return &BadSourceError{Member: source.state.ID, Why: fmt.Sprintf("its HashKV at revision %d differs from that of members %v", file.revision, majority)}
		case outcome == splitForGood:
			capture.Unproved = append(capture.Unproved, reasons...)
			if len(votes) == voters && voters > 1 {
				capture.Unproved = append(capture.Unproved, "no majority of the members agrees on HashKV")
				capture.Degraded = append(capture.Degraded, fmt.Sprintf("the members disagree on HashKV at revision %d: no majority", file.revision))
			} else if len(reasons) == 0 {
				capture.Unproved = append(capture.Unproved, fmt.Sprintf("only %d of %d voting members could be compared", len(votes), voters))
			}
			c.events.Emit(events.Warning{Chain: string(c.config.Chain()), Subject: "proof", Message: strings.Join(capture.Unproved, "; ")})
			return nil
		}
		member := ask[i]
		if why := overStall(member, c.limits); why != "" {
			reasons = append(reasons, why)
			continue
		}
		v, err := c.askHash(ctx, member, file)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			reasons = append(reasons, manifest.Line(err.Error()))
			continue
		}
		votes = append(votes, v)
	}
}

func without(members []manifest.EtcdID, source manifest.EtcdID, drop bool) []manifest.EtcdID {
	var list []manifest.EtcdID
	for _, m := range members {
		if m != source || !drop {
			list = append(list, m)
		}
	}
	return list
}

// dissent names the members outside the majority in the manifest and aloud.
func (c *Cluster) dissent(capture *Capture, members []manifest.EtcdID) {
	for _, id := range members {
		capture.Etcd.Dissenting = append(capture.Etcd.Dissenting, id)
		c.events.Emit(events.Warning{
			Chain: string(c.config.Chain()), Subject: "member " + id.String(),
			Message: "its HashKV differs from the majority's: its database is corrupt; replace the member",
		})
	}
}

// fileHash knows the snapshot file's HashKV at its revision, as of its own
// compact revision or of a later one.
type fileHash struct {
	path              string
	revision, compact manifest.Revision
	hash              uint32
}

func (f fileHash) asOf(ctx context.Context, compact manifest.Revision) (uint32, error) {
	if compact == f.compact {
		return f.hash, nil
	}
	return snapdb.HashKV(ctx, f.path, int64(f.revision), int64(compact))
}

// askHash has a member compute HashKV at the file's revision. When the member
// compacted since the snapshot, the file is hashed again as of that
// compaction; a vote that equals the file's is given the file's own hash, so
// that votes stay comparable.
func (c *Cluster) askHash(ctx context.Context, member MemberState, file fileHash) (vote, error) {
	response, err := c.hashKV(ctx, member, file.revision)
	if err != nil {
		return vote{}, err
	}
	compact := compactRevision(response.CompactRevision)
	if compact < file.compact {
		return vote{}, fmt.Errorf("member %s is compacted at %d, the snapshot at %d: not comparable", member.ID, compact, file.compact)
	}
	same, err := file.asOf(ctx, compact)
	if err != nil {
		return vote{}, err
	}
	if same == response.Hash {
		return vote{member: member.ID, hash: file.hash}, nil
	}
	return vote{member: member.ID, hash: response.Hash}, nil
}

// lagPause is how long a member that has not applied a revision yet is left
// alone before it is asked again.
const lagPause = 100 * time.Millisecond

func (c *Cluster) hashKV(ctx context.Context, member MemberState, revision manifest.Revision) (*pb.HashKVResponse, error) {
	m, err := c.maintenance(member.Endpoint)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.limits.Call)
	defer cancel()
	for {
		response, err := m.HashKV(ctx, &pb.HashKVRequest{Revision: int64(revision)})
		if err == nil {
			return response, nil
		}
		if !errors.Is(rpctypes.Error(err), rpctypes.ErrFutureRev) {
			return nil, fmt.Errorf("ask member %s for HashKV at revision %d: %w", member.ID, revision, err)
		}
		select {
		case <-time.After(lagPause):
		case <-ctx.Done():
			return nil, fmt.Errorf("member %s lags: it has not reached revision %d", member.ID, revision)
		}
	}
}

// compareCompaction looks for a corrupt minority among the members that were
// not asked to scan. etcd keeps the hashes of recent compaction revisions, so
// asking for the snapshot's compact revision costs a member nothing. Only
// answers as of the same earlier compaction are compared, with the source's.
func (c *Cluster) compareCompaction(ctx context.Context, survey *Survey, source Source, capture *Capture) {
	revision := capture.Etcd.CompactRevision
	if revision <= 1 || survey.Voters() == 1 {
		return
	}
	reference, err := c.keptHash(ctx, source.state, revision)
	if err != nil {
		return // the source restarted since that compaction, or compacted again
	}
	for _, member := range scanners(survey, source.state) {
		if contains(capture.Etcd.ComparedWith, member.ID) || contains(capture.Etcd.Dissenting, member.ID) {
			continue
		}
		kept, err := c.keptHash(ctx, member, revision)
		if err != nil || kept.CompactRevision != reference.CompactRevision {
			continue
		}
		if kept.Hash != reference.Hash {
			c.dissent(capture, []manifest.EtcdID{member.ID})
		}
	}
}

// keptHash asks for a hash that the member should have kept. A member that
// does not have it would scan, so the stall limit holds here too.
func (c *Cluster) keptHash(ctx context.Context, member MemberState, revision manifest.Revision) (*pb.HashKVResponse, error) {
	if why := overStall(member, c.limits); why != "" {
		return nil, errors.New(why)
	}
	return c.hashKV(ctx, member, revision)
}

func contains(list []manifest.EtcdID, id manifest.EtcdID) bool {
	for _, m := range list {
		if m == id {
			return true
		}
	}
	return false
}
