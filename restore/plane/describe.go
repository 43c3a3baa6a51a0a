package plane

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"lifeboat/restore"
	"lifeboat/restore/pki"
	"lifeboat/restore/topology"
)

// describe fills what is printed.
func (p *Plan) describe() {
	what := "the control plane of node"
	switch {
	case !p.hasAPI():
		what = "the etcd host"
	case p.member.runs == elsewhere:
		what = "the control plane, but not the etcd, of node"
	}
	summary := fmt.Sprintf("Rebuild %s %s on this machine, from backup %s of its files and", what, p.Node(), p.Order.FilesID)
	if p.Begun != nil {
		done := 0
		for _, s := range p.steps {
			if p.Done(s.name) {
				done++
			}
		}
		summary = fmt.Sprintf("Go on with restore %s of node %s, which was begun at %s and interrupted: %d of %d changes are made. It is of backup %s of its files and",
			p.id, p.Node(), p.Begun.Created.Format(time.RFC3339), done, len(p.steps), p.Order.FilesID)
	}
	etcd := p.Etcd.Summary
	if p.member.runs == elsewhere {
		etcd = fmt.Sprintf("beside the etcd that lives at %s, which stays as it is.", strings.Join(p.Files.Etcd.EtcdEndpoints, ", "))
	}
	p.Plan = &restore.Plan{
		Summary: fmt.Sprintf("%s\n%s\n%s", summary, etcd,
			"Everything is fetched, unsealed and checked before the first change. Nothing is deleted, and until it has ended \"lifeboat restore abort\" puts the old state back."),
		Warnings: slices.Clone(p.Etcd.Warnings), // its notes are for who starts etcd by hand
	}
	p.Plan.Warnings = append(p.Plan.Warnings, p.doubts...)
	p.adviseOfCertificates()
	p.adviseOfNames()
	if p.Host != nil && p.member.runs != elsewhere {
		p.adviseOfHost()
	}
	for _, m := range p.Etcd.Backup.Etcd.Members {
		if m.Learner {
			p.Plan.Notes = append(p.Plan.Notes, fmt.Sprintf("%s was a learner and is not restored as one: add it to the running cluster.", m.Name))
		}
	}
	if others := p.Others(); len(others) > 0 && p.Order.Members == One && p.member.server != nil {
		p.Plan.Notes = append(p.Plan.Notes, fmt.Sprintf("The new etcd begins with this member alone. %s must stay off until then, and be added as new members with \"etcdctl member add\" afterwards, with empty data directories and --initial-cluster-state existing.", strings.Join(others, ", ")))
	} else if len(others) > 0 && p.Order.Members == One {
		p.Plan.Notes = append(p.Plan.Notes, fmt.Sprintf("The new etcd begins with this member alone. %s must stay off until then, and join as new nodes with \"kubeadm join\" afterwards.", strings.Join(others, ", ")))
	}
	p.list()
}

// adviseOfCertificates tells of those that should be issued anew and can't be: the
// key of an etcd's own authority is rarely on its hosts.
func (p *Plan) adviseOfCertificates() {
	for _, l := range p.Files.Issued {
		if l.Action == pki.Impossible {
			p.Plan.Warnings = append(p.Plan.Warnings, fmt.Sprintf("%s stays as it is, although %s: %s", l.File, l.Reason, l.Remedy))
		}
	}
}

// adviseOfHost adds what the machine and the living members say.
func (p *Plan) adviseOfHost() {
	v := p.Host.Verdict
	if v.Outcome == topology.Survivors {
		p.Plan.Warnings = append(p.Plan.Warnings, v.Why...)
	}
	for _, w := range p.Host.Warnings {
		p.Plan.Warnings = append(p.Plan.Warnings, w.Text)
	}
	if here := strings.ToLower(p.here); here != p.Node() && p.pods() {
		p.Plan.Warnings = append(p.Plan.Warnings, fmt.Sprintf("this machine is called %s and the node %s: right only if kubelet is told so (--hostname-override); else give --rename %s=%s", here, p.Node(), p.Order.Node, here))
	}
	p.Plan.Notes = append(p.Plan.Notes, v.Do...)
}

// list writes the steps, those that are done already too.
func (p *Plan) list() {
	if n := len(p.Etcd.Steps); n > 0 {
		for _, s := range p.Etcd.Steps[:n-1] {
			p.Plan.Steps = append(p.Plan.Steps, restore.Step{Stage: s.Stage, Title: s.Title, Detail: s.Detail, Total: s.Total})
		}
		p.Plan.Steps = append(p.Plan.Steps, restore.Step{
			Stage: StageKeys, Title: "Look for encryption keys that the new member uses", Detail: "Each must be in the restored encryption configuration: the API server could not read what it lacks.",
		})
	}
	if p.events != nil {
		p.Plan.Steps = append(p.Plan.Steps, restore.Step{Stage: StageEvents, Title: "Make the new member of the etcd for events", Detail: "Beside the old one, which may still run."})
	}
	for _, s := range p.steps {
		detail := s.detail
		if s.name == stepFiles {
			detail = strings.Join(append([]string{detail}, p.newInFiles()...), "\n")
		}
		p.Plan.Steps = append(p.Plan.Steps, restore.Step{Stage: s.name, Title: s.title, Detail: detail})
	}
	for i, s := range p.Plan.Steps {
		if p.Done(s.Stage) {
			p.Plan.Steps[i].Title, p.Plan.Steps[i].Detail = s.Title+" (done)", ""
		}
	}
}

// Done says whether an earlier run has done a stage of the plan, and this one need not
// do it again.
func (p *Plan) Done(stage string) bool {
	if p.journal == nil {
		return false
	}
	if !slices.ContainsFunc(p.steps, func(s step) bool { return s.name == stage }) {
		stage = stepEtcd // it led to that one
	}
	return !p.due(stage)
}

// Others are the other voting members of the backup's etcd, by the names that
// they will have.
func (p *Plan) Others() (names []string) {
	renamed := pairs(p.Order.Rename)
	if p.member.runs == elsewhere {
		return nil
	}
	for _, m := range p.Etcd.Backup.Etcd.Members {
		if m.Learner || m.Name == p.member.was {
			continue
		}
		name := m.Name
		if to, ok := renamed[name]; ok {
			name = to
		}
		names = append(names, name)
	}
	return names
}
