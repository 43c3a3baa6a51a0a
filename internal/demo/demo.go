// Package demo tells lifeboat's whole story on one machine, with nothing set
// up: an etcd and a control-plane node's files are backed up, changes recorded,
// all is destroyed, restored to the moment before a mistake, and proved to be
// what it was.
//
// It uses the same packages as the commands do; only etcd (embedded, on
// loopback) and the node (internal/kubefixture) are made up. Start at Run.
package demo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"lifeboat/backup"
	"lifeboat/internal/durable"
	"lifeboat/internal/etcdtest"
	"lifeboat/internal/events"
	"lifeboat/internal/kit"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
)

// Node and cluster of the story.
const (
	node    = "cp1"
	cluster = "demo"
)

// DefaultObjects is how many Kubernetes-shaped objects etcd is filled with.
const DefaultObjects = 3000

// Options says how to tell the story. Out, Now and Rand are required.
type Options struct {
	Out     io.Writer
	Keep    string // folder in which all is left for a look; new or empty. Without it a temporary one is used and removed
	Objects int    // DefaultObjects if 0
	Version string // of lifeboat, for the manifests
	Now     func() time.Time
	Rand    io.Reader
	Events  events.Listener
	Program string // how the commands to go on by hand call lifeboat; "lifeboat" if empty
}

// ErrNotEmpty: the folder to keep things in has something in it already.
var ErrNotEmpty = errors.New("not empty")

// ErrInterrupted: the context ended before the story did.
var ErrInterrupted = errors.New("interrupted")

// Run tells the story. Whatever happens, the context's end included, it stops
// etcd, and removes everything unless it is to be kept.
func Run(ctx context.Context, opts Options) (err error) {
	if opts.Objects == 0 {
		opts.Objects = DefaultObjects
	}
	dir, err := folder(opts.Keep)
	if err != nil {
		return err
	}
	s := &story{Options: opts, dir: dir}
	defer func() {
		err = errors.Join(err, s.end())
		if opts.Keep == "" {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	start := opts.Now()
	s.say("A control plane in %s is backed up, destroyed, restored and proved:\n\n", dir)
	for _, chapter := range []struct {
		title string
		tell  func(context.Context) (string, error)
	}{
		{"a control plane", s.live},
		{"keys and configuration", s.setUp},
		{"backup of etcd", s.backUpEtcd},
		{"backup of the node's files", s.backUpFiles},
		{"changes, and a mistake", s.recordChanges},
		{"verification", s.verify},
		{"the disaster", s.destroy},
		{"restore of the files", s.restoreFiles},
		{"restore of etcd", s.restoreEtcd},
		{"etcd starts again", s.startAgain},
		{"the proof", s.prove},
	} {
		if ctx.Err() != nil {
			return ErrInterrupted
		}
		began := opts.Now()
		text, err := chapter.tell(ctx)
		if err != nil && ctx.Err() != nil { // what broke off says so in many ways
			return ErrInterrupted
		}
		if err != nil {
			return fmt.Errorf("demonstration: %s: %w", chapter.title, err)
		}
		s.say("%6.2fs  %-26s  %s\n", opts.Now().Sub(began).Seconds(), chapter.title, text)
	}
	s.say("%6.2fs  in all. Everything is back.\n", opts.Now().Sub(start).Seconds())
	if opts.Keep != "" {
		s.goOn()
	}
	return nil
}

// folder makes the story's folder.
func folder(keep string) (string, error) {
	if keep == "" {
		return os.MkdirTemp("", "lifeboat-demo-")
	}
	dir, err := filepath.Abs(keep)
	if err != nil {
		return "", err
	}
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return "", fmt.Errorf("keep the demonstration in %s: %w; name a new folder", dir, ErrNotEmpty)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return dir, durable.MkdirAll(dir, 0o700)
}

// story is what the chapters hand on to each other.
type story struct {
	Options
	dir string

	etcd   *etcdtest.Member
	kit    *kit.Kit
	repo   *repository.Repository
	runner *backup.Runner

	full, files *manifest.Manifest
	signer      *manifest.Signer
	good        manifest.Revision // the last before the mistake
	hash        uint32            // HashKV of good, as the live etcd answered
	tree        map[string]entry  // the node's files as they were
}

func (s *story) say(format string, args ...any) { fmt.Fprintf(s.Out, format, args...) }

func (s *story) root() string    { return filepath.Join(s.dir, "node") }
func (s *story) dataDir() string { return filepath.Join(s.root(), "var", "lib", "etcd") }
func (s *story) keys() string    { return filepath.Join(s.dir, "lifeboat") }
func (s *story) store() string   { return filepath.Join(s.dir, "store") }

// end stops etcd.
func (s *story) end() error {
	if s.etcd == nil {
		return nil
	}
	err := s.etcd.Close()
	s.etcd = nil
	return err
}

// goOn says how to continue by hand.
func (s *story) goOn() {
	config := "--config " + s.kit.ConfigPath
	identity := "--identity " + s.kit.IdentityPath
	program := cmp.Or(s.Program, "lifeboat")
	s.say(strings.ReplaceAll(`
Everything is still in %s. To go on by hand:

  lifeboat list %s
  lifeboat list --points %s
  lifeboat show %s %s
  lifeboat verify --deep %s %s
  lifeboat ls %s %s %s
  lifeboat cat %s etc/kubernetes/admin.conf %s %s
  lifeboat restore files %s %s --node %s --root $(mktemp -d)
  lifeboat restore etcd --revision %d %s %s --data-dir %s --name %s --peer-url http://127.0.0.1:2380
  lifeboat export --revision %d %s %s --out %s

Or without lifeboat:

  age -d -i %s %s | zstd -d | tar tv
`, "\n  lifeboat ", "\n  "+strings.ReplaceAll(program, "%", "%%")+" "), s.dir,
		config, config, s.full.ID, config, config, identity,
		s.files.ID, config, identity, s.files.ID, config, identity,
		config, identity, node,
		s.good, config, identity, filepath.Join(s.dir, "etcd-by-hand"), node,
		s.good, config, identity, filepath.Join(s.dir, "snapshot.db"),
		s.kit.IdentityPath, filepath.Join(s.store(), s.kit.Cluster, s.files.Objects[0].Name))
}
