// Package readdress gives the files of a restored node another name and other
// addresses. It is text to text: it opens, writes and asks nothing.
//
// A Mapping says what is called otherwise: New reads it from "old=new" words
// and refuses what can't be meant. Mapping.Rewrite applies it to one text whose
// Kind says where names stand. All edits are made in one pass over the original
// text, so that two nodes can change places; what is not an edit stays byte for
// byte.
//
// An address is replaced wherever it stands as a whole word: alone, with a port,
// in a list or as a URL's host, in any spelling. A node's name is replaced only
// where it can mean nothing else: etcd's --name and ETCD_NAME, the members'
// names in --initial-cluster, --hostname-override, and extra certificate names
// in kubeadm's configuration. The control plane's endpoint is replaced where it
// is one: controlPlaneEndpoint and a kubeconfig's server. Where old nodes' addresses
// served as endpoints, kubeconfigs of kind LocalKubeconfig follow the node.
//
// Never replaced are comments, images, paths, ranges such as 10.0.0.0/24, and
// the issuer and audiences of service-account tokens: tokens name them, and with
// others every token would be void. Host names in URLs stay: they are the DNS's.
// Keys and certificates are not this package's business.
package readdress

import (
	"fmt"
	"slices"
	"strings"
)

// Kind says what a text is.
type Kind int

// The kinds of text.
const (
	StaticPod            Kind = iota + 1 // a static pod's manifest, YAML or JSON
	KubeletFlags                         // kubeadm-flags.env, /etc/default/kubelet, kubelet's unit and its drop-ins
	KubeletConfig                        // kubelet's config.yaml
	ClusterConfiguration                 // that of the ConfigMap kubeadm-config, or a file for kubeadm
	Kubeconfig                           // a kubeconfig, also that of the ConfigMap cluster-info
	LocalKubeconfig                      // one of a program that asks its own node's API server: the scheduler's and the controller manager's
	EtcdUnit                             // the systemd unit of an external etcd, or its environment file
	EtcdConfig                           // the YAML file of etcd's --config-file
)

func (k Kind) String() string {
	switch k {
	case StaticPod:
		return "static pod"
	case KubeletFlags:
		return "kubelet flags"
	case KubeletConfig:
		return "kubelet configuration"
	case ClusterConfiguration:
		return "cluster configuration"
	case Kubeconfig:
		return "kubeconfig"
	case LocalKubeconfig:
		return "local kubeconfig"
	case EtcdUnit:
		return "etcd unit"
	case EtcdConfig:
		return "etcd configuration"
	}
	return fmt.Sprintf("Kind(%d)", int(k))
}

// yaml says whether the text is YAML; the others are systemd's.
func (k Kind) yaml() bool { return k != KubeletFlags && k != EtcdUnit }

// Result is a text after rewriting.
type Result struct {
	Text    string
	Changes []Change // in the order of the lines; empty if Text is what it was
	Kept    []Kept   // in the order of the text
}

// Change is one line that became another.
type Change struct {
	Line          int // from 1
	Before, After string
}

// Kept is an old address that stays although it is mapped, and why: a person
// should look at it.
type Kept struct {
	Line int // from 1
	What string
	Why  string
}

// edit replaces text[start:end]. Edits never reach over a line's end.
type edit struct {
	start, end int
	new        string
}

// span is text[start:end], with the reason why addresses in it stay.
type span struct {
	start, end int
	why        string
}

// Rewrite applies the mapping to a text. It never fails: what it doesn't
// recognise it leaves alone.
func (m *Mapping) Rewrite(kind Kind, text string) Result {
	reserved := comments(kind, text)
	edits, named := m.nameEdits(kind, text, reserved)
	reserved = append(reserved, named...)
	ends, taken := m.endpointEdits(kind, text, reserved)
	edits = append(edits, ends...)
	reserved = append(reserved, taken...)
	reserved = append(reserved, identities(text)...)
	addresses, kept := m.addressEdits(text, reserved)
	edits = append(edits, addresses...)
	slices.SortFunc(edits, func(a, b edit) int { return a.start - b.start })
	out := Result{Text: apply(text, edits)}
	out.Changes = changes(text, out.Text)
	for _, k := range kept {
		out.Kept = append(out.Kept, Kept{Line: 1 + strings.Count(text[:k.start], "\n"), What: text[k.start:k.end], Why: k.why})
	}
	return out
}

// Value applies the mapping's addresses to one value, such as a URL or a list of
// them.
func (m *Mapping) Value(text string) string {
	edits, _ := m.addressEdits(text, nil)
	return apply(text, edits)
}

// apply makes sorted edits that don't overlap.
func apply(text string, edits []edit) string {
	var b strings.Builder
	at := 0
	for _, e := range edits {
		b.WriteString(text[at:e.start])
		b.WriteString(e.new)
		at = e.end
	}
	b.WriteString(text[at:])
	return b.String()
}

// changes compares two texts of equally many lines.
func changes(before, after string) []Change {
	if before == after {
		return nil
	}
	var out []Change
	new := strings.Split(after, "\n")
	for i, old := range strings.Split(before, "\n") {
		if old != new[i] {
			out = append(out, Change{Line: i + 1, Before: strings.TrimSuffix(old, "\r"), After: strings.TrimSuffix(new[i], "\r")})
		}
	}
	return out
}

// within returns the span that holds the offset.
func within(spans []span, at int) (span, bool) {
	for _, s := range spans {
		if at >= s.start && at < s.end {
			return s, true
		}
	}
	return span{}, false
}
