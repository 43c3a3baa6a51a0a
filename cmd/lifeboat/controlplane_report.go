package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"lifeboat/internal/manifest"
	"lifeboat/restore/plane"
	"lifeboat/restore/topology"
)

// planeReportJSON is what a restore of a control plane has done.
type planeReportJSON struct {
	RestoreID   string          `json:"restoreID"`
	Node        string          `json:"node"`
	Continued   bool            `json:"continued"` // an earlier run, which was interrupted
	FilesBackup manifest.ID     `json:"filesBackup"`
	Point       pointJSON       `json:"point"`
	Revision    int64           `json:"revision"` // at which etcd started
	ClusterID   manifest.EtcdID `json:"clusterID"`
	RTO         rtoJSON         `json:"rto"`
	RPO         rpoJSON         `json:"rpo"`
	Tidied      []string        `json:"tidied"`
	Aside       []string        `json:"aside"` // folders
	Backups     []backupJSON    `json:"backups"`
	Left        []string        `json:"left"` // for a person to do
	Warnings    []string        `json:"warnings"`
}

// rtoJSON is how long it took, in seconds, without what a person took to answer.
type rtoJSON struct {
	Seconds   float64     `json:"seconds"`   // from the command's start to its end
	Etcd      float64     `json:"etcd"`      // to an etcd that serves; 0: an earlier run has seen it, or it was not touched
	Ready     float64     `json:"ready"`     // to /readyz; 0 likewise
	Heartbeat float64     `json:"heartbeat"` // to kubelet's first word after the restore; 0 likewise
	Answer    float64     `json:"answer"`    // what a person took, counted nowhere else
	Phases    []phaseJSON `json:"phases"`
}

type phaseJSON struct {
	Stage   string  `json:"stage"`
	Title   string  `json:"title"`
	Seconds float64 `json:"seconds"`
}

// rpoJSON is what is lost.
type rpoJSON struct {
	AgeSeconds float64           `json:"ageSeconds"` // of the restored state when the command began
	At         time.Time         `json:"at"`         // as of when it is
	Recorded   bool              `json:"recorded"`   // changes behind the full backup
	Revision   manifest.Revision `json:"revision"`
	Known      manifest.Revision `json:"known"` // the last one that is known of: recorded, or on this machine's disk
	KnownFrom  string            `json:"knownFrom"`
	Text       string            `json:"text"`
}

func (r *rebuild) report() error {
	r.clock.mark(markEnded)
	out := r.result()
	if r.format == "json" {
		return r.printJSON(out)
	}
	r.printReport(out)
	return nil
}

func (r *rebuild) result() planeReportJSON {
	p := r.plan
	record := p.Record()
	out := planeReportJSON{
		RestoreID: p.ID(), Node: p.Node(), Continued: p.Begun != nil, FilesBackup: p.Order.FilesID, Point: describePoint(p.Etcd.Choice),
		Revision: int64(p.Etcd.Choice.Revision) + int64(p.Order.Bump), ClusterID: p.Etcd.ClusterID,
		RTO: r.clock.rto(), RPO: r.rpo(), Tidied: orEmpty(p.Tidied), Aside: orEmpty(plane.Kept(record)), Backups: []backupJSON{}, Warnings: orEmpty(p.Warnings),
	}
	if p.Outside() {
		out.Revision, out.RTO.Etcd = 0, 0 // nothing was restored that has a revision, or served again
	}
	for _, b := range r.backups.results {
		out.Backups = append(out.Backups, describe(b.Manifest))
	}
	out.Left = slices.Concat(p.Left, r.leftToDo(len(out.Aside) > 0))
	return out
}

func (s *stopwatch) rto() rtoJSON {
	at := func(mark string) float64 { return s.marks[mark].Seconds() }
	return rtoJSON{
		Seconds: at(markEnded), Etcd: at(markEtcd), Ready: at(markAPI), Heartbeat: at(markNode), Answer: s.asked.Seconds(), Phases: orEmpty(s.steps),
	}
}

