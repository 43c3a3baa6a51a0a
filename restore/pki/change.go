package pki

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

const nodeUser = "system:node:" // with the node's name: the kubelet's user

// Kubernetes' rule for node names (RFC 1123 subdomains); a SAN may begin with *.
var dnsName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

// sharedNames are in every API server's certificate: they name no node.
var sharedNames = []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"}

// check refuses options that can't be meant.
func (o *Options) check() error {
	if !filepath.IsAbs(o.Aside) {
		return fmt.Errorf("%w: the aside folder %q is not absolute", ErrInvalid, o.Aside)
	}
	for from, to := range o.Rename {
		if !dnsName.MatchString(from) || !dnsName.MatchString(to) || len(to) > 253 || slices.Contains(sharedNames, from) {
			return fmt.Errorf("%w: rename %q to %q: not two names of nodes", ErrInvalid, from, to)
		}
	}
	for from, to := range o.Address {
		for _, a := range []netip.Addr{from, to} {
			if !a.IsValid() || a.Zone() != "" || a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() {
				return fmt.Errorf("%w: address %v to %v: not two addresses of nodes", ErrInvalid, from, to)
			}
		}
	}
	for _, san := range o.AddSANs {
		if _, err := netip.ParseAddr(san); err != nil && !dnsName.MatchString(strings.TrimPrefix(san, "*.")) {
			return fmt.Errorf("%w: %q is neither a DNS name nor an address", ErrInvalid, san)
		}
	}
	if o.RenewWithin < 0 || o.RenewWithin > 0 && !o.RenewExpired {
		return fmt.Errorf("%w: renewing what expires within %v goes with renewing what has expired", ErrInvalid, o.RenewWithin)
	}
	return nil
}

// host maps a node's name or address, and leaves everything else.
func (o *Options) host(name string) string {
	if to, ok := o.Rename[name]; ok {
		return to
	}
	if a, err := netip.ParseAddr(name); err == nil {
		if to := o.address(a); to != a.Unmap() {
			return to.String()
		}
	}
	return name
}

func (o *Options) address(a netip.Addr) netip.Addr {
	a = a.Unmap()
	for from, to := range o.Address {
		if from.Unmap() == a {
			return to.Unmap()
		}
	}
	return a
}

// identity maps a certificate's common name or organisation.
func (o *Options) identity(name string) string {
	if node, ok := strings.CutPrefix(name, nodeUser); ok {
		return nodeUser + o.host(node)
	}
	return o.host(name)
}

// user maps the name of a kubeconfig's user, or of a context of it in a cluster.
func (o *Options) user(name string) string {
	user, cluster, in := strings.Cut(name, "@")
	if !strings.HasPrefix(user, nodeUser) {
		return name
	}
	if in {
		return o.identity(user) + "@" + cluster
	}
	return o.identity(user)
}

// server maps the host of a kubeconfig's server.
func (o *Options) server(address string) string {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return address
	}
	host := o.host(u.Hostname())
	if host == u.Hostname() {
		return address
	}
	switch port := u.Port(); {
	case port != "":
		u.Host = net.JoinHostPort(host, port)
	case strings.Contains(host, ":"):
		u.Host = "[" + host + "]"
	default:
		u.Host = host
	}
	return u.String()
}

var (
	oidCommonName     = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidOrganization   = asn1.ObjectIdentifier{2, 5, 4, 10}
	oidSubjectKeyID   = asn1.ObjectIdentifier{2, 5, 29, 14}
	oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidAuthorityKeyID = asn1.ObjectIdentifier{2, 5, 29, 35}
)

// subject maps a subject, in DER; nothing but the node's name in it changes.
func (o *Options) subject(raw []byte) ([]byte, error) {
	var names pkix.RDNSequence
	if rest, err := asn1.Unmarshal(raw, &names); err != nil || len(rest) > 0 {
		return nil, errors.New("its subject can't be parsed")
	}
	changed := false
	for _, set := range names {
		for i := range set {
			text, ok := set[i].Value.(string)
			if !ok || !set[i].Type.Equal(oidCommonName) && !set[i].Type.Equal(oidOrganization) {
				continue
			}
			if to := o.identity(text); to != text {
				set[i].Value, changed = to, true
			}
		}
	}
	if !changed {
		return raw, nil
	}
	return asn1.Marshal(names)
}

// Tags of a subject alternative name (RFC 5280, 4.2.1.6).
const (
	tagDNS     = 2
	tagAddress = 7
)

// alternatives maps the subject alternative names, in DER, and adds more.
// Names of other kinds stay as they are, and so does the order.
func (o *Options) alternatives(raw []byte, more []string) ([]byte, error) {
	var names []asn1.RawValue
	if raw != nil {
		if rest, err := asn1.Unmarshal(raw, &names); err != nil || len(rest) > 0 {
			return nil, errors.New("its subject alternative names can't be parsed")
		}
	}
	var out []asn1.RawValue
	changed := false
	add := func(n asn1.RawValue) {
		twice := slices.ContainsFunc(out, func(m asn1.RawValue) bool {
			return m.Class == n.Class && m.Tag == n.Tag && bytes.Equal(m.Bytes, n.Bytes)
		})
		if !twice { // a new certificate names each once; for that alone none is made
			out = append(out, n)
		}
	}
	for _, n := range names {
		mapped := o.alternative(n)
		changed = changed || !bytes.Equal(mapped.Bytes, n.Bytes)
		add(mapped)
	}
	for _, text := range more {
		before := len(out)
		add(generalName(text))
		changed = changed || len(out) > before
	}
	if !changed {
		return raw, nil
	}
	return asn1.Marshal(out)
}

func (o *Options) alternative(n asn1.RawValue) asn1.RawValue {
	if n.Class != asn1.ClassContextSpecific {
		return n
	}
	switch n.Tag {
	case tagDNS:
		if to := o.host(string(n.Bytes)); to != string(n.Bytes) {
			return generalName(to)
		}
	case tagAddress:
		if a, ok := netip.AddrFromSlice(n.Bytes); ok && o.address(a) != a.Unmap() {
			return generalName(o.address(a).String())
		}
	}
	return n
}

func generalName(text string) asn1.RawValue {
	if a, err := netip.ParseAddr(text); err == nil {
		return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tagAddress, Bytes: a.Unmap().AsSlice()}
	}
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tagDNS, Bytes: []byte(text)}
}

func extension(cert *x509.Certificate, oid asn1.ObjectIdentifier) *pkix.Extension {
	for i := range cert.Extensions {
		if cert.Extensions[i].Id.Equal(oid) {
			return &cert.Extensions[i]
		}
	}
	return nil
}

// forAPIServer says whether clients take this certificate for the API server's.
func forAPIServer(cert *x509.Certificate) bool {
	serves := slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	return serves && (cert.Subject.CommonName == "kube-apiserver" || slices.Contains(cert.DNSNames, "kubernetes.default.svc"))
}
