package topology_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/hostfacts"
	"lifeboat/internal/kubefixture"
	"lifeboat/internal/manifest"
	"lifeboat/restore/node"
	"lifeboat/restore/topology"
)

const etcdPod = `{"kind":"Pod","metadata":{"name":"etcd"},"spec":{"containers":[{"image":"quay.io/coreos/etcd:v3.5.21","command":["sh","-c","exec etcd --data-dir /data/x --name 'e1' --listen-client-urls https://10.0.0.31:2379"],
"volumeMounts":[{"name":"a","mountPath":"/data"},{"name":"b","mountPath":"/data/x","subPath":"sub"}]}],"volumes":[{"name":"a","hostPath":{"path":"/wrong"}},{"name":"b","hostPath":{"path":"/mnt/etcd"}}]}}`

func TestKindsOfHosts(t *testing.T) {
	for _, c := range []struct {
		name    string
		root    string
		facts   *hostfacts.Facts
		want    topology.Kind
		dataDir string
		how     string
	}{
		{name: "kubeadm with etcd", root: fixture(t, kubefixture.Stacked), want: topology.Kubeadm, dataDir: "/var/lib/etcd", how: "run kube-apiserver and etcd"},
		{name: "kubeadm with more files", root: fixture(t, kubefixture.ExtraFiles), want: topology.Kubeadm, dataDir: "/var/lib/etcd"},
		{name: "kubeadm beside an etcd unit", root: fixture(t, kubefixture.ExternalEtcd), want: topology.KubeadmExternal, dataDir: "/data/etcd", how: "no etcd"},
		{name: "recorded hosts: stacked", root: testdata(t, "stacked"), want: topology.Kubeadm, dataDir: "/var/lib/etcd"},
		{name: "recorded hosts: extra files", root: testdata(t, "extra-files"), want: topology.Kubeadm, dataDir: "/var/lib/etcd"},
		{name: "recorded hosts: external etcd", root: testdata(t, "external-etcd"), want: topology.KubeadmExternal, dataDir: "/data/etcd"},
		{name: "an etcd in a static pod and no API server", root: write(t, map[string]string{"etc/kubernetes/manifests/etcd.json": etcdPod}), want: topology.Etcd, dataDir: "/mnt/etcd/sub"},
		{name: "manifests elsewhere", want: topology.Etcd, dataDir: "/mnt/etcd/sub",
			root: write(t, map[string]string{"var/lib/kubelet/config.yaml": "staticPodPath: /srv/pods/\n", "srv/pods/etcd.yaml": etcdPod, "srv/pods/.old": etcdPod, "srv/pods/README": "no pod"})},
		{name: "an etcd unit alone, by its flags", want: topology.Etcd, dataDir: "/srv/etcd",
			root: write(t, map[string]string{"etc/systemd/system/etcd.service": "[Service]\nEnvironment=ETCD_DATA_DIR=/other\n# --data-dir=/comment\nExecStart=/usr/bin/etcd --name=e1 \\\n  --data-dir=/srv/etcd\n"})},
		{name: "an etcd unit, by its environment file", want: topology.Etcd, dataDir: "/srv/env",
			root: write(t, map[string]string{"etc/systemd/system/etcd.service": "[Service]\nEnvironmentFile=-/opt/etcd/vars\nExecStart=/usr/bin/etcd\n", "opt/etcd/vars": "ETCD_DATA_DIR=\"/srv/env\"\n"})},
		{name: "an etcd unit, by its drop-in and configuration", want: topology.Etcd, dataDir: "/srv/config",
			root: write(t, map[string]string{"usr/lib/systemd/system/etcd.service": "[Service]\nExecStart=/usr/bin/etcd\n", "etc/systemd/system/etcd.service": "[Service]\n",
				"etc/systemd/system/etcd.service.d/10.conf": "[Service]\nExecStart=/usr/bin/etcd --config-file /srv/e.yml\n", "srv/e.yml": "data-dir: /srv/config\nname: e1\n"})},
		{name: "k3s", root: write(t, map[string]string{"var/lib/rancher/k3s/server/token": "x"}), want: topology.K3s, dataDir: "/var/lib/rancher/k3s/server/db/etcd"},
		{name: "k3s's agents are no servers", root: write(t, map[string]string{"var/lib/rancher/k3s/agent/x": "x"}), want: topology.Bare, dataDir: "/var/lib/etcd"},
		{name: "rke2", root: write(t, map[string]string{"var/lib/rancher/rke2/server/token": "x", "var/lib/rancher/rke2/agent/pod-manifests/etcd.yaml": strings.ReplaceAll(etcdPod, "/mnt/etcd", "/var/lib/rancher/rke2/server/db/etcd")}), want: topology.RKE2, dataDir: "/var/lib/rancher/rke2/server/db/etcd/sub"},
		{name: "a whole k3s", root: fixture(t, kubefixture.K3s), want: topology.K3s, dataDir: "/var/lib/rancher/k3s/server/db/etcd", how: "/var/lib/rancher/k3s/server is there"},
		{name: "a whole rke2, whose etcd is a static pod with its settings in a file", root: fixture(t, kubefixture.RKE2), want: topology.RKE2, dataDir: "/var/lib/rancher/rke2/server/db/etcd"},
		{name: "a whole k0s", root: fixture(t, kubefixture.K0s), want: topology.K0s, dataDir: "/var/lib/k0s/etcd"},
		{name: "recorded hosts: k3s", root: testdata(t, "k3s"), want: topology.K3s, dataDir: "/var/lib/rancher/k3s/server/db/etcd"},
		{name: "recorded hosts: rke2", root: testdata(t, "rke2-joined"), want: topology.RKE2, dataDir: "/var/lib/rancher/rke2/server/db/etcd"},
		{name: "recorded hosts: k0s", root: testdata(t, "k0s"), want: topology.K0s, dataDir: "/var/lib/k0s/etcd"},
		{name: "k3s in another folder", root: write(t, map[string]string{"etc/rancher/k3s/config.yaml": "data-dir: /data/k3s\n", "data/k3s/server/token": "x"}), want: topology.K3s, dataDir: "/data/k3s/server/db/etcd"},
		{name: "kubeadm beside what k3s has left", want: topology.Kubeadm, dataDir: "/var/lib/etcd",
			root: with(t, fixture(t, kubefixture.Stacked), map[string]string{"var/lib/rancher/k3s/server/token": "x"})},
		{name: "kubeadm beside what rke2 has left", want: topology.Kubeadm, dataDir: "/var/lib/etcd",
			root: with(t, fixture(t, kubefixture.Stacked), map[string]string{"var/lib/rancher/rke2/server/token": "x", "var/lib/rancher/rke2/agent/pod-manifests/etcd.yaml": strings.ReplaceAll(etcdPod, "https://10.0.0.31:2379", "https://127.0.0.1:2379")})},
		{name: "a bare machine that is to become a k3s", root: t.TempDir(), want: topology.K3s, dataDir: "/data/k3s/server/db/etcd", how: "describe a server of k3s",
			facts: &hostfacts.Facts{Node: "cp1", Distribution: &hostfacts.Distribution{Kind: "k3s", DataDir: "/data/k3s", Datastore: "etcd"}, Etcd: &hostfacts.Discovery{Kind: "k3s", DataDir: "/data/k3s/server/db/etcd"}}},
		{name: "a bare machine that is to become a k3s with SQLite", root: t.TempDir(), want: topology.K3s, dataDir: "/var/lib/etcd", how: "describe a server of k3s",
			facts: &hostfacts.Facts{Node: "cp1", Distribution: &hostfacts.Distribution{Kind: "k3s", DataDir: "/data/k3s", Datastore: "sqlite"}}},
		{name: "k0s", root: write(t, map[string]string{"etc/k0s/k0s.yaml": "x"}), want: topology.K0s, dataDir: "/var/lib/k0s/etcd"},
		{name: "manifests lost, PKI there", root: write(t, map[string]string{"etc/kubernetes/pki/apiserver.crt": "x", "etc/kubernetes/pki/etcd/server.crt": "x"}), want: topology.Kubeadm, dataDir: "/var/lib/etcd", how: "no static pods"},
		{name: "a bare machine", root: t.TempDir(), want: topology.Bare, dataDir: "/var/lib/etcd"},
		{name: "a bare machine that is to become the backup's", root: t.TempDir(), facts: facts(), want: topology.Kubeadm, dataDir: "/var/lib/etcd", how: "kind stacked"},
		{name: "a bare machine that is to become an etcd", root: t.TempDir(), want: topology.Etcd, dataDir: "/data/etcd",
			facts: &hostfacts.Facts{Node: "e1", DataDirs: []string{"data/etcd"}, Files: []hostfacts.File{{Name: "etc/etcd/etcd.env"}}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := inspect(t, topology.Inputs{Root: c.root, Facts: c.facts})
			if h.Kind != c.want || h.Data.Path != c.dataDir || !strings.Contains(h.KindHow, c.how) || h.KindHow == "" || h.Data.How == "" {
				t.Errorf("kind %s (%s), data %s (%s)", h.Kind, h.KindHow, h.Data.Path, h.Data.How)
			}
		})
	}
}

