package topology

import (
	"cmp"
	"net"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strings"

	"lifeboat/internal/etcdhost"
	"lifeboat/internal/hostfacts"
)

// setup is the etcd that is set up on this host, or was on the backed-up one.
type setup struct {
	here      bool // its files are on this host
	pod       bool // as a static pod
	name      string
	dataDir   string // as the host sees it
	dataHow   string
	endpoints []string // client URLs that lead to it from here
	peerURLs  []string
	image     string
	file      string // that says so
	unit      string // systemd's that runs it, without .service; empty: none that is known
}

// usualDataDir is kubeadm's.
const usualDataDir = "/var/lib/etcd"

// etcdSetup finds out how etcd is set up here: from a static pod, a unit, a
// distribution's folders, else from what the backup says.
func etcdSetup(t *tree, pods []pod, facts *hostfacts.Facts, own *hostfacts.Distribution) setup {
	if c := mainEtcd(pods); c != nil {
		inside := c.flag("data-dir")
		s := setup{here: true, pod: true, name: c.flag("name"), dataDir: c.host(inside), image: c.image, endpoints: dialled(words(c.flag("listen-client-urls"))), peerURLs: words(c.flag("initial-advertise-peer-urls"))}
		for _, p := range pods {
			if slices.ContainsFunc(p.containers, func(other container) bool {
				return other.image == c.image && other.flag("data-dir") == inside && other.runs("etcd")
			}) {
				s.file = p.File
			}
		}
		s.dataHow = "--data-dir in " + s.file
		if s.dataDir == "" {
			s.dataDir, s.dataHow = usualDataDir, "the usual place: "+s.file+" mounts no folder of the host for its --data-dir"
		}
		return s
	}
	if own != nil {
		return etcdOfDistribution(t, pods, own)
	}
	if s, ok := etcdOutside(t, find(pods, "kube-apiserver"), facts); ok {
		return s
	}
	s := setup{dataDir: usualDataDir, dataHow: "the usual place: nothing says another"}
	if facts == nil {
		return s
	}
	if d := facts.Etcd; d != nil {
		s.name, s.image, s.peerURLs, s.endpoints = d.Name, d.Image, words(d.PeerURLs), d.EtcdEndpoints
		if d.DataDir != "" {
			s.dataDir, s.dataHow = d.DataDir, "what the backup says of its etcd"
			return s
		}
	}
	if server := mainServer(facts.EtcdServers, nil, facts.Etcd); server != nil {
		s.name, s.peerURLs, s.endpoints, s.unit = server.Name, server.PeerURLs, dialled(server.ListenClientURLs), server.Unit
		s.dataDir, s.dataHow = cmp.Or(server.DataDir, usualDataDir), "what the backup says of "+server.String()
		return s
	}
	if len(facts.DataDirs) > 0 {
		s.dataDir, s.dataHow = path.Join("/", facts.DataDirs[0]), "where the backup says that it was"
	}
	return s
}

// mainEtcd is the etcd that the API server uses, if there are several.
func mainEtcd(pods []pod) *container {
	api := find(pods, "kube-apiserver")
	var first *container
	for i := range pods {
		for j := range pods[i].containers {
			c := &pods[i].containers[j]
			if !c.runs("etcd") || c.flag("data-dir") == "" {
				continue
			}
			if api != nil && ofOverride(api, c) {
				continue
			}
			if first == nil {
				first = c
			}
			if api == nil {
				continue
			}
			ports := portsOf(words(api.flag("etcd-servers")))
			if slices.ContainsFunc(portsOf(words(c.flag("listen-client-urls"))), func(p string) bool { return slices.Contains(ports, p) }) {
				return c
			}
		}
	}
	return first
}

// ofOverride says whether an etcd is one that the API server uses for some
// resources alone.
func ofOverride(api, etcd *container) bool {
	listen, known := words(etcd.flag("listen-client-urls")), words(etcd.flag("advertise-client-urls")+","+etcd.flag("initial-advertise-peer-urls"))
	if hostfacts.LeadsTo(words(api.flag("etcd-servers")), listen, known) {
		return false
	}
	return slices.ContainsFunc(hostfacts.Overrides(strings.Split(api.flag("etcd-servers-overrides"), ",")), func(s hostfacts.Separate) bool {
		return hostfacts.LeadsTo(s.Servers, listen, known)
	})
}

