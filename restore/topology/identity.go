package topology

import (
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"lifeboat/internal/hostfacts"
	"lifeboat/internal/manifest"
	"lifeboat/restore/node"
)

// Identity is how this host is called and reached, beside the backed-up one.
type Identity struct {
	Hostname  string   `json:"hostname"`
	Addresses []string `json:"addresses"` // its own, without loopback and those of pods' networks
	WasNode   string   `json:"wasNode,omitempty"`
	WasAt     []string `json:"wasAt,omitempty"` // the addresses by which others reached the backed-up node
	Known     bool     `json:"known"`           // the backup says enough to compare
	Same      bool     `json:"same"`            // neither name nor addresses must be mapped
	// Rename and Address are mappings to try, each "old=new"; Choices says where
	// a person must choose.
	Rename  []string `json:"rename,omitempty"`
	Address []string `json:"address,omitempty"`
	Choices []string `json:"choices,omitempty"`
	Failed  string   `json:"failed,omitempty"`
	How     string   `json:"how"`
}

// virtual are the beginnings of names of interfaces that network plugins and
// container runtimes make: nobody else reaches a node by their addresses.
var virtual = []string{"lo", "cni", "flannel", "docker", "veth", "cali", "tunl", "vxlan", "kube-", "nodelocaldns", "br-", "virbr", "cilium", "lxc", "weave", "ovn", "antrea", "nerdctl", "podman"}

func isVirtual(name string) bool {
	return slices.ContainsFunc(virtual, func(v string) bool { return strings.HasPrefix(name, v) })
}

func (h *Host) identify(in Inputs) {
	id := &h.Identity
	id.Addresses, id.How = []string{}, "the machine's name and interfaces"
	own, err := in.Machine.Identity()
	if err != nil {
		id.Failed = err.Error()
		return
	}
	id.Hostname = own.Hostname
	for _, a := range own.Addresses {
		if usable(a.Interface, a.Prefix.Addr()) {
			id.Addresses = append(id.Addresses, a.Prefix.Addr().String())
		}
	}
	if in.Facts == nil {
		return
	}
	was, how := wasAt(in.Facts, in.Etcd)
	id.WasNode = in.Facts.Node
	if id.WasNode == "" {
		id.WasNode = in.Facts.Hostname
	}
	if id.WasNode == "" || len(was) == 0 {
		id.How += "; the backup's facts name no node with addresses to compare with"
		return
	}
	id.Known = true
	id.How += "; " + how
	for _, a := range was {
		id.WasAt = append(id.WasAt, a.String())
	}
	if own.Hostname != id.WasNode && own.Hostname != in.Facts.Hostname {
		id.Rename = []string{id.WasNode + "=" + strings.ToLower(own.Hostname)}
	}
	id.mapAddresses(own, was)
	id.Same = len(id.Rename)+len(id.Address)+len(id.Choices) == 0
}

// mapAddresses suggests a new address for each that is missing here.
func (id *Identity) mapAddresses(own node.Identity, was []netip.Addr) {
	taken := slices.Clone(was)
	for _, old := range was {
		if own.Has(old) {
			continue
		}
		var near, all []string
		for _, a := range own.Addresses {
			new := a.Prefix.Addr().Unmap()
			if !usable(a.Interface, new) || new.Is4() != old.Is4() || slices.Contains(taken, new) {
				continue
			}
			all = append(all, new.String())
			if a.Prefix.Masked().Contains(old) {
				near = append(near, new.String())
			}
		}
		if len(near) != 1 && len(all) == 1 {
			near = all
		}
		if len(near) == 1 {
			id.Address = append(id.Address, old.String()+"="+near[0])
			taken = append(taken, netip.MustParseAddr(near[0]))
			continue
		}
		if len(all) == 0 {
			id.Choices = append(id.Choices, "this machine has no address of its family to replace "+old.String())
			continue
		}
		id.Choices = append(id.Choices, "which address replaces "+old.String()+": "+strings.Join(all, " or "))
	}
}

func usable(name string, a netip.Addr) bool {
	return !isVirtual(name) && a.IsValid() && !a.IsLoopback() && !a.IsLinkLocalUnicast() && !a.IsMulticast() && !a.IsUnspecified()
}

// wasAt finds the addresses by which others reached the backed-up node: those of
// its etcd member, else of the URLs in its kubeconfigs, else of its interfaces.
func wasAt(facts *hostfacts.Facts, etcd *manifest.Etcd) ([]netip.Addr, string) {
	had := map[netip.Addr]bool{}
	var own []netip.Addr
	for _, a := range facts.Addresses {
		p, err := netip.ParsePrefix(a.Address)
		if err != nil || !usable(a.Interface, p.Addr()) || had[p.Addr().Unmap()] {
			continue
		}
		had[p.Addr().Unmap()] = true
		own = append(own, p.Addr().Unmap())
	}
	var named []string
	if facts.Etcd != nil {
		named = append(named, words(facts.Etcd.PeerURLs)...)
	}
	if etcd != nil {
		for _, m := range etcd.Members {
			if m.Name != "" && (m.Name == facts.Node || m.Name == facts.Hostname || facts.Etcd != nil && m.Name == facts.Etcd.Name) {
				named = append(named, slices.Concat(m.PeerURLs, m.ClientURLs)...)
			}
		}
	}
	if found := among(named, had); len(found) > 0 {
		return found, "the addresses of the node's etcd member in the backup"
	}
	if found := among(facts.Servers, had); len(found) > 0 {
		return found, "the addresses in the backup's kubeconfigs that were the node's own"
	}
	return own, "the interfaces that the node had when it was backed up"
}

// among returns the hosts of URLs that are among the addresses, in order.
func among(urls []string, had map[netip.Addr]bool) (out []netip.Addr) {
	for _, text := range urls {
		u, err := url.Parse(text)
		if err != nil {
			continue
		}
		a, err := netip.ParseAddr(u.Hostname())
		if err == nil && had[a.Unmap()] && !slices.Contains(out, a.Unmap()) {
			out = append(out, a.Unmap())
		}
	}
	return out
}
