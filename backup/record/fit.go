package record

import (
	"fmt"

	"lifeboat/internal/repository"
)

// place is where a chain goes on on the tape; without a section, why it does
// not.
type place struct {
	section *section
	next    int64  // the first revision to commit
	compare bool   // it is one that the chain has, the section too: compare the two
	mark    string // what the chain says of it
	reached bool   // the chain has all up to next

	waits    string // for people; empty when the tape will get there by itself
	full     string // why a full is needed
	epoch    uint64 // and of which epoch, at least
	from, to int64  // what neither chain nor tape holds
}

// fit finds the chain's place. Sections are in the tape's order; other are
// those that are known to hold another history than the chain.
func fit(sections []section, tip *repository.Tip, other map[int64]bool) place {
	if len(sections) == 0 {
		return place{} // no watch has begun
	}
	newest, last := &sections[len(sections)-1], int64(tip.Last)
	if tip.Base == 0 || last == 0 {
		return place{waits: "waiting for a full backup: the chain has none", full: "there is no full backup", epoch: newest.epoch}
	}
	// Where segments end below the newest full, they go on there, so that what
	// lies between the two can be restored revision by revision.
	if recorded := int64(tip.Recorded); recorded > 0 && recorded < last {
		if p := join(sections, tip, other, recorded, tip.RecordedMark); p.section != nil && (p.section.last > last || p.section == newest) {
			return p
		}
	}
	if p := join(sections, tip, other, last, tip.Mark); p.section != nil {
		p.reached = true
		return p
	}
	switch {
	case other[newest.id]:
		return forkedPlace(tip.Epoch + 1)
	case uint64(tip.ClusterID) != newest.clusterID:
		return place{waits: "waiting for a full backup: etcd is another cluster now", full: "etcd has a new cluster id", epoch: max(newest.epoch, tip.Epoch+1)}
	case tip.Epoch < newest.epoch:
		return forkedPlace(newest.epoch)
	case last > newest.last:
		return place{} // the watch is on its way there, or another recorder is ahead
	}
	why := fmt.Sprintf("waiting for a full backup: revisions %d to %d were not recorded", last+1, newest.first-1)
	return place{waits: why, full: fmt.Sprintf("revisions %d to %d were not recorded", last+1, newest.first-1), from: last + 1, to: newest.first - 1}
}

func forkedPlace(epoch uint64) place {
	return place{waits: "waiting for a full backup: etcd's history is another one now", full: "etcd's history is another", epoch: epoch}
}

// join finds the section that goes on from a revision of the chain.
func join(sections []section, tip *repository.Tip, other map[int64]bool, at int64, mark string) place {
	for i := range sections {
		s := &sections[i]
		if s.epoch != epochOf(sections, tip.Epoch) || s.clusterID != uint64(tip.ClusterID) || other[s.id] {
			continue
		}
		useful := s.last > at || i == len(sections)-1
		switch {
		case !useful:
		case s.holds(at):
			return place{section: s, next: at, compare: true, mark: mark}
		case at == s.first-1:
			return place{section: s, next: s.first, mark: mark}
		}
	}
	return place{}
}

// epochOf is what sections say that may continue a chain of an epoch: those of
// a later history may not, nor those of the histories before.
func epochOf(sections []section, epoch uint64) uint64 {
	of := uint64(0)
	for _, s := range sections {
		if s.epoch <= epoch {
			of = max(of, s.epoch)
		}
	}
	return of
}
