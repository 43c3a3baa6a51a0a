package plane

import (
	"fmt"
	"net/netip"
	"net/url"
	"strings"
)

// hasAddresses refuses a machine on which etcd could not listen for its peers.
func (p *Plan) hasAddresses() error {
	own, err := p.opts.Machine.Identity()
	if err != nil {
		return err
	}
	for _, text := range p.member.peerURLs {
		u, err := url.Parse(text)
		if err != nil {
			continue // PlanEtcd says so
		}
		a, err := netip.ParseAddr(u.Hostname())
		if err != nil || own.Has(a) {
			continue
		}
		return refuse("etcd of node %s is at %s, and this machine has no such address. Is it the right machine? To give the node the address of this one: %s", p.Node(), a, p.newAddress(a))
	}
	return nil
}

// newAddress are the flags that give the node this machine's address in place of
// one that it has or was given by the order, as far as the inspection can tell.
func (p *Plan) newAddress(a netip.Addr) string {
	id, old := p.Host.Identity, a
	for from, to := range addressPairs(p.Order.Address) {
		if to == a {
			old = from // flags begin with what the backup says
		}
	}
	for _, pair := range id.Address {
		if strings.HasPrefix(pair, old.String()+"=") {
			flags := "--address " + pair
			for _, rename := range id.Rename {
				flags += " --rename " + rename
			}
			return flags
		}
	}
	return fmt.Sprintf("--address %s=NEW, and --rename %s=NEW if the name is another too", old, p.Order.Node)
}
