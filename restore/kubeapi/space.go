package kubeapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// noSpace and corrupt are etcd's names of its alarms.
const (
	noSpace = "NOSPACE"
	corrupt = "CORRUPT"
)

// Errors of ClearNoSpace that waiting does not help against.
var (
	ErrCorrupt = errors.New("an etcd member has the alarm CORRUPT")
	ErrFull    = errors.New("etcd is full")
)

// Cleared is what ClearNoSpace did.
type Cleared struct {
	Changes []Change `json:"changes"` // in this order; none: there was no NOSPACE alarm
	// Left says what a person should look at: learners that keep their size, members
	// that are still nearly full.
	Left []string `json:"left,omitempty"`
}

// ClearNoSpace frees etcd of a NOSPACE alarm, under which it takes no writes, as a
// database may bring it along out of a backup. If there is one, it compacts the
// history up to the current revision, defragments the members one after the
// other, the leader last, and disarms the alarms. A member that fails ends it
// before the alarms are disarmed; it can be called again.
//
// Clients that watch from an old revision will have to list again. While a member
// is defragmented, it answers nothing. A CORRUPT alarm stays and is ErrCorrupt: under it
// etcd answers nobody. A quota that is too small for the data is ErrFull.
func (e *Etcd) ClearNoSpace(ctx context.Context, p Progress) (*Cleared, error) {
	out := &Cleared{Changes: []Change{}}
	fail := func(err error) (*Cleared, error) {
		return out, fmt.Errorf("clear etcd's NOSPACE alarm: %w", err)
	}
	alarms, err := e.Alarms(ctx)
	if err != nil {
		return fail(err)
	}
	full := slices.ContainsFunc(alarms, func(a Alarm) bool { return a.Kind == noSpace })
	for _, a := range alarms {
		switch a.Kind {
		case noSpace:
		case corrupt:
			return out, fmt.Errorf("%w: %s; its data is not what the others have: replace it, see etcd's page on data corruption. If etcd has no member of that id, the backup has brought the alarm along: etcdctl alarm disarm", ErrCorrupt, a.Member)
		default:
			out.Left = append(out.Left, fmt.Sprintf("member %s has the alarm %s; see etcd's documents", a.Member, a.Kind))
		}
	}
	if !full {
		return out, nil
	}
	members, err := e.Members(ctx)
	if err != nil {
		return fail(err)
	}
	for _, m := range members {
		if m.Failed != "" {
			return fail(fmt.Errorf("%s can't be asked: %s; start it first, nothing was changed", m, m.Failed))
		}
	}
	change, err := e.compact(ctx, p)
	if err != nil {
		return fail(err)
	}
	out.Changes = append(out.Changes, change)
	slices.SortStableFunc(members, func(a, b EtcdMember) int { return cmp.Compare(leads(a), leads(b)) })
	for _, m := range members {
		if m.Learner {
			out.Left = append(out.Left, m.String()+" is a learner, which can't be defragmented before it votes")
			continue
		}
		if change, err = e.defragment(ctx, m, p); err != nil {
			return fail(err)
		}
		out.Changes = append(out.Changes, change)
	}
	for _, a := range alarms {
		if a.Kind != noSpace {
			continue
		}
		asking, cancel := e.within(ctx, e.limit)
		_, err := e.client.AlarmDisarm(asking, &clientv3.AlarmMember{MemberID: uint64(a.Member), Alarm: etcdserverpb.AlarmType_NOSPACE})
		cancel()
		if err != nil {
			return fail(fmt.Errorf("disarm the alarm of member %s: %w", a.Member, caused(asking, err)))
		}
		out.Changes = append(out.Changes, Change{"etcd member " + a.Member.String(), "alarm NOSPACE disarmed"})
		p.tell("disarmed the alarm of member %s", a.Member)
	}
	return out, e.stillFull(ctx, out)
}

func leads(m EtcdMember) int {
	if m.Leader == m.ID {
		return 1
	}
	return 0
}

func (e *Etcd) compact(ctx context.Context, p Progress) (Change, error) {
	revision, err := e.revision(ctx)
	if err != nil {
		return Change{}, err
	}
	p.tell("compacting etcd's history up to revision %d", revision)
	asking, cancel := e.within(ctx, e.long)
	defer cancel()
	_, err = e.client.Compact(asking, revision, clientv3.WithCompactPhysical())
	if errors.Is(err, rpctypes.ErrCompacted) {
		return Change{"etcd", fmt.Sprintf("was compacted up to revision %d before", revision)}, nil
	}
	if err != nil {
		return Change{}, fmt.Errorf("compact etcd's history up to revision %d: %w", revision, caused(asking, err))
	}
	return Change{"etcd", fmt.Sprintf("compacted up to revision %d", revision)}, nil
}

// defragment also waits until the member knows a leader again, so that never two
// are away.
func (e *Etcd) defragment(ctx context.Context, m EtcdMember, p Progress) (Change, error) {
	p.tell("defragmenting %s, %d bytes; it answers nothing meanwhile", m, m.DBBytes)
	asking, cancel := e.within(ctx, e.long)
	defer cancel()
	if _, err := e.client.Defragment(asking, m.Endpoint); err != nil {
		return Change{}, fmt.Errorf("defragment %s at %s: %w", m, m.Endpoint, caused(asking, err))
	}
	for {
		s, err := e.client.Status(asking, m.Endpoint)
		if err == nil && s.Leader != 0 {
			return Change{"etcd " + m.String(), fmt.Sprintf("defragmented: %d bytes, were %d", s.DbSize, m.DBBytes)}, nil
		}
		if serr := e.sleep(asking, e.pause); serr != nil {
			return Change{}, fmt.Errorf("wait for %s at %s after it was defragmented: %w", m, m.Endpoint, serr)
		}
	}
}

// nearlyFull is how much of the quota may be used before a person should be told.
const nearlyFull = 0.8

// stillFull looks whether it helped.
func (e *Etcd) stillFull(ctx context.Context, out *Cleared) error {
	members, err := e.Members(ctx)
	if err != nil {
		return fmt.Errorf("look at etcd after its NOSPACE alarm was cleared: %w", err)
	}
	for _, m := range members {
		if m.Quota > 0 && float64(m.InUse) > nearlyFull*float64(m.Quota) {
			out.Left = append(out.Left, fmt.Sprintf("%s uses %d bytes of its quota of %d: raise --quota-backend-bytes (8 GiB is the most that etcd advises) or delete objects, or the alarm comes back", m, m.InUse, m.Quota))
		}
	}
	alarms, err := e.Alarms(ctx)
	if err != nil {
		return fmt.Errorf("look at etcd after its NOSPACE alarm was cleared: %w", err)
	}
	if slices.ContainsFunc(alarms, func(a Alarm) bool { return a.Kind == noSpace }) {
		return fmt.Errorf("clear etcd's NOSPACE alarm: %w: it came back at once: raise --quota-backend-bytes, then run this again", ErrFull)
	}
	return nil
}
