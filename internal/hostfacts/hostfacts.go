// Package hostfacts is the format of what a backup of a node's files tells of the
// machine: the archive's first entry. Whoever captures writes it, whoever restores
// reads it.
package hostfacts

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"lifeboat/internal/manifest"
)

// Name is the archive's first entry. It is never restored.
const Name = "lifeboat/facts.json"

// Format is the version of the facts' JSON.
const Format = 1

// Facts are what a restore needs to know of the machine and of the capture.
// They are sealed with the files. Lists are never null.
type Facts struct {
	Format       int           `json:"format"`
	Node         string        `json:"node"`
	Created      time.Time     `json:"created"`
	Hostname     string        `json:"hostname"`
	Kernel       string        `json:"kernel"`
	OS           string        `json:"os"`
	Addresses    []Address     `json:"addresses"`
	Routes       []Route       `json:"routes"`
	ResolvConf   string        `json:"resolvConf"`
	Hosts        string        `json:"hosts"`   // /etc/hosts
	Servers      []string      `json:"servers"` // URLs of API servers in the host's kubeconfigs
	DNS          []Answer      `json:"dns"`     // for the names in Servers
	Images       []Image       `json:"images"`
	Etcd         *Discovery    `json:"etcd,omitempty"`
	Distribution *Distribution `json:"distribution,omitempty"` // nil: none that was known to the capture
	EtcdServers  []EtcdServer  `json:"etcdServers,omitempty"`  // that run here outside of Kubernetes
	DataDirs     []string      `json:"dataDirs"`               // of etcd; not stored
	Encryption   []Keys        `json:"encryption"`
	Certificates []Certificate `json:"certificates"`
	Folders      []string      `json:"folders"` // stored whole: what else is in them at a restore was not there
	Noted        []NotedFolder `json:"noted"`
	Skipped      []SkippedFile `json:"skipped"`
	Files        []File        `json:"files"`
	Degraded     []string      `json:"degraded"`
	Warnings     []string      `json:"warnings"`
}

// Address is one address of an interface.
type Address struct {
	Interface string `json:"interface"`
	Address   string `json:"address"` // with its prefix length: 10.0.0.11/24
	Hardware  string `json:"hardware,omitempty"`
}

// Route is one entry of the routing table.
type Route struct {
	Interface   string `json:"interface"`
	Destination string `json:"destination"` // with its prefix length
	Gateway     string `json:"gateway,omitempty"`
	Metric      uint32 `json:"metric"`
}

// Answer is what DNS said at capture.
type Answer struct {
	Name      string   `json:"name"`
	Addresses []string `json:"addresses"`
	Failed    string   `json:"failed,omitempty"`
}

// Why a node needs an image that no static pod of it names.
const (
	WhySandbox = "sandbox"     // the pause image, of every pod
	WhySystem  = "kube-system" // of a pod of that namespace on this node
	WhyNetwork = "network"     // of a pod that brings the node its network, in any namespace
)

// Image is a container image that the node needs: of a static pod, or as Why says.
type Image struct {
	Pod       string `json:"pod"`
	Container string `json:"container"`
	Image     string `json:"image"`
	Digest    string `json:"digest,omitempty"` // of what the container runtime has by that name, or in the reference
	Why       string `json:"why,omitempty"`    // "sandbox", "kube-system", "network"; empty: a static pod names it
}

// NotedFolder is a folder of the operating system's trust store.
type NotedFolder struct {
	Path   string `json:"path"`
	Files  int    `json:"files"`
	SHA256 string `json:"sha256"` // over the names and contents; equal on an equal folder
}

// SkippedFile is what was met and not stored.
type SkippedFile struct {
	Path string `json:"path"`
	Why  string `json:"why"`
}

// File is one stored file.
type File struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// Certificate is one certificate in a stored file.
type Certificate struct {
	File      string    `json:"file"`
	Subject   string    `json:"subject"`
	Issuer    string    `json:"issuer"`
	Names     []string  `json:"names"` // DNS names and addresses
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
	CA        bool      `json:"ca"`
}