// rpo says what lies between the restored state and the last that is known of.
func (r *rebuild) rpo() rpoJSON {
	if r.plan.Outside() {
		return rpoJSON{At: r.clock.began.UTC(), Text: "etcd is on other hosts and was not touched: nothing of it is lost"}
	}
	p, c := r.plan, r.plan.Etcd.Choice
	out := rpoJSON{
		AgeSeconds: max(0, r.clock.began.Sub(c.At).Seconds()), At: c.At.UTC(), Recorded: c.Segments > 0, Revision: c.Revision,
		Known: max(c.Revision, c.After.Revision), KnownFrom: "the backups",
	}
	age := humanAge(time.Duration(out.AgeSeconds) * time.Second)
	var text []string
	if age == "now" {
		text = append(text, fmt.Sprintf("the state is of %s, less than a second before this command began", c.At.UTC().Format(time.RFC3339)))
	} else {
		text = append(text, fmt.Sprintf("the state is of %s, %s before this command began", c.At.UTC().Format(time.RFC3339), age))
	}
	switch {
	case p.FromSurvivor() != "":
		text = append(text, p.FromSurvivor())
	case c.After.Revisions > 0:
		text = append(text, "and was chosen: "+c.Behind())
	case out.Recorded:
		text = append(text, fmt.Sprintf("the last that the recorder has committed (%d segments behind the full backup)", c.Segments))
	default:
		text = append(text, "that of the full backup: no changes behind it are recorded, and what was written since is not in it")
	}
	if h := r.plan.Host; h != nil {
		if known, from := lastSeen(h); known > int64(out.Known) {
			out.Known, out.KnownFrom = manifest.Revision(known), from
			text = append(text, fmt.Sprintf("%s went to revision %d, %d further", from, known, known-int64(c.Revision)))
		}
	}
	out.Text = strings.Join(text, "; ")
	return out
}

// lastSeen is the highest revision of the backup's cluster that was found alive or
// on disk.
func lastSeen(h *topology.Host) (revision int64, from string) {
	if d := h.Data; d.Freshness == topology.Fresher {
		revision, from = d.Revision, "etcd's old data on this machine, which is kept aside,"
	}
	for _, m := range h.Living.Members {
		if m.State == topology.Answers && m.InBackup && !m.Own && m.Revision > revision {
			revision, from = m.Revision, "member "+m.String()
		}
	}
	return revision, from
}

// leftToDo are a person's next steps.
func (r *rebuild) leftToDo(kept bool) (left []string) {
	p := r.plan
	if why := r.backups.missing; why != "" {
		left = append(left, fmt.Sprintf("Take a full backup, since a new history has begun: lifeboat backup. It was not taken now: %s", why))
	}
	others := p.Others()
	switch {
	case len(others) == 0:
	case p.Order.Members == plane.One && p.OfHost():
		left = append(left, fmt.Sprintf("Bring etcd's other members (%s) back as new ones, one after the other: etcdctl member add NAME --peer-urls=URL here, then there an empty data directory, --initial-cluster as member add prints it, --initial-cluster-state existing, and start etcd.", strings.Join(others, ", ")))
	case p.Order.Members == plane.One:
		left = append(left, joinOthers(others, r.unjoined()))
	case r.shared == nil:
		left = append(left, fmt.Sprintf("On each of the other nodes (%s) that is not there yet:\n  %s", strings.Join(others, ", "), r.command("--with restore.json")))
	}
	if moved := p.Endpoints(); len(moved) > 0 {
		left = append(left, fmt.Sprintf("On every worker: set the new server (%s) in /etc/kubernetes/kubelet.conf, then systemctl restart kubelet.", strings.Join(moved, ", ")))
	} else if p.EtcdOnly() {
		left = append(left, "When a quorum of etcd serves, restore each master whose files are lost: lifeboat restore control-plane there. Masters that live come back by themselves: their API servers find the new revisions.")
	} else {
		left = append(left, "Workers come back by themselves where they reach the control plane's endpoint. Where a node stays NotReady: systemctl restart kubelet there.")
	}
	if kept {
		left = append(left, "When all is well: lifeboat restore clean"+r.where()+" removes what is kept aside.")
	}
	return left
}

