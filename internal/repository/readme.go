package repository

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"lifeboat/internal/manifest"
	"lifeboat/storage"
)

const readmeName = "README.txt"

// readmes are the texts of README.txt that are known, the newest first: that one is
// written. They belong to the format: Verify compares, so that nobody can change the
// instructions that are followed on the worst day. Another text is put before these;
// none is taken away, since stores hold it.
var readmes = []string{
	strings.Replace(readmeText, readmeFirst, readmeSecond, 1),
	readmeText,
}

func readme(text, cluster string) string { return strings.ReplaceAll(text, "CLUSTER", cluster) }

// The parts in which the second text differs from the first.
const (
	readmeFirst = `  drills/...               reports of rehearsed restores

A manifest is one line of JSON, an empty line, and signatures (a signed note,
https://c2sp.org/signed-note). The highest number is the newest. "objects"
names the sealed files with their SHA-256 as stored; "etcd" holds the revision
and the members.
`
	readmeSecond = `  images/manifests/N       the container images that nodes need, and their parts
  images/data/ID/...       their sealed bytes
  drills/...               reports of rehearsed restores

A manifest is one line of JSON, an empty line, and signatures (a signed note,
https://c2sp.org/signed-note). The highest number is the newest. "objects"
names the sealed files with their SHA-256 as stored; "etcd" holds the revision
and the members. "kind" is "full" for a whole snapshot of etcd, and "segment"
for the changes behind it, which lifeboat applies. Without it, restore the
newest "full"; what the segments behind it hold is not in that.
`
)

const readmeText = `This folder holds the backups of the control plane of CLUSTER,
made by lifeboat in its format 1. Everything in it can be opened without
lifeboat. You need the age identity (a file with a line AGE-SECRET-KEY-...,
or the SSH key that was named as a recipient), and the tools age, zstd, tar
and etcdutl.

What is here

  etcd/NAME/manifests/N    one backup of etcd: what it is, signed
  etcd/NAME/data/ID/...    its sealed bytes
  hosts/NODE/manifests/N   one backup of a node's files
  hosts/NODE/data/ID/...   its sealed bytes
  drills/...               reports of rehearsed restores

A manifest is one line of JSON, an empty line, and signatures (a signed note,
https://c2sp.org/signed-note). The highest number is the newest. "objects"
names the sealed files with their SHA-256 as stored; "etcd" holds the revision
and the members.

To restore etcd

  tail -n 3 etcd/main/manifests/N              read the manifest
  sha256sum etcd/main/data/ID/snapshot.db.zst.age   compare with "sha256"
  age -d -i IDENTITY etcd/main/data/ID/snapshot.db.zst.age | zstd -d > snapshot.db
  etcdutl snapshot restore snapshot.db --data-dir NEWDIR \
    --name NAME --initial-cluster NAME=https://ADDRESS:2380 \
    --initial-advertise-peer-urls https://ADDRESS:2380 \
    --initial-cluster-token A-NEW-RANDOM-WORD \
    --bump-revision 1000000000 --mark-compacted

Use the same snapshot, token and bump on every member of a cluster, and an
etcdutl of the version in the manifest. Stop the API servers first.

To restore a node's files

  age -d -i IDENTITY hosts/NODE/data/ID/files.tar.zst.age | zstd -d | tar tv
  age -d -i IDENTITY hosts/NODE/data/ID/files.tar.zst.age | zstd -d |
    tar xp --numeric-owner -C NEWROOT

Before you trust a backup

age does not say who sealed a file: whoever can write here can put a snapshot
of theirs here. The signature says who did. Check it with lifeboat and your
own copy of the trust file, which never lies in this folder:

  lifeboat verify --store URL --cluster CLUSTER --trust FILE

Post-quantum recipients (age1pq1...) need age 1.3 or newer; all others open
with age 1.1. Deleting objects here by hand is found by lifeboat verify and
reported as a loss: let lifeboat prune do it.
`

// Init prepares the cluster's folder: it writes README.txt if there is none.
// Nothing else needs preparing.
func (r *Repository) Init(ctx context.Context) error {
	err := r.store.Put(ctx, r.stored(readmeName), strings.NewReader(readme(readmes[0], r.cluster)), storage.PutOptions{IfAbsent: true})
	if err != nil && !errors.Is(err, storage.ErrExist) {
		return fmt.Errorf("write %s in %s: %w", r.stored(readmeName), r.opts.Name, err)
	}
	return nil
}

// checkReadme compares README.txt with its text.
func (r *Repository) checkReadme(ctx context.Context) ([]Problem, error) {
	p := Problem{Object: r.stored(readmeName), Kind: ReadmeChanged}
	body, _, err := r.store.Open(ctx, p.Object, storage.Range{})
	if errors.Is(err, storage.ErrNotExist) {
		p.Kind, p.Message = NoReadme, "it is missing; the next backup writes it again"
		return []Problem{p}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", p.Object, err)
	}
	defer body.Close()
	longest := 0
	for _, text := range readmes {
		longest = max(longest, len(readme(text, r.cluster)))
	}
	got, err := io.ReadAll(io.LimitReader(body, int64(longest)+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", p.Object, err)
	}
	if !slices.ContainsFunc(readmes, func(text string) bool { return string(got) == readme(text, r.cluster) }) {
		p.Message = "its text is not the one that lifeboat writes: don't follow it, delete it"
		return []Problem{p}, nil
	}
	return nil, nil
}

// FindCluster lists the full names (name, "-", eight random characters) of the
// clusters in a store that an operator gave this name. A full name finds itself.
func FindCluster(ctx context.Context, store storage.Store, name string) ([]string, error) {
	var clusters []string
	for info, err := range store.List(ctx, name) {
		if err != nil {
			return nil, fmt.Errorf("look for cluster %q: %w", name, err)
		}
		folder, _, ok := strings.Cut(info.Name, "/")
		if !ok || manifest.CheckCluster(folder) != nil || slices.Contains(clusters, folder) {
			continue
		}
		if short, _, _ := manifest.ClusterName(folder); short == name || folder == name {
			clusters = append(clusters, folder)
		}
	}
	slices.Sort(clusters)
	return clusters, nil
}