func TestHowADistributionIsSetUpIsFound(t *testing.T) {
	was := &hostfacts.Facts{Node: "cp1", Distribution: &hostfacts.Distribution{Kind: "k3s", DataDir: "/from/backup", Datastore: "etcd"}}
	if d := inspect(t, topology.Inputs{Root: fixture(t, kubefixture.K3s), Facts: was}).Distribution; d == nil || d.DataDir != "/var/lib/rancher/k3s" || d.BootstrapKey == "" {
		t.Errorf("what is here counts: %+v", d)
	}
	if d := inspect(t, topology.Inputs{Root: t.TempDir(), Facts: was}).Distribution; d == nil || d.DataDir != "/from/backup" {
		t.Errorf("else what was: %+v", d)
	}
	if d := inspect(t, topology.Inputs{Root: fixture(t, kubefixture.Stacked), Facts: was}).Distribution; d != nil {
		t.Errorf("a kubeadm node is none: %+v", d)
	}
}

func TestAnotherKindThanTheBackupsIsWarnedOf(t *testing.T) {
	h := inspect(t, topology.Inputs{Root: fixture(t, kubefixture.ExternalEtcd), Facts: facts()})
	if len(h.Warnings) == 0 || !strings.Contains(h.Warnings[0].Text, "set up as kubeadm-external-etcd, the backup is of kubeadm") {
		t.Errorf("%+v", h.Warnings)
	}
}

