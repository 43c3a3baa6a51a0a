package topology

import (
	"fmt"
	"slices"
	"strings"
)

// Outcome is what the findings mean for a restore.
type Outcome string

// The outcomes, the first that fits.
const (
	// DoneBefore: this restore has been done on this node already, and its member has
	// served. Refuse: made again it would lack what the others believe it to hold.
	DoneBefore Outcome = "done-before"
	// OtherCluster: an etcd answers that is not the backup's. Refuse.
	OtherCluster Outcome = "other-cluster"
	// QuorumLives: the cluster lives. Refuse: replace the lost member.
	QuorumLives Outcome = "quorum-lives"
	// Unclear: enough members for a quorum are there, but they can't be asked, or
	// have no leader. Refuse until that is cleared up: no data may be lost.
	Unclear Outcome = "unclear"
	// Survivors: something of the cluster is left that may be fresher than the
	// point. A person should decide, and can salvage it.
	Survivors Outcome = "survivors"
	// NothingLives: nothing answers, and nothing on this host is fresher. Members
	// that are cut off from here may live: the verdict says who was silent.
	NothingLives Outcome = "nothing-lives"
)

// Verdict says whether a restore may go on, why, and what to do instead.
type Verdict struct {
	Outcome Outcome  `json:"outcome"`
	Refuse  bool     `json:"refuse"` // a restore must not go on
	Why     []string `json:"why"`    // with how it is known
	Do      []string `json:"do"`     // lines of text and commands, in order
}

func (h *Host) judge() {
	l, v := &h.Living, &h.Verdict
	v.Why, v.Do = []string{}, []string{}
	accept := l.accepting()
	left := h.leftOnDisk()
	switch {
	case h.before != "":
		v.Outcome, v.Refuse = DoneBefore, true
		h.doneBefore()
	case len(l.Foreign) > 0:
		v.Outcome, v.Refuse = OtherCluster, true
		v.Why = append(v.Why, fmt.Sprintf("the backup is of cluster %s, but there answers %s (%s)", h.backup.ClusterID, strings.Join(l.Foreign, ", "), l.How))
		if l.Quorum && l.Same != nil && *l.Same {
			v.Why = append(v.Why, "and the backup's own cluster has a living quorum besides")
		}
		v.Do = append(v.Do,
			"Find out whose etcd that is. A cluster that was restored before has another id than its old backups.",
			"If it is this cluster's, restored by hand or by an earlier run, nothing is lost: take a new full backup and go on with that.",
			"If it is to be given up, stop it on every member first, then run this again.")
	case l.Quorum:
		v.Outcome, v.Refuse = QuorumLives, true
		v.Why = append(v.Why, fmt.Sprintf("%d of %d voting members answer and name %s as their leader (%s; the voters are %s)", l.Agreeing, l.Voters, l.Leader, l.How, l.VotersHow))
		if l.Same == nil {
			v.Why = append(v.Why, "whether it is the backup's cluster is not known")
		}
		if newest, lost := h.wentBack(); lost {
			v.Why = append(v.Why, fmt.Sprintf("but they are at revision %d, and the backup is of revision %d: this etcd has lost its data, and began anew with an empty directory", newest, h.backup.Revision))
			v.Do = h.fenceEmptied()
			return
		}
		v.Why = append(v.Why, "restoring would throw away all that was written since the backup")
		v.Do = h.replace()
	case l.Answering+l.hidden() > l.Voters/2 && l.Answering+len(accept) > 0:
		v.Outcome, v.Refuse = Unclear, true
		h.unclear(accept)
	case l.Answering > 0 || len(accept) > 0 || len(left) > 0 || l.any():
		v.Outcome = Survivors
		for _, m := range l.Members {
			if m.State == Answers && !m.Own {
				v.Why = append(v.Why, fmt.Sprintf("%s answers at %s, without a quorum (%d of %d voters do), at revision %d%s", m, m.Endpoint, l.Answering, l.Voters, m.Revision, h.beside(m.Revision)))
			}
		}
		v.Why = append(append(v.Why, accept...), left...)
		v.Do = h.salvage()
	default:
		v.Outcome = NothingLives
		if len(l.Members) == 0 {
			v.Why = append(v.Why, "nobody was asked: neither the backup nor this host names a member that takes connections; whether the cluster lives elsewhere is not known")
		} else {
			v.Why = append(v.Why, fmt.Sprintf("none of the %d members that were asked answers (%s)", len(l.Members), l.How))
		}
		for _, m := range l.Members {
			v.Why = append(v.Why, fmt.Sprintf("%s: %s", m, m.How))
		}
		if h.Data.Member {
			v.Why = append(v.Why, fmt.Sprintf("%s has a member: %s (read its database and its log)", h.Data.Path, h.Data.FreshHow))
		} else {
			v.Why = append(v.Why, fmt.Sprintf("%s (%s)", h.Data.FreshHow, h.Data.How))
		}
		v.Do = append(v.Do, "A restore may begin. Members on hosts that can't be reached from here must stay off: fence every control-plane node.")
	}
}

