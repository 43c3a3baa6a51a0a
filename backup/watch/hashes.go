package watch

import (
	"context"
	"errors"
	"fmt"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"lifeboat/backup/etcd"
	"lifeboat/internal/events"
	"lifeboat/internal/manifest"
	"lifeboat/internal/segment"
)

// hashOf is a HashKV that is wanted: at a compact revision that a later one has
// followed. etcd keeps the hashes of its last compactions, as of the compaction
// before each, and refuses to compute any below its compact revision: so the
// question costs a member nothing, whatever the answer is. At its newest compact
// revision it may scan its database, which holds up its writes.
type hashOf struct {
	revision int64
	tried    int
	done     []manifest.EtcdID // members that need not be asked again
	answers  []hashAnswer
}

type hashAnswer struct {
	member  manifest.EtcdID
	compact int64
	hash    uint32
}

const (
	// maxHashes bounds those that wait: etcd keeps ten.
	maxHashes = 10

	// hashTries is how many looks long a member that lags is waited for.
	hashTries = 6
)

// want queues a hash. Beyond the bound the oldest is given up.
func (a *around) want(h hashOf) {
	a.ask = append(a.ask, h)
	if len(a.ask) > maxHashes {
		a.ask = a.ask[1:]
	}
}

// askHashes asks all members for what is wanted, one after the other.
func (a *around) askHashes(ctx context.Context) {
	var again []hashOf
	for _, h := range a.ask {
		h.tried++
		source := a.drain.source
		peers := append([]etcd.Peer{{Member: source.Member, Endpoint: source.Endpoint, Conn: source.Conn}}, source.Others...)
		waiting := false
		for _, peer := range peers {
			if slices.Contains(h.done, peer.Member) {
				continue
			}
			answer, done := a.askHash(ctx, peer, h)
			if answer != nil {
				h.answers = append(h.answers, *answer)
			}
			if done {
				h.done = append(h.done, peer.Member)
			}
			waiting = waiting || !done
		}
		if waiting && h.tried < hashTries {
			again = append(again, h)
			continue
		}
		a.giveHashes(ctx, h)
	}
	a.ask = again
}

// askHash asks one member; done says that asking again is of no use.
func (a *around) askHash(ctx context.Context, peer etcd.Peer, h hashOf) (answer *hashAnswer, done bool) {
	call, cancel := a.call(ctx)
	defer cancel()
	// A member that lags behind the compaction which followed would scan.
	if gone, err := compacted(call, peer.Conn, h.revision); err != nil || !gone {
		return nil, false
	}
	response, err := pb.NewMaintenanceClient(peer.Conn).HashKV(call, &pb.HashKVRequest{Revision: h.revision})
	switch {
	case err != nil:
		return nil, errors.Is(rpctypes.Error(err), rpctypes.ErrCompacted)
	case manifest.EtcdID(response.Header.MemberId) != peer.Member || manifest.EtcdID(response.Header.ClusterId) != a.drain.source.ClusterID:
		return nil, true // the endpoint leads elsewhere by now
	}
	return &hashAnswer{member: peer.Member, compact: max(0, response.CompactRevision), hash: response.Hash}, true
}

// giveHashes hands on the answers of members that agree. Only answers as of
// the same compact revision can be compared; where they differ, one member at
// least is corrupt, and none of them is a proof.
func (a *around) giveHashes(ctx context.Context, h hashOf) {
	for len(h.answers) > 0 {
		first := h.answers[0]
		var same, rest []hashAnswer
		for _, answer := range h.answers {
			if answer.compact == first.compact {
				same = append(same, answer)
			} else {
				rest = append(rest, answer)
			}
		}
		h.answers = rest
		if slices.ContainsFunc(same, func(b hashAnswer) bool { return b.hash != first.hash }) {
			a.drain.options.Events.Emit(events.Warning{Chain: a.drain.options.Chain, Subject: "members " + names(same), Message: fmt.Sprintf(
				"their HashKV at revision %d differs: the database of one at least is corrupt", h.revision)})
			continue
		}
		for _, answer := range same {
			a.drain.tell(ctx, finding{record: segment.Record{Kind: segment.KindHash, Hash: segment.Hash{
				Revision: h.revision, Compact: answer.compact, HashKV: answer.hash, Member: uint64(answer.member),
			}}})
		}
	}
}

func names(answers []hashAnswer) string {
	text := ""
	for i, answer := range answers {
		if i > 0 {
			text += ", "
		}
		text += fmt.Sprintf("%s (%08x)", answer.member, answer.hash)
	}
	return text
}
