package host

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"path"
	"strings"
	"time"

	"lifeboat/internal/seal"
)

// soon is when a coming expiry is worth a warning: kubeadm renews a month ahead.
const soon = 30 * 24 * time.Hour

// pemFile says whether a file must hold PEM, by its name or by what is in it.
func pemFile(name string, data []byte) bool {
	switch path.Ext(name) {
	case ".crt", ".pem":
		return true
	case ".key":
		return strings.Contains(name, "pki") || bytes.Contains(data, []byte("-----BEGIN"))
	}
	return bytes.HasPrefix(bytes.TrimSpace(data), []byte("-----BEGIN"))
}

// parsedPEM is what a PEM file holds.
type parsedPEM struct {
	certs   []*x509.Certificate
	publics []crypto.PublicKey // of private and public keys
	broken  string             // what can't be parsed
	sealed  bool               // a key that needs a passphrase
}

var errNoKey = errors.New("not a key")

func parsePEM(data []byte) parsedPEM {
	var out parsedPEM
	blocks := 0
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		blocks++
		switch {
		case block.Type == "CERTIFICATE" || block.Type == "TRUSTED CERTIFICATE":
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				out.broken = "certificate"
				continue
			}
			out.certs = append(out.certs, cert)
		case block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "":
			out.sealed = true
		case strings.HasSuffix(block.Type, "PRIVATE KEY"):
			public, err := publicOf(block.Bytes)
			if err != nil {
				out.broken = "private key"
				continue
			}
			out.publics = append(out.publics, public)
		case strings.HasSuffix(block.Type, "PUBLIC KEY"):
			public, err := x509.ParsePKIXPublicKey(block.Bytes)
			if err != nil {
				if public, err = x509.ParsePKCS1PublicKey(block.Bytes); err != nil {
					out.broken = "public key"
					continue
				}
			}
			out.publics = append(out.publics, public)
		}
	}
	if blocks == 0 {
		out.broken = "PEM file"
	}
	return out
}

// parseCertificates is parsePEM for the certificates only: keys among them are
// passed over unread.
func parseCertificates(data []byte) []*x509.Certificate {
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return certs
		}
		if block.Type != "CERTIFICATE" && block.Type != "TRUSTED CERTIFICATE" {
			continue
		}
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
			certs = append(certs, cert)
		}
	}
}

func publicOf(der []byte) (crypto.PublicKey, error) {
	if key, err := x509.ParsePKCS8PrivateKey(der); err == nil {
		if s, ok := key.(crypto.Signer); ok {
			return s.Public(), nil
		}
		return nil, errNoKey
	}
	if key, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return key.Public(), nil
	}
	if key, err := x509.ParseECPrivateKey(der); err == nil {
		return key.Public(), nil
	}
	return nil, errNoKey
}

func samePublic(a, b crypto.PublicKey) bool {
	switch k := a.(type) {
	case *rsa.PublicKey:
		return k.Equal(b)
	case *ecdsa.PublicKey:
		return k.Equal(b)
	case ed25519.PublicKey:
		return k.Equal(b)
	}
	return false
}

// pairMatches says whether the first certificate belongs to the key.
func pairMatches(certPEM, keyPEM []byte) bool {
	cert, key := parsePEM(certPEM), parsePEM(keyPEM)
	if len(cert.certs) == 0 || len(key.publics) == 0 {
		return false
	}
	return samePublic(cert.certs[0].PublicKey, key.publics[0])
}

// pems returns the parsed PEM files among the entries.
func (c *closure) pems() map[string]parsedPEM {
	out := make(map[string]parsedPEM)
	for name, e := range c.entries {
		if e.header.Type == seal.TypeFile && len(e.data) <= parseLimit && (e.data != nil || e.header.Size == 0) && pemFile(name, e.data) {
			out[name] = parsePEM(e.data)
		}
	}
	return out
}

