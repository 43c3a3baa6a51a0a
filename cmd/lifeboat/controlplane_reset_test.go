package main

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"

	"lifeboat/internal/distro"
	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/freeport"
	"lifeboat/internal/hostfacts"
	"lifeboat/internal/kubefixture"
	"lifeboat/restore"
	"lifeboat/restore/topology"
)

// distroEtcd is a real etcd with a distribution's certificates, as its server runs it
// but for the port.
type distroEtcd struct {
	t                *testing.T
	process          *exec.Cmd
	endpoint, dir    string
	name             string
	ca, server, mine string // files without .crt and .key
}

func startDistroEtcd(t *testing.T, host string, kind kubefixture.Kind) *distroEtcd {
	t.Helper()
	tls := filepath.Join(host, "var/lib/rancher", kind.String(), "server/tls/etcd")
	e := &distroEtcd{t: t, dir: t.TempDir(), name: "cp1-306b6a7b", ca: filepath.Join(tls, "server-ca"), server: filepath.Join(tls, "server-client"), mine: filepath.Join(tls, "client")}
	if kind == kubefixture.K0s {
		pki := filepath.Join(host, "var/lib/k0s/pki")
		e.name = "cp1"
		e.ca, e.server, e.mine = filepath.Join(pki, "etcd/ca"), filepath.Join(pki, "etcd/server"), filepath.Join(pki, "apiserver-etcd-client")
	}
	e.endpoint = "https://" + freeport.Address(t)
	e.start()
	return e
}

func (e *distroEtcd) start() {
	e.t.Helper()
	peer := "http://" + freeport.Address(e.t)
	e.process = exec.CommandContext(e.t.Context(), cluster.Binary(e.t, "3.6", "etcd"), "--name", e.name, "--data-dir", e.dir,
		"--listen-client-urls", e.endpoint, "--advertise-client-urls", e.endpoint, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", e.name+"="+peer,
		"--client-cert-auth", "--trusted-ca-file", e.ca+".crt", "--cert-file", e.server+".crt", "--key-file", e.server+".key", "--unsafe-no-fsync")
	must(e.t, e.process.Start())
	e.t.Cleanup(e.stop)
}

func (e *distroEtcd) stop() {
	if e.process != nil {
		_ = e.process.Process.Kill()
		_ = e.process.Wait()
		e.process = nil
	}
}

func (e *distroEtcd) put(keys ...string) {
	e.t.Helper()
	config, err := (transport.TLSInfo{TrustedCAFile: e.ca + ".crt", CertFile: e.mine + ".crt", KeyFile: e.mine + ".key"}).ClientConfig()
	must(e.t, err)
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{e.endpoint}, TLS: config, DialTimeout: 20 * time.Second})
	must(e.t, err)
	defer client.Close()
	for _, key := range keys {
		if _, err := client.Put(e.t.Context(), key, "value of "+key); err != nil {
			e.t.Fatal(err)
		}
	}
}

// resetWard is a server of a distribution that was backed up and is lost, but for its
// etcd, which the test stops.
func resetWard(t *testing.T, kind kubefixture.Kind) (*ward, *distroEtcd) {
	t.Helper()
	w := &ward{t: t, work: shm(t)}
	w.root, w.state, w.config = filepath.Join(w.work, "machine"), filepath.Join(w.work, "state"), filepath.Join(w.work, "keys/config.yaml")
	w.machine = &patient{ward: w, addresses: []string{"10.0.0.11/24"}}
	host := filepath.Join(w.work, "host")
	must(t, os.MkdirAll(w.root, 0o755))
	must(t, kubefixture.Build(host, kubefixture.Options{Kind: kind, Node: "cp1", Token: "swordfish"}))
	etcd := startDistroEtcd(t, host, kind)
	etcd.put("/registry/a", "/registry/b", distro.BootstrapKey("swordfish"))
	// The certificates are found by init, the port is the test's own.
	out := w.must("init", "--cluster", "prod", "--store", "file://"+w.work+"/store", "--out", filepath.Dir(w.config), "--host-root", host, "--node", "cp1", "--etcd", etcd.endpoint)
	if !strings.Contains(out, etcd.endpoint) {
		t.Errorf("init says %s", out)
	}
	rewrite(t, w.config, "\nstateDir: ", "\nstateDir: "+w.state+" # ")
	w.must("backup", "--config", w.config)
	return w, etcd
}

