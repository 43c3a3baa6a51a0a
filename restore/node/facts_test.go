package node_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"lifeboat/restore/node"
)

func TestIdentity(t *testing.T) {
	got, err := node.New(node.Options{}).Identity()
	if err != nil {
		t.Fatal(err)
	}
	name, _ := os.Hostname()
	if got.Hostname != name || !got.Has(netip.MustParseAddr("127.0.0.1")) || !got.Has(netip.MustParseAddr("::ffff:127.0.0.1")) || got.Has(netip.MustParseAddr("192.0.2.1")) {
		t.Errorf("got %+v", got)
	}
}

func TestSpaceOfAPathThatIsNotThereYet(t *testing.T) {
	m := node.New(node.Options{})
	folder := t.TempDir()
	have, err := m.Space(folder)
	if err != nil {
		t.Fatal(err)
	}
	want, err := m.Space(filepath.Join(folder, "not", "yet"))
	if err != nil || want.MountPoint != have.MountPoint || want.Type != have.Type || have.Type == "" || have.Free <= 0 || have.Total < have.Free {
		t.Errorf("%+v and %+v, %v", have, want, err)
	}
	if proc, err := m.Space("/proc/self"); err != nil || proc.Type != "proc" || proc.MountPoint != "/proc" {
		t.Errorf("/proc: %+v, %v", proc, err)
	}
}

func TestTheDeepestAndLastMountHoldsAPath(t *testing.T) {
	folder := t.TempDir()
	place, err := filepath.EvalSymlinks(folder)
	if err != nil {
		t.Fatal(err)
	}
	tr := newTree(t)
	tr.write("proc/self/mountinfo", `22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 8:2 / `+filepath.Dir(place)+` rw - ext4 /dev/sdb1 rw
24 22 8:3 / `+place+` rw - xfs /dev/with\040space rw
25 22 8:3 / `+place+` rw - btrfs /dev/with\040space rw
26 22 8:4 / `+place+`-other rw - tmpfs tmpfs rw
27 22 8:4 broken
`)
	got, err := node.New(node.Options{Root: tr.root}).Space(filepath.Join(folder, "x"))
	if err != nil || got.Type != "btrfs" || got.MountPoint != place || got.Source != "/dev/with space" {
		t.Errorf("got %+v, %v", got, err)
	}
	tr.write("proc/self/mountinfo", "")
	if _, err := node.New(node.Options{Root: tr.root}).Space(folder); err == nil {
		t.Error("no mount is no error")
	}
}
