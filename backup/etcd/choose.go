package etcd

import (
	"cmp"
	"slices"
)

// sources orders the members that a snapshot may come from, best first: never
// a learner or a member that did not answer; healthy before complaining, local
// before remote, follower before leader, and then the one that has applied
// most. A member that complains (an alarm, no leader) stays in the list: an
// ill cluster needs its backup most.
func sources(survey *Survey) []MemberState {
	usable := slices.DeleteFunc(slices.Clone(survey.Members), func(m MemberState) bool {
		return m.Err != nil || m.Learner
	})
	slices.SortStableFunc(usable, func(a, b MemberState) int {
		return cmp.Or(
			compareBool(len(a.Errors) == 0 && a.Leader != 0, len(b.Errors) == 0 && b.Leader != 0),
			compareBool(a.Local, b.Local),
			compareBool(!a.isLeader(), !b.isLeader()),
			-cmp.Compare(a.Applied, b.Applied),
			cmp.Compare(a.ID, b.ID),
		)
	})
	return usable
}

// scanners orders the members other than the source that may be asked to scan
// for HashKV: followers before the leader, since a scan holds up writes.
func scanners(survey *Survey, source MemberState) []MemberState {
	others := slices.DeleteFunc(sources(survey), func(m MemberState) bool { return m.ID == source.ID })
	slices.SortStableFunc(others, func(a, b MemberState) int {
		return compareBool(!a.isLeader(), !b.isLeader())
	})
	return others
}

func (m MemberState) isLeader() bool { return m.Leader == m.ID }

// compareBool puts true first.
func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}
