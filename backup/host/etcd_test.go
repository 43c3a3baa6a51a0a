package host

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/internal/hostfacts"
	"lifeboat/internal/kubefixture"
)

func TestTheSettingsOfAnEtcdUnitAreInTheFacts(t *testing.T) {
	root := node(t, kubefixture.ExternalEtcd)
	must(t, os.MkdirAll(filepath.Join(root, "etc/systemd/system/multi-user.target.wants"), 0o755))
	must(t, os.Symlink("/etc/systemd/system/etcd.service", filepath.Join(root, "etc/systemd/system/multi-user.target.wants/etcd.service")))
	r, headers, _ := captured(t, options(root))
	if len(r.Degraded)+len(r.Warnings) > 0 || len(r.Facts.EtcdServers) != 1 {
		t.Fatalf("degraded %q, warnings %q, servers %+v", r.Degraded, r.Warnings, r.Facts.EtcdServers)
	}
	const pki = "/etc/etcd/pki/"
	want := EtcdServer{
		Unit: "etcd", Program: "/usr/local/bin/etcd", Args: []string{}, Environment: []string{},
		Files: []string{"/etc/systemd/system/etcd.service", "/etc/etcd/etcd.env"}, Name: "cp1", DataDir: "/data/etcd",
		ListenClientURLs: []string{"https://127.0.0.1:2379", "https://10.0.0.11:2379"}, ListenPeerURLs: []string{"https://10.0.0.11:2380"},
		ClientURLs: []string{"https://10.0.0.11:2379"}, PeerURLs: []string{"https://10.0.0.11:2380"}, InitialCluster: "cp1=https://10.0.0.11:2380",
		CAFile: pki + "ca.crt", CertFile: pki + "server.crt", KeyFile: pki + "server.key", PeerCAFile: pki + "ca.crt", PeerCertFile: pki + "peer.crt", PeerKeyFile: pki + "peer.key",
		Owner: &hostfacts.Owner{UID: os.Getuid(), GID: os.Getgid()},
	}
	if diff := cmp.Diff(want, r.Facts.EtcdServers[0]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if link := headers["etc/systemd/system/multi-user.target.wants/etcd.service"]; link == nil || link.Linkname != "/etc/systemd/system/etcd.service" {
		t.Errorf("that the unit is enabled was not stored: %+v", link)
	}
}

// etcdHost has no Kubernetes: a unit of its own name, and an etcd that somebody
// has started by hand.
func etcdHost(t *testing.T) string {
	root := t.TempDir()
	from := node(t, kubefixture.ExternalEtcd)
	for to, name := range map[string]string{
		"opt/kv/pki/ca.pem": "ca.crt", "opt/kv/pki/kv.pem": "server.crt", "opt/kv/pki/kv-key.pem": "server.key", "opt/kv/pki/admin.pem": "client.crt", "opt/kv/pki/admin-key.pem": "client.key",
	} {
		text, err := os.ReadFile(filepath.Join(from, "etc/etcd/pki", name))
		must(t, err)
		write(t, root, to, string(text))
	}
	write(t, root, "etc/systemd/system/kv.service", "[Service]\nExecStartPre=/opt/kv/prepare.sh\nExecStart=/opt/kv/etcd --config-file=/opt/kv/kv.yml\n")
	write(t, root, "opt/kv/etcd", "\x7fELF and so on")
	write(t, root, "opt/kv/prepare.sh", "#!/bin/sh\n")
	write(t, root, "opt/kv/kv.yml", "name: kv1\ndata-dir: /opt/kv/data\nclient-transport-security: {trusted-ca-file: /opt/kv/pki/ca.pem, cert-file: /opt/kv/pki/kv.pem, key-file: /opt/kv/pki/kv-key.pem}\n")
	write(t, root, "opt/kv/data/member/snap/db", "stands for a database")
	write(t, root, "proc/1/cgroup", "0::/init.scope\n")
	write(t, root, "proc/71/cmdline", "/opt/etcd/etcd\x00--name=events\x00--data-dir=ev\x00--cert-file=/srv/ev/server.crt\x00")
	write(t, root, "proc/71/environ", "PASSWORD=secret\x00ETCD_LISTEN_CLIENT_URLS=http://127.0.0.1:4379\x00")
	write(t, root, "proc/71/cgroup", "0::/user.slice/session-3.scope\n")
	must(t, os.Symlink("/srv", filepath.Join(root, "proc/71/cwd")))
	write(t, root, "srv/ev/member/snap/db", "stands for a database")
	write(t, root, "proc/72/cmdline", "etcd\x00--data-dir=/inside\x00")
	write(t, root, "proc/72/cgroup", "0::/kubepods/pod1/"+strings.Repeat("ab", 32)+"\n")
	write(t, root, "proc/73/cmdline", "/opt/kv/etcd\x00--config-file=/opt/kv/kv.yml\x00") // the unit's
	write(t, root, "proc/74/cmdline", "vi\x00/etc/etcd\x00")
	return root
}

func TestEtcdsOfAnyNameAndWithoutUnitsAreFound(t *testing.T) {
	r, headers, bodies := captured(t, options(etcdHost(t)))
	if len(r.Facts.EtcdServers) != 2 {
		t.Fatalf("%+v", r.Facts.EtcdServers)
	}
	unit, process := r.Facts.EtcdServers[0], r.Facts.EtcdServers[1]
	if unit.Unit != "kv" || unit.Name != "kv1" || unit.DataDir != "/opt/kv/data" || unit.CertFile != "/opt/kv/pki/kv.pem" || unit.Program != "/opt/kv/etcd" {
		t.Errorf("%+v", unit)
	}
	if process.Unit != "" || process.Name != "events" || process.DataDir != "/srv/ev" || process.WorkingDir != "/srv" || process.ListenClientURLs[0] != "http://127.0.0.1:4379" || len(process.Args) != 4 || len(process.Environment) != 1 {
		t.Errorf("%+v", process)
	}
	for _, name := range []string{"etc/systemd/system/kv.service", "opt/kv/prepare.sh", "opt/kv/kv.yml", "opt/kv/pki/ca.pem", "opt/kv/pki/kv-key.pem", "opt/kv/pki/admin-key.pem"} {
		if headers[name] == nil {
			t.Errorf("%s is missing", name)
		}
	}
	for name := range headers {
		if strings.Contains(name, "member") || strings.HasPrefix(name, "proc") || name == "opt/kv/etcd" {
			t.Errorf("%s was stored", name)
		}
	}
	if facts := string(bodies[FactsName]); strings.Contains(facts, "secret") || strings.Contains(facts, "/inside") {
		t.Errorf("the facts hold what they must not: %s", facts)
	}
	if !has(r.Degraded, "srv/ev/server.crt (the etcd process of /srv/ev) does not exist") || has(r.Warnings, "no static pod") {
		t.Errorf("degraded %q, warnings %q", r.Degraded, r.Warnings)
	}
}

const eventsPod = `apiVersion: v1
kind: Pod
metadata: {name: etcd-events, namespace: kube-system}
spec:
  containers:
  - name: etcd
    image: registry.k8s.io/etcd:3.6.8-0
    command: [etcd, --name=cp1-events, --data-dir=/var/lib/etcd-events, "--listen-client-urls=https://127.0.0.1:2381,https://10.0.0.11:2381", "--advertise-client-urls=https://10.0.0.11:2381",
      "--initial-advertise-peer-urls=https://10.0.0.11:2382", "--initial-cluster=cp1-events=https://10.0.0.11:2382"]
    volumeMounts: [{name: data, mountPath: /var/lib/etcd-events}]
  volumes: [{name: data, hostPath: {path: /srv/events}}]
`

func TestASeparateEtcdIsFoundByTheAPIServersManifest(t *testing.T) {
	root := node(t, kubefixture.Stacked)
	write(t, root, "etc/kubernetes/manifests/etcd-events.yaml", eventsPod)
	write(t, root, "srv/events/member/snap/db", "stands for a database")
	must(t, edit("etc/kubernetes/manifests/kube-apiserver.yaml", func(text string) string {
		return strings.Replace(text, "    - --etcd-servers=", "    - --etcd-servers-overrides=/events#https://127.0.0.1:2381\n    - --etcd-servers=", 1)
	})(root))
	r, headers, _ := captured(t, options(root))
	if len(r.Degraded)+len(r.Warnings) > 0 || headers["srv/events/member/snap/db"] != nil {
		t.Errorf("degraded %q, warnings %q", r.Degraded, r.Warnings)
	}
	const pki = "/etc/kubernetes/pki/"
	want := []hostfacts.Separate{{
		Resources: []string{"/events"}, Servers: []string{"https://127.0.0.1:2381"},
		CAFile: pki + "etcd/ca.crt", CertFile: pki + "apiserver-etcd-client.crt", KeyFile: pki + "apiserver-etcd-client.key",
		Pod: "etcd-events", Name: "cp1-events", DataDir: "/srv/events", PeerURLs: []string{"https://10.0.0.11:2382"}, InitialCluster: "cp1-events=https://10.0.0.11:2382",
		Image: "registry.k8s.io/etcd:3.6.8-0",
	}}
	if diff := cmp.Diff(want, r.Facts.Etcd.Separate); diff != "" || r.Facts.Etcd.Name != "cp1" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestTheOnlyEtcdPodBesideAnExternalEtcdIsNotTheMainOne(t *testing.T) {
	root := node(t, kubefixture.ExternalEtcd)
	write(t, root, "etc/kubernetes/manifests/etcd-events.yaml", eventsPod)
	must(t, edit("etc/kubernetes/manifests/kube-apiserver.yaml", func(text string) string {
		return strings.Replace(text, "/events#https://10.0.0.31:2379;https://10.0.0.32:2379", "/events#https://10.0.0.11:2381", 1)
	})(root))
	r, _, _ := captured(t, options(root))
	d := r.Facts.Etcd
	if d.Kind != "external" || d.DataDir != "" || len(d.Separate) != 1 || d.Separate[0].Pod != "etcd-events" || d.EtcdEndpoints[0] != "https://127.0.0.1:2379" {
		t.Errorf("%+v", d)
	}
}

func TestASeparateEtcdMayBeAUnitOrElsewhere(t *testing.T) {
	root := node(t, kubefixture.ExternalEtcd) // whose events are at 10.0.0.31 and .32, at the same port
	r, _, _ := captured(t, options(root))
	if s := r.Facts.Etcd.Separate; len(s) != 1 || s[0].Here() || len(s[0].Servers) != 2 {
		t.Errorf("one that is elsewhere: %+v", s)
	}
	write(t, root, "etc/systemd/system/etcd-events.service", "[Service]\nEnvironmentFile=/etc/etcd-events.env\nExecStart=/usr/local/bin/etcd\n")
	write(t, root, "etc/etcd-events.env", "ETCD_NAME=cp1-events\nETCD_DATA_DIR=/data/events\nETCD_LISTEN_CLIENT_URLS=https://0.0.0.0:2379\nETCD_ADVERTISE_CLIENT_URLS=https://10.0.0.31:2379\n")
	r, headers, _ := captured(t, options(root))
	if s := r.Facts.Etcd.Separate; len(s) != 1 || s[0].Server != "/data/events" || s[0].Name != "cp1-events" || len(r.Facts.EtcdServers) != 2 || headers["etc/etcd-events.env"] == nil {
		t.Errorf("one in a unit: %+v, %+v", s, r.Facts.EtcdServers)
	}
}
