package turns

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestTheOrderOfMembers(t *testing.T) {
	up := func(id uint64, name string) Member {
		return Member{ID: id, Name: name, Answers: true, Leader: true, Healthy: true}
	}
	with := func(m Member, change func(*Member)) Member { change(&m); return m }
	local := func(m Member) Member { m.Local = true; return m }
	for name, c := range map[string]struct {
		members []Member
		want    Place
	}{
		"the lowest id goes first": {[]Member{up(3, "c"), local(up(1, "a")), up(2, "b")}, Place{0, "a"}},
		"and the highest last":     {[]Member{local(up(3, "c")), up(1, "a"), up(2, "b")}, Place{2, "a"}},
		"a member that is away does not hold up the others": {
			[]Member{with(up(1, "a"), func(m *Member) { m.Answers = false }), local(up(2, "b")), up(3, "c")}, Place{0, "b"}},
		"an ill member goes after the healthy": {
			[]Member{local(with(up(1, "a"), func(m *Member) { m.Healthy = false })), up(2, "b"), up(3, "c")}, Place{2, "b"}},
		"a member without a leader goes after ill ones with one": {
			[]Member{local(with(up(1, "a"), func(m *Member) { m.Leader, m.Healthy = false, false })),
				with(up(2, "b"), func(m *Member) { m.Healthy = false })}, Place{1, "b"}},
		"without any leader all have a turn": {
			[]Member{with(up(1, "a"), func(m *Member) { m.Leader = false }), local(with(up(2, "b"), func(m *Member) { m.Leader = false }))}, Place{1, "a"}},
		"our own member, cut off, is the first of those that answer": {
			[]Member{with(up(1, "a"), func(m *Member) { m.Answers = false }), local(with(up(2, "b"), func(m *Member) { m.Leader = false }))}, Place{0, "b"}},
		"our own member that does not answer puts us last": {
			[]Member{local(with(up(1, "a"), func(m *Member) { m.Answers = false })), up(2, "b"), up(3, "c")}, Place{2, "b"}},
		"a learner goes last": {
			[]Member{local(with(up(1, "a"), func(m *Member) { m.Learner = true })), up(2, "b")}, Place{1, "b"}},
		"of two members on one node the better one counts": {[]Member{local(up(1, "a")), local(up(2, "b"))}, Place{0, "a"}},
		"nobody answers": {[]Member{local(with(up(1, "a"), func(m *Member) { m.Answers = false }))}, Place{0, ""}},
		"a member without a name is shown by its id": {[]Member{local(up(0xbeef, ""))}, Place{0, "member beef"}},
	} {
		t.Run(name, func(t *testing.T) {
			if got, ok := Among(c.members); !ok || got != c.want {
				t.Errorf("%+v, %v, want %+v", got, ok, c.want)
			}
		})
	}
	if got, ok := Among([]Member{up(1, "a")}); ok {
		t.Errorf("without a local member: %+v", got)
	}
}

func TestTheOrderOfNodes(t *testing.T) {
	for name, c := range map[string]struct {
		node  string
		nodes []string
		want  Place
	}{
		"by name":                   {"cp2", []string{"cp3", "cp2", "cp1"}, Place{1, "cp1"}},
		"named twice counts once":   {"cp2", []string{"cp1", "cp1", "cp2"}, Place{1, "cp1"}},
		"a new node goes last":      {"cp0", []string{"cp1", "cp2"}, Place{2, "cp1"}},
		"where nobody works, we do": {"cp1", nil, Place{0, "cp1"}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Beside(c.node, c.nodes); got != c.want {
				t.Errorf("%+v, want %+v", got, c.want)
			}
		})
	}
}

// TestAgentsThatSeeTheSameHaveDifferentTurns is what makes turns save work.
func TestAgentsThatSeeTheSameHaveDifferentTurns(t *testing.T) {
	for seed := range uint64(500) {
		rng := rand.New(rand.NewPCG(seed, 1))
		members := make([]Member, 1+rng.IntN(7))
		for i := range members {
			members[i] = Member{ID: uint64(i + 1), Name: fmt.Sprint(i), Answers: rng.IntN(4) > 0, Leader: rng.IntN(4) > 0, Healthy: rng.IntN(4) > 0}
		}
		rng.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
		var ranks []int
		for i := range members {
			seen := slices.Clone(members)
			seen[i].Local = true
			place, ok := Among(seen)
			if !ok {
				t.Fatalf("seed %d: the local member is not seen", seed)
			}
			if members[i].Answers {
				ranks = append(ranks, place.Rank)
			}
		}
		slices.Sort(ranks)
		for i, r := range ranks {
			if r != i {
				t.Fatalf("seed %d: ranks %v of %+v", seed, ranks, members)
			}
		}
	}
}
