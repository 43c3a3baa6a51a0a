package kubeapi

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"lifeboat/internal/manifest"
)

// ErrDiffer: members hold different data at one revision.
var ErrDiffer = errors.New("etcd members hold different data")

// Agreement is what the members gave as HashKV.
type Agreement struct {
	Revision        int64        `json:"revision"`
	CompactRevision int64        `json:"compactRevision"`
	Members         []MemberHash `json:"members"`
	Learners        []string     `json:"learners,omitempty"` // can't be asked
}

// MemberHash is one member's HashKV.
type MemberHash struct {
	ID   manifest.EtcdID `json:"id"`
	Name string          `json:"name"`
	Hash uint32          `json:"hash"`
}

// Agree asks every voting member for HashKV at one revision and compares.
// Different ones are ErrDiffer; a member that can't be asked is an error too.
//
// Each member goes through its whole database, which holds up its writes: about a
// second a gigabyte. So the members are asked one after the other, and
// this is for once after a restore, on a quiet cluster. Only answers that are as
// of the same compaction are compared; where one came in between, all are asked
// again, a few times.
func (e *Etcd) Agree(ctx context.Context, p Progress) (*Agreement, error) {
	members, err := e.Members(ctx)
	if err != nil {
		return nil, fmt.Errorf("compare HashKV: %w", err)
	}
	var learners []string
	var voters []EtcdMember
	for _, m := range members {
		switch {
		case m.Learner:
			learners = append(learners, m.Name)
		case m.Failed != "":
			return nil, fmt.Errorf("compare HashKV: %s can't be asked: %s; start it, then compare again", m, m.Failed)
		default:
			voters = append(voters, m)
		}
	}
	var why string
	for i := range 5 {
		if i > 0 {
			if err := e.sleep(ctx, e.pause); err != nil {
				return nil, fmt.Errorf("compare HashKV: %w; %s", err, why)
			}
		}
		// A member may have kept the hash of its last compaction and answer with it,
		// as of the compaction before. Asked without a revision it always scans.
		out, reason, err := e.hashes(ctx, voters, i%2 == 1, p)
		if err != nil {
			return nil, fmt.Errorf("compare HashKV: %w", err)
		}
		if why = reason; out != nil {
			out.Learners = learners
			return out, out.check()
		}
	}
	return nil, fmt.Errorf("compare HashKV: the answers can't be compared: %s; compare again when less is written", why)
}

// hashes asks the members once. Without an agreement the text says why.
func (e *Etcd) hashes(ctx context.Context, voters []EtcdMember, current bool, p Progress) (*Agreement, string, error) {
	revision, err := e.revision(ctx)
	if err != nil {
		return nil, "", err
	}
	out := &Agreement{Revision: revision}
	for i, m := range voters {
		p.tell("asking %s for HashKV at revision %d", m, revision)
		asked := revision
		if current {
			asked = 0
		}
		r, err := e.hashOf(ctx, m, asked, revision)
		if errors.Is(err, rpctypes.ErrCompacted) {
			return nil, fmt.Sprintf("revision %d was compacted meanwhile", revision), nil
		}
		if err != nil {
			return nil, "", fmt.Errorf("ask %s at %s for HashKV at revision %d: %w", m, m.Endpoint, revision, err)
		}
		at := r.HashRevision // none before etcd 3.6
		if at == 0 && current {
			at = r.Header.Revision
		}
		if at != 0 && at != revision {
			return nil, fmt.Sprintf("%s went on to revision %d from %d", m, at, revision), nil
		}
		compact := max(r.CompactRevision, 0)
		if i == 0 {
			out.CompactRevision = compact
		}
		if compact != out.CompactRevision {
			return nil, fmt.Sprintf("%s answers as of compaction %d, %s of %d", voters[0], out.CompactRevision, m, compact), nil
		}
		out.Members = append(out.Members, MemberHash{ID: m.ID, Name: m.Name, Hash: r.Hash})
	}
	return out, "", nil
}

// hashOf asks one member, which may lag behind.
func (e *Etcd) hashOf(ctx context.Context, m EtcdMember, asked, reach int64) (*clientv3.HashKVResponse, error) {
	asking, cancel := e.within(ctx, e.long)
	defer cancel()
	for {
		r, err := e.client.HashKV(asking, m.Endpoint, asked)
		behind := errors.Is(err, rpctypes.ErrFutureRev) || err == nil && r.Header.Revision < reach
		if !behind {
			return r, caused(asking, err)
		}
		if serr := e.sleep(asking, e.pause); serr != nil {
			return nil, fmt.Errorf("it lags, it has not reached revision %d: %w", reach, serr)
		}
	}
}

// check compares the hashes.
func (a *Agreement) check() error {
	var all []string
	differ := false
	for _, m := range a.Members {
		all = append(all, fmt.Sprintf("%s (%s) has %08x", m.Name, m.ID, m.Hash))
		differ = differ || m.Hash != a.Members[0].Hash
	}
	if !differ {
		return nil
	}
	return fmt.Errorf("%w: at revision %d and compact revision %d %s; keep the data directories, fence, and restore all members from one backup again",
		ErrDiffer, a.Revision, a.CompactRevision, strings.Join(all, ", "))
}
