package reset

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"lifeboat/internal/distro"
)

// rancher is the way of k3s and rke2, whose server has one reset for both.
func (m *maker) rancher() {
	d := m.d
	port, kubectl, config, prefix := "6443", d.Program+" kubectl", "/etc/rancher/k3s/config.yaml", "K3S_"
	m.plan.For = "k3s 1.28 or later (docs.k3s.io/cli/etcd-snapshot)"
	if d.Kind == distro.RKE2 {
		m.plan.For = "rke2 1.28 or later (docs.rke2.io/datastore/backup_restore)"
		port, config, prefix = "9345", "/etc/rancher/rke2/config.yaml", "RKE2_"
		kubectl = path.Join(d.DataDir, "bin/kubectl") + " --kubeconfig /etc/rancher/rke2/rke2.yaml"
	} else if own, _ := d.Setting("https-listen-port"); own != "" {
		port = own
	}
	if len(d.Configs) > 0 {
		config = d.Configs[0]
	}
	snapshot := path.Join(m.Folder, "reset.db")

	m.stopServers()
	if d.Kind == distro.RKE2 {
		m.program(d.Program+" --version", "Its installer takes INSTALL_RKE2_VERSION, and starts nothing.")
	} else {
		m.program(d.Program+" --version", "Its installer takes INSTALL_K3S_VERSION and INSTALL_K3S_SKIP_START=true.")
	}
	var note string
	var but []string
	if d.Kind == distro.RKE2 {
		note, but = "rke2 writes its static pods itself.", []string{distro.PodManifests(d)}
	}
	m.files(note, but...)
	m.token()
	undo := m.forgetServer(prefix)
	export := exportNote
	if d.BootstrapKey != "" {
		export += " If the last command says nothing, the token is not the snapshot's: look for the right one before you go on."
	}
	m.here("Make the snapshot", export, "mkdir -p "+quote(m.Folder), m.export(snapshot), m.fits(snapshot))
	m.here("Reset the cluster to this server", fmt.Sprintf("It moves %s aside itself, and ends by itself with \"Managed etcd cluster membership has been reset, restart without --cluster-reset flag now\". "+
		"\"bootstrap data already found and encrypted with different token\" means the wrong token. If it says that membership was previously reset, remove %s and run it again.",
		distro.EtcdDir(d), path.Join(d.DataDir, "server/db/reset-flag")), m.resetCommand(snapshot, prefix))
	m.here("Start it", "It takes a minute or two until the API server is ready. Ready nodes are stale data until their leases are renewed.",
		"systemctl start "+d.Unit, kubectl+" get --raw /readyz", kubectl+" get nodes")
	m.otherFiles(note, but...)
	m.elsewhere("Let the others join, one after the other",
		fmt.Sprintf("Each needs the cluster's token and a server to join, which must be one that is back already, in its configuration: without, and with an empty database, it would begin a cluster of its own, so the last command starts it only where it has both. Wait until it is Ready before the next. If it has no %s, take this server's there first.", d.TokenFile),
		then("{ "+m.aside(path.Join(d.DataDir, "server/db"))+"; }",
			"mkdir -p "+quote(path.Dir(config)),
			fmt.Sprintf(`{ grep -qsE '^"?server"?:' %[1]s %[1]s.d/*.yaml || printf '\nserver: %%s\n' %[2]s >> %[1]s; }`, quote(config), quote(m.at(port))),
			fmt.Sprintf(`{ grep -qsE '^"?token(-file)?"?:' %[1]s %[1]s.d/*.yaml || { test -s %[2]s && printf '\ntoken-file: %%s\n' %[2]s >> %[1]s; }; }`, quote(config), quote(d.TokenFile)),
			"systemctl start "+d.Unit))
	m.here("Tidy up", "The reset made a new etcd cluster: the next backup begins a new chain of points. Delete the Node objects of machines that don't come back ("+kubectl+" delete node NAME).",
		"rm "+quote(snapshot), undo, "lifeboat backup")
}

