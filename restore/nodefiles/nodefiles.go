// Package nodefiles makes a node's saved files ready for the machine that they
// will be restored on, before that machine is touched: it unpacks the archive
// into a folder of its own, gives the files the new names and addresses, re-issues
// certificates, and packs the result into an archive again, which restore/files
// then puts in place. The manifests of static pods are kept apart: they go to
// kubelet last, and one after the other.
//
// All of it lies in the folder that the caller gives, readable by its owner
// alone, since it holds private keys. Whoever gave the folder removes it.
package nodefiles

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"

	"sigs.k8s.io/yaml"

	"lifeboat/internal/durable"
	"lifeboat/internal/hostfacts"
	"lifeboat/internal/seal"
	"lifeboat/restore/files"
	"lifeboat/restore/pki"
	"lifeboat/restore/readdress"
)

// ErrNoFacts says that an archive holds no facts: it is not of a node's files.
var ErrNoFacts = errors.New("the backup tells nothing of its machine")

// Options say what becomes of the files.
type Options struct {
	Dir    string // an empty folder of the caller's, 0700, on a disk with room for the archive three times
	Limits seal.Limits

	Mapping *readdress.Mapping // nil: names and addresses stay
	Names   map[string]string  // the same node names, old to new
	// Addresses are the same addresses, old to new.
	Addresses map[netip.Addr]netip.Addr
	AddSANs   []string // more names and addresses for the API server's certificate

	Now  func() time.Time
	Rand io.Reader
}

// Staged is what will be restored. It changes no more.
type Staged struct {
	Facts *hostfacts.Facts     `json:"facts"` // of the machine as it was
	Etcd  *hostfacts.Discovery `json:"etcd"`  // of its etcd, with the new names and addresses; nil if it had none
	// Servers are the etcds that it ran outside of Kubernetes, in the same way.
	Servers   []hostfacts.EtcdServer `json:"servers,omitempty"`
	Home      string                 `json:"home"`      // where kubelet expects static pods' manifests, as the host sees it; empty if there are none
	Rewritten []Edited               `json:"rewritten"` // files that were given other names and addresses
	Issued    []pki.Leaf             `json:"issued"`    // certificates that don't stay as they were, or should not
	// Unmatched are the mapping's pairs that no file has the old name or address of.
	Unmatched []string `json:"unmatched,omitempty"`

	dir string
}

// Archive is the plain tar of all files but the static pods' manifests.
func (s *Staged) Archive() string { return filepath.Join(s.dir, archiveName) }

// Manifests is the folder with the static pods' manifests as they will be.
func (s *Staged) Manifests() string { return filepath.Join(s.dir, manifestsName) }

// Tree is the folder with all files but the static pods' manifests, as they will
// be below the root.
func (s *Staged) Tree() string { return filepath.Join(s.dir, treeName) }

// Edited is one file that was given other names and addresses.
type Edited struct {
	Name    string             `json:"name"` // as the host sees it
	Changes []readdress.Change `json:"changes"`
	Kept    []readdress.Kept   `json:"kept"`
}

// The places in Options.Dir.
const (
	savedName     = "saved.tar"
	treeName      = "tree"
	replacedName  = "replaced"
	manifestsName = "manifests"
	archiveName   = "files.tar"
	recordName    = "staged.json" // written last
)

