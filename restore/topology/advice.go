package topology

import (
	"cmp"
	"fmt"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strings"

	"lifeboat/internal/distro"
	"lifeboat/restore/salvage"
)

// lost returns the voters of the living cluster that don't answer, and one that
// does.
func (h *Host) lost() (gone []Member, alive Member) {
	l := &h.Living
	for _, m := range l.Members {
		switch {
		case m.State == Answers && m.ClusterID == l.ClusterID:
			// The leader is the best to ask.
			if alive.Endpoint == "" || m.ID == l.Leader {
				alive = m
			}
		case !m.Learner && !m.Own && m.ID != 0:
			gone = append(gone, m)
		}
	}
	// What the living ones don't name any more has been removed already.
	if len(alive.members) > 0 {
		gone = slices.DeleteFunc(gone, func(m Member) bool {
			for _, named := range alive.members {
				if named.ID == m.ID {
					return false
				}
			}
			return true
		})
	}
	return gone, alive
}

// kubeadmClient are the files that kubeadm gives etcd's probes.
const kubeadmClient = "--cacert=/etc/kubernetes/pki/etcd/ca.crt --cert=/etc/kubernetes/pki/etcd/healthcheck-client.crt --key=/etc/kubernetes/pki/etcd/healthcheck-client.key"

// replace says how a member is replaced while a quorum lives.
func (h *Host) replace() []string {
	gone, alive := h.lost()
	if len(gone) == 0 {
		out := []string{
			"All voting members answer: etcd needs no restore.",
			"If files of this node are lost, restore these alone: lifeboat restore files. If data was deleted by mistake, see lifeboat export.",
		}
		if m := h.unlinked(); m != nil {
			out = append(out, fmt.Sprintf("But %s has lost its files here (%s): it lives until its process ends. Save what it holds first:", m, h.Data.FreshHow), "  "+h.snapshotOf(*m),
				"Then stop it, and run this again:")
			out = append(out, h.stop()...)
		}
		return out
	}
	var names []string
	for _, m := range gone {
		names = append(names, m.String())
	}
	out := []string{"Replace what is lost, " + strings.Join(names, ", ") + ", one member after the other. All that was written stays."}
	switch h.Kind {
	case Kubeadm:
		return append(out, h.replaceStacked(gone, alive)...)
	case K3s, RKE2:
		return append(out, h.replaceRancher(gone)...)
	case K0s:
		return append(out, h.replaceK0s(gone, alive)...)
	}
	return append(out, h.replaceExternal(gone, alive)...)
}

// stop are the commands that end etcd on a host of this kind.
func (h *Host) stop() []string {
	d := h.Distribution
	if d == nil || d.Kind != string(h.Kind) {
		d = distro.Usual(string(h.Kind))
	}
	var commands []string
	switch {
	case h.Kind == Kubeadm:
		commands = []string{"mkdir -p /root/fenced && mv /etc/kubernetes/manifests/*.yaml /root/fenced/", "crictl ps --name etcd -q    # until it prints nothing: without its manifest kubelet does that within half a minute"}
	case d != nil:
		commands = distro.Stop(d)
	default:
		commands = []string{"systemctl stop " + cmp.Or(h.unit, "etcd") + "    # or whatever starts it there"}
	}
	for i := range commands {
		commands[i] = "  " + commands[i]
	}
	return commands
}

// fenceEmptied says how an etcd is stopped that began anew, so that the cluster's
// can be restored in its place.
func (h *Host) fenceEmptied() []string {
	return append([]string{"There is nothing of the cluster in it but what controllers have written since. Stop it on every control-plane node, then run this again:"}, h.stop()...)
}

