package host

import (
	"fmt"
	"slices"
	"strings"

	"lifeboat/internal/distro"
)

// EtcdCluster is one of the etcd clusters that a node's API server uses.
type EtcdCluster struct {
	Name                      string // "main", or after the resource that it is for, such as "events"
	Endpoints                 []string
	CAFile, CertFile, KeyFile string // joined with root, so that this process can open them
}

// Clusters lists the etcd clusters that the API server below root uses: the main
// one, and those of its --etcd-servers-overrides. The API server's flags name
// the certificates for all that are not the main one in a pod beside it. Without
// an API server, whose manifest may be away for a repair, the list has the etcd
// beside it alone and is not complete.
func Clusters(root string) (list []EtcdCluster, complete bool, err error) {
	d, err := Discover(root)
	if err != nil {
		return nil, false, err
	}
	t, err := openTree(root)
	if err != nil {
		return nil, false, err
	}
	defer t.close()
	main := EtcdCluster{Name: "main", Endpoints: d.EtcdEndpoints, CAFile: d.CAFile, CertFile: d.CertFile, KeyFile: d.KeyFile}
	client := main
	_, pods, _ := setUp(t)
	_, api := programs(pods)
	if api != nil && api.option("etcd-certfile") != "" {
		client.CAFile, client.CertFile, client.KeyFile = onHost(api, "etcd-cafile"), onHost(api, "etcd-certfile"), onHost(api, "etcd-keyfile")
		for _, file := range []*string{&client.CAFile, &client.CertFile, &client.KeyFile} {
			t.join(root, file)
		}
	}
	return append([]EtcdCluster{main}, overrides(d.EtcdServersOverrides, client)...), api != nil || distro.Is(d.Kind), nil
}

// overrides takes apart what --etcd-servers-overrides says: "group/resource#URL;URL"
// for each resource. Resources that share their servers share a cluster, which
// has the name of the first.
func overrides(texts []string, client EtcdCluster) []EtcdCluster {
	var clusters []EtcdCluster
	for _, text := range texts {
		resource, urls, ok := strings.Cut(text, "#")
		name := strings.ReplaceAll(strings.Trim(resource, "/ "), "/", "-")
		endpoints := strings.FieldsFunc(urls, func(r rune) bool { return r == ';' || r == ' ' })
		if !ok || name == "" || len(endpoints) == 0 || sameServers(endpoints, client.Endpoints) {
			continue
		}
		if slices.ContainsFunc(clusters, func(c EtcdCluster) bool { return sameServers(c.Endpoints, endpoints) }) {
			continue
		}
		for n := 2; name == client.Name || slices.ContainsFunc(clusters, func(c EtcdCluster) bool { return c.Name == name }); n++ {
			name = fmt.Sprintf("%s-%d", strings.ReplaceAll(strings.Trim(resource, "/ "), "/", "-"), n)
		}
		c := client
		c.Name, c.Endpoints = name, endpoints
		if !slices.ContainsFunc(endpoints, func(u string) bool { return strings.HasPrefix(u, "https://") }) {
			c.CAFile, c.CertFile, c.KeyFile = "", "", ""
		}
		clusters = append(clusters, c)
	}
	return clusters
}

func sameServers(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}
