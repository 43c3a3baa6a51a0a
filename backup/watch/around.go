package watch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"lifeboat/internal/manifest"
	"lifeboat/internal/segment"
)

// lookAround looks every now and then for what leaves no events: compactions,
// alarms, versions, members, and at every twelfth look the revision of users and
// roles. Each look is a few requests that the member answers by itself. (Asking
// for alarms or for the state of authentication goes through etcd's log like a
// write, so nobody asks for those.)
func (d *Drain) lookAround(ctx context.Context) {
	ticker := time.NewTicker(d.options.Probe)
	defer ticker.Stop()
	a := &around{drain: d, compact: d.options.Compacted}
	for look := 0; ; look++ {
		// What fails is asked again at the next look; whether the member is
		// worth going on with is keepTime's question.
		err := errors.Join(a.lookForCompaction(ctx), a.lookAtMember(ctx))
		if look%authEvery == 0 {
			a.lookAtAuth(ctx)
		}
		if errors.Is(err, ErrOtherCluster) {
			d.tell(ctx, finding{err: err})
			return
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// authEvery is how many looks it takes until the member's metrics are read
// again, a page of some hundred kilobytes.
const authEvery = 12

// around is what was seen at the last look.
type around struct {
	drain *Drain

	compact int64    // etcd's compact revision; 0: none that is known
	ask     []hashOf // hashes that are wanted, oldest first
}

// call bounds one request.
func (a *around) call(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, a.drain.options.Call)
}

// lookForCompaction finds the newest compaction and asks for the hashes that
// it makes free.
func (a *around) lookForCompaction(ctx context.Context) error {
	a.askHashes(ctx) // of what was seen at an earlier look: members have had the time
	call, cancel := a.call(ctx)
	defer cancel()
	compact, err := a.drain.source.Compacted(call, a.compact)
	if err != nil {
		return err
	}
	if compact <= a.compact {
		return nil
	}
	header, err := readAt(call, a.drain.source.Conn, &pb.RangeRequest{Serializable: true})
	if err != nil {
		return err
	}
	a.drain.tell(ctx, finding{record: segment.Record{Kind: segment.KindCompaction, Compaction: segment.Compaction{
		Revision: compact, Head: header.Revision, At: a.drain.options.Now().UnixMilli(),
	}}})
	if a.compact > 0 {
		a.want(hashOf{revision: a.compact})
	}
	a.compact = compact
	return nil
}

// Facts are what members said of their cluster at the last look. They may outlive
// a drain, and should: a member that gets another version restarts, which ends
// its watch (Options.Facts). One drain uses them at a time.
type Facts struct {
	cluster clusterFacts
	members map[manifest.EtcdID]memberFacts
	auth    uint64         // the highest revision of users and roles that was seen; 0: none was
	full    *manifest.Etcd // what a full holds, until a first look; may be nil
}

// clusterFacts are the same at every member.
type clusterFacts struct {
	known           bool
	alarms, members string
}

// memberFacts may differ between members, while versions change.
type memberFacts struct{ version, storage, downgrade string }

// NewFacts knows nothing yet.
func NewFacts() *Facts { return &Facts{members: map[manifest.EtcdID]memberFacts{}} }

// Forget drops all, for another history of etcd.
func (f *Facts) Forget() { *f = *NewFacts() }

// Seed takes what a full holds for what was seen, unless more is known by now:
// so what changed while nobody looked shows at the first look.
func (f *Facts) Seed(full *manifest.Etcd) {
	if full == nil || f.cluster.known {
		return
	}
	f.full, f.auth = full, max(f.auth, full.AuthRevision)
}

// changes tells what changed since the last look, for people.
func (f *Facts) changes(member manifest.EtcdID, cluster clusterFacts, now memberFacts) (changed []string) {
	compare := func(name, before, now string) {
		if before != now {
			changed = append(changed, manifest.Line(fmt.Sprintf("%s: %s, before: %s", name, orNone(now), orNone(before))))
		}
	}
	if f.cluster.known {
		compare("alarms", f.cluster.alarms, cluster.alarms)
		compare("the members", f.cluster.members, cluster.members)
	} else if full := f.full; full != nil {
		if (len(full.Alarms) == 0) != (cluster.alarms == "") { // the two are worded differently
			compare("alarms", strings.Join(full.Alarms, ", "), cluster.alarms)
		}
		if len(full.Members) > 0 {
			compare("the members", members(full.Members), cluster.members)
		}
		if full.MemberID == member {
			compare("the server's version", full.Version, now.version)
		}
	}
	if before, known := f.members[member]; known {
		compare("the server's version", before.version, now.version)
		compare("the storage version", before.storage, now.storage)
		compare("a downgrade", before.downgrade, now.downgrade)
	}
	return changed
}

// note takes in what a member says, once all that changed was handed on.
func (f *Facts) note(member manifest.EtcdID, cluster clusterFacts, now memberFacts) {
	cluster.known, f.full = true, nil
	f.cluster, f.members[member] = cluster, now
}

// lookAtMember asks the member for its state and says what changed since.
func (a *around) lookAtMember(ctx context.Context) error {
	call, cancel := a.call(ctx)
	defer cancel()
	conn := a.drain.source.Conn
	status, err := pb.NewMaintenanceClient(conn).Status(call, &pb.StatusRequest{})
	if err != nil {
		return rpctypes.Error(err)
	}
	if id := manifest.EtcdID(status.Header.ClusterId); id != a.drain.source.ClusterID {
		return &Error{Why: ErrOtherCluster, Cause: fmt.Errorf("%s instead of %s", id, a.drain.source.ClusterID)}
	}
	list, err := pb.NewClusterClient(conn).MemberList(call, &pb.MemberListRequest{})
	if err != nil {
		return rpctypes.Error(err)
	}
	now := memberFacts{version: status.Version, storage: status.StorageVersion}
	if status.DowngradeInfo.GetEnabled() {
		now.downgrade = "to " + status.DowngradeInfo.TargetVersion
	}
	facts, id, all := a.drain.facts, a.drain.source.Member, clusterFacts{alarms: alarms(status), members: members(listed(list))}
	for _, changed := range facts.changes(id, all, now) {
		a.drain.tell(ctx, finding{changed: changed})
	}
	if ctx.Err() == nil { // else nobody may have heard it, and the next drain tells it
		facts.note(id, all, now)
	}
	return nil
}

// lookAtAuth reads the revision of users, roles and rights, and says whether it
// has grown: no event tells of them. A member that does not serve it is not
// asked in another way.
func (a *around) lookAtAuth(ctx context.Context) {
	call, cancel := a.call(ctx)
	defer cancel()
	now, err := a.drain.source.AuthRevision(call)
	if err != nil {
		return
	}
	if changed := a.drain.facts.authChange(now); changed != "" {
		a.drain.tell(ctx, finding{changed: changed})
	}
	if ctx.Err() == nil {
		a.drain.facts.noteAuth(now)
	}
}

// authChange says for people what is new; empty: nothing. A member that lags may
// be behind what another has said.
func (f *Facts) authChange(now uint64) string {
	if f.auth == 0 || now <= f.auth {
		return ""
	}
	return fmt.Sprintf("users, roles or rights in etcd: revision %d, before: %d", now, f.auth)
}

func (f *Facts) noteAuth(now uint64) { f.auth = max(f.auth, now) }

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// alarms are those that a member's state names, all members' among them. That
// it knows no leader stands there too, and is no alarm.
func alarms(status *pb.StatusResponse) string {
	var list []string
	for _, e := range status.Errors {
		if !strings.Contains(e, "no leader") {
			list = append(list, e)
		}
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

// members is a list of members as text, the same for the same members.
func members(list []manifest.Member) string {
	var lines []string
	for _, m := range list {
		kind := ""
		if m.Learner {
			kind = " (learner)"
		}
		lines = append(lines, fmt.Sprintf("%s %s%s", m.ID, strings.Join(slices.Sorted(slices.Values(m.PeerURLs)), " "), kind))
	}
	slices.Sort(lines)
	return strings.Join(lines, "; ")
}

func listed(list *pb.MemberListResponse) []manifest.Member {
	members := make([]manifest.Member, len(list.Members))
	for i, m := range list.Members {
		members[i] = manifest.Member{ID: manifest.EtcdID(m.ID), PeerURLs: m.PeerURLs, Learner: m.IsLearner}
	}
	return members
}
