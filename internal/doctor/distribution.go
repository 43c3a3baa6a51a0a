package doctor

import (
	"context"
	"slices"

	"lifeboat/backup/etcd"
	"lifeboat/backup/host"
	"lifeboat/internal/distro"
)

// distribution looks for k3s, rke2 and k0s, and at what their backups need.
func (d *doctor) distribution() {
	server, err := host.FindServer(d.Config.Host.Root)
	if err != nil || server == nil {
		return // the check of the host's files tells of a root that can't be opened
	}
	d.server = server
	check := server.Kind
	for _, text := range server.Degraded {
		remedy := "run as root; if the file is gone, copy it from another server, with its mode and owner"
		switch server.Datastore {
		case distro.SQLite:
			remedy = "move to etcd (k3s: one start with --cluster-init; k0s: spec.storage.type etcd on a new cluster), or back the database up by other means"
		case distro.External:
			remedy = "back that database up by its own means"
		}
		d.problem(check, remedy, "%s", text)
	}
	for _, text := range server.Warnings {
		d.warn(check, "write the token that is in use into every configuration", "%s", text)
	}
	if len(server.Degraded)+len(server.Warnings) == 0 {
		d.ok(check, "a server below %s, with %s", server.DataDir, server.Datastore)
	}
}

// token compares the server's token with etcd, where the name of a key tells with
// which the authorities are encrypted. There may be several while one is rotated.
func (d *doctor) token(ctx context.Context, check string, cluster *etcd.Cluster, survey *etcd.Survey) {
	if d.server == nil || d.server.BootstrapKey == "" || d.server.Datastore != distro.Etcd && d.server.Datastore != distro.ExternalEtcd {
		return
	}
	for _, m := range survey.Members {
		if m.Err != nil || m.Learner || m.Leader == 0 {
			continue
		}
		const most = 100
		keys, err := cluster.Keys(ctx, m.Endpoint, distro.BootstrapPrefix, most)
		switch {
		case err != nil:
			continue
		case len(keys) == 0 || slices.Contains(keys, d.server.BootstrapKey):
			return // another etcd than the distribution's, or the right token
		}
		d.problem(check, "find the token that the cluster runs with (k3s token rotate changes it), and write it to "+d.server.TokenFile+" and into the configuration",
			"the token of this server, in %s, is not the one with which %s has encrypted its authorities in etcd: neither a start nor a reset works with it", d.server.TokenFile, d.server.Kind)
		return
	}
}