// Stage reads a plain archive to its end and makes it ready. Errors are those
// of restore/files and restore/pki, a *pki.AuthorityError where a CA has
// expired, ErrNoFacts, and those of the disk. What it has written by then is left
// in Options.Dir.
func Stage(ctx context.Context, archive io.Reader, o Options) (*Staged, error) {
	s := &Staged{dir: o.Dir}
	saved := filepath.Join(o.Dir, savedName)
	if err := save(saved, archive); err != nil {
		return nil, fmt.Errorf("keep the node's files until they are needed: %w", err)
	}
	steps := []func() error{
		func() error { return s.readFacts(saved, o.Limits) },
		func() error { return s.unpack(ctx, saved, o) },
		func() error { return os.Remove(saved) },
		func() error { return s.rewrite(o.Mapping) },
		func() error { return s.issue(ctx, o) },
		func() error { return s.setManifestsApart() },
		func() error { return s.pack(o.Now()) },
		func() error { return os.RemoveAll(filepath.Join(o.Dir, replacedName)) }, // the old keys
		s.write,
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Load finds what Stage has left in a folder, which may have been moved since.
// fs.ErrNotExist if it did not come to its end.
func Load(dir string) (*Staged, error) {
	text, err := os.ReadFile(filepath.Join(dir, recordName))
	if err != nil {
		return nil, err
	}
	s := &Staged{dir: dir}
	if err := json.Unmarshal(text, s); err != nil || s.Facts == nil {
		return nil, fmt.Errorf("read what was staged in %s: %w", dir, cmp.Or(err, ErrNoFacts))
	}
	return s, nil
}

// Move takes what is staged to another folder of the same file system.
func (s *Staged) Move(to string) error {
	if err := os.Rename(s.dir, to); err != nil {
		return err
	}
	s.dir = to
	return durable.SyncDir(filepath.Dir(to))
}

func (s *Staged) write() error {
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	_, err = durable.WriteFile(filepath.Join(s.dir, recordName), bytes.NewReader(text), durable.Options{Mode: 0o600})
	return err
}

// Read opens a staged file by its name on the host, as it will be: for a client
// certificate, say, that a restore needs before it has restored anything.
func (s *Staged) Read(name string) ([]byte, error) {
	root, err := os.OpenRoot(s.Tree())
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return root.ReadFile(path.Clean("/" + name)[1:])
}

func save(to string, from io.Reader) error {
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	return errors.Join(err, f.Close())
}

func (s *Staged) readFacts(saved string, limits seal.Limits) error {
	f, err := os.Open(saved)
	if err != nil {
		return err
	}
	defer f.Close()
	r := seal.NewArchiveReader(f, limits)
	h, err := r.Next()
	if err == io.EOF || err == nil && (h.Name != hostfacts.Name || h.Type != seal.TypeFile) {
		return ErrNoFacts
	}
	if err != nil {
		return fmt.Errorf("read the node's files: %w", err)
	}
	s.Facts, err = hostfacts.Read(r)
	return err
}

// unpack restores the archive into the tree, by the code that restores it into
// a root.
func (s *Staged) unpack(ctx context.Context, saved string, o Options) error {
	if err := os.RemoveAll(s.Tree()); err != nil {
		return err
	}
	if err := durable.MkdirAll(s.Tree(), 0o700); err != nil {
		return err
	}
	f, err := os.Open(saved)
	if err != nil {
		return err
	}
	defer f.Close()
	plan, err := files.Prepare(ctx, f, files.Options{Root: s.Tree(), AsideDir: filepath.Join(o.Dir, replacedName), RestoreID: "unpack", Limits: o.Limits})
	if err != nil {
		return err
	}
	defer plan.Close()
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	_, err = plan.Apply(ctx, f)
	return err
}

// rewrite gives the files the new names and addresses.
func (s *Staged) rewrite(m *readdress.Mapping) error {
	if d := s.Facts.Etcd; d != nil {
		s.Etcd = mapped(d, m)
	}
	for _, server := range s.Facts.EtcdServers {
		s.Servers = append(s.Servers, mappedServer(server, m))
	}
	if m == nil || m.Empty() {
		return nil
	}
	root, err := os.OpenRoot(s.Tree())
	if err != nil {
		return err
	}
	defer root.Close()
	pairs := m.Pairs()
	defer func() {
		for _, pair := range pairs {
			s.Unmatched = append(s.Unmatched, pair.String())
		}
	}()
	return fs.WalkDir(root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		kind, known := s.kindOf(name)
		if err != nil || !known || !e.Type().IsRegular() {
			return err
		}
		text, err := root.ReadFile(name)
		if err != nil {
			return err
		}
		result := m.Rewrite(kind, string(text))
		if len(result.Changes)+len(result.Kept) > 0 {
			s.Rewritten = append(s.Rewritten, Edited{Name: "/" + name, Changes: result.Changes, Kept: result.Kept})
			pairs = slices.DeleteFunc(pairs, func(pair readdress.Pair) bool {
				by := pair.Only.Rewrite(kind, string(text))
				return len(by.Changes)+len(by.Kept) > 0
			})
		}
		if len(result.Changes) == 0 {
			return nil
		}
		// In place, which keeps mode and owner: nobody reads the tree yet. Synced, since
		// the manifests go to kubelet as these very files.
		f, err := root.OpenFile(name, os.O_WRONLY|os.O_TRUNC, 0)
		if err != nil {
			return err
		}
		if _, err = f.WriteString(result.Text); err == nil {
			err = f.Sync()
		}
		return errors.Join(err, f.Close())
	})
}

// issue renews what has expired and re-issues what has another name or address
// now.
func (s *Staged) issue(ctx context.Context, o Options) error {
	plan, err := pki.Prepare(ctx, pki.Options{
		Root: s.Tree(), Aside: filepath.Join(o.Dir, replacedName, "certificates"), Rename: o.Names, Address: o.Addresses, AddSANs: o.AddSANs,
		Folders: s.pkiFolders(), RenewExpired: true, Now: o.Now, Rand: o.Rand,
	})
	if err != nil {
		return err
	}
	defer plan.Close()
	if _, err := plan.Apply(ctx); err != nil {
		return err
	}
	s.Issued = slices.DeleteFunc(plan.Leaves, func(l pki.Leaf) bool { return l.Action == pki.Keep })
	return nil
}

// kubeletConfig is what is read of kubelet's.
type kubeletConfig struct {
	StaticPodPath string `json:"staticPodPath"`
}

// setManifestsApart moves the static pods' manifests out of the tree.
func (s *Staged) setManifestsApart() error {
	s.Home = "/etc/kubernetes/manifests"
	if text, err := s.Read("/var/lib/kubelet/config.yaml"); err == nil {
		var config kubeletConfig
		if yaml.Unmarshal(text, &config) == nil && path.IsAbs(config.StaticPodPath) {
			s.Home = path.Clean(config.StaticPodPath)
		}
	}
	from := filepath.Join(s.Tree(), filepath.FromSlash(s.Home))
	if err := os.RemoveAll(s.Manifests()); err != nil {
		return err
	}
	err := os.Rename(from, s.Manifests())
	if errors.Is(err, fs.ErrNotExist) {
		s.Home = ""
		return nil
	}
	if err != nil {
		return fmt.Errorf("set the static pods' manifests apart: %w", err)
	}
	return nil
}
