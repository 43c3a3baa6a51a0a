package record

import "fmt"

// question is what is known when a watch is about to begin.
type question struct {
	cluster         uint64 // etcd as it is now
	head, compacted int64
	tape            *section // the newest; nil: there is none
	chains          []link   // of the stores that have answered and hold a full
	lost            string   // why the tape's newest section can't be gone on with
	forked          string   // why etcd's history is known to be another
}

// link is where one store's chain is.
type link struct {
	cluster uint64
	epoch   uint64
	last    int64
}

// beginning is where a watch begins.
type beginning struct {
	fresh   bool   // a new section, else the newest one goes on
	forked  bool   // of another history than what was recorded
	from    int64  // the first revision to watch
	whole   int64  // revisions up to here are on the tape already, or not wanted
	epoch   uint64 // of a new section: that a chain must have come to
	why     string // of a new section: for people
	compare bool   // revision whole comes again, and must be the same
}

// begin decides. It goes on with the tape where that is possible, else with
// the chain that is furthest behind among those that etcd can still serve, else
// with what comes from now on, and a little of what was before if nothing was
// recorded yet.
func (q question) begin() beginning {
	pending := uint64(0) // an epoch that chains must come to before they fit
	if q.tape != nil {
		pending = q.tape.epoch
	}
	if why := q.fork(pending); why != "" {
		epoch := pending
		for _, c := range q.chains {
			epoch = max(epoch, c.epoch)
		}
		return beginning{fresh: true, forked: true, from: q.head + 1, whole: q.head, epoch: epoch + 1, why: why}
	}
	behind, ahead := int64(0), false // the lowest chain that etcd can serve; all of them are beyond the tape
	for _, c := range q.chains {
		if c.epoch < pending || c.last < q.compacted {
			continue
		}
		if behind == 0 || c.last < behind {
			behind = c.last
		}
	}
	ahead = q.tape != nil && len(q.chains) > 0 && behind > q.tape.last
	for _, c := range q.chains {
		ahead = ahead && c.epoch >= pending && c.last > q.tape.last
	}
	why := q.lost
	switch {
	case q.tape == nil || why != "" || ahead:
	case q.tape.last < q.compacted:
		why = fmt.Sprintf("etcd compacted revision %d, revision %d is the last recorded", q.compacted, q.tape.last)
	default:
		compare := q.tape.last > q.compacted && q.tape.last >= q.tape.first
		b := beginning{from: q.tape.last + 1, whole: q.tape.last, compare: compare}
		if compare {
			b.from--
		}
		return b
	}
	if behind != 0 && q.lost == "" {
		// The chain's last revision comes again, to be compared with what the
		// chain says of it, or by whoever replays it.
		from := behind
		if from == q.compacted {
			from++
		}
		return beginning{fresh: true, from: from, whole: from - 1, epoch: pending, why: why}
	}
	whole := q.head
	if q.tape == nil && len(q.chains) == 0 {
		whole = max(q.head-lookBack, q.compacted, 1) // revision 1 is before all changes
	}
	return beginning{fresh: true, from: whole + 1, whole: whole, epoch: pending, why: why}
}

// lookBack is how many revisions before its beginning the first watch of all
// takes in: the first full is taken at about the same time, and recording can
// go on from it only if the watch began no later.
const lookBack = 10_000

// fork says why etcd's history is not the one that was recorded. A chain that
// is still in an earlier epoch than the tape holds another history, as is known.
func (q question) fork(pending uint64) string {
	if q.forked != "" {
		return q.forked
	}
	if q.tape != nil && q.tape.clusterID != q.cluster {
		return fmt.Sprintf("etcd has a new cluster id: %x, and %x is recorded", q.cluster, q.tape.clusterID)
	}
	if q.tape != nil && q.tape.last > q.head {
		return fmt.Sprintf("etcd is at revision %d, and %d is recorded", q.head, q.tape.last)
	}
	for _, c := range q.chains {
		switch {
		case c.epoch < pending:
		case c.cluster != q.cluster && q.tape == nil:
			return fmt.Sprintf("etcd has a new cluster id: %x, and %x is recorded", q.cluster, c.cluster)
		case c.cluster == q.cluster && c.last > q.head:
			return fmt.Sprintf("etcd is at revision %d, and %d is recorded", q.head, c.last)
		}
	}
	return ""
}