// Discovery is how to reach the etcd that a node's API server uses, and where
// its data lies. File names are the host's own, absolute.
type Discovery struct {
	Kind          string   `json:"kind"` // "stacked", "external", "k3s", "rke2", "k0s"
	EtcdEndpoints []string `json:"etcdEndpoints"`
	CAFile        string   `json:"caFile,omitempty"`
	CertFile      string   `json:"certFile,omitempty"`
	KeyFile       string   `json:"keyFile,omitempty"`
	// EtcdServersOverrides are the API server's, as written: separate etcds for
	// some resources, each "/resource#url;url".
	EtcdServersOverrides []string `json:"etcdServersOverrides"`
	// Separate is what they mean, and what of it runs here.
	Separate []Separate `json:"separate,omitempty"`

	Name           string `json:"name,omitempty"`           // of the member in a static pod
	DataDir        string `json:"dataDir,omitempty"`        // of it
	PeerURLs       string `json:"peerURLs,omitempty"`       // that it advertises
	InitialCluster string `json:"initialCluster,omitempty"` // as when it joined: may be out of date
	Image          string `json:"image,omitempty"`          // whose tag tells etcd's version
}

// Keys are the names, never the secrets, in one EncryptionConfiguration.
type Keys struct {
	File      string     `json:"file"`
	Providers []Provider `json:"providers"`
	// Unread: the node's API server names another file, or none. Facts of older backups
	// don't tell.
	Unread bool `json:"unread,omitempty"`
}

// Provider is one provider of an EncryptionConfiguration.
type Provider struct {
	Provider string   `json:"provider"`           // aescbc, aesgcm, secretbox, kms
	Keys     []string `json:"keys"`               // for kms its name
	Endpoint string   `json:"endpoint,omitempty"` // of a KMS: without it nothing it sealed can be read
}

// mostBytes bounds what is read of facts.
const mostBytes = 32 << 20

// ErrDamaged says that facts can't be read, ErrNewer that a newer lifeboat wrote
// them.
var (
	ErrDamaged = errors.New("the facts in the backup are damaged")
	ErrNewer   = errors.New("a newer lifeboat made the backup")
)

// Read reads facts as they stand in the archive. What a later version of the
// same format has added it leaves out.
func Read(r io.Reader) (*Facts, error) {
	text, err := io.ReadAll(io.LimitReader(r, mostBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read the facts of the machine: %w", err)
	}
	if len(text) > mostBytes {
		return nil, fmt.Errorf("%w: more than %d bytes", ErrDamaged, mostBytes)
	}
	var f Facts
	if err := json.Unmarshal(text, &f); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	switch {
	case f.Format > Format:
		return nil, fmt.Errorf("%w: the format of its facts is %d, this one knows %d", ErrNewer, f.Format, Format)
	case f.Format != Format:
		return nil, fmt.Errorf("%w: format %d", ErrDamaged, f.Format)
	}
	if f.Distribution != nil && f.Etcd != nil && f.Etcd.Kind != f.Distribution.Kind {
		f.Distribution = nil // older captures took what one has left beside kubeadm's for a server
	}
	return &f, nil
}

// Covers returns, for every key that values in etcd were encrypted with and
// that no EncryptionConfiguration of the node's API server holds, a sentence for a
// person. Without these keys the values can't be read after a restore. A host of etcd
// alone has none, and needs none.
func (f *Facts) Covers(uses []manifest.KeyUse) (missing []string) {
	if f.EtcdOnly() {
		return nil
	}
	have := f.KeyNames()
	for _, use := range uses {
		name := use.Name()
		if slices.Contains(have, name) {
			continue
		}
		text := fmt.Sprintf("%d objects in etcd, such as %s, are encrypted with the %s key %q, which no captured encryption configuration holds that the API server reads",
			use.Objects, use.Example, name.Provider, name.Key)
		for _, config := range f.Encryption {
			if config.Unread && slices.Contains(config.names(), name) {
				text += fmt.Sprintf(" (/%s has one of that name, and is not what --encryption-provider-config names)", config.File)
			}
		}
		missing = append(missing, text)
	}
	return missing
}

// KeyNames are the names of the encryption keys that the node's API server has, each
// once.
func (f *Facts) KeyNames() (names []manifest.KeyName) {
	for _, config := range f.Encryption {
		if config.Unread {
			continue
		}
		for _, name := range config.names() {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}

func (k *Keys) names() (names []manifest.KeyName) {
	for _, p := range k.Providers {
		for _, key := range p.Keys {
			names = append(names, manifest.KeyName{Provider: p.Provider, Key: key})
		}
	}
	return names
}
