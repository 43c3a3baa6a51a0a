package topology

import (
	"slices"
	"strings"
	"testing"

	"lifeboat/internal/manifest"
)

// host has a backup of three voters, of which some answer.
func host(kind Kind, members ...Member) *Host {
	h := &Host{Kind: kind, backup: &manifest.Etcd{ClusterID: 9}, Data: DataDir{Freshness: None, Path: usualDataDir}}
	names := []manifest.Member{}
	for i, m := range members {
		m.ID, m.InBackup = manifest.EtcdID(i+1), true
		m.Name = []string{"cp1", "cp2", "cp3-0a1b2c3d"}[i]
		address := "10.0.0.1" + string(rune('1'+i))
		m.ClientURLs, m.peerURLs = []string{"https://" + address + ":2379"}, []string{"https://" + address + ":2380"}
		if kind == K0s { // each by the loopback address of its own host
			m.ClientURLs = []string{"https://127.0.0.1:2379"}
		}
		if m.State == Answers {
			m.ClusterID, m.Endpoint = 9, m.ClientURLs[0]
		}
		names = append(names, manifest.Member{ID: m.ID, Name: m.Name, ClientURLs: m.ClientURLs, PeerURLs: m.peerURLs})
		h.Living.Members = append(h.Living.Members, m)
	}
	h.backup.Members = names
	for i := range h.Living.Members {
		if h.Living.Members[i].State == Answers {
			h.Living.Members[i].members = names
		}
	}
	h.count()
	h.judge()
	return h
}

func TestVerdicts(t *testing.T) {
	leads := func(id manifest.EtcdID) Member { return Member{State: Answers, Leader: id} }
	dead, hidden, silent := Member{State: Refuses}, Member{State: Accepts}, Member{State: Silent}
	for _, c := range []struct {
		name    string
		members []Member
		want    Outcome
		why     string
	}{
		{"all agree", []Member{leads(1), leads(1), leads(1)}, QuorumLives, "3 of 3"},
		{"a majority agrees", []Member{leads(1), leads(1), dead}, QuorumLives, "2 of 3"},
		{"a majority without a leader", []Member{leads(0), leads(0), dead}, Unclear, "only 0 of them agree"},
		{"a majority of two minds", []Member{leads(1), leads(2), silent}, Unclear, "don't reach each other"},
		{"two agree, the third has another leader", []Member{leads(1), leads(1), leads(3)}, QuorumLives, "2 of 3"},
		{"one answers, one hides", []Member{leads(0), hidden, dead}, Unclear, "can't be asked"},
		{"two hide", []Member{dead, hidden, hidden}, Unclear, "can't be asked"},
		{"one hides", []Member{dead, hidden, silent}, Survivors, "cp2"},
		{"one answers", []Member{leads(0), dead, silent}, Survivors, "1 of 3"},
		{"none", []Member{dead, dead, silent}, NothingLives, "none of the 3"},
		{"a single member with a leader", []Member{leads(1)}, QuorumLives, "1 of 1"},
		{"a single member without one", []Member{leads(0)}, Unclear, "only 0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := host(Kubeadm, c.members...).Verdict
			if v.Outcome != c.want || !strings.Contains(strings.Join(v.Why, "\n"), c.why) || len(v.Do) == 0 || v.Refuse != slices.Contains([]Outcome{QuorumLives, Unclear}, c.want) {
				t.Errorf("%+v", v)
			}
		})
	}
}

func TestALearnerDoesNotVote(t *testing.T) {
	h := host(Kubeadm, Member{State: Answers, Leader: 1}, Member{State: Refuses}, Member{State: Answers, Leader: 1})
	for i := range h.Living.Members {
		h.Living.Members[i].members = slices.Clone(h.Living.Members[i].members)
		if len(h.Living.Members[i].members) > 0 {
			h.Living.Members[i].members[2].Learner = true
		}
	}
	h.Living.Agreeing, h.Living.Answering, h.Living.Leader = 0, 0, 0
	h.count()
	if h.Living.Voters != 2 || h.Living.Answering != 1 || h.Living.Quorum {
		t.Errorf("%+v", h.Living)
	}
}