// doneBefore says how this node's member is replaced in the cluster that the
// restore has made. Put in place again it would have the same id and an empty log: it
// would take part in elections and majorities as if it had never agreed to anything.
func (h *Host) doneBefore() {
	l, v := &h.Living, &h.Verdict
	v.Why = append(v.Why, fmt.Sprintf("this restore was done on this node before: %s. Made again from the backup it would have forgotten what the others believe it to hold, and writes that were acknowledged could be lost", h.before))
	if l.Quorum {
		v.Why = append(v.Why, fmt.Sprintf("%d of %d voting members answer and name %s as their leader (%s)", l.Agreeing, l.Voters, l.Leader, l.How))
		v.Do = h.replace()
		return
	}
	v.Why = append(v.Why, fmt.Sprintf("%d of %d voting members answer, without a quorum (%s)", l.Answering, l.Voters, l.How))
	v.Do = append(v.Do, "If the others can be started again, start them: with a majority this member can be replaced, and nothing is lost.")
	v.Do = append(v.Do, h.salvage()...)
	v.Do = append(v.Do, "Then stop all members, and plan a new restore on the first node (--share), for all nodes.")
}

// wentBack says whether the living members hold less than the backup: kubelet
// starts etcd again where its data was lost, and what comes up, with the same
// cluster id as long as nothing was ever restored, is empty. A revision never goes
// back otherwise.
func (h *Host) wentBack() (newest int64, lost bool) {
	l := &h.Living
	if h.backup == nil || l.Same == nil || !*l.Same {
		return 0, false
	}
	for _, m := range l.Members {
		if m.State == Answers {
			newest = max(newest, m.Revision)
		}
	}
	return newest, newest > 0 && newest < int64(h.backup.Revision)
}

// unclear tells of a majority that is there without being a quorum.
func (h *Host) unclear(accept []string) {
	l, v := &h.Living, &h.Verdict
	if l.Answering > 0 {
		v.Why = append(v.Why, fmt.Sprintf("%d of %d voting members answer, and only %d of them agree on a leader: an election is going on, or they don't reach each other (%s)", l.Answering, l.Voters, l.Agreeing, l.How))
		v.Do = append(v.Do, "Look again in a minute. If there is still no leader, find out why they don't reach each other: the network between their peer URLs (port 2380), peer certificates, clocks, full disks. The data is there.")
	}
	if len(accept) > 0 {
		v.Why = append(append(v.Why, "these take connections and can't be asked, and may be part of a living quorum:"), accept...)
		v.Do = append(v.Do, "Give certificates that these members take (the PKI in the backup or on disk, valid now, with a right clock), then run this again.")
	}
	v.Do = append(v.Do, "Or, if nothing of the cluster is to be kept, stop them all, each where it runs:")
	v.Do = append(v.Do, h.stop()...)
}

// any says whether any member answers, a learner too.
func (l *Living) any() bool {
	return slices.ContainsFunc(l.Members, func(m Member) bool { return m.State == Answers && !m.Own })
}

// accepting tells of members that are there and can't be asked.
func (l *Living) accepting() (out []string) {
	for _, m := range l.Members {
		if m.State == Accepts && !m.Own && !m.Learner {
			out = append(out, fmt.Sprintf("%s: %s", m, m.How))
		}
	}
	return out
}

// hidden counts those. What only this host's files name may be at several
// addresses, or one of the others: it counts once, where there are no others.
func (l *Living) hidden() int {
	known, unknown := 0, 0
	for _, m := range l.Members {
		switch {
		case m.State != Accepts || m.Own || m.Learner:
		case m.ID != 0:
			known++
		default:
			unknown = 1
		}
	}
	return max(known, unknown)
}

// beside compares a revision of a living member with the point.
func (h *Host) beside(revision int64) string {
	if h.point == 0 || h.Living.Same == nil || !*h.Living.Same {
		return ""
	}
	switch d := revision - int64(h.point); {
	case d > 0:
		return fmt.Sprintf(", %d revisions beyond the point", d)
	case d < 0:
		return fmt.Sprintf(", %d revisions before the point", -d)
	}
	return ", as the point"
}

// leftOnDisk tells of a data directory that may be fresher than the point.
func (h *Host) leftOnDisk() []string {
	d := &h.Data
	switch {
	case !d.Member:
		return nil
	case d.InUse:
		return []string{fmt.Sprintf("%s is in use by %s (its files are locked)", d.Path, d.By)}
	case d.Freshness == Fresher:
		return []string{fmt.Sprintf("%s is fresher than the point: %s (read its database and its log)", d.Path, d.FreshHow)}
	case d.Freshness == Unproved:
		return []string{fmt.Sprintf("%s may be fresher than the point: %s", d.Path, d.FreshHow)}
	}
	return nil
}
