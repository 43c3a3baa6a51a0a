package restore

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"path"

	"filippo.io/age"

	"lifeboat/internal/hostfacts"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/seal"
)

// NodeFacts are what a backup of a node's files tells without being restored.
type NodeFacts struct {
	Facts *hostfacts.Facts
	TLS   *tls.Config // for clients of the node's etcd; nil: the backup has no whole pair for it
}

// ReadNodeFacts reads a whole backup of host files, so that what it returns counts.
func ReadNodeFacts(ctx context.Context, repo *repository.Repository, m *manifest.Manifest, identities []age.Identity) (*NodeFacts, error) {
	archive, limits, err := OpenFiles(ctx, repo, m, identities)
	if err != nil {
		return nil, err
	}
	defer archive.Close()
	n, err := readNodeFacts(seal.NewArchiveReader(archive, limits))
	if err != nil {
		return nil, fmt.Errorf("read the facts in backup %s of %s: %w", m.ID, m.Chain, err)
	}
	if _, err := io.Copy(io.Discard, archive); err != nil { // what is behind the archive's end
		return nil, fmt.Errorf("read backup %s of %s: %w", m.ID, m.Chain, err)
	}
	return n, nil
}

func readNodeFacts(r *seal.ArchiveReader) (*NodeFacts, error) {
	h, err := r.Next()
	if err != nil && err != io.EOF {
		return nil, err
	}
	if err == io.EOF || h.Name != hostfacts.Name {
		return nil, errors.New("it does not begin with the facts of its machine")
	}
	out := &NodeFacts{}
	if out.Facts, err = hostfacts.Read(r); err != nil {
		return nil, err
	}
	wanted, etcd := map[string][]byte{}, out.Facts.Etcd
	if etcd != nil {
		for _, name := range []string{etcd.CAFile, etcd.CertFile, etcd.KeyFile} {
			wanted[path.Clean("/"+name)] = nil
		}
	}
	const most = 1 << 20 // of a file of certificates
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		name := "/" + h.Name
		if _, ok := wanted[name]; ok && h.Type == seal.TypeFile {
			if wanted[name], err = io.ReadAll(io.LimitReader(r, most)); err != nil {
				return nil, err
			}
		}
	}
	if etcd != nil {
		out.TLS = clientTLS(wanted[path.Clean("/"+etcd.CAFile)], wanted[path.Clean("/"+etcd.CertFile)], wanted[path.Clean("/"+etcd.KeyFile)])
	}
	return out, nil
}

// clientTLS is nil where the three don't make a client.
func clientTLS(ca, cert, key []byte) *tls.Config {
	pair, err := tls.X509KeyPair(cert, key)
	pool := x509.NewCertPool()
	if err != nil || !pool.AppendCertsFromPEM(ca) {
		return nil
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, RootCAs: pool}
}