func TestIdentity(t *testing.T) {
	for _, c := range []struct {
		name            string
		hostname        string
		addresses       []node.Address
		rename, address []string
		choices         int
		same            bool
	}{
		{name: "the same machine", hostname: "cp1", addresses: at("10.0.0.11/24"), same: true},
		{name: "another name", hostname: "CP4", addresses: at("10.0.0.11/24"), rename: []string{"cp1=cp4"}},
		{name: "another address", hostname: "cp1", addresses: at("10.0.0.44/24"), address: []string{"10.0.0.11=10.0.0.44"}},
		{name: "the address in the same network is the one", hostname: "cp1", addresses: at("172.16.0.5/16", "10.0.0.44/24"), address: []string{"10.0.0.11=10.0.0.44"}},
		{name: "one that could only be guessed is asked for", hostname: "cp1", addresses: at("172.16.0.5/16", "172.17.0.5/16"), choices: 1},
		{name: "of another family only", hostname: "cp1", addresses: at("fd00::5/64"), choices: 1},
		{name: "none at all", hostname: "new", addresses: at(), rename: []string{"cp1=new"}, choices: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := cp1()
			m.identity = node.Identity{Hostname: c.hostname, Addresses: c.addresses}
			id := inspect(t, topology.Inputs{Root: t.TempDir(), Machine: m, Facts: facts()}).Identity
			if id.Same != c.same || !id.Known || !slices.Equal(id.Rename, c.rename) || !slices.Equal(id.Address, c.address) || len(id.Choices) != c.choices {
				t.Errorf("%+v", id)
			}
			if !slices.Equal(id.WasAt, []string{"10.0.0.11"}) || slices.Contains(id.Addresses, "10.244.0.1") {
				t.Errorf("%+v", id)
			}
		})
	}
	t.Run("without an etcd the node's own addresses in its kubeconfigs count", func(t *testing.T) {
		f := facts()
		f.Etcd = nil
		if id := inspect(t, topology.Inputs{Root: t.TempDir(), Facts: f}).Identity; !slices.Equal(id.WasAt, []string{"10.0.0.11"}) {
			t.Errorf("%+v", id)
		}
		f.Servers = nil
		if id := inspect(t, topology.Inputs{Root: t.TempDir(), Facts: f}).Identity; !slices.Equal(id.WasAt, []string{"10.0.0.11", "192.168.7.11"}) {
			t.Errorf("%+v", id)
		}
	})
	t.Run("without a backup nothing is compared", func(t *testing.T) {
		h := inspect(t, topology.Inputs{Root: t.TempDir()})
		if id := h.Identity; id.Known || id.Same || id.Hostname != "cp1" {
			t.Errorf("%+v", id)
		}
		if !strings.Contains(h.Verdict.Why[0], "nobody was asked") {
			t.Errorf("%+v", h.Verdict)
		}
	})
}

