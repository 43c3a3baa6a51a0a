// Package kit makes what a cluster needs once: a recovery key, a signing key,
// the trust in it, and a configuration that names them all. Create does it;
// what belongs in the recovery kit, off the machine, is in Kit.
package kit

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"filippo.io/age"

	"lifeboat/backup/host"
	"lifeboat/internal/config"
	"lifeboat/internal/durable"
	"lifeboat/internal/manifest"
	"lifeboat/internal/seal"
)

// The files that Create makes.
const (
	ConfigFile   = "config.yaml"
	IdentityFile = "recovery.key"
	SignerFile   = "signing.key"
	TrustFile    = "trust"
)

var (
	// ErrExists: a file is there already. Nothing was written.
	ErrExists = errors.New("exists already and is never overwritten")

	// ErrInvalid: the options can't be used as they are. Nothing was written.
	ErrInvalid = errors.New("invalid options")
)

// Options says what to make. Cluster, Stores and Out are required.
type Options struct {
	Cluster string   // the operator's name for it
	Node    string   // this node's name
	Stores  []string // URLs
	Out     string   // folder for the files; made (0700) if missing

	// How to reach etcd. What is empty is discovered from the static pods below
	// HostRoot, where they tell.
	Endpoints                 []string
	CAFile, CertFile, KeyFile string

	HostRoot    string   // default /
	Recipients  []string // public keys besides the new recovery key's
	PostQuantum bool     // the recovery key resists quantum computers, and needs age 1.3
	StateDir    string   // default config.DefaultStateDir

	Now  time.Time
	Rand io.Reader // makes the cluster's full name and the signing key
}

// Kit is what was made.
type Kit struct {
	Config    *config.Config // as Load reads it
	Cluster   string         // full name, with its random part
	Recipient string         // of the recovery key
	Kind      string         // of node, as discovered; empty if nothing was
	Warnings  []string

	ConfigPath, IdentityPath, SignerPath, TrustPath string
}

// Create makes keys, trust and configuration in opts.Out. It overwrites
// nothing: all four files are new, or none is there and the error says why.
func Create(opts Options) (*Kit, error) {
	if opts.HostRoot == "" {
		opts.HostRoot = "/"
	}
	root, err := filepath.Abs(opts.HostRoot)
	if err != nil {
		return nil, err
	}
	opts.HostRoot = root
	out, err := filepath.Abs(opts.Out)
	if err != nil {
		return nil, err
	}
	k := &Kit{
		ConfigPath: filepath.Join(out, ConfigFile), IdentityPath: filepath.Join(out, IdentityFile),
		SignerPath: filepath.Join(out, SignerFile), TrustPath: filepath.Join(out, TrustFile),
	}
	if err := k.free(); err != nil {
		return nil, err
	}
	if k.Cluster, err = manifest.NewCluster(opts.Rand, opts.Cluster); err != nil {
		return nil, fmt.Errorf("%w: cluster: %w", ErrInvalid, err)
	}
	if err := manifest.Chain("hosts/" + opts.Node).Check(); err != nil {
		return nil, fmt.Errorf("%w: node: %w", ErrInvalid, err)
	}
	identity, err := k.identity(opts)
	if err != nil {
		return nil, err
	}
	signer, err := manifest.GenerateSigner(opts.Rand, k.Cluster)
	if err != nil {
		return nil, fmt.Errorf("make the signing key: %w", err)
	}
	trust := &manifest.Trust{Cluster: k.Cluster, Verifiers: []manifest.Verifier{{
		Key: signer.VerifierText(), Chains: []string{"etcd/*", "hosts/*", "images", "drills"}, Kinds: []string{"*"},
	}}}
	c, err := k.config(opts)
	if err != nil {
		return nil, err
	}
	files := []file{
		{k.IdentityPath, 0o600, identity},
		{k.SignerPath, 0o600, signer.PrivateText()},
		{k.TrustPath, 0o644, trust.String()},
		{k.ConfigPath, 0o644, string(c)}, // last: with it, the rest counts
	}
	if err := write(out, files); err != nil {
		return nil, err
	}
	if k.Config, err = config.Load(k.ConfigPath); err != nil {
		return nil, err
	}
	return k, nil
}

// free reports the first file that is in the way.
func (k *Kit) free() error {
	for _, path := range []string{k.ConfigPath, k.IdentityPath, k.SignerPath, k.TrustPath} {
		if _, err := os.Lstat(path); err == nil {
			return fmt.Errorf("%s %w", path, ErrExists)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("look for earlier files: %w", err)
		}
	}
	return nil
}

