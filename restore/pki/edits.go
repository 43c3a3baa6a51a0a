package pki

import (
	"crypto/x509"
	"net/url"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// edits finds what changes in kubeconfigs beside certificates.
func (p *Plan) edits() {
	for _, c := range p.scan.configs {
		e := Edit{File: c.name, config: c}
		add := func(field string, node *yaml.Node, mapped func(string) string) {
			if node == nil {
				return
			}
			if to := mapped(node.Value); to != node.Value {
				e.Changes = append(e.Changes, Change{Field: field, Old: node.Value, New: to, node: node})
			}
		}
		for _, cluster := range c.clusters {
			add("server", cluster.server, p.opts.server)
			add("tls-server-name", cluster.tlsName, p.opts.host)
		}
		for _, context := range c.contexts {
			add("context user", context.user, p.opts.user)
			add("context name", context.name, p.opts.user)
		}
		add("current-context", c.current, p.opts.user)
		for _, user := range c.users {
			add("user name", user.name, p.opts.user)
		}
		if len(e.Changes) > 0 {
			p.Kubeconfigs = append(p.Kubeconfigs, e)
		}
	}
}

// advise says what a person should know beside the plan itself.
func (p *Plan) advise() {
	p.adviseServers()
	for _, c := range p.scan.configs {
		for _, u := range c.users {
			for _, field := range []*yaml.Node{u.certFile, u.keyFile} {
				if field != nil && p.scan.at(c, field) == nil {
					p.warn("%s names %s, which is not there: what reads it can't log in", c.name, field.Value)
				}
			}
		}
		for _, b := range c.trust {
			valid := func(cert *x509.Certificate) bool { return validAt(cert, p.now) }
			if len(b.certs) > 0 && !slices.ContainsFunc(b.certs, valid) {
				p.warn("%s: no CA in certificate-authority-data is valid now: clients refuse the API server; put in the saved ca.crt, in base64", c.name)
			}
		}
	}
	if len(p.opts.Rename)+len(p.opts.Address) > 0 {
		p.note("static manifests, the kubelet's configuration, etcd's member list and load balancers are not changed here: look for the old names and addresses in them")
	}
	if p.Count(Renew)+p.Count(Reissue)+len(p.Kubeconfigs) > 0 {
		p.note("copies of admin.conf, such as ~/.kube/config, are not changed: copy it again")
		p.note("what runs keeps the old certificates until it is restarted")
	}
}

// adviseServers compares where kubeconfigs lead with what the API server's
// certificate will say.
func (p *Plan) adviseServers() {
	var names []string
	found := false
	for _, l := range p.Leaves {
		if !forAPIServer(l.leaf.cert) {
			continue
		}
		found = true
		if l.New != nil {
			names = append(names, l.New.SANs...)
		} else {
			names = append(names, l.Old.SANs...)
		}
	}
	if !found {
		if len(p.opts.AddSANs) > 0 {
			p.warn("no certificate of an API server was found: %s are added to none", strings.Join(p.opts.AddSANs, ", "))
		}
		return
	}
	for _, c := range p.scan.configs {
		for _, cluster := range c.clusters {
			name := p.opts.host(value(cluster.tlsName))
			if u, err := url.Parse(p.opts.server(value(cluster.server))); err == nil && name == "" {
				name = u.Hostname()
			}
			if name != "" && !slices.Contains(names, name) {
				p.warn("%s leads to %s, which the API server's certificate does not name: add it as a SAN, unless a load balancer shows a certificate of its own", c.name, name)
			}
		}
	}
}
