package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"lifeboat/backup"
	"lifeboat/backup/etcd"
	"lifeboat/backup/host"
	"lifeboat/internal/etcdtest"
	"lifeboat/internal/freeport"
	"lifeboat/internal/kit"
	"lifeboat/internal/kubefixture"
	"lifeboat/internal/manifest"
	"lifeboat/internal/repository"
	"lifeboat/internal/seal"
	"lifeboat/internal/segment"
	"lifeboat/restore"
	"lifeboat/restore/files"
	"lifeboat/storage/local"
)

// live makes the node's files, and an etcd with objects in it.
func (s *story) live(ctx context.Context) (string, error) {
	port, err := freeport.Take()
	if err != nil {
		return "", err
	}
	endpoint := fmt.Sprintf("http://127.0.0.1:%d", port)
	if err := kubefixture.Build(s.root(), kubefixture.Options{Node: node, EtcdEndpoints: []string{endpoint}, EtcdVersion: etcdtest.EmbeddedVersion, Now: s.Now()}); err != nil {
		return "", err
	}
	// What the fixture has for captures to pass by: a dummy of a database, and
	// the state of pods, which no restore brings back.
	for _, name := range []string{"var/lib/etcd/member", "var/lib/kubelet/pods"} {
		if err := os.RemoveAll(filepath.Join(s.root(), name)); err != nil {
			return "", err
		}
	}
	// Without fsync: a power cut in the middle of a demonstration costs nothing.
	s.etcd, err = etcdtest.StartEmbedded(s.dataDir(), etcdtest.EmbeddedOptions{Name: node, ClientPort: port, NoSync: true})
	if err != nil {
		return "", err
	}
	client, err := s.etcd.Client()
	if err != nil {
		return "", err
	}
	defer client.Close()
	filled, err := etcdtest.Fill(ctx, client, etcdtest.FillOptions{Objects: s.Objects})
	if err != nil {
		return "", err
	}
	if s.tree, err = readTree(s.root(), s.dataDir()); err != nil {
		return "", err
	}
	return fmt.Sprintf("etcd at %s with %d objects, revision %d; node %s with %d files: PKI, kubeconfigs, static pods",
		s.etcd.Endpoint, filled.Live, filled.Revision, node, count(s.tree)), nil
}

// setUp is lifeboat init.
func (s *story) setUp(context.Context) (string, error) {
	var err error
	s.kit, err = kit.Create(kit.Options{
		Cluster: cluster, Node: node, Stores: []string{"file://" + s.store()}, Out: s.keys(), HostRoot: s.root(),
		StateDir: filepath.Join(s.dir, "state"), Now: s.Now(), Rand: s.Rand,
	})
	if err != nil {
		return "", err
	}
	store, err := local.New(s.store())
	if err != nil {
		return "", err
	}
	signer, trust, err := s.readKeys()
	if err != nil {
		return "", err
	}
	recipients, err := seal.ParseRecipients(s.kit.Config.Recipients)
	if err != nil {
		return "", err
	}
	writer := manifest.Writer{Node: node, Version: s.Version}
	s.repo, err = repository.Open(store, repository.Options{
		Trust: trust, Signer: signer, Name: s.kit.Config.Stores[0].URL, Now: s.Now, Rand: s.Rand, Writer: writer, Events: s.Events,
	})
	if err != nil {
		return "", err
	}
	s.runner = &backup.Runner{
		Stores:    []backup.Store{{URL: s.repo.Name(), Repository: s.repo}},
		MinStores: 1, Recipients: recipients, RecipientNames: s.kit.Config.Recipients, Writer: writer,
		Scratch: filepath.Join(s.kit.Config.StateDir, "scratch"), StoreStall: time.Minute,
		Now: s.Now, Rand: s.Rand, Events: s.Events, Marker: segment.NewMarker(signer.MarkKey()),
	}
	s.signer = signer
	return fmt.Sprintf("cluster %s, sealed for %.14s..., etcd found in the static pods", s.kit.Cluster, s.kit.Recipient), s.repo.Init(context.Background())
}

func (s *story) readKeys() (*manifest.Signer, *manifest.Trust, error) {
	key, err := os.ReadFile(s.kit.SignerPath)
	if err != nil {
		return nil, nil, err
	}
	signer, err := manifest.ParseSigner(key)
	if err != nil {
		return nil, nil, err
	}
	text, err := os.ReadFile(s.kit.TrustPath)
	if err != nil {
		return nil, nil, err
	}
	trust, err := manifest.ParseTrust(text)
	return signer, trust, err
}

func (s *story) backUpEtcd(ctx context.Context) (string, error) {
	e := s.kit.Config.Etcd[0]
	result, err := s.runner.Etcd(ctx, etcd.Config{Name: e.Name, Endpoints: e.Endpoints},
		etcd.Limits{MaxStall: time.Duration(s.kit.Config.Proof.MaxStall)})
	if err != nil {
		return "", err
	}
	s.full = result.Manifest
	// Ask etcd itself as well.
	hash, err := s.liveHash(ctx, s.full.Etcd.Revision)
	if err != nil {
		return "", err
	}
	if hash != s.full.Etcd.HashKV {
		return "", fmt.Errorf("etcd says HashKV %d, the backup %d", hash, s.full.Etcd.HashKV)
	}
	o := s.full.Objects[0]
	return fmt.Sprintf("revision %d, %s sealed to %s; HashKV %08x equals the live etcd's", s.full.Etcd.Revision, size(o.PlainSize), size(o.Size), hash), nil
}

