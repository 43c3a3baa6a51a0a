package web

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"lifeboat/internal/status"
)

// point is the recovery point in large type.
func (b *builder) point() pointView {
	chain, of := headline(b.s.Chains)
	if !b.s.Loaded {
		return pointView{Verdict: verdict{unknown, "Not known yet"}, Detail: "The stores have not all been asked since the agent started."}
	}
	if chain == nil {
		return pointView{Verdict: verdict{bad, "No backup"}, Detail: "No store holds a chain of backups, and none is planned."}
	}
	at := chain.RecoveryPoint
	recorded := b.recorded(chain.Name)
	if recorded.After(at) && !at.IsZero() {
		at = recorded
	}
	p := pointView{Verdict: judgePoint(chain, b.now), Chain: b.name(chain.Name), At: b.moment(at)}
	if of > 1 {
		p.Detail = "the oldest of " + plural(of, "chain")
	}
	if chain.Interval > 0 {
		p.Detail = strings.TrimPrefix(p.Detail+", planned "+every(chain.Interval), ", ")
	}
	if at.Equal(recorded) && p.At.Known() {
		p.Detail = strings.TrimPrefix(p.Detail+", recorded since the full of "+b.moment(chain.RecoveryPoint).Text, ", ")
	}
	if p.At.Known() {
		d := b.now.Sub(at)
		p.Age, p.Ahead = age(d), d <= -time.Second
		words := strings.Split(p.Age, nbsp)
		for i := 0; i+1 < len(words); i += 2 {
			p.Parts = append(p.Parts, part{words[i], words[i+1]})
		}
	}
	return p
}

// overall is the worst of all that a person should act on. The agent names the
// problems; what the page finds by itself counts too, so that the two can't
// contradict each other in colour.
func (b *builder) overall(point verdict) (verdict, string) {
	critical, warnings := 0, 0
	for _, p := range b.s.Problems {
		if p.Severity == status.Critical {
			critical++
		} else {
			warnings++
		}
	}
	if !b.s.Loaded {
		return verdict{unknown, "Not known yet"}, "The agent is still reading its stores. Nothing here is the truth before it has."
	}
	worst := point.Level
	for i := range b.s.Chains {
		if c := &b.s.Chains[i]; c.Ours {
			worst = worse(worst, judgeChain(c, b.now, b.down).Level)
		}
	}
	for _, store := range b.s.Stores {
		if store.Error != "" {
			worst = worse(worst, warn)
		}
	}
	switch {
	case critical > 0 && warnings > 0:
		return verdict{bad, "Critical"}, plural(critical, "critical problem") + " and " + plural(warnings, "warning")
	case critical > 0:
		return verdict{bad, "Critical"}, plural(critical, "critical problem")
	case worst == bad:
		return verdict{bad, "Critical"}, "A chain below is late, broken or without a backup."
	case warnings > 0:
		return verdict{warn, "Needs attention"}, plural(warnings, "warning")
	case worst == warn:
		return verdict{warn, "Needs attention"}, "A chain or a store below is not as it should be."
	case worst == unknown:
		return verdict{unknown, "Not scheduled"}, "Nothing is wrong, but this agent plans no backup of what is shown large."
	default:
		return verdict{good, "All is well"}, "Every backup is in time, in every store."
	}
}

// facts are the few numbers beside the recovery point.
func (b *builder) facts() []fact {
	var facts []fact
	var next *status.Job
	for i := range b.s.Jobs {
		j := &b.s.Jobs[i]
		if j.Kind == status.Full && (j.Running || !j.Due.IsZero()) && (next == nil || !next.Running && (j.Running || j.Due.Before(next.Due))) {
			next = j
		}
	}
	switch {
	case next != nil && next.Running:
		facts = append(facts, fact{Name: "Next full backup", Value: "running now"})
	case next != nil && !next.Due.After(b.now):
		facts = append(facts, fact{Name: "Next full backup", Value: "due", Note: b.text(next.Why)})
	case next != nil:
		facts = append(facts, fact{Name: "Next full backup", At: b.moment(next.Due)})
	}
	if n := len(b.s.Stores); n > 0 && b.s.Loaded {
		answering := 0
		for _, store := range b.s.Stores {
			if store.Error == "" {
				answering++
			}
		}
		facts = append(facts, fact{Name: "Stores answering", Value: fmt.Sprintf("%d of %d", answering, n)})
	}
	if n := len(b.s.Chains); n > 0 && b.s.Loaded {
		timely := 0
		for i := range b.s.Chains {
			if l := judgePoint(&b.s.Chains[i], b.now).Level; l == good || l == unknown {
				timely++
			}
		}
		facts = append(facts, fact{Name: "Chains in time", Value: fmt.Sprintf("%d of %d", timely, n)})
	}
	if len(b.s.Certificates) > 0 {
		facts = append(facts, fact{Name: "First certificate ends", At: b.moment(b.s.Certificates[0].NotAfter)})
	}
	return facts
}