func TestHowAMemberIsReplaced(t *testing.T) {
	alive, dead := Member{State: Answers, Leader: 1}, Member{State: Refuses}
	for kind, want := range map[Kind][]string{
		Kubeadm:         {"exec etcd-cp1 -- etcdctl --endpoints=https://10.0.0.11:2379 --cacert=", "member remove 3    # cp3", "kubectl delete node cp3", "kubeadm join ENDPOINT"},
		KubeadmExternal: {"member remove 3", "member add cp3-0a1b2c3d --peer-urls=https://10.0.0.13:2380", "--initial-cluster cp1=https://10.0.0.11:2380,cp2=https://10.0.0.12:2380,cp3-0a1b2c3d=https://10.0.0.13:2380"},
		Etcd:            {"member remove 3", "--initial-cluster-state existing"},
		K3s:             {"kubectl delete node cp3    #", "systemctl stop k3s", "mv -T /var/lib/rancher/k3s/server/db", "/etc/rancher/k3s/config.yaml", "LIVING-SERVER:6443"},
		RKE2:            {"systemctl stop rke2-server", "/var/lib/rancher/rke2/server/token", "/etc/rancher/rke2/config.yaml", "LIVING-SERVER:9345"},
		K0s:             {"k0s etcd leave --peer-address 10.0.0.13", "--role=controller", "mv -T /var/lib/k0s/etcd"},
	} {
		do := strings.Join(host(kind, alive, alive, dead).Verdict.Do, "\n")
		for _, text := range want {
			if !strings.Contains(do, text) {
				t.Errorf("%s: the advice lacks %q:\n%s", kind, text, do)
			}
		}
	}
}

func TestHowEtcdIsStoppedIsTheHostsOwnWay(t *testing.T) {
	for kind, want := range map[Kind]string{
		Kubeadm: "mv /etc/kubernetes/manifests/*.yaml", KubeadmExternal: "systemctl stop etcd", Etcd: "systemctl stop etcd",
		K3s: "systemctl stop k3s", RKE2: "systemctl stop rke2-server\n  rke2-killall.sh", K0s: "systemctl stop k0scontroller",
	} {
		for name, do := range map[string][]string{
			"no leader": host(kind, Member{State: Answers}, Member{State: Answers}, Member{State: Refuses}).Verdict.Do,
			"files lost": func() []string { // of the one that lives here
				h := host(kind, Member{State: Answers, Leader: 1})
				h.Living.Members[0].Endpoint = "https://127.0.0.1:2379"
				return h.replace()
			}(),
		} {
			text := strings.Join(do, "\n")
			if !strings.Contains(text, want) || kind != Kubeadm && strings.Contains(text, "manifest") || kind != Etcd && kind != KubeadmExternal && strings.Contains(text, "stop etcd") {
				t.Errorf("%s, %s: it lacks %q:\n%s", kind, name, want, text)
			}
		}
	}
}

func TestWhatKubeadmDoesNotBringIsRestoredBeforeTheJoin(t *testing.T) {
	h := host(Kubeadm, Member{State: Answers, Leader: 1}, Member{State: Answers, Leader: 1}, Member{State: Refuses})
	h.unjoined = []string{"/etc/kubernetes/enc/config.yaml", "/srv/audit.yaml"}
	h.judge()
	do := strings.Join(h.Verdict.Do, "\n")
	at := 0
	for _, text := range []string{"kubeadm reset", "lifeboat restore files --identity FILE --node cp3-0a1b2c3d --root / --include 'etc/kubernetes/enc/config.yaml' --include 'srv/audit.yaml'", "kubeadm join"} {
		i := strings.Index(do[at:], text)
		if i < 0 {
			t.Fatalf("it lacks %q, or has it too early:\n%s", text, do)
		}
		at += i
	}
}

func TestAnEtcdThatBeganAnewIsNotTakenForTheCluster(t *testing.T) {
	for kind, command := range map[Kind]string{Kubeadm: "mv /etc/kubernetes/manifests/", Etcd: "systemctl stop etcd"} {
		h := host(kind, Member{State: Answers, Leader: 1, Revision: 312})
		h.backup.Revision = 455
		h.judge()
		v := h.Verdict
		if why, do := strings.Join(v.Why, "\n"), strings.Join(v.Do, "\n"); !v.Refuse || v.Outcome != QuorumLives || !strings.Contains(why, "at revision 312, and the backup is of revision 455") || !strings.Contains(do, command) || strings.Contains(do, "needs no restore") {
			t.Errorf("%s: %+v", kind, v)
		}
		// One that is beyond the backup is the cluster.
		h.backup.Revision = 312
		h.judge()
		if do := strings.Join(h.Verdict.Do, "\n"); !strings.Contains(do, "needs no restore") {
			t.Errorf("%s: %+v", kind, h.Verdict)
		}
	}
}
