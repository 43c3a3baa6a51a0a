package etcd

import (
	"fmt"
	"slices"
	"time"

	"lifeboat/internal/manifest"
)

// vote is one member's HashKV for one comparison. Only votes of the same
// revision and compact revision are ever compared.
type vote struct {
	member manifest.EtcdID
	hash   uint32
}

// verdict is what the members' hashes say of a snapshot.
type verdict int

const (
	undecided    verdict = iota // no majority of the voting members agrees yet
	agreed                      // a majority agrees, the source among it
	sourceIsBad                 // a majority agrees, the source is not in it
	splitForGood                // all have voted and no majority agrees
)

// judge counts the votes of a cluster with the given number of voting
// members. all says that nobody is left to ask. The dissenting members are
// those outside the majority; without a majority there are none.
func judge(voters int, source manifest.EtcdID, votes []vote, all bool) (v verdict, majority, dissenting []manifest.EtcdID) {
	byHash := map[uint32][]manifest.EtcdID{}
	for _, vote := range votes {
		byHash[vote.hash] = append(byHash[vote.hash], vote.member)
	}
	for hash, members := range byHash {
		if len(members) <= voters/2 {
			continue
		}
		for _, vote := range votes {
			if vote.hash != hash {
				dissenting = append(dissenting, vote.member)
			}
		}
		if slices.Contains(members, source) {
			return agreed, members, dissenting
		}
		return sourceIsBad, members, dissenting
	}
	if all {
		return splitForGood, nil, nil
	}
	return undecided, nil, nil
}

// scanRate is how fast a member scans for HashKV, in bytes in use a second,
// when its pages are in memory. Measured when the limit was designed: 1.6 GB
// took 345 to 400 ms on two cores.
const scanRate = 4 << 30

// overStall explains why a scan of a member is not asked for, or returns "".
func overStall(member MemberState, limits Limits) string {
	predicted := time.Duration(float64(member.DBSizeInUse) / scanRate * float64(time.Second)).Round(time.Millisecond)
	if predicted <= limits.MaxStall && limits.MaxStall > 0 {
		return ""
	}
	return fmt.Sprintf("a HashKV scan of member %s would hold up its writes for about %s, the limit is %s",
		member.ID, predicted, limits.MaxStall)
}
