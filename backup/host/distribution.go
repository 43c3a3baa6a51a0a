package host

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"lifeboat/internal/chroot"
	"lifeboat/internal/distro"
	"lifeboat/internal/etcdhost"
	"lifeboat/internal/hostfacts"
)

// Exists makes a tree what distro reads, with Text and Names. It tells of what is
// never stored too.
func (t *tree) Exists(name string) bool { return exists(t, name) }

// distribution follows all that makes a server of k3s, rke2 or k0s, wherever it was
// told to keep it.
func (c *closure) distribution(d *hostfacts.Distribution) {
	why := d.Kind + "'s server"
	for _, name := range distro.Never(d.Kind, d.DataDir) {
		if place, err := c.t.resolve(name); err == nil && place.Name != "." {
			c.omitted[place.Name] = true
		}
	}
	if d.Datastore == distro.Etcd {
		c.dataDir(distro.EtcdDir(d))
	}
	for _, name := range distro.Files(d.Kind, d.DataDir) {
		c.add(item{path: name, why: why})
	}
	if pods := distro.PodManifests(d); pods != "" {
		c.manifestFolder(pods, "")
	}
	service := etcdhost.ReadService(c.t, d.Unit)
	for _, name := range slices.Concat(service.Files, service.EnvironmentFiles, d.Configs, d.TokenFrom, distro.EncryptionConfigs(c.t, d)) {
		c.add(item{path: name, why: why, fileOnly: true, explicit: true})
	}
	// k0s runs etcd as a process of the host: it is no etcd of somebody else's.
	c.etcds = slices.DeleteFunc(c.etcds, func(s EtcdServer) bool {
		return chroot.Within(strings.TrimPrefix(s.DataDir, "/"), strings.TrimPrefix(d.DataDir, "/"))
	})
}

// checkDistribution tells of what a server does not come back without.
func (c *closure) checkDistribution(d *hostfacts.Distribution) {
	degraded, warnings := lacks(c.t, d, c.holds)
	for _, text := range degraded {
		c.degraded.addf("%s", text)
	}
	for _, text := range warnings {
		c.warnings.addf("%s", text)
	}
}

// lacks says what a backup lacks with which no server comes back, and what a person
// should look at. holds says whether the backup has a file.
func lacks(t *tree, d *hostfacts.Distribution, holds func(file string) bool) (degraded, warnings []string) {
	if text := Lost(d); text != "" {
		degraded = append(degraded, text)
	}
	if d.Kind == distro.K0s {
		for _, name := range []string{"pki/ca.crt", "pki/ca.key", "pki/sa.key", "pki/etcd/ca.key"} {
			if file := path.Join(d.DataDir, name); (d.Datastore == distro.Etcd || !strings.HasPrefix(name, "pki/etcd/")) && !holds(file) {
				degraded = append(degraded, fmt.Sprintf("%s is not captured: a controller that is restored without it is another cluster's", file))
			}
		}
		return degraded, warnings
	}
	if !holds(d.TokenFile) && !slices.ContainsFunc(d.TokenFrom, holds) {
		degraded = append(degraded, fmt.Sprintf("the server token, %s, is not captured: %s keeps its authorities in the datastore encrypted with it, and no reset works without it", d.TokenFile, d.Kind))
	}
	for _, file := range distro.Tokens(t, d) {
		warnings = append(warnings, fmt.Sprintf("%s sets another token than %s holds: %s will not start with it; set the one that is in use", file, d.TokenFile, d.Kind))
	}
	return degraded, warnings
}

// Server is a server of k3s, rke2 or k0s, and what backups of it would lack.
type Server struct {
	*hostfacts.Distribution
	Degraded []string // no backup is whole
	Warnings []string
}

// FindServer looks at the distribution below root without capturing it; nil: the host
// is of none.
func FindServer(root string) (*Server, error) {
	t, err := openTree(root)
	if err != nil {
		return nil, err
	}
	defer t.close()
	d, _, _ := setUp(t)
	if d == nil {
		return nil, nil
	}
	s := &Server{Distribution: d}
	s.Degraded, s.Warnings = lacks(t, d, func(file string) bool {
		place, err := t.resolve(file)
		if err != nil || place.Missing {
			return false
		}
		got, err := t.read(place.Name, parseLimit, 0)
		return err == nil && got.size > 0
	})
	return s, nil
}

// Lost says what of the cluster no backup holds, since it is not kept in etcd; empty:
// nothing.
func Lost(d *hostfacts.Distribution) string {
	switch d.Datastore {
	case distro.SQLite:
		file := path.Join(d.DataDir, "db/state.db")
		if d.Kind != distro.K0s {
			file = path.Join(d.DataDir, "server/db/state.db")
		}
		return fmt.Sprintf("%s keeps the cluster in SQLite, in %s, and not in etcd: nothing but this node's files is backed up", d.Kind, file)
	case distro.External:
		return d.Kind + " keeps the cluster in a database of another kind than etcd: nothing but this node's files is backed up"
	}
	return ""
}

// holds says whether a file is stored and not empty.
func (c *closure) holds(name string) bool {
	place, err := c.t.resolve(name)
	if err != nil {
		return false
	}
	e, ok := c.entries[place.Name]
	return ok && e.header.Size > 0
}

// distributionEtcd is how the etcd of a distribution is reached; nil: it uses none,
// or has not made one's certificates.
func distributionEtcd(t *tree, pods []staticPod, d *hostfacts.Distribution) *Discovery {
	endpoints, ca, cert, key := distro.EtcdClient(t, d)
	if len(endpoints) == 0 || d.Datastore == distro.Etcd && !exists(t, ca) {
		return nil
	}
	out := &Discovery{Kind: d.Kind, EtcdEndpoints: endpoints, EtcdServersOverrides: []string{}, CAFile: ca, CertFile: cert, KeyFile: key}
	if d.Datastore == distro.Etcd {
		out.DataDir = distro.EtcdDir(d)
		out.Name = memberName(t, d)
		for _, p := range pods { // rke2 runs it as a static pod
			for i := range p.containers {
				if p.containers[i].runs("etcd") {
					out.Image = p.containers[i].image
				}
			}
		}
	}
	return out
}

// memberName is how the distribution calls this server's etcd; empty: not known.
func memberName(t *tree, d *hostfacts.Distribution) string {
	name := "/etc/hostname"
	if d.Kind != distro.K0s {
		name = path.Join(distro.EtcdDir(d), "name") // beside the database, which is never stored
	}
	place, err := t.resolve(name)
	if err != nil || place.Missing {
		return ""
	}
	const most = 1 << 10
	got, err := t.read(place.Name, most, most)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(got.data))
}

// setUp tells of which distribution the host is a server, if of any, and which static
// pods its kubelet runs. left says which folders of static pods nobody looks into.
func setUp(t *tree) (own *hostfacts.Distribution, pods []staticPod, left func(folder string) bool) {
	pods = readPods(t)
	var apis []string
	for i := range pods {
		if _, api := programs(pods[i : i+1]); api != nil {
			apis = append(apis, "/"+pods[i].file)
		}
	}
	own = distro.Find(t, apis)
	left = distro.Left(own, apis)
	return own, slices.DeleteFunc(pods, func(p staticPod) bool { return left("/" + p.file) }), left
}
