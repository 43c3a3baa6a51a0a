package topology_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lifeboat/internal/etcdtest"
	"lifeboat/internal/hostfacts"
	"lifeboat/internal/kubefixture"
	"lifeboat/restore/topology"
)

func TestTheMainOneOfSeveralEtcdUnits(t *testing.T) {
	env := func(name, at string) string {
		return "ETCD_NAME=" + name + "\nETCD_DATA_DIR=/data/" + name + "\nETCD_LISTEN_CLIENT_URLS=" + at + "\n"
	}
	unit := func(env string) string {
		return "[Service]\nEnvironmentFile=-" + env + "\nExecStart=/usr/local/bin/etcd\n"
	}
	files := map[string]string{
		"etc/systemd/system/a-events.service": unit("/etc/a.env"), "etc/a.env": env("events", "https://10.0.0.21:2381"),
		"etc/systemd/system/b-kv.service": unit("/etc/b.env"), "etc/b.env": env("main", "https://10.0.0.21:2379,https://127.0.0.1:2379"),
	}
	m := cp1()
	known := &hostfacts.Facts{Node: "e1", EtcdServers: []hostfacts.EtcdServer{{Unit: "b-kv", Name: "main", DataDir: "/saved/main"}},
		Etcd: &hostfacts.Discovery{Kind: "external", EtcdEndpoints: []string{"https://10.0.0.21:2379"}}}
	h := inspect(t, topology.Inputs{Root: write(t, files), Machine: m, Facts: known})
	if h.Data.Path != "/data/main" || len(h.Services) != 2 || h.Services[1].Name != "b-kv" {
		t.Errorf("data %s (%s), services %+v", h.Data.Path, h.Data.How, h.Services)
	}
	// By the overrides alone the other one is known too.
	only := &hostfacts.Facts{Etcd: &hostfacts.Discovery{Separate: []hostfacts.Separate{{Resources: []string{"/events"}, Servers: []string{"https://10.0.0.21:2381"}}}}}
	if h := inspect(t, topology.Inputs{Root: write(t, files), Facts: only}); h.Data.Path != "/data/main" {
		t.Errorf("data %s (%s)", h.Data.Path, h.Data.How)
	}
	// What its lost environment file said the backup knows.
	delete(files, "etc/b.env")
	delete(files, "etc/systemd/system/a-events.service")
	known.Etcd = nil
	if h := inspect(t, topology.Inputs{Root: write(t, files), Facts: known}); h.Data.Path != "/saved/main" || !strings.Contains(h.Data.How, "the backup says") {
		t.Errorf("data %s (%s)", h.Data.Path, h.Data.How)
	}
	// As it knows all of a bare machine.
	if h := inspect(t, topology.Inputs{Root: t.TempDir(), Facts: known}); h.Data.Path != "/saved/main" || h.Kind != topology.Etcd || h.Services[1].Name != "b-kv" {
		t.Errorf("kind %s, data %s (%s), services %+v", h.Kind, h.Data.Path, h.Data.How, h.Services)
	}
}

func TestASeparateEtcdIsAskedToo(t *testing.T) {
	events, err := etcdtest.StartEmbedded(t.TempDir(), etcdtest.EmbeddedOptions{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { events.Close() })
	f := facts()
	f.Etcd.EtcdEndpoints = nil
	f.Etcd.Separate = []hostfacts.Separate{
		{Resources: []string{"/events"}, Servers: []string{events.Endpoint}, Pod: "etcd-events", DataDir: "/var/lib/etcd-events"},
		{Resources: []string{"/events", "/secrets"}, Servers: []string{"http://127.0.0.1:1"}},
	}
	h := inspect(t, topology.Inputs{Root: t.TempDir(), Facts: f, Dial: new(net.Dialer).DialContext})
	if len(h.Separate) != 2 || !h.Separate[0].Living.Quorum || !h.Separate[0].EventsOnly || h.Separate[1].EventsOnly || h.Separate[1].Living.Quorum || len(h.Separate[1].Living.Members) != 0 {
		t.Fatalf("%+v", h.Separate)
	}
	if h.Living.Quorum || h.Verdict.Outcome != topology.NothingLives {
		t.Errorf("the separate etcd's quorum counts for the main one's: %+v", h.Verdict)
	}
	var b strings.Builder
	if err := h.Print(&b); err != nil || !strings.Contains(b.String(), "the etcd of /events at "+events.Endpoint+": a quorum of it lives; runs here: static pod etcd-events") ||
		!strings.Contains(b.String(), "/events, /secrets at http://127.0.0.1:1: nothing of it answers; runs here: no") {
		t.Error(b.String(), err)
	}
	// Its pod is not the main one's, if that is external.
	root := fixture(t, kubefixture.ExternalEtcd)
	pod := strings.ReplaceAll(strings.ReplaceAll(etcdPod, "10.0.0.31:2379", "10.0.0.32:2379"), `"name":"etcd"`, `"name":"etcd-events"`)
	if err := os.WriteFile(filepath.Join(root, "etc/kubernetes/manifests/etcd-events.json"), []byte(pod), 0o600); err != nil {
		t.Fatal(err)
	}
	if h := inspect(t, topology.Inputs{Root: root}); h.Kind != topology.KubeadmExternal || h.Data.Path != "/data/etcd" {
		t.Errorf("kind %s (%s), data %s (%s)", h.Kind, h.KindHow, h.Data.Path, h.Data.How)
	}
	// Without a backup the API server's manifest on disk tells.
	h = inspect(t, topology.Inputs{Root: fixture(t, kubefixture.ExternalEtcd)})
	if len(h.Separate) != 1 || h.Separate[0].Servers[0] != "https://10.0.0.31:2379" || !strings.Contains(h.Separate[0].How, "on disk") {
		t.Errorf("%+v", h.Separate)
	}
}
