package plane

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"lifeboat/restore/pki"
	"lifeboat/restore/readdress"
)

// newInFiles says what is not as it was saved: a line for each kind of change.
func (p *Plan) newInFiles() (lines []string) {
	say := func(what string, names []string) {
		if len(names) > 0 {
			lines = append(lines, fmt.Sprintf("%s (%d): %s.", what, len(names), strings.Join(names, ", ")))
		}
	}
	var changed []string
	for _, e := range p.Files.Rewritten {
		if len(e.Changes) > 0 {
			changed = append(changed, e.Name)
		}
	}
	say("With other names or addresses", changed)
	for _, kind := range []struct {
		action pki.Action
		what   string
	}{
		{pki.Reissue, "Certificates issued anew, for other names"},
		{pki.Renew, "Certificates renewed, since they have expired"},
		{pki.MoveAside, "Certificates left out, of which their owner makes new ones"},
	} {
		var names []string
		for _, l := range p.Files.Issued {
			if l.Action == kind.action && !slices.Contains(names, l.File) {
				names = append(names, l.File)
			}
		}
		say(kind.what, names)
	}
	return lines
}

// adviseOfNames tells of what was to have another name, and has not.
func (p *Plan) adviseOfNames() {
	for _, pair := range p.unmatched() {
		p.Plan.Warnings = append(p.Plan.Warnings, fmt.Sprintf("--%s changes nothing: neither the node's files nor etcd's members have the old one. Is it mistyped?", pair))
	}
	for _, e := range p.Files.Rewritten {
		for _, k := range e.Kept {
			p.Plan.Notes = append(p.Plan.Notes, fmt.Sprintf("%s stays in line %d of %s: %s.", k.What, k.Line, e.Name, k.Why))
		}
	}
}

// Endpoints are the changes of the control plane's endpoint that this node has.
func (p *Plan) Endpoints() []string {
	void := p.unmatched()
	return slices.DeleteFunc(slices.Clone(p.Order.Endpoint), func(word string) bool {
		return slices.ContainsFunc(void, func(pair readdress.Pair) bool { return pair.What == "endpoint" && pair.Word == word })
	})
}

// unmatched are the order's pairs whose old side is not known here.
func (p *Plan) unmatched() []readdress.Pair {
	mapping, err := readdress.New(readdress.Options{Names: p.Order.Rename, Addresses: p.Order.Address, Endpoints: p.Order.Endpoint})
	if err != nil {
		return nil // staging has refused it
	}
	return slices.DeleteFunc(mapping.Pairs(), func(pair readdress.Pair) bool {
		return !slices.Contains(p.Files.Unmatched, pair.String()) || p.knows(pair.Only)
	})
}

// knows says whether a mapping changes what is known beside the files: the node's
// own name and addresses, etcd's members, and what certificates name.
func (p *Plan) knows(m *readdress.Mapping) bool {
	other := func(word string) bool {
		a, err := netip.ParseAddr(word)
		return m.Name(word) != word || m.Value(word) != word || err == nil && m.Address(a) != a
	}
	words := []string{p.Order.Node}
	for _, a := range p.Facts.Addresses {
		if prefix, err := netip.ParsePrefix(a.Address); err == nil {
			words = append(words, prefix.Addr().String())
		}
	}
	for _, member := range p.Etcd.Backup.Etcd.Members {
		words = append(append(append(words, member.Name), member.PeerURLs...), member.ClientURLs...)
	}
	for _, l := range p.Files.Issued {
		words = append(words, l.Old.SANs...)
	}
	return slices.ContainsFunc(words, other)
}
