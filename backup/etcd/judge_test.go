package etcd

import (
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/manifest"
)

func TestJudge(t *testing.T) {
	const source = manifest.EtcdID(1)
	good, bad, worse := uint32(7), uint32(8), uint32(9)
	for name, test := range map[string]struct {
		voters     int
		votes      []vote
		all        bool
		want       verdict
		majority   []manifest.EtcdID
		dissenting []manifest.EtcdID
	}{
		"a single member that agrees decides":        {voters: 1, votes: []vote{{1, good}}, want: agreed, majority: []manifest.EtcdID{1}},
		"one of three decides nothing":               {voters: 3, votes: []vote{{1, good}}, want: undecided},
		"two of three that agree decide":             {voters: 3, votes: []vote{{1, good}, {2, good}}, want: agreed, majority: []manifest.EtcdID{1, 2}},
		"two of three that differ need the third":    {voters: 3, votes: []vote{{1, good}, {2, bad}}, want: undecided},
		"the third names a bad minority":             {voters: 3, votes: []vote{{1, good}, {2, bad}, {3, good}}, want: agreed, majority: []manifest.EtcdID{1, 3}, dissenting: []manifest.EtcdID{2}},
		"a source against the others is bad":         {voters: 3, votes: []vote{{1, bad}, {2, good}, {3, good}}, want: sourceIsBad, majority: []manifest.EtcdID{2, 3}, dissenting: []manifest.EtcdID{1}},
		"three opinions are no majority":             {voters: 3, votes: []vote{{1, good}, {2, bad}, {3, worse}}, all: true, want: splitForGood},
		"half of four is no majority":                {voters: 4, votes: []vote{{1, good}, {2, good}}, all: true, want: splitForGood},
		"half of two is no majority":                 {voters: 2, votes: []vote{{1, good}, {2, bad}}, all: true, want: splitForGood},
		"silence of the others is not agreement":     {voters: 3, votes: []vote{{1, good}}, all: true, want: splitForGood},
		"three of five that agree need no more":      {voters: 5, votes: []vote{{1, good}, {2, good}, {4, good}}, want: agreed, majority: []manifest.EtcdID{1, 2, 4}},
		"three of five against the source settle it": {voters: 5, votes: []vote{{1, bad}, {2, good}, {3, good}, {4, good}}, want: sourceIsBad, majority: []manifest.EtcdID{2, 3, 4}, dissenting: []manifest.EtcdID{1}},
	} {
		t.Run(name, func(t *testing.T) {
			got, majority, dissenting := judge(test.voters, source, test.votes, test.all)
			if got != test.want || !slices.Equal(majority, test.majority) || !slices.Equal(dissenting, test.dissenting) {
				t.Errorf("judge = %v, majority %v, dissenting %v; want %v, %v, %v", got, majority, dissenting, test.want, test.majority, test.dissenting)
			}
		})
	}
}

func TestOverStall(t *testing.T) {
	member := MemberState{Member: manifest.Member{ID: 0xabc}, DBSizeInUse: 4 << 30} // one second at the assumed rate
	if why := overStall(member, Limits{MaxStall: 2 * time.Second}); why != "" {
		t.Errorf("a scan below the limit is refused: %s", why)
	}
	for _, limit := range []time.Duration{0, 500 * time.Millisecond} {
		if why := overStall(member, Limits{MaxStall: limit}); !strings.Contains(why, "abc") || !strings.Contains(why, limit.String()) {
			t.Errorf("limit %s: got %q, want a reason that names the member and the limit", limit, why)
		}
	}
}

func TestSources(t *testing.T) {
	member := func(id manifest.EtcdID, change func(*MemberState)) MemberState {
		m := MemberState{Member: manifest.Member{ID: id}, Leader: 1, Applied: 100}
		if change != nil {
			change(&m)
		}
		return m
	}
	learner := func(m *MemberState) { m.Learner = true }
	local := func(m *MemberState) { m.Local = true }
	silent := func(m *MemberState) { m.Err = ErrStalled }
	alarmed := func(m *MemberState) { m.Errors, m.Local = []string{"NOSPACE"}, true }
	leaderless := func(m *MemberState) { m.Leader = 0 }
	ahead := func(m *MemberState) { m.Applied = 200 }

	for name, test := range map[string]struct {
		members []MemberState
		want    []manifest.EtcdID
	}{
		"followers come before the leader":                 {[]MemberState{member(1, nil), member(2, nil), member(3, nil)}, []manifest.EtcdID{2, 3, 1}},
		"the local member comes first, leader or not":      {[]MemberState{member(1, local), member(2, nil)}, []manifest.EtcdID{1, 2}},
		"a learner and a silent member are never asked":    {[]MemberState{member(1, nil), member(2, learner), member(3, silent)}, []manifest.EtcdID{1}},
		"healthy comes before local, ill comes last":       {[]MemberState{member(1, nil), member(2, alarmed), member(3, leaderless)}, []manifest.EtcdID{1, 2, 3}},
		"of two followers the one that is ahead is better": {[]MemberState{member(2, nil), member(3, ahead)}, []manifest.EtcdID{3, 2}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []manifest.EtcdID
			for _, s := range sources(&Survey{Members: test.members}) {
				got = append(got, s.ID)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}

	t.Run("the leader is the last to be asked for a scan, even when local", func(t *testing.T) {
		survey := &Survey{Members: []MemberState{member(1, local), member(2, nil), member(3, nil)}}
		got := scanners(survey, survey.Members[2])
		if len(got) != 2 || got[0].ID != 2 || got[1].ID != 1 {
			t.Errorf("got %v", got)
		}
	})
}
