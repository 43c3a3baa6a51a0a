// Package turns says who goes first when several agents could back up the same
// etcd cluster. It is a pure function of what each agent sees for itself: agents
// that see different things get different answers, and that costs a second
// backup, never a chain.
package turns

import (
	"cmp"
	"fmt"
	"slices"
)

// Member is one member of an etcd cluster as an agent sees it.
type Member struct {
	ID      uint64
	Name    string
	Local   bool // at one of this node's addresses
	Answers bool
	Leader  bool // it knows a leader
	Healthy bool // and has no alarm, error or other blemish
	Learner bool // its snapshot may lag without limit: it never goes first
}

// Place is an agent's place in the order.
type Place struct {
	Rank  int    // 0 goes first
	First string // who has rank 0, for people; empty: nobody known
}

// Among is the place of the agent beside the local member: by leader, health
// and id among the members that answer. A local member that does not answer
// goes after all that do. It reports false if no member is local.
func Among(members []Member) (Place, bool) {
	var order []Member
	local := false
	for _, m := range members {
		local = local || m.Local
		if m.Answers && !m.Learner {
			order = append(order, m)
		}
	}
	if !local {
		return Place{}, false
	}
	slices.SortFunc(order, func(a, b Member) int {
		return cmp.Or(first(a.Leader, b.Leader), first(a.Healthy, b.Healthy), cmp.Compare(a.ID, b.ID))
	})
	place := Place{Rank: slices.IndexFunc(order, func(m Member) bool { return m.Local })}
	if place.Rank < 0 {
		place.Rank = len(order)
	}
	if len(order) > 0 {
		place.First = name(order[0])
	}
	return place, true
}

// Beside is the place of an agent that runs beside no member: by its node's
// name among the nodes whose agents are known to work. A node that is not among
// them, such as a new one, goes last.
func Beside(node string, nodes []string) Place {
	order := slices.Compact(slices.Sorted(slices.Values(nodes)))
	place := Place{Rank: slices.Index(order, node), First: node}
	if place.Rank < 0 {
		place.Rank = len(order)
	}
	if len(order) > 0 {
		place.First = order[0]
	}
	return place
}

// first sorts true before false.
func first(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

func name(m Member) string {
	if m.Name != "" {
		return m.Name
	}
	return fmt.Sprintf("member %x", m.ID) // one that has not started yet has no name
}