// replaceStacked follows Kubernetes' pages on kubeadm reset and join.
func (h *Host) replaceStacked(gone []Member, alive Member) []string {
	on := cmp.Or(alive.Name, "NODE")
	ctl := fmt.Sprintf("kubectl -n kube-system exec etcd-%s -- etcdctl --endpoints=%s %s", on, alive.Endpoint, kubeadmClient)
	out := []string{"On " + on + ", or another living control-plane node, as root:", "  export KUBECONFIG=/etc/kubernetes/admin.conf", "  " + ctl + " member list -w table"}
	for _, m := range gone {
		out = append(out, fmt.Sprintf("  %s member remove %s    # %s", ctl, m.ID, cmp.Or(m.Name, "without a name")))
		if m.Name != "" {
			out = append(out, "  kubectl delete node "+m.Name)
		}
	}
	out = append(out,
		"  kubeadm init phase upload-certs --upload-certs    # prints the CERTIFICATE-KEY, good for two hours",
		"  kubeadm token create --print-join-command    # prints ENDPOINT, TOKEN and HASH",
		"On the machine that takes the lost one's place, which may be this one:",
		"  kubeadm reset --force")
	if command := BringUnjoined(h.unjoined, cmp.Or(gone[0].Name, on)); command != "" {
		out = append(out, "  "+command)
	}
	return append(out,
		"  kubeadm join ENDPOINT --token TOKEN --discovery-token-ca-cert-hash HASH --control-plane --certificate-key CERTIFICATE-KEY",
		"kubeadm reset deletes "+cmp.Or(h.Data.Path, usualDataDir)+" and /etc/kubernetes: move them aside first if they may be wanted.")
}

// BringUnjoined is the command that puts files on a machine that "kubeadm join"
// does not bring there, from the backup of a node's files; empty if there are none.
func BringUnjoined(files []string, node string) string {
	if len(files) == 0 {
		return ""
	}
	command := "lifeboat restore files --identity FILE --node " + node + " --root /"
	for _, f := range files {
		command += " --include '" + strings.TrimPrefix(f, "/") + "'"
	}
	return command + "    # what the API server needs and kubeadm does not bring"
}

// peersOf returns a member's peer URLs as one that lives knows them, or as in the backup.
func (m *Member) peersOf(other Member) []string {
	for _, named := range m.members {
		if named.ID == other.ID && len(named.PeerURLs) > 0 {
			return named.PeerURLs
		}
	}
	return other.peerURLs
}

func (h *Host) replaceExternal(gone []Member, alive Member) []string {
	ctl := "etcdctl --endpoints=" + alive.Endpoint
	if strings.HasPrefix(alive.Endpoint, "https:") {
		ctl += " --cacert=CA --cert=CERT --key=KEY"
	}
	out := []string{"On a machine with etcd's client certificates:", "  " + ctl + " member list -w table"}
	var cluster []string
	for _, named := range alive.members {
		if !slices.ContainsFunc(gone, func(m Member) bool { return m.ID == named.ID }) && named.Name != "" {
			cluster = append(cluster, named.Name+"="+strings.Join(named.PeerURLs, ","+named.Name+"="))
		}
	}
	for _, m := range gone {
		name, peer := cmp.Or(m.Name, "NAME"), "https://ADDRESS:2380"
		if urls := alive.peersOf(m); len(urls) > 0 {
			peer = strings.Join(urls, ",")
		}
		cluster = append(cluster, name+"="+peer)
		out = append(out,
			fmt.Sprintf("  %s member remove %s    # %s", ctl, m.ID, name),
			fmt.Sprintf("  %s member add %s --peer-urls=%s    # its new peer URL, if it has another", ctl, name, peer),
			fmt.Sprintf("On the machine that is to be %s: move %s aside, then start etcd with", name, path.Join(cmp.Or(h.Data.Path, usualDataDir), "member")),
			fmt.Sprintf("  --initial-cluster-state existing --initial-cluster %s", strings.Join(cluster, ",")))
	}
	return out
}

func (h *Host) replaceRancher(gone []Member) []string {
	unit, port := "k3s", "6443"
	if h.Kind == RKE2 {
		unit, port = "rke2-server", "9345"
	}
	folder, config := h.place()
	var out []string
	for _, m := range gone {
		out = append(out, fmt.Sprintf("On a living server: kubectl delete node %s    # its etcd member goes with it", nodeOf(m.Name)))
	}
	return append(out,
		"On the machine that takes the lost one's place:",
		fmt.Sprintf("  systemctl stop %s", unit),
		fmt.Sprintf("  mv -T %[1]s/server/db %[1]s/server/db.old    # if it is there: with an old database it does not join", folder),
		fmt.Sprintf("  its %s must name a living server and the cluster's token, or it begins a cluster of its own:", config),
		fmt.Sprintf("    server: https://LIVING-SERVER:%s", port),
		fmt.Sprintf("    token-file: FILE    # a copy of %s/server/token of a living server", folder),
		fmt.Sprintf("  systemctl start %s", unit))
}