func (b *builder) problems() (views []problemView, more int) {
	n, more := shown(len(b.s.Problems), b.l.problems)
	for _, p := range b.s.Problems[:n] {
		v := problemView{Verdict: verdict{warn, "Warning"}, Subject: b.name(p.Subject), Message: b.text(p.Message)}
		if p.Severity == status.Critical {
			v.Verdict = verdict{bad, "Critical"}
		}
		views = append(views, v)
	}
	return views, more
}

// fewChains are shown in full, well or not.
const fewChains = 8

// chains are those with trouble first, then this agent's, each in full as far
// as there is room. The others are well, and a line each is enough for them.
func (b *builder) chains() (views []chainView, rest []restView, more int) {
	type judged struct {
		chain   *status.Chain
		verdict verdict
	}
	var list []judged
	for i := range b.s.Chains {
		c := &b.s.Chains[i]
		list = append(list, judged{c, judgeChain(c, b.now, b.down)})
	}
	place := func(j judged) int {
		switch {
		case j.verdict.Level == bad:
			return 0
		case j.verdict.Level == warn:
			return 1
		case j.chain.Ours:
			return 2
		default:
			return 3
		}
	}
	slices.SortStableFunc(list, func(x, y judged) int { return place(x) - place(y) })
	full := 0
	for full < len(list) && full < b.l.chains && (full < fewChains || place(list[full]) < 3) {
		full++
	}
	for _, j := range list[:full] {
		views = append(views, b.chain(j.chain, j.verdict))
	}
	for _, j := range list[full:] {
		if place(j) < 2 || len(rest) == b.l.rest {
			more++ // in trouble: never among those that are said to be well
			continue
		}
		rest = append(rest, restView{b.name(j.chain.Name), b.moment(j.chain.RecoveryPoint)})
	}
	return views, rest, more
}

func (b *builder) chain(c *status.Chain, v verdict) chainView {
	view := chainView{Name: b.name(c.Name), Verdict: v, Point: b.moment(c.RecoveryPoint)}
	switch {
	case !c.Ours:
		view.Planned = "not this agent's"
	case c.Interval > 0:
		view.Planned = every(c.Interval)
	default:
		view.Planned = "no schedule"
	}
	n := min(len(c.InStores), b.l.stores)
	for i := range c.InStores[:n] {
		view.InStores = append(view.InStores, b.inStore(c, &c.InStores[i]))
	}
	return view
}

func (b *builder) inStore(c *status.Chain, in *status.InStore) inStoreView {
	down := b.down[in.Store]
	v := inStoreView{
		Store: b.name(in.Store), Verdict: judgeStoreOf(c, in, b.now, down),
		Newest: b.moment(in.Newest), Proved: b.moment(in.NewestProved), Lock: b.moment(in.RetainUntil),
		Full: in.Revision > 0 || strings.HasPrefix(c.Name, "etcd/"),
	}
	if in.NewestWhole.Before(in.Newest) {
		v.Whole = b.moment(in.NewestWhole)
	}
	if down {
		v.AsOf = b.moment(in.Read)
	}
	if in.Head > 0 {
		v.Head = count(int64(in.Head))
	}
	if in.Revision > 0 {
		v.Revision = count(in.Revision)
		switch in.Keys {
		case -1:
			v.Keys = "keys not counted"
		case 1:
			v.Keys = "1 key"
		default:
			v.Keys = count(in.Keys) + " keys"
		}
	}
	if !in.Newest.IsZero() {
		v.Stored, v.Plain = size(in.StoredBytes), size(in.PlainBytes)
	}
	if in.Backups > 0 {
		v.Backups, v.Total = count(int64(in.Backups)), size(in.TotalBytes)
	}
	n, more := shown(len(in.Failures), b.l.failures)
	for _, failure := range in.Failures[:n] {
		v.Failures = append(v.Failures, b.text(failure))
	}
	v.MoreFailures = more
	return v
}

