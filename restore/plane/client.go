package plane

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"lifeboat/internal/hostfacts"
	"lifeboat/restore/nodefiles"
)

// clientOf finds, on a host without an API server, how its etcd is asked: with the
// certificate of a client that lies beside etcd's own, or else with one of etcd's
// that is for clients too, as those for peers are.
func clientOf(s *nodefiles.Staged, server *hostfacts.EtcdServer) hostfacts.Discovery {
	d := hostfacts.Discovery{Kind: "external", EtcdEndpoints: dialled(slices.Concat(server.ListenClientURLs, server.ClientURLs)), Name: server.Name, DataDir: server.DataDir}
	if !slices.ContainsFunc(d.EtcdEndpoints, func(u string) bool { return strings.HasPrefix(u, "https:") }) {
		return d
	}
	d.CAFile = server.CAFile
	for _, file := range []string{server.PeerCAFile, server.CertFile} { // etcd asks its clients for no certificate
		if d.CAFile == "" {
			d.CAFile = file
		}
	}
	d.CertFile, d.KeyFile = clientPair(s, server)
	return d
}

// clientPair returns the best pair; empty where there is none.
func clientPair(s *nodefiles.Staged, server *hostfacts.EtcdServer) (cert, key string) {
	pool := x509.NewCertPool()
	if ca, err := s.Read(server.CAFile); err == nil {
		pool.AppendCertsFromPEM(ca)
	}
	keys := map[string]string{server.CertFile: server.KeyFile, server.PeerCertFile: server.PeerKeyFile}
	var candidates []string
	for _, file := range []string{server.CAFile, server.CertFile, server.PeerCertFile} {
		if file == "" {
			continue
		}
		entries, err := os.ReadDir(filepath.Join(s.Tree(), path.Dir(file)))
		if err != nil {
			continue
		}
		for _, e := range entries {
			if name := path.Join(path.Dir(file), e.Name()); !slices.Contains(candidates, name) {
				candidates = append(candidates, name)
			}
		}
	}
	best := 0
	for _, name := range candidates {
		for _, k := range keysOf(name, keys[name]) {
			rank := rankOf(s, name, k, pool, server)
			if rank > best {
				best, cert, key = rank, name, k
			}
		}
	}
	return cert, key
}

// keysOf are where the key of a certificate may lie.
func keysOf(cert, known string) (keys []string) {
	if known != "" {
		return []string{known}
	}
	ext := path.Ext(cert)
	stem := strings.TrimSuffix(cert, ext)
	if ext != ".crt" && ext != ".pem" || strings.HasSuffix(stem, "-key") {
		return nil
	}
	return []string{stem + ".key", stem + "-key.pem", cert}
}

// rankOf says how well a pair is fit to ask etcd with; 0: not.
func rankOf(s *nodefiles.Staged, cert, key string, pool *x509.CertPool, server *hostfacts.EtcdServer) int {
	certText, err := s.Read(cert)
	if err != nil || !strings.Contains(string(certText), "BEGIN CERTIFICATE") {
		return 0
	}
	keyText, err := s.Read(key)
	if err != nil {
		return 0
	}
	if _, err := tls.X509KeyPair(certText, keyText); err != nil {
		return 0
	}
	block, _ := pem.Decode(certText)
	if block == nil {
		return 0
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil || leaf.IsCA {
		return 0
	}
	// By a clock that may be wrong on a machine just made: whether it has expired etcd says.
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: leaf.NotAfter, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return 0
	}
	switch cert {
	case server.CertFile:
		return 1
	case server.PeerCertFile:
		return 2
	}
	return 3 // a client's own
}
