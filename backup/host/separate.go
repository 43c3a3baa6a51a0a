package host

import (
	"path"
	"slices"

	"lifeboat/internal/hostfacts"
)

// separates finds the etcds that the API server uses for some resources alone,
// and which of them the node runs: those that listen where the API server dials
// for them, and are not its main etcd.
func separates(api, main *container, pods []staticPod, servers []EtcdServer) []hostfacts.Separate {
	out := hostfacts.Overrides(list(api.option("etcd-servers-overrides")))
	for i := range out {
		s := &out[i]
		s.CAFile, s.CertFile, s.KeyFile = onHost(api, "etcd-cafile"), onHost(api, "etcd-certfile"), onHost(api, "etcd-keyfile")
		for _, pod := range pods {
			for j := range pod.containers {
				c := &pod.containers[j]
				if c == main || main != nil && sameContainer(c, main) || !c.runs("etcd") || c.option("data-dir") == "" ||
					!hostfacts.LeadsTo(s.Servers, list(c.option("listen-client-urls")), list(c.option("advertise-client-urls")+","+c.option("initial-advertise-peer-urls"))) {
					continue
				}
				s.Pod, s.Name, s.DataDir, s.Image = pod.name, c.option("name"), onHost(c, "data-dir"), c.image
				s.PeerURLs, s.InitialCluster = list(c.option("initial-advertise-peer-urls")), c.option("initial-cluster")
			}
		}
		for _, server := range servers {
			if s.Pod == "" && server.ReachedBy(s.Servers) {
				s.Server, s.Name, s.DataDir, s.PeerURLs, s.InitialCluster = path.Clean(server.DataDir), server.Name, server.DataDir, server.PeerURLs, server.InitialCluster
			}
		}
	}
	return out
}

func sameContainer(a, b *container) bool {
	return a.pod == b.pod && a.name == b.name && slices.Equal(a.words, b.words)
}
