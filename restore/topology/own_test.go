package topology_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"lifeboat/internal/etcdtest/cluster"
	"lifeboat/internal/manifest"
	"lifeboat/restore/topology"
)

// The backup is of another cluster than the living one, as after a restore, whose
// members are at the old addresses under new ids. This node's own is not yet among them.
func TestTheRestoresOwnClusterIsNoneToRefuse(t *testing.T) {
	for _, version := range cluster.Versions {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			c := cluster.StartBinary(t, version, cluster.Options{Members: 3, TLS: true, Args: []string{"--strict-reconfig-check=false"}})
			etcd := backupOf(t, c)
			becomes := etcd.ClusterID
			etcd.ClusterID = 0xabc
			for i := range etcd.Members {
				etcd.Members[i].ID = manifest.EtcdID(i + 1)
			}
			added, err := c.Client(0).MemberAdd(t.Context(), []string{"http://127.0.0.1:1"}) // never starts, as one that is not restored yet
			if err != nil {
				t.Fatal(err)
			}
			for range 3 { // so that each has on its disk that this was agreed to
				write1(t, c)
			}
			for i := range c.Members {
				c.WaitHealthy(i)
			}
			of := func(id manifest.EtcdID) func(*topology.Inputs) {
				return func(in *topology.Inputs) {
					in.Becomes, in.Limits.Call = &manifest.Etcd{ClusterID: id, MemberID: manifest.EtcdID(added.Member.ID)}, 5*time.Second
				}
			}
			own := func(h *topology.Host) (n int) {
				for _, m := range h.Living.Members {
					if m.Own {
						n++
					}
				}
				return n
			}

			h := look(t, c, etcd, of(becomes))
			if h.Verdict.Outcome != topology.NothingLives || h.Verdict.Refuse || own(h) != 3 || len(h.Living.Members) != 3 || len(h.Living.Foreign) > 0 {
				t.Errorf("all of them live: %+v, %+v", h.Verdict, h.Living)
			}
			if why := strings.Join(h.Verdict.Why, "\n"); !strings.Contains(why, "of the cluster that this restore makes") {
				t.Errorf("it does not say whose they are: %s", why)
			}
			removed := func(in *topology.Inputs) { in.Becomes = &manifest.Etcd{ClusterID: becomes, MemberID: 4242} }
			if h := look(t, c, etcd, removed); h.Verdict.Outcome != topology.DoneBefore || !h.Verdict.Refuse || !strings.Contains(strings.Join(h.Verdict.Why, "\n"), "it was removed") {
				t.Errorf("this node's member was removed: %+v", h.Verdict)
			}
			for name, id := range map[string]manifest.EtcdID{"unknown": 0, "another": becomes + 1} {
				if h := look(t, c, etcd, of(id)); h.Verdict.Outcome != topology.OtherCluster || !h.Verdict.Refuse || own(h) > 0 {
					t.Errorf("the new id is %s: %+v", name, h.Verdict)
				}
			}

			// Of three that start anew, the first two wait for each other.
			for i := range c.Members {
				c.Kill(i)
			}
			c.Launch(0)
			for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
				h = look(t, c, etcd, of(becomes))
				if own(h) == 1 || time.Now().After(deadline) {
					break
				}
			}
			if !slices.Contains(states(h), topology.Accepts) || own(h) != 1 || h.Verdict.Outcome != topology.NothingLives || h.Verdict.Refuse {
				t.Errorf("one waits for the others: %+v, %+v", h.Verdict, h.Living)
			}
			if h = look(t, c, etcd, of(becomes+1)); h.Verdict.Outcome != topology.Survivors || own(h) > 0 {
				t.Errorf("one of another waits: %+v, %+v", h.Verdict, h.Living)
			}
		})
	}
}

// The member of this node has been one of the new cluster's, and is lost again: the
// same restore must not be done a second time. A member that has never started is
// covered with real restores, see package plane.
func TestARestoreThatWasDoneOnThisNodeIsNotDoneAgain(t *testing.T) {
	for _, version := range cluster.Versions {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			c := cluster.StartBinary(t, version, cluster.Options{Members: 3, TLS: true})
			etcd := backupOf(t, c)
			becomes := &manifest.Etcd{ClusterID: etcd.ClusterID, MemberID: etcd.Members[2].ID}
			etcd.ClusterID = 0xabc
			for i := range etcd.Members {
				etcd.Members[i].ID = manifest.EtcdID(i + 1)
			}
			again := func(what string, words ...string) {
				t.Helper()
				h := look(t, c, etcd, func(in *topology.Inputs) { in.Becomes, in.Limits.Call = becomes, 5*time.Second })
				said := strings.Join(append(slices.Clone(h.Verdict.Why), h.Verdict.Do...), "\n")
				if h.Verdict.Outcome != topology.DoneBefore || !h.Verdict.Refuse {
					t.Errorf("%s: %+v, %+v", what, h.Verdict, h.Living)
				}
				for _, word := range append(words, "was done on this node before") {
					if !strings.Contains(said, word) {
						t.Errorf("%s: it does not say %q:\n%s", what, word, said)
					}
				}
			}
			again("all live, this node's too", "needs no restore")
			c.Kill(2)
			c.WaitHealthy(0)
			again("a majority lives", "2 of 3 voting members answer", "member remove "+becomes.MemberID.String()+"    # m2", "kubeadm join")
			c.Kill(1)
			waitNoLeader(t, c, 0)
			again("one lives", "1 of 3 voting members answer, without a quorum", "snapshot save", "plan a new restore on the first node")
			c.Kill(0)
			c.Launch(0)
			started := func() bool {
				h := look(t, c, etcd, func(in *topology.Inputs) { in.Becomes, in.Limits.Call = becomes, time.Second })
				return h.Verdict.Outcome == topology.DoneBefore && slices.Contains(states(h), topology.Accepts)
			}
			for deadline := time.Now().Add(20 * time.Second); !started() && time.Now().Before(deadline); {
				time.Sleep(100 * time.Millisecond)
			}
			again("one waits for the others", "0 of 3 voting members answer", "plan a new restore")
			c.Kill(0)
			if h := look(t, c, etcd, func(in *topology.Inputs) { in.Becomes = becomes }); h.Verdict.Outcome != topology.NothingLives {
				t.Errorf("nothing lives: %+v", h.Verdict)
			}
		})
	}
}

func TestALivingEtcdWhoseFilesAreGoneIsToBeSavedFirst(t *testing.T) {
	c := cluster.StartBinary(t, "3.6", cluster.Options{TLS: true})
	etcd := backupOf(t, c)
	do := strings.Join(look(t, c, etcd).Verdict.Do, "\n")
	for _, want := range []string{"needs no restore", "has lost its files here (there is no /var/lib/etcd/member)", "etcdctl --endpoints=" + c.Members[0].Endpoint, "snapshot save salvage-" + etcd.Members[0].ID.String() + ".db", "kubelet does that"} {
		if !strings.Contains(do, want) {
			t.Errorf("the advice lacks %q:\n%s", want, do)
		}
	}
	root := write(t, map[string]string{"var/lib/etcd/member/snap/db": "something"})
	if do := strings.Join(look(t, c, etcd, func(in *topology.Inputs) { in.Root = root }).Verdict.Do, "\n"); strings.Contains(do, "lost its files") {
		t.Errorf("its files are there:\n%s", do)
	}
}