// stopServers fences: no old member may live on beside the restored one.
func (m *maker) stopServers() {
	note := "etcd ends with the service. Containers go on."
	if m.d.Kind == distro.RKE2 {
		note = "etcd and the API server are static pods, which outlive the service: rke2-killall.sh ends them, and all other pods of these machines. It comes with rke2. The last command must print nothing; if it prints a number, an etcd still runs: end it before you go on."
	}
	m.everywhere("Stop all servers", note, distro.Stop(m.d)...)
}

// token sees that the server has the one with which its authorities are encrypted.
func (m *maker) token() {
	d := m.d
	if m.Facts != nil && !m.captured(d.TokenFile) && !slices.ContainsFunc(d.TokenFrom, m.captured) {
		m.warn("the backup holds no server token, and without it the reset fails: take %s from another server, or the token from wherever the cluster was installed, and put it there with mode 0600", d.TokenFile)
	}
	note := "The authorities in the snapshot are encrypted with the token that the cluster had then: if it was rotated since, take the older files of this node."
	if m.Facts != nil && !m.captured(d.TokenFile) && len(d.TokenFrom) > 0 {
		m.here("See that the token is there", note+" It is in "+strings.Join(d.TokenFrom, " and ")+".", "test -s "+quote(d.TokenFrom[0])+" && echo the token is there")
		return
	}
	m.here("See that the token is there", note, "test -s "+quote(d.TokenFile)+" && echo the token is there")
}

// fits compares the token with the snapshot, in which the name of a key tells it.
func (m *maker) fits(snapshot string) string {
	if m.d.BootstrapKey == "" {
		return ""
	}
	return fmt.Sprintf("grep -aqF %s %s && echo the token fits", m.d.BootstrapKey, quote(snapshot))
}

// forgetServer takes away what the reset refuses: the URL by which this server joined.
// It returns the command that brings that back.
func (m *maker) forgetServer(prefix string) (undo string) {
	server, from := m.d.Setting("server")
	if server == "" {
		return ""
	}
	const note = "The reset refuses with \"cannot perform cluster-reset while server URL is set\"."
	kept := from + m.stamp()
	pattern := `s/^("?server"?:)/#\1/`
	switch {
	case slices.Contains(m.d.Environment, from):
		pattern = `s/^(` + prefix + `URL=)/#\1/`
	case strings.HasSuffix(from, ".service") || strings.HasSuffix(from, ".conf"):
		return "" // the reset's command line does not have it
	}
	m.here("Let it forget the server that it joined, "+server, note, fmt.Sprintf("test -e %[2]s || cp -a %[1]s %[2]s", quote(from), quote(kept)), fmt.Sprintf("sed -i -E '%s' %s", pattern, quote(from)))
	return fmt.Sprintf("mv %s %s", quote(kept), quote(from))
}

// resetCommand is the reset with the options that the unit gives its server.
func (m *maker) resetCommand(snapshot, prefix string) string {
	d := m.d
	words := []string{d.Program, "server", "--cluster-reset", "--cluster-reset-restore-path=" + snapshot}
	if d.DataDir != distro.Default(d.Kind) {
		words = append(words, "--data-dir="+d.DataDir)
	}
	file := d.TokenFile
	if m.Facts != nil && !m.captured(file) && len(d.TokenFrom) > 0 {
		file, _ = d.Setting("token-file") // or its configuration has it
	}
	if file != "" {
		words = append(words, "--token-file="+file)
	}
	if d.S3 {
		words = append(words, "--etcd-s3=false")
	}
	words = append(words, d.Arguments...)
	for i := range words {
		words[i] = quote(words[i])
	}
	command := strings.Join(words, " ")
	if len(d.Environment) == 0 {
		return command
	}
	var set []string
	for _, file := range d.Environment {
		set = append(set, ". "+quote(file))
	}
	return fmt.Sprintf("( set -a; %s; set +a; unset %sURL; exec %s )", strings.Join(set, "; "), prefix, command)
}