func TestTheEtcdOfADistributionIsBackedUpAndAResetIsPlanned(t *testing.T) {
	for kind, words := range map[kubefixture.Kind][]string{
		kubefixture.K3s: {
			"On cp1: Reset the cluster to this server", "/usr/local/bin/k3s server --cluster-reset --cluster-reset-restore-path=/var/lib/lifeboat/reset.db --token-file=/var/lib/rancher/k3s/server/token --flannel-iface eth0",
			"grep -aqF /bootstrap/b9f195c5cc7e /var/lib/lifeboat/reset.db", "--bump 1000000000",
		},
		kubefixture.RKE2: {"/usr/local/bin/rke2 server --cluster-reset", "--exclude var/lib/rancher/rke2/agent/pod-manifests", "rke2-killall.sh"},
		kubefixture.K0s:  {"/usr/local/bin/k0s restore", "etcd-snapshot.db k0s.yaml", "systemctl start k0scontroller"},
	} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			w, etcd := resetWard(t, kind)
			// While it lives nothing must be reset, and the backup's own certificates tell that it does.
			w.wants(exitRefused, "etcd needs no restore", w.flags("--dry-run")...)
			etcd.stop()
			before := w.tree()

			// A bare machine, and one that still has its files.
			for _, bare := range []bool{true, false} {
				if !bare {
					must(t, os.CopyFS(w.root, os.DirFS(filepath.Join(w.work, "host"))))
					must(t, os.RemoveAll(filepath.Join(w.root, "var/lib/rancher", kind.String(), "server/db"))) // no etcd's at all
					must(t, os.RemoveAll(filepath.Join(w.root, "var/lib/k0s/etcd")))
					before = w.tree()
				}
				out := w.wants(exitRefused, kind.String()+" restores its own etcd: nothing was changed", w.flags("--yes")...)
				for _, text := range append(words, "lifeboat restore files --node cp1 --root / --identity "+filepath.Dir(w.config)+"/recovery.key", "lifeboat backup") {
					if !strings.Contains(out, text) {
						t.Errorf("the plan lacks %q:\n%s", text, out)
					}
				}
				if strings.Contains(out, "swordfish") || strings.Contains(out, "Before you begin") || strings.Contains(out, "Let the others join") {
					t.Errorf("%s", out)
				}
				sameTree(t, before, w.tree())
			}
			if len(w.machine.story) > 0 {
				t.Errorf("something was done: %v", w.machine.story)
			}
			if _, err := os.Stat(filepath.Join(w.state, "restores")); err == nil {
				t.Error("a restore was begun")
			}
			w.exportsWhatAResetTakes(kind)
		})
	}
}

// exportsWhatAResetTakes runs the export of the plan, and does with the snapshot what
// the distribution's own code does: etcdutl's restore for one member with a name of
// its own, and for k3s and rke2 a start with --force-new-cluster.
func (w *ward) exportsWhatAResetTakes(kind kubefixture.Kind) {
	t := w.t
	var plan resetJSON
	must(t, json.Unmarshal([]byte(w.must(w.flags("--dry-run", "-o", "json")...)), &plan))
	if plan.Changed || plan.Reset.Kind != kind.String() || plan.Bump < 1_000_000_000 || plan.FilesBackup == "" || plan.Host == nil {
		t.Fatalf("%+v", plan)
	}
	var command []string
	for _, s := range plan.Reset.Steps {
		for _, c := range s.Commands {
			if strings.HasPrefix(c, "lifeboat export ") {
				command = strings.Fields(c)[1:]
			}
		}
	}
	snapshot := filepath.Join(w.work, "reset.db")
	out := slices.Index(command, "--out") + 1
	if out == 0 {
		t.Fatalf("no export in %+v", plan.Reset.Steps)
	}
	command[out] = snapshot
	w.must(command...)

	if text, err := exec.CommandContext(t.Context(), cluster.Binary(t, "3.6", "etcdutl"), "snapshot", "status", snapshot).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	data, peer := filepath.Join(w.work, "etcd"), "http://"+freeport.Address(t)
	if text, err := exec.CommandContext(t.Context(), cluster.Binary(t, "3.6", "etcdutl"), "snapshot", "restore", snapshot, "--data-dir", data, "--name", "cp1-00000001",
		"--initial-advertise-peer-urls", peer, "--initial-cluster", "cp1-00000001="+peer).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	var args []string
	if kind != kubefixture.K0s {
		args = []string{"--force-new-cluster"}
	}
	c := cluster.StartBinary(t, "3.6", cluster.Options{DataDir: data, Name: "cp1-00000001", PeerURL: peer, Args: args})
	got, err := c.Client().Get(t.Context(), "/", clientv3.WithPrefix())
	must(t, err)
	if want := int64(plan.Point.Revision) + int64(plan.Bump); got.Header.Revision < want || got.Count != 3 || !strings.HasPrefix(string(got.Kvs[0].Key), distro.BootstrapPrefix) {
		t.Errorf("revision %d, want %d; %d keys", got.Header.Revision, want, got.Count)
	}
	if _, err := c.Client().Get(t.Context(), "/", clientv3.WithPrefix(), clientv3.WithRev(int64(plan.Point.Revision))); err == nil {
		t.Error("what was before the bump is not compacted: watchers would go on from it")
	}
	c.Stop(0)
}

