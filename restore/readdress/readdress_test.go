package readdress_test

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/kubefixture"
	"lifeboat/restore/readdress"
)

func mapping(t testing.TB, o readdress.Options) *readdress.Mapping {
	t.Helper()
	m, err := readdress.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

var toCP4 = readdress.Options{
	Names:     []string{"cp1=cp4"},
	Addresses: []string{"10.0.0.11=10.0.0.44", "fd00::11=fd00::44"},
	Endpoints: []string{"k8s.example.test:6443=dr.example.test:8443"},
}

func TestRewritePlaces(t *testing.T) {
	for _, c := range []struct {
		name         string
		kind         readdress.Kind
		before, want string // want "" means unchanged
	}{
		{"an address as a flag's value", readdress.StaticPod, "- --advertise-address=10.0.0.11\n", "- --advertise-address=10.0.0.44\n"},
		{"an address in lists of URLs", readdress.StaticPod, "- --etcd-servers=https://10.0.0.11:2379,https://10.0.0.111:2379,https://10.0.0.11\n", "- --etcd-servers=https://10.0.0.44:2379,https://10.0.0.111:2379,https://10.0.0.44\n"},
		{"separate etcds for some resources", readdress.StaticPod, "- --etcd-servers-overrides=/events#https://10.0.0.11:2381;https://10.0.0.1:2381\n", "- --etcd-servers-overrides=/events#https://10.0.0.44:2381;https://10.0.0.1:2381\n"},
		{"addresses that only look alike", readdress.StaticPod, "- a=10.0.0.1\n- b=10.0.0.110\n- c=110.0.0.11\n- d=10.0.0.11.5\n- e=1.10.0.0.11\n- f=10.0.0.11-beta\n- g=10.0.0.11.nip.io\n- h=ip-10.0.0.11\n- i=10.0.0.11:65536000\n", ""},
		{"an annotation and a probe", readdress.StaticPod, "    kubeadm.kubernetes.io/kube-apiserver.advertise-address.endpoint: 10.0.0.11:6443\n        host: 10.0.0.11\n", "    kubeadm.kubernetes.io/kube-apiserver.advertise-address.endpoint: 10.0.0.44:6443\n        host: 10.0.0.44\n"},
		{"IPv6 in brackets with a port, in several spellings", readdress.StaticPod, "- --listen-peer-urls=https://[fd00::11]:2380,https://[FD00:0:0:0::0011]:2380/,https://[fd00::111]:2380\n", "- --listen-peer-urls=https://[fd00::44]:2380,https://[fd00::44]:2380/,https://[fd00::111]:2380\n"},
		{"IPv6 alone and in a list", readdress.KubeletFlags, `KUBELET_KUBEADM_ARGS="--node-ip=10.0.0.11,fd00:0::11 --v=2"`, `KUBELET_KUBEADM_ARGS="--node-ip=10.0.0.44,fd00::44 --v=2"`},
		{"IPv6 with something like a port is another address", readdress.StaticPod, "- --x=fd00::11:2380\n", ""},
		{"IPv4 written as IPv6", readdress.StaticPod, "- --x=https://[::ffff:10.0.0.11]:1\n", "- --x=https://[::ffff:10.0.0.44]:1\n"},
		{"an IPv6 address that is a key", readdress.KubeletConfig, "fd00::11: x\n10.0.0.11: y\n", "fd00::44: x\n10.0.0.44: y\n"},
		{"ranges stay, but for that of one address", readdress.StaticPod, "- 10.0.0.11/24\n- 10.0.0.11/32\n- fd00::11/64\n- fd00::11/128\n- https://10.0.0.11/24\n", "- 10.0.0.11/24\n- 10.0.0.44/32\n- fd00::11/64\n- fd00::44/128\n- https://10.0.0.44/24\n"},
		{"paths stay", readdress.StaticPod, "- --cert-file=/etc/ssl/10.0.0.11/member-10.0.0.11.pem\n- --key-file=/etc/cp1/cp1.key\n- path: /10.0.0.11\n", ""},
		{"images stay", readdress.StaticPod, "    image: 10.0.0.11:5000/etcd:10.0.0.11\n    image: \"cp1/etcd:3.6.8-0\"\n", ""},
		{"issuer and audiences stay", readdress.StaticPod, "- --service-account-issuer=https://10.0.0.11:6443\n- --api-audiences\n- https://10.0.0.11:6443\n", ""},
		{"comments stay", readdress.StaticPod, "# 10.0.0.11 --hostname-override=cp1\n- a: 10.0.0.11 # was 10.0.0.11\n- b: 'it # 10.0.0.11'\n- c: don't # 10.0.0.11\n", "# 10.0.0.11 --hostname-override=cp1\n- a: 10.0.0.44 # was 10.0.0.11\n- b: 'it # 10.0.0.44'\n- c: don't # 10.0.0.11\n"},
		{"line ends and quotes stay", readdress.StaticPod, "- '--advertise-address=10.0.0.11'\r\n-   \"10.0.0.11\"\r\n\t", "- '--advertise-address=10.0.0.44'\r\n-   \"10.0.0.44\"\r\n\t"},
		{"an escaped line end in a string", readdress.StaticPod, `"args":["x\n10.0.0.11\t10.0.0.11:1"]`, `"args":["x\n10.0.0.44\t10.0.0.44:1"]`},

		{"etcd's names", readdress.StaticPod, "- --initial-cluster=cp1=https://10.0.0.11:2380,cp11=https://10.0.0.12:2380,cp1=https://[fd00::11]:2380\n- --name=cp1\n", "- --initial-cluster=cp4=https://10.0.0.44:2380,cp11=https://10.0.0.12:2380,cp4=https://[fd00::44]:2380\n- --name=cp4\n"},
		{"flags as items of their own", readdress.StaticPod, "- --name\n- cp1\n- --initial-cluster\n- \"cp1=https://h:1\"\n", "- --name\n- cp4\n- --initial-cluster\n- \"cp4=https://h:1\"\n"},
		{"JSON", readdress.StaticPod, `{"command":["etcd","--name","cp1","--initial-cluster=cp1=http://10.0.0.11:2380"],"env":[{"name":"ETCD_NAME","value":"cp1"}]}`, `{"command":["etcd","--name","cp4","--initial-cluster=cp4=http://10.0.0.44:2380"],"env":[{"name":"ETCD_NAME","value":"cp4"}]}`},
		{"a shell's words", readdress.StaticPod, "- exec etcd --name 'cp1' --initial-cluster \"cp1=http://10.0.0.11:2380\"\n", "- exec etcd --name 'cp4' --initial-cluster \"cp4=http://10.0.0.44:2380\"\n"},
		{"a container's environment", readdress.StaticPod, "    - name: ETCD_NAME\n      value: cp1\n    - name: OTHER\n      value: cp1\n", "    - name: ETCD_NAME\n      value: cp4\n    - name: OTHER\n      value: cp1\n"},
		{"names elsewhere stay", readdress.StaticPod, "metadata:\n  name: cp1\n  labels: {cp1: cp1}\nspec:\n  nodeName: cp1\n  volumes:\n  - name: cp1\n    hostPath: {path: /cp1}\n- --initial-cluster-token=cp1\n- --name=cp1-events\n", ""},
		{"a name of a program that is no etcd", readdress.StaticPod, "- haproxy\n- --name=cp1\n", ""},
		{"a name that goes on", readdress.StaticPod, "- --listen-peer-urls=x\n- --name=cp1/x\n- --name=cp1.example\n- --name=$(cp1)\n- --name=cp1$X\n", ""},

		{"kubelet's flags", readdress.KubeletFlags, "# cp1\n; 10.0.0.11\nKUBELET_KUBEADM_ARGS=\"--hostname-override=cp1 --node-ip=10.0.0.11 --pod-infra-container-image=r/pause:3.10\"\n", "# cp1\n; 10.0.0.11\nKUBELET_KUBEADM_ARGS=\"--hostname-override=cp4 --node-ip=10.0.0.44 --pod-infra-container-image=r/pause:3.10\"\n"},
		{"kubelet's configuration", readdress.KubeletConfig, "address: 10.0.0.11\nclusterDNS:\n- 10.96.0.10\n", "address: 10.0.0.44\nclusterDNS:\n- 10.96.0.10\n"},

		{"kubeadm's configuration", readdress.ClusterConfiguration, `apiServer:
  certSANs:
  - cp1
  - "10.0.0.11" # the first
  # between
  - cp1
  extraArgs:
  - name: advertise-address
    value: 10.0.0.11
  - name: service-account-issuer
    value: https://10.0.0.11:6443
clusterName: cp1
controlPlaneEndpoint: k8s.example.test:6443
etcd:
  local:
    extraArgs:
    - name: initial-cluster
      value: cp1=https://10.0.0.11:2380
    serverCertSANs: [cp1, 10.0.0.11]
  external:
    endpoints:
    - https://10.0.0.11:2379
networking:
  podSubnet: 10.0.0.11/16
`, `apiServer:
  certSANs:
  - cp4
  - "10.0.0.44" # the first
  # between
  - cp4
  extraArgs:
  - name: advertise-address
    value: 10.0.0.44
  - name: service-account-issuer
    value: https://10.0.0.11:6443
clusterName: cp1
controlPlaneEndpoint: dr.example.test:8443
etcd:
  local:
    extraArgs:
    - name: initial-cluster
      value: cp4=https://10.0.0.44:2380
    serverCertSANs: [cp4, 10.0.0.44]
  external:
    endpoints:
    - https://10.0.0.44:2379
networking:
  podSubnet: 10.0.0.11/16
`},
		{"an older kubeadm's configuration", readdress.ClusterConfiguration, "etcd:\n  local:\n    extraArgs:\n      initial-cluster: cp1=https://10.0.0.11:2380\n", "etcd:\n  local:\n    extraArgs:\n      initial-cluster: cp4=https://10.0.0.44:2380\n"},
		{"an endpoint without a port is at kubeadm's", readdress.ClusterConfiguration, "controlPlaneEndpoint: \"K8s.example.test\"\n", "controlPlaneEndpoint: \"dr.example.test:8443\"\n"},
		{"an endpoint that is an address of a node", readdress.ClusterConfiguration, "controlPlaneEndpoint: 10.0.0.11:6443\n", "controlPlaneEndpoint: 10.0.0.44:6443\n"},

		{"a kubeconfig", readdress.Kubeconfig, "clusters:\n- cluster:\n    server: https://k8s.example.test:6443\n  name: \"\"\n- cluster: {server: 'https://10.0.0.11:6443'}\n- cluster: {server: https://k8s.example.test:443}\nusers:\n- name: system:node:cp1\n", "clusters:\n- cluster:\n    server: https://dr.example.test:8443\n  name: \"\"\n- cluster: {server: 'https://10.0.0.44:6443'}\n- cluster: {server: https://k8s.example.test:443}\nusers:\n- name: system:node:cp1\n"},

		{"an etcd's environment", readdress.EtcdUnit, "#ETCD_NAME=cp1\nexport ETCD_NAME=\"cp1\"\nETCD_INITIAL_CLUSTER=cp1=https://10.0.0.11:2380,cp2=https://10.0.0.12:2380\nETCD_DATA_DIR=/data/cp1\nETCD_INITIAL_CLUSTER_TOKEN=cp1\n", "#ETCD_NAME=cp1\nexport ETCD_NAME=\"cp4\"\nETCD_INITIAL_CLUSTER=cp4=https://10.0.0.44:2380,cp2=https://10.0.0.12:2380\nETCD_DATA_DIR=/data/cp1\nETCD_INITIAL_CLUSTER_TOKEN=cp1\n"},
		{"an etcd's unit", readdress.EtcdUnit, "[Service]\nEnvironment=ETCD_NAME=cp1 \"ETCD_INITIAL_CLUSTER=cp1=http://10.0.0.11:2380\"\nExecStart=/usr/bin/etcd --name cp1 \\\n  --initial-cluster \\\n  cp1=http://10.0.0.11:2380\n", "[Service]\nEnvironment=ETCD_NAME=cp4 \"ETCD_INITIAL_CLUSTER=cp4=http://10.0.0.44:2380\"\nExecStart=/usr/bin/etcd --name cp4 \\\n  --initial-cluster \\\n  cp4=http://10.0.0.44:2380\n"},
		{"a container's name in an etcd's unit", readdress.EtcdUnit, "ExecStart=/usr/bin/docker run --name=cp1 --env-file=/etc/etcd.env etcd\n", ""},
		{"etcd's configuration file", readdress.EtcdConfig, "name: 'cp1'\ninitial-cluster: cp1=http://10.0.0.11:2380\nlisten-client-urls: http://10.0.0.11:2379\npeer-transport-security:\n  name: cp1\n", "name: 'cp4'\ninitial-cluster: cp4=http://10.0.0.44:2380\nlisten-client-urls: http://10.0.0.44:2379\npeer-transport-security:\n  name: cp1\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.want == "" {
				c.want = c.before
			}
			got := mapping(t, toCP4).Rewrite(c.kind, c.before)
			if diff := cmp.Diff(c.want, got.Text); diff != "" {
				t.Error(diff)
			}
			if (len(got.Changes) > 0) != (c.want != c.before) {
				t.Errorf("tells changes %v", got.Changes)
			}
		})
	}
}

