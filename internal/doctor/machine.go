package doctor

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"lifeboat/backup/etcd"
	"lifeboat/internal/config"
	"lifeboat/internal/durable"
)

// etcd asks every member for its state and makes one linearizable read.
func (d *doctor) etcd(ctx context.Context, e config.Etcd) {
	check := "etcd " + e.Name
	cluster, err := etcd.Open(etcd.Config{Name: e.Name, Endpoints: e.Endpoints, CAFile: e.CAFile, CertFile: e.CertFile, KeyFile: e.KeyFile}, etcd.Limits{}, nil)
	if err != nil {
		d.problem(check, "correct the certificates' paths in the configuration; on a kubeadm node they are in /etc/kubernetes/pki/etcd, on one of k3s or rke2 in server/tls/etcd of its data directory, of k0s in pki", "%v", err)
		return
	}
	defer cluster.Close()
	d.clientCertificate(check, e.CertFile)
	survey, err := cluster.Survey(ctx)
	if ctx.Err() != nil { // interrupted: it says nothing of etcd
		return
	}
	if err != nil {
		d.problem(check, "check that etcd runs, that the endpoints are its client URLs, and that the certificates fit", "%v", err)
		return
	}
	versions := map[string]bool{}
	healthy := 0
	for _, m := range survey.Members {
		switch {
		case m.Err != nil:
			d.warn(check, "bring the member back; a backup is taken from another one meanwhile", "member %s (%s) does not answer: %v", m.Name, m.ID, m.Err)
			continue
		case len(m.Errors) > 0:
			d.warn(check, "etcdctl alarm list; a backup is taken all the same, and marked", "member %s (%s) says: %s", m.Name, m.ID, strings.Join(m.Errors, "; "))
		}
		healthy++
		versions[m.Version] = true
		d.dbBytes = max(d.dbBytes, m.DBSize)
	}
	if survey.FloorErr != nil {
		d.problem(check, "recover the quorum first: lifeboat still takes backups, marked degraded", "no linearizable read: %v", survey.FloorErr)
		return
	}
	names := make([]string, 0, len(versions))
	for v := range versions {
		names = append(names, v)
	}
	d.token(ctx, check, cluster, survey)
	d.ok(check, "%d of %d member(s) answer, version %s, revision %d, %d MiB", healthy, len(survey.Members), strings.Join(names, " and "), survey.Floor, d.dbBytes>>20)
}

// host looks whether the node's files can be read.
func (d *doctor) host() {
	root := d.Config.Host.Root
	info, err := os.Stat(root)
	switch {
	case err != nil:
		d.problem("host files", "correct host.root in the configuration", "%v", err)
	case !info.IsDir():
		d.problem("host files", "correct host.root in the configuration", "%s is not a folder", root)
	case d.UID != 0:
		d.warn("host files", "back up as root: only root can read private keys", "not root: files that can't be read make the backup degraded")
	default:
		if _, err := os.Stat(filepath.Join(root, "etc/kubernetes")); err != nil && d.server == nil {
			d.warn("host files", "correct host.root, if this is a control-plane node", "no etc/kubernetes below %s", root)
			return
		}
		d.ok("host files", "below %s", root)
	}
}

// scratchMargin is what a snapshot in scratch leaves free on its file system.
const scratchMargin = 64 << 20

// scratch looks whether a snapshot fits beside what is there.
func (d *doctor) scratch() {
	dir := filepath.Join(d.Config.StateDir, "scratch")
	scratch, err := durable.OpenScratch(dir)
	if err != nil {
		d.problem("scratch", "name a folder that this user can write to as stateDir in the configuration", "%v", err)
		return
	}
	defer scratch.Close()
	free, err := durable.FreeSpace(dir)
	if err != nil {
		d.warn("scratch", "look at the file system", "%v", err)
		return
	}
	if need := d.dbBytes + scratchMargin; free < need {
		d.warn("scratch", "make room, or set stateDir to a larger file system: without scratch, snapshots stream through unproved",
			"%s has %d MiB free, a snapshot needs %d MiB", dir, free>>20, need>>20)
		return
	}
	d.ok("scratch", "%s, %d MiB free", dir, free>>20)
}
