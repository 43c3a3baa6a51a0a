package pki

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"net/netip"
	"path"
	"slices"
	"time"
)

// Inspect lists the certificates of the node below root: kubeadm's, the
// kubelet's in use, those in the kubeconfigs, and those in more folders, such as
// an external etcd's. It changes nothing. With a CA that is not valid at the time
// the inventory is whole and the error is, or joins, an *AuthorityError.
func Inspect(ctx context.Context, root string, now time.Time, folders ...string) (*Inventory, error) {
	t, err := openTree(root)
	if err != nil {
		return nil, err
	}
	defer t.close()
	j, err := t.journal()
	if err != nil {
		return nil, err
	}
	s, err := t.scan(ctx, folders)
	if err != nil {
		return nil, err
	}
	return &Inventory{Certificates: s.certificates(now), Interrupted: j.names()}, s.checkAuthorities(now)
}

// findAuthorities collects the CAs that lie in files, each once, with their keys.
// The CA that a kubelet signs its own serving certificate with counts for nothing.
func (s *scan) findAuthorities() {
	seen := map[string]bool{}
	for _, f := range s.pems {
		own := !slices.ContainsFunc(f.certs, func(c *x509.Certificate) bool { return !c.IsCA })
		for _, cert := range f.certs {
			if !cert.IsCA || f.name == kubeletServer || seen[string(cert.Raw)] {
				continue
			}
			seen[string(cert.Raw)] = true
			s.authorities = append(s.authorities, &authority{cert: cert, file: f.saved, key: s.keyFor(cert), own: own})
		}
	}
}

func (s *scan) keyFor(cert *x509.Certificate) *privateKey {
	for _, f := range s.pems {
		for i := range f.keys {
			if samePublic(cert.PublicKey, f.keys[i].signer.Public()) {
				return &f.keys[i]
			}
		}
	}
	return nil
}

// issuerOf finds the CA that signed a certificate. Of several with one key, as a
// renewed CA and the one before it have, it takes the one with its key there,
// of the leaf's issuer's name, that lasts longest.
func (s *scan) issuerOf(cert *x509.Certificate) *authority {
	var found []*authority
	for _, a := range s.authorities {
		if cert.CheckSignatureFrom(a.cert) == nil {
			found = append(found, a)
		}
	}
	if len(found) == 0 {
		return nil
	}
	return slices.MaxFunc(found, func(a, b *authority) int {
		return cmp.Or(order(a.key != nil, b.key != nil),
			order(string(a.cert.RawSubject) == string(cert.RawIssuer), string(b.cert.RawSubject) == string(cert.RawIssuer)),
			a.cert.NotAfter.Compare(b.cert.NotAfter))
	})
}

// order puts true after false.
func order(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// usualAuthorities are the names that CAs in use have. Under another name an
// expired one may be what somebody kept of an earlier rotation.
var usualAuthorities = []string{"ca.crt", "ca.pem", "front-proxy-ca.crt"}

// checkAuthorities reports the CAs in use that are not valid now, but where
// their file holds another one that is.
func (s *scan) checkAuthorities(now time.Time) error {
	used := map[*authority]bool{}
	for _, l := range s.leaves {
		used[l.issuer] = true
	}
	replaced := map[*saved]bool{}
	for _, a := range s.authorities {
		if validAt(a.cert, now) {
			replaced[a.file] = true
		}
	}
	var errs []error
	for _, a := range s.authorities {
		usual := a.own && slices.Contains(usualAuthorities, path.Base(a.file.name))
		if validAt(a.cert, now) || !used[a] && (!usual || replaced[a.file]) || !a.own && a.key == nil {
			continue
		}
		errs = append(errs, &AuthorityError{File: a.file.name, Name: a.cert.Subject.CommonName,
			NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter, Now: now})
	}
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}

func validAt(c *x509.Certificate, now time.Time) bool {
	return !now.Before(c.NotBefore) && !now.After(c.NotAfter)
}

// certificates is the inventory, by file.
func (s *scan) certificates(now time.Time) []Certificate {
	out := []Certificate{}
	for _, f := range s.pems {
		for _, cert := range f.certs {
			out = append(out, s.describe(cert, f.name, "", now))
		}
	}
	for _, c := range s.configs {
		for _, b := range c.trust {
			for _, cert := range b.certs {
				out = append(out, s.describe(cert, c.name, "", now))
			}
		}
		for i, b := range c.certs {
			for _, cert := range b.certs {
				out = append(out, s.describe(cert, c.name, value(c.users[i].name), now))
			}
		}
	}
	slices.SortStableFunc(out, func(a, b Certificate) int { return cmp.Compare(a.File, b.File) })
	return out
}

func (s *scan) describe(cert *x509.Certificate, file, user string, now time.Time) Certificate {
	c := Certificate{
		File: file, User: user, Subject: cert.Subject.String(), DNSNames: append([]string{}, cert.DNSNames...), Addresses: addresses(cert),
		NotBefore: cert.NotBefore.UTC(), NotAfter: cert.NotAfter.UTC(), CA: cert.IsCA,
	}
	issuer := s.issuerOf(cert)
	if issuer != nil {
		c.Issuer, c.IssuerKey = issuer.file.name, issuer.key != nil
	}
	c.State = stateOf(cert, issuer, now)
	return c
}

func stateOf(cert *x509.Certificate, issuer *authority, now time.Time) State {
	switch {
	case now.After(cert.NotAfter):
		return Expired
	case now.Before(cert.NotBefore):
		return NotYetValid
	case issuer == nil:
		return UnknownCA
	case cert.NotAfter.Sub(now) < Soon:
		return ExpiresSoon
	}
	return Fine
}

func addresses(cert *x509.Certificate) []netip.Addr {
	out := []netip.Addr{}
	for _, ip := range cert.IPAddresses {
		if a, ok := netip.AddrFromSlice(ip); ok {
			out = append(out, a.Unmap())
		}
	}
	return out
}