func TestTheWrongMachineOrDatastoreForAResetIsRefused(t *testing.T) {
	w, etcd := resetWard(t, kubefixture.K3s)
	etcd.stop()
	w.wants(exitUsage, "are for kubeadm's nodes", w.flags("--with", w.order())...)
	w.wants(exitUsage, "are for kubeadm's nodes", w.flags("--rename", "cp1=cp4", "--node", "cp1")...)
	w.wants(exitUsage, "are for kubeadm's nodes", w.flags("--members", "all")...)

	// This machine is an rke2's, the backup k3s's.
	must(t, kubefixture.Build(w.root, kubefixture.Options{Kind: kubefixture.RKE2, Node: "cp1"}))
	w.wants(exitRefused, "this host is a server of rke2 (/var/lib/rancher/rke2/server), and the backed-up files of cp1 are of k3s", w.flags("--dry-run")...)

	// It is a k3s's with SQLite, and no files of it are in the backup.
	must(t, os.RemoveAll(w.root))
	must(t, kubefixture.Build(w.root, kubefixture.Options{Kind: kubefixture.K3s, Node: "cp1", SQLite: true}))
	w.wants(exitRefused, "keeps it in a database of another kind (sqlite)", w.flags("--dry-run", "--node", "cp9")...)

	// And with its etcd, of which the backup has the database alone.
	must(t, os.RemoveAll(w.root))
	must(t, kubefixture.Build(w.root, kubefixture.Options{Kind: kubefixture.K3s, Node: "cp1", Token: "swordfish"}))
	must(t, os.RemoveAll(filepath.Join(w.root, "var/lib/rancher/k3s/server/db")))
	out := w.must(w.flags("--dry-run", "--node", "cp9")...)
	if !strings.Contains(out, "no files of cp9 are in the backup") || strings.Contains(out, "restore files --node cp9") || !strings.Contains(out, "--cluster-reset") {
		t.Errorf("%s", out)
	}
}

func TestWhatIsLeftOfADistributionIsToBeMovedAway(t *testing.T) {
	root := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(root, "var/lib/rancher/k3s/server/tls"), 0o755))
	here, err := topology.Distribution(root)
	must(t, err)
	facts := &hostfacts.Facts{Node: "cp1", Etcd: &hostfacts.Discovery{Kind: "stacked"}}
	_, err = whichDistribution(here, facts, "cp1")
	if !errors.Is(err, restore.ErrRefused) || !strings.Contains(err.Error(), "mv -T /var/lib/rancher/k3s/server /var/lib/rancher/k3s/server.left") {
		t.Fatalf("%v", err)
	}
	must(t, os.Rename(filepath.Join(root, "var/lib/rancher/k3s/server"), filepath.Join(root, "var/lib/rancher/k3s/server.left")))
	here, err = topology.Distribution(root)
	must(t, err)
	if d, err := whichDistribution(here, facts, "cp1"); d != nil || err != nil {
		t.Errorf("%+v, %v", d, err)
	}
}

// order writes one that a kubeadm node might have shared.
func (w *ward) order() string {
	path := filepath.Join(w.work, "restore.json")
	other := newWard(w.t)
	other.must(other.flags("--dry-run", "--members", "all", "--share", path)...)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		w.t.Fatal("no order was shared")
	}
	return path
}