// identity makes the recovery key's file, in age-keygen's form.
func (k *Kit) identity(opts Options) (string, error) {
	var secret string
	if opts.PostQuantum {
		id, err := age.GenerateHybridIdentity()
		if err != nil {
			return "", fmt.Errorf("make the recovery key: %w", err)
		}
		secret, k.Recipient = id.String(), id.Recipient().String()
	} else {
		id, err := age.GenerateX25519Identity()
		if err != nil {
			return "", fmt.Errorf("make the recovery key: %w", err)
		}
		secret, k.Recipient = id.String(), id.Recipient().String()
	}
	if _, err := seal.ParseRecipients(append([]string{k.Recipient}, opts.Recipients...)); err != nil {
		return "", fmt.Errorf("%w: recipients: %w", ErrInvalid, err)
	}
	needs := ""
	if opts.PostQuantum {
		needs = "# Opening a backup without lifeboat takes age 1.3 or newer.\n"
	}
	return fmt.Sprintf(`# The recovery key of cluster %s: who has it can open every backup,
# and without it nobody can. TAKE IT OFF THIS MACHINE and keep it in two safe
# places. Backing up does not need it.
%s# created: %s
# public key: %s
%s
`, k.Cluster, needs, opts.Now.UTC().Format(time.RFC3339), k.Recipient, secret), nil
}

// config makes the configuration's text and checks it as Load will.
func (k *Kit) config(opts Options) ([]byte, error) {
	c := config.Default()
	c.Cluster, c.Node, c.Host.Root = opts.Cluster, opts.Node, opts.HostRoot
	c.Signing = config.Signing{KeyFile: SignerFile, TrustFile: TrustFile}
	if opts.StateDir != "" {
		c.StateDir = opts.StateDir
	}
	for _, url := range opts.Stores {
		c.Stores = append(c.Stores, config.DefaultStore(url))
	}
	c.Recipients = append([]string{k.Recipient}, opts.Recipients...)
	var err error
	if c.Etcd, err = k.etcds(opts); err != nil {
		return nil, err
	}
	text, err := config.Render(c)
	if err != nil {
		return nil, err
	}
	if _, err := config.Parse(text); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return text, nil
}

// etcds joins what the options say of etcd with what the host tells.
func (k *Kit) etcds(opts Options) ([]config.Etcd, error) {
	main := config.Etcd{Name: "main", Endpoints: opts.Endpoints, CAFile: opts.CAFile, CertFile: opts.CertFile, KeyFile: opts.KeyFile}
	for _, path := range []*string{&main.CAFile, &main.CertFile, &main.KeyFile} {
		if *path == "" {
			continue
		}
		abs, err := filepath.Abs(*path)
		if err != nil {
			return nil, err
		}
		*path = abs
	}
	found, err := host.Discover(opts.HostRoot)
	switch {
	case err == nil:
		k.Kind = found.Kind
	case len(main.Endpoints) > 0:
		return []config.Etcd{main}, nil
	case errors.Is(err, host.ErrNoEtcd), errors.Is(err, fs.ErrNotExist):
		why := "no etcd was found below " + opts.HostRoot
		if server, err := host.FindServer(opts.HostRoot); err == nil && server != nil {
			why = strings.Join(append([]string{why}, server.Degraded...), ": ")
		}
		k.Warnings = append(k.Warnings, why+": only files will be backed up; add etcd to "+ConfigFile+", or begin again with --etcd")
		return nil, nil
	default:
		return nil, fmt.Errorf("find etcd below %s (name it with --etcd to do without): %w", opts.HostRoot, err)
	}
	discovered := len(main.Endpoints) == 0
	if discovered {
		main.Endpoints = found.EtcdEndpoints
	}
	if slices.ContainsFunc(main.Endpoints, func(u string) bool { return strings.HasPrefix(u, "https://") }) {
		if main.CAFile == "" {
			main.CAFile = found.CAFile
		}
		if main.CertFile == "" && main.KeyFile == "" {
			main.CertFile, main.KeyFile = found.CertFile, found.KeyFile
		}
	}
	list := []config.Etcd{main}
	if !discovered {
		return list, nil
	}
	clusters, _, err := host.Clusters(opts.HostRoot)
	if err != nil {
		return nil, fmt.Errorf("find the API server's etcd clusters below %s: %w", opts.HostRoot, err)
	}
	for _, c := range clusters[1:] {
		list = append(list, config.Etcd{Name: c.Name, Endpoints: c.Endpoints, CAFile: c.CAFile, CertFile: c.CertFile, KeyFile: c.KeyFile})
	}
	return list, nil
}

type file struct {
	path string
	mode fs.FileMode
	text string
}

// write creates all files, or none.
func write(dir string, files []file) (err error) {
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	var made []string
	defer func() {
		if err != nil {
			for _, path := range made {
				err = errors.Join(err, os.Remove(path))
			}
		}
	}()
	for _, f := range files {
		_, err := durable.WriteFile(f.path, strings.NewReader(f.text), durable.Options{Mode: f.mode, IfAbsent: true})
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%s %w", f.path, ErrExists)
		}
		if err != nil {
			return fmt.Errorf("write %s: %w", f.path, err)
		}
		made = append(made, f.path)
	}
	return nil
}
