package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
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
			return &BadSourceError{Member: source.state.ID, Dissents: true, Why: "the file's HashKV differs from the member's own"}
		case outcome == agreed:
			capture.Etcd.ComparedWith = without(majority, source.state.ID, voters > 1)
			c.dissent(capture, dissenting)
			c.compareCompaction(ctx, survey, source, capture)
			return nil
		case outcome == sourceIsBad:
			capture.Etcd.Dissenting = []manifest.EtcdID{source.state.ID}
			capture.Unproved = append(capture.Unproved, "HashKV differs from a majority of the members")
			return &BadSourceError{Member: source.state.ID, Dissents: true, Why: fmt.Sprintf("its HashKV at revision %d differs from that of members %v", file.revision, majority)}
		case outcome == splitForGood:
			c.unsettled(capture, file, voters, votes, reasons)
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

// unsettled says why no majority was found. Members that differ mean that one
// of them is corrupt, perhaps the source, whoever else could not be asked.
func (c *Cluster) unsettled(capture *Capture, file fileHash, voters int, votes []vote, reasons []string) {
	capture.Unproved = append(capture.Unproved, reasons...)
	if differ(votes) {
		why := fmt.Sprintf("members %s disagree on HashKV at revision %d, and no majority tells who is right", names(votes), file.revision)
		capture.Unproved = append(capture.Unproved, why)
		capture.Degraded = append(capture.Degraded, why)
	} else if len(reasons) == 0 {
		capture.Unproved = append(capture.Unproved, fmt.Sprintf("only %d of %d voting members could be compared", len(votes), voters))
	}
	c.events.Emit(events.Warning{Chain: string(c.config.Chain()), Subject: "proof", Message: strings.Join(capture.Unproved, "; ")})
}

func differ(votes []vote) bool {
	return slices.ContainsFunc(votes, func(v vote) bool { return v.hash != votes[0].hash })
}

func names(votes []vote) string {
	var list []string
	for _, v := range votes {
		list = append(list, v.member.String())
	}
	return strings.Join(list, ", ")
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

// askHash has a member compute HashKV at the file's revision, once it has
// applied all that the file holds. When the member compacted since the
// snapshot, the file is hashed again as of that compaction; a vote that equals
// the file's is given the file's own hash, so that votes stay comparable.
func (c *Cluster) askHash(ctx context.Context, member MemberState, file fileHash) (vote, error) {
	if _, err := c.readRevision(ctx, member.Endpoint); err != nil {
		return vote{}, err
	}
	response, err := c.hashKV(ctx, member, file.revision)
	if err != nil {
		return vote{}, err
	}
	if compactRevision(response.CompactRevision) < file.compact && file.revision == file.compact {
		// etcd kept this hash when it compacted, as of the compaction before.
		// Asked for its current revision, which in an idle cluster is the same,
		// it scans.
		if response, err = c.hashKV(ctx, member, 0); err != nil {
			return vote{}, err
		}
		if now := hashedRevision(response); now != file.revision {
			return vote{}, fmt.Errorf("member %s went on to revision %d: the snapshot's own, %d, is compacted", member.ID, now, file.revision)
		}
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

// hashedRevision is the revision that a member hashed when asked for its
// current one. etcd 3.5 tells it in the header only.
func hashedRevision(response *pb.HashKVResponse) manifest.Revision {
	if response.HashRevision > 0 {
		return manifest.Revision(response.HashRevision)
	}
	return manifest.Revision(response.Header.Revision)
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
// answers as of the same earlier compaction are compared, and only a majority
// of all voting members names anybody: the odd one out may be the source.
func (c *Cluster) compareCompaction(ctx context.Context, survey *Survey, source Source, capture *Capture) {
	revision, settled := capture.Etcd.CompactRevision, 1+len(capture.Etcd.ComparedWith)+len(capture.Etcd.Dissenting)
	if revision <= 1 || settled >= survey.Voters() {
		return
	}
	reference, err := c.keptHash(ctx, source.state, revision)
	if err != nil {
		return // the source restarted since that compaction, or compacted again
	}
	votes := []vote{{member: source.state.ID, hash: reference.Hash}}
	for _, member := range scanners(survey, source.state) {
		kept, err := c.keptHash(ctx, member, revision)
		if err == nil && kept.CompactRevision == reference.CompactRevision {
			votes = append(votes, vote{member: member.ID, hash: kept.Hash})
		}
	}
	_, _, dissenting := judge(survey.Voters(), source.state.ID, votes, true)
	c.dissent(capture, slices.DeleteFunc(dissenting, func(id manifest.EtcdID) bool {
		return slices.Contains(capture.Etcd.Dissenting, id)
	}))
}

// errNotKept says that a member scanned instead of remembering.
var errNotKept = errors.New("the member has not kept that hash")

// keptHash asks for a hash that the member should have kept. A member that
// does not have it scans, which its answer shows: so the stall limit holds
// here too, and whoever asks stops at the first.
func (c *Cluster) keptHash(ctx context.Context, member MemberState, revision manifest.Revision) (*pb.HashKVResponse, error) {
	if why := overStall(member, c.limits); why != "" {
		return nil, errors.New(why)
	}
	response, err := c.hashKV(ctx, member, revision)
	if err == nil && compactRevision(response.CompactRevision) >= revision {
		err = errNotKept
	}
	return response, err
}