// check looks at certificates and keys. A node whose certificates are expired
// or don't fit is captured as it is: that is what a backup is for.
func (c *closure) check(now time.Time) {
	c.checkDocuments()
	pems := c.pems()
	pairs := make(map[pair]bool)
	for p := range c.pairs {
		pairs[p] = true
	}
	for name, p := range pems {
		if p.broken != "" {
			c.degraded.addf("%s: a %s that can't be parsed", name, p.broken)
		}
		if p.sealed {
			c.warnings.addf("%s: a private key behind a passphrase, not checked", name)
		}
		for i, cert := range p.certs {
			c.expiry(name, cert, i == 0 && c.inUse(name), now)
		}
		if len(p.certs) > 0 && len(p.publics) > 0 {
			pairs[pair{name, name}] = true
		}
		for _, key := range keysBeside(name) {
			if _, ok := pems[key]; ok {
				pairs[pair{name, key}] = true
			}
		}
	}
	for p := range pairs {
		c.checkPair(p, pems[p.cert], pems[p.key])
	}
	if c.own != nil {
		c.checkDistribution(c.own)
	} else if len(c.pods) == 0 && len(c.etcds) == 0 {
		c.warnings.addf("no static pod was found: is this a control-plane node?")
	}
}

// inUse: the kubelet leaves its rotated certificates, which expire as they
// should, beside the one in use; only what is named or has a name of its own counts.
func (c *closure) inUse(name string) bool {
	rotated := strings.HasPrefix(path.Base(name), "kubelet-client-2") || strings.HasPrefix(path.Base(name), "kubelet-server-2")
	return c.entries[name].named || !rotated
}

func (c *closure) expiry(name string, cert *x509.Certificate, used bool, now time.Time) {
	const day = "2006-01-02"
	switch {
	case now.After(cert.NotAfter) && used:
		c.degraded.addf("%s: the certificate expired on %s", name, cert.NotAfter.UTC().Format(day))
	case now.After(cert.NotAfter) && c.inUse(name):
		c.warnings.addf("%s: holds a certificate that expired on %s", name, cert.NotAfter.UTC().Format(day))
	case now.Before(cert.NotBefore) && used:
		c.degraded.addf("%s: the certificate is not valid before %s", name, cert.NotBefore.UTC().Format(day))
	case used && cert.NotAfter.Sub(now) < soon && now.Before(cert.NotAfter):
		c.warnings.addf("%s: the certificate expires on %s", name, cert.NotAfter.UTC().Format(day))
	}
}

// keysBeside returns the names that the key of a certificate or public key
// usually has.
func keysBeside(name string) []string {
	ext := path.Ext(name)
	stem := strings.TrimSuffix(name, ext)
	switch ext {
	case ".crt", ".pub":
		return []string{stem + ".key"}
	case ".pem":
		if strings.HasSuffix(stem, "-key") {
			return nil
		}
		return []string{stem + "-key.pem", stem + ".key"}
	}
	return nil
}

func (c *closure) checkPair(p pair, cert, key parsedPEM) {
	if cert.broken != "" || key.broken != "" || key.sealed || len(key.publics) == 0 {
		return // told elsewhere, or nothing to compare
	}
	var public crypto.PublicKey
	switch {
	case len(cert.certs) > 0:
		public = cert.certs[0].PublicKey
	case len(cert.publics) > 0:
		public = cert.publics[0]
	default:
		return
	}
	for _, other := range cert.certs {
		// After a rotation an authority's file holds the old one too, in any order.
		if cert.certs[0].IsCA && samePublic(other.PublicKey, key.publics[0]) {
			return
		}
	}
	if !samePublic(public, key.publics[0]) {
		c.degraded.addf("%s does not match its key %s", p.cert, p.key)
	}
}

// certificates lists what is in the stored files.
func (c *closure) certificates() []CertificateFact {
	var out []CertificateFact
	pems := c.pems()
	for _, name := range sortedKeys(pems) {
		for _, cert := range pems[name].certs {
			f := CertificateFact{
				File: name, Subject: cert.Subject.String(), Issuer: cert.Issuer.String(), Names: append([]string{}, cert.DNSNames...),
				NotBefore: cert.NotBefore.UTC(), NotAfter: cert.NotAfter.UTC(), CA: cert.IsCA,
			}
			for _, ip := range cert.IPAddresses {
				f.Names = append(f.Names, ip.String())
			}
			out = append(out, f)
		}
	}
	return out
}