// joinOthers says how the other control-plane nodes come back as new ones. unjoined
// is the line of what a join does not bring.
func joinOthers(others []string, unjoined string) string {
	return fmt.Sprintf("Bring the other control-plane nodes (%s) back as new members, one after the other:\n"+
		"  here: export KUBECONFIG=/etc/kubernetes/admin.conf\n"+
		"  here: kubectl delete node %s\n"+
		"  here: kubeadm init phase upload-certs --upload-certs    # prints CERTIFICATE-KEY, good for two hours\n"+
		"  here: kubeadm token create --print-join-command    # prints the join command\n"+
		"  there: kubeadm reset --force    # deletes what is left of etcd there\n"+
		"%s"+
		"  there: that join command, with --control-plane --certificate-key CERTIFICATE-KEY", strings.Join(others, ", "), strings.Join(others, " "), unjoined)
}

// unjoined is the line of what "kubeadm join" does not bring; empty if it brings all.
func (r *rebuild) unjoined() string {
	command, comment, some := strings.Cut(topology.BringUnjoined(r.plan.Facts.Unjoined(), "THAT-NODE"), "    #")
	if !some {
		return ""
	}
	return "  there: " + command + r.reading() + "    #" + comment + "\n"
}

func (r *rebuild) printReport(out planeReportJSON) {
	w := r.out
	switch {
	case r.plan.Outside():
		fmt.Fprintf(w, "The control plane of node %s is back, with the etcd that lives on other hosts.\n", out.Node)
	case r.plan.EtcdOnly():
		fmt.Fprintf(w, "The etcd of host %s is back, at revision %d in cluster %s.\n", out.Node, out.Revision, out.ClusterID)
	default:
		fmt.Fprintf(w, "The control plane of node %s is back: etcd at revision %d in cluster %s.\n", out.Node, out.Revision, out.ClusterID)
	}
	fmt.Fprintf(w, "\nRTO: %.1f s", out.RTO.Seconds)
	if out.RTO.Ready > 0 {
		fmt.Fprintf(w, "; %.1f s from the command to /readyz", out.RTO.Ready)
	}
	if out.RTO.Ready > 0 && out.RTO.Etcd > 0 {
		fmt.Fprintf(w, " (etcd served after %.1f s)", out.RTO.Etcd)
	}
	if out.RTO.Answer >= 1 {
		fmt.Fprintf(w, " (without the %.0f s until the answer)", out.RTO.Answer)
	}
	if out.Continued {
		fmt.Fprint(w, " (of this run; what an earlier one has done is not in it)")
	}
	fmt.Fprintln(w)
	for _, phase := range out.RTO.Phases {
		fmt.Fprintf(w, "%7.1f s  %s\n", phase.Seconds, phase.Title)
	}
	fmt.Fprintf(w, "RPO: %s\n", out.RPO.Text)
	list := func(title string, items []string) {
		if len(items) == 0 {
			return
		}
		fmt.Fprintf(w, "\n%s:\n", title)
		for _, item := range items {
			fmt.Fprintf(w, "  - %s\n", strings.ReplaceAll(item, "\n", "\n    "))
		}
	}
	list("Tidied", out.Tidied)
	list("What was here before is kept in", out.Aside)
	if len(out.Backups) > 0 {
		fmt.Fprintln(w, "\nNew backups:")
	}
	for _, b := range out.Backups {
		fmt.Fprint(w, "  ")
		printBackupLine(w, b)
	}
	list("Left to do", slices.Clone(out.Left))
}
