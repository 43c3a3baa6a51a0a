package repository

import (
	"testing"

	"lifeboat/internal/manifest"
)

func FuzzLocate(f *testing.F) {
	for _, name := range []string{
		"README.txt", "etcd/main/manifests/00000000000000000042", "etcd/main/manifests/42", "etcd/main/data/x/y",
		"drills/manifests/18446744073709551615", "drills/manifests/99999999999999999999", "hosts/cp1/data/abcdefghijklmnopqrstuvwxyz/files.tar.zst.age",
		"etcd/data/manifests/00000000000000000001", "manifests/x", "etcd/../manifests/1", "etcd/main/manifests/+0000000000000000001", "",
	} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		p, ok := locate(name)
		if !ok {
			return
		}
		if err := p.chain.Check(); err != nil {
			t.Errorf("%q lies in chain %q: %v", name, p.chain, err)
		}
		if p.manifest && p.seq != 0 && ManifestName(p.chain, p.seq) != name {
			t.Errorf("%q is taken for %s", name, ManifestName(p.chain, p.seq))
		}
		if p.id != "" && (p.manifest || p.id.Check() != nil || len(name) <= len(p.chain.DataFolder(p.id)) || name[:len(p.chain.DataFolder(p.id))] != p.chain.DataFolder(p.id)) {
			t.Errorf("%q is taken for data of %s in %s", name, p.id, p.chain)
		}
	})
}

func TestNamesOfObjectsAreThoseOfTheFormat(t *testing.T) {
	id := manifest.ID("abcdefghijklmnopqrstuvwxyz")
	if got := ObjectName("etcd/main", id, "snapshot.db.zst.age"); got != "etcd/main/data/abcdefghijklmnopqrstuvwxyz/snapshot.db.zst.age" {
		t.Error(got)
	}
	if got := ManifestName("hosts/cp1", 7); got != "hosts/cp1/manifests/00000000000000000007" {
		t.Error(got)
	}
}
