package pki

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"time"
)

// draft is a certificate that is to be issued, all but its key.
type draft struct {
	old                 *x509.Certificate
	issuer              *authority
	subject             []byte // DER
	alternatives        []byte // DER; nil if it has none
	notBefore, notAfter time.Time
}

// backdate is how long before its making a certificate is valid, for clocks
// that differ; kubeadm's constant (CertificateBackdate).
const backdate = 5 * time.Minute

// life gives the new certificate as long a life as the old one had, within the
// CA's.
func (d *draft) life(now time.Time) {
	now = now.UTC().Truncate(time.Second)
	d.notBefore = now.Add(-backdate)
	if ca := d.issuer.cert; d.notBefore.Before(ca.NotBefore) {
		d.notBefore = ca.NotBefore
	}
	d.notAfter = d.notBefore.Add(d.old.NotAfter.Sub(d.old.NotBefore))
	if ca := d.issuer.cert; d.notAfter.After(ca.NotAfter) {
		d.notAfter = ca.NotAfter
	}
}

// issue signs the certificate for a key. All extensions are the old one's, byte
// for byte, but the alternative names and those that name the keys.
func (d *draft) issue(key crypto.Signer, random io.Reader) (*x509.Certificate, error) {
	template := &x509.Certificate{
		RawSubject: d.subject, NotBefore: d.notBefore, NotAfter: d.notAfter,
		SignatureAlgorithm: d.old.SignatureAlgorithm,
	}
	names := d.alternatives
	for _, e := range d.old.Extensions {
		switch {
		case e.Id.Equal(oidAuthorityKeyID):
			continue
		case e.Id.Equal(oidSubjectKeyID):
			id, err := keyID(key.Public())
			if err != nil {
				return nil, err
			}
			e.Value = id
		case e.Id.Equal(oidSubjectAltName):
			e.Value, names = d.alternatives, nil
		}
		template.ExtraExtensions = append(template.ExtraExtensions, e)
	}
	if names != nil {
		template.ExtraExtensions = append(template.ExtraExtensions, pkix.Extension{Id: oidSubjectAltName, Value: names})
	}
	der, err := x509.CreateCertificate(random, template, d.issuer.cert, key.Public(), d.issuer.key.signer)
	if err != nil {
		return nil, fmt.Errorf("sign with the CA of %s: %w", d.issuer.file.name, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read what was signed: %w", err)
	}
	return cert, d.check(cert)
}

// check makes sure of what was issued before it takes anything's place.
func (d *draft) check(cert *x509.Certificate) error {
	switch {
	case cert.CheckSignatureFrom(d.issuer.cert) != nil:
		return errors.New("the new certificate's signature is not its CA's")
	case !bytes.Equal(cert.RawSubject, d.subject):
		return errors.New("the new certificate's subject is not the planned one")
	case cert.IsCA:
		return errors.New("the new certificate is a CA's")
	}
	return nil
}

// keyID is the extension that names a key: RFC 7093, method 1.
func keyID(public crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("name the new key: %w", err)
	}
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Bits      asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &info); err != nil {
		return nil, fmt.Errorf("name the new key: %w", err)
	}
	sum := sha256.Sum256(info.Bits.Bytes)
	return asn1.Marshal(sum[:20])
}
