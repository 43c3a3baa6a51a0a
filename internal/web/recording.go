package web

import (
	"cmp"
	"fmt"
	"time"

	"lifeboat/internal/status"
)

// recordingSlack is how far what is recorded may stay behind before it is late;
// the agent's own problems go by the same.
const recordingSlack = 5 * time.Minute

// recorded is until when every change of a chain can be restored, by this agent's
// recorder; zero: it knows of none.
func (b *builder) recorded(chain string) time.Time {
	for i := range b.s.Recorders {
		if b.s.Recorders[i].Chain == chain {
			return b.s.Recorders[i].RecoveryPoint()
		}
	}
	return time.Time{}
}

// recorders are this agent's, each at each store.
func (b *builder) recorders() (views []recorderView, more int) {
	for i := range b.s.Recorders {
		r := &b.s.Recorders[i]
		for j := range r.Stores {
			views = append(views, b.recorder(r, &r.Stores[j]))
		}
		if len(r.Stores) == 0 {
			v := recorderView{Chain: b.name(r.Chain), Verdict: verdict{unknown, "Not begun yet"}, Why: b.text(cmp.Or(r.Error, r.Why))}
			if r.Error != "" {
				v.Verdict = verdict{bad, "Failed"}
			}
			views = append(views, v)
		}
	}
	n, more := shown(len(views), b.l.stores)
	return views[:n], more
}

func (b *builder) recorder(r *status.Recorder, in *status.RecorderStore) recorderView {
	v := recorderView{
		Chain: b.name(r.Chain), Store: b.name(in.Store), Point: b.moment(in.RecoveryPoint),
		Segments: fmt.Sprint(in.Segments), Verdict: verdict{good, "Recording"},
		Why: b.text(cmp.Or(in.Error, in.Waiting)),
	}
	if in.Revision > 0 {
		v.Revision = fmt.Sprint(in.Revision)
	}
	if in.Behind > 0 {
		v.Behind = size(in.Behind)
	}
	late := b.now.Sub(in.RecoveryPoint) > recordingSlack
	switch {
	case !r.Running:
		v.Verdict, v.Why = verdict{bad, "Failed"}, b.text(cmp.Or(r.Error, v.Why))
	case late && in.RecoveryPoint.IsZero():
		v.Verdict = verdict{warn, "Not yet"}
	case late:
		v.Verdict = verdict{bad, "Late"}
	case !r.Active:
		v.Verdict = verdict{good, "Standing by"}
	}
	if v.Verdict.Level != good && v.Why == "" {
		v.Why = b.text(r.Why)
	}
	return v
}
