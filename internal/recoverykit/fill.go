package recoverykit

import (
	"cmp"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"lifeboat/internal/manifest"
)

// The names that stand in the documents for what differs from cluster to
// cluster. docs/restore.md says so to its readers.
const (
	exampleStore   = "s3://my-bucket/lifeboat"
	exampleCluster = "prod-eu1"
	exampleNewNode = "cp4"
	exampleNewAddr = "10.0.0.44"
)

type sample struct{ name, address string }

var (
	exampleNodes   = []sample{{"cp1", "10.0.0.11"}, {"cp2", "10.0.0.12"}, {"cp3", "10.0.0.13"}}
	exampleMembers = []sample{{"e1", "10.0.0.31"}, {"e2", "10.0.0.32"}, {"e3", "10.0.0.33"}} // hosts of etcd
)

// name is the operator's name of the cluster.
func (k *Kit) name() string {
	if name, _, ok := manifest.ClusterName(k.Cluster); ok {
		return name
	}
	return k.Cluster
}

// values says what the examples' names mean here. What is not known, or chosen
// only on the day, is in capitals: a reader must not take an example for it.
func (k *Kit) values() map[string]string {
	values := map[string]string{exampleCluster: k.name(), exampleNewNode: "NEW-NAME", exampleNewAddr: "NEW-ADDRESS"}
	if len(k.Stores) > 0 {
		values[exampleStore] = k.Stores[0].URL
	}
	for _, list := range []struct {
		examples []sample
		nodes    []Node
	}{{exampleNodes, k.of(ControlPlane)}, {exampleMembers, k.members()}} {
		for i, e := range list.examples {
			values[e.name], values[e.address] = fmt.Sprintf("NODE-%d", i+1), fmt.Sprintf("ADDRESS-%d", i+1)
			if i >= len(list.nodes) {
				continue
			}
			values[e.name] = list.nodes[i].Name
			if addresses := list.nodes[i].Addresses; len(addresses) > 0 {
				values[e.address] = addresses[0]
			}
		}
	}
	return values
}

// withPort is a host as it stands before a port.
func withPort(host string) string {
	if a, err := netip.ParseAddr(host); err == nil && a.Is6() {
		return "[" + host + "]"
	}
	return host
}

var port = regexp.MustCompile(`^:[0-9]`)

// fill puts values in place of the examples' names, in one pass: what was put in
// is not looked at again. A name counts where it stands alone, not within a
// longer word or address.
func fill(text string, values map[string]string) string {
	var names []string
	for name := range values {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(len(b)-len(a), cmp.Compare(a, b)) })
	for i := range names {
		names[i] = regexp.QuoteMeta(names[i])
	}
	var b strings.Builder
	end := 0
	for _, at := range regexp.MustCompile(strings.Join(names, "|")).FindAllStringIndex(text, -1) {
		if within(text, at[0], at[1]) {
			continue
		}
		b.WriteString(text[end:at[0]])
		value := values[text[at[0]:at[1]]]
		if port.MatchString(text[at[1]:]) {
			value = withPort(value)
		}
		b.WriteString(value)
		end = at[1]
	}
	b.WriteString(text[end:])
	return b.String()
}

// within says whether text[from:to] is part of a longer word, number or address.
func within(text string, from, to int) bool {
	word := func(i int) bool {
		if i < 0 || i >= len(text) {
			return false
		}
		c := text[i]
		return c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
	}
	dotted := func(dot, next int) bool { // a dot ends a sentence, or goes on with an address
		return dot >= 0 && dot < len(text) && text[dot] == '.' && word(next)
	}
	return word(from-1) || word(to) || dotted(from-1, from-2) || dotted(to, to+1)
}
