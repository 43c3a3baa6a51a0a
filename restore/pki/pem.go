package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"strings"
)

// largestRSA bounds what checking a signature, or making a key, can cost.
const largestRSA = 8192 // bits

// keyLimit is more than the largest such key takes: to check a larger one would
// take long.
const keyLimit = 16 << 10 // bytes

// The kinds of PEM blocks that are read.
const (
	certificateBlock = "CERTIFICATE"
	trustedBlock     = "TRUSTED CERTIFICATE"
	pkcs1Block       = "RSA PRIVATE KEY"
	sec1Block        = "EC PRIVATE KEY"
	pkcs8Block       = "PRIVATE KEY"
	encryptedBlock   = "ENCRYPTED PRIVATE KEY"
)

// bundle is what a PEM file holds.
type bundle struct {
	certs  []*x509.Certificate
	keys   []privateKey
	sealed bool // a key that needs a passphrase
}

// privateKey is a key with the kind of block that it was written as.
type privateKey struct {
	signer crypto.Signer
	block  string
}

// parsePEM reads certificates and private keys. Blocks of other kinds are
// passed over; text around the blocks is, too.
func parsePEM(data []byte) (bundle, error) {
	var out bundle
	rest := data
	for blocks := 0; ; blocks++ {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			if blocks == 0 || bytes.Contains(rest, []byte("-----BEGIN ")) {
				return bundle{}, fmt.Errorf("%w: block %d is no PEM", ErrUnreadable, blocks+1)
			}
			return out, nil
		}
		if err := out.add(block); err != nil {
			return bundle{}, fmt.Errorf("%w: block %d: %w", ErrUnreadable, blocks+1, err)
		}
	}
}

func (b *bundle) add(block *pem.Block) error {
	switch {
	case block.Type == certificateBlock || block.Type == trustedBlock:
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return fmt.Errorf("parse the certificate: %w", err)
		}
		if err := bounded(cert.PublicKey); err != nil {
			return err
		}
		b.certs = append(b.certs, cert)
	case block.Type == encryptedBlock || block.Headers["DEK-Info"] != "":
		b.sealed = true
	case strings.HasSuffix(block.Type, "PRIVATE KEY"):
		signer, err := parseKey(block)
		if err != nil {
			return err
		}
		b.keys = append(b.keys, privateKey{signer: signer, block: block.Type})
	}
	return nil
}

// parseKey tells nothing of the bytes in its errors: they are a key's.
func parseKey(block *pem.Block) (crypto.Signer, error) {
	if len(block.Bytes) > keyLimit {
		return nil, fmt.Errorf("a %s of more than %d bytes", block.Type, keyLimit)
	}
	var key any
	var err error
	switch block.Type {
	case pkcs1Block:
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case sec1Block:
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case pkcs8Block:
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("a private key of the unknown kind %q", block.Type)
	}
	if err != nil {
		return nil, fmt.Errorf("the %s can't be parsed", block.Type)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("the %s can't sign", block.Type)
	}
	return signer, bounded(signer.Public())
}

func bounded(public crypto.PublicKey) error {
	if k, ok := public.(*rsa.PublicKey); ok && k.N.BitLen() > largestRSA {
		return fmt.Errorf("an RSA key of %d bits; more than %d are not read", k.N.BitLen(), largestRSA)
	}
	return nil
}

func samePublic(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

func encodeCertificates(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: certificateBlock, Bytes: c.Raw})...)
	}
	return out
}

// encode writes the key as the kind of block that it has, or where a key of its
// algorithm has none such, as PKCS #8.
func (k privateKey) encode() ([]byte, error) {
	block := &pem.Block{Type: k.block}
	var err error
	switch key := k.signer.(type) {
	case *rsa.PrivateKey:
		if k.block == pkcs1Block {
			block.Bytes = x509.MarshalPKCS1PrivateKey(key)
		}
	case *ecdsa.PrivateKey:
		if k.block == sec1Block {
			block.Bytes, err = x509.MarshalECPrivateKey(key)
		}
	}
	if block.Bytes == nil && err == nil {
		block.Type = pkcs8Block
		block.Bytes, err = x509.MarshalPKCS8PrivateKey(k.signer)
	}
	if err != nil {
		return nil, fmt.Errorf("encode the new key: %w", err)
	}
	return pem.EncodeToMemory(block), nil
}

// makeable says why no new key like this one can be made, nil if it can.
func makeable(public crypto.PublicKey) error {
	switch k := public.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() < 1024 {
			return fmt.Errorf("its RSA key of %d bits is too short to make another one like it", k.N.BitLen())
		}
	case *ecdsa.PublicKey, ed25519.PublicKey:
	default:
		return fmt.Errorf("its key is of a kind that can't be made here (%T)", public)
	}
	return nil
}

// makeKey makes a new key of the same algorithm and size.
func makeKey(like crypto.PublicKey, block string, random io.Reader) (privateKey, error) {
	out := privateKey{block: block}
	var err error
	switch k := like.(type) {
	case *rsa.PublicKey:
		out.signer, err = rsa.GenerateKey(random, k.N.BitLen())
	case *ecdsa.PublicKey:
		out.signer, err = ecdsa.GenerateKey(elliptic.Curve(k.Curve), random)
	case ed25519.PublicKey:
		_, out.signer, err = ed25519.GenerateKey(random)
	default:
		err = makeable(like)
	}
	if err != nil {
		return privateKey{}, fmt.Errorf("make a new key: %w", err)
	}
	return out, nil
}