func TestWhatTheMachineTells(t *testing.T) {
	m := cp1()
	m.pods = []node.Pod{
		{Namespace: "kube-system", Name: "etcd-cp1", Static: true, Containers: []node.Container{{Name: "etcd", Running: true}}},
		{Namespace: "kube-system", Name: "kube-apiserver-cp1", Static: true, Containers: []node.Container{{Name: "kube-apiserver"}}},
	}
	m.listeners = []node.Listener{
		{Address: netip.MustParseAddrPort("10.0.0.11:6443")},
		{Address: netip.MustParseAddrPort("127.0.0.1:2379"), Process: node.Process{PID: 7, Program: "etcd"}},
		{Address: netip.MustParseAddrPort("0.0.0.0:22")},
	}
	h := inspect(t, topology.Inputs{Root: fixture(t, kubefixture.Stacked), Machine: m, Facts: facts(), Etcd: &manifest.Etcd{Version: "3.6.7", DBBytes: 4 << 30}})

	if len(h.Pods) != 4 || h.Pods[0].File != "/etc/kubernetes/manifests/etcd.yaml" || h.Pods[0].Name != "etcd" {
		t.Errorf("pods %+v", h.Pods)
	}
	if len(h.Spaces) != 2 || h.Spaces[0].MountPoint != "/" || len(h.Spaces[0].For) != 4 || !h.Spaces[1].ReadOnly {
		t.Errorf("spaces %+v", h.Spaces)
	}
	var texts []string
	for _, w := range h.Warnings {
		texts = append(texts, w.Text)
	}
	if all := strings.Join(texts, "\n"); !strings.Contains(all, "the database of the backup has 4294967296") || !strings.Contains(all, "read-only") {
		t.Errorf("warnings %s", all)
	}
	if len(h.Services) != 1 || h.Services[0].State != "unit kubelet.service is active and enabled" || h.Services[0].Stopped {
		t.Errorf("services %+v", h.Services)
	}
	if !h.Runtime.Answers || !slices.Equal(h.Runtime.Running, []string{"etcd-cp1"}) {
		t.Errorf("runtime %+v", h.Runtime)
	}
	// The backup's images are what will be started.
	if len(h.Images) != 2 || h.Images[0].Reference != "registry.k8s.io/etcd:3.6.7-0" || h.Images[0].State != "missing" || !strings.Contains(h.Images[0].Advice, "images load") {
		t.Errorf("images %+v", h.Images)
	}
	if all := strings.Join(texts, "\n"); !strings.Contains(all, "registry.k8s.io/etcd:3.6.7-0") || !strings.Contains(all, "lifeboat images load") {
		t.Errorf("warnings %s", all)
	}
	if len(h.Ports.Listeners) != 2 || h.Ports.Listeners[0].Process != "process 7 (etcd)" || h.Ports.Listeners[1].Process != "a process that can't be seen" {
		t.Errorf("ports %+v", h.Ports)
	}
	want := []topology.Version{{Program: "kubernetes", OnDisk: "v1.36.3", InBackup: "v1.36.2"}, {Program: "etcd", OnDisk: "3.6.8", InBackup: "3.6.7"}}
	for i, v := range h.Versions {
		if v.OnDisk != want[i].OnDisk || v.InBackup != want[i].InBackup || v.How == "" {
			t.Errorf("version %+v", v)
		}
	}
}

func TestImagesOnDiskCountWhereTheBackupNamesNone(t *testing.T) {
	h := inspect(t, topology.Inputs{Root: fixture(t, kubefixture.Stacked)})
	states := map[string]string{}
	for _, image := range h.Images {
		states[image.Reference] = image.State
	}
	if len(states) != 4 || states["registry.k8s.io/etcd:3.6.8-0"] != "present" || states["registry.k8s.io/kube-scheduler:v1.36.3"] != "missing" {
		t.Errorf("%v", states)
	}
	m := cp1()
	m.runtime = node.ErrNoRuntime
	h = inspect(t, topology.Inputs{Root: fixture(t, kubefixture.Stacked), Machine: m})
	if h.Images[0].State != "unknown" || !strings.Contains(h.Images[0].Advice, "start it") || h.Runtime.Answers {
		t.Errorf("%+v, %+v", h.Images, h.Runtime)
	}
}

