package host

import (
	"context"
	"encoding/base64"
	"path"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"lifeboat/internal/chroot"
)

// Certificate is one certificate of a node.
type Certificate struct {
	File     string // as the host sees it; for a kubeconfig's with "#" and the user's name
	Subject  string
	NotAfter time.Time
	CA       bool
}

// certificateFolders are looked through for files of certificates, as deep as
// Kubernetes and its distributions put them.
var certificateFolders = []string{
	"/etc/kubernetes/pki", "/etc/kubernetes/ssl", "/etc/etcd/pki", "/etc/ssl/etcd", "/var/lib/kubelet/pki",
	"/var/lib/rancher/k3s/server/tls", "/var/lib/rancher/rke2/server/tls", "/var/lib/k0s/pki",
}

// kubeconfigFolders hold kubeconfigs.
var kubeconfigFolders = []string{"/etc/kubernetes", "/var/lib/rancher/k3s/server/cred", "/var/lib/rancher/rke2/server/cred", "/var/lib/k0s/pki"}

// maxCertificates and maxLooked bound what a folder full of junk can cost.
const (
	maxCertificates = 1000
	maxLooked       = 5000
	certificateSize = 256 << 10
	deepest         = 4
)

// Certificates lists the certificates of the node below root that somebody must
// renew, soonest to expire first: the usual files, those in the kubeconfigs, and
// the kubelet's in use. What can't be read is left out; a capture tells of it.
// It reads a few dozen small files and no key.
func Certificates(ctx context.Context, root string) ([]Certificate, error) {
	t, err := openTree(root)
	if err != nil {
		return nil, err
	}
	defer t.close()
	s := &certificateScan{t: t, seen: map[string]bool{}}
	folders := slices.Clone(certificateFolders)
	if d, _, _ := setUp(t); d != nil { // in another place than the usual one
		folders = append(folders, path.Join(d.DataDir, "server/tls"), path.Join(d.DataDir, "pki"))
	}
	for _, folder := range folders {
		s.folder(ctx, folder, 0)
	}
	for _, folder := range kubeconfigFolders {
		for _, name := range s.names(folder) {
			if ext := path.Ext(name); ext == ".conf" || ext == ".kubeconfig" {
				s.kubeconfig(path.Join(folder, name))
			}
		}
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	slices.SortStableFunc(s.found, func(a, b Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
	return s.found, nil
}

// certificateScan is one look at a node's certificates.
type certificateScan struct {
	t      *tree
	seen   map[string]bool // files by their place behind links
	looked int
	found  []Certificate
}

func (s *certificateScan) names(folder string) []string {
	place, err := s.t.resolve(folder)
	if err != nil || place.Missing {
		return nil
	}
	names, err := s.t.folder(place.Name, defaultFiles)
	if err != nil {
		return nil
	}
	return names
}

func (s *certificateScan) folder(ctx context.Context, folder string, depth int) {
	for _, name := range s.names(folder) {
		if s.looked++; s.looked > maxLooked || ctx.Err() != nil {
			return
		}
		file := path.Join(folder, name)
		place, err := s.t.resolve(file)
		if err != nil || place.Missing {
			continue
		}
		info, err := s.t.root.Lstat(place.Name)
		switch {
		case err != nil:
		case info.IsDir():
			if depth < deepest && len(place.Links) == 0 {
				s.folder(ctx, file, depth+1)
			}
		case ofCertificates(name) && !rotated(name):
			s.file(file, place)
		}
	}
}

// ofCertificates goes by the name: whatever else lies there may be a key, which
// nobody needs to read for this.
func ofCertificates(name string) bool {
	ext := path.Ext(name)
	return ext == ".crt" || ext == ".pem" && !strings.HasSuffix(name, "-key.pem")
}

// rotated: the kubelet leaves what it has replaced beside the link to the one in
// use, to expire there.
func rotated(name string) bool {
	return strings.HasPrefix(name, "kubelet-client-2") || strings.HasPrefix(name, "kubelet-server-2")
}

// file adds a file's certificates under the name that it was found by.
func (s *certificateScan) file(name string, place chroot.Place) {
	if s.seen[place.Name] {
		return
	}
	s.seen[place.Name] = true
	got, err := s.t.read(place.Name, certificateSize, certificateSize)
	if err != nil {
		return
	}
	s.add(name, got.data)
}

func (s *certificateScan) add(name string, pem []byte) {
	for _, cert := range parseCertificates(pem) {
		if len(s.found) == maxCertificates {
			return
		}
		s.found = append(s.found, Certificate{File: name, Subject: cert.Subject.String(), NotAfter: cert.NotAfter.UTC(), CA: cert.IsCA})
	}
}

// kubeconfig adds the client certificates in a kubeconfig, and those in files
// that it names.
func (s *certificateScan) kubeconfig(name string) {
	text := s.t.text(name)
	if len(text) > certificateSize {
		return
	}
	var doc struct {
		Users []struct {
			Name string `json:"name"`
			User struct {
				File string `json:"client-certificate"`
				Data string `json:"client-certificate-data"`
			} `json:"user"`
		} `json:"users"`
	}
	if yaml.Unmarshal([]byte(text), &doc) != nil {
		return
	}
	for _, u := range doc.Users {
		if data, err := base64.StdEncoding.DecodeString(u.User.Data); err == nil && len(data) > 0 {
			s.add(name+"#"+u.Name, data)
		}
		if file := u.User.File; file != "" {
			if !path.IsAbs(file) {
				file = path.Join(path.Dir(name), file)
			}
			if place, err := s.t.resolve(file); err == nil && !place.Missing {
				s.file(file, place)
			}
		}
	}
}