// nodeOf takes off what k3s and rke2 add to a node's name: cp1-1a2b3c4d.
func nodeOf(member string) string {
	if i := strings.LastIndexByte(member, '-'); i > 0 && len(member)-i == 9 {
		return member[:i]
	}
	return cmp.Or(member, "NODE")
}

func (h *Host) replaceK0s(gone []Member, alive Member) []string {
	var out []string
	for _, m := range gone {
		host := "ADDRESS"
		for _, text := range alive.peersOf(m) { // for clients it is at the loopback address
			if u, err := url.Parse(text); err == nil && u.Hostname() != "" {
				host = u.Hostname()
			}
		}
		out = append(out, fmt.Sprintf("On a living controller: k0s etcd leave --peer-address %s    # %s", host, m))
	}
	folder, _ := h.place()
	return append(out,
		"On a living controller: k0s token create --role=controller --expiry=1h > TOKEN-FILE",
		"On the machine that takes the lost one's place, with that file:",
		"  k0s stop",
		fmt.Sprintf("  mv -T %[1]s/etcd %[1]s/etcd.old; mv -T %[1]s/pki %[1]s/pki.old    # if they are there: with them it does not join", folder),
		"  k0s install controller --force --token-file TOKEN-FILE    # with the options that it had before",
		"  k0s start")
}

// unlinked is the living member of this host whose data directory is gone; nil if
// there is none.
func (h *Host) unlinked() *Member {
	if h.Data.Member || h.Data.Failed != "" {
		return nil
	}
	for i, m := range h.Living.Members {
		if m.State == Answers && h.isHere(m.Endpoint) {
			return &h.Living.Members[i]
		}
	}
	return nil
}

// isHere says whether a URL leads to this machine.
func (h *Host) isHere(endpoint string) bool {
	u, err := url.Parse(endpoint)
	if err != nil {
		return false
	}
	a, err := netip.ParseAddr(u.Hostname())
	if err != nil {
		return false
	}
	return a.IsLoopback() || slices.Contains(h.Identity.Addresses, a.Unmap().String())
}

// snapshotOf is the command that saves a living member's database.
func (h *Host) snapshotOf(m Member) string {
	tls := ""
	if strings.HasPrefix(m.Endpoint, "https:") {
		tls = " --cacert=CA --cert=CERT --key=KEY"
		if h.Kind == Kubeadm {
			tls = " " + kubeadmClient
		}
	}
	return fmt.Sprintf("etcdctl --endpoints=%s%s snapshot save salvage-%s.db", m.Endpoint, tls, m.ID)
}

// salvage says how to save what is left before a restore.
func (h *Host) salvage() []string {
	out := []string{"What is left may hold what the backup lacks. Save it first; a restore keeps it too, aside, but does not look into it."}
	for _, m := range h.Living.Members {
		if m.State != Answers || m.Own {
			continue
		}
		out = append(out, "  "+h.snapshotOf(m)+"    # a member gives a snapshot without a quorum too")
	}
	if d := &h.Data; d.Member && d.Freshness != Foreign && d.Freshness != Older && d.Freshness != Equal {
		if d.InUse {
			out = append(out, "Stop the etcd that uses "+d.Path+" first, unless it answers above.")
		}
		verb := "etcd"
		if h.Kind == Kubeadm {
			verb = "control-plane"
		}
		out = append(out,
			"  lifeboat restore "+verb+" --from-data-dir "+d.Path+" --dry-run    # with this command's other flags: compares, and says how it would go",
			"Or by etcd itself, which drops what its log holds behind the index that it knew to be committed:")
		for _, command := range salvage.ForceNewCluster(d.Path) {
			out = append(out, "  "+command)
		}
	}
	out = append(out, "Compare: etcdutl snapshot status -w table FILE tells the revision; the one with the highest is the freshest, if all are of one cluster.")
	if accept := h.Living.accepting(); len(accept) > 0 {
		out = append(out, "Members that take connections and can't be asked: give certificates that they take, then look again.")
	}
	return out
}