func TestAClockBehindTheBackupIsWrong(t *testing.T) {
	h := inspect(t, topology.Inputs{Root: t.TempDir(), Facts: facts(), Now: func() time.Time { return now.Add(-48 * time.Hour) }})
	if !h.Clock.Behind || !strings.Contains(h.Clock.Explain, "47h0m0s behind") || len(h.Warnings) == 0 {
		t.Errorf("%+v, %+v", h.Clock, h.Warnings)
	}
	if h = inspect(t, topology.Inputs{Root: t.TempDir(), Facts: facts()}); h.Clock.Behind {
		t.Errorf("%+v", h.Clock)
	}
}

func TestAMachineThatTellsNothingStillGivesFindings(t *testing.T) {
	m := cp1()
	m.failing = errors.New("the machine is mute")
	h := inspect(t, topology.Inputs{Root: fixture(t, kubefixture.Stacked), Machine: m, Facts: facts()})
	if h.Kind != topology.Kubeadm || h.Identity.Failed == "" || h.Runtime.Failed == "" || h.Ports.Failed == "" || h.Spaces[0].Failed == "" || h.Services[0].Failed == "" {
		t.Errorf("%+v", h)
	}
	var b strings.Builder
	if err := h.Print(&b); err != nil || strings.Count(b.String(), "the machine is mute") < 5 {
		t.Error(b.String(), err)
	}
}

func TestUnreadableFilesAreToldAndHostileOnesEnd(t *testing.T) {
	root := write(t, map[string]string{
		"etc/kubernetes/manifests/a.yaml": "kind: [", "etc/kubernetes/manifests/b.yaml": "&a [*a]", "etc/etcd/etcd.yaml": "- 1\n", "var/lib/etcd/member/snap/db": strings.Repeat("x", 9000),
	})
	h := inspect(t, topology.Inputs{Root: root, Facts: &hostfacts.Facts{Addresses: []hostfacts.Address{{Address: "junk"}}, Servers: []string{"://"}}})
	if h.Data.Freshness != topology.Unproved || h.Data.Failed == "" {
		t.Errorf("%+v", h.Data)
	}
}

func TestInputsThatCantBeUsed(t *testing.T) {
	for name, in := range map[string]topology.Inputs{
		"no machine": {Now: time.Now},
		"no clock":   {Machine: cp1()},
		"no root":    {Machine: cp1(), Now: time.Now, Root: "/nowhere/at/all"},
	} {
		if _, err := topology.Inspect(t.Context(), in); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := topology.Inspect(ctx, topology.Inputs{Machine: cp1(), Now: time.Now, Root: t.TempDir(), Dial: deadNetwork}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestFindingsSayHowAndHaveAJSONForm(t *testing.T) {
	h := inspect(t, topology.Inputs{Root: fixture(t, kubefixture.Stacked), Facts: facts(), Etcd: &manifest.Etcd{ClusterID: 0xabc, Members: []manifest.Member{{ID: 1, Name: "cp1", ClientURLs: []string{"https://10.0.0.11:2379"}}}}})
	text, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	var back topology.Host
	if err := json.Unmarshal(text, &back); err != nil || back.Kind != h.Kind || back.Verdict.Outcome != h.Verdict.Outcome {
		t.Errorf("%v %s", err, text)
	}
	if strings.Contains(string(text), "null") {
		t.Errorf("a list is null: %s", text)
	}
	var b strings.Builder
	if err := h.Print(&b); err != nil {
		t.Fatal(err)
	}
	section := ""
	for line := range strings.Lines(b.String()) {
		switch {
		case !strings.HasPrefix(line, " "):
			section = line
		case strings.HasPrefix(line, "  - ") && !strings.HasPrefix(section, "Verdict") && !strings.HasPrefix(section, "The cluster") && !strings.HasSuffix(line, ")\n"):
			t.Errorf("this does not say how it is known: %s", line)
		}
	}
	if !strings.Contains(b.String(), "connection refused: nobody listens") || !strings.Contains(b.String(), "Verdict: ") {
		t.Error(b.String())
	}
}
