package topology

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"
)

// Print writes the findings for a person: each with how it was found out.
func (h *Host) Print(w io.Writer) error {
	p := &page{}
	p.title("This host")
	p.line(h.KindHow, "kind: %s", h.Kind)
	h.printIdentity(p)
	p.line(h.Clock.How, "clock: %s; %s", h.Clock.Now.Format(time.RFC3339), h.Clock.Explain)
	for _, v := range h.Versions {
		p.line(v.How, "%s: %s on disk, %s in the backup", v.Program, cmp.Or(v.OnDisk, "not known"), cmp.Or(v.InBackup, "not known"))
	}
	var pods []string
	for _, pod := range h.Pods {
		pods = append(pods, pod.Name)
	}
	p.line(h.PodsHow, "static pods: %s", cmp.Or(strings.Join(pods, ", "), "none"))

	p.title("etcd's data")
	d := &h.Data
	p.line(d.How, "data directory: %s", d.Path)
	switch {
	case d.InUse:
		p.line("its files are locked", "in use by %s", d.By)
	case !d.Member:
		p.line("looked", "%s", d.FreshHow)
	default:
		p.line("read its database and its write-ahead log", "%s: %s", d.Freshness, d.FreshHow)
	}
	for _, s := range h.Spaces {
		if s.Failed != "" {
			p.line(s.How, "%s: %s", strings.Join(s.For, ", "), s.Failed)
			continue
		}
		p.line(s.How, "%s (%s): %d MiB free of %d, for %s", s.MountPoint, s.Type, s.Free>>20, s.Total>>20, strings.Join(s.For, ", "))
	}

	p.title("What runs")
	for _, s := range h.Services {
		p.line(s.How, "%s: %s", s.Name, cmp.Or(s.Failed, s.State))
	}
	if h.Runtime.Answers {
		p.line(h.Runtime.How, "container runtime: answers; static pods that run: %s", cmp.Or(strings.Join(h.Runtime.Running, ", "), "none"))
	} else {
		p.line(h.Runtime.How, "container runtime: %s", h.Runtime.Failed)
	}
	for _, image := range h.Images {
		p.line(image.How, "image %s: %s", image.Reference, strings.TrimSuffix(image.State+": "+image.Advice, ": "))
	}
	if h.Ports.Failed != "" {
		p.line(h.Ports.How, "ports: %s", h.Ports.Failed)
	} else if len(h.Ports.Listeners) == 0 {
		p.line(h.Ports.How, "ports: nobody listens on %v", ports)
	}
	for _, l := range h.Ports.Listeners {
		p.line(h.Ports.How, "port %d at %s: %s", l.Port, l.Address, l.Process)
	}

	p.title("The cluster")
	for _, m := range h.Living.Members {
		p.line("", "%s %s: %s", m, m.State, m.How)
	}
	p.line(h.Living.VotersHow, "%d of %d voters answer, %d agree on a leader", h.Living.Answering, h.Living.Voters, h.Living.Agreeing)

	h.printSeparate(p)

	p.title("Verdict: " + string(h.Verdict.Outcome))
	for _, why := range h.Verdict.Why {
		p.line("", "%s", why)
	}
	for _, do := range h.Verdict.Do {
		fmt.Fprintf(&p.b, "    %s\n", do)
	}
	if len(h.Warnings) > 0 {
		p.title("Warnings")
	}
	for _, warning := range h.Warnings {
		p.line(warning.How, "%s", warning.Text)
	}
	_, err := io.WriteString(w, p.b.String())
	return err
}

func (h *Host) printIdentity(p *page) {
	id := &h.Identity
	if id.Failed != "" {
		p.line(id.How, "name and addresses: %s", id.Failed)
		return
	}
	p.line(id.How, "name: %s, addresses: %s", id.Hostname, cmp.Or(strings.Join(id.Addresses, ", "), "none"))
	switch {
	case id.Same:
		p.line(id.How, "it has the name and addresses of the backed-up node %s", id.WasNode)
	case id.Known:
		p.line(id.How, "the backed-up node was %s at %s", id.WasNode, strings.Join(id.WasAt, ", "))
	}
	for _, pair := range id.Rename {
		p.line(id.How, "the name would change: %s", pair)
	}
	for _, pair := range id.Address {
		p.line(id.How, "the address would change: %s", pair)
	}
	for _, choice := range id.Choices {
		p.line(id.How, "choose %s", choice)
	}
}

// page is text in sections.
type page struct{ b strings.Builder }

func (p *page) title(text string) {
	if p.b.Len() > 0 {
		p.b.WriteString("\n")
	}
	p.b.WriteString(text + "\n")
}

// line writes a finding; how is left out where the text says it.
func (p *page) line(how, format string, args ...any) {
	fmt.Fprintf(&p.b, "  - "+format, args...)
	if how != "" {
		p.b.WriteString(" (" + how + ")")
	}
	p.b.WriteString("\n")
}
