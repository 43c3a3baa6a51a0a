// Package recoverykit makes the part of a recovery kit that may lie open: the
// page for the worst day with this cluster's names in it, where the backups are,
// the trust in them, the configuration to read them, and the sums to know all of
// it by. What opens a backup, the identity, is never in it: a kit says where it
// is kept, and Files refuses to make one that holds a secret.
//
// The page's text is docs/restore.md and what that leads to; nothing is written
// twice. Start at Files, then Write.
package recoverykit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"lifeboat/docs"
	"lifeboat/internal/manifest"
)

// The files of a kit. Those of stores' authorities have names of their own.
const (
	HTMLFile   = "restore.html"
	TextFile   = "restore.md"
	TrustFile  = "trust"
	ConfigFile = "config.yaml"
	FactsFile  = "kit.json"
	BinaryFile = "lifeboat"
	SumsFile   = "SHA256SUMS"
)

// Separator stands between the pages of a kit's text.
const Separator = "\n----------------------------------------------------------------------\n\n"

// Kit is what a kit tells. Lists are sorted by whoever fills them, so that equal
// kits have equal bytes.
type Kit struct {
	Made          time.Time       `json:"made"`
	Cluster       string          `json:"cluster"`       // full name
	IdentityKept  string          `json:"identityKept"`  // the operator's words; empty leaves a line to write on
	IdentityTried bool            `json:"identityTried"` // it opened the nodes' newest files backups
	Recipients    []string        `json:"recipients"`    // the identity's public halves
	Binary        Binary          `json:"binary"`
	Stores        []Store         `json:"stores"`
	Nodes         []Node          `json:"nodes"`
	Backups       []Backup        `json:"backups"` // the newest of each chain
	Heads         []manifest.Head `json:"heads"`
	Warnings      []string        `json:"warnings"`

	Trust    []byte   `json:"-"` // the file's text
	StateDir string   `json:"-"`
	Secrets  [][]byte `json:"-"` // that no file may hold, whatever they look like
}

// Binary is the program that restores.
type Binary struct {
	Version  string `json:"version"`
	Platform string `json:"platform"` // such as linux/amd64
	Go       string `json:"go"`
	SHA256   string `json:"sha256"`
	Path     string `json:"path"`           // where it is on the machine that made the kit
	Kept     string `json:"kept,omitempty"` // the operator's words on where to get it
	Copied   bool   `json:"copied"`         // into the kit
}

// Backup is the newest one of a chain.
type Backup struct {
	Chain      manifest.Chain    `json:"chain"`
	ID         manifest.ID       `json:"id"`
	Created    time.Time         `json:"created"`
	Revision   manifest.Revision `json:"revision"` // of fulls
	Bytes      int64             `json:"bytes"`    // before compression
	Etcd       string            `json:"etcd"`     // its version, of fulls
	Encryption []manifest.KeyUse `json:"encryption"`
	Store      string            `json:"store"`
}

// Kind is what a node has.
type Kind string

// The kinds of nodes, in the order of their list.
const (
	ControlPlane Kind = "control plane"
	EtcdHost     Kind = "etcd host" // and no control plane
	Unknown      Kind = ""
)

// of are the nodes of a kind.
func (k *Kit) of(kind Kind) (nodes []Node) {
	for _, n := range k.Nodes {
		if n.Kind == kind {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// members are the hosts of etcd.
func (k *Kit) members() []Node {
	if hosts := k.of(EtcdHost); len(hosts) > 0 {
		return hosts
	}
	return k.of(ControlPlane)
}

// More are the nodes that the pages' commands leave out, which are for three.
func (k *Kit) More() (names []string) {
	for _, list := range [][]Node{k.of(ControlPlane), k.members()} {
		for _, n := range list[min(len(list), len(exampleNodes)):] {
			if !slices.Contains(names, n.Name) {
				names = append(names, n.Name)
			}
		}
	}
	return names
}

// Node is one machine of the control plane or of etcd.
type Node struct {
	Name      string      `json:"name"`
	Kind      Kind        `json:"kind"`
	Role      string      `json:"role"` // Kind in more words
	Addresses []string    `json:"addresses"`
	ID        manifest.ID `json:"id"` // of its newest files backup; empty if there is none
	Created   time.Time   `json:"created"`
}

// File is one file of a kit.
type File struct {
	Name string
	Mode fs.FileMode
	Text []byte
	Path string // a file to copy, in place of Text
	Sum  string // SHA-256 in hexadecimal
}

// Files makes the files of a kit. They depend on nothing but k. An error wraps
// ErrSecret if one of them would hold a secret.
func Files(k *Kit) ([]File, error) {
	pages, err := docs.Restore()
	if err != nil {
		return nil, fmt.Errorf("read the pages in the binary: %w", err)
	}
	config, err := k.config()
	if err != nil {
		return nil, err
	}
	sheet, err := k.sheet(config)
	if err != nil {
		return nil, err
	}
	values := k.values()
	all := []docs.Page{{Name: "kit", Text: sheet}}
	for _, page := range pages {
		all = append(all, docs.Page{Name: page.Name, Text: fill(page.Text, values)})
	}
	html, err := render("Recovery kit: "+k.Cluster, all)
	if err != nil {
		return nil, err
	}
	facts, err := k.facts()
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	for i, page := range all {
		if i > 0 {
			text.WriteString(Separator)
		}
		text.WriteString(page.Text)
	}
	files := []File{
		{Name: HTMLFile, Text: html}, {Name: TextFile, Text: text.Bytes()},
		{Name: TrustFile, Text: k.Trust}, {Name: ConfigFile, Text: config}, {Name: FactsFile, Text: facts},
	}
	for i, s := range k.Stores {
		if len(s.CA) > 0 {
			files = append(files, File{Name: authority(i), Text: s.CA})
		}
	}
	for i := range files {
		f := &files[i]
		if what := k.secretIn(f.Text); what != "" {
			return nil, fmt.Errorf("%w: %s would hold %s", ErrSecret, f.Name, what)
		}
		sum := sha256.Sum256(f.Text)
		f.Mode, f.Sum = 0o644, hex.EncodeToString(sum[:])
	}
	if k.Binary.Copied {
		files = append(files, File{Name: BinaryFile, Mode: 0o755, Path: k.Binary.Path, Sum: k.Binary.SHA256})
	}
	var sums bytes.Buffer
	for _, f := range files {
		fmt.Fprintf(&sums, "%s  %s\n", f.Sum, f.Name)
	}
	sum := sha256.Sum256(sums.Bytes())
	return append(files, File{Name: SumsFile, Mode: 0o644, Text: sums.Bytes(), Sum: hex.EncodeToString(sum[:])}), nil
}

// facts is the kit for programs. Lists are never null.
func (k *Kit) facts() ([]byte, error) {
	whole := *k
	whole.Recipients, whole.Warnings = listed(k.Recipients), listed(k.Warnings)
	whole.Stores, whole.Heads = listed(k.Stores), listed(k.Heads)
	whole.Nodes, whole.Backups = listed(k.Nodes), listed(k.Backups)
	for i := range whole.Nodes {
		whole.Nodes[i].Addresses = listed(whole.Nodes[i].Addresses)
	}
	for i := range whole.Backups {
		whole.Backups[i].Encryption = listed(whole.Backups[i].Encryption)
	}
	text, err := json.MarshalIndent(whole, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", FactsFile, err)
	}
	return append(text, '\n'), nil
}

// listed is a copy of a list that is not nil.
func listed[T any](list []T) []T { return append([]T{}, list...) }