func TestRewriteTellsEachChangedLineAndWhatIsKept(t *testing.T) {
	text := "a: 10.0.0.11\r\nimage: 10.0.0.11:5000/x\nb: 10.0.0.11/24\nc: [10.0.0.11, 10.0.0.11]"
	got := mapping(t, toCP4).Rewrite(readdress.StaticPod, text)
	want := readdress.Result{
		Text: "a: 10.0.0.44\r\nimage: 10.0.0.11:5000/x\nb: 10.0.0.11/24\nc: [10.0.0.44, 10.0.0.44]",
		Changes: []readdress.Change{
			{Line: 1, Before: "a: 10.0.0.11", After: "a: 10.0.0.44"},
			{Line: 4, Before: "c: [10.0.0.11, 10.0.0.11]", After: "c: [10.0.0.44, 10.0.0.44]"},
		},
		Kept: []readdress.Kept{
			{Line: 2, What: "10.0.0.11", Why: "an image is called so where it is stored"},
			{Line: 3, What: "10.0.0.11", Why: "a slash follows: it is a range, a path or an image"},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestNodesChangePlacesInOnePass(t *testing.T) {
	m := mapping(t, readdress.Options{
		Names:     []string{"cp1=cp2", "cp2=cp1"},
		Addresses: []string{"10.0.0.11=10.0.0.12", "10.0.0.12=10.0.0.11"},
	})
	got := m.Rewrite(readdress.StaticPod, "- --initial-cluster=cp1=https://10.0.0.11:2380,cp2=https://10.0.0.12:2380\n")
	if want := "- --initial-cluster=cp2=https://10.0.0.12:2380,cp1=https://10.0.0.11:2380\n"; got.Text != want {
		t.Errorf("got %q", got.Text)
	}
}

// A cluster of one node had its address as endpoint, and gets a load balancer.
func TestKubeconfigsOfTheNodeItselfFollowTheNode(t *testing.T) {
	m := mapping(t, readdress.Options{Addresses: []string{"10.0.0.11=10.0.0.44"}, Endpoints: []string{"10.0.0.11:6443=lb.example.test:6443", "old.example.test:6443=lb.example.test:6443"}})
	const text = "server: https://10.0.0.11:6443\nserver: https://old.example.test:6443\n"
	for kind, want := range map[readdress.Kind]string{
		readdress.Kubeconfig:      "server: https://lb.example.test:6443\nserver: https://lb.example.test:6443\n",
		readdress.LocalKubeconfig: "server: https://10.0.0.44:6443\nserver: https://lb.example.test:6443\n",
	} {
		if got := m.Rewrite(kind, text).Text; got != want {
			t.Errorf("%v: got %q", kind, got)
		}
	}
}

func TestANodeThatIsCalledByItsAddressKeepsItsName(t *testing.T) {
	text := "--hostname-override=10.0.0.11 --node-ip=10.0.0.11"
	addresses := readdress.Options{Addresses: []string{"10.0.0.11=10.0.0.44"}}
	if got := mapping(t, addresses).Rewrite(readdress.KubeletFlags, text).Text; got != "--hostname-override=10.0.0.11 --node-ip=10.0.0.44" {
		t.Errorf("got %q", got)
	}
	addresses.Names = []string{"10.0.0.11=10.0.0.44"}
	if got := mapping(t, addresses).Rewrite(readdress.KubeletFlags, text).Text; got != "--hostname-override=10.0.0.44 --node-ip=10.0.0.44" {
		t.Errorf("got %q", got)
	}
}

// The oracle: the files of another node, written from scratch.
func TestAKubeadmNodeBecomesAnother(t *testing.T) {
	for _, kind := range []kubefixture.Kind{kubefixture.Stacked, kubefixture.ExternalEtcd, kubefixture.ExtraFiles} {
		t.Run(kind.String(), func(t *testing.T) {
			now := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
			old, new := t.TempDir(), t.TempDir()
			if err := kubefixture.Build(old, kubefixture.Options{Kind: kind, Now: now}); err != nil {
				t.Fatal(err)
			}
			if err := kubefixture.Build(new, kubefixture.Options{Kind: kind, Now: now, Node: "cp4", Address: "10.0.0.44", Endpoint: "dr.example.test"}); err != nil {
				t.Fatal(err)
			}
			options := toCP4
			options.Endpoints = []string{"k8s.example.test:6443=dr.example.test:6443"}
			m, changed := mapping(t, options), 0
			err := filepath.WalkDir(old, func(path string, d fs.DirEntry, err error) error {
				if err != nil || !d.Type().IsRegular() {
					return err
				}
				name, _ := filepath.Rel(old, path)
				k, ok := readdress.KindOf(filepath.ToSlash(name))
				if !ok {
					return nil
				}
				before, err1 := os.ReadFile(path)
				want, err2 := os.ReadFile(filepath.Join(new, name))
				if err1 != nil || err2 != nil {
					return errors.Join(err1, err2)
				}
				got := m.Rewrite(k, string(before))
				changed += len(got.Changes)
				wanted := string(want)
				if k == readdress.Kubeconfig || k == readdress.LocalKubeconfig { // keys are made anew
					got.Text, wanted = serverLines(got.Text), serverLines(wanted)
				}
				if diff := cmp.Diff(wanted, got.Text); diff != "" {
					t.Errorf("%s: %s", name, diff)
				}
				return nil
			})
			if err != nil || changed < 10 {
				t.Errorf("%d lines changed, %v", changed, err)
			}
		})
	}
}

func serverLines(text string) (out string) {
	for line := range strings.Lines(text) {
		if strings.Contains(line, "server:") {
			out += line
		}
	}
	return out
}

func TestBadMappingsAreRefused(t *testing.T) {
	for _, c := range []struct {
		options readdress.Options
		says    string
	}{
		{readdress.Options{Names: []string{"cp1"}}, "old=new"},
		{readdress.Options{Names: []string{"a=b=c"}}, "old=new"},
		{readdress.Options{Names: []string{"cp1=CP4"}}, "no node's name"},
		{readdress.Options{Names: []string{"=cp4"}}, "no node's name"},
		{readdress.Options{Names: []string{"cp1=-cp4"}}, "no node's name"},
		{readdress.Options{Names: []string{"cp1=" + strings.Repeat("a", 254)}}, "no node's name"},
		{readdress.Options{Names: []string{"cp1=cp4", "cp2=cp4"}}, "can't share"},
		{readdress.Options{Names: []string{"cp1=cp4", "cp1=cp5"}}, "already"},
		{readdress.Options{Addresses: []string{"10.0.0.11=10.0.0"}}, "no IP address"},
		{readdress.Options{Addresses: []string{"10.0.0.11=0.0.0.0"}}, "every address"},
		{readdress.Options{Addresses: []string{"::=fd00::1"}}, "every address"},
		{readdress.Options{Addresses: []string{"127.0.0.1=10.0.0.1"}}, "every machine's own"},
		{readdress.Options{Addresses: []string{"10.0.0.1=224.0.0.1"}}, "group"},
		{readdress.Options{Addresses: []string{"10.0.0.1=255.255.255.255"}}, "group"},
		{readdress.Options{Addresses: []string{"fe80::1%eth0=fe80::2"}}, "zone"},
		{readdress.Options{Addresses: []string{"10.0.0.1=fd00::1"}}, "family"},
		{readdress.Options{Addresses: []string{"fd00::1=fd00::4", "fd00::2=fd00:0::4"}}, "can't share"},
		{readdress.Options{Addresses: []string{"10.0.0.1=10.0.0.4", "::ffff:10.0.0.1=10.0.0.5"}}, "already"},
		{readdress.Options{Endpoints: []string{"a=b:1"}}, "host:port"},
		{readdress.Options{Endpoints: []string{"a:1=b:0"}}, "port from 1"},
		{readdress.Options{Endpoints: []string{"a:1=b:70000"}}, "port from 1"},
		{readdress.Options{Endpoints: []string{"a:1=b_c:1"}}, "no host"},
		{readdress.Options{Endpoints: []string{"a:1=0.0.0.0:1"}}, "dial"},
		{readdress.Options{Endpoints: []string{"a:1=b:1", "A:1=c:1"}}, "already"},
	} {
		_, err := readdress.New(c.options)
		if !errors.Is(err, readdress.ErrMapping) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v: error %v, which should say %q", c.options, err, c.says)
		}
	}
}

func TestMappedValues(t *testing.T) {
	m := mapping(t, toCP4)
	for _, c := range []struct{ what, got, want string }{
		{"a name", m.Name("cp1"), "cp4"},
		{"another name", m.Name("cp2"), "cp2"},
		{"an address", m.Address(netip.MustParseAddr("::ffff:10.0.0.11")).String(), "10.0.0.44"},
		{"another address", m.Address(netip.MustParseAddr("10.0.0.1")).String(), "10.0.0.1"},
		{"an endpoint", m.Endpoint("k8s.example.test:6443"), "dr.example.test:8443"},
		{"an endpoint at a node", m.Endpoint("[fd00::11]:6443"), "[fd00::44]:6443"},
		{"no endpoint", m.Endpoint("x"), "x"},
		{"a list of URLs", m.Value("https://10.0.0.11:2380,https://[fd00::11]:2380"), "https://10.0.0.44:2380,https://[fd00::44]:2380"},
	} {
		if c.got != c.want {
			t.Errorf("%s became %s, want %s", c.what, c.got, c.want)
		}
	}
	if m.Empty() || !mapping(t, readdress.Options{}).Empty() || !new(readdress.Mapping).Empty() {
		t.Error("Empty is wrong")
	}
}

func TestKindOf(t *testing.T) {
	for name, want := range map[string]readdress.Kind{
		"etc/kubernetes/manifests/etcd.yaml":                       readdress.StaticPod,
		"/etc/kubernetes/manifests/etcd.yaml":                      readdress.StaticPod,
		"etc/kubernetes/manifests/.etcd.yaml":                      0,
		"etc/kubernetes/scheduler.conf":                            readdress.LocalKubeconfig,
		"etc/kubernetes/admin.conf":                                readdress.Kubeconfig,
		"etc/kubernetes/pki/ca.crt":                                0,
		"var/lib/kubelet/kubeadm-flags.env":                        readdress.KubeletFlags,
		"usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf": readdress.KubeletFlags,
		"usr/lib/systemd/system/containerd.service":                0,
		"var/lib/kubelet/config.yaml":                              readdress.KubeletConfig,
		"etc/systemd/system/etcd.service":                          readdress.EtcdUnit,
		"etc/systemd/system/etcd-member.service.d/20-cluster.conf": readdress.EtcdUnit,
		"etc/etcd.env":           readdress.EtcdUnit,
		"etc/etcd/etcd.conf.yml": readdress.EtcdConfig,
		"etc/hosts":              0,
	} {
		if got, ok := readdress.KindOf(name); got != want || ok != (want != 0) {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
}
