package pki

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"
	"unicode"
)

// Print writes the plan for a person.
func (p *Plan) Print(w io.Writer) error {
	var b strings.Builder
	if len(p.Unfinished) > 0 {
		fmt.Fprintf(&b, "An earlier run was interrupted. This one only finishes it; plan again afterwards:\n")
		for _, name := range p.Unfinished {
			fmt.Fprintf(&b, "  %s\n", name)
		}
	}
	for _, l := range p.Leaves {
		l.print(&b)
	}
	for _, e := range p.Kubeconfigs {
		fmt.Fprintf(&b, "%-11s %s\n", "edit", e.File)
		for _, c := range e.Changes {
			fmt.Fprintf(&b, "            %s: %s -> %s\n", c.Field, c.Old, c.New)
		}
	}
	for _, list := range []struct {
		title string
		items []string
	}{{"Warnings", p.Warnings}, {"Notes", p.Notes}} {
		if len(list.items) > 0 {
			fmt.Fprintf(&b, "\n%s:\n", list.title)
		}
		for _, item := range list.items {
			fmt.Fprintf(&b, "  - %s\n", item)
		}
	}
	_, err := io.WriteString(w, printable(b.String()))
	return err
}

func (l *Leaf) print(b *strings.Builder) {
	fmt.Fprintf(b, "%-11s %s", l.Action, l.File)
	if l.User != "" {
		fmt.Fprintf(b, ", user %s", l.User)
	}
	b.WriteString("\n")
	line := func(title, text string) {
		if text != "" {
			fmt.Fprintf(b, "            %-8s %s\n", title, text)
		}
	}
	line("why", l.Reason)
	line("instead", l.Remedy)
	line("subject", l.Old.Subject)
	if l.New != nil && l.New.Subject != l.Old.Subject {
		line("      ->", l.New.Subject)
	}
	line("names", strings.Join(l.Old.SANs, ", "))
	if l.New != nil && strings.Join(l.New.SANs, ",") != strings.Join(l.Old.SANs, ",") {
		line("      ->", strings.Join(l.New.SANs, ", "))
	}
	line("valid", l.Old.validity())
	if l.New != nil {
		line("      ->", l.New.validity())
		line("CA", l.Issuer)
	}
}

func (f *Face) validity() string {
	return f.NotBefore.UTC().Format(time.DateTime) + " to " + f.NotAfter.UTC().Format(time.DateTime)
}

// printable takes what could steer a terminal out of names that a certificate
// or a kubeconfig holds.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}

func face(cert *x509.Certificate) Face {
	return Face{Subject: cert.Subject.String(), SANs: alternativeTexts(alternativesOf(cert)), NotBefore: cert.NotBefore.UTC(), NotAfter: cert.NotAfter.UTC()}
}

// face is what the drafted certificate will say.
func (d *draft) face() *Face {
	var names pkix.RDNSequence
	var subject pkix.Name
	if _, err := asn1.Unmarshal(d.subject, &names); err == nil {
		subject.FillFromRDNSequence(&names)
	}
	return &Face{Subject: subject.String(), SANs: alternativeTexts(d.alternatives), NotBefore: d.notBefore.UTC(), NotAfter: d.notAfter.UTC()}
}

// alternativeTexts are the DNS names and addresses of subject alternative names.
func alternativeTexts(raw []byte) []string {
	out := []string{}
	var names []asn1.RawValue
	if _, err := asn1.Unmarshal(raw, &names); err != nil {
		return out
	}
	for _, n := range names {
		if n.Class != asn1.ClassContextSpecific {
			continue
		}
		switch n.Tag {
		case tagDNS:
			out = append(out, string(n.Bytes))
		case tagAddress:
			if a, ok := netip.AddrFromSlice(n.Bytes); ok {
				out = append(out, a.Unmap().String())
			}
		}
	}
	return out
}

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }
