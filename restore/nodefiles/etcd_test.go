package nodefiles_test

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lifeboat/backup/host"
	"lifeboat/internal/kubefixture"
	"lifeboat/internal/seal"
	"lifeboat/restore/nodefiles"
	"lifeboat/restore/pki"
	"lifeboat/restore/readdress"
)

// TestAnEtcdUnitGetsItsNewNameAndAddress moves a host whose etcd has its
// settings where no usual file is.
func TestAnEtcdUnitGetsItsNewNameAndAddress(t *testing.T) {
	root := t.TempDir()
	check(t, kubefixture.Build(root, kubefixture.Options{Kind: kubefixture.ExternalEtcd, Now: now}))
	check(t, os.Rename(filepath.Join(root, "etc/etcd/etcd.env"), filepath.Join(root, "opt-etcd.conf")))
	unit := filepath.Join(root, "etc/systemd/system/etcd.service")
	text, err := os.ReadFile(unit)
	check(t, err)
	check(t, os.WriteFile(unit, bytes.ReplaceAll(text, []byte("/etc/etcd/etcd.env"), []byte("/opt-etcd.conf")), 0o644))
	check(t, os.MkdirAll(filepath.Join(root, "proc/9"), 0o755))
	check(t, os.WriteFile(filepath.Join(root, "proc/9/cmdline"), []byte("/opt/etcd\x00--name=cp1\x00--data-dir=/data/more\x00--initial-cluster\x00cp1=http://10.0.0.11:4380,cp2=http://10.0.0.12:4380\x00--listen-client-urls=http://10.0.0.11:4379\x00"), 0o600))
	var out bytes.Buffer
	w := seal.NewArchiveWriter(&out)
	_, err = host.Capture(t.Context(), host.Options{
		Root: root, Node: "cp1", Now: func() time.Time { return now }, Resolver: noDNS{}, Wait: time.Millisecond, Addresses: func() ([]host.Address, error) { return nil, nil },
	}, w)
	check(t, err)
	check(t, w.Close())

	names, addresses := []string{"cp1=cp4"}, []string{"10.0.0.11=10.0.0.44"}
	m, err := readdress.New(readdress.Options{Names: names, Addresses: addresses})
	check(t, err)
	dir := t.TempDir()
	s, err := stage(t, out.Bytes(), func(o *nodefiles.Options) {
		o.Dir, o.Mapping, o.Names = dir, m, map[string]string{"cp1": "cp4"}
		o.Addresses = map[netip.Addr]netip.Addr{netip.MustParseAddr("10.0.0.11"): netip.MustParseAddr("10.0.0.44")}
	})
	check(t, err)
	if len(s.Servers) != 2 {
		t.Fatalf("%+v", s.Servers)
	}
	of, process := s.Servers[0], s.Servers[1]
	if of.Name != "cp4" || of.PeerURLs[0] != "https://10.0.0.44:2380" || of.InitialCluster != "cp4=https://10.0.0.44:2380" || of.ListenClientURLs[1] != "https://10.0.0.44:2379" || of.Unit != "etcd" {
		t.Errorf("%+v", of)
	}
	want := []string{"/opt/etcd", "--name=cp4", "--data-dir=/data/more", "--initial-cluster", "cp4=http://10.0.0.44:4380,cp2=http://10.0.0.12:4380", "--listen-client-urls=http://10.0.0.44:4379"}
	if diff := cmp.Diff(want, process.Args); diff != "" || process.Name != "cp4" || process.InitialCluster != "cp4=http://10.0.0.44:4380,cp2=http://10.0.0.12:4380" {
		t.Errorf("%s%+v", diff, process)
	}
	env, err := s.Read("/opt-etcd.conf")
	check(t, err)
	if got := string(env); !strings.Contains(got, "ETCD_NAME=cp4\n") || strings.Contains(got, "10.0.0.11") {
		t.Errorf("the environment file:\n%s", got)
	}
	impossible := 0 // the key of etcd's authority is elsewhere
	for _, l := range s.Issued {
		if l.Action == pki.Impossible && strings.HasPrefix(l.File, "/etc/etcd/pki/") {
			impossible++
		}
	}
	if impossible != 2 {
		t.Errorf("%d certificates of etcd's can't be issued anew, want server.crt and peer.crt", impossible)
	}
	if s.Facts.EtcdServers[0].Name != "cp1" {
		t.Error("the facts of the machine as it was have changed")
	}
	again, err := nodefiles.Load(dir)
	check(t, err)
	if diff := cmp.Diff(s.Servers, again.Servers); diff != "" {
		t.Errorf("loaded again:\n%s", diff)
	}
}