func (b *builder) stores() (views []storeView, more int) {
	n, more := shown(len(b.s.Stores), b.l.stores)
	for _, store := range b.s.Stores[:n] {
		v := storeView{URL: b.name(store.URL), Verdict: verdict{good, "Answers"}, Answered: b.moment(store.Answered), Error: b.text(store.Error)}
		switch {
		case store.Error != "":
			v.Verdict = verdict{bad, "No answer"}
		case store.Answered.IsZero():
			v.Verdict = verdict{unknown, "Not asked yet"}
		}
		v.Clock = judgeSkew(store)
		views = append(views, v)
	}
	return views, more
}

// judgeSkew says how far apart the clocks are. Pruning stops at clockSlack.
func judgeSkew(store status.Store) verdict {
	apart := store.Skew.Abs()
	word := span(apart.Round(time.Second)) + " ahead"
	if store.Skew < 0 {
		word = span(apart.Round(time.Second)) + " behind"
	}
	switch {
	case !store.SkewKnown:
		return verdict{unknown, "not known"}
	case apart < 2*time.Second:
		return verdict{good, "in step"}
	case apart > clockSlack:
		return verdict{bad, word}
	case apart >= time.Minute:
		return verdict{warn, word}
	default:
		return verdict{good, word}
	}
}

var jobNames = map[status.Kind]string{
	status.Full: "Full backup", status.Files: "Host files", status.Verify: "Verification", status.Prune: "Pruning", status.Drill: "Restore drill",
}

func (b *builder) jobName(k status.Kind) string {
	if name, ok := jobNames[k]; ok {
		return name
	}
	return b.name(string(k))
}

func (b *builder) jobs() (views []jobView, more int) {
	n, more := shown(len(b.s.Jobs), b.l.jobs)
	for i := range b.s.Jobs[:n] {
		j := &b.s.Jobs[i]
		last := b.lastRun(j)
		v := jobView{
			Name: b.jobName(j.Kind), Target: b.name(j.Target), Schedule: b.name(j.Schedule), Verdict: judgeJob(j, last),
			Last: b.moment(j.LastSuccess), Due: b.moment(j.Due), Overdue: !j.Due.IsZero() && !j.Due.After(b.now), Why: b.text(j.Why),
		}
		if j.Interval > 0 {
			v.Every = every(j.Interval)
		}
		if v.Verdict.Level == warn {
			v.Attempt = b.moment(j.LastAttempt)
		}
		views = append(views, v)
	}
	return views, more
}

// lastRun is the newest run of a job that was not told to stop; nil: none.
func (b *builder) lastRun(j *status.Job) *status.Run {
	for i := range b.s.Runs {
		if r := &b.s.Runs[i]; r.Kind == j.Kind && r.Target == j.Target && r.Reason != status.Interrupted {
			return r
		}
	}
	return nil
}

func (b *builder) runs() (views []runView, more int) {
	n, more := shown(len(b.s.Runs), b.l.runs)
	for i := range b.s.Runs[:n] {
		r := &b.s.Runs[i]
		v := runView{
			Started: b.moment(r.Started), Name: b.jobName(r.Kind), Target: b.name(r.Target), Verdict: judgeRun(r),
			Took: span(r.Duration), Message: b.text(r.Message),
		}
		if r.StoredBytes > 0 {
			v.Stored = size(r.StoredBytes)
		}
		if r.PlainBytes > 0 {
			v.Plain = size(r.PlainBytes)
		}
		if len(r.Degraded) > 0 {
			v.Message = b.text(strings.TrimPrefix(r.Message+"; missing: "+strings.Join(r.Degraded, ", "), "; "))
		}
		views = append(views, v)
	}
	return views, more
}

func (b *builder) certificates() (views []certificateView, more int) {
	n, more := shown(len(b.s.Certificates), b.l.certificates)
	for i := range b.s.Certificates[:n] {
		c := &b.s.Certificates[i]
		views = append(views, certificateView{
			Name: b.name(c.Name), Subject: b.name(c.Subject), CA: c.CA,
			Verdict: judgeCertificate(c, b.now), NotAfter: b.moment(c.NotAfter),
		})
	}
	return views, more
}