// dialled turns URLs to listen at into such to dial: what listens at every address
// is at the loopback one, whatever became of the machine's network.
func dialled(urls []string) (out []string) {
	for _, text := range urls {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" {
			continue
		}
		if a, err := netip.ParseAddr(u.Hostname()); err == nil && a.IsUnspecified() {
			u.Host = net.JoinHostPort("127.0.0.1", u.Port())
		}
		if !slices.Contains(out, u.String()) {
			out = append(out, u.String())
		}
	}
	return out
}

func portsOf(urls []string) (out []string) {
	for _, text := range urls {
		if u, err := url.Parse(text); err == nil && u.Port() != "" {
			out = append(out, u.Port())
		}
	}
	return out
}

func words(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
}

// kinds says what the host is and was.
func (h *Host) kinds(t *tree, pods []pod, s setup, facts *hostfacts.Facts, own *hostfacts.Distribution) {
	var diskHow, backupHow string
	h.OnDisk, diskHow = kindOnDisk(t, pods, s, own)
	h.InBackup, backupHow = kindInBackup(facts)
	h.Kind, h.KindHow = h.OnDisk, diskHow
	if h.OnDisk == Bare && h.InBackup != "" {
		h.Kind, h.KindHow = h.InBackup, backupHow+"; "+diskHow
	}
	h.Distribution = own
	if h.OnDisk == Bare && facts != nil {
		h.Distribution = facts.Distribution
	}
	if h.OnDisk != Bare && h.InBackup != "" && h.OnDisk != h.InBackup {
		h.warn(diskHow+"; "+backupHow, "this host is set up as %s, the backup is of %s: is it the right one's?", h.OnDisk, h.InBackup)
	}
}

func kindOnDisk(t *tree, pods []pod, s setup, own *hostfacts.Distribution) (Kind, string) {
	if own != nil {
		return Kind(own.Kind), own.How + " is there"
	}
	api := find(pods, "kube-apiserver") != nil
	switch {
	case api && s.pod:
		return Kubeadm, "the static pods run kube-apiserver and etcd"
	case api:
		return KubeadmExternal, "the static pods run kube-apiserver and no etcd"
	case s.pod:
		return Etcd, "the static pods run etcd and no kube-apiserver"
	case t.exists("/etc/kubernetes/pki/apiserver.crt") && t.exists("/etc/kubernetes/pki/etcd/server.crt"):
		return Kubeadm, "/etc/kubernetes/pki has the certificates of an API server and an etcd; there are no static pods"
	case t.exists("/etc/kubernetes/pki/apiserver.crt"):
		return KubeadmExternal, "/etc/kubernetes/pki has the certificate of an API server and none of an etcd; there are no static pods"
	case s.here:
		return Etcd, s.file + " is there, and nothing of a control plane"
	}
	return Bare, "nothing of Kubernetes or etcd is on disk"
}

func kindInBackup(facts *hostfacts.Facts) (Kind, string) {
	if facts == nil {
		return "", "no files of a node were given"
	}
	if facts.Distribution != nil {
		return Kind(facts.Distribution.Kind), "the backup's facts describe a server of " + facts.Distribution.Kind
	}
	if facts.Etcd != nil {
		const how = "the backup's facts name an etcd of kind "
		switch facts.Etcd.Kind {
		case "stacked":
			return Kubeadm, how + "stacked"
		case "external":
			return KubeadmExternal, how + "external"
		case "k3s", "rke2", "k0s":
			return Kind(facts.Etcd.Kind), how + facts.Etcd.Kind
		}
	}
	if len(facts.EtcdServers) > 0 {
		return Etcd, "the backup's facts name " + facts.EtcdServers[0].String() + ", and nothing of an API server"
	}
	for _, f := range facts.Files { // of a backup from before the facts told it
		name := path.Join("/", f.Name)
		if path.Base(name) == "etcd.service" || slices.Contains(slices.Concat(etcdhost.Configs, etcdhost.Environments), name) {
			return Etcd, "the backup has " + name + ", and nothing of an API server"
		}
	}
	return "", "the backup's facts name no etcd: " + cmp.Or(facts.Node, "the node") + " may be of any kind"
}