func (s *story) backUpFiles(ctx context.Context) (string, error) {
	result, err := s.runner.Files(ctx, host.Options{
		Root: s.root(), Node: node, Now: s.Now, Events: s.Events,
		Resolver: names{}, Addresses: func() ([]host.Address, error) { return []host.Address{}, nil },
	}, s.full.Etcd.Encryption)
	if err != nil {
		return "", err
	}
	s.files = result.Manifest
	o := s.files.Objects[0]
	return fmt.Sprintf("%d files, %s sealed to %s", s.files.Host.Files, size(s.files.Host.Bytes), size(o.Size)), nil
}

// names keeps the demonstration off the network: the node's names are made up.
type names struct{}

func (names) LookupHost(context.Context, string) ([]string, error) { return []string{"10.0.0.11"}, nil }

func (s *story) verify(ctx context.Context) (string, error) {
	report, err := s.repo.Verify(ctx, repository.VerifyOptions{})
	if err == nil {
		err = report.Err()
	}
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d signed manifests, %d objects, %s: every signature, link and byte", report.Manifests, report.Objects, size(report.Bytes)), nil
}

// operatingSystem is what a machine has once its operating system is installed
// anew: not lifeboat's to back up.
var operatingSystem = []string{
	"etc/hostname", "etc/hosts", "etc/os-release", "etc/resolv.conf", "etc/ssl", "etc/ca-certificates",
	"run", "usr/lib/os-release", "usr/share/ca-certificates", "var/run",
}

// destroy is the worst day: the machine is gone, and a new one has only its
// operating system.
func (s *story) destroy(context.Context) (string, error) {
	if err := s.end(); err != nil {
		return "", err
	}
	old := filepath.Join(s.dir, "old-node")
	if err := os.Rename(s.root(), old); err != nil {
		return "", err
	}
	for _, name := range operatingSystem {
		to := filepath.Join(s.root(), name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return "", err
		}
		if err := os.Rename(filepath.Join(old, name), to); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("etcd stopped; its data, all keys and all files of %s deleted", s.root()), os.RemoveAll(old)
}

func (s *story) restoreFiles(ctx context.Context) (string, error) {
	identities, err := s.identities()
	if err != nil {
		return "", err
	}
	open := func() (io.ReadCloser, seal.Limits, error) { return restore.OpenFiles(ctx, s.repo, s.files, identities) }
	archive, limits, err := open()
	if err != nil {
		return "", err
	}
	plan, err := files.Prepare(ctx, archive, files.Options{
		Root: s.root(), AsideDir: s.aside(), RestoreID: "demo", Limits: limits,
	})
	if err = errors.Join(err, archive.Close()); err != nil {
		return "", err
	}
	defer plan.Close()
	if archive, _, err = open(); err != nil {
		return "", err
	}
	defer archive.Close()
	result, err := plan.Apply(ctx, archive)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d entries checked, then written with modes, times and links", result.Created), nil
}

// restoreEtcd restores without a revision bump. A real restore bumps, so that
// no client takes the past for the present; here the point is to show that
// etcd's own hash of the same revision is what it was.
func (s *story) restoreEtcd(ctx context.Context) (string, error) {
	identities, err := s.identities()
	if err != nil {
		return "", err
	}
	port, err := freeport.Take()
	if err != nil {
		return "", err
	}
	noBump := uint64(0)
	plan, err := restore.PlanEtcd(ctx, s.repo, restore.EtcdOptions{
		Identities: identities, DataDir: s.dataDir(), Name: node,
		PeerURLs: []string{fmt.Sprintf("http://127.0.0.1:%d", port)},
		Point:    repository.Point{Revision: s.good},
		Bump:     &noBump, AsideDir: s.aside(), Now: s.Now, Rand: s.Rand,
	})
	if err != nil {
		return "", err
	}
	if err := plan.Execute(ctx, s.Events); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s: the full backup and %d changes, to before the mistake; no revision bump, to compare hashes", size(plan.Result.Bytes), s.good-s.full.Etcd.Revision), nil
}

func (s *story) startAgain(context.Context) (string, error) {
	var err error
	s.etcd, err = etcdtest.StartEmbedded(s.dataDir(), etcdtest.EmbeddedOptions{Name: node, NoSync: true})
	if err != nil {
		return "", err
	}
	return "at " + s.etcd.Endpoint, nil
}

// prove compares etcd's own hash and every file with what they were.
func (s *story) prove(ctx context.Context) (string, error) {
	hash, err := s.liveHash(ctx, s.good)
	if err != nil {
		return "", err
	}
	if hash != s.hash {
		return "", fmt.Errorf("etcd says HashKV %08x at revision %d, and said %08x before the disaster", hash, s.good, s.hash)
	}
	tree, err := readTree(s.root(), s.dataDir())
	if err != nil {
		return "", err
	}
	if err := compare(s.tree, tree); err != nil {
		return "", err
	}
	return fmt.Sprintf("HashKV %08x at revision %d, as before the mistake; %d files and folders identical", hash, s.good, len(tree)), nil
}

// liveHash asks the running etcd for its HashKV at a revision.
func (s *story) liveHash(ctx context.Context, revision manifest.Revision) (uint32, error) {
	client, err := s.etcd.Client()
	if err != nil {
		return 0, err
	}
	defer client.Close()
	answer, err := client.HashKV(ctx, s.etcd.Endpoint, int64(revision))
	if err != nil {
		return 0, fmt.Errorf("ask etcd for its HashKV: %w", err)
	}
	return answer.Hash, nil
}
