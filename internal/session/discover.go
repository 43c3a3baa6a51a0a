package session

import (
	"fmt"
	"slices"

	"lifeboat/backup/host"
	"lifeboat/internal/config"
)

// Discovered is the configuration with the etcd clusters that this node's API
// server uses, if it asks for that. A cluster that the file names wins over a
// discovered one of the same name. Unless it is complete, there may be others,
// which an earlier look found. On an error it is the configuration as it was,
// still usable.
func Discovered(c *config.Config) (more *config.Config, complete bool, err error) {
	if !c.Discover {
		return c, true, nil
	}
	clusters, complete, err := host.Clusters(c.Host.Root)
	if err != nil {
		return c, false, fmt.Errorf("discover etcd clusters: %w", err)
	}
	all := *c
	all.Etcd = slices.Clone(c.Etcd)
	for _, found := range clusters {
		if slices.ContainsFunc(all.Etcd, func(e config.Etcd) bool { return e.Name == found.Name }) {
			continue
		}
		e := config.Etcd{Name: found.Name, Endpoints: found.Endpoints, CAFile: found.CAFile, CertFile: found.CertFile, KeyFile: found.KeyFile}
		if err := EtcdConfig(e).Chain().Check(); err != nil {
			return c, false, fmt.Errorf("discover etcd clusters: %w", err)
		}
		all.Etcd = append(all.Etcd, e)
	}
	return &all, complete, nil
}
