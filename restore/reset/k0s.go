package reset

import (
	"fmt"
	"path"

	"lifeboat/internal/distro"
)

// usualK0s is the configuration that k0s restore reads, whatever the unit names.
const usualK0s = "/etc/k0s/k0s.yaml"

// k0s is the way of k0s: its restore takes an archive. Of what may be in it, the
// database alone must be: the files come back by lifeboat, with their owners, and what
// the archive lacks is skipped (k0s's pkg/backup, filesystem and etcd steps).
func (m *maker) k0s() {
	d := m.d
	m.plan.For = "k0s 1.28 or later (docs.k0sproject.io/stable/backup)"
	work := path.Join(m.Folder, "k0s-restore")
	archive := path.Join(work, "k0s_backup_lifeboat.tar.gz")
	dataDir, kubectl := "", d.Program+" kubectl"
	if d.DataDir != distro.Default(distro.K0s) {
		dataDir = " --data-dir=" + quote(d.DataDir)
		kubectl += " --kubeconfig=" + quote(path.Join(d.DataDir, "pki/admin.conf"))
	}

	if len(m.plan.Others) > 0 {
		m.warn("k0s has etcd listen for clients on its own host alone, so whether the others live can't be seen from here: on each of them run \"k0s etcd member-list\". Where that answers the cluster lives, and this controller is to be replaced, not the cluster restored")
	}
	m.everywhere("Stop all controllers", "", distro.Stop(d)...)
	m.program(d.Program+" version", "On a new machine \"k0s install controller\" comes before the files are put back, since it makes the users whose files some of these are; the unit in the backup then replaces its own.")
	m.files("")
	config := fmt.Sprintf("%s config create > %s", d.Program, quote(path.Join(work, "k0s.yaml")))
	if len(d.Configs) > 0 {
		config = fmt.Sprintf("install -m 0600 %s %s", quote(d.Configs[0]), quote(path.Join(work, "k0s.yaml")))
		if d.Configs[0] != usualK0s {
			m.warn("k0s restore reads %s, and this controller's configuration is %s: they must be the same while it runs (cp %[2]s %[1]s)", usualK0s, d.Configs[0])
		}
	}
	m.here("Make the archive", exportNote+" k0s restore takes what k0s backup writes: a gzipped tar with etcd-snapshot.db and k0s.yaml; the rest of it is in place already.",
		"mkdir -p "+quote(work), m.export(path.Join(work, "etcd-snapshot.db")), config,
		fmt.Sprintf("( umask 077; tar -C %s -czf %s etcd-snapshot.db k0s.yaml )", quote(work), quote(archive)))
	m.here("Restore it", "It makes the etcd of one member, this controller, at the peer address of its configuration. It refuses where there is a database already, or where k0s runs.",
		m.aside(distro.EtcdDir(d)),
		fmt.Sprintf("%s restore%s --config-out=%s %s", d.Program, dataDir, quote(path.Join(work, "k0s-restored.yaml")), quote(archive)))
	m.here("Start it", "It gives the database to etcd's user first. Ready nodes are stale data until their leases are renewed.",
		"systemctl start "+d.Unit, d.Program+" etcd member-list"+dataDir, kubectl+" get --raw /readyz", kubectl+" get nodes")
	m.joinControllers(dataDir)
	m.here("Tidy up", "The restore made a new etcd cluster: the next backup begins a new chain of points. Delete the Node objects of machines that don't come back, if controllers run pods at all.",
		"rm -r "+quote(work), "lifeboat backup")
}

// joinControllers lets the others come as they did the first time.
func (m *maker) joinControllers(dataDir string) {
	if len(m.plan.Others) == 0 {
		return
	}
	d := m.d
	file, _ := d.Setting("token-file")
	if file == "" {
		file = "/etc/k0s/k0stoken"
	}
	config := usualK0s
	if len(d.Configs) > 0 {
		config = d.Configs[0]
	}
	pki := path.Join(d.DataDir, "pki")
	m.otherFiles("Its authorities come with the join. On a new machine \"k0s install controller\" comes first, as here.", pki)
	token := path.Join(m.Folder, "controller-token")
	m.here("Make a token for the others", "It is good for an hour. Take it to each of them, as "+file+" with mode 0600.",
		fmt.Sprintf("( umask 077; %s token create --role=controller --expiry=1h%s > %s )", d.Program, dataDir, quote(token)))
	options := ""
	for _, w := range d.Arguments {
		options += " " + quote(w)
	}
	m.elsewhere("Let the others join, one after the other",
		"With an old database or its authorities in place a controller takes itself for a member already; they move aside. What its unit lacks, since it was the first one, k0s install adds; without a token it would begin a cluster of its own, so it starts only where it has one. Wait until \"k0s etcd member-list\" names it before the next.",
		then("{ "+m.aside(distro.EtcdDir(d))+"; }", "{ "+m.aside(pki)+"; }", "test -s "+quote(file),
			fmt.Sprintf("{ grep -qs -- --token-file /etc/systemd/system/%s.service || %s install controller --force --token-file=%s --config=%s%s%s; }", d.Unit, d.Program, quote(file), quote(config), dataDir, options),
			"systemctl start "+d.Unit))
	m.here("Take the token away", "", "rm "+quote(token))
}
